"""`physcli eval laws|videophy|videophy2|…`: scores of videos, with intervals, and how much moves beside them.

    OUT/items.jsonl            a row a video: its texts, a field for each metric, and why
    OUT/metrics.json           the means
    OUT/official_*.csv         the official scorers' tables: sa and pc, and VideoPhy-2's rule
    OUT/report.html            the scores, the worst and the best videos
    OUT/run.json

A video that cannot be scored (it does not decode, is not there, its prompt names nothing the laws know) has null in
every field, and is counted in `missing/video`. A run that was broken off scores only what is not scored yet.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from physcli.benchmarks import find_benchmark
from physcli.benchmarks.base import Answer, Benchmark, Context, Score
from physcli.benchmarks.dynamic_degree import DYNAMIC_DEGREE, LARGEST_MOTION, is_dynamic, largest_motion, rule_for
from physcli.data.flow import dis_flow
from physcli.data.subsets import thin
from physcli.data.video import chroma_step, frame_rate, heeded, pixel_format, read_video, thinned_frames
from physcli.data.video_sets import FILE_COLUMNS, Video, VideoSet, add_rules, read_video_set
from physcli.errors import DataError, UsageError, unknown
from physcli.files import refuse_changed, stamp, write_text
from physcli.hashing import content_hash, settings_hash
from physcli.models import shown_name
from physcli.progress import Reporter, warn_of_left_out
from physcli.rows import Metric, make_row, mean_row
from physcli.tasks.part_log import PartLog
from physcli.tasks.processes import Processes
from physcli.tasks.report import write_run_report
from physcli.tasks.run_dir import (
    Complete,
    RunDir,
    read_metrics,
    read_rows,
    with_defaults,
    write_jsonl,
)
from physcli.tasks.workers import run_jobs

if TYPE_CHECKING:  # a benchmark without a rater needs no transformers
    from physcli.models.raters.mplug_owl_video import MplugOwlVideo

LEAST_FRAMES = 5
_LEAST_A_WORKER = 32  # videos: a process takes as long to start as to look at half of these
MISSING = Metric("missing/video", "rate", False, interval="none")
PIXEL_FORMAT = "pixel_format"  # a field of items.jsonl: ffmpeg's name of what a video's colours are stored as
_OTHER_FIELDS = {"video", "name", "caption", "prompt", "index", "seed", "group", "number", "error", PIXEL_FORMAT}

# The fields of a video in items.jsonl, or what is wrong with it.
Scored = dict[str, Any] | DataError


@dataclass(frozen=True)
class EvalSettings:
    """What is scored.

    Attributes:
        benchmark: One of `BENCHMARKS`.
        videos: As `read_video_set` takes them.
        rater: As `load_rater` takes it; None for the default.
        rules: A list of rules to be judged; see `add_rules`.
        limit: At most so many videos, evenly spaced.
        dtype: Of the rater.
        as_decord: Videos are read as `read_video` does with it, for scores of the official raters' code.
        options: The benchmark's own settings by name, where they are not the defaults.
    """

    benchmark: str
    videos: str
    rater: str | None = None
    rules: str | None = None
    limit: int | None = None
    dtype: str = "auto"
    as_decord: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalResult:
    """The rows of metrics.json and items.jsonl."""

    path: Path
    rows: list[dict[str, Any]]
    items: list[dict[str, Any]]
    is_main: bool = True

    def files(self) -> dict[str, Path]:
        found = {"rows": self.path / "metrics.json", "videos": self.path / "items.jsonl"}
        found |= {path.stem.replace("_", " "): path for path in sorted(self.path.glob("official_*.csv"))}
        return found | {"report": self.path / "report.html"}


def evaluate(
    settings: EvalSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    device_map: str | None = None,
    batch_size: int = 4,
    reporter: Reporter | None = None,
) -> EvalResult:
    """Score a set of videos.

    Args:
        settings: What.
        out: The run directory.
        overwrite: Begin anew where it holds another run.
        device: Of the rater.
        device_map: "auto" to spread it over all devices there are, with `device` "auto".
        batch_size: Videos the rater sees at a time.
        reporter: Receives progress.

    Raises:
        UsageError: no such benchmark, or settings that it does not have or that cannot be.
        DataError: the set cannot be read, or not one of its videos can be scored.
        FileChanged: a video is no longer what it was when the run began; what is scored is kept.
        ModelError: the rater is not there or does not load.
    """
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    benchmark = _benchmark(settings)
    found = read_video_set(Path(settings.videos).expanduser())
    if settings.rules is not None:
        found = add_rules(found, Path(settings.rules).expanduser())
    warn_of_left_out(reporter, found.problems)
    for note in found.notes:
        reporter.note(note)
    items = thin(found.items, settings.limit)
    run = RunDir(
        out,
        f"eval {settings.benchmark}",
        _recorded(settings, benchmark),
        complete=_completing(settings, benchmark),
        overwrite=overwrite,
        reporter=reporter,
        processes=processes,
    )
    with run:
        seen = [stamp(item.path) for item in items]
        hashes = {item.name: content_hash(item.path) if item.path.is_file() else "missing" for item in items}
        texts = [[item.name, item.caption, item.prompt, item.index, item.seed, *item.rules] for item in items]
        rater = None
        if "rater" in benchmark.needs:
            from physcli.tasks.ask import find_rater

            simulated = all(item.simulated for item in items)
            rater = find_rater(type(benchmark), settings.rater, simulated=simulated)
        inputs = {"videos": settings_hash({"files": hashes, "texts": texts})}
        # Of videos that were read otherwise before, whose scores are not those of earlier runs.
        told = {} if settings.as_decord else {item.name: said for item in items if (said := _told(benchmark, item))}
        inputs |= {"what videos say of themselves": settings_hash(told)} if told else {}
        beside = _hashes_beside(benchmark, items)
        inputs |= {"files beside them": settings_hash(beside)} if beside else {}
        run.check_inputs(inputs if rater is None else inputs | {"rater": rater[1]}, new=["files beside them"])
        if run.already_finished:
            reporter.note(f"{run.path} already holds these scores.")
            if processes.is_main and not (run.path / "report.html").is_file():
                write_run_report(str(run.path))
            processes.finish()
            return _read(run.path, processes.is_main)
        log = PartLog(run.path, "items", processes)
        if log.done:
            reporter.note(f"{len(log.done)} of {len(items)} videos are scored already.")
        judge, label = None, None
        if rater is not None:
            judge, label = _load_rater(rater[0], settings.dtype, device, device_map, reporter)
        mine = log.todo(len(items))
        with reporter.bar("Scoring", len(mine), "video") as bar:
            batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
            for some, judged in _judged(benchmark, items, batches, judge, processes, as_decord=settings.as_decord):
                for n in some:  # before it is noted: the score would not be of the content that run.json names
                    refuse_changed(items[n].path, seen[n])
                for number, scored in zip(some, judged, strict=True):
                    log.note(number, _row(items[number], scored, reporter, settings.as_decord))
                    bar.advance()
        processes.wait()
        if processes.is_main:
            by_number = log.rows()
            _write(run, benchmark, found, items, [by_number[number] for number in range(len(items))], label)
            write_run_report(str(run.path), record=run.as_finished())
            for item, before in zip(items, seen, strict=True):  # the report shows some of them
                refuse_changed(item.path, before)
            log.clear()
    processes.finish()
    return _read(run.path, processes.is_main)


def _benchmark(settings: EvalSettings) -> Benchmark:
    """The benchmark with its settings."""
    cls = find_benchmark(settings.benchmark)
    if settings.rater is not None and "rater" not in cls.needs:
        raise UsageError(f"--rater with eval {cls.name}.", expected="no rater: the pixels themselves are checked")
    if settings.as_decord and "rater" not in cls.needs:
        raise UsageError(f"--as-decord with eval {cls.name}.", expected="a benchmark with a rater")
    if settings.rules is not None and "rules" not in cls.needs:
        raise UsageError(f"Rules with eval {cls.name}.", expected="a benchmark that judges rules, such as videophy2")
    names = [one.name for one in fields(cls.Settings)]
    for name in settings.options:
        if name not in names:
            raise unknown(f"setting of eval {cls.name}", name, names)
    clash = sorted({metric.name for metric in cls.metrics} & _OTHER_FIELDS)
    if clash:
        raise ValueError(f"{cls.__name__} has metrics named as other fields of items.jsonl are: {', '.join(clash)}")
    return cls(cls.Settings(**settings.options))


def _recorded(settings: EvalSettings, benchmark: Benchmark) -> dict[str, Any]:
    """The settings of run.json: the benchmark's own beside those that all have."""
    shared = {name: value for name, value in asdict(settings).items() if name != "options"}
    return shared | asdict(benchmark.settings)


def _completing(settings: EvalSettings, benchmark: Benchmark) -> Complete:
    """How an earlier run's settings are read. All benchmarks had a `threshold` once, and most never used it."""
    defaults = asdict(type(benchmark.settings)())
    gone = {} if "threshold" in defaults else {"threshold": 0.5}
    return with_defaults(settings, spread={"options": defaults}, gone=gone)


def _told(benchmark: Benchmark, video: Video) -> str:
    """What a file says of itself that the benchmark or `read_video` heeds; "" of most."""
    said = [heeded(video.path)]
    with contextlib.suppress(DataError):
        if benchmark.restores_chroma and chroma_step(pixel_format(video.path)) != (1, 1):
            said.append("chroma")
    return ", ".join(filter(None, said))


def _hashes_beside(benchmark: Benchmark, videos: Sequence[Video]) -> dict[str, str]:
    """Of the other files that a benchmark needs of videos: name in the list → hash of the content."""
    found: dict[str, str] = {}
    for what in FILE_COLUMNS:
        if what in benchmark.needs:
            named = {str(video.columns[what]) for video in videos if isinstance(video.columns.get(what), str)}
            found |= {name: content_hash(Path(name)) if Path(name).is_file() else "missing" for name in named}
    return found


def _row(item: Video, scored: Scored, reporter: Reporter, as_decord: bool) -> dict[str, Any]:
    row = {
        "video": str(item.path.resolve()),
        "name": item.name,
        "caption": item.caption,
        "prompt": item.prompt,
        "index": item.index,
        "seed": item.seed,
    }
    if isinstance(scored, DataError):
        reporter.warn(f"Not scored: {scored.received}")
        return row | {"error": scored.received}
    if not as_decord and (thinned := thinned_frames(item.path)):
        read, shown = thinned
        reporter.note(
            f"{item.name} has a variable frame rate: {read} of its {shown} frames, those at even times, are scored."
        )
    return row | scored


def _frames(video: Video, as_decord: bool) -> np.ndarray:
    """All frames."""
    frames = read_video(video.path, as_decord=as_decord)
    if len(frames) < LEAST_FRAMES:
        raise DataError(f"{video.path} has {len(frames)} frames.", expected=f"at least {LEAST_FRAMES}")
    return frames


def _motion(frames: np.ndarray, frame_rate_hz: float) -> dict[str, Any]:
    """How much moves."""
    height, width = frames.shape[1:3]
    rule = rule_for(len(frames), height, width, frame_rate_hz)
    motion = largest_motion(dis_flow(frames[:: rule.interval]))
    return {DYNAMIC_DEGREE.name: is_dynamic(motion, rule), LARGEST_MOTION.name: float(motion.mean())}


def _load_rater(
    name: str, dtype: str, device: str, device_map: str | None, reporter: Reporter
) -> tuple[MplugOwlVideo, str]:
    """The rater, and its name for tables."""
    from physcli.models.raters.mplug_owl_video import load_rater

    rater = load_rater(name, device=device, dtype=dtype, device_map=device_map)
    label = shown_name(name, rater.random_init)
    reporter.note(f"The rater is {label}.")
    if rater.random_init:
        reporter.warn("The rater has random weights: its scores mean nothing.")
    return rater, label


def _judged(
    benchmark: Benchmark,
    items: Sequence[Video],
    batches: Sequence[Sequence[int]],
    rater: MplugOwlVideo | None,
    processes: Processes,
    *,
    as_decord: bool,
) -> Iterator[tuple[Sequence[int], list[Scored]]]:
    """Batches of numbers of items, each with its scores: by a process a core where there is no rater, many videos, and
    nobody has launched several."""
    jobs = [[(number, items[number]) for number in batch] for batch in batches]
    alone = rater is not None or processes.count > 1
    workers = 1 if alone else min(os.cpu_count() or 1, sum(map(len, batches)) // _LEAST_A_WORKER)
    score = functools.partial(_score_numbered, benchmark=benchmark, rater=rater, as_decord=as_decord)
    for job, scored in run_jobs(score, jobs, workers):
        yield [number for number, _ in job], scored


def _score_numbered(
    job: Sequence[tuple[int, Video]], *, benchmark: Benchmark, rater: MplugOwlVideo | None, as_decord: bool
) -> list[Scored]:
    return _score(benchmark, [video for _, video in job], rater, as_decord=as_decord)


def _score(
    benchmark: Benchmark, videos: Sequence[Video], rater: MplugOwlVideo | None, *, as_decord: bool
) -> list[Scored]:
    """Score videos; a rater sees them together. What cannot be scored takes no other with it."""
    scored: dict[int, Scored] = {}
    motion: dict[int, dict[str, Any]] = {}
    answers: dict[int, list[Answer]] = {}
    if rater is not None:
        from physcli.tasks.ask import ask, read_frames

        shown = []
        for number, video in enumerate(videos):
            try:
                for question, text in benchmark.questions(video):
                    question.fill(text)  # a text that cannot be asked about is this video's fault
                moved = _motion(_frames(video, as_decord), frame_rate(video.path, as_decord=as_decord))
                shown.append(read_frames(video.path, rater, as_decord=as_decord))
                motion[number] = moved
            except DataError as error:
                scored[number] = error
        if shown:
            asked = [benchmark.questions(videos[number]) for number in motion]
            answers = dict(zip(motion, ask(rater, shown, asked), strict=True))
    for number, video in enumerate(videos):
        if number in scored:
            continue
        try:
            context = _context(benchmark, video, answers.get(number, ()), as_decord)
            values = benchmark.score(video, context)
            if LARGEST_MOTION.name not in values:
                values |= motion.get(number) or _motion(context.frames, context.frame_rate_hz)
            scored[number] = values | {PIXEL_FORMAT: pixel_format(video.path)}
        except DataError as error:
            scored[number] = error
    return [scored[number] for number in range(len(videos))]


def _context(benchmark: Benchmark, video: Video, answers: Sequence[Answer], as_decord: bool) -> Context:
    def named(what: str) -> Path:
        if not isinstance(video.columns.get(what), str):
            raise DataError(f"{video.name} has no {what}.", expected=f"a column `{what}` with a file in the list")
        return Path(video.columns[what])

    return Context(
        lambda: _frames(video, as_decord),
        frame_rate(video.path, as_decord=as_decord),
        dis_flow,
        answers,
        reference=read_video(named("reference")) if "reference" in benchmark.needs else None,
        first_frame=read_video(named("first_frame"), [0])[0] if "first_frame" in benchmark.needs else None,
        chroma_step=chroma_step(pixel_format(video.path)),
    )


def _write(
    run: RunDir,
    benchmark: Benchmark,
    found: VideoSet,
    videos: Sequence[Video],
    scored: list[dict[str, Any]],
    rater: str | None,
) -> None:
    scores = [Score(video, row) for video, row in zip(videos, scored, strict=True) if "error" not in row]
    if not scores:
        raise DataError(f"Not one of {len(videos)} videos could be scored: {scored[0]['error']}", fix="mend the list")
    columns: dict[str, Any] = {"benchmark": benchmark.name, "task": benchmark.task, "subject": found.subject}
    columns |= {"split": benchmark.split} | ({} if rater is None else {"rater": rater})
    rows = benchmark.aggregate(scores, **columns)
    for metric in (DYNAMIC_DEGREE, LARGEST_MOTION):
        if not any(row["metric"] == metric.name for row in rows):
            values = [score.values[metric.name] for score in scores]
            rows.append(mean_row(metric, values, clusters=[score.video.prompt for score in scores], **columns))
    lost = len(videos) - len(scores)
    rows.append(make_row(MISSING, lost / len(videos), n=len(videos), count=lost, **columns))
    for name, lines in benchmark.tables(scores).items():
        _write_table(run.path / name, lines)
    metrics = {row["metric"] for row in rows}
    for row in scored:  # a video without a score has null, not nothing
        for name in metrics:
            if not name.startswith("missing/"):
                row.setdefault(name, None)
        row.setdefault("group", None)
        row.pop("number")
    write_jsonl(run.path / "items.jsonl", scored)
    formats = Counter(row[PIXEL_FORMAT] for row in scored if PIXEL_FORMAT in row)
    run.record["pixel_formats"] = dict(sorted(formats.items()))
    run.write_metrics(rows)


def _write_table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _read(path: Path, is_main: bool) -> EvalResult:
    if not is_main:
        return EvalResult(path, [], [], is_main=False)
    return EvalResult(path, read_metrics(path), read_rows(path / "items.jsonl"))
