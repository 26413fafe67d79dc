"""What a comparison gives back: its rows, and the same in words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physcli.rows import Metric
from physcli.tasks.figures import difference_text, least_text
from physcli.tasks.scored_runs import Key, ScoredRun

TESTS = {
    "mcnemar": "McNemar's exact test on the {units} that one side wins",
    "sign flips": "a permutation test (random sign flips of the {units}' differences)",
    "seeds": "Student's t on the standard error of a hierarchical bootstrap over training seeds and {units}",
}


@dataclass(frozen=True)
class Side:
    """One of the things compared: a run, or the runs of one method trained with several seeds."""

    label: str
    runs: tuple[ScoredRun, ...]

    def values(self, metric: str, keys: Sequence[Key]) -> np.ndarray:
        """[runs, items], NaN where there is no score."""
        found = [[run.items[key].values[metric] for key in keys] for run in self.runs]
        return np.array(found, dtype=np.float64)  # None becomes NaN


@dataclass(frozen=True)
class CompareResult:
    """Rows of metrics.json, and what the report is drawn from. `keys` are the paired items in their order."""

    path: Path
    rows: list[dict[str, Any]]
    sides: list[Side]
    keys: list[Key]
    notes: list[str]
    flags: list[str]

    @property
    def reference(self) -> Side:
        return self.sides[0]

    @property
    def unit(self) -> str:
        """What is drawn again by the bootstrap."""
        names = {"probe": "pairs", "likephys": "scenes", "physics-iq": "scenarios", "eval": "prompts"}
        names["distance"] = "prompts and scenes"
        return names[self.reference.runs[0].kind]

    def rows_of(self, side: Side, group: str = "all") -> list[dict[str, Any]]:
        return [row for row in self.rows if row["compared"] == side.label and row["group"] == group]

    def verdicts(self, side: Side) -> list[str]:
        """The comparison with the reference, in sentences."""
        by: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows_of(side):
            by.setdefault(row["verdict"], []).append(row)

        def names(verdict: str) -> str:
            return ", ".join(name_of(row) for row in by[verdict])

        said = []
        for verdict in ("better", "worse", "higher", "lower"):
            if verdict in by:
                found = ", ".join(f"{name_of(row)} ({difference_text(row)})" for row in by[verdict])
                said.append(f"{side.label} is {verdict} than {self.reference.label} in {found}.")
        said += self._not_shown(side)
        if "identical" in by:
            said.append(f"{side.label} and {self.reference.label} have the same scores in {names('identical')}.")
        if "no scores" in by:
            said.append(f"No pair of {side.label} and {self.reference.label} has scores of {names('no scores')}.")
        return said

    def _not_shown(self, side: Side) -> list[str]:
        """What is within noise, and what so few items could not have shown anyway."""
        open_ = [row for row in self.rows_of(side) if row["verdict"] == "not shown"]
        if not open_:
            return []
        named = [f"{name_of(row)} ({difference_text(row)})" for row in open_]
        said = [f"No difference between {side.label} and {self.reference.label} is shown in {', '.join(named)}."]
        if all(least_text(row) == "none" for row in open_):
            return [*said, f"So few {self.unit} can show no difference at all, however large."]
        small = [
            name_of(row)
            for row in open_
            if row["smallest_detectable"] is None or abs(row["value"]) < row["smallest_detectable"]
        ]
        if small:
            said.append(
                f"{len(self.keys)} pairs cannot reliably show (8 times in 10) differences as small as those in "
                f"{', '.join(small)}: that none is seen is no proof that there is none."
            )
        return said

    def caption(self, side: Side) -> str:
        """What the table's columns mean, for its foot."""
        rows = self.rows_of(side)
        tests = [test for test in TESTS if any(row["test"] == test for row in rows)]
        parts = [f"Interval: 95 %, {'pairs of clips' if self.unit == 'pairs' else self.unit} drawn again."]
        for number, test in enumerate(tests):
            of = [name_of(row) for row in rows if row["test"] == test]
            which = f" of {', '.join(of)}" if number else ""  # the first test is that of all other metrics
            parts.append(f"p{which}: {TESTS[test].format(units=self.unit)}.")
        made = sum(row["p"] is not None and row["group"] == "all" for row in self.rows)
        if tests:
            parts.append(
                f"Holm: over the {made} tests of this call." if made > 1 else "One test: Holm changes nothing."
            )
        parts.append(
            f"Least: the smallest true difference that a test like this finds 8 times in 10 with these {self.unit}, "
            "before Holm; smaller ones are found less often."
        )
        if self.unit == "pairs" and any(row["low"] is None or not math.isfinite(row["low"]) for row in rows):
            parts.append("No interval where a scenario has only one pair: nothing is known of its spread.")
        alone = [s.label for s in (self.reference, side) if len(s.runs) == 1]
        if "seeds" in tests and alone:
            parts.append(f"{alone[0]} is one training run: how much its seeds would differ is not in the interval.")
        return " ".join(parts)

    def files(self) -> dict[str, Path]:
        names = {
            "report": "report.html",
            "picture": "contact_sheet.png",
            "rows": "metrics.json",
            "pairs": "items.jsonl",
        }
        return {what: self.path / name for what, name in names.items() if (self.path / name).exists()}


def name_of(row: Mapping[str, Any]) -> str:
    """The metric a row compares."""
    return str(row["of"])


def headline(metrics: Sequence[Metric]) -> str:
    """The metric that cases are ranked by."""
    for role in ("headline", "commonsense", "plain"):
        found = next((metric.name for metric in metrics if metric.role == role), None)
        if found is not None:
            return found
    return metrics[0].name
