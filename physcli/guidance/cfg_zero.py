"""CFG-Zero*: classifier-free guidance with the unconditional part brought to its best length, and first steps that rest
(Fan et al. 2025, arXiv 2503.18886). Before the mix.

v = s·v_u + w·(v_c − s·v_u) with s = ⟨v_c, v_u⟩/‖v_u‖², for each clip. In the first steps a flow model's own velocity is
worse than none, says the paper, so they return zero; a model of another kind rests in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from physcli.errors import UsageError
from physcli.guidance.base import Guidance, Measured, option

if TYPE_CHECKING:
    from torch import Tensor

    from physcli.models.generator import Conditioning, Generator, Step
    from physcli.progress import Reporter


@dataclass(frozen=True)
class CfgZeroSettings:
    """`zero_steps`: how many of the first steps return zero."""

    steps: int | None = option(None, "First steps that return zero.  \\[default: 1 of a flow model, else 0]")

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise UsageError(f"--zero-steps {self.steps}.", expected="at least 0")


class CfgZero(Guidance):
    """Args: zero_steps: First steps that return zero."""

    title = "CFG-Zero*"
    summary = "classifier-free guidance with the unconditional part at its best length (CFG-Zero*)"
    prefix = "zero"
    Settings = CfgZeroSettings
    mixes = True
    metrics: ClassVar[tuple[Measured, ...]] = (Measured("zero_scale", "zero_scale", "mean", None),)

    def __init__(self, zero_steps: int) -> None:
        self.zero_steps = zero_steps
        self._scale: Tensor | None = None

    @classmethod
    def build(cls, settings: Any, generator: Generator, files: Mapping[str, Path], reporter: Reporter) -> CfgZero:
        is_flow = generator.noise.prediction == "velocity"
        if settings.steps and not is_flow:
            raise UsageError(
                f"--zero-steps {settings.steps} with {generator.name}, which predicts {generator.noise.prediction}.",
                expected="a flow model: zero stands for staying where one is in these alone",
                fix="leave it out",
            )
        return cls(int(is_flow) if settings.steps is None else settings.steps)

    def prepare(self, conditioning: Conditioning, *, latent_frames: int, steps: int, scale: float) -> None:
        if scale <= 1:
            raise UsageError(
                f"--guidance cfg-zero with a guidance scale of {scale:g}, which is no classifier-free guidance.",
                expected="a scale above 1",
                fix="give --guidance-scale",
            )
        if self.zero_steps >= steps:
            raise UsageError(f"--zero-steps {self.zero_steps} of {steps} steps.", expected=f"at most {steps - 1}")

    def mix(self, step: Step) -> Tensor:
        conditional, unconditional = step.conditional, step.unconditional
        assert conditional is not None
        assert unconditional is not None
        length = unconditional.square().sum(dim=(1, 2, 3, 4))
        self._scale = (conditional * unconditional).sum(dim=(1, 2, 3, 4)) / length.clamp_min(1e-8)
        if step.index < self.zero_steps:
            return step.output * 0
        base = self._scale[:, None, None, None, None] * unconditional
        return base + step.scale * (conditional - base)

    def after(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        assert self._scale is not None
        return step.output, {"zero_scale": self._scale}
