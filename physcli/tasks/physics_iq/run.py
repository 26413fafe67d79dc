"""`physcli eval physics-iq`: do generated videos go on as the real ones did?

names, rates and lengths → masks of motion → three IoUs and an error against take 1 → each over the same between the
takes → scores, original and Verified.

    OUT/items.jsonl             a row a subject, sampling seed, scenario and view
    OUT/metrics.json            both scores, the four numbers, their ratios, how much moves; by category as well
    OUT/official_NAME.csv       the table that the released code writes, of each folder
    OUT/report.html

In the same table stand the last conditioning frame, held; take 2, the ceiling; and take 2 blurred. Where nothing moves
enough to leave a mask, empty masks agree: a still video has three of four terms for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from physcli.benchmarks.physics_iq import DURATION_S, View
from physcli.data.physics_iq import RealView
from physcli.errors import UsageError, unknown
from physcli.progress import Reporter, counted
from physcli.tasks.physics_iq.measure import CONTROLS, Measure, Measured, hash_of
from physcli.tasks.physics_iq.page import write_page
from physcli.tasks.physics_iq.result import STILL, TAKE_2, PhysicsIQResult
from physcli.tasks.physics_iq.rows import ScoredRun, aggregate, item_rows, write_table
from physcli.tasks.physics_iq.subjects import Subject, Work, find_work
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, cache_root, with_defaults, write_jsonl

MASKS = ("mp4v", "lossless")


@dataclass(frozen=True)
class PhysicsIQSettings:
    """All that bears on the result. Meanings as in `physcli eval physics-iq --help`."""

    videos: tuple[str, ...]
    data: str | None = None
    masks: str = "mp4v"
    duration_s: float = DURATION_S
    partial: bool = False
    limit: int | None = None
    seed: int = 0


def physics_iq(
    settings: PhysicsIQSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> PhysicsIQResult:
    """Score generated continuations of Physics-IQ's videos.

    Args:
        settings: What to score.
        out: The run directory.
        overwrite: Replace a run with other settings.
        cache_dir: Where comparisons are kept; a run that was broken off goes on from there.
        reporter: Receives progress.

    Raises:
        UsageError: bad settings.
        DataError: videos that the protocol does not allow; see the message.
    """
    processes = Processes("cpu")
    reporter = processes.reporter(reporter)
    if settings.masks not in MASKS:
        raise unknown("kind of masks", settings.masks, MASKS)
    if not 0 < settings.duration_s <= DURATION_S:
        raise UsageError(f"--duration {settings.duration_s:g}.", expected=f"up to {DURATION_S:g} seconds")

    # 1. What there is; all rules are checked here.
    work = find_work(
        settings.videos,
        settings.data,
        duration_s=settings.duration_s,
        partial=settings.partial,
        limit=settings.limit,
        reporter=reporter,
    )
    shown = {rate: [v for v in real.views if v.scenario in work.scenarios] for rate, real in work.real.items()}
    recorded = asdict(settings) | {"data": None if settings.data is None else str(Path(settings.data).resolve())}
    run = RunDir(
        out,
        "eval physics-iq",
        recorded,
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
        processes=processes,
    )
    with run:
        run.check_inputs(_inputs(work, shown))
        if run.already_finished:
            reporter.note(f"{run.path} already holds this run, finished; nothing is computed again.")
            processes.finish()
            return PhysicsIQResult.read(run.path, is_main=processes.is_main)
        reporter.note(_plan(work, settings))

        # 2. Comparisons.
        measures = {}
        for rate, views in shown.items():
            videos = [s.videos for subject in work.subjects if subject.rate_hz == rate for s in subject.sources]
            measures[rate] = Measure(
                work.real[rate], rate, work.num_frames[rate], masks=settings.masks, cache=cache_root(cache_dir)
            )
            known = [files for files in videos if files is not None]
            measures[rate].compute(views, known, processes=processes, reporter=reporter)

        # 3. Scores and files.
        if processes.is_main:
            result = _score(run, settings, work, shown, measures)
            for message in notes_of(result):
                reporter.note(message)
            if not shown:
                reporter.warn("Tables alone: what a still video scores is not known without the real ones; add --data.")
            write_page(result, run.as_finished(), notes_of(result))
            run.write_metrics(result.rows)
    processes.finish()
    return PhysicsIQResult.read(run.path, is_main=processes.is_main)


def _plan(work: Work, settings: PhysicsIQSettings) -> str:
    told = [f"{counted(len(work.scenarios), 'scenario')}"]
    for rate, real in work.real.items():
        made = "" if real.rate_hz == rate else f", blended from {real.rate_hz}"
        told.append(f"{work.num_frames[rate]} frames at {rate} a second{made}")
    return "; ".join(told) + f"; masks {settings.masks}."


def _inputs(work: Work, shown: dict[int, list[RealView]]) -> dict[str, str]:
    """Names and hashes of all that is read."""
    found = {}
    for subject in work.subjects:
        for source in subject.sources:
            if source.videos is None:
                found[str(source.path)] = hash_of(source.path)
                continue
            assert subject.rate_hz is not None
            for view in shown[subject.rate_hz]:
                path = source.videos[view.number]
                found[str(path)] = hash_of(path)
    for views in shown.values():
        for view in views:
            for real in (*view.takes, view.switch_frame or view.conditioning):
                if real is not None:
                    found[str(real)] = hash_of(real)
    return found


def _score(
    run: RunDir,
    settings: PhysicsIQSettings,
    work: Work,
    shown: dict[int, list[RealView]],
    measures: dict[int, Measure],
) -> PhysicsIQResult:
    categories = {view.scenario: view.category for views in shown.values() for view in views}
    rows: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []

    def add(label: str, runs: Sequence[ScoredRun], rate: int | None, *, control: bool) -> None:
        columns = {
            "benchmark": "physics-iq",
            "task": "continuation",
            "subject": label,
            "split": "test",
            "control": control,
            "rate_hz": rate,
            "num_frames": len(runs[0].views[0].take_1.mse),
            "masks": settings.masks if rate is not None else None,
            "num_scenarios": len(work.scenarios),
            "data": settings.data,
        }
        rows.extend(aggregate(runs, categories=categories, seed=settings.seed, **columns))
        items.extend(item_rows(label, runs, categories))

    for subject in work.subjects:
        runs = [_run_of(subject, number, work, shown, measures) for number in range(len(subject.sources))]
        add(subject.label, runs, subject.rate_hz, control=False)
        for number, one in enumerate(runs, start=1):
            end = f"_{number}" if len(runs) > 1 else ""
            write_table(run.path / f"official_{file_name(subject.label)}{end}.csv", one.views)
    for rate, measure in measures.items():
        for control in CONTROLS:
            found = [measure.load(view, control) for view in shown[rate]]
            label = control if len(measures) == 1 else f"{control}, {rate} fps"
            add(label, [_scored(found)], rate, control=True)
    if not measures:  # the takes are in the tables
        first = work.subjects[0].sources[0].table
        assert first is not None
        kept = [View(v.scenario, v.view, v.takes, v.takes) for v in first if v.scenario in work.scenarios]
        add(TAKE_2, [ScoredRun(kept)], None, control=True)
    write_jsonl(run.path / "items.jsonl", items)
    return PhysicsIQResult(run.path, rows, items)


def _run_of(
    subject: Subject, number: int, work: Work, shown: dict[int, list[RealView]], measures: dict[int, Measure]
) -> ScoredRun:
    source = subject.sources[number]
    if source.table is not None:
        return ScoredRun([view for view in source.table if view.scenario in work.scenarios])
    assert source.videos is not None
    assert subject.rate_hz is not None
    views = shown[subject.rate_hz]
    paths = [source.videos[view.number] for view in views]
    measure = measures[subject.rate_hz]
    return _scored([measure.load(view, path) for view, path in zip(views, paths, strict=True)], paths)


def _scored(found: Sequence[Measured], paths: Sequence[Path] | None = None) -> ScoredRun:
    return ScoredRun(
        [one.view for one in found], [m.moving_area for m in found], [m.real_moving_area for m in found], paths
    )


def file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "_", label).strip("._") or "model"


def notes_of(result: PhysicsIQResult) -> list[str]:
    """What the scores do not say of themselves."""
    notes = []
    for model in result.models:
        still = result.control_of(model, STILL)
        pair = [result.row(name, "physics_iq_verified") for name in (model, still) if name is not None]
        if len(pair) == 2 and pair[0] is not None and pair[1] is not None and pair[0]["value"] <= pair[1]["value"]:
            notes.append(f"{model} scores no more than a still video: what it moves is of no use to it.")
    controls = [name for name in result.subjects if name.partition(",")[0] == TAKE_2]
    items = [item for item in result.items if item["subject"] == (controls[0] if controls else "")]
    empty = sum(item["real_moving_area"] == 0 for item in items if item["real_moving_area"] is not None)
    if empty:
        notes.append(
            f"In {empty} of {len(items)} views nothing of take 1 moves enough to leave a mask: there a video in which "
            "nothing moves has three of the four terms for nothing."
        )
    same = sum(item["mse_takes"] == 0 for item in items)
    if same:
        notes.append(
            f"In {same} of {len(items)} views the takes differ by less than rounding: there the term of pixels is out "
            "of reach, and the Verified score ends at 75 %."
        )
    for row in result.rows:
        if row["group"] == "all" and row["metric"] == "physics_iq" and row["value"] is None:
            notes.append(f"{row['subject']} has no original score: an IoU and that between the takes are both 0.")
    return notes
