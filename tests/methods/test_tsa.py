"""Tempered self-similarity alignment against loops over the paper's equations (golden numbers), and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from physcli.methods import tsa
from physcli.methods.tsa import correspondence, motion_saliency, tsa_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "tsa"
TAUS = [0.05, 0.1, 1.0]
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]  # with the limits of the golden README


@pytest.fixture(scope="module")
def case():
    return load_file(GOLDEN / "tsa.safetensors")


@pytest.fixture(scope="module")
def values():
    return json.loads((GOLDEN / "tsa.json").read_text())


@pytest.fixture(params=[7, 256])
def tile_rows(request, monkeypatch):
    monkeypatch.setattr(tsa, "TILE_ROWS", request.param)


def run(case, dtype, **options):
    student = case["E_vdm"].to(dtype, copy=True).requires_grad_()
    loss = tsa_loss(student, case["E_vfm"].to(dtype), **options)
    assert loss.dtype == dtype
    loss.mean().backward()
    return loss.tolist(), student.grad


def assert_near(actual, expected, rel):
    assert (actual - expected).abs().max() < rel * expected.abs().max()


# -- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rel"), DTYPES)
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.usefixtures("tile_rows")
def test_tsa(case, values, tau, dtype, rel):
    loss, gradient = run(case, dtype, temperature=tau)
    assert loss == pytest.approx(values["loss"][str(tau)]["TSA_per_sample"], rel=rel)
    assert sum(loss) / 2 == pytest.approx(values["loss"][str(tau)]["TSA"], rel=rel)
    assert_near(gradient, case[f"grad_E_vdm.TSA.tau{tau}"], rel)


@pytest.mark.parametrize(("dtype", "rel"), DTYPES)
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("percent", [5, 20, 50])
@pytest.mark.usefixtures("tile_rows")
def test_m_tsa(case, values, percent, tau, dtype, rel):
    loss, gradient = run(case, dtype, temperature=tau, queries=case[f"mask.k{percent}"])
    assert loss == pytest.approx(values["loss"][str(tau)][f"M-TSA_k{percent}_per_sample"], rel=rel)
    if tau == 0.1:
        assert_near(gradient, case[f"grad_E_vdm.M-TSA.tau0.1.k{percent}"], rel)


@pytest.mark.parametrize("tau", TAUS)
def test_each_clip_s_mean_is_over_its_own_queries(case, values, tau):
    loss, _ = run(case, torch.float64, temperature=tau, queries=case["unequal.mask"])
    assert case["unequal.mask"].sum((1, 2, 3)).tolist() == [12, 30]
    assert loss == pytest.approx(values["unequal_mask"][str(tau)]["per_sample"], rel=1e-12)
    assert sum(loss) / 2 == pytest.approx(values["unequal_mask"][str(tau)]["mean_of_samples"], rel=1e-12)


def by_autograd(student, teacher, temperature, queries, own_frame):
    """The definition, term by term, for one clip."""
    sides = [torch.nn.functional.normalize(side, dim=-1) for side in (student, teacher)]
    terms = []
    for query in queries.nonzero().tolist():
        for frame in range(len(student)):
            if frame == query[0] and not own_frame:
                continue
            logs = [
                ((side[frame] @ side[tuple(query)]).flatten() / temperature).log_softmax(0) for side in sides
            ]  # fmt: skip
            terms.append((logs[1].exp() * (logs[1] - logs[0])).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("own_frame", [True, False])
@pytest.mark.usefixtures("tile_rows")
def test_definition(case, own_frame):
    queries = case["mask.k50"].clone()
    queries[0, 2] = False
    student, teacher = case["E_vdm"].double().requires_grad_(), case["E_vfm"][..., :9].double()
    loss = tsa_loss(student, teacher, temperature=0.2, queries=queries, own_frame=own_frame)
    upstream = torch.tensor([2.0, -1.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss, student, upstream)
    clips = zip(student, teacher, queries, strict=True)
    expected = torch.stack([by_autograd(*clip[:2], 0.2, clip[2], own_frame) for clip in clips])
    (expected_gradient,) = torch.autograd.grad(expected, student, upstream)
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-12)
    assert_near(gradient, expected_gradient, 1e-12)


def test_two_tokens_by_hand():
    # One frame of two places. The student's are orthogonal, the teacher's equal.
    student = torch.eye(2, dtype=torch.float64).reshape(1, 1, 1, 2, 2).requires_grad_()
    teacher = torch.ones(1, 1, 1, 2, 3, dtype=torch.float64)
    loss = tsa_loss(student, teacher, temperature=0.5)
    # Student: softmax(2, 0) = (p, 1 − p) and the other way round; teacher: (½, ½).
    p = 1 / (1 + math.exp(-2))
    assert loss.item() == pytest.approx(-0.5 * (math.log(2 * p) + math.log(2 * (1 - p))), rel=1e-14)
    loss.sum().backward()
    # The cosine between them is met by both queries, each with slope (1 − p − ½) / τ over two queries.
    slope = (0.5 - p) / 0.5
    expected = torch.tensor([[0.0, slope], [slope, 0.0]], dtype=torch.float64).reshape(student.shape)
    torch.testing.assert_close(student.grad, expected, atol=1e-14, rtol=0)


def test_gradcheck():
    seeded = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 2, 1, 3, 3, generator=seeded, dtype=torch.float64) for _ in range(2))
    queries = torch.rand(2, 2, 1, 3, generator=seeded) < 0.5
    for options in ({}, {"own_frame": False}, {"queries": queries}):
        assert torch.autograd.gradcheck(
            lambda leaf, options=options: tsa_loss(leaf, teacher, temperature=0.3, **options), student.requires_grad_()
        )


def test_equal_features_and_a_clip_without_queries(case):
    loss, gradient = run(case | {"E_vfm": case["E_vdm"]}, torch.float32)
    assert loss == [0, 0]
    assert gradient.abs().max() == 0
    queries = case["mask.k20"].clone()
    queries[1] = False
    loss, gradient = run(case, torch.float32, queries=queries)
    assert loss[0] > 1
    assert loss[1] == 0
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0


def test_half_precision_autocast_and_detached_teacher(case):
    student, teacher = (case[name].bfloat16().requires_grad_() for name in ("E_vdm", "E_vfm"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tsa_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, tsa_loss(student.float(), teacher.float()))
    loss.sum().backward()
    assert student.grad.dtype == torch.bfloat16
    assert teacher.grad is None
    # The student decides the precision, of both sides.
    for dtype in (torch.float32, torch.float64):
        for other in (torch.float32, torch.float64):
            loss = tsa_loss(case["E_vdm"].to(dtype), case["E_vfm"].to(other))
            assert loss.dtype == dtype
            assert torch.equal(loss, tsa_loss(case["E_vdm"].to(dtype), case["E_vfm"].to(other).to(dtype)))


OK = {"student": torch.zeros(2, 3, 4, 5, 6), "teacher": torch.zeros(2, 3, 4, 5, 7)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(2, 60, 6)}, r"must be \[B, F, H, W, D\] and .*got \[2, 60, 6\]"),
        ({"teacher": torch.zeros(2, 3, 5, 4, 7)}, r"the same B, F, H and W.*and \[2, 3, 5, 4, 7\]"),
        ({k: v[:, :, :0] for k, v in OK.items()}, "none of them 0"),
        ({"teacher": OK["teacher"].long()}, r"must be float .*got torch.int64"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"queries": torch.ones(2, 3, 4, 5)}, r"must be bool \[2, 3, 4, 5\], got torch.float32 \[2, 3, 4, 5\]"),
        ({"queries": torch.ones(2, 60).bool()}, r"must be bool \[2, 3, 4, 5\], got torch.bool \[2, 60\]"),
        ({k: v[:, :1] for k, v in OK.items()} | {"own_frame": False}, "no target frame without own_frame"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        tsa_loss(**(OK | change))


# -- correspondence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rel"), DTYPES)
def test_correspondence(case, dtype, rel):
    for side in ("vdm", "vfm"):
        maps = torch.stack(
            [
                correspondence(case[f"E_{side}"].to(dtype), (f, h, w))
                for f in range(3)
                for h in range(4)
                for w in range(5)
            ],
            dim=1,
        )  # [B, N, F, H, W]
        assert maps.dtype == dtype
        assert_near(maps.flatten(3), case[f"P_{side}.tau0.1"], rel)


@pytest.mark.parametrize("tau", TAUS)
def test_equation_10(case, tau):
    for index in (0, 33, 59):
        query = (index // 20, index // 5 % 4, index % 5)
        student, teacher = (correspondence(case[f"E_{side}"].double(), query, tau) for side in ("vdm", "vfm"))
        assert_near(((student - teacher) / tau).flatten(2), case[f"grad_R_vdm.eq10.tau{tau}"][:, index], 1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 3, 4, 5)}, r"must be \[B, F, H, W, D\], got \[2, 3, 4, 5\]"),
        ({"query": (0, 4, 0)}, r"query \(0, 4, 0\) is outside the grid of \(3, 4, 5\)"),
        ({"query": (-1, 0, 0)}, "outside the grid"),
        ({"temperature": -1.0}, "temperature must be above 0"),
    ],
)
def test_bad_correspondence(change, message):
    with pytest.raises(ValueError, match=message):
        correspondence(**({"features": torch.zeros(2, 3, 4, 5, 6), "query": (0, 0, 0)} | change))


# -- motion saliency ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [5, 20, 50])
@pytest.mark.parametrize("ties", ["paper", "positive"])
def test_masks(case, percent, ties):
    video = case["clean_video"]
    for frames in (video.transpose(1, 2), video.transpose(1, 2).double()):
        mask = motion_saliency(frames, tubelet=(2, 8, 8), share=percent / 100, ties=ties)
        assert torch.equal(mask, case[f"mask.k{percent}"])


@pytest.mark.parametrize("percent", [5, 20, 50])
def test_mask_edge_cases(percent):
    edges = load_file(GOLDEN / "mask_edge_cases.safetensors")
    counts = json.loads((GOLDEN / "mask_edge_cases.json").read_text())
    share = percent / 100

    still = edges["ties.clean_video"].transpose(1, 2)
    assert torch.equal(motion_saliency(still, tubelet=(2, 8, 8), share=share), edges[f"ties.mask.k{percent}"])
    positive = motion_saliency(still, tubelet=(2, 8, 8), share=share, ties="positive")
    # Six of twenty tokens move.
    wanted = counts["ties"]["counts"][f"k{percent}"]["wanted"]
    assert positive.sum((2, 3)).tolist() == [[min(wanted, 6)] * 3]
    assert (edges["ties.delta"][positive] > 0).all()
    assert (positive & ~edges[f"ties.mask.k{percent}"]).sum() == 0

    fractional = edges["frac.clean_video"].transpose(1, 2)
    mask = motion_saliency(fractional, tubelet=(2, 8, 8), share=share)
    assert torch.equal(mask, edges[f"frac.mask.k{percent}.floor_min1"])


def test_equal_changes_are_kept_in_reading_order():
    frames = torch.zeros(1, 3, 3, 2, 3, dtype=torch.uint8)
    frames[0, 1, 1, 0, 1:] = 200  # two places flash, by the same amount …
    frames[0, 1, 1, 1, 0] = 200  # … and a third one
    expected = {
        "paper": [[0, 1, 1], [1, 0, 0]],
        "positive": [[0, 1, 1], [0, 0, 0]],
    }
    for ties, kept in expected.items():
        mask = motion_saliency(frames, tubelet=(1, 1, 1), share=1 / 3, ties=ties)
        # Both of the changes around the flash, and the first frame copies the second's. uint8 must not wrap around.
        assert mask.int().tolist() == [[kept] * 3]
    everywhere = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 3, 40, 50)
    mask = motion_saliency(everywhere, tubelet=(1, 1, 1), share=0.1, ties="positive")
    assert torch.equal(mask, (torch.arange(2000) < 200).reshape(40, 50).expand(1, 2, 40, 50))
    still = torch.ones(2, 4, 3, 2, 2)
    assert motion_saliency(still, tubelet=(2, 1, 1), ties="paper").all()
    assert not motion_saliency(still, tubelet=(2, 1, 1), ties="positive").any()


def test_share_is_rounded_down_but_not_by_floats():
    frames = torch.rand(1, 2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    for share, kept in [(0.29, 29), (0.299, 29), (0.001, 1), (1.0, 100)]:
        assert motion_saliency(frames, tubelet=(1, 1, 1), share=share).sum((2, 3)).tolist() == [[kept, kept]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(1, 3, 4, 8, 8)}, r"must be \[B, T, 3, H, W\], got \[1, 3, 4, 8, 8\]"),
        ({"frames": torch.zeros(1, 5, 3, 8, 8)}, r"5 frames of 8x8 pixels do not divide into tubelets of \(2, 4, 4\)"),
        ({"frames": torch.zeros(1, 4, 3, 8, 6)}, "4 frames of 8x6 pixels do not divide"),
        ({"frames": torch.zeros(1, 2, 3, 8, 8)}, "at least two tubelets in time, got 2 frames"),
        ({"frames": torch.full((1, 4, 3, 8, 8), torch.nan)}, "NaN or infinite"),
        ({"tubelet": (0, 4, 4)}, "do not divide"),
        ({"share": 0.0}, r"share must be in \(0, 1\], got 0.0"),
        ({"share": 20}, r"share must be in \(0, 1\], got 20"),
        ({"ties": "none"}, 'ties must be "paper" or "positive", got \'none\''),
    ],
)
def test_bad_saliency(change, message):
    with pytest.raises(ValueError, match=message):
        motion_saliency(**({"frames": torch.zeros(1, 4, 3, 8, 8), "tubelet": (2, 4, 4)} | change))
