"""The still set and the real set that stand beside every sampled one."""

from __future__ import annotations

import numpy as np
import pytest

from physcli.data.clips import read_dataset
from physcli.data.video import read_video, write_video
from physcli.errors import DataError, UsageError
from physcli.tasks.baselines import BaselineSettings, repeat_real, static
from physcli.tasks.sample import SampleSettings, sample


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    settings = SampleSettings(prompts=("a red ball", "a box"), num_samples=2, steps=2, num_frames=9, size=(32, 32))
    return sample(settings, out=tmp_path_factory.mktemp("runs") / "set", batch_size=4, device="cpu")


def test_static_repeats_first_frames_and_keeps_what_belongs_to_them(sampled, tmp_path):
    done = static(BaselineSettings("static", str(sampled.path)), out=tmp_path / "run")
    for row, original in zip(done.videos, sampled.videos, strict=True):
        assert {key: row[key] for key in original} == original
        assert (row["baseline"], row["of"]) == ("static", str(sampled.path / original["video"]))
        still, moving = read_video(done.path / row["video"]), read_video(sampled.path / original["video"])
        assert still.shape == moving.shape
        assert np.abs(still.astype(int) - moving[:1]).mean() < 2  # H.264's part
        assert np.abs(np.diff(still.astype(int), axis=0)).max() <= 2
    assert done.value("mean_flow_px") < 0.01
    assert (done.path / "contact_sheet.png").is_file()
    from_list = static(BaselineSettings("static", str(sampled.path / "videos.jsonl"), limit=2), out=tmp_path / "two")
    assert [row["video"] for row in from_list.videos] == [sampled.videos[i]["video"] for i in (0, 2)]


@pytest.mark.slow
def test_real_clips_through_the_vae(simulated, tmp_path):
    done = repeat_real(BaselineSettings("repeat-real", str(simulated), limit=3), out=tmp_path / "run", device="cpu")
    clips = {str(clip.path): clip for clip in read_dataset(simulated).clips}
    assert len(done.videos) == 3
    for row in done.videos:
        clip = clips[row["of"]]
        assert clip.split == "test"
        assert row["prompt"].endswith("7 frames per second")  # the whole event: every third frame
        assert row["fps"] == pytest.approx(20 / 3)
        real = clip.read([3 * i for i in range(17)]).astype(int)
        error = np.square(read_video(done.path / row["video"]) - real).mean()
        assert 10 * np.log10(255**2 / error) > 26
    assert done.value("mean_flow_px") > 0.01


def test_plain_videos_are_taken_from_their_first_frame(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (20, 1, 1, 3)).astype(np.uint8).repeat(64, 1).repeat(64, 2)
    (tmp_path / "data").mkdir()
    for name, length in (("long", 20), ("short", 5)):
        write_video(tmp_path / "data" / f"{name}.mp4", frames[:length], 12)
        (tmp_path / "data" / f"{name}.txt").write_text(f"a {name} video")
    done = repeat_real(BaselineSettings("repeat-real", str(tmp_path / "data")), out=tmp_path / "run", device="cpu")
    [row] = done.videos
    assert (row["caption"], row["fps"], row["num_frames"]) == ("a long video", 12, 17)


def test_a_video_a_clip_whatever_their_names(tmp_path):
    """One file for each: same name in two folders, same name with another ending."""
    levels = {"x/1.mp4": 60, "y/1.mp4": 110, "a.mp4": 160, "a.webm": 210}
    for name, level in levels.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "whole.mp4", np.full((9, 64, 64, 3), level, np.uint8), 12)
        path.write_bytes((tmp_path / "whole.mp4").read_bytes())  # FFmpeg looks at the content, not at the name
    settings = BaselineSettings("repeat-real", str(tmp_path / "data"), num_frames=9)
    done = repeat_real(settings, out=tmp_path / "run", device="cpu")
    assert len({row["video"] for row in done.videos}) == len(done.videos) == 4
    shown = {row["of"]: read_video(done.path / row["video"]).mean() for row in done.videos}
    assert sorted(shown, key=shown.get) == [str(tmp_path / "data" / name) for name in levels]  # darkest first


@pytest.mark.parametrize("videos", ["nowhere", "{tmp}"])
def test_no_sampled_set(tmp_path, videos):
    with pytest.raises(UsageError, match="is no sampled set"):
        static(BaselineSettings("static", videos.format(tmp=tmp_path)), out=tmp_path / "run")


def test_clips_that_are_all_too_short(tmp_path):
    (tmp_path / "data").mkdir()
    write_video(tmp_path / "data" / "short.mp4", np.zeros((5, 64, 64, 3), np.uint8), 12)
    with pytest.raises(DataError, match="has 17 frames"):
        repeat_real(BaselineSettings("repeat-real", str(tmp_path / "data")), out=tmp_path / "run", device="cpu")
