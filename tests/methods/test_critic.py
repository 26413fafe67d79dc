"""The loss of the frozen critic: closed forms."""

from __future__ import annotations

import pytest
import torch

from physcli.methods.critic import critic_loss


def tokens(seed, dtype=torch.float64):
    return torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_nothing_off_and_the_mean_token():
    real = tokens(0)
    assert critic_loss(real, real).tolist() == [0, 0]
    mean = real.mean(dim=(1, 2, 3), keepdim=True).expand_as(real)
    torch.testing.assert_close(critic_loss(mean, real), torch.ones(2, dtype=torch.float64))
    off = real + 0.1 * (real - mean)
    torch.testing.assert_close(critic_loss(off, real), torch.full((2,), 0.01, dtype=torch.float64))


def test_scale_and_offset_of_both_do_not_count():
    real, predicted = tokens(0), tokens(1)
    torch.testing.assert_close(critic_loss(3 * predicted + 7, 3 * real + 7), critic_loss(predicted, real))


def test_the_real_ones_get_no_gradient():
    real, predicted = tokens(0).requires_grad_(), tokens(1).requires_grad_()
    critic_loss(predicted, real).sum().backward()
    assert real.grad is None
    spread = (real - real.mean(dim=(1, 2, 3), keepdim=True)).square().sum(dim=(1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(predicted.grad, (2 * (predicted - real) / spread).detach())


def test_half_precision_is_compared_in_float32():
    real, predicted = tokens(0, torch.float32), tokens(1, torch.float32)
    found = critic_loss(predicted.bfloat16(), real.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, critic_loss(predicted, real), rtol=0.02, atol=0)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 7), (2, 6)])
def test_refused(shape):
    with pytest.raises(ValueError, match="expected two"):
        critic_loss(torch.zeros(shape), tokens(0) if len(shape) > 2 else torch.zeros(shape))
