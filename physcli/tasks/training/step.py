"""One optimizer step: training runs it, `--dry-run` measures it and `bench finetune` times it, so that they agree."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from physcli.errors import PhyscliError, UsageError
from physcli.hashing import seed_from
from physcli.models.attention import quick_attention
from physcli.recipe import Train
from physcli.tasks.training.optimization import Ema, block_matrices, build_optimizer, learning_rate
from physcli.tasks.training.trainee import Steps


class TrainingError(PhyscliError):
    """Training cannot go on: the loss or a gradient is NaN or infinite."""


class StepResult(NamedTuple):
    """What is logged of a step.

    Attributes:
        means: The loss and whatever else the model logs, by name: means over the samples of all processes.
        grad_norm: Before clipping; without the parameters that have a learning rate of their own.
        lr: The learning rate of the schedule.
    """

    means: dict[str, float]
    grad_norm: float
    lr: float


class OptimizerStep:
    """Forward, backward, clipping, optimizer and average: everything that changes the weights in a step of training.

    Args:
        trainee: Moved to the accelerator's device, put into training mode and wrapped.
        settings: The recipe's `train`.
        accelerator: Of `build_accelerator` for the same settings.
        seed: Of dropout.
        optimizer: One that also holds the parameters of another model; by default, of this model's parameters.

    Attributes:
        model: The trainee as accelerate wrapped it.
        optimizer: As accelerate wrapped it.
        ema: The averaged weights, if the settings ask for them.
    """

    def __init__(
        self, trainee: Steps, settings: Train, accelerator: Accelerator, *, seed: int, optimizer: Any = None
    ) -> None:
        self.settings, self.accelerator, self.seed, self._trainee = settings, accelerator, seed, trainee
        if settings.gradient_checkpointing:
            trainee.checkpoint_gradients()
        trainee.to(accelerator.device).train()
        self.ema = Ema(trainee, settings.ema) if settings.ema else None
        if settings.compile:
            trainee.compile()
        sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if settings.optimizer.name == "muon" and sharded:
            raise UsageError(
                f"The optimizer muon under {accelerator.distributed_type.value}, where no process has whole matrices.",
                expected="one process, or several without sharding",
                fix="use train.optimizer.name=adamw, or an accelerate config of type MULTI_GPU",
            )
        if optimizer is None:
            optimizer = build_optimizer(
                trainee.parameters(),
                settings.optimizer,
                accelerator.device,
                groups=trainee.parameter_groups(),
                matrices=block_matrices(trainee),
            )
        self.model, self.optimizer = accelerator.prepare(trainee, optimizer)
        self._groups = [list(group.module.parameters()) for group in trainee.parameter_groups()]
        grouped = {p for parameters in self._groups for p in parameters}
        self._others = [p for p in self.model.parameters() if p not in grouped]

    def samples(self, micro_step: int, *, first: int = 0) -> range:
        """The numbers of the samples that this process draws for forward pass `micro_step`, counted from `first` on."""
        size, accelerator = self.settings.batch_size, self.accelerator
        start = first + (micro_step * accelerator.num_processes + accelerator.process_index) * size
        return range(start, start + size)

    def __call__(self, batches: Iterable[dict[str, Any]], number: int) -> StepResult:
        """Take one optimizer step.

        Args:
            batches: `settings.accumulate` batches of this process.
            number: Of the step, from 0: sets the learning rate and the random numbers of dropout.

        Raises:
            TrainingError: NaN or infinite loss or gradient, on any process. The weights are those before the step.
        """
        settings, accelerator = self.settings, self.accelerator
        begun = self._trainee.before_step(number)
        rate = learning_rate(settings.schedule, settings.optimizer.lr, number, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        torch.manual_seed(seed_from(self.seed, "step", number, accelerator.process_index))
        total: dict[str, Tensor] = {}
        norm: Tensor | None = None
        for batch in batches:
            batch = to_device(batch, accelerator.device)
            with accelerator.accumulate(self.model), self._attention():
                losses, logs = self.model(batch)
                loss = losses.float().mean()
                for name, values in {"loss": losses, **logs}.items():
                    total[name] = total.get(name, 0) + values.detach().float().mean() / settings.accumulate
                self._refuse_unless_finite("loss", loss.detach(), number)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = self._clip(settings.clip_norm or math.inf)
                    if accelerator.scaler is None:
                        self._refuse_unless_finite("gradient norm", norm, number)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()
        reduced = accelerator.reduce(torch.stack(list(total.values())), reduction="mean").tolist()
        means = dict(zip(total, reduced, strict=True))
        self._trainee.after_step(means, number)
        return StepResult(means | begun, float(norm) if norm is not None else math.nan, lr=rate)

    def _attention(self) -> AbstractContextManager[Any]:
        # Gradient checkpointing runs blocks again where no such mode is on, and must find the same operations
        # (findings/torch-function-mode-backward.sh).
        plain = self.accelerator.mixed_precision != "bf16" or self.settings.gradient_checkpointing
        return nullcontext() if plain else quick_attention(self.accelerator.device)

    def _clip(self, largest: float) -> Tensor:
        """Clip the gradients, of each module with a learning rate of its own by themselves; the norm of the others."""
        # It takes fp16's scale off all gradients.
        norm: Tensor = self.accelerator.clip_grad_norm_(self._others, largest)
        for parameters in self._groups:
            nn.utils.clip_grad_norm_(parameters, largest)
        return norm

    def _refuse_unless_finite(self, what: str, value: Tensor, number: int) -> None:
        """On every process: all must stop together."""
        bad = (~torch.isfinite(value)).float().reshape(1)
        if float(self.accelerator.reduce(bad, reduction="sum")) == 0:
            return
        raise TrainingError(
            f"The {what} became {float(value)} at step {number + 1}.",
            expected="a finite number",
            fix="start again with a lower train.optimizer.lr, a smaller train.clip_norm, train.mixed_precision=no or a "
            "longer train.schedule.warmup_steps",
        )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors moved."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
