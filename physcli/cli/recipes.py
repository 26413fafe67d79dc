"""`physcli recipes …`: which recipes there are, what one says, a copy to change, a check of it, their schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.options import Output, shared

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="What can be trained: list, read, copy and check recipes.",
)

Name = Annotated[str, typer.Argument(help="A name of `recipes ls`, or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields to change.", show_default=False)
]


@app.command("ls")
@shared(Output)
def ls(common: Output) -> None:
    """Packaged recipes."""
    from physcli.tasks.recipes import list_rows
    from physcli.tasks.run_dir import to_json

    rows = list_rows()
    if common.json:
        render.json_text(to_json(rows))
        return
    lines = [[row["name"], row["model"], f"{row['steps']:,}", row["description"]] for row in rows]
    render.table("Recipes", ["name", "model", "steps", "what"], lines, right=(2,), whole=(0,))
    render.result("physcli finetune --recipe NAME; `recipes copy NAME` makes one to change.")


@app.command("show")
@shared(Output)
def show(common: Output, name: Name, overrides: Overrides = None) -> None:
    """A recipe's file; with KEY=VALUE or --json, every field of it, defaults included."""
    from physcli.tasks.recipes import read_text, resolved
    from physcli.tasks.run_dir import to_json

    if common.json:
        render.json_text(to_json(resolved(name, overrides or ())[0].model_dump(mode="json")))
    else:
        render.result((resolved(name, overrides)[1] if overrides else read_text(name)).rstrip())


@app.command("copy")
@shared(Output)
def copy(
    common: Output,
    name: Name,
    target: Annotated[
        Path | None, typer.Argument(help="A file or folder.  \\[default: the working directory]", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a recipe, to change it."""
    from physcli.tasks.recipes import copy_recipe
    from physcli.tasks.run_dir import to_json

    path = copy_recipe(name, target, overwrite=overwrite)
    if common.json:
        render.json_text(to_json({"recipe": path}))
    else:
        render.files({"recipe": path})


@app.command("validate")
@shared(Output)
def validate(common: Output, name: Name, overrides: Overrides = None) -> None:
    """Check a recipe without training: fields, types and values. Errors name the field and the nearest one there is."""
    from physcli.tasks.recipes import resolved
    from physcli.tasks.run_dir import to_json

    recipe, _ = resolved(name, overrides or ())
    if common.json:
        render.json_text(to_json({"valid": True, "trains": recipe.trains, "model": recipe.model}))
    else:
        render.result(f"{name} is a valid recipe; it trains a {recipe.trains} from {recipe.model}.")


@app.command("reference")
@shared(Output)
def reference(
    common: Output,
    run: Annotated[Path, typer.Argument(help="A run of finetune.")],
    name: Name,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a reference that is there.")] = False,
) -> None:
    """Keep a run's loss, thinned, beside its recipe; finetune draws it into loss.png of later runs."""
    from physcli.tasks.references import write_reference
    from physcli.tasks.run_dir import to_json

    path = write_reference(run, name, overwrite=overwrite)
    if common.json:
        render.json_text(to_json({"reference": path}))
    else:
        render.files({"reference": path})


@app.command("schema")
@shared(Output)
def schema(common: Output) -> None:
    """The JSON schema of recipes, for editors. A recipe's first line names it, also in what `recipes copy` makes."""
    from physcli.tasks.recipes import schema_text

    render.json_text(schema_text())
