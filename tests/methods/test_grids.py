"""Features from grid to grid: by the definition of each interpolation, and VideoREPA's own upsampling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from physcli.methods.grids import resample

GOLDEN = Path(__file__).parents[1] / "golden" / "trd"


def linear_matrix(old: int, new: int) -> torch.Tensor:
    """[new, old]: samples at the centres of equal cells, the outermost ones held beyond the ends."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        left = int(place)
        matrix[i, left] += 1 - (place - left)
        matrix[i, min(left + 1, old - 1)] += place - left
    return matrix


def area_matrix(old: int, new: int) -> torch.Tensor:
    """[new, old]: the mean of all old cells touched."""
    if new > old:
        return linear_matrix(old, new)
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        first, end = i * old // new, -((i + 1) * old // -new)
        matrix[i, first:end] = 1 / (end - first)
    return matrix


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_the_released_code_s_upsampling():
    golden = load_file(GOLDEN / "student_path.safetensors")
    ours = resample(golden["projected.f32_of_f64"].double(), (24, 6, 9), drop_first=True)
    torch.testing.assert_close(ours.float(), golden["upsampled.f32_of_f64"], atol=3e-7, rtol=0)


def test_time_doubled_by_hand():
    features = torch.tensor([9.0, 0.0, 4.0, 8.0]).reshape(1, 4, 1, 1, 1)
    ours = resample(features, (6, 1, 1), drop_first=True)
    assert ours.flatten().tolist() == [0, 1, 3, 5, 7, 8]


@pytest.mark.parametrize("time", ["linear", "area"])
@pytest.mark.parametrize("space", ["area", "bilinear"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((12, 6, 9), (24, 2, 3)),  # VideoREPA's ratios
        ((24, 2, 3), (12, 6, 9)),  # and back
        ((5, 8, 8), (4, 14, 7)),
        ((13, 5, 7), (4, 3, 4)),
        ((1, 1, 3), (3, 2, 1)),
    ],
)
def test_every_axis_is_its_definition(old, new, time, space):
    features = random(2, *old, 3)
    time_matrix = (linear_matrix if time == "linear" else area_matrix)(old[0], new[0])
    rows, columns = ((linear_matrix if space == "bilinear" else area_matrix)(old[i], new[i]) for i in (1, 2))
    expected = torch.einsum("bFHWd,fF,hH,wW->bfhwd", features, time_matrix, rows, columns)
    ours = resample(features, new, time=time, space=space)
    assert ours.shape == (2, *new, 3)
    torch.testing.assert_close(ours, expected, atol=1e-13, rtol=0)


def test_defaults_are_linear_time_and_mean_space():
    features = random(1, 9, 6, 6, 2)
    torch.testing.assert_close(
        resample(features, (3, 2, 2)), resample(features, (3, 2, 2), time="linear", space="area")
    )
    torch.testing.assert_close(resample(features, (3, 2, 2))[0, :, 0, 0], features[0, 1::3, :3, :3].mean((1, 2)))


def test_halving_is_a_mean_either_way():
    features = random(1, 8, 6, 4, 2)
    linear = resample(features, (4, 3, 2), time="linear", space="bilinear")
    torch.testing.assert_close(linear, resample(features, (4, 3, 2), time="area", space="area"), atol=1e-14, rtol=0)


def test_gradients():
    features = random(1, 4, 3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resample(x, (6, 2, 6), drop_first=True), features)


@pytest.mark.parametrize("grid", [(3, 4, 5), (6, 2, 5)])
def test_half_precision_is_widened(grid):
    features = random(1, 3, 4, 5, 7).bfloat16()
    ours = resample(features, grid)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, resample(features.float(), grid))


def test_features_on_the_grid_are_left_alone():
    features = random(1, 3, 4, 5, 7)
    assert torch.equal(resample(features, (3, 4, 5)), features)
    assert torch.equal(resample(features, (2, 4, 5), drop_first=True), features[:, 1:])


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 4, 5, 7), {}, r"must be floating point \[B, F, H, W, D\], got torch.float32 \[3, 4, 5, 7\]"),
        ((1, 1, 4, 5, 7), {"drop_first": True}, r"no frames or places to resample: \[1, 0, 4, 5, 7\] after the first"),
        ((1, 3, 0, 5, 7), {}, r"no frames or places to resample: \[1, 3, 0, 5, 7\]$"),
        ((1, 3, 4, 5, 7), {"grid": (2, 2)}, r"grid must be three positive counts \(f, h, w\), got \(2, 2\)"),
        ((1, 3, 4, 5, 7), {"grid": (2, 0, 2)}, r"got \(2, 0, 2\)"),
        ((1, 3, 4, 5, 7), {"time": "cubic"}, r"time must be one of \('linear', 'area'\), got 'cubic'"),
        ((1, 3, 4, 5, 7), {"space": "linear"}, r"space must be one of \('area', 'bilinear'\), got 'linear'"),
    ],
)
def test_bad_input(shape, options, message):
    with pytest.raises(ValueError, match=message):
        resample(torch.zeros(shape), **{"grid": (2, 2, 2)} | options)


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"got torch.int64"):
        resample(torch.zeros(1, 3, 4, 5, 7, dtype=torch.int64), (2, 2, 2))
