"""What a probe gives back: its rows, and the same as tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physcli.report.plots import depth_curves, grouped_bars
from physcli.tasks.run_dir import read_metrics, read_run

CONTROLS = ("state", "pixels")


@dataclass(frozen=True)
class ProbeTable:
    """A table ready to be drawn: a line a scenario, a column a subject."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    caption: str
    sections: list[int]


@dataclass(frozen=True)
class ProbeResult:
    """The rows of `metrics.json`, and where they are."""

    path: Path
    rows: list[dict[str, Any]]
    dropped: dict[str, list[str]]
    is_main: bool = True

    @property
    def subjects(self) -> list[str]:
        return list(dict.fromkeys(row["subject"] for row in self.rows if row["metric"] == "accuracy"))

    def accuracy(self, subject: str, group: str = "all") -> dict[str, Any] | None:
        """The accuracy row of a subject, at its chosen tap."""
        for row in self.rows:
            if (row["subject"], row["group"], row["metric"]) == (subject, group, "accuracy") and row["chosen"]:
                return row
        return None

    def table(self, *, errors: bool = True) -> ProbeTable:
        """A line a scenario, a column a subject. Without `errors`, which take room, only the mean's are told, in a line
        of their own."""
        groups = [g for g in dict.fromkeys(r["group"] for r in self.rows if r["metric"] == "accuracy") if g != "all"]
        published = {(r["subject"], r["group"]): r["value"] for r in self.rows if r["metric"] == "published_accuracy"}
        by_scenario = [name for name in dict.fromkeys(name for name, _ in published) if (name, "all") not in published]
        lines: list[list[Any]] = []
        for group in [*groups, "all"]:
            line: list[Any] = ["mean" if group == "all" else group]
            for subject in self.subjects:
                row = self.accuracy(subject, group)
                line.append(None if row is None else _percent(row["value"], row["stderr"] if errors else None))
            for name in by_scenario:
                value = published.get((name, group))
                line.append(None if value is None else _percent(value, None))
            lines.append(line)
        if not errors:
            means = [self.accuracy(subject) for subject in self.subjects]
            told = [None if row is None or row["stderr"] is None else f"±{100 * row['stderr']:.1f}" for row in means]
            lines.append(["", *told, *("" for _ in by_scenario)])
        heads = {subject: row for subject in self.subjects if (row := self.accuracy(subject)) is not None}
        columns = [
            "accuracy, %",
            *(name + ("\n(random init)" if row.get("random_init") else "") for name, row in heads.items()),
            *(f"{name}\n(published)" for name in by_scenario),
        ]
        head = next(iter(heads.values()))
        taps = [
            f"{name}: {row['tap']}" + (f" (SNR {row['snr']:.3g})" if row.get("snr") is not None else "")
            for name, row in heads.items()
            if row.get("tap")
        ]
        overall = [f"{name} {_percent(value, None)}" for (name, group), value in published.items() if group == "all"]
        caption = [
            "± one standard error, clustered by pair; chance is 50.",
            f"{head['num_train']} training and {head['n_total']} test clips"
            + "".join(f"; {len(names)} dropped: {reason}" for reason, names in self.dropped.items())
            + ".",
        ]
        if taps:
            caption.append(f"Features: {'; '.join(taps)}.")
        if overall:
            caption.append(f"Published means, official readout, all of Physion v1.5: {', '.join(overall)}.")
        title = f"{head['task'].upper()} on {head['data']}, readout {head['readout']}"
        return ProbeTable(title, columns, lines, " ".join(caption), [len(groups) - 1])

    def differences(self) -> list[list[str]]:
        """Lines (a − b, points, interval, p, remark) of the paired comparisons, mean over scenarios."""
        lines = []
        for row in (row for row in self.rows if row["metric"] == "accuracy_difference"):
            interval, remark = "–", "too few items"
            if row["low"] is not None and np.isfinite(row["low"]):
                interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
                remark = "within noise" if row["low"] <= 0 <= row["high"] else ""
            lines.append([row["subject"], f"{100 * row['value']:+.1f}", interval, f"{row['p']:.2g}", remark])
        return lines

    def files(self) -> dict[str, Path]:
        names = {"picture": "probe.png", "by depth": "depth.png", "rows": "metrics.json", "items": "items.jsonl"}
        return {what: self.path / name for what, name in names.items() if (self.path / name).exists()}


def _percent(value: float, stderr: float | None) -> str:
    return f"{100 * value:.1f}" + (f" ±{100 * stderr:.1f}" if stderr is not None else "")


def draw(result: ProbeResult, folder: Path) -> None:
    """`probe.png`, and `depth.png` where several taps were measured."""
    accuracy = [row for row in result.rows if row["metric"] == "accuracy"]
    groups = [group for group in dict.fromkeys(row["group"] for row in accuracy) if group != "all"]
    series = {}
    for subject in result.subjects:
        head = result.accuracy(subject)
        assert head is not None
        label = subject + (" (random init)" if head.get("random_init") else "")
        cells = [result.accuracy(subject, group) for group in [*groups, "all"]]
        series[label] = [
            (row["value"], row["stderr"] if row["stderr"] is not None else float("nan"))
            if row
            else (float("nan"), float("nan"))
            for row in cells
        ]
    published = [row for row in result.rows if row["metric"] == "published_accuracy"]
    references = {
        name: [
            next((r["value"] for r in published if (r["subject"], r["group"]) == (name, group)), None)
            for group in [*groups, "all"]
        ]
        for name in dict.fromkeys(row["subject"] for row in published)
    }
    title = result.table().title
    grouped_bars(
        folder / "probe.png",
        title=title,
        groups=[*groups, "mean"],
        series=series,
        controls=CONTROLS,
        references=references,
    )
    curves: dict[str, list[tuple[float, float, float]]] = {}
    chosen: dict[str, float] = {}
    for row in accuracy:
        if row["group"] == "all" and row.get("block") is not None:
            line = row["subject"] + ("" if row["sigma"] is None else f", σ={row['sigma']:.2g}")
            line += " (random init)" if row["random_init"] else ""
            stderr = row["stderr"] if row["stderr"] is not None else float("nan")
            curves.setdefault(line, []).append((row["block"], row["value"], stderr))
            if row["chosen"]:
                chosen[line] = row["block"]
    if any(len(points) > 1 for points in curves.values()):
        depth_curves(folder / "depth.png", title=f"{title}: by depth", curves=curves, chosen=chosen)


def read_result(path: Path) -> ProbeResult:
    """The result of a finished run directory."""
    return ProbeResult(path, read_metrics(path), (read_run(path) or {}).get("dropped", {}))
