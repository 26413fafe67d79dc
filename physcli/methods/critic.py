"""What the network predicts, seen by a frozen network: a perceptual loss among latents.

x̂0 and x0 get the same little noise, a frozen generator (the critic) looks at both, and the tokens of one of its blocks
shall be the same. After Lin & Yang 2024 (arXiv 2401.00110), where the critic is a copy of the network itself. Ours: it
may be another model of the same latents, one that was aligned with a teacher for example, so that what the teacher
knows reaches the prediction and not only hidden tokens; the error is relative to how much the critic's tokens differ
from place to place; and nothing is asked of predictions from more noise than `most_sigma`, where x̂0 is an average of
many clips.
"""

from __future__ import annotations

from torch import Tensor


def critic_loss(predicted: Tensor, real: Tensor) -> Tensor:
    """Squared distance of the tokens, relative to the spread of the real ones about their mean.

    Args:
        predicted: Tokens of x̂0 [B, ..., D].
        real: Of x0, same shape; no gradient.

    Returns:
        [B], float32 (float64 where `predicted` is): 0 where they are the same, 1 where the mean token stands for all.

    Raises:
        ValueError: unequal shapes, or no axis between B and D.
    """
    if predicted.shape != real.shape or predicted.ndim < 3:
        raise ValueError(f"expected two [B, ..., D] alike, got {list(predicted.shape)} and {list(real.shape)}")
    predicted = predicted if predicted.dtype.itemsize > 4 else predicted.float()
    real = real.detach().to(predicted)
    axes = tuple(range(1, real.ndim))
    spread = (real - real.mean(dim=axes[:-1], keepdim=True)).square().mean(dim=axes)
    return (predicted - real).square().mean(dim=axes) / spread.clamp_min(1e-12)
