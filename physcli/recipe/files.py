"""Where recipes are: those of the package by name, and any file."""

from __future__ import annotations

import os
from pathlib import Path

from physcli.errors import RecipeError, unknown
from physcli.packaged import recipe_folders

_SUFFIXES = (".yaml", ".yml")
STUDIES = "study"  # folder of the packaged studies, among the recipes


def schema_file() -> Path:
    """The packaged recipes' JSON schema, which is what `recipe_schema` gives."""
    return recipe_folders()[0] / "schema.json"


def list_recipes() -> dict[str, Path]:
    """Name → file of every packaged recipe; a name is the path without suffix, such as `pretrain/vae-tiny`."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.rglob("*.yaml")):
            if path.parent == folder / STUDIES:
                continue
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def find_recipe(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a packaged recipe's name, or the given file.

    Raises:
        RecipeError: a path that does not exist.
        UsageError: a name that no packaged recipe has.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix in _SUFFIXES:
        if path.is_file():
            return path
        packaged = list_recipes().get(path.with_suffix("").as_posix())
        if packaged is None:
            raise RecipeError(
                f"No such recipe file: {path}.",
                expected=f"an existing .yaml file, or one of {', '.join(list_recipes())}",
            )
        return packaged
    recipes = list_recipes()
    if str(name_or_path) not in recipes:
        raise unknown("recipe", str(name_or_path), recipes)
    return recipes[str(name_or_path)]
