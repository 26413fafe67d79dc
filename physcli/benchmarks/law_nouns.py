"""What a thing's outline says of the noun it was asked for: a ball is round, nothing else is.

Not judged is a box, block, cylinder or ring under another of these names. At 64×64 a thing is 5 to 12 pixels across,
and what tells them apart – corners, shading, the gaps between a ring's bars – does not survive the blur of a small
generator. Nor is judged what is seen whole and free of other things in fewer than three frames.

Limits are set on clips of the fine-tuning stream, as they are and through the VAE of `cogvideox-tiny`, which smears
what moves into something long, but hardly in its first frame.
"""

from __future__ import annotations

import numpy as np

from physcli.benchmarks.law_view import TOUCH_PX, View
from physcli.benchmarks.objects import wanted_objects
from physcli.benchmarks.tracks import Track

OTHER_NOUNS = ("block", "box", "cylinder", "ring")
LEAST_FRAMES = 3
# One unit each of what a disc has none of: the logarithm of the longer by the shorter axis, and the two moments of
# `Track.corners`. The clip's angularity is the least of its first frame's and its median's: of balls up to 1.4, through
# the VAE 2.25; of all else from 1.85, through the VAE 1.6.
ANGULAR_UNITS = (0.10, 0.70, 2.50)
SURELY_ROUND, SURELY_ANGULAR = 1.55, 2.3


def angularity(track: Track) -> np.ndarray:
    """[T] how far the outline is from a disc's; NaN where nothing is seen."""
    longer = np.log(np.maximum(track.spread, 0.1)) @ [1.0, -1.0]
    return np.linalg.norm(np.column_stack([longer, track.corners]) / ANGULAR_UNITS, axis=1)


def filling(track: Track) -> np.ndarray:
    """[T] the area by that of the ellipse with the same second moments; NaN where nothing is seen.

    At most 1. Of balls and boxes 0.86 and more at 64×64; less of a ring with its gaps, and of what is smeared.
    """
    return track.area / (4 * np.pi * np.maximum(track.spread, 0.1).prod(axis=1))


def outlined(view: View, track: Track) -> np.ndarray:
    """bool [T]: the thing is seen whole, and nothing touches it but what it rolls on or slides along."""
    others = [color for color in track.colors if color not in view.wide]
    return track.seen & (track.margin > 0) & (track.gap_to(others) > TOUCH_PX)


def other_nouns(view: View) -> list[str]:
    """Which of agent and patient are not what the prompt asks for, as in "the red thing is no ball"."""
    asked = {one.color: one.noun for one in wanted_objects(view.prompt)}
    return [
        f"the {track.color} thing is no {asked[track.color]}"
        for track in view.both()
        if track.color in asked and not may_be(view, track, asked[track.color])
    ]


def may_be(view: View, track: Track, noun: str) -> bool:
    """Whether a thing may be what a noun says; True where that cannot be told."""
    values = angularity(track)[outlined(view, track)]
    if len(values) < LEAST_FRAMES:
        return True
    least = min(float(values[0]), float(np.median(values)))
    if noun == "ball":
        return least < SURELY_ANGULAR * view.slack
    return noun not in OTHER_NOUNS or least > SURELY_ROUND / view.slack
