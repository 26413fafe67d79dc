"""Reading and writing video: round trips, chosen frames, broken files, real names."""

from __future__ import annotations

import av
import numpy as np
import pytest

from physcli.data.video import read_scaled, read_video, resize, video_info, write_video
from physcli.errors import DataError


def moving_square(num_frames=12, size=64):
    frames = np.full((num_frames, size, size, 3), 90, np.uint8)
    for t in range(num_frames):
        frames[t, 20:36, 2 * t : 2 * t + 16] = (200, 20, 20)
        frames[t, 40:56, 30:46] = (220, 190, 20)
    return frames


def test_round_trip_keeps_colours(tmp_path):
    frames = moving_square()
    write_video(tmp_path / "a.mp4", frames, 20)
    again = read_video(tmp_path / "a.mp4")
    assert again.shape == frames.shape
    assert again.dtype == np.uint8
    assert np.abs(again.astype(int) - frames).mean() < 1.5
    info = video_info(tmp_path / "a.mp4")
    assert (info.num_frames, info.frame_rate_hz, info.height, info.width) == (12, 20, 64, 64)
    assert info.duration_s == pytest.approx(0.6)


@pytest.mark.parametrize("full_chroma", [True, False])
def test_written_videos_say_their_colours(tmp_path, full_chroma):
    write_video(tmp_path / "a.mp4", moving_square(), 20, full_chroma=full_chroma)
    with av.open(str(tmp_path / "a.mp4")) as container:
        said = container.streams.video[0].codec_context
        found = said.colorspace, said.color_range, said.color_primaries, said.color_trc
        planes = next(container.decode(video=0)).to_ndarray(format="yuv444p")
    assert found == (6, 1, 1, 13)  # SMPTE 170M, limited, BT.709, sRGB
    # And it is so: (90, 90, 90) is 16 + 219·90/255 in limited range.
    assert abs(int(planes[0, 0, 0]) - 93) <= 1


def test_the_same_frames_give_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    frames = moving_square(49)
    written = set()
    for number in range(30):
        clutter = [rng.integers(0, 255, rng.integers(1000, 400_000), dtype=np.uint8) for _ in range(5)]
        write_video(tmp_path / "a.mp4", frames, 20)
        written.add((tmp_path / "a.mp4").read_bytes())
        del clutter, number
    assert len(written) == 1


def test_the_future_never_shows_in_what_comes_before(simulated, tmp_path):
    """A context's pixels must not tell the outcome: with B-frames or lookahead bits are spent by what follows."""
    rng = np.random.default_rng(0)
    for path in sorted(simulated.glob("physion_mp4s/*/*.mp4"))[::10]:
        clip = read_video(path)
        write_video(tmp_path / "a.mp4", clip, 20)
        context = read_video(tmp_path / "a.mp4")[:17]
        still, noise, dark = clip.copy(), clip.copy(), clip.copy()
        still[17:] = clip[16]
        noise[17:] = rng.integers(0, 256, noise[17:].shape)
        dark[17:] = 255 - dark[17:]
        for other in (still, noise, dark, clip[:17], clip[:23], np.concatenate([clip, noise])):
            write_video(tmp_path / "b.mp4", other, 20)
            assert np.array_equal(read_video(tmp_path / "b.mp4")[:17], context)


def test_chosen_frames_in_any_order(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(), 20)
    whole = read_video(tmp_path / "a.mp4")
    assert np.array_equal(read_video(tmp_path / "a.mp4", [7, 0, 7]), whole[[7, 0, 7]])


def test_scaled_frames(tmp_path):
    frames = moving_square()
    write_video(tmp_path / "a.mp4", frames, 20)
    scaled = read_scaled(tmp_path / "a.mp4", [0, 3, 3, 11], 32, 48)
    assert (scaled.shape, scaled.dtype) == ((4, 32, 48, 3), np.uint8)
    assert np.array_equal(scaled[1], scaled[2])
    squashed = resize(frames[[0, 3, 3, 11]], 32, 48)
    assert np.abs(scaled.astype(int) - squashed).mean() < 4
    same = read_scaled(tmp_path / "a.mp4", [5], 64, 64)
    assert np.abs(same.astype(int) - read_video(tmp_path / "a.mp4", [5])).max() <= 2
    with pytest.raises(DataError, match=r"has 12 frames, but frame 12 \(counted from 0\)"):
        read_scaled(tmp_path / "a.mp4", [0, 12], 32, 32)
    with pytest.raises(DataError, match="No such video"):
        read_scaled(tmp_path / "b.mp4", [0], 32, 32)
    for wrong in ([], [-1]):
        with pytest.raises(ValueError, match="non-negative and not empty"):
            read_scaled(tmp_path / "a.mp4", wrong, 32, 32)


def test_too_short(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(5), 20)
    with pytest.raises(DataError, match=r"has 5 frames, but frame 8") as caught:
        read_video(tmp_path / "a.mp4", [0, 8])
    assert "at least 9" in caught.value.expected


def test_names_with_commas_quotes_and_unicode(tmp_path):
    path = tmp_path / 'A "red" ball\'s, fall; ünïcode_0.mp4'
    write_video(path, moving_square(3), 8)
    assert len(read_video(path)) == 3
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut"])
def test_broken_files(tmp_path, damage):
    path = tmp_path / "a.mp4"
    if damage != "missing":
        write_video(path, moving_square(), 20)
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"no video" * 50, "cut": whole[:300]}[damage])
    for read in (read_video, video_info):
        with pytest.raises(DataError, match=r"a\.mp4") as caught:
            read(path)
        assert caught.value.expected


def test_no_video_stream(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(DataError, match="no video stream"):
        read_video(tmp_path / "a.mp4")


def test_nothing_half_written(tmp_path):
    with pytest.raises(DataError, match="could not be written"):
        write_video(tmp_path / "no" / "a.mp4", moving_square(), 20)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", np.zeros((3, 8, 8, 3)), 20)
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "a.mp4", np.zeros((3, 9, 8, 3), np.uint8), 20, full_chroma=False)
    assert list(tmp_path.iterdir()) == []


def test_resize_keeps_the_whole_picture():
    frames = np.zeros((2, 48, 96, 3), np.uint8)
    frames[:, :4], frames[:, -4:] = 200, 100
    small = resize(frames, 24, 24)
    assert small.shape == (2, 24, 24, 3)
    assert (small[:, :2] == 200).all()
    assert (small[:, -2:] == 100).all()
    assert resize(frames, 48, 96) is frames
    assert resize(frames, 60, 200).shape == (2, 60, 200, 3)
