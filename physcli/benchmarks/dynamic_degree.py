"""Does a video move? VBench's dynamic degree: read physics scores beside it, for a still video breaks no law.

The rule and its thresholds are VBench's (Huang et al. 2024, `dynamic_degree.py` at 45e79ec), for any optical flow.
Differs from the released code in the flow: physcli uses OpenCV's DIS where VBench uses RAFT with its picture padded to
multiples of 8, and DIS needs no padding. On the simulator's 64×64 pixels the rule is harsh: it looks at the 5 % of
pixels with the largest flow, and one ball is 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from physcli.rows import Metric

DYNAMIC_DEGREE = Metric("dynamic_degree", "rate", None, role="motion", interval="wilson")
# The mean over pairs of frames of `largest_motion`. Not `mean_flow_px` of `physcli sample`, which is of all pixels.
LARGEST_MOTION = Metric("motion_px", "px", None, role="motion")
SAMPLED_HZ = 8
TOP_FRACTION = 0.05
THRESHOLD_PX, THRESHOLD_SIDE_PX = 6.0, 256
PAIRS_NEEDED, NEEDED_OF_FRAMES = 4, 16


@dataclass(frozen=True)
class MotionRule:
    """What the rule asks of one video.

    Attributes:
        interval: Every so many frames are looked at.
        num_frames: How many that leaves.
        threshold_px: A pair of neighbouring frames counts if its largest motion exceeds this.
        pairs_needed: So many pairs must count.
    """

    interval: int
    num_frames: int
    threshold_px: float
    pairs_needed: int


def rule_for(num_frames: int, height: int, width: int, frame_rate_hz: float) -> MotionRule:
    """VBench's thresholds for a video of this size and rate.

    `round` rounds halves to even, as in VBench: 20 frames a second are looked at by every second frame, and of 10 such
    frames 2 pairs are needed, not 3.
    """
    interval = max(1, round(frame_rate_hz / SAMPLED_HZ))
    kept = len(range(0, num_frames, interval))
    return MotionRule(
        interval=interval,
        num_frames=kept,
        threshold_px=THRESHOLD_PX * min(height, width) / THRESHOLD_SIDE_PX,
        pairs_needed=round(PAIRS_NEEDED * kept / NEEDED_OF_FRAMES),
    )


def largest_motion(flows: np.ndarray) -> np.ndarray:
    """Mean length of the longest 5 % of the flow vectors of each pair of frames.

    Args:
        flows: [P, H, W, 2] in pixels, from each frame that is looked at to the next.

    Returns:
        float64 [P], pixels.

    Raises:
        ValueError: flows of another shape, or of fewer than 20 pixels.
    """
    if flows.ndim != 4 or flows.shape[-1] != 2:
        raise ValueError(f"flows are {list(flows.shape)}; expected [pairs, H, W, 2]")
    lengths = np.sort(np.linalg.norm(flows.astype(np.float64), axis=-1).reshape(len(flows), -1), axis=1)
    count = int(lengths.shape[1] * TOP_FRACTION)
    if not count:
        raise ValueError(f"flows of {list(flows.shape[1:3])} pixels; 5 % of them must be at least one")
    return lengths[:, -count:].mean(axis=1)


def is_dynamic(motion_px: Sequence[float] | np.ndarray, rule: MotionRule) -> bool:
    """Whether enough pairs move; a video of one frame has no pair, and does not.

    With 2 frames the rule needs 0 pairs, and any such video is dynamic. That is VBench's.
    """
    scores = np.asarray(motion_px, np.float64)
    return bool(len(scores) and (scores > rule.threshold_px).sum() >= rule.pairs_needed)
