"""Finding, reading and strictly loading encoder checkpoints.

A missing or unexpected weight is an error, never a warning: a probe of a half-random encoder is a wrong
result that looks right.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from physcli.errors import ModelError
from physcli.models import WEIGHT_SUFFIXES, integrity
from physcli.models.hub import explain_hub_errors, first_line


def fetch(path_or_id: str | Path, *, revision: str | None, local_files_only: bool, beside: Sequence[str] = ()) -> Path:
    """A local folder or file: the path itself, or the downloaded (or cached) snapshot of a hub id.

    Args:
        path_or_id: A path, or a hub id.
        revision: Of the hub id.
        local_files_only: Never reach for the network.
        beside: Files wanted beside weights and JSON files (shell patterns).

    Raises:
        ModelError: No such path, or a hub repository that cannot be reached.
    """
    path = Path(path_or_id)
    if path.exists():
        return path
    name = str(path_or_id)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith(".") or path.suffix in WEIGHT_SUFFIXES:
        raise ModelError(
            f"There is no model at {name!r}.",
            expected="a folder, a weight file, or a hub id such as 'MCG-NJU/videomae-base'",
        )
    from huggingface_hub import snapshot_download

    with explain_hub_errors(name):
        folder: Path | None = None
        # Many repositories hold the same weights twice: .bin files only where there is nothing safer.
        for weights in ("*.safetensors", "*.bin"):
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    local_files_only=local_files_only,
                    allow_patterns=["*.json", weights, *beside],
                )
            )
            if any(folder.glob(weights)):
                break
    assert folder is not None
    return folder


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a folder, or beside a weight file; empty where there is none.

    VideoMAEv2's hub layout nests the architecture under `model_config`; it is lifted to the top.
    """
    config = read_json((path if path.is_dir() else path.parent) / "config.json")
    nested = config.get("model_config")
    return config | nested if isinstance(nested, dict) else config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no such file.

    Raises:
        ModelError: It is not JSON, or not an object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}", fix="download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}.", expected="a JSON object")
    return content


def weight_files(path: Path) -> list[Path]:
    """The weight file a path is or a folder holds; several only where there is no telling which one is meant."""
    if path.is_file():
        return [path] if path.suffix in WEIGHT_SUFFIXES else []
    for suffix in WEIGHT_SUFFIXES:
        files = sorted(path.glob(f"*{suffix}"))
        named = [file for file in files if file.stem in ("model", "weights")]
        if files:
            return named or files
    return []


def read_state_dict(path: Path) -> dict[str, Any]:
    """The contents of a weight file on the CPU: tensors by name, or whatever a torch file nests them in.

    Raises:
        ModelError: No weight file or several, a damaged one, or one that needs unpickling of arbitrary objects.
    """
    files = weight_files(path)
    if not files:
        raise ModelError(f"{path} holds no weights.", expected=f"a file ending in {', '.join(WEIGHT_SUFFIXES)}")
    if len(files) > 1:
        raise ModelError(
            f"{path} holds {len(files)} weight files: {', '.join(file.name for file in files[:5])}.",
            expected="one",
            fix="name the file itself",
        )
    weights = files[0]
    try:
        if weights.suffix == ".safetensors":
            return safetensors.torch.load_file(weights)
        # Memory-mapped, because the released V-JEPA file is mostly optimizer state. The official trainers
        # store their argparse options in the file; a Namespace is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(weights, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(weights))
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(
            f"{weights} cannot be read: {first_line(error)}",
            expected="a whole safetensors file, or a torch file that loads with weights_only=True",
            fix="download it again, or re-save its bare state dict as safetensors",
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{weights} holds a {type(content).__name__}.", expected="a state dict")
    return content


def read_shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a weight file, without their values where the format allows it."""
    if weights.suffix == ".safetensors":
        return integrity.read_shapes(weights)
    state = unwrap(read_state_dict(weights), "target_encoder", "module", "model", "state_dict")
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def unwrap(state: Mapping[str, Any], *wrappers: str) -> dict[str, Any]:
    """Descend into the first of `wrappers` that is an entry holding a mapping, and into that likewise."""
    for wrapper in wrappers:
        inner = state.get(wrapper)
        if isinstance(inner, Mapping):
            return unwrap(inner, *wrappers)
    return dict(state)


def strip_prefix(state: Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    """Remove each prefix, in order, from the names that carry it."""
    for prefix in prefixes:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def drop(state: Mapping[str, Any], patterns: Iterable[str]) -> dict[str, Any]:
    """Leave out the weights a family is known to have and that no token depends on (shell patterns)."""
    patterns = tuple(patterns)
    return {name: v for name, v in state.items() if not any(fnmatch(name, pattern) for pattern in patterns)}


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str, dtype: torch.dtype) -> None:
    """Put `state` into `module` (which may be on the meta device), every name and shape matching.

    Raises:
        ModelError: With the counts, and up to five names of each kind.
    """
    wanted = module.state_dict()
    report_mismatch(
        source,
        missing=[name for name in wanted if name not in state],
        unexpected=[name for name in state if name not in wanted],
        misshapen=[name for name in wanted if name in state and state[name].shape != wanted[name].shape],
    )
    module.load_state_dict({name: v.to(dtype, copy=True) for name, v in state.items()}, assign=True)


def report_mismatch(
    source: str, *, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str] = ()
) -> None:
    """Raise a ModelError naming the weights that do not fit; return when all do."""
    kinds = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "of the wrong shape": sorted(misshapen),
    }
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    if parts:
        raise ModelError(
            f"The weights in {source} do not fit the architecture: {'; '.join(parts)}.",
            expected="every weight present, none left over",
            fix="check that this is the right family and a whole, unmodified checkpoint",
        )


Model = TypeVar("Model", bound=nn.Module)


def load_transformers(
    model_class: type[Model],
    folder: Path,
    *,
    dtype: torch.dtype,
    unused: Iterable[str],
    optional: Iterable[str] = (),
) -> Model:
    """`model_class.from_pretrained(folder)`, but strict.

    Args:
        model_class: A transformers model class.
        folder: In the transformers layout.
        dtype: Of the weights.
        unused: Patterns of weights the checkpoint may have and the encoder does not use (heads, decoders).
        optional: Patterns of weights of the class that the encoder does not use and that may be missing.

    Raises:
        ModelError: Not such a folder, an unreadable file, or weights that do not fit.
    """
    if not folder.is_dir():
        raise ModelError(
            f"{folder} is a file, but {model_class.__name__} loads from a folder.",
            expected="a folder with config.json and the weights, as transformers saves it, or a hub id",
        )
    try:
        model, info = model_class.from_pretrained(  # type: ignore[attr-defined]
            folder,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            # Collected in `info`, so that all that does not fit is in one message.
            ignore_mismatched_sizes=True,
        )
    except (OSError, safetensors.SafetensorError, pickle.UnpicklingError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{folder} cannot be loaded as {model_class.__name__}: {first_line(error)}",
            expected="a folder with config.json and the weights, as transformers saves it",
            fix="check the folder, or download it again",
        ) from error
    report_mismatch(
        str(folder),
        missing=drop(dict.fromkeys(info["missing_keys"]), optional),
        unexpected=drop(dict.fromkeys(info["unexpected_keys"]), unused),
        # Names in transformers 4, (name, shape, shape) in 5.
        misshapen=[e if isinstance(e, str) else str(e[0]) for e in info["mismatched_keys"]],
    )
    return model
