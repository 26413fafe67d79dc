"""What there is of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from physcli.tasks.compare_result import CompareResult
from physcli.tasks.study.file import Study
from physcli.tasks.study.rows import ArmRows


class Unit(NamedTuple):
    """An arm, and the seed of its training."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-{self.seed}"


@dataclass(frozen=True)
class StudyResult:
    """What there is now.

    Attributes:
        path: The run directory.
        arms: In the file's order, those with rows.
        missing: What has none yet.
        comparisons: By judge; empty while the control, or all others, have no rows.
        is_main: This is the process that shows it.
    """

    path: Path
    study: Study
    arms: Mapping[str, Sequence[ArmRows]]
    missing: Sequence[Unit]
    comparisons: Mapping[str, CompareResult]
    is_main: bool = True

    def files(self) -> dict[str, Path]:
        names = {"report": "report.html", "curves": "curves.png", "rows": "rows"}
        found = {what: self.path / name for what, name in names.items()}
        found |= {f"compare, {judge}": result.path / "report.html" for judge, result in self.comparisons.items()}
        return {what: path for what, path in found.items() if path.exists()}
