"""The motion focal loss: closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch

from physcli.methods.motif import motif_loss, motion_heat


def drawn(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_heat_is_where_something_comes_or_goes():
    latents = torch.zeros(1, 4, 2, 1, 5, dtype=torch.float64)
    for frame, place in enumerate([0, 1, 1, 3]):
        latents[0, frame, :, 0, place] = torch.tensor([3.0, 4.0], dtype=torch.float64)  # of norm 5
    expected = [[5, 5, 0, 0, 0], [5, 5, 0, 0, 0], [0, 5, 0, 5, 0], [0, 5, 0, 5, 0]]
    assert motion_heat(latents)[0, :, 0].tolist() == expected
    assert not motion_heat(latents.requires_grad_()).requires_grad


@pytest.mark.parametrize("frames", [1, 3])
def test_where_nothing_moves_all_places_count_the_same(frames):
    still = drawn(0, 2, 1, 3, 4, 5).expand(2, frames, 3, 4, 5)
    output, target = drawn(1, 2, frames, 3, 4, 5), drawn(2, 2, frames, 3, 4, 5)
    torch.testing.assert_close(motif_loss(output, target, still), (output - target).square().mean(dim=(1, 2, 3, 4)))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_by_hand(power):
    output, target, clean = (drawn(seed, 2, 3, 2, 2, 2) for seed in range(3))
    expected = []
    for clip in range(2):
        total = weights = 0.0
        for t, y, x in itertools.product(range(3), range(2), range(2)):
            here = clean[clip, t, :, y, x]
            others = [clean[clip, s, :, y, x] for s in (t - 1, t + 1) if 0 <= s < 3]
            heat = max(float((other - here).square().sum().sqrt()) for other in others) ** power
            total += heat * float((output - target)[clip, t, :, y, x].square().mean())
            weights += heat
        expected.append(total / weights)
    assert motif_loss(output, target, clean, power=power).tolist() == pytest.approx(expected, rel=1e-12)


def test_power_0_is_the_denoising_loss():
    output, target, clean = (drawn(seed, 2, 3, 4, 2, 2, dtype=torch.float32) for seed in range(3))
    expected = (output - target).square().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(motif_loss(output, target, clean, power=0), expected)


def test_gradient_goes_to_the_output_alone():
    output, target, clean = (drawn(seed, 1, 2, 2, 2, 2) for seed in range(3))
    motif_loss(output.requires_grad_(), target, clean.requires_grad_()).sum().backward()
    assert clean.grad is None
    heat = motion_heat(clean)
    share = (heat / heat.sum())[:, :, None]
    torch.testing.assert_close(output.grad, (share * (output - target)).detach())  # 2/C with C = 2


@pytest.mark.parametrize("wrong", [drawn(0, 2, 3, 4, 5), drawn(0, 1, 0, 2, 2, 2), torch.ones(1, 2, 2, 2, 2).long()])
def test_refused(wrong):
    with pytest.raises(ValueError, match="expected floating-point latents"):
        motion_heat(wrong)
    with pytest.raises(ValueError, match="expected one shape"):
        motif_loss(wrong, wrong[None], wrong)
