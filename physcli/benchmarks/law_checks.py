"""The laws of the simulated world, each checked by itself on the tracks of agent and patient.

A check gets a `View` and gives a `Finding`: held, broken (with the reason), or not testable in this clip. Lengths are
pixels of a 64×64 picture, speeds pixels a second, so the limits hold for any size and rate.

The limits are set on clips of the fine-tuning stream, at 20 and at 6⅔ frames a second, and leave room beyond the most
that any real clip there shows. They know how the simulator films (its camera never moves, and looks down at 12 to 46
degrees); what they cannot know is depth, so what happens behind something is not judged.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from physcli.benchmarks.objects import REFERENCE_PIXELS, wanted_objects
from physcli.benchmarks.tracks import Track

TOUCH_PX = 2.0  # nearer than this, two things may touch
WIDE_NOUNS = ("slope", "pole")  # what the agent touches all the time, and is no obstacle
EARLY_S = 0.8  # agent and patient are in full view for so long, and have not met


@dataclass(frozen=True)
class Setting:
    """What a prompt's action says of the physics to expect.

    Attributes:
        words: What tells it in a prompt.
        flies: The agent is in free flight until it meets something.
        lands: What falls ends on a floor whose height in the picture the patient's foot shows.
        glides: The agent goes on in a straight line at a steady speed until it meets something.
        overlap: The most that the smaller of agent's and patient's bounding boxes may be inside the other's.
        covered: The most that the two together may lose of what is seen of them, as a fraction of the agent's area.
        agent_covered: The most of the agent that the patient may cover soon after they meet, as a fraction of what was
            seen of the agent just before.
        patient_covered: The most of the patient that the agent may cover.
        nearer: How much larger than early in the clip the agent may look once it has met the patient.
        lasting_s: For how long these must be exceeded.
        pressed: Two bounding boxes that are so much inside each other are of things that touch.
    """

    words: str
    flies: bool = False
    lands: bool = False
    glides: bool = False
    overlap: float = 1.01
    covered: float = math.inf
    agent_covered: float = 1.01
    patient_covered: float = 1.01
    nearer: float = math.inf
    lasting_s: float = 0.1
    pressed: float = 0.1


# What falls comes to lie on top or in front, so the patient may be hidden, but hardly the agent.
_FALLING = Setting(
    r"\bfalls\b", flies=True, lands=True, overlap=0.80, agent_covered=0.37, patient_covered=0.95, lasting_s=0.25
)
# In this order: the first whose words are in the prompt. How far two solid things may be in front of each other depends
# on how steeply the camera looks and from where they come, so each action has limits of its own.
SETTINGS: dict[str, Setting] = {
    "dominoes": Setting(r"\btopples\b", lands=True, overlap=0.60, covered=0.86, pressed=0.2),
    "support": Setting(
        r"\btips over\b", lands=True, overlap=0.30, covered=0.42, agent_covered=0.22, patient_covered=0.31
    ),
    "link": Setting(r"\balong an? \w+ pole\b", glides=True, overlap=0.37, covered=0.39),
    # What rolls down comes from behind the patient, and stays behind it.
    "roll": Setting(r"\bdown an? \w+ slope\b", patient_covered=0.14, nearer=1.4),
    "drop": dataclasses.replace(_FALLING, words=r"\bthrown up\b"),
    "contain": _FALLING,
    "collide": Setting(r"\b(rolls|slides)\b", glides=True, overlap=0.57, covered=0.70),
}


def scenario_of(prompt: str) -> str | None:
    """The simulator's scenario that a prompt's action belongs to, or None."""
    return next((name for name, one in SETTINGS.items() if re.search(one.words, prompt.lower())), None)


@dataclass(frozen=True)
class View:
    """What the checks see of a clip.

    Attributes:
        agent: The red thing's track.
        patient: The yellow thing's track.
        masks: Of each colour found, bool [T, H, W].
        rate_hz: Frames a second.
        prompt: What was asked for.
    """

    agent: Track
    patient: Track
    masks: dict[str, np.ndarray]
    rate_hz: float
    prompt: str

    @cached_property
    def setting(self) -> Setting | None:
        """What the prompt's action says; None for an action that the simulator does not have."""
        scenario = scenario_of(self.prompt)
        return SETTINGS[scenario] if scenario else None

    @cached_property
    def wide(self) -> set[str]:
        """Colours of what the agent rolls on or slides along."""
        return {one.color for one in wanted_objects(self.prompt) if one.noun in WIDE_NOUNS}

    @cached_property
    def obstacles(self) -> list[str]:
        """Colours that may stop the agent."""
        return [color for color in self.agent.colors if color not in self.wide]

    @cached_property
    def early(self) -> slice:
        """Frames before anything can have happened."""
        return slice(0, max(2, round(EARLY_S * self.rate_hz)))

    @cached_property
    def floor_y(self) -> float:
        """The lowest row of the resting patient."""
        return float(np.nanmedian(self.patient.box[self.early, 3])) if self.patient.seen[self.early].any() else np.nan

    def frames_in(self, seconds: float) -> int:
        """At least one."""
        return max(1, round(seconds * self.rate_hz))

    def both(self) -> list[Track]:
        return [track for track in (self.agent, self.patient) if track.seen.any()]


@dataclass(frozen=True)
class Finding:
    """Whether a law holds: True, False, or None where the clip does not let it be tested; and why it does not."""

    holds: bool | None
    reason: str = ""


HELD, UNTESTED = Finding(True), Finding(None)


def _broken(view: View, frame: int, what: str) -> Finding:
    return Finding(False, f"{what} at {frame / view.rate_hz:.2f} s")


# --- permanence and color: things neither come nor go, nor become others ---

JUMP_PX = 5.0  # real clips reach 3.8, at contacts between frames that are 0.15 s apart; a teleport has 7.3 at least
STRAY_PX, STRAY_S = 12.0, 0.15
GONE_S = 0.1
HIDDEN_FRACTION = 0.3
FADED_FRACTION = 0.35
HUE_DRIFT_DEG = 9.0
HUE_AREA_PX = 12.0


def permanence(view: View) -> Finding:
    """Things do not vanish, appear, jump or become two."""
    for track in view.both():
        seen = track.seen
        if not seen[view.early].any():
            first = int(np.flatnonzero(seen)[0])
            if not _came_from_somewhere(track, first):
                return _broken(view, first, f"the {track.color} thing appears")
            continue
        for frame in _losses(track):
            absent = int(np.argmax(np.append(seen[frame:], True)))
            if absent < view.frames_in(GONE_S) and frame + absent < len(seen):
                continue
            if not (_left(track, frame) or _hidden(view, track, frame) or _recolored(view, track, frame)):
                return _broken(view, frame, f"the {track.color} thing vanishes")
        for frame in (int(place) + 1 for place in np.flatnonzero(~seen[:-1] & seen[1:])):
            if seen[:frame].any() and not _came_from_somewhere(track, frame):
                before = int(np.flatnonzero(seen[:frame])[-1])
                if _apart(track, before, frame) > JUMP_PX * (frame - before):
                    return _broken(view, frame, f"the {track.color} thing appears elsewhere")
        far, frame = _largest_jump(track.center)
        if far > JUMP_PX:
            return _broken(view, frame, f"the {track.color} thing jumps by {far:.0f} pixels")
        doubled = track.stray >= STRAY_PX
        if doubled.sum() >= view.frames_in(STRAY_S):
            return _broken(view, int(np.argmax(doubled)), f"a second {track.color} thing appears")
    return HELD if view.both() else UNTESTED


def color(view: View) -> Finding:
    """Things keep their colour: none is replaced by one of another colour, none changes its hue."""
    tested = False
    for track in view.both():
        for frame in _losses(track):
            other = _recolored(view, track, frame)
            if other:
                return _broken(view, int(frame), f"the {track.color} thing turns {other}")
        large = (track.area >= HUE_AREA_PX) & np.isfinite(track.hue_deg)
        if large.sum() >= 2:
            tested = True
            drift = np.where(large, np.abs(track.hue_deg - np.median(track.hue_deg[large])), 0)
            if drift.max() > HUE_DRIFT_DEG:
                return _broken(view, int(drift.argmax()), f"the {track.color} thing's hue changes")
    return HELD if tested else UNTESTED


def _losses(track: Track) -> list[int]:
    """Frames in which a thing is no longer seen that was seen in the frame before."""
    return [int(frame) + 1 for frame in np.flatnonzero(track.seen[:-1] & ~track.seen[1:])]


def _apart(track: Track, one: int, other: int) -> float:
    return float(np.linalg.norm(track.center[one] - track.center[other]))


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


def _hidden(view: View, track: Track, frame: int) -> bool:
    """Whether something is now where the thing, last seen in the frame before, must be; or had all but covered it."""
    recent = track.area[max(0, frame - view.frames_in(0.3)) : frame].max()
    beside = track.gap_to([name for name in track.colors if name not in view.wide])[frame - 1] <= TOUCH_PX
    if track.area[frame - 1] < FADED_FRACTION * max(recent, HUE_AREA_PX) and beside:
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
TUMBLING = _StepLimits(0.21, 0.17, 0.17, 0.22)  # all others
COVERED = _StepLimits(0.30, 0.21, 0.27, 0.34)  # beside something else
COVERED_RING = _StepLimits(0.16, 0.09, 0.13, 0.14)  # of which only an end is ever covered
STEADY_NOUNS = ("ball", "ring")
SHAPE_WINDOW_S = 0.15
ROUND_RATIO, ROUND_FRAMES = 0.16, 3  # the logarithm of a ball's longer by its shorter axis


def shape(view: View) -> Finding:
    """Things keep their shape: no outline changes from one frame to the next, and a ball is round."""
    tested = False
    nouns = {one.color: one.noun for one in wanted_objects(view.prompt)}
    for track in view.both():
        is_agent = track is view.agent
        other = view.patient if is_agent else view.agent
        noun = nouns.get(track.color, "")
        whole = track.seen & (track.margin > 0)
        free = track.gap_to(view.obstacles if is_agent else track.colors) > TOUCH_PX
        # What falls or rolls to the camera is covered by the patient, and covers it, in ways that cannot be foreseen.
        fickle = view.setting is not None and (view.setting.flies or view.setting is SETTINGS["roll"])
        judged = whole & (free | (is_agent & ~((track.gap_to([other.color]) <= TOUCH_PX) & fickle)))
        size, along, across = (np.log(np.maximum(x, 0.1)) for x in (track.area, *track.spread.T))
        values = np.stack([size, along, across, along - across], axis=1)
        for frame, steps, is_free in _sudden_steps(values, judged, free, view.frames_in(SHAPE_WINDOW_S)):
            tested = True
            if noun == "ring":
                limits = STEADY if is_free else COVERED_RING
            else:
                limits = (STEADY if noun in STEADY_NOUNS else TUMBLING) if is_free else COVERED
            if limits.broken_by(steps):
                return _broken(view, frame, f"the {track.color} thing changes its shape")
        alone = np.flatnonzero(whole & free)
        if noun == "ball" and len(alone) >= ROUND_FRAMES:
            ratio = (along - across)[alone]
            windows = np.lib.stride_tricks.sliding_window_view(ratio, ROUND_FRAMES)
            steady = np.median(windows, axis=1)
            tested = True
            if steady.max() > ROUND_RATIO:
                return _broken(view, int(alone[steady.argmax()]), f"the {track.color} ball is not round")
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


# --- solidity: no passing through ---

MEETING_S = 0.35  # what covers the agent later than so long after they met may be where it went, not what it went into
EMERGING_S = 0.65  # what has gone through comes out so soon, and what went around later
JUST_BEFORE_S = 0.15


def solidity(view: View) -> Finding:
    """Agent and patient do not pass through each other: neither is inside the other."""
    agent, patient, setting = view.agent, view.patient, view.setting
    if setting is None or not (agent.seen[view.early].any() and patient.seen[view.early].any()):
        return UNTESTED
    gap = agent.gap_to([patient.color])
    touching = gap <= TOUCH_PX
    if not touching.any():
        return HELD
    first = int(np.argmax(touching))
    together = touching.copy()
    for frame in range(first + 1, len(gap)):  # what is not seen is where it was
        together[frame] |= not agent.seen[frame] and together[frame - 1]
    agent_area, patient_area = (_early_area(view, track) for track in (agent, patient))
    before = agent.area[max(0, first - view.frames_in(JUST_BEFORE_S)) : first]
    usual = float(np.median(before)) if len(before) and before.min() > 0 else agent_area
    meeting, emerging = (np.arange(len(gap)) < first + view.frames_in(span) + 1 for span in (MEETING_S, EMERGING_S))
    whole = ~agent.seen | (agent.margin > 0)
    patient_lost = patient_area - patient.area

    measures = [
        (_overlap(agent, patient), setting.overlap, setting.lasting_s, "are in one another"),
        (((agent_area - agent.area) + patient_lost) / agent_area, setting.covered, 0.1, "swallow one another"),
        (patient_lost / patient_area, setting.patient_covered, setting.lasting_s, "are in one another"),
        (np.where(meeting & whole, 1 - agent.area / usual, 0), setting.agent_covered, 0.1, "are in one another"),
        (np.where(emerging, agent.area / agent_area, 0), setting.nearer, 0.1, "pass through one another"),
    ]
    for values, limit, seconds, what in measures:
        beyond = together & (values > limit)
        if beyond.sum() >= view.frames_in(seconds):
            return _broken(view, int(np.argmax(beyond)), f"{agent.color} and {patient.color} {what}")
    return HELD


def _early_area(view: View, track: Track) -> float:
    area = track.area[view.early]
    return float(np.median(area[area > 0]))


def _overlap(one: Track, other: Track) -> np.ndarray:
    """[T] how much of the smaller thing's bounding box is inside the other's."""
    low, high = np.fmax(one.box[:, :2], other.box[:, :2]), np.fmin(one.box[:, 2:], other.box[:, 2:])
    sizes = [(track.box[:, 2:] - track.box[:, :2] + 1).prod(1) for track in (one, other)]
    inside = (high - low + 1).clip(0).prod(1) / np.fmin(*sizes)
    return np.where(one.seen & other.seen, np.nan_to_num(inside), 0.0)


# --- gravity ---

# In the simulator 9.81 m/s² are 75 to 103 pixels/s² in the picture, seen from 14 to 36 degrees above.
FALL_PX_S2 = (60.0, 125.0)
FLIGHT_ERROR_PX = 0.6
RISE_BLOCK_S, RISE_PX, RISE_GAIN_PX = 0.15, 0.3, 0.2
HANGS_PX = 6.0
REST_PX, REST_S = 0.3, 0.25
MOVED_PX_S = 2.5


def gravity(view: View) -> Finding:
    """What is thrown flies in a parabola, what falls comes down to something, nothing is lifted by nothing."""
    agent, setting = view.agent, view.setting
    if agent.seen.sum() < 4:
        return UNTESTED
    rising = _lifted(view, agent)
    if rising is not None:
        return _broken(view, rising, f"the {agent.color} thing is lifted by nothing")
    if setting is None:
        return UNTESTED
    if setting.flies and agent.seen[view.early].all():
        time = np.arange(view.early.stop) / view.rate_hz
        y = agent.center[view.early, 1]
        fit = np.polyfit(time, y, 2)
        error = np.abs(np.polyval(fit, time) - y).max()
        if not FALL_PX_S2[0] < 2 * fit[0] < FALL_PX_S2[1] or error > FLIGHT_ERROR_PX:
            return Finding(False, f"the {agent.color} thing does not fly in a parabola")
    if setting.lands:
        rest = _rest(view, agent)
        if rest is not None and rest.speed > MOVED_PX_S and np.isfinite(view.floor_y):
            held = agent.gap_to([view.patient.color])[rest.frame :].min() <= TOUCH_PX
            above = view.floor_y - agent.box[rest.frame, 3]
            if above > HANGS_PX and not held:
                return _broken(view, rest.frame, f"the {agent.color} thing stays in the air")
    return HELD


def _lifted(view: View, track: Track) -> int | None:
    """The frame from which a thing rises ever faster, as no bounce makes it."""
    block = view.frames_in(RISE_BLOCK_S)
    for frame in range(len(track.area) - 3 * block):
        rises = -np.diff(track.center[frame : frame + 3 * block + 1 : block, 1])
        if np.isfinite(rises).all() and rises[0] > RISE_PX and (np.diff(rises) > RISE_GAIN_PX).all():
            return frame
    return None


@dataclass(frozen=True)
class _Rest:
    """From which frame on a thing stays where it is to its end, and how fast it was just before, in pixels/s."""

    frame: int
    speed: float


def _rest(view: View, track: Track) -> _Rest | None:
    seen = track.seen
    last = int(np.flatnonzero(seen)[-1])
    end = np.median(track.center[max(0, last - 2) : last + 1], axis=0)
    frame = last
    while frame > 0 and seen[frame - 1] and np.linalg.norm(track.center[frame - 1] - end) < REST_PX:
        frame -= 1
    before = view.frames_in(0.2)
    if (last - frame) / view.rate_hz < REST_S or frame < before or not seen[frame - before]:
        return None
    speeds = [_apart(track, frame, frame - before) / before * view.rate_hz]
    if before == 1 and frame >= 2 and seen[frame - 2]:  # it may have stopped between two frames
        speeds.append(_apart(track, frame - 1, frame - 2) * view.rate_hz)
    return _Rest(frame, max(speeds))


# --- inertia: no change of motion without contact ---

STOP_PX_S = 3.0
STIR_PX, STIR_GAP_PX = 0.8, 4.0
GLIDE_ERROR_PX = 1.2


def inertia(view: View) -> Finding:
    """Nothing stops, swerves or sets off by itself."""
    agent, patient, setting = view.agent, view.patient, view.setting
    tested = False
    if setting is not None and not setting.lands and agent.seen.sum() >= 4:
        tested = True
        rest = _rest(view, agent)
        if rest is not None and rest.speed > STOP_PX_S:
            around = slice(max(0, rest.frame - 1), rest.frame + 2)
            if agent.gap_to(view.obstacles)[around].min() > TOUCH_PX and agent.margin[rest.frame] > 0:
                return _broken(view, rest.frame, f"the {agent.color} thing stops by itself")
        if setting.glides and agent.seen[view.early].all():
            time = np.arange(view.early.stop)
            error = max(
                float(np.abs(np.polyval(np.polyfit(time, x, 1), time) - x).max()) for x in agent.center[view.early].T
            )
            if error > GLIDE_ERROR_PX:
                return Finding(False, f"the {agent.color} thing does not go straight on")
    if patient.seen[view.early].sum() >= 2 and agent.seen.any():
        tested = True
        home = np.nanmedian(patient.center[view.early], axis=0)
        away = np.where(patient.seen, np.linalg.norm(patient.center - home, axis=1), 0)
        stirred = np.flatnonzero((away[:-1] > STIR_PX) & (away[1:] > STIR_PX))
        if len(stirred):
            frame = int(stirred[0])
            if patient.gap_to(patient.colors)[: frame + 1].min() > STIR_GAP_PX:
                return _broken(view, frame, f"the {patient.color} thing sets off by itself")
    return HELD if tested else UNTESTED


# --- energy ---

FASTER, FASTER_PX_S = 1.6, 4.0
HIGHER_PX = 2.5


def energy(view: View) -> Finding:
    """Nothing gets faster or higher by itself than it was."""
    agent, setting = view.agent, view.setting
    if setting is None or not agent.seen[view.early].all() or len(agent.area) < 6:
        return UNTESTED
    if setting.flies:
        # Whatever it bounces off, it comes no higher than it was thrown.
        apex = agent.center[: view.early.stop, 1].min()
        later = np.where(agent.seen, agent.center[:, 1], np.inf)
        if later.min() < apex - HIGHER_PX:
            return _broken(view, int(later.argmin()), f"the {agent.color} thing rises above its throw")
        return HELD
    if setting.glides:
        step = view.frames_in(0.2)
        whole = agent.seen & (agent.margin > 0) & (agent.gap_to(view.obstacles) > TOUCH_PX)
        pace = np.linalg.norm(agent.center[step:] - agent.center[:-step], axis=1) / step * view.rate_hz
        pace = np.where(whole[step:] & whole[:-step], pace, 0)
        early = pace[: max(1, view.early.stop - step)]
        if not early.any():
            return UNTESTED
        if pace.max() > FASTER * np.median(early[early > 0]) + FASTER_PX_S:
            return _broken(view, int(pace.argmax()), f"the {agent.color} thing gets faster by itself")
        return HELD
    return HELD if _lifted(view, agent) is None else Finding(False, f"the {agent.color} thing rises by itself")


CHECKS: dict[str, Callable[[View], Finding]] = {
    "permanence": permanence,
    "shape": shape,
    "color": color,
    "solidity": solidity,
    "gravity": gravity,
    "inertia": inertia,
    "energy": energy,
}


def check_all(view: View, laws: Sequence[str] = tuple(CHECKS)) -> dict[str, Finding]:
    """Every law's finding, in the order of `CHECKS`."""
    return {law: CHECKS[law](view) for law in laws}


# --- what happens, apart from any law ---

PUSHED_PX = 0.1
MOVES_PX = 2.0
CHANGED_LEVELS, CHANGED_PX = 30, 12.0


def hits(view: View) -> bool | None:
    """Whether agent and patient touch: they come together in the picture, and the patient stirs or they overlap.

    A thing that passes in front of the other, or behind it, comes as near; but then neither happens.

    Returns:
        None if one of the two is not there to begin with.
    """
    agent, patient = view.agent, view.patient
    if not (agent.seen[view.early].any() and patient.seen[view.early].any()):
        return None
    near = agent.gap_to([patient.color]) <= TOUCH_PX
    if not near.any():
        return False
    home = np.nanmedian(patient.center[view.early], axis=0)
    away = np.where(patient.seen, np.linalg.norm(patient.center - home, axis=1), 0)
    pressed = view.setting.pressed if view.setting else Setting.pressed
    return bool(away[int(np.argmax(near)) :].max() > PUSHED_PX or _overlap(agent, patient).max() > pressed)


def moves(view: View, frames: np.ndarray) -> bool:
    """Whether anything goes anywhere: the agent or the patient, or (of a row that topples) whatever is in the picture.

    Args:
        view: The clip.
        frames: uint8 [T, H, W, 3], the clip's pixels.
    """
    for track in view.both():
        path = track.center[track.seen]
        if np.linalg.norm(path - path[0], axis=1).max() >= MOVES_PX:
            return True
    if view.setting not in (None, SETTINGS["dominoes"]):
        return False
    soft = np.stack([cv2.GaussianBlur(frame, (3, 3), 0) for frame in frames]).astype(np.int16)
    changed = (np.abs(soft - soft[0]).max(axis=-1) > CHANGED_LEVELS).sum(axis=(1, 2))
    return bool(changed.max() >= CHANGED_PX * (min(frames.shape[1:3]) / REFERENCE_PIXELS) ** 2)


def heads(view: View) -> str | None:
    """Where the agent goes on the whole: "left", "right", or None for neither."""
    path = view.agent.center[view.agent.seen]
    if not len(path):
        return None
    way = float(path[-1, 0] - path[0, 0])
    return None if abs(way) < MOVES_PX else "right" if way > 0 else "left"
