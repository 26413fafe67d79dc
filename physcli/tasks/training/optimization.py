"""Optimizer, learning rate and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from physcli.errors import MissingExtra, UsageError
from physcli.recipe import Optimizer, Schedule


class ParameterGroup(NamedTuple):
    """A module with a learning rate of its own; the norm of its gradients is clipped by itself, too."""

    module: nn.Module
    lr: float


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    settings: Optimizer,
    device: torch.device,
    *,
    groups: Sequence[ParameterGroup] = (),
) -> Any:
    """AdamW over the parameters; those with fewer than two axes (biases, norms) are not decayed.

    Args:
        parameters: Those that require a gradient are trained.
        settings: The recipe's `train.optimizer`.
        device: Where they are.
        groups: Modules among the parameters with a learning rate of their own.

    Returns:
        The optimizer. Each of its groups has an `lr_scale`: its learning rate over that of the settings.

    Raises:
        MissingExtra: 8-bit moments without bitsandbytes.
        UsageError: 8-bit moments on a device that is not CUDA.
    """
    parameters = [p for p in parameters if p.requires_grad]
    own = [([p for p in module.parameters() if p.requires_grad], lr) for module, lr in groups]
    elsewhere = {p for some, _ in own for p in some}
    split = []
    for some, lr in (([p for p in parameters if p not in elsewhere], settings.lr), *own):
        scale = lr / settings.lr  # of the rate that the schedule gives
        split += [
            {"params": [p for p in some if p.ndim >= 2], "weight_decay": settings.weight_decay, "lr_scale": scale},
            {"params": [p for p in some if p.ndim < 2], "weight_decay": 0.0, "lr_scale": scale},
        ]
    split = [group for group in split if group["params"]]
    common: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    if settings.name == "adamw-8bit":
        try:
            import bitsandbytes
        except ImportError:
            raise MissingExtra("The optimizer adamw-8bit", package="bitsandbytes", extra="eight-bit") from None
        if device.type != "cuda":
            raise UsageError(
                f"The optimizer adamw-8bit on {device.type}.",
                expected="a CUDA device",
                fix="use train.optimizer.name=adamw",
            )
        return bitsandbytes.optim.AdamW8bit(split, **common)
    return torch.optim.AdamW(split, **common)


def learning_rate(settings: Schedule, lr: float, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`: a function of the step alone, so nothing to resume.

    A warmup takes a tenth of the steps at most: a recipe tried for fifty steps shall train in them.
    """
    warmup_steps = min(settings.warmup_steps, steps // 10)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if settings.name == "constant":
        return lr
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    left = 1 - done if settings.name == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return lr * (settings.final + (1 - settings.final) * left)


class Ema:
    """Exponential moving average of the trainable parameters, in float32 on their device.

    Early in training the decay is (1 + n) / (10 + n), so that the start is forgotten. diffusers' `EMAModel` has the
    same warm-up, but its average has the dtype of the parameters: in bfloat16 a step of 1 − d = 0.001 is below the
    spacing of the numbers, and the average stands still. It also counts one step less: the first decay is 0.

    Args:
        module: Whose parameters are averaged.
        decay: d in average ← d·average + (1−d)·parameter.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after an optimizer step."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, [p.detach().float() for p in self._parameters.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averaged weights inside the block, and its own again after it."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.apply()
        try:
            yield
        finally:
            self._copy(kept)

    def apply(self) -> None:
        """Give the module the averaged weights for good."""
        self._copy(self.average)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = int(state["count"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
