"""Runs that were made before a setting existed go on: golden/old_runs holds what such runs recorded."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from physcli.errors import UsageError
from physcli.progress import Bar, Reporter
from physcli.tasks.finetune import finetune
from physcli.tasks.sample import SampleSettings, sample
from physcli.tasks.training.request import FinetuneRequest

pytestmark = pytest.mark.usefixtures("no_pictures")

OLD = Path(__file__).parents[1] / "golden" / "old_runs"


class Stopped(Reporter):
    """Ends a training as Ctrl-C would, after its third step."""

    @contextmanager
    def bar(self, description, total, unit="it"):
        class Stopping(Bar):
            count = 0

            def advance(self, amount=1):
                self.count += amount
                if description == "Training" and self.count == 3:
                    raise KeyboardInterrupt

        yield Stopping()


def settings_of(name, **replaced):
    """What the run recorded, with paths of this machine."""
    text = (OLD / f"{name}.json").read_text()
    for word, path in replaced.items():
        text = text.replace(json.dumps(word), json.dumps(str(path)))
    return json.loads(text)["settings"]


def make_old(file, settings):
    """Let a record be one that this version did not write."""
    record = json.loads(file.read_text()) | {"settings": settings}
    record.pop("settings_version", None)
    file.write_text(json.dumps(record))


def test_a_training_goes_on(simulated, session_cache, tmp_path):
    then = settings_of("finetune", DATA=simulated)
    assert "noise_shift" not in then["recipe"]["objective"]
    assert "family" not in then["recipe"]["architecture"]
    (tmp_path / "own.yaml").write_text(json.dumps(then["recipe"]))

    def run(out, *overrides, reporter=None, resume=None):
        overrides = ("train.checkpoint_every=2", "train.validate_every=0", *overrides)
        given = {"overrides": overrides, "out": tmp_path / out, "device": "cpu", "cache_dir": session_cache}
        return finetune(FinetuneRequest(str(tmp_path / "own.yaml"), **given), resume=resume, reporter=reporter)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("old", reporter=Stopped())
    for record in (tmp_path / "old" / "run.json", tmp_path / "old" / "checkpoint-2" / "manifest.json"):
        make_old(record, then)

    for changed, said in {
        "objective.noise_shift=2": "recipe.objective.noise_shift was 1.0, now 2.0",
        "train.ema=0.8": "recipe.train.ema was 0.9, now 0.8",
    }.items():
        with pytest.raises(UsageError, match=said):
            run("old", changed, resume="latest")
        with pytest.raises(UsageError, match="is of a run with other settings"):
            run("new", changed, resume=str(tmp_path / "old" / "checkpoint-2"))

    done = run("old", resume="latest")
    assert json.loads((done.path / "run.json").read_text())["training"]["resumed_at"] == 2
    weights, wanted = (
        load_file(one.model / "transformer" / "diffusion_pytorch_model.safetensors") for one in (done, whole)
    )
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_a_sampling_goes_on(base, tmp_path):
    then = settings_of("sample", MODEL=base)
    settings = SampleSettings(("a ball",), model=str(base), steps=2, num_frames=9)
    out = tmp_path / "run"
    sample(settings, out=out, device="cpu")
    for missing in (None, "guidance_scale", "motion_field"):
        old = {name: value for name, value in then.items() if name != missing}
        make_old(out / "run.json", old)
        written = (out / "run.json").stat().st_mtime_ns
        assert sample(settings, out=out, device="cpu").videos
        assert (out / "run.json").stat().st_mtime_ns == written
    make_old(out / "run.json", then)
    with pytest.raises(UsageError, match=r"guidance_scale was 6\.0, now 2\.0"):
        sample(SampleSettings(("a ball",), model=str(base), steps=2, num_frames=9, guidance_scale=2.0), out=out)
