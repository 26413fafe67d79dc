"""Scores of VideoPhy-2: the official scorer's lists of SA, PC and rules, or one table with a column of each.

The lists have a head line and one score: `caption, videopath, score`, or `videopath, rule, score`. Whether it is SA or
PC is not in the content: the file's name says it (`output_sa.csv`), or `sa=FILE`. The scorer writes 0 where it found no
rating in an answer: such an answer is missing here, not a rating. A 0 of a rule is "violated" or no answer, which
cannot be told apart, and counts as violated. A table has a video, a caption, `sa` and `pc` of 1 to 5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from physcli.benchmarks.videophy import PASSING_RATING, RATINGS, RULE_ANSWERS
from physcli.errors import DataError, UsageError
from physcli.tasks.imports.base import Imported, Source, number
from physcli.tasks.imports.rated import Answered, imported, is_empty, read_table, table_scores

WHAT = (
    "caption, videopath, score (sa or pc in the file's name) or videopath, rule, score; or a table with video, "
    "caption, sa, pc of 1 to 5"
)

_ROLE = re.compile(r"(?<![a-z])(sa|pc)(?![a-z])")


def fits(source: Source) -> bool:
    if _is_list(source):
        return True
    scores = table_scores(source)
    return bool(scores) and all(score in RATINGS for score in scores)


def read(sources: Sequence[Source]) -> Imported:
    found: dict[str, Answered] = {}
    notes: list[str] = []
    for source in sources:
        if not _is_list(source):
            read_table(source, found, low=min(RATINGS), high=max(RATINGS))
            continue
        what = "rule" if "rule" in source.columns else source.role or _role(source)
        if what != "rule" and not source.role:
            notes.append(f"{source.path.name} holds {what.upper()}: its name says so.")
        unread = 0
        for line, row in source.rows:
            where = f"{source.path}, line {line}"
            name = str(row["videopath"] or "").strip()
            if not name:
                raise DataError(f"{where}: videopath is empty.", expected="a video's name")
            one = found.setdefault(name, Answered(name))
            one.caption = one.caption or str(row.get("caption") or "")
            score = None if is_empty(row["score"]) else number(row["score"], f"{where}: the score", low=0, high=5)
            if what == "rule":
                _give_rule(one, str(row["rule"] or ""), score, where)
                continue
            if score == 0:
                score, unread = None, unread + 1
            if score is not None and score not in RATINGS:
                raise DataError(
                    f"{where}: the score is {row['score']!r}.", expected="a rating of 1 to 5, or 0 for none"
                )
            one.give(what, score, where)
        if unread:
            notes.append(f"{unread} answers of {source.path.name} are 0, no rating: they are missing.")
    return imported("videophy2", found, threshold=PASSING_RATING, notes=tuple(notes))


def _is_list(source: Source) -> bool:
    return {"videopath", "score"} <= set(source.columns) and bool({"caption", "rule"} & set(source.columns))


def _role(source: Source) -> str:
    found = set(_ROLE.findall(source.path.stem.lower()))
    if len(found) != 1:
        raise UsageError(
            f"{source.path} has one column of scores, and nothing says whether they are SA or PC.",
            expected="a file name with sa or pc in it, as the official output_sa.csv",
            fix=f"say it: sa={source.path} or pc={source.path}",
        )
    return str(found.pop())


def _give_rule(one: Answered, rule: str, score: float | None, where: str) -> None:
    if rule in one.rules:
        raise DataError(f"{where}: the rule {rule!r} of {one.name} for a second time.", expected="each once")
    if score is not None and score not in RULE_ANSWERS:
        raise DataError(
            f"{where}: the score is {score:g}.", expected="0 (violated), 1 (followed) or 2 (cannot be told)"
        )
    one.rules[rule] = None if score is None else int(score)
