"""`physcli finetune`: train by a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.options import TrainRun, shared


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
            help="simulated, simulated:N (3N training and N held-out clips) or a folder.  \\[default: the recipe's]",
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
) -> None:
    """Train by a recipe; the result is an ordinary model folder."""
    from physcli.tasks.finetune import finetune as run_finetune
    from physcli.tasks.run_dir import to_json

    done = run_finetune(
        recipe,
        overrides=tuple(overrides or ()),
        model=model,
        data=data,
        steps=steps,
        resume=resume,
        out=common.out,
        overwrite=common.overwrite,
        seed=common.seed,
        device=common.device,
        cache_dir=common.cache_dir,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if not done.is_main:
        return
    if common.json:
        render.json_text(to_json({"run": done.path, "model": done.model, "rows": done.rows}))
        return
    last = done.steps[-1]
    rows = [["loss", f"{last['loss']:.4g}", "", "last step"]]
    for row in done.rows:
        error = "" if row["stderr"] is None else f"±{row['stderr']:.2g}"
        rows.append([row["metric"], f"{row['value']:.4g}", error, f"{row['n']} {row['split']}"])
    render.table(f"Trained for {last['step']:,} steps", ["", "value", "", "over"], rows, right=(1, 2))
    files = {"model": done.model, "loss": done.path / "loss.png", "steps": done.path / "steps.jsonl"}
    samples = sorted((done.path / "samples").glob("step-*/*.png"))
    render.files(files | ({"samples": samples[-1]} if samples else {}))
