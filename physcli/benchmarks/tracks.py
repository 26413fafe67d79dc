"""Where the things of one colour are in each frame of a clip, to a fraction of a pixel, and what is beside them.

In the simulator the agent is the only red thing and the patient the only yellow one, so a colour is a track. A
generated clip may show two reds at once: the track then follows the nearer one, and says how much of its colour is
elsewhere.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from physcli.benchmarks.objects import HUES_DEG, REFERENCE_PIXELS, FoundObject

# Patches of a colour with less than this between them (pixels of a 64×64 picture) are one thing with something in
# front of it.
SPLIT_PX = 5.0
SMALL_COSTS_PX = 12.0
FAR_PX = 1e3  # the gap to what is not there
LEAST_VARIANCE_PX2 = 0.05


@dataclass(frozen=True)
class Track:
    """One colour through T frames. Pixels are those of a 64×64 picture; x to the right, y down.

    Attributes:
        color: A colour with a hue.
        mask: bool [T, H, W], in pixels of the clip.
        area: [T] visible pixels, those at the outline in part; 0 where nothing is seen.
        center: [T, 2] (x, y); NaN where nothing is seen.
        spread: [T, 2] standard deviations in pixels along and across the longest axis; NaN where nothing is seen.
        corners: [T, 2] how far the outline, made as broad as it is long, is from a disc's: the size of its four-fold
            and of its six-fold moment E[(x + iy)^n], with x and y of variance 1. A disc has 0 and 0, a parallelogram
            2.4 and 0, a regular hexagon 0 and 3.9; NaN where nothing is seen.
        box: [T, 4] (left, top, right, bottom) in whole pixels; NaN where nothing is seen.
        hue_deg: [T] median hue; NaN where nothing is seen.
        margin: [T] distance in pixels to the nearest border of the picture; NaN where nothing is seen.
        stray: [T] pixels of the colour that are not of this thing, but far from it.
        colors: The C other colours seen in the clip.
        gaps: [C, T] distance in pixels to the nearest pixel of each other colour; `FAR_PX` for none.
    """

    color: str
    mask: np.ndarray
    area: np.ndarray
    center: np.ndarray
    spread: np.ndarray
    corners: np.ndarray
    box: np.ndarray
    hue_deg: np.ndarray
    margin: np.ndarray
    stray: np.ndarray
    colors: tuple[str, ...]
    gaps: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """bool [T]."""
        return self.area > 0

    def step(self, one: int, other: int) -> float:
        """How far the thing is in one frame from where it is in another, in pixels."""
        return float(np.linalg.norm(self.center[one] - self.center[other]))

    def gap_to(self, colors: Sequence[str]) -> np.ndarray:
        """[T] distance in pixels to the nearest of these colours."""
        rows = [self.gaps[self.colors.index(color)] for color in colors if color in self.colors]
        return np.min(rows, axis=0) if rows else np.full(len(self.area), FAR_PX)


def follow(
    frames: np.ndarray, found: Sequence[Sequence[FoundObject]], color: str, masks: dict[str, np.ndarray]
) -> Track:
    """Follow the thing of one colour.

    Where the colour has several patches in a frame, those near the largest belong to it; which is the largest counts
    less than where the thing was before.

    Args:
        frames: uint8 [T, H, W, 3].
        found: What `objects.find_objects` gives for them.
        color: A colour of `HUES_DEG`.
        masks: What `objects.masks_of_colors` gives for them.

    Returns:
        The track; nothing is seen anywhere if the colour is not there.

    Raises:
        ValueError: a colour without a hue.
    """
    if color not in HUES_DEG:
        raise ValueError(f"a track of {color!r}; only {', '.join(HUES_DEG)} have a hue to be followed by")
    num_frames, height, width = frames.shape[:3]
    scale = min(height, width) / REFERENCE_PIXELS
    mask = np.zeros((num_frames, height, width), bool)
    stray = np.zeros(num_frames)
    before: tuple[float, float] | None = None
    for frame, things in enumerate(found):
        own = [thing for thing in things if thing.color == color]
        if not own:
            continue
        main = _most_alike(own, before, scale)
        mask[frame] = main.mask
        reach = _distance_to(main.mask)
        for thing in own:
            if thing is main:
                continue
            if reach[thing.mask].min() <= SPLIT_PX * scale:
                mask[frame] |= thing.mask
            else:
                stray[frame] += thing.area / scale**2
        before = main.centroid

    others = tuple(other for other in masks if other != color)
    gaps = np.full((len(others), num_frames), FAR_PX)
    for row, other in enumerate(others):
        for place in np.flatnonzero(mask.any((1, 2)) & masks[other].any((1, 2))):
            gaps[row, place] = _distance_to(masks[other][place])[mask[place]].min() / scale
    blocked = np.zeros(mask.shape, bool)
    for other in others:
        blocked |= masks[other]
    return _measure(frames, color, mask, blocked, stray, others, gaps, scale)


def box_overlap(one: Track, other: Track) -> np.ndarray:
    """[T] how much of the smaller thing's bounding box is inside the other's."""
    low, high = np.fmax(one.box[:, :2], other.box[:, :2]), np.fmin(one.box[:, 2:], other.box[:, 2:])
    sizes = [(track.box[:, 2:] - track.box[:, :2] + 1).prod(1) for track in (one, other)]
    inside = (high - low + 1).clip(0).prod(1) / np.fmin(*sizes)
    return np.where(one.seen & other.seen, np.nan_to_num(inside), 0.0)


def _most_alike(patches: Sequence[FoundObject], before: tuple[float, float] | None, scale: float) -> FoundObject:
    """Of patches, the largest first, the one that the thing before seems to be: near, and not small."""
    if before is None:
        return patches[0]
    x, y = before

    def unlikeness(patch: FoundObject) -> float:
        way = float(np.hypot(patch.centroid[0] - x, patch.centroid[1] - y)) / scale
        return way + SMALL_COSTS_PX * (1 - patch.area / patches[0].area)

    return min(patches, key=unlikeness)


def _distance_to(mask: np.ndarray) -> np.ndarray:
    """Of each pixel to the nearest of a mask, in pixels."""
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _measure(
    frames: np.ndarray,
    color: str,
    mask: np.ndarray,
    blocked: np.ndarray,
    stray: np.ndarray,
    others: tuple[str, ...],
    gaps: np.ndarray,
    scale: float,
) -> Track:
    num_frames, height, width = mask.shape
    # How much a pixel on the outline belongs to the thing: its colourfulness relative to the most colourful neighbour.
    pure = np.array(colorsys.hsv_to_rgb(HUES_DEG[color] / 360, 1, 1))
    direction = (pure - pure.mean()) / np.linalg.norm(pure - pure.mean())
    strength = (frames.astype(np.float32) @ direction.astype(np.float32)).clip(1)
    square = np.ones((3, 3), np.uint8)
    area, margin, hue = np.zeros(num_frames), np.full(num_frames, np.nan), np.full(num_frames, np.nan)
    center, spread, corners = (np.full((num_frames, 2), np.nan) for _ in range(3))
    box = np.full((num_frames, 4), np.nan)
    for frame in np.flatnonzero(mask.any((1, 2))):
        own = mask[frame]
        around = cv2.dilate(own.astype(np.uint8), square).astype(bool) & ~(blocked[frame] & ~own)
        strongest = cv2.dilate(np.where(own, strength[frame], 0), square)
        weight = np.where(around, (strength[frame] / np.maximum(strongest, 1)).clip(0, 1), 0)
        # Below a quarter it is the floor's own tint.
        weight = ((weight - 0.25) / 0.75).clip(0)
        weight[own] = np.maximum(weight[own], 0.25)
        y, x = np.nonzero(weight)
        w = weight[y, x]
        total = w.sum()
        mean = np.array([(w * x).sum(), (w * y).sum()]) / total
        offset = np.stack([x - mean[0], y - mean[1]])
        variance, axes = np.linalg.eigh((w * offset) @ offset.T / total)
        area[frame], center[frame] = total / scale**2, mean / scale
        spread[frame] = np.sqrt(variance[::-1].clip(0)) / scale
        # A line of pixels has no breadth that could be made one.
        even_x, even_y = (axes.T @ offset) / np.sqrt(variance.clip(LEAST_VARIANCE_PX2))[:, None]
        corners[frame] = [abs((w * (even_x + 1j * even_y) ** fold).sum() / total) for fold in (4, 6)]
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        box[frame] = np.array([columns[0], rows[0], columns[-1], rows[-1]]) / scale
        margin[frame] = min(columns[0], rows[0], width - 1 - columns[-1], height - 1 - rows[-1]) / scale
        hue[frame] = _median_hue(frames[frame][own], HUES_DEG[color])
    return Track(color, mask, area, center, spread, corners, box, hue, margin, stray, others, gaps)


def _median_hue(pixels: np.ndarray, near_deg: float) -> float:
    """Median hue in degrees of RGB pixels [N, 3], all within half a turn of `near_deg`."""
    hue = cv2.cvtColor((pixels[None] / np.float32(255)).astype(np.float32), cv2.COLOR_RGB2HSV)[0, :, 0]
    return float(near_deg + np.median((hue - near_deg + 180) % 360 - 180))
