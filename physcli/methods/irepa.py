"""iREPA (Singh et al. 2025, arXiv 2512.10794): REPA with a convolution for a projector, and teacher tokens without (a
share of) their mean over the picture, so that what is compared is how tokens differ from place to place.

The loss is REPA's; the projector is `resample: conv3x3` without layers before it. Nothing is published on video: here
a teacher's time step is a picture, or, with `over: clip`, all tokens of a clip together (ours).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Over = Literal["frame", "clip"]
_EPS = 1e-6


def spatial_norm(teacher: Tensor, *, gamma: float = 0.6, over: Over = "frame", least_std: float = 0.0) -> Tensor:
    """(y − γ·mean y) / (std y + 1e-6), channel by channel over places, as in the released code: the standard deviation
    is about the true mean whatever γ is, and has N − 1. (The paper has 1e-6 inside a root and N; the loss, which
    compares directions, differs by less than 1e-8.)

    Args:
        teacher: Tokens [B, F, H, W, D].
        gamma: γ, 0 to 1.
        over: The places of each `frame`, H·W, or of the `clip`, F·H·W.
        least_std: Standard deviations below this are raised to it. A channel that is nearly constant otherwise fills
            the whole vector: with γ = 0.6 one that is 0.5 everywhere becomes 2·10⁵.

    Returns:
        The same shape, float32 (float64 for float64).

    Raises:
        ValueError: another number of axes, fewer than two places, or an unknown `over`.
    """
    if over not in get_args(Over):
        raise ValueError(f"over must be one of {get_args(Over)}, got {over!r}")
    places = (2, 3) if over == "frame" else (1, 2, 3)
    if teacher.ndim != 5 or teacher.shape[1:4].numel() == 0:
        raise ValueError(f"teacher must be [B, F, H, W, D], got {list(teacher.shape)}")
    if all(teacher.shape[axis] == 1 for axis in places):
        raise ValueError(f"teacher must have at least two places in a {over} to be normalised over, got one")
    wide = teacher if teacher.dtype == torch.float64 else teacher.float()
    std = wide.std(dim=places, keepdim=True).clamp_min(least_std)
    return (wide - gamma * wide.mean(dim=places, keepdim=True)) / (std + _EPS)
