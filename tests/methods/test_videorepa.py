"""Token relation distillation against numbers of VideoREPA's public code and of its Eq. 5, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from physcli.methods.videorepa import trd_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "trd"
LIMITS = {"f64": 1e-12, "f32": 1e-6}  # of the golden README: relative, loss
DTYPES = {"f64": torch.float64, "f32": torch.float32}


@pytest.fixture(scope="module")
def case():
    tensors = load_file(GOLDEN / "loss.safetensors")
    # The golden tokens are [B, f, hw, D]; hw = 6 becomes a grid of 2×3.
    return {name: value.unflatten(2, (2, 3)) for name, value in tensors.items()}


@pytest.fixture(scope="module")
def values():
    return json.loads((GOLDEN / "loss.json").read_text())["values"]


def loss_and_gradient(case, dtype, **options):
    student = case["student"].to(dtype, copy=True).requires_grad_()
    loss = trd_loss(student, case["teacher"].to(dtype), **options)
    assert loss.shape == (2,)
    assert loss.dtype == dtype
    loss.mean().backward()
    return loss.mean().item(), student.grad


def assert_near(gradient, expected, rel):
    assert (gradient - expected).abs().max() < rel * expected.abs().max()


@pytest.mark.parametrize("rows", [None, 4, 12])
@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.1])
@pytest.mark.parametrize(
    ("part", "name"),
    [("both", "official_trd"), ("spatial", "official_only_spatial"), ("temporal", "official_only_temporal")],
)
def test_released_code(case, values, part, name, margin, precision, rows):
    loss, gradient = loss_and_gradient(case, DTYPES[precision], margin=margin, part=part, rows=rows)
    assert loss == pytest.approx(values[f"margin={margin}"][f"{name}_{precision}"], rel=LIMITS[precision])
    assert_near(gradient, case[f"grad_student.{name}.m{margin}.f64"], LIMITS[precision])


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize(("part", "name"), [("both", "total"), ("spatial", "spatial"), ("temporal", "temporal")])
def test_equation_5(case, values, part, name, precision):
    loss, gradient = loss_and_gradient(case, DTYPES[precision], margin=0, part=part, reading="paper")
    assert loss == pytest.approx(values["no_margin"][f"eq5_{name}_{precision}"], rel=LIMITS[precision])
    assert_near(gradient, case[f"grad_student.eq5_{name}.f64"], LIMITS[precision])


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.1])
def test_appendix_a(case, values, margin):
    loss, gradient = loss_and_gradient(case, torch.float64, margin=margin, below="zero")
    assert loss == pytest.approx(values[f"margin={margin}"]["hard_threshold_f64"], rel=1e-12)
    # A constant taken off does not change the slope.
    assert_near(gradient, case[f"grad_student.official_trd.m{margin}.f64"], 1e-12)


def test_the_factor_between_the_readings(case):
    def loss(**options):
        return trd_loss(case["student"].double(), case["teacher"].double(), **options)

    spatial, temporal = loss(part="spatial"), loss(part="temporal")
    torch.testing.assert_close(loss(), (spatial + 3 * temporal) / 4, atol=1e-15, rtol=0)
    torch.testing.assert_close(loss(reading="paper"), spatial + temporal, atol=1e-15, rtol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Two frames of one token: no spatial difference (a token with itself), |0 − 0.6| across frames.
        ({"part": "spatial"}, 0.0),
        ({"part": "temporal"}, 0.5),
        ({}, 0.25),
        ({"reading": "paper"}, 0.5),
        ({"reading": "paper", "below": "zero"}, 0.6),
        ({"margin": 0.0}, 0.3),
        ({"margin": 0.7}, 0.0),
    ],
)
def test_two_tokens_by_hand(options, expected):
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 1, 2)
    teacher = torch.tensor([[0.0, 3.0, 0.0], [0.8, 0.6, 0.0]]).reshape(1, 2, 1, 1, 3)
    assert trd_loss(student, teacher, **options).tolist() == pytest.approx([expected], abs=1e-7)


def test_only_relations_count():
    seeded = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 3, 2, 2, 5, generator=seeded, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=seeded, dtype=torch.float64))
    student = 7 * torch.nn.functional.pad(teacher, (0, 3)) @ rotation  # wider, turned, longer: the same relations
    assert trd_loss(student, teacher, margin=0).max() < 1e-14
    assert trd_loss(teacher, teacher, margin=0).tolist() == [0, 0]
    assert (trd_loss(student.roll(1, dims=1), teacher, margin=0) > 0.1).all()


def test_one_frame():
    student, teacher = torch.randn(2, 1, 3, 3, 4), torch.randn(2, 1, 3, 3, 4)
    torch.testing.assert_close(trd_loss(student, teacher), trd_loss(student, teacher, part="spatial"))
    for options in ({"part": "temporal"}, {"reading": "paper"}):
        with pytest.raises(ValueError, match="different frames, got features of one frame"):
            trd_loss(student, teacher, **options)


def test_half_precision_and_detached_teacher():
    student = torch.randn(1, 2, 2, 2, 4).bfloat16().requires_grad_()
    teacher = torch.randn(1, 2, 2, 2, 4).bfloat16().requires_grad_()
    loss = trd_loss(student, teacher)
    torch.testing.assert_close(loss, trd_loss(student.float(), teacher.float()), atol=0, rtol=0)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert student.grad.dtype == torch.bfloat16
    assert teacher.grad is None


OK = {"student": torch.zeros(2, 3, 4, 5, 6), "teacher": torch.zeros(2, 3, 4, 5, 7)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(2, 60, 6)}, r"must be \[B, F, H, W, D\] and .*got \[2, 60, 6\] and \[2, 3, 4, 5, 7\]"),
        ({"teacher": torch.zeros(2, 3, 5, 4, 7)}, r"the same B, F, H and W.*got .* and \[2, 3, 5, 4, 7\]"),
        ({k: v[:, :0] for k, v in OK.items()}, "none of them 0"),
        ({"reading": "code"}, 'reading must be "released" or "paper", got \'code\''),
        ({"part": "time"}, 'part must be "both", "spatial" or "temporal", got \'time\''),
        ({"below": "cut"}, "got 'cut'"),
        ({"margin": -1}, "margin must be at least 0"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        trd_loss(**(OK | change))
