"""The generator's own objective: v-prediction at a random noise level.

The mean over elements of (v̂ − v)², in float32, is the public trainers' mean of (x̂0 − x0)²/(1 − ᾱ) without the
division.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def denoising_loss(
    generator: Any, latents: Tensor, noise: Tensor, timesteps: Tensor, prompt_embeds: Tensor, **options: Any
) -> tuple[Tensor, Any]:
    """Noise, denoise, compare.

    Args:
        generator: Anything with `add_noise`, `training_target` and `denoise` of a physcli generator.
        latents: Clean x0 [B, F, C, H, W].
        noise: ε, same shape.
        timesteps: int64 [B].
        prompt_embeds: [B, L, D].
        options: For `denoise`: taps.

    Returns:
        The loss of each clip [B], float32, and what `denoise` gave.
    """
    noisy = generator.add_noise(latents, noise, timesteps)
    denoised = generator.denoise(noisy, timesteps, prompt_embeds, **options)
    target = generator.training_target(latents, noise, timesteps)
    return (denoised.output.float() - target).square().mean(dim=(1, 2, 3, 4)), denoised
