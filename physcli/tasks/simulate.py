"""`physcli data simulate`: write simulated clips as a Physion v1.5 folder with exact labels, poses and flow.

    OUT/physion_mp4s/{train,test}/<stem>.mp4 and all_video_labels.json     what any Physion reader opens
    OUT/arrays/{train,test}/<stem>.npz                                     positions, quaternions, segmentation, flow
    OUT/metadata.jsonl, OUT/dataset.json                                   prompts, pairs, cameras, parameters
    OUT/impossible/…, OUT/impossible.jsonl                                 twins with one law broken, on request
    OUT/physics-iq-benchmark/…                                             test clips filmed twice, on request

Tables are in the order of file names, which tells nothing of the label. Work is handed out by pair; a pair depends on
(stream, scenario, index, seed) and MuJoCo's release alone, so any number of processes writes the same bytes, and a
rerun goes on with the pairs that are missing; with another release it is refused.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physcli.data.clips import SIMULATED_VERSION, TWINS_LIST, installed_mujoco
from physcli.data.video import read_video, write_video
from physcli.errors import DataError, UsageError, unknown
from physcli.files import hold, replacing
from physcli.hashing import settings_hash
from physcli.progress import Reporter
from physcli.rows import Metric, make_row
from physcli.simulation.physics import compile_scene
from physcli.simulation.renderer import render
from physcli.simulation.suite import Sample, make_pair
from physcli.simulation.types import CONTEXT_FRAMES, FRAME_RATE_HZ, NUM_FRAMES, SCENARIOS, Footage, Motion
from physcli.simulation.violations import APPLIES_TO, KINDS, make_impossible
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, read_metrics, read_run, with_defaults, write_json, write_jsonl
from physcli.tasks.takes import DESCRIPTIONS, TAKES_FOLDER, TAKES_LIST, check_takes, film_takes, write_lists
from physcli.tasks.workers import run_jobs

_PSNR = Metric("video_psnr_db", "score", True, interval="none")
_SPEED = Metric("clips_per_second", "score", True, interval="none")
_POSITIVE = Metric("share_positive", "rate", None, interval="none")
DEFAULT_NUM_TEST = 280  # of `simulated` without a number
SPLITS = ("train", "test")
# What a dataset is for → the streams of its two splits. No two purposes ever share a scene.
STREAMS_FOR = {
    "probe": ("probe-train", "probe-test"),
    "pretrain": ("pretrain", "pretrain-test"),
    "finetune": ("finetune", "finetune-test"),
}


@dataclass(frozen=True)
class SimulateSettings:
    """What a simulated dataset depends on."""

    num_train: int
    num_test: int
    scenarios: tuple[str, ...] = SCENARIOS
    height: int = 64
    width: int = 64
    num_frames: int = NUM_FRAMES
    seed: int = 0
    distractors: bool = False
    occluders: bool = False
    impossible: tuple[str, ...] = ()
    purpose: str = "probe"  # a key of STREAMS_FOR
    takes: int = 1  # 2: test clips are filmed a second time

    def key(self) -> dict[str, Any]:
        """What the files of a set are known by. Sets with one take are those from before there were two."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("takes", 1)}


@dataclass(frozen=True)
class SimulateResult:
    """Where the clips are, and what was measured while making them."""

    path: Path
    num_clips: int
    num_impossible: int
    takes: Path | None  # the folder in Physics-IQ's layout, if there is one
    absent: dict[str, list[str]]  # as of `absent_scenarios`
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class _Job:
    """One pair to make; small and picklable."""

    split: str
    scenario: str
    index: int
    root: str
    settings: SimulateSettings


def split_total(num_clips: int) -> tuple[int, int]:
    """Three quarters train, both even (whole pairs).

    Raises:
        UsageError: too few for one pair in each split.
    """
    num_test = 2 * max(1, round(num_clips / 8))
    num_train = num_clips - num_test
    if num_clips % 2 or num_train < 2:
        raise UsageError(
            f"--num-clips {num_clips}.",
            expected="an even number, at least 4 (clips come in pairs, a positive and its negative twin)",
        )
    return num_train, num_test


def absent_scenarios(settings: SimulateSettings) -> dict[str, list[str]]:
    """Of each split with too few pairs for one of every scenario, the scenarios that have none."""
    pairs = {"train": settings.num_train // 2, "test": settings.num_test // 2}
    return {split: list(settings.scenarios[n:]) for split, n in pairs.items() if n < len(settings.scenarios)}


def enough_clips(num_scenarios: int) -> int:
    """The least --num-clips that has a pair of each of so many scenarios in both splits."""
    return next(count for count in itertools.count(4, 2) if min(split_total(count)) >= 2 * num_scenarios)


def check_settings(settings: SimulateSettings) -> None:
    """Raises UsageError for settings no dataset can have."""
    for name in settings.scenarios:
        if name not in SCENARIOS:
            raise unknown("scenario", name, SCENARIOS)
    for kind in settings.impossible:
        if kind not in KINDS:
            raise unknown("impossible kind", kind, KINDS)
    if settings.purpose not in STREAMS_FOR:
        raise unknown("purpose", settings.purpose, STREAMS_FOR)
    if not CONTEXT_FRAMES <= settings.num_frames <= NUM_FRAMES:
        raise UsageError(
            f"--num-frames {settings.num_frames}.",
            expected=f"{CONTEXT_FRAMES} to {NUM_FRAMES} (a clip is simulated for {NUM_FRAMES} frames at "
            f"{FRAME_RATE_HZ} per second; fewer keep its beginning)",
        )
    if min(settings.height, settings.width) < 16:
        raise UsageError(f"--size {settings.height}x{settings.width}.", expected="at least 16x16")
    check_takes(settings.takes, height=settings.height, width=settings.width, num_scenes=settings.num_test)


def simulate(
    settings: SimulateSettings,
    *,
    out: Path | None,
    overwrite: bool = False,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> SimulateResult:
    """Make a dataset.

    Args:
        settings: What to make.
        out: The dataset's folder, also a run directory.
        overwrite: Replace a dataset with other settings.
        workers: Processes; None for one a core.
        reporter: Receives progress.

    Raises:
        UsageError: no such dataset, or the folder holds another, of other settings or another release of MuJoCo.
    """
    reporter = reporter or Reporter()
    check_settings(settings)
    resolved = {"version": SIMULATED_VERSION, "mujoco": installed_mujoco(), **asdict(settings)}
    run = RunDir(
        out, "data simulate", resolved, complete=with_defaults(settings), overwrite=overwrite, reporter=reporter
    )
    absent = absent_scenarios(settings)
    if absent:
        reporter.note(_say_absent(absent, settings.scenarios))
    with run:
        run.record["absent_scenarios"] = absent
        if run.already_finished:
            missing = _missing(run.path, settings)
            if not missing:
                reporter.note(f"{run.path} already holds these clips, whole.")
                return _read_result(run.path, absent)
            reporter.warn(f"{run.path} lacks {len(missing)} files, such as {missing[0]}: all its clips are made again.")
            run.reopen()
        start = time.monotonic()
        samples = _make_all(run.path, settings, workers, reporter)
        rows = _finish(run, settings, samples, time.monotonic() - start, reporter)
        run.write_metrics(rows)
    return _read_result(run.path, absent)


def _say_absent(absent: Mapping[str, Sequence[str]], scenarios: Sequence[str]) -> str:
    missing = "; ".join(f"{split} has no {', '.join(names)}" for split, names in absent.items())
    enough = f"--num-clips {enough_clips(len(scenarios))}"
    if tuple(scenarios) == SCENARIOS:
        enough += f" (or --data simulated:{2 * len(scenarios)})"
    return (
        f"Too few clips for {len(scenarios)} scenarios: {missing}. {enough} is the least that has all in both splits."
    )


def ensure_simulated(
    num_test: int,
    *,
    cache: Path,
    purpose: str = "probe",
    impossible: tuple[str, ...] = (),
    seed: int = 0,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """The suite `simulated:N` (N test and 3N training clips), made once in the cache for each MuJoCo; its folder.

    Of several processes that ask for a suite at once, one makes it and the others wait.

    Args:
        num_test: N.
        cache: The cache's root folder.
        purpose: A key of `STREAMS_FOR`: what is trained on and what is tested on never meet.
        impossible: Kinds of impossible twins to make of every clip.
        seed: The seed of the whole suite.
        workers: Processes; None for one a core.
        reporter: Receives progress.

    Raises:
        UsageError: no such suite.
        DataError: the cache cannot be written.
    """
    reporter = reporter or Reporter()
    if num_test < 2 or num_test % 2:
        raise UsageError(
            f"--data simulated:{num_test}.",
            expected="an even number of test clips, at least 2 (training clips are three times as many)",
        )
    settings = SimulateSettings(
        num_train=3 * num_test, num_test=num_test, seed=seed, purpose=purpose, impossible=impossible
    )
    key = settings_hash({"format": SIMULATED_VERSION, "mujoco": installed_mujoco(), **settings.key()})
    folder = cache / "simulated" / f"{num_test}-{key}"
    if not _is_finished(folder):
        with _alone(folder, reporter):
            if not _is_finished(folder):
                simulate(settings, out=folder, workers=workers, reporter=reporter)
    return folder


def suite_size(source: str) -> int | None:
    """N of `simulated[:N]`; None for anything else, which is a folder (one called so is `./simulated`).

    Raises:
        UsageError: N is no number.
    """
    name, colon, count = source.partition(":")
    if name != "simulated":
        return None
    if colon and not count.isdigit():
        raise UsageError(f"--data {source!r}.", expected="simulated, simulated:N, hub:OWNER/NAME or a folder")
    return int(count) if colon else DEFAULT_NUM_TEST


def suite_folder(
    num_test: int,
    *,
    cache: Path,
    purpose: str = "probe",
    impossible: tuple[str, ...] = (),
    processes: Processes,
    reporter: Reporter,
) -> Path:
    """The suite's folder; the main process makes it if it is not there, and the others wait."""
    if processes.is_main:
        ensure_simulated(num_test, cache=cache, purpose=purpose, impossible=impossible, reporter=reporter)
    processes.wait()
    return ensure_simulated(num_test, cache=cache, purpose=purpose, impossible=impossible)


def _is_finished(folder: Path) -> bool:
    return (read_run(folder) or {}).get("status") == "finished"


@contextmanager
def _alone(folder: Path, reporter: Reporter) -> Iterator[None]:
    """Hold `<folder>.lock`, waiting for whoever holds it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f"{folder.name}.lock").open("w")
    except OSError as error:
        raise DataError(
            f"The cache folder {folder.parent} cannot be written: {error.strerror}.",
            expected="a folder this user may write",
            fix="choose another --cache-dir (or PHYSCLI_CACHE)",
        ) from error
    with file:
        if not hold(file.fileno()):
            reporter.note(f"Another process is making {folder}; waiting for it.")
            hold(file.fileno(), wait=True)
        yield


def _jobs(settings: SimulateSettings, root: Path) -> Iterator[_Job]:
    """Pairs dealt to the scenarios in turn, so that any number of clips is as balanced as it can be."""
    for split, num_clips in (("train", settings.num_train), ("test", settings.num_test)):
        for number in range(num_clips // 2):
            index, which = divmod(number, len(settings.scenarios))
            yield _Job(split, settings.scenarios[which], index, str(root), settings)


def _make_all(
    root: Path, settings: SimulateSettings, workers: int | None, reporter: Reporter
) -> dict[str, list[dict[str, Any]]]:
    """Make every pair that is missing; rows by pair id. Finished pairs are noted in `pairs.jsonl.part`."""
    for split in SPLITS:
        for parent in ("physion_mp4s", "arrays", *(["impossible"] if settings.impossible else [])):
            (root / parent / split).mkdir(parents=True, exist_ok=True)
    journal = root / "pairs.jsonl.part"
    done: dict[str, list[dict[str, Any]]] = {}
    if journal.exists():
        for line in journal.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line a killed run was writing
                continue
            if all((root / name).exists() for row in entry["rows"] for name in _files_of(row)):
                done[entry["id"]] = entry["rows"]
    jobs = [job for job in _jobs(settings, root) if _job_id(job) not in done]
    workers = min(workers or os.cpu_count() or 1, max(1, len(jobs) // 4))
    with (
        journal.open("a", encoding="utf-8") as file,
        reporter.bar("Simulating", len(jobs) * 2, "clip") as bar,
    ):
        for job, rows in run_jobs(make_and_write_pair, jobs, workers):
            done[_job_id(job)] = rows
            file.write(json.dumps({"id": _job_id(job), "rows": rows}) + "\n")
            file.flush()
            bar.advance(2)
    return done


def _job_id(job: _Job) -> str:
    return f"{job.split}/{job.scenario}/{job.index}"


def make_and_write_pair(job: _Job) -> list[dict[str, Any]]:
    """Simulate, draw and write one pair and its impossible twins; their metadata rows."""
    settings = job.settings
    pair = make_pair(
        job.scenario,
        STREAMS_FOR[settings.purpose][SPLITS.index(job.split)],
        job.index,
        seed=settings.seed,
        distractors=settings.distractors,
        occluders=settings.occluders,
    )
    rows = []
    for sample in pair:
        rows.append(_write_sample(sample, job, "physion_mp4s", measure=job.index == 0))
        for kind in settings.impossible:
            made = make_impossible(sample, kind, seed=settings.seed)
            if made is not None and made[1] < settings.num_frames:
                rows.append(_write_sample(made[0], job, "impossible"))
    if settings.takes == 2 and job.split == "test":
        place = job.index * len(settings.scenarios) + settings.scenarios.index(job.scenario)
        for number, sample in enumerate(sorted(pair, key=lambda sample: sample.name), start=2 * place):
            rows += film_takes(
                sample,
                number,
                settings.num_test,
                Path(job.root),
                height=settings.height,
                width=settings.width,
                seed=settings.seed,
            )
    return rows


def _write_sample(sample: Sample, job: _Job, folder: str, *, measure: bool = False) -> dict[str, Any]:
    """Draw and write one clip; its row. Label and contact are those of the whole event, even if fewer frames show."""
    settings, root = job.settings, Path(job.root)
    frames = range(settings.num_frames)
    footage = render(
        sample.scene,
        compile_scene(sample.scene),
        sample.motion,
        height=settings.height,
        width=settings.width,
        frames=None if settings.num_frames == NUM_FRAMES else frames,
    )
    file_name = f"{folder}/{job.split}/{sample.name}.mp4"
    array_folder = "arrays" if folder == "physion_mp4s" else "impossible"
    write_video(root / file_name, footage.rgb, FRAME_RATE_HZ)
    write_arrays(root / array_folder / job.split / f"{sample.name}.npz", sample.motion, footage)
    row = {"file_name": file_name, "split": job.split, **sample.record, "num_frames": settings.num_frames}
    if measure:
        error = footage.rgb.astype(np.float64) - read_video(root / file_name)
        row["psnr_db"] = float(10 * np.log10(255**2 / np.mean(error**2)))
    return row


def write_arrays(path: Path, motion: Motion, footage: Footage) -> None:
    """Write poses, segmentation and flow of the frames that were drawn, compressed; whole or not at all."""
    num_frames = len(footage.rgb)
    with replacing(path, suffix=".part.npz") as temporary:  # numpy would append .npz to another name
        np.savez_compressed(
            temporary,
            positions=motion.positions[:num_frames],
            quaternions=motion.quaternions[:num_frames],
            segmentation=footage.segmentation,
            flow=footage.flow,
        )


def _finish(
    run: RunDir,
    settings: SimulateSettings,
    samples: dict[str, list[dict[str, Any]]],
    seconds: float,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Write labels and metadata, the last files, so that a folder that has them is whole; the metric rows."""
    made = [row for rows in samples.values() for row in rows]
    takes = [row for row in made if "take" in row]
    ordered = sorted((row for row in made if "take" not in row), key=lambda row: row["file_name"])
    clips = [row for row in ordered if "violation" not in row]
    twins = [row for row in ordered if "violation" in row]
    for kind in settings.impossible:
        if not any(row["violation"]["kind"] == kind for row in twins):
            reporter.warn(f"No {kind} twin was made: it applies to {APPLIES_TO[kind]}.")
    for split in SPLITS:
        labels = {
            Path(row["file_name"]).stem: {
                "label": row["label"],
                "contact_frame_label": _contact_frame_label(row["contact_frame"], row["num_frames"]),
            }
            for row in clips
            if row["split"] == split
        }
        write_json(run.path / "physion_mp4s" / split / "all_video_labels.json", labels)
    psnr = [row.pop("psnr_db") for row in clips if "psnr_db" in row]
    write_jsonl(run.path / "metadata.jsonl", clips)
    if twins:
        write_jsonl(run.path / TWINS_LIST, twins)
    if takes:
        write_lists(run.path, takes)
    write_json(
        run.path / "dataset.json",
        {
            "format": "physcli-simulated",
            "version": SIMULATED_VERSION,
            "mujoco": installed_mujoco(),
            "settings": settings.key(),
        },
    )
    (run.path / "pairs.jsonl.part").unlink(missing_ok=True)
    common: dict[str, Any] = {"benchmark": "data", "task": "simulate", "subject": "simulated"}
    metrics = [
        make_row(_PSNR, float(np.mean(psnr)), n=len(psnr), **common),
        make_row(_SPEED, len(ordered) / seconds, n=len(ordered), **common),
    ]
    for scenario in settings.scenarios:
        labels_here = [row["label"] for row in clips if row["scenario"] == scenario]
        if labels_here:
            share = float(np.mean(labels_here))
            metrics.append(make_row(_POSITIVE, share, group=scenario, n=len(labels_here), **common))
    return metrics


def _contact_frame_label(contact_frame: int | None, num_frames: int) -> int:
    """As in Physion v1.5: a frame of the video, for a negative half its length."""
    return num_frames // 2 if contact_frame is None else min(contact_frame, num_frames - 1)


def _files_of(row: Mapping[str, Any]) -> list[str]:
    """The videos and pictures of a row, of a clip or of a take."""
    return list(row["files"]) if "take" in row else [row["file_name"]]


def _missing(path: Path, settings: SimulateSettings) -> list[str]:
    """Files of a finished dataset that are gone."""
    expected = ["metadata.jsonl", "dataset.json"]
    if settings.takes == 2:
        expected += [f"{TAKES_FOLDER}/{TAKES_LIST}", f"{TAKES_FOLDER}/{DESCRIPTIONS}"]
    for table in ("metadata.jsonl", TWINS_LIST, f"{TAKES_FOLDER}/{TAKES_LIST}"):
        if (path / table).exists():
            for line in (path / table).read_text("utf-8").splitlines():
                expected += _files_of(json.loads(line))
    for name in [name for name in expected if name.endswith(".mp4")]:
        parts = Path(name).with_suffix(".npz").parts
        if parts[0] != TAKES_FOLDER:
            expected.append(str(Path("arrays" if parts[0] == "physion_mp4s" else parts[0], *parts[1:])))
    return [name for name in expected if not (path / name).exists()]


def _read_result(path: Path, absent: dict[str, list[str]]) -> SimulateResult:
    count = sum(1 for _ in (path / "metadata.jsonl").open(encoding="utf-8"))
    impossible = path / TWINS_LIST
    twins = sum(1 for _ in impossible.open(encoding="utf-8")) if impossible.exists() else 0
    takes = path / TAKES_FOLDER if (path / TAKES_FOLDER).is_dir() else None
    return SimulateResult(path, count, twins, takes, absent, read_metrics(path))
