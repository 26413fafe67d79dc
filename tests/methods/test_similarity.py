"""Cosine tables and their distance: by hand, and against autograd on the whole N×N tables."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from physcli.methods import similarity
from physcli.methods.similarity import cosine_gram, relation_distance, unit


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_autograd(student, teacher, weights, margin, below):
    """The definition, on whole tables."""
    num_places = student.shape[2]
    grams = [torch.nn.functional.normalize(side.flatten(1, 2), dim=-1) for side in (student, teacher)]
    difference = (grams[0] @ grams[0].mT - grams[1] @ grams[1].mT).abs()
    kept = (difference - margin).clamp_min(0) if below == "subtract" else difference * (difference >= margin)
    return (kept * torch.kron(weights, torch.ones(num_places, num_places, dtype=weights.dtype))).sum((1, 2))


class Watch(TorchDispatchMode):
    """Records the largest tensor and all dtypes that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.dtypes = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
                self.dtypes.add(value.dtype)
        return out


# -- unit vectors and the Gram matrix ----------------------------------------------------------------------------


def test_gram_by_hand():
    tokens = torch.tensor([[[3.0, 0.0], [2.0, 2.0], [0.0, -5.0]]], dtype=torch.float64)
    half = 0.5**0.5
    expected = torch.tensor([[[1, half, 0], [half, 1, -half], [0, -half, 1]]], dtype=torch.float64)
    torch.testing.assert_close(cosine_gram(tokens), expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_gram_does_not_depend_on_length(scale):
    tokens = randn(2, 5, 4)
    lengths = torch.linspace(1, 9, 5, dtype=torch.float64)[:, None] * scale
    torch.testing.assert_close(cosine_gram(tokens * lengths), cosine_gram(tokens), atol=1e-14, rtol=0)


def test_zero_vector_has_cosine_0_and_a_finite_gradient():
    tokens = torch.zeros(1, 3, 4)
    tokens[0, 1] = 2.0
    tokens.requires_grad_()
    gram = cosine_gram(tokens)
    assert gram.tolist() == [[[0, 0, 0], [0, 1, 0], [0, 0, 0]]]
    gram[0, 0, 1].backward()
    # x / EPS next to the zero vector: the other's direction, over EPS.
    torch.testing.assert_close(tokens.grad[0, 0], torch.full((4,), 0.5 / similarity.EPS))
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_widened_first(given, computed, autocast):
    student, teacher, weights = randn(2, 3, 4, 8).to(given), randn(2, 3, 4, 8, seed=1).to(given), torch.eye(3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        gram, loss = cosine_gram(student.flatten(1, 2)), relation_distance(student, teacher, weights)
    assert gram.dtype == loss.dtype == unit(student).dtype == computed
    wide = student.to(computed), teacher.to(computed)
    assert torch.equal(gram, cosine_gram(wide[0].flatten(1, 2)))
    assert torch.equal(loss, relation_distance(*wide, weights))


def test_the_student_decides_the_precision():
    student, teacher = randn(1, 2, 3, 4), randn(1, 2, 3, 4, seed=1)
    for one in (student, student.float()):
        for other in (teacher, teacher.float()):
            loss = relation_distance(one, other, torch.ones(2, 2))
            assert loss.dtype == one.dtype
            assert torch.equal(loss, relation_distance(one, other.to(one.dtype), torch.ones(2, 2)))


# -- the distance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, None])
@pytest.mark.parametrize(
    ("margin", "below", "expected"), [(0.0, "subtract", 0.6), (0.1, "subtract", 0.5), (0.1, "zero", 0.6)]
)
def test_two_tokens_by_hand(margin, below, expected, rows):
    student = torch.tensor([[[[2.0, 0.0], [0.0, 4.0]]]], dtype=torch.float64, requires_grad=True)  # cosine 0
    teacher = torch.tensor([[[[1.0, 0.0], [0.6, 0.8]]]], dtype=torch.float64)  # cosine 0.6
    weights = torch.tensor([[0.25]], dtype=torch.float64)
    loss = relation_distance(student, teacher, weights, margin=margin, below=below, rows=rows)
    assert loss.tolist() == pytest.approx([2 * 0.25 * expected], abs=1e-15)
    loss.sum().backward()
    # Towards one another: minus the other's direction, over the own length, for each of the pair's two entries.
    expected_gradient = torch.tensor([[[[0.0, -0.25], [-0.125, 0.0]]]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, expected_gradient, atol=1e-15, rtol=0)


def test_a_difference_of_exactly_the_margin():
    student, teacher = torch.eye(2)[None, None], torch.tensor([[[[1.0, 0.0], [0.6, 0.8]]]])
    margin = cosine_gram(teacher[0])[0, 0, 1].item()
    assert relation_distance(student, teacher, torch.ones(1, 1), margin=margin).item() == 0
    assert relation_distance(student, teacher, torch.ones(1, 1), margin=margin, below="zero").item() == 2 * margin


SYMMETRIC = randn(4, 4, seed=7)
WEIGHTS = {
    "all": torch.full((4, 4), 1 / 576, dtype=torch.float64),
    "any": SYMMETRIC + SYMMETRIC.T,
    "own frame": torch.eye(4, dtype=torch.float64),
    "other frames": 1 - torch.eye(4, dtype=torch.float64),
    "neighbours": torch.ones(4, 4, dtype=torch.float64).triu(-1).tril(1),
    "first pair": torch.zeros(4, 4, dtype=torch.float64).index_put(
        (torch.tensor([0, 1]), torch.tensor([1, 0])), SYMMETRIC[0, 0]
    ),
    "nothing": torch.zeros(4, 4, dtype=torch.float64),
}


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 11, 12, 18, 23, 24, 1000, None])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_tiles_equal_autograd_on_whole_tables(weights, rows):
    for margin, below in [(0.0, "subtract"), (0.1, "subtract"), (0.1, "zero")]:
        student, teacher = randn(2, 4, 6, 5).requires_grad_(), randn(2, 4, 6, 3, seed=1)
        upstream = torch.tensor([1.0, -3.0], dtype=torch.float64)
        loss = relation_distance(student, teacher, WEIGHTS[weights], margin=margin, below=below, rows=rows)
        (gradient,) = torch.autograd.grad(loss, student, upstream)
        reference = by_autograd(student, teacher, WEIGHTS[weights], margin, below)
        (reference_gradient,) = torch.autograd.grad(reference, student, upstream)
        torch.testing.assert_close(loss, reference, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(gradient, reference_gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rows", [7, 10, 40, 60])
def test_float32_agrees_to_rounding(rows):
    student, teacher, weights = randn(2, 6, 10, 32), randn(2, 6, 10, 32, seed=1), torch.ones(6, 6) / 3600
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = student.to(dtype, copy=True).requires_grad_()
        loss = relation_distance(leaf, teacher.to(dtype), weights.double() / weights[0, 0].double() / 3600, rows=rows)
        loss.sum().backward()
        results.append((loss.detach().double(), leaf.grad.double()))
    torch.testing.assert_close(results[0][0], results[1][0], atol=0, rtol=1e-6)
    assert (results[0][1] - results[1][1]).abs().max() < 1e-6 * results[1][1].abs().max()


@pytest.mark.parametrize("rows", [2, 4])
def test_gradcheck(rows):
    student, teacher, weights = randn(2, 2, 3, 4).requires_grad_(), randn(2, 2, 3, 3, seed=1), SYMMETRIC[:2, :2]
    for options in ({"margin": 0.1}, {"margin": 0.1, "below": "zero"}, {}):
        assert torch.autograd.gradcheck(
            lambda leaf, options=options: relation_distance(leaf, teacher, weights + weights.T, rows=rows, **options),
            student,
        )


@pytest.mark.parametrize("rows", [5, None])
def test_equal_features_are_at_no_distance(rows):
    student = randn(2, 3, 7, 400, dtype=torch.float32).requires_grad_()
    loss = relation_distance(student, student, torch.ones(3, 3), rows=rows)
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert student.grad.abs().max() == 0


def test_only_the_student_is_trained():
    student, teacher = randn(1, 2, 3, 4).requires_grad_(), randn(1, 2, 3, 4, seed=1).requires_grad_()
    weights = torch.ones(2, 2, requires_grad=True)
    relation_distance(student, teacher, weights).sum().backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None
    assert weights.grad is None
    with torch.no_grad():
        assert not relation_distance(student, teacher, weights).requires_grad


def test_clips_are_apart():
    student, teacher = randn(3, 2, 4, 5), randn(3, 2, 4, 5, seed=1)
    together = relation_distance(student, teacher, torch.ones(2, 2))
    alone = torch.cat([relation_distance(student[i, None], teacher[i, None], torch.ones(2, 2)) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-13, rtol=0)


def test_zero_and_nan_tokens():
    student, teacher = randn(1, 2, 3, 4, dtype=torch.float32), randn(1, 2, 3, 4, seed=1, dtype=torch.float32)
    student[0, 0, 1] = 0
    student.requires_grad_()
    loss = relation_distance(student, teacher, torch.ones(2, 2))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()
    # What is broken must not look like a small loss.
    broken = student.detach().clone()
    broken[0, 1, 2, 0] = torch.nan
    for below in ("subtract", "zero"):
        assert relation_distance(broken, teacher, torch.ones(2, 2), margin=0.1, below=below).isnan().all()


def test_no_whole_table_and_no_float64():
    student, teacher = randn(2, 8, 32, 4).float().requires_grad_(), randn(2, 8, 32, 4, seed=1).float()
    weights = torch.ones(8, 8, dtype=torch.float64)  # must not pull the rest up
    with Watch() as watch:
        relation_distance(student, teacher, weights, rows=16).sum().backward()
    assert watch.largest == 16 * 256  # N = 256
    with Watch() as watch:
        relation_distance(student, teacher, weights.float(), rows=16).sum().backward()
    assert torch.float64 not in watch.dtypes
    assert torch.float32 in watch.dtypes


OK = {"student": torch.zeros(2, 3, 4, 5), "teacher": torch.zeros(2, 3, 4, 6), "frame_weights": torch.ones(3, 3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(3, 4, 5)}, r"must be \[B, F, n, D\] and \[B, F, n, E\].*got \[3, 4, 5\] and"),
        ({"teacher": torch.zeros(2, 3, 5, 6)}, r"got \[2, 3, 4, 5\] and \[2, 3, 5, 6\]"),
        ({"student": torch.zeros(2, 3, 0, 5), "teacher": torch.zeros(2, 3, 0, 6)}, "none of them 0"),
        ({"student": torch.zeros(2, 3, 4, 5, dtype=torch.int64)}, r"must be float .*got torch.int64"),
        ({"frame_weights": torch.ones(4, 4)}, r"frame_weights must be \[3, 3\], got \[4, 4\]"),
        ({"frame_weights": torch.ones(3, 3).triu()}, "must be symmetric"),
        ({"frame_weights": torch.full((3, 3), torch.nan)}, "must be symmetric"),
        ({"margin": -0.1}, "margin must be at least 0, got -0.1"),
        ({"margin": float("nan")}, "margin must be at least 0, got nan"),
        ({"below": "clip"}, 'below must be "subtract" or "zero", got \'clip\''),
        ({"rows": 0}, "rows must be at least 1, got 0"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        relation_distance(**(OK | change))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(4, 5), r"features must be \[B, N, D\], got \[4, 5\]"),
        (torch.zeros(2, 4, 5, dtype=torch.int32), r"must be float .*got torch.int32 \[2, 4, 5\]"),
    ],
)
def test_bad_features(features, message):
    with pytest.raises(ValueError, match=message):
        cosine_gram(features)
