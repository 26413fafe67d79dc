"""Contact sheets of videos: those of a run, and those of several runs side by side."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from physcli.data.subsets import thin
from physcli.data.video import read_video, resize
from physcli.errors import DataError
from physcli.report.plots import contact_sheet

_SHEET_VIDEOS = 24
_SHEET_PAIRS = 32
_SHEET_COLUMNS = 5
_SHEET_HEIGHT = 160  # pixels of a frame on the sheet, at most
_CAPTION_LENGTH = 72


def draw_sheet(folder: Path, videos: Sequence[Mapping[str, Any]]) -> None:
    """The contact sheet of rows of videos.jsonl: five moments each, every prompt's first sample before a second."""
    moments = _moments(min(row["num_frames"] for row in videos))
    several = any(row["index"] for row in videos)
    chosen = {row["video"] for row in sorted(videos, key=lambda row: row["index"])[:_SHEET_VIDEOS]}
    shown = [
        (_caption(row, several), _thumbnails(read_video(folder / row["video"], moments)))
        for row in videos
        if row["video"] in chosen
    ]
    _draw(folder / "contact_sheet.png", shown, moments)


def draw_side_by_side(path: Path, rows: Sequence[Sequence[tuple[str, Path]]]) -> None:
    """A sheet of the same item's videos by several runs, an item a line; evenly spaced items where there are many.

    Args:
        path: The PNG.
        rows: For each item, caption and file of every run's video. What cannot be decoded is left black.
    """
    shown = [
        [(shorten(caption, _CAPTION_LENGTH), _decoded(video)) for caption, video in row]
        for row in thin(rows, _SHEET_PAIRS)
    ]
    lengths = [len(frames) for row in shown for _, frames in row if frames is not None]
    if not lengths:
        return
    moments = _moments(min(lengths))
    black = np.zeros((len(moments), 8, 8, 3), np.uint8)
    cells = [
        (caption.replace("$", r"\$"), black if frames is None else _thumbnails(frames[moments]))
        for row in shown
        for caption, frames in row
    ]
    _draw(path, cells, moments, abreast=len(shown[0]))


def _decoded(video: Path) -> np.ndarray | None:
    try:
        return read_video(video)
    except DataError:
        return None


def _moments(num_frames: int) -> list[int]:
    return [int(n) for n in np.linspace(0, num_frames - 1, min(_SHEET_COLUMNS, num_frames)).round()]


def _draw(path: Path, rows: Sequence[tuple[str, np.ndarray]], moments: Sequence[int], abreast: int = 2) -> None:
    with warnings.catch_warnings():
        # The font has no Chinese and no emoji; a box in the picture is bearable, the list has the words.
        warnings.filterwarnings("ignore", message="Glyph")
        contact_sheet(path, rows=rows, columns=[f"frame {n}" for n in moments], abreast=abreast)


def shorten(prompt: str, length: int = 80) -> str:
    """The beginning of a prompt, on one line."""
    words = " ".join(prompt.split()) or "(empty prompt)"
    return words if len(words) <= length else words[: length - 1] + "…"


def _caption(row: Mapping[str, Any], several: bool) -> str:
    """A line of the contact sheet."""
    before = "random init: " if row["random_init"] else ""
    after = f" ({row['index']})" if several else ""
    words = shorten(row["prompt"], _CAPTION_LENGTH - len(before) - len(after))
    return f"{before}{words}{after}".replace("$", r"\$")  # matplotlib sets what is between dollars as mathematics


def _thumbnails(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    shrunk = min(height, _SHEET_HEIGHT)
    return resize(frames, shrunk, max(1, round(width * shrunk / height)))
