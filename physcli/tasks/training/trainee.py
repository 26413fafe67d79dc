"""What the training loop asks of a thing that is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from physcli.rows import Kind, Metric, Row, mean_row
from physcli.tasks.training.optimization import Apart


class Steps(nn.Module, ABC):
    """What steps of training need of a model, its data and its objective, joined. Its trainable parameters are trained.

    `forward` takes a batch and gives the loss of each sample, so that wrappers (DDP, FSDP, compile) see one module.
    """

    @abstractmethod
    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        """The samples with these numbers, on the CPU. Depends on its arguments and the seed alone; called by threads.

        Args:
            samples: Numbers counted over the whole run.
            step: The optimizer step, from 0, for what the samples of a step share.
        """

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each sample [B] and what else is worth logging, each [B]."""

    def apart(self) -> Apart:
        """Modules with a learning rate of their own."""
        return ()

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for module in self.modules():
            for switch in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):  # diffusers, transformers
                if callable(turn_on := getattr(module, switch, None)):
                    turn_on()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class Trainee(Steps):
    """What a run trains, measures and leaves behind.

    Attributes:
        num_windows: Of the training clips, those whose latents or features are kept; 0 where clips are decoded anew.
        frozen: Folders of what is exported that hold what was there before: they stay as they are.
    """

    num_windows = 0

    @property
    def frozen(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """Measure on held-out clips, at the end perhaps more; write pictures into `folder`; metric rows."""

    @abstractmethod
    def export(self, folder: Path) -> Path:
        """Write what was trained below `folder` as an ordinary model folder; its path."""

    @abstractmethod
    def parts(self) -> dict[str, int]:
        """Parameters by part of what is exported."""

    def facts(self) -> dict[str, Any]:
        """What the model card says of the model beside the recipe."""
        return {}

    def problems(self) -> list[str]:
        """Clips that could not be read so far, in words."""
        return []


def held_out_row(
    task: str, subject: str, metric: str, values: Sequence[float], *, higher_is_better: bool, kind: Kind = "score"
) -> Row:
    """A row of metrics.json: the mean of a metric over held-out items."""
    measured = Metric(metric, kind, higher_is_better)
    return mean_row(measured, values, benchmark="training", task=task, subject=subject, split="held-out")
