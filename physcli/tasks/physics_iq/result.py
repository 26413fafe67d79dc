"""What `physcli eval physics-iq` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from physcli.tasks.subject_result import SubjectResult

STILL, TAKE_2, BLURRED = "still", "take 2", "take 2 blurred"  # controls, as they are called in tables


@dataclass(frozen=True)
class PhysicsIQResult(SubjectResult):
    """Models, then controls; the groups are categories."""

    def control_of(self, model: str, control: str) -> str | None:
        """The control's subject at the frame rate of a model; None where there is none."""
        mine = self.row(model, "physics_iq_verified")
        named = [row for row in self.rows if row["control"] and row["subject"].partition(",")[0] == control]
        alike = [row["subject"] for row in named if mine is not None and row["rate_hz"] == mine["rate_hz"]]
        return alike[0] if alike else None

    def files(self) -> dict[str, Path]:
        names = {"report": "report.html", "rows": "metrics.json", "items": "items.jsonl"}
        tables = sorted(self.path.glob("official_*.csv"))
        return self.existing(names) | {f"official, {path.stem.removeprefix('official_')}": path for path in tables}
