"""Video files through PyAV: facts, decoding, lossless-enough encoding.

Arrays are uint8 [T, H, W, 3] RGB, as a player shows them. Frames are counted from 0 in the order they are shown; a
constant frame rate is reported but never used to choose frames here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from physcli.data.color import HIGH_RANGE, tone_mapped
from physcli.data.container import COPY_AGAIN, Track, open_video, read_track
from physcli.errors import DataError
from physcli.files import replacing

# The codes of ITU-T H.273: BT.601's matrix (as SMPTE 170M has it), limited range, BT.709's primaries, sRGB's curve.
_WRITTEN_COLORS = (6, 1, 1, 13)

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".gif"})


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, found by decoding all of it.

    Attributes:
        path: The file.
        num_frames: As `read_video` gives them: of a variable rate, those at even times.
        frame_rate_hz: Of those frames; 0 where the file says nothing.
        height: As shown, in pixels.
        width: As shown, in pixels.
        codec: Of the video stream.
        pixel_format: FFmpeg's name of how pixels are stored.
        num_stored: How many frames decoding gives.
        variable_rate: The frames are not shown at even times.
        rotation_deg: By how much a player turns them, counterclockwise: 0, 90, 180 or 270.
        mirrored: A player mirrors them.
        pixel_aspect: Width of a pixel over its height.
        dynamic_range: "SDR", "PQ" or "HLG".
        interlaced: A frame holds two moments, line by line.
        alpha: Pixels have an opacity, which is not read.
    """

    path: Path
    num_frames: int
    frame_rate_hz: float
    height: int
    width: int
    codec: str
    pixel_format: str
    num_stored: int = 0
    variable_rate: bool = False
    rotation_deg: int = 0
    mirrored: bool = False
    pixel_aspect: float = 1.0
    dynamic_range: str = "SDR"
    interlaced: bool = False
    alpha: bool = False

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.frame_rate_hz if self.frame_rate_hz else 0.0


@dataclass(frozen=True)
class _Shape:
    """How a decoded frame is turned and stretched into what a player shows.

    Attributes:
        transposed: Rows become columns.
        flipped: Then mirrored along (height, width).
        height: Of what is shown, in pixels.
        width: Of what is shown, in pixels.
    """

    transposed: bool
    flipped: tuple[bool, bool]
    height: int
    width: int

    def turn(self, picture: np.ndarray) -> np.ndarray:
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        down, across = self.flipped
        if down or across:
            picture = picture[:: -1 if down else 1, :: -1 if across else 1]
        return np.ascontiguousarray(picture)

    @property
    def rotation_deg(self) -> int:
        """Counterclockwise, after which it may be mirrored from left to right."""
        if self.transposed:
            return 90 if self.flipped[0] else 270
        return 180 if self.flipped[0] else 0

    @property
    def mirrored(self) -> bool:
        return (self.flipped[0] != self.flipped[1]) != self.transposed


def _shape(path: Path, frame: av.VideoFrame, stream: av.VideoStream) -> _Shape:
    """Raises DataError: the file wants it turned by an angle that moves pixels off their grid."""
    transposed, flipped = False, (False, False)
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload]
    if matrix is not None:
        # ISO/IEC 14496-12: (x, y) is shown at (a·x + c·y, b·x + d·y).
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5] / 65536
        transposed = bool(abs(a) + abs(d) < abs(b) + abs(c))
        on, off = ((b, c), (a, d)) if transposed else ((a, d), (b, c))
        if np.abs(np.abs(on) - 1).max() > 0.01 or np.abs(off).max() > 0.01:
            angle = np.rad2deg(np.arctan2(-b, a))
            raise DataError(
                f"{path} is to be shown turned by {angle:.0f} degrees.",
                expected="a multiple of 90",
                fix="encode it again, upright",
            )
        down, across = (b, c) if transposed else (d, a)
        flipped = (bool(down < 0), bool(across < 0))
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    height, width = frame.height, frame.width
    # Pixels that are not square are made so by enlarging one side: no line is lost.
    if aspect > 1:
        width = round(width * aspect)
    else:
        height = round(height / aspect)
    return _Shape(transposed, flipped, *((width, height) if transposed else (height, width)))


def _stream(container: av.container.InputContainer, track: Track) -> av.VideoStream:
    stream = container.streams[track.stream]
    assert isinstance(stream, av.VideoStream)
    return stream


def _decode(path: Path, container: av.container.InputContainer, track: Track) -> Iterator[tuple[int, av.VideoFrame]]:
    """All frames of a video with their numbers; DataError where one is damaged, missing or of another size."""
    stream = _stream(container, track)
    # Otherwise a decoder paints over what it cannot read. With a thread for each frame, errors at the end get lost.
    stream.thread_type = "SLICE"
    stream.codec_context.options = {"err_detect": "explode"}
    count, size, problem = 0, None, ""
    times = track.times if track.numbers is not None else None  # files that were joined have the same times twice
    try:
        for number, packet in enumerate(container.demux(stream)):
            if number < track.skipped:
                continue
            for frame in packet.decode():
                if times and frame.pts is not None and frame.pts < times[0]:
                    continue  # what comes before the first frame that decoding can begin with
                if size is not None and size != (frame.width, frame.height):
                    raise DataError(
                        f"{path} changes its size from {size[0]}x{size[1]} to {frame.width}x{frame.height} (width x "
                        f"height) at frame {count}.",
                        expected="frames of one size",
                        fix="cut it there, or encode it again in one size",
                    )
                size = (frame.width, frame.height)
                if frame.is_corrupt or (times and frame.pts != times[min(count, len(times) - 1)]):
                    problem = f"frame {count} is incomplete or missing"
                    break
                yield count, frame
                count += 1
            if problem:
                break
    except av.FFmpegError as error:
        problem = error.strerror or str(error)
    promised = track.num_decoded
    if problem or track.damaged or (promised is not None and count < promised):
        raise DataError(
            f"{path} is damaged: {count} {'' if promised is None else f'of {promised} '}frames decode"
            + (f" ({problem})." if problem else "."),
            expected="a whole video file",
            fix=COPY_AGAIN,
        )
    if count == 0:
        raise DataError(f"{path} holds no frame.", expected="at least one decodable frame")


def _numbers(path: Path, track: Track) -> tuple[int, ...] | None:
    """Which of the decoded frames are the clip's; None for all of however many there are.

    Raises:
        DataError: they are shown at uneven times, and no even selection of them is fine enough.
    """
    if track.numbers is None and track.times is not None:
        with open_video(path) as container:  # where it is damaged, or changes its size, that is the better reason
            for _ in _decode(path, container, track):
                pass
        raise DataError(
            f"{path} has a variable frame rate: no selection of its {len(track.times)} frames is shown at even times.",
            expected="frames at even times, from whose differences motion is read",
            fix="encode it again with a constant rate, `ffmpeg -i IN -vf fps=24 OUT`",
        )
    return track.numbers


def video_info(path: str | os.PathLike[str]) -> VideoInfo:
    """Facts of one video. Decodes every frame, because containers misreport what they hold.

    Raises:
        DataError: the file is missing, empty, cut short, damaged, not a video, holds no frame, changes its size, or
            has frames at uneven times of which no even selection can be made.
    """
    path = Path(path)
    track = read_track(path)
    interlaced, first, count = False, None, 0
    with open_video(path) as container:
        for number, frame in _decode(path, container, track):
            count = number + 1
            first = frame if first is None else first
            interlaced = interlaced or frame.interlaced_frame
        stream = _stream(container, track)
        assert first is not None
        shape, numbers = _shape(path, first, stream), _numbers(path, track)
        return VideoInfo(
            path=path,
            num_frames=count if numbers is None else len(numbers),
            frame_rate_hz=track.frame_rate_hz,
            height=shape.height,
            width=shape.width,
            codec=stream.codec_context.name,
            pixel_format=stream.codec_context.pix_fmt or "",
            num_stored=count,
            variable_rate=track.variable,
            rotation_deg=shape.rotation_deg,
            mirrored=shape.mirrored,
            pixel_aspect=float(stream.sample_aspect_ratio or 1) or 1.0,
            dynamic_range=HIGH_RANGE.get(first.color_trc, "SDR"),
            interlaced=interlaced,
            alpha=_is_transparent(first) or stream.metadata.get("alpha_mode") == "1",
        )


def _is_transparent(frame: av.VideoFrame) -> bool:
    if not any(part.is_alpha for part in frame.format.components):
        return False
    return bool(frame.to_ndarray(format="rgba")[..., 3].min() < 255)  # GIF is read with alpha, used or not


def count_frames(path: str | os.PathLike[str], *, as_decord: bool = False) -> int:
    """The number of frames that `read_video` gives, without decoding where the file tells it.

    Raises:
        DataError: as `video_info`, as far as it shows without decoding.
    """
    path = Path(path)
    track = read_track(path)
    numbers = None if as_decord else _numbers(path, track)
    known = track.num_decoded if numbers is None else len(numbers)
    if known is None:
        with open_video(path) as container:
            known = sum(1 for _ in _decode(path, container, track))
    return known


def pixel_format(path: str | os.PathLike[str]) -> str:
    """What a video's colours are stored as, in ffmpeg's words such as yuv420p, without decoding; "" where it does not
    say.

    Raises:
        DataError: the file is missing, empty or no video.
    """
    track = read_track(Path(path))
    with open_video(Path(path)) as container:
        stream = _stream(container, track)
        return stream.codec_context.pix_fmt or ""


def chroma_step(pixel_format: str) -> tuple[int, int]:
    """How many (rows, columns) of pixels a sample of colour is for: (2, 2) of yuv420p, (1, 1) of yuv444p or rgb24."""
    try:
        chroma = av.VideoFormat(pixel_format, 64, 64)
        return 64 // chroma.chroma_height(), 64 // chroma.chroma_width()
    except ValueError:
        return 1, 1


def heeded(path: str | os.PathLike[str]) -> str:
    """What a file says of itself by which `read_video` gives something else than the stored frames of its first video
    stream, a part of the key of what is computed of it; "" of nearly all files, and of those that cannot be read.
    """
    with contextlib.suppress(OSError):
        facts = Path(path).stat()
        return _heeded(Path(path), facts.st_size, facts.st_mtime_ns)
    return ""


@functools.lru_cache(maxsize=4096)  # a clip is asked for each of its windows
def _heeded(path: Path, _size: int, _changed: int) -> str:
    with contextlib.suppress(DataError, av.FFmpegError):
        track = read_track(path)
        with open_video(path) as container:
            stream = _stream(container, track)
            first = next(container.decode(stream))
            shape = _shape(path, first, stream)
            said = {
                "stream": stream.index != container.streams.video[0].index,
                "variable rate": track.variable,
                f"turned {shape.rotation_deg}": shape.rotation_deg != 0,
                "mirrored": shape.mirrored,
                "pixel aspect": (shape.height, shape.width)
                != ((first.width, first.height) if shape.transposed else (first.height, first.width)),
                HIGH_RANGE.get(first.color_trc, ""): first.color_trc in HIGH_RANGE,
            }
            return ", ".join(name for name, is_so in said.items() if is_so)
    return ""


def frame_rate(path: str | os.PathLike[str], *, as_decord: bool = False) -> float:
    """Frames a second of what `read_video` gives, without decoding; 0 where the file says nothing.

    Raises:
        DataError: the file is missing, empty, cut short or no video.
    """
    track = read_track(Path(path))
    return track.average_rate_hz if as_decord else track.frame_rate_hz


def thinned_frames(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Of a video with a variable frame rate, how many frames are read of how many; None of any other.

    Raises:
        DataError: the file is missing, empty, cut short or no video.
    """
    track = read_track(Path(path))
    if not track.variable or track.numbers is None or track.times is None:
        return None
    return len(track.numbers), len(track.times)


def read_video(
    path: str | os.PathLike[str], indices: Sequence[int] | None = None, *, as_decord: bool = False
) -> np.ndarray:
    """Decode a video, or the chosen frames of it, as a player shows it.

    Frames are turned as the file says, and pixels made square; high dynamic range becomes ordinary by
    `physcli.data.color`; YUV is read by the matrix and range that the file names, as BT.601 with limited range where it
    names none. Of a variable frame rate those frames count that are shown at even times.

    Args:
        path: The file.
        indices: Frame numbers to return, in that order, repeats allowed; None for every frame. Decoding stops
            after the largest.
        as_decord: Every frame as it is stored, whatever the file says of turning, pixels' shape, times and dynamic
            range, as decord and most loaders read it.

    Returns:
        uint8 [T, H, W, 3], RGB.

    Raises:
        DataError: the file cannot be read or is damaged, or is shorter than the largest index.
    """
    return np.stack(_in_order(list(iter_video(path, indices, as_decord=as_decord)), indices))


def iter_video(
    path: str | os.PathLike[str], indices: Sequence[int] | None = None, *, as_decord: bool = False
) -> Iterator[np.ndarray]:
    """The frames of `read_video` one after another, for videos that are larger than main memory.

    Args:
        path: The file.
        indices: Frame numbers; each comes once, in ascending order. None for every frame.
        as_decord: As in `read_video`.

    Yields:
        uint8 [H, W, 3], RGB.

    Raises:
        DataError: as `read_video`, when it comes to it.
    """
    path = Path(path)
    # A frame's own `to_ndarray(format=…)` prepares the conversion anew every time: of small frames, most of the time.
    to_rgb = VideoReformatter()
    shape: _Shape | None = None
    for frame, stream in _chosen(path, indices, as_decord=as_decord):
        if as_decord:
            yield to_rgb.reformat(frame, format="rgb24").to_ndarray()
            continue
        shape = shape or _shape(path, frame, stream)
        picture = shape.turn(_rgb(frame, to_rgb))
        yield resize(picture[None], shape.height, shape.width)[0]


def _rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    if frame.color_trc in HIGH_RANGE:
        return tone_mapped(frame, reformatter)
    return reformatter.reformat(frame, format="rgb24").to_ndarray()


def _chosen(
    path: Path, indices: Sequence[int] | None, *, as_decord: bool = False
) -> Iterator[tuple[av.VideoFrame, av.VideoStream]]:
    """The frames `indices`, each once, in ascending order.

    Raises:
        DataError: the file cannot be read, or is shorter than the largest index.
    """
    if indices is not None and (len(indices) == 0 or min(indices) < 0):
        raise ValueError(f"frame indices must be non-negative and not empty, got {indices!r}")
    track = read_track(path)
    numbers = None if as_decord else _numbers(path, track)
    known = track.num_decoded if numbers is None else len(numbers)
    if indices is not None and known is not None and max(indices) >= known:
        raise _too_short(path, known, max(indices))
    wanted = set(indices) if numbers is None and indices is not None else None
    if numbers is not None:
        wanted = set(numbers) if indices is None else {numbers[index] for index in indices}
    last = None if indices is None or wanted is None else max(wanted)  # all of a file is decoded to its end
    count = 0
    with open_video(path) as container:
        stream = _stream(container, track)
        for number, frame in _decode(path, container, track):
            count = number + 1
            if wanted is None or number in wanted:
                yield frame, stream
            if number == last:
                return
    if last is not None:
        raise _too_short(path, count, last)


def _too_short(path: Path, count: int, last: int) -> DataError:
    return DataError(
        f"{path} has {count} frames, but frame {last} (counted from 0) was asked for.",
        expected=f"a video of at least {last + 1} frames",
        fix="use a longer clip, or ask for fewer frames",
    )


def _in_order(frames: list[np.ndarray], indices: Sequence[int] | None) -> list[np.ndarray]:
    """Frames in ascending order → as they were asked for."""
    if indices is None:
        return frames
    place = {index: number for number, index in enumerate(sorted(set(indices)))}
    return [frames[place[index]] for index in indices]


def read_scaled(
    path: str | os.PathLike[str], indices: Sequence[int], height: int, width: int, *, as_decord: bool = False
) -> np.ndarray:
    """Decode the chosen frames and scale them, whole, as decord does: bit-exact with its version 0.6.0.

    FFmpeg's own filter turns YUV into RGB and scales in one step, bilinear. `frame.reformat` differs (it sites chroma
    otherwise), and so does every resize of decoded RGB.

    Args:
        path: The file.
        indices: Frame numbers, repeats allowed.
        height: Of the result, in pixels.
        width: Of the result, in pixels; another aspect ratio squashes the picture.
        as_decord: As `read_video` takes it.

    Returns:
        uint8 [T, height, width, 3], RGB.

    Raises:
        DataError: the file cannot be read or is damaged, or is shorter than the largest index.
    """
    path = Path(path)
    to_rgb = VideoReformatter()
    scaled: list[np.ndarray] = []
    graph: av.filter.Graph | None = None
    shape: _Shape | None = None
    for frame, stream in _chosen(path, indices, as_decord=as_decord):
        if not as_decord:
            shape = shape or _shape(path, frame, stream)
            if frame.color_trc in HIGH_RANGE:
                frame = av.VideoFrame.from_ndarray(tone_mapped(frame, to_rgb), format="rgb24")
        transposed = shape is not None and shape.transposed
        graph = graph or _scaling_graph(frame, *((width, height) if transposed else (height, width)))
        graph.push(frame)
        picture = graph.pull()
        assert isinstance(picture, av.VideoFrame)
        array = picture.to_ndarray(format="rgb24")
        scaled.append(array if shape is None else shape.turn(array))
    return np.stack(_in_order(scaled, indices))


def _scaling_graph(frame: av.VideoFrame, height: int, width: int) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    steps = [
        source,
        graph.add("scale", f"{width}:{height}:flags=bilinear"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    for first, second in itertools.pairwise(steps):
        first.link_to(second)
    graph.configure()
    return graph


def write_video(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    frame_rate_hz: float,
    *,
    crf: int = 6,
    full_chroma: bool = True,
) -> None:
    """Encode uint8 [T, H, W, 3] RGB frames as H.264 MP4; written to a temporary name, then renamed.

    Small clips lose their colours to 4:2:0 chroma long before they lose shape, so `full_chroma` keeps 4:4:4.
    The same frames give the same bytes with the same library versions, and frames that begin alike decode alike for
    as long, whatever follows.

    Raises:
        DataError: the folder cannot be written or the disk is full.
        ValueError: the array is not uint8 [T, H, W, 3].
    """
    path = Path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be uint8 [T, H, W, 3] with T >= 1, got {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    if not full_chroma and (height % 2 or width % 2):
        raise ValueError(f"4:2:0 video needs an even height and width, got {height}x{width}")
    try:
        with (
            replacing(path) as temporary,
            av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container,
        ):
            stream = container.add_stream("libx264", rate=Fraction(frame_rate_hz).limit_denominator(1001))
            stream.height, stream.width = height, width
            stream.pix_fmt = "yuv444p" if full_chroma else "yuv420p"
            # What the conversion from RGB does anyway; unsaid, players guess it from the picture's size.
            said = stream.codec_context
            said.colorspace, said.color_range, said.color_primaries, said.color_trc = _WRITTEN_COLORS
            stream.codec_context.thread_count = 1
            # Without B-frames and lookahead a decoded frame depends on the frames up to it alone: otherwise the pixels
            # of a clip's context would tell what comes after it. x264's lookahead also reads beyond small frames,
            # and what it finds there changes its choices from one call to the next.
            causal = "bframes=0:rc-lookahead=0:mbtree=0"
            stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": causal}
            for image in frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    except (av.FFmpegError, OSError) as error:
        raise DataError(
            f"{path} could not be written: {error}.",
            expected="a writable folder with free space",
            fix="check permissions and free space, or choose another --out",
        ) from error


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale whole frames to height × width; nothing is cropped, so another aspect ratio squashes the picture.

    Args:
        frames: uint8 [T, H, W, 3].
        height: Of the result, in pixels.
        width: Of the result, in pixels.

    Returns:
        uint8 [T, height, width, 3]; the same array if it has that size already.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    shrinks = height * width < frames.shape[1] * frames.shape[2]
    # Area averaging shrinks without aliasing; it is nearest-neighbour when it enlarges.
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.stack([cv2.resize(image, (width, height), interpolation=method) for image in frames])
