"""`data simulate --takes 2`: Physics-IQ's folder of simulated clips, and what `eval physics-iq` makes of it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest

from physcli.benchmarks.physics_iq import VIEWS
from physcli.data.clips import read_dataset
from physcli.data.physics_iq import read_real
from physcli.data.prompts import read_prompts
from physcli.data.video import count_frames, frame_rate, read_video, write_video
from physcli.errors import UsageError
from physcli.hashing import content_hash, settings_hash
from physcli.tasks.inspect_data import inspect_data
from physcli.tasks.physics_iq.measure import last_conditioning_frame
from physcli.tasks.physics_iq.result import BLURRED, STILL, TAKE_2
from physcli.tasks.physics_iq.run import PhysicsIQSettings, physics_iq
from physcli.tasks.simulate import SimulateSettings, check_settings, simulate
from physcli.tasks.takes import TAKES_FOLDER

FILMED = SimulateSettings(num_train=2, num_test=2, scenarios=("roll",), height=256, width=256, takes=2, seed=1)


@pytest.fixture(scope="module")
def filmed(made_once):
    return made_once("filmed", FILMED)


def contents(folder):
    """Hashes of all files that are no record of the run itself."""
    return {
        path.relative_to(folder).as_posix(): content_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "metrics.json")
    }


def listed(folder):
    return [json.loads(line) for line in (folder / TAKES_FOLDER / "takes.jsonl").read_text().splitlines()]


def real_of(folder, rate):
    return read_real(folder / TAKES_FOLDER, rate, views=VIEWS, source_rate_hz=30)


@pytest.mark.parametrize(("rate", "found"), [(20, 20), (30, 30), (24, 30)])
def test_names_rates_and_lengths_are_the_official_ones(filmed, rate, found):
    real = real_of(filmed, rate)
    assert real.rate_hz == found
    assert [view.number for view in real.views] == [f"{number:04d}" for number in range(1, 7)]
    assert len(real.scenarios) == 2
    assert [view.view for view in real.views] == list(VIEWS) * 2
    assert {view.category for view in real.views} == {"roll"}
    for view in real.views:
        for take in view.takes:
            assert (frame_rate(take), count_frames(take)) == (found, 5 * found)
        assert read_video(view.takes[0], [0]).shape == (1, 256, 256, 3)


def test_take_1_from_the_centre_is_the_clip(filmed):
    clips = {clip.name: clip for clip in read_dataset(filmed).clips}
    rows = {row["number"]: row for row in listed(filmed)}
    for view in real_of(filmed, 20).views:
        if view.view == "perspective-center":
            clip = clips[rows[view.number]["clip"]]
            assert clip.split == "test"
            both = read_video(view.takes[0]).astype(int)[:48], clip.read().astype(int)[1:]
            assert np.abs(both[0] - both[1]).mean() < 1
            first = last_conditioning_frame(view)
            assert view.switch_frame.suffix == ".png"
            assert np.abs(first.astype(int) - clip.read([0])[0]).mean() < 1
    at_30, at_20 = (read_video(real_of(filmed, rate).views[0].takes[1]).astype(int) for rate in (30, 20))
    assert np.abs(at_30[2::3] - at_20[1::2]).mean() < 1  # tenths of a second


def test_prompts_and_first_frames(filmed):
    prompts = read_prompts(filmed / TAKES_FOLDER / "descriptions.csv")
    clips = {clip.name: clip for clip in read_dataset(filmed).clips}
    assert len(prompts) == 6
    for prompt, view in zip(prompts, real_of(filmed, 20).views, strict=True):
        assert prompt.columns["generated_video_name"] == view.name
        assert filmed / TAKES_FOLDER / prompt.columns["first_frame"] == view.switch_frame
        assert cv2.imread(str(view.switch_frame)).shape == (256, 256, 3)
    assert {prompt.text for prompt in prompts} == {clip.prompt for clip in clips.values() if clip.split == "test"}


def test_no_list_of_the_set_has_a_take(filmed):
    dataset = read_dataset(filmed)
    assert (dataset.kind, len(dataset.clips), dataset.problems) == ("simulated", 4, ())
    found = inspect_data(filmed)
    assert (len(found.clips), found.problems) == (4, ())
    assert TAKES_FOLDER not in (filmed / "metadata.jsonl").read_text()
    train = {clip.name for clip in dataset.clips if clip.split == "train"}
    rows = listed(filmed)
    assert len(rows) == 12
    assert not train & {row["clip"] for row in rows}
    assert {name for row in rows for name in row["files"]} == {
        path.relative_to(filmed).as_posix() for path in (filmed / TAKES_FOLDER).rglob("*.*4")
    } | {path.relative_to(filmed).as_posix() for path in (filmed / TAKES_FOLDER).rglob("*.png")}


def test_the_clips_are_those_of_a_set_with_one_take(filmed, tmp_path):
    simulate(dataclasses.replace(FILMED, takes=1), out=tmp_path / "one", workers=1)
    one, two = contents(tmp_path / "one"), contents(filmed)
    assert not any(name.startswith(TAKES_FOLDER) for name in one)
    assert one == {name: two[name] for name in one} | {"dataset.json": one["dataset.json"]}
    said = [json.loads((folder / "dataset.json").read_text())["settings"] for folder in (tmp_path / "one", filmed)]
    assert said[0] | {"takes": 2} == said[1]
    assert "takes" not in said[0]


def test_cached_suites_keep_their_key():
    key = SimulateSettings(num_train=6, num_test=2).key()
    assert settings_hash({"format": 2, "mujoco": "4.0.0", **key}) == "14f2d76b753eb416f9eb"


@pytest.mark.slow
def test_a_take_that_is_lost_is_made_again_and_a_broken_run_goes_on(filmed, listener, tmp_path):
    shutil.copytree(filmed, tmp_path / "out")
    whole = contents(filmed)
    next((tmp_path / "out" / TAKES_FOLDER).rglob("0007*30FPS*.mp4")).unlink()
    (tmp_path / "out" / TAKES_FOLDER / "descriptions.csv").unlink()
    heard = listener(stop_at=2, during="Simulating")
    with pytest.raises(KeyboardInterrupt):
        simulate(FILMED, out=tmp_path / "out", workers=1, reporter=heard)
    assert "lacks 2 files" in " ".join(heard.warnings)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "physion_mp4s" / "train").glob("*.mp4")}
    simulate(FILMED, out=tmp_path / "out", workers=1)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert contents(tmp_path / "out") == whole


def test_scored_by_physics_iq(filmed, session_cache, tmp_path):
    """Take 1, late by half a second, stands between take 2 and a still video."""
    (tmp_path / "late").mkdir()
    for view in real_of(filmed, 20).views:
        frames = np.concatenate([last_conditioning_frame(view)[None].repeat(10, axis=0), read_video(view.takes[0])])
        write_video(tmp_path / "late" / view.name, frames[:100], 20)
    settings = PhysicsIQSettings((str(tmp_path / "late"),), str(filmed / TAKES_FOLDER))
    done = physics_iq(settings, out=tmp_path / "run", cache_dir=session_cache)
    assert done.subjects == ["late", STILL, TAKE_2, BLURRED]
    take_2, late, still = (done.row(name, "physics_iq_verified")["value"] for name in (TAKE_2, "late", STILL))
    assert take_2 == pytest.approx(1, abs=1e-6)
    assert still < late < 0.9
    assert done.row(TAKE_2, "physics_iq_verified")["num_frames"] == 100
    for name in ("spatiotemporal_iou", "spatial_iou", "weighted_spatial_iou"):
        assert 0.5 < done.row(TAKE_2, name)["value"] < 0.99
    # Pixels differ by more than the rounding that would put their term out of reach.
    assert all(item["mse_takes"] > 0.00005 for item in done.items)
    assert all(item["real_moving_area"] > 0 for item in done.items)

    one = dataclasses.replace(settings, videos=(), limit=1)
    alone = physics_iq(one, out=tmp_path / "alone", cache_dir=session_cache)
    assert (alone.subjects, alone.models) == ([STILL, TAKE_2, BLURRED], [])
    assert alone.row(TAKE_2, "physics_iq")["num_frames"] == 150


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"takes": 0}, "--takes 0"),
        ({"takes": 3}, "--takes 3"),
        ({"width": 255}, "--takes 2 with --size 256x255"),
        ({"num_test": 1668}, "--takes 2 with 1668 test clips"),
    ],
)
def test_takes_that_cannot_be(change, said):
    with pytest.raises(UsageError, match=said):
        check_settings(dataclasses.replace(FILMED, **change))


def test_the_command(run_physcli, tmp_path):
    done = run_physcli("data", "simulate", "--takes", 2, "--size", "64x64", "--out", tmp_path / "out")
    assert done.returncode != 0
    assert "--size 256x256" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
