"""Sampson errors of NVIDIA Cosmos' scripts (cosmos-cookbook, "Model Evaluation Predict"): a JSON file a video.

`results.T` has the temporal error of each camera view, `results.C` that between two views, in pixels, less is better:
`mean`, `median` and the frames' values, of which the means are taken. FID and FVD of the same scripts are numbers of
whole sets and cannot be paired.
"""

from __future__ import annotations

from collections.abc import Sequence

from physcli.errors import DataError
from physcli.rows import Metric
from physcli.tasks.imports.base import Imported, Scored, Source, number

WHAT = "JSON objects with clip_id and results, T and C, of Cosmos' Sampson errors, a file a video"

_KINDS = {"T": "temporal_sampson", "C": "cross_view_sampson"}


def fits(source: Source) -> bool:
    results = source.value.get("results") if isinstance(source.value, dict) else None
    return (
        isinstance(results, dict)
        and "clip_id" in source.value
        and bool(results)
        and results.keys() <= _KINDS.keys()
        and all(isinstance(of, dict) for of in results.values())
    )


def read(sources: Sequence[Source]) -> Imported:
    videos: dict[str, Scored] = {}
    metrics: dict[str, Metric] = {}
    for source in sources:
        clip = str(source.value["clip_id"])
        if clip in videos:
            raise DataError(f"{source.path}: the clip {clip} for a second time.", expected="a file a clip")
        values = {}
        for letter, views in source.value["results"].items():
            for view, told in views.items():
                name = f"{_KINDS[letter]}/{view}"
                mean = told.get("mean") if isinstance(told, dict) else None
                values[name] = number(mean, f"{source.path}: the mean of {letter}, {view}", low=0)
                metrics[name] = Metric(name, "px", False)
        videos[clip] = Scored(str(source.value.get("video_path") or clip), clip, values=values, index=0)
    return Imported("cosmos-sampson", list(videos.values()), tuple(metrics.values()))
