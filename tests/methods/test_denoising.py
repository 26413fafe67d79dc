"""The generator's own objective, on a real pipeline whose output is known because its last layer is zero."""

from __future__ import annotations

import pytest
import torch

from physcli.methods.denoising import denoising_loss
from physcli.models.cogvideox import CogVideoX, build_cogvideox
from physcli.models.tiny import architecture


@torch.no_grad()
def test_loss_of_a_network_that_says_zero():
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    generator = CogVideoX(build_cogvideox(model), name="test", random_init=True)
    generator.transformer.proj_out.weight.zero_()
    generator.transformer.proj_out.bias.zero_()
    seeded = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 5, 8, 16, 16, generator=seeded)
    noise = torch.randn(latents.shape, generator=seeded)
    timesteps = torch.tensor([0, 400, 999])
    prompt = torch.randn(3, 32, 128, generator=seeded)
    loss, denoised = denoising_loss(generator, latents, noise, timesteps, prompt)
    assert loss.dtype == torch.float32
    assert denoised.output.abs().max() == 0
    for i, t in enumerate(timesteps):
        alpha = generator.alphas_cumprod[t].item()
        velocity = alpha**0.5 * noise[i] - (1 - alpha) ** 0.5 * latents[i]
        assert loss[i].item() == pytest.approx(velocity.square().mean().item(), rel=1e-5)
    # Zero terminal SNR: at the last step nothing of the noise is in the target.
    assert loss[2].item() == pytest.approx(latents[2].square().mean().item(), rel=1e-5)
