"""MoAlign: the soft relational loss against golden numbers and by hand, and the two networks of stage 1."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from physcli.methods.moalign import FlowDecoder, MotionProjector, flow_loss, soft_relational_loss, token_flows

GOLDEN = Path(__file__).parents[1] / "golden" / "moalign"


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "moalign.safetensors"), json.loads((GOLDEN / "moalign.json").read_text())["values"]


# -- stage 2: golden numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [None, 5])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("part", ["both", "spatial", "temporal"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("tau", [1, 10])
def test_golden(golden, tau, reduction, part, dtype, limit, rows):
    tensors, values = golden
    student, teacher = (tensors[name].to(dtype, copy=True) for name in ("Z", "M"))
    student.requires_grad_()
    loss = soft_relational_loss(student, teacher, tau=tau, reduction=reduction, part=part, rows=rows)
    assert (loss.shape, loss.dtype) == ((2,), dtype)
    known = values[str(tau)][reduction]
    assert loss.mean().item() == pytest.approx(known["total" if part == "both" else part], rel=limit)
    if reduction == "sum":
        each = [
            sum(known[f"per_sample_{name}"][b] for name in ("spatial", "temporal") if part in ("both", name))
            for b in range(2)
        ]
        assert loss.tolist() == pytest.approx(each, rel=limit)
    name = f"grad_Z.{reduction}{'' if part == 'both' else f'_{part}'}.tau{tau}"
    if reduction == "sum" and part != "both":
        return  # no gradient is recorded for the parts of the sum
    loss.mean().backward()
    error = (student.grad.double() - tensors[name]).abs().max() / tensors[name].abs().max()
    assert error <= limit


# -- stage 2: by hand --------------------------------------------------------------------------------------------


def axes(*which: int) -> torch.Tensor:
    """Unit vectors along the given axes of three dimensions."""
    return torch.eye(3, dtype=torch.float64)[list(which)]


def test_two_frames_of_one_token():
    student = axes(0, 1).reshape(1, 2, 1, 1, 3)  # cosine 0, the teacher's is 1
    teacher = axes(2, 2).reshape(1, 2, 1, 1, 3)
    one = math.exp(-1 / 4)
    assert soft_relational_loss(student, teacher, tau=4, reduction="sum").item() == pytest.approx(2 * one, rel=1e-14)
    assert soft_relational_loss(student, teacher, tau=4).item() == pytest.approx(one, rel=1e-14)
    assert soft_relational_loss(student, teacher, tau=4, part="spatial").item() == 0


def test_one_frame_of_two_tokens():
    student, teacher = axes(0, 1).reshape(1, 1, 1, 2, 3), axes(2, 2).reshape(1, 1, 1, 2, 3)
    assert soft_relational_loss(student, teacher, reduction="sum", part="spatial").item() == pytest.approx(2, rel=1e-14)
    assert soft_relational_loss(student, teacher, part="spatial").item() == pytest.approx(2 / 4, rel=1e-14)
    for part in ("both", "temporal"):
        with pytest.raises(ValueError, match="tokens of different frames, got features of one frame"):
            soft_relational_loss(student, teacher, part=part)


def test_weight_falls_with_the_distance_in_frames():
    """Three frames of two places; only the first and the last frame's first tokens differ."""
    teacher = axes(0).expand(6, 3).reshape(1, 3, 1, 2, 3)
    student = teacher.clone()
    student[0, 0, 0, 0] = axes(1)
    # Token 0 against its neighbour in the frame (2 ordered pairs), 2 tokens one frame on and 2 tokens two frames on.
    spatial, temporal = 2 / 3, 2 * (2 * math.exp(-1 / 5) + 2 * math.exp(-2 / 5))
    loss = soft_relational_loss(student, teacher, tau=5, reduction="sum")
    assert loss.item() == pytest.approx(spatial + temporal, rel=1e-14)
    mean = soft_relational_loss(student, teacher, tau=5)
    assert mean.item() == pytest.approx(spatial / 4 + temporal / (6 * 4), rel=1e-14)


def test_same_relations_are_no_distance():
    teacher = random(2, 3, 2, 4, 5, dtype=torch.float64)
    rotation = torch.linalg.qr(random(5, 5, dtype=torch.float64))[0]
    lengths = random(2, 3, 2, 4, 1, dtype=torch.float64, seed=1).exp()
    assert soft_relational_loss(teacher, teacher).tolist() == [0, 0]
    assert soft_relational_loss(lengths * teacher @ rotation, teacher).abs().max() < 1e-14
    wider = torch.cat([teacher, torch.zeros(2, 3, 2, 4, 2)], dim=-1)
    assert soft_relational_loss(wider, teacher).abs().max() < 1e-14


def test_only_the_student_is_trained_and_bfloat16_is_widened():
    student, teacher = random(2, 3, 2, 2, 4).bfloat16().requires_grad_(), random(2, 3, 2, 2, 6, seed=1)
    teacher.requires_grad_()
    loss = soft_relational_loss(student, teacher)
    assert torch.equal(loss, soft_relational_loss(student.float(), teacher))
    loss.sum().backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 2, 3, 4, 5), (1, 2, 4, 3, 5)), {}, r"on one grid, .* got \[1, 2, 3, 4, 5\] and \[1, 2, 4, 3, 5\]"),
        (((1, 2, 0, 4, 5),) * 2, {}, "no axis of them empty"),
        (((2, 3, 4, 5), (2, 3, 4, 5)), {}, r"must be \[B, F, H, W, D\] and \[B, F, H, W, E\]"),
        (((1, 2, 3, 4, 5),) * 2, {"tau": 0.0}, "tau must be above 0, in token frames, got 0.0"),
        (((1, 2, 3, 4, 5),) * 2, {"tau": math.nan}, "tau must be above 0, in token frames, got nan"),
        (((1, 2, 3, 4, 5),) * 2, {"reduction": "none"}, r"reduction must be one of \('mean', 'sum'\), got 'none'"),
        (((1, 2, 3, 4, 5),) * 2, {"part": "frame"}, "part must be one of .*'temporal'.*, got 'frame'"),
    ],
)
def test_bad_relations(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        soft_relational_loss(*(torch.zeros(shape) for shape in shapes), **options)


# -- stage 1: networks -------------------------------------------------------------------------------------------


def test_full_scale_size():
    with torch.device("meta"):
        projector = MotionProjector(in_dim=768)
        decoder = FlowDecoder()
    convs = (768 * 256 + 256 * 256 + 256 * 64) * 27 + 256 + 256 + 64
    assert sum(parameter.numel() for parameter in projector.parameters()) == convs + 2 * 768
    assert convs == pytest.approx(7.5e6, rel=0.01)
    assert sum(parameter.numel() for parameter in decoder.parameters()) < 0.01 * convs


def test_a_still_empty_clip_looks_the_same_everywhere():
    """Padding must not tell a token where it stands."""
    torch.manual_seed(0)
    projector = MotionProjector(in_dim=6, dim=4, hidden_dim=5)
    motion = projector(random(6).expand(2, 3, 4, 5, 6))
    assert motion.shape == (2, 3, 4, 5, 4)
    torch.testing.assert_close(motion, motion[:1, :1, :1, :1].expand_as(motion), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("num_layers", "kernel", "reach"), [(1, 1, 0), (1, 3, 1), (3, 3, 3), (2, 5, 4)])
def test_a_token_reaches_as_far_as_the_kernels(num_layers, kernel, reach):
    torch.manual_seed(0)
    projector = MotionProjector(in_dim=3, dim=2, hidden_dim=4, num_layers=num_layers, kernel=kernel).double()
    tokens = random(1, 9, 9, 9, 3, dtype=torch.float64).requires_grad_()
    projector(tokens)[0, 4, 4, 4].sum().backward()
    seen = tokens.grad[0].abs().sum(-1) > 0
    expected = torch.zeros(9, 9, 9, dtype=torch.bool)
    expected[4 - reach : 5 + reach, 4 - reach : 5 + reach, 4 - reach : 5 + reach] = True
    assert torch.equal(seen, expected)


def test_tokens_are_normalised_on_entry():
    torch.manual_seed(0)
    projector, tokens = MotionProjector(in_dim=6, dim=4, hidden_dim=5), random(1, 2, 3, 3, 6)
    torch.testing.assert_close(projector(40 * tokens + 7), projector(tokens), atol=1e-4, rtol=1e-4)
    assert projector.bfloat16()(tokens).dtype == torch.bfloat16


@pytest.mark.parametrize(("flows", "upscale"), [(1, 4), (2, 1), (3, 2)])
def test_flow_is_laid_out_field_by_field_and_pixel_by_pixel(flows, upscale):
    channels = flows * 2 * upscale**2
    decoder = FlowDecoder(dim=channels, num_layers=1, kernel=1, flows_per_token=flows, upscale=upscale)
    with torch.no_grad():
        decoder.convs[0].weight.copy_(torch.eye(channels)[..., None, None])
        decoder.convs[0].bias.zero_()
    motion = random(2, 3, 4, 5, channels)
    flow = decoder(motion)
    assert flow.shape == (2, 3 * flows, 2, 4 * upscale, 5 * upscale)
    for field in range(flows):
        for component in range(2):
            for down in range(upscale):
                for right in range(upscale):
                    channel = ((field * 2 + component) * upscale + down) * upscale + right
                    placed = flow[:, field::flows, component, down::upscale, right::upscale]
                    assert torch.equal(placed, motion[..., channel])


def test_the_decoder_starts_at_no_motion_and_sees_one_token_frame():
    torch.manual_seed(0)
    decoder = FlowDecoder(dim=3, hidden_dim=4, flows_per_token=2, upscale=2)
    motion = random(1, 4, 5, 5, 3).requires_grad_()
    assert torch.equal(decoder(motion), torch.zeros(1, 8, 2, 10, 10))
    torch.nn.init.normal_(decoder.convs[-1].weight)
    decoder(motion)[0, 2:4].sum().backward()
    assert (motion.grad[0].abs().sum((1, 2, 3)) > 0).tolist() == [False, True, False, False]


def test_stage_1_learns_flow_that_is_in_the_tokens():
    torch.manual_seed(0)
    projector = MotionProjector(in_dim=8, dim=4, hidden_dim=16, num_layers=2)
    decoder = FlowDecoder(dim=4, hidden_dim=16, flows_per_token=1, upscale=2)
    tokens = random(4, 2, 4, 4, 8)
    flow = (tokens[..., :2] - tokens.mean(-1, keepdim=True)).movedim(-1, 2)  # what a layer norm keeps, [B, f, 2, h, w]
    flow = 3 * flow.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    optimizer = torch.optim.Adam([*projector.parameters(), *decoder.parameters()], lr=1e-2)
    nothing = flow_loss(torch.zeros(4, 2, 2, 8, 8), flow, scale_px=2.0).mean()
    for _ in range(60):
        loss = flow_loss(decoder(projector(tokens)), flow, scale_px=2.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4 * nothing


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MotionProjector, {"in_dim": 8, "kernel": 2}, "kernel must be odd, got 2"),
        (MotionProjector, {"in_dim": 0, "num_layers": 0}, "sizes must be positive, got in_dim=0, num_layers=0"),
        (FlowDecoder, {"kernel": -1}, "kernel must be odd, got -1"),
        (FlowDecoder, {"upscale": 0}, "sizes must be positive, got upscale=0"),
    ],
)
def test_bad_sizes(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("shape", [(1, 2, 3, 3, 5), (2, 3, 3, 6)])
def test_bad_tokens(shape):
    for network in (MotionProjector(in_dim=6, hidden_dim=2), FlowDecoder(dim=6)):
        with pytest.raises(ValueError, match=r"tokens must be \[B, f, h, w, 6\], got"):
            network(torch.zeros(shape))


# -- stage 1: which flow -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "num_frames", "tubelet", "per_token", "starts", "valid"),
    [
        (15, 16, 2, 1, [0, 2, 4, 6, 8, 10, 12, 14], [1] * 8),
        (15, 16, 2, 2, list(range(16)), [1] * 15 + [0]),
        (20, 16, 2, 2, list(range(16)), [1] * 16),
        (15, 16, 4, 3, [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14], [1] * 12),
        (15, 16, 4, 2, [0, 2, 4, 6, 8, 10, 12, 14], [1] * 8),
        (7, 8, 4, 4, list(range(8)), [1] * 7 + [0]),
        (7, 8, 8, 3, [0, 2, 5], [1] * 3),
        (3, 4, 1, 1, [0, 1, 2, 3], [1, 1, 1, 0]),
    ],
)
def test_the_flow_of_the_frames_a_token_covers(known, num_frames, tubelet, per_token, starts, valid):
    flow = torch.arange(float(known)).reshape(1, known, 1, 1, 1).expand(2, known, 2, 3, 4)
    chosen, inside = token_flows(flow, num_frames=num_frames, tubelet=tubelet, flows_per_token=per_token)
    assert chosen.shape == (2, len(starts), 2, 3, 4)
    assert inside.dtype == torch.bool
    assert inside.shape == (1, len(starts), 1, 1)
    assert inside.flatten().tolist() == [bool(each) for each in valid]
    kept = [start for start, each in zip(starts, valid, strict=True) if each]
    assert chosen[1, inside.flatten(), 1, 2, 3].tolist() == kept


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 14, 2, 4, 4), {}, r"must be \[B, T, 2, H, W\] with T ≥ 15, got \[1, 14, 2, 4, 4\]"),
        ((1, 15, 4, 4, 2), {}, r"must be \[B, T, 2, H, W\]"),
        ((1, 15, 2, 4, 4), {"num_frames": 15}, "positive multiple of the tubelet of 2, got 15"),
        ((1, 15, 2, 4, 4), {"flows_per_token": 3}, "flows_per_token must be 1 to 2, the frames of a tubelet, got 3"),
        ((1, 15, 2, 4, 4), {"flows_per_token": 0}, "got 0"),
    ],
)
def test_bad_flows(shape, options, message):
    with pytest.raises(ValueError, match=message):
        token_flows(torch.zeros(shape), **{"num_frames": 16, "tubelet": 2} | options)


# -- stage 1: the loss -------------------------------------------------------------------------------------------


def test_flow_loss_by_hand():
    flow = torch.zeros(1, 1, 2, 2, 4, dtype=torch.float64)
    flow[0, 0, 0] = torch.tensor([[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 8.0]])  # cells of 2×2: 4 and 2, to the right
    predicted = torch.tensor([2.0, 2.0, 0.0, -1.0], dtype=torch.float64).reshape(1, 1, 2, 1, 2)
    # In units of 2 pixels: 2 and 1 to the right, 0 and 0 down; errors 0, 1, 0, 1.
    assert flow_loss(predicted, flow, scale_px=2.0).tolist() == [0.5]
    assert flow_loss(predicted, flow).tolist() == [(2 + 0 + 0 + 1) / 4]


def test_what_is_not_valid_has_no_say():
    flow = random(3, 2, 2, 4, 6, dtype=torch.float64)
    predicted = random(3, 2, 2, 2, 3, dtype=torch.float64, seed=1).requires_grad_()
    valid = random(3, 2, 4, 6, seed=2) > 0
    valid[1] = False
    valid[0, 0, :2, :2] = False  # one whole cell
    spoilt = flow.masked_fill(~valid[:, :, None], math.nan)
    loss = flow_loss(predicted, spoilt, valid=valid)
    assert loss[1] == 0
    expected = []
    for b in (0, 2):
        total = weight = 0.0
        for t in range(2):
            for y in range(2):
                for x in range(3):
                    where = valid[b, t, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                    known = flow[b, t, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2][:, where]
                    if where.any():
                        error = (predicted[b, t, :, y, x] - known.mean(1)).abs().mean().item()
                        total, weight = total + where.sum().item() * error, weight + where.sum().item()
        expected.append(total / weight)
    assert loss[[0, 2]].tolist() == pytest.approx(expected, rel=1e-12)
    loss.sum().backward()
    assert predicted.grad.isfinite().all()
    assert not predicted.grad[1].any()
    assert not predicted.grad[0, 0, :, 0, 0].any()


def test_weights_and_masks_that_broadcast():
    flow, predicted = random(2, 3, 2, 4, 4), random(2, 3, 2, 2, 2, seed=1)
    fields = torch.tensor([True, False, True])[None, :, None, None]
    only = flow_loss(predicted[:, ::2], flow[:, ::2])
    torch.testing.assert_close(flow_loss(predicted, flow, valid=fields), only)
    torch.testing.assert_close(flow_loss(predicted, flow, valid=7.0 * fields), only)
    per_field = torch.stack([flow_loss(predicted[:, [t]], flow[:, [t]]) for t in range(3)], dim=1)
    weights = torch.tensor([1.0, 0.5, 2.5])
    expected = (per_field * weights).sum(1) / weights.sum()
    torch.testing.assert_close(flow_loss(predicted, flow, valid=weights[:, None, None]), expected)


def test_flow_loss_dtypes_and_gradient():
    flow, predicted = random(2, 1, 2, 4, 4).half(), random(2, 1, 2, 4, 4, seed=1).bfloat16()
    loss = flow_loss(predicted, flow)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, (predicted.float() - flow.float()).abs().mean((1, 2, 3, 4)))
    flow, predicted = random(1, 1, 2, 4, 4).double(), random(1, 1, 2, 2, 2, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: flow_loss(x, flow, scale_px=3.0), predicted)
    assert flow_loss(flow, flow).item() == 0


@pytest.mark.parametrize(
    ("predicted", "flow", "options", "message"),
    [
        ((1, 3, 2, 4, 4), (1, 2, 2, 4, 4), {}, r"got \[1, 3, 2, 4, 4\] and \[1, 2, 2, 4, 4\]"),
        ((1, 3, 4, 4, 2), (1, 3, 4, 4, 2), {}, r"must be \[B, T, 2, h, w\]"),
        ((1, 3, 2, 8, 4), (1, 3, 2, 4, 4), {}, r"flow of \[4, 4\] is coarser than the predicted \[8, 4\]"),
        ((1, 3, 2, 4, 4), (1, 3, 2, 4, 4), {"scale_px": 0.0}, "scale_px must be above 0, got 0.0"),
        (
            (1, 3, 2, 4, 4),
            (1, 3, 2, 4, 4),
            {"valid": torch.ones(3, dtype=torch.bool)},
            r"valid must broadcast to \[1, 3, 4, 4\], got \[3\]",
        ),
    ],
)
def test_bad_flow_loss(predicted, flow, options, message):
    with pytest.raises(ValueError, match=message):
        flow_loss(torch.zeros(predicted), torch.zeros(flow), **options)


# -- stage 1: files ----------------------------------------------------------------------------------------------


def test_folder_round_trip(tmp_path):
    projector = MotionProjector(in_dim=6, dim=4, hidden_dim=5, num_layers=2, kernel=1)
    projector.info = {"encoder": "videomae-tiny", "scale_px": 2.0}
    projector.save(tmp_path / "motion_projector")
    files = sorted(file.name for file in (tmp_path / "motion_projector").iterdir())
    assert files == ["config.json", "model.safetensors"]
    loaded = MotionProjector.load(tmp_path / "motion_projector")
    assert (loaded.config, loaded.info) == (projector.config, projector.info)
    tokens = random(1, 2, 3, 3, 6)
    assert torch.equal(loaded(tokens), projector(tokens))


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"no motion projector in .*: no file .*config.json"):
        MotionProjector.load(tmp_path)
    projector = MotionProjector(in_dim=6, dim=4, hidden_dim=5, num_layers=2)
    projector.save(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good, tensors = config.read_text(), dict(projector.state_dict())
    for text, message in [
        ("{", "does not describe a motion projector"),
        ("[1]", "does not describe a motion projector"),
        ('{"in_dim": 6}', "does not describe a motion projector: KeyError"),
        (good.replace("kernel", "kernels"), "do not build a MotionProjector.*kernels"),
        (good.replace('"dim": 4', '"dim": 0'), "do not build a MotionProjector.*dim=0"),
        (good.replace('"dim": 4', '"dim": 3'), r"(?s)model.safetensors.*size mismatch for convs.2.weight"),
        (good.replace('"num_layers": 2', '"num_layers": 3'), r"(?s)Missing key.*convs.4.weight"),
    ]:
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            MotionProjector.load(tmp_path)
    config.write_text(good)
    save_file({**tensors, "decoder.weight": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"(?s)Unexpected key.*decoder.weight"):
        MotionProjector.load(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"no file .*model.safetensors"):
        MotionProjector.load(tmp_path)
