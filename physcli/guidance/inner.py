"""Inner-Guidance: a network that denoises motion beside the clip is drawn to what its own motion tells it (VideoJAM,
arXiv 2502.02492). It makes the mix.

(1 + w1 + w2)·u([x, d], y) − w1·u([x, d], ∅) − w2·u([x, ∅], y) with x the clip, d its motion, y the prompt and ∅ of
motion zeros. w1 is classifier-free guidance's, so that here it is the guidance scale less one: the paper's 5 is a scale
of 6. The network is asked a third time at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
class InnerSettings:
    """`inner_scale`: w2."""

    scale: float = option(3.0, "How far each step goes from what is predicted without the motion.  \\[default: 3]")

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise UsageError(f"--inner-scale {self.scale}.", expected="a number of at least 0; 0 only measures")


class InnerGuidance(Guidance):
    """Args: generator: Of motion beside its clips. inner_scale: w2."""

    title = "Inner-Guidance (VideoJAM)"
    summary = "go from what the model predicts without its own motion (Inner-Guidance of VideoJAM)"
    prefix = "inner"
    Settings = InnerSettings
    mixes = True
    more_forwards = 1
    metrics: ClassVar[tuple[Measured, ...]] = (Measured("motion_effect", "motion_effect", "mean", None),)

    def __init__(self, generator: Generator, inner_scale: float) -> None:
        self.generator, self.inner_scale = generator, inner_scale
        self._conditioning: Conditioning | None = None
        self._effect: Tensor | None = None

    @classmethod
    def build(cls, settings: Any, generator: Generator, files: Mapping[str, Path], reporter: Reporter) -> InnerGuidance:
        if not generator.facts.motion_channels:
            raise UsageError(
                f"--guidance inner with {generator.name}, which denoises no motion beside its clips.",
                expected="a model trained by VideoJAM",
                fix="train one: `physcli finetune --recipe videojam`",
            )
        return cls(generator, settings.scale)

    def prepare(self, conditioning: Conditioning, *, latent_frames: int, steps: int, scale: float) -> None:
        self._conditioning = conditioning

    def mix(self, step: Step) -> Tensor:
        import torch

        assert step.conditional is not None
        assert self._conditioning is not None
        clip, both = self.generator.facts.latent_channels, step.conditional
        hidden = step.noisy.clone()
        hidden[:, :, clip:] = 0
        with torch.no_grad():
            without = self.generator.denoise(hidden, step.asked, self._conditioning).output
        assert without is not None
        difference = both - without.to(both)
        self._effect = difference[:, :, :clip].flatten(1).norm(dim=1) / both[:, :, :clip].flatten(1).norm(dim=1)
        guided = both + self.inner_scale * difference
        if step.unconditional is not None:
            guided = guided + (step.scale - 1) * (both - step.unconditional)
        return guided

    def after(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        assert self._effect is not None
        return step.output, {"motion_effect": self._effect}

    @classmethod
    def in_words(cls, value: Callable[[str], float | None]) -> str:
        if (effect := value("motion_effect")) is None:
            return ""
        return f"Inner-Guidance: without the motion the output would be {effect:.1%} of its length away."
