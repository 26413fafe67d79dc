"""Training the two small networks of motion: LaMo's motion field, and MoAlign's motion projector (its stage 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from physcli.errors import UsageError
from physcli.hashing import seed_from, seeded
from physcli.methods.lamo import field_loss
from physcli.methods.moalign import FlowDecoder, MotionProjector, flow_loss, token_flows
from physcli.models.generator import Conditioning, Generator
from physcli.recipe import MotionFieldRecipe, MotionProjectorRecipe
from physcli.tasks.features import View
from physcli.tasks.training.clips import rng_of
from physcli.tasks.training.field import draw_field, loss_of_field, new_field
from physcli.tasks.training.material import Material
from physcli.tasks.training.signals import Prompts, draw_latents
from physcli.tasks.training.trainee import Trainee, held_out_row
from physcli.tasks.training.windows import prompt_of

_AT_ONCE = 32


class _MotionTrainee(Trainee):
    """Windows of clips for training and for validation, with the same signals."""

    def __init__(self, recipe: MotionFieldRecipe | MotionProjectorRecipe, material: Material, seed: int) -> None:
        super().__init__()
        self.seed, self.subject = seed, recipe.model
        self._material, self._windows, self._held_windows = material, material.windows, material.held_windows
        self.num_windows = len(self._windows.views)

    def problems(self) -> list[str]:
        return self._material.problems


class FieldTrainee(_MotionTrainee):
    """f_φ alone, on the latents of a frozen generator's VAE.

    Args:
        generator: Whose latents and prompts; none of its weights is needed.
        recipe: Its objective has f_φ's size.
        material: Windows of clips with their latents.
        prompts: Embedded.
        seed: Of noise, dropped prompts and weights.
    """

    def __init__(
        self, generator: Generator, *, recipe: MotionFieldRecipe, material: Material, prompts: Prompts, seed: int
    ) -> None:
        super().__init__(recipe, material, seed)
        self.objective = objective = recipe.objective
        self._latents, self._prompts = material.values["latents"], prompts
        self._process = generator.noise
        self.field = new_field(objective, generator, latent_shape=self._latents.one().shape[1:], seed=seed)

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        rows: list[dict[str, Tensor]] = []
        for sample in samples:
            view = self._windows.draw(sample, rng_of(self.seed, "sample", sample))
            latents = draw_latents(self._latents, view, self.seed, "posterior", sample)
            drawn = draw_field(self.objective, latents.shape, self._process, sample=sample, seed=self.seed)
            rows.append({"latents": latents, "prompt": self._pooled(prompt_of(view)), **drawn})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _pooled(self, prompt: str) -> Tensor:
        return Conditioning.stack([self._prompts.embedding(prompt)]).pooled()[0]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return loss_of_field(self.field, self.objective, batch["latents"], batch["prompt"], batch)

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """On clean held-out latents: the share of the change that is predicted (0: predicting no motion)."""
        explained: list[float] = []
        views = self._held_windows.first()
        for first in range(0, len(views), _AT_ONCE):
            some = views[first : first + _AT_ONCE]
            latents = torch.stack(self._latents.get(some))[:, 0].float().to(self.device)
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
        encoder: Content hash of the frozen encoder.
        recipe: Its objective has the networks' sizes.
        material: Windows of clips with their tokens and flow.
        seed: Of weights.
    """

    def __init__(self, encoder: str, *, recipe: MotionProjectorRecipe, material: Material, seed: int) -> None:
        super().__init__(recipe, material, seed)
        self.objective = objective = recipe.objective
        some = self._load([self._windows.draw(0, rng_of(seed, "sample", 0))])
        # Flow has one frame less than the encoder sees.
        self._tubelet = (some["flow"].shape[1] + 1) // some["tokens"].shape[1]
        self._about = {
            "encoder": recipe.model,
            "encoder_weights": encoder,
            "view": objective.view.model_dump(mode="json"),
            "flow": objective.flow,
        }
        with seeded(seed_from(seed, "motion projector")):
            try:
                self.projector = MotionProjector(
                    in_dim=some["tokens"].shape[-1],
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
                    self(some)
            except ValueError as error:
                raise UsageError(f"objective: {error}.", expected="sizes that fit the encoder's tokens") from error

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        return self._load([self._windows.draw(sample, rng_of(self.seed, "sample", sample)) for sample in samples])

    def _load(self, views: Sequence[View]) -> dict[str, Any]:
        return {name: torch.stack(values.get(views)).float() for name, values in self._material.values.items()}

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
            batch = self._load(views[first : first + _AT_ONCE])
            loss, logs = self({name: value.to(self.device) for name, value in batch.items()})
            losses += (loss * self.objective.scale_px).tolist()
            still += (logs["no_motion"] * self.objective.scale_px).tolist()
        row = held_out_row("motion-projector", self.subject, "flow_l1_px", losses, higher_is_better=False, kind="px")
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
