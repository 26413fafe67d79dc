"""A step of training a generator: its own loss, that of a method, and how their gradients compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from physcli.errors import UsageError
from physcli.methods.settings import WeightSchedule
from physcli.models.generator import Conditioning, Generator, denoising_loss
from physcli.progress import Reporter
from physcli.recipe import GeneratorRecipe
from physcli.tasks.training.alignment import Method, Pass
from physcli.tasks.training.method_schedule import GRADIENT_COSINE, MethodSchedule
from physcli.tasks.training.optimization import ParameterGroup
from physcli.tasks.training.trainee import Steps

MEASURE_EVERY = 50  # steps; the gradients of the two losses are compared
TOLD = "told_"  # begins the names of what a batch holds of prompts: the parts of their conditioning, or their token ids
_NONE, _NEGLIGIBLE, _DOMINANT = 1e-20, 0.01, 10.0


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
        schedule = method.schedule if method is not None else WeightSchedule()
        self.schedule = MethodSchedule(schedule, steps=recipe.train.steps, loss=recipe.method.name, reporter=reporter)
        if schedule.stop_cosine is not None and not self._compares:
            raise UsageError(
                "method.schedule.stop_cosine where the gradients of the two losses are not compared.",
                expected="train.compile=false and freeze=false",
            )
        if schedule.stop_score is not None and not recipe.train.score_every:
            raise UsageError(
                "method.schedule.stop_score where nothing scores.", expected="train.score_every, and scoring to say how"
            )
        self._warned: set[str] = set()

    @property
    def _compares(self) -> bool:
        return not self.recipe.freeze and not self.recipe.train.compile

    @property
    def states(self) -> Sequence[Any]:
        return [self.schedule] if self.schedule.measures else []

    def after_step(self, means: Mapping[str, float], step: int) -> None:
        self.schedule.observe(means, step)

    def about_step(self, step: int) -> dict[str, Any]:
        """What a batch holds of its step: whether the gradients are compared in it, and the method's weight [], where
        there is one that is on."""
        about: dict[str, Any] = {"measure": step % MEASURE_EVERY == 0}
        if self.method is not None and self.schedule.is_on(step):
            about["method_weight"] = torch.tensor(self.method.weight * self.schedule.factor(step))
        return about

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        told = {name.removeprefix(TOLD): value for name, value in batch.items() if name.startswith(TOLD)}
        if self.text_encoder is not None:
            told |= self.generator.embed(told.pop("ids"))
        conditioning = Conditioning(told)
        latents, process = batch["latents"], self.generator.noise
        level = process.of_time(batch["time"])
        method = self.method if torch.is_grad_enabled() else None
        # A batch may have been made before the method ended.
        is_on = "method_weight" in batch and self.schedule.ended is None
        taps = method.taps if method is not None and is_on else ()
        signals = {name: batch[name] for name in method.needs if name in batch} if method is not None else {}
        motion = method.motion(signals, level) if method is not None and is_on else None
        loss, denoised = denoising_loss(
            self.generator, latents, batch["noise"], level, conditioning, taps=taps, motion=motion
        )
        if method is None:
            return loss, {}
        logs = {"denoising": loss.detach()}
        assert denoised.output is not None
        noisy = process.add_noise(latents, batch["noise"], level)
        seen = Pass(
            denoised.features,
            clean=latents,
            predicted_clean=process.clean(denoised.output[:, :, : latents.shape[2]], noisy, level),
            level=level,
            conditioning=conditioning,
            signals=signals,
            output=denoised.output,
            noise=batch["noise"],
        )
        if is_on:
            extra, own = method(seen)
            weight = batch["method_weight"]
            logs |= {self.recipe.method.name: extra.detach(), **own}
            if method.schedule != WeightSchedule():
                logs["method_weight"] = weight.expand_as(loss)
            if batch["measure"] and self._compares and bool(extra.any()):  # VideoJAM's is 0 where no motion is shown
                where = [denoised.tokens[tap] for tap in taps] or [denoised.output]
                ratio, cosine = self._compare(extra, loss, where)
                logs["gradient_ratio"] = (weight * ratio).expand_as(loss)
                logs[GRADIENT_COSINE] = cosine.expand_as(loss)
            loss = loss + weight * extra
        else:  # DDP waits for the gradient of every weight
            loss = loss + 0 * sum(p.sum() for p in method.parameters() if p.requires_grad)
        if auxiliary := method.auxiliary_loss(seen):
            loss, logs = loss + auxiliary[0], logs | auxiliary[1]
        return loss, logs

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return self.method.parameter_groups if self.method is not None else ()

    def _compare(self, extra: Tensor, loss: Tensor, where: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """‖gradient of the method's loss‖ / ‖gradient of the denoising loss‖, and the cosine between the two, at these
        tensors; the method's is not weighted."""
        assert self.method is not None
        both = [
            [
                gradient.float()
                for gradient in torch.autograd.grad(value.mean(), where, retain_graph=True, materialize_grads=True)
            ]
            for value in (extra, loss)
        ]
        own, denoising = (torch.stack([g.norm() for g in gradients]).norm().clamp_min(1e-30) for gradients in both)
        ratio = own / denoising
        usual = float(self.method.weight * ratio)
        # None at all: the last layer's weights for VideoJAM's motion are still the zeros that they begin as.
        none = float(own) < _NONE
        kind = "" if none else "negligible" if usual < _NEGLIGIBLE else "dominant" if usual > _DOMINANT else ""
        if kind and kind not in self._warned:
            self._warned.add(kind)
            at = "tapped features" if self.method.taps else "output"
            self.reporter.warn(
                f"The method's term is {kind}: its gradient is {usual:.2g} times that of the denoising loss at the "
                f"{at}. Change method.weight, unless that is meant."
            )
        products = torch.stack([(a * b).sum() for a, b in zip(*both, strict=True)])
        return ratio, products.sum() / own / denoising
