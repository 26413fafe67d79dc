"""What training reads, computed beforehand: all of it, once, resumable; then no model is loaded that is not trained."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, VideoMAEModel

from physcli.data.clips import read_dataset
from physcli.errors import DataError, UsageError
from physcli.methods.moalign import MotionProjector
from physcli.models.loading import load
from physcli.models.names import fingerprint, resolve
from physcli.models.parts import is_empty
from physcli.tasks import finetune as finetune_module
from physcli.tasks import precompute as precompute_module
from physcli.tasks.training import compute as compute_module
from physcli.tasks.training.request import FinetuneRequest

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="session")
def simulated(few):
    return few


def finetune(recipe_name, *, resume=None, reporter=None, **given):
    return finetune_module.finetune(FinetuneRequest(recipe_name, **given), resume=resume, reporter=reporter)


def precompute(recipe_name, *, only=(), reporter=None, **given):
    return precompute_module.precompute(FinetuneRequest(recipe_name, **given), only=only, reporter=reporter)


@pytest.fixture(scope="module")
def models(base, encoder_folder, tmp_path_factory):
    """Folders of a pipeline of 16×16 pixels, of its encoder, and of a motion projector for it, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(base, folder / "base")
    shutil.copytree(encoder_folder("teacher", 0), folder / "teacher")
    projector = MotionProjector(in_dim=24, dim=4, hidden_dim=8)
    view = {"layout": "whole", "size": None, "drop_first": True}
    projector.info = {"encoder_weights": fingerprint(resolve(str(folder / "teacher"))), "view": view}
    projector.save(folder / "motion_projector")
    return folder


@pytest.fixture
def given(models, simulated, tmp_path):
    """`given("m-tsa", "key=value", …)`: arguments that `precompute` and `finetune` share."""

    def make(name, *overrides, **options):
        changes = ["data.limit=4", "train.batch_size=2", "train.mixed_precision=no"]
        if name in ("m-tsa", "moalign", "sft"):
            changes += ["objective.samples=0"]
        if name in ("m-tsa", "moalign"):
            changes += [f"method.teacher={models / 'teacher'}", "method.projector.hidden_dim=20"]
        if name == "moalign":
            changes += [f"method.motion_projector={models / 'motion_projector'}"]
        common = {
            "recipe_name": name,
            "overrides": (*changes, *overrides),
            "model": str(models / ("teacher" if name == "moalign-motion" else "base")),
            "data": str(simulated),
            "device": "cpu",
            "cache_dir": tmp_path / "cache",
            "out": tmp_path / f"run-{len(list(tmp_path.iterdir()))}",
        }
        return common | options

    return make


@pytest.fixture
def loaded(monkeypatch):
    """Names of the classes whose weights are read from now on."""
    names = []
    for kind in (AutoencoderKLCogVideoX, T5EncoderModel, VideoMAEModel):
        real = kind.from_pretrained.__func__

        def reading(cls, *arguments, real=real, **options):
            names.append(cls.__name__)
            return real(cls, *arguments, **options)

        monkeypatch.setattr(kind, "from_pretrained", classmethod(reading))
    return names


def shards(cache):
    return {path for path in cache.rglob("*.safetensors") if "simulated" not in path.parts}


def counts(done):
    return {tally.signal: (tally.wanted, tally.kept, tally.computed) for tally in done.tallies}


# -- all of it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "signals"),
    [
        ("sft", {"latents", "text"}),
        ("m-tsa", {"latents", "text", "teacher", "saliency"}),
        ("moalign", {"latents", "text", "teacher"}),
        ("lamo-field", {"latents", "text"}),
        ("moalign-motion", {"teacher", "flow"}),
    ],
)
def test_training_finds_everything_there(given, loaded, tmp_path, name, signals, listener):
    done = precompute(**given(name))
    assert {tally.signal for tally in done.tallies} == signals
    for tally in done.tallies:
        assert (tally.kept, tally.computed) == (0, tally.wanted)
        stored = sum(path.stat().st_size for path in tally.folder.glob("*.safetensors"))
        assert 0 < tally.num_bytes < stored  # each file has a header beside its values
    before = shards(tmp_path / "cache")
    loaded.clear()
    heard = listener()
    finetune(**given(name), steps=1, reporter=heard)
    assert shards(tmp_path / "cache") == before
    assert loaded == []
    assert set(heard.bars.values()) == {0, 1}  # nothing to compute, one step to train
    again = precompute(**given(name))
    assert all((tally.kept, tally.computed) == (tally.wanted, 0) for tally in again.tallies)
    assert loaded == []


@pytest.mark.parametrize("replaced", ["video", "caption", "arrays"])
def test_what_has_another_content_under_its_name_is_computed_again(given, simulated, tmp_path, replaced):
    data = tmp_path / "data"
    shutil.copytree(simulated, data)
    options = {"data": str(data), "out": tmp_path / "run"}
    name = "moalign-motion" if replaced == "arrays" else "sft"
    more = ["objective.flow=exact"] if replaced == "arrays" else []
    before = counts(precompute(**given(name, "data.limit=2", *more, **options)))
    clip, other = [clip for clip in read_dataset(data).clips if clip.split == "train"][:2]
    if replaced == "video":
        shutil.copy(other.path, clip.path)
    elif replaced == "arrays":
        shutil.copy(other.arrays, clip.arrays)
    else:
        table = data / "metadata.jsonl"
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        for row in rows:
            if clip.path.name in row["file_name"]:
                row["prompt"] = "A new caption."
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = counts(precompute(**given(name, "data.limit=2", *more, **options)))
    signal = {"video": "latents", "caption": "text", "arrays": "flow"}[replaced]
    assert after[signal][2] > 0, (before, after)
    assert after[signal][1] > 0  # what is as it was, is kept
    if replaced == "caption":
        assert after["latents"][2] == 0


def test_two_processes_compute_what_one_does(given, start_physcli, two_processes, tmp_path):
    alone = precompute(**given("m-tsa"))
    arguments = given("m-tsa", cache_dir=tmp_path / "two")
    words = ["data", "precompute", "--recipe", "m-tsa", "--model", arguments["model"], "--data", arguments["data"]]
    words += ["--device", "cpu", "--cache-dir", tmp_path / "two", "--out", tmp_path / "run", *arguments["overrides"]]
    ranks = two_processes(lambda environment: start_physcli(*words, env=environment))
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr
    for tally in alone.tallies:
        folders = (tally.folder, tmp_path / "two" / tally.folder.relative_to(tmp_path / "cache"))
        one, two = ({k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()} for folder in folders)
        assert one.keys() == two.keys()
        assert len(one) == tally.wanted
        for key, value in one.items():
            torch.testing.assert_close(two[key].float(), value.float(), rtol=1e-2, atol=1e-3)
    both = json.loads((tmp_path / "run" / "metrics.json").read_text())
    computed = {row["group"]: row["value"] for row in both if row["metric"] == "computed"}
    assert computed == {tally.signal: tally.computed for tally in alone.tallies}


def test_a_short_run_computes_what_it_draws_and_trains_as_on_everything(given, tmp_path):
    short = given("sft", "train.batch_size=1", cache_dir=tmp_path / "short")
    first = finetune(**short, steps=2)
    few = sum(len(load_file(path)) for path in (tmp_path / "short" / "latents").rglob("*.safetensors"))
    all_of_it = precompute(**given("sft", "train.batch_size=1"))
    [latents] = [tally for tally in all_of_it.tallies if tally.signal == "latents"]
    held_out = 2 * 4  # windows of the held-out clips
    assert latents.wanted == 2 * 4 + held_out
    assert few == 2 + held_out
    again = finetune(**given("sft", "train.batch_size=1"), steps=2)
    assert [row["loss"] for row in again.steps] == [row["loss"] for row in first.steps]


def test_a_short_run_that_draws_a_broken_clip_is_as_on_everything(given, simulated, tmp_path):
    """What takes a broken clip's place depends on which others can be read, so then all of them are looked at."""
    shutil.copytree(simulated, tmp_path / "data")
    training = [clip for clip in read_dataset(tmp_path / "data").clips if clip.split == "train"]
    computed = set()
    for clip in training[:: len(training) // 4]:  # those of data.limit=4
        whole = clip.path.read_bytes()
        clip.path.write_bytes(whole[:200])
        options = {"data": str(tmp_path / "data"), "cache_dir": tmp_path / f"cache-{clip.name}"}
        changes = ("train.batch_size=1", "data.max_bad=0.5")
        first = finetune(**given("sft", *changes, **options), steps=2)
        folder = tmp_path / f"cache-{clip.name}" / "latents"
        computed.add(sum(len(load_file(path)) for path in folder.rglob("*.safetensors")))
        precompute(**given("sft", *changes, **options))
        again = finetune(**given("sft", *changes, **options), steps=2)
        assert [row["loss"] for row in again.steps] == [row["loss"] for row in first.steps]
        clip.path.write_bytes(whole)
    assert computed == {2 + 8, 6 + 8}  # the broken clip was not drawn; it was


def test_what_it_leaves(given, tmp_path):
    done = precompute(**given("sft", seed=3))
    assert {path.name for path in done.path.iterdir()} == {"run.json", "recipe.yaml", "metrics.json"}
    record = json.loads((done.path / "run.json").read_text())
    assert (record["command"], record["status"], record["unreadable_clips"]) == ("data precompute", "finished", [])
    rows = json.loads((done.path / "metrics.json").read_text())
    values = {(row["group"], row["metric"]): row["value"] for row in rows}
    assert values["latents", "computed"] == values["latents", "wanted"] > 0
    shutil.rmtree(tmp_path / "cache" / "latents")
    again = precompute(**given("sft", seed=3, out=done.path))  # the folder says finished, the cache knows better
    assert counts(again)["latents"][1:] == (0, values["latents", "computed"])
    assert counts(again)["text"][2] == 0


def test_another_seed_has_other_windows(given):
    first, second = (counts(precompute(**given("sft", "objective.windows=2", seed=seed)))["latents"] for seed in (0, 1))
    assert first[1] == 0
    assert 0 < second[1] < second[0]  # every clip's first window is the same


def test_only_some(given, loaded):
    done = precompute(**given("m-tsa", only=("teacher",)))
    assert counts(done).keys() == {"teacher"}
    assert loaded == ["VideoMAEModel"]
    rest = precompute(**given("m-tsa"))
    assert {tally.signal: tally.computed > 0 for tally in rest.tallies} == {
        **{"latents": True, "teacher": False, "saliency": True, "text": True}
    }
    with pytest.raises(UsageError, match="latent") as error:
        precompute(**given("m-tsa", only=("latent",)))
    assert "latents" in str(error.value)


def test_a_recipe_that_reads_nothing_of_the_kind(given):
    with pytest.raises(UsageError, match="reads clips as they are: there is nothing to compute"):
        precompute(**given("pretrain/vae-tiny"))


# -- killed, damaged, changed, too much --------------------------------------------------------------------------


def test_killed_and_given_again(given, monkeypatch, tmp_path, listener):
    monkeypatch.setattr(compute_module, "COMPUTED_AT_ONCE", 2)
    with pytest.raises(KeyboardInterrupt):
        precompute(**given("m-tsa"), reporter=listener(stop_at=4, during="window"))
    (tmp_path / "cache" / "latents" / next(os.walk(tmp_path / "cache" / "latents"))[1][0] / ".x.1.part").write_text("")
    done = counts(precompute(**given("m-tsa")))
    assert done["latents"][1] == done["teacher"][1] == done["saliency"][1] == 4
    assert all(kept + computed == wanted for wanted, kept, computed in done.values())


def test_a_damaged_shard_is_computed_again(given, monkeypatch, listener):
    monkeypatch.setattr(compute_module, "COMPUTED_AT_ONCE", 2)
    monkeypatch.setattr(compute_module, "BATCHES_A_SHARD", 1)
    first = precompute(**given("sft"))
    (latents,) = (tally for tally in first.tallies if tally.signal == "latents")
    shard = sorted(latents.folder.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # one bit of one value
    shard.write_bytes(content)
    heard = listener()
    again = precompute(**given("sft"), reporter=heard)
    assert counts(again)["latents"] == (latents.wanted, latents.wanted - 2, 2)
    assert any(said.startswith("Damaged cache file of latents, computed again") for said in heard.said)


def test_what_is_left_out_is_named(given, simulated, tmp_path, listener):
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted((simulated / "physion_mp4s" / "train").glob("*.mp4"))[:5]:
        shutil.copy(path, folder)
    broken = sorted(folder.glob("*.mp4"))[1]
    broken.write_bytes(broken.read_bytes()[:2000])
    heard = listener()
    done = precompute(**given("sft", "data.max_bad=0.5", "data.max_uncaptioned=1.0", data=str(folder)), reporter=heard)
    named = [said for said in (*heard.said, *done.problems) if broken.name in said]
    assert named
    assert all(tally.kept + tally.computed <= tally.wanted for tally in done.tallies)
    assert "4 of 4 training clips have no caption" in " ".join(heard.warnings)


def test_a_disk_that_is_too_small(given, monkeypatch, tmp_path):
    real = shutil.disk_usage
    monkeypatch.setattr(compute_module.shutil, "disk_usage", lambda path: real(path)._replace(free=10_000))
    with pytest.raises(DataError, match=r"kB are to be kept \(latents .*, text ") as error:
        precompute(**given("sft"))
    assert "data.cache" in error.value.fix
    assert not (tmp_path / "run-0").exists()


# -- what is not kept --------------------------------------------------------------------------------------------


def test_on_the_fly_is_the_same(given, loaded, tmp_path):
    """Nothing is kept, and the losses are those of a run that keeps everything."""
    kept = finetune(**given("m-tsa"), steps=2)
    cache = tmp_path / "other"
    loaded.clear()
    fresh = finetune(**given("m-tsa", "data.cache=[]", cache_dir=cache), steps=2)
    assert shards(cache) == set()
    assert set(loaded) == {"AutoencoderKLCogVideoX", "T5EncoderModel", "VideoMAEModel"}
    for mine, theirs in zip(fresh.steps, kept.steps, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


# -- a warm cache ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
def test_a_warm_cache_needs_no_frozen_part(given, models, monkeypatch, tmp_path, lora):
    overrides = ("lora.rank=2", "lora.alpha=2") if lora else ()
    cold = finetune(**given("m-tsa", *overrides), steps=2)

    def refuse(cls, *arguments, **options):
        raise AssertionError(f"{cls.__name__} was loaded")

    with monkeypatch.context() as patched:
        for kind in (AutoencoderKLCogVideoX, T5EncoderModel, VideoMAEModel):
            patched.setattr(kind, "from_pretrained", classmethod(refuse))
        trainees = []
        build = finetune_module.build_trainee
        patched.setattr(finetune_module, "build_trainee", lambda *a: trainees.append(build(*a)) or trainees[-1])
        warm = finetune(**given("m-tsa", *overrides), steps=2)
    assert [row["loss"] for row in warm.steps] == [row["loss"] for row in cold.steps]
    assert warm.rows == cold.rows
    (trainee,) = trainees
    assert is_empty(trainee.generator.vae)
    assert is_empty(trainee.generator.pipeline.text_encoder)
    assert all("text_encoder" not in name for name in trainee.state_dict())  # nor in checkpoints
    if lora:
        return
    for file in models.joinpath("base").rglob("*"):
        name = file.relative_to(models / "base")
        if file.is_file() and name.parts[0] in ("vae", "text_encoder", "tokenizer", "scheduler"):
            made = warm.model / name
            assert not made.is_symlink()
            assert os.path.samefile(made, file)
    whole = CogVideoXPipeline.from_pretrained(warm.model)
    base = load(str(models / "base"), device="cpu")
    for part in ("vae", "text_encoder"):
        mine, theirs = (getattr(one, part).state_dict() for one in (whole, base.pipeline))
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    changed = [
        name
        for name, value in whole.transformer.state_dict().items()
        if not torch.equal(value, base.transformer.state_dict()[name])
    ]
    assert changed
    assert load(str(warm.path), device="cpu").fingerprint("vae") == base.fingerprint("vae")
    videos = whole("a ball", num_frames=9, height=16, width=16, num_inference_steps=1, max_sequence_length=32).frames
    assert len(videos[0]) == 9


def test_frozen_parts_are_copied_where_they_cannot_be_linked(given, models, monkeypatch):
    def no_links(*arguments, **options):
        raise OSError("other disk")

    monkeypatch.setattr(os, "link", no_links)
    done = finetune(**given("sft", "save_dtype=float16"), steps=1)
    for name in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        made, source = done.model / name, models / "base" / name
        assert made.read_bytes() == source.read_bytes()  # whatever the dtype of what was trained
        assert not os.path.samefile(made, source)
    half = load(str(done.model / "."), device="cpu", dtype="float32")
    assert all(torch.equal(p, p.half().float()) for p in half.transformer.parameters())


def test_samples_bring_back_what_they_need(given, loaded):
    precompute(**given("sft"))
    loaded.clear()
    done = finetune(**given("sft", "objective.samples=1"), steps=1)
    assert sorted(loaded) == ["AutoencoderKLCogVideoX", "T5EncoderModel"]
    assert {row["metric"] for row in done.rows} >= {"v_mse"}


@pytest.mark.parametrize("change", ["weights", "config"])
def test_a_changed_part_is_another(models, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(models / "base", copy)
    base, same = (load(str(folder), device="cpu", parts=()) for folder in (models / "base", copy))
    parts = ("vae", "text_encoder", "transformer")
    assert [same.fingerprint(part) for part in parts] == [base.fingerprint(part) for part in parts]
    if change == "weights":
        file = copy / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        next(iter(tensors.values())).flatten()[0].add_(1e-3)
        save_file(tensors, file, metadata={"format": "pt"})
    else:
        file = copy / "vae" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 1.0}))
    other = load(str(copy), device="cpu", parts=())
    assert [other.fingerprint(part) == base.fingerprint(part) for part in parts] == [False, True, True]
