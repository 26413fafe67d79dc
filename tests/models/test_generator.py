"""What a network is told of prompts, and the generator's own objective.

The latter on a real pipeline whose output is known because its last layer is zero.
"""

from __future__ import annotations

import pytest
import torch

from physcli.models.cogvideox import CogVideoX
from physcli.models.generator import Conditioning, Denoised, denoising_loss
from physcli.models.tiny import architecture


@torch.no_grad()
def test_loss_of_a_network_that_says_zero():
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    generator = CogVideoX.build(model, name="test")
    generator.transformer.proj_out.weight.zero_()
    generator.transformer.proj_out.bias.zero_()
    seeded = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 5, 8, 16, 16, generator=seeded)
    noise = torch.randn(latents.shape, generator=seeded)
    timesteps = torch.tensor([0, 400, 999])
    prompt = torch.randn(3, 32, 128, generator=seeded)
    level = generator.noise.of_time(timesteps)
    loss, denoised = denoising_loss(generator, latents, noise, level, Conditioning({"text": prompt}))
    assert isinstance(denoised, Denoised)
    assert loss.dtype == torch.float32
    assert denoised.output.abs().max() == 0
    for i, t in enumerate(timesteps):
        alpha = generator.noise.alphas_cumprod[t].item()
        velocity = alpha**0.5 * noise[i] - (1 - alpha) ** 0.5 * latents[i]
        assert loss[i].item() == pytest.approx(velocity.square().mean().item(), rel=1e-5)
    # Zero terminal SNR: at the last step nothing of the noise is in the target.
    assert loss[2].item() == pytest.approx(latents[2].square().mean().item(), rel=1e-5)


def test_what_a_network_is_told_of_prompts():
    text, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    told = Conditioning({"text": text, "mask": mask})
    assert list(told) == ["text", "mask"]
    assert told.text is text
    again = Conditioning.stack([told.row(number) for number in range(3)])
    assert all(torch.equal(again[name], told[name]) for name in told)
    one = Conditioning.stack([told.row(1)]).expand(4)
    assert {name: list(part.shape) for name, part in one.items()} == {"text": [4, 5, 4], "mask": [4, 5]}
    assert told.expand(3)["text"].shape == text.shape
    with pytest.raises(KeyError):
        told["pooled"]


def test_pooled_prompts():
    """The mean of the tokens that count, of all where nobody says which."""
    text, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    told = Conditioning({"text": text, "mask": mask})
    expected = torch.stack([text[0, :2].mean(dim=0), text[1].mean(dim=0), torch.zeros(4)])
    torch.testing.assert_close(told.pooled(), expected)
    torch.testing.assert_close(Conditioning({"text": text}).pooled(), text.mean(dim=1))
    assert Conditioning({"text": text.bfloat16(), "mask": mask.bool()}).pooled().dtype == torch.float32
    assert Conditioning({"text": text.double(), "mask": mask}).pooled().dtype == torch.float64
