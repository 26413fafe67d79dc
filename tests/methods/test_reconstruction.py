"""The VAE's objective against its definition, on a real (tiny) video autoencoder."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch.distributions import Normal, kl_divergence

from physcli.methods.reconstruction import reconstruction_loss


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(
        down_block_types=["CogVideoXDownBlock3D"] * 3,
        up_block_types=["CogVideoXUpBlock3D"] * 3,
        block_out_channels=[8, 8, 8],
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        temporal_compression_ratio=4,
    )


def both(vae):
    return lambda pixels: vae.encode(pixels).latent_dist, lambda latents: vae.decode(latents).sample


@torch.no_grad()
def test_loss_is_its_definition(vae):
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(2, 9, 3, 16, 16, generator=generator)
    noise = torch.randn(2, 4, 3, 4, 4, generator=generator)
    loss, logs = reconstruction_loss(*both(vae), frames, noise, kl_weight=0.3, edge_weight=0.7)

    pixels = frames.permute(0, 2, 1, 3, 4) * 2 - 1
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.mean + posterior.std * noise
    decoded = vae.decode(latents).sample
    for clip in range(2):
        error = (decoded - pixels)[clip]
        kl = kl_divergence(Normal(posterior.mean[clip], posterior.std[clip]), Normal(0.0, 1.0)).mean()
        down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        across = (error[..., 1:] - error[..., :-1]).abs().mean()
        expected = (error**2).mean() + 0.3 * kl + 0.7 * (down + across)
        assert loss[clip].item() == pytest.approx(expected.item(), rel=1e-5)
        assert logs["kl"][clip].item() == pytest.approx(kl.item(), rel=1e-4)
        of_unit_range = ((decoded[clip] - pixels[clip]) / 2).square().mean().item()
        assert logs["psnr"][clip].item() == pytest.approx(10 * math.log10(1 / of_unit_range), rel=1e-5)
        assert logs["latent_std"][clip].item() == pytest.approx(latents[clip].std().item(), rel=1e-5)


@torch.no_grad()
def test_no_weight_no_term(vae):
    generator = torch.Generator().manual_seed(2)
    frames = torch.rand(1, 9, 3, 16, 16, generator=generator)
    noise = torch.randn(1, 4, 3, 4, 4, generator=generator)
    plain, logs = reconstruction_loss(*both(vae), frames, noise, kl_weight=0)
    with_kl, _ = reconstruction_loss(*both(vae), frames, noise, kl_weight=2)
    assert (with_kl - plain).item() == pytest.approx(2 * logs["kl"].item(), rel=1e-4)


@torch.no_grad()
def test_what_is_shown_is_encoded_and_what_is_wanted_compared(vae):
    generator = torch.Generator().manual_seed(3)
    frames, shown = torch.rand(2, 1, 9, 3, 16, 16, generator=generator)
    noise = torch.randn(1, 4, 3, 4, 4, generator=generator)
    _, logs = reconstruction_loss(*both(vae), frames, noise, shown=shown, kl_weight=0.1)
    posterior = vae.encode(shown.transpose(1, 2) * 2 - 1).latent_dist
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample.transpose(1, 2) / 2 + 0.5
    assert logs["psnr"].item() == pytest.approx(-10 * (decoded - frames).square().mean().log10().item(), rel=1e-5)


def test_gradients_reach_encoder_and_decoder(vae):
    frames, noise = torch.rand(1, 9, 3, 16, 16), torch.randn(1, 4, 3, 4, 4)
    reconstruction_loss(*both(vae), frames, noise, kl_weight=0.1)[0].mean().backward()
    assert all(p.grad is not None for p in vae.parameters())
    vae.zero_grad()
