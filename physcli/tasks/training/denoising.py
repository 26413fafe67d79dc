"""A step of training a generator: its own loss, that of a method, and how their gradients compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from physcli.models.generator import Conditioning, Generator, denoising_loss
from physcli.progress import Reporter
from physcli.recipe import GeneratorRecipe
from physcli.tasks.training.alignment import Method, Pass
from physcli.tasks.training.optimization import ParameterGroup
from physcli.tasks.training.trainee import Steps

MEASURE_EVERY = 50  # steps; the gradients of the two losses are compared
TOLD = "told_"  # begins the names of what a batch holds of prompts: the parts of their conditioning, or their token ids
_NEGLIGIBLE, _DOMINANT = 0.01, 10.0


class DenoisingSteps(Steps):
    """A generator's loss on batches of latents, wherever those come from.

    Args:
        generator: Already where it shall run, its transformer read; what of it is trained is settled.
        recipe: What is trained.
        method: Its loss beside the generator's own.
        text_encoder: If it is trained too.
        reporter: Receives warnings.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        recipe: GeneratorRecipe,
        method: Method | None,
        text_encoder: nn.Module | None = None,
        reporter: Reporter,
    ) -> None:
        super().__init__()
        self.generator, self.recipe, self.reporter = generator, recipe, reporter
        self.transformer: Any = generator.network
        self.text_encoder = text_encoder
        self.method = method
        self._warned: set[str] = set()

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        told = {name.removeprefix(TOLD): value for name, value in batch.items() if name.startswith(TOLD)}
        if self.text_encoder is not None:
            told |= self.generator.embed(told.pop("ids"))
        conditioning = Conditioning(told)
        latents, process = batch["latents"], self.generator.noise
        level = process.of_time(batch["time"])
        method = self.method if torch.is_grad_enabled() else None
        taps = method.taps if method is not None else ()
        loss, denoised = denoising_loss(self.generator, latents, batch["noise"], level, conditioning, taps=taps)
        if method is None:
            return loss, {}
        assert denoised.output is not None
        noisy = process.add_noise(latents, batch["noise"], level)
        seen = Pass(
            denoised.features,
            clean=latents,
            predicted_clean=process.clean(denoised.output, noisy, level),
            level=level,
            conditioning=conditioning,
            signals={name: batch[name] for name in method.needs},
        )
        extra, logs = method(seen)
        logs = {"denoising": loss.detach(), self.recipe.method.name: extra.detach(), **logs}
        if batch["measure"] and not self.recipe.freeze and not self.recipe.train.compile:
            at = ([denoised.tokens[tap] for tap in taps], "tapped features") if taps else ([denoised.output], "output")
            logs["gradient_ratio"] = self._compare(method.weight * extra, loss, *at).expand_as(loss)
        loss = loss + method.weight * extra
        if auxiliary := method.auxiliary_loss(seen):
            loss, logs = loss + auxiliary[0], logs | auxiliary[1]
        return loss, logs

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return self.method.parameter_groups if self.method is not None else ()

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
