"""What `physcli eval likephys` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.tasks.run_dir import read_metrics, read_rows

UNTRAINED, ZERO = "/untrained", "/zero"  # after a model's name: its controls


@dataclass(frozen=True)
class LikePhysResult:
    """The rows of metrics.json and items.jsonl."""

    path: Path
    rows: list[dict[str, Any]]
    items: list[dict[str, Any]]
    is_main: bool = True

    @property
    def subjects(self) -> list[str]:
        """Models, each followed by its controls."""
        return list(dict.fromkeys(row["subject"] for row in self.rows))

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row["subject"] for row in self.rows if not row["control"]))

    @property
    def violations(self) -> list[str]:
        """The groups of the table."""
        return list(dict.fromkeys(row["group"] for row in self.rows if row["group"] != "all"))

    @property
    def data(self) -> str:
        """What the scenes are of, for titles: a folder without its path."""
        source = str(self.rows[0]["data"])
        return source if source.startswith(("simulated:", "hub:")) else Path(source).name

    def row(self, subject: str, metric: str, group: str = "all") -> dict[str, Any] | None:
        for row in self.rows:
            if (row["subject"], row["metric"], row["group"]) == (subject, metric, group):
                return row
        return None

    def files(self) -> dict[str, Path]:
        names = {"report": "report.html", "picture": "ppe.png", "rows": "metrics.json", "items": "items.jsonl"}
        found = {what: self.path / name for what, name in names.items() if (self.path / name).exists()}
        maps = sorted(self.path.glob("localisation*.png"))
        return found | {f"where, {number}": path for number, path in enumerate(maps, start=1)}


def read_result(path: Path) -> LikePhysResult:
    """The result of a finished run directory."""
    return LikePhysResult(path, read_metrics(path), read_rows(path / "items.jsonl"))
