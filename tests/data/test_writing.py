"""Written videos have the frames they were given: PyAV resizes to a stream that has no size of its own, or another."""

from __future__ import annotations

import av
import numpy as np
import pytest

from physcli.data.video import read_video, write_video


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (16, 50), (34, 18)])
@pytest.mark.parametrize("full_chroma", [True, False])
def test_frames_keep_their_size_and_place(tmp_path, height, width, full_chroma):
    frames = np.full((5, height, width, 3), 60, np.uint8)
    frames[:, : height // 2, : width // 2] = 200  # a corner, which no squashing leaves where it is
    write_video(tmp_path / "a.mp4", frames, 8, full_chroma=full_chroma)
    again = read_video(tmp_path / "a.mp4")
    assert again.shape == frames.shape
    assert np.abs(again.astype(int) - frames).mean() < 2


@pytest.mark.parametrize("rate", [8, 20, 30000 / 1001])
def test_frames_stand_at_their_times(tmp_path, rate):
    """Frames that were decoded carry times of their own, which an encoder would go by."""
    write_video(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8), 30)
    write_video(tmp_path / "b.mp4", read_video(tmp_path / "a.mp4"), rate)
    with av.open(str(tmp_path / "b.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(12) / rate, atol=1e-3)
