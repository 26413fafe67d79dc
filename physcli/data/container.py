"""What a video file says without decoding: which stream is its video, when its frames are shown, whether it is whole.

Reading packets costs little beside decoding them, and finds what a header does not tell: clips that were cut without
encoding them anew hold frames that are not to be shown, downloads break off, and frame rates vary.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.stream import Disposition

from physcli.errors import DataError

COPY_AGAIN = "copy or encode the file again, or remove it"

# How far a frame may be from its even time, in steps: physics is read from the differences between frames.
TIME_TOLERANCE = 0.1
# A variable rate is thinned to even times as long as no fewer than one in so many of its usual steps is left.
COARSEST_STEPS = 4
# Where a file promises a duration alone, what may lack of it.
DURATION_TOLERANCE = 0.05
DURATION_TOLERANCE_S = 0.25

_NOT_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp", b"sidx", b"uuid"})
_MP4_DATA = frozenset({b"moov", b"mdat", b"moof"})


@dataclass(frozen=True)
class Track:
    """A file's video stream.

    Attributes:
        stream: Its index in the file.
        skipped: So many packets come before the first from which decoding can begin.
        times: When each frame is shown, ascending, in units of the stream's time base; None where the file says not.
        num_decoded: How many frames decoding gives; None where only decoding tells.
        numbers: Which of those are the clip's frames, at even times; None where there are no even times.
        frame_rate_hz: Of the frames `numbers`; 0 where the file says nothing.
        average_rate_hz: Of all frames.
        damaged: So many packets the container itself knows to be incomplete.
    """

    stream: int
    skipped: int
    times: tuple[int, ...] | None
    num_decoded: int | None
    numbers: tuple[int, ...] | None
    frame_rate_hz: float
    average_rate_hz: float
    damaged: int

    @property
    def variable(self) -> bool:
        """The frames are shown at uneven times; `numbers` are not all of them."""
        return self.times is not None and (self.numbers is None or len(self.numbers) < len(self.times))


def open_video(path: Path) -> av.container.InputContainer:
    """Open a file that has at least one video stream.

    Raises:
        DataError: it has none, or is missing, empty or cut short.
    """
    _refuse_missing(path)
    try:
        container = av.open(str(path))
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DataError(
            f"{path} cannot be opened as a video: {error}.",
            expected="a whole video file (a cut-short MP4 has no index)",
            fix=COPY_AGAIN,
        ) from error
    if not _candidates(container):
        some = bool(container.streams.video)
        container.close()
        raise DataError(
            f"{path} has no video stream" + (" but a picture, or one of an unknown codec." if some else "."),
            expected="a file with a video stream that FFmpeg decodes",
        )
    return container


def _refuse_missing(path: Path) -> None:
    if not path.exists():
        raise DataError(f"No such video: {path}", expected="an existing file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", expected="a video file", fix="write or copy it again")


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that a player shows: never a cover picture, the default one before others."""
    candidates = _candidates(container)
    best = container.streams.best("video")
    return best if best in candidates else candidates[0]  # type: ignore[return-value]


def _candidates(container: av.container.InputContainer) -> list[av.VideoStream]:
    """Those that hold video and not a picture, and of them the default ones, if any."""
    videos = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & _NOT_VIDEO
    ]
    return [stream for stream in videos if stream.disposition & Disposition.default] or videos


def read_track(path: Path) -> Track:
    """Read a file's packets.

    Raises:
        DataError: there is no video, or less of it than the file promises.
    """
    _refuse_missing(path)
    stat = path.stat()
    return _read_track(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _read_track(path: Path, size: int, _changed: int) -> Track:
    with open_video(path) as container:
        promised = _promised_bytes(path, size)
        if promised is not None and promised > size:
            raise DataError(
                f"{path} breaks off: {size:,} of {promised:,} bytes{_of_frames(path)}.",
                expected="a whole video file",
                fix=COPY_AGAIN,
            )
        stream = video_stream(container)
        count, skipped, end_s, damaged, cut = 0, None, 0.0, 0, False
        times: list[int | None] = []
        first_time = None
        try:
            for packet in container.demux():
                if packet.size == 0:
                    continue
                if packet.pts is not None and packet.time_base is not None:
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != stream.index:
                    continue
                damaged, cut = damaged + packet.is_corrupt, packet.is_corrupt
                if skipped is None and packet.is_keyframe:
                    skipped, first_time = count, packet.pts
                count += 1
                if skipped is not None and not packet.is_discard and _is_shown(packet, stream.codec_context.name):
                    times.append(packet.pts)
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{path} breaks off after {count} frames: {error}.", fix=COPY_AGAIN) from error
        # An AVI's head counts frames that were dropped in recording, too, and its index those that are stored.
        promised_frames = len(stream.index_entries) if container.format.name == "avi" else stream.frames
        if cut or count < promised_frames:
            raise DataError(
                f"{path} breaks off: {count - cut} of {max(promised_frames, count)} frames are there.",
                expected="a whole video file",
                fix=COPY_AGAIN,
            )
        _check_duration(path, container, end_s)
        said = float(stream.average_rate or stream.guessed_rate or 0)
        # AVI has no times: what FFmpeg gives its packets is in the order of coding.
        if skipped is None or None in times or stream.time_base is None or container.format.name == "avi":
            return Track(stream.index, skipped or 0, None, None, None, said, said, damaged)
        # Frames that come before the one that decoding begins with need others that are not there.
        shown = sorted(time for time in times if time is not None and (first_time is None or time >= first_time))
        if not shown:
            raise DataError(f"{path} holds no frame that is to be shown.", expected="at least one", fix=COPY_AGAIN)
        numbers, rate = even_frames(np.array(shown, np.int64) * float(stream.time_base), float(stream.time_base))
        if numbers is not None and len(numbers) == len(shown) and (not rate or abs(rate - said) < 0.01 * said):
            rate = said  # an exact fraction
        even = None if numbers is None else tuple(numbers.tolist())
        return Track(stream.index, skipped, tuple(shown), len(shown), even, rate, said, damaged)


def _is_shown(packet: av.Packet, codec: str) -> bool:
    """VP8 alone has packets of their own for frames that others are predicted from and no one sees."""
    return codec != "vp8" or bool(bytes(packet)[0] >> 4 & 1)


def even_frames(times_s: np.ndarray, tick_s: float) -> tuple[np.ndarray | None, float]:
    """Which frames are shown at even times: all, if they are; else the finest selection that is, without repeats.

    Args:
        times_s: float [T], ascending, in seconds.
        tick_s: What times are rounded to, in seconds.

    Returns:
        int [N], or None where there is none of at least one frame in `COARSEST_STEPS`; and the rate in Hz, 0 where one
        frame or none is there.
    """
    every = np.arange(len(times_s))
    if len(times_s) < 2:
        return every, 0.0
    steps = np.diff(times_s)
    usual, mean = float(np.median(steps)), float(times_s[-1] - times_s[0]) / (len(times_s) - 1)
    if steps.min() <= 0:
        return None, 0.0
    uneven = np.abs(steps - usual) > TIME_TOLERANCE * usual
    if uneven[-1] and steps[-1] < (2 + TIME_TOLERANCE) * usual and len(steps) > 1:
        # A cut in the order of coding leaves a gap before the last frame.
        uneven[-1], mean = False, float(steps[:-1].mean())
    slope, offset = np.polyfit(every, times_s, 1)
    rounded = np.ptp(times_s - offset - slope * every) <= 1.1 * tick_s
    if not uneven.any() or rounded:
        return every, _frequency(float(slope) if rounded else mean)
    for step in sorted({base * count for base in (usual, mean) for count in range(1, COARSEST_STEPS + 1)}):
        wanted = times_s[0] + step * np.arange(int((times_s[-1] - times_s[0]) / step + 1 + TIME_TOLERANCE))
        nearest = np.searchsorted(times_s, wanted - step / 2)
        nearest = nearest.clip(max=len(times_s) - 1)
        later = (nearest + 1).clip(max=len(times_s) - 1)
        nearest = np.where(np.abs(times_s[later] - wanted) < np.abs(times_s[nearest] - wanted), later, nearest)
        far = np.abs(times_s[nearest] - wanted) > max(TIME_TOLERANCE * step, 0.51 * tick_s)
        if far[-1]:  # the last frame may be anywhere
            nearest, far = nearest[:-1], far[:-1]
        if len(nearest) >= 2 and not far.any() and (np.diff(nearest) > 0).all():
            return nearest, _frequency(step)
    return None, 0.0


def _frequency(step_s: float) -> float:
    return float(Fraction(1 / step_s).limit_denominator(1001))


def _of_frames(path: Path) -> str:
    """How many frames of those that the header counts can be there still, where it counts them."""
    try:
        with open_video(path) as container:
            stream = video_stream(container)
            whole = sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(stream))
            return f", {whole} of {stream.frames} frames" if stream.frames > whole else ""
    except (av.FFmpegError, OSError, DataError):
        return ""


def _check_duration(path: Path, container: av.container.InputContainer, end_s: float) -> None:
    """Matroska and WebM do not count frames, but say how long they last."""
    if "matroska" not in container.format.name or not container.duration:
        return
    promised_s = container.duration / av.time_base
    if promised_s - end_s > max(DURATION_TOLERANCE * promised_s, DURATION_TOLERANCE_S):
        raise DataError(
            f"{path} breaks off: {end_s:.2f} of {promised_s:.2f} s are there.",
            expected="a whole video file",
            fix=COPY_AGAIN,
        )


def _promised_bytes(path: Path, size: int) -> int | None:
    """How long the file is by what its container says of its own parts; None where it says nothing.

    ISO/IEC 14496-12 (MP4, MOV), RFC 9559 (Matroska, WebM) and RIFF (AVI). GIF has no length but a last byte.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in _MP4_BOXES:
            return _end_of_boxes(file, size)
        if head[:4] == b"\x1aE\xdf\xa3":
            return _end_of_segment(file)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return 8 + int.from_bytes(head[4:8], "little")
        if head[:3] == b"GIF":
            file.seek(max(0, size - 64))
            return None if file.read().rstrip(b"\0\r\n").endswith(b";") else size + 1
    return None


def _end_of_boxes(file: BinaryIO, size: int) -> int | None:
    start, end = 0, None
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, kind, least = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, least = int.from_bytes(head[8:16], "big"), 16
        if length < least:  # 0: to the end of the file; else no box
            break
        start += length
        if kind in _MP4_DATA:
            end = start
    return end


def _end_of_segment(file: BinaryIO) -> int | None:
    def number(marked: bool) -> int | None:
        """A number of variable length; None if all its bits are set: unknown."""
        first = file.read(1)
        if not first or not first[0]:
            return None
        length = 9 - first[0].bit_length()
        value = int.from_bytes(first + file.read(length - 1), "big")
        if marked:
            return value
        value &= (1 << 7 * length) - 1
        return None if value == (1 << 7 * length) - 1 else value

    file.seek(4)
    header = number(marked=False)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if number(marked=True) != 0x18538067:
        return None
    length = number(marked=False)
    return None if length is None else file.tell() + length
