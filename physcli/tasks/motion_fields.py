"""Where a motion field or a motion projector is found: by name, in a run, beside the model, or in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from physcli.errors import ModelError, UsageError
from physcli.methods.lamo import MotionField
from physcli.models.loading import Resolved
from physcli.models.tiny import asset_folder

SHIPPED_FIELD = "motion-field-tiny"
_MADE_BY = {"motion_projector": "moalign-motion", "motion_field": "lamo-field"}


def part_folder(name: str, part: str, option: str) -> Path:
    """The folder or file that a user means: one of the package's, that of a run, or the path itself.

    Args:
        name: As given.
        part: motion_projector or motion_field: what a run calls it.
        option: How it was given, for the message.

    Raises:
        ModelError: it is not there.
    """
    if Path(name).name == name and (shipped := asset_folder(name)) is not None:
        return shipped
    path = Path(name).expanduser()
    if not path.exists():
        raise ModelError(
            f"{option}{name} is not there.",
            expected=f"the run of `physcli finetune --recipe {_MADE_BY[part]}`, or its {part}/",
            fix=f"train one first, or name it: {option}DIR",
        )
    return path / part if (path / part).is_dir() else path


def find_field(name: str | None, model: Resolved) -> Path:
    """The motion field to follow: the one that was named, else the one in the model's or the adapter's run, else the
    one in the package, which fits the embedded model and what was fine-tuned from it.

    Raises:
        ModelError: the named one is not there.
    """
    if name is not None:
        return part_folder(name, "motion_field", "--motion-field ")
    for path in (model.adapter, model.path):
        if path is not None and (path.parent / "motion_field").is_dir():
            return path.parent / "motion_field"
    shipped = asset_folder(SHIPPED_FIELD)
    assert shipped is not None
    return shipped


def read_field(path: Path) -> MotionField:
    """A motion field's weights.

    Raises:
        ModelError: it is not a whole one.
    """
    try:
        return MotionField.load(path)
    except ValueError as error:
        raise ModelError(
            f"The motion field {path}: {error}.",
            expected="what `physcli finetune --recipe lamo-field` writes to motion_field/, or LaMo's own file",
        ) from error


def check_field(field: MotionField, generator: Any, name: str) -> None:
    """Refuse a field that knows other latents or other prompts than this generator's.

    Raises:
        UsageError: it does not fit.
    """
    theirs: dict[str, Any] = {"latent channels": field.channels}
    ours: dict[str, Any] = {"latent channels": generator.latent_channels}
    if field.prompt_proj is not None:
        theirs["prompt width"] = field.text_dim
        ours["prompt width"] = generator.transformer.config.text_embed_dim
    if field.scaling_factor is not None:
        theirs["VAE scaling factor"] = field.scaling_factor
        ours["VAE scaling factor"] = generator.vae.config.scaling_factor
    different = [key for key in theirs if theirs[key] != ours[key]]
    if different:
        raise UsageError(
            f"The motion field {name} is not for {generator.name}: "
            + ", ".join(f"{key} {theirs[key]} for {ours[key]}" for key in different)
            + ".",
            expected="a motion field trained on this model's latents",
            fix=f"train one (`physcli finetune --recipe lamo-field --model {generator.name}`) and name it with "
            "--motion-field",
        )
