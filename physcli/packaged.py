"""Where the files lie that come with the package."""

from __future__ import annotations

from pathlib import Path


def recipe_folders() -> list[Path]:
    """Where recipes live: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    return [folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()]
