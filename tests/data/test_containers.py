"""What containers say of their videos, and videos that are not whole: real files with right values, and relatives."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from made_videos import GOLDEN, encode, fields_of, moving_noise, patches, remux, stored

from physcli.data.container import even_frames, read_track
from physcli.data.video import count_frames, frame_rate, heeded, read_scaled, read_video, thinned_frames, video_info
from physcli.errors import DataError

# Before 17.1 PyAV writes no turning; that it reads one is tested on a real file.
turning = pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_matrix"), reason="needs PyAV 17.1")

# The six fields of a clip `patches-*`, two rows of three.
FIELDS = np.array([[(220, 30, 30), (30, 200, 40), (40, 60, 220)], [(230, 220, 40), (128, 128, 128), (245, 245, 245)]])


@pytest.mark.parametrize(
    ("name", "reach"),
    [("plain", 3), ("bt709", 3), ("pq", 15), ("hlg", 15)],
)
def test_colours_of_real_files(name, reach):
    path = GOLDEN / f"patches-{name}.mp4"
    for frames in (read_video(path), read_scaled(path, list(range(24)), 64, 96)):
        assert frames.shape == (24, 64, 96, 3)
        assert np.abs(fields_of(frames) - FIELDS).max() <= reach
    assert video_info(path).dynamic_range == {"pq": "PQ", "hlg": "HLG"}.get(name, "SDR")


def test_bright_lights_keep_their_hue(tmp_path):
    """A lamp of 1,000 cd/m² in PQ is cut off at white, and not turned yellow."""
    code = round(65535 * 0.7518)  # 1,000 cd/m², by ST 2084
    light = np.zeros((3, 64, 96), np.uint16)
    light[0], light[1] = code, round(65535 * 0.5081)  # half as bright as the red, 100 cd/m²
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx265", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p10le"
        stream.options = {"crf": "4", "x265-params": "log-level=none"}
        for part in (stream.codec_context,):
            part.colorspace, part.color_range, part.color_primaries, part.color_trc = 1, 1, 1, 16
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(light.transpose(1, 2, 0).copy(), format="rgb48le")
            container.mux(stream.encode(frame.reformat(format="yuv444p10le", dst_colorspace="itu709")))
        container.mux(stream.encode())
    red, green, blue = read_video(tmp_path / "a.mp4")[2, 30, 40].astype(int)
    assert red == 255
    assert green == pytest.approx(255 * 0.1 ** (1 / 2.4), abs=6)
    assert blue <= 6


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "red", "blue"), [(6, 0.299, 0.114), (1, 0.2126, 0.0722), (7, 0.212, 0.087), (9, 0.2627, 0.0593)]
)
def test_matrix_and_range_are_those_of_the_file(tmp_path, matrix, red, blue, full):
    stored(tmp_path / "a.mp4", patches(), red, blue, full=full, matrix=matrix)
    for frames in (read_video(tmp_path / "a.mp4"), read_scaled(tmp_path / "a.mp4", range(8), 64, 96)):
        assert np.abs(fields_of(frames) - FIELDS).max() <= 3


def test_untagged_is_bt601(tmp_path):
    stored(tmp_path / "a.mp4", patches(), 0.299, 0.114, full=False, matrix=None)
    assert np.abs(fields_of(read_video(tmp_path / "a.mp4")) - FIELDS).max() <= 3


def test_turned_file_is_the_upright_one():
    upright, turned = (GOLDEN / f"drop-{name}.mp4" for name in ("upright", "rotation-flag"))
    assert np.abs(read_video(turned).astype(int) - read_video(upright)).mean() < 0.5
    shown, decord = read_scaled(turned, [0, 9], 32, 32), read_scaled(turned, [0, 9], 32, 32, as_decord=True)
    assert np.abs(shown.astype(int) - read_scaled(upright, [0, 9], 32, 32)).mean() < 0.5
    assert np.abs(shown - np.rot90(decord, 1, (1, 2)).astype(int)).mean() < 0.5
    assert np.array_equal(read_video(turned, as_decord=True), np.rot90(read_video(turned), -1, (1, 2)))


@turning
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation(tmp_path, suffix, angle):
    held = np.ascontiguousarray(np.rot90(patches(), -angle // 90, (1, 2)))
    stored(tmp_path / f"a.{suffix}", held, 0.299, 0.114, rotation=angle)
    info = video_info(tmp_path / f"a.{suffix}")
    assert (info.rotation_deg, info.mirrored, info.height, info.width) == (angle, False, 64, 96)
    for frames in (read_video(info.path, [0, 5]), read_scaled(info.path, [0, 5], 64, 96)):
        assert np.abs(fields_of(frames) - FIELDS).max() <= 3


@turning
@pytest.mark.parametrize("flip", [1, 2])  # of the height, of the width
def test_mirrored(tmp_path, flip):
    matrix = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1 << 14]) * (1 << 16)
    matrix[{1: 4, 2: 0}[flip]] *= -1
    stored(tmp_path / "a.mp4", np.ascontiguousarray(np.flip(patches(), flip)), 0.299, 0.114, matrix_of_display=matrix)
    info = video_info(tmp_path / "a.mp4")
    assert info.mirrored
    assert np.abs(fields_of(read_video(info.path)) - FIELDS).max() <= 3


@turning
def test_an_odd_angle_is_refused(tmp_path):
    stored(tmp_path / "a.mp4", patches(), 0.299, 0.114, rotation=30)
    for read in (video_info, read_video):
        with pytest.raises(DataError, match="turned by 30 degrees"):
            read(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("aspect", "held"), [(Fraction(2), (slice(None), slice(None, None, 2))), (Fraction(1, 2), (slice(None, None, 2),))]
)
def test_pixels_are_made_square(tmp_path, aspect, held):
    frames = np.ascontiguousarray(patches()[(slice(None), *held)])
    stored(tmp_path / "a.mp4", frames, 0.299, 0.114, aspect=aspect)
    info = video_info(tmp_path / "a.mp4")
    assert (info.height, info.width, info.pixel_aspect) == (64, 96, float(aspect))
    assert np.abs(fields_of(read_video(info.path)) - FIELDS).max() <= 3
    assert read_video(info.path, as_decord=True).shape[1:3] == frames.shape[1:3]


def test_wide_pixels_of_a_real_file():
    wide, upright = (read_video(GOLDEN / f"drop-{name}.mp4").astype(int) for name in ("wide-pixels", "upright"))
    assert np.abs(wide - upright).mean() < 2


@pytest.mark.parametrize("name", ["cover-art-first", "two-streams-second-default"])
def test_the_stream_that_a_player_shows(name):
    path = GOLDEN / f"{name}.mp4"
    assert count_frames(path) == len(read_video(path)) == 24
    assert frame_rate(path) == 12
    assert np.abs(fields_of(read_video(path)) - FIELDS).max() <= 3


def test_a_cover_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as song:
        sound, cover = song.add_stream("aac", rate=16000, layout="mono"), song.add_stream("png")
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 32, 32, "rgb24", Disposition.attached_pic.value
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 16000
        packets = [*sound.encode(silence), *sound.encode()]
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        song.mux([*cover.encode(picture), *cover.encode(), *packets])
    with pytest.raises(DataError, match="no video stream but a picture"):
        video_info(tmp_path / "a.mp4")


def test_what_is_computed_of_a_file_is_known_by_what_it_says(tmp_path):
    said = {path.name: heeded(path) for path in sorted(GOLDEN.iterdir())}
    assert {name: words for name, words in said.items() if words} == {
        "cover-art-first.mp4": "stream",
        "drop-rotation-flag.mp4": "turned 90",
        "drop-variable-rate.mp4": "variable rate",
        "drop-wide-pixels.mp4": "pixel aspect",
        "patches-hlg.mp4": "HLG",
        "patches-pq.mp4": "PQ",
        "size-changes.mkv": "variable rate",
        "two-streams-second-default.mp4": "stream",
    }
    assert heeded(tmp_path / "a.mp4") == ""


def test_what_an_edit_list_shows():
    path = GOLDEN / "stream-copied-cut.mp4"
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 90
    assert count_frames(path) == video_info(path).num_frames == len(read_video(path)) == 50
    assert np.array_equal(read_video(path, [49]), read_video(path)[49:])
    with pytest.raises(DataError, match="has 50 frames, but frame 50"):
        read_video(path, [50])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("first", [12, 13, 17, 30])
def test_cut_without_encoding_anew(tmp_path, suffix, first):
    """Groups of pictures that are open: what comes before the first whole picture does not decode, and is no damage."""
    frames = moving_noise(60)
    encode(
        tmp_path / "a.mp4", frames, options={"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}
    )
    remux(tmp_path / "a.mp4", tmp_path / f"b.{suffix}", first)
    cut = read_video(tmp_path / f"b.{suffix}")
    assert len(cut) == count_frames(tmp_path / f"b.{suffix}") in (24, 36)
    assert np.abs(cut.astype(int) - frames[-len(cut) :]).mean() < 8


# --- variable frame rates ---


def test_uneven_times_of_a_real_file():
    path = GOLDEN / "drop-variable-rate.mp4"
    info = video_info(path)
    assert info.variable_rate
    assert (info.num_frames, info.num_stored, thinned_frames(path)) == (17, 33, (17, 33))
    assert info.frame_rate_hz == frame_rate(path) == pytest.approx(20 / 3)
    # The file holds frames 0 to 23 and then every third: every third of all is there.
    upright = read_video(GOLDEN / "drop-upright.mp4")[::3].astype(int)
    assert np.abs(read_video(path) - upright).mean() < 2
    assert np.array_equal(read_video(path, [16, 0]), read_video(path)[[16, 0]])
    assert len(read_video(path, as_decord=True)) == count_frames(path, as_decord=True) == 33


@pytest.mark.parametrize(
    ("ticks", "tick", "numbers", "rate"),
    [
        (range(10), 1 / 24, range(10), 24),
        # Rounded to milliseconds, as Matroska does it, and to hundredths, as GIF.
        ([round(n * 1000 / 24) for n in range(60)], 0.001, range(60), 24),
        ([round(n * 1000 / 240) for n in range(60)], 0.001, range(60), 240),
        ([round(n * 100 / 30) for n in range(60)], 0.01, range(60), 30),
        # A camera's jitter of a few percent is no variable rate.
        ([0, 1003, 1995, 3004, 3998, 5001], 1 / 30_000, range(6), 30),
        # One frame that was dropped, 12 and 24 Hz in turn, the first half at twice the rate.
        ([0, 100, 200, 400, 500, 600, 700, 800], 1 / 2400, [0, 2, 3, 5, 7], 12),
        ([0, 100, 300, 400, 600, 700, 900, 1000, 1200], 1 / 2400, [0, 2, 4, 6, 8], 8),
        ([0, 100, 200, 300, 400, 600, 800, 1000], 1 / 3000, [0, 2, 4, 5, 6, 7], 15),
        # A gap before the last frame: cut in the order of coding.
        ([0, 100, 200, 300, 400, 600], 1 / 2000, range(6), 20),
        # A pause, and times that repeat: there is no even selection.
        ([0, 100, 200, 300, 4000, 4100, 4200], 1 / 2400, None, 0),
        ([0, 100, 100, 200], 1 / 2400, None, 0),
        ([5], 1 / 24, range(1), 0),
    ],
)
def test_even_frames(ticks, tick, numbers, rate):
    found, hz = even_frames(np.array(list(ticks)) * tick, tick)
    assert (None if found is None else found.tolist()) == (None if numbers is None else list(numbers))
    assert hz == pytest.approx(rate, rel=2e-3)


def test_no_even_selection_is_left_out_by_name(tmp_path):
    stored(tmp_path / "a.mp4", patches(10), 0.299, 0.114, ticks=[0, 1, 2, 3, 4, 90, 91, 92, 93, 94])
    for read in (read_video, video_info, count_frames):
        with pytest.raises(DataError, match=r"a\.mp4 has a variable frame rate: no selection of its 10 frames"):
            read(tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4", as_decord=True)) == 10


# --- damage ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken-off-faststart.mp4", r"breaks off: 26,875 of 44,792 bytes, 24 of 48 frames"),
        ("bit-flip.mp4", r"is damaged: \d+ of 48 frames decode"),
        ("size-changes.mkv", r"changes its size from 96x64 to 64x96 \(width x height\) at frame 24"),
    ],
)
def test_damaged_real_files(name, message):
    for read in (video_info, read_video):
        with pytest.raises(DataError, match=message) as caught:
            read(GOLDEN / name)
        assert caught.value.expected


def test_a_header_that_promises_more(tmp_path):
    """Matroska that was written live says no length of its own, but a duration may be put in afterwards."""
    frames = moving_noise(48)
    encode(tmp_path / "a.mkv", frames)
    data = (tmp_path / "a.mkv").read_bytes()
    place = data.index(b"\x18\x53\x80\x67")
    size = 9 - data[place + 4].bit_length()
    unknown = data[: place + 4] + bytes([0x01] + [0xFF] * 7)[8 - size :] + data[place + 4 + size :]
    (tmp_path / "b.mkv").write_bytes(unknown)
    assert len(read_video(tmp_path / "b.mkv")) == 48
    (tmp_path / "b.mkv").write_bytes(unknown[: len(unknown) // 2])
    with pytest.raises(DataError, match=r"breaks off: [\d.]+ of 2\.00 s are there"):
        read_video(tmp_path / "b.mkv")


def test_frames_that_were_dropped_in_recording(tmp_path):
    """AVI keeps a place without data for them, and counts them."""
    encode(tmp_path / "a.avi", moving_noise(12), "mpeg4", options={"bf": "0"})
    data = bytearray((tmp_path / "a.avi").read_bytes())
    start, index = data.index(b"movi") + 4, data.index(b"idx1")
    for _ in range(11):
        start += 8 + (int.from_bytes(data[start + 4 : start + 8], "little") + 1) // 2 * 2
    size = index - start - 8
    data[index + 8 + 11 * 16 + 12 : index + 8 + 12 * 16] = bytes(4)
    data[start + 4 : start + 8] = bytes(4)
    del data[start + 8 : index]
    for place in (4, data.index(b"movi") - 4):
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "little") - size).to_bytes(4, "little")
    (tmp_path / "a.avi").write_bytes(data)
    with av.open(str(tmp_path / "a.avi")) as container:
        assert container.streams.video[0].frames == 12
    assert len(read_video(tmp_path / "a.avi")) == 11


def test_a_file_that_changes_is_read_anew(tmp_path):
    encode(tmp_path / "a.mp4", moving_noise(12))
    assert count_frames(tmp_path / "a.mp4") == 12
    encode(tmp_path / "a.mp4", moving_noise(24))
    assert count_frames(tmp_path / "a.mp4") == 24
    assert read_track(tmp_path / "a.mp4").num_decoded == 24
