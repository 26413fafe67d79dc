"""The key of a blind page: what its ids stand for, and which votes will count.

The page holds hashed ids alone. The key, a file of its own in the page's run directory, says whose videos they are,
which showings are repeats and checks, and by which rules raters and votes are left out. The page's own id is the hash
of its key, and every file of votes names it: a key whose rules were changed after the page was made is not the page's
any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.errors import DataError, UsageError, unknown
from physcli.files import read_json_object
from physcli.hashing import settings_hash
from physcli.tasks.run_dir import write_json

KEY_FILE = "key.json"
_VERSION = 1
_ID_LENGTH = 12


@dataclass(frozen=True)
class Rule:
    """A reason to leave a rater out, with its bound unless another is given.

    Attributes:
        default: The bound, which itself leaves nobody out; 0 is never, of every rule.
        words: What a rater did who is left out, `{}` for the bound.
        share: The bound is a share; else it is seconds.
    """

    default: float
    words: str
    share: bool = True


# In this order: a rater whom several would leave out counts under the first.
RULES = {
    "answered": Rule(0.5, "answered less than {} of what was to be seen"),
    "failed-checks": Rule(0.34, "failed more than {} of the checks, a tie being a failure"),
    "median-s": Rule(1.0, "took less than {} for half of the votes", share=False),
    "one-sided": Rule(0.95, "chose one side in more than {} of 10 or more decided votes"),
    "repeats": Rule(0.0, "said the same in less than {} of the repeats"),
}


def read_rules(given: tuple[str, ...]) -> dict[str, float]:
    """All rules with their bounds, from `NAME=NUMBER` or `NAME=off`, which is 0.

    Raises:
        UsageError: no such rule, or no such bound.
    """
    bounds = {name: rule.default for name, rule in RULES.items()}
    for text in given:
        name, _, number = text.partition("=")
        if name not in RULES:
            raise unknown("exclusion rule", name, RULES)
        try:
            bounds[name] = 0.0 if number == "off" else float(number)
        except ValueError:
            bounds[name] = -1.0
        most = 1.0 if RULES[name].share else 3600.0
        if not 0 <= bounds[name] <= most:
            raise UsageError(
                f"--exclude {text}: {number or 'nothing'!r} is no bound.", expected=f"0 to {most:g}; 0 or off for never"
            )
    return bounds


def rule_words(name: str, bound: float) -> str:
    """What a rater did whom the rule leaves out."""
    if not bound:
        return "never: it is off"
    return RULES[name].words.format(f"{100 * bound:g} %" if RULES[name].share else f"{bound:g} s")


def hashed_id(salt: str, *parts: object) -> str:
    """An id that says nothing to whoever does not know the salt."""
    text = "\x1f".join([salt, *(str(part) for part in parts)])
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]


@dataclass(frozen=True)
class PageKey:
    """A key that was read.

    Attributes:
        path: The file.
        page: The id of its page.
        runs: Labels, by run.
        items: `prompt`, `index`, `seed`, by item.
        videos: Id → `run`, `item` and `path`, or of a check `check` and `broken`.
        trials: Id → `rater` (from 1), `kind`, `left`, `right` (ids of videos), and of pairs and repeats `pair`.
        rules: Rule → bound.
        record: All of it.
    """

    path: Path
    page: str
    runs: list[str]
    items: list[dict[str, Any]]
    videos: dict[str, dict[str, Any]]
    trials: dict[str, dict[str, Any]]
    rules: dict[str, float]
    record: dict[str, Any]


def write_key(folder: Path, content: Mapping[str, Any]) -> str:
    """Write key.json; the page's id."""
    record = {"physcli_blind": _VERSION, **content}
    write_json(folder / KEY_FILE, record)
    return settings_hash(record)


def read_key(path: Path) -> PageKey:
    """Raises DataError: not there, or not a key."""
    record = read_json_object(path, fix="name the run directory of `physcli compare --blind`: --page DIR")
    if record.get("physcli_blind") != _VERSION:
        raise DataError(
            f"{path} is no key of a blind page.",
            expected=f"what `physcli compare --blind` wrote there, of version {_VERSION}",
            fix="name its run directory: --page DIR",
        )
    try:
        return PageKey(
            path=path,
            page=settings_hash(record),
            runs=[run["label"] for run in record["runs"]],
            items=record["items"],
            videos=record["videos"],
            trials=record["trials"],
            rules={name: record["rules"][name] for name in RULES},
            record=record,
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not whole: {error} is missing.", fix="make the page again") from error
