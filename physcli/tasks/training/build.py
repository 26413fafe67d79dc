"""From a recipe to what is trained: the models it names, and the trainee that joins them with the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from physcli.data.clips import Clip
from physcli.errors import ModelError, UsageError
from physcli.methods.moalign import MotionProjector
from physcli.models import BUILT_IN, loading
from physcli.models.encoders.videomae import VideoMAE
from physcli.models.tiny import architecture, asset_folder, build_cogvideox, build_videomae
from physcli.progress import Reporter
from physcli.recipe import (
    Alignment,
    AnyRecipe,
    EncoderRecipe,
    GeneratorRecipe,
    MoAlign,
    MotionFieldRecipe,
    MotionProjectorRecipe,
    VaeRecipe,
)
from physcli.tasks.processes import Processes
from physcli.tasks.training.clips import ClipReader
from physcli.tasks.training.encoder import EncoderTrainee
from physcli.tasks.training.generator import GeneratorTrainee
from physcli.tasks.training.motion import FieldTrainee, MotionProjectorTrainee
from physcli.tasks.training.signals import hash_module
from physcli.tasks.training.trainee import Trainee
from physcli.tasks.training.vae import VaeTrainee


def build_trainee(
    recipe: AnyRecipe,
    training: list[Clip],
    held_out: list[Clip],
    seed: int,
    cache: Path,
    device: torch.device,
    processes: Processes,
    reporter: Reporter,
) -> Trainee:
    """What a recipe trains, with its data: models loaded, latents and whatever else it reads computed.

    Args:
        recipe: The recipe.
        training: Clips to train on.
        held_out: Clips to validate on.
        seed: Of everything random.
        cache: What is computed is kept here.
        device: Where frozen models run.
        processes: Each computes its part.
        reporter: Receives progress.

    Raises:
        UsageError: a model of the wrong kind, or a recipe that does not fit it.
        ModelError: a model that does not load.
        DataError: clips that cannot be used, or a full disk.
    """

    def reader(size: tuple[int, int]) -> ClipReader:
        return ClipReader(
            training,
            size=size,
            seed=seed,
            memory_gb=recipe.data.memory_gb,
            max_bad=recipe.data.max_bad,
            reporter=reporter,
        )

    _refuse_contradictions(recipe)
    common: dict[str, Any] = {"training": training, "held_out": held_out, "seed": seed, "cache": cache}
    common |= {"processes": processes, "reporter": reporter}
    if isinstance(recipe, MotionProjectorRecipe):
        return MotionProjectorTrainee(_frozen_encoder(recipe.model, "--model ", device), recipe=recipe, **common)
    if isinstance(recipe, EncoderRecipe):
        encoder = _encoder(recipe)
        height, width = encoder.preprocessing.height, encoder.preprocessing.width
        return EncoderTrainee(
            encoder,
            reader=reader((height or 224, width or 224)),
            held_out=held_out,
            objective=recipe.objective,
            seed=seed,
        )
    generator = _generator(recipe)
    if isinstance(recipe, VaeRecipe):
        return VaeTrainee(
            generator.vae,
            reader=reader(generator.native_size),
            held_out=held_out,
            objective=recipe.objective,
            steps=recipe.train.steps,
            seed=seed,
            subject=recipe.model,
        )
    generator.place(device)
    if isinstance(recipe, MotionFieldRecipe):
        return FieldTrainee(generator, recipe=recipe, **common)
    teacher, head = _teacher(recipe, device)
    trainee = GeneratorTrainee(generator, recipe=recipe, teacher=teacher, head=head, **common)
    if not any(parameter.requires_grad for parameter in trainee.parameters()):
        raise UsageError(
            f"freeze=true with method.name={recipe.method.name}: nothing is left to train.",
            expected="a method that has a projector",
            fix="leave freeze out",
        )
    return trainee


def _refuse_contradictions(recipe: AnyRecipe) -> None:
    if not isinstance(recipe, GeneratorRecipe):
        return
    for first, other in (
        ((recipe.freeze, "freeze=true"), (recipe.lora is not None, "lora")),
        ((recipe.freeze, "freeze=true"), (recipe.objective.text_encoder, "objective.text_encoder=true")),
        # An adapter holds the transformer's updates alone.
        ((recipe.objective.text_encoder, "objective.text_encoder=true"), (recipe.lora is not None, "lora")),
    ):
        if first[0] and other[0]:
            raise UsageError(
                f"{first[1]} with {other[1]}.", expected="one of them", fix=f"leave {first[1]} or {other[1]} out"
            )


def _teacher(recipe: GeneratorRecipe, device: torch.device) -> tuple[Any, nn.Module | None]:
    """The frozen encoder of the recipe's method and what maps its tokens further, each None if there is none."""
    method = recipe.method
    if not isinstance(method, Alignment):
        return None, None
    teacher = _frozen_encoder(method.teacher, "method.teacher=", device)
    if not isinstance(method, MoAlign):
        return teacher, None
    folder = _part_folder(method.motion_projector, "motion_projector")
    try:
        projector = MotionProjector.load(folder)
    except ValueError as error:
        raise ModelError(
            f"method.motion_projector={method.motion_projector}: {error}.", expected="a whole one"
        ) from error
    if projector.info.get("encoder_weights") != hash_module(teacher):
        raise UsageError(
            f"The motion projector {folder} was trained on another encoder than {method.teacher}: "
            f"{projector.info.get('encoder')}.",
            expected="the encoder it was trained on",
            fix="give method.teacher, or train a projector with --recipe moalign-motion",
        )
    seen, view = projector.info.get("view"), method.view.model_dump(mode="json")
    if seen != view:
        raise UsageError(
            f"The motion projector {folder} saw clips as {seen}, and method.view is {view}.", expected="the same view"
        )
    return teacher, projector.to(device).eval().requires_grad_(False)


def _frozen_encoder(name: str, said: str, device: torch.device) -> Any:
    encoder: Any = loading.load(name, device=device, dtype="float32")
    if encoder.kind != "encoder":
        raise UsageError(f"{said}{name} is a generator.", expected="an encoder")
    return encoder.requires_grad_(False)


def _part_folder(name: str, part: str) -> Path:
    """A motion projector: one of the package's, that of a run, or the folder itself."""
    if Path(name).name == name and (shipped := asset_folder(name)) is not None:
        return shipped
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"{part}: {name} is not there.",
            expected="the run of `physcli finetune --recipe moalign-motion`, or its motion_projector/",
            fix="train one first, or name it: method.motion_projector=DIR",
        )
    return folder / part if (folder / part).is_dir() else folder


@contextmanager
def _explain_architecture() -> Iterator[None]:
    """Whatever diffusers and transformers say of a wrong architecture is the recipe's fault."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UsageError(
            f"The recipe's architecture cannot be built: {reason}.",
            expected="every part's config, as in pretrain/cogvideox-tiny or pretrain/videomae-tiny",
        ) from error


def _encoder(recipe: EncoderRecipe) -> Any:
    encoder: Any
    if recipe.init == "random":
        with _explain_architecture():
            encoder = build_videomae(recipe.architecture or architecture(recipe.model))
        encoder.name = recipe.model
        return encoder
    encoder = loading.load(recipe.model, device="cpu", dtype="float32")
    if not isinstance(encoder, VideoMAE):
        raise UsageError(f"--model {recipe.model} is not a VideoMAE encoder.", expected="videomae-tiny or a folder")
    return encoder


def _generator(recipe: VaeRecipe | GeneratorRecipe | MotionFieldRecipe) -> Any:
    """The generator on the CPU in float32, with the recipe's VAE."""
    from physcli.models.cogvideox import CogVideoX

    generator: Any
    if recipe.init == "random":
        with _explain_architecture():
            pipeline = build_cogvideox(recipe.architecture or architecture(recipe.model))
        generator = CogVideoX(pipeline, name=recipe.model, random_init=True)
    else:
        generator = loading.load(recipe.model, device="cpu", dtype="float32")
        if generator.kind != "generator":
            raise UsageError(f"--model {recipe.model} is an encoder.", expected="a generator")
    if isinstance(recipe, GeneratorRecipe) and recipe.vae is not None:
        generator.use_vae(_vae_folder(recipe.vae))
    return generator


def _vae_folder(name: str) -> Path:
    """The VAE of a built-in model, of a run or pipeline folder, or the folder itself."""
    if name in BUILT_IN:
        folder = asset_folder(name)
        if folder is None:
            raise ModelError(f"vae: {name} has no trained weights yet.", expected="a folder", fix="train one first")
        return folder / "vae"
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"vae: {name} is not there.", expected="a built-in name or an existing folder")
    return folder / "vae" if (folder / "vae").is_dir() else folder
