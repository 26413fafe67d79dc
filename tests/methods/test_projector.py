"""The head between generator and encoder: VideoREPA's own numbers, other grids, and its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from physcli.methods.grids import resample
from physcli.methods.projector import Projector, from_videorepa
from physcli.methods.repa import repa_loss
from physcli.methods.videorepa import trd_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "trd"
TINY = {"in_dim": 6, "out_dim": 4, "hidden_dim": 5, "student_grid": (5, 4, 4), "teacher_grid": (4, 4, 4)}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


# -- golden numbers ----------------------------------------------------------------------------------------------


def read(name: str, dtype: torch.dtype) -> tuple[Projector, torch.Tensor, torch.Tensor, dict, dict]:
    """Projector, tapped features, teacher [B, f, h, w, D], all tensors and the facts of a golden case."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    info = json.loads((GOLDEN / f"{name}.json").read_text())
    shape = info["shape"]
    grid = (shape["latent_frames"], *shape["latent_token_grid"])
    projector = Projector(
        in_dim=shape["D0"],
        out_dim=shape["D"],
        hidden_dim=shape["projector_dim"],
        student_grid=grid,
        teacher_grid=tuple(shape["teacher_grid"]),
    )
    projector.load_state_dict(from_videorepa(tensors))
    features = tensors["hidden"].to(dtype).unflatten(1, grid).requires_grad_()
    teacher = tensors["teacher"].to(dtype).unflatten(1, shape["teacher_grid"])
    return projector.to(dtype), features, teacher, tensors, info


def gradients(projector: Projector, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """By the released names."""
    released = {"mlp": "projectors.0", "conv": "downsampler_cogvideo_output"}
    found = {"hidden": features.grad.flatten(1, 3)}
    for name, parameter in projector.named_parameters():
        head, rest = name.split(".", 1)
        found[f"{released[head]}.{rest}"] = parameter.grad
    return found


def assert_near(ours: torch.Tensor, golden: torch.Tensor, relative: float) -> None:
    """Every element within `relative` of the golden tensor's largest."""
    assert ours.shape == golden.shape
    assert ((ours.double() - golden.double()).abs().max() / golden.double().abs().max()).item() <= relative


def test_released_path_step_by_step():
    projector, features, _, golden, _ = read("student_path", torch.float64)
    assert_near(projector.mlp(features), golden["projected.f32_of_f64"], 1e-7)
    assert_near(projector(features), golden["features.f64"], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("part", ["both", "spatial", "temporal", "repa"])
def test_released_path_losses_and_gradients(part, dtype):
    projector, features, teacher, golden, info = read("student_path", dtype)
    student = projector(features)
    assert student.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(student, golden["features.f32"], atol=5e-6, rtol=0)
    if part == "repa":
        name, loss = "repa_cosine", repa_loss(student, teacher).mean()
    else:
        name = {"both": "official_trd", "spatial": "official_only_spatial", "temporal": "official_only_temporal"}[part]
        loss = trd_loss(student, teacher, margin=info["margin"], part=part).mean()
    suffix, limit, limit_gradients = ("f64", 1e-12, 1e-12) if dtype == torch.float64 else ("f32", 1e-6, 1e-5)
    assert loss.item() == pytest.approx(info["values"][f"{name}_{suffix}"], rel=limit)
    if part in ("both", "repa"):
        loss.backward()
        for of, gradient in gradients(projector, features).items():
            assert_near(gradient, golden[f"grad.{name}.{of}.f64"], limit_gradients)
        assert not features.grad[:, 0].any()


def test_full_grid_float64():
    projector, features, teacher, golden, info = read("official_full_grid", torch.float64)
    values = info["values"]
    with torch.no_grad():
        student = projector(features)
        assert_near(student, golden["features.f32_of_f64"], 1e-7)
        loss = trd_loss(student, teacher, margin=info["margin"]).item()
        spatial, temporal = (
            trd_loss(student, teacher, margin=0.0, reading="paper", part=part).item()
            for part in ("spatial", "temporal")
        )
        cosine = repa_loss(student, teacher).item()
    assert loss == pytest.approx(values["official_trd_f64_recomputed"], rel=1e-12)
    assert cosine == pytest.approx(values["repa_cosine_f64_recomputed"], rel=1e-12)
    assert spatial == pytest.approx(values["eq5_spatial_f64_recomputed"], rel=1e-12)
    assert temporal == pytest.approx(values["eq5_temporal_f64_recomputed"], rel=1e-12)


@pytest.mark.parametrize("name", ["official_trd", "repa_cosine"])
def test_full_grid_float32(name):
    projector, features, teacher, golden, info = read("official_full_grid", torch.float32)
    student = projector(features)
    if name == "official_trd":
        loss = trd_loss(student, teacher, margin=info["margin"]).mean()
    else:
        loss = repa_loss(student, teacher).mean()
    assert loss.item() == pytest.approx(info["values"][f"{name}_f32"], rel=1e-6)
    loss.backward()
    for of, gradient in gradients(projector, features).items():
        if of == "hidden":
            if name == "official_trd":
                assert_near(gradient[:, ::97], golden["grad.official_trd.hidden_subset.f32"], 5e-4)
        else:
            assert_near(gradient, golden[f"grad.{name}.{of}.f32"], 5e-4)


def test_full_grid_bfloat16():
    projector, features, teacher, _, info = read("official_full_grid", torch.bfloat16)
    with torch.no_grad():
        student = projector(features)
        assert student.dtype == torch.bfloat16
        loss = trd_loss(student, teacher, margin=info["margin"]).item()
    assert loss == pytest.approx(info["values"]["official_trd_bf16_projector_and_conv"], rel=2e-3)


# -- by hand -----------------------------------------------------------------------------------------------------


def test_two_tokens_by_hand():
    projector = Projector(
        in_dim=1, out_dim=1, hidden_dim=1, num_layers=2, student_grid=(2, 1, 2), teacher_grid=(1, 1, 1)
    ).double()
    with torch.no_grad():
        for parameter, value in zip(projector.parameters(), (2.0, 1.0, 3.0, -1.0, 0.5, 10.0), strict=True):
            parameter.fill_(value)

    def token(x: float) -> torch.Tensor:
        inner = torch.tensor(2 * x + 1, dtype=torch.float64)
        return 3 * inner * torch.sigmoid(inner) - 1

    features = torch.tensor([7.0, 8.0, 0.5, -2.0], dtype=torch.float64).reshape(1, 2, 1, 2, 1)
    expected = 0.5 * (token(0.5) + token(-2.0)) + 10
    assert projector(features).item() == pytest.approx(expected.item(), rel=1e-14)


def test_conv3d_sees_one_frame_on_either_side():
    options = {"num_layers": 0, "student_grid": (4, 1, 1), "teacher_grid": (4, 1, 1), "drop_first": False}
    projector = Projector(in_dim=1, out_dim=1, resample="conv3d", **options)
    with torch.no_grad():
        projector.conv.weight.copy_(torch.tensor([100.0, 10.0, 1.0]).reshape(1, 1, 3, 1, 1))
        projector.conv.bias.zero_()
    features = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1, 1)
    assert projector(features).flatten().tolist() == [112, 123, 234, 344]


def test_no_layers_and_no_convolution_are_the_features_themselves():
    options = {"num_layers": 0, "resample": "interpolate", "student_grid": (5, 6, 4), "teacher_grid": (8, 2, 8)}
    projector = Projector(in_dim=3, out_dim=3, **options)
    features = random(2, 5, 6, 4, 3)
    assert not list(projector.parameters())
    expected = resample(features, (8, 2, 8), drop_first=True)
    torch.testing.assert_close(projector(features), expected, atol=0, rtol=0)
    assert projector(features.double()).dtype == torch.float64
    assert projector(features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3, 4])
def test_layers(num_layers):
    projector = Projector(**TINY | {"num_layers": num_layers})
    linear = [tuple(layer.weight.shape) for layer in projector.mlp if isinstance(layer, torch.nn.Linear)]
    assert linear == {0: [], 1: [(4, 6)], 2: [(5, 6), (4, 5)], 3: [(5, 6), (5, 5), (4, 5)]}.get(
        num_layers, [(5, 6), (5, 5), (5, 5), (4, 5)]
    )
    assert len(projector.mlp) == max(0, 2 * num_layers - 1)
    assert projector(random(1, 5, 4, 4, 6)).shape == (1, 4, 4, 4, 4)


# -- any grid ----------------------------------------------------------------------------------------------------

GRIDS = [
    ((13, 6, 9), (24, 2, 3)),  # VideoREPA's ratios
    ((5, 8, 8), (4, 8, 8)),  # the tiny world
    ((5, 4, 4), (8, 8, 7)),  # a finer teacher
    ((5, 9, 10), (4, 4, 4)),  # ratios that are not whole
    ((14, 4, 6), (5, 2, 3)),  # a shorter teacher
    ((13, 4, 4), (5, 4, 2)),  # 12 frames by way of 10
    ((2, 3, 3), (3, 1, 1)),
]


@pytest.mark.parametrize("kind", ["conv2d", "conv3d", "interpolate"])
@pytest.mark.parametrize("drop_first", [True, False])
@pytest.mark.parametrize(("student", "teacher"), GRIDS)
def test_every_grid_pair_uses_every_token(student, teacher, drop_first, kind):
    torch.manual_seed(0)
    projector = Projector(
        in_dim=3,
        out_dim=4,
        hidden_dim=5,
        student_grid=student,
        teacher_grid=teacher,
        drop_first=drop_first,
        resample=kind,
    )
    features = random(2, *student, 3).requires_grad_()
    out = projector(features)
    assert out.shape == (2, *teacher, 4)
    (out * random(*out.shape)).sum().backward()
    used = features.grad.abs().sum(-1) > 0
    assert used[:, 1:].all()
    assert used[:, 0].all() != drop_first
    assert used[:, 0].any() != drop_first
    assert all(parameter.grad.any() for parameter in projector.parameters())


@pytest.mark.parametrize("kind", ["conv2d", "conv3d"])
@pytest.mark.parametrize(("student", "teacher"), GRIDS)
def test_a_convolution_that_averages_is_interpolation(student, teacher, kind):
    """Where the ratio is whole; else it is that of the grid in between."""
    projector = Projector(
        in_dim=1, out_dim=1, num_layers=0, student_grid=student, teacher_grid=teacher, resample=kind
    ).double()
    kernel = torch.zeros_like(projector.conv.weight)
    middle = kernel[:, :, 1:-1] if kind == "conv3d" else kernel
    middle.fill_(1 / middle.numel())
    with torch.no_grad():
        projector.conv.weight.copy_(kernel)
        projector.conv.bias.zero_()
    between = tuple(n * s for n, s in zip(teacher, (1, *projector.conv.stride)[-3:], strict=True))
    features = random(1, *student, 1, dtype=torch.float64)
    time = "linear" if kind == "conv3d" else "area"
    expected = resample(features, between, time=time, space="bilinear", drop_first=True)
    expected = resample(expected, teacher, time="area", space="area")
    torch.testing.assert_close(projector(features), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "kernel", "stride"),
    [
        ("conv2d", (13, 30, 45), (24, 10, 15), (3, 3), (3, 3)),
        ("conv2d", (13, 30, 45), (24, 10, 14), (3, 3), (3, 3)),
        ("conv2d", (5, 8, 8), (4, 16, 4), (1, 2), (1, 2)),
        ("conv3d", (13, 30, 45), (24, 10, 15), (3, 3, 3), (1, 3, 3)),
        ("conv3d", (13, 8, 8), (4, 8, 3), (5, 1, 3), (3, 1, 3)),
    ],
)
def test_kernels(kind, student, teacher, kernel, stride):
    projector = Projector(in_dim=2, out_dim=3, hidden_dim=4, student_grid=student, teacher_grid=teacher, resample=kind)
    assert projector.conv.weight.shape == (3, 3, *kernel)
    assert projector.conv.stride == stride


def test_full_scale_sizes():
    with torch.device("meta"):
        projector = Projector(in_dim=1920, out_dim=768, student_grid=(13, 30, 45), teacher_grid=(24, 10, 15))
    mlp = 1920 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 768 + 768
    assert sum(parameter.numel() for parameter in projector.parameters()) == mlp + 768 * 768 * 9 + 768


def test_autocast():
    torch.manual_seed(0)
    projector, features = Projector(**TINY), random(1, 5, 4, 4, 6)
    exact = projector(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = projector(features.bfloat16())
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, atol=0.02, rtol=0.02)


# -- names and files ---------------------------------------------------------------------------------------------


def test_released_names_among_others():
    tensors = load_file(GOLDEN / "student_path.safetensors")
    head = {name: value for name, value in tensors.items() if name.startswith(("projectors.", "downsampler_"))}
    renamed = from_videorepa(head | {"transformer_blocks.0.norm1.weight": torch.zeros(1)})
    assert sorted(renamed) == sorted(
        [f"{part}.{kind}" for part in ("mlp.0", "mlp.2", "mlp.4", "conv") for kind in ("weight", "bias")]
    )
    assert renamed["mlp.2.weight"] is head["projectors.0.2.weight"]
    with pytest.raises(ValueError, match=r"one projector expected, projectors.0; got projectors.1.0.weight too"):
        from_videorepa(head | {"projectors.1.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no tensor's name starts with 'projectors.0.'"):
        from_videorepa({"proj_out.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resample": "conv3d", "num_layers": 4, "drop_first": False},
        {"resample": "interpolate", "num_layers": 0, "out_dim": 6},
    ],
)
def test_file_round_trip(tmp_path, changes):
    projector = Projector(**TINY | changes)
    path = projector.save(tmp_path / "new" / "folder")
    assert [path.name] == [file.name for file in path.parent.iterdir()] == ["projector.safetensors"]
    loaded = Projector.load(path.parent)
    assert loaded.config == projector.config
    features = random(1, 5, 4, 4, 6)
    assert torch.equal(loaded(features), projector(features))


def test_weights_come_back_in_float32(tmp_path):
    projector = Projector(**TINY).to(torch.bfloat16)
    projector.save(tmp_path)
    loaded = Projector.load(tmp_path)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, projector.get_parameter(name).float())


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*projector.safetensors"):
        Projector.load(tmp_path)
    projector = Projector(**TINY)
    path = projector.save(tmp_path)
    whole, tensors = path.read_bytes(), dict(projector.state_dict())
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        Projector.load(tmp_path)

    def described(arguments: dict) -> dict[str, str]:
        return {"config": json.dumps(arguments)}

    good = projector.config
    for content, metadata, message in [
        (tensors, None, "does not say how its projector is built"),
        (tensors, {"config": "{"}, "does not say how its projector is built"),
        (tensors, {"config": "3"}, "do not build a Projector"),
        (tensors, described(good | {"depth": 3}), "do not build a Projector.*depth"),
        (tensors, described(good | {"resample": "conv4d"}), "do not build a Projector.*conv4d"),
        (tensors, described(good | {"hidden_dim": 7}), r"(?s)size mismatch for mlp.0.weight"),
        ({**tensors, "extra": torch.zeros(1)}, described(good), r"(?s)Unexpected key.*extra"),
        ({"mlp.0.bias": tensors["mlp.0.bias"]}, described(good), r"(?s)Missing key.*conv.weight"),
    ]:
        save_file(content, path, metadata=metadata)
        with pytest.raises(ValueError, match=message):
            Projector.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_grid": (5, 4)}, r"student_grid must be three positive counts, got \(5, 4\)"),
        ({"teacher_grid": (4, 0, 4)}, r"teacher_grid must be three positive counts, got \(4, 0, 4\)"),
        ({"student_grid": (1, 4, 4)}, r"student_grid \(1, 4, 4\) has no frame left without its first"),
        ({"in_dim": 0}, "widths must be positive .* in_dim=0"),
        ({"num_layers": -1}, "num_layers=-1"),
        ({"resample": "conv1d"}, "resample must be one of .*'conv3d', 'conv3x3', 'interpolate'.*, got 'conv1d'"),
        ({"resample": "interpolate", "num_layers": 0}, "nothing changes the width from 6 to 4"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        Projector(**TINY | changes)


@pytest.mark.parametrize("shape", [(1, 4, 4, 4, 6), (1, 5, 4, 4, 7), (5, 4, 4, 6)])
def test_bad_features(shape):
    with pytest.raises(ValueError, match=r"features must be \[B, 5, 4, 4, 6\], got"):
        Projector(**TINY)(torch.zeros(shape))
