"""VBench (Huang et al. 2024, arXiv 2311.17982), VBench-I2V and VBench-2.0 (2025, arXiv 2503.21755): their dimensions,
and how the raw scores of dimensions become one of quality, one of semantics and one in all.

Ranges and weights are those of the released code at 45e79ec. A raw score is put on the range of its dimension,
(raw − low) / (high − low), without clipping: what is above the range counts more than 1. A group's score is the
weighted mean of its dimensions.

Differs from the released code in: a dimension that is missing makes the scores it is part of missing. There it counts
as a raw score of 0, which is below 0 once normalised; `missing_as_zero` gives those numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from physcli.benchmarks.dynamic_degree import DYNAMIC_DEGREE
from physcli.rows import Metric

TEMPORAL_FLICKERING = Metric("temporal_flickering", "score", True, role="commonsense")


@dataclass(frozen=True)
class Dimension:
    """The range of a dimension's raw scores, and what it weighs among those of its group."""

    group: str
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True)
class Variant:
    """One of the benchmarks: its dimensions, by their names in result files, and the weights of their groups in the
    total; without such weights there is no total."""

    dimensions: Mapping[str, Dimension]
    weights: Mapping[str, float]


_QUALITY = {
    "subject_consistency": Dimension("quality", 0.1462),
    "background_consistency": Dimension("quality", 0.2615),
    "motion_smoothness": Dimension("quality", 0.706, 0.9975),
    "dynamic_degree": Dimension("quality", weight=0.5),
    "aesthetic_quality": Dimension("quality"),
    "imaging_quality": Dimension("quality"),
}
_SEMANTIC = {
    **{
        name: Dimension("semantic")
        for name in ("object_class", "multiple_objects", "human_action", "color", "spatial_relationship")
    },
    "scene": Dimension("semantic", 0.0, 0.8222),
    "appearance_style": Dimension("semantic", 0.0009, 0.2855),
    "temporal_style": Dimension("semantic", 0.0, 0.364),
    "overall_consistency": Dimension("semantic", 0.0, 0.364),
}
_IMAGE = {
    "camera_motion": Dimension("i2v", weight=0.1),
    "i2v_subject": Dimension("i2v", 0.1462),
    "i2v_background": Dimension("i2v", 0.2615),
}
_SECOND = (
    *("Human_Anatomy", "Human_Identity", "Human_Clothes", "Diversity", "Composition", "Dynamic_Spatial_Relationship"),
    *("Dynamic_Attribute", "Motion_Order_Understanding", "Human_Interaction", "Complex_Landscape", "Complex_Plot"),
    *("Camera_Motion", "Motion_Rationality", "Instance_Preservation", "Mechanics", "Thermotics", "Material"),
    "Multi-View_Consistency",
)
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "vbench": Variant(
            {**_QUALITY, "temporal_flickering": Dimension("quality", 0.6293), **_SEMANTIC},
            {"quality": 4.0, "semantic": 1.0},
        ),
        "vbench-i2v": Variant({**_IMAGE, **_QUALITY}, {"i2v": 1.0, "quality": 1.0}),
        "vbench-2.0": Variant({name: Dimension("") for name in _SECOND}, {}),
    }
)

# A still video has nearly the best score in these: they rise where less moves.
_STILL_WINS = ("subject_consistency", "background_consistency", "motion_smoothness", "i2v_subject", "i2v_background")
_SHARES = ("human_action", "Mechanics", "Thermotics", "Material")  # of videos, each of which passes or fails


def metric_of_dimension(name: str) -> Metric:
    """What the scores of a dimension mean."""
    known = {one.name: one for one in (TEMPORAL_FLICKERING, DYNAMIC_DEGREE)}
    if name in known:
        return known[name]
    if name in _SHARES:
        return Metric(name, "rate", True, interval="wilson")
    return Metric(name, "score", True, role="commonsense" if name in _STILL_WINS else "plain")


def normalised(raw: float, dimension: Dimension) -> float:
    """A raw score on the range of its dimension, times what the dimension weighs."""
    return (raw - dimension.low) / (dimension.high - dimension.low) * dimension.weight


def totals(
    raw: Mapping[str, float], variant: str = "vbench", *, missing_as_zero: bool = False
) -> dict[str, float | None]:
    """The scores of the groups, and the total.

    Args:
        raw: Dimension → its score over the whole set of videos, as in the first place of a result file's list.
        variant: A key of `VARIANTS`.
        missing_as_zero: As in the released code; otherwise a score that a missing dimension is part of is None.

    Returns:
        Name of the group, or "total" → score, in the order of the variant; nothing of one without totals.
    """
    chosen = VARIANTS[variant]
    found: dict[str, float | None] = {}
    for group in chosen.weights:
        members = {name: one for name, one in chosen.dimensions.items() if one.group == group}
        if missing_as_zero or members.keys() <= raw.keys():
            weighted = sum(normalised(raw.get(name, 0.0), one) for name, one in members.items())
            found[group] = weighted / sum(one.weight for one in members.values())
        else:
            found[group] = None
    if found:
        parts = [None if (score := found[group]) is None else score * w for group, w in chosen.weights.items()]
        known = [part for part in parts if part is not None]
        found["total"] = sum(known) / sum(chosen.weights.values()) if len(known) == len(parts) else None
    return found
