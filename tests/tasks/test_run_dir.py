"""Run directories: what they record, when they are continued, refused or replaced."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest

from physcli.errors import DataError, PhyscliError, UsageError
from physcli.progress import Reporter
from physcli.tasks.run_dir import RunDir, cache_root, read_run, to_json, with_defaults


class Heard(Reporter):
    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


def test_a_finished_run_says_what_it_was(tmp_path):
    with RunDir(tmp_path / "a", "probe physion", {"sigma": (0.3,), "seed": 1}) as run:
        run.check_inputs({"model": "abc"})
        assert read_run(run.path)["status"] == "running"
        run.write_metrics([{"metric": "accuracy", "value": math.nan}])
    record = read_run(tmp_path / "a")
    assert record["status"] == "finished"
    assert record["duration_s"] >= 0
    assert record["settings"] == {"sigma": [0.3], "seed": 1}
    assert record["inputs"] == {"model": "abc"}
    assert {"torch", "physcli"} <= record["versions"].keys()
    assert record["hardware"]["cpu_count"] >= 1
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == [{"metric": "accuracy", "value": None}]


def test_equal_settings_continue(tmp_path):
    with RunDir(tmp_path / "a", "x", {"seed": 1}) as run:
        run.write_metrics([])
    stamp = (tmp_path / "a" / "run.json").stat().st_mtime_ns
    with RunDir(tmp_path / "a", "x", {"seed": 1}) as run:
        assert run.already_finished
    assert (tmp_path / "a" / "run.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("command", "settings", "inputs", "said"),
    [
        ("x", {"seed": 2}, {"model": "old"}, "seed was 1, now 2"),
        ("x", {"seed": 1}, {"model": "new"}, 'model was "old", now "new"'),
        ("y", {"seed": 1}, {"model": "old"}, "it is a run of `x`"),
    ],
)
def test_other_settings_are_refused_unless_overwritten(tmp_path, command, settings, inputs, said):
    with RunDir(tmp_path / "a", "x", {"seed": 1}) as run:
        run.check_inputs({"model": "old"})
        (run.path / "precious.txt").write_text("")
    record = read_run(tmp_path / "a")

    def again(**options):
        with RunDir(tmp_path / "a", command, settings, **options) as run:
            run.check_inputs(inputs)

    with pytest.raises(UsageError, match=said) as caught:
        again()
    assert (tmp_path / "a" / "precious.txt").exists()
    assert read_run(tmp_path / "a") == record
    if command == "y":  # a run of another command is never replaced
        with pytest.raises(UsageError, match=said):
            again(overwrite=True)
        assert read_run(tmp_path / "a") == record
        return
    assert "--overwrite" in caught.value.fix
    again(overwrite=True)
    assert not (tmp_path / "a" / "precious.txt").exists()
    assert read_run(tmp_path / "a")["settings"] == settings


@dataclass(frozen=True)
class Settings:
    prompts: tuple[str, ...]
    steps: int = 50
    added: int | None = None  # later than the runs below; resolved to 6 where it is not given


OLD = {"prompts": ["a"], "steps": 50}


@pytest.mark.parametrize(
    ("record", "given", "said"),
    [
        ({"settings": OLD}, Settings(("a",)), None),
        ({"settings": OLD}, Settings(("a",), added=3), "added was null, now 3"),
        ({"settings": OLD}, Settings(("b",)), "prompts was"),
        ({"settings": OLD | {"added": 6}, "settings_version": 1}, Settings(("a",)), None),
        # It was resolved to something else then: a default has changed, and the run does not go on with the new one.
        ({"settings": OLD | {"added": 5}, "settings_version": 1}, Settings(("a",)), "added was 5, now 6"),
        ({"settings": OLD | {"steps": 40}}, Settings(("a",)), "steps was 40, now 50"),
        # A default has changed since, of something that this run knew nothing of.
        ({"settings": OLD, "settings_version": 0}, Settings(("a",)), "added was null, now 6"),
        ({"settings": OLD | {"removed": 1}}, Settings(("a",)), "removed was 1, now null"),
    ],
)
def test_a_setting_that_did_not_exist_counts_as_its_default(tmp_path, record, given, said):
    (tmp_path / "run.json").write_text(json.dumps({"command": "x", "status": "finished", "inputs": {}, **record}))
    (tmp_path / "metrics.json").write_text("[]")
    resolved = given if given.added is not None else replace(given, added=6)

    def again():
        return RunDir(tmp_path, "x", asdict(resolved), complete=with_defaults(given, resolved))

    if said is None:
        assert again().already_finished
        return
    with pytest.raises(UsageError, match=said):
        again()


def test_a_folder_of_other_things_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"no run\.json"):
            RunDir(tmp_path, "x", {}, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_out_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunDir(tmp_path / "file", "x", {})
    with pytest.raises(DataError, match="cannot be made"):
        RunDir(tmp_path / "file" / "below", "x", {})


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("probe physion --seed 1", "physcli probe physion --seed 1 --out {out}"),
        ("probe physion --out {out}", "physcli probe physion --out {out}"),
        ("probe physion --overwrite --out={out}", "physcli probe physion --out={out}"),
        ("quickstart", "physcli quickstart"),  # a run within another command's
    ],
)
def test_interruption_is_marked_and_explained(tmp_path, monkeypatch, argv, said):
    heard, out = Heard(), tmp_path / "a"
    monkeypatch.setattr("sys.argv", ["physcli", *argv.format(out=out).split()])
    with pytest.raises(KeyboardInterrupt), RunDir(out, "probe physion", {"seed": 1}, reporter=heard):
        raise KeyboardInterrupt
    assert read_run(out)["status"] == "interrupted"
    assert heard.warnings[0].endswith(f"to go on: {said.format(out=out)}")
    assert not RunDir(out, "probe physion", {"seed": 1}).already_finished


def test_an_interrupted_training_is_resumed_at_its_checkpoint(tmp_path, monkeypatch):
    for argv, added in (("finetune --out a", " --resume latest"), ("finetune --out a --resume latest", "")):
        heard = Heard()
        monkeypatch.setattr("sys.argv", ["physcli", *argv.split()])
        run = RunDir(tmp_path / "a", "finetune", {}, reporter=heard)
        (tmp_path / "a" / "checkpoint-4").mkdir(parents=True, exist_ok=True)
        with pytest.raises(KeyboardInterrupt), run:
            raise KeyboardInterrupt
        assert heard.warnings[0].endswith(f"to go on: physcli {argv}{added}")


def test_failure_is_marked(tmp_path):
    with pytest.raises(ValueError, match="boom"), RunDir(tmp_path / "a", "x", {}):
        raise ValueError("boom")
    record = read_run(tmp_path / "a")
    assert (record["status"], record["error"]) == ("failed", "ValueError: boom")


def test_what_overwrite_replaces_comes_back_if_the_new_run_cannot_begin(tmp_path):
    with RunDir(tmp_path / "a", "x", {"seed": 1}) as run:
        (run.path / "precious.txt").write_text("")
        run.write_metrics([])
    record = read_run(tmp_path / "a")
    with pytest.raises(UsageError), RunDir(tmp_path / "a", "x", {"seed": 2}, overwrite=True):
        raise UsageError("no such block")
    assert read_run(tmp_path / "a") == record
    assert (tmp_path / "a" / "precious.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_finished_without_its_metrics_is_not_finished(tmp_path):
    with RunDir(tmp_path / "a", "x", {"seed": 1}) as run:
        run.write_metrics([])
    assert RunDir(tmp_path / "a", "x", {"seed": 1}).already_finished
    (tmp_path / "a" / "metrics.json").write_text("[")
    assert not RunDir(tmp_path / "a", "x", {"seed": 1}).already_finished


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_run_json_that_is_not_a_record(tmp_path, content):
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(PhyscliError, match="not the record of a run"):
        RunDir(tmp_path, "x", {})


def test_json_is_strict():
    value = {"a": np.float32(0.5), "b": [np.int64(2), math.inf], ("c",): None}
    assert json.loads(to_json(value)) == {"a": 0.5, "b": [2, None], "('c',)": None}


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.delenv("PHYSCLI_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root(None) == tmp_path / "physcli"
    assert cache_root(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv("PHYSCLI_CACHE", str(tmp_path / "y"))
    assert cache_root(None) == tmp_path / "y"
    assert cache_root(tmp_path / "x") == tmp_path / "x"


def test_a_run_that_could_not_begin_leaves_nothing(tmp_path):
    with pytest.raises(UsageError), RunDir(tmp_path / "runs" / "a", "x", {}):
        raise UsageError("no such block")
    assert list(tmp_path.iterdir()) == []
    run = RunDir(tmp_path / "runs" / "a", "x", {})
    (run.path / "items.jsonl").write_text("")
    with pytest.raises(UsageError), run:
        raise UsageError("no such block")
    assert read_run(run.path)["status"] == "failed"


# --- what a kill leaves ---


def killed(folder, settings, **options):
    """A run that was killed once its folder was begun: nobody leaves it, and the system lets go of it."""
    run = RunDir(folder, "x", settings, **options)
    run._let_go()
    return run


def test_a_run_that_was_killed_while_it_wrote_its_record_can_begin(tmp_path):
    (tmp_path / ".run.json.123.part").write_text("{")
    with RunDir(tmp_path, "x", {}) as run:
        run.write_metrics([])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "run.json"]


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    killed(tmp_path / "a", {})
    (tmp_path / "a" / "videos").mkdir()
    for name in (".items.jsonl.12.part", "videos/.red-0.mp4.12.part", "videos/.a.npz.12.part.npz"):
        (tmp_path / "a" / name).write_text("")
    kept = ["items-0.part.jsonl", "videos/.hidden.mp4", "pairs.jsonl.part"]  # what a run goes on with, and a user's
    for name in kept:
        (tmp_path / "a" / name).write_text("")
    with RunDir(tmp_path / "a", "x", {}) as run:
        files = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    assert files == {"run.json", *kept}


def test_a_run_that_is_killed_twice_still_knows_its_inputs(tmp_path):
    """The second time before it has hashed them: what the first has done is of the old ones."""
    killed(tmp_path, {}).check_inputs({"videos": "old"})
    killed(tmp_path, {})
    assert read_run(tmp_path)["inputs"] == {"videos": "old"}
    with pytest.raises(UsageError, match='videos was "old", now "new"'), RunDir(tmp_path, "x", {}) as run:
        run.check_inputs({"videos": "new"})


def test_one_process_at_a_time(tmp_path):
    out = tmp_path / "a"
    with RunDir(out, "x", {"seed": 1}) as run:
        for options in ({}, {"overwrite": True}):
            with pytest.raises(UsageError, match="Another physcli process is writing to --out"):
                RunDir(out, "x", {"seed": 1}, **options)
        run.write_metrics([])
    assert read_run(out)["status"] == "finished"
    with RunDir(out, "x", {"seed": 1}) as first:  # reading is for all
        assert first.already_finished
        assert RunDir(out, "x", {"seed": 1}).already_finished
        first.reopen()
        with pytest.raises(UsageError, match="Another physcli process"):
            RunDir(out, "x", {"seed": 1})


@pytest.mark.parametrize("at", ["before the new folder", "before its record", "begun"])
@pytest.mark.parametrize("again", ["the old", "the new", "the new, which fails"])
def test_a_kill_of_overwrite_loses_no_run(tmp_path, at, again):
    out = tmp_path / "a"
    with RunDir(out, "x", {"seed": 1}) as run:
        (run.path / "precious.txt").write_text("")
        run.write_metrics([])
    killed(out, {"seed": 2}, overwrite=True)
    if at != "begun":
        (out / "run.json").unlink()
    if at == "before the new folder":
        out.rmdir()
    if again == "the old" and at != "begun":
        assert RunDir(out, "x", {"seed": 1}).already_finished
    elif again == "the new":
        with RunDir(out, "x", {"seed": 2}, overwrite=True) as run:
            run.write_metrics([])
        assert read_run(out)["settings"] == {"seed": 2}
    else:
        with pytest.raises(UsageError), RunDir(out, "x", {"seed": 2}, overwrite=True):
            raise UsageError("no such block")
        assert RunDir(out, "x", {"seed": 1}).already_finished
    assert (out / "precious.txt").exists() == (again != "the new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
