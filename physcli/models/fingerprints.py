"""Hashes that models are known by: of their files, or of weights that were never in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from physcli.hashing import content_hash
from physcli.models import WEIGHT_SUFFIXES

MODEL_SUFFIXES = (*WEIGHT_SUFFIXES, ".json", ".model", ".txt")

_FILE_HASHES: dict[tuple[str, int, int], str] = {}


def model_files(root: Path) -> Iterator[Path]:
    """Weights, configs and tokenizer files below a folder, in order; nothing hidden, no cards."""
    for file in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if file.is_file() and file.suffix in MODEL_SUFFIXES and not hidden:
            yield file


def hash_files(path: Path) -> bytes:
    """SHA-256 over names and contents of a folder's model files, or of a checkpoint file with the JSON files beside it.

    Where the folder lies does not count. Hashes of files are remembered in this process by path, size and time of
    change.
    """
    root = path if path.is_dir() else path.parent
    files = model_files(root) if path.is_dir() else sorted({path, *root.glob("*.json")})
    digest = hashlib.sha256()
    for file in files:
        facts = file.stat()
        key = (str(file.resolve()), facts.st_size, facts.st_mtime_ns)
        if key not in _FILE_HASHES:
            _FILE_HASHES[key] = content_hash(file)
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + bytes.fromhex(_FILE_HASHES[key]))
    return digest.digest()


def hash_module(module: Any) -> str:
    """A hash of a model's config and weights, in memory; where it was loaded from and by which version do not count."""
    import torch

    config = getattr(module, "config", None) or {}
    described = config.to_dict() if hasattr(config, "to_dict") else dict(config)  # transformers' or diffusers'
    described = {
        key: value for key, value in described.items() if not key.startswith("_") and key != "transformers_version"
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
