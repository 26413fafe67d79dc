"""Colours of video that keeps fewer samples of colour than of brightness, put back where the brightness says they end.

In 4:2:0 video, which most encoders write, a square of 2×2 pixels has one colour. A thing of 8 pixels across then has a
seam of mixed colours around it, and its outline is that of squares. Its brightness is whole: a pixel of a square whose
brightness is the thing's has the thing's colour, and another the floor's.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue
# Colour differences and brightness are in levels of 256. Below the first number, squared, differences in brightness are
# the codec's noise; below the second a line through the colours of 3×3 pixels fits as well as can be told.
NOISE_VARIANCE, FIT_VARIANCE = 30.0, 20.0
ROUNDS = 10
PIXELS_AT_ONCE = 2**16  # what is filtered at once stays in the processor's cache


def restore_chroma(frames: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    """Give each pixel a colour of its own where several share one.

    As in the guided filter (He et al. 2010), colour differences are taken for a linear function of brightness in each
    square of 3×3 pixels; a pixel's is the mean of what the 9 squares say that it is in, those in which the line fits
    counting more. By turns with that, the mean over the pixels of each sample is set to what the file says, and
    nothing gets more colourful than the samples around.

    Differs from the truth where two things are equally bright. On clips of the simulator in 4:2:0 the error near
    coloured things falls from 23 dB PSNR to 30 dB at CRF 10, and to 29 dB at CRF 23.

    Args:
        frames: uint8 [T, H, W, 3] RGB, as decoded.
        step: How many (rows, columns) of pixels a sample of colour is for: (2, 2) of 4:2:0, (1, 2) of 4:2:2.

    Returns:
        uint8 [T, H, W, 3] of the same brightness; the same array for (1, 1).
    """
    if step == (1, 1):
        return frames
    at_once = max(1, PIXELS_AT_ONCE // (frames.shape[1] * frames.shape[2]))
    parts = np.split(frames, range(at_once, len(frames), at_once))
    return np.concatenate([_restored(part, step) for part in parts])


def _restored(frames: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    height, width = frames.shape[1:3]
    # Whole samples; OpenCV filters frames that lie in the last axis all at once.
    padding = ((0, 0), (0, -height % step[0]), (0, -width % step[1]), (0, 0))
    red, green, blue = np.ascontiguousarray(np.pad(frames, padding, mode="edge").transpose(3, 1, 2, 0), np.float32)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue

    def fine(samples: np.ndarray) -> np.ndarray:
        return samples.repeat(step[0], 0).repeat(step[1], 1)

    def coarse(pixels: np.ndarray) -> np.ndarray:
        rows, columns, count = pixels.shape
        return pixels.reshape(rows // step[0], step[0], columns // step[1], step[1], count).mean((1, 3))

    samples = [coarse(color - luma) for color in (red, blue)]
    bounds = [(fine(_each(samples_of, cv2.erode)), fine(_each(samples_of, cv2.dilate))) for samples_of in samples]
    mean_luma = _blur(luma)
    variance = (_blur(luma * luma) - mean_luma**2).clip(0)
    differences = [fine(samples_of) for samples_of in samples]
    for _ in range(ROUNDS):
        # 1. In each square: difference = slope · luma + offset, and what is left unexplained.
        means = [_blur(one) for one in differences]
        slopes, unexplained = [], np.zeros_like(luma)
        for one, mean in zip(differences, means, strict=True):
            covariance = _blur(luma * one) - mean_luma * mean
            slopes.append(covariance / (variance + NOISE_VARIANCE))
            unexplained += (_blur(one * one) - mean**2 - slopes[-1] * covariance).clip(0)
        weight = 1 / (unexplained + FIT_VARIANCE)
        total = _blur(weight)
        for number, (slope, mean) in enumerate(zip(slopes, means, strict=True)):
            # 2. At each pixel, the mean of its squares.
            said = (_blur(weight * slope) * luma + _blur(weight * (mean - slope * mean_luma))) / total
            # 3. Back to what the file says.
            differences[number] = (said + fine(samples[number] - coarse(said))).clip(*bounds[number])
    red, blue = (luma + one for one in differences)
    green = (luma - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    restored = np.stack([red, green, blue]).transpose(3, 1, 2, 0)[:, :height, :width]
    return restored.round().clip(0, 255).astype(np.uint8)


def _blur(pixels: np.ndarray) -> np.ndarray:
    """Means over squares of 3×3 pixels; [H, W, T]."""
    return cv2.blur(pixels, (3, 3), borderType=cv2.BORDER_REFLECT_101).reshape(pixels.shape)


def _each(pixels: np.ndarray, method: Callable[..., np.ndarray]) -> np.ndarray:
    """The least or the largest of 3×3; [H, W, T]."""
    square = np.ones((3, 3), np.uint8)
    return np.stack([method(np.ascontiguousarray(frame), square) for frame in np.moveaxis(pixels, -1, 0)], axis=-1)
