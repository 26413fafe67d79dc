"""`physcli eval distance`: how far do generated videos lie from real clips, in features of a named encoder?

videos and real clips at the same times → tokens of a block, their mean (cached) → MMD² and the Fréchet distance to one
half of the real clips.

    OUT/items.jsonl       for each set, its videos' and the real clips' shares of MMD², which `physcli compare` pairs
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
from physcli.errors import UsageError, unknown
from physcli.files import short_names
from physcli.hashing import content_hash, settings_hash
from physcli.models.device import pick_device, pick_dtype
from physcli.models.encoders.base import Encoder
from physcli.models.loading import load_encoder
from physcli.models.names import fingerprint, resolve
from physcli.progress import Reporter, warn_of_left_out
from physcli.rows import interval_columns, make_row
from physcli.stats import Interval, paired_difference
from physcli.tasks.distance.page import write_page
from physcli.tasks.distance.result import BLURRED, HALF, HELD, REFERENCE, STILL, DistanceResult
from physcli.tasks.distance.sets import (
    RealClip,
    Subject,
    check_prompts,
    common_length,
    halves,
    read_subjects,
    real_clips,
    seen_frames,
)
from physcli.tasks.features import FeatureExtractor, Tap, View, blurred, check_finite, choose_taps, views_of
from physcli.tasks.figures import FEWEST_CLUSTERS
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, cache_root, with_defaults, write_jsonl
from physcli.tasks.scored_runs import cluster_of
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
    """A set as the encoder sees it. `made_from` is the subject whose videos a control's are, altered; else "". For each
    of `views`, `items` has its fields in items.jsonl; their `cluster` and `prompt` are those of the distances."""

    subject: str
    control: bool
    made_from: str
    views: Sequence[View]
    items: list[dict[str, Any]]


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
    reporter = processes.reporter(reporter)
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
        processes=processes,
    )
    with run:
        folder = clips_folder(settings.real, cache=cache, processes=processes, reporter=reporter)
        dataset = read_dataset(folder)
        warn_of_left_out(reporter, [f"{problem.path}: {problem.message}" for problem in dataset.problems])
        if commit := pinned(settings.real):
            run.record["dataset"] = commit
        clips = [clip for clip in dataset.clips if clip.split == "test"]
        hashes: dict[Path, str] = {}
        release = {} if dataset.mujoco is None else {"mujoco": dataset.mujoco}
        inputs = {"encoder": fingerprint(resolved), "real": _hash_of_clips(clips, hashes)}
        inputs |= {f"videos/{subject.label}": _hash_of_videos(subject.videos, hashes) for subject in subjects}
        run.check_inputs(inputs | release)
        if run.already_finished:
            reporter.note(f"{run.path} already holds this run, finished; nothing is computed again.")
            processes.finish()
            return DistanceResult.read(run.path, is_main=processes.is_main)

        # 2. What is seen: sets of one size at the same times.
        encoder = load_encoder(resolved, what="--encoder ", device=device, dtype=settings.dtype, reporter=reporter)
        if resolved.random_init:
            reporter.warn(f"{resolved.label}: distances in features of a network that was never trained.")
        frames = seen_frames(length.num_frames, encoder)
        found = real_clips(clips, short_names([clip.path for clip in clips], folder), frames, length.rate_hz, reporter)
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
        check_prompts(subjects)
        [tap] = choose_taps(encoder, None if settings.layer is None else [settings.layer], [])
        sets = _sets(subjects, half, frames, hashes)
        target = _real_set(reference, REFERENCE, hashes)
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
            result = _measure(run, settings, sets, target, extractor, tap, columns, reporter)
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
    """All that is read of a set. Fills `hashes`."""
    about = []
    for video in videos:
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
        items = [
            {
                "set": "videos",
                "name": video.name,
                "video": str(video.path.resolve()),
                "prompt": video.prompt,
                "cluster": video.prompt,
                "index": video.index,
                "seed": video.seed,
            }
            for video in subject.videos
        ]
        held = [[0] * len(frames)] * len(clips)
        sets.append(_Seen(subject.label, False, "", views_of(clips, [frames] * len(clips), hashes), items))
        sets.append(_Seen(subject.label + HELD, True, subject.label, views_of(clips, held, hashes), items))
    real = _real_set(half, HALF, hashes)
    still = _real_set([replace(clip, frames=(0,) * len(frames)) for clip in half], HALF, hashes)
    soft = [blurred(view) for view in real.views]
    still, soft_set = replace(still, subject=STILL, made_from=HALF), replace(real, subject=BLURRED, made_from=HALF)
    return [*sets, real, still, replace(soft_set, views=soft)]


def _real_set(clips: Sequence[RealClip], what: str, hashes: dict[Path, str]) -> _Seen:
    items = [
        {
            "set": what,
            "name": one.name,
            "video": str(one.clip.path.resolve()),
            "prompt": one.prompt,
            "cluster": one.cluster,
            "index": 0,
            "seed": None,
        }
        for one in clips
    ]
    views = views_of([one.clip for one in clips], [one.frames for one in clips], hashes)
    return _Seen(what, True, "", views, items)


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
        named = ([item[name] for item in one.items] for name in ("cluster", "prompt"))
        return FeatureSet(tokens.mean(axis=1), *named)  # the mean of all tokens: each frame has as many

    real = features(target)
    rows: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    shares: dict[str, np.ndarray] = {}
    with reporter.bar("Distances", len(sets), "set") as bar:
        for one in sets:
            mine = features(one)
            about = {
                **columns,
                "subject": one.subject,
                "control": one.control,
                "n": len(one.views),
                "num_clusters": len(set(mine.clusters)),
            }
            for metric, found in (
                (MMD2, mmd2_of(mine, real, kernel, seed=settings.seed)),
                (FRECHET, frechet_of(mine, real, seed=settings.seed)),
            ):
                ends = interval_columns(found.interval)
                rows.append(make_row(metric, found.value, stderr=found.interval.stderr, **about) | ends)
            told = [*one.items, *target.items]
            shares[one.subject] = MeanDiscrepancy(mine, real, kernel).shares()
            if one.made_from:
                both = (shares[one.subject], shares[one.made_from])
                added = paired_difference(*both, clusters=[cluster_of(item) for item in told], seed=settings.seed)
                ends = interval_columns(Interval(added.low, added.high, added.stderr))
                row = make_row(ADDED, added.value, stderr=added.stderr, **about)
                rows.append(row | ends | {"reference_subject": one.made_from})
            items += [
                {"subject": one.subject, **item, MMD2.name: float(share)}
                for item, share in zip(told, shares[one.subject], strict=True)
            ]
            bar.advance()
    write_jsonl(run.path / "items.jsonl", items)
    return DistanceResult(run.path, rows, items)


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
    least = min(row["num_clusters"] for row in result.rows if "num_clusters" in row)
    if least < FEWEST_CLUSTERS:
        notes.append(f"A set is of {least} scenes or prompts only: intervals are too narrow.")
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
