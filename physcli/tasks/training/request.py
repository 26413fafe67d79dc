"""What `physcli finetune` and `physcli data precompute` are asked for.

Nothing heavy is imported here: a mistyped recipe is refused before torch is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.models.names import refuse_unknown
from physcli.recipe import AnyRecipe, read_recipe

# Fields that change no weight: a run and its continuation may differ in them.
FREE = {
    "train": ("checkpoint_every", "keep_checkpoints", "validate_every", "trackers"),
    "data": ("max_uncaptioned",),
}


def bearing(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe, as `model_dump` for JSON gives it, bears on the weights."""
    content = {key: value for key, value in recipe.items() if key != "description"}
    for section, free in FREE.items():
        content[section] = {key: value for key, value in content.get(section, {}).items() if key not in free}
    return content


@dataclass(frozen=True)
class FinetuneRequest:
    """A recipe with what is given beside it, and where and how the run is made.

    Attributes:
        recipe_name: A packaged recipe or a file.
        overrides: `key=value`, after the recipe and before the fields below.
        model: Start from this model's weights instead of what the recipe says.
        data: Instead of the recipe's `data.source`.
        steps: Instead of the recipe's `train.steps`.
        out: The run directory.
        overwrite: Replace a run with other settings.
        seed: Of the order of clips, their windows and all noise.
        device: auto, cpu, cuda, ….
        cache_dir: Simulated clips, latents and features.
    """

    recipe_name: str
    overrides: tuple[str, ...] = ()
    model: str | None = None
    data: str | None = None
    steps: int | None = None
    out: Path | None = None
    overwrite: bool = False
    seed: int = 0
    device: str = "auto"
    cache_dir: Path | None = None

    def recipe(self) -> AnyRecipe:
        """The recipe with all that was given beside it.

        Raises:
            RecipeError: a file that is no recipe.
            UsageError: an unknown recipe or model, or something given beside it that it cannot have.
            ModelError: a path that is no model.
        """
        changes = [*self.overrides]
        changes += [f"model={_quoted(self.model)}", "init=pretrained"] if self.model is not None else []
        changes += [f"data.source={_quoted(self.data)}"] if self.data is not None else []
        changes += [f"train.steps={self.steps}"] if self.steps is not None else []
        recipe = read_recipe(self.recipe_name, changes)
        if recipe.init == "pretrained" and recipe.trains != "rater":
            refuse_unknown(recipe.model)
        for beside in ("teacher", "critic"):
            if (name := getattr(getattr(recipe, "method", None), beside, None)) is not None:
                refuse_unknown(name)
        return recipe


def _quoted(text: str) -> str:
    """As a YAML value."""
    return json.dumps(text, ensure_ascii=False)
