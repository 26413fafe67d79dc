"""`finetune` with every method, on models of a few thousand weights: results, LoRA, freezing, resuming."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import stat
from functools import partial

import pytest
import torch
from diffusers import CogVideoXPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from physcli.data.video import resize
from physcli.errors import DataError, ModelError, PhyscliError, UsageError
from physcli.files import new_file_mode
from physcli.methods.grids import resample
from physcli.methods.lamo import MotionField, drift_loss, drift_weight
from physcli.methods.moalign import MotionProjector, soft_relational_loss
from physcli.methods.projector import Projector
from physcli.methods.repa import repa_loss
from physcli.methods.tsa import motion_saliency, tsa_loss
from physcli.methods.videorepa import trd_loss
from physcli.models import BUILT_IN, LORA_FILE
from physcli.models.cogvideox import CogVideoX
from physcli.models.generator import Conditioning
from physcli.models.loading import load
from physcli.models.names import fingerprint, resolve
from physcli.models.noise import VPrediction
from physcli.recipe import (
    Alignment,
    LaMo,
    LayerSync,
    MoAlign,
    ProjectorSettings,
    Repa,
    Tsa,
    VideoRepa,
    list_recipes,
    read_recipe,
)
from physcli.tasks import finetune as task
from physcli.tasks.features import to_tensor
from physcli.tasks.training import build
from physcli.tasks.training.alignment import MotionDrift, Pass, TeacherAlignment
from physcli.tasks.training.clips import noise_of, rng_of
from physcli.tasks.training.request import FinetuneRequest
from physcli.tasks.training.signals import teacher_of

pytestmark = pytest.mark.usefixtures("no_pictures")

RECIPES = [name for name in list_recipes() if "pretrain/" not in name and read_recipe(name).model in BUILT_IN]
LORA = ("lora.rank=2", "lora.alpha=6", "train.optimizer.lr=0.02")
EXACT = ("train.mixed_precision=no",)


def finetune(recipe_name, *, resume=None, reporter=None, **given):
    return task.finetune(FinetuneRequest(recipe_name, **given), resume=resume, reporter=reporter)


@pytest.fixture(scope="session")
def simulated(few):
    return few


@pytest.fixture(scope="session")
def teacher(encoder_folder):
    return encoder_folder("teacher", 0)


@pytest.fixture(scope="session")
def small(base, teacher, simulated, session_cache, tmp_path_factory):
    """`small("repa", "key=value", …)`: the arguments that make a packaged recipe a run of milliseconds a step."""
    motion = tmp_path_factory.mktemp("motion") / "run"

    def arguments(name, *overrides):
        recipe = read_recipe(name)
        changes = ["data.limit=4", "train.batch_size=2", "train.schedule.warmup_steps=0"]
        method = getattr(recipe, "method", None)
        if recipe.trains == "generator":
            changes.append("objective.samples=0")
        if isinstance(method, Alignment):
            changes += [f"method.teacher={teacher}", "method.projector.hidden_dim=20"]
        if isinstance(method, LayerSync):
            changes.append("method.pairs=[[0, 1]]")  # of two blocks
        if isinstance(method, MoAlign):
            if not motion.exists():
                finetune(**arguments("moalign-motion"), out=motion)
            changes.append(f"method.motion_projector={motion}")
        return {
            "recipe_name": name,
            "overrides": (*changes, *overrides),
            "model": str(teacher if recipe.trains == "motion-projector" else base),
            "data": str(simulated),
            "steps": 2,
            "device": "cpu",
            "cache_dir": session_cache,
        }

    return arguments


@pytest.fixture
def run(small, tmp_path):
    """`run("repa", "out", "key=value", …, steps=1)`: a run in tmp_path / out."""

    def go(name, out, *overrides, **options):
        return finetune(**small(name, *overrides) | {"out": tmp_path / out} | options)

    return go


@pytest.fixture(scope="session")
def made(small, tmp_path_factory):
    """Recipe → its run of two steps, made once."""
    done = {}

    def get(name):
        if name not in done:
            done[name] = finetune(**small(name), out=tmp_path_factory.mktemp("made") / name)
        return done[name]

    return get


@pytest.fixture
def trainees(monkeypatch):
    """What was trained, as it was when it was written."""
    kept, real = [], task._export

    def export(trainee, *arguments, **options):
        kept.append(trainee.eval())
        return real(trainee, *arguments, **options)

    monkeypatch.setattr(task, "_export", export)
    return kept


def log_of(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def untimed(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights_of(folder):
    return {
        f"{path.relative_to(folder)}: {name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if tolerance and name.endswith("norm_k.bias"):
            continue  # its gradient is rounding noise, of which AdamW makes whole steps
        torch.testing.assert_close(value, other[name], rtol=0, atol=tolerance, msg=name)


def denoised(generator):
    """What a generator's transformer makes of a fixed input."""
    noise = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        level = generator.noise.of_time(torch.tensor([100, 900]))
        latents, text = noise(2, 5, 4, 4, 4), noise(2, 32, 16)
        return generator.denoise(latents, level, Conditioning({"text": text})).output


# -- every recipe ------------------------------------------------------------------------------------------------


def test_the_recipes_of_the_embedded_default():
    assert set(RECIPES) >= {
        *(
            "sft",
            "repa",
            "irepa",
            "crepa",
            "videorepa",
            "tsa",
            "m-tsa",
            "moalign",
            "lamo",
            "layersync",
            "motif",
            "critic",
            "videojam",
        ),
        *("moalign-motion", "lamo-field"),
    }


# Those that learn from clips; those that learn from videos of their own are tested elsewhere.
ALIGNED = [name for name in RECIPES if read_recipe(name).trains == "generator" and name not in ("nft", "raft")]


@pytest.mark.parametrize("name", ALIGNED)
def test_a_generator_recipe(made, base, name):
    done, method = made(name), read_recipe(name).method
    aligned = isinstance(method, Alignment)
    assert {path.name for path in done.path.iterdir()} == {
        *("run.json", "recipe.yaml", "steps.jsonl", "metrics.json", "validation.json", "samples", "checkpoint-2"),
        *(("model", "projector.safetensors") if aligned else ("model",)),
    }
    assert done.model == done.path / "model"

    first, second = log_of(done.path)
    assert all(math.isfinite(value) for row in (first, second) for value in row.values())
    assert first.get("denoising", first["loss"]) == made("sft").steps[0]["loss"]  # the same clips, noise and captions
    if method.name == "sft":
        assert not {"denoising", "gradient_ratio", "gradient_cosine"} & first.keys()
    else:
        for row in (first, second):
            assert row["loss"] == pytest.approx(row["denoising"] + method.weight * row[method.name], rel=1e-6)
        assert first.keys() - second.keys() == {"gradient_ratio", "gradient_cosine"}
        assert -1 <= first["gradient_cosine"] <= 1
        assert first["gradient_ratio"] > 0
    if aligned:
        teacher_dim = 16 if name == "moalign" else 24
        bare = method.projector.num_layers == 0 and method.projector.resample == "interpolate"
        # Without a projector features keep their width, and have no cosine with the teacher's.
        assert ("cosine" in first, "cosine" in second) == (not bare, not bare)
        assert -1 <= first.get("cosine", 0) <= 1
        assert Projector.load(done.path).config == method.projector.model_dump() | {
            **{"in_dim": 32, "hidden_dim": 20, "out_dim": 32 if bare else teacher_dim, "drop_first": True},
            **{"student_grid": (5, 2, 2), "teacher_grid": (4, 2, 2)},
        }

    before, after = weights_of(base), weights_of(done.model)
    assert before.keys() == after.keys()
    trained = done.model / "transformer" / "diffusion_pytorch_model.safetensors"
    assert stat.S_IMODE(trained.stat().st_mode) == new_file_mode()  # others may read it where they may read the rest
    unchanged = {weight for weight in before if torch.equal(before[weight], after[weight])}
    assert unchanged >= {weight for weight in before if not weight.startswith("transformer/")}
    assert not any("to_q" in weight or "proj_out" in weight for weight in unchanged)
    ours = load(str(done.path), device="cpu")
    assert (ours.kind, ours.random_init) == ("generator", False)
    same(ours.transformer.state_dict(), CogVideoXPipeline.from_pretrained(done.model).transformer.state_dict())
    card = (done.model / "README.md").read_text()
    assert (f"times the loss of {method.name}" in card) == (method.name != "sft")


def test_the_motion_projector_recipe(made, teacher):
    done = made("moalign-motion")
    assert done.model == done.path / "motion_projector"
    projector = MotionProjector.load(done.model)
    assert (projector.config["in_dim"], projector.config["dim"]) == (24, 16)
    assert (projector.info["encoder"], projector.info["flow"]) == (str(teacher), "exact")
    assert projector.info["encoder_weights"] == fingerprint(resolve(str(teacher)))
    assert all(row["loss"] > 0 and row["no_motion"] > 0 for row in log_of(done.path))
    assert [row["metric"] for row in done.rows] == ["flow_l1_px", "explained"]
    assert "MotionProjector.load" in (done.model / "README.md").read_text()


def test_the_motion_field_recipe(made, base):
    done = made("lamo-field")
    assert done.model == done.path / "motion_field"
    config = MotionField.load(done.model).config
    vae = json.loads((base / "vae" / "config.json").read_text())
    assert {key: config[key] for key in ("channels", "text_dim", "hidden", "lag", "scaling_factor")} == {
        **{"channels": 4, "text_dim": 16, "hidden": 48, "lag": 1, "scaling_factor": vae["scaling_factor"]}
    }
    first, second = log_of(done.path)
    assert first["explained"] == 0  # a new field predicts no change
    assert second["explained"] != 0
    assert [row["metric"] for row in done.rows] == ["explained"]


FIELD = ("method.field.hidden=16", "method.field.num_blocks=1", "method.field.cond_dim=8")


def test_a_field_beside_the_generator(made, run):
    """It learns, and the generator is to the bit what it is without it."""
    alone = run("lamo", "alone", *EXACT)
    done = run("lamo", "joint", *EXACT, *FIELD)
    same(weights_of(alone.model), weights_of(done.model))
    for row, without in zip(log_of(done.path), log_of(alone.path), strict=True):
        assert row["grad_norm"] == without["grad_norm"]
        assert row["loss"] == pytest.approx(without["loss"] + row["field_loss"], rel=1e-6)
    first, second = log_of(done.path)
    assert first["field_explained"] == 0
    assert [row["lr"] for row in done.steps] == [row["lr"] for row in alone.steps]
    assert second["field_explained"] != 0
    config = MotionField.load(done.path / "motion_field").config
    assert (config["hidden"], config["channels"], config["text_dim"]) == (16, 4, 16)


def test_the_field_s_own_rate(run):
    """AdamW's first step moves a weight by the rate, whatever the gradient."""
    done = run("lamo", "out", *EXACT, *FIELD, "method.field.lr=0.03", "train.optimizer.lr=1e-9", steps=1)
    moved = MotionField.load(done.path / "motion_field").output_proj.bias.detach()  # from zero
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.03), rtol=1e-4, atol=0)


def test_samples_and_their_guidance_scale(run, trainees):
    done = run("sft", "out", "objective.samples=1", "objective.guidance_scale=1.5", steps=1)
    assert (done.path / "samples" / "step-000001" / "samples.png").exists()
    assert {row["metric"]: row["n"] for row in done.rows}["objects_right"] == 1
    assert trainees[0].generator.guidance_scale == 1.5
    assert json.loads((done.model / "physcli.json").read_text()) == {"guidance_scale": 1.5}
    assert load(str(done.path), device="cpu").guidance_scale == 1.5


def test_finished_is_finished(run):
    changes = (*LORA, *EXACT)
    done = run("lamo", "out", *changes, steps=1)
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    again = run("lamo", "out", *changes, steps=1, resume="latest")
    assert (again.model, again.rows) == (done.model, json.loads((done.path / "metrics.json").read_text()))
    assert {path: path.stat().st_mtime_ns for path in done.path.rglob("*")} == before


# -- what a method sees, and its loss ----------------------------------------------------------------------------


def test_what_a_method_sees(run, trainees, base, teacher):
    """Every signal of a batch computed once more from the clips, and the loss from it."""
    run("m-tsa", "out", *EXACT, steps=1)
    [trainee] = trainees
    batch = trainee.batch(range(2), 0)
    generator, encoder = load(str(base), device="cpu"), load(str(teacher), device="cpu")
    for sample in range(2):
        view = trainee._windows.draw(sample, rng_of(0, "sample", sample))
        whole = view.clip.read(view.frames)
        tokens = encoder.encode(to_tensor([whole[1:]]))[0]
        torch.testing.assert_close(batch["teacher"][sample].float(), tokens, rtol=2e-3, atol=2e-3)  # kept in half
        pixels = to_tensor([resize(whole, 16, 16)])
        moving = motion_saliency(pixels[:, 1:], tubelet=(4, 8, 8), share=0.2, ties="positive")[0]
        assert moving.any()
        assert torch.equal(batch["saliency"][sample].bool(), moving)
        mean, std = generator.codec.encode_posterior(pixels)[0].half().float()
        latents = mean + std * noise_of(0, "posterior", sample, shape=mean.shape)
        torch.testing.assert_close(batch["latents"][sample], latents, rtol=2e-3, atol=2e-3)
    level = trainee.generator.noise.of_time(batch["time"])
    noisy = trainee.generator.noise.add_noise(batch["latents"], batch["noise"], level)
    seen = trainee.generator.denoise(noisy, level, Conditioning({"text": batch["told_text"]}), taps=[0])
    projected = trainee.method.projectors["0"](seen.features[0])
    expected = tsa_loss(projected, batch["teacher"].float(), temperature=0.1, queries=batch["saliency"].bool())
    torch.testing.assert_close(trainee(batch)[1]["tsa"], expected.detach())


TEACHER = {"teacher": "t"}


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        (Repa(name="repa", **TEACHER), repa_loss),
        (
            VideoRepa(name="videorepa", margin=0.02, reading="paper", below="zero", part="temporal", **TEACHER),
            partial(trd_loss, margin=0.02, reading="paper", below="zero", part="temporal"),
        ),
        (
            Tsa(name="tsa", temperature=0.3, own_frame=False, **TEACHER),
            partial(tsa_loss, temperature=0.3, own_frame=False),
        ),
        (Tsa(name="tsa", queries="salient", **TEACHER), "salient"),
        (
            MoAlign(name="moalign", tau=3.0, reduction="sum", motion_projector="m", **TEACHER),
            partial(soft_relational_loss, tau=3.0, reduction="sum"),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_recipe_s_settings_reach_the_paper_s_loss(settings, loss):
    """Of two taps the mean; projectors depend on the seed alone."""
    noise = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    features = {tap: noise(2, 5, 2, 2, 8) for tap in (1, 3)}
    signals = {"teacher": noise(2, 4, 2, 2, 6).half(), "saliency": (noise(2, 4, 2, 2) > 0).byte()}
    sizes = {"taps": (1, 3), "student_dim": 8, "student_grid": (5, 2, 2), "teacher_shape": (4, 2, 2, 6), "seed": 3}
    alignment = TeacherAlignment(settings, **sizes)
    torch.rand(1)
    same(alignment.state_dict(), TeacherAlignment(settings, **sizes).state_dict())
    seen = Pass(features, clean=None, predicted_clean=None, level=None, signals=signals)
    got, logs = alignment(seen)
    if loss == "salient":
        assert set(alignment.needs) == {"teacher", "saliency"}
        loss = partial(tsa_loss, queries=signals["saliency"].bool())
        torch.testing.assert_close(logs["salient"], signals["saliency"].float().mean(dim=(1, 2, 3)))
    projected = [alignment.projectors[str(tap)](features[tap]) for tap in (1, 3)]
    expected = [loss(one, signals["teacher"].float()) for one in projected]
    assert not torch.equal(*expected)
    torch.testing.assert_close(got, sum(expected) / 2)
    cosines = [
        torch.cosine_similarity(one, signals["teacher"].float(), dim=-1).mean(dim=(1, 2, 3)) for one in projected
    ]
    torch.testing.assert_close(logs["cosine"], (sum(cosines) / 2).detach())


def test_the_teacher_brought_to_the_student():
    settings = VideoRepa(name="videorepa", interpolate="teacher", **TEACHER)
    student, teacher = torch.randn(2, 5, 2, 2, 8), torch.randn(2, 8, 4, 4, 6)
    sizes = {"taps": (0,), "student_dim": 8, "student_grid": (5, 2, 2), "seed": 0}
    alignment = TeacherAlignment(settings, teacher_shape=(8, 4, 4, 6), **sizes)
    got = alignment(Pass({0: student}, None, None, None, {"teacher": teacher}))[0]
    projected = alignment.projectors["0"].mlp(student[:, 1:])
    torch.testing.assert_close(got, trd_loss(projected, resample(teacher, (4, 2, 2))))
    salient = Tsa(name="tsa", interpolate="teacher", queries="salient", **TEACHER)
    with pytest.raises(UsageError, match=r"method\.interpolate=teacher with method\.queries=salient"):
        TeacherAlignment(salient, teacher_shape=(8, 4, 4, 6), **sizes)


def test_no_projector_at_all(tmp_path):
    """Relations need no common width."""
    none = ProjectorSettings(num_layers=0, resample="interpolate")
    settings = VideoRepa(name="videorepa", projector=none, **TEACHER)
    student, teacher = torch.randn(2, 5, 4, 4, 8), torch.randn(2, 4, 2, 2, 6)
    sizes = {"taps": (0,), "student_dim": 8, "student_grid": (5, 4, 4), "teacher_shape": (4, 2, 2, 6), "seed": 0}
    alignment = TeacherAlignment(settings, **sizes)
    assert not list(alignment.parameters())
    got, logs = alignment(Pass({0: student}, None, None, None, {"teacher": teacher}))
    torch.testing.assert_close(got, trd_loss(resample(student[:, 1:], (4, 2, 2), time="area"), teacher))
    assert logs == {}
    alignment.save(tmp_path)
    assert Projector.load(tmp_path).config["num_layers"] == 0
    with pytest.raises(UsageError, match="repa compares features of 8 and 6 dimensions"):
        TeacherAlignment(Repa(name="repa", projector=none, **TEACHER), **sizes)


@pytest.mark.parametrize("noise_weight", ["released", "abar", "none"])
def test_lamo_s_settings_reach_its_loss(noise_weight):
    settings = LaMo(name="lamo", lag=1, reading="add", noise_weight=noise_weight, per_sample=True)
    clean, predicted, timesteps = torch.randn(2, 5, 4, 3, 3), torch.randn(2, 5, 4, 3, 3), torch.tensor([100, 800])
    process = VPrediction(torch.linspace(1, 0, 1000, dtype=torch.float64))
    level, time = process.of_time(timesteps), timesteps.double() / 1000
    got, logs = MotionDrift(settings, process=process)(Pass({}, clean, predicted, level))
    expected = drift_loss(clean, predicted, lag=1, reading="add")[0]
    if noise_weight != "none":
        weights = drift_weight(time, level.signal, level.sigma, reading=noise_weight, per_sample=True)
        assert weights[0] > weights[1]
        expected = weights * expected
        torch.testing.assert_close(logs["noise_weight"], weights)
    torch.testing.assert_close(got, expected)


def test_gradient_ratio(made, run, listener):
    """Proportional to the weight, and worth a warning where it is far from 1."""
    ratio, usual = made("videorepa").steps[0]["gradient_ratio"], read_recipe("videorepa").method.weight
    said = {}
    for weight in ("1", "0", "1e7"):
        heard = listener()
        [row] = run("videorepa", f"weight-{weight}", f"method.weight={weight}", steps=1, reporter=heard).steps
        assert row["gradient_ratio"] == pytest.approx(float(weight) / usual * ratio, rel=1e-3)
        said[weight] = " ".join(heard.warnings)
    assert said["1"] == ""
    assert "The method's term is negligible" in said["0"]
    assert "The method's term is dominant" in said["1e7"]
    assert "at the tapped features. Change method.weight" in said["1e7"]


# -- the weight over the steps -----------------------------------------------------------------------------------


def test_a_method_is_off_from_a_step_on(run, made):
    """From there on as if it had never been there."""
    done = run("repa", "out", "method.schedule.stop_step=1", *EXACT, steps=3)
    on, off, last = done.steps
    assert on["method_weight"] == pytest.approx(read_recipe("repa").method.weight)
    for row in (off, last):
        assert not {"repa", "cosine", "method_weight"} & row.keys()
        assert row["loss"] == row["denoising"]


@pytest.mark.parametrize("stop", [("stop_step", "1"), ("stop_loss", "1")])
def test_no_teacher_runs_once_a_method_is_off(run, monkeypatch, stop):
    """Of one that is not kept, but for the batches that were made ahead."""
    seen = []

    def watched(*arguments, **options):
        made = teacher_of(*arguments, **options)
        return dataclasses.replace(made, compute=lambda *given: seen.append(1) or made.compute(*given))

    monkeypatch.setattr(build, "teacher_of", watched)
    run("repa", "out", "method.schedule.{}={}".format(*stop), "data.cache=[latents,text]", *EXACT, steps=12)
    assert 0 < len(seen) <= 2 * 4 + 1  # windows of at most four batches, and one for its shape


def test_a_term_that_is_warming_up_is_not_negligible(run, listener):
    heard = listener()
    first, second = run("videorepa", "out", "method.schedule.warmup_steps=10", *EXACT, reporter=heard).steps
    assert first["method_weight"] == first["gradient_ratio"] == 0
    assert first["gradient_cosine"] != 0
    assert second["method_weight"] == pytest.approx(read_recipe("videorepa").method.weight / 10)
    assert not any("negligible" in warning for warning in heard.warnings)


@pytest.mark.parametrize("changes", [("freeze=true",), ("train.compile=true",)])
def test_gradients_that_are_not_compared_cannot_end_a_method(run, changes):
    with pytest.raises(UsageError, match=r"method\.schedule\.stop_cosine where the gradients"):
        run("repa", "out", "method.schedule.stop_cosine=-0.05", *changes)


# -- the cache ---------------------------------------------------------------------------------------------------


def test_only_what_depends_on_a_change_is_computed_again(made, run, base, teacher, session_cache, tmp_path):
    made("m-tsa")

    def new(*overrides, **options):
        before = set(session_cache.rglob("*.safetensors"))
        run("m-tsa", f"out-{len(list(tmp_path.iterdir()))}", *overrides, steps=1, **options)
        found = set(session_cache.rglob("*.safetensors")) - before
        settings = [json.loads((path.parent / "settings.json").read_text()) for path in found]
        return sorted(one["what"] for one in settings)

    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(teacher, tmp_path / "teacher")
    assert new("method.weight=0.1", "method.temperature=0.2") == []
    assert new(f"method.teacher={tmp_path / 'teacher'}", model=str(tmp_path / "base")) == []
    assert new("method.saliency_share=0.5") == ["saliency"]
    assert new("method.view.size=[32, 32]") == ["saliency", "teacher"]


# -- LoRA --------------------------------------------------------------------------------------------------------


def test_lora(run, trainees, base):
    done = run("videorepa", "out", *LORA, *EXACT, steps=4)
    assert done.model == done.path / "adapter"
    assert {path.name for path in done.model.iterdir()} == {LORA_FILE, "README.md"}
    assert not (done.path / "model").exists()
    assert (done.path / "projector.safetensors").exists()
    assert "load_lora_weights" in (done.model / "README.md").read_text()

    [trainee] = trainees
    state = trainee.transformer.state_dict()
    own = {name.replace(".base_layer", ""): value for name, value in state.items() if ".lora_" not in name}
    start = CogVideoXPipeline.from_pretrained(base)
    same(own, start.transformer.state_dict())
    with safe_open(done.model / LORA_FILE, framework="pt") as file:
        facts = json.loads(file.metadata()["lora_adapter_metadata"])
        updates = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert (facts["transformer.r"], facts["transformer.lora_alpha"]) == (2, 6)
    assert len(updates) == 2 * 4 * 2  # blocks, targets, A and B

    expected = denoised(trainee.generator)
    assert (expected - denoised(CogVideoX(start, name="start"))).abs().max() > 1e-2
    merged = dict(start.transformer.state_dict())
    for name, down in updates.items():
        if name.endswith("lora_A.weight"):
            weight = name.removeprefix("transformer.").replace("lora_A.", "")
            merged[weight] = merged[weight] + 6 / 2 * updates[name.replace("lora_A", "lora_B")] @ down
    start.transformer.load_state_dict(merged)
    stock = CogVideoXPipeline.from_pretrained(base)
    stock.load_lora_weights(done.model, weight_name=LORA_FILE)
    for generator in (
        CogVideoX(start, name="by hand"),
        CogVideoX(stock, name="plain diffusers"),
        load(str(base), adapter=str(done.path), device="cpu"),
        load(str(done.path), device="cpu"),
    ):
        torch.testing.assert_close(denoised(generator), expected, rtol=0, atol=1e-5, msg=generator.name)


# -- freezing ----------------------------------------------------------------------------------------------------


def test_on_from_a_lora(run, trainees):
    """Its updates are part of the model that is trained on, and of what that leaves."""
    first = run("sft", "first", *LORA, *EXACT)
    done = run("sft", "second", *EXACT, "train.optimizer.lr=1e-12", model=str(first.path), steps=1)
    second = load(str(done.path), device="cpu")
    assert not [name for name in weights_of(done.model) if "lora" in name]
    theirs = denoised(load(str(first.path), device="cpu"))
    torch.testing.assert_close(denoised(second), theirs, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="which has a LoRA itself"):
        run("sft", "third", *LORA, model=str(first.path))


def test_a_lora_on_weights_in_half_the_bytes(run, trainees):
    done = run("sft", "out", *LORA, "lora.base_dtype=bfloat16")
    weights = dict(trainees[0].transformer.named_parameters())
    assert {value.dtype for name, value in weights.items() if ".lora_" in name} == {torch.float32}
    assert {value.dtype for name, value in weights.items() if ".lora_" not in name} == {torch.bfloat16}
    assert all(math.isfinite(row["loss"]) for row in done.steps)
    # Under bf16 autocast, products see the same numbers whichever way the weights are held.
    assert done.steps[0]["loss"] == pytest.approx(run("sft", "whole", *LORA).steps[0]["loss"], rel=0.01)


def test_a_frozen_generator(run, base):
    done = run("repa", "out", "freeze=true", "train.checkpoint_every=1", *EXACT)
    same(weights_of(base), weights_of(done.model))
    early, late = (load_file(done.path / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2))
    changed = {name for name in early if not torch.equal(early[name], late[name])}
    assert changed == {name for name in early if name.startswith("method.projectors.0.")}
    assert changed
    assert all("gradient_ratio" not in row for row in done.steps)


# -- killed, and many processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(("videorepa", ()), ("m-tsa", (*LORA, "lora.dropout=0.2")), ("lamo", FIELD)),
        *(("lamo-field", ()), ("moalign-motion", ())),
        ("repa", ("method.schedule.warmup_steps=2", "method.schedule.name=cosine", "method.schedule.final=0.1")),
        ("repa", ("method.schedule.stop_loss=1",)),  # off after the first step
    ],
)
def test_resumed(run, name, changes, listener):
    """Stopped after step 3, the last checkpoint being step 2's: as if nothing had been."""
    changes = (*changes, *EXACT, "train.checkpoint_every=2", "train.ema=0.5")
    whole = run(name, "whole", *changes, steps=4)
    with pytest.raises(KeyboardInterrupt):
        run(name, "broken", *changes, steps=4, reporter=listener(stop_at=3))
    done = run(name, "broken", *changes, steps=4, resume="latest")
    assert json.loads((done.path / "run.json").read_text())["training"]["resumed_at"] == 2
    assert untimed(log_of(done.path)) == untimed(log_of(whole.path))
    for folder in ("model", "adapter", "motion_field", "motion_projector"):
        same(weights_of(whole.path / folder), weights_of(done.path / folder))
    same(*({k: v for k, v in weights_of(one.path).items() if k.startswith("projector")} for one in (whole, done)))
    assert done.rows == whole.rows


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("videorepa", ()),
        ("repa", ("method.schedule.stop_cosine=1",)),  # off after the first step, with its projector
        ("lamo", (*FIELD, "method.per_sample=true")),
        pytest.param("lamo-field", (), marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_twice_the_batch(run, small, in_two_processes, tmp_path, name, changes):
    one = run(name, "one", *EXACT, *changes)
    in_two_processes(small(name, *EXACT, *changes, "train.batch_size=1") | {"out": tmp_path / "two"})
    for mine, theirs in zip(log_of(tmp_path / "two"), log_of(one.path), strict=True):
        for key in theirs.keys() - {"seconds", "gradient_ratio", "gradient_cosine"}:  # of each process's own batch
            assert mine[key] == pytest.approx(theirs[key], abs=1e-4, rel=1e-5), key
    for part in ("model", "motion_field", ""):
        mine, theirs = (weights_of(folder / part) for folder in (tmp_path / "two", one.path))
        wanted = (lambda name: name.startswith("projector.")) if not part else (lambda name: True)
        same(*({k: v for k, v in each.items() if wanted(k)} for each in (mine, theirs)), 1e-4)


# -- what cannot be ----------------------------------------------------------------------------------------------


def test_a_motion_projector_belongs_to_its_encoder(made, run, teacher, encoder_folder, tmp_path):
    other = encoder_folder("other", 1)
    with pytest.raises(UsageError, match=r"was trained on another encoder than .*other: .*teacher") as error:
        run("moalign", "out", f"method.teacher={other}")
    assert "give method.teacher" in error.value.fix
    shutil.copytree(teacher, tmp_path / "moved")
    moved = run("moalign", "moved-run", f"method.teacher={tmp_path / 'moved'}", steps=1)
    assert moved.steps[0]["loss"] == made("moalign").steps[0]["loss"]


@pytest.mark.parametrize(
    ("name", "overrides", "kind", "said"),
    [
        ("sft", ["objective.rope_grid_type=slice"], UsageError, "a cogvideox whose positions leave no choice"),
        ("sft", ["freeze=true"], UsageError, "freeze=true with method.name=sft: nothing is left to train"),
        ("lamo", ["freeze=true"], UsageError, "freeze=true with method.name=lamo: nothing is left to train"),
        ("videorepa", ["freeze=true", "lora.rank=2"], UsageError, "freeze=true with lora"),
        ("sft", ["freeze=true", "objective.text_encoder=true"], UsageError, "freeze=true with objective.text_encoder"),
        ("sft", ["lora.rank=2", "objective.text_encoder=true"], UsageError, "objective.text_encoder=true with lora"),
        ("sft", ["lora.targets=[to_q, to_x]"], UsageError, "base is called to_x.\nExpected: ends of attn1.to_k, "),
        ("videorepa", ["method.taps=[0, 2]"], UsageError, "No such block: 2"),
        ("videorepa", ["method.teacher=BASE"], UsageError, "is a generator.\nExpected: an encoder"),
        ("videorepa", ["method.teacher=nowhere/at-all/x"], ModelError, "There is no nowhere/at-all/x"),
        ("moalign", ["method.motion_projector=nowhere"], ModelError, "method.motion_projector=nowhere is not there"),
        ("moalign", ["method.motion_projector=BASE"], ModelError, "no motion projector in"),
        ("lamo", ["method.field.lag=5"], UsageError, "The motion field's lag is 5, and a clip has 5 latent frames"),
        ("lamo", ["method.lag=5"], UsageError, "method.lag is 5, and a clip has 5 latent frames"),
        ("lamo-field", ["objective.lag=5"], UsageError, "The motion field's lag is 5, and a clip has 5 latent frames"),
        ("lamo-field", ["objective.hidden=12"], UsageError, "objective.hidden is 12"),
        ("m-tsa", ["method.saliency_share=0"], UsageError, "method.saliency_share is 0"),
        ("moalign-motion", ["objective.kernel=2"], UsageError, "kernel must be odd, got 2"),
        ("moalign-motion", ["objective.upscale=64"], UsageError, "flow of [16, 16] is coarser"),
        ("moalign-motion", ["objective.flows_per_token=5"], UsageError, "flows_per_token must be 1 to 4"),
        ("videorepa", ["method.view.layout=groups", "objective.frames=9"], UsageError, "sees groups of 16"),
        ("videorepa", ["method.view.layout=crops", "method.view.size=[20, 16]"], UsageError, "sees crops of 16x16"),
        ("videorepa", ["method.view.drop_first=false"], DataError, "was given 17 frames"),
        ("sft", ["objective.frames=65"], DataError, "None of the 4 clips has 65 frames"),
        ("sft", ["objective.frames=13"], UsageError, "cannot make clips of 13 frames"),
    ],
)
def test_nothing_is_made(run, base, tmp_path, name, overrides, kind, said):
    with pytest.raises(PhyscliError) as error:
        run(name, "out", *(override.replace("BASE", str(base)) for override in overrides))
    assert type(error.value) is kind
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_tap_is_found_before_anything_is_computed(run, session_cache):
    before = set(session_cache.rglob("*"))
    with pytest.raises(UsageError, match="No such block: 7"):
        run("videorepa", "out", "method.taps=[7]", "method.view.size=[48, 48]")
    assert set(session_cache.rglob("*")) == before


def test_crops_of_the_clip_s_own_size(run):
    """64×64 pixels in 16 crops of the teacher's 16×16: 8×8 tokens, and as many that may ask."""
    done = run("m-tsa", "out", "method.view.layout=crops", steps=1)
    assert Projector.load(done.path).config["teacher_grid"] == (4, 8, 8)
    assert 0 < done.steps[0]["salient"] <= 0.2


def test_several_taps_have_a_projector_each(run):
    done = run("videorepa", "out", "method.taps=[0, 1]", steps=1)
    one, two = (weights_of(done.path / f"projector-block-{tap}") for tap in (0, 1))
    assert one.keys() == two.keys()
    assert not (done.path / "projector.safetensors").exists()
    Projector.load(done.path / "projector-block-1")


def test_flow_of_clips_that_were_not_simulated(run, simulated, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted((simulated / "physion_mp4s" / "train").glob("*.mp4"))[:3]:
        shutil.copy(path, folder)
    with pytest.raises(DataError, match="has no exact flow") as error:
        run("moalign-motion", "out", data=str(folder))
    assert error.value.fix == "use objective.flow=dis"
    done = run("moalign-motion", "out", "objective.flow=dis", data=str(folder), steps=1)
    assert done.steps[0]["no_motion"] > 0
    assert MotionProjector.load(done.model).info["flow"] == "dis"
