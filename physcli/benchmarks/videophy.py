"""VideoPhy (Bansal et al. 2024, arXiv 2406.03520) and VideoPhy-2 (2025, arXiv 2503.06800): what the raters are asked,
how their answers are read, and what is counted.

*SA*, semantic adherence: does the video show what the caption says? *PC*, physical commonsense: does it obey physics?
VideoPhy's rater gives a probability of Yes; the authors name no threshold, and 0.5 is the convention of WISA and
VideoREPA. VideoPhy-2's rater answers 1 to 5, and 4 is enough; *Joint* is both. Its *rules* are judged 0 (violated),
1 (followed) or 2 (cannot be told).

Differs from the released code in: answers are parsed strictly. There the first digit or number word found anywhere
counts ("phone" is 1, "10" is 0) and all else is 0; here an answer without one clear number is missing, and the missing
are counted in rows of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from physcli.errors import DataError
from physcli.stats import stderr_of_mean

MEDIA = "<|video|>"
YES_THRESHOLD = 0.5  # VideoPhy
PASSING_RATING = 4  # VideoPhy-2
RATINGS = (1, 2, 3, 4, 5)
VIOLATED, FOLLOWED, UNDECIDED = RULE_ANSWERS = (0, 1, 2)
# The official VideoPhy scorer cuts its prompts here; VideoPhy-2's does not cut.
MAX_TOKENS = {"videophy": 257, "videophy2": None}

_HEAD = (
    "The following is a conversation between a curious human and {an} assistant. The assistant gives helpful, "
    f"detailed, and polite answers to the user's questions.\nHuman: {MEDIA}\nHuman: "
)
_V1, _V2 = _HEAD.replace("{an}", "AI"), _HEAD.replace("{an}", "an AI")


@dataclass(frozen=True)
class Question:
    """What a rater is asked.

    Attributes:
        benchmark: "videophy" or "videophy2".
        template: With `{caption}` or `{rule}` where a text goes in, or neither.
        splits: Where the prompt is cut into segments that are tokenised one by one; each of these is one itself.
    """

    benchmark: Literal["videophy", "videophy2"]
    template: str
    splits: tuple[str, ...]

    @property
    def field(self) -> str | None:
        """What goes in: "caption", "rule" or None."""
        found = re.search(r"\{(\w+)\}", self.template)
        return found[1] if found else None

    def fill(self, text: str = "") -> str:
        """The whole prompt; `text` is the caption or rule, and unused where the question has none.

        Raises:
            DataError: the text is empty where one is needed, or holds the mark that stands for the video.
        """
        if self.field is None:
            return self.template
        if not text.strip() or MEDIA in text:
            raise DataError(
                f"The {self.field} {text!r} cannot be asked about.", expected=f"text without the mark {MEDIA}"
            )
        return self.template.replace("{" + self.field + "}", text)

    def segments(self, text: str = "") -> tuple[str, ...]:
        """The filled prompt in its segments, `MEDIA` one of them; joined they are `fill(text)`."""
        pattern = "|".join(map(re.escape, self.splits))
        return tuple(part for part in re.split(f"({pattern})", self.fill(text)) if part)


_V1_SPLITS, _V2_SPLITS = (MEDIA, "\nHuman: ", "AI: "), (MEDIA,)
QUESTIONS: dict[str, Question] = {
    "v1_sa": Question("videophy", _V1 + 'Does this video entail the description: "{caption}"?\nAI: ', _V1_SPLITS),
    "v1_pc": Question("videophy", _V1 + "Does this video follow the physical laws?\nAI: ", _V1_SPLITS),
    "v2_sa": Question(
        "videophy2",
        _V2
        + 'Does this video match the description: "{caption}"? Please rate the video on a scale from 1 to 5, where 5 '
        "indicates a perfect match and 1 indicates no relevance.\nAI: ",
        _V2_SPLITS,
    ),
    "v2_pc": Question(
        "videophy2",
        _V2 + "Does this video adhere to the physical laws? Rate the video on a scale from 1 to 5, where 5 means full "
        "compliance and 1 means significant violations.\nAI: ",
        _V2_SPLITS,
    ),
    "v2_rule": Question(
        "videophy2",
        _V2 + 'Does the video follow the physical rule: "{rule}"?\nChoose 0 if not, 1 if valid, or 2 if indeterminate. '
        "\nAI: ",
        _V2_SPLITS,
    ),
}

# --- reading an answer ---

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SCALE = re.compile(r"(?:/|\bout of)\s*(?:5|five)\b(?![.\d])|\bon a scale (?:from|of) (?:1|one) (?:to|-) (?:5|five)\b")
_NUMBER = re.compile(rf"(?<![\w.])[-−+]?[0-9]+(?:\.[0-9]+)?(?!\w)|\b(?:{'|'.join(_WORDS)})\b")


def parse_rating(text: str) -> int | None:
    """The rating 1 to 5 that an answer gives, if there is no doubt about it.

    Numbers in digits and words count, what only names the scale ("out of 5", "on a scale from 1 to 5") does not; all
    that remain must be the same whole number. None for "3.5", "3 or 4", "4-5", "10", "fourteen" and no number at all.
    """
    return _only_number(_SCALE.sub(" ", text.lower()), RATINGS)


def parse_rule(text: str) -> int | None:
    """The judgement 0, 1 or 2 that an answer gives, if there is no doubt about it."""
    return _only_number(text.lower(), RULE_ANSWERS)


def _only_number(text: str, allowed: Sequence[int]) -> int | None:
    found = {_value(match) for match in _NUMBER.findall(text)}
    if len(found) != 1:
        return None
    value = found.pop()
    return int(value) if value in allowed else None


def _value(word: str) -> float:
    return float(_WORDS.index(word)) if word in _WORDS else float(word.replace("−", "-"))


@dataclass(frozen=True)
class Calibrated:
    """A rating read from the logits of the first answer token instead of the text: never missing, and graded.

    `expected`: the mean of 1 to 5 under the softmax over the five digits. `best`: the likeliest digit.
    """

    expected: float
    best: int


def calibrated_rating(digit_logits: Sequence[float] | np.ndarray) -> Calibrated:
    """Read a rating from the logits of 1, 2, 3, 4, 5, in that order.

    Raises:
        ValueError: not five finite numbers.
    """
    logits = np.asarray(digit_logits, dtype=np.float64)
    if logits.shape != (len(RATINGS),) or not np.isfinite(logits).all():
        raise ValueError(f"expected {len(RATINGS)} finite logits, got {digit_logits!r}")
    weights = np.exp(logits - logits.max())
    return Calibrated(float(weights @ RATINGS / weights.sum()), RATINGS[int(logits.argmax())])


# --- scoring one item ---


@dataclass(frozen=True)
class Score:
    """One video's scores.

    Attributes:
        sa: P(Yes) (VideoPhy) or rating (VideoPhy-2); None is a missing answer.
        pc: The same for physics.
        threshold: `sa` and `pc` pass from here on.
        sa_expected: Calibrated reading, where there is one.
        pc_expected: The same for physics.
        rules: Judgements 0, 1, 2 of the video's rules; None is a missing answer.
    """

    sa: float | None
    pc: float | None
    threshold: float
    sa_expected: float | None = None
    pc_expected: float | None = None
    rules: tuple[int | None, ...] = ()

    @property
    def passed(self) -> dict[str, bool | None]:
        """sa, pc, and joint: both. None where an answer is missing, and joint is missing where one of the two is."""
        sa, pc = (None if value is None else value >= self.threshold for value in (self.sa, self.pc))
        return {"sa": sa, "pc": pc, "joint": None if sa is None or pc is None else sa and pc}

    @property
    def rule_shares(self) -> dict[str, float | None]:
        """`rules`, of the decided ones followed; `rules_undecided`, of the readable ones. None of none."""
        shares = {"rules": self.followed, "rules_undecided": self.undecided}
        return {name: sum(some) / len(some) if some else None for name, some in shares.items()}

    @property
    def followed(self) -> list[bool]:
        """Of each rule that is decided, whether it is followed."""
        return [rule == FOLLOWED for rule in self.rules if rule in (FOLLOWED, VIOLATED)]

    @property
    def undecided(self) -> list[bool]:
        """Of each rule with an answer, whether it cannot be told."""
        return [rule == UNDECIDED for rule in self.rules if rule is not None]


def score_videophy(sa: float, pc: float, *, threshold: float = YES_THRESHOLD) -> Score:
    """Score one video from its two probabilities of Yes.

    Raises:
        ValueError: no probability.
    """
    for value in (sa, pc, threshold):
        if not 0 <= value <= 1:
            raise ValueError(f"expected probabilities, got sa {sa}, pc {pc}, threshold {threshold}")
    return Score(float(sa), float(pc), threshold)


def score_videophy2(
    sa_answer: str | None,
    pc_answer: str,
    *,
    sa_digits: Sequence[float] | np.ndarray | None = None,
    pc_digits: Sequence[float] | np.ndarray | None = None,
    rule_answers: Sequence[str] = (),
) -> Score:
    """Score one video from the rater's texts, and the digits' logits where there are any.

    Args:
        sa_answer: None where it was not asked.
        pc_answer: Whether it obeys physics.
        sa_digits: Logits of 1 to 5.
        pc_digits: The same.
        rule_answers: One a rule.
    """
    sa_expected, pc_expected = (
        None if logits is None else calibrated_rating(logits).expected for logits in (sa_digits, pc_digits)
    )
    return Score(
        sa=None if sa_answer is None else parse_rating(sa_answer),
        pc=parse_rating(pc_answer),
        threshold=PASSING_RATING,
        sa_expected=sa_expected,
        pc_expected=pc_expected,
        rules=tuple(parse_rule(answer) for answer in rule_answers),
    )


# --- aggregating many ---


@dataclass(frozen=True)
class Item:
    """A scored video.

    Attributes:
        score: Its scores.
        prompt: What several videos of one prompt have in common; they are not independent.
        state: Its state of matter (VideoPhy), such as "solid_fluid"; "" where none is known.
        hard: Whether its caption is in VideoPhy-2's hard subset; None where the input does not say.
        captioned: It has a caption to be asked about; a list of rules has none.
    """

    score: Score
    prompt: str
    state: str = ""
    hard: bool | None = None
    captioned: bool = True


def read_hard(value: Any) -> bool | None:
    """An `is_hard` column's entry; None where it is empty.

    Raises:
        DataError: neither yes nor no.
    """
    text = "" if value is None else str(value).strip().lower()
    if text in ("", "nan", "none"):
        return None
    if text in ("1", "1.0", "true", "yes"):
        return True
    if text in ("0", "0.0", "false", "no"):
        return False
    raise DataError(f"is_hard is {value!r}.", expected="1 or 0, true or false, or nothing")


def aggregate(
    items: Sequence[Item], *, benchmark: Literal["videophy", "videophy2"], subject: str, rater: str, split: str = "test"
) -> list[dict[str, Any]]:
    """Metric rows of a set of scored videos.

    `sa`, `pc`, `joint`: shares of videos that pass (`threshold` is in the row), over the videos with an answer; no
    `sa` and `joint` where no video has a caption.
    `sa_mean`, `pc_mean`: mean probability or rating. `sa_expected`, `pc_expected`: mean calibrated rating. `rules`:
    share of the decided rules that are followed; `rules_undecided`: share of the rules that cannot be told.
    `missing/<what>`: share of unreadable answers, with their `count`; always there, so that nobody must guess.

    Groups: all; VideoPhy's states of matter; VideoPhy-2's `hard`, only if the input says of every video whether it is:
    a subset of the known ones is not the published subset.

    Args:
        items: The videos.
        benchmark: Which one.
        subject: Whose videos.
        rater: Who scored them.
        split: For the rows.

    Raises:
        ValueError: no items, or scored by different thresholds.
    """
    thresholds = {item.score.threshold for item in items}
    if len(thresholds) != 1:
        raise ValueError(f"expected items of one threshold, got {len(items)} items with {sorted(thresholds)}")
    groups: dict[str, Sequence[Item]] = {"all": items}
    if benchmark == "videophy":
        states = sorted({item.state for item in items} - {""})
        groups |= {state: [item for item in items if item.state == state] for state in states}
    elif all(item.hard is not None for item in items) and any(item.hard for item in items):
        groups["hard"] = [item for item in items if item.hard]
    common = {"benchmark": benchmark, "task": "eval", "subject": subject, "split": split}
    about = {"rater": rater, "threshold": thresholds.pop()}
    return [common | {"group": group} | row | about for group, some in groups.items() for row in _rows(some)]


def _rows(items: Sequence[Item]) -> Iterable[dict[str, Any]]:
    """What is known of a group's items; each list is (value or None, prompt)."""

    def column(values: Iterable[float | None]) -> list[tuple[float | None, str]]:
        return list(zip(values, (item.prompt for item in items), strict=True))

    asked = ("sa", "pc") if any(item.captioned for item in items) else ("pc",)
    answers = {name: column(getattr(item.score, name) for item in items) for name in asked}
    for name in (*asked, "joint") if "sa" in asked else asked:
        yield _row(name, column(item.score.passed[name] for item in items))
    for name in asked:
        yield _row(f"{name}_mean", answers[name])
    for name in asked:
        values = column(getattr(item.score, f"{name}_expected") for item in items)
        if any(value is not None for value, _ in values):
            yield _row(f"{name}_expected", values)
    rules = [(rule, item.prompt) for item in items for rule in item.score.rules]
    if rules:
        yield _row("rules", [(value, item.prompt) for item in items for value in item.score.followed])
        undecided = [(value, item.prompt) for item in items for value in item.score.undecided]
        yield _row("rules_undecided", undecided, higher_is_better=None)
        answers["rules"] = [(rule, prompt) for rule, prompt in rules]
    for name, values in answers.items():
        gone = [(value is None, prompt) for value, prompt in values]
        yield _row(f"missing/{name}", gone, higher_is_better=False) | {"count": sum(lost for lost, _ in gone)}


def _row(
    metric: str, values: Sequence[tuple[float | None, str]], *, higher_is_better: bool | None = True
) -> dict[str, Any]:
    """The mean of what is not missing; its error takes the videos of a prompt as one."""
    known = [(float(value), prompt) for value, prompt in values if value is not None]
    array = np.array([value for value, _ in known])
    stderr = stderr_of_mean(array, [prompt for _, prompt in known]) if known else math.nan
    return {
        "metric": metric,
        "value": float(array.mean()) if known else None,
        "stderr": None if math.isnan(stderr) else stderr,
        "n": len(known),
        "higher_is_better": higher_is_better,
    }
