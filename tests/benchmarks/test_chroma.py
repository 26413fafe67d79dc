"""Colours that several pixels share, put back where they belong."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import pytest

from physcli.benchmarks.chroma import LUMA, restore_chroma
from physcli.benchmarks.laws import check_laws
from physcli.data.clips import read_dataset
from physcli.data.video import chroma_step, pixel_format, read_video, write_video
from physcli.simulation.prompts import with_rate


def scene(height=32, width=48, num_frames=3):
    """A red disc on a grey floor of two shades."""
    frames = np.full((num_frames, height, width, 3), 165, np.uint8)
    frames[:, :, width // 2 :] = 150
    for number, frame in enumerate(frames):
        large = frame.repeat(8, 0).repeat(8, 1)
        cv2.circle(large, (8 * (15 + number), 8 * 16 + 4), 37, (215, 40, 35), -1)
        frame[:] = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    return frames


def shared(frames, step):
    """As video of so many pixels a colour sample shows them: their own brightness, the mean of the colours."""
    luma = frames @ np.array(LUMA)
    difference = frames - luma[..., None]
    for axis, size in ((1, step[0]), (2, step[1])):
        whole = np.add.reduceat(difference, np.arange(0, difference.shape[axis], size), axis=axis)
        counts = np.add.reduceat(np.ones(difference.shape[axis]), np.arange(0, difference.shape[axis], size))
        whole /= counts.reshape([-1 if one == axis else 1 for one in range(4)])
        difference = whole.repeat(size, axis).take(range(difference.shape[axis]), axis)
    return (luma[..., None] + difference).round().clip(0, 255).astype(np.uint8)


def error(frames, truth):
    return np.sqrt(np.mean((frames.astype(float) - truth) ** 2))


@pytest.mark.parametrize("step", [(2, 2), (1, 2), (1, 4)])
@pytest.mark.parametrize("size", [(32, 48), (31, 45)])
def test_colors_go_back_where_the_brightness_ends(step, size):
    truth = scene(*size)
    given = shared(truth, step)
    restored = restore_chroma(given, step)
    assert (restored.shape, restored.dtype) == (truth.shape, truth.dtype)
    assert error(restored, truth) < 0.5 * error(given, truth)
    assert np.abs(restored @ np.array(LUMA) - given @ np.array(LUMA)).max() < 2


def test_a_colour_for_each_pixel_is_left_as_it_is():
    frames = scene()
    assert restore_chroma(frames, (1, 1)) is frames


def test_every_frame_is_restored_by_itself():
    frames = shared(scene(128, 128, 7), (2, 2))  # more than are filtered at once
    alone = np.concatenate([restore_chroma(frame[None], (2, 2)) for frame in frames])
    assert np.array_equal(restore_chroma(frames, (2, 2)), alone)


@pytest.mark.parametrize(
    ("name", "step"),
    [("yuv420p", (2, 2)), ("nv12", (2, 2)), ("yuv422p", (1, 2)), ("yuv444p", (1, 1)), ("gray", (1, 1)), ("", (1, 1))],
)
def test_steps_of_pixel_formats(name, step):
    assert chroma_step(name) == step


@pytest.mark.parametrize("crf", [10, 23])
def test_laws_of_4_2_0_video_are_those_of_4_4_4(simulated, tmp_path, crf):
    """Plain diffusers writes 4:2:0. Without restoring, something is wrong with each of these real clips at one rate."""
    names = ("roll_probe-train_3_000001_a", "roll_probe-train_3_000003_a")
    file = tmp_path / "half.mp4"
    for clip in (clip for clip in read_dataset(simulated).clips if clip.name in names):
        write_video(file, clip.read(range(49)), 20, crf=crf, full_chroma=False)
        step, frames = chroma_step(pixel_format(file)), read_video(file)
        assert step == (2, 2)
        judged = partial(check_laws, frames, 20, with_rate(clip.prompt, 1), flow=still)
        found = judged(chroma_step=step)
        assert (found.pc, found.sa) == (True, 5), (clip.name, found.reasons)
        taken_as_it_is = judged()
        assert (taken_as_it_is.pc, taken_as_it_is.sa) != (True, 5)


def still(frames):
    return np.zeros((len(frames) - 1, *frames.shape[1:3], 2), np.float32)
