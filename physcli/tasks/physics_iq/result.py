"""What `physcli eval physics-iq` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.tasks.run_dir import read_metrics, read_rows

STILL, TAKE_2, BLURRED = "still", "take 2", "take 2 blurred"  # controls, as they are called in tables


@dataclass(frozen=True)
class PhysicsIQResult:
    """The rows of metrics.json and items.jsonl."""

    path: Path
    rows: list[dict[str, Any]]
    items: list[dict[str, Any]]
    is_main: bool = True

    @property
    def subjects(self) -> list[str]:
        """Models, then controls."""
        return list(dict.fromkeys(row["subject"] for row in self.rows))

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row["subject"] for row in self.rows if not row["control"]))

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(row["group"] for row in self.rows if row["group"] != "all"))

    def row(self, subject: str, metric: str, group: str = "all") -> dict[str, Any] | None:
        for row in self.rows:
            if (row["subject"], row["metric"], row["group"]) == (subject, metric, group):
                return row
        return None

    def control_of(self, model: str, control: str) -> str | None:
        """The control's subject at the frame rate of a model; None where there is none."""
        mine = self.row(model, "physics_iq_verified")
        named = [row for row in self.rows if row["control"] and row["subject"].partition(",")[0] == control]
        alike = [row["subject"] for row in named if mine is not None and row["rate_hz"] == mine["rate_hz"]]
        return alike[0] if alike else None

    def files(self) -> dict[str, Path]:
        names = {"report": "report.html", "rows": "metrics.json", "items": "items.jsonl"}
        found = {what: self.path / name for what, name in names.items() if (self.path / name).exists()}
        tables = sorted(self.path.glob("official_*.csv"))
        return found | {f"official, {path.stem.removeprefix('official_')}": path for path in tables}


def read_result(path: Path) -> PhysicsIQResult:
    """The result of a finished run directory."""
    return PhysicsIQResult(path, read_metrics(path), read_rows(path / "items.jsonl"))
