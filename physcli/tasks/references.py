"""Reference curves: what a recipe's loss did when it was run, in NAME.steps.jsonl beside NAME.yaml.

The first line says what was run, `{"recipe": …, "physcli": …}`, its batch size that of all processes together; the
others are means over a stretch of steps each, `{"step": last of the stretch, "loss": …, …}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.errors import DataError, UsageError
from physcli.files import write_text
from physcli.recipe import AnyRecipe, completed, find_recipe
from physcli.tasks.run_dir import read_log, read_rows, read_run, to_json
from physcli.tasks.training.request import FREE

MAX_BYTES = 30_000
_STRETCHES = 120
_NO_CURVES = ("step", "samples", "lr", "seconds")
# Sections and fields that say nothing of the loss.
_IDLE = (
    *("description", "save_dtype", "scoring", "train.score_every"),
    *(f"{section}.{name}" for section, names in FREE.items() for name in names),
)


@dataclass(frozen=True)
class Reference:
    """A curve to be drawn beside a run's own.

    Attributes:
        steps: Rows as those of steps.jsonl, means over stretches.
        differences: Fields of the recipe in which the run is another, `train.batch_size=4 (reference: 8)`.
    """

    steps: Sequence[Mapping[str, Any]]
    differences: Sequence[str]

    @property
    def in_words(self) -> str:
        """What a reader of the picture should know."""
        if not self.differences:
            return "loss.png shows the recipe's reference run beside this one."
        shown = ", ".join(self.differences[:5]) + (", …" if self.differences[5:] else "")
        return f"loss.png shows the recipe's reference run beside this one, which differs from it: {shown}."


def reference_file(recipe_name: str) -> Path:
    """Where a recipe's reference is, if it has one."""
    return find_recipe(recipe_name).with_suffix(".steps.jsonl")


def find_reference(recipe_name: str, recipe: AnyRecipe, num_processes: int = 1) -> Reference | None:
    """The reference of a recipe, or None: it has none, or it is of another model.

    Args:
        recipe_name: A packaged recipe or a file.
        recipe: As it is run now.
        num_processes: By so many.

    Raises:
        DataError: a file that is no reference.
    """
    path = reference_file(recipe_name)
    if not path.is_file():
        return None
    try:
        about, *steps = read_rows(path)
        then = completed(about["recipe"], recipe)
        if not steps or any(not {"step", "loss"} <= row.keys() for row in steps):
            raise ValueError("no step with a loss")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no reference curve: {error}.",
            expected="what `physcli recipes reference` writes",
            fix="remove it, or make it again",
        ) from error
    now = recipe.model_dump(mode="json")
    now["train"]["batch_size"] *= num_processes
    if then["model"] != now["model"]:
        return None
    return Reference(steps, _differences(_flat(then), _flat(now)))


def write_reference(run: Path, recipe_name: str, *, overwrite: bool = False) -> Path:
    """Thin a run's steps.jsonl and put it beside a recipe's file.

    Args:
        run: Of `finetune`; of one that ended early, as far as it came.
        recipe_name: A recipe file, or a packaged recipe's name.
        overwrite: Replace a reference that is there.

    Raises:
        UsageError: no run of finetune that took a step, or there is a reference already.
    """
    record = read_run(run)
    steps = read_log(run / "steps.jsonl")
    if record is None or record.get("command") != "finetune" or not steps:
        raise UsageError(
            f"{run} is no run of finetune that took a step.", expected="a folder that `physcli finetune` made"
        )
    recipe = record["settings"]["recipe"]
    path = reference_file(recipe_name)
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already.", expected="a recipe without one", fix="give --overwrite")
    batch_size = steps[0]["samples"] // steps[0]["step"] // recipe["train"].get("accumulate", 1)
    recipe = {**recipe, "train": {**recipe["train"], "batch_size": batch_size}}
    about = {"recipe": recipe, "physcli": record["versions"]["physcli"]}
    write_text(path, "".join(to_json(row, indent=None) + "\n" for row in [about, *thinned(steps)]))
    return path


def thinned(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At most 120 rows: of every curve the mean over a stretch of steps, to four digits."""
    size = math.ceil(len(steps) / _STRETCHES)
    rows = []
    for first in range(0, len(steps), size):
        some = steps[first : first + size]
        row: dict[str, Any] = {"step": some[-1]["step"]}
        for name in dict.fromkeys(name for one in some for name in one if name not in _NO_CURVES):
            values = [one[name] for one in some if one.get(name) is not None]
            if values:
                row[name] = float(f"{sum(values) / len(values):.4g}")
        rows.append(row)
    return rows


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that bear on the loss: `train.batch_size` → 4."""
    fields: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if name in _IDLE:
            return
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else key)
        else:
            fields[name] = value

    walk(recipe, "")
    return fields


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={now.get(name)} (reference: {then.get(name)})"
        for name in dict.fromkeys([*now, *then])
        if now.get(name) != then.get(name)
    ]
