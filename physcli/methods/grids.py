"""Bringing features of one token grid to another.

The generator's tokens and the encoder's rarely stand on the same grid: a causal VAE makes one latent frame of the first
picture and one of every four after it, an encoder one token frame of every two; patches differ in size too. VideoREPA
(section 3.4 and Table 5) does best by bringing the generator's features to the encoder's grid. `resample` serves either
direction.

Shapes: B batch, (F, H, W) the grid there is, (f, h, w) the grid wanted, D features.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]
Time = Literal["linear", "area"]
Space = Literal["area", "bilinear"]


def resample(
    features: Tensor,
    grid: Grid,
    *,
    time: Time = "linear",
    space: Space = "area",
    drop_first: bool = False,
) -> Tensor:
    """Features on another grid, without parameters, each axis on its own.

    `linear` and `bilinear` place samples at the cells' centres (`align_corners=False`), so that time ×2 is
    VideoREPA's trilinear interpolation: out[0] = in[0], out[1] = ¾ in[0] + ¼ in[1], …. `area` takes the mean of the
    old cells that a new cell touches (adaptive average pooling) on an axis that gets coarser; an axis that gets finer
    has nothing to average and is interpolated linearly. Where an axis is halved the two agree; where it shrinks by
    more, linear interpolation looks at two old cells only.

    Args:
        features: [B, F, H, W, D].
        grid: (f, h, w) wanted.
        time: How F becomes f.
        space: How H × W becomes h × w.
        drop_first: Leave out the first frame before anything else: the latent frame that a causal VAE makes of one
            picture alone, which VideoREPA keeps out of the alignment.

    Returns:
        [B, f, h, w, D], computed and returned in float32 (half-precision features too), or in float64 if they are.
        Features already on the grid come back as they are but for that.

    Raises:
        ValueError: Features that are not floating point [B, F, H, W, D], no frame left after the first, a grid that is
            not three counts, or an unknown `time` or `space`.
    """
    if features.ndim != 5 or not features.is_floating_point():
        raise ValueError(f"features must be floating point [B, F, H, W, D], got {features.dtype} {[*features.shape]}")
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid must be three positive counts (f, h, w), got {grid}")
    if time not in get_args(Time):
        raise ValueError(f"time must be one of {get_args(Time)}, got {time!r}")
    if space not in get_args(Space):
        raise ValueError(f"space must be one of {get_args(Space)}, got {space!r}")
    if drop_first:
        features = features[:, 1:]
    if 0 in features.shape[1:4]:
        raise ValueError(f"no frames or places to resample: {[*features.shape]}" + " after the first" * drop_first)
    values = features if features.dtype == torch.float64 else features.float()
    values = values.movedim(-1, 1)  # [B, D, F, H, W]
    by_area = (time == "area", space == "area", space == "area")
    # The axes commute, so those that shrink go first: the rest is then less work.
    for axis in sorted(range(3), key=lambda axis: grid[axis] / values.shape[2 + axis]):
        size = list(values.shape[2:])
        before, size[axis] = size[axis], grid[axis]
        if by_area[axis] and grid[axis] < before:
            values = F.interpolate(values, size, mode="area")
        elif grid[axis] != before:
            values = F.interpolate(values, size, mode="trilinear", align_corners=False)
    return values.movedim(1, -1)
