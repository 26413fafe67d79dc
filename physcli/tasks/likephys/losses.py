"""Error maps of denoising: what a network gets wrong of every clip, at every noise level and latent place; cached.

    x_t = a·x0 + b·ε  →  network  →  mean over channels of (output − target)²     [S, F, h, w] a clip

Losses of all readings, and where they come from, are read off these maps. The noise of a scene and level depends on the
seed and the scene's valid clips alone. A clip's levels are a batch of their own, so that equal clips have equal maps to
the bit, whatever the number of processes.
"""

# S noise levels, F latent frames, C latent channels, h w latent places

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from physcli.data.cache import TensorCache
from physcli.errors import DataError
from physcli.hashing import seed_from, seeded
from physcli.models.generator import Conditioning, Generator
from physcli.models.noise import NoiseLevel, NoiseProcess
from physcli.progress import Reporter
from physcli.tasks.features import encoded_latents
from physcli.tasks.likephys.scenes import Shown, ShownScene
from physcli.tasks.processes import Processes

Subject = Literal["model", "untrained", "zero"]

VERSION = 2  # part of every key: raise it with a change here that alters a value
_CLIPS_A_SHARD = 16
_PIXELS_AT_ONCE = 2_000_000  # that a VAE is shown, of one clip at least; of the tiny models' clips it is 16 and more


def levels_of(noise: NoiseProcess, count: int) -> NoiseLevel:
    """`count` levels evenly over the timesteps from the last one down: 999, 899, …, 99 of 1000.

    Of a flow model they are the middles of its thousandths (σ = 0.9995, 0.8995, …).
    """
    numbers = [noise.num_steps - 1 - index * noise.num_steps // count for index in range(count)]
    return noise.of_time(torch.stack([noise.spread(number) for number in numbers]))


def part_of(level: NoiseLevel, first: int, last: int) -> NoiseLevel:
    """Some of several levels."""
    return NoiseLevel(*(part[first:last] for part in level))


def error_map(output: Tensor, clean: Tensor, noise: Tensor, level: NoiseLevel, process: NoiseProcess) -> Tensor:
    """Squared error of a network's output, the mean over channels.

    Args:
        output: What it predicts [B, F, C, h, w].
        clean: x0, same shape.
        noise: ε, same shape.
        level: Of B clips.
        process: Of the network.

    Returns:
        [B, F, h, w], float32 (float64 of latents in float64).
    """
    target = process.target(clean, noise, level)
    return (output.to(target) - target).square().mean(dim=2)


def guided_output(
    model: Generator, noisy: Tensor, level: NoiseLevel, told: Conditioning, negative: Conditioning | None, scale: float
) -> Tensor:
    """What the network predicts [B, F, C, h, w]; with classifier-free guidance where there is a negative."""
    output = model.denoise(noisy, level, told).output
    assert output is not None
    if negative is None:
        return output
    without = model.denoise(noisy, level, negative).output
    assert without is not None
    return without + scale * (output - without)


def zero_output(noisy: Tensor, level: NoiseLevel, process: NoiseProcess) -> Tensor:
    """What a network would predict that says v̂ = 0, which is x̂0 = a·x_t: 0, of an ε-network b·x_t.

    With ε̂ = 0 its error would be |ε|² of every clip, and all would be ties.

    Args:
        noisy: x_t [B, F, C, h, w].
        level: Of B clips.
        process: Of the network.
    """
    if process.prediction != "epsilon":
        return torch.zeros_like(noisy)
    return level.sigma.reshape(-1, 1, 1, 1, 1).to(noisy) * noisy


def clips_at_once(num_frames: int, size: tuple[int, int]) -> int:
    """How many clips a VAE encodes in one forward pass: many small ones, large ones by themselves."""
    return min(16, max(1, _PIXELS_AT_ONCE // (num_frames * size[0] * size[1])))


def untrain(model: Generator, seed: int) -> None:
    """Give the network the random weights that its class begins with; VAE and text encoder stay as they are."""
    if model.has_adapter:
        model.merge_adapter()
    network: Any = model.network
    with seeded(seed):
        fresh = type(network).from_config(network.config)
    network.load_state_dict(fresh.state_dict())


@dataclass
class Clock:
    """How long a pass took, and how long of it the network's forward passes. In seconds."""

    clips: int = 0
    whole: float = 0.0
    forwards: float = 0.0

    def record(self) -> dict[str, Any]:
        ratio = round(self.whole / self.forwards, 4) if self.forwards else None
        return {
            "clips": self.clips,
            "pass_s": round(self.whole, 3),
            "forwards_s": round(self.forwards, 3),
            "ratio": ratio,
        }


class DenoisingErrors:
    """Error maps of one subject for many clips.

    Args:
        model: Whose network, noise, VAE and text; of "untrained", after `untrain`.
        name: Of the subject, for progress.
        subject: "zero" predicts nothing at all, v̂ = 0 (`zero_output`): what it prefers, the latents alone tell.
        fingerprint: Content hash of the model's weights and configuration.
        vae_fingerprint: The same of its VAE alone.
        num_levels: S.
        guidance_scale: Of classifier-free guidance; 1 for none.
        negative_prompt: For classifier-free guidance.
        seed: Of noise and of random weights.
        cache: The cache root.
        batch_size: Levels per forward pass.
        processes: Each takes its part of the scenes.
        reporter: Receives progress.
    """

    def __init__(
        self,
        model: Generator,
        name: str,
        subject: Subject,
        *,
        fingerprint: str,
        vae_fingerprint: str,
        num_levels: int,
        guidance_scale: float,
        negative_prompt: str,
        seed: int,
        cache: Path,
        batch_size: int,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        self.model, self.name, self.subject, self.seed = model, name, subject, seed
        self.level = levels_of(model.noise, num_levels)
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self.vae_fingerprint, self.cache, self.batch_size = vae_fingerprint, cache, batch_size
        self.processes, self.reporter = processes, reporter
        self.clock = Clock()
        settings: dict[str, Any] = {
            "what": "errors of denoising",
            "version": VERSION,
            "subject": subject,
            "vae": vae_fingerprint,
            "dtype": str(model.dtype),
            "size": list(model.facts.size),
            "prediction": model.noise.prediction,
            "levels": self.level.sigma.tolist(),
            "seed": seed,
        }
        if subject != "zero":
            settings |= {"model": fingerprint, "guidance_scale": guidance_scale}
            settings |= {"negative_prompt": negative_prompt} if guidance_scale != 1 else {}
        self._errors = TensorCache(cache, "features", settings)
        for shard in self._errors.broken:
            reporter.warn(f"Damaged cache file of {name}, computed again: {shard}")
        self._told: dict[str, Conditioning] = {}

    def compute(self, scenes: Sequence[ShownScene]) -> None:
        """Compute what is not in the cache; each process its part, and back when all are done."""
        todo = [missing for scene in self.processes.share(scenes) if (missing := self._missing(scene.all))]
        latents = encoded_latents(
            self.model,
            [shown.view for some in todo for shown in some],
            vae_fingerprint=self.vae_fingerprint,
            cache=self.cache,
            batch_size=clips_at_once(max((scene.num_frames for scene in scenes), default=1), self.model.facts.size),
            reporter=self.reporter,
        )
        if self.subject != "zero":  # read before the clock runs
            for prompt in dict.fromkeys(shown.prompt for some in todo for shown in some):
                self._conditioning(prompt)
        count = sum(len(some) for some in todo)
        held: dict[str, Tensor] = {}
        begun = time.perf_counter()
        try:
            with self.reporter.bar(f"Losses of {self.name}", count, "clip") as bar:
                for some in todo:
                    stored = latents.get(shown.view.key for shown in some)
                    noise = self._noise(some[0].noise, stored[some[0].view.key].shape)
                    for shown in some:
                        held[shown.key] = self._errors_of(shown, stored[shown.view.key], noise)
                        if len(held) == _CLIPS_A_SHARD:
                            self._errors.put(held)
                            held = {}
                        bar.advance()
        finally:  # also on Ctrl-C: what is computed is kept
            self._errors.put(held)
        self.clock.clips += count
        self.clock.whole += time.perf_counter() - begun
        self.processes.wait()
        self._errors.refresh()  # what other processes have stored since

    def load(self, scene: ShownScene) -> dict[str, Tensor]:
        """A scene's computed maps by key of `Shown`, float32 [S, F, h, w] each.

        Raises:
            DataError: a map is not finite.
        """
        maps = self._errors.get(shown.key for shown in scene.all)
        for shown in scene.all:
            if not maps[shown.key].isfinite().all():
                raise DataError(
                    f"{self.name} gives NaN or infinite predictions of {shown.view.clip.path}.",
                    expected="finite numbers",
                    fix="use --dtype float32, or check the model's weights",
                )
        return maps

    def _missing(self, shown: Sequence[Shown]) -> list[Shown]:
        missing = set(self._errors.missing(one.key for one in shown))
        return list({one.key: one for one in shown if one.key in missing}.values())

    def _noise(self, scene: str, shape: Sequence[int]) -> Tensor:
        """ε of all levels, [S, F, C, h, w]."""
        drawn = []
        for index in range(len(self.level.sigma)):
            generator = torch.Generator().manual_seed(seed_from("likephys", self.seed, scene, index))
            drawn.append(torch.randn(tuple(shape), generator=generator))
        return torch.stack(drawn).to(self.model.device)

    @torch.no_grad()
    def _conditioning(self, prompt: str) -> Conditioning:
        if prompt not in self._told:
            self._told[prompt] = self.model.encode_prompts([prompt])
        return self._told[prompt]

    @torch.no_grad()
    def _errors_of(self, shown: Shown, latents: Tensor, noise: Tensor) -> Tensor:
        """The map of one clip [S, F, h, w], on the CPU."""
        model, parts = self.model, []
        clean = latents.to(model.device).float()
        for first in range(0, len(noise), self.batch_size):
            some = noise[first : first + self.batch_size]
            level = part_of(self.level, first, first + len(some))
            x0 = clean.expand_as(some)
            noisy = model.noise.add_noise(x0, some, level)
            if self.subject == "zero":
                output = zero_output(noisy, level, model.noise)
            else:
                told = self._at_rate(self._conditioning(shown.prompt), shown.rate_hz, len(some))
                negative = None
                if self.guidance_scale != 1:
                    negative = self._at_rate(self._conditioning(self.negative_prompt), shown.rate_hz, len(some))
                self._synchronize()
                begun = time.perf_counter()
                output = guided_output(model, noisy, level, told, negative, self.guidance_scale)
                self._synchronize()
                self.clock.forwards += time.perf_counter() - begun
            parts.append(error_map(output, x0, some, level, model.noise))
        return torch.cat(parts).cpu()

    def _at_rate(self, told: Conditioning, rate_hz: float | None, count: int) -> Conditioning:
        told = told.expand(count)
        return told.at_rates([rate_hz or self.model.facts.frame_rate_hz]) if self.model.takes_frame_rates else told

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
