"""Motion focal loss (MotiF, Wang et al., CVPR 2025, arXiv 2412.16153): the denoising error where the clip moves counts
once more. No teacher, no tap, no weights of its own.

The paper weighs the error by a heat map of optical flow, for image-to-video: a network that copies the picture is right
nearly everywhere. Ours, as flow is one more network to run and no better among latents: the heat is the change of the
latents themselves between neighbouring frames; and the loss is the mean over heat, so that a clip in which little moves
counts as much as one in which much does, and the term is of the size of the denoising loss, whatever the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor


def motion_heat(latents: Tensor) -> Tensor:
    """How much each place changes: the greater of the distances to the frame before and to the one after.

    Args:
        latents: x0 [B, F, C, H, W].

    Returns:
        [B, F, H, W], float32 (float64 where `latents` is), without gradient; all 1 for clips of one frame or that
        are still.

    Raises:
        ValueError: another shape, or integers.
    """
    if latents.ndim != 5 or 0 in latents.shape or not latents.is_floating_point():
        raise ValueError(f"expected floating-point latents [B, F, C, H, W], got {latents.dtype} {list(latents.shape)}")
    values = latents.detach()
    values = values if values.dtype == torch.float64 else values.float()
    change = torch.diff(values, dim=1).norm(dim=2)  # [B, F - 1, H, W]
    none = torch.zeros_like(values[:, :1, 0])
    heat = torch.maximum(torch.cat([none, change], dim=1), torch.cat([change, none], dim=1))
    moves = heat.amax(dim=(1, 2, 3), keepdim=True) > 0
    return torch.where(moves, heat, torch.ones_like(heat))


def motif_loss(output: Tensor, target: Tensor, clean: Tensor, *, power: float = 1.0) -> Tensor:
    """Σ heat^power · e / Σ heat^power with e = mean over channels of (output − target)², the heat being that of x0.

    Args:
        output: What the network predicts [B, F, C, H, W].
        target: What it should, same shape.
        clean: x0, same shape.
        power: Of the heat; 0 gives the denoising loss itself.

    Returns:
        [B], float32 (float64 where `clean` is).

    Raises:
        ValueError: unequal shapes, or another shape than [B, F, C, H, W].
    """
    if not output.shape == target.shape == clean.shape:
        raise ValueError(f"expected one shape, got {', '.join(str(list(x.shape)) for x in (output, target, clean))}")
    weights = motion_heat(clean) ** power
    error = (output.to(weights.dtype) - target.to(weights.dtype)).square().mean(dim=2)
    return (weights * error).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))
