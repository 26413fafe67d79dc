"""`physcli finetune`: train what a recipe says, and leave an ordinary model folder.

OUT/run.json, recipe.yaml, steps.jsonl, loss.png, metrics.json
OUT/scores.jsonl, scores.png what a judge said on the way, where the recipe asks for one; best/ has the best weights
OUT/checkpoint-N/            all that `--resume` needs
OUT/samples/step-N/          pictures made on the way
OUT/model/ (or vae/)         what was trained, in diffusers or transformers layout, with a model card
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from physcli.data.clips import Clip
from physcli.errors import UsageError
from physcli.files import write_text
from physcli.hashing import content_hash, settings_hash
from physcli.models import KNOWN_HUB, loading
from physcli.models.device import computes_in_bfloat16
from physcli.progress import Reporter
from physcli.recipe import AnyRecipe, completed, dump_recipe, list_recipes
from physcli.report.plots import loss_curve
from physcli.rows import Row
from physcli.tasks.processes import Processes
from physcli.tasks.references import Reference, find_reference
from physcli.tasks.run_dir import (
    SETTINGS_VERSION,
    Complete,
    RunDir,
    cache_root,
    is_finished,
    read_metrics,
    read_rows,
    read_run,
    same_settings,
)
from physcli.tasks.sources import pinned, simulated_by
from physcli.tasks.training.build import build_trainee, reads_captions, twins_wanted
from physcli.tasks.training.checkpoints import (
    cannot_write,
    checkpoint_folders,
    find_checkpoint,
    read_manifest,
    resume_folder,
    step_of,
)
from physcli.tasks.training.clips import read_clips
from physcli.tasks.training.export import cast_weights, write_card
from physcli.tasks.training.loop import build_accelerator, train
from physcli.tasks.training.request import FinetuneRequest, bearing
from physcli.tasks.training.trainee import Trainee

_PRECISIONS = {"no": "float32", "bf16": "bfloat16 (mixed)", "fp16": "float16 (mixed)"}
_RESULTS = ("model", "adapter", "vae", "motion_field", "motion_projector")  # folders that a run may leave

BEST = "best"  # of a run that is scored: the same, of the step that was best


@dataclass(frozen=True)
class FinetuneResult:
    """What a training run left."""

    path: Path
    model: Path
    rows: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    seconds: float
    is_main: bool = True


def finetune(
    request: FinetuneRequest, *, resume: str | None = None, reference: bool = True, reporter: Reporter | None = None
) -> FinetuneResult:
    """Train by a recipe.

    Args:
        request: The recipe, and what is given beside it.
        resume: latest, a checkpoint folder or a run directory.
        reference: Draw the recipe's reference curve, if it has one, into loss.png.
        reporter: Receives progress.

    Raises:
        PhyscliError: anything the user can mend.
    """
    recipe, out, seed, device = request.recipe(), request.out, request.seed, request.device
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    if processes.warning:
        reporter.warn(processes.warning)
    beside = find_reference(request.recipe_name, recipe, processes.count) if reference else None
    if better := _recipe_for(request.recipe_name, recipe.model):
        reporter.warn(
            f"{request.recipe_name} is for the embedded default; the papers' settings for {recipe.model}: {better}."
        )
    if resume is not None and out is None:
        out = _run_of(resume)
    settings, complete = _settings(recipe.model_dump(mode="json"), seed), partial(_complete, recipe=recipe)
    settings |= simulated_by(recipe.data.source)
    start = None
    if processes.is_main:
        start = _starting_point(resume, out, settings, complete, request.overwrite, reporter)
    start = processes.tell(start)
    run = RunDir(
        out,
        "finetune",
        settings,
        complete=complete,
        overwrite=request.overwrite,
        reporter=reporter,
        processes=processes,
    )
    with run:
        cache = cache_root(request.cache_dir)
        finished = run.already_finished
        if finished and not Path(recipe.data.source).expanduser().is_dir():
            return _finished(run, processes, reporter)  # what its name stands for does not change
        accelerator = build_accelerator(recipe.train, device=device, folder=run.path)
        training, held_out = read_clips(
            recipe.data,
            cache=cache,
            processes=processes,
            reporter=reporter,
            captions=reads_captions(recipe),
            impossible=twins_wanted(recipe),
        )
        if commit := pinned(recipe.data.source):
            run.record["dataset"] = commit
        inputs = processes.tell(_inputs(training, held_out) if processes.is_main else {})
        run.check_inputs(inputs, new=["contents"])
        _refuse_other_data(start, inputs)
        if finished:
            return _finished(run, processes, reporter)
        trainee = build_trainee(recipe, training, held_out, seed, cache, accelerator.device, processes, reporter)
        count = sum(p.numel() for p in trainee.parameters() if p.requires_grad)
        per_step = recipe.train.batch_size * recipe.train.accumulate * accelerator.num_processes
        reporter.note(
            f"Training {count / 1e6:.2f} M parameters on {len(training):,} clips ({len(held_out):,} held out), "
            f"{per_step} a step, "
            f"{recipe.train.steps:,} steps, on {accelerator.device} in {_PRECISIONS[accelerator.mixed_precision]}."
        )
        if accelerator.mixed_precision == "bf16" and not computes_in_bfloat16(accelerator.device):
            reporter.warn(
                f"This {accelerator.device.type} has no instructions for bfloat16 and takes about three times as long "
                "with it as in float32: train.mixed_precision=auto uses it only where it is faster."
            )
        if processes.is_main:  # not before: a run that cannot begin leaves no folder behind
            write_text(run.path / "recipe.yaml", dump_recipe(recipe))
        export = partial(_export, trainee, recipe, run, num_clips=len(training), seed=seed)
        trained = train(
            trainee,
            recipe.train,
            run=run,
            accelerator=accelerator,
            seed=seed,
            resume=start,
            facts={
                "settings": settings,
                "settings_version": SETTINGS_VERSION,
                "recipe": recipe.model_dump(mode="json"),
                "inputs": inputs,
            },
            keep_best=lambda step, seconds, rows: export(run.path / BEST, step, seconds, rows),
            reporter=reporter,
        )
        folder = run.path
        problems = list(dict.fromkeys(processes.collect(trained.problems)))
        if processes.is_main:
            for problem in problems:
                if problem not in trained.problems:
                    reporter.warn(f"Left out by another process: {problem}")
            _plot(run.path / "loss.png", trained.steps, request.recipe_name, recipe, beside)
            if beside is not None:
                reporter.note(beside.in_words)
            folder = export(run.path, recipe.train.steps, trained.seconds, trained.rows)
            if trained.scores.best is not None:
                step, value = trained.scores.best
                run.record["best"] = {"step": step, trained.scores.metric: value}
                reporter.note(
                    f"The best {trained.scores.metric}, {value:.4g}, was after step {step}: {run.path / BEST}"
                )
            run.record["unreadable_clips"] = problems
            run.record["training"] = {
                "seconds": round(trained.seconds, 1),
                "resumed_at": trained.resumed,
                "mixed_precision": accelerator.mixed_precision,
            }
            run.write_metrics(trained.rows)
    processes.finish()
    return FinetuneResult(run.path, folder, trained.rows, trained.steps, trained.seconds, processes.is_main)


def _plot(
    path: Path,
    steps: Sequence[Mapping[str, Any]],
    recipe_name: str,
    recipe: AnyRecipe,
    beside: Reference | None,
) -> None:
    logged = set().union(*steps)
    terms = ("denoising", recipe.method.name) if recipe.trains == "generator" else ()
    control = "no_motion" if "no_motion" in logged else None
    title = f"{Path(recipe_name).stem}: {recipe.trains}, from {recipe.model}"
    loss_curve(
        path,
        steps,
        title=title,
        terms=[term for term in terms if term in logged],
        control=control,
        reference=() if beside is None else beside.steps,
    )


def _recipe_for(name: str, model: str) -> str | None:
    """The packaged recipe with a known large model's settings, where another one was named."""
    candidate = f"{name}-{model.lower().rpartition('-')[2]}"
    return candidate if model in KNOWN_HUB and candidate in list_recipes() else None


def _settings(recipe: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What makes two runs the same one."""
    return {"recipe": bearing(recipe), "seed": seed}


def _complete(then: Mapping[str, Any], *, recipe: AnyRecipe) -> Mapping[str, Any]:
    """Settings that an earlier version recorded, with the fields that recipes have got since."""
    if not isinstance(then.get("recipe"), Mapping):
        return then  # of another command
    return {**then, **_settings(completed(then["recipe"], recipe), then["seed"])}


def _run_of(resume: str) -> Path:
    """The run directory that `--resume` without `--out` means."""
    if resume == "latest":
        raise UsageError("--resume latest without --out.", expected="--out with the run directory that shall go on")
    path = resume_folder(resume)
    return path if step_of(path) is None else path.parent


def _starting_point(
    resume: str | None,
    out: Path | None,
    settings: Mapping[str, Any],
    complete: Complete,
    overwrite: bool,
    reporter: Reporter,
) -> Path | None:
    """The checkpoint to go on from, or None to start anew; found before anything is written.

    Raises:
        UsageError: nothing to resume, a checkpoint of other settings, or one that would be lost.
        DataError: there are checkpoints, but none is whole.
    """
    if out is None:
        return None
    previous = None if overwrite else read_run(out)
    if previous is not None:
        if not same_settings(previous, settings, complete):
            return None  # RunDir says what differs
        if resume in (None, "latest") and is_finished(out, previous):
            return None
        if resume is None and (found := checkpoint_folders(out)):
            raise UsageError(
                f"--out {out} holds an unfinished run ({found[0].name}).",
                expected="--resume latest to go on with it",
                fix="add --resume latest, or --overwrite to start it again",
            )
    if resume is None:
        return None
    checkpoint = find_checkpoint(resume, out, reporter)
    if overwrite and checkpoint.resolve().is_relative_to(out.resolve()):
        raise UsageError(
            f"--resume {resume} with --overwrite, which removes it.",
            expected="one of them",
            fix="leave one of them out",
        )
    if not same_settings(read_manifest(checkpoint), settings, complete):
        raise UsageError(
            f"{checkpoint} is of a run with other settings.",
            expected="the same recipe, overrides and seed, and of simulated suites the same release of MuJoCo",
            fix=f"repeat them ({checkpoint.parent / 'recipe.yaml'} has them), or start from its weights with --model",
        )
    return checkpoint


def _inputs(training: list[Clip], held_out: list[Clip]) -> dict[str, str]:
    """`clips`: how many, and a hash of which in what order, for the order of samples hangs on them; `contents`: a hash
    of their files, captions, labels and splits."""
    names = {"training": [clip.name for clip in training], "held out": [clip.name for clip in held_out]}
    clips = [*training, *held_out]
    files = sorted({path for clip in clips for path in (clip.path, clip.arrays) if path is not None and path.is_file()})
    with ThreadPoolExecutor() as pool:
        hashes = dict(zip(files, pool.map(content_hash, files), strict=True))
    contents = [
        [
            *(hashes.get(clip.path), clip.arrays and hashes.get(clip.arrays), clip.split, clip.prompt, clip.label),
            *([said] if (said := clip.heeded()) else []),
        ]
        for clip in clips
    ]
    return {
        "clips": f"{len(training)} for training, {len(held_out)} held out: {settings_hash(names)}",
        "contents": settings_hash({"clips": contents}),
    }


def _refuse_other_data(checkpoint: Path | None, inputs: Mapping[str, str]) -> None:
    """Raises UsageError: the checkpoint is of a run on other clips, or on these before they changed."""
    then = {} if checkpoint is None else read_manifest(checkpoint).get("inputs", {})
    if any(then[name] != inputs.get(name) for name in then):
        raise UsageError(
            f"{checkpoint} is of a run on other data: clips, captions or splits have changed since.",
            expected="the data that it was trained on",
            fix="restore them, or start from its weights with --model",
        )


def _finished(run: RunDir, processes: Processes, reporter: Reporter) -> FinetuneResult:
    reporter.note(f"{run.path} already holds this run, finished.")
    processes.finish()
    return _read_result(run.path, processes.is_main)


def _export(
    trainee: Trainee,
    recipe: AnyRecipe,
    run: RunDir,
    into: Path,
    steps: int,
    seconds: float,
    rows: Sequence[Row],
    *,
    num_clips: int,
    seed: int,
) -> Path:
    """Write the model folder with its card into a folder, and what else belongs to it, whole or not at all.

    Raises:
        DataError: the disk is full or not writable.
    """
    part = run.path / ".export.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        with loading.quiet_libraries():
            folder = trainee.export(part)
        cast_weights(folder, recipe.save_dtype, frozen=trainee.frozen)
        write_card(
            folder,
            recipe,
            parts=trainee.parts(),
            num_clips=num_clips,
            seed=seed,
            steps=steps,
            seconds=seconds,
            hardware=run.record["hardware"],
            rows=rows,
            facts=trainee.facts(),
        )
        into.mkdir(exist_ok=True)
        for made in sorted(part.iterdir(), key=lambda path: path == folder):  # the model itself last
            final = into / made.name
            if final.is_dir():
                shutil.rmtree(final)
            made.replace(final)
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's error
        raise cannot_write("The trained model", run.path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return into / folder.name


def _read_result(path: Path, is_main: bool) -> FinetuneResult:
    model = next((path / name for name in _RESULTS if (path / name).is_dir()), path)
    return FinetuneResult(path, model, read_metrics(path), read_rows(path / "steps.jsonl"), 0.0, is_main)
