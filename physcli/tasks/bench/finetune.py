"""`physcli bench finetune`: what a training step costs with each method, beside a step with none."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from physcli.data.clips import read_dataset
from physcli.errors import UsageError, unknown
from physcli.methods.moalign import MotionProjector
from physcli.models import loading
from physcli.models.device import peak_memory
from physcli.models.fingerprints import hash_module
from physcli.progress import Reporter
from physcli.recipe import GeneratorRecipe, MoAlign, MotionProjectorRecipe, Train, list_recipes, read_recipe
from physcli.simulation.types import SCENARIOS
from physcli.tasks.bench.timing import alternate, ratio, row
from physcli.tasks.processes import Processes, on_cpu
from physcli.tasks.simulate import SimulateSettings, simulate
from physcli.tasks.training.build import build_trainee
from physcli.tasks.training.denoising import MEASURE_EVERY, DenoisingSteps
from physcli.tasks.training.loop import build_accelerator
from physcli.tasks.training.optimization import block_matrices, build_optimizer
from physcli.tasks.training.step import OptimizerStep, to_device
from physcli.tasks.training.trainee import Steps

CONTROL = "sft"
DEFAULT_MODEL = "cogvideox-tiny"

Build = Callable[[GeneratorRecipe], DenoisingSteps]


def bench_finetune(
    *,
    model: str = DEFAULT_MODEL,
    methods: Sequence[str] = (),
    overrides: Sequence[str] = (),
    rounds: int = 15,
    device: str = "auto",
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Time real training steps on a few simulated clips, latents and teacher features being cached.

    Args:
        model: A generator; where no packaged recipe is for it, those of the embedded default are taken.
        methods: Names of recipes, as `recipes_for` gives them; all by default.
        overrides: `key=value`, for every recipe.
        rounds: Timed steps of each kind.
        device: auto, cpu, cuda, ….
        seed: Of clips, noise and projectors.
        reporter: Receives progress.

    Returns:
        Rows of `time_methods`.

    Raises:
        PhyscliError: whatever would stop a run of these recipes.
    """
    reporter = reporter or Reporter()
    chosen = loading.pick_device("cpu" if on_cpu(device) else device)
    with tempfile.TemporaryDirectory(prefix="physcli-bench-") as name:
        temporary = Path(name)
        settings = SimulateSettings(num_train=2 * len(SCENARIOS), num_test=2, purpose="finetune", seed=seed)
        simulate(settings, out=temporary / "clips", workers=1)
        clips = read_dataset(temporary / "clips").clips
        training, held_out = ([clip for clip in clips if clip.split == split] for split in ("train", "test"))

        def build(recipe: GeneratorRecipe) -> DenoisingSteps:
            if isinstance(recipe.method, MoAlign):
                folder = _random_motion_projector(recipe.method, temporary / "motion_projector")
                recipe = recipe.model_copy(
                    update={"method": recipe.method.model_copy(update={"motion_projector": str(folder)})}
                )
                reporter.note(
                    "MoAlign's motion projector has random weights: no step runs it, and its width alone matters."
                )
            trainee = build_trainee(
                recipe, training, held_out, seed, temporary / "cache", chosen, Processes(device), Reporter()
            )
            assert isinstance(trainee, DenoisingSteps)
            return trainee

        recipes = recipes_for(model, methods, overrides)
        return time_methods(recipes, build, subject=model, rounds=rounds, device=chosen, reporter=reporter)


def recipes_for(model: str, methods: Sequence[str] = (), overrides: Sequence[str] = ()) -> dict[str, GeneratorRecipe]:
    """The packaged recipes that fine-tune a generator, by name; of a hub model without its size (`repa` for `repa-2b`;
    what has another ending, such as `repa-2b-lora`, is left out).

    Args:
        model: Its own recipes, or those of the embedded default where it has none.
        methods: The wanted ones; all by default. The control is always among them.
        overrides: `key=value`, for each.

    Raises:
        UsageError: a method without such a recipe, or overrides that do not fit.
    """
    every = {name: read_recipe(name) for name in list_recipes()}
    of_model: dict[str, list[str]] = {model: [], DEFAULT_MODEL: []}
    for name, recipe in every.items():
        if isinstance(recipe, GeneratorRecipe) and recipe.init == "pretrained" and recipe.model in of_model:
            of_model[recipe.model].append(name)
    names = of_model[model] or of_model[DEFAULT_MODEL]
    size = min((name for name in names if name.startswith(CONTROL)), key=len).removeprefix(CONTROL)
    found = {name.removesuffix(size): name for name in names if name.endswith(size)}
    for method in methods:
        if method not in found:
            raise unknown("method", method, found)
    changes = [f"model={json.dumps(model)}", *overrides]
    recipes = {}
    for method in dict.fromkeys([CONTROL, *(methods or found)]):
        recipe = read_recipe(found[method], changes)
        assert isinstance(recipe, GeneratorRecipe)
        recipes[method] = recipe
    return recipes


def time_methods(
    recipes: Mapping[str, GeneratorRecipe],
    build: Build,
    *,
    subject: str,
    rounds: int,
    device: torch.device,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Time a step (forward, backward, clipping, optimizer) of every method in turn with one of the control.

    Args:
        recipes: Name → recipe, the control's among them.
        build: What a recipe trains.
        subject: The model, for the rows.
        rounds: Timed steps of each kind.
        device: Where to train.
        reporter: Receives progress.

    Returns:
        Of each method `step_over_sft`, `measured_over_sft` (a step that also compares the gradients of the two
        losses), `average_over_sft` (one step in MEASURE_EVERY is such a one), `seconds_per_step` and `trained`
        parameters; of all `peak_memory_gb`, in 10⁹ bytes.
    """
    rows = []

    def add(group: str, metric: str, value: float, higher: bool | None = False) -> None:
        rows.append(row("finetune", subject, group, metric, value, rounds, higher))

    control = build(recipes[CONTROL])
    others = [name for name in recipes if name != CONTROL]
    with reporter.bar(f"Timing {subject}", max(1, len(others)), "method") as bar:
        for name in others or [CONTROL]:
            trainee = build(recipes[name]) if others else control
            sides = steps_of(control, trainee, recipes[name].train, device=str(device))
            seconds = alternate(sides if others else {"control": sides["control"]}, rounds)
            if others:
                plain, measured = (ratio(seconds[side], seconds["control"]) for side in ("plain", "measured"))
                add(name, "step_over_sft", plain)
                add(name, "measured_over_sft", measured)
                add(name, "average_over_sft", plain + (measured - plain) / MEASURE_EVERY)
                add(name, "seconds_per_step", statistics.median(seconds["plain"]))
                add(name, "trained", _count(trainee), None)
            bar.advance()
    add(CONTROL, "seconds_per_step", statistics.median(seconds["control"]))
    add(CONTROL, "trained", _count(control), None)
    add("all", "peak_memory_gb", peak_memory(device) / 1e9)
    return rows


def steps_of(control: Steps, trainee: Steps, settings: Train, *, device: str) -> dict[str, Callable[[], None]]:
    """A training step of the control, one of the method, and one of the method that also compares gradients.

    One optimizer serves all: it passes over what got no gradient, and where both trainees share a transformer, its
    moments exist once.

    Args:
        control: What is fine-tuned by no method.
        trainee: What is fine-tuned by the method, or the control again.
        settings: Of the method's recipe.
        device: auto, cpu, cuda, ….
    """
    accelerator = build_accelerator(settings, device=device)
    parameters = dict.fromkeys([*control.parameters(), *trainee.parameters()])
    optimizer = build_optimizer(
        parameters,
        settings.optimizer,
        accelerator.device,
        groups=trainee.parameter_groups(),
        matrices=[*block_matrices(control), *block_matrices(trainee)],
    )

    def step(optimizer_step: OptimizerStep, side: Steps, number: int) -> Callable[[], None]:
        batches = [
            to_device(side.batch(optimizer_step.samples(part), number), accelerator.device)
            for part in range(settings.accumulate)
        ]

        def run() -> None:
            optimizer_step(batches, number)

        return run

    of_control, of_method = (
        OptimizerStep(side, settings, accelerator, seed=0, optimizer=optimizer) for side in (control, trainee)
    )
    return {
        "control": step(of_control, control, 1),
        "plain": step(of_method, trainee, 1),
        "measured": step(of_method, trainee, 0),
    }


def _count(trainee: DenoisingSteps) -> int:
    return sum(p.numel() for p in trainee.parameters() if p.requires_grad)


def motion_stage(method: MoAlign) -> MotionProjectorRecipe:
    """The packaged recipe of MoAlign's stage 1 on the method's teacher."""
    for name in list_recipes():
        recipe = read_recipe(name)
        if isinstance(recipe, MotionProjectorRecipe) and recipe.model == method.teacher:
            return recipe
    raise UsageError(f"No packaged recipe trains a motion projector on {method.teacher}.", fix="leave MoAlign out")


def _random_motion_projector(method: MoAlign, folder: Path) -> Path:
    """A motion projector for the method's teacher, as wide as its packaged stage 1 makes it, with random weights."""
    teacher: Any = loading.load(method.teacher, device="cpu", dtype="float32")
    stage = motion_stage(method)
    sizes = stage.objective.model_dump(include={"dim", "hidden_dim", "num_layers", "kernel"})
    projector = MotionProjector(in_dim=teacher.hidden_size, **sizes)
    projector.info = {
        "encoder": f"{method.teacher}, random weights",
        "encoder_weights": hash_module(teacher),
        "view": method.view.model_dump(mode="json"),
    }
    projector.save(folder)
    return folder
