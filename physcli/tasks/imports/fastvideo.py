"""Results of `fastvideo eval run` (hao-ai-lab/FastVideo at 2f3d407): a JSON list of `video` and `scores`.

`scores` is metric → {name, score, details}. A score is null where the metric was skipped for that video. Prompts are
not in the file: the video's name stands for it, without the number of VBench's names (`prompt-0.mp4`) where those
leave several prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from physcli.benchmarks.dynamic_degree import DYNAMIC_DEGREE
from physcli.benchmarks.vbench import VARIANTS, metric_of_dimension
from physcli.errors import DataError
from physcli.rows import Metric
from physcli.tasks.imports.base import Imported, Scored, Source, number, prompt_and_index, stem

WHAT = "a JSON list of objects with video and scores (metric → name, score, details)"

# Those of its metrics that are of single videos and whose better end is known; of others neither end is.
_BETTER = {"common.ssim": True, "common.psnr": True, "common.lpips": False}


def fits(source: Source) -> bool:
    return (
        isinstance(source.value, list)
        and bool(source.value)
        and all(
            isinstance(one, dict)
            and isinstance(one.get("video"), str)
            and isinstance(one.get("scores"), dict)
            and all(isinstance(score, dict) and "score" in score for score in one["scores"].values())
            for one in source.value
        )
    )


def read(sources: Sequence[Source]) -> Imported:
    videos: dict[str, Scored] = {}
    skipped: dict[str, str] = {}
    for source in sources:
        for one in source.value:
            name = one["video"]
            prompt, index = prompt_and_index(name)
            scored = videos.setdefault(name, Scored(name, prompt, index=index))
            for metric, result in one["scores"].items():
                where = f"{source.path}, {name}: {metric}"
                if metric in scored.values:
                    raise DataError(f"{where} for a second time.", expected="each once")
                value = None if result["score"] is None else number(result["score"], where)
                scored.values[metric] = value
                if value is None:
                    skipped[metric] = str((result.get("details") or {}).get("skipped", "no reason is given"))[:80]
    names = list(dict.fromkeys(name for one in videos.values() for name in one.values))
    scored_names = [n for n in names if any(one.values.get(n) is not None for one in videos.values())]
    if not scored_names:
        raise DataError(f"{sources[0].path} has no score.", expected="a number for at least one metric and video")
    if len({one.prompt for one in videos.values()}) == 1 or len({(v.prompt, v.index) for v in videos.values()}) < len(
        videos
    ):
        for one in videos.values():  # the numbers are not those of a prompt's videos
            one.prompt, one.index = stem(one.name), 0
    notes = [f"{name} has no score of some or all videos ({why})." for name, why in skipped.items()]
    for one in videos.values():
        one.values = {name: value for name, value in one.values.items() if name in scored_names}
    return Imported(
        "fastvideo",
        list(videos.values()),
        tuple(_metric(name) for name in scored_names),
        notes=("Prompts are not in the file: the videos' names stand for them.", *notes),
    )


def _metric(name: str) -> Metric:
    group, _, dimension = name.partition(".")
    if group == "vbench" and dimension in VARIANTS["vbench"].dimensions:
        of = metric_of_dimension(dimension)
        kind = "score" if of.kind == "rate" and dimension != DYNAMIC_DEGREE.name else of.kind
        return Metric(name, kind, of.higher_is_better, of.role, "normal" if kind == "score" else of.interval)
    return Metric(name, "score", _BETTER.get(name))
