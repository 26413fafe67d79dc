"""CREPA (arXiv 2506.09229): REPA in which a frame's tokens also point where the teacher's tokens of near frames point.

The code was announced and never published. The paper sums over frames; the mean is what the one released port that
others train with does, and keeps the weight's meaning over clips of any length. With `distance: 0` it is REPA.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from physcli.methods.similarity import unit

Reduction = Literal["mean", "sum"]


def crepa_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    distance: int = 1,
    tau: float = 1.0,
    cumulative: bool = False,
    normalized: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """−mean_f [s(f, f) + Σ_k e^(−|k−f|/τ) s(f, k)], s(f, k) = mean over places of cos(student of f, teacher of k).

    Frames outside the clip are left out, so the first and last have fewer terms; a `distance` beyond the clip is cut
    to F − 1. The least value is not −1 but −(1 + 2·e^(−d/τ)·(F − d)/F): −1.55 of four frames.

    Args:
        student: Projected features [B, F, H, W, D].
        teacher: Same shape; no gradient flows to it.
        distance: d; k is f − d and f + d.
        tau: τ.
        cumulative: All k at distances 1 to d.
        normalized: Divide each frame's term by 1 + the weights that were present: between −1 and 1.
        reduction: `mean` over frames, or the paper's `sum`.

    Returns:
        [B], float32 (float64 where the student is float64).

    Raises:
        ValueError: unequal shapes, an empty axis, integer features, or options outside their ranges.
    """
    if student.shape != teacher.shape or student.ndim < 4 or 0 in student.shape:
        raise ValueError(
            "student and teacher must be [B, F, ..., D] of one shape with at least one token, "
            f"got {list(student.shape)} and {list(teacher.shape)}"
        )
    if distance < 0 or not tau > 0:
        raise ValueError(f"distance must be at least 0 and tau above 0, got {distance} and {tau}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")
    own = unit(student).flatten(2, -2)  # [B, F, n, D]
    theirs = unit(teacher.detach(), own.dtype).flatten(2, -2)
    num_frames = own.shape[1]
    distance = min(distance, num_frames - 1)
    score = (own * theirs).sum(dim=-1).mean(dim=2)  # [B, F]
    weights = torch.ones_like(score)
    for apart in range(1 if cumulative else max(1, distance), distance + 1):
        weight, count = math.exp(-apart / tau), num_frames - apart
        ahead = (own[:, :count] * theirs[:, apart:]).sum(dim=-1).mean(dim=2)  # the teacher's frame f + d
        behind = (own[:, apart:] * theirs[:, :count]).sum(dim=-1).mean(dim=2)
        for pad, cosines in (((0, apart), ahead), ((apart, 0), behind)):
            score = score + weight * F.pad(cosines, pad)
            weights = weights + weight * F.pad(torch.ones_like(cosines), pad)
    if normalized:
        score = score / weights
    return -(score.mean(dim=1) if reduction == "mean" else score.sum(dim=1))
