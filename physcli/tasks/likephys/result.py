"""What `physcli eval likephys` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from physcli.tasks.subject_result import SubjectResult

UNTRAINED, ZERO = "/untrained", "/zero"  # after a model's name: its controls


@dataclass(frozen=True)
class LikePhysResult(SubjectResult):
    """Models, each followed by its controls; the groups are violations."""

    @property
    def data(self) -> str:
        """What the scenes are of, for titles: a folder without its path."""
        source = str(self.rows[0]["data"])
        return source if source.startswith(("simulated:", "hub:")) else Path(source).name

    def files(self) -> dict[str, Path]:
        names = {"report": "report.html", "picture": "ppe.png", "rows": "metrics.json", "items": "items.jsonl"}
        maps = sorted(self.path.glob("localisation*.png"))
        return self.existing(names) | {f"where, {number}": path for number, path in enumerate(maps, start=1)}
