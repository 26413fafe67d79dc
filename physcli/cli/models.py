"""`physcli models …`: which models there are, and what one is."""

from __future__ import annotations

from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.options import Output, shared

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", help="Which models there are, and what one is."
)


@app.command("ls")
@shared(Output)
def ls(common: Output) -> None:
    """Built-in models, motion fields and motion projectors, and known hub checkpoints."""
    from physcli.tasks.models import list_models
    from physcli.tasks.run_dir import to_json

    rows = list_models()
    if common.json:
        render.json_text(to_json(rows))
        return
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines = [[row["name"], row["weights"], row["description"]] for row in rows if row["kind"] == kind]
        render.table(f"{kind.capitalize()}s", ["name", "weights", "what"], lines, whole=(0, 1))
    render.result(
        "--model takes a generator or an encoder of these, any hub id, a folder in diffusers or transformers layout, "
        "or a run directory."
    )


@app.command("show")
@shared(Output)
def show(
    common: Output,
    name: Annotated[str, typer.Argument(help="A name of `models ls`, a hub id, a folder or a run directory.")],
) -> None:
    """One model: where it comes from, its blocks, sizes, preprocessing and content hash."""
    from physcli.tasks.models import show_model
    from physcli.tasks.run_dir import to_json

    facts = show_model(name)
    if common.json:
        render.json_text(to_json(facts))
        return
    title = str(facts.pop("name"))
    render.table(title, ["what", "value"], [[what, _readable(value)] for what, value in facts.items()])


def _readable(value: object) -> str | None:
    """Parts of a mapping one after the other, thousands apart."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(part)}" for name, part in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return None if value is None else str(value)
