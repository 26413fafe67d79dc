"""Pooled features of clips under frozen models, computed once and cached.

A cached feature is known by the clip's bytes and frames (its key) and by everything else that affects the value (the
cache's settings): weights, preprocessing, dtype, block, σ, pooling, seed. Batch size, device and number of processes
are no part of it: noise is drawn per clip.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from physcli.data.cache import TensorCache
from physcli.data.clips import HDF5_SUFFIXES, Clip
from physcli.data.copies import BLUR, blurred_frame
from physcli.data.video import frame_rate, resize
from physcli.errors import DataError, UsageError
from physcli.files import Stamp, refuse_changed, stamp
from physcli.hashing import content_hash, seed_from, settings_hash
from physcli.models.encoders.base import Encoder
from physcli.models.features import check_taps, default_tap
from physcli.models.generator import Generator
from physcli.progress import Reporter
from physcli.tasks.processes import Processes

POOLS = ("grid", "mean", "all")
_GRID = 4  # `grid` keeps at most this many rows and columns per latent frame
_BATCHES_A_SHARD = 8
# Part of every key: raise it with a change here, in an encoder or a generator, that alters a value.
VERSION = 2


@dataclass(frozen=True)
class View:
    """What a subject sees of a clip: these frames, in this order. `key` names the content, not the file.

    `seen` is the file's stamp from when it was hashed for the key.
    """

    clip: Clip
    frames: tuple[int, ...]
    key: str
    seen: Stamp

    def read(self) -> np.ndarray:
        """Its frames, uint8 [T, H, W, 3].

        Raises:
            DataError: they cannot be read.
            FileChanged: they would not be what `key` names.
        """
        try:
            return self.clip.read(self.frames)
        finally:  # rather than why another file cannot be read
            refuse_changed(self.clip.path, self.seen)


@dataclass(frozen=True)
class BlurredView(View):
    """The same frames through a Gaussian blur in space."""

    def read(self) -> np.ndarray:
        return np.stack([blurred_frame(frame) for frame in super().read()])


def blurred(view: View) -> BlurredView:
    """What is seen of it, blurred."""
    return BlurredView(view.clip, view.frames, f"{view.key}-blur{BLUR:.4f}", view.seen)


@dataclass(frozen=True)
class Tap:
    """Where features are taken: a block, counted from 0, and for generators a noise level."""

    block: int
    sigma: float | None = None

    @property
    def label(self) -> str:
        return f"block {self.block}" + ("" if self.sigma is None else f", σ={self.sigma:.3g}")


def views_of(
    clips: Sequence[Clip], frames: Sequence[Sequence[int]], hashes: dict[Path, str], *, arrays: bool = False
) -> list[View]:
    """Views of clips; file hashes are computed once and kept in `hashes`.

    Args:
        clips: Each seen once, or more often.
        frames: Which of its frames, in order.
        hashes: File → hash of its content.
        arrays: Something is read of the clips' arrays: the key is of their content, too.
    """
    views = []
    stamps: dict[Path, Stamp] = {}
    for clip, chosen in zip(clips, frames, strict=True):
        if clip.path not in stamps:
            stamps[clip.path] = stamp(clip.path)
        about: dict[str, Any] = {"frames": list(chosen)}
        if clip.path not in hashes:
            hashes[clip.path] = content_hash(clip.path)
        if arrays and clip.arrays is not None:
            if clip.arrays not in hashes:
                hashes[clip.arrays] = content_hash(clip.arrays)
            about["arrays"] = hashes[clip.arrays]
        if said := clip.heeded():
            about["read"] = said
        key = f"{hashes[clip.path][:40]}-{settings_hash(about)[:12]}"
        views.append(View(clip, tuple(chosen), key, stamps[clip.path]))
    return views


def stride_of(view: View) -> int:
    """Frames of the clip from one that is seen to the next."""
    return view.frames[1] - view.frames[0] if len(view.frames) > 1 else 1


def rate_at(clip: Clip, stride: int, default_hz: float) -> float:
    """Frames a second of a clip, seen every `stride` frames; the default where its file does not say."""
    rate_hz = clip.record.get("frame_rate_hz") or (0 if clip.path.suffix in HDF5_SUFFIXES else frame_rate(clip.path))
    return rate_hz / stride if rate_hz else default_hz


def pool_tokens(features: Tensor, pool: str, num_latent_frames: int | None = None) -> Tensor:
    """Tokens that are kept: [B, F, H, W, D] → [B, K, D].

    `mean`: one a latent frame; `grid`: at most 4×4 places a latent frame, each the mean of its cell; `all`: all.
    With `num_latent_frames`, only so many of the F, evenly spaced and the last among them.
    """
    if num_latent_frames is not None and num_latent_frames < features.shape[1]:
        last = features.shape[1] - 1
        kept = [last - round(i * features.shape[1] / num_latent_frames) for i in range(num_latent_frames)]
        features = features[:, kept[::-1]]
    if pool == "mean":
        return features.mean(dim=(2, 3))
    if pool == "grid":
        batch, frames, height, width, _ = features.shape
        images = features.flatten(0, 1).permute(0, 3, 1, 2).float()
        cells = F.adaptive_avg_pool2d(images, (min(height, _GRID), min(width, _GRID)))
        return cells.flatten(2).transpose(1, 2).unflatten(0, (batch, frames)).flatten(1, 2)
    assert pool == "all"
    return features.flatten(1, 3)


def choose_taps(model: Generator | Encoder, layers: Sequence[int] | str | None, sigmas: Sequence[float]) -> list[Tap]:
    """The blocks and noise levels asked for, or the defaults.

    Raises:
        UsageError: a block or noise level the model does not have.
    """
    if layers is None:
        blocks = [default_tap(model.num_blocks) if model.kind == "generator" else model.num_blocks - 1]
    elif layers == "all":
        blocks = list(range(model.num_blocks))
    else:
        blocks = [int(block) for block in layers]
        try:
            check_taps(blocks, model.num_blocks)
        except UsageError as error:
            raise UsageError(f"{model.name}: {error.received}", expected=error.expected, fix=error.fix) from error
    if model.kind != "generator":
        return [Tap(block) for block in blocks]
    levels = list(dict.fromkeys(float(model.noise.at(sigma).sigma) for sigma in sigmas))
    return [Tap(block, sigma) for sigma in levels for block in blocks]


# A batch of views, and of an encoder their frames (uint8 [T, H, W, 3] each), of a generator their latents
# ([F, C, h, w] each) → block → tokens [B, F, H, W, D].
_Compute = Callable[[list[View], list[Any]], dict[int, Tensor]]


class FeatureExtractor:
    """Features of one model for many clips.

    Args:
        model: A generator or an encoder from `physcli.models.loading.load`.
        fingerprint: Content hash of its weights and configuration.
        vae_fingerprint: The same of the VAE alone, for generators: models that share it share latents.
        pool: One of POOLS.
        num_latent_frames: Kept of each clip; needed where clips differ in length.
        seed: Of the noise generators are shown.
        cache: The cache root.
        passing: Another root for the features, where they are of weights that will not be seen again.
        batch_size: Clips per forward pass.
        processes: Each takes its part of the missing clips.
        reporter: Receives progress.
    """

    def __init__(
        self,
        model: Generator | Encoder,
        *,
        fingerprint: str,
        vae_fingerprint: str = "",
        pool: str = "grid",
        num_latent_frames: int | None = None,
        seed: int = 0,
        cache: Path,
        passing: Path | None = None,
        batch_size: int = 16,
        processes: Processes | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._features = passing or cache
        self.model, self.pool, self.num_latent_frames, self.seed = model, pool, num_latent_frames, seed
        self.fingerprint, self.vae_fingerprint = fingerprint, vae_fingerprint
        self.cache, self.batch_size = cache, batch_size
        self.processes, self.reporter = processes or Processes(), reporter or Reporter()
        self.num_computed = 0
        self._caches: dict[Tap, TensorCache] = {}

    def compute(self, views: Sequence[View], taps: Sequence[Tap]) -> None:
        """Compute what is not in the cache; each process its part, and back when all are done."""
        mine = self.processes.share(views)
        for sigma in dict.fromkeys(tap.sigma for tap in taps):
            caches = {tap.block: self._cache(tap) for tap in taps if tap.sigma == sigma}
            missing = {key for cache in caches.values() for key in cache.missing(view.key for view in mine)}
            todo = list({view.key: view for view in mine if view.key in missing}.values())
            self._compute(todo, caches, sigma)
        self.processes.wait()

    def load(self, views: Sequence[View], tap: Tap) -> np.ndarray:
        """Computed features of one tap, float32 [N, K·D], in the order of `views`."""
        cache = self._cache(tap)
        cache.refresh()  # what other processes have stored since
        stored = cache.get(view.key for view in views)
        return np.stack([stored[view.key].flatten().numpy() for view in views])

    def key(self, tap: Tap) -> str:
        """A hash of all that the features of a tap depend on beside the views."""
        return settings_hash(self._settings(tap))

    def _cache(self, tap: Tap) -> TensorCache:
        """The tap's cache, opened once: opening checks every shard's hash."""
        if tap not in self._caches:
            cache = self._caches[tap] = TensorCache(self._features, "features", self._settings(tap))
            for shard in cache.broken:
                self.reporter.warn(f"Damaged cache file of {self.model.name} ({tap.label}), computed again: {shard}")
        return self._caches[tap]

    def _settings(self, tap: Tap) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "version": VERSION,
            "model": self.fingerprint,
            "dtype": str(self.model.dtype),
            "preprocessing": _preprocessing(self.model),
            "block": tap.block,
            "pool": self.pool,
            "num_latent_frames": self.num_latent_frames,
        }
        if tap.sigma is not None:
            settings |= {"sigma": tap.sigma, "seed": self.seed, "prompt": ""}
        return settings

    def _compute(self, views: Sequence[View], caches: dict[int, TensorCache], sigma: float | None) -> None:
        if not views:
            return
        if self.model.kind == "generator":
            assert sigma is not None
            latents = encoded_latents(
                self.model,
                views,
                vae_fingerprint=self.vae_fingerprint,
                cache=self.cache,
                batch_size=self.batch_size,
                reporter=self.reporter,
            )
            compute, batches = self._generator(self.model, sorted(caches), sigma), self._stored(views, latents)
        else:
            compute, batches = self._encoder(self.model, sorted(caches)), _decoded(views, self.batch_size)
        what = self.model.name if sigma is None else f"{self.model.name}, σ={sigma:.2g}"
        held: dict[int, dict[str, Tensor]] = {block: {} for block in caches}
        try:
            with self.reporter.bar(f"Features of {what}", len(views), "clip") as bar:
                for number, (batch, inputs) in enumerate(batches, start=1):
                    for block, tokens in compute(batch, inputs).items():
                        pooled = pool_tokens(tokens, self.pool, self.num_latent_frames).float().cpu()
                        held[block].update({view.key: row.clone() for view, row in zip(batch, pooled, strict=True)})
                    if number % _BATCHES_A_SHARD == 0:
                        self._store(held, caches)
                    bar.advance(len(batch))
                    self.num_computed += len(batch)
        finally:  # also on Ctrl-C: what is computed is kept
            self._store(held, caches)

    @staticmethod
    def _store(held: dict[int, dict[str, Tensor]], caches: dict[int, TensorCache]) -> None:
        for block, tensors in held.items():
            caches[block].put(tensors)
            tensors.clear()

    @staticmethod
    def _encoder(model: Encoder, blocks: list[int]) -> _Compute:
        @torch.no_grad()
        def compute(batch: list[View], frames: list[np.ndarray]) -> dict[int, Tensor]:
            return model.taps(to_tensor(frames).to(model.device), blocks)

        return compute

    def _generator(self, model: Generator, blocks: list[int], sigma: float) -> _Compute:
        level, nothing = model.noise.at(sigma), model.encode_prompts([""])

        @torch.no_grad()
        def compute(batch: list[View], latents: list[Tensor]) -> dict[int, Tensor]:
            clean = torch.stack(latents)
            noise = torch.stack([self._noise(view, clean.shape[1:]) for view in batch])
            levels = level.expand(len(batch))
            noisy = model.noise.add_noise(clean, noise, levels)
            told = nothing
            if model.takes_frame_rates:
                rates = [rate_at(view.clip, stride_of(view), model.facts.frame_rate_hz) for view in batch]
                told = nothing.expand(len(batch)).at_rates(rates)
            return model.denoise(noisy, levels, told, taps=blocks, features_only=True).features

        return compute

    def _stored(self, views: Sequence[View], latents: TensorCache) -> Iterator[tuple[list[View], list[Any]]]:
        for first in range(0, len(views), self.batch_size):
            batch = list(views[first : first + self.batch_size])
            stored = latents.get(view.key for view in batch)
            yield from _alike(batch, [stored[view.key] for view in batch])

    def _noise(self, view: View, shape: torch.Size) -> Tensor:
        generator = torch.Generator().manual_seed(seed_from(self.seed, view.key))
        return torch.randn(shape, generator=generator)


def encoded_latents(
    model: Generator,
    views: Sequence[View],
    *,
    vae_fingerprint: str,
    cache: Path,
    batch_size: int = 16,
    reporter: Reporter | None = None,
) -> TensorCache:
    """The VAE's latents [F, C, h, w] of all views by key: those that are not kept are computed now, and only their
    clips decoded.

    Args:
        model: Whose VAE.
        views: What it is shown.
        vae_fingerprint: Content hash of the VAE: models that share it share latents.
        cache: The cache root.
        batch_size: Clips per forward pass.
        reporter: Receives progress.
    """
    settings = {
        "version": VERSION,
        "vae": vae_fingerprint,
        "dtype": str(model.dtype),
        "preprocessing": _preprocessing(model),
    }
    latents = TensorCache(cache, "latents", settings)
    missing = set(latents.missing(view.key for view in views))
    todo = list({view.key: view for view in views if view.key in missing}.values())
    held: dict[str, Tensor] = {}
    if not todo:
        return latents
    try:
        with (reporter or Reporter()).bar(f"Latents of {model.name}", len(todo), "clip") as bar:
            for number, (batch, frames) in enumerate(_decoded(todo, batch_size), start=1):
                pixels = to_tensor([resize(images, *model.facts.size) for images in frames])
                encoded = model.codec.encode(pixels).cpu()
                held |= {view.key: row.clone() for view, row in zip(batch, encoded, strict=True)}
                if number % _BATCHES_A_SHARD == 0:
                    latents.put(held)
                    held = {}
                bar.advance(len(batch))
    finally:
        latents.put(held)
    return latents


def _preprocessing(model: Generator | Encoder) -> dict[str, Any]:
    if model.kind == "generator":
        return {"size": list(model.facts.size), "resize": "whole frame"}
    return asdict(model.preprocessing)


def to_tensor(frames: Sequence[np.ndarray]) -> Tensor:
    """uint8 [T, H, W, 3] each → float32 [B, T, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3).float() / 255


def _decoded(views: Sequence[View], batch_size: int) -> Iterator[tuple[list[View], list[Any]]]:
    """Batches of clips alike in size, decoded by threads one batch ahead."""

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        chunks = [list(views[i : i + batch_size]) for i in range(0, len(views), batch_size)]
        ahead = [pool.submit(view.read) for view in chunks[0]]
        for number, chunk in enumerate(chunks):
            decoded = [future.result() for future in ahead]
            ahead = [pool.submit(view.read) for view in chunks[number + 1]] if number + 1 < len(chunks) else []
            yield from _alike(chunk, decoded)


def _alike(views: list[View], values: list[Any]) -> Iterator[tuple[list[View], list[Any]]]:
    """Views and their values, those of one shape together."""
    for shape in dict.fromkeys(value.shape for value in values):
        alike = [i for i, value in enumerate(values) if value.shape == shape]
        yield [views[i] for i in alike], [values[i] for i in alike]


def check_finite(features: np.ndarray, views: Sequence[View], subject: str) -> None:
    """Raises DataError naming the first clips whose features are NaN or infinite."""
    bad = [view.clip.name for view, row in zip(views, features, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise DataError(
            f"{subject} gives NaN or infinite features for {len(bad)} of {len(views)} clips, such as {bad[0]}.",
            expected="finite numbers",
            fix="use --dtype float32, another block or σ, or check the model's weights",
        )
