"""A study's page: every arm in one table, each against the control; time, curves, and where the rest is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from physcli import __version__
from physcli.files import write_text
from physcli.progress import duration_in_words
from physcli.report.html import Cell, Content, Markup, callout, page, picture, section, table
from physcli.rows import metric_of
from physcli.tasks.compare_result import CompareResult, Side
from physcli.tasks.figures import interval_text, score_texts, value_text
from physcli.tasks.report import ARROWS
from physcli.tasks.study.result import StudyResult
from physcli.tasks.study.rows import ArmRows


def write_study(result: StudyResult, path: Path) -> None:
    """Write the page.

    Raises:
        DataError: the file cannot be written.
    """
    asked = result.study
    parts: list[Content] = []
    if result.missing:
        parts.append(callout("Not run yet", [", ".join(map(str, result.missing))], kind="warning"))
    flags = [flag for comparison in result.comparisons.values() for flag in comparison.flags]
    if flags:
        parts.append(callout("Flagged", flags, kind="warning"))
    for judge, comparison in result.comparisons.items():
        parts.append(callout(f"In short, by {judge}", beyond_noise(comparison)))
        parts.append(
            section(
                f"Videos, by {judge}",
                arms_table(comparison),
                lead=f"{len(comparison.keys)} videos a run. Each arm against {asked.control}; worst and best cases: "
                f"compare-{judge}/report.html.",
            )
        )
        spread = _seeds_table(comparison)
        if spread is not None:
            parts.append(spread)
    parts.append(section("Training and features", _training_table(result.arms)))
    curves = path.parent / "curves.png"
    if curves.is_file():
        parts.append(section("Curves", picture(curves.read_bytes(), alt="loss of denoising by step")))
    parts.append(section("Time", _time_table(result.arms)))
    subtitle = f"{len(result.arms)} of {len(asked.arms)} arms, from {asked.model}"
    title = asked.description or "A study"
    write_text(path, page(title, subtitle, *parts, footer=f"Written by physcli {__version__}, `physcli study`."))


def beyond_noise(comparison: CompareResult) -> list[str]:
    """In which arms differ from the control after Holm's correction, in sentences."""
    named = ("better", "worse", "higher", "lower")
    said = []
    for side in comparison.sides[1:]:
        found = {row["verdict"] for row in comparison.rows_of(side)} & {*named}
        said += comparison.verdicts(side)[: len(found)]  # which come first
    return said or [f"No arm differs from {comparison.reference.label} beyond noise."]


def arms_table(comparison: CompareResult) -> Markup:
    """Arms by metrics: the value, and below it the difference from the control with its interval."""
    metrics = list(dict.fromkeys(row["of"] for row in comparison.rows))
    lines: list[list[Content | Cell]] = []
    for number, side in enumerate(comparison.sides):
        rows = {row["of"]: row for row in comparison.rows_of(side if number else comparison.sides[1])}
        line: list[Content | Cell] = [Cell(side.label, detail=_trainings(side))]
        for metric in metrics:
            row = rows[metric]
            if not number:
                line.append(value_text(row["reference_value"], row))
                continue
            verdict = row["verdict"]
            told = f"{value_text(row['value'], row, sign=True)} ({interval_text(row)}) {ARROWS.get(verdict, '')}"
            tone = verdict if verdict in ("better", "worse") else ""
            line.append(Cell(value_text(row["compared_value"], row), tone=tone, detail=told.strip()))
        lines.append(line)
    caption = (
        "Rates are in per cent, differences in points. ▲ ▼: beyond noise after Holm's correction over all tests of "
        f"this table; ·: not shown to differ. Interval: 95 %, prompts drawn again{_also_seeds(comparison)}."
    )
    return table(["", *metrics], lines, label="Arms", caption=caption, right=range(1, len(metrics) + 1))


def _also_seeds(comparison: CompareResult) -> str:
    alone = [side.label for side in comparison.sides if len(side.runs) == 1]
    if len(alone) == len(comparison.sides):
        return ""
    return ", and training seeds" + (f"; of one training are {', '.join(alone)}" if alone else "")


def _trainings(side: Side) -> str:
    return "" if len(side.runs) == 1 else f"{len(side.runs)} trainings"


def _seeds_table(comparison: CompareResult) -> Markup | None:
    """Of arms that were trained with several seeds: how far the trainings lie apart, beside the noise of the videos."""
    metrics = list(dict.fromkeys(row["of"] for row in comparison.rows))
    lines: list[list[Content | Cell]] = []
    for side in comparison.sides:
        if len(side.runs) < 2:
            continue
        for metric in metrics:
            rows = [
                next(row for row in run.rows if (row["metric"], row["group"]) == (metric, "all")) for run in side.runs
            ]
            values = [row["value"] for row in rows]
            if any(value is None for value in values):
                continue
            scale = 100 if metric_of(rows[0]).kind == "rate" else 1
            noise = [row["stderr"] for row in rows if row.get("stderr") is not None]
            lines.append(
                [
                    f"{side.label}, {metric}",
                    ", ".join(value_text(value, rows[0]) for value in values),
                    f"{scale * float(np.std(values, ddof=1)):.3g}",
                    f"{scale * float(np.mean(noise)):.3g}" if noise else None,
                ]
            )
    if not lines:
        return None
    return section(
        "Seeds",
        table(
            ["", "each training", "spread of trainings", "standard error of the videos"],
            lines,
            label="Seeds",
            right=(1, 2, 3),
        ),
        lead="Standard deviation between trainings of one arm, beside that of a mean over so many prompts.",
    )


def _training_table(arms: Mapping[str, Sequence[ArmRows]]) -> Markup:
    """Loss on held-out clips and the readout of contact, of each training."""
    lines: list[list[Content | Cell]] = []
    for name, runs in arms.items():
        for rows in runs:
            for part in ("held_out", "probe"):
                for row in rows.content[part]:
                    if row["group"] == "all":
                        lines.append([f"{name}-{rows.seed}", row["metric"], *score_texts(row), row["n"]])
    return table(["", "metric", "value", "95 %", "n"], lines, label="Training and features", right=(2, 3, 4))


def _time_table(arms: Mapping[str, Sequence[ArmRows]]) -> Markup:
    stages = list(dict.fromkeys(stage for runs in arms.values() for rows in runs for stage in rows.content["seconds"]))
    lines: list[list[Content | Cell]] = []
    for name, runs in arms.items():
        for rows in runs:
            seconds: Mapping[str, Any] = rows.content["seconds"]
            lines.append(
                [
                    f"{name}-{rows.seed}",
                    *(duration_in_words(seconds[stage]) if stage in seconds else None for stage in stages),
                    duration_in_words(sum(seconds.values())),
                ]
            )
    return table(["", *stages, "all"], lines, label="Time", right=range(1, len(stages) + 2))
