"""VideoJAM: what its motion latents are, and its loss."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch

from physcli.methods.videojam import flow_picture, motion_loss, pooled_flow


def test_pooled_flow_is_the_flows_that_lead_to_a_latent_frames_frames():
    flow = torch.zeros(8, 2, 4, 6)
    for number in range(8):
        flow[number, 0, :2, :3] = number + 1  # rightwards, in the first place of four
        flow[number, 1, 2:, 3:] = -(number + 1)
    made = pooled_flow(flow, frames_per_latent=4, size=(2, 2), scale_px=0.5)
    assert made.shape == (3, 8, 2, 2)
    assert not made[0].any()
    for frame in (1, 2):
        for number in range(4):
            step = 2.0 * (4 * (frame - 1) + number + 1)
            assert made[frame, 2 * number].tolist() == [[step, 0], [0, 0]]
            assert made[frame, 2 * number + 1].tolist() == [[0, 0], [0, -step]]


def test_pooled_flow_is_a_mean_over_a_place():
    flow = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    made = pooled_flow(flow, frames_per_latent=4, size=(2, 4), scale_px=2.0)
    torch.testing.assert_close(made[1, 5, 1, 2], flow[2, 1, 4:, 4:6].mean() / 2)


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (4, 3, 4, 4), (4, 2, 4)])
def test_pooled_flow_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"flow must be \[T-1, 2, H, W\] with 4 flows a frame, got"):
        pooled_flow(torch.zeros(shape), frames_per_latent=4, size=(2, 2), scale_px=1.0)


def test_a_picture_of_flow_has_its_direction_as_hue_and_its_length_as_brightness():
    flow = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    made = flow_picture(flow)
    assert made.shape == (4, 3, 4, 5)
    assert torch.equal(made[3], made[2])
    most = 0.15 * math.hypot(4, 5)
    for number in range(3):
        for y in range(4):
            for x in range(5):
                right, down = flow[number, :, y, x].tolist()
                hue = math.atan2(down, right) / (2 * math.pi) % 1
                expected = colorsys.hsv_to_rgb(hue, 1, min(1, math.hypot(right, down) / most))
                torch.testing.assert_close(made[number, :, y, x], torch.tensor(expected), atol=1e-5, rtol=0)
    assert (flow.square().sum(dim=1).sqrt() > most).any()  # some is longer
    assert not flow_picture(torch.zeros(1, 2, 3, 3)).any()


def test_a_picture_needs_flow():
    with pytest.raises(ValueError, match="flow must be"):
        flow_picture(torch.zeros(0, 2, 4, 4))


def test_the_loss_is_a_mean_of_squares_where_motion_was_shown():
    random = torch.Generator().manual_seed(0)
    output, target = (torch.randn(3, 2, 4, 2, 2, generator=random, requires_grad=True) for _ in range(2))
    loss = motion_loss(output, target, torch.tensor([1.0, 0.0, 1.0]))
    expected = [(output[n] - target[n]).square().mean().item() for n in range(3)]
    assert loss.tolist() == pytest.approx([expected[0], 0, expected[2]])
    loss.sum().backward()
    torch.testing.assert_close(output.grad[2], 2 * (output[2] - target[2]).detach() / 32)
    assert not output.grad[1].any()
