"""A store of tensors that are dear to compute: VAE latents, encoder and generator features.

One folder a kind and settings: `<root>/<kind>/<hash of the settings>/`. The settings (model weights, preprocessing,
block, σ, …) are in its `settings.json`; a changed setting is another folder, so nothing stale is ever met. Inside,
each item has a key (a content hash), and items lie in shards of safetensors named by the SHA-256 of their own bytes:
a shard cut short or altered since it was last hashed is seen when the cache is opened, is put aside, and its items
count as missing.

Several processes may write at once (each writes whole shards under its own name); a killed run loses only the shard
it was filling, and what it left of it is removed an hour later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from physcli.errors import DataError
from physcli.files import make_folder, remove_left_over, write_bytes
from physcli.hashing import content_hash, settings_hash

# First-level folders of the cache root. Only these are ever counted or cleared: a user may point the cache at a
# folder that holds other things.
KINDS = ("simulated", "latents", "features", "text")

_VERIFIED = ".verified.json"
_DEAD_AFTER_S = 3600.0  # whoever has not written to a shard for so long was killed; a live one writes it in seconds


class TensorCache:
    """Tensors by key, for one kind of thing and one set of settings.

    Args:
        root: The cache's root folder.
        kind: latents, features, …: the first folder.
        settings: Everything that affects the value, JSON-able.

    Attributes:
        folder: Where its shards are.
        broken: Names of shards found cut short or altered when this cache was opened.

    Raises:
        DataError: the folder cannot be made.
    """

    def __init__(self, root: Path, kind: str, settings: Mapping[str, Any]) -> None:
        assert kind in KINDS
        self.folder = root / kind / settings_hash(settings)
        self.broken: list[str] = []
        self._where: dict[str, Path] = {}
        make_folder(self.folder, what="The cache folder", fix="choose another --cache-dir (or PHYSCLI_CACHE)")
        described = self.folder / "settings.json"
        if not described.exists():
            write_bytes(described, json.dumps(settings, indent=1, sort_keys=True).encode())
        with contextlib.suppress(OSError):  # a read-only disk, or another process was quicker
            remove_left_over(self.folder, older_than_s=_DEAD_AFTER_S)
        self.refresh()

    def refresh(self) -> None:
        """Take note of shards other processes have written since.

        A shard's bytes are hashed once: `.verified.json` remembers its size and time of change, so that a cache of
        hundreds of gigabytes is opened in seconds.
        """
        known = set(self._where.values())
        verified = self._verified()
        before = dict(verified)
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard in known:
                continue
            try:
                facts = shard.stat()
            except FileNotFoundError:  # another process has put it aside
                continue
            if verified.get(shard.name) != [facts.st_size, facts.st_mtime_ns]:
                if content_hash(shard)[:32] != shard.stem:
                    self._set_aside(shard)
                    continue
                verified[shard.name] = [facts.st_size, facts.st_mtime_ns]
            try:
                with safe_open(shard, framework="pt") as tensors:
                    self._where.update(dict.fromkeys(tensors.keys(), shard))
            except SafetensorError:
                self._set_aside(shard)
        if verified != before:
            with contextlib.suppress(OSError):  # a full or read-only disk: hashed again next time
                write_bytes(self.folder / _VERIFIED, json.dumps(verified).encode())

    def _verified(self) -> dict[str, Any]:
        """Shard → [size, time of change] when its bytes were last found to be whole."""
        try:
            found = json.loads((self.folder / _VERIFIED).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _set_aside(self, shard: Path) -> None:
        self.broken.append(shard.name)
        with contextlib.suppress(FileNotFoundError):  # another process met it too
            shard.rename(shard.with_suffix(".broken"))

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._where)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are not stored, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._where]

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store some items as one shard; whole or not at all.

        Raises:
            DataError: the disk is full or not writable.
        """
        if not tensors:
            return
        payload = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        shard = self.folder / f"{hashlib.sha256(payload).hexdigest()[:32]}.safetensors"
        try:
            write_bytes(shard, payload)
        except OSError as error:
            raise DataError(
                f"The cache cannot be written ({shard.parent}): {error.strerror}.",
                expected=f"{len(payload) / 1e6:.1f} MB of free, writable space",
                fix="free some space or choose another --cache-dir; what is finished is kept",
            ) from error
        self._where.update(dict.fromkeys(tensors, shard))

    def get(self, keys: Iterable[str]) -> dict[str, torch.Tensor]:
        """The stored tensors of `keys`.

        Raises:
            KeyError: one of them is not stored.
        """
        by_shard: dict[Path, list[str]] = {}
        for key in dict.fromkeys(keys):
            by_shard.setdefault(self._where[key], []).append(key)
        found: dict[str, torch.Tensor] = {}
        for shard, wanted in by_shard.items():
            with safe_open(shard, framework="pt") as tensors:
                found.update({key: tensors.get_tensor(key) for key in wanted})
        return found


def cache_sizes(root: Path) -> dict[str, tuple[int, int]]:
    """Files and bytes of each kind in the cache."""
    sizes: dict[str, tuple[int, int]] = {}
    for kind in KINDS:
        if (root / kind).is_dir():
            files = [path for path in (root / kind).rglob("*") if path.is_file()]
            sizes[kind] = (len(files), sum(path.stat().st_size for path in files))
    return sizes


def clear_cache(root: Path, kind: str | None = None) -> int:
    """Remove one kind, or everything, from the cache; the bytes that were freed.

    Raises:
        DataError: no such kind.
    """
    sizes = cache_sizes(root)
    if kind is not None and kind not in sizes:
        raise DataError(
            f"The cache {root} holds no {kind!r}.", expected=f"one of {', '.join(sizes) or '(it is empty)'}"
        )
    freed = 0
    for name, (_, size) in sizes.items():
        if kind in (None, name):
            shutil.rmtree(root / name)
            freed += size
    return freed
