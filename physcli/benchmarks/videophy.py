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

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from physcli.benchmarks.base import MEDIA, Benchmark, Context, Question, Score, Video, option
from physcli.errors import DataError, UsageError
from physcli.rows import Metric, Row, mean_row

YES_THRESHOLD = 0.5  # VideoPhy
PASSING_RATING = 4  # VideoPhy-2
RATINGS = (1, 2, 3, 4, 5)
VIOLATED, FOLLOWED, UNDECIDED = RULE_ANSWERS = (0, 1, 2)
MAX_TOKENS = 257  # the official VideoPhy scorer cuts its prompts here; VideoPhy-2's does not cut

_HEAD = (
    "The following is a conversation between a curious human and {an} assistant. The assistant gives helpful, "
    f"detailed, and polite answers to the user's questions.\nHuman: {MEDIA}\nHuman: "
)
_V1, _V2 = _HEAD.replace("{an}", "AI"), _HEAD.replace("{an}", "an AI")
_V1_SPLITS = (MEDIA, "\nHuman: ", "AI: ")
QUESTIONS: dict[str, Question] = {
    "v1_sa": Question(
        _V1 + 'Does this video entail the description: "{caption}"?\nAI: ',
        _V1_SPLITS,
        answer="yes",
        max_tokens=MAX_TOKENS,
    ),
    "v1_pc": Question(_V1 + "Does this video follow the physical laws?\nAI: ", _V1_SPLITS, "yes", MAX_TOKENS),
    "v2_sa": Question(
        _V2
        + 'Does this video match the description: "{caption}"? Please rate the video on a scale from 1 to 5, where 5 '
        "indicates a perfect match and 1 indicates no relevance.\nAI: ",
    ),
    "v2_pc": Question(
        _V2 + "Does this video adhere to the physical laws? Rate the video on a scale from 1 to 5, where 5 means full "
        "compliance and 1 means significant violations.\nAI: ",
    ),
    "v2_rule": Question(
        _V2 + 'Does the video follow the physical rule: "{rule}"?\nChoose 0 if not, 1 if valid, or 2 if indeterminate. '
        "\nAI: ",
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
class Answers:
    """What a rater answered of one video, as numbers.

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


def score_videophy(sa: float, pc: float, *, threshold: float = YES_THRESHOLD) -> Answers:
    """Score one video from its two probabilities of Yes.

    Raises:
        ValueError: no probability.
    """
    for value in (sa, pc, threshold):
        if not 0 <= value <= 1:
            raise ValueError(f"expected probabilities, got sa {sa}, pc {pc}, threshold {threshold}")
    return Answers(float(sa), float(pc), threshold)


def score_videophy2(
    sa_answer: str | None,
    pc_answer: str,
    *,
    sa_digits: Sequence[float] | np.ndarray | None = None,
    pc_digits: Sequence[float] | np.ndarray | None = None,
    rule_answers: Sequence[str] = (),
) -> Answers:
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
    return Answers(
        sa=None if sa_answer is None else parse_rating(sa_answer),
        pc=parse_rating(pc_answer),
        threshold=PASSING_RATING,
        sa_expected=sa_expected,
        pc_expected=pc_expected,
        rules=tuple(parse_rule(answer) for answer in rule_answers),
    )


# --- aggregating many ---


@dataclass(frozen=True)
class RatedVideo:
    """A video and what was answered of it.

    Attributes:
        answers: Of a rater.
        prompt: What several videos of one prompt have in common; they are not independent.
        state: Its state of matter (VideoPhy), such as "solid_fluid"; "" where none is known.
        hard: Whether its caption is in VideoPhy-2's hard subset; None where the input does not say.
        captioned: It has a caption to be asked about; a list of rules has none.
    """

    answers: Answers
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
    videos: Sequence[RatedVideo],
    *,
    benchmark: Literal["videophy", "videophy2"],
    subject: str,
    rater: str,
    split: str = "test",
) -> list[Row]:
    """Metric rows of a set of rated videos.

    `sa`, `pc`, `joint`: shares of videos that pass (`threshold` is in the row), over the videos with an answer; no
    `sa` and `joint` where no video has a caption.
    `sa_mean`, `pc_mean`: mean probability or rating. `sa_expected`, `pc_expected`: mean calibrated rating. `rules`:
    share of the decided rules that are followed; `rules_undecided`: share of the rules that cannot be told.
    `missing/<what>`: share of unreadable answers, with their `count`; always there, so that nobody must guess.

    Groups: all; VideoPhy's states of matter; VideoPhy-2's `hard`, only if the input says of every video whether it is:
    a subset of the known ones is not the published subset.

    Args:
        videos: The videos.
        benchmark: Which one.
        subject: Whose videos.
        rater: Who rated them.
        split: For the rows.

    Raises:
        ValueError: no videos, or rated by different thresholds.
    """
    thresholds = {video.answers.threshold for video in videos}
    if len(thresholds) != 1:
        raise ValueError(f"expected videos of one threshold, got {len(videos)} videos with {sorted(thresholds)}")
    groups: dict[str, Sequence[RatedVideo]] = {"all": videos}
    if benchmark == "videophy":
        states = sorted({video.state for video in videos} - {""})
        groups |= {state: [video for video in videos if video.state == state] for state in states}
    elif all(video.hard is not None for video in videos) and any(video.hard for video in videos):
        groups["hard"] = [video for video in videos if video.hard]
    metrics = {metric.name: metric for metric in METRICS[benchmark]}
    columns: dict[str, Any] = {"benchmark": benchmark, "task": "eval", "subject": subject, "split": split}
    columns |= {"rater": rater, "threshold": thresholds.pop()}
    rows = []
    for group, some in groups.items():
        for name, values in _columns_of(some).items():
            known, prompts = [value for value, _ in values], [prompt for _, prompt in values]
            row = mean_row(metrics[name], known, clusters=prompts, group=group, **columns)
            rows.append(row | ({"count": sum(map(int, known))} if name.startswith("missing/") else {}))
    return rows


# For each video or rule: a value, None where it is missing, and the prompt, whose videos count as one for the error.
_Column = list[tuple[Any, str]]


def _columns_of(videos: Sequence[RatedVideo]) -> dict[str, _Column]:
    """What is known of a group's videos, by metric."""

    def column(values: Iterable[float | None]) -> _Column:
        return list(zip(values, (video.prompt for video in videos), strict=True))

    asked = ("sa", "pc") if any(video.captioned for video in videos) else ("pc",)
    answers = {name: column(getattr(video.answers, name) for video in videos) for name in asked}
    columns: dict[str, _Column] = {}
    for name in (*asked, "joint") if "sa" in asked else asked:
        columns[name] = column(video.answers.passed[name] for video in videos)
    for name in asked:
        columns[f"{name}_mean"] = answers[name]
    for name in asked:
        expected = column(getattr(video.answers, f"{name}_expected") for video in videos)
        if any(value is not None for value, _ in expected):
            columns[f"{name}_expected"] = expected
    rules: _Column = [(rule, video.prompt) for video in videos for rule in video.answers.rules]
    if rules:
        columns["rules"] = [(value, video.prompt) for video in videos for value in video.answers.followed]
        columns["rules_undecided"] = [(value, video.prompt) for video in videos for value in video.answers.undecided]
        answers["rules"] = rules
    return columns | {
        f"missing/{name}": [(value is None, prompt) for value, prompt in values] for name, values in answers.items()
    }


# --- the benchmarks ---

_PASSES = (
    Metric("sa", "rate", True, interval="wilson"),
    Metric("pc", "rate", True, role="commonsense", interval="wilson"),
    Metric("joint", "rate", True, role="headline", interval="wilson"),
)
_MISSING = tuple(Metric(f"missing/{what}", "rate", False, interval="none") for what in ("sa", "pc"))
METRICS: dict[str, tuple[Metric, ...]] = {
    # The means are of probabilities: no share of anything, and shown as they are.
    "videophy": (*_PASSES, *(Metric(f"{what}_mean", "score", True) for what in ("sa", "pc")), *_MISSING),
    "videophy2": (
        *_PASSES,
        *(Metric(f"{what}_{how}", "grade", True) for how in ("mean", "expected") for what in ("sa", "pc")),
        Metric("rules", "rate", True, interval="wilson"),
        Metric("rules_undecided", "rate", None, interval="wilson"),
        *_MISSING,
        Metric("missing/rules", "rate", False, interval="none"),
    ),
}


class _Rated(Benchmark):
    """What both benchmarks share: rows from the fields of items.jsonl."""

    needs = frozenset({"rater"})
    split = "test"

    def aggregate(self, scores: Sequence[Score], **columns: Any) -> list[Row]:
        threshold = getattr(self.settings, "threshold", PASSING_RATING)
        rated = [
            RatedVideo(
                Answers(
                    *(score.values["sa_mean"], score.values["pc_mean"], threshold),
                    *(score.values.get("sa_expected"), score.values.get("pc_expected")),
                    rules=tuple(one["judgement"] for one in score.values.get("judged", ())),
                ),
                score.video.prompt,
                _state_of(score.video),
                read_hard(score.video.columns.get("is_hard")),
                captioned=bool(score.video.caption),
            )
            for score in scores
        ]
        benchmark: Any = self.name
        return aggregate(rated, benchmark=benchmark, subject=columns["subject"], rater=columns["rater"])


def _state_of(video: Video) -> str:
    return str(video.columns.get("states_of_matter") or "")


@dataclass(frozen=True)
class VideoPhySettings:
    """See `VideoPhy`."""

    threshold: float = option(YES_THRESHOLD, "P(Yes) from which a video passes.")

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UsageError(f"--threshold {self.threshold}.", expected="between 0 and 1")


class VideoPhy(_Rated):
    """VideoPhy: both questions by the probability of Yes."""

    name = "videophy"
    Settings = VideoPhySettings
    metrics = METRICS["videophy"]
    official_rater = "videophysics/videocon_physics"

    def questions(self, video: Video) -> list[tuple[Question, str]]:
        return [(QUESTIONS["v1_sa"], video.caption), (QUESTIONS["v1_pc"], "")]

    def score(self, video: Video, context: Context) -> dict[str, Any]:
        sa, pc = (answer.yes for answer in context.answers)
        assert sa is not None
        assert pc is not None
        result = score_videophy(sa, pc, threshold=self.settings.threshold)
        return {**result.passed, "sa_mean": result.sa, "pc_mean": result.pc, "group": _state_of(video) or None}

    def tables(self, scores: Sequence[Score]) -> dict[str, list[list[Any]]]:
        """Without a head line, the texts the whole questions."""
        return {
            f"official_{what}.csv": [
                [one.video.name, QUESTIONS[f"v1_{what}"].fill(one.video.caption), one.values[f"{what}_mean"]]
                for one in scores
            ]
            for what in ("sa", "pc")
        }


class VideoPhy2(_Rated):
    """VideoPhy-2: SA is asked where there is a caption, PC always, and each rule there is."""

    name = "videophy2"
    metrics = METRICS["videophy2"]
    needs = frozenset({"rater", "rules"})
    official_rater = "videophysics/videophy_2_auto"

    def questions(self, video: Video) -> list[tuple[Question, str]]:
        sa = [(QUESTIONS["v2_sa"], video.caption)] if video.caption else []
        return [*sa, (QUESTIONS["v2_pc"], ""), *((QUESTIONS["v2_rule"], rule) for rule in video.rules)]

    def score(self, video: Video, context: Context) -> dict[str, Any]:
        answers = list(context.answers)
        sa = answers.pop(0) if video.caption else None
        pc, *rules = answers
        result = score_videophy2(
            None if sa is None else sa.text,
            pc.text,
            sa_digits=None if sa is None else sa.digits,
            pc_digits=pc.digits,
            rule_answers=[rule.text for rule in rules],
        )
        fields: dict[str, Any] = {
            **result.passed,
            **{"sa_mean": result.sa, "pc_mean": result.pc},
            **{"sa_expected": result.sa_expected, "pc_expected": result.pc_expected},
            **{"sa_answer": None if sa is None else sa.text, "pc_answer": pc.text},
            "group": _state_of(video) or None,
        }
        if video.rules:
            judged = zip(video.rules, rules, result.rules, strict=True)
            fields |= {
                **result.rule_shares,
                "judged": [{"rule": rule, "answer": answer.text, "judgement": value} for rule, answer, value in judged],
            }
        return fields

    def tables(self, scores: Sequence[Score]) -> dict[str, list[list[Any]]]:
        """With a head line; a table that would have no other is left out."""
        found = {
            "sa": [(one.video.caption, one.video.name, one.values["sa_mean"]) for one in scores if one.video.caption],
            "pc": [(one.video.caption, one.video.name, one.values["pc_mean"]) for one in scores],
            "rule": [
                (one.video.name, judged["rule"], judged["judgement"])
                for one in scores
                for judged in one.values.get("judged", ())
            ],
        }
        heads = {"rule": ("videopath", "rule")}
        return {
            f"official_{what}.csv": _numbered(heads.get(what, ("caption", "videopath")), rows)
            for what, rows in found.items()
            if rows
        }


def _numbered(head: tuple[str, str], rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """VideoPhy-2's layout: an index without a name, two texts, a score that is empty where the answer is missing."""
    told = [[number, *texts, "" if score is None else float(score)] for number, (*texts, score) in enumerate(rows)]
    return [["", *head, "score"], *told]
