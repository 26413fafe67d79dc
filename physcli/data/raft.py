"""RAFT (Teed & Deng 2020), an estimator of optical flow: torchvision's network, which is an extra."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from physcli.data.flow import check_frames
from physcli.errors import MissingExtra, ModelError

_SMALLEST_SIDE = 128  # RAFT compares pictures at 1/8 to 1/64 of their size
_PIXELS_AT_ONCE = 4 * 480 * 720  # the correlations of four such pairs take 0.6 GB


def raft_flow(frames: np.ndarray, device: str | torch.device = "cpu") -> np.ndarray:
    """RAFT (Teed & Deng 2020): torchvision's large network with its default weights.

    torchvision downloads them (20 MB) into the folder of `torch.hub` when they are first used.

    Args:
        frames: uint8 [T, H, W, 3], RGB.
        device: Where the network runs.

    Returns:
        float32 [T−1, H, W, 2].

    Raises:
        ValueError: not uint8 RGB frames, or fewer than two.
        MissingExtra: torchvision is not installed.
        ModelError: the weights cannot be downloaded.
    """
    check_frames(frames)
    network = _raft(str(device))
    return flow_at_raft_size(lambda now, later: network(now.to(device), later.to(device))[-1].cpu(), frames)


def raft_identity() -> dict[str, str]:
    """What `raft_flow` depends on beside the frames: network, weights and version.

    Raises:
        MissingExtra: torchvision is not installed.
    """
    weights = _torchvision().models.optical_flow.Raft_Large_Weights.DEFAULT
    return {"network": "raft_large", "weights": weights.name, "torchvision": _torchvision().__version__}


def flow_at_raft_size(estimate: Callable[[Tensor, Tensor], Tensor], frames: np.ndarray) -> np.ndarray:
    """Flow from an estimator that wants pictures as RAFT does: each side a multiple of 8, and at least 128.

    Frames are resized to the smallest such size of about their shape that is no smaller; the flow is brought back to
    their own size, in their own pixels.

    Args:
        estimate: Pictures [B, 3, h, w] in [−1, 1] and those after them → flow [B, 2, h, w], (right, down).
        frames: uint8 [T, H, W, 3].

    Returns:
        float32 [T−1, H, W, 2].
    """
    size = height, width = frames.shape[1:3]
    smallest = min(size)
    seen = [8 * math.ceil(side * max(smallest, _SMALLEST_SIDE) / (8 * smallest)) for side in size]
    scale = torch.tensor([width / seen[1], height / seen[0]]).view(1, 2, 1, 1)
    at_once = max(1, _PIXELS_AT_ONCE // (seen[0] * seen[1]))
    flows = []
    for first in range(0, len(frames) - 1, at_once):
        some = torch.from_numpy(frames[first : first + at_once + 1]).permute(0, 3, 1, 2).float() / 127.5 - 1
        pictures = F.interpolate(some, seen, mode="bilinear", align_corners=False)
        with torch.inference_mode():
            flow = estimate(pictures[:-1], pictures[1:])
        flows.append(F.interpolate(flow, size, mode="bilinear", align_corners=False) * scale)
    return torch.cat(flows).permute(0, 2, 3, 1).contiguous().numpy()


def _torchvision() -> ModuleType:
    try:
        import torchvision
    except ImportError as error:
        raise MissingExtra(
            "Optical flow by RAFT", package="torchvision", extra="raft", instead="use objective.flow=dis"
        ) from error
    return torchvision


@functools.cache
def _raft(device: str) -> torch.nn.Module:
    """The network, frozen: (pictures, pictures after them) → a list of flows, the last the finest."""
    networks = _torchvision().models.optical_flow
    weights = networks.Raft_Large_Weights.DEFAULT
    try:
        network = networks.raft_large(weights=weights, progress=False)
    except OSError as error:  # urllib's errors are
        raise ModelError(
            f"RAFT's weights {weights.url} could not be downloaded: {error}.",
            expected="a network connection, or the file in the folder of torch.hub",
            fix=f"put it into {torch.hub.get_dir()}/checkpoints, or use objective.flow=dis",
        ) from error
    return network.requires_grad_(False).eval().to(device)
