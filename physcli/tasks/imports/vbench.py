"""Result files of VBench, VBench-I2V and VBench-2.0 (`…_eval_results.json`): dimension → [score, [a video each]].

A video has a `video_path` and its `video_results`. Files are named `prompt-0.mp4`, and the same file is scored in
several dimensions: it is one video here. The same prompt and number in several folders, one a dimension, are one video
as well, if no dimension has both. A video without a score in a dimension (others were asked there) has none.

Traps of the official files: imaging quality is 0 to 100 for a video and divided by 100 in the score; in VBench-2.0 −1
is "not valid", which its own means leave out; some scores are means over frames and not over videos, so that the mean
over videos differs: the official number is in the row beside it (`official`), and is what the totals are made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from physcli.benchmarks.vbench import VARIANTS, metric_of_dimension, totals
from physcli.errors import DataError
from physcli.rows import Metric
from physcli.tasks.imports.base import Imported, Scored, Source, number, prompt_and_index

WHAT = "a JSON object: dimension → [score, a list of video_path and video_results]"

_INVALID = -1
_HUNDRED = "imaging_quality"


def fits(source: Source) -> bool:
    if not source.keys:
        return False
    return all(
        isinstance(one, list) and len(one) == 2 and isinstance(one[1], list) and _is_listed(one[1])
        for one in source.value.values()
    )


def _is_listed(videos: Sequence[Any]) -> bool:
    return all(isinstance(one, dict) and {"video_path", "video_results"} <= one.keys() for one in videos)


def read(sources: Sequence[Source]) -> Imported:
    dimensions: dict[str, tuple[float, list[Any], Source]] = {}
    for source in sources:  # the official code leaves a file a dimension where they are asked one by one
        for name, (score, videos) in source.value.items():
            if name in dimensions:
                raise DataError(
                    f"{source.path}: {name} is in {dimensions[name][2].path} as well.", expected="each dimension once"
                )
            lost = isinstance(score, float) and math.isnan(score)  # a video of one frame in temporal flickering
            score = math.nan if lost else number(score, f"{source.path}: the score of {name}")
            dimensions[name] = score, videos, source
    variant = _variant(dimensions)
    found: dict[tuple[str, int], Scored] = {}
    official: dict[str, float] = {}
    notes: list[str] = []
    for name, (score, videos, source) in dimensions.items():
        where = f"{source.path}, {name}"
        values = [_value(one["video_results"], f"{where}, {one['video_path']}", variant) for one in videos]
        if name == _HUNDRED:
            values = _of_hundred(values, score, where)
        for one, value in zip(videos, values, strict=True):
            _give(found, str(one["video_path"]), name, value, where)
        if math.isnan(score):
            notes.append(f"{name}: the official score is no number; the mean is over the videos that have one.")
            continue
        official[name] = score
        known = [value for value in values if value is not None]
        mean = sum(known) / len(known) if known else score
        if not math.isclose(mean, score, rel_tol=1e-4, abs_tol=1e-6):
            notes.append(f"{name}: the official score, {score:.4f}, is not the mean over videos, {mean:.4f}.")
    if not found:
        raise DataError(f"{sources[0].path} has no score of a single video.", expected="video_results of each video")
    aggregates = totals(official, variant)
    lacking = [name for name, one in VARIANTS[variant].dimensions.items() if name not in official]
    if aggregates and lacking:
        count = f"{len(lacking)} of {len(official) + len(lacking)} dimensions are missing"
        notes.append(f"Without a total: {count} ({', '.join(lacking)}).")
    extra = tuple(
        (Metric(f"vbench_{name}", "score", True, interval="none"), value, len(official))
        for name, value in aggregates.items()
        if value is not None
    )
    return Imported(
        variant,
        list(found.values()),
        tuple(metric_of_dimension(name) for name in dimensions),
        notes=tuple(notes),
        extra=extra,
        official=official,
    )


def _variant(dimensions: Mapping[str, tuple[float, list[Any], Source]]) -> str:
    """The benchmark that has all these dimensions, the first of several."""
    for name, variant in VARIANTS.items():
        if dimensions.keys() <= variant.dimensions.keys():
            return name
    closest = max(VARIANTS.values(), key=lambda variant: len(dimensions.keys() & variant.dimensions.keys()))
    strange = [name for name in dimensions if name not in closest.dimensions]
    raise DataError(
        f"{next(iter(dimensions.values()))[2].path}: {', '.join(strange)} is no dimension beside the others.",
        expected="the dimensions of VBench, VBench-I2V or VBench-2.0: " + ", ".join(closest.dimensions),
    )


def _value(result: Any, where: str, variant: str) -> float | None:
    if isinstance(result, float) and math.isnan(result):
        return None
    value = number(result, where)
    return None if variant == "vbench-2.0" and value == _INVALID else value


def _of_hundred(values: Sequence[float | None], score: float, where: str) -> list[float | None]:
    """Imaging quality on the scale of its score, whichever of the two the videos are on."""
    known = [value for value in values if value is not None]
    for scale in (100.0, 1.0):
        if known and math.isclose(sum(known) / len(known) / scale, score, rel_tol=1e-3):
            return [None if value is None else value / scale for value in values]
    raise DataError(
        f"{where}: the score is {score:g}, and its videos' mean is neither that nor 100 times that.",
        expected="a file as the official code writes it",
    )


def _give(found: dict[tuple[str, int], Scored], path: str, name: str, value: float | None, where: str) -> None:
    prompt, index = prompt_and_index(path)
    one = found.setdefault((prompt, index), Scored(path, prompt, prompt, index))
    if name in one.values:
        raise DataError(f"{where}: {path} is the second video {index} of its prompt.", expected="each once")
    one.values[name] = value
