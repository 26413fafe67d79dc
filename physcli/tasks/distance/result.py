"""What `physcli eval distance` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.tasks.subject_result import SubjectResult

HELD = "/still"  # after a name: the first frame of each of its videos, held
HALF = "real"  # one half of the real clips, against the other
STILL, BLURRED = HALF + HELD, HALF + "/blurred"
REFERENCE = "reference"  # the other half, which all is held against; no subject
CONTROLS = (HALF, STILL, BLURRED)


@dataclass(frozen=True)
class DistanceResult(SubjectResult):
    """Models, each followed by its first frames held; then the real clips' controls."""

    @property
    def first(self) -> dict[str, Any]:
        """A row, for what all have in common."""
        return self.rows[0]

    @property
    def rank_deficient(self) -> bool:
        """Whether covariances of so many videos are singular."""
        return bool(self.first["n"] <= self.first["dimension"])

    def files(self) -> dict[str, Path]:
        return self.existing({"report": "report.html", "rows": "metrics.json", "items": "items.jsonl"})
