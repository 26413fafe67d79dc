"""Are model folders whole? Read before anything large is."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from physcli.errors import ModelError
from physcli.models import WEIGHT_SUFFIXES

MODEL_PARTS = ("transformer", "vae", "text_encoder")


def check_index(index: dict[str, Any], where: str) -> None:
    """Refuse pipelines of two networks.

    Args:
        index: Of model_index.json.
        where: Folder or hub id.

    Raises:
        ModelError: a second network.
    """
    if (index.get("transformer_2") or [None])[0] is not None:
        raise ModelError(
            f"{where} has two networks: transformer for much noise, transformer_2 for little (Wan 2.2 A14B).",
            expected="a pipeline of one network, such as Wan 2.1 or Wan 2.2 TI2V-5B: only these can be probed, trained "
            "and sampled here",
        )


def check_pipeline_folder(folder: Path, required: Collection[str] = (*MODEL_PARTS, "tokenizer", "scheduler")) -> None:
    """Refuse a pipeline folder that is not whole, before anything large is read.

    Args:
        folder: With a model_index.json; what that names must be there.
        required: Parts that it must name.

    Raises:
        ModelError: names the missing parts or the damaged file.
    """
    index = read_json(folder / "model_index.json")
    check_index(index, str(folder))
    named = [part for part, what in index.items() if isinstance(what, list) and what[0] is not None]
    missing = []
    for part in dict.fromkeys((*required, *named)):
        if part not in named:
            missing.append(f"{part} (not in model_index.json)")
        elif not (folder / part).is_dir():
            missing.append(f"{part}/")
        elif part in MODEL_PARTS or (folder / part / "config.json").is_file():
            if not (folder / part / "config.json").is_file():
                missing.append(f"{part}/config.json")
            if not any(file.suffix in WEIGHT_SUFFIXES for file in (folder / part).iterdir()):
                missing.append(f"the weights in {part}/")
            missing += _missing_shards(folder, part)
    if missing:
        raise ModelError(
            f"{folder} is not a whole pipeline; missing: {', '.join(missing)}.",
            expected="the folder as `save_pretrained` or a full download leaves it",
            fix="copy or download it again",
        )
    for weights in sorted(folder.rglob("*.safetensors")):
        check_safetensors(weights)


def _missing_shards(folder: Path, part: str) -> list[str]:
    """Weight files that a sharded checkpoint's index names and the folder lacks."""
    shards: set[str] = set()
    for index in (folder / part).glob("*.index.json"):
        weight_map = read_json(index).get("weight_map", {})
        present = {name for name in weight_map.values() if (folder / part / name).is_file()}
        # Repositories may carry a second index for a format that was not downloaded.
        if present or len(list((folder / part).glob("*.index.json"))) == 1:
            shards |= set(weight_map.values()) - present
    return [f"{part}/{name}" for name in sorted(shards)]


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file that is shorter than its own header says; reads the header only."""
    if path.suffix != ".safetensors":
        return
    size = path.stat().st_size
    with path.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        header = stream.read(header_size) if 8 + header_size <= size else b""
    needed = 8 + header_size
    try:
        entries = json.loads(header) if header else None
        if entries is not None:
            needed += max((v["data_offsets"][1] for k, v in entries.items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        entries = None
    if entries is None or size != needed:
        raise ModelError(
            f"{path} is damaged: it has {size:,} bytes" + (f", its header says {needed:,}." if entries else "."),
            expected="a whole safetensors file (a Git LFS pointer or a cut-short download is not one)",
            fix="copy or download it again",
        )


def num_values(folder: Path, parts: Collection[str]) -> int:
    """Numbers in the safetensors files of a pipeline's parts."""
    files = [file for part in parts for file in sorted((folder / part).glob("*.safetensors"))]
    return sum(math.prod(shape) for file in files for shape in read_shapes(file).values())


def weight_bytes(path: Path | None) -> int:
    """Size on disk of a checkpoint's weight files; 0 where there are none."""
    if path is None:
        return 0
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHT_SUFFIXES)


def read_shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, without their values.

    Raises:
        ModelError: it cannot be read.
    """
    import safetensors

    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ModelError(
            f"{weights} cannot be read: {error}",
            expected="a whole safetensors file",
            fix="download it again",
        ) from error


def add_metadata(weights: Path, more: Mapping[str, str]) -> None:
    """Write more into the metadata of a safetensors file."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(weights, framework="pt") as file:
        said = file.metadata() or {}
    save_file(load_file(weights), weights, metadata={**said, **more})


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}.", fix="copy or download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}.", expected="a JSON object")
    return content
