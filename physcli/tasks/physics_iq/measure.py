"""From files to comparisons of a view's takes, generated videos and controls, each computed once and then cached."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from physcli.benchmarks.physics_iq import (
    DURATION_S,
    Clip,
    Comparison,
    View,
    blend_frames,
    compare_clips,
    motion_masks,
    quarter_size,
    small_frame,
    small_mask,
)
from physcli.data.copies import blurred_frame
from physcli.data.mask_video import through_mp4v
from physcli.data.physics_iq import RealSet, RealView
from physcli.data.video import count_frames, iter_video
from physcli.errors import DataError
from physcli.files import make_folder, read_json_object
from physcli.hashing import content_hash, settings_hash
from physcli.progress import Reporter
from physcli.tasks.physics_iq.result import BLURRED, STILL, TAKE_2
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import write_json

_VERSION = 1  # raise it when what is computed changes
CONTROLS = (STILL, TAKE_2, BLURRED)

hash_of = lru_cache(maxsize=None)(content_hash)


@dataclass(frozen=True)
class Measured:
    """A video against both takes, these against each other; the share of pixels in its masks and in take 1's."""

    view: View
    moving_area: float
    real_moving_area: float


class Measure:
    """Comparisons of one frame rate.

    Args:
        real: The real videos.
        rate_hz: Of the generated videos.
        num_frames: That are compared.
        masks: "mp4v" as in the released code, or "lossless".
        cache: The cache root.
    """

    def __init__(self, real: RealSet, rate_hz: int, num_frames: int, *, masks: str, cache: Path) -> None:
        self.real, self.rate_hz, self.num_frames, self.masks = real, rate_hz, num_frames, masks
        self._cache = cache / "physics-iq"

    def compute(
        self,
        views: Sequence[RealView],
        videos: Sequence[dict[str, Path]],
        *,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        """Compute what is not in the cache; processes share the views.

        Args:
            views: To be scored.
            videos: For each folder, number → video.
            processes: All of them.
            reporter: Receives progress.
        """
        make_folder(self._cache, what="the cache", fix="choose another --cache-dir")
        mine = processes.share(views)
        with reporter.bar(f"Physics-IQ at {self.rate_hz} fps", total=len(mine), unit="view") as bar:
            for view in mine:
                self._compute_view(view, [*CONTROLS, *(files[view.number] for files in videos)])
                bar.advance()
        processes.wait()

    def load(self, view: RealView, video: Path | str) -> Measured:
        """What was computed of a video, or of a control."""
        found = read_json_object(self._path(view, video), fix="remove it")
        take_1, takes, take_2 = (_comparison(found[name]) for name in ("take_1", "takes", "take_2"))
        return Measured(
            View(view.scenario, view.view, take_1, takes, take_2), found["moving_area"], found["real_moving_area"]
        )

    def _compute_view(self, view: RealView, videos: Sequence[Path | str]) -> None:
        missing = [video for video in videos if not self._path(view, video).is_file()]
        if not missing:
            return
        size = quarter_size(*next(iter_video(view.takes[0], [0])).shape[:2])
        if min(size) < 1:
            raise DataError(f"{view.takes[0]} is smaller than 4x4 pixels.", expected="a video")
        one, other = (self._clip(self._real(path), size) for path in view.takes)
        takes = compare_clips(one, other)
        for video in missing:
            clip = other if video == TAKE_2 else self._clip(self._frames(view, video), size)
            found: dict[str, Any] = {
                "take_1": asdict(compare_clips(one, clip)),
                "takes": asdict(takes),
                "take_2": asdict(compare_clips(other, clip)),
                "moving_area": float(clip.masks.mean()),
                "real_moving_area": float(one.masks.mean()),
            }
            write_json(self._path(view, video), found)

    def _frames(self, view: RealView, video: Path | str) -> Iterable[np.ndarray]:
        if isinstance(video, Path):
            return iter_video(video, range(self.num_frames))
        if video == STILL:
            return itertools.repeat(last_conditioning_frame(view), self.num_frames)
        assert video == BLURRED
        return map(blurred_frame, self._real(view.takes[1]))

    def _real(self, path: Path) -> Iterator[np.ndarray]:
        if self.rate_hz == self.real.rate_hz:
            return iter_video(path, range(self.num_frames))
        # All of the five seconds, or of what there is, is blended: the last frame stays the last.
        count = min(count_frames(path), round(DURATION_S * self.real.rate_hz))
        blended = blend_frames(iter_video(path, range(count)), count, count * self.rate_hz // self.real.rate_hz)
        return itertools.islice(blended, self.num_frames)

    def _clip(self, frames: Iterable[np.ndarray], size: tuple[int, int]) -> Clip:
        small: list[np.ndarray] = []
        noted = _noting(frames, lambda frame: small.append(small_frame(frame, size)))
        masks: Iterable[np.ndarray] = motion_masks(noted)
        if self.masks == "mp4v":
            masks = through_mp4v(masks, self.rate_hz)
        found = np.stack([small_mask(mask, size) for mask in masks])
        return Clip(found, np.stack(small))

    def _path(self, view: RealView, video: Path | str) -> Path:
        before = view.switch_frame or view.conditioning
        key = {
            "version": _VERSION,
            "takes": [hash_of(path) for path in view.takes],
            "video": hash_of(video) if isinstance(video, Path) else video,
            "before": hash_of(before) if before is not None and video == STILL else None,
            "rates": [self.real.rate_hz, self.rate_hz],
            "num_frames": self.num_frames,
            "masks": self.masks,
            "opencv": cv2.__version__,
        }
        return self._cache / f"{settings_hash(key)}.json"


def _comparison(found: dict[str, Any]) -> Comparison:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
    return Comparison(**values)


def _noting(frames: Iterable[np.ndarray], note: Callable[[np.ndarray], None]) -> Iterator[np.ndarray]:
    for frame in frames:
        note(frame)
        yield frame


def last_conditioning_frame(view: RealView) -> np.ndarray:
    """What a still video holds, uint8 [H, W, 3] RGB: the switch frame, else the last frame of the conditioning video,
    else the first of take 1.

    Raises:
        DataError: the picture cannot be read.
    """
    if view.switch_frame is not None:
        picture = cv2.imread(str(view.switch_frame), cv2.IMREAD_COLOR)
        if picture is None:
            raise DataError(f"{view.switch_frame} is no picture.", expected="JPEG or PNG", fix="download it again")
        return np.ascontiguousarray(picture[..., ::-1])
    if view.conditioning is not None:
        return next(iter_video(view.conditioning, [count_frames(view.conditioning) - 1]))
    return next(iter_video(view.takes[0], [0]))
