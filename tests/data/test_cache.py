"""The tensor store: what goes in comes out, damage is seen, nothing else is touched."""

from __future__ import annotations

import os
import time

import pytest
import torch

from physcli.data import cache as cache_module
from physcli.data.cache import TensorCache, cache_sizes, clear_cache
from physcli.errors import DataError
from physcli.hashing import settings_hash


def test_round_trip_over_shards_and_processes(tmp_path):
    first = TensorCache(tmp_path, "features", {"block": 3})
    first.put({"a": torch.arange(3.0), "b": torch.ones(2, 2)})
    second = TensorCache(tmp_path, "features", {"block": 3})
    second.put({"c": torch.zeros(1)})
    first.refresh()
    assert first.missing(["a", "c", "d", "d"]) == ["d"]
    found = first.get(["c", "a"])
    assert torch.equal(found["a"], torch.arange(3.0))
    assert set(found) == {"a", "c"}
    with pytest.raises(KeyError):
        first.get(["d"])


def test_other_settings_are_another_cache(tmp_path):
    TensorCache(tmp_path, "features", {"block": 3, "sigma": 0.3}).put({"a": torch.ones(1)})
    assert "a" not in TensorCache(tmp_path, "features", {"block": 4, "sigma": 0.3})
    assert "a" in TensorCache(tmp_path, "features", {"sigma": 0.3, "block": 3})
    assert settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1})


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_shard_counts_as_missing(tmp_path, damage):
    cache = TensorCache(tmp_path, "latents", {})
    cache.put({"a": torch.ones(100)})
    cache.put({"b": torch.ones(100) * 2})
    shard = cache._where["a"]
    payload = bytearray(shard.read_bytes())
    if damage == "cut":
        payload = payload[:-40]
    else:
        payload[-10] ^= 1
    shard.write_bytes(payload)
    again = TensorCache(tmp_path, "latents", {})
    assert again.missing(["a", "b"]) == ["a"]
    assert again.broken == [shard.name]
    again.put({"a": torch.ones(100)})
    assert TensorCache(tmp_path, "latents", {}).missing(["a", "b"]) == []


def test_a_shard_is_hashed_once(tmp_path, monkeypatch):
    cache = TensorCache(tmp_path, "latents", {})
    cache.put({"a": torch.ones(100)})
    cache.put({"b": torch.zeros(100)})
    TensorCache(tmp_path, "latents", {})
    hashed = []
    monkeypatch.setattr(cache_module, "content_hash", lambda path: hashed.append(path.stem) or path.stem)
    assert len(TensorCache(tmp_path, "latents", {})) == 2
    assert hashed == []
    os.utime(cache._where["b"])
    assert len(TensorCache(tmp_path, "latents", {})) == 2
    assert hashed == [cache._where["b"].stem]
    (cache.folder / ".verified.json").write_text("[")  # of no use: all are hashed again
    assert len(TensorCache(tmp_path, "latents", {})) == 2
    assert len(hashed) == 3


def test_a_half_written_shard_is_never_seen(tmp_path):
    cache = TensorCache(tmp_path, "latents", {})
    (cache.folder / ".abc.safetensors.1.part").write_bytes(b"half")
    assert len(TensorCache(tmp_path, "latents", {})) == 0


def test_a_cache_in_a_place_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made") as caught:
        TensorCache(tmp_path / "file", "latents", {})
    assert "--cache-dir" in caught.value.fix


def test_clear_removes_only_what_physcli_keeps(tmp_path):
    TensorCache(tmp_path, "latents", {}).put({"a": torch.ones(100)})
    TensorCache(tmp_path, "features", {}).put({"a": torch.ones(100)})
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"x" * 100)
    assert set(cache_sizes(tmp_path)) == {"features", "latents"}
    with pytest.raises(DataError, match="holiday"):
        clear_cache(tmp_path, "holiday")
    assert clear_cache(tmp_path, "latents") > 400
    assert clear_cache(tmp_path) > 400
    assert [path.name for path in tmp_path.iterdir()] == ["holiday"]


def test_what_a_killed_process_left_is_removed_once_nobody_can_be_writing_it(tmp_path):
    folder = TensorCache(tmp_path, "features", {}).folder
    old, young = folder / ".a.safetensors.12.part", folder / ".b.safetensors.13.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    TensorCache(tmp_path, "features", {})
    assert (old.exists(), young.exists()) == (False, True)
