"""Scores of VideoPhy: the official scorer's lists of SA and PC, or one table with a column of each.

The scorer's lists have no head line: a video, the whole question, the probability of Yes. Which of the two was asked,
and the caption, are in the question. A table has a video, a caption, `sa` and `pc` of 0 to 1 (people's are 0 or 1), and
may have `states_of_matter`, by which the scores are grouped.
"""

from __future__ import annotations

from collections.abc import Sequence

from physcli.benchmarks.videophy import QUESTIONS, YES_THRESHOLD
from physcli.errors import DataError
from physcli.tasks.imports.base import Imported, Source, number
from physcli.tasks.imports.rated import Answered, imported, read_table, table_scores

WHAT = "a video, the official question and P(Yes) without a head line; or a table with video, caption, sa, pc of 0 to 1"

_SA_HEAD, _SA_TAIL = QUESTIONS["v1_sa"].template.rstrip().split("{caption}")
_PC = QUESTIONS["v1_pc"].template.rstrip()


def fits(source: Source) -> bool:
    if source.cells and len(source.cells[0]) == 3 and _asked(source.cells[0][1]) is not None:
        return True
    scores = table_scores(source)
    return bool(scores) and all(0 <= score <= 1 for score in scores)


def read(sources: Sequence[Source]) -> Imported:
    found: dict[str, Answered] = {}
    for source in sources:
        if _asked(source.cells[0][1] if len(source.cells[0]) > 1 else "") is None:
            read_table(source, found, low=0, high=1)
            continue
        for line, cells in enumerate(source.cells, start=1):
            where = f"{source.path}, row {line}"
            asked = _asked(cells[1]) if len(cells) == 3 else None
            if asked is None:
                raise DataError(
                    f"{where}: not the official question.", expected="a video, a question of VideoPhy, P(Yes)"
                )
            what, caption = asked
            one = found.setdefault(cells[0], Answered(cells[0]))
            one.caption = one.caption or caption
            one.give(what, number(cells[2], f"{where}: the score", low=0, high=1), where)
    return imported("videophy", found, threshold=YES_THRESHOLD)


def _asked(question: str) -> tuple[str, str] | None:
    """Which of the two was asked, and the caption; None of any other text."""
    text = question.strip()
    if text == _PC:
        return "pc", ""
    if text.startswith(_SA_HEAD) and text.endswith(_SA_TAIL):
        return "sa", text[len(_SA_HEAD) : len(text) - len(_SA_TAIL)]
    return None
