"""Training a text-to-video diffusion model on cached latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from physcli.benchmarks.objects import shows
from physcli.data.cache import TensorCache
from physcli.data.clips import Clip
from physcli.data.video import resize
from physcli.errors import DataError
from physcli.hashing import seed_from
from physcli.methods.denoising import denoising_loss
from physcli.progress import Reporter
from physcli.recipe import Denoising
from physcli.report.plots import contact_sheet
from physcli.simulation.prompts import with_rate
from physcli.tasks.features import View, to_tensor, views_of
from physcli.tasks.processes import Processes
from physcli.tasks.sample import generate, shorten
from physcli.tasks.training.clips import noise_of, refuse_too_many_bad, rng_of, sample_order, spread
from physcli.tasks.training.trainee import Trainee, held_out_row

_VERSION = 1
_ENCODED_AT_ONCE = 16
_BATCHES_A_SHARD = 16
_VALIDATION_CLIPS = 64
_SHOWN = 16  # samples in the picture
_SAMPLED = 64  # at the end


class GeneratorTrainee(Trainee):
    """The transformer of a generator (and its text encoder, if asked for), on latents that were encoded once.

    Args:
        generator: Already where it shall run.
        training: Clips to train on.
        held_out: For validation.
        objective: The recipe's.
        seed: Of windows, noise, timesteps and dropped captions.
        max_bad: Share of the clips that may be unreadable.
        cache: Latents are kept here.
        processes: Each encodes its part.
        reporter: Receives progress.
    """

    def __init__(
        self,
        generator: Any,
        *,
        training: Sequence[Clip],
        held_out: Sequence[Clip],
        objective: Denoising,
        seed: int,
        max_bad: float,
        cache: Path,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        super().__init__()
        self.generator, self.max_bad = generator, max_bad
        self.objective, self.seed, self.reporter = objective, seed, reporter
        self.transformer = generator.transformer.requires_grad_(True)
        self.text_encoder: nn.Module = generator.pipeline.text_encoder.requires_grad_(objective.text_encoder)
        self._problems: list[str] = []
        generator.check_num_frames(objective.frames, decoding=True)
        store = LatentStore(generator, cache=cache, processes=processes, reporter=reporter)
        self._windows, self._latents = self._encode(training, store)
        self._held_out = spread(held_out, _VALIDATION_CLIPS)
        self._held_windows, self._held_latents = self._encode(self._held_out, store)
        self._ids: dict[str, Tensor] = {}

    def _encode(self, clips: Sequence[Clip], store: LatentStore) -> tuple[list[list[list[View]]], dict[str, Tensor]]:
        """Windows of every usable clip by stride, and their latents by key."""
        before = len(self._problems)
        frames: list[tuple[Clip, int, list[int]]] = []
        for number, clip in enumerate(clips):
            try:
                length = clip.count_frames()
            except DataError as error:
                self._leave_out(f"{clip.path}: {error.received}")
                continue
            rng = rng_of(self.seed, "starts", number)
            for stride in self.objective.strides:
                latest = length - 1 - (self.objective.frames - 1) * stride
                if latest < 0:
                    continue
                # The beginning first: it is what a probe of the same model shows.
                starts = [0, *rng.permutation(np.arange(1, latest + 1)).tolist()][: self.objective.windows]
                frames += [(clip, stride, [s + i * stride for i in range(self.objective.frames)]) for s in starts]
        views = views_of([clip for clip, _, _ in frames], [chosen for _, _, chosen in frames], {})
        latents, problems = store.encode(views)
        for problem in problems:
            self._leave_out(problem)
        by_clip: dict[int, dict[int, list[View]]] = {}
        for (clip, stride, _), view in zip(frames, views, strict=True):
            if view.key in latents:
                by_clip.setdefault(id(clip), {}).setdefault(stride, []).append(view)
        if not by_clip:
            raise DataError(
                f"None of the {len(clips)} clips has {self.objective.frames} frames that can be read.",
                expected="longer clips, or fewer frames in objective.frames",
            )
        refuse_too_many_bad(self._problems[before:], len(clips), self.max_bad)
        return [list(strides.values()) for strides in by_clip.values()], latents

    def _leave_out(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)
            self.reporter.warn(f"Left out: {problem}")

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        latents, noise, timesteps, ids = [], [], [], []
        for sample in samples:
            rng = rng_of(self.seed, "sample", sample)
            strides = self._windows[sample_order(sample, len(self._windows), self.seed)]
            views = strides[int(rng.integers(len(strides)))]
            view = views[int(rng.integers(len(views)))]
            latents.append(self._draw(self._latents[view.key], "posterior", sample))
            noise.append(noise_of(self.seed, "noise", sample, shape=latents[-1].shape))
            timesteps.append(int(rng.integers(len(self.generator.alphas_cumprod))))
            dropped = rng.random() < self.objective.caption_dropout
            ids.append(self._tokens("") if dropped else self._tokens_of(view))
        return {
            "latents": torch.stack(latents),
            "noise": torch.stack(noise),
            "timesteps": torch.tensor(timesteps),
            "ids": torch.stack(ids),
        }

    def _draw(self, posterior: Tensor, *parts: object) -> Tensor:
        """A point of the posterior [2, F, C, h, w] (mean and standard deviation), float32."""
        mean, std = posterior.float()
        return mean + std * noise_of(self.seed, *parts, shape=mean.shape)

    def _tokens_of(self, view: View) -> Tensor:
        return self._tokens(prompt_of(view.clip, view.frames[1] - view.frames[0]))

    def _tokens(self, prompt: str) -> Tensor:
        """Token ids [L] as the stock pipeline makes them."""
        if prompt not in self._ids:
            self._ids[prompt] = self.generator.pipeline.tokenizer(
                prompt,
                padding="max_length",
                max_length=self.generator.max_text_seq_length,
                truncation=True,
                add_special_tokens=True,
                return_tensors="pt",
            ).input_ids[0]
        return self._ids[prompt]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.set_grad_enabled(self.objective.text_encoder and torch.is_grad_enabled()):
            embeds = self.text_encoder(batch["ids"])[0]  # without a mask, as the stock pipeline
        loss, _ = denoising_loss(self.generator, batch["latents"], batch["noise"], batch["timesteps"], embeds)
        return loss, {}

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """The loss on held-out windows, and samples for held-out prompts: do they show what the prompt names?"""
        views = [view for strides in self._held_windows for windows in strides for view in windows[:1]]
        losses: list[float] = []
        for first in range(0, len(views), 16):
            some = views[first : first + 16]
            batch = {
                "latents": torch.stack([self._draw(self._held_latents[v.key], "held-out", v.key) for v in some]),
                "timesteps": torch.tensor(
                    [seed_from(self.seed, "t", v.key) % len(self.generator.alphas_cumprod) for v in some]
                ),
                "ids": torch.stack([self._tokens_of(v) for v in some]),
            }
            batch["noise"] = torch.stack(
                [noise_of(self.seed, "held-out noise", v.key, shape=batch["latents"].shape[1:]) for v in some]
            )
            losses += self({key: value.to(self.device) for key, value in batch.items()})[0].tolist()
        right = self._sample(folder, _SAMPLED if final else _SHOWN)
        rows = [held_out_row("denoising", self.generator.name, "v_mse", losses, higher_is_better=False)]
        if right:
            rows.append(held_out_row("denoising", self.generator.name, "objects_right", right, higher_is_better=True))
        return rows

    def _sample(self, folder: Path, count: int) -> list[float]:
        """Clips for held-out prompts by the stock pipeline; of simulated prompts, whether each shows its objects."""
        clips = spread(self._held_out, count)
        prompts = [prompt_of(clip, self.objective.strides[-1]) for clip in clips]
        height, width = self.generator.native_size
        videos: list[np.ndarray] = []
        for first in range(0, len(prompts), 8):
            some = prompts[first : first + 8]
            seeds = [seed_from(self.seed, prompt, 0) for prompt in some]
            videos += list(
                generate(self.generator, some, seeds, num_frames=self.objective.frames, height=height, width=width)
            )
        every = self.objective.frames // 4
        columns = [str(i) for i in range(0, self.objective.frames, every)]
        made = list(zip(clips, prompts, videos, strict=True))
        shown = [(shorten(prompt, 72), video[::every]) for _, prompt, video in spread(made, _SHOWN)]
        contact_sheet(folder / "samples.png", rows=shown, columns=columns)
        return [float(shows(video, prompt).right) for clip, prompt, video in made if clip.kind == "simulated"]

    def export(self, folder: Path) -> Path:
        """Write `model/`, a whole pipeline folder."""
        target = folder / "model"
        self.generator.save(target)
        return target

    def parts(self) -> dict[str, int]:
        parts = {"transformer": self.transformer, "vae": self.generator.vae, "text_encoder": self.text_encoder}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def facts(self) -> dict[str, Any]:
        height, width = self.generator.native_size
        text = self.generator.max_text_seq_length
        return {"frames": self.objective.frames, "height": height, "width": width, "text": text}

    def problems(self) -> list[str]:
        return self._problems


def prompt_of(clip: Clip, stride: int) -> str:
    """The clip's prompt; a simulated clip's says the rate of frames so far apart."""
    return with_rate(clip.prompt, stride) if clip.kind == "simulated" else clip.prompt


class LatentStore:
    """VAE posteriors of windows of clips, computed once.

    Args:
        generator: Its VAE encodes.
        cache: The cache's root.
        processes: Each encodes its part of what is missing.
        reporter: Receives progress.
    """

    def __init__(self, generator: Any, *, cache: Path, processes: Processes, reporter: Reporter) -> None:
        self.generator, self.processes, self.reporter = generator, processes, reporter
        settings = {
            "version": _VERSION,
            "what": "posterior",
            "vae": hash_module(generator.vae),
            "size": list(generator.native_size),
        }
        self.cache = TensorCache(cache, "latents", settings)

    def encode(self, views: Sequence[View]) -> tuple[dict[str, Tensor], list[str]]:
        """Posterior means and deviations of every view that can be read, float16 [2, F, C, h, w], scaled; and why the
        others cannot."""
        mine = self.processes.share(views)
        missing = set(self.cache.missing(view.key for view in mine))
        todo = [view for view in mine if view.key in missing]
        problems: list[str] = []
        held: dict[str, Tensor] = {}
        try:
            with self.reporter.bar("Latents", len(todo), "window") as bar:
                for number, first in enumerate(range(0, len(todo), _ENCODED_AT_ONCE), start=1):
                    some = todo[first : first + _ENCODED_AT_ONCE]
                    readable, frames = [], []
                    for view in some:
                        try:
                            frames.append(resize(view.clip.read(view.frames), *self.generator.native_size))
                            readable.append(view)
                        except DataError as error:
                            problems.append(f"{view.clip.path}: {error.received}")
                    if readable:
                        posterior = self.generator.encode_posterior(to_tensor(frames)).half().cpu()
                        held |= {view.key: row.clone() for view, row in zip(readable, posterior, strict=True)}
                    if number % _BATCHES_A_SHARD == 0:
                        self.cache.put(held)
                        held = {}
                    bar.advance(len(some))
        finally:  # also on Ctrl-C: what is computed is kept
            self.cache.put(held)
        self.processes.wait()
        self.cache.refresh()
        problems = list(dict.fromkeys(self.processes.collect(problems)))
        return self.cache.get(view.key for view in views if view.key in self.cache), problems


def hash_module(module: Any) -> str:
    """A hash of a model's config and weights, in memory."""
    digest = hashlib.sha256(json.dumps(dict(module.config), sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
