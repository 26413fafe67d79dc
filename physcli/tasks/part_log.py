"""Rows of numbered items, noted one by one by several processes: what a run that was broken off goes on after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import append_row, read_log


class PartLog:
    """The log of a run under way, `NAME-RANK.part.jsonl` of each process.

    Args:
        folder: The run directory.
        name: Of the files.
        processes: All of them; each makes it at the same point.

    Attributes:
        done: Numbers of the items that were noted before.
    """

    def __init__(self, folder: Path, name: str, processes: Processes) -> None:
        self._folder, self._name, self._processes = folder, name, processes
        self.done = frozenset(processes.tell(sorted(self.rows())))

    def todo(self, count: int) -> list[int]:
        """This process's part of what is left of items 0 to `count` − 1. Every n-th of all items, so that a run that
        goes on shares them as one that was not broken off."""
        return [number for number in self._processes.share(range(count)) if number not in self.done]

    def note(self, number: int, row: Mapping[str, Any]) -> None:
        append_row(self._folder / f"{self._name}-{self._processes.rank}.part.jsonl", {"number": number, **row})

    def rows(self) -> dict[int, dict[str, Any]]:
        """What all processes have noted, by the item's number."""
        return {row["number"]: row for part in self._parts() for row in read_log(part)}

    def clear(self) -> None:
        """Remove it: the run is whole."""
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._name}-*.part.jsonl"))
