"""VBench's temporal flickering (Huang et al. 2024, arXiv 2311.17982): how little neighbouring frames differ.

(255 − m) / 255, where m is the mean over pairs of neighbouring frames of the mean absolute difference of their pixels.
A still video has 1.000, the best there is, and all that moves lowers it: read it beside dynamic degree and motion.

Differs from the released code in: there a video of one frame has no number, which the mean over videos then lacks as
well; here such a video cannot be scored, and is counted as missing. The official protocol drops moving videos by RAFT
before it scores; here the videos that are given are scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from physcli.benchmarks.base import Benchmark, Context, Video
from physcli.benchmarks.vbench import TEMPORAL_FLICKERING


def temporal_flickering(frames: np.ndarray | Sequence[np.ndarray]) -> float:
    """The score of one video, 0 to 1.

    Args:
        frames: uint8 [T, H, W, 3], of T at least 2 frames.

    Raises:
        ValueError: fewer than 2 frames, or of another type.
    """
    if len(frames) < 2 or np.asarray(frames[0]).dtype != np.uint8:
        raise ValueError(f"{len(frames)} frames of {np.asarray(frames[:1]).dtype}; expected at least 2, of uint8")
    # By pairs: a whole video of differences would take more room than the video.
    pairs = itertools.pairwise(frames)
    differences = [np.abs(one.astype(np.int16) - following).mean(dtype=np.float64) for one, following in pairs]
    return float((255.0 - np.mean(differences)) / 255.0)


class TemporalFlickering(Benchmark):
    """Of VBench's sixteen dimensions the one that needs no weights, with dynamic degree beside it."""

    name = "flickering"
    metrics = (TEMPORAL_FLICKERING,)

    def score(self, video: Video, context: Context) -> dict[str, Any]:
        return {TEMPORAL_FLICKERING.name: temporal_flickering(context.frames)}
