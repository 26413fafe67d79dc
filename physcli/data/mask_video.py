"""Masks through a lossy video file, as Physics-IQ's released code keeps them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from physcli.errors import DataError


def through_mp4v(masks: Iterable[np.ndarray], frame_rate_hz: float) -> Iterator[np.ndarray]:
    """What is left of masks that were written as MPEG-4 Part 2 by OpenCV and read back: edges ring.

    Args:
        masks: uint8 [H, W], 0 or 255, of one size; an odd last line or column is cut off, which the codec cannot hold.
        frame_rate_hz: Of the file; its bit rate is not told, and depends on it.

    Yields:
        uint8 [H, W], all grey levels.

    Raises:
        DataError: this OpenCV cannot write such a file.
    """
    with tempfile.TemporaryDirectory(prefix="physcli-masks-") as folder:
        path = Path(folder) / "masks.mp4"
        writer: cv2.VideoWriter | None = None
        written = 0
        for mask in masks:
            height, width = (side - side % 2 for side in mask.shape)
            if writer is None:
                code = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(path), code, frame_rate_hz, (width, height), isColor=False)
                if not writer.isOpened():
                    raise DataError(
                        "This OpenCV has no encoder for mp4v.",
                        expected="opencv-python-headless as it comes from PyPI",
                        fix="install that, or add --masks lossless",
                    )
            writer.write(np.ascontiguousarray(mask[:height, :width]))
            written += 1
        if writer is not None:
            writer.release()
        reader = cv2.VideoCapture(str(path))
        read = 0
        while written:
            found, picture = reader.read()
            if not found:
                break
            read += 1
            yield picture[..., 0]
        reader.release()
        if read != written:
            raise DataError(f"Of {written} masks, OpenCV read {read} back.", fix="add --masks lossless")
