"""DiffusionNFT's loss against closed forms."""

from __future__ import annotations

import pytest
import torch

from physcli.methods.nft import nft_loss, optimality


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_optimality():
    rewards = torch.tensor([[0.0, 1.0], [5.0, 5.0]], dtype=torch.float64)
    std = (2 * 0.25 / 4) ** 0.5 + 1e-4
    near = 0.5 / std / 10
    expected = torch.tensor([[0.5 - near, 0.5 + near], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(optimality(rewards), expected)
    own = 0.5 / (0.5 + 1e-4) / 10
    torch.testing.assert_close(optimality(rewards, std="group")[0], torch.tensor([0.5 - own, 0.5 + own]).double())
    assert optimality(rewards, most=0.1).tolist() == [[0, 1], [0.5, 0.5]]
    shifted = rewards + torch.tensor([[3.0], [-7.0]])  # a prompt that is easy for all says nothing
    torch.testing.assert_close(optimality(shifted), expected)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_gradient_at_the_old_policy(beta):
    """(2r − 1)·scale times that of the error itself."""
    old, target = drawn(3, 4, 5, seed=1), drawn(3, 4, 5, seed=2)
    good = torch.tensor([0.0, 0.5, 0.8], dtype=torch.float64)
    clean = old.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(nft_loss(clean, old, target, good, beta=beta, scale=3.0).sum(), clean)
    difference = old - target
    alone = 2 * difference / 20 / difference.abs().mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(gradient, 3.0 * (2 * good - 1)[:, None, None] * alone, rtol=1e-12, atol=1e-15)


def test_value():
    """By hand, of one number a clip: x̂0 = 3, old 1, x0 = 0, β = ½: x̂0⁺ = 2, x̂0⁻ = 0 with a weight of 1e-5 at least."""
    clean, old, target = (torch.full((2, 1), value, dtype=torch.float64) for value in (3.0, 1.0, 0.0))
    loss = nft_loss(clean, old, target, torch.tensor([1.0, 0.25]).double(), beta=0.5, scale=5.0)
    plus = 2.0**2 / 2.0
    torch.testing.assert_close(loss, torch.tensor([5 * plus / 0.5, 5 * 0.25 * plus / 0.5]).double())


def test_all_good_with_beta_one_is_supervised_learning():
    clean, old, target = drawn(2, 6, seed=1), drawn(2, 6, seed=2), drawn(2, 6, seed=3)
    loss = nft_loss(clean, old, target, torch.ones(2, dtype=torch.float64), scale=1.0)
    difference = clean - target
    torch.testing.assert_close(loss, difference.square().mean(1) / difference.abs().mean(1))


def test_no_gradient_to_the_old_policy_and_float32_from_half():
    clean, old, target = (drawn(2, 6, seed=n).bfloat16().requires_grad_(True) for n in range(3))
    loss = nft_loss(clean, old, target, torch.tensor([0.2, 0.9]))
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert clean.grad is not None
    assert old.grad is None
    assert target.grad is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: nft_loss(drawn(2, 3), drawn(2, 4), drawn(2, 3), torch.ones(2)),
        lambda: nft_loss(drawn(2, 3), drawn(2, 3), drawn(2, 3), torch.ones(3)),
        lambda: nft_loss(drawn(2, 3), drawn(2, 3), drawn(2, 3), torch.ones(2), beta=0),
        lambda: optimality(drawn(4)),
        lambda: optimality(drawn(2, 2), most=0),
    ],
)
def test_what_cannot_be(call):
    with pytest.raises(ValueError, match="must be"):
        call()
