"""`physcli prompts …`: lists of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.options import ModelRun, shared

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", help="Lists of prompts.")


@app.callback()
def _group() -> None:
    """Lists of prompts."""


@app.command("upsample")
@shared(ModelRun)
def upsample(
    common: ModelRun,
    prompts: Annotated[Path, typer.Option(metavar="FILE", help="Captions: .txt (one a line), .csv or .jsonl.")],
    model: Annotated[
        str, typer.Option(help="A text model: hub id or folder; with --server the name that the server knows.")
    ],
    server: Annotated[
        bool,
        typer.Option("--server", help="Ask a server that speaks OpenAI's protocol: OPENAI_BASE_URL, OPENAI_API_KEY."),
    ] = False,
    words: Annotated[int, typer.Option(min=1, help="At most, of a prompt.")] = 120,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest words.")] = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many captions.", show_default=False)] = None,
) -> None:
    """Rewrite short captions as the detailed prompts that video models are trained on; resumable."""
    from physcli.tasks.upsample import UpsampleSettings
    from physcli.tasks.upsample import upsample as task

    done = task(
        UpsampleSettings(str(prompts), model, server, words, temperature, limit, common.seed),
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        dtype=common.dtype,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, prompts=done.prompts, rows=done.rows):
        return
    counted = len(done.prompts) - done.missing
    render.table(
        f"{counted} of {len(done.prompts)} captions rewritten",
        ["caption", "prompt"],
        [[row["caption"], row["prompt"] or "(missing)"] for row in done.prompts[:5]],
        caption="the first five" if len(done.prompts) > 5 else "",
    )
    render.files({"prompts": done.path / "prompts.jsonl", "rows": done.path / "metrics.json"})
