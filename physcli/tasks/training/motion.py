"""Training the two small networks of motion: LaMo's motion field, and MoAlign's motion projector (its stage 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from physcli.data.clips import Clip
from physcli.errors import UsageError
from physcli.hashing import seed_from
from physcli.methods.lamo import field_loss, pool_prompt
from physcli.methods.moalign import FlowDecoder, MotionProjector, flow_loss, token_flows
from physcli.models.tiny import seeded
from physcli.progress import Reporter
from physcli.recipe import MotionFieldRecipe, MotionProjectorRecipe
from physcli.tasks.features import View
from physcli.tasks.processes import Processes
from physcli.tasks.training.clips import noise_of, rng_of, spread
from physcli.tasks.training.field import draw_field, new_field
from physcli.tasks.training.signals import Kept, Prompts, Signal, flow_of, hash_module, latents_of, teacher_of
from physcli.tasks.training.trainee import Trainee, held_out_row
from physcli.tasks.training.windows import Windows, prompt_of

_VALIDATION_CLIPS = 256
_AT_ONCE = 32


class _MotionTrainee(Trainee):
    """Windows of clips for training and for validation, with the same signals."""

    def __init__(
        self,
        recipe: MotionFieldRecipe | MotionProjectorRecipe,
        signals: Sequence[Signal],
        training: Sequence[Clip],
        held_out: Sequence[Clip],
        seed: int,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        super().__init__()
        self.seed, self.subject = seed, recipe.model
        common: dict[str, Any] = {"sampling": recipe.objective, "signals": signals, "seed": seed}
        common |= {"max_bad": recipe.data.max_bad, "processes": processes, "reporter": reporter}
        self._windows = Windows(training, **common)
        self._held_windows = Windows(spread(held_out, _VALIDATION_CLIPS), **common)
        self.num_windows = len(self._windows.views)

    def _views(self) -> list[View]:
        """All windows."""
        return [*self._windows.views, *self._held_windows.views]

    def problems(self) -> list[str]:
        return [*self._windows.problems, *self._held_windows.problems]


class FieldTrainee(_MotionTrainee):
    """f_φ alone, on the latents of a frozen generator's VAE.

    Args:
        generator: Whose latents and prompts.
        recipe: Its objective has f_φ's size.
        training: Clips to train on.
        held_out: For validation.
        seed: Of windows, noise, dropped prompts and weights.
        cache: Latents and prompt embeddings are kept here.
        processes: Each computes its part of them.
        reporter: Receives progress.
    """

    def __init__(
        self,
        generator: Any,
        *,
        recipe: MotionFieldRecipe,
        training: Sequence[Clip],
        held_out: Sequence[Clip],
        seed: int,
        cache: Path,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        signal = latents_of(generator, cache=cache)
        super().__init__(recipe, [signal], training, held_out, seed, processes, reporter)
        self.objective = objective = recipe.objective
        seen = self._views()
        self._latents = Kept(signal, [view.key for view in seen], room=recipe.data.memory_gb)
        self._prompts = Prompts(generator, cache=cache, processes=processes, reporter=reporter)
        self._prompts.embed(list(dict.fromkeys(prompt_of(view) for view in seen)))
        self._levels = generator.alphas_cumprod
        self.field = new_field(
            objective,
            latent_shape=self._latents.one().shape[1:],
            text_dim=self._prompts.embedding(prompt_of(seen[0])).shape[-1],
            scaling_factor=float(generator.vae.config.scaling_factor),
            seed=seed,
        )

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        rows: list[dict[str, Tensor]] = []
        for sample in samples:
            view = self._windows.draw(sample, rng_of(self.seed, "sample", sample))
            mean, std = self._latents.get([view.key])[0].float()
            latents = mean + std * noise_of(self.seed, "posterior", sample, shape=mean.shape)
            drawn = draw_field(self.objective, latents.shape, self._levels, sample=sample, seed=self.seed)
            rows.append({"latents": latents, "prompt": self._pooled(prompt_of(view)), **drawn})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _pooled(self, prompt: str) -> Tensor:
        return pool_prompt(self._prompts.embedding(prompt)[None])[0]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        batch = dict(batch)
        objective = self.objective
        return field_loss(
            self.field,
            batch.pop("latents"),
            batch.pop("prompt"),
            lag=objective.lag,
            cosine_weight=objective.cosine_weight,
            noise_scale=objective.noise_scale,
            **batch,
        )

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """On clean held-out latents: the share of the change that is predicted (0: predicting no motion)."""
        explained: list[float] = []
        views = self._held_windows.first()
        for first in range(0, len(views), _AT_ONCE):
            some = views[first : first + _AT_ONCE]
            latents = torch.stack(self._latents.get([view.key for view in some]))[:, 0].float().to(self.device)
            prompts = torch.stack([self._pooled(prompt_of(view)) for view in some]).to(self.device)
            explained += field_loss(self.field, latents, prompts, lag=self.objective.lag)[1]["explained"].tolist()
        return [held_out_row("motion-field", self.subject, "explained", explained, higher_is_better=True)]

    def export(self, folder: Path) -> Path:
        target = folder / "motion_field"
        self.field.save(target)
        return target

    def parts(self) -> dict[str, int]:
        return {"motion field": sum(p.numel() for p in self.field.parameters())}


class MotionProjectorTrainee(_MotionTrainee):
    """MoAlign's stage 1: a frozen encoder's tokens → a narrow subspace, from which a light decoder reads optical flow.

    Args:
        encoder: The frozen encoder.
        recipe: Its objective has the networks' sizes.
        training: Clips to train on.
        held_out: For validation.
        seed: Of windows and weights.
        cache: Tokens and flow are kept here.
        processes: Each computes its part of them.
        reporter: Receives progress.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        recipe: MotionProjectorRecipe,
        training: Sequence[Clip],
        held_out: Sequence[Clip],
        seed: int,
        cache: Path,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        objective = recipe.objective
        signals = {
            "tokens": teacher_of(encoder, objective.view, cache=cache),
            "flow": flow_of(encoder, objective.view, kind=objective.flow, cache=cache),
        }
        super().__init__(recipe, list(signals.values()), training, held_out, seed, processes, reporter)
        self.objective = objective
        keys = [view.key for view in self._views()]
        self._kept = {name: Kept(signal, keys, room=recipe.data.memory_gb / 2) for name, signal in signals.items()}
        self._tubelet = encoder.tubelet_size
        self._about = {
            "encoder": recipe.model,
            "encoder_weights": hash_module(encoder),
            "view": objective.view.model_dump(mode="json"),
            "flow": objective.flow,
        }
        with seeded(seed_from(seed, "motion projector")):
            try:
                self.projector = MotionProjector(
                    in_dim=encoder.hidden_size,
                    dim=objective.dim,
                    hidden_dim=objective.hidden_dim,
                    num_layers=objective.num_layers,
                    kernel=objective.kernel,
                )
                self.decoder: nn.Module = FlowDecoder(
                    dim=objective.dim,
                    hidden_dim=objective.decoder_dim,
                    num_layers=objective.decoder_layers,
                    flows_per_token=objective.flows_per_token,
                    upscale=objective.upscale,
                )
                with torch.no_grad():
                    self(self._load(keys[:1]))
            except ValueError as error:
                raise UsageError(f"objective: {error}.", expected="sizes that fit the encoder's tokens") from error

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        views = [self._windows.draw(sample, rng_of(self.seed, "sample", sample)) for sample in samples]
        return self._load([view.key for view in views])

    def _load(self, keys: Sequence[str]) -> dict[str, Any]:
        return {name: torch.stack(kept.get(keys)).float() for name, kept in self._kept.items()}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch["tokens"]
        predicted = self.decoder(self.projector(tokens))
        flow, valid = token_flows(
            batch["flow"],
            num_frames=tokens.shape[1] * self._tubelet,
            tubelet=self._tubelet,
            flows_per_token=self.objective.flows_per_token,
        )
        scale = self.objective.scale_px
        moving = flow.norm(dim=2) >= 0.1 * scale  # [B, T, H, W]
        weights = valid * torch.where(moving, self.objective.moving_weight, 1.0)
        loss = flow_loss(predicted, flow, scale_px=scale, valid=weights)
        with torch.no_grad():
            still = flow_loss(torch.zeros_like(predicted), flow, scale_px=scale, valid=weights)
        return loss, {"no_motion": still}

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """L1 of the flow on held-out windows, and the share by which it beats predicting no motion."""
        losses: list[float] = []
        still: list[float] = []
        views = self._held_windows.first()
        for first in range(0, len(views), _AT_ONCE):
            batch = self._load([view.key for view in views[first : first + _AT_ONCE]])
            loss, logs = self({name: value.to(self.device) for name, value in batch.items()})
            losses += (loss * self.objective.scale_px).tolist()
            still += (logs["no_motion"] * self.objective.scale_px).tolist()
        row = held_out_row("motion-projector", self.subject, "flow_l1_px", losses, higher_is_better=False)
        rows = [row | {"no_motion": float(np.mean(still))}]
        moving = np.array(still) > 0
        if moving.any():
            gained = (1 - np.array(losses)[moving] / np.array(still)[moving]).tolist()
            rows.append(held_out_row("motion-projector", self.subject, "explained", gained, higher_is_better=True))
        return rows

    def export(self, folder: Path) -> Path:
        target = folder / "motion_projector"
        self.projector.info = self._about
        self.projector.save(target)
        return target

    def parts(self) -> dict[str, int]:
        parts = {"motion projector": self.projector, "flow decoder (not kept)": self.decoder}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
