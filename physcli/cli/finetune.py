"""`physcli finetune`: train by a recipe."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from physcli.cli import render
from physcli.cli.options import TrainRun, shared
from physcli.progress import duration_in_words, size_in_words

if TYPE_CHECKING:
    from physcli.tasks.training.request import FinetuneRequest


@shared(TrainRun)
def finetune(
    common: TrainRun,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Fields of the recipe, such as train.batch_size=4 train.optimizer.lr=1e-4.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="A packaged recipe (pretrain/vae-tiny, …) or a YAML file.", show_default=False),
    ] = ...,  # type: ignore[assignment]
    model: Annotated[
        str | None,
        typer.Option(
            help="Start from these weights: built-in name, hub id, folder or run directory.  \\[default: the recipe's]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="simulated, simulated:N (3N training and N held-out clips), a folder, or a hub dataset: "
            "hub:OWNER/NAME or hub:OWNER/NAME@REVISION/FOLDER.  \\[default: the recipe's]",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimizer steps.  \\[default: the recipe's]", show_default=False),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on from a checkpoint, exactly: latest (the newest whole one in --out), a checkpoint-N folder or a "
            "run directory.",
            show_default=False,
        ),
    ] = None,
    no_reference: Annotated[
        bool,
        typer.Option("--no-reference", help="Leave the recipe's reference curve, if it has one, out of loss.png."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Load everything, take two steps, say what the run would take, and leave nothing.",
        ),
    ] = False,
) -> None:
    """Train by a recipe; the result is an ordinary model folder."""
    request = train_request(common, recipe, overrides, model=model, data=data, steps=steps)
    if dry_run:
        _plan(common, request)
        return

    from physcli.tasks.figures import score_texts
    from physcli.tasks.finetune import BEST
    from physcli.tasks.finetune import finetune as run_finetune

    done = run_finetune(
        request, resume=resume, reference=not no_reference, reporter=render.RichReporter(quiet=common.quiet)
    )
    if render.answered(common, done, model=done.model, rows=done.rows):
        return
    last = done.steps[-1]
    rows = [["loss", f"{last['loss']:.4g}", "", "last step"]]
    for row in done.rows:
        group = "" if row["group"] == "all" else f", {row['group']}"
        rows.append([row["metric"] + group, *score_texts(row), f"{row['n']} {row['split']}"])
    render.table(f"Trained for {last['step']:,} steps", ["", "value", "95 %", "over"], rows, right=(1, 2))
    files = {"model": done.model, "loss": done.path / "loss.png", "steps": done.path / "steps.jsonl"}
    found = {"best": done.path / BEST / done.model.name, "scores": done.path / "scores.png"}
    files |= {name: path for name, path in found.items() if path.exists()}
    samples = sorted((done.path / "samples").glob("step-*/*.png"))
    render.files(files | ({"samples": samples[-1]} if samples else {}))


def train_request(common: TrainRun, recipe: str, overrides: list[str] | None, **given: Any) -> FinetuneRequest:
    """What a command that reads a recipe was asked for. A mistyped one is refused here, before torch is imported."""
    from physcli.tasks.training.request import FinetuneRequest

    request = FinetuneRequest(
        recipe,
        tuple(overrides or ()),
        **given,
        out=common.out,
        overwrite=common.overwrite,
        seed=common.seed,
        device=common.device,
        cache_dir=common.cache_dir,
    )
    request.recipe()
    return request


def _plan(common: TrainRun, request: FinetuneRequest) -> None:
    from physcli.tasks.processes import Processes
    from physcli.tasks.run_dir import cache_root, to_json
    from physcli.tasks.training.plan import make_plan

    recipe = request.recipe()
    processes = Processes(common.device)
    plan = make_plan(
        recipe,
        seed=common.seed,
        device=common.device,
        cache=cache_root(common.cache_dir),
        processes=processes,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    processes.finish()
    if not processes.is_main:
        return
    if common.json:
        render.json_text(to_json({"recipe": recipe.model_dump(mode="json"), "plan": asdict(plan)}))
        return
    method = getattr(recipe, "method", None)
    whole = plan.step_seconds * recipe.train.steps
    rounds = hasattr(method, "steps_per_round")
    left_out = "validation, scoring and the rounds' videos" if rounds else "validation and scoring"
    rows = [
        ["trains", recipe.trains + (f", by {method.name}" if method is not None else "")],
        ["from", recipe.model],
        ["parameters trained", f"{plan.trained:,}"],
        ["clips", f"{plan.num_clips:,} of {recipe.data.source}"],
    ]
    if plan.windows:
        rows += [
            [
                "windows kept",
                f"{plan.windows:,}, {size_in_words(plan.cache_bytes)} ({size_in_words(plan.free_bytes)} free)",
            ],
            ["to compute them", f"{duration_in_words(plan.cache_seconds)} at most, with one process"],
        ]
    rows += [
        ["a step", f"{plan.step_seconds:.3g} s for {recipe.train.batch_size * recipe.train.accumulate} clips"],
        [f"{recipe.train.steps:,} steps", f"{duration_in_words(whole)}, with one process, {left_out} left out"],
        ["memory", f"{size_in_words(plan.memory_bytes)} on {plan.device}"],
        ["checkpoints", f"{recipe.train.keep_checkpoints} of {size_in_words(plan.checkpoint_bytes)}"],
    ]
    render.table("A dry run: nothing was written", ["what", "value"], rows)
