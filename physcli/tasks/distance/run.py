"""`physcli eval distance`: how far do generated videos lie from real clips, in features of a named encoder?

videos and real clips at the same times → tokens of a block, their mean (cached) → MMD² and the Fréchet distance to one
half of the real clips.

    OUT/items.jsonl       a row a video: its first-order share of MMD², which `physcli compare` pairs
    OUT/metrics.json      both distances of every set, with intervals
    OUT/report.html

All sets have the same size, and all are held against the same half of the real clips. In the same table stand the
other half (the floor), its first frames held, it blurred, and each model's own first frames held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from physcli.benchmarks.distance import (
    ADDED,
    FRECHET,
    KERNELS,
    MMD2,
    FeatureSet,
    MeanDiscrepancy,
    frechet_of,
    mmd2_of,
)
from physcli.data.clips import HDF5_SUFFIXES, Clip, read_dataset
from physcli.data.subsets import thin
from physcli.data.video import chroma_step, pixel_format
from physcli.data.video_sets import Video
from physcli.errors import DataError, UsageError, unknown
from physcli.hashing import content_hash, settings_hash
from physcli.models.device import pick_device, pick_dtype
from physcli.models.encoders.base import Encoder
from physcli.models.loading import load_encoder
from physcli.models.names import fingerprint, resolve
from physcli.progress import Reporter
from physcli.rows import interval_columns, make_row
from physcli.stats import Interval, paired_difference
from physcli.tasks.distance.page import write_page
from physcli.tasks.distance.result import BLURRED, HALF, HELD, STILL, DistanceResult
from physcli.tasks.distance.sets import (
    RealClip,
    Subject,
    common_length,
    halves,
    read_subjects,
    real_clips,
    seen_frames,
)
from physcli.tasks.features import FeatureExtractor, Tap, View, blurred, check_finite, choose_taps, views_of
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, cache_root, with_defaults, write_jsonl
from physcli.tasks.sources import clips_folder, pinned, simulated_by, source_name

_FEW = 10  # videos a dimension, below which the Fréchet distance's bias is worth a word


@dataclass(frozen=True)
class DistanceSettings:
    """All that bears on the result. Meanings as in `physcli eval distance --help`."""

    videos: tuple[str, ...]
    real: str = "simulated"
    encoder: str = "videomae-tiny"
    layer: int | None = None
    kernel: str = "kid"
    limit: int | None = None
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True)
class _Seen:
    """A set as the encoder sees it, and for each of its videos what it belongs to."""

    subject: str
    control: bool
    made_from: str  # the subject whose videos a control's are, altered; "" of all others
    views: list[View]
    clusters: list[str]
    prompts: list[str]


def distance(
    settings: DistanceSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 16,
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> DistanceResult:
    """Measure how far sets of videos lie from real clips.

    Args:
        settings: What to measure.
        out: The run directory.
        overwrite: Replace a run with other settings.
        device: Of the encoder.
        batch_size: Videos per forward pass; changes nothing but speed and memory.
        cache_dir: Where simulated clips and features are kept; a run that was broken off goes on from there.
        reporter: Receives progress.

    Raises:
        UsageError: no such kernel or block, or an encoder that is none.
        DataError: sets that cannot be read or compared; see the message.
        ModelError: the encoder does not load.
    """
    processes = Processes(device)
    reporter = reporter if reporter is not None and processes.is_main else Reporter()
    if settings.kernel not in KERNELS:
        raise unknown("kernel", settings.kernel, KERNELS)
    pick_dtype(settings.dtype, pick_device(device))
    resolved = resolve(settings.encoder)
    if resolved.kind != "encoder":
        raise UsageError(f"--encoder {settings.encoder} is a generator.", expected="an encoder, such as videomae-tiny")

    # 1. The sets; all rules that need no encoder are checked here.
    subjects = read_subjects(settings.videos, settings.limit, reporter)
    length = common_length(subjects)
    cache = cache_root(cache_dir)
    recorded = asdict(settings) | {"real": source_name(settings.real)} | simulated_by(settings.real)
    run = RunDir(
        out,
        "eval distance",
        recorded,
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
        writes=processes.is_main,
    )
    with run:
        dataset = read_dataset(clips_folder(settings.real, cache=cache, processes=processes, reporter=reporter))
        for problem in dataset.problems[:5]:
            reporter.warn(f"Left out: {problem.path}: {problem.message}")
        if commit := pinned(settings.real):
            run.record["dataset"] = commit
        clips = [clip for clip in dataset.clips if clip.split == "test"]
        hashes: dict[Path, str] = {}
        release = {} if dataset.mujoco is None else {"mujoco": dataset.mujoco}
        inputs = {"encoder": fingerprint(resolved), "real": _hash_of_clips(clips, hashes)}
        inputs |= {f"videos/{subject.label}": _hash_of_videos(subject.videos, hashes) for subject in subjects}
        run.check_inputs(inputs | release)
        if processes.tell(run.already_finished):
            reporter.note(f"{run.path} already holds this run, finished; nothing is computed again.")
            processes.finish()
            return DistanceResult.read(run.path, is_main=processes.is_main)

        # 2. What is seen: sets of one size at the same times.
        encoder = load_encoder(resolved, what="--encoder ", device=device, dtype=settings.dtype, reporter=reporter)
        if resolved.random_init:
            reporter.warn(f"{resolved.label}: distances in features of a network that was never trained.")
        frames = seen_frames(length.num_frames, encoder)
        found = real_clips(clips, frames, length.rate_hz, reporter)
        most = min(len(subject.videos) for subject in subjects)
        half, reference = halves(found, most, settings.seed)
        count = len(half)
        if count < max(len(subject.videos) for subject in subjects):
            sizes = ", ".join(f"{len(subject.videos)} of {subject.label}" for subject in subjects)
            reporter.warn(
                f"{count} videos of each set are compared (there are {sizes}, and {len(found)} real clips, to be "
                "halved): sets of different sizes do not compare."
            )
        subjects = [replace(subject, videos=tuple(thin(subject.videos, count))) for subject in subjects]
        [tap] = choose_taps(encoder, None if settings.layer is None else [settings.layer], [])
        sets = _sets(subjects, half, frames, hashes)
        [target] = _real_sets([(HALF, reference)], hashes)
        _warn_of_chroma(subjects, reference, reporter)

        # 3. Features, then distances.
        extractor = FeatureExtractor(
            encoder,
            fingerprint=inputs["encoder"],
            pool="mean",
            cache=cache,
            batch_size=batch_size,
            processes=processes,
            reporter=reporter,
        )
        extractor.compute([view for one in (*sets, target) for view in one.views], [tap])
        if processes.is_main:
            columns = {
                "benchmark": "distance",
                "task": "features",
                "split": "test",
                "encoder": resolved.label,
                "block": tap.block,
                "dimension": encoder.hidden_size,
                "kernel": settings.kernel,
                "num_frames": len(frames),
                "rate_hz": length.rate_hz,
                "data": source_name(settings.real),
                "random_init": resolved.random_init,
                "seed": settings.seed,
                "features": extractor.key(tap),
                "reference": settings_hash({"views": sorted(view.key for view in target.views)}),
                **release,
            }
            result = _measure(run, settings, subjects, sets, target, extractor, tap, columns, reporter)
            notes = notes_of(result)
            for number, message in enumerate(notes):
                (reporter.warn if result.rank_deficient and not number else reporter.note)(message)
            write_page(result, run.as_finished(), notes)
            run.write_metrics(result.rows)
    processes.finish()
    return DistanceResult.read(run.path, is_main=processes.is_main)


def _hash_of_clips(clips: Sequence[Clip], hashes: dict[Path, str]) -> str:
    """All that is read of real clips: their files, texts and scenes. Fills `hashes`."""
    about = {}
    for clip in clips:
        hashes[clip.path] = content_hash(clip.path)
        about[f"{clip.scenario}/{clip.name}"] = [hashes[clip.path], clip.prompt, clip.pair, clip.heeded()]
    return settings_hash(about)


def _hash_of_videos(videos: Sequence[Video], hashes: dict[Path, str]) -> str:
    """All that is read of a set. Fills `hashes`.

    Raises:
        DataError: a video is not there.
    """
    about = []
    for video in videos:
        if not video.path.is_file():
            raise DataError(f"{video.path} is not there.", expected="every video of the list", fix="mend the list")
        hashes[video.path] = content_hash(video.path)
        about.append([video.name, hashes[video.path], video.prompt, video.index, video.seed])
    return settings_hash({"videos": about})


def _sets(
    subjects: Sequence[Subject], half: Sequence[RealClip], frames: Sequence[int], hashes: dict[Path, str]
) -> list[_Seen]:
    """Models, each with its first frames held; then the controls of real clips."""
    sets = []
    for subject in subjects:
        clips = [Clip(video.path.stem, "test", video.path, "video") for video in subject.videos]
        prompts = [video.prompt for video in subject.videos]
        for name, chosen in ((subject.label, frames), (subject.label + HELD, [0] * len(frames))):
            views = views_of(clips, [chosen] * len(clips), hashes)
            made_from = "" if name == subject.label else subject.label
            sets.append(_Seen(name, bool(made_from), made_from, views, prompts, prompts))
    held = [replace(clip, frames=(0,) * len(frames)) for clip in half]
    real, still = _real_sets([(HALF, half), (STILL, held)], hashes)
    soft = replace(real, subject=BLURRED, made_from=HALF, views=[blurred(view) for view in real.views])
    return [*sets, real, replace(still, made_from=HALF), soft]


def _real_sets(named: Sequence[tuple[str, Sequence[RealClip]]], hashes: dict[Path, str]) -> list[_Seen]:
    return [
        _Seen(
            name,
            True,
            "",
            views_of([one.clip for one in clips], [one.frames for one in clips], hashes),
            [one.cluster for one in clips],
            [one.prompt for one in clips],
        )
        for name, clips in named
    ]


def _warn_of_chroma(subjects: Sequence[Subject], reference: Sequence[RealClip], reporter: Reporter) -> None:
    def steps(paths: Sequence[Path]) -> Counter[tuple[int, int]]:
        return Counter(chroma_step(pixel_format(path)) for path in paths if path.suffix not in HDF5_SUFFIXES)

    real = steps([one.clip.path for one in reference])
    for subject in subjects:
        made = steps([video.path for video in subject.videos])
        if made.keys() != real.keys():
            reporter.warn(
                f"{subject.label} and the real clips differ in chroma: pixels share colours in one of the two, which a "
                "distance sees. Write both alike."
            )


def _measure(
    run: RunDir,
    settings: DistanceSettings,
    subjects: Sequence[Subject],
    sets: Sequence[_Seen],
    target: _Seen,
    extractor: FeatureExtractor,
    tap: Tap,
    columns: Mapping[str, Any],
    reporter: Reporter,
) -> DistanceResult:
    kernel = KERNELS[settings.kernel]
    model = extractor.model
    assert isinstance(model, Encoder)

    def features(one: _Seen) -> FeatureSet:
        flat = extractor.load(one.views, tap)
        check_finite(flat, one.views, model.name)
        tokens = flat.reshape(len(flat), -1, model.hidden_size).astype(np.float64)
        return FeatureSet(tokens.mean(axis=1), one.clusters, one.prompts)  # of all tokens: as many in each frame

    real = features(target)
    rows: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    videos = {subject.label: subject.videos for subject in subjects}
    shares: dict[str, np.ndarray] = {}
    with reporter.bar("Distances", len(sets), "set") as bar:
        for one in sets:
            mine = features(one)
            about = {
                **columns,
                "subject": one.subject,
                "control": one.control,
                "n": len(one.views),
                "num_clusters": len(set(one.clusters)),
            }
            both = (
                (MMD2, mmd2_of(mine, real, kernel, seed=settings.seed)),
                (
                    FRECHET,
                    frechet_of(mine, real, seed=settings.seed),
                ),
            )
            rows += [
                make_row(metric, found.value, stderr=found.interval.stderr, **about) | interval_columns(found.interval)
                for metric, found in both
            ]
            shares[one.subject] = MeanDiscrepancy(mine, real, kernel).shares()
            if one.made_from:
                added = paired_difference(
                    shares[one.subject], shares[one.made_from], clusters=one.clusters, seed=settings.seed
                )
                ends = interval_columns(Interval(added.low, added.high, added.stderr))
                row = make_row(ADDED, added.value, stderr=added.stderr, **about)
                rows.append(row | ends | {"reference_subject": one.made_from})
            if not one.control:
                items += [
                    _item(one.subject, video, float(share))
                    for video, share in zip(videos[one.subject], shares[one.subject], strict=True)
                ]
            bar.advance()
    write_jsonl(run.path / "items.jsonl", items)
    return DistanceResult(run.path, rows, items)


def _item(subject: str, video: Video, share: float) -> dict[str, Any]:
    return {
        "subject": subject,
        "video": str(video.path.resolve()),
        "name": video.name,
        "caption": video.caption,
        "prompt": video.prompt,
        "index": video.index,
        "seed": video.seed,
        "group": None,
        "pixel_format": pixel_format(video.path),
        MMD2.name: share,
    }


def notes_of(result: DistanceResult) -> list[str]:
    """What the distances do not say of themselves."""
    count, dimension = result.first["n"], result.first["dimension"]
    notes = []
    if result.rank_deficient:
        notes.append(
            f"{count} videos of {dimension} dimensions: covariances of rank {count - 1} at most, with nothing put in "
            "for the rest. The Fréchet distance is then mostly a matter of how many videos there are: hold it against "
            "that of the two real halves, or read MMD², which has no such bias."
        )
    elif count < _FEW * dimension:
        notes.append(
            f"{count} videos of {dimension} dimensions: the Fréchet distance is above that of endless sets. Hold it "
            "against that of the two real halves, or read MMD², which has no such bias."
        )
    unseen = [name for name in (STILL, BLURRED) if not _is_above_0(result, name)]
    for name, said in ((STILL, "hold real clips at their first frame"), (BLURRED, "blur real clips")):
        if name in unseen:
            notes.append(f"To {said} brings them no further away, beyond noise: these features hardly see it.")
    for model in result.models:
        if not _is_above_0(result, model + HELD):
            notes.append(f"{model} is not shown to lie nearer than its own first frames, held.")
    return notes


def _is_above_0(result: DistanceResult, subject: str) -> bool:
    row = result.row(subject, ADDED.name)
    assert row is not None
    return row["low"] is not None and row["low"] > 0
