"""Each method of a recipe on a small real generator: its value by hand, where its gradient goes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file

from physcli.errors import UsageError
from physcli.methods import settings_class
from physcli.methods.grids import resample
from physcli.methods.lamo import drift_loss, drift_weight
from physcli.methods.moalign import soft_relational_loss
from physcli.methods.projector import Projector, from_videorepa
from physcli.methods.repa import repa_loss
from physcli.methods.tsa import tsa_loss
from physcli.methods.videorepa import trd_loss
from physcli.models.cogvideox import CogVideoX
from physcli.models.encoders.videomaev2 import VideoMAEv2
from physcli.models.generator import Conditioning, denoising_loss
from physcli.recipe import TeacherView
from physcli.tasks.training.alignment import Pass, build_method
from physcli.tasks.training.signals import look

GOLDEN = Path(__file__).parents[2] / "golden"
GRID = (3, 4, 4)  # of the generator's tokens; the first frame has no partner
SHAPE = (2, 4, 4, 12)  # of the teacher's
METHODS = {
    "repa": {"name": "repa"},
    "videorepa": {"name": "videorepa"},
    "tsa": {"name": "tsa"},
    "m-tsa": {"name": "tsa", "queries": "salient"},
    "moalign": {"name": "moalign", "motion_projector": "none"},
}
# Other than the defaults, so that options which get lost are seen.
OPTIONS = {
    "repa": (repa_loss, {}),
    "videorepa": (trd_loss, {"margin": 0.02, "reading": "paper", "below": "zero", "part": "temporal"}),
    "tsa": (tsa_loss, {"temperature": 0.4, "own_frame": False}),
    "m-tsa": (tsa_loss, {"temperature": 0.3}),
    "moalign": (soft_relational_loss, {"tau": 0.7, "reduction": "sum"}),
}


def settings_of(name, **changes):
    own = METHODS.get(name, {"name": name})
    teacher = {"teacher": "none", "projector": {"hidden_dim": 8}} if name in METHODS else {}
    return settings_class(own["name"]).model_validate(teacher | own | changes)


@pytest.fixture
def generator(small_generator):
    """Five blocks, on 9 frames of 32×32 pixels; its weights are wanted."""
    made = small_generator(num_layers=5, sample_height=8, sample_width=8)
    made.transformer.requires_grad_(True)
    return made


@pytest.fixture
def build(generator):
    def make(name, *, seed=0, grid=GRID, shape=SHAPE, **changes):
        settings = settings_of(name, **changes)
        return build_method(settings, generator, student_grid=grid, teacher_shape=shape, seed=seed)

    return make


@pytest.fixture
def step(generator):
    """`step(method)`: the generator's own loss of two clips, and what the method is shown."""

    def go(method, *, shape=SHAPE, clips=slice(None)):
        draw = torch.Generator().manual_seed(1)
        latents, noise = torch.randn(2, 2, 3, 4, 8, 8, generator=draw).unbind()
        embeds, timesteps = torch.randn(2, 32, 16, generator=draw), torch.tensor([300, 700])
        teacher = torch.randn(2, *shape, generator=draw)
        salient = torch.rand(2, *shape[:3], generator=draw) < 0.3
        latents, noise, embeds, timesteps = (each[clips] for each in (latents, noise, embeds, timesteps))
        level, told = generator.noise.of_time(timesteps), Conditioning({"text": embeds})
        loss, denoised = denoising_loss(generator, latents, noise, level, told, taps=method.taps)
        noisy = generator.noise.add_noise(latents, noise, level)
        seen = Pass(
            denoised.features,
            clean=latents.requires_grad_(),
            predicted_clean=generator.noise.clean(denoised.output, noisy, level),
            level=level,
            signals={"teacher": teacher[clips].requires_grad_(), "saliency": salient[clips].byte()},
        )
        return loss, seen

    return go


def sizes(module):
    """The largest gradient of each parameter, 0 without one."""
    return {
        name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in module.named_parameters(prefix="x")
    }


# -- values and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_the_methods_own(build, step, name):
    function, options = OPTIONS[name]
    method = build(name, taps=[1], **options)
    _, seen = step(method)
    loss, logs = method(seen)
    student = method.projectors["1"](seen.features[1])
    if name == "m-tsa":
        options = options | {"queries": seen.signals["saliency"].bool()}
        assert logs["salient"].tolist() == seen.signals["saliency"].float().mean((1, 2, 3)).tolist()
    torch.testing.assert_close(loss, function(student, seen.signals["teacher"], **options), rtol=1e-6, atol=1e-7)
    assert method.needs == (("teacher", "saliency") if name == "m-tsa" else ("teacher",))
    torch.testing.assert_close(logs["cosine"], -repa_loss(student, seen.signals["teacher"]))
    assert loss.shape == (2,)
    for clip in range(2):  # no clip's loss depends on the others
        alone = method(step(method, clips=slice(clip, clip + 1))[1])[0]
        torch.testing.assert_close(alone, loss[clip : clip + 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tap", [0, 2, 4])
def test_gradients_reach_the_tap_and_no_further(build, step, generator, name, tap):
    method = build(name, taps=[tap])
    _, seen = step(method)
    loss, _ = method(seen)
    loss.mean().backward()
    assert torch.isfinite(loss).all()
    for number, block in enumerate(generator.transformer.transformer_blocks):
        reached = max(sizes(block).values())
        assert reached > 1e-8 if number <= tap else reached == 0
    assert max(sizes(generator.transformer.patch_embed).values()) > 1e-8
    assert max(sizes(generator.transformer.proj_out).values()) == 0
    assert min(sizes(method.projectors).values()) > 0  # every weight and bias
    assert seen.signals["teacher"].grad is None


@pytest.mark.parametrize("name", METHODS)
def test_several_taps_are_averaged(build, step, name):
    method = build(name, taps=[3, 1])
    _, seen = step(method)
    options = {"queries": seen.signals["saliency"].bool()} if name == "m-tsa" else {}
    students = {tap: method.projectors[str(tap)](seen.features[tap]) for tap in (1, 3)}
    each = [OPTIONS[name][0](student, seen.signals["teacher"], **options) for student in students.values()]
    assert (each[0] - each[1]).abs().max() > 1e-4
    loss, logs = method(seen)
    torch.testing.assert_close(loss, (each[0] + each[1]) / 2, rtol=1e-5, atol=1e-7)
    cosines = [-repa_loss(student, seen.signals["teacher"]) for student in students.values()]
    torch.testing.assert_close(logs["cosine"], (cosines[0] + cosines[1]) / 2)


@pytest.mark.parametrize("grid", [(2, 2, 2), (2, 8, 8), (2, 3, 5), (4, 4, 4), (3, 4, 4), (5, 2, 8)], ids=str)
@pytest.mark.parametrize("kind", ["conv2d", "conv3d", "interpolate", "teacher"])
def test_grids_that_differ(build, step, generator, grid, kind):
    shape = (*grid, 12)
    if kind == "teacher":
        method = build("tsa", shape=shape, interpolate="teacher")
    else:
        method = build("tsa", shape=shape, projector={"hidden_dim": 8, "resample": kind})
    _, seen = step(method, shape=shape)
    (tap,) = method.taps
    student, teacher = method.projectors[str(tap)](seen.features[tap]), seen.signals["teacher"]
    if kind == "teacher":
        teacher = resample(teacher, (2, 4, 4))
    assert student.shape == teacher.shape
    loss, _ = method(seen)
    torch.testing.assert_close(loss, tsa_loss(student, teacher), rtol=1e-5, atol=1e-7)
    loss.mean().backward()
    assert min(sizes(method.projectors).values()) > 0
    assert max(sizes(generator.transformer.transformer_blocks[tap]).values()) > 1e-8


@pytest.mark.parametrize("drop_first", [True, False])
@pytest.mark.parametrize("interpolate", ["student", "teacher"])
def test_the_first_frame(build, step, drop_first, interpolate):
    """What the latent frame of the first picture holds counts only where it is not dropped."""
    method = build("videorepa", drop_first=drop_first, interpolate=interpolate)
    _, seen = step(method)
    before = method(seen)[0]
    (tap,) = method.taps
    seen.features[tap] = torch.cat([torch.randn(2, 1, 4, 4, 32), seen.features[tap][:, 1:]], dim=1)
    assert torch.equal(method(seen)[0], before) == drop_first


@pytest.mark.parametrize("name", ["videorepa", "tsa", "m-tsa", "moalign"])
@pytest.mark.parametrize("interpolate", ["student", "teacher"])
def test_without_a_projector(build, step, generator, name, interpolate):
    """Relations need no common width: 32 of the generator, 12 of the teacher."""
    bare = {"num_layers": 0, "resample": "interpolate"}
    method = build(name, taps=[1], projector=bare, interpolate=interpolate)
    assert list(method.parameters()) == []
    _, seen = step(method)
    loss, logs = method(seen)
    options = {"queries": seen.signals["saliency"].bool()} if name == "m-tsa" else {}
    by_hand = OPTIONS[name][0](seen.features[1][:, 1:], seen.signals["teacher"], **options)
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-7)
    assert "cosine" not in logs
    loss.mean().backward()
    assert max(sizes(generator.transformer.transformer_blocks[1]).values()) > 1e-8


def test_without_layers_a_convolution_still_changes_the_width(build, step):
    method = build("repa", taps=[1], projector={"num_layers": 0, "resample": "conv2d"})
    assert {name.split(".")[-1]: list(p.shape) for name, p in method.named_parameters()} == {
        "weight": [12, 32, 1, 1],
        "bias": [12],
    }
    assert torch.isfinite(method(step(method)[1])[0]).all()


def test_weight_zero_changes_nothing(build, step, generator):
    """λ = 0: the same gradients as without the method, though its loss is still measured."""
    method = build("videorepa", weight=0)
    assert method.weight == 0
    loss, seen = step(method)
    extra, _ = method(seen)
    assert (extra > 0).all()
    parameters = [p for p in generator.transformer.parameters() if p.requires_grad]
    both = torch.autograd.grad((loss + method.weight * extra).mean(), parameters, retain_graph=True)
    alone = torch.autograd.grad(loss.mean(), parameters)
    assert all(torch.equal(one, other) for one, other in zip(both, alone, strict=True))


@pytest.mark.parametrize("reading", ["released", "abar", "none"])
@pytest.mark.parametrize("per_sample", [True, False])
def test_lamo(build, step, generator, reading, per_sample):
    method = build("lamo", weight=0.3, lag=1, reading="ratio_of_sums", noise_weight=reading, per_sample=per_sample)
    assert (method.weight, method.taps, method.needs) == (0.3, (), ())
    _, seen = step(method)
    loss, logs = method(seen)
    expected, _ = drift_loss(seen.clean, seen.predicted_clean, lag=1, reading="ratio_of_sums")
    if reading != "none":
        weights = drift_weight(
            seen.level.time.double() / 1000, seen.level.signal, seen.level.sigma, reading=reading, per_sample=per_sample
        )
        assert (weights[0] != weights[1]) == per_sample
        torch.testing.assert_close(logs["noise_weight"], weights)
        expected = weights * expected
    torch.testing.assert_close(loss, expected)
    assert logs.keys() >= {"at_floor", "drift", "predicted_drift"}
    loss.mean().backward()
    for block in generator.transformer.transformer_blocks:
        assert max(sizes(block).values()) > 1e-8
    assert min(sizes(generator.transformer.proj_out).values()) > 0
    assert seen.clean.grad is None


def test_sft_is_no_method(build):
    assert build("sft", shape=None) is None


# -- what is built -----------------------------------------------------------------------------------------------


def test_the_default_tap_and_the_weight(build):
    method = build("videorepa", weight=0.25)
    assert (method.taps, method.weight) == ((2,), 0.25)  # round(0.6·5) − 1
    assert method.projectors["2"].config == {
        "in_dim": 32,
        "out_dim": 12,
        "student_grid": GRID,
        "teacher_grid": SHAPE[:3],
        "hidden_dim": 8,
        "num_layers": 3,
        "drop_first": True,
        "resample": "conv2d",
    }


def test_projectors_depend_on_the_seed_alone(build):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = build("repa", seed=3, taps=[0, 1]).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    same, other = build("moalign", seed=3, taps=[0, 1]).state_dict(), build("repa", seed=4, taps=[0, 1]).state_dict()
    assert one.keys() == same.keys()
    assert all(torch.equal(same[name], value) for name, value in one.items())
    assert not any(torch.equal(other[name], value) for name, value in one.items())
    assert not torch.equal(one["projectors.0.mlp.0.weight"], one["projectors.1.mlp.0.weight"])


@pytest.mark.parametrize("taps", [[1], [1, 3]])
def test_what_is_saved(build, step, tmp_path, taps):
    method = build("tsa", taps=taps)
    method.save(tmp_path)
    folders = {1: tmp_path} if taps == [1] else {tap: tmp_path / f"projector-block-{tap}" for tap in taps}
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {folder / "projector.safetensors" for folder in folders.values()}
    _, seen = step(method)
    for tap, folder in folders.items():
        again = Projector.load(folder)
        assert torch.equal(again(seen.features[tap]), method.projectors[str(tap)](seen.features[tap]))


def test_lamo_saves_nothing(build, tmp_path):
    build("lamo").save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("repa", {"projector": {"num_layers": 0, "resample": "interpolate"}}, "features of 32 and 12 dimensions"),
        ("m-tsa", {"shape": (2, 2, 2, 12), "interpolate": "teacher"}, "method.queries=salient"),
        ("lamo", {"lag": 3}, r"method\.lag is 3, and a clip has 3 latent frames"),
    ],
)
def test_settings_that_do_not_fit(build, name, changes, message):
    with pytest.raises(UsageError, match=message):
        build(name, **changes)


# -- VideoREPA's own training step -------------------------------------------------------------------------------


def test_one_whole_step_is_videorepas():
    """Network, teacher, head, noising and both losses against the released code's `compute_loss`."""
    info = json.loads((GOLDEN / "cogvideox_objective" / "end_to_end.json").read_text())
    case = load_file(GOLDEN / "cogvideox_objective" / "end_to_end_case.safetensors")
    weights = load_file(GOLDEN / "cogvideox_objective" / "end_to_end_weights.safetensors")
    transformer = CogVideoXTransformer3DModel(**info["transformer_config"]).eval()
    generator = CogVideoX(
        CogVideoXPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=transformer,
            scheduler=CogVideoXDPMScheduler(**info["scheduler_config"]),
        ),
        name="golden",
    )
    head = ("projectors.", "downsampler_")
    transformer.load_state_dict({k: v for k, v in weights.items() if not k.startswith(head)})

    # Pixels are −1 to 1 there, 0 to 1 here; each is three wide and high, and the teacher sees them smaller by that.
    frames = (case["frames_u8"].transpose(1, 2).float() / 256).repeat_interleave(3, 3).repeat_interleave(3, 4)
    encoder = VideoMAEv2.from_pretrained(GOLDEN / "encoders" / "videomaev2")
    with torch.no_grad():
        teacher = look(encoder, frames, TeacherView(size=(32, 48)))
    assert teacher.shape == (1, 12, 2, 3, 48)
    torch.testing.assert_close(teacher.flatten(1, 3), case["encoder_tokens"], rtol=0, atol=5e-4)

    latents, noise, timesteps = case["latents_bcfhw"].transpose(1, 2), case["noise_bfchw"], case["timesteps"]
    method = build_method(
        settings_of(
            "videorepa",
            taps=[info["align_layer"] - 1],  # counted from 1 there
            margin=info["margin"],
            weight=info["coefficient"],
            projector={"hidden_dim": info["projector_dim"]},
        ),
        generator,
        student_grid=(7, 6, 9),
        teacher_shape=teacher.shape[1:],
        seed=0,
    )
    (projector,) = method.projectors.values()
    projector.load_state_dict(from_videorepa(weights))

    level, told = generator.noise.of_time(timesteps), Conditioning({"text": case["prompt_embeds"]})
    diffusion, denoised = denoising_loss(generator, latents, noise, level, told, taps=method.taps)
    noisy = generator.noise.add_noise(latents, noise, level)
    seen = Pass(
        denoised.features,
        clean=latents,
        predicted_clean=generator.noise.clean(denoised.output, noisy, level),
        level=level,
        signals={"teacher": teacher},
    )
    trd, _ = method(seen)
    total = diffusion + method.weight * trd
    values = {"diffusion": diffusion.item(), "trd": trd.item(), "total": total.item()}
    assert values == pytest.approx(info["loss"], rel=2e-5)

    their_name = from_videorepa({name: name for name in weights})
    named = dict(transformer.named_parameters())
    named |= {their_name[name]: parameter for name, parameter in projector.named_parameters()}
    parts = {
        "patch_embed": ["patch_embed."],
        "time_embedding": ["time_embedding."],
        **{f"transformer_blocks.{n}": [f"transformer_blocks.{n}."] for n in range(3)},
        "norm_final+norm_out+proj_out": ["norm_final.", "norm_out.", "proj_out."],
        "projectors": ["projectors."],
        "downsampler_cogvideo_output": ["downsampler_cogvideo_output."],
    }
    assert parts.keys() == info["grad_norms"].keys()
    gradients = {}
    for loss, value in (("diffusion", diffusion), ("trd", trd), ("total", total)):
        found = torch.autograd.grad(value, list(named.values()), retain_graph=True, allow_unused=True)
        gradients[loss] = dict(zip(named, found, strict=True))
    for part, prefixes in parts.items():
        for loss, norm in info["grad_norms"][part].items():
            some = [g for name, g in gradients[loss].items() if name.startswith(tuple(prefixes)) and g is not None]
            size = float(torch.stack([g.norm() for g in some]).norm()) if some else 0.0
            assert size == pytest.approx(norm, rel=1e-3), (part, loss)
    compared = 0
    for name, expected in case.items():
        if name.startswith("grad_total."):
            gradient = gradients["total"][name.removeprefix("grad_total.")]
            assert (gradient - expected).norm() <= 1e-3 * expected.norm(), name
            compared += 1
    assert compared == 11
