"""`physcli eval distance`: sets at the same times, floor and controls, rules, resuming, how compare pairs its runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, VJEPA2Config, VJEPA2Model

from physcli.benchmarks.distance import KERNELS, FeatureSet, MeanDiscrepancy, frechet
from physcli.data.clips import read_dataset
from physcli.data.video import read_video, write_video
from physcli.errors import DataError, PhyscliError, UsageError
from physcli.models.loading import load_encoder
from physcli.rows import interval_of
from physcli.simulation.prompts import with_rate
from physcli.tasks import tables
from physcli.tasks.compare import CompareSettings, compare
from physcli.tasks.distance.result import BLURRED, HALF, HELD, STILL, DistanceResult
from physcli.tasks.distance.run import DistanceSettings, distance
from physcli.tasks.distance.sets import halves, real_clips, seen_frames
from physcli.tasks.features import to_tensor
from physcli.tasks.select import SelectSettings, select

RATE_HZ = 20 / 3


def write_set(folder, clips, *, prompts=None, alter=lambda frames: frames, num_frames=17, rate_hz=RATE_HZ):
    """Videos made of clips, as `physcli sample` leaves them: every third frame of a whole event."""
    (folder / "videos").mkdir(parents=True)
    rows = []
    for number, clip in enumerate(clips):
        name = f"videos/{number}.mp4"
        frames = alter(clip.read()[::3][:num_frames])
        write_video(folder / name, frames, rate_hz, full_chroma=True)
        prompt = prompts[number] if prompts else f"{clip.scenario} {number}"
        rows.append({"video": name, "prompt": prompt, "seed": number, "index": 0, "model": folder.name})
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def names_of(clips):
    return [clip.path.name for clip in clips]


@pytest.fixture(scope="module")
def clips(simulated):
    """The training clips, of which videos are made; the 12 test clips are the real ones."""
    return [clip for clip in read_dataset(simulated).clips if clip.split == "train"]


@pytest.fixture(scope="module")
def good(clips, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sets") / "good", clips[:12:2])


@pytest.fixture(scope="module")
def bad(clips, tmp_path_factory):
    """The same, upside down and negative."""
    return write_set(tmp_path_factory.mktemp("sets") / "bad", clips[:12:2], alter=lambda frames: 255 - frames[:, ::-1])


@pytest.fixture(scope="module")
def settings(good, bad, simulated, encoder_folder):
    encoder = str(encoder_folder("eye", 0))
    return DistanceSettings((str(good), f"worse={bad}"), str(simulated), encoder)


@pytest.fixture(scope="module")
def measured(settings, session_cache, tmp_path_factory):
    return distance(settings, out=tmp_path_factory.mktemp("runs") / "run", cache_dir=session_cache)


@pytest.fixture
def refused(settings, session_cache, tmp_path):
    def go(match, error=(DataError, UsageError), **changed):
        with pytest.raises(error, match=match) as caught:
            distance(dataclasses.replace(settings, **changed), out=tmp_path / "refused", cache_dir=session_cache)
        assert not (tmp_path / "refused").exists()  # nothing was begun
        return caught.value

    return go


# -- distances -------------------------------------------------------------------------------------------------------


def test_models_controls_and_floor_stand_in_one_table(measured):
    assert measured.subjects == ["good", "good" + HELD, "worse", "worse" + HELD, HALF, STILL, BLURRED]
    assert measured.models == ["good", "worse"]
    for subject in measured.subjects:
        for metric in ("mmd2", "frechet"):
            row = measured.row(subject, metric)
            low, high = interval_of(row)
            assert low < row["value"] < high
            assert (row["n"], row["dimension"], row["num_frames"], row["encoder"]) == (6, 24, 16, row["encoder"])
    assert measured.row("good", "mmd2")["value"] < measured.row("worse", "mmd2")["value"]
    assert {row["reference"] for row in measured.rows} == {measured.first["reference"]}
    drawn = tables.distance(measured, wide=True)
    assert [line[0] for line in drawn.rows] == measured.subjects
    assert "6 videos a set" in drawn.caption
    narrow = tables.distance(measured, wide=False)
    assert [line[:4] for line in drawn.rows] == [list(line) for line in narrow.rows]
    assert [line[1] for line in tables.distance_controls(measured).rows] == ["good", "worse", HALF, HALF]


def test_values_are_those_of_features_computed_by_hand(measured, settings, good, simulated, listener):
    encoder = load_encoder(settings.encoder, dtype="float32")
    test = [clip for clip in read_dataset(simulated).clips if clip.split == "test"]
    frames = seen_frames(17, encoder)
    assert frames == tuple(range(1, 17))
    found = real_clips(test, names_of(test), frames, RATE_HZ, listener())
    _, reference = halves(found, 6, settings.seed)

    @torch.no_grad()
    def features(videos, names, prompts):
        tokens = [encoder.encode(to_tensor([video]))[0].flatten(0, 2).mean(dim=0) for video in videos]
        return FeatureSet(torch.stack(tokens).double().numpy(), names, prompts)

    assert reference[0].frames == tuple(range(3, 49, 3))
    assert reference[0].prompt == with_rate(reference[0].clip.prompt, 3)
    videos = [read_video(good / f"videos/{number}.mp4", frames) for number in range(6)]
    prompts = [json.loads(line)["prompt"] for line in (good / "videos.jsonl").read_text().splitlines()]
    x = features(videos, prompts, prompts)
    y = features(
        [one.clip.read(one.frames) for one in reference],
        [one.cluster for one in reference],
        [one.prompt for one in reference],
    )
    discrepancy = MeanDiscrepancy(x, y, KERNELS["kid"])
    assert measured.row("good", "mmd2")["value"] == pytest.approx(discrepancy.value, rel=1e-3, abs=1e-7)
    assert measured.row("good", "frechet")["value"] == pytest.approx(frechet(x.features, y.features), rel=1e-3)
    shares = [item["mmd2"] for item in measured.items if item["subject"] == "good"]
    assert len(shares) == 12
    assert shares == pytest.approx(discrepancy.shares(), rel=1e-2, abs=1e-6)
    assert np.mean(shares) == pytest.approx(measured.row("good", "mmd2")["value"])


def test_real_videos_against_themselves_are_the_floor(simulated, settings, session_cache, tmp_path, measured, listener):
    """A set made of the very half that stands in the table lies as far as that half; twins are videos of one prompt."""
    test = [clip for clip in read_dataset(simulated).clips if clip.split == "test"]
    found = real_clips(test, names_of(test), range(1, 17), RATE_HZ, listener())
    half, _ = halves(found, 6, settings.seed)
    copied = write_set(tmp_path / "copied", [one.clip for one in half], prompts=[one.cluster for one in half])
    done = distance(dataclasses.replace(settings, videos=(str(copied),)), out=tmp_path / "run", cache_dir=session_cache)
    for metric in ("mmd2", "frechet"):
        floor = done.row(HALF, metric)["value"]
        assert floor == measured.row(HALF, metric)["value"]
        scale = abs(measured.row("worse", metric)["value"])
        assert done.row("copied", metric)["value"] == pytest.approx(floor, abs=0.05 * scale)


def test_order_of_videos_changes_nothing(measured, good, settings, session_cache, tmp_path):
    lines = (good / "videos.jsonl").read_text().splitlines()
    (good / "reversed.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    chosen = dataclasses.replace(settings, videos=(f"good={good / 'reversed.jsonl'}",))
    done = distance(chosen, out=tmp_path / "run", cache_dir=session_cache)
    for metric in ("mmd2", "frechet"):
        assert done.row("good", metric)["value"] == pytest.approx(measured.row("good", metric)["value"])


def test_a_still_encoder_sees_no_motion(settings, session_cache, tmp_path, listener):
    """Real clips that stand still anyway: to hold their first frames changes nothing, and that is said."""
    still = tmp_path / "real"
    still.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        picture = rng.integers(0, 255, (1, 16, 16, 3), dtype=np.uint8)
        write_video(still / f"{number}.mp4", np.repeat(picture, 49, axis=0), 20, full_chroma=True)
    reporter = listener()
    chosen = dataclasses.replace(settings, real=str(still))
    done = distance(chosen, out=tmp_path / "run", cache_dir=session_cache, reporter=reporter)
    assert done.row(STILL, "mmd2_added")["value"] == pytest.approx(0, abs=0.02 * done.row(STILL, "mmd2")["stderr"])
    assert any("hold real clips at their first frame" in said for said in reporter.notes)


# -- sets ------------------------------------------------------------------------------------------------------------


def test_twins_are_in_one_half(simulated, listener):
    every = read_dataset(simulated).clips
    found = real_clips(every, names_of(every), range(1, 17), RATE_HZ, listener())
    for seed in range(3):
        one, other = halves(found, 100, seed)
        assert len(one) == len(other) == 20
        assert not {clip.cluster for clip in one} & {clip.cluster for clip in other}
        assert len({clip.clip.path for clip in (*one, *other)}) == 40
    assert halves(found, 5, 0) != halves(found, 5, 1)
    assert [len(half) for half in halves(found, 5, 0)] == [5, 5]


@pytest.mark.parametrize(
    ("num_frames", "frames"),
    [(17, range(1, 17)), (49, range(3, 49, 3)), (16, range(16)), (9, range(1, 9)), (81, range(5, 81, 5))],
)
def test_seen_frames(settings, num_frames, frames):
    assert seen_frames(num_frames, load_encoder(settings.encoder)) == tuple(frames)


@pytest.fixture(scope="module")
def other_families(tmp_path_factory):
    """Folders of an image encoder and of V-JEPA 2, with random weights."""
    folders = {name: tmp_path_factory.mktemp("families") / name for name in ("dinov2", "vjepa2")}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14)).save_pretrained(folders["dinov2"])
    predictor = {"pred_hidden_size": 16, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    config = VJEPA2Config(**sizes, **predictor, crop_size=32, patch_size=16, frames_per_clip=64, tubelet_size=2)
    VJEPA2Model(config).save_pretrained(folders["vjepa2"])
    return folders


@pytest.mark.parametrize(("family", "num_frames"), [("dinov2", 4), ("vjepa2", 16)])
def test_any_encoder(family, num_frames, other_families, settings, session_cache, tmp_path):
    """An image encoder sees four frames; one of 64 sees as many of 17 as are whole tokens."""
    chosen = dataclasses.replace(settings, encoder=str(other_families[family]), layer=0)
    done = distance(chosen, out=tmp_path / "run", cache_dir=session_cache)
    assert (done.first["num_frames"], done.first["dimension"], done.first["block"]) == (num_frames, 16, 0)
    assert all(np.isfinite(row["value"]) for row in done.rows)


def test_fewer_real_clips_than_twice_the_videos(settings, clips, session_cache, tmp_path, listener):
    """All sets are cut to the size of half the real clips."""
    many = write_set(tmp_path / "many", clips[:9])
    reporter = listener()
    chosen = dataclasses.replace(settings, videos=(str(many),))
    done = distance(chosen, out=tmp_path / "run", cache_dir=session_cache, reporter=reporter)
    assert {row["n"] for row in done.rows} == {6}
    assert any("6 videos of each set are compared (there are 9 of many" in said for said in reporter.warnings)
    assert any("covariances of rank 5 at most" in said for said in reporter.warnings)


# -- runs ------------------------------------------------------------------------------------------------------------


def test_again_is_read_and_features_are_kept(measured, settings, session_cache, tmp_path, listener):
    reporter = listener()
    again = distance(settings, out=measured.path, cache_dir=session_cache, reporter=reporter)
    assert any("nothing is computed again" in said for said in reporter.said)
    assert again.rows == DistanceResult.read(measured.path).rows == json.loads(json.dumps(measured.rows))
    other = dataclasses.replace(settings, kernel="jedi")
    with pytest.raises(UsageError, match="holds another run: kernel was"):
        distance(other, out=measured.path, cache_dir=session_cache)
    reporter = listener()
    done = distance(other, out=tmp_path / "run", cache_dir=session_cache, reporter=reporter)
    assert not any(name.startswith("Features") for name in reporter.bars)
    assert done.row("good", "frechet")["value"] == measured.row("good", "frechet")["value"]
    assert done.row("good", "mmd2")["value"] != measured.row("good", "mmd2")["value"]


def test_broken_off_goes_on(measured, settings, tmp_path, listener):
    out, cache = tmp_path / "run", tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        distance(settings, out=out, cache_dir=cache, batch_size=4, reporter=listener(stop_at=8, during="clip"))
    reporter = listener()
    assert distance(settings, out=out, cache_dir=cache, reporter=reporter).row("good", "mmd2")[
        "value"
    ] == pytest.approx(measured.row("good", "mmd2")["value"])
    [left] = [total for name, total in reporter.bars.items() if name.startswith("Features")]
    assert 0 < left < 7 * 6 + 6


def test_page(measured):
    page = (measured.path / "report.html").read_text()
    for said in (
        "Distance of good, worse to real clips",
        "Neither is FVD",
        "covariances of rank 5",
        HALF,
        STILL,
        BLURRED,
    ):
        assert said in page


# -- refusals --------------------------------------------------------------------------------------------------------


def test_refused_settings(refused, good, tmp_path, simulated):
    refused("Unknown kernel: 'rbf'", kernel="rbf")
    refused("is a generator", encoder="cogvideox-tiny")
    refused("No such block: 9", layer=9)
    refused("No --videos", videos=())
    refused("Two of --videos are called 'good'", videos=(str(good), str(good)))
    refused("as a control is", videos=(f"{HALF}={good}",))
    refused("is not there", videos=(str(tmp_path / "nowhere"),))


def test_refused_videos(refused, clips, tmp_path, good):
    one = write_set(tmp_path / "one", clips[:1])
    refused("1 video of 1 prompt", videos=(str(one),))
    short = write_set(tmp_path / "short", clips[:3], num_frames=9)
    refused("17 frames at 6.67 a second.*9 frames|9 frames", videos=(str(good), str(short)))
    slow = write_set(tmp_path / "slow", clips[:3], rate_hz=8)
    refused("differ in length or rate", videos=(str(good), str(slow)))
    tiny = write_set(tmp_path / "tiny", clips[:3], num_frames=3)
    refused("have 3 frames", videos=(str(tiny),))
    (short / "videos" / "0.mp4").unlink()
    refused("0.mp4", videos=(str(short),))


def test_too_small_sets_are_refused_before_the_encoder_looks(refused, clips, tmp_path):
    """Of 11 videos of two prompts, all but one of one, so many as are compared may be of that one."""
    lopsided = write_set(tmp_path / "lopsided", clips[:6])
    rows = [json.loads(line) for line in (lopsided / "videos.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        row["prompt"] = row["caption"] = "the same"
    (lopsided / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused("6 videos of 2 prompts", videos=(str(lopsided),))


def test_real_clips_of_one_pair_are_too_few(refused, good):
    refused("halves are made of 3 clips of 2 scenes", videos=(str(good),), limit=3)


def test_refused_real_clips(refused, tmp_path, clips):
    few = tmp_path / "few"
    few.mkdir()
    for number, clip in enumerate(clips[:3]):
        write_video(few / f"{number}.mp4", clip.read(), 20)
    refused("Of 3 real clips", real=str(few))
    for path in few.iterdir():
        write_video(path, clips[0].read(), 4)
    refused("4 frames a second, the videos 6.67", real=str(few))
    for path in few.iterdir():
        write_video(path, clips[0].read()[:20], 20)
    refused("No real clip is 2.4 s long", real=str(few))


def test_chroma_is_told(settings, good, clips, session_cache, tmp_path, listener):
    folder = tmp_path / "halved"
    folder.mkdir()
    for number, clip in enumerate(clips[:6]):
        write_video(folder / f"{number}.mp4", clip.read()[::3], RATE_HZ, full_chroma=False)
        (folder / f"{number}.txt").write_text(f"a ball {number}")
    reporter = listener()
    chosen = dataclasses.replace(settings, videos=(str(folder),))
    distance(chosen, out=tmp_path / "run", cache_dir=session_cache, reporter=reporter)
    assert any("halved and the real clips differ in chroma" in said for said in reporter.warnings)


# -- compare ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("against", ["worse", "good" + HELD])
def test_compare_pairs_the_shares(against, measured, tmp_path, listener):
    reporter = listener()
    runs = (f"{measured.path}::good", f"{measured.path}::{against}")
    done = compare(CompareSettings(runs, cases=0), out=tmp_path / "compared", reporter=reporter)
    [row] = [row for row in done.rows if row["group"] == "all"]
    assert (row["of"], row["n"], row["num_clusters"]) == ("mmd2", 12, 6 + 3)
    each = [measured.row(name, "mmd2")["value"] for name in (against, "good")]
    assert row["value"] == pytest.approx(each[0] - each[1])
    assert row["verdict"] in ("worse", "not shown")
    added = measured.row("good" + HELD, "mmd2_added")
    if against != "worse":
        assert row["value"] == pytest.approx(added["value"])
    assert any("whose mean is the set's MMD²" in said for said in reporter.notes)
    assert any("not compared: frechet" in said for said in reporter.notes)
    assert "prompts and scenes drawn again" in done.caption(done.sides[1])


def test_compare_wants_the_same_prompts(measured, settings, good, clips, session_cache, tmp_path):
    other = write_set(tmp_path / "other", clips[:12:2], prompts=[f"another {number}" for number in range(6)])
    done = distance(dataclasses.replace(settings, videos=(str(other),)), out=tmp_path / "run", cache_dir=session_cache)
    with pytest.raises(PhyscliError, match=r"different items: 12 in .*; 6 are in all"):
        compare(CompareSettings((f"{measured.path}::good", str(done.path))), out=tmp_path / "compared")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kernel": "jedi"}, "different kernels"),
        ({"seed": 1}, "different real clips"),
        ({"encoder": "other"}, "different encoders"),
        ({"limit": 5}, "different real clips"),
    ],
)
def test_compare_refuses_distances_of_other_kinds(
    changed, said, measured, settings, session_cache, encoder_folder, tmp_path
):
    if "encoder" in changed:
        changed = {"encoder": str(encoder_folder("other", 1))}
    other = distance(dataclasses.replace(settings, **changed), out=tmp_path / "run", cache_dir=session_cache)
    runs = (f"{measured.path}::good", f"{other.path}::good")
    with pytest.raises(PhyscliError, match=said):
        compare(CompareSettings(runs), out=tmp_path / "compared")


def test_a_distance_is_of_a_whole_set(measured, tmp_path, session_cache):
    runs = (f"{measured.path}::good", f"{measured.path}::worse")
    with pytest.raises(UsageError, match="--intersect"):
        compare(CompareSettings(runs, intersect=True), out=tmp_path / "compared")
    with pytest.raises(PhyscliError, match="which scores no videos"):
        select(SelectSettings(f"{measured.path}::good"), out=tmp_path / "selected", cache_dir=session_cache)
    with pytest.raises(PhyscliError, match="different items"):
        compare(CompareSettings((runs[0], f"{measured.path}::{STILL}")), out=tmp_path / "compared")
    assert Path(measured.items[0]["video"]).is_file()
