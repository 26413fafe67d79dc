"""Windows of clips: where they begin, which one a sample is, which clips are left out and what is said of them."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

from physcli.data.clips import Clip, read_dataset
from physcli.data.video import write_video
from physcli.errors import DataError, UsageError
from physcli.recipe import WindowChoice
from physcli.tasks.features import View
from physcli.tasks.training.clips import rng_of
from physcli.tasks.training.windows import Windows, prompt_at, prompt_of, stride_of


@pytest.fixture(scope="module")
def clips(simulated):
    return list(read_dataset(simulated).clips[:6])


@pytest.fixture
def video(tmp_path):
    """`video(20)`: a clip of that many black frames; `video(None)`: one that is no video."""

    def make(num_frames):
        path = tmp_path / f"{num_frames}.mp4"
        if num_frames is None:
            path.write_bytes(b"no video")
        else:
            write_video(path, np.zeros((num_frames, 16, 16, 3), np.uint8), 20)
        return Clip(name=path.stem, split="train", path=path, kind="video", prompt="nothing, at all")

    return make


@pytest.fixture
def windows(heard):
    """`windows(clips, strides=(1, 3), …)`: of nine frames, those that can be read."""

    def make(clips, *, seed=0, max_bad=1.0, reporter=None, frames=9, **choice):
        choice = WindowChoice(frames=frames, **choice)
        made = Windows(clips, choice=choice, seed=seed, reporter=reporter or heard())
        problems = {}

        def usable(view):
            try:
                view.clip.read(view.frames)
            except DataError as error:
                problems.setdefault(view.clip.path, f"{view.clip.path}: {error.received}")
                return False
            return True

        bad = [view for view in made.views if not usable(view)]
        made.settle(lambda view: view not in bad, list(problems.values()), max_bad=max_bad)
        return made

    return make


def drawn(windows, samples, seed=0):
    return [windows.draw(sample, rng_of(seed, "sample", sample)) for sample in samples]


def test_where_windows_are(windows, clips):
    made = windows(clips, strides=(1, 3), windows=4)
    assert made.problems == []
    per_clip = {clip.name: [view for view in made.views if view.clip is clip] for clip in clips}
    for clip in clips:
        assert [stride_of(view) for view in per_clip[clip.name]] == [1] * 4 + [3] * 4
        for stride, latest in ((1, 40), (3, 24)):
            found = [view.frames for view in per_clip[clip.name] if stride_of(view) == stride]
            starts = [frames[0] for frames in found]
            assert found == [tuple(range(start, start + 9 * stride, stride)) for start in starts]
            assert starts[0] == 0
            assert len(set(starts)) == 4
            assert max(starts) <= latest
    later = {view.frames[0] for view in made.views} - {0}
    assert max(later) > 24
    assert len(later) > 20  # each clip has its own
    assert [(view.clip, view.frames[0], stride_of(view)) for view in made.first()] == [
        (clip, 0, stride) for clip in clips for stride in (1, 3)
    ]


def test_windows_depend_on_the_seed_alone(windows, clips):
    made, again, other = (windows(clips, seed=seed, windows=3) for seed in (1, 1, 2))
    assert again.views == made.views
    assert drawn(again, range(40, 10, -1), seed=1) == drawn(made, range(11, 41), seed=1)[::-1]
    assert other.views != made.views
    assert drawn(other, range(12), seed=1) != drawn(made, range(12), seed=1)
    assert drawn(made, range(12), seed=2) != drawn(made, range(12), seed=1)


def test_samples_go_through_all_clips_strides_and_places(windows, clips):
    made = windows(clips, windows=3, strides=(1, 3))
    views = drawn(made, range(600))
    for epoch in range(0, 600, 6):
        assert {view.clip.name for view in views[epoch : epoch + 6]} == {clip.name for clip in clips}
    assert {view.key for view in views} == {view.key for view in made.views}
    assert 250 < sum(stride_of(view) == 1 for view in views) < 350


def test_strides_count_alike_whatever_fits(windows, video):
    """Of 25 frames three windows have stride 1, and only one stride 3: it is drawn half the time all the same."""
    made = windows([video(25)], windows=3, strides=(1, 3))
    assert Counter(stride_of(view) for view in made.views) == {1: 3, 3: 1}
    assert 80 < sum(stride_of(view) == 3 for view in drawn(made, range(200))) < 120


def test_a_stride_named_more_than_once_is_drawn_as_often(windows, video):
    made = windows([video(25)], windows=2, strides=(1, 3, 3, 3))
    assert Counter(stride_of(view) for view in made.views) == {1: 2, 3: 1}
    assert 130 < sum(stride_of(view) == 3 for view in drawn(made, range(200))) < 170
    short = windows([video(9)], strides=(1, 3, 3))  # too short for 3
    assert {stride_of(view) for view in drawn(short, range(9))} == {1}


def test_clips_that_are_too_short(windows, video, clips, heard):
    reporter = heard()
    made = windows([video(8), clips[0], video(9), video(24)], strides=(1, 3), reporter=reporter)
    assert [(view.clip.name, view.frames[0], stride_of(view)) for view in made.first()] == [
        (clips[0].name, 0, 1),
        (clips[0].name, 0, 3),
        ("9", 0, 1),  # no stride 3, and nothing to complain of
        ("24", 0, 1),
    ]
    assert [view.frames for view in made.views if view.clip.name == "9"] == [tuple(range(9))]
    (problem,) = made.problems
    assert problem.endswith("8.mp4: 8 frames, and a window has 9.")
    assert reporter.said == [f"Left out: {problem}"]


def test_unreadable_clips_are_named_once(windows, video, clips, heard):
    reporter = heard()
    cut = dataclasses.replace(video(9), num_frames=49)  # as a container that says too much: several windows break off
    made = windows([video(None), cut, clips[0]], reporter=reporter)
    assert {view.clip.name for view in made.views if view.clip.name != "9"} == {clips[0].name}
    header, frames = made.problems
    assert "None.mp4: " in header
    assert "cannot be opened as a video" in header
    assert re.search(r"9\.mp4 has 9 frames, but frame \d+ \(counted from 0\) was asked for", frames)
    assert reporter.said == [f"Left out: {problem}" for problem in made.problems]
    # What can be read of it stays.
    assert all(max(view.frames) < 9 for view in made.views if view.clip.name == "9")


def test_too_many_unreadable_clips(windows, video, clips):
    bad = [video(None), video(4)]
    assert len(windows([*bad, *clips[:2]], max_bad=0.5).problems) == 2
    with pytest.raises(DataError, match=r"2 of 4 clips cannot be used, such as .*4\.mp4: 4 frames"):
        windows([*bad, *clips[:2]], max_bad=0.25)


def test_no_clip_is_long_enough(windows, video):
    with pytest.raises(DataError, match=r"None of the 2 clips has 9 frames that can be read") as error:
        windows([video(5), video(8)])
    assert "objective.frames" in error.value.expected


def test_the_prompt_says_the_rate(windows, clips, video):
    made = windows([clips[0], video(25)], strides=(1, 3), windows=1)
    told = clips[0].prompt.removesuffix(", filmed at 20 frames per second")
    assert told != clips[0].prompt
    assert [prompt_of(view) for view in made.views] == [
        f"{told}, filmed at 20 frames per second",
        f"{told}, filmed at 7 frames per second",
        "nothing, at all",  # only the simulator's prompts end in a rate
        "nothing, at all",
    ]


def test_a_rate_that_no_prompt_can_say(clips, video):
    assert prompt_at(video(5), 2) == "nothing, at all"
    with pytest.raises(UsageError, match="every 2 frames") as error:
        prompt_at(clips[0], 2)
    assert error.value.expected == "objective.strides of 1, 3 for simulated clips"


def test_the_stride_of_a_single_frame(clips):
    assert stride_of(View(clips[0], (7,), "key", None)) == 1
