"""`physcli finetune --dry-run`: what a run would train, keep and take, found by real steps that leave nothing.

The models are loaded and the trainee is built as for the run itself, on two clips and in a temporary folder; so sizes
and times are measured, not guessed, and what is wrong with a recipe shows here as it would there.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from physcli.data.clips import Clip, read_dataset
from physcli.errors import DataError
from physcli.models.device import peak_memory, pick_device
from physcli.progress import Reporter
from physcli.recipe import AnyRecipe, Train
from physcli.tasks.processes import Processes, on_cpu
from physcli.tasks.simulate import SimulateSettings, simulate, suite_size
from physcli.tasks.training.build import build_trainee, reads_captions, twins_wanted
from physcli.tasks.training.clips import read_clips
from physcli.tasks.training.loop import build_accelerator
from physcli.tasks.training.step import OptimizerStep
from physcli.tasks.training.trainee import Steps

_FLOATS_IN_A_CHECKPOINT = 3  # a weight and AdamW's two moments


@dataclass(frozen=True)
class Plan:
    """What a run would be.

    Attributes:
        device: Where the step was measured.
        trained: Parameters that are trained.
        num_clips: To train on.
        windows: Of them, whose latents and features are kept; 0 where none are.
        cache_bytes: What is kept of all windows.
        cache_seconds: To compute it, on this device with one process.
        step_seconds: One optimizer step.
        memory_bytes: The most that was held: on a GPU reserved there, on a CPU by the process.
        checkpoint_bytes: One checkpoint.
        free_bytes: On the cache's disk.
    """

    device: str
    trained: int
    num_clips: int
    windows: int
    cache_bytes: float
    cache_seconds: float
    step_seconds: float
    memory_bytes: float
    checkpoint_bytes: float
    free_bytes: float


def make_plan(
    recipe: AnyRecipe, *, seed: int, device: str, cache: Path, processes: Processes, reporter: Reporter
) -> Plan:
    """Build what the recipe trains on two clips, take two steps, and reckon up from there. Of several processes each
    prepares its clips for itself, and all take the steps together.

    Args:
        recipe: The recipe.
        seed: Of everything random.
        device: auto, cpu, cuda, ….
        cache: Whose disk must hold what is kept; nothing is written there.
        processes: Those that the run would have.
        reporter: Receives progress.

    Raises:
        PhyscliError: whatever would stop the run.
    """
    reporter = reporter if processes.is_main else Reporter()
    chosen = pick_device("cpu" if on_cpu(device) else device)
    alone = Processes.alone()
    with tempfile.TemporaryDirectory(prefix="physcli-dry-run-") as name:
        temporary = Path(name)
        training, held_out, num_clips = _some_clips(recipe, temporary, alone, reporter)
        start = time.perf_counter()
        trainee = build_trainee(recipe, training, held_out, seed, temporary / "cache", chosen, alone, Reporter())
        built = time.perf_counter() - start
        trained = sum(p.numel() for p in trainee.parameters() if p.requires_grad)
        whole = sum(p.numel() for p in trainee.parameters())
        step_seconds = time_steps(trainee, recipe.train, device=device, seed=seed, folder=temporary)
        stored = {
            kind: sum(path.stat().st_size for path in (temporary / "cache" / kind).rglob("*.safetensors"))
            for kind in ("latents", "text", "features")
        }
    samples = recipe.train.steps * recipe.train.accumulate * recipe.train.batch_size * processes.count
    windows = min(trainee.num_windows * num_clips, samples)  # only what is drawn is computed
    # Validation keeps latents as training does (one clip here), but no features.
    share = windows / (2 * trainee.num_windows) if windows else 0
    cache_bytes = share * (stored["latents"] + stored["text"] + 2 * stored["features"])
    return Plan(
        device=str(chosen),
        trained=trained,
        num_clips=num_clips,
        windows=windows,
        cache_bytes=cache_bytes,
        cache_seconds=built * share,
        step_seconds=step_seconds,
        memory_bytes=peak_memory(chosen),
        checkpoint_bytes=4 * (whole + (_FLOATS_IN_A_CHECKPOINT - 1 + bool(recipe.train.ema)) * trained),
        free_bytes=shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free,
    )


def _some_clips(
    recipe: AnyRecipe, temporary: Path, processes: Processes, reporter: Reporter
) -> tuple[list[Clip], list[Clip], int]:
    """One clip to train on and one held out, and how many there would be."""
    data = recipe.data
    num_test = suite_size(data.source)
    if num_test is not None:
        settings = SimulateSettings(
            num_train=2, num_test=2, scenarios=("roll",), purpose=data.purpose, impossible=twins_wanted(recipe)
        )
        simulate(settings, out=temporary / "clips", workers=1)
        clips = read_dataset(temporary / "clips").clips
        by_split = [[clip for clip in clips if clip.split == split] for split in ("train", "test")]
        count = 3 * num_test if data.limit is None else min(data.limit, 3 * num_test)
        reporter.note(f"{count:,} clips to train on, {num_test:,} held out (by their splits).")
        return by_split[0][:1], by_split[1][:1], count
    training, held_out = read_clips(
        data,
        cache=temporary,
        processes=processes,
        reporter=reporter,
        captions=reads_captions(recipe),
        impossible=twins_wanted(recipe),
    )
    frames = getattr(recipe.objective, "frames", 1)
    return _first_usable(training, frames, reporter), _first_usable(held_out, frames, reporter), len(training)


def _first_usable(clips: Sequence[Clip], num_frames: int, reporter: Reporter) -> list[Clip]:
    """The first clip that decodes and is long enough; none of none.

    Raises:
        DataError: none of them is.
    """
    for clip in clips:
        try:
            found = len(clip.read())
        except DataError as error:
            reporter.warn(f"Left out: {clip.path}: {error.received}")
        else:
            if found >= num_frames:
                return [clip]
            reporter.warn(f"Left out: {clip.path}: {found} frames, and a window has {num_frames}.")
    if clips:
        raise DataError(
            f"Not one of {len(clips)} clips can be used.",
            expected=f"clips that decode, of at least {num_frames} frames",
            fix="run `physcli data inspect` on them",
        )
    return []


def time_steps(trainee: Steps, settings: Train, *, device: str, seed: int, folder: Path, steps: int = 2) -> float:
    """Take the first steps of a run; seconds of the last of them. The first also allocates.

    Args:
        trainee: What is trained; its weights change.
        settings: The recipe's `train`.
        device: auto, cpu, cuda, ….
        seed: Of dropout.
        folder: Where trackers would write.
        steps: How many.

    Raises:
        PhyscliError: whatever would stop the run.
    """
    accelerator = build_accelerator(settings, device=device, folder=folder)
    optimizer_step = OptimizerStep(trainee, settings, accelerator, seed=seed)
    seconds = 0.0
    for number in range(steps):
        start = time.perf_counter()
        micro_steps = range(number * settings.accumulate, (number + 1) * settings.accumulate)
        optimizer_step((trainee.batch(optimizer_step.samples(each), number) for each in micro_steps), number)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize(accelerator.device)
        seconds = time.perf_counter() - start
    return seconds
