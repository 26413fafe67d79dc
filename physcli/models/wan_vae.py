"""Wan's VAE run on a whole clip at once.

`AutoencoderKLWan` encodes and decodes in pieces of four frames that pass their last ones on, so that long clips fit
into memory. Of a small clip the pieces are so small that much of the time goes into starting operations. Its
convolutions are causal, so on all frames at once they give the same numbers; only where time is halved or doubled does
the first frame go a way of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
# At once on a CPU: three such clips stay in its caches; a batch of sixteen took 1.6 times as long, 3 times where two
# processes did so.
_CACHED_PIXELS = 3 * 17 * 64 * 64


def is_small(batch: int, num_frames: int, height: int, width: int) -> bool:
    """Whether a batch of clips of this size is to be run at once."""
    return batch * num_frames * height * width <= _MOST_PIXELS


def encode_whole(vae: Any, pixels: Tensor) -> DiagonalGaussianDistribution:
    """What `vae.encode(pixels).latent_dist` is.

    Args:
        vae: An `AutoencoderKLWan`.
        pixels: [B, 3, 4k+1, H, W] in [−1, 1].
    """
    encoder = vae.encoder

    def encode(x: Tensor) -> Tensor:
        if vae.config.patch_size is not None:
            x = patchify(x, patch_size=vae.config.patch_size)
        x = encoder.mid_block(_through(encoder.down_blocks, encoder.conv_in(x)))
        return vae.quant_conv(encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x))))

    return DiagonalGaussianDistribution(_in_parts(encode, pixels, pixels[0, 0].numel()))


def decode_whole(vae: Any, latents: Tensor) -> Tensor:
    """What `vae.decode(latents).sample` is.

    Args:
        vae: An `AutoencoderKLWan`.
        latents: [B, C, F, h, w], its own.

    Returns:
        [B, 3, 4(F − 1)+1, H, W] in [−1, 1].
    """
    decoder = vae.decoder

    def decode(x: Tensor) -> Tensor:
        x = _through(decoder.up_blocks, decoder.mid_block(decoder.conv_in(vae.post_quant_conv(x))))
        x = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
        return x if vae.config.patch_size is None else unpatchify(x, patch_size=vae.config.patch_size)

    pixels = latents[0, 0].numel() * vae.config.scale_factor_spatial**2 * vae.config.scale_factor_temporal
    return _in_parts(decode, latents, pixels).clamp(-1, 1)


def _in_parts(run: Callable[[Tensor], Tensor], clips: Tensor, pixels: int) -> Tensor:
    """What a network gives of clips of so many pixels, as its convolutions are fastest: channels last; on a CPU a few
    at a time, and never one alone, for which PyTorch takes kernels that are five times as slow as for two
    (findings/torch-conv3d-batch-of-one.sh)."""
    on_cpu = clips.device.type == "cpu"
    count = -(-len(clips) // max(2, _CACHED_PIXELS // pixels)) if on_cpu else 1
    outputs = []
    for part in clips.tensor_split(count):
        twice = torch.cat([part, part]) if on_cpu and len(part) == 1 else part
        outputs.append(run(twice.contiguous(memory_format=torch.channels_last_3d))[: len(part)])
    return torch.cat(outputs)


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
