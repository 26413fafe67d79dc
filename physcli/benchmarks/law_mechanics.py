"""Laws of how things move: through nothing solid, down unless held, steadily unless touched, no faster than they were.

Lengths are pixels of a 64×64 picture, speeds pixels a second, so the limits hold for any size and rate. They are set on
clips of the fine-tuning stream, at 20 and at 6⅔ frames a second, and leave room beyond the most that real clips show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from physcli.benchmarks.law_view import HELD, TOUCH_PX, UNTESTED, Finding, View, broken
from physcli.benchmarks.tracks import Track, box_overlap

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
        (box_overlap(agent, patient), setting.overlap, setting.lasting_s, "are in one another"),
        (((agent_area - agent.area) + patient_lost) / agent_area, setting.covered, 0.1, "swallow one another"),
        (patient_lost / patient_area, setting.patient_covered, setting.lasting_s, "are in one another"),
        (np.where(meeting & whole, 1 - agent.area / usual, 0), setting.agent_covered, 0.1, "are in one another"),
        (np.where(emerging, agent.area / agent_area, 0), setting.nearer, 0.1, "pass through one another"),
    ]
    for values, limit, seconds, what in measures:
        beyond = together & (values > limit)
        if beyond.sum() >= view.frames_in(seconds):
            return broken(view, int(np.argmax(beyond)), f"{agent.color} and {patient.color} {what}")
    return HELD


def _early_area(view: View, track: Track) -> float:
    area = track.area[view.early]
    return float(np.median(area[area > 0]))


# --- gravity ---

# Real clips of drop and contain have 90 to 114 pixels/s², which is 9.81 m/s² as their cameras see it, and leave a
# parabola by 0.23 pixels at most.
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
        return broken(view, rising, f"the {agent.color} thing is lifted by nothing")
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
            # A stack goes on touching what has stopped in mid-air; all else that is touched may hold it.
            holding = view.obstacles if setting.flies else [view.patient.color]
            held = agent.gap_to(holding)[rest.frame :].min() <= TOUCH_PX
            above = view.floor_y - agent.box[rest.frame, 3]
            if above > HANGS_PX and not held:
                return broken(view, rest.frame, f"the {agent.color} thing stays in the air")
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
    speeds = [track.step(frame, frame - before) / before * view.rate_hz]
    if before == 1 and frame >= 2 and seen[frame - 2]:  # it may have stopped between two frames
        speeds.append(track.step(frame - 1, frame - 2) * view.rate_hz)
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
                return broken(view, rest.frame, f"the {agent.color} thing stops by itself")
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
                return broken(view, frame, f"the {patient.color} thing sets off by itself")
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
            return broken(view, int(later.argmin()), f"the {agent.color} thing rises above its throw")
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
            return broken(view, int(pace.argmax()), f"the {agent.color} thing gets faster by itself")
        return HELD
    return HELD if _lifted(view, agent) is None else Finding(False, f"the {agent.color} thing rises by itself")
