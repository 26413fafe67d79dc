"""What VideoPhy and VideoPhy-2 share: tables of raters' answers to SA and PC."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from physcli.benchmarks.videophy import METRICS, Answers, RatedVideo, aggregate, read_hard
from physcli.data.tables import first_of
from physcli.data.video_sets import VIDEO_COLUMNS
from physcli.errors import DataError
from physcli.rows import Row
from physcli.tasks.imports.base import Imported, Scored, Source, number

_VIDEO = (*VIDEO_COLUMNS, "video_filename", "video_url")
_CAPTION = ("caption", "short_caption", "prompt", "text")
_EMPTY = ("", "nan", "none")


@dataclass
class Answered:
    """A video and what was answered of it; `scores` has no entry for what was not asked, None for no answer."""

    name: str
    caption: str = ""
    state: str = ""
    hard: bool | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    rules: dict[str, int | None] = field(default_factory=dict)

    def give(self, what: str, score: float | None, where: str) -> None:
        if what in self.scores:
            raise DataError(
                f"{where}: a second {what.upper()} of {self.name}.",
                expected="one for each video",
                fix="remove one of them",
            )
        self.scores[what] = score


def is_empty(cell: Any) -> bool:
    return cell is None or str(cell).strip().lower() in _EMPTY


def table_scores(source: Source) -> list[float]:
    """All scores of a table with a video, `sa` and `pc`; none of anything else."""
    if not {"sa", "pc"} <= set(source.columns) or first_of(source.columns, _VIDEO) is None:
        return []
    scores = []
    for _, row in source.rows:
        for cell in (row["sa"], row["pc"]):
            if not is_empty(cell):
                try:
                    scores.append(float(cell))
                except ValueError:
                    return []
    return [] if any(map(math.isnan, scores)) else scores


def read_table(source: Source, found: dict[str, Answered], *, low: float, high: float) -> None:
    """Add the rows of a table with a video, a caption, `sa` and `pc`.

    Raises:
        DataError: a score that is none, or a video twice.
    """
    for line, row in source.rows:
        where = f"{source.path}, line {line}"
        column, caption = first_of(row, _VIDEO), first_of(row, _CAPTION)
        assert column is not None
        name = str(row[column] or "").strip()
        if not name:
            raise DataError(f"{where}: {column} is empty.", expected="a video's name")
        one = found.setdefault(name, Answered(name))
        one.caption = one.caption or str(row[caption] or "" if caption else "")
        one.state = str(row.get("states_of_matter") or "")
        one.hard = read_hard(row.get("is_hard"))
        for what in ("sa", "pc"):
            score = None if is_empty(row[what]) else number(row[what], f"{where}: {what}", low=low, high=high)
            one.give(what, score, where)


def imported(
    benchmark: Literal["videophy", "videophy2"],
    found: Mapping[str, Answered],
    *,
    threshold: float,
    notes: tuple[str, ...] = (),
) -> Imported:
    """Scores as `physcli eval` has them, from the answers."""
    asked = [what for what in ("sa", "pc") if any(what in one.scores for one in found.values())]
    absent = {"sa", "pc"} - set(asked)
    left_out = {name for what in absent for name in (what, f"{what}_mean", f"missing/{what}")}
    left_out |= {"joint"} if absent else set()
    videos, rated = [], []
    for one in found.values():
        answers = Answers(one.scores.get("sa"), one.scores.get("pc"), threshold, rules=tuple(one.rules.values()))
        values: dict[str, Any] = {**answers.passed, "sa_mean": answers.sa, "pc_mean": answers.pc}
        values = {name: value for name, value in values.items() if name not in left_out}
        if one.rules:
            judged = [{"rule": rule, "judgement": value} for rule, value in one.rules.items()]
            values |= {**answers.rule_shares, "judged": judged}
        # Without captions (PC alone), the name stands for the prompt.
        prompt = one.caption or one.name
        videos.append(Scored(one.name, prompt, one.caption, group=one.state or None, values=values))
        captioned = "sa" in asked
        rated.append(RatedVideo(answers, prompt, one.state, one.hard, captioned=captioned))

    def rows(**columns: Any) -> list[Row]:
        made = aggregate(
            rated, benchmark=benchmark, subject=columns["subject"], rater=columns["rater"], split=columns["split"]
        )
        return [row for row in made if row["metric"] not in left_out]

    lacking = [one for one in found.values() if any(what not in one.scores for what in asked)]
    if lacking:
        notes = (
            *notes,
            f"{len(lacking)} of {len(found)} videos have only one of SA and PC, such as {lacking[0].name}.",
        )
    return Imported(benchmark, videos, METRICS[benchmark], rows, task="eval", rater=True, notes=notes)
