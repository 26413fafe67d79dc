"""Training a text-to-video diffusion model on cached latents, with or without an alignment method."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from physcli.benchmarks.objects import shows
from physcli.data.clips import Clip
from physcli.data.subsets import spread
from physcli.hashing import seed_from
from physcli.models.generator import Conditioning, Generator
from physcli.models.noise import Density
from physcli.progress import Reporter
from physcli.recipe import Denoising, GeneratorRecipe, VideoJam
from physcli.report.plots import contact_sheet
from physcli.rows import Row
from physcli.tasks.features import View, rate_at, stride_of
from physcli.tasks.sheets import shorten
from physcli.tasks.training.alignment import build_method
from physcli.tasks.training.clips import noise_of, rng_of
from physcli.tasks.training.denoising import TOLD, DenoisingSteps
from physcli.tasks.training.material import Material
from physcli.tasks.training.scoring import Asked, Judge, make_videos
from physcli.tasks.training.signals import Prompts, draw_latents, motion_channels
from physcli.tasks.training.trainee import Trainee, held_out_row
from physcli.tasks.training.windows import prompt_at, prompt_of

_SHOWN = 16  # samples in the picture


class OfGenerator(Trainee):
    """What all ways of training a generator have in common: how it is scored, and what is left.

    Attributes:
        generator, recipe: What is trained, and how.
        objective: The recipe's.
        judge: Scores it on the way, if the recipe asks for that.
    """

    generator: Generator
    recipe: GeneratorRecipe
    objective: Denoising
    judge: Judge | None

    @property
    def frozen(self) -> tuple[str, ...]:
        trained = {"transformer": not self.recipe.freeze, "text_encoder": self.objective.text_encoder}
        return tuple(part for part in self.generator.components if not trained.get(part))

    def _release(self) -> None:
        """Give back the parts that only sampling needs."""
        self.generator.release("vae", *([] if self.objective.text_encoder else ["text_encoder"]))

    @property
    def judged_by(self) -> str:
        return "" if self.judge is None else self.recipe.scoring.metric or self.judge.headline

    def score(self, folder: Path) -> list[Row]:
        assert self.judge is not None
        self.generator.need("vae", "text_encoder")
        rows = self.judge.score(self.generator, folder)
        self._release()
        return rows

    def export(self, folder: Path) -> Path:
        """Write `model/`, a whole pipeline folder, or `adapter/`, a LoRA. New channels of a network need the former."""
        if self.recipe.lora is not None and not isinstance(self.recipe.method, VideoJam):
            target = folder / "adapter"
            self.generator.save_lora(target)
        else:
            target = folder / "model"
            self.generator.save(target, frozen=self.frozen)
        return target

    def parts(self) -> dict[str, int]:
        parts = {name: self.generator.part(name) for name in self.generator.weight_parts}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def facts(self) -> dict[str, Any]:
        height, width = self.generator.facts.size
        return {
            "random_init": self.generator.random_init,
            "prediction": self.generator.noise.prediction,
            "pipeline": self.generator.pipeline_class,
            "frames": self.objective.frames,
            "height": height,
            "width": width,
            "guidance": self.generator.guidance_scale,
            "text": self.generator.facts.max_text_tokens,
            "padded": _default_text_length(self.generator.pipeline_class),
        }


def choose_trained(generator: Generator, recipe: GeneratorRecipe, *, seed: int) -> None:
    """Bring a generator into the recipe's state: what of its network is trained, and how it samples."""
    objective = recipe.objective
    if objective.guidance_scale is not None:
        generator.guidance_scale = objective.guidance_scale
    if objective.rope_grid_type is not None:
        generator.use_rope_grid(objective.rope_grid_type)
    if isinstance(recipe.method, VideoJam):
        generator.add_motion(motion_channels(recipe.method, generator))
    generator.network.requires_grad_(not recipe.freeze)
    if recipe.lora is not None:
        generator.add_lora(**recipe.lora.model_dump(exclude={"base_dtype"}), seed=seed_from(seed, "lora"))
        if isinstance(recipe.method, VideoJam):
            for end in generator.ends():
                end.requires_grad_(True)  # whole: what is new in them is no update of something


def density_of(objective: Denoising) -> Density:
    """How its noise levels are drawn."""
    return Density(objective.noise, mean=objective.noise_mean, std=objective.noise_std, shift=objective.noise_shift)


class GeneratorTrainee(DenoisingSteps, OfGenerator):
    """The transformer of a generator (and its text encoder, if asked for), on latents that were encoded once.

    Args:
        generator: Already where it shall run, its transformer read.
        recipe: What is trained, and by which method.
        material: Windows of clips with their latents and teacher features.
        prompts: Of its prompts.
        critic: Frozen, for the method that has one.
        seed: Of noise, timesteps, dropped captions and projectors.
        judge: Scores it on the way, if the recipe asks for that.
        reporter: Receives warnings.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        recipe: GeneratorRecipe,
        material: Material,
        prompts: Prompts,
        seed: int,
        critic: Generator | None = None,
        judge: Judge | None = None,
        reporter: Reporter,
    ) -> None:
        objective = recipe.objective
        choose_trained(generator, recipe, seed=seed)
        text_encoder: nn.Module | None = None  # a part of this module, and of checkpoints, where it is trained
        if objective.text_encoder:
            generator.need("text_encoder")
            text_encoder = generator.part("text_encoder").requires_grad_(True)
        values = dict(material.values)
        latents = values.pop("latents")
        method = build_method(
            recipe.method,
            generator,
            student_grid=generator.token_grid(objective.frames, *generator.facts.size),
            teacher_shape=tuple(values["teacher"].one().shape) if "teacher" in values else None,
            seed=seed,
            critic=critic,
        )
        super().__init__(generator, recipe=recipe, method=method, text_encoder=text_encoder, reporter=reporter)
        self.seed, self.objective, self.judge = seed, objective, judge
        self._density = density_of(objective)
        self._material, self._prompts = material, prompts
        self._windows, self._held_windows = material.windows, material.held_windows
        self.num_windows = len(self._windows.views)
        self._latents, self._signals = latents, values

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        views, latents, noise, times, prompts = [], [], [], [], []
        for sample in samples:
            rng = rng_of(self.seed, "sample", sample)
            views.append(self._windows.draw(sample, rng))
            latents.append(draw_latents(self._latents, views[-1], self.seed, "posterior", sample))
            noise.append(noise_of(self.seed, "noise", sample, shape=latents[-1].shape))
            times.append(self.generator.noise.draw(rng, self._density))
            dropped = rng.random() < self.objective.caption_dropout
            prompts.append("" if dropped else prompt_of(views[-1]))
        batch = {
            "latents": torch.stack(latents),
            "noise": torch.stack(noise),
            "time": torch.stack(times),
            **self._told(prompts, views),
            **self.about_step(step),
        }
        if "method_weight" in batch:  # once it is off, no teacher runs
            batch |= {name: torch.stack(values.get(views)) for name, values in self._signals.items()}
        draws = [self.method.draw(sample, self.seed) for sample in samples] if self.method is not None else [{}]
        return batch | {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def _told(self, prompts: Sequence[str], views: Sequence[View]) -> dict[str, Tensor]:
        """Token ids [B, L] for a text encoder that is trained; of one that is not, what it gave, part by part. And the
        clips' frame rates [B], where the network is told."""
        told: dict[str, Tensor] = {}
        if self.generator.takes_frame_rates:
            rates = [self._rate(view.clip, stride_of(view)) for view in views]
            told["frame_rate_hz"] = torch.tensor(rates, dtype=torch.float32)
        if self.objective.text_encoder:
            told["ids"] = torch.stack([self._prompts.tokens(prompt) for prompt in prompts])
        else:
            told |= Conditioning.stack([self._prompts.embedding(prompt) for prompt in prompts])
        return {f"{TOLD}{name}": part for name, part in told.items()}

    def _rate(self, clip: Clip, stride: int) -> float:
        return rate_at(clip, stride, self.generator.facts.frame_rate_hz)

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """The loss on held-out windows, and samples for held-out prompts: do they show what the prompt names?"""
        views = self._held_windows.first()
        losses: list[float] = []
        for first in range(0, len(views), 16):
            some = views[first : first + 16]
            batch = {
                "latents": torch.stack([draw_latents(self._latents, v, self.seed, "held-out", v.key) for v in some]),
                "time": torch.stack([self.generator.noise.spread(seed_from(self.seed, "t", v.key)) for v in some]),
                **self._told([prompt_of(v) for v in some], some),
            }
            batch["noise"] = torch.stack(
                [noise_of(self.seed, "held-out noise", v.key, shape=batch["latents"].shape[1:]) for v in some]
            )
            losses += self({key: value.to(self.device) for key, value in batch.items()})[0].tolist()
        count = self.objective.samples if final else -(-self.objective.samples // 4)
        right = self._sample(folder, count) if count else []
        rows = [
            held_out_row(
                "denoising", self.generator.name, self.generator.noise.loss_name, losses, higher_is_better=False
            )
        ]
        if right:
            rows.append(
                held_out_row(
                    "denoising", self.generator.name, "objects_right", right, higher_is_better=True, kind="rate"
                )
            )
        return rows

    def _sample(self, folder: Path, count: int) -> list[float]:
        """Clips for held-out prompts by the stock pipeline; of simulated prompts, whether each shows its objects."""
        clips = spread(self._material.held_out, count)
        prompts = [prompt_at(clip, self.objective.strides[-1]) for clip in clips]
        rates = [self._rate(clip, self.objective.strides[-1]) for clip in clips]
        items = [
            Asked(prompt, seed_from(self.seed, prompt, 0), rate) for prompt, rate in zip(prompts, rates, strict=True)
        ]
        self.generator.need("vae", "text_encoder")
        made_videos = make_videos(
            self.generator, items, num_frames=self.objective.frames, steps=self.objective.sample_steps
        )
        videos = [video for video, _ in made_videos]
        self._release()
        every = max(1, self.objective.frames // 4)
        columns = [str(i) for i in range(0, self.objective.frames, every)]
        made = list(zip(clips, prompts, videos, strict=True))
        shown = [(shorten(prompt, 72), video[::every]) for _, prompt, video in spread(made, _SHOWN)]
        contact_sheet(folder / "samples.png", rows=shown, columns=columns)
        return [float(shows(video, prompt).right) for clip, prompt, video in made if clip.kind == "simulated"]

    def after_score(self, values: Mapping[str, float], step: int) -> None:
        self.schedule.observe_score(values[self.judged_by], step)

    def export(self, folder: Path) -> Path:
        """The model, and beside it what the method brought along."""
        if self.method is not None:
            self.method.save(folder)
        return super().export(folder)

    def problems(self) -> list[str]:
        return self._material.problems


def _default_text_length(pipeline_class: str) -> int:
    """The text tokens that a pipeline of diffusers pads to where its call does not say."""
    call = getattr(diffusers, pipeline_class).__call__
    return int(inspect.signature(call).parameters["max_sequence_length"].default)
