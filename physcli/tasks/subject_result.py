"""What a judge gives back that measures several subjects, models and their controls, in one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from physcli.tasks.run_dir import read_metrics, read_rows


@dataclass(frozen=True)
class SubjectResult:
    """The rows of metrics.json, which say of each subject whether it is a `control`, and of items.jsonl."""

    path: Path
    rows: list[dict[str, Any]]
    items: list[dict[str, Any]]
    is_main: bool = True

    @classmethod
    def read(cls, path: Path, *, is_main: bool = True) -> Self:
        """The result of a finished run directory; of a process that is not the main one, nothing but where it is."""
        if not is_main:
            return cls(path, [], [], is_main=False)
        return cls(path, read_metrics(path), read_rows(path / "items.jsonl"))

    @property
    def subjects(self) -> list[str]:
        """Models and controls, in the order of the rows."""
        return list(dict.fromkeys(row["subject"] for row in self.rows))

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row["subject"] for row in self.rows if not row["control"]))

    @property
    def groups(self) -> list[str]:
        """All but the one of all items."""
        return list(dict.fromkeys(row["group"] for row in self.rows if row["group"] != "all"))

    def row(self, subject: str, metric: str, group: str = "all") -> dict[str, Any] | None:
        for row in self.rows:
            if (row["subject"], row["metric"], row["group"]) == (subject, metric, group):
                return row
        return None

    def existing(self, names: dict[str, str]) -> dict[str, Path]:
        """Of files of the run directory, by what they are, those that are there."""
        return {what: self.path / name for what, name in names.items() if (self.path / name).exists()}
