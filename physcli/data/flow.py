"""Optical flow of clips: estimated from pixels, or exact flow put together over several frames.

Flow is in pixels of the picture it belongs to, (right, down), from each frame to the next. `physcli.data.raft` has
another estimator, a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np


def dis_flow(frames: np.ndarray) -> np.ndarray:
    """Dense inverse search (Kroeger et al. 2016), OpenCV's medium preset.

    Args:
        frames: uint8 [T, H, W, 3], RGB; at least 16 pixels a side.

    Returns:
        float32 [T−1, H, W, 2].

    Raises:
        ValueError: not uint8 RGB frames, fewer than two, or too small.
    """
    check_frames(frames)
    if min(frames.shape[1:3]) < 16:
        raise ValueError(f"frames must be at least 16 pixels a side, got {list(frames.shape[1:3])}")
    estimator: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    return np.stack([estimator.calc(now, later, None) for now, later in pairwise(gray)])


def check_frames(frames: np.ndarray) -> None:
    """Raises ValueError for anything but uint8 RGB frames [T, H, W, 3], two at least."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 2:
        raise ValueError(f"frames must be uint8 [T ≥ 2, H, W, 3], got {frames.dtype} {list(frames.shape)}")


def compose_flows(flows: Sequence[np.ndarray]) -> np.ndarray:
    """The flow over several frames from the flows between neighbours: each point is followed from field to field.

    A point that is hidden on the way goes on with what hides it: the flow of a picture does not know better.

    Args:
        flows: [H, W, 2] each, in order.

    Returns:
        float32 [H, W, 2].
    """
    total = np.array(flows[0], np.float32)
    height, width = total.shape[:2]
    down, right = np.mgrid[:height, :width].astype(np.float32)
    for flow in flows[1:]:
        there = cv2.remap(
            np.asarray(flow, np.float32),
            right + total[..., 0],
            down + total[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        total += there
    return total


def flow_between(flow: np.ndarray, frames: Sequence[int]) -> np.ndarray:
    """Exact flow between chosen frames, in order, of a clip's flow from every frame to the next.

    Args:
        flow: [T−1, H, W, 2], any float dtype.
        frames: Increasing frame numbers, 0 to T−1.

    Returns:
        float32 [len(frames)−1, H, W, 2].

    Raises:
        ValueError: fewer than two frames, not in order, or not of the clip.
    """
    if len(frames) < 2 or frames[0] < 0 or frames[-1] > len(flow) or any(a >= b for a, b in pairwise(frames)):
        raise ValueError(f"frames must be at least two increasing frames of 0..{len(flow)}, got {list(frames)}")
    return np.stack([compose_flows([flow[frame] for frame in range(now, later)]) for now, later in pairwise(frames)])
