"""LaMo against golden numbers of the released code and of a port, and against closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from physcli.methods.lamo import (
    MotionField,
    display_map,
    drift_loss,
    drift_map,
    drift_weight,
    field_loss,
    field_map,
    guidance_update,
    guided_steps,
)
from physcli.models.generator import Conditioning

GOLDEN = Path(__file__).parents[1] / "golden" / "lamo"
# Of the largest golden number of a tensor, which are float32: tighter than the README's rtol 1e-5 and atol 1e-6
# wherever numbers are not of order 1.
LIMITS = {torch.float64: 1e-6, torch.float32: 1e-5}
VARIANTS = {"full": {}, "no_se": {"squeeze": False}, "no_prompt": {"prompt": False}, "prev_delta": {"previous": True}}
DTYPES = pytest.mark.parametrize("dtype", LIMITS, ids=str)


def read(name: str) -> dict:
    path = GOLDEN / name
    return json.loads(path.read_text()) if path.suffix == ".json" else load_file(path)


def assert_golden(actual: torch.Tensor, golden: torch.Tensor | float) -> None:
    golden = torch.as_tensor(golden, dtype=torch.float64)
    assert actual.shape == golden.shape
    largest = (actual.detach().double() - golden).abs().max().item()
    assert largest <= LIMITS[actual.dtype] * golden.abs().max().item()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_field(seed: int = 0, **options) -> MotionField:
    """A field that no longer is in its initial state."""
    field = MotionField(**{"channels": 3, "hidden": 8, "num_blocks": 2, "text_dim": 5, "cond_dim": 4} | options)
    with torch.no_grad():
        for number, weight in enumerate(field.parameters()):
            weight.copy_(0.3 * randn(*weight.shape, seed=100 * seed + number))
    return field


def weight_at(timesteps: torch.Tensor, abar: torch.Tensor, **options) -> torch.Tensor:
    """`drift_weight` at timesteps of a schedule ᾱ [T]."""
    level = abar.double()[timesteps]
    return drift_weight(timesteps.double() / len(abar), level.sqrt(), (1 - level).sqrt(), **options)


class Zero(nn.Module):
    """Predicts no change."""

    channels, lag = 1, 1

    def forward(self, latents, prompt=None, previous_change=None):
        return torch.zeros_like(latents)


@pytest.fixture(scope="module")
def schedule():
    return read("schedule.safetensors")


# -- drift loss --------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("lag", [1, 2])
def test_drift_loss_is_golden(lag, dtype, schedule):
    case, numbers = read("drift_loss.safetensors"), read("drift_loss.json")["results"][f"tau{lag}"]
    abar = schedule["alphas_cumprod_2b"]
    abar_t = abar[case["timesteps"]].reshape(-1, 1, 1, 1, 1)
    clean, output = case["z"].to(dtype), case["model_output"].to(dtype).requires_grad_()
    noisy = case["noisy"].to(dtype)
    predicted = abar_t.sqrt().to(dtype) * noisy - (1 - abar_t).sqrt().to(dtype) * output
    assert_golden(predicted, case["x0_hat"])
    loss, logs = drift_loss(clean, predicted, lag=lag)
    assert (loss.shape, loss.dtype) == ((2,), dtype)
    assert_golden(loss.mean(), numbers["L_drift"])
    assert_golden(drift_loss(clean, predicted, lag=lag, reading="add")[0].mean(), numbers["L_drift_eps_add_1e6"])
    assert_golden(logs["drift"], case[f"tau{lag}.mu_target"].norm(dim=2).mean(dim=1))
    assert_golden(logs["predicted_drift"], case[f"tau{lag}.mu_pred"].norm(dim=2).mean(dim=1))
    assert logs["at_floor"].tolist() == [0, 0]

    released = weight_at(case["timesteps"], abar)
    port = weight_at(case["timesteps"], abar, reading="abar")
    assert_golden(released[0], numbers["w_official"])
    assert_golden(port[0], numbers["w_paper_mean_alpha_bar"])
    weighted = (0.4 * released.to(dtype) * loss).mean()
    assert_golden(weighted, numbers["weighted_official"])
    assert_golden((0.4 * port.to(dtype) * loss).mean(), numbers["weighted_paper"])
    denoising = ((predicted - clean).square() / (1 - abar_t).to(dtype)).mean()
    assert_golden(denoising + weighted, numbers["total_official"])
    for name, value in (
        ("L_drift", loss.mean()),
        ("weighted_official", weighted),
        ("total_official", denoising + weighted),
    ):
        (gradient,) = torch.autograd.grad(value, output, retain_graph=True)
        assert_golden(gradient, case[f"tau{lag}.grad_{name}"])


def test_drift_loss_edge_cases():
    case, golden = read("drift_loss.safetensors"), read("drift_loss.json")["edge_cases"]
    clean, predicted = case["z"], case["x0_hat"]
    static = clean[:, :1].expand_as(clean)
    loss, logs = drift_loss(static, predicted)
    assert_golden(loss.mean(), golden["static_target_tau2"])
    assert logs["at_floor"].tolist() == [1, 1]
    assert drift_loss(static, static)[0].tolist() == [golden["static_target_static_pred_tau2"]] * 2
    assert drift_loss(clean, clean)[0].tolist() == [golden["identical_tau2"]] * 2
    for reading in ("clamp", "ratio_of_sums"):
        doubled = drift_loss(clean, clean[:, :1] + 2 * (clean - clean[:, :1]), reading=reading)[0]
        torch.testing.assert_close(doubled, torch.full((2,), golden["double_motion_tau2"]), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            drift_loss(clean, -clean, reading=reading)[0], torch.full((2,), golden["reversed_motion_tau2"])
        )


@pytest.mark.parametrize("reading", ["clamp", "add", "ratio_of_sums"])
@pytest.mark.parametrize(("num_frames", "lag"), [(1, 2), (2, 2), (1, 3)])
def test_too_few_frames_cost_nothing(reading, num_frames, lag):
    predicted = randn(2, num_frames, 3, 2, 2).requires_grad_()
    loss, logs = drift_loss(randn(2, num_frames, 3, 2, 2, seed=1), predicted, lag=lag, reading=reading)
    assert loss.tolist() == [0, 0]
    assert all(value.tolist() == [0, 0] for value in logs.values())
    loss.sum().backward()
    assert predicted.grad.abs().max() == 0


def test_drift_loss_by_hand():
    # One row of two places. Drifts: (1, 0) then (0, 0); predicted (2, 1) then (0, 0.5).
    clean = torch.tensor([[[[[0.0, 0.0]], [[0.0, 0.0]]], [[[2.0, 0.0]], [[3.0, -3.0]]], [[[1.0, 1.0]], [[0.0, 0.0]]]]])
    predicted = torch.tensor(
        [[[[[0.0, 0.0]], [[0.0, 0.0]]], [[[4.0, 0.0]], [[1.0, 1.0]]], [[[0.0, 4.0]], [[2.0, 1.0]]]]]
    )
    loss = {
        reading: drift_loss(clean, predicted, lag=1, floor=0.01, reading=reading)[0].item()
        for reading in ("clamp", "add", "ratio_of_sums")
    }
    assert loss["clamp"] == pytest.approx((2 / 1 + 0.25 / 0.01) / 2)
    assert loss["add"] == pytest.approx((2 / (1 + 1e-6) + 0.25 / 1e-6) / 2)
    assert loss["ratio_of_sums"] == pytest.approx((2 + 0.25) / 1)
    logs = drift_loss(clean, predicted, lag=1, floor=0.01)[1]
    assert logs["at_floor"].tolist() == [0.5]
    assert logs["drift"].tolist() == [0.5]
    assert logs["predicted_drift"].item() == pytest.approx((5**0.5 + 0.5) / 2)


@pytest.mark.parametrize("reading", ["clamp", "add", "ratio_of_sums"])
def test_drift_gradient(reading):
    clean = randn(2, 4, 2, 2, 3).double().requires_grad_()
    predicted = randn(2, 4, 2, 2, 3, seed=1).double().requires_grad_()
    loss = drift_loss(clean, predicted, floor=0.5, reading=reading)[0]
    assert torch.autograd.grad(loss.sum(), clean, allow_unused=True) == (None,)
    assert torch.autograd.gradcheck(
        lambda x: drift_loss(clean.detach(), x, floor=0.5, reading=reading)[0], predicted, atol=1e-8
    )


def test_bfloat16_latents_are_subtracted_in_float32():
    case, numbers = read("drift_loss.safetensors"), read("drift_loss.json")["results"]
    clean, predicted = case["z"].bfloat16(), case["x0_hat"].bfloat16()
    for lag in (1, 2):
        loss = drift_loss(clean, predicted, lag=lag)[0]
        assert loss.dtype == torch.float32
        assert torch.equal(loss, drift_loss(clean.float(), predicted.float(), lag=lag)[0])
        assert loss.mean().item() == pytest.approx(numbers[f"tau{lag}"]["L_drift_bf16_inputs"], rel=2**-8)
    assert drift_loss(case["z"].double(), case["x0_hat"])[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lag": 0}, "lag must be at least 1 .*got 0"),
        ({"floor": 0.0}, "floor must be positive, got 0"),
        ({"reading": "max"}, "reading must be clamp, add or ratio_of_sums, got 'max'"),
        ({"clean": torch.zeros(2, 3, 4, 5)}, r"latents must be floating point \[B, F, C, H, W\], got .*\[2, 3, 4, 5\]"),
        ({"predicted_clean": torch.zeros(1, 4, 2, 2, 2)}, r"must be \[1, 3, 2, 2, 2\] like clean, got \[1, 4"),
    ],
)
def test_drift_loss_refuses(options, message):
    latents = torch.zeros(1, 3, 2, 2, 2)
    with pytest.raises(ValueError, match=message):
        drift_loss(**{"clean": latents, "predicted_clean": latents} | options)


def test_weights_are_golden(schedule):
    for row in read("drift_loss.json")["weight_table"]:
        timesteps = torch.tensor(row["t"])
        for name in ("2b", "5b"):
            abar = schedule[f"alphas_cumprod_{name}"]
            released, port = weight_at(timesteps, abar), weight_at(timesteps, abar, reading="abar")
            assert released.dtype == port.dtype == torch.float32
            # 1 − 0.999² cancels in the golden float32: hence the README's atol.
            torch.testing.assert_close(released, torch.full_like(released, row["w_official"]), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(port, torch.full_like(port, row[f"w_paper_{name}"]), rtol=1e-5, atol=1e-6)


def test_weight_of_each_sample(schedule):
    timesteps, abar = torch.tensor([0, 500, 999]), schedule["alphas_cumprod_2b"]
    each = weight_at(timesteps, abar, per_sample=True)
    assert each.tolist() == pytest.approx([1, 0.75, 1 - 0.999**2])
    assert weight_at(timesteps, abar).tolist() == pytest.approx([each.mean().item()] * 3)
    assert torch.equal(weight_at(timesteps, abar, reading="abar", per_sample=True), abar[timesteps].float())


@pytest.mark.parametrize(
    ("time", "reading", "message"),
    [
        (torch.tensor([1.5]), "released", r"must be \[B\] in \[0, 1\], got \[1\] \[1.5\]"),
        (torch.tensor([-1.0]), "abar", r"must be \[B\] in \[0, 1\], got \[1\] \[-1.0\]"),
        (torch.tensor(0.5), "abar", r"must be \[B\] in \[0, 1\], got \[\] 0.5"),
        (torch.tensor([0.5]), "paper", "reading must be released, abar or snr, got 'paper'"),
    ],
)
def test_drift_weight_refuses(time, reading, message):
    with pytest.raises(ValueError, match=message):
        drift_weight(time, torch.ones(1), torch.zeros(1), reading=reading)


# -- motion field ------------------------------------------------------------------------------------------------


def test_released_size_and_initial_state():
    assert sum(weight.numel() for weight in MotionField().parameters()) == 10_845_072
    torch.manual_seed(0)
    field = MotionField(hidden=32, num_blocks=2, text_dim=512, cond_dim=64)
    zero = ["output_proj.weight", "output_proj.bias", "null_prompt", "prompt_proj.bias"]
    zero += [f"blocks.{block}.film.{kind}" for block in range(2) for kind in ("weight", "bias")]
    weights = dict(field.named_parameters())
    assert all(weights[name].abs().max() == 0 for name in zero)
    assert weights["prompt_proj.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert field(randn(1, 2, 16, 4, 4), randn(1, 512)).abs().max() == 0


@DTYPES
@pytest.mark.parametrize("variant", VARIANTS)
def test_predictions_are_golden(variant, dtype):
    io, field = read("predictor_io.safetensors"), MotionField.load(GOLDEN / f"predictor_{variant}.safetensors")
    assert (
        field.config
        == MotionField(
            hidden=32,
            num_blocks=2,
            **({} if variant == "no_prompt" else {"text_dim": 24, "cond_dim": 12}),
            **VARIANTS[variant],
        ).config
    )
    field, latents, prompt = field.to(dtype), io["latents"].to(dtype), io["prompt_pooled"].to(dtype)
    if variant == "no_prompt":
        assert_golden(field(latents)[:, :-1], io["no_prompt.delta_pred"])
        return
    assert_golden(field(latents, prompt)[:, :-1], io[f"{variant}.delta_pred"])
    assert_golden(field(latents)[:, :-1], io[f"{variant}.delta_pred_null"])
    assert_golden(field(latents, torch.zeros_like(prompt))[:, :-1], io[f"{variant}.delta_pred_zero_prompt"])


def pooled(text: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    return Conditioning({"text": text} | ({} if mask is None else {"mask": mask})).pooled()


def test_pooled_prompts_are_golden():
    io = read("predictor_io.safetensors")
    embeds, mask = io["prompt_embeds"], io["prompt_mask"]
    assert 0 < mask.mean() < 1
    for dtype in LIMITS:
        assert_golden(pooled(embeds.to(dtype)), io["prompt_pooled"])
        assert_golden(pooled(embeds.to(dtype), mask), io["prompt_pooled_masked"])
    assert pooled(embeds, torch.zeros_like(mask)).abs().max() == 0
    one_in_part = torch.eye(7)[:2] / 4  # the divisor is at least 1
    torch.testing.assert_close(pooled(embeds, one_in_part), torch.stack([embeds[0, 0], embeds[1, 1]]) / 4)
    assert torch.equal(pooled(embeds.bfloat16()), embeds.bfloat16().float().mean(dim=1))
    assert torch.equal(pooled(embeds, mask.bool()), pooled(embeds, mask))


@pytest.mark.parametrize("previous", [False, True])
def test_frames_are_taken_one_by_one(previous):
    field = small_field(previous=previous)
    latents, prompt = randn(2, 4, 3, 4, 5), randn(2, 5, seed=1)
    whole = field(latents, prompt)
    assert whole.shape == latents.shape
    per_frame = prompt[:, None] * torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None]
    by_frame = field(latents, per_frame)
    torch.testing.assert_close(by_frame[:, [0, 2, 3]], whole[:, [0, 2, 3]])
    torch.testing.assert_close(by_frame[:, 1], field(latents, 0 * prompt)[:, 1])
    assert (by_frame[:, 1] - whole[:, 1]).abs().max() > 1e-3
    change = latents[:, 2:3] - latents[:, 1:2]
    torch.testing.assert_close(field(latents[:, 2:3], prompt, change), whole[:, 2:3], atol=1e-5, rtol=1e-5)
    alone = field(latents[:, 2:3], prompt)  # as the first of its clip
    assert ((alone - whole[:, 2:3]).abs().max() > 1e-3) == previous


def test_field_is_float32_whatever_surrounds_it():
    field, latents, prompt = small_field(), randn(1, 2, 3, 4, 4), randn(1, 5)
    expected = field(latents.bfloat16().float(), prompt)
    assert torch.equal(field(latents.bfloat16(), prompt), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(field(latents.bfloat16(), prompt), expected)
    with pytest.raises(ValueError, match=r"must be float32 or float64, got torch.bfloat16: call .float\(\)"):
        small_field().bfloat16()(latents, prompt)


@pytest.mark.parametrize(
    ("options", "latents", "prompt", "message"),
    [
        ({}, (1, 2, 4, 4, 4), (1, 5), r"latents must be floating point \[B, F, 3, H, W\], got .*\[1, 2, 4, 4, 4\]"),
        ({}, (2, 3, 4, 4), (2, 5), r"latents must be .* got .*\[2, 3, 4, 4\]"),
        ({}, (2, 2, 3, 4, 4), (1, 5), r"prompt must be \[2, 5\] or \[2, 2, 5\], got \[1, 5\]"),
        ({}, (2, 2, 3, 4, 4), (2, 7, 5), r"prompt must be .* got \[2, 7, 5\]"),
        ({"prompt": False}, (1, 2, 3, 4, 4), (1, 5), "built without prompts: pass prompt=None"),
    ],
)
def test_field_refuses(options, latents, prompt, message):
    with pytest.raises(ValueError, match=message):
        small_field(**options)(torch.zeros(latents), torch.zeros(prompt))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 12}, "hidden must be a multiple of 8, got 12"),
        ({"num_blocks": 0}, "num_blocks must be a positive integer, got 0"),
        ({"channels": True}, "channels must be a positive integer, got True"),
        ({"lag": 1.5}, "lag must be a positive integer, got 1.5"),
        ({"squeeze": "no"}, "squeeze must be True or False, got 'no'"),
    ],
)
def test_field_refuses_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        MotionField(**options)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_save_and_load(options, tmp_path):
    field = small_field(scaling_factor=1.15258426, lag=2, **options)
    field.save(tmp_path / "run" / "motion_field")
    assert sorted(file.name for file in (tmp_path / "run" / "motion_field").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    before = torch.get_rng_state()
    loaded = MotionField.load(tmp_path / "run" / "motion_field")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == field.config
    assert (loaded.scaling_factor, loaded.lag, loaded.channels) == (1.15258426, 2, 3)
    latents, prompt = randn(1, 3, 3, 4, 4), randn(1, 5) if options.get("prompt", True) else None
    assert torch.equal(loaded(latents, prompt), field(latents, prompt))
    assert all(weight.requires_grad for weight in loaded.parameters())


def test_half_precision_weights_and_released_names_are_loaded(tmp_path):
    field = small_field()
    field.save(tmp_path)
    half = {f"physical_lamo.{name}": weight.bfloat16() for name, weight in field.state_dict().items()}
    save_file(half, tmp_path / "model.safetensors")
    loaded = MotionField.load(tmp_path)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.input_proj.weight, field.input_proj.weight.bfloat16().float())


def break_weights(change):
    def spoil(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return spoil


def break_config(**changes):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {name: value for name, value in config.items() if value != "drop"}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_weights(lambda w: w.pop("null_prompt")), r"1 weights do not fit .*: null_prompt missing for \[5\]"),
        (break_weights(lambda w: w.update(ema=torch.zeros(2))), r"1 weights .*: ema \[2\] for nothing"),
        (
            break_weights(lambda w: w.update(null_prompt=torch.zeros(6))),
            r"1 weights .*: null_prompt \[6\] for \[5\]",
        ),
        (break_config(hidden=16), "weights do not fit this motion field"),
        (break_config(num_blocks=3), r"14 weights .*: blocks.2.conv1.bias missing for \[8\]"),
        (break_config(hidden=9), "config.json describes no motion field: hidden must be a multiple of 8"),
        (break_config(width=9), "config.json describes no motion field: .*unexpected keyword argument 'width'"),
        (break_config(lag="drop"), r"config.json must have the keys \[.*'lag'\], got"),
        (lambda folder: (folder / "config.json").write_text("[1"), "config.json describes no motion field"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "config.json describes no motion field"),
        (lambda folder: (folder / "config.json").unlink(), "config.json describes no motion field: .*No such file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors holds no motion field: .*No such"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors holds no motion"),
    ],
)
def test_load_refuses(spoil, message, tmp_path):
    small_field().save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        MotionField.load(tmp_path)


def test_foreign_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not the weights of a motion field: 'input_proj.weight' is missing"):
        MotionField.from_state_dict({"linear.weight": torch.zeros(2, 2)})
    state = small_field().state_dict()
    with pytest.raises(ValueError, match=r"1 weights .*: physical_global_proj.bias \[2\] for nothing"):
        MotionField.from_state_dict(state | {"physical_global_proj.bias": torch.zeros(2)})
    state.pop("blocks.1.gn2.bias")
    with pytest.raises(ValueError, match=r"1 weights .*: blocks.1.gn2.bias missing for \[8\]"):
        MotionField.from_state_dict({f"physical_lamo.{name}": weight for name, weight in state.items()})


# -- field loss --------------------------------------------------------------------------------------------------


FIELD_CASES = [(variant, case) for variant in VARIANTS for case in read("predictor.json")["results"][variant]]


@DTYPES
@pytest.mark.parametrize(("variant", "case"), FIELD_CASES)
def test_field_loss_is_golden(variant, case, dtype, schedule):
    io, numbers = read("predictor_io.safetensors"), read("predictor.json")["results"][variant]
    field = MotionField.load(GOLDEN / f"predictor_{variant}.safetensors").to(dtype)
    prompt = None if variant == "no_prompt" else io["prompt_pooled"].to(dtype)
    options = {"lag": 2} if case == "clean_lag2" else {}
    if case == "augmented":
        draws = {name: io[f"{variant}.aug.{name}"].unflatten(0, (2, 3)) for name in ("noise", "noise_mask", "noise_t")}
        sigmas = (1 - schedule["alphas_cumprod_2b"][draws["noise_t"]]).sqrt()
        options = {"noise": draws["noise"], "noise_mask": draws["noise_mask"], "sigmas": sigmas}
        if prompt is not None:
            options["prompt_keep"] = io[f"{variant}.aug.prompt_keep"].unflatten(0, (2, 3))
    loss, logs = field_loss(field, io["latents"].to(dtype), prompt, **options)
    assert (loss.shape, loss.dtype) == ((2,), dtype)
    assert_golden(loss.mean(), numbers[case]["loss"])
    assert_golden(logs["mse"].mean(), numbers[case]["lamo_mse_loss"])
    assert_golden(1 - logs["cosine"].mean(), numbers[case]["lamo_cos_loss"])
    if case != "clean_lag2":
        assert_golden(logs["length_ratio"].mean(), numbers[case]["lamo_norm_ratio"])
    if variant == "full" and case == "clean":
        loss.mean().backward()
        golden = read("predictor_full_grads.safetensors")
        gradients = {f"physical_lamo.{name}": weight.grad for name, weight in field.named_parameters()}
        assert gradients.pop("physical_lamo.null_prompt") is None
        assert gradients.keys() == golden.keys()
        for name, gradient in gradients.items():
            assert_golden(gradient, golden[name])


def test_field_loss_by_hand():
    # Frames of two numbers: changes (1, 1), (0, 2) of the first clip; the field says (1, 0) of any frame.
    latents = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 3.0]]).reshape(1, 3, 1, 1, 2)

    class Constant(nn.Module):
        def forward(self, shown, prompt=None, previous_change=None):
            return torch.tensor([1.0, 0.0]).expand_as(shown)

    loss, logs = field_loss(Constant(), latents, None, cosine_weight=0.5)
    assert logs["mse"].item() == pytest.approx((0 + 1 + 1 + 4) / 4)
    assert logs["cosine"].item() == pytest.approx((0.5**0.5 + 0) / 2)
    assert loss.item() == pytest.approx(1.5 + 0.5 * (1 - 0.5**0.5 / 2))
    assert logs["length_ratio"].item() == pytest.approx((0.5**0.5 + 0.5) / 2)
    assert logs["explained"].item() == pytest.approx(1 - 6 / 6)


def test_field_loss_of_perfection_and_of_no_change():
    latents = randn(2, 4, 3, 4, 4)

    class Knows(nn.Module):
        def forward(self, shown, prompt=None, previous_change=None):
            return latents[:, 2:] - latents[:, :-2]

    loss, logs = field_loss(Knows(), latents, None, lag=2)
    assert loss.abs().max() < 1e-6
    assert logs["explained"].tolist() == [1, 1]
    logs = field_loss(Zero(), latents, None)[1]
    assert logs["explained"].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert logs["cosine"].tolist() == [0, 0]
    static = latents[:, :1].expand_as(latents)
    assert field_loss(Zero(), static, None, cosine_weight=0)[0].tolist() == [0, 0]


def test_a_new_field_is_not_thrown_off_by_its_zero_prediction():
    torch.manual_seed(0)
    field = MotionField(channels=3, hidden=8, num_blocks=1, text_dim=5, cond_dim=4)
    loss, _ = field_loss(field, randn(2, 3, 3, 4, 4), randn(2, 5))
    loss.mean().backward()
    assert 1e-3 < field.output_proj.weight.grad.norm() < 10


def test_field_loss_reaches_the_field_alone():
    field = small_field()
    latents, prompt = randn(2, 3, 3, 4, 4).requires_grad_(), randn(2, 5).requires_grad_()
    draws = dict(noise=randn(2, 2, 3, 4, 4), noise_mask=torch.ones(2, 2, dtype=torch.bool))
    loss, _ = field_loss(
        field, latents, prompt, sigmas=torch.rand(2, 2).double(), prompt_keep=torch.ones(2, 2).double(), **draws
    )
    assert loss.dtype == torch.float32  # the schedule is float64
    loss.sum().backward()
    assert latents.grad is None
    assert prompt.grad is None
    assert field.prompt_proj.weight.grad.norm() > 0


def test_noise_is_on_what_is_shown_alone():
    latents, noise = randn(1, 4, 3, 4, 4), randn(1, 2, 3, 4, 4, seed=1)
    seen = {}

    class Looks(nn.Module):
        def forward(self, shown, prompt=None, previous_change=None):
            seen.update(shown=shown, change=previous_change)
            return torch.zeros_like(shown)

    mask, sigmas = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.8]]).double()
    field_loss(Looks(), latents, None, lag=2, noise=noise, noise_mask=mask, sigmas=sigmas, noise_scale=0.25)
    torch.testing.assert_close(seen["shown"], latents[:, :2] + torch.tensor([0, 0.2]).reshape(1, 2, 1, 1, 1) * noise)
    assert seen["shown"].dtype == torch.float32
    assert seen["change"][:, 0].abs().max() == 0
    torch.testing.assert_close(seen["change"][:, 1], latents[:, 1] - latents[:, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lag": 3}, "lag must be at least 1 and less than .*, got 3 for clips of 3 latent frames"),
        ({"lag": 0}, "lag must be at least 1"),
        ({"latents": torch.zeros(1, 1, 3, 2, 2)}, "got 1 for clips of 1 latent frames"),
        ({"noise": torch.zeros(1, 2, 3, 2, 2)}, "noise, noise_mask and sigmas go together"),
        ({"sigmas": torch.zeros(1, 2)}, "noise, noise_mask and sigmas go together"),
        (
            {"noise": torch.zeros(1, 3, 3, 2, 2), "noise_mask": torch.ones(1, 2), "sigmas": torch.ones(1, 2)},
            r"noise must be \[1, 2, 3, 2, 2\], got \[1, 3, 3, 2, 2\]",
        ),
        (
            {"noise": torch.zeros(1, 2, 3, 2, 2), "noise_mask": torch.ones(1, 2), "sigmas": torch.ones(2)},
            r"sigmas must be \[1, 2\], got \[2\]",
        ),
        ({"prompt_keep": torch.ones(2)}, r"prompt_keep must be \[1, 2\] and needs a prompt, got \[2\]"),
        ({"prompt_keep": torch.ones(1, 2), "prompt": None}, "prompt_keep .* needs a prompt, got no prompt"),
    ],
)
def test_field_loss_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        field_loss(small_field(), **{"latents": torch.zeros(1, 3, 3, 2, 2), "prompt": torch.zeros(1, 5)} | options)


# -- guidance ----------------------------------------------------------------------------------------------------

GUIDANCE_CASES = [name.removesuffix(".updated") for name in read("guidance.safetensors") if name.endswith(".updated")]


def converter(abar: torch.Tensor, noisy: torch.Tensor, prediction_type: str):
    """Output → x̂0, and the factor of the output in it."""
    signal, noise = (value.to(noisy.dtype).reshape(-1, 1, 1, 1, 1) for value in (abar.sqrt(), (1 - abar).sqrt()))
    if prediction_type == "v_prediction":
        return lambda output: signal * noisy - noise * output
    return lambda output: (noisy - noise * output) / signal


@DTYPES
@pytest.mark.parametrize("name", GUIDANCE_CASES)
def test_guidance_is_golden(name, dtype, schedule):
    golden, info = read("guidance.safetensors"), read("guidance.json")["cases"]
    case, variant, kind = name.split(".")
    reduction, lag = kind.removesuffix("_lag2"), 2 if kind.endswith("_lag2") else 1
    null = variant == "full_null_prompt"
    field = MotionField.load(GOLDEN / f"predictor_{'full' if null else variant}.safetensors").to(dtype)
    output = golden[f"{case}.noise_pred"].to(dtype)
    timesteps = torch.as_tensor(info[case]["timestep"])
    predict_clean = converter(
        schedule["alphas_cumprod_2b"][timesteps], golden[f"{case}.x_t"].to(dtype), info[case]["prediction_type"]
    )
    # The golden mean runs over the batch of two as well.
    scale = 15 / len(output) if reduction == "mean" else 15
    with torch.no_grad():  # as in a sampling loop
        updated, logs = guidance_update(
            output,
            field,
            None if null or variant == "no_prompt" else golden["prompt_pooled"],
            predict_clean=predict_clean,
            scale=scale,
            reduction=reduction,
            lag=lag,
        )
    assert (updated.dtype, updated.requires_grad) == (dtype, False)
    assert_golden(updated, golden[f"{name}.updated"])
    assert all(weight.grad is None for weight in field.parameters())
    if null:
        return
    assert_golden((output - updated) / 15, golden[f"{name}.grad"])
    numbers = info[case][f"{variant}.{kind}"]
    per_mean = numbers["n_elements"] if reduction == "sum" else 1
    assert_golden(logs["guidance_loss"].mean(), numbers["L_g"] / per_mean)
    if "rel_change" in numbers:
        step = logs["update_ratio"] * output.flatten(1).norm(dim=1)
        assert_golden(step.norm() / output.norm(), numbers["rel_change"])


def guided(output, scale, field=None, prompt=None, predict_clean=lambda output: -output, **options):
    field = field or small_field()
    return guidance_update(output, field, prompt, predict_clean=predict_clean, scale=scale, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "normalized"])
def test_a_clip_is_guided_the_same_in_any_batch(reduction):
    output, prompt = randn(3, 4, 3, 4, 4), randn(3, 5, seed=1)
    together, logs = guided(output, 0.5, prompt=prompt, reduction=reduction)
    for clip in range(3):
        alone, its_logs = guided(output[clip : clip + 1], 0.5, prompt=prompt[clip : clip + 1], reduction=reduction)
        torch.testing.assert_close(alone[0], together[clip], atol=1e-5, rtol=1e-5)
        for name, value in its_logs.items():
            torch.testing.assert_close(value[0], logs[name][clip], atol=1e-5, rtol=1e-5)


def test_guidance_by_hand():
    # Two frames of one number, x̂0 = 3·output, no change expected: L_g = (x̂0_0 − x̂0_1)² = 9 (1 − 3)² = 36,
    # its gradient 2 · 9 · (∓2) = (−36, 36).
    output = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1, 1)
    for reduction, step in (("mean", (-3.6, 3.6)), ("sum", (-3.6, 3.6)), ("normalized", (-(0.05**0.5), 0.05**0.5))):
        updated, logs = guidance_update(
            output, Zero(), None, predict_clean=lambda output: 3 * output, scale=0.1, reduction=reduction
        )
        assert logs["guidance_loss"].tolist() == [36]
        assert (output - updated).flatten().tolist() == pytest.approx(step)
        assert logs["update_ratio"].item() == pytest.approx((2 * step[0] ** 2 / 10) ** 0.5)
        assert logs["changed"].tolist() == [1]
    wide = output.expand(1, 2, 1, 2, 3)  # six such places: the mean gives each a sixth of the step of the sum
    for reduction, step in (("mean", 0.6), ("sum", 3.6)):
        updated, logs = guidance_update(
            wide, Zero(), None, predict_clean=lambda output: 3 * output, scale=0.1, reduction=reduction
        )
        assert (updated - wide)[0, 0].flatten().tolist() == pytest.approx([step] * 6)
        assert logs["guidance_loss"].tolist() == [36]


def test_guidance_follows_the_field():
    output, prompt = randn(2, 4, 3, 4, 4), randn(2, 5, seed=1)
    updated, before = guided(output, 0.01, prompt=prompt, reduction="normalized")
    assert before["update_ratio"].tolist() == pytest.approx([0.01, 0.01])
    after = guided(updated, 0.0, prompt=prompt)[1]
    assert (after["guidance_loss"] < before["guidance_loss"]).all()


def test_no_scale_gives_the_very_tensor():
    output = randn(2, 4, 3, 4, 4).bfloat16()
    same, logs = guided(output, 0.0)
    assert same is output
    assert logs["update_ratio"].tolist() == logs["changed"].tolist() == [0, 0]
    assert torch.equal(logs["guidance_loss"], guided(output, 1.0)[1]["guidance_loss"])


def test_no_gradient_no_normalized_step():
    still = torch.ones(1, 2, 1, 2, 2)
    updated, logs = guidance_update(
        still, Zero(), None, predict_clean=lambda output: output, scale=0.5, reduction="normalized"
    )
    assert torch.equal(updated, still)
    assert logs["update_ratio"].tolist() == logs["changed"].tolist() == [0]


def test_bfloat16_output_is_guided_in_float32_and_rounded_once():
    output, prompt = randn(2, 4, 3, 4, 4).bfloat16(), randn(2, 5, seed=1)
    updated, logs = guided(output, 1e-3, prompt=prompt)
    exact, exact_logs = guided(output.float(), 1e-3, prompt=prompt)
    assert updated.dtype == torch.bfloat16
    assert torch.equal(updated, exact.bfloat16())
    assert torch.equal(logs["update_ratio"], exact_logs["update_ratio"])
    assert logs["changed"].max() < 0.05 < 0.9 < exact_logs["changed"].min()  # what is lost, and that it is told
    assert exact_logs["guidance_loss"].dtype == torch.float32


def test_lag_is_that_of_the_field_unless_given():
    output = randn(1, 4, 3, 4, 4)
    default = guided(output, 1.0, field=small_field(lag=2))[0]
    assert torch.equal(default, guided(output, 1.0, field=small_field(), lag=2)[0])
    assert not torch.equal(default, guided(output, 1.0, field=small_field(), lag=1)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": torch.zeros(1, 4, 2, 4, 4)}, r"latents must be floating point \[B, F, 3, H, W\]"),
        ({"output": torch.zeros(1, 1, 3, 4, 4)}, "got 1 for clips of 1 latent frames"),
        ({"lag": 4}, "got 4 for clips of 4 latent frames"),
        ({"scale": -1.0}, "scale must be 0 or a positive number, got -1"),
        ({"scale": float("nan")}, "scale must be 0 or a positive number, got nan"),
        ({"reduction": "batch"}, "reduction must be mean, sum or normalized, got 'batch'"),
        ({"predict_clean": lambda output: output.detach()}, "must give a differentiable .* got one without a gradient"),
        ({"predict_clean": lambda output: output[:, 1:]}, r"must give .*\[1, 4, 3, 4, 4\], got \[1, 3, 3, 4, 4\]"),
    ],
)
def test_guidance_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        guided(**{"output": randn(1, 4, 3, 4, 4), "scale": 1.0} | options)


def test_guided_steps_are_golden():
    rows = read("guidance.json")["step_windows"]
    assert len(rows) == 72
    for row in rows:
        released = guided_steps(row["S"], row["rho"], reading="released")
        assert (released.start, len(released)) == (row["first_active_official"], row["n_active_official"])
        exact = guided_steps(row["S"], row["rho"])
        assert (exact.start, exact.stop) == (row["first_active_exact_floor"], row["S"])
    assert guided_steps(50, 0.8) == range(10, 50)
    assert guided_steps(50, 0.8, reading="released") == range(9, 50)
    for arguments in ((0, 0.8), (50, 1.1), (50, -0.1), (50, float("nan"))):
        with pytest.raises(ValueError, match="need num_steps of at least 1 and a ratio in"):
            guided_steps(*arguments)
    with pytest.raises(ValueError, match="reading must be exact or released, got 'ceil'"):
        guided_steps(50, 0.8, reading="ceil")


# -- heatmaps ----------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("lag", [1, 2])
def test_heatmaps_are_golden(lag, dtype):
    golden, numbers = read("heatmaps.safetensors"), read("heatmaps.json")[f"tau{lag}"]
    golden |= {name.removeprefix(f"tau{lag}."): value for name, value in golden.items()}
    field = MotionField.load(GOLDEN / "predictor_full.safetensors").to(dtype)
    latents, prompt = golden["latents"].to(dtype), golden["prompt_pooled"]
    heat, found = drift_map(latents, lag=lag)
    assert found["frames"].tolist() == [numbers["t_star"]]
    assert_golden(heat[0], golden["drift_heatmap"])
    assert_golden(found["drift_norms"][0], golden["drift_norms"])
    assert_golden(found["drift"][0], golden["drift_vector"])
    assert_golden(drift_map(latents, lag=lag, reading="norm")[0][0], golden["delta_norm"])
    assert_golden(display_map(heat, (64, 80))[0], golden["drift_heatmap_up8_normalised"])
    for reading in ("resid", "norm", "proj"):
        expected = field_map(field, latents, found["frames"], prompt, reading=reading)
        assert_golden(expected[0], golden[f"field_{reading}"])
        shown = torch.corrcoef(torch.stack([heat[0].flatten(), expected[0].flatten()]))[0, 1]
        assert shown.item() == pytest.approx(numbers[f"pearson_drift_field_{reading}"], abs=1e-5)


def test_drift_map_by_hand():
    # Two places, two channels: the change from frame 1 to 2 is the larger; it is (4, 0) and (0, 0), mean (2, 0).
    latents = torch.zeros(1, 3, 2, 1, 2)
    latents[0, 1, 1, 0, 0] = 1.0
    latents[0, 2, 1, 0, 0] = 1.0
    latents[0, 2, 0, 0, 0] = 4.0
    heat, found = drift_map(latents, lag=1)
    assert heat.tolist() == [[[4, 0]]]
    assert found["frames"].tolist() == [1]
    assert found["drift"].tolist() == [[2, 0]]
    assert found["drift_norms"].tolist() == [[0.5, 2]]
    assert drift_map(torch.ones(1, 3, 2, 1, 2))[0].tolist() == [[[0, 0]]]  # a still clip


@pytest.mark.parametrize("previous", [False, True])
def test_field_map_shows_each_clip_its_own_frame(previous):
    field, latents, prompt = small_field(previous=previous), randn(2, 4, 3, 4, 5), randn(2, 5, seed=1)
    maps = field_map(field, latents, torch.tensor([3, 1]), prompt, reading="norm")
    predicted = field(latents, prompt)
    torch.testing.assert_close(maps, torch.stack([predicted[0, 3].norm(dim=0), predicted[1, 1].norm(dim=0)]))
    still = latents[:, :1].expand_as(latents)
    assert field_map(field, still, torch.tensor([0, 2]), prompt).abs().max() < 1e-5  # nothing beyond any frame's


def test_display_map_spans_zero_to_one():
    maps = display_map(torch.stack([randn(4, 5), 7 + randn(4, 5, seed=1), torch.full((4, 5), 3.0)]), (8, 10))
    assert maps.shape == (3, 8, 10)
    assert maps.amin(dim=(1, 2)).tolist() == [0, 0, 0]
    assert maps.amax(dim=(1, 2)).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda latents: drift_map(latents, lag=3), "got 3 for clips of 3 latent frames"),
        (lambda latents: drift_map(latents, reading="resid"), "reading must be proj or norm, got 'resid'"),
        (lambda latents: field_map(small_field(), latents, torch.tensor([3])), r"must be \[1\] .* in 0..2, got \[3\]"),
        (lambda latents: field_map(small_field(), latents, torch.tensor([0, 1])), r"must be \[1\] .* got \[0, 1\]"),
        (
            lambda latents: field_map(small_field(), latents, torch.tensor([0]), reading="drift"),
            "reading must be resid, norm or proj, got 'drift'",
        ),
    ],
)
def test_heatmaps_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 3, 3, 2, 2))
