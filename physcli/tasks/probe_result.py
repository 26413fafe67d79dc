"""What a probe gives back: its rows, and the same as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.report.plots import depth_curves, grouped_bars
from physcli.tasks.run_dir import read_metrics, read_run

CONTROLS = ("state", "pixels")


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

    def files(self) -> dict[str, Path]:
        names = {"picture": "probe.png", "by depth": "depth.png", "rows": "metrics.json", "items": "items.jsonl"}
        return {what: self.path / name for what, name in names.items() if (self.path / name).exists()}


def probe_title(result: ProbeResult) -> str:
    head = next(row for subject in result.subjects if (row := result.accuracy(subject)) is not None)
    release = f" (MuJoCo {head['mujoco']})" if "mujoco" in head else ""
    return f"{head['task'].upper()} on {head['data']}{release}, readout {head['readout']}"


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
    title = probe_title(result)
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
