"""`physcli data precompute`: compute and keep all that `physcli finetune` with the same recipe and seed would read.

OUT/run.json, recipe.yaml, metrics.json

The values are in the cache, and the cache alone knows what is there: a run that was killed is given again, and what
was finished is not computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from physcli.errors import UsageError, unknown
from physcli.files import write_text
from physcli.models.loading import pick_device
from physcli.progress import Reporter
from physcli.recipe import Cached, dump_recipe
from physcli.tasks.finetune import resolve_recipe
from physcli.tasks.processes import Processes, on_cpu
from physcli.tasks.run_dir import RunDir, cache_root
from physcli.tasks.training.build import Precomputed, prepare
from physcli.tasks.training.clips import read_clips
from physcli.tasks.training.compute import Tally
from physcli.tasks.training.material import Source


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
    recipe_name: str,
    *,
    overrides: tuple[str, ...] = (),
    model: str | None = None,
    data: str | None = None,
    only: tuple[str, ...] = (),
    out: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    device: str = "auto",
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> PrecomputeResult:
    """Compute what a recipe's training reads of its clips, without training.

    Args:
        recipe_name: A packaged recipe or a file.
        overrides: `key=value`, after the recipe and before the arguments below.
        model: Instead of the recipe's model.
        data: Instead of the recipe's `data.source`.
        only: Instead of the recipe's `data.cache`.
        out: The run directory.
        overwrite: Replace a run with other settings.
        seed: Of the windows, as for `finetune`.
        device: auto, cpu, cuda, ….
        cache_dir: Where everything is kept.
        reporter: Receives progress.

    Raises:
        UsageError: a recipe whose training reads nothing that is kept.
        DataError: clips that cannot be used, or a disk that is full or too small for what all processes would write.
        PhyscliError: whatever else would stop `finetune`.
    """
    for name in only:
        if name not in get_args(Cached):
            raise unknown("signal", name, get_args(Cached))
    chosen = (*overrides, f"data.cache=[{', '.join(only)}]") if only else overrides
    recipe = resolve_recipe(recipe_name, chosen, model=model, data=data)
    if not isinstance(recipe, Precomputed):
        raise UsageError(
            f"{recipe_name} trains a {recipe.trains}, which reads clips as they are: there is nothing to compute.",
            expected="a recipe that trains a generator, a motion field or a motion projector",
        )
    processes = Processes(device)
    reporter = (reporter or Reporter()) if processes.is_main else Reporter()
    if processes.warning:
        reporter.warn(processes.warning)
    content = recipe.model_dump(mode="json", exclude={"train", "description"})
    run = RunDir(
        out,
        "data precompute",
        {"recipe": content, "seed": seed},
        overwrite=overwrite,
        reporter=reporter,
        writes=processes.is_main,
    )
    with run:
        run.path = Path(processes.tell(str(run.path)))
        if run.already_finished:  # the cache may have been cleared since
            run.reopen()
        cache = cache_root(cache_dir)
        training, held_out = read_clips(recipe.data, cache=cache, processes=processes, reporter=reporter)
        source = Source(training, held_out, recipe.data, seed, None, cache, processes, reporter)
        material = prepare(recipe, source, pick_device("cpu" if on_cpu(device) else device)).material
        if processes.is_main:
            write_text(run.path / "recipe.yaml", dump_recipe(recipe))
            run.record["unreadable_clips"] = material.problems
            run.write_metrics(row for tally in material.tallies for row in _rows(tally, recipe.model))
    processes.finish()
    return PrecomputeResult(run.path, len(training), material.tallies, material.problems, processes.is_main)


def _rows(tally: Tally, subject: str) -> list[dict[str, Any]]:
    """Rows of metrics.json: how many values were wanted, there before and computed, and their bytes."""
    common = {"benchmark": "cache", "task": "precompute", "subject": subject, "split": "all", "group": tally.signal}
    counts = {"wanted": tally.wanted, "kept": tally.kept, "computed": tally.computed, "bytes": tally.num_bytes}
    return [
        {**common, "metric": metric, "value": value, "stderr": None, "n": tally.wanted, "higher_is_better": None}
        for metric, value in counts.items()
    ]
