"""Copies of a clip that show less than it does: controls of every judge. Frames are uint8 [T, H, W, 3], RGB."""

from __future__ import annotations

import cv2
import numpy as np

BLUR = 1 / 32  # standard deviation of the blur, of a picture's shorter side


def blurred_frame(frame: np.ndarray) -> np.ndarray:
    """A frame [H, W, 3] through a Gaussian blur."""
    return cv2.GaussianBlur(frame, (0, 0), BLUR * min(frame.shape[:2]))


def held(frames: np.ndarray) -> np.ndarray:
    """The first frame, all along."""
    return np.repeat(frames[:1], len(frames), axis=0)
