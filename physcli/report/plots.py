"""Pictures of results, with matplotlib's file backend (no display needed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from physcli.files import replacing

# Okabe-Ito: told apart by colour-blind readers.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
CONTROL = "#999999"
REFERENCE = "#444444"


def _save(figure: Figure, path: Path) -> None:
    with replacing(path, suffix=".part.png") as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")
    plt.close(figure)


def grouped_bars(
    path: Path,
    *,
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float]]],
    controls: Sequence[str] = (),
    references: Mapping[str, Sequence[float | None]] | None = None,
    ylabel: str = "accuracy (%)",
    chance: float = 50.0,
) -> None:
    """Grouped bars with error bars of ±1 standard error.

    Args:
        path: The PNG.
        title: Above the axes.
        groups: Names along the x axis.
        series: For each subject, (value, stderr) per group, as fractions.
        controls: Names of series drawn grey and hatched.
        references: Values drawn as short black lines across a group (humans), None where there is none.
        ylabel: Of the y axis.
        chance: In per cent; bars rise or fall from here, because the distance to chance is what counts.
    """
    figure, axes = plt.subplots(figsize=(max(7.0, 1.15 * len(groups) + 1.5), 4.0))
    bar_width = 0.84 / max(1, len(series))
    plain = iter(COLORS * 4)
    hatches = cycle(("//", "\\\\", "xx", ".."))
    for number, (name, values) in enumerate(series.items()):
        left = [group - 0.42 + (number + 0.5) * bar_width for group in range(len(groups))]
        style: dict[str, Any] = (
            {"color": CONTROL, "hatch": next(hatches), "edgecolor": "white"} if name in controls else {}
        )
        axes.bar(
            left,
            [100 * value - chance for value, _ in values],
            bar_width * 0.94,
            bottom=chance,
            yerr=[100 * stderr if stderr == stderr else 0 for _, stderr in values],
            label=name,
            error_kw={"elinewidth": 1, "capsize": 1.5, "ecolor": "#222222"},
            **(style or {"color": next(plain)}),
        )
    for number, (name, marks) in enumerate((references or {}).items()):
        for group, value in enumerate(marks):
            if value is not None:
                axes.hlines(
                    100 * value,
                    group - 0.44,
                    group + 0.44,
                    colors=REFERENCE,
                    linestyles=("solid", "dotted", "dashdot")[number % 3],
                    label=name if group == 0 else "_",  # matplotlib leaves out of the legend what starts so
                )
    axes.axhline(chance, color="#777777", linewidth=0.8, zorder=3)
    axes.set_xticks(range(len(groups)), groups)
    low = min((100 * (v - (e if e == e else 0)) for line in series.values() for v, e in line if v == v), default=chance)
    axes.set_ylim(max(0.0, min(chance - 10, low - 3)), 102)
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    _save(figure, path)


def depth_curves(
    path: Path,
    *,
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    chosen: Mapping[str, float] | None = None,
    xlabel: str = "block (counted from 0)",
    ylabel: str = "accuracy (%)",
    chance: float = 50.0,
) -> None:
    """Accuracy by depth, one line a subject and noise level, with a band of ±1 standard error.

    Args:
        path: The PNG.
        title: Above the axes.
        curves: For each line, (block, value, stderr) as fractions, in order of block.
        chosen: For each line, the block chosen on training folds, drawn as a ring.
        xlabel: Of the x axis.
        ylabel: Of the y axis.
        chance: A dashed line, in per cent.
    """
    figure, axes = plt.subplots(figsize=(7.0, 4.0))
    for (name, points), color in zip(curves.items(), COLORS * 10, strict=False):
        blocks = [block for block, _, _ in points]
        values = [100 * value for _, value, _ in points]
        errors = [100 * stderr if stderr == stderr else 0 for _, _, stderr in points]
        axes.plot(blocks, values, marker="o", markersize=4, color=color, label=name)
        low = [v - e for v, e in zip(values, errors, strict=True)]
        high = [v + e for v, e in zip(values, errors, strict=True)]
        axes.fill_between(blocks, low, high, color=color, alpha=0.15, linewidth=0)
        if chosen and name in chosen:
            at = blocks.index(chosen[name])
            axes.plot(blocks[at], values[at], marker="o", markersize=11, markerfacecolor="none", color=color)
    axes.axhline(chance, color="#777777", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    _save(figure, path)


def score_curves(
    path: Path, *, title: str, curves: Mapping[str, Sequence[tuple[int, float, float, float]]], banded: str
) -> None:
    """Rates over the steps of training, a line a metric, one of them with a band of its 95 % interval.

    Args:
        path: The PNG.
        title: Above the axes.
        curves: For each metric, (step, value, low, high) as fractions, in order of step.
        banded: The metric with a band.
    """
    figure, axes = plt.subplots(figsize=(7.0, 4.0))
    for (name, points), color in zip(curves.items(), COLORS * 10, strict=False):
        steps, *values = zip(*points, strict=True)
        value, low, high = (100 * np.array(some) for some in values)
        label = name.replace("_", " ")
        if name == banded:
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            label += " (with 95 %)"
        axes.plot(steps, value, marker="o", markersize=4, color=color, label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("% of the items")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, None)
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    _save(figure, path)


def contact_sheet(
    path: Path, *, rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str], abreast: int = 2
) -> None:
    """Frames of several clips in a grid.

    Args:
        path: The PNG.
        rows: (caption, uint8 [T, H, W, 3]) each.
        columns: A heading for each of the T frames.
        abreast: Clips a line.
    """
    num_frames, lines = len(columns), -(-len(rows) // abreast)
    # One pair of axes in units of a picture's width: a grid of hundreds of axes takes matplotlib many seconds.
    gap, aspect = 0.04, max((frames.shape[1] / frames.shape[2] for _, frames in rows), default=1.0)
    pitch, line_height = num_frames * (1 + gap) + 0.15, aspect + 0.24
    width, height = abreast * pitch - 0.15, lines * line_height - 0.24
    figure = plt.figure(figsize=(0.85 * width, 0.85 * height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, (caption, frames) in enumerate(rows):
        line, side = divmod(number, abreast)
        top = -line * line_height
        scale = min(1 / frames.shape[2], aspect / frames.shape[1])
        for column, image in enumerate(frames):
            x, y = side * pitch + column * (1 + gap) + 0.5, top - aspect / 2  # of its middle
            half_width, half_height = scale * image.shape[1] / 2, scale * image.shape[0] / 2
            extent = (x - half_width, x + half_width, y - half_height, y + half_height)
            axes.imshow(image, interpolation="nearest", aspect="auto", extent=extent)
            if line == 0:
                axes.text(x, 0.22, columns[column], fontsize=7, color="#555555", ha="center", va="bottom")
        axes.text(side * pitch, top + 0.03, caption, fontsize=7.5, va="bottom")
    axes.set(xlim=(0, width), ylim=(-height, 0))
    _save(figure, path)


def loss_curves(path: Path, curves: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str) -> None:
    """The loss of denoising of several runs by step, a line each.

    Args:
        path: The PNG.
        curves: Name → rows with `step` and `denoising`, or where there is none `loss`.
        title: Above the axes.
    """
    figure, axes = plt.subplots(figsize=(8.5, 4.2))
    styles = ("solid", "dashed", "dotted")
    for number, (name, rows) in enumerate(curves.items()):
        values = [row.get("denoising", row.get("loss", np.nan)) for row in rows]
        color, style = COLORS[number % len(COLORS)], styles[number // len(COLORS) % len(styles)]
        axes.plot([row["step"] for row in rows], values, color=color, linestyle=style, linewidth=1.3, label=name)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    _save(figure, path)


def loss_curve(
    path: Path,
    steps: Sequence[Mapping[str, Any]],
    *,
    title: str,
    terms: Sequence[str] = (),
    control: str | None = None,
    reference: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Loss, its terms and the gradient norm by step: every step faint, their running median dark.

    Args:
        path: The PNG.
        steps: Rows of steps.jsonl: `step`, `loss`, `grad_norm`, `lr`, and the terms.
        title: Above the axes.
        terms: Fields that the loss is made of, each with axes of its own.
        control: A field drawn grey beside the loss: what doing nothing would give.
        reference: The same rows of another run, thinned, drawn as a dotted line as far as this one goes.
    """
    heights = [2, *[1.4] * len(terms), 1]
    figure, panels = plt.subplots(
        len(heights), 1, figsize=(7.0, 1.2 + 1.15 * sum(heights)), sharex=True, gridspec_kw={"height_ratios": heights}
    )
    at = np.array([row["step"] for row in steps])
    width = max(1, len(at) // 60)

    def draw(axes: Any, name: str, color: str, **style: Any) -> None:
        values = np.array([np.nan if row.get(name) is None else row[name] for row in steps], dtype=float)
        smooth = [
            np.nanmedian(some) if np.isfinite(some).any() else np.nan
            for some in (values[max(0, i - width) : i + width + 1] for i in range(len(values)))
        ]
        axes.plot(at, values, color=color, alpha=0.25, linewidth=0.7)
        axes.plot(at, smooth, color=color, linewidth=1.6, **style)
        if np.nanmin(values, initial=1) > 0:
            axes.set_yscale("log")

    for axes, name, color in zip(panels, ("loss", *terms, "grad_norm"), cycle(COLORS), strict=False):
        draw(axes, name, color)
        values = [row.get(name, np.nan) for row in reference]
        if not np.isnan(values).all():
            axes.plot(
                [row["step"] for row in reference], values, color=REFERENCE, linestyle="dotted", label="reference run"
            )
        axes.set_ylabel(name.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", which="both", labelsize=7)  # a log axis of less than a decade labels many
    if control is not None:
        draw(panels[0], control, CONTROL, linestyle="dashed", label=control.replace("_", " "))
    if control is not None or reference:
        panels[0].legend(frameon=False, fontsize=9)
    if len(at):
        panels[-1].set_xlim(at[0] - 0.02 * np.ptp(at) - 0.5, at[-1] + 0.02 * np.ptp(at) + 0.5)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("optimizer step")
    panels[0].set_title(title, loc="left", fontsize=11)
    _save(figure, path)
