"""What every benchmark uses: rows, and sides timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from physcli.rows import Metric, Row, make_row


def row(task: str, subject: str, group: str, metric: str, value: float, n: int, higher: bool | None) -> Row:
    """A row of metrics.json."""
    measured = Metric(metric, "score", higher, interval="none")
    return make_row(measured, value, benchmark="bench", task=task, subject=subject, group=group, n=n)


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, timed in turn `rounds` times after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of one side's time over another's."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Rows turned into a table: a line a group, a column a metric."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        values = {row["metric"]: row["value"] for row in rows if row["group"] == group}
        lines.append([group, *(f"{values[name]:.3g}" if name in values else "–" for name in metrics)])
    return ["", *(name.replace("_", " ") for name in metrics)], lines  # narrow tables break headings at spaces


def synchronize() -> None:
    """Wait until the accelerator, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
