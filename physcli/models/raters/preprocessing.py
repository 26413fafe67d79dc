"""Which frames a rater sees, and as what numbers.

Frames are squashed to the model's square whatever their shape, in 8 bits, by the decoder
(`physcli.data.video.read_scaled` is bit-exact with the official one); then x/255, minus mean, over standard deviation.
The resize and crop in the checkpoints' processor files change nothing after that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from physcli.errors import ModelError
from physcli.models.encoders.checkpoint import read_json
from physcli.models.encoders.preprocessing import Preprocessing, read_preprocessing

PROCESSOR_FILE = "preprocessor_config.json"
NUM_FRAMES = 32  # of the official scorers; no official file says so
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def frame_indices(num_video_frames: int, num_frames: int = NUM_FRAMES) -> list[int]:
    """Which frames of a video are shown: int(s/2) + round(s·i) for i = 0 … num_frames − 1, s = (N − 1)/num_frames.

    Rounding is half to even, as numpy's. The first frames are never left out, the last often is, and a short video's
    frames are shown several times.

    Raises:
        ValueError: no frame.
    """
    if num_video_frames < 1 or num_frames < 1:
        raise ValueError(f"expected at least one frame, got {num_video_frames} in the video and {num_frames} to show")
    step = (num_video_frames - 1) / num_frames
    return (int(step / 2) + np.round(step * np.arange(num_frames)).astype(int)).tolist()


def read_rater_preprocessing(folder: Path, image_size: int) -> Preprocessing:
    """Mean and standard deviation of the checkpoint's processor file (CLIP's where it names none), the model's size,
    and `num_frames` where the file says it: physcli's own do, the released ones do not.

    Raises:
        ModelError: a processor file of another size than the model's.
    """
    default = Preprocessing(CLIP_MEAN, CLIP_STD, image_size, image_size, NUM_FRAMES, "bilinear", antialias=False)
    found = read_preprocessing(folder, default)
    if (found.height, found.width) != (image_size, image_size):
        raise ModelError(
            f"{folder / PROCESSOR_FILE} is for frames of {found.height}x{found.width}.",
            expected=f"{image_size}x{image_size}, as vision_config.image_size",
            fix="check that config.json and the processor file are of one checkpoint",
        )
    num_frames = read_json(folder / PROCESSOR_FILE).get("num_frames", NUM_FRAMES)
    if not isinstance(num_frames, int) or num_frames < 2:
        raise ModelError(f"{folder / PROCESSOR_FILE}: num_frames is {num_frames!r}.", expected="a number of at least 2")
    return Preprocessing(found.mean, found.std, image_size, image_size, num_frames, "bilinear", antialias=False)


def normalise(frames: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """uint8 [T, H, W, 3] of the model's size → float32 [3, T, H, W].

    Raises:
        ValueError: frames of another dtype or size.
    """
    wanted = (preprocessing.height, preprocessing.width, 3)
    if frames.dtype != np.uint8 or frames.shape[1:] != wanted:
        raise ValueError(f"expected uint8 frames [T, {wanted[0]}, {wanted[1]}, 3], got {frames.dtype} {frames.shape}")
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 255 - mean) / std
