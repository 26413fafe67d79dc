"""`physcli bench`: what the options of `finetune` mean, and which do not go together; how `faults` ends."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from physcli.cli.app import app
from physcli.errors import UsageError
from physcli.tasks.bench import faults, finetune, full_size, kernels
from physcli.tasks.bench.timing import row

TASKS = {
    "bench_finetune": finetune,
    "bench_full_size": full_size,
    "bench_kernels": kernels,
}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """`asked("--lora")`: which benchmark the command line asks for and with what, and the JSON it prints."""

    def go(*options):
        calls = []
        for name, module in TASKS.items():

            def record(*arguments, name=name, **settings):
                del settings["reporter"]
                calls.append((name, arguments, settings))
                return [row("finetune", "a model", "sft", "seconds_per_step", 1.0, 1, False)]

            monkeypatch.setattr(module, name, record)
        arguments = ["bench", "finetune", *options, "--json", "--out", str(tmp_path / "run")]
        done = CliRunner().invoke(app, arguments)
        if done.exception is not None:
            raise done.exception
        [call] = calls
        return *call, json.loads(done.stdout)

    return go


def test_the_embedded_default(asked):
    name, arguments, settings, result = asked()
    assert (name, arguments) == ("bench_finetune", ())
    assert settings == {
        **{"model": "cogvideox-tiny", "methods": [], "overrides": []},
        **{"rounds": 15, "device": "auto", "seed": 0},
    }
    assert [one["metric"] for one in result["rows"]] == ["seconds_per_step"]


def test_a_full_size(asked):
    options = ("--full-size", "5b", "--method", "sft", "--num-frames", "5", "--size", "64x96", "--no-lora")
    name, arguments, settings, _ = asked(*options, "--rounds", "1", "--device", "cpu")
    assert (name, arguments) == ("bench_full_size", ("5b",))
    assert settings == {
        **{"methods": ["sft"], "overrides": ["train.batch_size=1", "objective.frames=5", "lora=null"]},
        **{"height": 64, "width": 96, "dtype": "bfloat16", "rounds": 1, "device": "cpu", "seed": 0},
    }


def test_kernels(asked):
    assert asked("--kernels", "--rounds", "2")[:3] == ("bench_kernels", (), {"rounds": 2, "device": "auto", "seed": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kernels", "--model", "x", "--lora"], "--model, --lora with --kernels"),
        (["--kernels", "--full-size", "2b"], "--full-size with --kernels"),
        (["--full-size", "2b", "--model", "x"], "--model with --full-size"),
        (["--size", "64x64", "--dtype", "float32"], "--size, --dtype without --full-size"),
    ],
)
def test_options_that_do_not_go_together(asked, options, message):
    with pytest.raises(UsageError, match=message):
        asked(*options)


@pytest.mark.parametrize("wrong", [0, 2])
def test_faults_end_with_1_if_anything_is_wrong(monkeypatch, tmp_path, wrong):
    asked = {}

    def campaign(*, reporter, **settings):
        asked.update(settings)
        counts = {"tries": 4, "early": 0, "exact": 4 - wrong, "refused": 0, "wrong": wrong}
        return [row("faults", "eval", "eval: kill", name, count, 4, None) for name, count in counts.items()]

    monkeypatch.setattr(faults, "bench_faults", campaign)
    arguments = ["bench", "faults", "--command", "eval", "--fault", "kill", "--kills", "4", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == (1 if wrong else 0)
    assert asked == {"commands": ["eval"], "faults": ["kill"], "kills": 4, "seed": 0}
    assert len(json.loads(done.stdout)["rows"]) == 5
