"""CREPA against numbers of released code, and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from physcli.methods.crepa import crepa_loss
from physcli.methods.repa import repa_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "crepa"
VALUES = json.loads((GOLDEN / "loss.json").read_text())["values"]
NAMES = {"normalize_neighbour_sum": "normalized", "distance": "distance", "tau": "tau", "cumulative": "cumulative"}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(("dtype", "kind", "rel"), [(torch.float64, "f64", 1e-12), (torch.float32, "f32", 1e-5)])
def test_golden(name, dtype, kind, rel):
    case, given = load_file(GOLDEN / "loss.safetensors"), VALUES[name]["options"]
    options = {ours: given[theirs] for theirs, ours in NAMES.items()}
    options["reduction"] = "mean" if given["normalize_by_frames"] else "sum"
    student = case["student"].to(dtype, copy=True).unsqueeze(2).requires_grad_()  # one row of places
    loss = crepa_loss(student, case["teacher"].to(dtype).unsqueeze(2), **options)
    assert loss.dtype == dtype
    assert loss.mean().item() == pytest.approx(VALUES[name][f"loss_{kind}"], rel=rel)
    if f"grad_student.{name}.f64" in case:
        loss.mean().backward()
        expected = case[f"grad_student.{name}.f64"].unsqueeze(2)
        assert (student.grad - expected).abs().max() < rel * expected.abs().max()


def test_without_neighbours_it_is_repa():
    student, teacher = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(crepa_loss(student, teacher, distance=0), repa_loss(student, teacher))


@pytest.mark.parametrize(("frames", "distance", "tau"), [(4, 1, 1.0), (5, 2, 0.5), (3, 2, 2.0)])
def test_the_least_value(frames, distance, tau):
    """Equal features, the same in all frames."""
    tokens = torch.randn(1, 1, 2, 3, 8, dtype=torch.float64).expand(-1, frames, -1, -1, -1)
    least = 1 + 2 * math.exp(-distance / tau) * (frames - distance) / frames
    assert crepa_loss(tokens, tokens, distance=distance, tau=tau).item() == pytest.approx(-least)
    assert crepa_loss(tokens, tokens, distance=distance, tau=tau, normalized=True).item() == pytest.approx(-1)


def test_each_neighbour_is_the_teacher_s():
    """A student that is one frame ahead: its own frames say nothing, one neighbour of each says all."""
    teacher = torch.eye(5, dtype=torch.float64)[None, :, None, None]
    ahead = teacher.roll(-1, dims=1)
    assert crepa_loss(ahead, teacher).item() == pytest.approx(-math.exp(-1) * 4 / 5)


def test_one_frame_has_no_neighbour():
    tokens = torch.randn(1, 1, 2, 2, 4)
    assert crepa_loss(tokens, tokens, distance=3).item() == pytest.approx(-1)


@pytest.mark.parametrize(
    ("student", "options", "said"),
    [
        ((2, 3, 4), {}, "of one shape"),
        ((2, 0, 4, 5), {}, "at least one token"),
        ((2, 3, 4, 5), {"distance": -1}, "distance must be at least 0"),
        ((2, 3, 4, 5), {"tau": 0.0}, "tau above 0"),
        ((2, 3, 4, 5), {"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_refusals(student, options, said):
    with pytest.raises(ValueError, match=said):
        crepa_loss(torch.ones(student), torch.ones(student), **options)
