"""iREPA's normalisation, convolution and loss against numbers of the released code; and with CREPA's neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from physcli.methods.crepa import crepa_loss
from physcli.methods.irepa import spatial_norm
from physcli.methods.projector import Projector
from physcli.methods.repa import repa_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "irepa"


def values(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["values"]


@pytest.mark.parametrize("gamma", [0.0, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("over", ["frame", "clip"])
def test_golden_normalisation(gamma, over):
    case = load_file(GOLDEN / "spatial_norm.safetensors")
    features = case["features"].unflatten(2, (4, 5))
    expected = case[f"per_{over}.alpha{gamma}.f64"].unflatten(2, (4, 5))
    torch.testing.assert_close(spatial_norm(features.double(), gamma=gamma, over=over), expected, atol=1e-12, rtol=0)
    single = spatial_norm(features, gamma=gamma, over=over)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_constant_channel_fills_the_vector_unless_there_is_a_floor():
    case = load_file(GOLDEN / "spatial_norm.safetensors")
    features = case["edge.features"].double().view(1, 1, 4, 5, 8)
    released = spatial_norm(features, gamma=0.6)
    torch.testing.assert_close(released.flatten(1, 3), case["edge.alpha0.6.f64"], rtol=1e-12, atol=0)
    assert released[..., 0].mean().item() == pytest.approx(
        values("spatial_norm")["edge.alpha0.6"]["constant_channel_value"]
    )
    floored = spatial_norm(features, gamma=0.6, least_std=0.5)
    assert floored[..., 0].abs().max() < 1
    varied = features.std(dim=(2, 3), keepdim=True)[0, 0, 0, 0] > 0.5
    assert varied.any()
    torch.testing.assert_close(floored[..., varied], released[..., varied])


@pytest.mark.parametrize("name", ["k3", "k3.not_square"])
def test_golden_loss(name):
    case, given = load_file(GOLDEN / "loss.safetensors"), values("loss")[name]
    grid = tuple(given["grid"])
    hidden = case[f"{name}.hidden"].double().unflatten(1, grid)[:, None].requires_grad_()  # a frame each
    teacher = case[f"{name}.teacher"].double().unflatten(1, grid)[:, None]
    projector = projector_of(case, name, grid, grid)
    projected = projector(hidden)
    torch.testing.assert_close(projected.flatten(1, 3), case[f"{name}.projected.f64"], atol=1e-12, rtol=0)
    loss = repa_loss(projected, spatial_norm(teacher, gamma=given["alpha"])).mean()
    assert loss.item() == pytest.approx(given["loss_f64"], abs=1e-12)
    assert repa_loss(projected, teacher).mean().item() == pytest.approx(given["loss_without_norm_f64"], abs=1e-12)
    loss.backward()
    check_gradients(case, name, hidden, projector)


@pytest.mark.parametrize("name", ["same_grid", "per_frame_only"])
def test_golden_with_neighbours(name):
    """Every frame is a picture; then CREPA's loss."""
    case, given = load_file(GOLDEN / "video.safetensors"), values("video")[name]
    grid = tuple(given["grids"][0])
    hidden = case[f"{name}.hidden"].double().unflatten(2, grid).requires_grad_()
    teacher = case[f"{name}.teacher"].double().unflatten(2, grid)
    projector = projector_of(case, name, grid, grid, frames=hidden.shape[1])
    target = spatial_norm(teacher, gamma=given["alpha"])
    loss = crepa_loss(projector(hidden), target, distance=given["distance"], tau=given["tau"]).mean()
    assert loss.item() == pytest.approx(given["loss_f64"], abs=1e-12)
    loss.backward()
    check_gradients(case, name, hidden, projector)


def projector_of(case, name, grid, teacher_grid, frames=1):
    weight = case[f"{name}.weight"].double()
    projector = Projector(
        in_dim=weight.shape[1],
        out_dim=weight.shape[0],
        num_layers=0,
        student_grid=(frames, *grid),
        teacher_grid=(frames, *teacher_grid),
        drop_first=False,
        resample="conv3x3",
    ).double()
    projector.load_state_dict({"conv.weight": weight, "conv.bias": case[f"{name}.bias"].double()})
    return projector


def check_gradients(case, name, hidden, projector):
    expected = case[f"{name}.grad.hidden.f64"]
    torch.testing.assert_close(hidden.grad.flatten(-3, -2).view_as(expected), expected, atol=1e-14, rtol=1e-10)
    for what in ("weight", "bias"):
        found = getattr(projector.conv, what).grad
        torch.testing.assert_close(found, case[f"{name}.grad.{what}.f64"], atol=1e-14, rtol=1e-10)


def test_the_convolution_comes_before_the_other_grid():
    """Sees its neighbours on the student's own grid; then means."""
    torch.manual_seed(0)
    projector = Projector(
        in_dim=3, out_dim=5, num_layers=0, student_grid=(3, 4, 6), teacher_grid=(2, 2, 3), resample="conv3x3"
    )
    features = torch.randn(2, 3, 4, 6, 3)
    by_hand = torch.nn.functional.conv2d(
        features[:, 1:].flatten(0, 1).movedim(-1, 1), projector.conv.weight, projector.conv.bias, padding=1
    )
    by_hand = torch.nn.functional.avg_pool2d(by_hand, 2).movedim(1, -1).unflatten(0, (2, 2))
    torch.testing.assert_close(projector(features), by_hand, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((2, 4, 1, 1, 8), {}, "at least two places in a frame"),
        ((2, 4, 8), {}, r"must be \[B, F, H, W, D\]"),
        ((1, 2, 2, 2, 8), {"over": "video"}, "over must be one of"),
    ],
)
def test_refusals(shape, options, said):
    with pytest.raises(ValueError, match=said):
        spatial_norm(torch.ones(shape), **options)
