"""One seed gives the same clips with one release of MuJoCo only: which one is written down, and two are never mixed."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import metadata

import mujoco
import pytest
from made_recipes import TINY_ENCODER

from physcli.data.clips import NOT_RECORDED, installed_mujoco, read_dataset
from physcli.errors import PhyscliError, UsageError
from physcli.progress import Reporter
from physcli.tasks.baselines import BaselineSettings, repeat_real
from physcli.tasks.compare import CompareSettings, compare
from physcli.tasks.doctor import examine
from physcli.tasks.finetune import finetune
from physcli.tasks.inspect_data import inspect_data
from physcli.tasks.precompute import precompute
from physcli.tasks.probe_physion import ProbeSettings, probe_physion
from physcli.tasks.probe_result import probe_title
from physcli.tasks.quickstart import quickstart
from physcli.tasks.simulate import SimulateSettings, ensure_simulated, simulate
from physcli.tasks.training.request import FinetuneRequest

FEWEST = SimulateSettings(num_train=2, num_test=2, scenarios=("drop",), height=16, width=16, num_frames=17)
ENCODER = f"""{TINY_ENCODER}
train: {{steps: 2, batch_size: 1, checkpoint_every: 1, validate_every: 0}}
"""


@pytest.fixture
def install(monkeypatch):
    """`install("3.17.0")`: as if that release of MuJoCo were there."""
    real = metadata.version

    def go(release):
        monkeypatch.setattr(metadata, "version", lambda name: release if name == "mujoco" else real(name))

    return go


def test_the_release_named_is_the_one_that_simulates():
    assert installed_mujoco() == mujoco.mj_versionString()


def test_a_mujoco_that_is_there_and_cannot_be_imported(monkeypatch):
    """As pip leaves it that upgrades MuJoCo 3 in place."""
    assert [check.status for check in examine() if check.name == "mujoco"] == ["ok"]
    monkeypatch.setitem(sys.modules, "mujoco", None)
    [found] = [check for check in examine() if check.name == "mujoco"]
    assert found.status == "missing"
    assert "cannot be imported" in found.found
    assert "--force-reinstall --no-deps mujoco" in found.remedy


def test_a_set_names_its_release(simulated, tmp_path):
    assert json.loads((simulated / "dataset.json").read_text())["mujoco"] == installed_mujoco()
    assert read_dataset(simulated).mujoco == installed_mujoco()
    shutil.copytree(simulated, tmp_path / "plain", ignore=shutil.ignore_patterns("dataset.json", "arrays"))
    assert read_dataset(tmp_path / "plain").mujoco is None


def test_a_set_of_before_it_was_recorded_is_read(simulated, tmp_path):
    shutil.copytree(simulated, tmp_path / "old")
    file = tmp_path / "old" / "dataset.json"
    content = json.loads(file.read_text())
    del content["mujoco"]
    file.write_text(json.dumps(content))
    dataset = read_dataset(tmp_path / "old")
    assert (len(dataset.clips), dataset.mujoco) == (40, NOT_RECORDED)
    found = dict(map(tuple, inspect_data(tmp_path / "old").facts()))
    assert found["simulated by MuJoCo"] == f"not recorded (here {installed_mujoco()})"


def test_inspection_says_that_another_release_made_it(simulated, install):
    assert dict(map(tuple, inspect_data(simulated).facts()))["simulated by MuJoCo"] == installed_mujoco()
    made_by = installed_mujoco()
    install("9.1.0")
    found = inspect_data(simulated)
    assert dict(map(tuple, found.facts()))["simulated by MuJoCo"] == f"{made_by} (here 9.1.0: makes other clips)"
    assert (found.as_dict()["mujoco"], found.as_dict()["mujoco_here"]) == (made_by, "9.1.0")


def test_a_set_is_not_gone_on_with_by_another_release(tmp_path, install):
    out = tmp_path / "set"
    install("3.17.0")
    simulate(FEWEST, out=out, workers=1)
    assert read_dataset(out).mujoco == "3.17.0"
    install("9.1.0")
    refused = r'holds another run: mujoco was "3\.17\.0", now "9\.1\.0"'
    with pytest.raises(UsageError, match=refused):
        simulate(FEWEST, out=out, workers=1)

    record = json.loads((out / "run.json").read_text())
    del record["settings"]["mujoco"]  # as it was written before; what was installed stood in it all the same
    for release, message in (("3.17.0", refused), ("9.1.0", None)):
        for status in ("finished", "interrupted"):
            old = record | {"status": status, "versions": record["versions"] | {"mujoco": release}}
            (out / "run.json").write_text(json.dumps(old))
            if message is None:
                simulate(FEWEST, out=out, workers=1)
            else:
                with pytest.raises(UsageError, match=message):
                    simulate(FEWEST, out=out, workers=1)


def test_every_release_has_suites_of_its_own(tmp_path, install):
    folders = []
    for release in ("3.17.0", "9.1.0"):
        install(release)
        folders.append(ensure_simulated(2, cache=tmp_path, workers=1))
        assert ensure_simulated(2, cache=tmp_path, workers=1) == folders[-1]
        assert read_dataset(folders[-1]).mujoco == release
    assert folders[0] != folders[1]


def test_a_probe_names_it(simulated, session_cache, tmp_path, install):
    """`simulated` is a folder here: what is read of it does not change with what is installed."""
    settings = ProbeSettings(models=("videomae-tiny",), data=str(simulated), layers=(0,))
    made_by = installed_mujoco()
    install("9.1.0")
    done = probe_physion(settings, out=tmp_path / "probe", device="cpu", cache_dir=session_cache)
    record = json.loads((tmp_path / "probe" / "run.json").read_text())
    assert record["inputs"]["mujoco"] == made_by
    assert {row["mujoco"] for row in done.rows if row["metric"] == "accuracy"} == {made_by}
    assert f"simulated (MuJoCo {made_by}), readout" in probe_title(done)

    # A run of before, whose inputs do not have it, is the same run.
    del record["inputs"]["mujoco"]
    (tmp_path / "probe" / "run.json").write_text(json.dumps(record))
    assert probe_physion(settings, out=tmp_path / "probe", device="cpu", cache_dir=session_cache).rows == done.rows

    # Two probes of clips of the same names.
    shutil.copytree(tmp_path / "probe", tmp_path / "other")
    for name in ("metrics.json", "run.json"):
        text = (tmp_path / "other" / name).read_text()
        (tmp_path / "other" / name).write_text(text.replace(f'"mujoco": "{made_by}"', '"mujoco": "3.17.0"'))
    sides = CompareSettings((str(tmp_path / "probe"), str(tmp_path / "other")), intersect=True)
    with pytest.raises(PhyscliError, match=r"different releases of MuJoCo\. .*probe: MuJoCo .*; .*other: MuJoCo 3\.17"):
        compare(sides, out=tmp_path / "compare")
    for name in ("metrics.json", "run.json"):
        text = (tmp_path / "other" / name).read_text()
        (tmp_path / "other" / name).write_text(text.replace('"mujoco": "3.17.0",', ""))
    assert compare(sides, out=tmp_path / "compare").rows


def again(begin, install, *, first="3.17.0", then="9.1.0"):
    """A run on a suite, broken off once it has its folder; then the same with another release, which is refused."""
    install(first)
    begin(Stopping())
    install(then)
    with pytest.raises(UsageError, match=f'mujoco was "{first}", now "{then}"'):
        begin(Reporter())


class Stopping(Reporter):
    """Ends a run as Ctrl-C would, at its first bar: what follows takes long, and its settings are written."""

    def bar(self, description, total, unit="it"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["probe", "precompute", "repeat-real", "quickstart"])
def test_runs_on_a_suite_are_of_one_release(command, tmp_path, install):
    given = {"out": tmp_path / "run", "cache_dir": tmp_path / "cache"}

    def begin(reporter):
        try:
            if command == "probe":
                probe_physion(ProbeSettings(("videomae-tiny",), data="simulated:2"), reporter=reporter, **given)
            elif command == "precompute":
                precompute(FinetuneRequest("videorepa", data="simulated:2", device="cpu", **given), reporter=reporter)
            elif command == "repeat-real":
                chosen = BaselineSettings("repeat-real", "simulated:2", model="cogvideox-tiny")
                repeat_real(chosen, reporter=reporter, **given)
            else:
                quickstart(reporter=reporter, **given)
        except KeyboardInterrupt:
            pass

    again(begin, install)


def test_a_training_does_not_go_on_with_clips_of_another_release(tmp_path, install):
    (tmp_path / "own.yaml").write_text(ENCODER)

    def run(out="run", resume=None):
        given = {"out": tmp_path / out, "device": "cpu", "cache_dir": tmp_path / "cache"}
        return finetune(FinetuneRequest(str(tmp_path / "own.yaml"), data="simulated:2", **given), resume=resume)

    made_by = installed_mujoco()
    done = run()
    assert f"6 clips of `simulated:2` (MuJoCo {made_by})" in (done.model / "README.md").read_text()
    assert run().model == done.model
    install("9.1.0")
    for resume in (None, "latest"):  # a finished run is not served as that of other clips
        with pytest.raises(UsageError, match=f'mujoco was "{made_by}", now "9.1.0"'):
            run(resume=resume)
    with pytest.raises(UsageError, match="other settings") as caught:
        run("new", resume=str(tmp_path / "run" / "checkpoint-1"))
    assert "the same release of MuJoCo" in caught.value.expected
