"""What the training loop needs of a model: batches, losses, validation, export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from physcli.rows import Kind, Metric, Row, mean_row
from physcli.tasks.training.optimization import ParameterGroup


class Steps(nn.Module, ABC):
    """A model with its data and its objective, as optimizer steps need them. All that requires a gradient is trained.

    `forward` takes a batch and gives the loss of each sample, so that wrappers (DDP, FSDP, compile) see one module.
    """

    @abstractmethod
    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        """The samples with these numbers, on the CPU. Depends on its arguments and the seed alone; called by threads.

        Args:
            samples: Numbers counted over the whole run.
            step: The optimizer step, from 0, for what the samples of a step share.
        """

    def before_step(self, step: int) -> dict[str, float]:
        """Whatever optimizer step `step`, from 0, needs; every process calls it. What to log of it."""
        return {}

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each sample [B] and what else is worth logging, each [B]."""

    def after_step(self, means: Mapping[str, float], step: int) -> None:
        """What was logged of optimizer step `step`, from 0: means over all processes, the same in each."""

    @property
    def states(self) -> Sequence[Any]:
        """What else a resumed run must know, with `state_dict` and `load_state_dict`."""
        return ()

    def parameter_groups(self) -> Sequence[ParameterGroup]:
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
    """What a whole run needs as well: validation, the exported model and facts for its card.

    Attributes:
        num_windows: How many windows (chosen frames) of the training clips have their latents or features cached; 0
            where clips are decoded whenever they are drawn.
        frozen: Folders of the exported model whose weights were not trained: copies of the model that training began
            with, which keep their dtype.
    """

    num_windows = 0

    @property
    def frozen(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """Measure on held-out clips.

        Args:
            folder: For pictures.
            final: After the last step; may measure more.

        Returns:
            Rows of metrics.json.
        """

    @property
    def judged_by(self) -> str:
        """The metric of `score` by which the best weights are known; "" of what is not scored."""
        return ""

    def score(self, folder: Path) -> list[Row]:
        """Rows of a judge; every process calls it, takes its part, and gets the same.

        Args:
            folder: For pictures.
        """
        return []

    def after_score(self, values: Mapping[str, float], step: int) -> None:
        """What was scored after `step` optimizer steps, metric → value; the same in each process."""

    @abstractmethod
    def export(self, folder: Path) -> Path:
        """Write what was trained as an ordinary model folder below `folder`.

        Returns:
            The model folder's path.
        """

    @abstractmethod
    def parts(self) -> dict[str, int]:
        """Number of parameters of each part of the exported model, by name."""

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
