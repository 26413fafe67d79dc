"""What raters sent back: files of votes, checked and joined with the key of their page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.errors import DataError, PhyscliError
from physcli.files import read_json_object
from physcli.tasks.blind.key import KEY_FILE, PageKey, read_key

CHOICES = ("left", "right", "tie", "skip")
_VERSION = 1
_AGAIN = "ask the rater to save the votes again: the page keeps them"


@dataclass(frozen=True)
class Vote:
    """One answer, joined with the key.

    Attributes:
        trial: Its id.
        kind: pair, repeat or check.
        pair: Number of the pair; None of a check.
        item: Number of the item; None of a check.
        left: The run on the left; of a check 0 for the whole video, 1 for the broken one.
        right: The one on the right.
        choice: left, right, tie, or skip where the videos did not play.
        plays: How often both were seen to the end.
        replays: How often the rater began them again.
        seconds: The pair was in view.
        revised: How often the answer was taken back.
    """

    trial: str
    kind: str
    pair: int | None
    item: int | None
    left: int
    right: int
    choice: str
    plays: int
    replays: int
    seconds: float
    revised: int

    @property
    def counts(self) -> bool:
        """It is an answer, of someone who has seen both videos."""
        return self.choice != "skip" and self.plays > 0

    @property
    def chosen(self) -> int | None:
        """The run; None for a tie."""
        return {"left": self.left, "right": self.right}.get(self.choice)

    @property
    def passed(self) -> bool:
        """Of a check: the whole video was chosen."""
        return self.chosen == 0


@dataclass(frozen=True)
class Ballot:
    """One rater's votes.

    Attributes:
        path: The file.
        name: The rater: the number, and the session's beginning where two people used it.
        rater: The number.
        session: Drawn by the browser: tells people with one number apart.
        num_trials: What the rater was to see.
        votes: In the order of the page.
    """

    path: Path
    name: str
    rater: int
    session: str
    num_trials: int
    votes: tuple[Vote, ...]

    def of(self, kind: str) -> list[Vote]:
        return [vote for vote in self.votes if vote.kind == kind and vote.counts]


def find_key(files: Sequence[Path], page: Path | None) -> PageKey:
    """The key that belongs to the first file of votes.

    Args:
        files: Of votes.
        page: The run directory of `physcli compare --blind`; None to look beside the file and one folder above.

    Raises:
        PhyscliError: there is none, or none of this page.
    """
    wanted = _read(files[0])["page"]
    folders = [files[0].parent, files[0].parent.parent]
    if page is not None:
        folders = [page.parent if page.is_file() else page]
    paths = [folder / KEY_FILE for folder in folders]
    there = [path for path in paths if path.is_file()]
    if not there:
        raise PhyscliError(
            f"The key of page {wanted} is not in {' or '.join(str(path.parent) for path in paths)}.",
            expected=f"the {KEY_FILE} that `physcli compare --blind` wrote",
            fix="name its run directory: --page DIR",
        )
    keys = [read_key(path) for path in there]
    return next((key for key in keys if key.page == wanted), keys[0])


def read_ballots(files: Sequence[Path], key: PageKey) -> tuple[list[Ballot], list[str]]:
    """All raters' votes, and what is to be said of the files.

    Where one rater saved several times, the file that was saved last counts; of two saved at once, the one with more
    votes.

    Raises:
        DataError: a file that is none of votes, was changed, or is of another page.
    """
    of_rater: dict[tuple[int, str], tuple[Path, dict[str, Any]]] = {}
    notes: list[str] = []
    for path in files:
        record = _read(path)
        _refuse_other_page(path, record, key)
        who = (record["rater"], record["session"])
        known = of_rater.get(who)
        if known is not None:
            older, newer = sorted([known, (path, record)], key=lambda one: (one[1]["saved"], len(one[1]["votes"])))
            at_once = older[1]["saved"] == newer[1]["saved"]
            notes.append(
                f"{older[0].name} is left out: {newer[0].name} is of the same rater, and "
                + ("holds no fewer votes, saved at the same time." if at_once else "was saved later.")
            )
            of_rater[who] = newer
        else:
            of_rater[who] = (path, record)
    numbers = [rater for rater, _ in of_rater]
    shared = sorted({rater for rater in numbers if numbers.count(rater) > 1})
    if shared:
        notes.append(
            f"Several people voted as rater {', '.join(map(str, shared))}: they saw the same pairs on the same sides, "
            "so sides are not quite balanced."
        )
    ballots = []
    for (rater, session), (path, record) in sorted(of_rater.items()):
        name = f"{rater} ({session[:4]})" if rater in shared else str(rater)
        num_trials = sum(trial["rater"] == rater for trial in key.trials.values())
        ballots.append(Ballot(path, name, rater, session, num_trials, _votes(path, record, key)))
    return ballots, notes


def checksum(text: str) -> str:
    """FNV-1a of 64 bits, as the page computes it."""
    found = 0xCBF29CE484222325
    for byte in text.encode():
        found = ((found ^ byte) * 0x100000001B3) % 2**64
    return f"{found:016x}"


def _read(path: Path) -> dict[str, Any]:
    record = read_json_object(path, fix=_AGAIN)
    fields = {"page": str, "rater": int, "session": str, "saved": str, "votes": list, "checksum": str}
    if record.get("physcli_votes") != _VERSION or any(not isinstance(record.get(f), t) for f, t in fields.items()):
        raise DataError(
            f"{path} is no file of votes.",
            expected=f"what the page of `physcli compare --blind` saved, of version {_VERSION}",
            fix="check the path",
        )
    content = {name: value for name, value in record.items() if name != "checksum"}
    try:
        written = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        whole = checksum(written) == record["checksum"]
    except ValueError:  # NaN, or half a surrogate pair
        whole = False
    if not whole:
        raise DataError(
            f"{path} is not as the page saved it: its content does not have its checksum, {record['checksum'][:16]}.",
            expected="the file itself, unchanged",
            fix=_AGAIN,
        )
    return record


def _refuse_other_page(path: Path, record: dict[str, Any], key: PageKey) -> None:
    if record["page"] == key.page:
        return
    if (key.path.parent / f"blind-{record['page'][:8]}.html").is_file():
        raise DataError(
            f"{key.path} was changed after its page was made: the page was registered as {record['page']}, and this "
            f"key is {key.page}.",
            expected="the key as it was: the rules of exclusion were fixed before anybody voted",
            fix="put the key back as it was; `physcli compare --blind` with the same settings makes it again",
        )
    raise DataError(
        f"{path} holds votes on page {record['page']}, and {key.path} is the key of page {key.page}.",
        expected="votes on one page, with its key",
        fix="score each page's votes by themselves, with --page DIR for its run directory",
    )


def _votes(path: Path, record: dict[str, Any], key: PageKey) -> tuple[Vote, ...]:
    votes: dict[str, Vote] = {}
    for number, row in enumerate(record["votes"], start=1):
        fields = ("plays", "replays", "ms", "revised")
        trial = key.trials.get(row.get("trial", "")) if isinstance(row, dict) else None
        fits = (
            trial is not None
            and trial["rater"] == record["rater"]
            and (row.get("left"), row.get("right")) == (trial["left"], trial["right"])
            and row["trial"] not in votes
            and row.get("choice") in CHOICES
            and all(isinstance(row.get(field), int) and row[field] >= 0 for field in fields)
        )
        if trial is None or not fits:
            raise DataError(
                f"{path}, vote {number}: {json.dumps(row, ensure_ascii=False)[:160]} does not fit its page.",
                expected="a pair that this rater was shown, once, left, right, tie or skip, and times from 0",
                fix=_AGAIN,
            )
        left, right = (_role(key, trial[side]) for side in ("left", "right"))
        votes[row["trial"]] = Vote(
            trial=row["trial"],
            kind=trial["kind"],
            pair=trial.get("pair"),
            item=key.videos[trial["left"]].get("item"),
            left=left,
            right=right,
            choice=row["choice"],
            plays=row["plays"],
            replays=row["replays"],
            seconds=row["ms"] / 1000,
            revised=row["revised"],
        )
    return tuple(votes.values())


def _role(key: PageKey, video: str) -> int:
    facts = key.videos[video]
    return int(facts["run"]) if "run" in facts else int(facts["broken"])
