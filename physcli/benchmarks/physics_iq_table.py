"""Scores of a table of Physics-IQ's metrics (Motamed et al. 2025, arXiv 2501.09038): the original score and Verified.

A row of the official CSV is a scenario; for each view it holds, of the generated video (v1) and between two real takes
("variance"): MSE and spatiotemporal IoU of every frame, spatial and weighted spatial IoU. Lists are read as the
released code reads them: rounded to 4 decimals, without what is not finite.

Verified (`physiq/calculate_iq_score_stable.py` at edb3052), of a scenario and view: each IoU over that between the
takes, and the takes' MSE over the video's, with 1e-8 added against zeros, each clipped to 0–1; their mean. The original
(`calculate_iq_score.py` at e457754) divides sums over all scenarios, and one scenario above its takes lifts the whole.
Both can be had by a video that does nothing where little moves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from physcli.errors import DataError
from physcli.rows import Metric

VERIFIED = Metric("physics_iq", "score", True, role="headline")
ORIGINAL = Metric("physics_iq_original", "score", True, interval="none")
IOUS = ("spatiotemporal_iou", "spatial_iou", "weighted_spatial_iou")
# The raw metric of a view, and its part in the Verified score, which is on the scale of the takes.
RAW = {**{name: Metric(name, "score", True) for name in IOUS}, "mse": Metric("mse", "score", False)}
PARTS = {name: Metric(f"{name}_score", "score", True) for name in RAW}

_OFFSET = 1e-8
_FRAMES = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)", re.IGNORECASE)
# Columns of a view without its name: metric → (of the video, between the takes).
_COLUMNS = {
    "spatiotemporal_iou": ("spatiotemporal_iou_v1", "variance_spatiotemporal_iou"),
    "spatial_iou": ("spatial_iou_v1", "variance_spatial"),
    "weighted_spatial_iou": ("weighted_spatial_iou_v1", "variance_weighted_spatial"),
    "mse": ("v1_mse", "variance_mse"),
}
_DECIMALS = {"spatiotemporal_iou": 4, "spatial_iou": 5, "weighted_spatial_iou": 4, "mse": 4}  # of the takes
_FIRST = _COLUMNS["mse"][0] + "_"


@dataclass(frozen=True)
class View:
    """A scenario from one side: means over frames, of the video and between the two real takes."""

    scenario: str
    view: str
    video: Mapping[str, float]
    takes: Mapping[str, float]

    @property
    def parts(self) -> dict[str, float]:
        """The four parts of the Verified score, 0 to 1, by raw metric."""
        ratios = {name: self.video[name] / (self.takes[name] + _OFFSET) for name in IOUS}
        mse = self.video["mse"]
        ratios["mse"] = (self.takes["mse"] + _OFFSET) / mse if mse > 0 else 1.0
        return {name: min(max(ratio, 0.0), 1.0) for name, ratio in ratios.items()}

    @property
    def verified(self) -> float:
        return sum(self.parts.values()) / len(self.parts)


def views_in(columns: Sequence[str]) -> list[str]:
    """The views that a table's columns name, such as perspective-left; none of any other table."""
    views = [name.removeprefix(_FIRST) for name in columns if name.startswith(_FIRST)]
    needed = {f"{column}_{view}" for view in views for pair in _COLUMNS.values() for column in pair}
    return views if "scenario" in columns and needed <= set(columns) else []


def read_views(row: Mapping[str, Any], views: Sequence[str], where: str) -> list[View]:
    """A row's views; `where` is the row, for what is wrong with it.

    Raises:
        DataError: a cell without a number.
    """
    found = []
    for view in views:
        numbers = {
            name: [_mean(row[f"{column}_{view}"], f"{where}, {column}_{view}") for column in pair]
            for name, pair in _COLUMNS.items()
        }
        video, takes = ({name: values[which] for name, values in numbers.items()} for which in (0, 1))
        found.append(View(str(row["scenario"]), view, video, takes))
    return found


def read_frames(text: str) -> list[float]:
    """The numbers of a list as the released code reads them."""
    numbers = [float(number) for number in _FRAMES.findall(text)]
    return [round(number, 4) for number in numbers if math.isfinite(number)]


def original_score(views: Sequence[View]) -> float | None:
    """The original score, 0 to 100, rounded to 2 decimals; None where an IoU is 0 of 0.

    All views count alike, as in the released code where all have as many frames.
    """
    video, takes = (
        {name: float(np.mean([getattr(one, side)[name] for one in views])) for name in RAW}
        for side in ("video", "takes")
    )
    takes = {name: round(value, _DECIMALS[name]) for name, value in takes.items()}
    if any(video[name] == takes[name] == 0 for name in IOUS):
        return None
    ious = [video[name] / takes[name] if takes[name] else math.inf for name in IOUS]
    score = 100 * (sum(ious) / len(ious) - (video["mse"] - takes["mse"]))
    return round(min(max(score, 0.0), 100.0), 2)


def _mean(cell: Any, where: str) -> float:
    """Of a number, or of a list of them, one a frame."""
    text = str(cell).strip()
    if text.startswith("["):
        numbers = read_frames(text)
    else:
        try:
            numbers = [float(text)]
        except ValueError:
            numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise DataError(f"{where}: {cell!r}.", expected="a number, or a list of them in brackets")
    return float(np.mean(numbers))
