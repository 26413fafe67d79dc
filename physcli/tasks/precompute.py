"""`physcli data precompute`: compute and keep all that `physcli finetune` with the same recipe and seed would read.

OUT/run.json, recipe.yaml, metrics.json

The values are in the cache, and the cache alone knows what is there: a run that was killed is given again, and what
was finished is not computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from physcli.errors import UsageError, unknown
from physcli.files import write_text
from physcli.models.device import pick_device
from physcli.progress import Reporter
from physcli.recipe import Cached, completed, dump_recipe
from physcli.rows import Metric, make_row
from physcli.tasks.processes import Processes, on_cpu
from physcli.tasks.run_dir import RunDir, cache_root
from physcli.tasks.sources import simulated_by
from physcli.tasks.training.build import Precomputed, prepare, reads_captions
from physcli.tasks.training.clips import read_clips
from physcli.tasks.training.compute import Tally
from physcli.tasks.training.material import Source
from physcli.tasks.training.request import FinetuneRequest


@dataclass(frozen=True)
class PrecomputeResult:
    """What is kept now.

    Attributes:
        path: The run directory.
        num_clips: Training clips.
        tallies: Of each signal.
        problems: Why clips were left out, a line each.
        is_main: This is the process that shows it.
    """

    path: Path
    num_clips: int
    tallies: list[Tally]
    problems: list[str]
    is_main: bool = True


def precompute(
    request: FinetuneRequest, *, only: tuple[str, ...] = (), reporter: Reporter | None = None
) -> PrecomputeResult:
    """Compute what a recipe's training reads of its clips, without training.

    Args:
        request: The recipe, and what is given beside it.
        only: Instead of the recipe's `data.cache`.
        reporter: Receives progress.

    Raises:
        UsageError: a recipe whose training reads nothing that is kept.
        DataError: clips that cannot be used, or a disk that is full or too small for what all processes would write.
        PhyscliError: whatever else would stop `finetune`.
    """
    for name in only:
        if name not in get_args(Cached):
            raise unknown("signal", name, get_args(Cached))
    if only:
        request = replace(request, overrides=(*request.overrides, f"data.cache=[{', '.join(only)}]"))
    recipe, seed, device = request.recipe(), request.seed, request.device
    if not isinstance(recipe, Precomputed):
        raise UsageError(
            f"{request.recipe_name} trains a {recipe.trains}, which reads clips as they are: there is nothing to "
            "compute.",
            expected="a recipe that trains a generator, a motion field or a motion projector",
        )
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    if processes.warning:
        reporter.warn(processes.warning)
    run = RunDir(
        request.out,
        "data precompute",
        _settings(recipe.model_dump(mode="json"), seed) | simulated_by(recipe.data.source),
        complete=lambda then: {**then, **_settings(completed(then["recipe"], recipe), then["seed"])},
        overwrite=request.overwrite,
        reporter=reporter,
        processes=processes,
    )
    with run:
        if run.already_finished:  # the cache may have been cleared since
            run.reopen()
        cache = cache_root(request.cache_dir)
        training, held_out = read_clips(
            recipe.data, cache=cache, processes=processes, reporter=reporter, captions=reads_captions(recipe)
        )
        source = Source(training, held_out, recipe.data, seed, None, cache, processes, reporter)
        material = prepare(recipe, source, pick_device("cpu" if on_cpu(device) else device)).material
        if processes.is_main:
            write_text(run.path / "recipe.yaml", dump_recipe(recipe))
            run.record["unreadable_clips"] = material.problems
            run.write_metrics(row for tally in material.tallies for row in _rows(tally, recipe.model))
    processes.finish()
    return PrecomputeResult(run.path, len(training), material.tallies, material.problems, processes.is_main)


def _settings(recipe: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What makes two runs the same one."""
    content = {key: value for key, value in recipe.items() if key not in ("train", "description")}
    content["data"] = {key: value for key, value in content["data"].items() if key != "max_uncaptioned"}
    return {"recipe": content, "seed": seed}


def _rows(tally: Tally, subject: str) -> list[dict[str, Any]]:
    """Rows of metrics.json: how many values were wanted, there before and computed, and their bytes."""
    common: dict[str, Any] = {"benchmark": "cache", "task": "precompute", "subject": subject, "group": tally.signal}
    counts = {"wanted": tally.wanted, "kept": tally.kept, "computed": tally.computed, "bytes": tally.num_bytes}
    return [
        make_row(Metric(name, "count", None, interval="none"), value, n=tally.wanted, **common)
        for name, value in counts.items()
    ]
