"""Heatmaps laid over frames."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

_LEAST_SIDE = 256  # pixels of a picture's shorter side; smaller frames are enlarged in whole steps
_STRENGTH = 0.65  # of the hottest place


def enlarge(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3], each pixel repeated until the shorter side has some 256."""
    times = max(1, -(-_LEAST_SIDE // min(frames.shape[1:3])))
    return frames.repeat(times, axis=1).repeat(times, axis=2)


def overlay(frames: np.ndarray, heat: np.ndarray, *, strength: float = _STRENGTH) -> np.ndarray:
    """Frames under a translucent heatmap: the hotter, the less is seen of them.

    Args:
        frames: uint8 [T, H, W, 3].
        heat: float [T, H, W] in [0, 1].
        strength: Opacity where heat is 1.

    Returns:
        uint8 [T, H, W, 3].
    """
    if frames.shape[:3] != heat.shape:
        raise ValueError(f"heat must be {list(frames.shape[:3])}, got {list(heat.shape)}")
    colors = mpl.colormaps["inferno"](heat)[..., :3] * 255
    opacity = strength * heat[..., None]
    return ((1 - opacity) * frames + opacity * colors).round().astype(np.uint8)


def mark(frames: np.ndarray, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """Frames with the border of a rectangle drawn in cyan, two pixels wide."""
    marked = frames.copy()
    box = np.zeros(frames.shape[1:3], bool)
    box[top:bottom, left:right] = True
    box[top + 2 : bottom - 2, left + 2 : right - 2] = False
    marked[:, box] = (0, 255, 255)
    return marked


def diverging(values: np.ndarray, reach: float) -> np.ndarray:
    """Numbers as colours: red above zero, blue below, white at it.

    Args:
        values: float [H, W].
        reach: What is shown in full colour; 0 shows all in white.

    Returns:
        uint8 [H, W, 3].
    """
    scaled = np.clip(values / reach, -1, 1) if reach else np.zeros_like(values)
    return (mpl.colormaps["RdBu_r"]((scaled + 1) / 2)[..., :3] * 255).round().astype(np.uint8)


def spotlight(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture with what a mask leaves out darkened.

    Args:
        image: uint8 [H, W, 3].
        mask: bool [h, w], of places that divide the picture; any grid.

    Returns:
        uint8 [H, W, 3].
    """
    rows = np.arange(image.shape[0]) * mask.shape[0] // image.shape[0]
    columns = np.arange(image.shape[1]) * mask.shape[1] // image.shape[1]
    inside = mask[rows][:, columns, None]
    return np.where(inside, image, (0.3 * image).astype(np.uint8)).astype(np.uint8)
