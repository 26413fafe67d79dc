"""Training a video autoencoder: squared error of the reconstruction, and a light pull of the latents to a Gaussian.

The objective of latent diffusion's first stage (Rombach et al. 2022) without its perceptual and adversarial terms,
which have nothing to perceive at 64×64 pixels and would trade PSNR for texture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def reconstruction_loss(
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Tensor],
    frames: Tensor,
    noise: Tensor,
    *,
    kl_weight: float,
    edge_weight: float = 0.0,
    shown: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Encode, draw from the posterior, decode, compare.

    Args:
        encode: Pixels [B, 3, T, H, W] in [-1, 1] → a posterior of diffusers.
        decode: Latents [B, C, F, h, w] → pixels.
        frames: [B, T, 3, H, W] in [0, 1].
        noise: Standard normal [B, C, F, h, w] that picks the point of the posterior.
        shown: What is encoded, if it is not the frames but a poorer copy that shall be mended; the same shape.
        weights: Of each pixel's squared error, [B, T, H, W]; None: 1.
        kl_weight: Of the mean over latent elements of KL(q ‖ N(0, 1)).
        edge_weight: Of the absolute error of differences between neighbouring pixels, which small objects live by.

    Returns:
        The loss of each clip [B], and `psnr` (dB, pixels in [0, 1], of the posterior draw), `kl` and `latent_std`,
        each [B].
    """
    pixels = frames.transpose(1, 2).mul(2).sub(1)
    posterior = encode(pixels if shown is None else shown.transpose(1, 2).mul(2).sub(1))
    latents = posterior.mean + posterior.std * noise.to(posterior.mean.dtype)
    decoded = decode(latents).float()
    each = (1, 2, 3, 4)
    error = decoded - pixels
    squared = error.square().mean(each)
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(each)
    loss = (squared if weights is None else (error.square() * weights[:, None]).mean(each)) + kl_weight * kl
    if edge_weight:
        edges = error.diff(dim=3).abs().mean(each) + error.diff(dim=4).abs().mean(each)
        loss = loss + edge_weight * edges
    with torch.no_grad():
        psnr = -10 * torch.log10(squared / 4)
    return loss, {"psnr": psnr, "kl": kl.detach(), "latent_std": latents.detach().float().std(each)}
