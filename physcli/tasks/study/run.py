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

import json
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from physcli.data.prompts import Prompt
from physcli.errors import PhyscliError, UsageError, unknown
from physcli.guidance import NONE, guidance_class
from physcli.hashing import settings_hash
from physcli.models.names import fingerprint, resolve
from physcli.progress import Reporter, duration_in_words
from physcli.recipe import GeneratorRecipe, completed
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
from physcli.tasks.run_dir import RunDir, cache_root, is_finished, read_metrics, read_rows, read_run, to_json
from physcli.tasks.sample import SampleSettings, sample
from physcli.tasks.sources import simulated_by
from physcli.tasks.study.file import Arm, Study, find_study, read_study
from physcli.tasks.study.page import write_study
from physcli.tasks.study.result import StudyResult, Unit
from physcli.tasks.study.rows import ArmRows, read_rows_of, rows_file, write_rows_of
from physcli.tasks.training.plan import make_plan
from physcli.tasks.training.request import FinetuneRequest, bearing

_TIMED_STEPS = 2  # denoising steps of the videos that a dry run times


@dataclass(frozen=True)
class StudyPlan:
    """What is still to be done of an arm, in seconds of one process; 0 for what is whole."""

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
    """Run what has not been run of a study, and report on all of it. An arm that cannot be run keeps no other from it.

    Args:
        name_or_path: A packaged study or a file.
        only: Arms to run now; all by default.
        out: The run directory.
        overwrite: Replace what is there, all of it.
        device: auto, cpu, cuda, ….
        cache_dir: Simulated clips, latents and features.
        reporter: Receives progress.

    Raises:
        PhyscliError: an arm could not be run; all others were.
    """
    path = find_study(name_or_path)
    asked = read_study(path)
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    wanted = _wanted(asked, only)
    failed: dict[Unit, PhyscliError] = {}
    run = RunDir(out, "study", {"study": path.stem}, overwrite=overwrite, reporter=reporter, processes=processes)
    with run, processes.together():
        if run.already_finished:
            run.reopen()  # the file may ask for more than it did
        stages = _Stages(
            asked,
            run.path,
            beside=path.parent,
            device=device,
            cache_dir=cache_dir,
            reporter=reporter,
            processes=processes,
        )
        folders = [run.path / "rows", path.with_suffix("")]
        todo = [Unit(*unit) for unit in processes.tell([u for u in wanted if stages.found(u, folders) is None])]
        clock, parts = _Clock(), {unit: stages.of(unit) for unit in todo}
        for number, unit in enumerate(todo):
            later = [stage for other in todo[number + 1 :] for stage in parts[other]]
            try:
                stages.run(unit, parts[unit], clock, later, f"[{number + 1}/{len(todo)}] {unit}")
            except PhyscliError as error:
                failed[unit] = error
                reporter.warn(f"{unit} could not be run: {error.received}")
        result = StudyResult(run.path, asked, {}, (), {}, is_main=False)
        if processes.is_main:
            result = _report(asked, run, stages, folders, reporter)
    if failed:
        first, cause = next(iter(failed.items()))
        others = f" So could not: {', '.join(map(str, list(failed)[1:]))}." if len(failed) > 1 else ""
        raise PhyscliError(
            f"{first} could not be run: {cause.received}{others}", expected=cause.expected, fix=cause.fix
        ) from cause
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
    """How long what has not been run of a study would take with one process, the probe left out: some steps of every
    training, a batch of videos of few denoising steps and its scores are measured, and nothing is left but simulated
    clips.

    Args and errors: As of `study`.
    """
    path = find_study(name_or_path)
    asked = read_study(path)
    reporter = reporter or Reporter()
    processes = Processes(device)
    if processes.count > 1:
        raise UsageError(
            f"A dry run of a study by {processes.count} processes.",
            expected="one process",
            fix="leave the launcher out",
        )
    options: dict[str, Any] = {"device": device, "cache_dir": cache_dir, "processes": processes}
    with tempfile.TemporaryDirectory(prefix="physcli-dry-run-") as name:
        folder = Path(name)
        stages = _Stages(asked, out or folder / "out", beside=path.parent, reporter=Reporter(), **options)
        folders = [path.with_suffix(""), *([] if out is None else [out / "rows"])]
        todo = [unit for unit in _wanted(asked, only) if stages.found(unit, folders) is None]
        if not todo:
            return []
        step_seconds, per_video, once = _time_videos(asked, stages.prompts, folder, device)
        left: dict[Path, float] = {}  # folder of a stage → seconds
        plans: list[StudyPlan] = []
        computed: set[str] = set()
        for unit in todo:
            seconds = dict.fromkeys(("train", "sample", "judge"), 0.0)
            for stage in stages.of(unit):
                if stage.folder in left or stage.is_whole():
                    continue
                if stage.kind == "train":
                    recipe = stages.recipe_of(unit)
                    assert recipe is not None
                    plan = make_plan(
                        recipe,
                        seed=unit.seed,
                        device=device,
                        cache=cache_root(cache_dir),
                        processes=processes,
                        reporter=reporter,
                    )
                    spent, kind = plan.step_seconds * recipe.train.steps, "train"
                    if unit.arm not in computed:  # what is kept of clips is kept for all seeds
                        computed.add(unit.arm)
                        spent += plan.cache_seconds
                elif stage.kind == "sample":
                    name = asked.arms[unit.arm].guidance
                    more = 0 if name == NONE else guidance_class(name).more_forwards
                    spent, kind = (1 + more / 2) * stage.amount * step_seconds, "sample"
                elif stage.kind in asked.judges:
                    spent, kind = stage.amount * per_video[stage.kind] + once[stage.kind], "judge"
                else:
                    continue
                left[stage.folder] = spent
                seconds[kind] += spent
            plans.append(StudyPlan(unit, **seconds))
        return plans


def _time_videos(
    asked: Study, prompts: Sequence[str | Prompt], folder: Path, device: str
) -> tuple[float, dict[str, float], dict[str, float]]:
    """Seconds of one denoising step of one video, decoding shared out; and of each judge for a video, and once."""
    few = max(2, min(asked.videos.batch_size, len(prompts)))
    timed = SampleSettings(tuple(prompts[:few]), model=asked.model, steps=_TIMED_STEPS)
    made = sample(timed, out=folder / "videos", device=device, batch_size=few)
    step_seconds = float(np.mean([item["seconds"] for item in made.items])) / _TIMED_STEPS
    per_video, once = {}, {}
    for judge in asked.judges:
        spent = []
        for limit in (1, len(made.items)):
            start = time.monotonic()
            settings = EvalSettings(judge, str(folder / "videos"), limit=limit)
            evaluate(settings, out=folder / f"{judge}-{limit}", device=device)
            spent.append(time.monotonic() - start)
        per_video[judge] = max(0.0, spent[1] - spent[0]) / max(1, len(made.items) - 1)
        once[judge] = spent[0]
    return step_seconds, per_video, once


def _wanted(asked: Study, only: Collection[str]) -> list[Unit]:
    for name in only:
        if name not in asked.arms:
            raise unknown("arm", name, asked.arms)
    return [Unit(name, seed) for name in only or asked.arms for seed in asked.seeds(name)]


class Stage(NamedTuple):
    """A part of an arm: what it is, how much of it there is (in what its time goes by), and what does it."""

    kind: str
    amount: float
    folder: Path
    run: Callable[[], object]

    def is_whole(self) -> bool:
        record = read_run(self.folder)
        return record is not None and is_finished(self.folder, record)


class _Stages:
    """What is to be done of an arm.

    Args:
        asked: The study.
        folder: Its run directory.
        beside: Where its file lies, and its list of prompts may lie.
        device, cache_dir, reporter, processes: Of all.
    """

    def __init__(
        self,
        asked: Study,
        folder: Path,
        *,
        beside: Path,
        device: str,
        cache_dir: Path | None,
        reporter: Reporter,
        processes: Processes,
    ) -> None:
        self.asked, self.processes = asked, processes
        self.folder = folder.resolve()  # runs know each other by it, wherever one stands
        self.device, self.cache_dir, self.reporter = device, cache_dir, reporter
        videos = asked.videos
        source = str(beside / videos.prompts) if (beside / videos.prompts).is_file() else videos.prompts
        self.prompts: tuple[str | Prompt, ...] = tuple(
            listed_prompts(source, limit=videos.limit, cache_dir=cache_dir, device=device, reporter=reporter)
        )
        self._fingerprints: dict[str, str] = {}

    # -- the question ----------------------------------------------------------------------------------------------

    def question(self, unit: Unit) -> dict[str, Any]:
        """All that bears on an arm's numbers: what the file says, and what stands behind the names in it."""
        recipe = self.recipe_of(unit)
        of = self.asked.arms[self._made_as(unit)]
        base = recipe.model if recipe is not None else of.model or self.asked.model
        texts = [prompt if isinstance(prompt, str) else [prompt.text, prompt.caption] for prompt in self.prompts]
        sources = [self.asked.videos.prompts, "" if recipe is None else recipe.data.source]
        return {
            **self.asked.asked(*unit),
            "recipe": None if recipe is None else bearing(recipe.model_dump(mode="json")),
            "base": self._fingerprint(base),
            "texts": settings_hash({"prompts": texts}),
            **{name: value for source in sources for name, value in simulated_by(source).items()},
        }

    def found(self, unit: Unit, folders: Sequence[Path]) -> ArmRows | None:
        """The rows of an arm that are of this question."""
        recipe, now = self.recipe_of(unit), self.question(unit)
        for folder in folders:
            path = rows_file(folder, *unit)
            if not path.is_file():
                continue
            rows = read_rows_of(path, *unit)
            then = self.asked.completed(rows.content["asked"])
            if recipe is not None and then.get("recipe") is not None:
                then["recipe"] = bearing(completed(then["recipe"], recipe))
            if json.loads(to_json(then)) == json.loads(to_json(now)):
                return rows
            self.reporter.warn(f"{path} is of another question than the study's now: the arm is run anew.")
        return None

    def _made_as(self, unit: Unit) -> str:
        return self.asked.arms[unit.arm].like or unit.arm

    def _fingerprint(self, model: str) -> str:
        if model not in self._fingerprints:
            self._fingerprints[model] = fingerprint(resolve(model))
        return self._fingerprints[model]

    # -- what is done ------------------------------------------------------------------------------------------------

    def recipe_of(self, unit: Unit) -> GeneratorRecipe | None:
        """What trains an arm, if anything does.

        Raises:
            UsageError: a recipe of something else than a generator.
        """
        request = self._training(unit)
        if request is None:
            return None
        recipe = request.recipe()
        if not isinstance(recipe, GeneratorRecipe):
            raise UsageError(
                f"{unit.arm}: {request.recipe_name} trains a {recipe.trains}.", expected="a recipe of a generator"
            )
        return recipe

    def _training(self, unit: Unit) -> FinetuneRequest | None:
        asked, name = self.asked, self._made_as(unit)
        arm = asked.arms[name]
        if arm.recipe is None:
            return None
        return FinetuneRequest(
            arm.recipe,
            (*asked.changes, *arm.changes),
            model=arm.model or asked.model,
            data=asked.data,
            steps=asked.steps,
            out=self.folder / "train" / f"{name}-{unit.seed}",
            seed=unit.seed,
            device=self.device,
            cache_dir=self.cache_dir,
        )

    def of(self, unit: Unit) -> list[Stage]:
        """In their order."""
        asked, arm = self.asked, self.asked.arms[unit.arm]
        videos = self.folder / "videos" / str(unit)
        count = len(self.prompts) * asked.videos.num_samples
        if arm.static:
            assert arm.like is not None
            stages = [stage for stage in self.of(Unit(arm.like, unit.seed)) if stage.kind in ("train", "sample")]
            of = stages[-1].folder
            stages.append(Stage("static", count, videos, partial(self._hold, of, videos)))
        else:
            stages, model = [], self.asked.arms[self._made_as(unit)].model or asked.model
            request, recipe = self._training(unit), self.recipe_of(unit)
            if request is not None and recipe is not None:
                assert request.out is not None
                amount = recipe.train.steps * recipe.train.batch_size * recipe.train.accumulate
                stages.append(Stage("train", amount, request.out, partial(self._train, request)))
                model = str(request.out)
            make = partial(self._sample, arm, model, videos)
            stages.append(Stage("sample", count * asked.videos.steps, videos, make))
            if asked.probe is not None:
                probe = self.folder / "probe" / str(unit)
                stages.append(Stage("probe", 1, probe, partial(self._probe, model, probe)))
        for judge in asked.judges:
            scores = self.folder / judge / str(unit)
            stages.append(Stage(judge, count, scores, partial(self._judge, judge, videos, scores)))
        return stages

    def run(self, unit: Unit, stages: Sequence[Stage], clock: _Clock, later: Sequence[Stage], said: str) -> None:
        """Do what is not done of an arm's stages, and write its rows."""
        for number, stage in enumerate(stages):
            self.reporter.note(f"{said}: {stage.kind}{clock.left([*stages[number:], *later])}")
            try:
                clock.time(stage)
            except UsageError as error:
                if "holds another run" not in error.received:
                    raise
                raise UsageError(
                    error.received,
                    expected="the settings that it was begun with",
                    fix=f"remove {stage.folder}, or give the arm another name",
                ) from error
        if self.processes.is_main:
            self._keep(unit, {stage.kind: stage.folder for stage in stages})
        self.processes.wait()

    def _train(self, request: FinetuneRequest) -> None:
        assert request.out is not None
        begun = self.processes.tell(any(request.out.glob("checkpoint-*")))
        finetune(request, resume="latest" if begun else None, reporter=self.reporter)

    def _sample(self, arm: Arm, model: str, out: Path) -> None:
        videos = self.asked.videos
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

    def _hold(self, of: Path, out: Path) -> None:
        if self.processes.is_main:
            static(BaselineSettings("static", str(of)), out=out, reporter=self.reporter)
        self.processes.wait()

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
        seconds = {kind: record.get("duration_s") or 0.0 for kind, record in records.items()}
        if trained is not None:
            seconds["train"] = records["train"]["training"]["seconds"]  # of all its goes
        if self.asked.arms[unit.arm].like is not None:
            seconds.pop("train", None)  # another arm's
        if self.asked.arms[unit.arm].static:
            seconds.pop("sample", None)
        write_rows_of(
            rows_file(self.folder / "rows", *unit),
            asked=self.question(unit),
            seconds=seconds,
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

    def __init__(self) -> None:
        self._spent: dict[str, list[float]] = {}  # kind → seconds, amount

    def time(self, stage: Stage) -> None:
        whole, start = stage.is_whole(), time.monotonic()
        stage.run()
        if not whole:
            seconds, amount = self._spent.get(stage.kind, [0.0, 0.0])
            self._spent[stage.kind] = [seconds + time.monotonic() - start, amount + stage.amount]

    def left(self, stages: Sequence[Stage]) -> str:
        """Of these, those kinds that were timed."""
        todo = [stage for stage in {stage.folder: stage for stage in stages}.values() if not stage.is_whole()]
        known = [stage for stage in todo if stage.kind in self._spent]
        if not known:
            return ""
        seconds = sum(stage.amount * self._spent[stage.kind][0] / self._spent[stage.kind][1] for stage in known)
        more = {stage.kind for stage in todo} - self._spent.keys()
        unknown_yet = f", {', '.join(sorted(more))} not counted" if more else ""
        return f" (about {duration_in_words(seconds)} left{unknown_yet})"


def _report(asked: Study, run: RunDir, stages: _Stages, folders: Sequence[Path], reporter: Reporter) -> StudyResult:
    """Compare what there is, and write the page."""
    arms: dict[str, list[ArmRows]] = {}
    missing = []
    for unit in _wanted(asked, ()):
        found = stages.found(unit, folders)
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
            if asked.metrics and not shared:
                reporter.note(f"{judge} has none of the study's metrics, and nothing of it is compared.")
                continue
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
