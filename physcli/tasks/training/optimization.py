"""Optimizer, learning rate and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from physcli.errors import MissingExtra, UsageError
from physcli.models.device import computes_in_bfloat16
from physcli.recipe import Optimizer, Schedule

_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)


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
    matrices: Collection[nn.Parameter] = (),
) -> Any:
    """AdamW over the parameters, or Muon over some and AdamW over the rest; those with fewer than two axes (biases,
    norms) are not decayed.

    Args:
        parameters: Those that require a gradient are trained.
        settings: The recipe's `train.optimizer`.
        device: Where they are.
        groups: Modules among the parameters with a learning rate of their own; AdamW's.
        matrices: Among the parameters, those that Muon trains, if it was asked for: see `block_matrices`.

    Returns:
        The optimizer. Each of its groups has an `lr_scale`: its learning rate over that of the settings.

    Raises:
        MissingExtra: 8-bit moments without bitsandbytes.
        UsageError: 8-bit moments on a device that is not CUDA; Muon where there is no matrix for it.
    """
    parameters = [p for p in parameters if p.requires_grad]
    own = [([p for p in module.parameters() if p.requires_grad], lr) for module, lr in groups]
    elsewhere = {p for some, _ in own for p in some}
    with_muon = settings.name == "muon"
    chosen = set(matrices) - elsewhere if with_muon else set()
    muons = [p for p in parameters if p in chosen]
    if with_muon and not muons:
        raise UsageError(
            "The optimizer muon for a model without linear layers or convolutions in repeated blocks.",
            expected="a transformer or VAE, trained in full or by LoRA",
            fix="use train.optimizer.name=adamw",
        )
    elsewhere.update(muons)
    rest_lr = settings.rest_lr or settings.lr
    split = []
    for some, lr in (([p for p in parameters if p not in elsewhere], rest_lr), *own):
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
    if with_muon:
        muon = Muon(muons, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
        muon.param_groups[0]["lr_scale"] = 1.0
        return Together(muon, torch.optim.AdamW(split, **common)) if split else muon
    return torch.optim.AdamW(split, **common)


def block_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear layers and convolutions inside repeated blocks (a `ModuleList`), which Muon is made
    for: no embeddings, no layers at either end."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    layers = [layer for part in lists for layer in part.modules() if isinstance(layer, _LAYERS)]
    return list(dict.fromkeys(cast(nn.Parameter, layer.weight) for layer in layers))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024), for matrices and for convolutions, whose kernels
    are taken as matrices [out, in·kernel].

    m ← μ·m + (1 − μ)·g; update = orthogonal(μ·m + (1 − μ)·g), which is Nesterov's; W ← W·(1 − lr·decay) −
    lr·0.2·√(max(rows, columns))·update, the scale by which a step has the size of AdamW's (Liu et al. 2025, arXiv
    2502.16982), so that one learning rate serves both. The same as `torch.optim.Muon` with
    `adjust_lr_fn="match_rms_adamw"`, which orthogonalises in bfloat16 whatever the device: on a CPU without such
    instructions that takes fifteen times as long, longer than the rest of a tiny model's step. Here it is in bfloat16
    where the device computes in it and float32 elsewhere, matrices of one shape at a time.

    Args:
        parameters: Matrices and kernels.
        lr: Learning rate.
        momentum: μ.
        weight_decay: Decoupled.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients there are; matrices without one stay."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(tuple(p.shape), []).append(p)
            for shape, matrices in by_shape.items():
                for p in matrices:
                    if not self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                gradients = [p.grad for p in matrices if p.grad is not None]
                moments = [self.state[p]["momentum_buffer"] for p in matrices]
                torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
                updates = torch.stack(torch._foreach_lerp(gradients, moments, group["momentum"])).flatten(2)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                size = group["lr"] * 0.2 * math.sqrt(max(updates.shape[1:]))
                steps = orthogonal(updates).to(matrices[0].dtype).reshape(-1, *shape)
                torch._foreach_add_(matrices, list(steps), alpha=-size)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """About the nearest orthogonal matrix of each: U·S·Vᵀ with S between 0.7 and 1.2, by Newton and Schulz's iteration
    of fifth order with Jordan's coefficients. Singular values below a hundredth of the largest come out smaller.

    Args:
        matrices: [N, rows, columns].
        steps: Of the iteration.

    Returns:
        The same shape, in bfloat16 or float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16 if computes_in_bfloat16(matrices.device) else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Together(torch.optim.Optimizer):
    """Several optimizers as one, each over its own parameters.

    Args:
        optimizers: Their parameter groups are this one's.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for one in optimizers for group in one.param_groups], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for one in self.optimizers:
            one.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(number): one.state_dict() for number, one in enumerate(self.optimizers)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for number, one in enumerate(self.optimizers):
            one.load_state_dict(state_dict[str(number)])
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]


def learning_rate(settings: Schedule, lr: float, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`: a function of the step alone, so nothing to resume.

    A warmup takes a tenth of the steps at most: a recipe tried for fifty steps shall train in them.
    """
    warmup_steps = min(settings.warmup_steps, steps // 10)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if settings.name == "constant":
        return lr
    left = way_down(settings.name, (step - warmup_steps) / max(1, steps - warmup_steps))
    return lr * (settings.final + (1 - settings.final) * left)


def way_down(name: str, done: float, power: float = 1.0) -> float:
    """From 1 to 0 as `done` goes from 0 to 1, on a `linear`, `cosine` or `polynomial` (of this power) way."""
    return 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else (1 - done) ** power


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
