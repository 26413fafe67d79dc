"""`physcli probe physion`: how well can contact be read, by a straight line, from what a frozen model sees?

clips → the frames each subject is shown → features (cached) → linear readout → rows per scenario, paired differences.

Two controls stand beside every model. `pixels`: the readout on downsampled context frames and their differences, the
floor. `state`, on simulated clips: the better of gradient boosting and ballistic closest approach on the scene's full
state at the end of the context, the ceiling.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from physcli.benchmarks import physion
from physcli.benchmarks.readout import READOUTS, Predictions, aggregate, choose, groups_of, score_items
from physcli.data.cache import TensorCache
from physcli.data.clips import Clip, Dataset, read_dataset
from physcli.errors import DataError, UsageError, unknown
from physcli.hashing import content_hash, settings_hash
from physcli.models import display_names
from physcli.models.device import pick_device, pick_dtype
from physcli.models.encoders.base import Encoder
from physcli.models.generator import Generator
from physcli.models.loading import load
from physcli.models.names import fingerprint, resolve
from physcli.progress import Reporter, counted
from physcli.rows import Metric, make_row
from physcli.simulation import controls
from physcli.stats import paired_difference
from physcli.tasks.features import POOLS, FeatureExtractor, Tap, View, check_finite, choose_taps, views_of
from physcli.tasks.probe_result import CONTROLS, ProbeResult, draw, read_result
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, cache_root, with_defaults, write_jsonl
from physcli.tasks.sources import clips_folder, pinned, simulated_by, source_name

_DIFFERENCE = Metric("accuracy_difference", "rate", None, interval="bootstrap")
_PUBLISHED = Metric("published_accuracy", "rate", True, interval="none")
_PIXELS = {"model": "pixels", "frames": controls.NUM_PIXEL_FRAMES, "grid": controls.PIXEL_GRID}
MAX_ITEMS_TO_CHOOSE = 1500  # taps are compared on at most so many training clips: the cost grows with their cube


@dataclass(frozen=True)
class ProbeSettings:
    """All that bears on the result. Meanings as in `physcli probe physion --help`."""

    models: tuple[str, ...]
    data: str = "simulated"
    task: str = "ocp"
    layers: tuple[int, ...] | str | None = None
    sigmas: tuple[float, ...] = (0.3,)
    snrs: tuple[float, ...] = ()  # in place of sigmas
    pool: str = "grid"
    readout: str = "pooled"
    unfiltered: bool = False
    limit: int | None = None
    seed: int = 0
    dtype: str = "auto"


def probe_physion(
    settings: ProbeSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 16,
    max_bad: float = 0.05,
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> ProbeResult:
    """Probe models.

    Args:
        settings: What to measure.
        out: The run directory.
        overwrite: Replace a run with other settings.
        device: Where models run.
        batch_size: Clips per forward pass; changes nothing but speed and memory.
        max_bad: The run fails if more than this share of the clips cannot be read.
        cache_dir: Where simulated clips, latents and features are kept.
        reporter: Receives progress.

    Raises:
        PhyscliError: bad settings, data or models; see the message.
    """
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    _check(settings, device)
    cache = cache_root(cache_dir)
    resolved = {name: resolve(name) for name in dict.fromkeys(settings.models)}
    recorded = asdict(settings) | {"data": source_name(settings.data)} | simulated_by(settings.data)
    run = RunDir(
        out,
        "probe physion",
        recorded,
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
        processes=processes,
    )
    with run:
        # 1. The clips: which of them the task uses, and which of those can be read.
        dataset = read_dataset(clips_folder(settings.data, cache=cache, processes=processes, reporter=reporter))
        if commit := pinned(settings.data):
            run.record["dataset"] = commit
        selection = physion.select_items(
            dataset.clips, settings.task, filtered=not settings.unfiltered, limit=settings.limit, seed=settings.seed
        )
        dropped = {reason: list(names) for reason, names in selection.dropped.items()}
        for reason, names in dropped.items():
            reporter.note(f"Left out, {reason}: {len(names)}, such as {names[0]}")
        physion.require_enough(selection, settings.readout)
        hashes: dict[Path, str] = {}
        items = _readable(dataset, selection.items, settings, cache, hashes, processes, max_bad, dropped, reporter)
        train = [clip for clip in items if clip.split == "train"]
        test = [clip for clip in items if clip.split == "test"]
        physion.require_enough(physion.Selection(tuple(items), {}), settings.readout)
        if dataset.kind == "simulated":
            _require_pairs(train, test)

        # 2. Content hashes of all inputs: the same run again is read, not computed.
        inputs = {name: fingerprint(item) for name, item in resolved.items()}
        release = {} if dataset.mujoco is None else {"mujoco": dataset.mujoco}
        run.check_inputs(inputs | {"data": _data_hash(items, hashes)} | release, new=["mujoco"])
        if run.already_finished:
            reporter.note(f"{run.path} already holds this run, finished; nothing is computed again.")
            processes.finish()
            return read_result(run.path) if processes.is_main else ProbeResult(run.path, [], {}, is_main=False)
        common = {
            "data": source_name(settings.data),
            **release,
            "readout": settings.readout,
            "pool": settings.pool,
            "filtered": not settings.unfiltered,
            "seed": settings.seed,
            "num_train": len(train),
            "n_total": len(test),
        }

        # 3. Every subject: features, the best tap on training folds, predictions.
        predictions: dict[str, Predictions] = {}
        rows: list[dict[str, Any]] = []
        run.record["subjects"] = {}
        shown_as = display_names(settings.models, taken=CONTROLS)
        for name, item in resolved.items():
            model = load(item, device=device, dtype=settings.dtype, reporter=reporter)
            subject = shown_as[name]
            if item.random_init:
                reporter.warn(f"{subject} has random weights: it shows what an untrained network sees.")
            views = shown_views(model, items, settings, hashes)
            extractor = FeatureExtractor(
                model,
                fingerprint=inputs[name],
                vae_fingerprint=fingerprint(item, part="vae") if item.kind == "generator" else "",
                pool=settings.pool,
                num_latent_frames=common_latent_frames(model, views),
                seed=settings.seed,
                cache=cache,
                batch_size=batch_size,
                processes=processes,
                reporter=reporter,
            )
            sigmas = _sigmas(model, settings, reporter)
            taps = choose_taps(model, settings.layers, sigmas)
            extractor.compute(views, taps)
            run.record["subjects"][subject] = _facts(model)
            if processes.is_main:
                facts = {"random_init": item.random_init, "family": item.family, **_choices(model), **common}
                found, extra = _read_out(subject, extractor, taps, views, settings, facts, reporter)
                predictions[subject] = found
                rows += extra
            del model, extractor
        if not processes.is_main:
            processes.finish()
            return ProbeResult(run.path, [], {}, is_main=False)

        # 4. The controls, on the same items with the same folds.
        for subject, found in _controls(dataset, train, test, settings, cache, hashes, reporter).items():
            predictions[subject] = found
            rows += [
                row | {"random_init": False, "tap": None, "chosen": True, **common}
                for row in aggregate(found, test, task=settings.task, subject=subject)
            ]

        # 5. Paired differences, references, files.
        rows += _difference_rows(predictions, test, settings)
        rows += _published_rows(dataset, settings)
        write_jsonl(
            run.path / "items.jsonl",
            (
                {"subject": subject, "split": "test", **row}
                for subject, found in predictions.items()
                for row in score_items(found, test)
            ),
        )
        run.record["dropped"] = dropped
        result = ProbeResult(run.path, rows, dropped)
        draw(result, run.path)
        run.write_metrics(rows)
    processes.finish()
    return result


def _check(settings: ProbeSettings, device: str) -> None:
    pick_dtype(settings.dtype, pick_device(device))
    for kind, value, table in (
        ("task", settings.task, physion.TASKS),
        ("pooling", settings.pool, POOLS),
        ("readout", settings.readout, tuple(READOUTS)),
    ):
        if value not in table:
            raise unknown(kind, value, table)
    if not settings.models:
        raise UsageError("No --model.", expected="at least one")
    clash = set(settings.models) & set(CONTROLS)
    if clash:
        raise UsageError(f"--model {clash.pop()}.", expected="a model; the controls are always shown")


def _require_pairs(train: Sequence[Clip], test: Sequence[Clip]) -> None:
    """The state control is cross-validated within each scenario."""
    pairs = {scenario: {c.pair for c in train if c.scenario == scenario} for scenario in {c.scenario for c in test}}
    scenario, few = min(pairs.items(), key=lambda item: len(item[1]))
    if len(few) < 2:
        raise DataError(
            f"Too few training clips of {scenario}: received {counted(len(few), 'pair')}.",
            expected="needed at least 2 pairs of every scenario that is tested",
            fix="use more clips: a larger N in simulated:N, a larger --num-clips or --limit",
        )


def _data_hash(items: Sequence[Clip], hashes: dict[Path, str]) -> str:
    """All that is read of the clips: videos, labels, windows, and for the state control poses and sizes."""
    return settings_hash(
        {
            f"{clip.split}/{clip.name}": [
                hashes[clip.path],
                clip.label,
                clip.contact_frame,
                clip.center_frame,
                clip.scenario,
                clip.pair,
                clip.record.get("context"),
                clip.record.get("things"),
                content_hash(clip.arrays) if clip.arrays is not None else None,
                *([said] if (said := clip.heeded()) else []),
            ]
            for clip in items
        }
    )


def shown_views(
    model: Generator | Encoder, clips: Sequence[Clip], settings: ProbeSettings, hashes: dict[Path, str]
) -> list[View]:
    """What this model is shown of each clip."""
    usable: Callable[[int], int] | None = None
    if model.kind == "generator":
        subject, num_frames, usable = "generator", 0, model.codec.usable_frames
    elif model.preprocessing.num_frames is None:
        subject, num_frames = "image", physion.IMAGE_FRAMES
    else:
        subject, num_frames = "encoder", model.preprocessing.num_frames
    return views_of(clips, [_shown_frames(clip, settings, subject, num_frames, usable) for clip in clips], hashes)


def _shown_frames(
    clip: Clip,
    settings: ProbeSettings,
    subject: str,
    num_frames: int = 16,
    usable_frames: Callable[[int], int] | None = None,
) -> list[int]:
    official = settings.readout == "official"
    return physion.shown_frames(
        clip,
        settings.task,
        subject=subject,
        num_frames=num_frames,
        usable_frames=usable_frames,
        video_frames=clip.count_frames(),
        official=official,
        repeat_last=official or settings.unfiltered,
    )


def common_latent_frames(model: Generator | Encoder, views: Sequence[View]) -> int | None:
    """What all clips of one readout have in common: Physion's collide shows a generator fewer frames."""
    lengths = {len(view.frames) for view in views}
    if model.kind != "generator" or len(lengths) == 1:
        return None
    return min(model.token_grid(length, *model.facts.size)[0] for length in lengths)


def _readable(
    dataset: Dataset,
    clips: Sequence[Clip],
    settings: ProbeSettings,
    cache: Path,
    hashes: dict[Path, str],
    processes: Processes,
    max_bad: float,
    dropped: dict[str, list[str]],
    reporter: Reporter,
) -> list[Clip]:
    """The clips whose frames can be decoded; the `pixels` features of each are cached on the way.

    Decoding comes first, for all subjects at once, so that a broken clip is missing for all of them alike. A clip
    whose twin is missing goes too: pairs stay whole. What goes is added to `dropped`.
    """
    _check_share(dataset.problems, len(dataset.clips) + len(dataset.problems), "listed", max_bad, reporter)
    pixel_cache = TensorCache(cache, "features", _PIXELS)
    views: dict[int, View] = {}
    bad: list[tuple[Path, str]] = []
    for number, clip in enumerate(clips):
        try:
            views[number] = _pixel_view(clip, settings, hashes)
        except DataError as error:
            bad.append((clip.path, error.received))
    failed: list[tuple[Path, str]] = []
    held: dict[str, torch.Tensor] = {}
    todo = [view for view in processes.share(list(views.values())) if view.key not in pixel_cache]
    try:
        with reporter.bar("Reading clips", len(todo), "clip") as bar:
            for view in todo:
                try:
                    held[view.key] = torch.from_numpy(controls.pixel_features(view.read()))
                except DataError as error:
                    failed.append((view.clip.path, error.received))
                bar.advance()
    finally:  # also on Ctrl-C: what is read is kept
        pixel_cache.put(held)
    bad += processes.collect(failed)
    _check_share(bad, len(clips), "selected", max_bad, reporter)

    gone = {path for path, _ in bad}
    listed = Counter((clip.split, clip.pair) for clip in dataset.clips if clip.pair)
    broken = {(clip.split, clip.pair) for clip in clips if clip.path in gone} | {
        pair for pair, count in listed.items() if count == 1
    }
    twins = [clip for clip in clips if clip.pair and (clip.split, clip.pair) in broken and clip.path not in gone]
    if bad or dataset.problems:
        dropped["cannot be read"] = [path.name for path, _ in (*dataset.problems, *bad)]
    if twins:
        dropped["twin of a clip that cannot be read"] = [clip.name for clip in twins]
    gone |= {clip.path for clip in twins}
    return [clip for clip in clips if clip.path not in gone]


def _pixel_view(clip: Clip, settings: ProbeSettings, hashes: dict[Path, str]) -> View:
    """Frames the `pixels` control is shown: a generator's on simulated clips, else the official four."""
    frames = _shown_frames(clip, settings, "generator" if clip.kind == "simulated" else "image")
    return views_of([clip], [frames], hashes)[0]


def _check_share(
    problems: Sequence[tuple[Path, str]], total: int, what: str, max_bad: float, reporter: Reporter
) -> None:
    if not problems:
        return
    shown = "; ".join(f"{path.name}: {message.removeprefix(f'{path} ')}" for path, message in problems[:3])
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    if len(problems) > max_bad * total:
        raise DataError(
            f"{len(problems)} of {total} {what} clips cannot be used: {shown}{more}",
            expected=f"at most {100 * max_bad:g} % unusable clips",
            fix="mend or remove them (`physcli data inspect` names all), or allow more with --max-bad",
        )
    reporter.warn(f"{len(problems)} of {total} {what} clips are skipped: {shown}{more}")


def _facts(model: Generator | Encoder) -> dict[str, Any]:
    """What a run records of a model beside its rows: where and how it ran, and what its VAE saw."""
    facts: dict[str, Any] = {"device": str(model.device), "dtype": str(model.dtype)}
    if model.kind == "generator" and model.codec.stats.count:
        seen = model.codec.stats
        facts["vae"] = {
            "pixel_range": [seen.pixel_min, seen.pixel_max],
            "latent_mean": seen.mean,
            "latent_std": seen.std,
        }
    return facts


def _sigmas(model: Generator | Encoder, settings: ProbeSettings, reporter: Reporter) -> list[float]:
    """The noise levels a generator is shown: those asked for as σ, or those of the ratios asked for."""
    if model.kind != "generator":
        return []
    for sigma in settings.sigmas if not settings.snrs else ():
        found = float(model.noise.at(sigma).sigma)
        if abs(found - sigma) > 0.02:
            reporter.warn(f"{model.name} has no σ of {sigma:g}; the nearest, {found:.3g}, is used.")
    if settings.snrs:
        return [float(model.noise.at_snr(snr).sigma) for snr in settings.snrs]
    return list(settings.sigmas)


def _noise(model: Generator | Encoder, sigma: float | None) -> dict[str, float]:
    """A noise level as rows tell it."""
    if model.kind != "generator" or sigma is None:
        return {}
    level = model.noise.at(sigma)
    return {"timestep": level.time.item(), "sigma": float(level.sigma), "snr": float(level.snr)}


def _choices(model: Generator | Encoder) -> dict[str, Any]:
    """Choices about generators that others leave implicit."""
    if model.kind != "generator":
        return {}
    return {
        "prompt": "",
        "prediction": model.noise.prediction,
        "latents_scaled": True,
        "text_tokens": "dropped",
    }


def _read_out(
    subject: str,
    extractor: FeatureExtractor,
    taps: Sequence[Tap],
    views: Sequence[View],
    settings: ProbeSettings,
    facts: dict[str, Any],
    reporter: Reporter,
) -> tuple[Predictions, list[dict[str, Any]]]:
    """Choose the tap on training folds, predict the test items, and score every tap for the picture by depth."""
    train_views = [view for view in views if view.clip.split == "train"]
    test_views = [view for view in views if view.clip.split == "test"]
    train, test = [view.clip for view in train_views], [view.clip for view in test_views]

    def features(of: Sequence[View], tap: Tap) -> np.ndarray:
        array = extractor.load(of, tap)
        check_finite(array, of, subject)
        return array

    scores: dict[Tap, Any] = {}
    chosen = taps[0]
    if len(taps) > 1:
        reporter.note(f"{subject}: choosing between {len(taps)} taps on training folds")
        loaders = {tap: functools.partial(features, train_views, tap) for tap in taps}
        chosen, scores = choose(loaders, train, subject=subject, seed=settings.seed, max_items=MAX_ITEMS_TO_CHOOSE)
    rows: list[dict[str, Any]] = []
    kept: Predictions | None = None
    with reporter.bar(f"Readout of {subject}", len(taps), "tap") as bar:
        for tap in taps:
            found = READOUTS[settings.readout](
                features(train_views, tap), train, features(test_views, tap), test, subject=subject, seed=settings.seed
            )
            if tap == chosen:
                kept = found
            noise = _noise(extractor.model, tap.sigma)
            more = {
                **facts,
                **noise,
                "tap": tap.label,
                "block": tap.block,
                "sigma": tap.sigma,
                "chosen": tap == chosen,
                "cv_balanced_accuracy": scores[tap].mean if tap in scores else None,
                "C": found.C,
                "train_accuracy": found.train_accuracy,
            }
            rows += [row | more for row in aggregate(found, test, task=settings.task, subject=subject)]
            bar.advance()
    assert kept is not None
    return kept, rows


def _controls(
    dataset: Dataset,
    train: Sequence[Clip],
    test: Sequence[Clip],
    settings: ProbeSettings,
    cache: Path,
    hashes: dict[Path, str],
    reporter: Reporter,
) -> dict[str, Predictions]:
    found: dict[str, Predictions] = {}
    if dataset.kind == "simulated":
        with reporter.bar("Control: state", len(train) + len(test), "clip") as bar:
            features, ballistic = [], []
            for clip in (*train, *test):
                positions, quaternions = _shown_poses(clip, settings)
                features.append(controls.state_features(dict(clip.record), positions, quaternions))
                ballistic.append(controls.ballistic_score(dict(clip.record), positions))
                bar.advance()
            scenarios = np.array([clip.scenario for clip in (*train, *test)])
            first_test = len(train)
            p_true = controls.state_predict(
                np.stack(features[:first_test]),
                np.array(ballistic[:first_test]),
                np.array([clip.label for clip in train]),
                np.array(groups_of(train)),
                scenarios[:first_test],
                test_features=np.stack(features[first_test:]),
                test_ballistic=np.array(ballistic[first_test:]),
                test_scenarios=scenarios[first_test:],
                seed=settings.seed,
            )
        found["state"] = Predictions(p_true, (p_true >= 0.5).astype(np.int64), {}, (), float("nan"))
    stored = TensorCache(cache, "features", _PIXELS)
    pixels = []
    for clips in (train, test):
        keys = [_pixel_view(clip, settings, hashes).key for clip in clips]
        tensors = stored.get(keys)
        pixels.append(np.stack([tensors[key].numpy() for key in keys]))
    with reporter.bar("Control: pixels", 1, "readout") as bar:
        found["pixels"] = READOUTS[settings.readout](
            pixels[0], train, pixels[1], test, subject="pixels", seed=settings.seed
        )
        bar.advance()
    return found


def _shown_poses(clip: Clip, settings: ProbeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Positions and quaternions [17, K, ·] of the frames that are shown: the context, or the window of OCD."""
    if clip.arrays is None:
        raise DataError(
            f"{clip.name} has no arrays of poses.",
            expected=f"arrays/{clip.split}/{clip.name}.npz in the dataset",
            fix="simulate the set again with `physcli data simulate`",
        )
    shown = _shown_frames(clip, settings, "generator")
    with np.load(clip.arrays) as arrays:
        return arrays["positions"][shown], arrays["quaternions"][shown]


def _difference_rows(
    predictions: dict[str, Predictions], test: Sequence[Clip], settings: ProbeSettings
) -> list[dict[str, Any]]:
    labels = np.array([clip.label for clip in test])
    groups, scenarios = groups_of(test), [clip.scenario for clip in test]
    rows = []
    for a, b in itertools.combinations(predictions, 2):
        found = paired_difference(
            predictions[a].pred == labels,
            predictions[b].pred == labels,
            clusters=groups,
            strata=scenarios,
            seed=settings.seed,
        )
        rows.append(
            make_row(
                _DIFFERENCE,
                benchmark="physion",
                task=settings.task,
                subject=f"{a} − {b}",
                split="test",
                **asdict(found),
            )
        )
    return rows


def _published_rows(dataset: Dataset, settings: ProbeSettings) -> list[dict[str, Any]]:
    """What people and published models score on the same dataset, OCP only."""
    if settings.task != "ocp":
        return []
    if dataset.kind == "physion-v1":
        human = dict(physion.HUMAN_ACCURACY_V1)
        shown = {clip.scenario for clip in dataset.clips}
        values = {("human", scenario): value for scenario, value in human.items() if scenario in shown}
    elif dataset.kind == "physion-v1.5":
        values = {(name, "all"): value for name, value in physion.PUBLISHED_ACCURACY_V15.items()}
    else:
        return []
    return [
        make_row(_PUBLISHED, value, benchmark="physion", task="ocp", subject=name, split="test", group=group, n=None)
        for (name, group), value in values.items()
    ]
