"""`physcli study`: what does each method do to the videos? Trainings, videos and scores of many arms, and one report.

    OUT/train/ARM-SEED/                each a run of `physcli finetune`, where the arm is trained
    OUT/videos/ARM-SEED/               of `physcli sample`
    OUT/JUDGE/ARM-SEED/                of `physcli eval JUDGE`
    OUT/probe/ARM-SEED/                of `physcli probe physion`, where the study asks for it
    OUT/rows/ARM-SEED.json             what the report needs of an arm: small, and all of it
    OUT/compare-JUDGE/report.html      of `physcli compare`: every arm against the control
    OUT/report.html, metrics.json, curves.png

Stages are done one after the other, and one that is whole is not done again. An arm whose rows are there needs nothing
else: rows also count that lie beside the study's file, in a folder of its name, if they are of the same question.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from physcli.data.prompts import Prompt
from physcli.errors import UsageError, unknown
from physcli.progress import Reporter, duration_in_words
from physcli.recipe import GeneratorRecipe
from physcli.report.plots import loss_curves
from physcli.rows import Row
from physcli.tasks.baselines import BaselineSettings, static
from physcli.tasks.compare import CompareSettings, compare
from physcli.tasks.compare_result import CompareResult, Side
from physcli.tasks.eval import EvalSettings, evaluate
from physcli.tasks.finetune import finetune
from physcli.tasks.probe_physion import ProbeSettings, probe_physion
from physcli.tasks.processes import Processes
from physcli.tasks.prompt_sets import listed_prompts
from physcli.tasks.references import thinned
from physcli.tasks.run_dir import RunDir, cache_root, read_metrics, read_rows, read_run
from physcli.tasks.sample import SampleSettings, sample
from physcli.tasks.study.file import Study, find_study, read_study
from physcli.tasks.study.page import write_study
from physcli.tasks.study.result import StudyResult, Unit
from physcli.tasks.study.rows import ArmRows, read_rows_of, rows_file, write_rows_of
from physcli.tasks.training.plan import make_plan
from physcli.tasks.training.request import FinetuneRequest

_TIMED_STEPS = 2  # denoising steps of the videos that a dry run times


@dataclass(frozen=True)
class StudyPlan:
    """What is still to be done of an arm, in seconds of one process."""

    unit: Unit
    train: float
    sample: float
    judge: float


def study(
    name_or_path: str,
    *,
    only: Collection[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> StudyResult:
    """Run what has not been run of a study, and report on all of it.

    Args:
        name_or_path: A packaged study or a file.
        only: Arms to run now; all by default.
        out: The run directory.
        overwrite: Replace what is there.
        device: auto, cpu, cuda, ….
        cache_dir: Simulated clips, latents and features.
        reporter: Receives progress.

    Raises:
        PhyscliError: whatever would stop one of the commands; what is finished is kept.
    """
    path = find_study(name_or_path)
    asked = read_study(path)
    processes = Processes(device)
    reporter = reporter if reporter is not None and processes.is_main else Reporter()
    wanted = _wanted(asked, only)
    with RunDir(
        out, "study", {"study": path.stem}, overwrite=overwrite, reporter=reporter, writes=processes.is_main
    ) as run:
        run.path = Path(processes.tell(str(run.path)))
        if processes.is_main and run.already_finished:
            run.reopen()  # the file may ask for more than it did
        stages = _Stages(asked, run.path, device=device, cache_dir=cache_dir, reporter=reporter, processes=processes)
        folders = [run.path / "rows", path.with_suffix("")]
        todo = processes.tell([unit for unit in wanted if _found(asked, unit, folders, reporter) is None])
        clock = _Clock(reporter)
        for number, unit in enumerate(Unit(*unit) for unit in todo):
            later = [stage for other in todo[number + 1 :] for stage in stages.of(Unit(*other))]
            stages.run(unit, clock, later, f"[{number + 1}/{len(todo)}] {unit}")
        result = StudyResult(run.path, asked, {}, (), {}, is_main=False)
        if processes.is_main:
            result = _report(asked, run, folders, reporter)
    processes.finish()
    return result


def plan_study(
    name_or_path: str,
    *,
    only: Collection[str] = (),
    out: Path | None = None,
    device: str = "auto",
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> list[StudyPlan]:
    """How long what has not been run of a study would take with one process: two steps of every training and a few
    denoising steps of a batch of videos are measured, and nothing is left.

    Args and errors: As of `study`.
    """
    path = find_study(name_or_path)
    asked = read_study(path)
    reporter = reporter or Reporter()
    folders = [path.with_suffix(""), *([] if out is None else [out / "rows"])]
    todo = [unit for unit in _wanted(asked, only) if _found(asked, unit, folders, Reporter()) is None]
    processes = Processes(device)
    cache = cache_root(cache_dir)
    training: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="physcli-dry-run-") as name:
        stages = _Stages(asked, Path(name), device=device, cache_dir=cache_dir, reporter=reporter, processes=processes)
        prompts = stages.prompts
        few = min(asked.videos.batch_size, len(prompts) * asked.videos.num_samples)
        timed = SampleSettings(prompts[:few], model=asked.model, steps=_TIMED_STEPS)
        start = time.monotonic()
        sample(timed, out=Path(name) / "videos", device=device, batch_size=few, reporter=reporter)
        step_seconds = (time.monotonic() - start) / few / _TIMED_STEPS
        judge_seconds = 0.0
        for judge in asked.judges:
            start = time.monotonic()
            evaluate(EvalSettings(judge, str(Path(name) / "videos")), out=Path(name) / judge, device=device)
            judge_seconds += (time.monotonic() - start) / few
        for unit in todo:
            trained, request = stages.training(unit)
            if request is None or trained.name in training:
                continue
            recipe = request.recipe()
            plan = make_plan(recipe, seed=unit.seed, device=device, cache=cache, reporter=reporter)
            training[trained.name] = plan.cache_seconds + plan.step_seconds * recipe.train.steps
        videos = len(prompts) * asked.videos.num_samples
        return [
            StudyPlan(
                unit,
                training.pop(stages.training(unit)[0].name, 0.0),  # arms alike are trained once
                0.0 if asked.arms[unit.arm].static else videos * asked.videos.steps * step_seconds,
                videos * judge_seconds,
            )
            for unit in todo
        ]


def _wanted(asked: Study, only: Collection[str]) -> list[Unit]:
    for name in only:
        if name not in asked.arms:
            raise unknown("arm", name, asked.arms)
    return [Unit(name, seed) for name in only or asked.arms for seed in asked.seeds(name)]


def _found(asked: Study, unit: Unit, folders: Sequence[Path], reporter: Reporter) -> ArmRows | None:
    """The rows of an arm that are of this question."""
    for folder in folders:
        path = rows_file(folder, *unit)
        if not path.is_file():
            continue
        rows = read_rows_of(path, *unit)
        if rows.content["asked"] == asked.asked(*unit):
            return rows
        reporter.warn(f"{path} is of another question than the study's now, and is left alone.")
    return None


class Stage(NamedTuple):
    """A part of an arm: what it is, how much of it there is (in what its time goes by), and what does it."""

    kind: str
    amount: float
    folder: Path
    run: Callable[[], object]


class _Stages:
    """What is to be done of an arm.

    Args:
        asked: The study.
        folder: Its run directory.
        device, cache_dir, reporter, processes: Of all.
    """

    def __init__(
        self,
        asked: Study,
        folder: Path,
        *,
        device: str,
        cache_dir: Path | None,
        reporter: Reporter,
        processes: Processes,
    ) -> None:
        self.asked, self.folder, self.processes = asked, folder, processes
        self.device, self.cache_dir, self.reporter = device, cache_dir, reporter
        videos = asked.videos
        self.prompts: tuple[str | Prompt, ...] = tuple(
            listed_prompts(videos.prompts, limit=videos.limit, cache_dir=cache_dir, device=device, reporter=reporter)
        )

    def training(self, unit: Unit) -> tuple[Path, FinetuneRequest | None]:
        """The folder of an arm's training, and what is asked of it; None where it is not trained."""
        asked = self.asked
        name = asked.arms[unit.arm].like or unit.arm
        arm, folder = asked.arms[name], self.folder / "train" / f"{name}-{unit.seed}"
        if arm.recipe is None:
            return folder, None
        return folder, FinetuneRequest(
            arm.recipe,
            (*asked.changes, *arm.changes),
            model=arm.model or asked.model,
            data=asked.data,
            steps=asked.steps,
            out=folder,
            seed=unit.seed,
            device=self.device,
            cache_dir=self.cache_dir,
        )

    def of(self, unit: Unit) -> list[Stage]:
        """In their order."""
        asked, arm = self.asked, self.asked.arms[unit.arm]
        trained, request = self.training(unit)
        stages = []
        if request is not None:
            recipe = request.recipe()
            if not isinstance(recipe, GeneratorRecipe):
                raise UsageError(
                    f"{unit.arm}: {request.recipe_name} trains a {recipe.trains}.", expected="a recipe of a generator"
                )
            amount = recipe.train.steps * recipe.train.batch_size * recipe.train.accumulate
            stages.append(Stage("train", amount, trained, partial(self._train, request)))
        of = asked.arms[arm.like] if arm.like is not None else arm
        model = str(trained) if request is not None else of.model or asked.model
        videos = self.folder / "videos" / str(unit)
        count = len(self.prompts) * asked.videos.num_samples
        make = partial(self._sample, unit, model, videos)
        stages.append(Stage("static" if arm.static else "sample", count * asked.videos.steps, videos, make))
        for judge in asked.judges:
            scores = self.folder / judge / str(unit)
            stages.append(Stage(judge, count, scores, partial(self._judge, judge, videos, scores)))
        if asked.probe is not None and not arm.static:
            probe = self.folder / "probe" / str(unit)
            stages.append(Stage("probe", 1, probe, partial(self._probe, model, probe)))
        return stages

    def run(self, unit: Unit, clock: _Clock, later: Sequence[Stage], said: str) -> None:
        """Do what is not done of an arm, and write its rows."""
        stages = self.of(unit)
        for number, stage in enumerate(stages):
            self.reporter.note(f"{said}: {stage.kind}{clock.left([*stages[number:], *later])}")
            clock.time(stage)
        if self.processes.is_main:
            self._keep(unit, {stage.kind: stage.folder for stage in stages})
        self.processes.wait()

    def _train(self, request: FinetuneRequest) -> None:
        assert request.out is not None
        begun = any(request.out.glob("checkpoint-*"))
        finetune(request, resume="latest" if begun else None, reporter=self.reporter)

    def _sample(self, unit: Unit, model: str, out: Path) -> None:
        arm, videos = self.asked.arms[unit.arm], self.asked.videos
        if arm.static:
            if self.processes.is_main:
                of = self.folder / "videos" / f"{arm.like}-{unit.seed}"
                if not of.is_dir():
                    raise UsageError(
                        f"{unit.arm} holds the first frames of {arm.like}, whose videos are not there.",
                        expected=f"an arm that comes after {arm.like}",
                        fix=f"run {arm.like} first",
                    )
                static(BaselineSettings("static", str(of)), out=out, reporter=self.reporter)
            self.processes.wait()
            return
        settings = SampleSettings(
            self.prompts,
            model=model,
            num_samples=videos.num_samples,
            steps=videos.steps,
            guidance=arm.guidance,
            guidance_options=arm.options,
            guidance_scale=arm.guidance_scale,
            seed=videos.seed,
        )
        sample(settings, out=out, device=self.device, batch_size=videos.batch_size, reporter=self.reporter)

    def _judge(self, judge: str, videos: Path, out: Path) -> None:
        evaluate(EvalSettings(judge, str(videos)), out=out, device=self.device, reporter=self.reporter)

    def _probe(self, model: str, out: Path) -> None:
        probe = self.asked.probe
        assert probe is not None
        layers = None if probe.block is None else (probe.block,)
        probe_physion(
            ProbeSettings((model,), probe.data, layers=layers, sigmas=(probe.sigma,), limit=probe.limit),
            out=out,
            device=self.device,
            cache_dir=self.cache_dir,
            reporter=self.reporter,
        )

    def _keep(self, unit: Unit, folders: Mapping[str, Path]) -> None:
        trained, probed = folders.get("train"), folders.get("probe")
        records = {kind: read_run(folder) or {} for kind, folder in folders.items()}
        write_rows_of(
            rows_file(self.folder / "rows", *unit),
            asked=self.asked.asked(*unit),
            seconds={kind: record.get("duration_s") or 0.0 for kind, record in records.items()},
            judged={
                judge: (records[judge], read_metrics(folders[judge]), read_rows(folders[judge] / "items.jsonl"))
                for judge in self.asked.judges
            },
            curve=[] if trained is None else thinned(read_rows(trained / "steps.jsonl")),
            held_out=[] if trained is None else read_metrics(trained),
            probe=[] if probed is None else _of_model(read_metrics(probed)),
        )


def _of_model(rows: Sequence[Row]) -> list[Row]:
    """Of a probe's rows those of the model, not of the controls beside it."""
    subject = rows[0]["subject"]
    return [
        row for row in rows if row["subject"] == subject and row["metric"] == "accuracy" and row.get("chosen", True)
    ]


class _Clock:
    """Says what is left, as fast as each kind of stage was so far."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._spent: dict[str, list[float]] = {}  # kind → seconds, amount

    def time(self, stage: Stage) -> None:
        start = time.monotonic()
        stage.run()
        seconds, amount = self._spent.get(stage.kind, [0.0, 0.0])
        self._spent[stage.kind] = [seconds + time.monotonic() - start, amount + stage.amount]

    def left(self, stages: Sequence[Stage]) -> str:
        """Of these, those kinds that were timed."""
        known = [stage for stage in stages if stage.kind in self._spent]
        if not known:
            return ""
        seconds = sum(stage.amount * self._spent[stage.kind][0] / self._spent[stage.kind][1] for stage in known)
        more = {stage.kind for stage in stages} - self._spent.keys()
        unknown_yet = f", {', '.join(sorted(more))} not counted" if more else ""
        return f" (about {duration_in_words(seconds)} left{unknown_yet})"


def _report(asked: Study, run: RunDir, folders: Sequence[Path], reporter: Reporter) -> StudyResult:
    """Compare what there is, and write the page."""
    arms: dict[str, list[ArmRows]] = {}
    missing = []
    for unit in _wanted(asked, ()):
        found = _found(asked, unit, folders, Reporter())
        if found is None:
            missing.append(unit)
        else:
            arms.setdefault(unit.arm, []).append(found)
    if missing:
        reporter.note(f"Not run yet: {', '.join(map(str, missing))}.")
    comparisons: dict[str, CompareResult] = {}
    if asked.control in arms and len(arms) > 1:
        order = [asked.control, *(name for name in arms if name != asked.control)]
        for judge in asked.judges:
            sides = [
                Side(name, tuple(rows.scored(judge, _videos(run.path, rows)) for rows in arms[name])) for name in order
            ]
            shared = [metric for metric in asked.metrics if metric in sides[0].runs[0].metrics]
            comparisons[judge] = compare(
                CompareSettings(tuple(f"{side.label} ×{len(side.runs)}" for side in sides), tuple(shared)),
                sides=sides,
                out=run.path / f"compare-{judge}",
                overwrite=True,
                reporter=reporter,
            )
    curves = {name: rows[0].content["curve"] for name, rows in arms.items() if rows[0].content["curve"]}
    if curves:
        loss_curves(run.path / "curves.png", curves, title="The generators' own loss")
    result = StudyResult(run.path, asked, arms, missing, comparisons)
    write_study(result, run.path / "report.html")
    run.write_metrics([row for comparison in comparisons.values() for row in comparison.rows])
    run.record["missing"] = [str(unit) for unit in missing]
    return result


def _videos(folder: Path, rows: ArmRows) -> Path | None:
    found = folder / "videos" / f"{rows.arm}-{rows.seed}" / "videos"
    return found if found.is_dir() else None
