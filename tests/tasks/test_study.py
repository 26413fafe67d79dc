"""`physcli study` on models of a few thousand weights: every stage a real run, resumed, reported, rebuilt from rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from physcli.data.prompts import read_prompts
from physcli.errors import DataError, PhyscliError, RecipeError, UsageError
from physcli.progress import Reporter
from physcli.recipe import list_recipes, read_recipe
from physcli.tasks import compare as comparing
from physcli.tasks import sheets
from physcli.tasks.compare import CompareSettings
from physcli.tasks.eval import EvalSettings, evaluate
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import read_metrics, to_json
from physcli.tasks.study import run as task
from physcli.tasks.study.file import list_studies, read_study
from physcli.tasks.study.rows import read_rows_of
from physcli.yaml12 import dump_yaml

pytestmark = pytest.mark.usefixtures("no_pictures")

TRAINING = ["train.batch_size=2", "data.limit=4", "objective.samples=0", "train.mixed_precision=no"]


class Told(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)

    warn = note


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Players and contact sheets take longer than all else."""
    monkeypatch.setattr(sheets, "contact_sheet", lambda path, **options: path.touch())
    monkeypatch.setattr(comparing, "draw_side_by_side", lambda path, items: path.touch())


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red ball rolls into a yellow box\na red box falls past a yellow ball\n")
    return path


@pytest.fixture
def content(base, few, prompts):
    """What the study's file says."""
    return {
        "description": "A small one",
        "model": str(base),
        "data": str(few),
        "steps": 2,
        "changes": TRAINING,
        "control": "sft",
        "arms": {
            "base": {},
            "sft": {"recipe": "sft", "seeds": [0, 1]},
            "high": {"recipe": "sft", "changes": ["train.optimizer.lr=0.02"]},
            "zero": {"like": "high", "guidance": "cfg-zero", "options": {"zero_steps": 0}, "guidance_scale": 3.0},
            "still": {"like": "base", "static": True},
        },
        "videos": {"prompts": str(prompts), "num_samples": 2, "steps": 2, "batch_size": 4},
        "metrics": ["joint", "motion_px"],
    }


@pytest.fixture
def written(content, tmp_path):
    """`written(**changes)`: its path."""

    def write(name="small", **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_yaml({**content, **changes}))
        return path

    return write


@pytest.fixture(scope="module")
def done_once(base, few, prompts, session_cache, tmp_path_factory):
    """A folder with a finished study of that content, made once; to be copied."""
    return {"folder": tmp_path_factory.mktemp("done"), "made": False}


@pytest.fixture
def finished(done_once, written, session_cache, tmp_path):
    """(the file, the run directory), whole."""
    path = written()
    if not done_once["made"]:
        task.study(str(path), out=done_once["folder"] / "out", device="cpu", cache_dir=session_cache)
        done_once["made"] = True
    out = tmp_path / "out"
    shutil.copytree(done_once["folder"] / "out", out)
    return path, out


@pytest.fixture
def go(session_cache, tmp_path):
    def run(path, *, out="out", **options):
        return task.study(str(path), out=tmp_path / out, device="cpu", cache_dir=session_cache, **options)

    return run


def test_every_arm_is_run_and_compared_with_the_control(finished, go):
    path, out = finished
    again = go(path)
    assert list(again.arms) == ["base", "sft", "high", "zero", "still"]
    assert [len(runs) for runs in again.arms.values()] == [1, 2, 1, 1, 1]
    assert not again.missing
    assert sorted(p.name for p in (out / "train").iterdir()) == ["high-0", "sft-0", "sft-1"]
    assert sorted(p.name for p in (out / "videos").iterdir()) == [
        *("base-0", "high-0", "sft-0", "sft-1", "still-0", "zero-0"),
    ]
    rows = [row for row in again.comparisons["laws"].rows if row["group"] == "all"]
    assert {(row["compared"], row["of"]) for row in rows} == {
        (arm, metric) for arm in ("base", "high", "zero", "still") for metric in ("joint", "motion_px")
    }
    assert {tuple(row["training_seeds"]) for row in rows} == {(1, 2)}
    assert {row["n"] for row in rows} == {4}
    still = next(row for row in rows if (row["compared"], row["of"]) == ("still", "motion_px"))
    assert still["compared_value"] == pytest.approx(0, abs=1e-3)
    assert still["value"] < 0
    text = (out / "report.html").read_text()
    assert "A small one" in text
    assert "spread of trainings" in text
    assert (out / "curves.png").stat().st_size > 1000
    assert read_metrics(out) == json.loads(to_json(again.comparisons["laws"].rows))


def test_the_numbers_are_those_of_eval_and_compare(finished, go, tmp_path):
    path, out = finished
    kept = read_rows_of(out / "rows" / "high-0.json", "high", 0).scored("laws")
    scored = evaluate(EvalSettings("laws", str(out / "videos" / "high-0")), out=tmp_path / "again", device="cpu")
    for item in scored.items:
        values = kept.items[item["prompt"], item["index"], item["seed"]].values
        for name, value in values.items():
            assert value == (None if item[name] is None else pytest.approx(float(item[name]), rel=1e-4))
    ours = go(path).comparisons["laws"].rows
    runs = ["sft=" + ",".join(str(out / "laws" / f"sft-{seed}") for seed in (0, 1))]
    runs += [f"{arm}={out / 'laws' / arm}-0" for arm in ("base", "high", "zero", "still")]
    theirs = comparing.compare(CompareSettings(tuple(runs), ("joint", "motion_px")), out=tmp_path / "compared").rows
    for row, other in zip(ours, theirs, strict=True):
        for name in ("compared", "of", "group", "value", "low", "high", "p", "p_holm", "verdict"):
            same = (
                pytest.approx(other[name], rel=1e-3, abs=1e-5, nan_ok=True)
                if isinstance(other[name], float)
                else other[name]
            )
            assert row[name] == same, name


def test_what_is_whole_is_not_done_again(finished, go, monkeypatch):
    path, out = finished
    for name in ("finetune", "sample", "evaluate", "static"):
        monkeypatch.setattr(task, name, lambda *arguments, **options: pytest.fail("done again"))
    before = {p: p.stat().st_mtime_ns for p in (out / "rows").iterdir()}
    go(path)
    assert {p: p.stat().st_mtime_ns for p in (out / "rows").iterdir()} == before


def test_one_lost_row_runs_nothing_that_is_whole(finished, done_once, session_cache):
    path, out = finished[0], done_once["folder"] / "out"  # a moved study's models are called otherwise
    lost = out / "rows" / "high-0.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    videos = {p: p.stat().st_mtime_ns for p in (out / "videos" / "high-0" / "videos").iterdir()}
    task.study(str(path), out=out, device="cpu", cache_dir=session_cache)
    assert {p: p.stat().st_mtime_ns for p in (out / "videos" / "high-0" / "videos").iterdir()} == videos
    after = json.loads(lost.read_text())
    assert {name: after[name] for name in after if name != "seconds"} == {
        name: before[name] for name in before if name != "seconds"
    }


def test_the_report_is_rebuilt_from_rows_beside_the_file(finished, go, monkeypatch, tmp_path):
    path, out = finished
    expected = go(path).comparisons["laws"].rows
    shutil.copytree(out / "rows", path.with_suffix(""))
    for name in ("finetune", "sample", "evaluate", "static"):
        monkeypatch.setattr(task, name, lambda *arguments, **options: pytest.fail("done again"))
    rebuilt = go(path, out="elsewhere")
    assert to_json(rebuilt.comparisons["laws"].rows) == to_json(expected)
    assert not (tmp_path / "elsewhere" / "videos").exists()


def test_a_new_arm_alone_is_run(finished, written, content, go, tmp_path):
    content["arms"]["slow"] = {"recipe": "sft", "changes": ["train.optimizer.lr=1e-6"]}
    told = Told()
    again = go(written(arms=content["arms"]), reporter=told)
    assert "[1/1] slow-0: train" in told.notes
    assert list(again.arms)[-1] == "slow"
    only = go(
        written(arms=content["arms"] | {"last": {"recipe": "sft", "changes": ["train.clip_norm=9"]}}), only=["sft"]
    )
    assert [str(unit) for unit in only.missing] == ["last-0"]


def test_rows_of_another_question_do_not_count(finished, written, content, go):
    told = Told()
    content["arms"]["high"]["changes"] = ["train.optimizer.lr=0.03"]
    with pytest.raises(PhyscliError, match=r"high-0 could not be run: .*optimizer\.lr was 0\.02, now 0\.03") as error:
        go(written(arms=content["arms"]), reporter=told)
    assert error.value.fix == f"remove {finished[1] / 'train' / 'high-0'}, or give the arm another name"
    assert any("high-0.json is of another question" in note for note in told.notes)
    assert "So could not: zero-0." in str(error.value)
    assert {row["compared"] for row in read_metrics(finished[1])} == {"base", "still"}  # what could be compared was


def test_what_stands_behind_a_name_counts(written, prompts, tmp_path):
    """The same file, of other prompts."""
    other, questions = tmp_path / "prompts.txt", []
    asked = {"prompts": str(other), "num_samples": 2, "steps": 2, "batch_size": 4}
    for text in (prompts.read_text(), prompts.read_text().replace("box falls", "box rolls")):
        other.write_text(text)
        options = {"device": "cpu", "cache_dir": None, "reporter": Reporter(), "processes": Processes("cpu")}
        stages = task._Stages(read_study(written(videos=asked)), tmp_path, beside=tmp_path, **options)
        questions.append(stages.question(task.Unit("sft", 0)))
    assert questions[0].pop("texts") != questions[1].pop("texts")
    assert questions[0] == questions[1]
    assert questions[0]["recipe"]["train"]["optimizer"]["lr"] == read_recipe("sft").train.optimizer.lr


def test_how_others_are_trained_does_not_bear_on_an_arm_that_is_not(written):
    one, other = (read_study(written(steps=steps, changes=[f"train.clip_norm={steps}"])) for steps in (2, 3))
    assert one.asked("sft", 0) != other.asked("sft", 0)
    for arm in ("base", "still"):
        asked = one.asked(arm, 0)
        assert asked == other.asked(arm, 0)
        # Rows of a version that kept them.
        assert other.completed(asked | {"steps": 2, "changes": ["train.clip_norm=2"], "data": "clips"}) == asked


def test_a_list_of_prompts_may_lie_beside_the_file(written, tmp_path, monkeypatch):
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "events.txt").write_text("a red ball rolls\na red box falls\na red box stands\n")
    monkeypatch.chdir(tmp_path)
    options = {"device": "cpu", "cache_dir": None, "reporter": Reporter(), "processes": Processes("cpu")}
    asked = read_study(written(videos={"prompts": "events.txt", "limit": 2}))
    stages = task._Stages(asked, tmp_path / "out", beside=folder, **options)
    assert [prompt.text for prompt in stages.prompts] == ["a red ball rolls", "a red box falls"]
    assert stages.question(task.Unit("base", 0))["videos"]["prompts"] == "events.txt"  # wherever the study lies
    with pytest.raises(DataError, match=r"events\.txt"):
        task._Stages(asked, tmp_path / "out", beside=tmp_path, **options)


def test_the_packaged_study_has_enough_videos():
    for path in list_studies().values():
        asked = read_study(path)
        prompts = read_prompts(path.parent / asked.videos.prompts)
        assert len({prompt.text for prompt in prompts}) == len(prompts)
        assert len(prompts) * asked.videos.num_samples >= 512


def test_two_processes_run_one_study(written, tmp_path, session_cache):
    """The stages after the first need the connections, too."""
    script = tmp_path / "rank.py"
    script.write_text(
        "from pathlib import Path\n"
        "from physcli.tasks.study import run\n"
        f"run.study({str(written())!r}, only=['base', 'high'], out=Path({str(tmp_path / 'two')!r}), device='cpu', "
        f"cache_dir=Path({str(session_cache)!r}))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in (tmp_path / "two" / "rows").iterdir()) == ["base-0.json", "high-0.json"]


def test_broken_rows_are_named(finished, go):
    path, out = finished
    (out / "rows" / "base-0.json").write_text("{}")
    with pytest.raises(DataError, match=r"base-0\.json holds no rows of a study: KeyError"):
        go(path)


def test_a_plan_leaves_nothing(written, session_cache, tmp_path):
    plans = task.plan_study(str(written()), out=tmp_path / "out", device="cpu", cache_dir=session_cache)
    assert [str(plan.unit) for plan in plans] == ["base-0", "sft-0", "sft-1", "high-0", "zero-0", "still-0"]
    trained = {str(plan.unit) for plan in plans if plan.train > 0}
    assert trained == {"sft-0", "sft-1", "high-0"}
    assert all(plan.judge > 0 for plan in plans)
    assert [str(plan.unit) for plan in plans if not plan.sample] == ["still-0"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"control": "other"}, "control is 'other', and the arms are base"),
        ({"arms": {"a": {}}}, "arms is"),
        ({"arms": {"a/b": {}, "sft": {}}}, "an arm is called 'a/b'"),
        ({"arms": {"sft": {"recipee": "sft"}, "b": {}}}, r"unknown field arms\.sft\.recipee, did you mean recipe"),
        ({"arms": {"sft": {}, "b": {"seeds": [0, 1]}}}, "changes and seeds are for an arm with a recipe"),
        ({"arms": {"sft": {}, "b": {"like": "c"}}}, "b is like c, which is no arm"),
        ({"arms": {"sft": {}, "b": {"like": "sft", "recipe": "repa"}}}, "one of them"),
        ({"arms": {"sft": {}, "b": {"static": True}}}, "static is for an arm that is like another"),
        ({"arms": {"sft": {}, "b": {"guidance": "none of them"}}}, "guidance is 'none of them': one of none, lamo"),
        (
            {"arms": {"sft": {}, "b": {"guidance": "lamo", "options": {"motion_scale": -1}}}},
            "options: --motion-scale -1",
        ),
        ({"arms": {"sft": {}, "b": {"options": {"motion_scale": 1}}}}, "options without a guidance: motion_scale"),
        ({"arms": {"b": {}, "sft": {"recipe": "sft", "seeds": [1, 1]}}}, "a seed stands twice in seeds"),
        ({"metrics": ["jiont"]}, "metrics has 'jiont': one of sa"),
        ({"judges": ["law"]}, "judges has 'law': one of laws"),
        ({"judges": []}, "judges is"),
        ({"videos": {"step": 3}}, r"unknown field videos\.step, did you mean steps"),
    ],
)
def test_a_wrong_file_is_explained(written, changes, said):
    with pytest.raises(RecipeError, match=said):
        read_study(written(**changes))


def test_unknown_names(written, go):
    with pytest.raises(UsageError, match=r"Unknown arm: 'sftt'\. Did you mean 'sft'"):
        go(written(), only=["sftt"])
    with pytest.raises(UsageError, match="Unknown study: 'nothing'"):
        go(Path("nothing"))


def test_an_arm_that_trains_no_generator(written, content, go):
    content["arms"]["field"] = {"recipe": "lamo-field", "changes": []}
    with pytest.raises(UsageError, match="field: lamo-field trains a motion-field"):
        go(written(arms=content["arms"], changes=["data.limit=4"]), only=["field"])


def test_packaged_studies_are_no_recipes_and_can_be_read():
    assert not any(name.startswith("study/") for name in list_recipes())
    for path in list_studies().values():
        read_study(path)
