"""Video files through PyAV: facts, decoding, lossless-enough encoding.

Arrays are uint8 [T, H, W, 3] RGB. Frames are counted from 0 in presentation order; the container's frame rate
is reported but never used to choose frames here.
"""

from __future__ import annotations

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
from av.video.reformatter import VideoReformatter

from physcli.errors import DataError
from physcli.files import replacing

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".gif"})


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its first video stream; `num_frames` is counted by decoding."""

    path: Path
    num_frames: int
    frame_rate_hz: float
    height: int
    width: int
    codec: str
    pixel_format: str

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.frame_rate_hz if self.frame_rate_hz else 0.0


def _open(path: Path) -> av.container.InputContainer:
    if not path.exists():
        raise DataError(f"No such video: {path}", expected="an existing file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", expected="a video file", fix="write or copy it again")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, ValueError) as error:
        raise DataError(
            f"{path} cannot be opened as a video: {error}.",
            expected="a whole video file (a cut-short MP4 has no index)",
            fix="copy or encode the file again, or remove it",
        ) from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{path} has no video stream.", expected="a file with at least one video stream")
    return container


def _decode(path: Path, container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """All frames of the first video stream; DataError if the file breaks off, or holds none."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    count = 0
    try:
        for frame in container.decode(stream):
            count += 1
            yield frame
    except av.FFmpegError as error:
        raise DataError(
            f"{path} breaks off after {count} frames: {error}.",
            expected="a whole video file",
            fix="copy or encode the file again, or remove it",
        ) from error
    if count == 0:
        raise DataError(f"{path} holds no frame.", expected="at least one decodable frame")


def video_info(path: str | os.PathLike[str]) -> VideoInfo:
    """Facts of one video. Decodes every frame, because containers misreport their counts.

    Raises:
        DataError: the file is missing, empty, cut short, not a video, or holds no frame.
    """
    path = Path(path)
    with _open(path) as container:
        count = sum(1 for _ in _decode(path, container))
        stream = container.streams.video[0]
        return VideoInfo(
            path=path,
            num_frames=count,
            frame_rate_hz=_rate(stream),
            height=stream.height,
            width=stream.width,
            codec=stream.codec_context.name,
            pixel_format=stream.codec_context.pix_fmt or "",
        )


def frame_rate(path: str | os.PathLike[str]) -> float:
    """Frames a second as the container says, without decoding; 0 where it says nothing.

    Raises:
        DataError: the file is missing, empty or no video.
    """
    with _open(Path(path)) as container:
        return _rate(container.streams.video[0])


def _rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0)


def read_video(path: str | os.PathLike[str], indices: Sequence[int] | None = None) -> np.ndarray:
    """Decode a video, or the chosen frames of it.

    Args:
        path: The file.
        indices: Frame numbers to return, in that order, repeats allowed; None for every frame. Decoding stops
            after the largest.

    Returns:
        uint8 [T, H, W, 3], RGB.

    Raises:
        DataError: the file cannot be read, or is shorter than the largest index.
    """
    path = Path(path)
    if indices is not None and (len(indices) == 0 or min(indices) < 0):
        raise ValueError(f"frame indices must be non-negative and not empty, got {indices!r}")
    wanted = None if indices is None else frozenset(indices)
    last = None if indices is None else max(indices)
    frames: dict[int, np.ndarray] = {}
    count = 0
    # A frame's own `to_ndarray(format=…)` prepares the conversion anew every time: of small frames, most of the time.
    to_rgb = VideoReformatter()
    with _open(path) as container:
        for number, frame in enumerate(_decode(path, container)):
            count = number + 1
            if wanted is None or number in wanted:
                frames[number] = to_rgb.reformat(frame, format="rgb24").to_ndarray()
            if number == last:
                break
    if last is not None and last >= count:
        raise DataError(
            f"{path} has {count} frames, but frame {last} (counted from 0) was asked for.",
            expected=f"a video of at least {last + 1} frames",
            fix="use a longer clip, or ask for fewer frames",
        )
    return np.stack([frames[number] for number in (range(count) if indices is None else indices)])


def read_scaled(path: str | os.PathLike[str], indices: Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode the chosen frames and scale them, whole, as decord does: bit-exact with its version 0.6.0.

    FFmpeg's own filter turns YUV into RGB and scales in one step, bilinear. `frame.reformat` differs (it sites chroma
    otherwise), and so does every resize of decoded RGB.

    Args:
        path: The file.
        indices: Frame numbers in ascending order, repeats allowed.
        height: Of the result, in pixels.
        width: Of the result, in pixels; another aspect ratio squashes the picture.

    Returns:
        uint8 [T, height, width, 3], RGB.

    Raises:
        DataError: the file cannot be read, or is shorter than the largest index.
    """
    path = Path(path)
    if not len(indices) or min(indices) < 0:
        raise ValueError(f"frame indices must be non-negative and not empty, got {indices!r}")
    wanted, last = frozenset(indices), max(indices)
    scaled: dict[int, np.ndarray] = {}
    count, graph, layout = 0, None, None
    with _open(path) as container:
        for number, frame in enumerate(_decode(path, container)):
            count = number + 1
            if number in wanted:
                if graph is None or layout != (frame.width, frame.height, frame.format.name):
                    layout = (frame.width, frame.height, frame.format.name)
                    graph = _scaling_graph(frame, height, width)
                graph.push(frame)
                picture = graph.pull()
                assert isinstance(picture, av.VideoFrame)
                scaled[number] = picture.to_ndarray(format="rgb24")
            if number == last:
                break
    if last >= count:
        raise DataError(
            f"{path} has {count} frames, but frame {last} (counted from 0) was asked for.",
            expected=f"a video of at least {last + 1} frames",
            fix="use a longer clip, or ask for fewer frames",
        )
    return np.stack([scaled[number] for number in indices])


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
