"""`physcli eval controls`: copies of clips, who prefers them, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from physcli.data.twins import read_scenes
from physcli.errors import DataError, UsageError
from physcli.simulation.violations import KINDS
from physcli.tasks import controls as task
from physcli.tasks.controls import COPIES, REAL, SLOW, ControlsSettings, controls
from physcli.tasks.simulate import SimulateSettings
from physcli.tasks.tables import controls as table_of
from physcli.tasks.verifiers import TWINS

VERIFIERS = ("laws", "pixels", "random")


@pytest.fixture(scope="module")
def twins(made_once):
    return made_once("controls", SimulateSettings(2, 4, ("collide", "drop"), 64, 64, impossible=KINDS, seed=3))


@pytest.fixture(scope="module")
def measured(twins, session_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "controls"
    return controls(ControlsSettings(str(twins), VERIFIERS), out=out, device="cpu", cache_dir=session_cache)


def test_who_prefers_what(measured, twins):
    kinds = sorted({kind for scene in read_scenes(twins).scenes for kind in scene.invalid})
    assert measured.subjects == list(VERIFIERS)
    assert measured.groups == [*COPIES, SLOW, TWINS, *kinds]
    # A still video is the smoothest there is; the laws do not see what was asked for in it.
    assert measured.row("pixels", "still")["value"] == 1
    assert measured.row("laws", "still")["value"] == 0
    assert measured.row("laws", TWINS)["value"] < 0.25
    items = [json.loads(line) for line in (measured.path / "items.jsonl").read_text().splitlines()]
    assert len({item["scene"] for item in items}) == 4
    for name in VERIFIERS:
        for group in (*COPIES, SLOW, *kinds, TWINS):
            some = [item for item in items if item["copy"] == group or (group == TWINS and item["is_twin"])]
            wins = [item[name][1] > item[name][0] for item in some]
            ties = [item[name][1] == item[name][0] for item in some]
            row = measured.row(name, group)
            assert row["value"] == pytest.approx(np.mean(wins) + np.mean(ties) / 2)
            assert row["n"] == len(some)


def test_what_is_shown(twins):
    scene = read_scenes(twins).scenes[0]
    shown = {one.name: one.candidate for one in task._shown(scene, 17)}
    whole = scene.valid[0].read()
    real, slow = shown[REAL], shown[SLOW]
    np.testing.assert_array_equal(real.frames, whole[::3])
    np.testing.assert_array_equal(shown["still"].frames, whole[[0] * 17])
    np.testing.assert_array_equal(shown["backwards"].frames, whole[::-3])
    np.testing.assert_array_equal(slow.frames, whole[:17])
    assert shown["blurred"].frames.mean() == pytest.approx(real.frames.mean(), abs=1)
    assert (
        np.abs(np.diff(shown["blurred"].frames.astype(float), axis=2)).mean()
        < 0.8 * np.abs(np.diff(real.frames.astype(float), axis=2)).mean()
    )
    assert real.prompt.endswith("filmed at 7 frames per second")
    assert real.frame_rate_hz == pytest.approx(20 / 3)
    assert (slow.prompt, slow.frame_rate_hz) == (real.prompt, real.frame_rate_hz)  # said to be as fast
    assert {one.name for one in shown.values()} == {
        f"{scene.scenario}/{scene.name}, {copy}" for copy in (REAL, *COPIES, SLOW)
    } | {f"{scene.scenario}/{scene.name}, {kind} 0" for kind in scene.invalid}


def test_goes_on_where_it_stopped(measured, twins, session_cache, tmp_path, monkeypatch):
    asked = []
    ask = task._ask

    def stop(verifiers, shown, *, strict):
        asked.append(shown[0].candidate.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(verifiers, shown, strict=strict)

    monkeypatch.setattr(task, "_ask", stop)
    settings = ControlsSettings(str(twins), VERIFIERS)
    go = {"out": tmp_path / "out", "device": "cpu", "cache_dir": session_cache}
    with pytest.raises(KeyboardInterrupt):
        controls(settings, **go)
    done = controls(settings, **go)
    assert (len(asked), done.rows) == (5, measured.rows)
    assert sorted(p.name for p in done.path.iterdir()) == ["items.jsonl", "metrics.json", "run.json"]
    assert (controls(settings, **go).rows, len(asked)) == (done.rows, 5)


def test_two_processes_score_as_one(measured, twins, session_cache, start_physcli, two_processes, tmp_path):
    words = ["eval", "controls", "--data", twins, "--cache-dir", session_cache, "--out", tmp_path / "two", "--json"]
    words += [part for name in VERIFIERS for part in ("--verifier", name)]
    main, other = two_processes(lambda environment: start_physcli(*words, "--device", "cpu", env=environment))
    assert (main.returncode, other.returncode, other.stdout) == (0, 0, ""), main.stderr + other.stderr
    assert json.loads(main.stdout)["rows"] == measured.rows


class _Beside:
    """Scores that depend on how many are scored together."""

    relative = True

    def scores(self, candidates):
        return np.arange(len(candidates)) * (-1.0) ** len(candidates)


def test_a_copy_is_scored_alone_with_the_clip_where_what_else_there_is_counts(twins):
    shown = task._shown(read_scenes(twins).scenes[0], 17)
    said = task._ask({"beside": _Beside()}, shown, strict=True)
    assert said["beside"]["pairs"] == [[0, 1]] * (len(shown) - 1)


def test_no_number_is_no_score(twins):
    class Nan(_Beside):
        def scores(self, candidates):
            return np.full(len(candidates), np.nan)

    shown = task._shown(read_scenes(twins).scenes[0], 17)
    assert "no number" in task._ask({"nan": Nan()}, shown, strict=False)["nan"]["cannot"]
    with pytest.raises(DataError, match="no number"):
        task._ask({"nan": Nan()}, shown, strict=True)


def test_clips_with_few_frames_have_no_slow_motion_and_names_may_not_clash(twins):
    scene = read_scenes(twins).scenes[0]
    assert SLOW not in [one.name for one in task._shown(scene, 49)]
    with pytest.raises(DataError, match="called 'still'"):
        task._shown(replace(scene, invalid={"still": scene.valid}), 17)


def test_the_table(measured):
    narrow, wide = (table_of(measured, wide=wide) for wide in (False, True))
    assert list(narrow.columns) == ["", "n", *VERIFIERS]
    still = narrow.rows[0]
    assert still[:4] == ["still", 4, "0.0", "100.0"]
    assert "to" in wide.rows[0][3]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"verifiers": ("pixls",)}, UsageError, "Did you mean 'pixels'"),
        ({"verifiers": ("pixels",), "encoder": "videomae-tiny"}, UsageError, "which has none"),
        ({"num_frames": 4}, UsageError, "--num-frames 4"),
        ({"num_frames": 50}, DataError, "has 49 frames"),
        ({"data": "nowhere"}, DataError, "nowhere"),
    ],
)
def test_refused(changes, error, said, twins, tmp_path, session_cache):
    settings = ControlsSettings(**({"data": str(twins), "verifiers": ("random",)} | changes))
    with pytest.raises(error, match=said):
        controls(settings, out=tmp_path / "out", device="cpu", cache_dir=session_cache)
    assert not (tmp_path / "out" / "metrics.json").exists()
