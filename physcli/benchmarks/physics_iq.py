"""Physics-IQ (arXiv 2501.09038) and its Verified score (arXiv 2606.18943): does a video go on as the real one did?

Each scenario was filmed twice, from three views. Where something moves, frame by frame, is a mask; a generated video is
compared with take 1 by three IoUs of masks and by the error of pixels, and each number is set against the same number
between the two takes, which is what chance alone leaves.

The released code (github.com/google-deepmind/physics-IQ-benchmark) is followed to the digit, with its rounding: lists
are rounded to four decimals before they are averaged. It differs in one point: it drops `nan` and `inf` from a list
without a word, and `parse_list` here refuses them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

from physcli.errors import DataError
from physcli.rows import Metric

VIEWS = ("perspective-left", "perspective-center", "perspective-right")
DURATION_S = 5.0  # of a generated video, from the last conditioning frame on
SOURCE_RATE_HZ = 30  # of the real videos from which other rates are blended
IOUS = ("spatiotemporal_iou", "spatial_iou", "weighted_spatial_iou")

ORIGINAL = Metric("physics_iq", "rate", True, interval="bootstrap")
VERIFIED = Metric("physics_iq_verified", "rate", True, role="headline", interval="bootstrap")
NUMBERS = (
    *(Metric(name, "rate", True, interval="bootstrap") for name in IOUS),
    Metric("mse", "score", False, interval="bootstrap"),
)
# What the takes leave of each number: the terms of the Verified score.
RATIOS = tuple(Metric(f"{metric.name}_ratio", "rate", True, interval="bootstrap") for metric in NUMBERS)
# The share of pixels that are in a mask: what a still video has none of.
MOVING = Metric("moving_area", "rate", None, role="motion", interval="bootstrap")

_THRESHOLD, _NEW_WEIGHT = 10, 0.3
_BRUSH = np.ones((5, 5), np.uint8)
_EPSILON = 1e-8
_DECIMALS = 4


# --- masks ---


def motion_masks(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Where something moves, against a background that follows within a few frames.

    Args:
        frames: uint8 [H, W, 3] RGB, one after another.

    Yields:
        uint8 [H, W], 255 where it moves; nothing moves in the first. A small or slow thing leaves no mask at all: the
        difference has to fill a square of 5 x 5 pixels.
    """
    background: np.ndarray | None = None
    for frame in frames:
        grey = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (5, 5), 0)
        if background is None:
            background = grey.astype(np.float64)
            yield np.zeros_like(grey)
            continue
        cv2.accumulateWeighted(grey, background, _NEW_WEIGHT)
        changed = cv2.absdiff(grey, cv2.convertScaleAbs(background))
        mask = cv2.threshold(changed, _THRESHOLD, 255, cv2.THRESH_BINARY)[1]
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _BRUSH)
        yield cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _BRUSH)


def quarter_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which everything is compared, of take 1's."""
    return height // 4, width // 4


def small_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W] → bool [h, w]: scaled first, then cut at half."""
    return np.asarray(cv2.resize(mask, size[::-1]) > 127)


def small_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] RGB → uint8 [h, w, 3] BGR. The order of colours is that in which the released code adds up."""
    return cv2.resize(np.ascontiguousarray(frame[..., ::-1]), size[::-1])


def blend_frames(frames: Iterable[np.ndarray], count: int, new_count: int) -> Iterator[np.ndarray]:
    """Another frame rate: new frame j is at j·(n−1)/(m−1) between the two frames beside it, and cut to whole numbers.

    Args:
        frames: `count` of them, uint8 [H, W, 3]; n.
        count: How many.
        new_count: How many shall come out; m, at least 2.

    Raises:
        ValueError: there are fewer than `count`, or less than two are wanted.
    """
    if count < 1 or new_count < 2:
        raise ValueError(f"{count} frames cannot be made {new_count}; expected at least 1 and 2")
    source = iter(frames)
    held: dict[int, np.ndarray] = {}
    read = 0
    for new in range(new_count):
        place = new * (count - 1) / (new_count - 1)
        index = int(place)
        weight, after = place - index, min(index + 1, count - 1)
        while read <= after:
            frame = next(source, None)
            if frame is None:
                raise ValueError(f"{read} frames, {count} were promised")
            held[read] = frame
            read += 1
        held = {number: frame for number, frame in held.items() if number >= index}
        before, behind = held[index].astype(np.float32), held[after].astype(np.float32)
        yield ((1 - weight) * before + weight * behind).astype(np.uint8)


# --- two videos ---


@dataclass(frozen=True)
class Clip:
    """A video as it is compared: masks bool [T, h, w] and frames uint8 [T, h, w, 3] BGR."""

    masks: np.ndarray
    frames: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """How alike two videos are: two numbers, and two of each frame. Empty masks on both sides are an IoU of 1."""

    spatial_iou: float
    weighted_spatial_iou: float
    spatiotemporal_iou: tuple[float, ...]
    mse: tuple[float, ...]

    def numbers(self) -> dict[str, float]:
        """One of each, averaged over frames as they are rounded."""
        return {field.name: _mean(getattr(self, field.name)) for field in fields(self)}


def compare_clips(one: Clip, other: Clip) -> Comparison:
    """Compare two videos of one size and length.

    Raises:
        ValueError: they differ in either.
    """
    if one.masks.shape != other.masks.shape or one.frames.shape != other.frames.shape:
        raise ValueError(f"videos of {one.masks.shape} and {other.masks.shape}; expected one size and length")
    first, second = (clip.masks.sum(axis=0) / len(clip.masks) for clip in (one, other))
    return Comparison(
        spatial_iou=_iou(one.masks.max(axis=0), other.masks.max(axis=0)),
        weighted_spatial_iou=_share(np.minimum(first, second).sum(), np.maximum(first, second).sum()),
        spatiotemporal_iou=tuple(_iou(a, b) for a, b in zip(one.masks, other.masks, strict=True)),
        mse=tuple(_squared_error(a, b) for a, b in zip(one.frames, other.frames, strict=True)),
    )


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return _share((one & other).sum(), (one | other).sum())


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 1.0


def _squared_error(one: np.ndarray, other: np.ndarray) -> float:
    # Scaled to 0..1 in double and then cut to single precision, as the released code has it.
    difference = (one / 255.0).astype(np.float32) - (other / 255.0).astype(np.float32)
    return float(np.mean(difference**2))


# --- scores ---


@dataclass(frozen=True)
class View:
    """A scenario from one side.

    Attributes:
        scenario: Its name, as `trimmed-ball-and-block-fall.mp4`.
        view: Of `VIEWS`.
        take_1: The generated video and take 1, which alone is scored.
        takes: Take 1 and take 2.
        take_2: The generated video and take 2, for the table; None where it is not known.
    """

    scenario: str
    view: str
    take_1: Comparison
    takes: Comparison
    take_2: Comparison | None = None


def verified_terms(view: View) -> dict[str, float]:
    """The four terms of a view's Verified score, 0 to 1: each IoU over that between the takes, and for pixels the error
    between the takes over the video's. The score is their mean."""
    mine, takes = view.take_1.numbers(), view.takes.numbers()
    terms = {name: mine[name] / (takes[name] + _EPSILON) for name in IOUS}
    # Rounding has made an error below 0.00005 nothing at all, which counts as perfect.
    terms["mse"] = (takes["mse"] + _EPSILON) / mine["mse"] if mine["mse"] else 1.0
    return {name: min(max(term, 0.0), 1.0) for name, term in terms.items()}


def verified_score(views: Sequence[View]) -> float:
    """The Verified score, 0 to 1: the mean over terms, views and scenarios."""
    return float(np.mean([list(verified_terms(view).values()) for view in views]))


def scenario_numbers(views: Sequence[View]) -> np.ndarray:
    """What the original score is made of, by scenario: [S, 2, 4], of (video, takes) the three IoUs and the error, each
    the mean over views and frames."""
    scenarios: dict[str, list[View]] = {}
    for view in views:
        scenarios.setdefault(view.scenario, []).append(view)
    found = [
        [np.mean([list(pair.values()) for pair in pairs], axis=0) for pairs in zip(*map(_pairs, some), strict=True)]
        for some in scenarios.values()
    ]
    return np.array(found)


def _pairs(view: View) -> list[dict[str, float]]:
    both = (view.take_1.numbers(), view.takes.numbers())
    return [{name: numbers[name] for name in (*IOUS, "mse")} for numbers in both]


def original_parts(numbers: np.ndarray) -> dict[str, float]:
    """Each IoU over that between the takes, both of the whole set and not cut at one, and the error beyond that between
    the takes. `score` is 0 to 1, rounded to four decimals; NaN where an IoU and that between the takes are both 0.

    Args:
        numbers: [S, 2, 4] of `scenario_numbers`.
    """
    mine, takes = numbers.mean(axis=0).tolist()
    decimals = {"spatial_iou": 5}
    takes = [round(one, decimals.get(name, _DECIMALS)) for name, one in zip((*IOUS, "mse"), takes, strict=True)]
    parts = {name: _divided(one, other) for name, one, other in zip(IOUS, mine[:3], takes[:3], strict=True)}
    parts["mse"] = mine[3] - takes[3]
    score = sum(parts[name] for name in IOUS) / 3 - parts["mse"]
    if not math.isnan(score):
        score = round(max(min(100 * score, 100.0), 0.0), 2) / 100
    return parts | {"score": score}


def original_score(views: Sequence[View]) -> float:
    """The original score, 0 to 1."""
    return original_parts(scenario_numbers(views))["score"]


def _divided(value: float, by: float) -> float:
    if by:
        return value / by
    return math.inf if value else math.nan


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, _DECIMALS) for value in values]


def _listed(value: float | Sequence[float]) -> list[float]:
    return [value] if isinstance(value, float) else _rounded(value)


def _mean(value: float | Sequence[float]) -> float:
    return float(np.mean(_listed(value)))


# --- the official table ---

# Of a comparison's fields, the columns of each view: with take 1, with take 2, between the takes.
_COLUMNS = (
    ("v1_mse", "take_1", "mse"),
    ("v2_mse", "take_2", "mse"),
    ("variance_spatial", "takes", "spatial_iou"),
    ("variance_weighted_spatial", "takes", "weighted_spatial_iou"),
    ("variance_spatiotemporal_iou", "takes", "spatiotemporal_iou"),
    ("variance_mse", "takes", "mse"),
    ("spatiotemporal_iou_v1", "take_1", "spatiotemporal_iou"),
    ("spatiotemporal_iou_v2", "take_2", "spatiotemporal_iou"),
    ("spatial_iou_v1", "take_1", "spatial_iou"),
    ("spatial_iou_v2", "take_2", "spatial_iou"),
    ("weighted_spatial_iou_v1", "take_1", "weighted_spatial_iou"),
    ("weighted_spatial_iou_v2", "take_2", "weighted_spatial_iou"),
)


def to_table(views: Sequence[View]) -> list[list[Any]]:
    """Lines of the official CSV, the head first: a line for each scenario."""
    names = [name for name in VIEWS if any(view.view == name for view in views)]
    lines: list[list[Any]] = [["scenario", *(f"{column}_{name}" for name in names for column, _, _ in _COLUMNS)]]
    for scenario in dict.fromkeys(view.scenario for view in views):
        by_name = {view.view: view for view in views if view.scenario == scenario}
        line: list[Any] = [scenario]
        for name in names:
            for _, pair, field in _COLUMNS:
                comparison = getattr(by_name[name], pair)
                value = "" if comparison is None else getattr(comparison, field)
                line.append(str(list(value)) if isinstance(value, tuple) else value)
        lines.append(line)
    return lines


def from_table(rows: Iterable[Mapping[str, Any]]) -> list[View]:
    """The views of an official CSV, in its order; columns with take 2 may be missing.

    Raises:
        DataError: a column is missing, or a cell is no number.
    """
    views = []
    for row in rows:
        scenario = str(row.get("scenario") or "")
        if not scenario:
            raise DataError("No column `scenario`, or nothing in it.", expected="a CSV that Physics-IQ's code wrote")
        for name in VIEWS:
            pairs: dict[str, dict[str, Any]] = {"take_1": {}, "take_2": {}, "takes": {}}
            for column, pair, field in _COLUMNS:
                full = f"{column}_{name}"
                text = str(row.get(full) or "").strip()
                if not text and pair == "take_2":
                    continue
                pairs[pair][field] = _cell(text, full, scenario, several=field in ("mse", "spatiotemporal_iou"))
            twin = Comparison(**pairs["take_2"]) if len(pairs["take_2"]) == 4 else None
            views.append(View(scenario, name, Comparison(**pairs["take_1"]), Comparison(**pairs["takes"]), twin))
    lengths = {len(one) for v in views for pair in (v.take_1, v.takes) for one in (pair.mse, pair.spatiotemporal_iou)}
    if len(lengths) > 1:
        raise DataError(
            f"The table has lists of {', '.join(map(str, sorted(lengths)))} frames.",
            expected="as many frames in all videos",
            fix="make it again from videos of one length",
        )
    return views


def _cell(text: str, column: str, scenario: str, *, several: bool) -> float | tuple[float, ...]:
    try:
        return parse_list(text) if several else _number(text)
    except ValueError as error:
        raise DataError(
            f"{scenario}, column `{column}`: {error}.",
            expected="a CSV that Physics-IQ's code wrote: numbers, and of each frame [0.1, 0.2, …]",
            fix="make it again from the videos",
        ) from error


def parse_list(text: str) -> tuple[float, ...]:
    """Numbers of a cell such as `[0.5, 1e-05]`; those of NumPy 2, `[np.float32(0.5), …]`, are read as well, in which
    the released code takes 32 for a number.

    Raises:
        ValueError: it is no such list, or has something that is no finite number.
    """
    inside = re.fullmatch(r"\[(.*)\]", text.strip(), flags=re.DOTALL)
    if inside is None or not inside[1].strip():
        raise ValueError(f"{text[:40]!r} is no list of numbers")
    plain = re.sub(r"np\.float(?:32|64)\(([^)]*)\)", r"\1", inside[1])
    return tuple(_number(part) for part in plain.split(","))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text.strip()[:40]!r} is no finite number")
    return value
