"""`finetune` end to end with small real models: killed, resumed, on two processes, on bad data, on a full disk."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import torch.utils.checkpoint
from safetensors.torch import load_file, save_file

from physcli.data.clips import read_dataset
from physcli.errors import DataError, MissingExtra, PhyscliError, UsageError
from physcli.models.encoders.base import Encoder
from physcli.models.loading import load
from physcli.recipe import read_recipe
from physcli.report.plots import loss_curve
from physcli.tasks import finetune as task
from physcli.tasks.training import encoder as encoder_module
from physcli.tasks.training import generator as generator_module
from physcli.tasks.training import vae as vae_module
from physcli.tasks.training.loop import TrainingError
from physcli.tasks.training.request import FinetuneRequest

KINDS = ("encoder", "generator", "vae")
TRAIN = """
train:
  steps: 6
  batch_size: 2
  accumulate: 2
  optimizer: {lr: 3e-3}
  schedule: {name: cosine, warmup_steps: 3, final: 0.1}
  ema: 0.9
  checkpoint_every: 2
  validate_every: 0
"""
ENCODER = """
trains: encoder
model: videomae-tiny
init: random
objective: {contexts: [8, 16], horizons: [2, 8], cells: 1}
architecture:
  seed: 0
  encoder: {image_size: 32, patch_size: 16, num_frames: 16, tubelet_size: 4, hidden_size: 32, num_hidden_layers: 2,
            num_attention_heads: 2, intermediate_size: 32}
  preprocessor: {image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5], do_resize: true, do_normalize: true,
                 do_center_crop: false, size: {height: 32, width: 32}, resample: 3}
"""
PIPELINE = """
model: cogvideox-tiny
init: random
architecture:
  seed: 0
  transformer: {num_layers: 2, num_attention_heads: 2, attention_head_dim: 16, in_channels: 4, out_channels: 4,
                time_embed_dim: 16, text_embed_dim: 16, max_text_seq_length: 32, sample_height: 4, sample_width: 4,
                sample_frames: 9, spatial_interpolation_scale: 1.0}
  vae: {down_block_types: [CogVideoXDownBlock3D, CogVideoXDownBlock3D, CogVideoXDownBlock3D],
        up_block_types: [CogVideoXUpBlock3D, CogVideoXUpBlock3D, CogVideoXUpBlock3D], block_out_channels: [8, 8, 8],
        layers_per_block: 1, norm_num_groups: 4, latent_channels: 4, temporal_compression_ratio: 4,
        sample_height: 16, sample_width: 16}
  text_encoder: {vocab_size: 128, d_model: 16, d_kv: 8, d_ff: 32, num_layers: 1, num_heads: 2,
                 feed_forward_proj: gated-gelu, dropout_rate: 0.0}
  scheduler: {num_train_timesteps: 1000, beta_start: 0.00085, beta_end: 0.012, beta_schedule: scaled_linear,
              snr_shift_scale: 3.0, rescale_betas_zero_snr: true, prediction_type: v_prediction,
              timestep_spacing: trailing, set_alpha_to_one: true, clip_sample: false}
"""
OBJECTIVES = {
    "generator": "trains: generator\nobjective: {frames: 9, strides: [1, 3], windows: 2, text_encoder: true}\n",
    "vae": "trains: vae\nobjective: {crop_frames: 9, crop: 8, frames: 9, strides: [1, 3], whole_share: 0.4}\n",
}


def finetune(recipe_name, *, resume=None, reporter=None, **given):
    return task.finetune(FinetuneRequest(recipe_name, **given), resume=resume, reporter=reporter)


@pytest.fixture(scope="session")
def recipes(tmp_path_factory, simulated):
    """Kind → a recipe of a model small enough for a step in a few milliseconds."""
    folder = tmp_path_factory.mktemp("recipes")
    texts = {"encoder": ENCODER} | {kind: text + PIPELINE for kind, text in OBJECTIVES.items()}
    for kind, text in texts.items():
        (folder / f"{kind}.yaml").write_text(
            text + TRAIN + f"data: {{source: {json.dumps(str(simulated))}, limit: 8}}\n"
        )
    return {kind: folder / f"{kind}.yaml" for kind in texts}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing them takes longer than all else here; `test_what_a_run_leaves` has those of the loss drawn."""
    for module in (encoder_module, generator_module, vae_module):
        monkeypatch.setattr(module, "contact_sheet", lambda *arguments, **options: None)


@pytest.fixture
def train(recipes, session_cache, tmp_path, monkeypatch):
    """`train("encoder", "name", "key=value", …)`: a run in tmp_path / name."""
    monkeypatch.setattr(task, "loss_curve", lambda path, *arguments, **options: path.touch())

    def go(kind, name, *overrides, **options):
        options = {"device": "cpu", "cache_dir": session_cache, "out": tmp_path / name} | options
        return finetune(str(recipes[kind]), overrides=overrides, **options)

    return go


@pytest.fixture(scope="session")
def unbroken(recipes, session_cache, tmp_path_factory):
    """Kind → its run of six steps, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            out = tmp_path_factory.mktemp("unbroken") / kind
            made[kind] = finetune(str(recipes[kind]), out=out, device="cpu", cache_dir=session_cache)
        return made[kind]

    return get


# What a process does before it runs the command line: at a given step of "Training" it is to receive a signal.
_STRUCK = """
import signal
from contextlib import contextmanager
from physcli.cli import render
from physcli.progress import Bar
from physcli.tasks import finetune
from physcli.tasks.training import encoder, generator, vae

class Struck(render.RichReporter):
    @contextmanager
    def bar(self, description, total, unit="it"):
        class Counting(Bar):
            count = 0
            def advance(self, amount=1):
                self.count += amount
                if amount and self.count == {step!r}:
                    signal.raise_signal({number!r})
        yield Counting() if description == "Training" else Bar()

render.RichReporter = Struck
for module in (encoder, generator, vae):
    module.contact_sheet = lambda *arguments, **options: None  # as in `no_pictures`
finetune.loss_curve = lambda *arguments, **options: None
"""


@pytest.fixture
def run(start_physcli):
    """`run("finetune", …, at=(step, signal))`: the command line in a process of its own."""

    def go(*arguments, at=None, **options):
        step, number = at or (None, None)
        return start_physcli(*arguments, before=_STRUCK.format(step=step, number=number), **options)

    return go


@pytest.fixture
def command(recipes, session_cache):
    """The arguments of a run of the command line."""

    def make(kind, out, *more):
        return [
            "finetune",
            "--recipe",
            recipes[kind],
            "--device",
            "cpu",
            "--cache-dir",
            session_cache,
            "--out",
            out,
            *more,
        ]

    return make


def log_of(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def losses_of(folder):
    return [row["loss"] for row in log_of(folder)]


def same_weights(one, other, tolerance):
    files = sorted(p.relative_to(one) for p in one.rglob("*.safetensors"))
    assert files
    for name in files:
        theirs = load_file(other / name)
        for key, value in load_file(one / name).items():
            if tolerance and key.endswith("norm_k.bias"):
                # No key's bias changes a softmax: its gradient is rounding noise, of which AdamW makes whole steps.
                continue
            torch.testing.assert_close(
                value, theirs[key], rtol=0, atol=tolerance, msg=partial("{}: {}: {}".format, name, key)
            )


def listing(folder):
    """Everything in a folder, by content."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["encoder", "generator", pytest.param("vae", marks=pytest.mark.slow)])
def test_what_a_run_leaves(unbroken, kind):
    done = unbroken(kind)
    names = {p.name for p in done.path.iterdir()}
    model = "vae" if kind == "vae" else "model"
    assert names == {
        *("run.json", "recipe.yaml", "steps.jsonl", "loss.png", "metrics.json", "validation.json", "samples", model),
        *("checkpoint-4", "checkpoint-6"),
    }
    assert done.model == done.path / model
    assert read_recipe(done.path / "recipe.yaml").trains == kind
    rows = log_of(done.path)
    assert rows == json.loads(json.dumps(done.steps))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["samples"] for row in rows] == [4, 8, 12, 16, 20, 24]
    record = json.loads((done.path / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["unreadable_clips"] == []
    assert record["training"]["resumed_at"] is None
    for row in json.loads((done.path / "metrics.json").read_text()):
        assert row.keys() >= {"benchmark", "task", "subject", "split", "group", "metric", "value", "stderr", "n"}
    if kind != "vae":
        model = load(str(done.model))
        assert not model.random_init
        assert isinstance(model, Encoder) == (kind == "encoder")


def test_finished_is_finished(unbroken, train):
    done = unbroken("encoder")
    before = listing(done.path)
    for resume in (None, "latest"):
        again = train("encoder", "", out=done.path, resume=resume)
        assert again.rows == json.loads((done.path / "metrics.json").read_text())
        assert again.model == done.model
        assert again.steps == json.loads(json.dumps(done.steps))
    assert listing(done.path) == before


@pytest.mark.parametrize(("kind", "number"), [("encoder", signal.SIGKILL), ("generator", signal.SIGTERM)])
def test_killed_and_resumed(unbroken, run, command, tmp_path, kind, number):
    """A process of its own is killed outright after step 3, or asked to end; both go on as if nothing had been."""
    whole, out = unbroken(kind), tmp_path / "run"
    done = run(*command(kind, out), at=(3, int(number))).wait()
    record = json.loads((out / "run.json").read_text())
    if number == signal.SIGKILL:
        assert (done.returncode, record["status"]) == (-signal.SIGKILL, "running")
        checkpoint = "checkpoint-2"
    else:
        assert (done.returncode, record["status"]) == (130, "interrupted"), done.stderr
        checkpoint = "checkpoint-3"
        assert "checkpoint-3 is written; --resume latest goes on from there" in " ".join(done.stderr.split())
    assert sorted(p.name for p in out.glob("checkpoint-*"))[-1] == checkpoint
    done = run(*command(kind, out, "--resume", "latest", "--json")).wait()
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in log_of(out)] == [1, 2, 3, 4, 5, 6]
    assert losses_of(out) == pytest.approx(losses_of(whole.path), abs=1e-5)
    same_weights(whole.model, out / whole.model.name, 1e-5)
    mine, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (out, whole.path))
    assert [row["value"] for row in mine] == pytest.approx([row["value"] for row in theirs], rel=1e-4)
    assert json.loads((out / "run.json").read_text())["training"]["resumed_at"] == int(checkpoint[-1])


@pytest.mark.slow
def test_interrupted_and_resumed_vae(unbroken, run, command, tmp_path):
    whole, out = unbroken("vae"), tmp_path / "run"
    assert run(*command("vae", out), at=(5, int(signal.SIGINT))).wait().returncode == 130
    assert run(*command("vae", out, "--resume", out / "checkpoint-4")).wait().returncode == 0
    assert losses_of(out) == pytest.approx(losses_of(whole.path), abs=1e-5)
    same_weights(whole.model, out / "vae", 1e-5)


# Red before CI ran slow tests, as far back as it was tried: the VAE's weights part by more than the tolerance.
_PARTS = pytest.mark.xfail(reason="the weights of a VAE trained by two processes part from those of one")


@pytest.mark.parametrize("kind", ["encoder", "generator", pytest.param("vae", marks=(pytest.mark.slow, _PARTS))])
def test_two_processes_are_twice_the_batch(unbroken, run, two_processes, command, tmp_path, kind):
    """Two processes of 1 × 2 clips, as torchrun starts them, against one of 2 × 2; the encoder's are killed once."""
    out = tmp_path / "two"

    def both(*more, at=None):
        words = command(kind, out, "train.batch_size=1", *more)
        return two_processes(lambda environment: run(*words, at=at, env=environment))

    if kind == "encoder":
        main, other = both(at=(3, int(signal.SIGKILL)))
        assert main.returncode == -signal.SIGKILL
        assert other.returncode != 0  # it misses the main process
        done = both("--resume", "latest")
    else:
        done = both()
    assert [rank.returncode for rank in done] == [0, 0], done
    whole = unbroken(kind)
    assert [row["samples"] for row in log_of(out)] == [4, 8, 12, 16, 20, 24]
    assert losses_of(out) == pytest.approx(losses_of(whole.path), abs=1e-4)
    same_weights(whole.model, out / whole.model.name, 1e-4)


@pytest.mark.slow
def test_accelerate_launch(unbroken, command, tmp_path):
    """`accelerate launch --cpu` starts one process whatever it is told; physcli starts the rest by torchrun."""
    out = tmp_path / "two"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launcher, "-m", "physcli", *map(str, command("encoder", out, "train.batch_size=1"))],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert [row["samples"] for row in log_of(out)] == [4, 8, 12, 16, 20, 24]
    assert losses_of(out) == pytest.approx(losses_of(unbroken("encoder").path), abs=1e-4)


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_accumulation_is_a_larger_batch(unbroken, train, kind):
    done = train(kind, "one", "train.accumulate=1", "train.batch_size=4")
    assert [row["loss"] for row in done.steps] == pytest.approx(losses_of(unbroken(kind).path), abs=1e-5)
    same_weights(unbroken(kind).model, done.model, 1e-4)


@pytest.mark.parametrize("kind", ["encoder", "generator", pytest.param("vae", marks=pytest.mark.slow)])
def test_gradient_checkpointing_changes_nothing(unbroken, train, kind, monkeypatch):
    recomputed = []
    real = torch.utils.checkpoint.checkpoint

    def counting(*arguments, **options):
        recomputed.append(arguments[0])
        return real(*arguments, **options)

    for name, module in list(sys.modules.items()):  # some hold the function by name
        libraries = name.startswith(("torch.utils.checkpoint", "transformers.model", "diffusers.models"))
        if libraries and vars(module).get("checkpoint") is real:
            monkeypatch.setattr(module, "checkpoint", counting)
    whole = ["objective.whole_share=0"] if kind == "vae" else []  # the first two steps, all crops and all warmup
    done = train(kind, "checkpointed", "train.gradient_checkpointing=true", *whole, steps=2)
    assert recomputed
    assert [row["loss"] for row in done.steps] == pytest.approx(losses_of(unbroken(kind).path)[:2], abs=1e-5)


def test_bfloat16(unbroken, train, monkeypatch, listener):
    monkeypatch.setattr("physcli.tasks.finetune.computes_in_bfloat16", lambda device: False)
    heard = listener()
    done = train("encoder", "half", "train.mixed_precision=bf16", steps=2, reporter=heard)
    assert any("no instructions for bfloat16" in said for said in heard.said)
    exact = losses_of(unbroken("encoder").path)[:2]
    assert [row["loss"] for row in done.steps] == pytest.approx(exact, rel=0.05)
    assert [row["loss"] for row in done.steps] != pytest.approx(exact, rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled(unbroken, train):
    done = train("encoder", "compiled", "train.compile=true")
    assert [row["loss"] for row in done.steps] == pytest.approx(losses_of(unbroken("encoder").path), abs=1e-3)
    assert load(str(done.model)).kind == "encoder"


def test_nan_from_the_command_line(run, command, tmp_path):
    out = tmp_path / "run"
    more = ["train.optimizer.lr=1e30", "train.schedule.warmup_steps=0", "train.checkpoint_every=100"]
    done = run(*command("encoder", out, *more)).wait()
    said = " ".join(done.stderr.split())
    assert done.returncode == 1, said
    assert "became nan at step" in said or "became inf at step" in said
    assert "holds the weights before it; start again with a lower train.optimizer.lr" in said
    assert "Traceback" not in said
    (checkpoint,) = out.glob("checkpoint-*")
    assert all(torch.isfinite(v).all() for v in load_file(checkpoint / "model.safetensors").values())
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    assert not (out / "model").exists()


# --resume and --out: each of these is an error, and nothing is made or changed.


def prepared(place, unbroken):
    """Folders a user might point at."""
    (place / "empty").mkdir()
    (place / "file").touch()
    done = unbroken("encoder").path
    shutil.copytree(done, place / "finished")
    shutil.copytree(done, place / "unfinished")
    record = json.loads((done / "run.json").read_text()) | {"status": "interrupted"}
    (place / "unfinished" / "run.json").write_text(json.dumps(record))
    shutil.copytree(place / "unfinished", place / "broken")
    for folder in (place / "broken").glob("checkpoint-*"):
        (folder / "optimizer.bin").unlink()


@pytest.mark.parametrize(
    ("options", "overrides", "kind", "said"),
    [
        ({"resume": "nowhere", "out": "new"}, [], UsageError, "--resume nowhere: no such folder"),
        ({"resume": "nowhere"}, [], UsageError, "--resume nowhere: no such folder"),
        ({"resume": "file"}, [], UsageError, "--resume file: not a folder"),
        ({"resume": "latest"}, [], UsageError, "--resume latest without --out"),
        ({"resume": "latest", "out": "new"}, [], UsageError, "--resume latest: no checkpoint in new"),
        ({"resume": "latest", "out": "empty"}, [], UsageError, "--resume latest: no checkpoint in empty"),
        ({"resume": "empty"}, [], UsageError, "--resume empty: no checkpoint in empty"),
        ({"resume": "unfinished/checkpoint-3"}, [], UsageError, "checkpoint-3: no such folder"),
        ({"out": "unfinished"}, [], UsageError, "holds an unfinished run (checkpoint-6)"),
        ({"out": "broken"}, [], UsageError, "holds an unfinished run (checkpoint-6)"),
        ({"resume": "latest", "out": "broken"}, [], DataError, "None of the 2 checkpoints in broken"),
        ({"resume": "latest", "out": "unfinished"}, ["train.ema=0.8"], UsageError, "holds another run"),
        ({"resume": "latest", "out": "unfinished", "seed": 1}, [], UsageError, "holds another run"),
        ({"resume": "unfinished", "out": "new"}, ["train.ema=0.8"], UsageError, "is of a run with other settings"),
        ({"resume": "unfinished/checkpoint-4", "out": "new", "steps": 9}, [], UsageError, "with other settings"),
        ({"resume": "latest", "out": "unfinished", "overwrite": True}, [], UsageError, "with --overwrite"),
        ({"out": "finished"}, ["train.ema=0.8"], UsageError, "holds another run"),
        ({"out": "new", "data": "no/data"}, [], DataError, "no/data is not there"),
        ({"out": "new", "data": "simulated:x"}, [], UsageError, "'simulated:x'"),
        ({"out": "new", "model": "no-such-model"}, [], UsageError, "no-such-model"),
        ({"out": "new", "model": "cogvideox-tiny:random"}, [], UsageError, "is not a VideoMAE encoder"),
        ({"out": "deep/new", "model": "empty"}, [], PhyscliError, "empty"),
        ({"out": "new", "device": "abacus"}, [], UsageError, "Unknown device: 'abacus'"),
        ({"out": "new"}, ["train.mixed_precision=fp16"], UsageError, "fp16 on the CPU"),
        ({"out": "new"}, ["objective.contexts=[7]"], UsageError, "objective.contexts has 7"),
        ({"out": "new"}, ["architecture={seed: 0}"], UsageError, "cannot be built: 'encoder' is missing"),
        (
            {"out": "new"},
            ["architecture.encoder.num_attention_heads=3"],
            UsageError,
            "cannot be built: The hidden size",
        ),
        ({"out": "new"}, ["train.stepss=1"], UsageError, "unknown field train.stepss, did you mean steps?"),
        ({"out": "finished", "overwrite": True, "data": "no/data"}, [], DataError, "no/data is not there"),
    ],
)
def test_nothing_is_made_or_changed(unbroken, train, tmp_path, monkeypatch, options, overrides, kind, said):
    prepared(tmp_path, unbroken)
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    out = options.get("out")
    with pytest.raises(kind) as error:
        train("encoder", "", *overrides, **options | {"out": Path(out) if out else None})
    assert said in str(error.value)
    assert listing(tmp_path) == before


def test_what_may_differ_in_a_continuation(unbroken, train, tmp_path):
    prepared(tmp_path, unbroken)
    changes = ("train.checkpoint_every=1", "train.keep_checkpoints=1", "train.validate_every=3")
    done = train("encoder", "unfinished", *changes, resume="latest")
    assert done.rows == unbroken("encoder").rows


def test_exit_codes(run, command, tmp_path):
    done = run(*command("encoder", tmp_path / "none", "--resume", "latest")).wait()
    assert done.returncode == 2
    assert "no checkpoint in" in " ".join(done.stderr.split())
    done = run(*command("encoder", tmp_path / "none", "--data", tmp_path / "nothing")).wait()
    assert done.returncode == 1
    assert "is not there" in " ".join(done.stderr.split())
    assert not (tmp_path / "none").exists()


# Bad data.


@pytest.fixture
def damaged(simulated, tmp_path):
    """The clips, some of the training clips cut short."""

    def make(*numbers):
        folder = tmp_path / "damaged"
        shutil.copytree(simulated, folder)
        paths = sorted((folder / "physion_mp4s" / "train").glob("*.mp4"))
        for number in numbers:
            paths[number].write_bytes(paths[number].read_bytes()[:900])
        return folder, [paths[number].name for number in numbers]

    return make


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_a_broken_clip_is_left_out(unbroken, train, damaged, kind, listener):
    """Of eight clips out of 28 the third is the eighth."""
    folder, (name,) = damaged(7)
    heard, options = listener(), {"data": str(folder)}
    done = train(kind, "run", "data.max_bad=0.2", reporter=heard, **options)
    if kind == "encoder":
        assert sum(name in said for said in heard.said) == 1
    record = json.loads((done.path / "run.json").read_text())
    assert record["unreadable_clips"]
    assert all(name in problem for problem in record["unreadable_clips"])
    assert losses_of(done.path) != losses_of(unbroken(kind).path)
    # The same clip takes its place in a run that is resumed, and it is counted there too.
    again = listener(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        train(kind, "again", "data.max_bad=0.2", reporter=again, **options)
    resumed = train(kind, "again", "data.max_bad=0.2", reporter=listener(), resume="latest", **options)
    assert losses_of(resumed.path) == losses_of(done.path)
    assert json.loads((resumed.path / "run.json").read_text())["unreadable_clips"] == record["unreadable_clips"]


def test_too_many_broken_clips(train, damaged, tmp_path):
    folder, (name,) = damaged(7)
    with pytest.raises(DataError, match="1 of 8 clips cannot be used") as error:
        train("encoder", "run", data=str(folder))  # at most 5%
    assert name in error.value.received
    assert "data.max_bad" in error.value.fix
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert not (run / "model").exists()
    assert not (run / "metrics.json").exists()
    assert not list(run.glob(".*"))


# A full disk at the very end, and other ends.


def test_a_model_that_cannot_be_written(unbroken, train, tmp_path, monkeypatch):
    whole = unbroken("encoder")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = task.loss_curve

    def then_full(*arguments, **options):
        real(*arguments, **options)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))

    monkeypatch.setattr(task, "loss_curve", then_full)
    try:
        with pytest.raises(DataError, match="The trained model could not be written") as error:
            train("encoder", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "checkpoint-6 is whole" in error.value.fix
    assert not (tmp_path / "run" / "model").exists()
    assert not list((tmp_path / "run").glob(".*"))
    monkeypatch.setattr(task, "loss_curve", real)
    done = train("encoder", "run", resume="latest")
    assert done.rows == whole.rows
    same_weights(whole.model, done.model, 0)


def test_a_failing_overwrite_keeps_what_was_there(unbroken, train, tmp_path):
    shutil.copytree(unbroken("encoder").path, tmp_path / "run")
    before = listing(tmp_path / "run")
    with pytest.raises(DataError):
        train("encoder", "run", overwrite=True, data=str(tmp_path / "none"))
    assert listing(tmp_path / "run") == before
    done = train("encoder", "run", "train.steps=1", overwrite=True)
    assert [row["step"] for row in log_of(done.path)] == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_killed_before_the_first_checkpoint(unbroken, run, command, train, tmp_path):
    """Begun again without --resume: the log has each step once."""
    out = tmp_path / "run"
    assert run(*command("encoder", out), at=(1, int(signal.SIGKILL))).wait().returncode == -9
    assert len(log_of(out)) == 1
    with pytest.raises(UsageError, match="no checkpoint in"):
        train("encoder", "run", resume="latest")
    train("encoder", "run")
    assert [row["step"] for row in log_of(out)] == [1, 2, 3, 4, 5, 6]
    assert losses_of(out) == pytest.approx(losses_of(unbroken("encoder").path), abs=1e-5)


def test_a_tracker_that_is_missing(train, tmp_path, monkeypatch):
    from physcli.tasks.training import loop

    monkeypatch.setattr(loop, "get_available_trackers", lambda: [])
    with pytest.raises(MissingExtra, match="tensorboard"):
        train("encoder", "run", "train.trackers=[tensorboard]")
    assert list(tmp_path.iterdir()) == []


def test_one_process_of_several_is_said(train, monkeypatch, listener):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    heard = listener()
    train("encoder", "run", "train.steps=1", reporter=heard)
    assert "One process runs" in heard.said[0]
    assert "torchrun --nproc_per_node" in heard.said[0]


def test_other_clips_are_another_run(unbroken, train, simulated, tmp_path, listener):
    """A clip has gone since: sample n would be another one."""
    data = tmp_path / "data"
    shutil.copytree(simulated, data)
    with pytest.raises(KeyboardInterrupt):
        train("encoder", "run", data=str(data), reporter=listener(stop_at=3))
    before = listing(tmp_path / "run")
    rows = (data / "metadata.jsonl").read_text().splitlines(keepends=True)
    (data / "metadata.jsonl").write_text("".join(rows[2:]))
    with pytest.raises(UsageError, match="holds another run: clips was") as error:
        train("encoder", "run", data=str(data), resume="latest")
    assert "8 for training" in error.value.received
    assert listing(tmp_path / "run") == before


def test_starting_from_trained_weights(unbroken, train):
    done = train("encoder", "on", model=str(unbroken("encoder").model), steps=1)
    record = json.loads((done.path / "run.json").read_text())
    assert record["settings"]["recipe"]["init"] == "pretrained"
    assert record["settings"]["recipe"]["train"]["steps"] == 1
    assert done.steps[0]["loss"] != losses_of(unbroken("encoder").path)[0]


def test_a_poisoned_model(unbroken, train, tmp_path):
    folder = tmp_path / "sick"
    shutil.copytree(unbroken("encoder").model, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, value in weights.items() if value.ndim == 2)
    weights[name] = weights[name] * torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="The loss became nan at step 1") as error:
        train("encoder", "run", model=str(folder))
    assert "nothing was saved" in error.value.fix
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_how_many_clips_may_lack_a_caption_is_no_other_run(train):
    """A run that was begun without captions can go on."""
    first = train("generator", "run", "train.steps=1")
    assert train("generator", "run", "train.steps=1", "data.max_uncaptioned=1.0").steps == first.steps


def test_loss_curve(tmp_path):
    steps = [{"step": n, "loss": 2 / n, "grad_norm": None if n == 3 else 1.0, "lr": 1e-3} for n in range(1, 8)]
    for name, rows in {"whole": steps, "one": steps[:1], "none": []}.items():
        loss_curve(tmp_path / f"{name}.png", rows, title="A run")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    rows = [row | {"denoising": 1.0, "trd": 0.5, "nothing": 2.0} for row in steps]
    loss_curve(tmp_path / "terms.png", rows, title="A run", terms=("denoising", "trd"), control="nothing")
    beside = [{"step": 4, "loss": 1.5}, {"step": 400, "loss": 0.5, "denoising": 0.2}]
    loss_curve(tmp_path / "beside.png", rows, title="A run", terms=("denoising",), reference=beside)
    loss_curve(tmp_path / "alone.png", rows, title="A run", terms=("denoising",))
    pictures = [plt.imread(tmp_path / f"{name}.png") for name in ("beside", "alone")]
    assert pictures[0].shape[0] == pictures[1].shape[0]
    assert not (pictures[0].shape == pictures[1].shape and (pictures[0] == pictures[1]).all())
    heights = [plt.imread(tmp_path / f"{name}.png").shape[0] for name in ("whole", "terms")]
    assert heights[1] > 1.3 * heights[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "c.mp4").write_bytes((folder / "a.mp4").read_bytes()), "contents was"),
        (lambda folder: (folder / "b.txt").write_text("another caption"), "contents was"),
        (lambda folder: (folder / "d.mp4").write_bytes((folder / "a.mp4").read_bytes()), "clips was"),
    ],
)
def test_data_that_changed(recipes, simulated, session_cache, tmp_path, change, said):
    """Of a finished run, and of one that is to go on, here or from its checkpoint alone."""
    (tmp_path / "data").mkdir()
    clips = [clip for clip in read_dataset(simulated).clips if clip.split == "train"]
    for name, clip in zip("abc", clips, strict=False):
        shutil.copy(clip.path, tmp_path / "data" / f"{name}.mp4")
        (tmp_path / "data" / f"{name}.txt").write_text(clip.prompt)
    given = {"data": str(tmp_path / "data"), "device": "cpu", "cache_dir": session_cache}
    given["overrides"] = ("data.limit=null",)

    def run(steps, out, resume=None):
        name = str(recipes["generator"])
        return finetune(name, resume=resume, steps=steps, out=tmp_path / out, **given)

    whole = run(2, "run")
    assert run(2, "run").steps == whole.steps  # as it was: it is read
    earlier = json.loads((whole.path / "run.json").read_text())
    earlier["inputs"].pop("contents")
    (tmp_path / "earlier").mkdir()
    shutil.copytree(whole.path, tmp_path / "earlier", dirs_exist_ok=True)
    (tmp_path / "earlier" / "run.json").write_text(json.dumps(earlier))
    change(tmp_path / "data")
    with pytest.raises(UsageError, match=said):
        run(2, "run")
    with pytest.raises(UsageError, match="of a run on other data"):
        run(2, "more", resume=str(whole.path / "checkpoint-2"))
    if said.startswith("contents"):  # which the earlier version did not record
        assert run(2, "earlier").steps == whole.steps
