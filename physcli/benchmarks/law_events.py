"""What happens in a clip, apart from any law: does the agent hit the patient, where does it go, does anything move?"""

from __future__ import annotations

import cv2
import numpy as np

from physcli.benchmarks.law_view import SETTINGS, TOUCH_PX, Setting, View
from physcli.benchmarks.objects import REFERENCE_PIXELS
from physcli.benchmarks.tracks import box_overlap

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
    return bool(away[int(np.argmax(near)) :].max() > PUSHED_PX or box_overlap(agent, patient).max() > pressed)


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
