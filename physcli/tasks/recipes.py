"""`physcli recipes …`: which recipes there are, what one says, a copy to change, a check of it, and their schema.

A recipe's first line tells editors where the schema of recipes is; YAML language servers read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from physcli.errors import UsageError
from physcli.files import write_text
from physcli.recipe import (
    AnyRecipe,
    dump_recipe,
    find_recipe,
    list_recipes,
    read_recipe,
    recipe_schema,
    recipe_text,
    schema_file,
)
from physcli.tasks.run_dir import to_json

SCHEMA_LINE = "# yaml-language-server: $schema="


def list_rows() -> list[dict[str, Any]]:
    """One row a packaged recipe: its name, what it trains, by which method, from which model, and its description."""
    rows = []
    for name, path in list_recipes().items():
        recipe = read_recipe(path)
        method = getattr(recipe, "method", None)
        rows.append(
            {
                "name": name,
                "trains": recipe.trains,
                "method": method.name if method is not None else None,
                "model": recipe.model,
                "steps": recipe.train.steps,
                "description": recipe.description,
            }
        )
    return rows


def read_text(name: str) -> str:
    """A recipe's file as it is."""
    return recipe_text(find_recipe(name))


def resolved(name: str, overrides: Iterable[str] = ()) -> tuple[AnyRecipe, str]:
    """A recipe, checked, with overrides; and all of its fields as YAML, defaults included."""
    recipe = read_recipe(name, overrides)
    return recipe, dump_recipe(recipe)


def schema_text() -> str:
    """The JSON schema of recipes, for editors and other tools."""
    return to_json(recipe_schema())


def copy_recipe(name: str, target: Path | None = None, *, overwrite: bool = False) -> Path:
    """Copy a recipe's file, to change it. Its first line names the installed schema by its whole path.

    Args:
        name: Of a packaged recipe, or a file.
        target: A file or a folder; the working directory if not given.
        overwrite: Replace a file that is there.

    Raises:
        RecipeError: `name` is a file that cannot be read.
        UsageError: the file is there already.
    """
    source = find_recipe(name)
    lines = recipe_text(source).splitlines(keepends=True)
    body = [line for line in lines if not line.startswith(SCHEMA_LINE)]
    target = target or Path()
    if target.is_dir() or target.suffix not in (".yaml", ".yml"):
        target = target / source.name
    if target.exists() and not overwrite:
        raise UsageError(
            f"{target} is there already.", expected="a new file", fix="name another one, or give --overwrite"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, "".join([f"{SCHEMA_LINE}{schema_file().as_uri()}\n", *body]))
    return target
