"""Training a text-to-video diffusion model on cached latents, with or without an alignment method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from physcli.benchmarks.objects import shows
from physcli.data.clips import Clip
from physcli.hashing import seed_from
from physcli.methods.denoising import denoising_loss
from physcli.models.features import check_taps
from physcli.progress import Reporter
from physcli.recipe import Alignment, GeneratorRecipe, Tsa
from physcli.report.plots import contact_sheet
from physcli.tasks.processes import Processes
from physcli.tasks.sample import generate, shorten
from physcli.tasks.training.alignment import Method, Pass, build_method
from physcli.tasks.training.clips import noise_of, rng_of, spread
from physcli.tasks.training.optimization import Apart
from physcli.tasks.training.signals import Kept, Prompts, Signal, latents_of, saliency_of, teacher_of
from physcli.tasks.training.trainee import Trainee, held_out_row
from physcli.tasks.training.windows import Windows, prompt_at, prompt_of

_VALIDATION_CLIPS = 64
_SHOWN = 16  # samples in the picture
_MEASURE_EVERY = 50  # steps; the gradients of the two losses are compared
_NEGLIGIBLE, _DOMINANT = 0.01, 10.0


class GeneratorTrainee(Trainee):
    """The transformer of a generator (and its text encoder, if asked for), on latents that were encoded once.

    Args:
        generator: Already where it shall run.
        recipe: What is trained, and by which method.
        training: Clips to train on.
        held_out: For validation.
        seed: Of windows, noise, timesteps, dropped captions and projectors.
        teacher: The frozen encoder of the recipe's method, if it has one.
        head: Maps the teacher's tokens further (MoAlign's motion projector).
        cache: Latents and teacher features are kept here.
        processes: Each computes its part of them.
        reporter: Receives progress.
    """

    def __init__(
        self,
        generator: Any,
        *,
        recipe: GeneratorRecipe,
        training: Sequence[Clip],
        held_out: Sequence[Clip],
        seed: int,
        teacher: Any = None,
        head: nn.Module | None = None,
        cache: Path,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        super().__init__()
        self.generator, self.recipe, self.objective = generator, recipe, recipe.objective
        self.seed, self.reporter = seed, reporter
        if self.objective.guidance_scale is not None:
            generator.guidance_scale = self.objective.guidance_scale
        self.transformer = generator.transformer.requires_grad_(not recipe.freeze)
        if recipe.lora is not None:
            generator.add_lora(**recipe.lora.model_dump(), seed=seed_from(seed, "lora"))
        self.text_encoder: nn.Module = generator.pipeline.text_encoder.requires_grad_(self.objective.text_encoder)
        self._warned: set[str] = set()
        if isinstance(recipe.method, Alignment):  # before anything is computed
            check_taps(recipe.method.taps or (), generator.num_blocks)
        generator.check_num_frames(self.objective.frames, decoding=True)
        latents = latents_of(generator, cache=cache)
        signals = self._signals(teacher, head, cache)
        common: dict[str, Any] = {"sampling": self.objective, "seed": seed, "max_bad": recipe.data.max_bad}
        common |= {"processes": processes, "reporter": reporter}
        self._windows = Windows(training, signals=[latents, *signals.values()], **common)
        self._held_out = spread(held_out, _VALIDATION_CLIPS)
        self._held_windows = Windows(self._held_out, signals=[latents], **common)
        self.num_windows = len(self._windows.views)
        silent = {view.clip.path for view in self._windows.views if not view.clip.prompt}
        if silent:
            reporter.warn(f"{len(silent)} of {len(training)} clips have no caption, such as {min(silent)}.")
        keys = [view.key for view in self._windows.views]
        held_keys = [view.key for view in self._held_windows.views]
        room = recipe.data.memory_gb / (1 + len(signals))
        self._latents = Kept(latents, [*keys, *held_keys], room=room)
        self._signals_kept = {name: Kept(signal, keys, room=room) for name, signal in signals.items()}
        self._prompts = Prompts(generator, cache=cache, processes=processes, reporter=reporter)
        if not self.objective.text_encoder:
            seen = [*self._windows.views, *self._held_windows.views]
            self._prompts.embed(["", *dict.fromkeys(prompt_of(view) for view in seen)])
        self.method: Method | None = build_method(
            recipe.method,
            generator,
            student_grid=generator.latent_grid(self.objective.frames, *generator.native_size),
            teacher_shape=tuple(self._signals_kept["teacher"].one().shape) if teacher is not None else None,
            seed=seed,
        )

    def _signals(self, teacher: Any, head: nn.Module | None, cache: Path) -> dict[str, Signal]:
        """What the method needs beside latents."""
        method = self.recipe.method
        if not isinstance(method, Alignment):
            return {}
        signals = {"teacher": teacher_of(teacher, method.view, head=head, cache=cache)}
        if isinstance(method, Tsa) and method.queries == "salient":
            signals["saliency"] = saliency_of(
                teacher, method.view, share=method.saliency_share, ties=method.saliency_ties, cache=cache
            )
        return signals

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        views, latents, noise, timesteps, prompts = [], [], [], [], []
        for sample in samples:
            rng = rng_of(self.seed, "sample", sample)
            views.append(self._windows.draw(sample, rng))
            latents.append(self._draw(views[-1].key, "posterior", sample))
            noise.append(noise_of(self.seed, "noise", sample, shape=latents[-1].shape))
            timesteps.append(self._timestep(rng))
            dropped = rng.random() < self.objective.caption_dropout
            prompts.append("" if dropped else prompt_of(views[-1]))
        batch = {
            "latents": torch.stack(latents),
            "noise": torch.stack(noise),
            "timesteps": torch.tensor(timesteps),
            "text": self._text(prompts),
            "measure": step % _MEASURE_EVERY == 0,
        }
        keys = [view.key for view in views]
        batch |= {name: torch.stack(kept.get(keys)) for name, kept in self._signals_kept.items()}
        draws = [self.method.draw(sample, self.seed) for sample in samples] if self.method is not None else [{}]
        return batch | {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def _timestep(self, rng: np.random.Generator) -> int:
        if self.objective.noise == "sigmas":
            return int(self.generator.nearest_timestep(float(rng.random())).timestep)
        return int(rng.integers(len(self.generator.alphas_cumprod)))

    def _draw(self, key: str, *parts: object) -> Tensor:
        """A point of a window's posterior (mean and standard deviation), float32 [F, C, h, w]."""
        mean, std = self._latents.get([key])[0].float()
        return mean + std * noise_of(self.seed, *parts, shape=mean.shape)

    def _text(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [B, L] of a text encoder that is trained, embeddings [B, L, D] of one that is not."""
        one = self._prompts.tokens if self.objective.text_encoder else self._prompts.embedding
        return torch.stack([one(prompt) for prompt in prompts])

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        embeds = batch["text"]
        if self.objective.text_encoder:
            embeds = self.text_encoder(embeds)[0]  # without a mask, as the stock pipeline
        latents, timesteps = batch["latents"], batch["timesteps"]
        method = self.method if torch.is_grad_enabled() else None
        taps = method.taps if method is not None else ()
        loss, denoised = denoising_loss(self.generator, latents, batch["noise"], timesteps, embeds, taps=taps)
        if method is None:
            return loss, {}
        noisy = self.generator.add_noise(latents, batch["noise"], timesteps)
        seen = Pass(
            denoised.features,
            clean=latents,
            predicted_clean=self.generator.predict_clean(denoised.output, noisy, timesteps),
            timesteps=timesteps,
            text=embeds,
            signals={name: batch[name] for name in method.needs},
        )
        extra, logs = method(seen)
        logs = {"denoising": loss.detach(), self.recipe.method.name: extra.detach(), **logs}
        if batch["measure"] and not self.recipe.freeze and not self.recipe.train.compile:
            at = ([denoised.tokens[tap] for tap in taps], "tapped features") if taps else ([denoised.output], "output")
            logs["gradient_ratio"] = self._compare(method.weight * extra, loss, *at).expand_as(loss)
        loss = loss + method.weight * extra
        if beside := method.beside(seen):
            loss, logs = loss + beside[0], logs | beside[1]
        return loss, logs

    def apart(self) -> Apart:
        return self.method.apart if self.method is not None else ()

    def _compare(self, extra: Tensor, loss: Tensor, at: Sequence[Tensor], where: str) -> Tensor:
        """‖gradient of the weighted method loss‖ / ‖gradient of the denoising loss‖, both at these tensors."""
        norms = []
        for value in (extra, loss):
            gradients = torch.autograd.grad(value.mean(), at, retain_graph=True)
            norms.append(torch.stack([gradient.float().norm() for gradient in gradients]).norm())
        ratio = norms[0] / norms[1].clamp_min(1e-30)
        kind = "negligible" if ratio < _NEGLIGIBLE else "dominant" if ratio > _DOMINANT else ""
        if kind and kind not in self._warned:
            self._warned.add(kind)
            self.reporter.warn(
                f"The method's term is {kind}: its gradient is {float(ratio):.2g} times that of the denoising loss "
                f"at the {where}. Change method.weight, unless that is meant."
            )
        return ratio

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """The loss on held-out windows, and samples for held-out prompts: do they show what the prompt names?"""
        views = self._held_windows.first()
        losses: list[float] = []
        for first in range(0, len(views), 16):
            some = views[first : first + 16]
            batch = {
                "latents": torch.stack([self._draw(v.key, "held-out", v.key) for v in some]),
                "timesteps": torch.tensor(
                    [seed_from(self.seed, "t", v.key) % len(self.generator.alphas_cumprod) for v in some]
                ),
                "text": self._text([prompt_of(v) for v in some]),
            }
            batch["noise"] = torch.stack(
                [noise_of(self.seed, "held-out noise", v.key, shape=batch["latents"].shape[1:]) for v in some]
            )
            losses += self({key: value.to(self.device) for key, value in batch.items()})[0].tolist()
        count = self.objective.samples if final else -(-self.objective.samples // 4)
        right = self._sample(folder, count) if count else []
        rows = [held_out_row("denoising", self.generator.name, "v_mse", losses, higher_is_better=False)]
        if right:
            rows.append(held_out_row("denoising", self.generator.name, "objects_right", right, higher_is_better=True))
        return rows

    def _sample(self, folder: Path, count: int) -> list[float]:
        """Clips for held-out prompts by the stock pipeline; of simulated prompts, whether each shows its objects."""
        clips = spread(self._held_out, count)
        prompts = [prompt_at(clip, self.objective.strides[-1]) for clip in clips]
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
        """Write `model/`, a whole pipeline folder, or `adapter/`, a LoRA; beside it what the method brought along."""
        if self.recipe.lora is not None:
            target = folder / "adapter"
            self.generator.save_lora(target)
        else:
            target = folder / "model"
            self.generator.save(target)
        if self.method is not None:
            self.method.save(folder)
        return target

    def parts(self) -> dict[str, int]:
        parts = {"transformer": self.transformer, "vae": self.generator.vae, "text_encoder": self.text_encoder}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def facts(self) -> dict[str, Any]:
        height, width = self.generator.native_size
        text = self.generator.max_text_seq_length
        facts: dict[str, Any] = {"frames": self.objective.frames, "height": height, "width": width, "text": text}
        return facts | {"guidance": self.generator.guidance_scale}

    def problems(self) -> list[str]:
        return [*self._windows.problems, *self._held_windows.problems]
