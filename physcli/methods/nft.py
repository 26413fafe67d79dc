"""DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117): reward fine-tuning on the forward process.

Clips are sampled from an old policy and rewarded; then the network learns from them as from any clips, noised anew, by
two implicit policies: v⁺ = βv_θ + (1−β)v_old draws towards the good ones, v⁻ = (1+β)v_old − βv_θ away from the bad.
Nothing is differentiated through sampling, and any solver may sample. No code of the paper's has been read; of its
port to few-step image models (FastVideo) these come: the loss on x̂0, each policy's error over its own mean absolute
value, and the scale A_max of the loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_LEAST_ERROR = 1e-5
_LEAST_STD = 1e-4


def optimality(rewards: Tensor, *, most: float = 5.0, std: Literal["all", "group"] = "all") -> Tensor:
    """r in [0, 1], how good each clip is among those of its prompt; ½ for all of a prompt whose rewards are equal.

    A = (reward − mean of its prompt)/std, r = clamp(A/(2·A_max) + ½, 0, 1).

    Args:
        rewards: [P, K], K clips of each of P prompts.
        most: A_max.
        std: Over `all` rewards about their prompts' means, or over each prompt's own `group`.

    Returns:
        [P, K], in the dtype of the rewards.

    Raises:
        ValueError: another shape, or an A_max that is not positive.
    """
    if rewards.ndim != 2 or 0 in rewards.shape or not most > 0:
        raise ValueError(f"rewards must be [P, K] and A_max positive, got {list(rewards.shape)} and {most}")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    variance = centred.square().mean() if std == "all" else centred.square().mean(dim=1, keepdim=True)
    return (centred / (variance.sqrt() + _LEAST_STD) / (2 * most) + 0.5).clamp(0, 1)


def nft_loss(
    clean: Tensor, old_clean: Tensor, target: Tensor, good: Tensor, *, beta: float = 1.0, scale: float = 5.0
) -> Tensor:
    """scale·(r·ℓ(v⁺) + (1 − r)·ℓ(v⁻))/β with ℓ(v) = mean (x̂0(v) − x0)² / sg(mean |x̂0(v) − x0|).

    x̂0 is affine in v, so x̂0(v⁺) = βx̂0_θ + (1−β)x̂0_old, and likewise x̂0(v⁻). Where θ is the old policy the gradient is
    (2r − 1)·scale times that of ℓ itself: none for r = ½.

    Args:
        clean: x̂0 of the network that learns, [B, ...].
        old_clean: x̂0 of the old policy at the same noise, same shape; no gradient flows to it.
        target: x0, the sampled clip, same shape.
        good: r [B].
        beta: β; the smaller, the further the two policies' step.
        scale: Of the loss, A_max.

    Returns:
        [B], float32 (float64 where `clean` is float64).

    Raises:
        ValueError: unequal shapes, or a β that is not positive.
    """
    if clean.shape != old_clean.shape or clean.shape != target.shape or good.shape != clean.shape[:1] or not beta > 0:
        raise ValueError(
            "clean, old_clean and target must be [B, ...] of one shape, good [B] and beta positive, got "
            f"{list(clean.shape)}, {list(old_clean.shape)}, {list(target.shape)}, {list(good.shape)} and {beta}"
        )
    dtype = torch.promote_types(clean.dtype, torch.float32)
    clean, old, target = clean.to(dtype), old_clean.detach().to(dtype), target.detach().to(dtype)

    def error(policy: Tensor) -> Tensor:
        difference = (policy - target).flatten(1)
        size = difference.detach().abs().mean(dim=1).clamp_min(_LEAST_ERROR)
        return difference.square().mean(dim=1) / size

    good = good.to(dtype)
    towards = error(beta * clean + (1 - beta) * old)
    away = error((1 + beta) * old - beta * clean)
    return scale * (good * towards + (1 - good) * away) / beta
