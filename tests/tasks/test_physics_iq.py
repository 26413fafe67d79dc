"""`physcli eval physics-iq` on the golden videos: numbers of the released code, controls, rules, tables, cache."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from physcli.data.physics_iq import read_real
from physcli.data.video import read_video, write_video
from physcli.errors import DataError, UsageError
from physcli.rows import interval_of
from physcli.tasks.compare import CompareSettings, compare
from physcli.tasks.physics_iq.measure import last_conditioning_frame
from physcli.tasks.physics_iq.result import BLURRED, STILL, TAKE_2, PhysicsIQResult
from physcli.tasks.physics_iq.run import PhysicsIQSettings, physics_iq
from physcli.tasks.tables import physics_iq as scores
from physcli.tasks.tables import physics_iq_terms

GOLDEN = Path(__file__).parents[1] / "golden"
REAL, GENERATED = GOLDEN / "physics_iq" / "real", GOLDEN / "physics_iq" / "generated"
TABLE = GOLDEN / "physics_iq" / "metrics_official.csv"
EXPECTED = json.loads((GOLDEN / "physics_iq" / "expected.json").read_text())
VERIFIED = json.loads((GOLDEN / "physics_iq_verified" / "expected.json").read_text())
VIEWS = ("left", "center", "right")
SETTINGS = PhysicsIQSettings((f"model={GENERATED}",), str(REAL), duration_s=1.0)


@pytest.fixture(scope="module")
def measured(session_cache, tmp_path_factory):
    return physics_iq(SETTINGS, out=tmp_path_factory.mktemp("runs") / "run", cache_dir=session_cache)


@pytest.fixture
def copied(tmp_path):
    """A folder of generated videos that a test may change."""
    shutil.copytree(GENERATED, tmp_path / "mine")
    return tmp_path / "mine"


def refused(match, *, cache, **changed):
    with pytest.raises((DataError, UsageError), match=match) as caught:
        physics_iq(dataclasses.replace(SETTINGS, **changed), out=cache / "refused", cache_dir=cache)
    assert not (cache / "refused").exists()  # nothing was begun
    return caught.value


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["mp4v", "lossless"])
def test_scores_of_videos_are_those_of_the_released_code(masks, session_cache, tmp_path):
    done = physics_iq(dataclasses.replace(SETTINGS, masks=masks), out=tmp_path / "run", cache_dir=session_cache)
    expected = EXPECTED["official" if masks == "mp4v" else "lossless_masks"]
    assert 100 * done.row("model", "physics_iq")["value"] == pytest.approx(expected["original_score_0_100"], abs=1e-9)
    verified = done.row("model", "physics_iq_verified")
    assert verified["value"] == pytest.approx(expected["table"]["final_score_view"], abs=1e-9)
    for name in ("spatial", "weighted_spatial"):
        row = done.row("model", f"{name}_iou_ratio")
        assert row["value"] == pytest.approx(expected["table"][f"score_{name}_view"], abs=1e-9)
    low, high = interval_of(verified)
    assert low < verified["value"] < high
    table = TABLE.with_name("metrics_official.csv" if masks == "mp4v" else "metrics_lossless_masks.csv")
    assert (done.path / "official_model.csv").read_text() == table.read_text().replace("\r\n", "\n")


def test_controls_stand_in_the_same_table(measured):
    assert measured.subjects == ["model", STILL, TAKE_2, BLURRED]
    assert measured.models == ["model"]
    assert measured.row(STILL, "moving_area")["value"] == 0
    assert 0 < measured.row("model", "moving_area")["value"] < 1
    assert measured.row(TAKE_2, "physics_iq_verified")["value"] == pytest.approx(1, abs=1e-6)
    assert measured.row(TAKE_2, "physics_iq")["value"] == 1
    still, model, blurred = (measured.row(name, "physics_iq_verified")["value"] for name in (STILL, "model", BLURRED))
    assert 0 < still < model < blurred < 1
    assert {row["control"] for row in measured.rows if row["subject"] == STILL} == {True}
    for wide in (True, False):
        lines = scores(measured, wide=wide).rows
        assert [line[0] for line in lines] == measured.subjects
    assert len(physics_iq_terms(measured).rows) == 4


def write_exact(path, frames):
    """An mp4 that keeps every pixel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=8)
        stream.height, stream.width, stream.pix_fmt, stream.options = *frames.shape[1:3], "rgb24", {"qp": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert (read_video(path) == frames).all()


def test_baselines_score_as_in_the_released_code(session_cache, tmp_path):
    frames = np.load(GOLDEN / "physics_iq_verified" / "frames.npz")
    variants = ("still", "wrong", "drift")
    for name in ("real", *variants):
        (tmp_path / f"a {name}").mkdir()
    names = [(take, scenario, view) for take in (1, 2) for scenario in ("fast", "slow") for view in VIEWS]
    for number, (take, scenario, view) in enumerate(names, start=1):
        place = f"{scenario}/perspective-{view}"
        name = f"{number:04d}_testing-videos_8FPS_perspective-{view}_take-{take}_trimmed-{scenario}.mp4"
        write_exact(tmp_path / "a real" / name, frames[f"real/{place}/take-{take}"])
        for variant in variants if take == 1 else ():
            write_exact(tmp_path / f"a {variant}" / f"{number:04d}_any.mp4", frames[f"{variant}/{place}"])
    folders = tuple(str(tmp_path / f"a {variant}") for variant in variants)
    settings = PhysicsIQSettings(folders, str(tmp_path / "a real"), duration_s=1.75)
    done = physics_iq(settings, out=tmp_path / "run", cache_dir=session_cache)
    golden = {f"a {variant}": variant for variant in variants} | {STILL: "still", TAKE_2: "twin"}
    for subject, variant in golden.items():
        expected = VERIFIED["variants"][variant]["official"]
        verified = done.row(subject, "physics_iq_verified")
        assert verified["value"] == pytest.approx(expected["table"]["final_score_view"], abs=1e-9)
        assert 100 * done.row(subject, "physics_iq")["value"] == pytest.approx(expected["original_0_100"], abs=1e-9)


def test_items(measured):
    items = [item for item in measured.items if item["subject"] == "model"]
    assert len(items) == 6
    for item, expected in zip(items, EXPECTED["official"]["views"], strict=True):
        assert (item["scenario"], item["view"]) == (expected["scenario"], expected["view"])
        assert item["physics_iq_verified"] == pytest.approx(expected["verified_view_score"], abs=1e-9)
        assert Path(item["video"]).name.endswith(item["scenario"])
    assert PhysicsIQResult.read(measured.path).items == json.loads(json.dumps(measured.items))


def test_several_sampling_seeds(session_cache, copied, tmp_path):
    for path in list(copied.iterdir()):  # the real first frame, held
        real = next(p for p in REAL.iterdir() if p.name.startswith(path.name[:4]))
        write_video(path, read_video(real, [0] * 8), 8)
    settings = dataclasses.replace(SETTINGS, videos=(f"model={GENERATED},{copied}", f"other={TABLE}"))
    done = physics_iq(settings, out=tmp_path / "run", cache_dir=session_cache)
    row = done.row("model", "physics_iq_verified")
    each = [
        np.mean([item["physics_iq_verified"] for item in done.items if (item["subject"], item["run"]) == ("model", n)])
        for n in (0, 1)
    ]
    assert row["value"] == pytest.approx(np.mean(each))
    assert row["std"] == pytest.approx(np.std(each, ddof=1))
    assert row["num_runs"] == 2
    assert done.row("other", "physics_iq_verified")["std"] is None
    assert done.row("other", "physics_iq_verified")["value"] == pytest.approx(each[0], abs=1e-9)
    assert {path.name for path in done.path.glob("*.csv")} == {
        "official_model_1.csv",
        "official_model_2.csv",
        "official_other.csv",
    }
    assert "±" in scores(done, wide=False).rows[0][1]
    assert f"±{100 * row['std']:.1f}" in scores(done, wide=False).rows[0][1]


def test_the_golden_spread_over_runs():
    runs = VERIFIED["runs"]
    assert np.mean(runs["values"]) == pytest.approx(runs["mean"])
    assert np.std(runs["values"], ddof=1) == pytest.approx(runs["std"])


def test_tables_alone(session_cache, tmp_path, listener):
    reporter = listener()
    settings = PhysicsIQSettings((str(TABLE),))
    done = physics_iq(settings, out=tmp_path / "run", cache_dir=session_cache, reporter=reporter)
    assert done.subjects == ["metrics_official", TAKE_2]
    row = done.row("metrics_official", "physics_iq")
    assert 100 * row["value"] == pytest.approx(EXPECTED["official"]["original_score_0_100"], abs=1e-9)
    assert any("what a still video scores is not known" in said for said in reporter.warnings)


def test_page(measured):
    page = (measured.path / "report.html").read_text()
    for said in ("Physics-IQ of model", "Terms of the Verified score", "trimmed-sliding-block", STILL, TAKE_2):
        assert said in page


def test_again_is_read_and_broken_off_goes_on(measured, session_cache, tmp_path, listener):
    reporter = listener()
    again = physics_iq(SETTINGS, out=measured.path, cache_dir=session_cache, reporter=reporter)
    assert any("nothing is computed again" in said for said in reporter.said)
    assert again.rows == json.loads(json.dumps(measured.rows))
    with pytest.raises(UsageError, match="holds another run: masks was"):
        physics_iq(dataclasses.replace(SETTINGS, masks="lossless"), out=measured.path, cache_dir=session_cache)
    reporter = listener(stop_at=2, during="Physics-IQ at 8 fps")
    with pytest.raises(KeyboardInterrupt):
        physics_iq(SETTINGS, out=tmp_path / "run", cache_dir=tmp_path / "cache", reporter=reporter)
    kept = len(list((tmp_path / "cache" / "physics-iq").glob("*.json")))
    assert 0 < kept < 24
    assert physics_iq(SETTINGS, out=tmp_path / "run", cache_dir=tmp_path / "cache").rows == measured.rows


def test_compare_takes_its_runs(measured, tmp_path):
    against = f"{measured.path}::{STILL}"
    done = compare(CompareSettings((against, str(measured.path)), cases=0), out=tmp_path / "compared")
    row = next(row for row in done.rows if row["metric"] == "physics_iq_verified_difference" and row["group"] == "all")
    each = [measured.row(name, "physics_iq_verified")["value"] for name in ("model", STILL)]
    assert row["value"] == pytest.approx(each[0] - each[1])
    assert row["n"] == 6
    assert done.unit == "scenarios"


# -- rules, all checked before any work ------------------------------------------------------------------------------


def test_length(session_cache, copied, tmp_path):
    error = refused(r"8 frames at 8 a second, 1.000 s. So are 5 others", cache=tmp_path, duration_s=5.0)
    assert "5.000 s, 40 frames" in error.expected
    assert "generate 40 frames; --duration 1" in error.fix
    path = next(iter(sorted(copied.iterdir())))
    write_video(path, np.zeros((12, 64, 64, 3), np.uint8), 8)
    error = refused("12 frames at 8 a second, 1.500 s", cache=tmp_path, videos=(str(copied),))
    assert "ffmpeg -i IN -t 1 OUT" in error.fix
    refused("--duration 6", cache=tmp_path, duration_s=6.0)


def test_frame_rates(copied, tmp_path):
    path = next(iter(sorted(copied.iterdir())))
    frames = read_video(path)
    write_video(path, frames, 7.5)
    error = refused(r"has videos at 7.5 \(.*\), 8 \(.*\) frames a second", cache=tmp_path, videos=(str(copied),))
    assert error.expected == "one rate in the folder"
    for other in copied.iterdir():
        write_video(other, frames, 7.5)
    assert "a whole number" in refused("has 7.5 frames a second", cache=tmp_path, videos=(str(copied),)).expected
    for other in copied.iterdir():
        write_video(other, frames, 10)
    error = refused(
        "real videos at 8 frames a second; the generated ones have 10", cache=tmp_path, videos=(str(copied),)
    )
    assert "download the folder 30FPS" in error.fix


def test_missing_videos(session_cache, copied, tmp_path, listener):
    (copied / "0005_perspective-center_trimmed-rolling-block.mp4").unlink()
    error = refused("has 5 of 6 videos; missing: 0005_perspective-center", cache=tmp_path, videos=(str(copied),))
    assert "--partial" in error.fix
    reporter = listener()
    settings = dataclasses.replace(SETTINGS, videos=(f"a={copied}", f"b={GENERATED}"), partial=True)
    done = physics_iq(settings, out=tmp_path / "run", cache_dir=session_cache, reporter=reporter)
    assert {item["scenario"] for item in done.items} == {"trimmed-sliding-block.mp4"}
    assert any("a part of the benchmark" in said for said in reporter.warnings)


def test_names(copied, tmp_path):
    path = copied / "0005_perspective-center_trimmed-rolling-block.mp4"
    moved = path.rename(copied / "0099_something.mp4")
    refused("begins with 0099, which is no take 1", cache=tmp_path, videos=(str(copied),))
    moved = moved.rename(copied / "0005_perspective-left_trimmed-rolling-block.mp4")
    error = refused("called after another scenario or view than its number", cache=tmp_path, videos=(str(copied),))
    assert error.expected == path.name
    shutil.copy(moved, copied / "0005_again.mp4")
    refused("have one number", cache=tmp_path, videos=(str(copied),))
    (tmp_path / "empty").mkdir()
    refused("holds no generated video", cache=tmp_path, videos=(str(tmp_path / "empty"),))
    refused("is not there", cache=tmp_path, videos=(str(tmp_path / "none"),))


def test_arguments(tmp_path):
    refused("Neither --videos nor --data", cache=tmp_path, videos=(), data=None)
    refused("there is no --data", cache=tmp_path, data=None)
    refused("names .* twice", cache=tmp_path, videos=(f"{GENERATED},{GENERATED}",))
    refused("as a control is", cache=tmp_path, videos=(f"still={GENERATED}",))
    refused("Two of --videos are called 'a'", cache=tmp_path, videos=(f"a={GENERATED}", f"a={TABLE}"))
    refused("holds no testing videos", cache=tmp_path, data=str(GENERATED))
    assert "mp4v" in str(refused("kind of masks", cache=tmp_path, masks="webm"))


def test_a_take_is_missing(tmp_path):
    shutil.copytree(REAL, tmp_path / "real")
    next((tmp_path / "real").glob("0009*")).unlink()
    error = refused(
        "trimmed-sliding-block.mp4, perspective-right: take 2 missing", cache=tmp_path, data=str(tmp_path / "real")
    )
    assert "both takes" in error.expected


# -- the downloaded layout -------------------------------------------------------------------------------------------


@pytest.fixture
def downloaded(tmp_path):
    """The official folders, with real videos at 30 frames a second, 1 s of each."""
    root = tmp_path / "physics-iq-benchmark"
    testing = root / "split-videos" / "testing-videos" / "30FPS"
    testing.mkdir(parents=True), (root / "switch-frames").mkdir()
    lines = ["scenario,description,category,generated_video_name"]
    for path in sorted(REAL.iterdir()):
        frames = read_video(path).repeat(4, axis=0)[:30]
        write_video(testing / path.name.replace("8FPS", "30FPS"), frames, 30)
        number, _, _, view, take, scenario = path.name.split("_")
        kind = "Optics" if "sliding" in scenario else "Solid Mechanics"
        lines.append(f'{number}_{view}_{take}_{scenario},"A block, moving.",{kind},{number}_{view}_{scenario}')
        if take == "take-1":
            name = f"{number}_switch-frames_anyFPS_{view}_{Path(scenario).stem}.jpg"
            cv2.imwrite(str(root / "switch-frames" / name), np.full((64, 64, 3), (0, 0, 200), np.uint8))
    (root / "descriptions.csv").write_text("\n".join(lines) + "\n")
    return root


def test_real_videos_are_blended_from_thirty(downloaded, session_cache, tmp_path):
    settings = dataclasses.replace(SETTINGS, data=str(downloaded))
    done = physics_iq(settings, out=tmp_path / "run", cache_dir=session_cache)
    assert done.row("model", "physics_iq_verified")["num_frames"] == 8
    assert done.groups == ["Optics", "Solid Mechanics"]
    mean = np.mean([done.row("model", "physics_iq_verified", name)["value"] for name in done.groups])
    assert done.row("model", "physics_iq_verified")["value"] == pytest.approx(mean)
    real = read_real(downloaded, 8, views=tuple(f"perspective-{v}" for v in VIEWS), source_rate_hz=30)
    assert real.rate_hz == 30
    picture = last_conditioning_frame(real.views[0])  # red, of a JPEG
    assert abs(picture.reshape(-1, 3).mean(axis=0) - (200, 0, 0)).max() < 3
    assert done.row(STILL, "mse")["value"] > 0.05


def test_a_still_video_holds_what_comes_before(downloaded, tmp_path):
    shutil.rmtree(downloaded / "switch-frames")
    views = tuple(f"perspective-{v}" for v in VIEWS)
    view = read_real(downloaded, 30, views=views, source_rate_hz=30).views[0]
    assert (last_conditioning_frame(view) == read_video(view.takes[0], [0])[0]).all()
    folder = downloaded / "split-videos" / "conditioning-videos" / "30FPS"
    folder.mkdir(parents=True)
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.full((3, 64, 64, 3), 60, np.uint8)
    write_video(folder / "0001_conditioning-videos_30FPS_perspective-left_take-1_trimmed-sliding-block.mp4", frames, 30)
    view = read_real(downloaded, 30, views=views, source_rate_hz=30).views[0]
    assert abs(last_conditioning_frame(view).astype(int) - 120).max() < 4


def test_nothing_that_moves_is_told(session_cache, tmp_path, listener):
    """Frames that never change: all masks empty, no error between the takes."""
    real, mine = tmp_path / "real", tmp_path / "mine"
    real.mkdir(), mine.mkdir()
    frames = np.full((8, 32, 32, 3), 90, np.uint8)
    for number, view in enumerate(VIEWS, start=1):
        for take, shift in ((1, 0), (2, 3)):
            name = f"{number + shift:04d}_testing-videos_8FPS_perspective-{view}_take-{take}_trimmed-wall.mp4"
            write_video(real / name, frames, 8)
        write_video(mine / f"{number:04d}_a.mp4", frames + np.uint8(60), 8)
    reporter = listener()
    settings = PhysicsIQSettings((str(mine),), str(real), duration_s=1.0)
    done = physics_iq(settings, out=tmp_path / "run", cache_dir=session_cache, reporter=reporter)
    assert done.row("mine", "physics_iq_verified")["value"] == pytest.approx(0.75, abs=1e-6)
    assert any("In 3 of 3 views nothing of take 1 moves" in said for said in reporter.said)
    assert any("the Verified score ends at 75 %" in said for said in reporter.said)
    assert any("mine scores no more than a still video" in said for said in reporter.said)
