"""REPA's cosine against numbers of the public code, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from physcli.methods.repa import repa_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "trd"


def test_golden():
    case = load_file(GOLDEN / "loss.safetensors")
    expected = json.loads((GOLDEN / "loss.json").read_text())["values"]["no_margin"]
    for dtype, name, rel in [(torch.float64, "f64", 1e-12), (torch.float32, "f32", 1e-6)]:
        student = case["student"].to(dtype, copy=True).requires_grad_()
        loss = repa_loss(student, case["teacher"].to(dtype))
        assert loss.dtype == dtype
        assert loss.mean().item() == pytest.approx(expected[f"repa_cosine_{name}"], rel=rel)
        loss.mean().backward()
        gradient = case["grad_student.repa_cosine.f64"]
        assert (student.grad - gradient).abs().max() < rel * gradient.abs().max()


def test_by_hand():
    student = torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 4.0]]], dtype=torch.float64)
    teacher = torch.tensor([[[5.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -7.0]]], dtype=torch.float64)
    student.requires_grad_()
    loss = repa_loss(student, teacher)
    assert loss.tolist() == pytest.approx([-1, (1 - 0.5**0.5) / 2], abs=1e-15)
    loss[1].backward()
    # Half the mean, of (1, 1)/√2 turning towards (1, 0): (1, 0) less its part along the token, over the length.
    expected = torch.tensor([[-0.5, 0.5], [0.0, 0.0]], dtype=torch.float64) / (2 * 2**0.5)
    torch.testing.assert_close(student.grad[1], expected, atol=1e-15, rtol=0)
    assert student.grad[0].abs().max() == 0


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 3, 2, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_grid_and_half_precision(shape, dtype):
    seeded = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=seeded).to(dtype) for _ in range(2))
    teacher.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = repa_loss(student.requires_grad_(), teacher)
    assert loss.dtype == torch.float32
    cosines = torch.nn.functional.cosine_similarity(student.double(), teacher.double(), dim=-1)
    torch.testing.assert_close(loss.double(), -cosines.flatten(1).mean(1), atol=1e-6, rtol=0)
    loss.sum().backward()
    assert student.grad.dtype == dtype
    assert teacher.grad is None


def test_the_student_decides_the_precision():
    student, teacher = torch.ones(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.float64)
    assert repa_loss(student, teacher).dtype == torch.float32
    assert repa_loss(teacher, student).dtype == torch.float64


def test_a_zero_token_is_unrelated_and_trains():
    student = torch.zeros(1, 2, 3, requires_grad=True)
    loss = repa_loss(student, torch.ones(1, 2, 3))
    loss.sum().backward()
    assert loss.tolist() == [0]
    assert student.grad.isfinite().all()
    assert (student.grad < 0).all()


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3, 4), (2, 3, 5), r"of one shape.*got \[2, 3, 4\] and \[2, 3, 5\]"),
        ((1, 3, 4), (2, 3, 4), r"got \[1, 3, 4\] and \[2, 3, 4\]"),
        ((2, 4), (2, 4), r"must be \[B, \.\.\., D\]"),
        ((2, 0, 4), (2, 0, 4), "at least one token"),
    ],
)
def test_bad_shapes(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        repa_loss(torch.zeros(student), torch.zeros(teacher))


def test_integer_features():
    with pytest.raises(ValueError, match=r"must be float .*got torch.int64"):
        repa_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.int64))
