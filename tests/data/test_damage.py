"""Videos that are cut short or altered at random places: nothing that a decoder can detect goes by in silence."""

from __future__ import annotations

from collections import Counter

import av
import numpy as np
import pytest
from made_videos import encode, moving_noise

from physcli.data.video import read_video, thinned_frames
from physcli.errors import DataError

KINDS = {
    "index-first.mp4": {"movflags": "faststart"},
    "index-last.mp4": {},
    "h264.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"crf": "30", "b": "0"}},
}
MORE_KINDS = {
    "hevc.mp4": {"codec": "libx265", "options": {"crf": "28", "x265-params": "log-level=none"}},
    "h264.mov": {},
    "vp8.webm": {"codec": "libvpx", "options": {"b": "300k"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "picture.gif": {"codec": "gif", "pixels": "rgb8"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Name → the bytes and the frames of a video that is not damaged."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def get(name):
        if name not in made:
            encode(folder / name, moving_noise(36), **(KINDS | MORE_KINDS)[name])
            made[name] = (folder / name).read_bytes(), read_video(folder / name)
        return made[name]

    return get


def _strict(path):
    """How many frames FFmpeg decodes when it is told to stop at the first error; None where it does."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}
            frames, packets = [], 0
            for packet in container.demux(stream):
                packets += packet.size > 0
                frames += packet.decode()
            broken = packets < stream.frames or any(frame.is_corrupt for frame in frames)
    except (av.FFmpegError, IndexError, ValueError):
        return None
    return None if broken else len(frames)


def _outcomes(path, frames, variants):
    """Counts of what becomes of damaged variants of a file."""
    counts = Counter()
    for data in variants:
        path.write_bytes(data)
        refused = ""
        try:
            read = read_video(path)
        except DataError as error:
            refused = error.received
        if refused:
            assert path.name in refused
            assert len(refused) < 400
            counts["named"] += 1
            continue
        found = _strict(path)
        assert found is not None, "a decoder that is told to be strict refuses it"
        if len(read) == len(frames) and np.array_equal(read, frames):
            counts["unharmed"] += 1
        else:
            # Its own index now says fewer frames, or other times: a file that was made so would be no different.
            thinned = thinned_frames(path)
            assert len(read) == found or (thinned is not None and thinned[0] == len(read))
            counts["silent"] += 1
    return counts


def _cuts(data, count):
    rng = np.random.default_rng(1)
    return [data[: int(rng.integers(1, len(data)))] for _ in range(count)] + [data[:-1]]


def _altered(data, count):
    rng = np.random.default_rng(2)
    for _ in range(count):
        changed = bytearray(data)
        first = int(rng.integers(0, len(data)))
        for place in range(first, min(first + int(rng.integers(1, 4)), len(data))):
            changed[place] ^= int(rng.integers(1, 256))
        yield bytes(changed)


@pytest.mark.parametrize("name", KINDS)
def test_broken_off(whole, tmp_path, name):
    data, frames = whole(name)
    assert _outcomes(tmp_path / name, frames, _cuts(data, 40)) == {"named": 41}


@pytest.mark.parametrize("name", KINDS)
def test_altered_bytes(whole, tmp_path, name):
    data, frames = whole(name)
    counts = _outcomes(tmp_path / name, frames, _altered(data, 40))
    assert counts.total() == 40
    if "h264" in name or name.endswith("mp4"):  # VP9 has hardly anything to check a picture by
        assert counts["named"] > 15


@pytest.mark.long
@pytest.mark.parametrize("name", [*KINDS, *MORE_KINDS])
def test_many_places(whole, tmp_path, name, record_property):
    """The shares that README has are of this test."""
    data, frames = whole(name)
    cut = _outcomes(tmp_path / name, frames, _cuts(data, 200))
    assert cut["silent"] <= 1  # a GIF cut at a byte that looks like its last
    altered = _outcomes(tmp_path / name, frames, _altered(data, 200))
    for what, counts in (("cut", cut), ("altered", altered)):
        print(f"{name}, {what}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
        record_property(what, dict(counts))
