"""`train.score_every`: the same judge on the same items, and the weights that it liked best."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from physcli.data.clips import read_dataset
from physcli.errors import RecipeError, UsageError
from physcli.models.loading import load
from physcli.recipe import read_recipe
from physcli.report.plots import score_curves
from physcli.rows import Metric, make_row
from physcli.tasks.probe_physion import ProbeSettings, probe_physion
from physcli.tasks.processes import Processes
from physcli.tasks.training.scoring import LawsJudge, ScoreLog, asked_of, overall

pytestmark = pytest.mark.usefixtures("no_pictures")

LAWS = ("train.score_every=2", "scoring.videos=3", "scoring.sample_steps=2", "scoring.metric=moves")
EXACT = ("train.mixed_precision=no", "train.schedule.name=constant", "train.ema=0.5", "train.checkpoint_every=1")


@pytest.fixture
def arguments(base, few, session_cache):
    """The arguments of a run of milliseconds a step."""

    def get(*overrides, name="sft", **options):
        changes = ("data.limit=4", "train.batch_size=2", "train.schedule.warmup_steps=0", "objective.samples=0")
        given = {"model": str(base), "data": str(few), "steps": 4, "device": "cpu", "cache_dir": session_cache}
        return {"recipe_name": name, "overrides": (*changes, *EXACT, *overrides), **given, **options}

    return get


def scores_of(folder):
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def weights_of(folder):
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def test_laws_of_the_weights_as_they_are_saved(run, few):
    """What was scored last is what the written model gives; the best of equals is the first, and kept."""
    done = run("out", *LAWS)
    entries = scores_of(done.path)
    assert [entry["step"] for entry in entries] == [0, 2, 4]
    held_out = [clip for clip in read_dataset(few).clips if clip.split == "test"]
    written = load(str(done.path / "model"), device="cpu")
    recipe = read_recipe(done.path / "recipe.yaml")
    items = asked_of(held_out, recipe, seed=0, default_rate_hz=20.0)
    judge = LawsJudge(items, recipe, processes=Processes("cpu"))
    again = judge.score(written, done.path)
    assert [row["value"] for row in again] == [row["value"] for row in entries[-1]["rows"]]
    assert {row["n"] for row in again if row["metric"] == "moves" and row["group"] == "all"} == {3}
    assert overall(entries[-1]["rows"]) == [row for row in done.rows if row["benchmark"] == "laws"]

    best = json.loads((done.path / "run.json").read_text())["best"]
    values = {
        entry["step"]: row["value"] for entry in entries for row in overall(entry["rows"]) if row["metric"] == "moves"
    }
    first = max((2, 4), key=lambda step: (values[step], -step))
    assert best == {"step": first, "moves": values[first]}
    shorter = run("shorter", steps=first)
    kept, expected = weights_of(done.path / "best" / "model"), weights_of(shorter.path / "model")
    assert all(kept[name].equal(value) for name, value in expected.items())
    assert f"{first} of 4 steps" in (done.path / "best" / "model" / "README.md").read_text() or first == 4


@pytest.mark.parametrize("stop_at", [2, 3])
def test_resumed(run, listener, stop_at):
    whole = run("whole", *LAWS)
    with pytest.raises(KeyboardInterrupt):
        run("broken", *LAWS, reporter=listener(stop_at=stop_at))
    done = run("broken", *LAWS, resume="latest")
    assert scores_of(done.path) == scores_of(whole.path)
    assert done.rows == whole.rows
    one, other = (weights_of(path / "best" / "model") for path in (whole.path, done.path))
    assert all(one[name].equal(other[name]) for name in one)


def test_ocp_is_the_probe_s(run, simulated, session_cache, tmp_path):
    done = run("out", "train.score_every=4", "scoring.judge=ocp", f"scoring.data={simulated}", "scoring.sigma=0.5")
    settings = ProbeSettings(models=(str(done.path / "model"),), data=str(simulated), sigmas=(0.5,))
    probed = probe_physion(settings, out=tmp_path / "probe", device="cpu", cache_dir=session_cache)
    expected = {r["metric"]: r["value"] for r in probed.rows if r["subject"] == "model" and r["group"] == "all"}
    last = {row["metric"]: row["value"] for row in overall(scores_of(done.path)[-1]["rows"])}
    assert last == {name: expected[name] for name in last}
    assert "accuracy" in last
    assert not list((done.path / "samples").rglob("features.part"))


def test_two_processes_make_the_same_videos(run, arguments, in_two_processes, tmp_path):
    """Of the weights that training begins with, which are the same to the bit."""
    one = run("one", *LAWS)
    given = arguments(*LAWS, "train.batch_size=1") | {"out": tmp_path / "two"}
    in_two_processes(given)
    assert scores_of(tmp_path / "two")[0] == scores_of(one.path)[0]
    assert (tmp_path / "two" / "best" / "model").is_dir()


def test_a_score_ends_a_method(run):
    """Scored before the first step: the method never begins."""
    name, stop = "layersync", ("method.pairs=[[0, 1]]", "method.schedule.stop_score=0", "train.score_every=4")
    off = run("off", *stop, *LAWS[1:], name=name)
    assert not any("layersync" in row for row in off.steps)
    on = run("on", *stop[:1], "method.schedule.stop_score=1.1", *LAWS, name=name)
    assert all("layersync" in row for row in on.steps)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.score_every=1", "scoring.metric=beauty"), "unknown metric of scoring.judge=laws: 'beauty'"),
        (("train.score_every=1", "scoring.judge=ocp", "scoring.block=7"), "No such block: 7"),
        (("scoring.judge=ocp", "scoring.videos=4"), "videos mean nothing to judge: ocp"),
        (("scoring.sigma=0.5",), "sigma mean nothing to judge: laws"),
    ],
)
def test_what_cannot_be_scored(run, overrides, said):
    with pytest.raises(UsageError) as error:
        run("out", *overrides)
    assert said.lower() in str(error.value).lower()


def test_what_is_not_scored(run):
    with pytest.raises(UsageError, match="stop_score where nothing scores"):
        run("out", "method.pairs=[[0, 1]]", "method.schedule.stop_score=0.5", name="layersync")
    with pytest.raises((RecipeError, UsageError), match="score_every is for trains: generator"):
        read_recipe("pretrain/vae-tiny", ["train.score_every=5"])


def test_the_log(tmp_path):
    """Steps before training are shown, but are no best; a resumed log ends where training goes on."""

    def rows(value):
        metric = Metric("joint", "rate", True, interval="wilson")
        return [make_row(metric, value, benchmark="laws", task="laws", subject="a", n=20, stderr=0.1, group="all")]

    log = ScoreLog(tmp_path, "joint", writes=True)
    assert log.best is None
    for step, value in ((0, 0.9), (2, 0.25), (4, 0.5), (6, 0.5)):
        log.add(step, rows(value))
    assert log.best == (4, 0.5)
    assert not log.is_best(rows(0.5))
    assert log.is_best(rows(0.55))
    other = ScoreLog(tmp_path, "joint", writes=False)
    other.begin(2, tmp_path)
    assert (other.last, other.best, other.values()) == (2, (2, 0.25), {"joint": 0.25})


def test_the_picture(tmp_path):
    score_curves(
        tmp_path / "scores.png",
        title="a",
        curves={"joint": [(0, 0.1, 0.0, 0.3), (5, 0.2, 0.1, 0.4)], "sa": [(0, 0.5, 0.4, 0.6)]},
        banded="joint",
    )
    assert (tmp_path / "scores.png").stat().st_size > 5000
