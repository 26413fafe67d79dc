"""What is compared: sets of videos and real clips, seen at the same times, and two halves of the real clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physcli.benchmarks.distance import FEWEST
from physcli.benchmarks.physion import IMAGE_FRAMES
from physcli.data.clips import HDF5_FRAME_RATE_HZ, HDF5_SUFFIXES, Clip
from physcli.data.subsets import thin
from physcli.data.video import count_frames, frame_rate
from physcli.data.video_sets import Video, read_video_set
from physcli.errors import DataError, UsageError
from physcli.hashing import seed_from
from physcli.models.encoders.base import Encoder
from physcli.progress import Reporter, counted, warn_of_left_out
from physcli.simulation.prompts import RATES, with_rate
from physcli.tasks.distance.result import CONTROLS, HELD
from physcli.tasks.features import rate_at

_SAME_RATE = 0.005  # two rates that differ by less of themselves are one


@dataclass(frozen=True)
class Subject:
    """A set of generated videos; `source` is what was given, without a name."""

    label: str
    source: str
    videos: tuple[Video, ...]


@dataclass(frozen=True)
class Length:
    """How long all videos are."""

    num_frames: int
    rate_hz: float


@dataclass(frozen=True)
class RealClip:
    """A real clip and what is seen of it; twins of one scene share their `cluster`."""

    clip: Clip
    name: str
    frames: tuple[int, ...]
    cluster: str
    prompt: str


def read_subjects(given: Sequence[str], limit: int | None, reporter: Reporter) -> list[Subject]:
    """The sets of videos, each `[NAME=]SOURCE` with a source as `read_video_set` takes it.

    Raises:
        UsageError: no set, or two of one name.
        DataError: a set that cannot be read, or has too few prompts.
    """
    if not given:
        raise UsageError("No --videos.", expected="a run of physcli sample, a folder of captioned videos, or a list")
    subjects = []
    for text in given:
        label, _, rest = text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)
        found = read_video_set(Path(rest).expanduser())
        warn_of_left_out(reporter, found.problems)
        for note in found.notes:
            reporter.note(note)
        subjects.append(Subject(label.strip() or found.subject, rest, tuple(thin(found.items, limit))))
    check_prompts(subjects)
    labels = [subject.label for subject in subjects]
    for subject in subjects:
        if labels.count(subject.label) > 1:
            raise UsageError(
                f"Two of --videos are called {subject.label!r}.",
                expected="a name of its own for each",
                fix=f"name them: --videos NAME={subject.source}",
            )
        if subject.label in CONTROLS or subject.label.endswith(HELD):
            raise UsageError(f"--videos are called {subject.label!r}, as a control is.", expected="another NAME=…")
    return subjects


def check_prompts(subjects: Sequence[Subject]) -> None:
    """Raises DataError for a set of too few prompts: those of one are alike for that reason, and count as one video."""
    for subject in subjects:
        prompts = len({video.prompt for video in subject.videos})
        if prompts < FEWEST:
            raise DataError(
                f"{subject.source}: {counted(len(subject.videos), 'video')} of {counted(prompts, 'prompt')}.",
                expected=f"videos of {FEWEST} prompts at least: a distance is between sets",
            )


def common_length(subjects: Sequence[Subject]) -> Length:
    """The number of frames and the rate that all videos have.

    Raises:
        DataError: they differ, or a video is not there, cannot be opened or does not say its rate.
    """
    first: tuple[Path, Length] | None = None
    for video in (video for subject in subjects for video in subject.videos):
        length = Length(count_frames(video.path), frame_rate(video.path))
        if length.rate_hz <= 0:
            raise DataError(f"{video.path} does not say how many frames a second it has.", expected="a frame rate")
        if first is None:
            first = video.path, length
        elif length.num_frames != first[1].num_frames or not _same_rate(length.rate_hz, first[1].rate_hz):
            said = "; ".join(
                f"{path}: {one.num_frames} frames at {one.rate_hz:.3g} a second"
                for path, one in (first, (video.path, length))
            )
            raise DataError(
                f"The videos differ in length or rate. {said}.",
                expected="one length and rate: real clips are seen at the same times",
                fix="put the others into a run of their own",
            )
    assert first is not None
    return first[1]


def seen_frames(num_frames: int, encoder: Encoder) -> tuple[int, ...]:
    """The frames of a video that an encoder is shown: as many as it takes, evenly spaced, to the last one.

    17 frames and an encoder of 16: 1, 2, …, 16; 49 frames: 3, 6, …, 48. Of fewer than an encoder takes, so many as are
    whole tokens; an encoder of images sees four.

    Raises:
        DataError: fewer than a token spans, or than two.
    """
    native = encoder.preprocessing.num_frames or IMAGE_FRAMES
    count = min(native, num_frames) // encoder.tubelet_size * encoder.tubelet_size
    if count < 2:
        raise DataError(
            f"The videos have {counted(num_frames, 'frame')}.",
            expected=f"at least {max(2, encoder.tubelet_size)} for {encoder.name}",
        )
    stride = (num_frames - 1) // (count - 1)
    return tuple(num_frames - 1 - stride * back for back in reversed(range(count)))


def real_clips(
    clips: Sequence[Clip], names: Sequence[str], frames: Sequence[int], rate_hz: float, reporter: Reporter
) -> list[RealClip]:
    """Real clips at the times of a video's frames: of each the frame that is nearest in time.

    Args:
        clips: As they are listed.
        names: That tell them apart.
        frames: Of a generated video.
        rate_hz: Of the videos, frames a second.
        reporter: Told of clips that are too short.

    Raises:
        DataError: a clip does not say its rate, or has fewer frames a second than the videos; or all are too short.
    """
    found, short = [], []
    for clip, name in zip(clips, names, strict=True):
        real_hz = rate_at(clip, 1, HDF5_FRAME_RATE_HZ if clip.path.suffix in HDF5_SUFFIXES else 0.0)
        if not real_hz:
            raise DataError(f"{clip.path} does not say how many frames a second it has.", expected="a frame rate")
        if real_hz < rate_hz * (1 - _SAME_RATE):
            raise DataError(
                f"{clip.path} has {real_hz:.3g} frames a second, the videos {rate_hz:.3g}.",
                expected="real clips of the same rate or a higher one",
                fix="leave it out: frames would come twice, and be seen as what is unlike",
            )
        chosen = tuple(round(frame * real_hz / rate_hz) for frame in frames)
        if chosen[-1] >= clip.count_frames():
            short.append(clip)
            continue
        stride = round(real_hz / rate_hz)
        told = clip.kind == "simulated" and stride in RATES and _same_rate(real_hz / stride, rate_hz)
        prompt = with_rate(clip.prompt, stride) if told else clip.prompt
        scene = f"{clip.split}/{clip.scenario}/{clip.pair}" if clip.pair else name
        found.append(RealClip(clip, name, chosen, scene, prompt or name))
    seconds = frames[-1] / rate_hz
    if short and found:
        reporter.warn(f"Left out, shorter than {seconds:.3g} s: {len(short)} real clips, such as {short[0].path}")
    if not found:
        raise DataError(
            f"No real clip is {seconds:.3g} s long." if short else "There is no real clip.",
            expected="clips at least as long as the videos" if short else "a folder of clips",
        )
    return found


def halves(clips: Sequence[RealClip], most: int, seed: int) -> tuple[list[RealClip], list[RealClip]]:
    """Two disjoint halves at random, of one size, at most `most` clips each; what shares a cluster stays together.

    Raises:
        DataError: too few clips, or videos, for two halves of `FEWEST` scenes.
    """
    by: dict[str, list[RealClip]] = {}
    for clip in clips:
        by.setdefault(clip.cluster, []).append(clip)
    names = sorted(by)
    order = np.random.default_rng(seed_from("halves of real clips", seed)).permutation(len(names))
    one: list[RealClip] = []
    other: list[RealClip] = []
    for number in order:
        (one if len(one) <= len(other) else other).extend(by[names[number]])
    size = min(most, len(one), len(other))
    few = size < min(len(one), len(other))
    one, other = one[:size], other[:size]
    told = [min(len({getattr(clip, name) for clip in half}) for half in (one, other)) for name in ("cluster", "prompt")]
    scenes, prompts = told
    if scenes < FEWEST or prompts < 2:
        raise DataError(
            f"Of {counted(len(clips), 'real clip')}, for {counted(most, 'video')}, halves are made of "
            f"{counted(size, 'clip')} of {counted(scenes, 'scene')} and {counted(prompts, 'prompt')}.",
            expected=f"halves of {FEWEST} scenes and two prompts at least",
            fix="use more videos" if few else "use more real clips: a larger N in simulated:N",
        )
    return one, other


def _same_rate(one: float, other: float) -> bool:
    return abs(one - other) <= _SAME_RATE * other
