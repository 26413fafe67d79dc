"""Laws of what things are: they neither come nor go, and keep colour and shape.

Lengths are pixels of a 64×64 picture, speeds pixels a second, so the limits hold for any size and rate. They are set on
clips of the fine-tuning stream, at 20 and at 6⅔ frames a second, and leave room beyond the most that real clips show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from physcli.benchmarks.law_nouns import angularity, filling, may_be, outlined
from physcli.benchmarks.law_view import HELD, SETTINGS, TOUCH_PX, UNTESTED, Finding, View, broken
from physcli.benchmarks.objects import REFERENCE_PIXELS, wanted_objects
from physcli.benchmarks.tracks import Track

# --- permanence and color: things neither come nor go, nor become others ---

JUMP_PX = 5.0  # real agents reach 3.8, at contacts between frames that are 0.15 s apart; a teleport has 7.3 at least
STRAY_PX, STRAY_S = 12.0, 0.15
GONE_S, GONE_BESIDE_S = 0.1, 0.35  # seen again so soon it was there; beside something small things are lost for longer
HIDDEN_FRACTION = 0.3
FADED_FRACTION = 0.6
HUE_DRIFT_DEG = 9.0
HUE_AREA_PX = 12.0


def permanence(view: View) -> Finding:
    """Things do not vanish, appear, jump or become two."""
    for track in view.both():
        seen = track.seen
        if not seen[view.early].any():
            first = int(np.flatnonzero(seen)[0])
            if not _came_from_somewhere(track, first):
                return broken(view, first, f"the {track.color} thing appears")
            continue
        for frame in _losses(track):
            absent = int(np.argmax(np.append(seen[frame:], True)))
            brief = GONE_BESIDE_S if _beside(view, track, frame - 1) else GONE_S
            if absent < view.frames_in(brief) and frame + absent < len(seen):
                continue
            if not (_left(track, frame) or _hidden(view, track, frame) or _recolored(view, track, frame)):
                return broken(view, frame, f"the {track.color} thing vanishes")
        for frame in (int(place) + 1 for place in np.flatnonzero(~seen[:-1] & seen[1:])):
            if seen[:frame].any() and not _came_from_somewhere(track, frame):
                before = int(np.flatnonzero(seen[:frame])[-1])
                if track.step(before, frame) > JUMP_PX * (frame - before):
                    return broken(view, frame, f"the {track.color} thing appears elsewhere")
        far, frame = _largest_jump(track.center)
        if far > JUMP_PX:
            return broken(view, frame, f"the {track.color} thing jumps by {far:.0f} pixels")
        doubled = track.stray >= STRAY_PX
        if doubled.sum() >= view.frames_in(STRAY_S):
            return broken(view, int(np.argmax(doubled)), f"a second {track.color} thing appears")
    return HELD if view.both() else UNTESTED


def color(view: View) -> Finding:
    """Things keep their colour: none is replaced by one of another colour, none changes its hue."""
    tested = False
    for track in view.both():
        for frame in _losses(track):
            other = _recolored(view, track, frame)
            if other:
                return broken(view, int(frame), f"the {track.color} thing turns {other}")
        large = (track.area >= HUE_AREA_PX) & np.isfinite(track.hue_deg)
        if large.sum() >= 2:
            tested = True
            drift = np.where(large, np.abs(track.hue_deg - np.median(track.hue_deg[large])), 0)
            if drift.max() > HUE_DRIFT_DEG * view.slack:
                return broken(view, int(drift.argmax()), f"the {track.color} thing's hue changes")
    return HELD if tested else UNTESTED


def _losses(track: Track) -> list[int]:
    """Frames in which a thing is no longer seen that was seen in the frame before."""
    return [int(frame) + 1 for frame in np.flatnonzero(track.seen[:-1] & ~track.seen[1:])]


def _step_before(track: Track, frame: int) -> np.ndarray:
    """The thing's displacement [2] from frame - 2 to frame - 1, zero where it was not seen."""
    if frame < 2 or not track.seen[frame - 2]:
        return np.zeros(2)
    return track.center[frame - 1] - track.center[frame - 2]


def _left(track: Track, frame: int) -> bool:
    """Whether the thing, last seen in the frame before, went out of the picture."""
    if track.margin[frame - 1] < 1:
        return True
    radius = np.sqrt(track.area[frame - 1] / np.pi)
    next_center = track.center[frame - 1] + 1.25 * _step_before(track, frame)
    height, width = track.mask.shape[1:]
    size = np.array([width, height]) * REFERENCE_PIXELS / min(height, width)
    return bool((next_center < radius).any() or (next_center > size - 1 - radius).any())


def _came_from_somewhere(track: Track, frame: int) -> bool:
    """Whether a thing that is seen again came from beyond the border or from behind something."""
    beside = track.gaps[:, frame].min() <= TOUCH_PX if len(track.gaps) else False
    return bool(track.margin[frame] < 2 or beside)


def _beside(view: View, track: Track, frame: int) -> bool:
    """Whether a thing touches another one, not counting what it rolls on or slides along."""
    return bool(track.gap_to([name for name in track.colors if name not in view.wide])[frame] <= TOUCH_PX)


def _hidden(view: View, track: Track, frame: int) -> bool:
    """Whether something is now where the thing, last seen in the frame before, must be; or had all but covered it."""
    recent = track.area[max(0, frame - view.frames_in(0.3)) : frame].max()
    if track.area[frame - 1] < FADED_FRACTION * max(recent, HUE_AREA_PX) and _beside(view, track, frame - 1):
        return True
    others = [masks[frame] for name, masks in view.masks.items() if name != track.color and name not in view.wide]
    if not others or _recolored(view, track, frame):
        return False
    covering = np.any(others, axis=0)
    last = np.argwhere(track.mask[frame - 1])
    scale = min(covering.shape) / REFERENCE_PIXELS
    for way in (0.5, 1.0, 1.5):
        there = np.round(last + way * scale * _step_before(track, frame)[::-1]).astype(int)
        there = there.clip(0, np.array(covering.shape) - 1)
        if covering[there[:, 0], there[:, 1]].mean() >= HIDDEN_FRACTION:
            return True
    return False


def _recolored(view: View, track: Track, frame: int) -> str | None:
    """The colour that in this frame has all at once what the thing had in the frame before."""
    lost = track.mask[frame - 1].sum() - track.mask[frame].sum()
    place = track.mask[frame - 1] | _moved(track.mask[frame - 1], _step_before(track, frame))
    for name, masks in view.masks.items():
        if name == track.color or name in view.wide:
            continue
        gained = int(masks[frame].sum()) - int(masks[frame - 1].sum())
        here = (masks[frame] & place).sum() - (masks[frame - 1] & place).sum()
        if gained >= 0.4 * lost and here >= 0.4 * lost:
            return name
    return None


def _moved(mask: np.ndarray, step: np.ndarray) -> np.ndarray:
    scale = min(mask.shape) / REFERENCE_PIXELS
    right, down = (int(part) for part in np.round(step * scale))
    return np.roll(mask, (down, right), (0, 1))


def _largest_jump(center: np.ndarray) -> tuple[float, int]:
    """How far a step between neighbouring frames is from all that lies between the steps before and after it.

    A contact turns one step into another, perhaps in the middle of a frame; it makes none that is longer than both or
    goes another way. So this is small for all real motion, however fast.
    """
    steps = np.diff(center, axis=0)
    largest, frame = 0.0, 0
    for index in np.flatnonzero(np.isfinite(steps).all(1)):
        beside = [steps[i] for i in (index - 1, index + 1) if 0 <= i < len(steps) and np.isfinite(steps[i]).all()]
        if not beside:
            continue
        one, way = beside[0], beside[-1] - beside[0]
        share = np.clip((steps[index] - one) @ way / max(way @ way, 1e-9), 0, 1)
        far = float(np.linalg.norm(steps[index] - one - share * way))
        if far > largest:
            largest, frame = far, int(index) + 1
    return largest, frame


# --- shape ---


@dataclass(frozen=True)
class _StepLimits:
    """The most that logarithms change at once: of the area, of the extents along and across, and of their ratio."""

    area: float
    along: float
    across: float
    ratio: float

    def broken_by(self, steps: np.ndarray) -> bool:
        return bool((steps > [self.area, self.along, self.across, self.ratio]).any())


# How a thing looks changes at once when something covers it, and quickly when it tumbles.
STEADY = _StepLimits(0.18, 0.10, 0.12, 0.14)  # balls and rings, free of everything
TUMBLING = _StepLimits(0.27, 0.22, 0.20, 0.27)  # all others
COVERED = _StepLimits(0.30, 0.21, 0.27, 0.34)  # beside something else
COVERED_RING = _StepLimits(0.16, 0.09, 0.13, 0.14)  # of which only an end is ever covered
STEADY_NOUNS = ("ball", "ring")
SHAPE_WINDOW_S = 0.15
# Angularity over so many frames that are not smeared: of balls up to 2.1, of all others from 1.5.
ROUND, ANGULAR, OUTLINE_FRAMES = 1.0, 2.4, 3
CRISP = 0.86  # the least filling of what is not smeared


def shape(view: View) -> Finding:
    """Things keep their shape: no outline changes from one frame to the next, and what is round stays round.

    That a thing has the shape it was asked for is no law, but semantic adherence.
    """
    tested = False
    nouns = {one.color: one.noun for one in wanted_objects(view.prompt)}
    for track in view.both():
        is_agent = track is view.agent
        noun = nouns.get(track.color, "")
        noun = noun if may_be(view, track, noun) else ""  # what is no ball may tumble
        whole = track.seen & (track.margin > 0)
        free = track.gap_to(view.obstacles if is_agent else track.colors) > TOUCH_PX
        # What falls or rolls down is covered by what it meets, and covers it, in ways that cannot be foreseen.
        fickle = view.setting is not None and (view.setting.flies or view.setting is SETTINGS["roll"])
        judged = whole & (free | (is_agent and not fickle))
        size, along, across = (np.log(np.maximum(x, 0.1)) for x in (track.area, *track.spread.T))
        values = np.stack([size, along, across, along - across], axis=1)
        for frame, steps, is_free in _sudden_steps(values, judged, free, view.frames_in(SHAPE_WINDOW_S)):
            tested = True
            if noun == "ring":
                limits = STEADY if is_free else COVERED_RING
            else:
                limits = (STEADY if noun in STEADY_NOUNS else TUMBLING) if is_free else COVERED
            if limits.broken_by(steps):
                return broken(view, frame, f"the {track.color} thing changes its shape")
        alone = np.flatnonzero(outlined(view, track) & (filling(track) > CRISP))
        if len(alone) >= OUTLINE_FRAMES:
            tested = True
            windows = np.lib.stride_tricks.sliding_window_view(angularity(track)[alone], OUTLINE_FRAMES)
            usual = np.median(windows, axis=1)
            if usual.min() < ROUND and usual.max() > ANGULAR * view.slack:
                place = int(alone[max(usual.argmin(), usual.argmax()) + OUTLINE_FRAMES // 2])
                change = "is no longer round" if usual.argmin() < usual.argmax() else "becomes round"
                return broken(view, place, f"the {track.color} thing {change}")
    return HELD if tested else UNTESTED


def _sudden_steps(
    values: np.ndarray, judged: np.ndarray, free: np.ndarray, window: int
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """How K values [T, K] change at each frame, beyond how they change before and after it.

    Medians over `window` frames on either side are compared.

    Yields:
        (frame, changes [K], whether nothing is near), for frames with enough judged frames around.
    """

    def median(first: int) -> np.ndarray | None:
        inside = first >= 0 and first + window <= len(values) and judged[first : first + window].all()
        return np.median(values[first : first + window], axis=0) if inside else None

    for frame in range(window, len(values) - window + 1):
        before, now = median(frame - window), median(frame)
        if before is None or now is None:
            continue
        usual = np.zeros(values.shape[1])
        for neighbour, own in ((median(frame - 2 * window), before), (median(frame + window), now)):
            if neighbour is not None:
                usual = np.maximum(usual, np.abs(own - neighbour))
        yield frame, np.abs(now - before) - usual, bool(free[frame - window : frame + window].all())
