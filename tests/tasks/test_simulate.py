"""`data simulate`: the same bytes however made, the layout readers expect, resumption, bad settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from physcli.data.clips import read_dataset, read_impossible
from physcli.data.video import read_video
from physcli.errors import DataError, UsageError
from physcli.progress import Reporter
from physcli.simulation.types import SCENARIOS
from physcli.tasks.simulate import (
    SimulateSettings,
    absent_scenarios,
    check_settings,
    enough_clips,
    ensure_simulated,
    simulate,
    split_total,
)


def contents(folder):
    """Hashes of all files that are no record of the run itself."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "metrics.json")
    }


def test_layout_labels_and_arrays(simulated):
    dataset = read_dataset(simulated)
    assert (dataset.kind, dataset.problems) == ("simulated", ())
    assert [sum(c.split == s for c in dataset.clips) for s in ("train", "test")] == [28, 12]
    for split in ("train", "test"):
        labels = json.loads((simulated / "physion_mp4s" / split / "all_video_labels.json").read_text())
        here = [clip for clip in dataset.clips if clip.split == split]
        assert set(labels) == {clip.name for clip in here}
        assert sum(entry["label"] for entry in labels.values()) * 2 == len(here)
    for clip in dataset.clips[:6]:
        assert clip.read().shape == (49, 64, 64, 3)
        assert clip.record["context"] == [0, 17]
        with np.load(clip.arrays) as arrays:
            assert arrays["flow"].shape == (48, 64, 64, 2)
            assert arrays["flow"].dtype == np.float16
            assert arrays["segmentation"].shape == (49, 64, 64)
            assert len(arrays["positions"]) == len(arrays["quaternions"]) == 49
        assert not clip.label or 20 <= clip.contact_frame <= 48
    pairs = {}
    for clip in dataset.clips:
        pairs.setdefault(clip.pair, []).append(clip)
    assert all(sorted(c.label for c in pair) == [0, 1] for pair in pairs.values())
    assert all(len({c.split for c in pair}) == 1 for pair in pairs.values())


def test_the_order_does_not_tell_the_label(simulated):
    rows = [json.loads(line) for line in (simulated / "metadata.jsonl").read_text().splitlines()]
    names = [row["file_name"] for row in rows]
    assert names == sorted(names)
    for split in ("train", "test"):
        stems = list(json.loads((simulated / "physion_mp4s" / split / "all_video_labels.json").read_text()))
        assert stems == sorted(stems)
    first = [a["label"] for a, b in zip(rows[::2], rows[1::2], strict=True) if a["pair"] == b["pair"]]
    assert len(first) == 20
    assert 5 <= sum(first) <= 15


def test_videos_keep_their_colours(simulated):
    metrics = json.loads((simulated / "metrics.json").read_text())
    psnr = next(row for row in metrics if row["metric"] == "video_psnr_db")
    assert psnr["value"] > 40


def test_parallel_makes_the_same_bytes_as_serial(small, tmp_path):
    fewer = dataclasses.replace(small, num_train=8, num_test=4)
    for workers in (1, 2):
        simulate(fewer, out=tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_killed_run_goes_on_where_it_was(small, start_physcli, run_physcli, tmp_path):
    out = tmp_path / "out"
    words = ["data", "simulate", "--num-clips", 12, "--seed", 3, "--scenario", "collide", "--scenario", "roll"]
    words += ["--out", out]
    process = start_physcli(*words)
    journal = out / "pairs.jsonl.part"
    while not (journal.exists() and journal.read_text().count("\n") >= 2):
        time.sleep(0.05)
        assert process.running()
    os.kill(process.pid, signal.SIGINT)
    done = process.wait()
    assert done.returncode == 130, done.stderr
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert "to go on" in done.stderr
    made = {path: path.stat().st_mtime_ns for path in out.glob("physion_mp4s/*/*.mp4")}
    assert run_physcli(*words).returncode == 0
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    kept = [path for path, stamp in made.items() if path.stat().st_mtime_ns == stamp]
    assert kept
    split = split_total(12)
    reference = dataclasses.replace(small, num_train=split[0], num_test=split[1])
    simulate(reference, out=tmp_path / "whole", workers=1)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(start_physcli, tmp_path):
    """They would wait for more to do, for good."""
    process = start_physcli("data", "simulate", "--num-clips", 80, "--workers", 2, "--out", tmp_path / "run")
    while process.running() and not list(tmp_path.glob("run/physion_mp4s/*/*.mp4")):
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive


@pytest.mark.slow
def test_two_processes_make_a_cached_suite_once(start, tmp_path):
    code = (
        "from pathlib import Path; from physcli.progress import Reporter\n"
        "from physcli.tasks.simulate import ensure_simulated\n"
        "class Listener(Reporter):\n"
        "    def note(self, message): print(message)\n"
        "    def bar(self, description, total, unit): print('makes'); return super().bar(description, total, unit)\n"
        f"ensure_simulated(4, cache=Path({str(tmp_path / 'cache')!r}), workers=1, reporter=Listener())"
    )
    both = [start(code) for _ in range(2)]
    done = [process.wait() for process in both]
    assert [process.returncode for process in done] == [0, 0], done
    assert "".join(process.stdout for process in done).count("makes") == 1
    folder = ensure_simulated(4, cache=tmp_path / "cache")
    assert len(read_dataset(folder).clips) == 16
    simulate(SimulateSettings(num_train=12, num_test=4), out=tmp_path / "alone", workers=1)
    assert contents(folder) == contents(tmp_path / "alone")


def test_a_suite_with_twins_is_another_one_with_the_same_clips(tmp_path):
    plain = ensure_simulated(2, cache=tmp_path, workers=1)
    folder = ensure_simulated(2, cache=tmp_path, workers=1, impossible=("color",))
    assert folder != plain
    assert not (plain / "impossible.jsonl").exists()
    twins = read_impossible(folder)
    assert {twin.record["violation"]["kind"] for twin in twins} == {"color"}
    assert [c.name for c in read_dataset(folder).clips] == [c.name for c in read_dataset(plain).clips]
    first = json.loads((folder / "impossible.jsonl").read_text().splitlines()[0])
    for change, message in (({"label": 2}, "line 1: "), ({"file_name": "none.mp4"}, r"line 1: none\.mp4")):
        (folder / "impossible.jsonl").write_text(json.dumps(first | change) + "\n")
        with pytest.raises(DataError, match=message):
            read_impossible(folder)
    with pytest.raises(DataError, match="holds no impossible twins"):
        read_impossible(plain)


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written") as caught:
        ensure_simulated(2, cache=tmp_path / "file")
    assert "--cache-dir" in caught.value.fix


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_interrupted_while_the_workers_start(start_physcli, tmp_path, seconds):
    out = tmp_path / "out"
    words = ["data", "simulate", "--workers", 2, "--out", out]
    process = start_physcli(*words, before="import os\nos.setsid()")  # a group of its own, as a terminal makes one
    while not (out / "pairs.jsonl.part").exists():
        time.sleep(0.01)
        assert process.running()
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    done = process.wait()
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"


def test_workers_do_without_torch():
    code = "import sys, physcli.tasks.simulate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_impossible_twins(tmp_path):
    settings = SimulateSettings(num_train=2, num_test=2, scenarios=("drop",), impossible=("vanish", "color"))
    result = simulate(settings, out=tmp_path / "out", workers=1)
    rows = [json.loads(line) for line in (tmp_path / "out" / "impossible.jsonl").read_text().splitlines()]
    assert result.num_impossible == len(rows) == 8
    assert {row["violation"]["kind"] for row in rows} == {"vanish", "color"}
    assert [row["file_name"] for row in rows] == sorted(row["file_name"] for row in rows)
    assert len(list((tmp_path / "out" / "impossible").glob("*/*.npz"))) == 8
    for row in rows:
        assert row["file_name"] == f"impossible/{row['split']}/{row['twin_of']}_{row['violation']['kind']}.mp4"
        twin = read_video(tmp_path / "out" / row["file_name"])
        real = read_video(tmp_path / "out" / "physion_mp4s" / row["split"] / f"{row['twin_of']}.mp4")
        start = row["violation"]["frame"]
        difference = np.abs(twin.astype(int) - real).max(axis=(1, 2, 3))
        assert difference[:start].max() == 0
        assert difference[start:].max() > 40
    # Twins are no part of the dataset.
    assert len(read_dataset(tmp_path / "out").clips) == 4


def test_size_and_frames(tmp_path):
    settings = SimulateSettings(
        num_train=2, num_test=2, scenarios=("roll",), height=48, width=80, num_frames=20, impossible=("vanish",)
    )
    simulate(settings, out=tmp_path / "out", workers=1)
    clips = read_dataset(tmp_path / "out").clips
    labels = {}
    for split in ("train", "test"):
        labels |= json.loads((tmp_path / "out" / "physion_mp4s" / split / "all_video_labels.json").read_text())
    for clip in clips:
        assert clip.read().shape == (20, 48, 80, 3)
        # The label is that of the whole event; the frame in Physion's own file is one of the video.
        assert clip.label == 0 or clip.contact_frame >= 20
        assert labels[clip.name] == {"label": clip.label, "contact_frame_label": 19 if clip.label else 10}
    twins = [json.loads(line) for line in (tmp_path / "out" / "impossible.jsonl").read_text().splitlines()]
    assert all(twin["violation"]["frame"] < 20 for twin in twins)


def test_a_kind_that_never_applies_is_said(tmp_path):
    said = []

    class Listener(Reporter):
        def warn(self, message):
            said.append(message)

    settings = SimulateSettings(num_train=2, num_test=2, scenarios=("link",), impossible=("float", "color"))
    result = simulate(settings, out=tmp_path / "out", workers=1, reporter=Listener())
    assert result.num_impossible == 4
    assert len(said) == 1
    assert said[0].startswith("No float twin was made: it applies to clips")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scenarios": ("colide",)}, "Did you mean 'collide'"),
        ({"impossible": ("vanished",)}, "Did you mean 'vanish'"),
        ({"num_frames": 60}, "--num-frames 60"),
        ({"num_frames": 9}, "--num-frames 9"),
        ({"height": 8}, "--size 8x64"),
    ],
)
def test_bad_settings(change, said):
    with pytest.raises(UsageError, match=said):
        check_settings(SimulateSettings(**{"num_train": 2, "num_test": 2} | change))


def test_three_quarters_train():
    assert split_total(280) == (210, 70)
    assert split_total(4) == (2, 2)
    for bad in (0, 2, 7):
        with pytest.raises(UsageError, match=f"--num-clips {bad}"):
            split_total(bad)


@pytest.mark.parametrize("num_scenarios", range(1, 8))
def test_the_least_clips_that_hold_every_scenario(num_scenarios):
    def absent(count):
        num_train, num_test = split_total(count)
        return absent_scenarios(SimulateSettings(num_train, num_test, scenarios=SCENARIOS[:num_scenarios]))

    enough = enough_clips(num_scenarios)
    assert not any(absent(count) for count in range(enough, 400, 2))
    assert all(absent(count) for count in range(4, enough, 2))


def test_scenarios_that_do_not_appear_are_said(tmp_path, listener):
    heard = listener()
    settings = SimulateSettings(num_train=4, num_test=2, scenarios=("drop", "roll", "link"))
    done = simulate(settings, out=tmp_path / "out", workers=1, reporter=heard)
    assert done.absent == {"train": ["link"], "test": ["roll", "link"]}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["absent_scenarios"] == done.absent
    made = {(clip.split, clip.record["scenario"]) for clip in read_dataset(tmp_path / "out").clips}
    assert made == {("train", "drop"), ("train", "roll"), ("test", "drop")}
    said = "Too few clips for 3 scenarios: train has no link; test has no roll, link. --num-clips 22 is the least that "
    assert heard.notes == [f"{said}has all in both splits."]
    assert simulate(settings, out=tmp_path / "out", reporter=heard).absent == done.absent  # also of one that is there


def test_nothing_is_said_where_every_scenario_appears(tmp_path, listener):
    heard = listener()
    settings = SimulateSettings(num_train=4, num_test=4, scenarios=("drop", "roll"))
    assert simulate(settings, out=tmp_path / "out", workers=1, reporter=heard).absent == {}
    assert heard.notes == []
    assert json.loads((tmp_path / "out" / "run.json").read_text())["absent_scenarios"] == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    done = subprocess.run(
        [sys.executable, "-m", "physcli", "data", "simulate", "--out", str(tmp_path / "x")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "cannot be made" in done.stderr


def test_a_finished_set_that_lost_files_is_made_again(tmp_path):
    settings = SimulateSettings(num_train=2, num_test=2, scenarios=("drop",))
    simulate(settings, out=tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    next((tmp_path / "out" / "arrays" / "test").glob("*.npz")).unlink()
    (tmp_path / "out" / "metadata.jsonl").unlink()
    simulate(settings, out=tmp_path / "out", workers=1)
    assert contents(tmp_path / "out") == before
