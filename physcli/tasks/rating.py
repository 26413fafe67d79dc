"""Joining a rater with video files."""

from __future__ import annotations

import os

from torch import Tensor

from physcli.data.video import read_scaled, video_info
from physcli.models.raters.mplug_owl_video import MplugOwlVideo


def read_frames(path: str | os.PathLike[str], rater: MplugOwlVideo) -> Tensor:
    """What a rater sees of a video file: its frames, scaled and normalised.

    The file is decoded twice: which frames are shown hangs on how many there are, and containers misreport that.

    Returns:
        float32 [3, T, H, W], on the CPU.

    Raises:
        DataError: the file cannot be decoded.
    """
    indices = rater.frame_indices(video_info(path).num_frames)
    size = rater.config.vision.image_size
    return rater.prepare(read_scaled(path, indices, size, size))
