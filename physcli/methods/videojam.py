"""VideoJAM (arXiv 2502.02492): a network that denoises a clip and its motion together. No code was released.

The motion latents d lie beside the clip's x, with a noise of their own at the same level; the first layer takes both,
through new weights that begin at zero, and the last gives both. The paper's objective is one mean of squares over
[v_x, v_d]. Here it is two, that of x and λ times that of d, so that x counts as it does without the method; with as
many channels of motion as of latents, λ = 1 and half the learning rate come to the paper's. In a share of the samples d
is hidden (zeros, at which nothing is asked of it), so that Inner-Guidance can ask what the network says without it.

What d is, the paper gives as a picture of optical flow, encoded by the generator's own VAE (`flow_picture`). For small
worlds there is a shorter way of ours (`pooled_flow`): the flow itself, averaged over the place of a latent.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled_flow(flow: Tensor, *, frames_per_latent: int, size: tuple[int, int], scale_px: float) -> Tensor:
    """Motion latents of optical flow: of each latent frame those flows that lead to its frames, one after the other.

    The first latent frame holds the first frame alone, to which nothing leads: zeros.

    Args:
        flow: [T − 1, 2, H, W] in pixels, (right, down), from each frame to the next; T = 1 + n·(F − 1).
        frames_per_latent: n.
        size: (h, w) of a latent frame; sides of H and W.
        scale_px: So many pixels are 1.

    Returns:
        float32 [F, 2n, h, w].

    Raises:
        ValueError: another shape.
    """
    if flow.ndim != 4 or flow.shape[1] != 2 or len(flow) % frames_per_latent:
        raise ValueError(f"flow must be [T-1, 2, H, W] with {frames_per_latent} flows a frame, got {list(flow.shape)}")
    pooled = F.adaptive_avg_pool2d(flow.float() / scale_px, size)
    grouped = pooled.reshape(-1, frames_per_latent * 2, *size)
    return torch.cat([grouped.new_zeros(1, *grouped.shape[1:]), grouped])


def flow_picture(flow: Tensor, *, reach: float = 0.15) -> Tensor:
    """Optical flow as colours: the direction is the hue, the length the brightness, all of it at `reach` of the
    picture's diagonal.

    A clip of T frames has T − 1 flows; the last one is shown twice. (The paper does not say what the last frame shows,
    nor whether saturation or brightness tells the length: a still place is black here.)

    Args:
        flow: [T − 1, 2, H, W] in pixels, (right, down).
        reach: Share of √(H² + W²).

    Returns:
        float32 [T, 3, H, W] in [0, 1], RGB.

    Raises:
        ValueError: another shape.
    """
    if flow.ndim != 4 or flow.shape[1] != 2 or not len(flow):
        raise ValueError(f"flow must be [T-1, 2, H, W], got {list(flow.shape)}")
    flow = flow.float()
    right, down = torch.cat([flow, flow[-1:]]).unbind(dim=1)
    length = (torch.hypot(right, down) / (reach * math.hypot(*flow.shape[2:]))).clamp_max(1)
    hue = torch.atan2(down, right) % (2 * math.pi) * 3 / math.pi  # 0 to 6
    # Of a full hue, each colour rises and falls along the circle, a third of it apart.
    rgb = [(((hue - turn + 3) % 6 - 3).abs()).mul(-1).add(2).clamp(0, 1) for turn in (0, 2, 4)]
    return torch.stack(rgb, dim=1) * length[:, None]


def motion_loss(output: Tensor, target: Tensor, shown: Tensor) -> Tensor:
    """Mean square of what is predicted of the motion against its target; 0 where the motion was hidden.

    Args:
        output: [B, F, M, H, W].
        target: Same shape.
        shown: [B], 1 or 0.

    Returns:
        [B], float32.
    """
    return (output.float() - target.float()).square().mean(dim=(1, 2, 3, 4)) * shown.float()
