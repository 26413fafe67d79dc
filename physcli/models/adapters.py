"""What a LoRA's file says of itself: its alpha, and the model it was trained on. No weights are read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from physcli.errors import ModelError, UsageError
from physcli.models import LORA_FILE
from physcli.models.integrity import read_json, read_shapes

PEFT_METADATA = "lora_adapter_metadata"  # where diffusers keeps PEFT's config in a safetensors file
BASE_SHA256 = "base_sha256"  # where physcli keeps the hash of the transformer that the LoRA was trained on
PEFT_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class AdapterFacts:
    """What a LoRA says of itself.

    Attributes:
        file: Its weights.
        names_alpha: It says what its updates are scaled by, in its metadata or as tensors `….alpha` (of `….lora_alpha`
            and the like diffusers takes no notice). Else loaders take alpha for the rank.
        beside: lora_alpha and r of an adapter_config.json in its folder, which diffusers does not read; None without.
        base: The name of the model it was trained on, None where it does not say.
        base_sha256: The hash of that model's transformer folder, None where it does not say.
    """

    file: Path
    names_alpha: bool
    beside: tuple[float, float] | None
    base: str | None
    base_sha256: str | None


def lora_file(path: Path) -> Path:
    """The weights of a LoRA that is a folder or a file."""
    return path / LORA_FILE if path.is_dir() else path


def read_adapter(path: Path) -> AdapterFacts:
    """Read what a LoRA says of itself: in its file, in adapter_config.json and README.md beside it, and in the run that
    made it.

    Raises:
        ModelError: its file cannot be read.
    """
    from safetensors import safe_open

    file = lora_file(path)
    names = read_shapes(file)
    with safe_open(file, framework="pt") as opened:
        said = opened.metadata() or {}
    config = _mapping(said.get(PEFT_METADATA))
    config = {name.removeprefix("transformer."): value for name, value in config.items()}
    beside = read_json(file.parent / PEFT_CONFIG) if (file.parent / PEFT_CONFIG).is_file() else {}
    alpha, rank = beside.get("lora_alpha"), beside.get("r")
    told = None
    if isinstance(alpha, int | float) and isinstance(rank, int | float) and rank > 0:
        told = (float(alpha), float(rank))
    bases = (
        config.get("base_model_name_or_path"),
        beside.get("base_model_name_or_path"),
        said.get("base_model"),
        _of_card(file.parent / "README.md"),
        _of_run(file.parent.parent),
    )
    return AdapterFacts(
        file,
        names_alpha="lora_alpha" in config or any(name.endswith(".alpha") for name in names),
        beside=told,
        base=next((base for base in bases if isinstance(base, str) and base), None),
        base_sha256=said.get(BASE_SHA256),
    )


def remarks_on(facts: AdapterFacts, scale: float, base: str, sha256: str | None) -> list[str]:
    """What a user must know before this LoRA's results are believed: an alpha that is not said, another base.

    Args:
        facts: Of the LoRA.
        scale: What its update is multiplied by.
        base: The name of the model it is put on.
        sha256: The hash of that model's transformer folder; None where it is in no file.
    """
    remarks = []
    if not facts.names_alpha:
        told = f"The adapter {facts.file} names no alpha: it is taken for the rank, as diffusers does, so the update "
        told += f"is multiplied by {scale:g}"
        if facts.beside is not None:
            alpha, rank = facts.beside
            told += f"; {PEFT_CONFIG} beside it says alpha {alpha:g} and rank {rank:g}, "
            told += f"so --adapter-scale {alpha / rank:g}"
        elif scale == 1:
            told += "; if it was trained with another, --adapter-scale with alpha / rank gives it"
        remarks.append(f"{told}.")
    if facts.base_sha256 is not None and sha256 is not None:
        other = facts.base_sha256 != sha256
    else:
        other = facts.base is not None and not _names_of(facts.base) & _names_of(base)
    if other:
        same_name = facts.base is not None and _names_of(facts.base) & _names_of(base)
        was = f"other weights of {facts.base}" if same_name else facts.base or "other weights"
        remarks.append(f"The adapter {facts.file} was trained on {was}, and lies on {base}: its update may not fit.")
    return remarks


def check_scale(scale: float, option: str = "--adapter-scale") -> None:
    """Raises UsageError: a scale that is no number, or 0."""
    if not math.isfinite(scale) or scale == 0:
        raise UsageError(
            f"{option} {scale:g}.",
            expected="a number other than 0: 1 leaves the adapter as it is, a negative one takes its update away",
            fix="leave the adapter out" if scale == 0 else "",
        )


def shown_base(name: str) -> str:
    """A model's name as it goes out with an adapter: of a path, which means nothing elsewhere, the last part."""
    return Path(name).name if Path(name).expanduser().exists() else name


def _names_of(model: str) -> set[str]:
    """What a hub id or path may be known by: its last part; in the hub's cache, the repository."""
    parts = Path(model).parts
    cached = {part.rpartition("--")[2] for part in parts if part.startswith("models--")}
    return {name.lower() for name in cached or set(parts[-1:])}


def _mapping(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _of_card(path: Path) -> str | None:
    """`base_model` in the head of a model card of the hub."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    try:
        found = yaml.safe_load(head)
    except yaml.YAMLError:
        return None
    base = found.get("base_model") if isinstance(found, dict) else None
    base = base[0] if isinstance(base, list) and base else base
    return base if isinstance(base, str) else None


def _of_run(run: Path) -> str | None:
    """The model that a run of physcli trained on, whose adapter/ says nothing itself."""
    try:
        settings = read_json(run / "run.json").get("settings")
    except ModelError:
        return None
    settings = settings.get("recipe", settings) if isinstance(settings, dict) else {}
    base = settings.get("model") if isinstance(settings, dict) else None
    return base if isinstance(base, str) else None
