"""Wan's VAE run on a whole clip at once.

`AutoencoderKLWan` encodes and decodes in pieces of four frames that pass their last ones on, so that long clips fit
into memory. Of a small clip the pieces are so small that much of the time goes into starting operations. Its
convolutions are causal, so on all frames at once they give the same numbers; only where time is halved or doubled does
the first frame go a way of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanResample,
    WanResidualDownBlock,
    WanResidualUpBlock,
    WanUpBlock,
    patchify,
    unpatchify,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

_MOST_PIXELS = 2**21  # of a batch, all frames together: thirty clips of 17x64x64


def is_small(batch: int, num_frames: int, height: int, width: int) -> bool:
    """Whether a batch of clips of this size is to be run at once."""
    return batch * num_frames * height * width <= _MOST_PIXELS


def encode_whole(vae: Any, pixels: Tensor) -> DiagonalGaussianDistribution:
    """What `vae.encode(pixels).latent_dist` is.

    Args:
        vae: An `AutoencoderKLWan`.
        pixels: [B, 3, 4k+1, H, W] in [−1, 1].
    """
    x, encoder = _laid_out(pixels), vae.encoder
    if vae.config.patch_size is not None:
        x = patchify(x, patch_size=vae.config.patch_size)
    x = encoder.mid_block(_through(encoder.down_blocks, encoder.conv_in(x)))
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x)))
    return DiagonalGaussianDistribution(vae.quant_conv(x)[: len(pixels)])


def decode_whole(vae: Any, latents: Tensor) -> Tensor:
    """What `vae.decode(latents).sample` is.

    Args:
        vae: An `AutoencoderKLWan`.
        latents: [B, C, F, h, w], its own.

    Returns:
        [B, 3, 4(F − 1)+1, H, W] in [−1, 1].
    """
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(_laid_out(latents))))
    x = _through(decoder.up_blocks, x)
    x = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    if vae.config.patch_size is not None:
        x = unpatchify(x, patch_size=vae.config.patch_size)
    return torch.clamp(x[: len(latents)], min=-1.0, max=1.0)


def _laid_out(clips: Tensor) -> Tensor:
    """Clips as convolutions are fastest on them: channels last, and on a CPU never one alone, for which PyTorch takes
    kernels that are five times as slow as for two (findings/torch-conv3d-batch-of-one.sh): it comes back twice."""
    if len(clips) == 1 and clips.device.type == "cpu":
        clips = torch.cat([clips, clips])
    return clips.contiguous(memory_format=torch.channels_last_3d)


def _through(blocks: Iterable[Any], x: Tensor) -> Tensor:
    for block in blocks:
        if isinstance(block, WanResample):
            x = _resample(block, x)
        elif isinstance(block, WanResidualDownBlock):
            beside = block.avg_shortcut(x)
            x = _through(block.resnets, x)
            x = (x if block.downsampler is None else _resample(block.downsampler, x)) + beside
        elif isinstance(block, WanResidualUpBlock):
            beside = None if block.avg_shortcut is None else block.avg_shortcut(x, first_chunk=True)
            x = _through(block.resnets, x)
            x = x if block.upsampler is None else _resample(block.upsampler, x)
            x = x if beside is None else x + beside
        elif isinstance(block, WanUpBlock):
            x = _through((*block.resnets, *(block.upsamplers or ())), x)
        else:
            x = block(x)
    return x


def _resample(block: WanResample, x: Tensor) -> Tensor:
    """Halve or double the sides and, where the block does, the number of frames after the first."""
    if block.mode == "upsample3d" and x.shape[2] > 1:
        pairs = block.time_conv(x[:, :, 1:])  # [B, 2·C, T − 1, H, W]
        batch, both, frames, height, width = pairs.shape
        pairs = pairs.reshape(batch, 2, both // 2, frames, height, width)
        pairs = torch.stack((pairs[:, 0], pairs[:, 1]), dim=3).flatten(2, 3)
        x = torch.cat([x[:, :, :1], pairs], dim=2)
    batch, frames = x.shape[0], x.shape[2]
    x = block.resample(x.transpose(1, 2).flatten(0, 1))
    x = x.unflatten(0, (batch, frames)).transpose(1, 2)
    if block.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], block.time_conv(x)], dim=2)
    return x
