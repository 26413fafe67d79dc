"""Videos as others write them, made with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "videos"
_FIELDS = (((220, 30, 30), (30, 200, 40), (40, 60, 220)), ((230, 220, 40), (128, 128, 128), (245, 245, 245)))


def patches(num_frames=8):
    """uint8 [T, 64, 96, 3]: six fields, and a tick in the bottom rows that moves with the frame number."""
    frames = np.zeros((num_frames, 64, 96, 3), np.uint8)
    for row, colors in enumerate(_FIELDS):
        for column, color in enumerate(colors):
            frames[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = color
    for number in range(num_frames):
        frames[number, 60:, 2 * number : 2 * number + 6] = 255
    return frames


def fields_of(frames):
    """The medians of the six fields, [2, 3, 3]."""
    part = [
        [np.median(frames[:, 32 * y + 6 : 32 * y + 20, 32 * x + 6 : 32 * x + 26], axis=(0, 1, 2)) for x in range(3)]
        for y in range(2)
    ]
    return np.array(part)


def moving_noise(num_frames, height=64, width=96):
    """uint8 [T, H, W, 3] that takes many bits and moves."""
    rng = np.random.default_rng(0)
    still = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (9, 9), 2).astype(float)
    still = ((still - still.min()) / np.ptp(still) * 255).astype(np.uint8)
    return np.stack([np.roll(still, (2 * number, 3 * number), (0, 1)) for number in range(num_frames)])


def encode(path, frames, codec="libx264", *, rate=24, pixels="yuv420p", options=None, movflags=None, keys=12):
    """Write RGB frames as a usual encoder does, with B-frames."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options, stream.codec_context.gop_size = pixels, options or {}, keys
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def remux(source, target, first):
    """Copy packets from number `first` on."""
    with av.open(str(source)) as container, av.open(str(target), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if packet.dts is not None and number >= first:
                packet.stream = stream
                copy.mux(packet)


def stored(
    path,
    frames,
    red,
    blue,
    *,
    full=False,
    matrix=6,
    rotation=None,
    matrix_of_display=None,
    aspect=None,
    ticks=None,
    interlaced=False,
):
    """Write frames through a matrix of one's own: Y = red·R + (1 − red − blue)·G + blue·B, 4:4:4; ticks are 1/24 s."""
    rgb = frames.astype(float) / 255
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    chroma = [(rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)]
    parts = (
        [255 * luma, *(255 * part + 128 for part in chroma)]
        if full
        else [
            16 + 219 * luma,
            *(224 * part + 128 for part in chroma),
        ]
    )
    planes = np.stack(parts, 1).round().clip(0, 255).astype(np.uint8)  # [T, 3, H, W]
    height, width = frames.shape[1:3]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt, stream.options = height, width, "yuv444p", {"crf": "4", "bf": "0"}
        if interlaced:
            stream.options = {"crf": "4", "bf": "0", "x264-params": "interlaced=1"}
        if matrix is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if matrix_of_display is not None:
            stream.set_display_matrix(matrix_of_display.tolist())
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, picture in enumerate(planes):
            frame = av.VideoFrame(width, height, "yuv444p")
            for plane, values in zip(frame.planes, picture, strict=True):
                padded = np.zeros((height, plane.line_size), np.uint8)
                padded[:, :width] = values
                plane.update(padded)
            frame.pts, frame.time_base = number if ticks is None else ticks[number], Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
