"""Does a video move? VBench's dynamic degree, and the guard against physics scores that are won by standing still.

The rule and its thresholds are VBench's (Huang et al. 2024, `dynamic_degree.py` at 45e79ec), for any optical flow.
Differs from the released code in the flow: physcli uses OpenCV's DIS where VBench uses RAFT with its picture padded to
multiples of 8, and DIS needs no padding. On the simulator's 64×64 pixels the rule is harsh: it looks at the 5 % of
pixels with the largest flow, and one ball is 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from physcli.stats import Difference, paired_difference

SAMPLED_HZ = 8
TOP_FRACTION = 0.05
THRESHOLD_PX, THRESHOLD_SIDE_PX = 6.0, 256
PAIRS_NEEDED, NEEDED_OF_FRAMES = 4, 16


@dataclass(frozen=True)
class Rule:
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


def rule_for(num_frames: int, height: int, width: int, frame_rate_hz: float) -> Rule:
    """VBench's thresholds for a video of this size and rate.

    `round` rounds halves to even, as in VBench: 20 frames a second are looked at by every second frame, and of 10 such
    frames 2 pairs are needed, not 3.
    """
    interval = max(1, round(frame_rate_hz / SAMPLED_HZ))
    kept = len(range(0, num_frames, interval))
    return Rule(
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


def is_dynamic(motion_px: Sequence[float] | np.ndarray, rule: Rule) -> bool:
    """Whether enough pairs move; a video of one frame has no pair, and does not.

    With 2 frames the rule needs 0 pairs, and any such video is dynamic. That is VBench's.
    """
    scores = np.asarray(motion_px, np.float64)
    return bool(len(scores) and (scores > rule.threshold_px).sum() >= rule.pairs_needed)


@dataclass(frozen=True)
class MotionGuard:
    """What became of physics and motion from one set of videos to another.

    Attributes:
        pc: Difference of the share that obeys physics.
        motion: Difference of motion.
        flagged: PC rose and motion fell, both by more than chance explains (95 % intervals without zero).
        hinted: Both moved that way, but chance could explain it.
    """

    pc: Difference
    motion: Difference
    flagged: bool
    hinted: bool


def motion_guard(
    pc: np.ndarray, motion: np.ndarray, base_pc: np.ndarray, base_motion: np.ndarray, *, seed: int = 0
) -> MotionGuard:
    """Flag a set of videos whose physics got better while its motion got less: a still video breaks no law.

    Args:
        pc: [N] physical commonsense of the set, 0/1 or graded.
        motion: [N] its motion: dynamic 0/1, or pixels.
        base_pc: [N] of the set it is compared with; the same prompts and seeds in the same order.
        base_motion: [N].
        seed: Of the bootstrap.

    Raises:
        ValueError: sets of different sizes, or of fewer than two videos.
    """
    sizes = {len(array) for array in (pc, motion, base_pc, base_motion)}
    if len(sizes) != 1 or sizes.pop() < 2:
        raise ValueError(
            f"sets of {len(pc)}, {len(motion)}, {len(base_pc)} and {len(base_motion)} videos; expected the same number "
            "of all, at least 2"
        )
    clusters = range(len(pc))
    physics = paired_difference(pc, base_pc, clusters=clusters, seed=seed)
    moved = paired_difference(motion, base_motion, clusters=clusters, seed=seed)
    hinted = physics.value > 0 > moved.value
    return MotionGuard(physics, moved, flagged=hinted and physics.low > 0 > moved.high, hinted=hinted)
