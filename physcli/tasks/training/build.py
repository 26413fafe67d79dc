"""From a recipe to what is trained: the models it names, and the trainee that joins them with the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from physcli.data.clips import Clip
from physcli.errors import ModelError, UsageError, unknown
from physcli.methods.moalign import MotionProjector
from physcli.models import BUILT_IN, GENERATORS, loading, names
from physcli.models.encoders.base import Encoder
from physcli.models.encoders.videomae import VideoMAE, build_videomae
from physcli.models.features import check_taps
from physcli.models.fingerprints import hash_module
from physcli.models.generator import Generator
from physcli.models.names import part_folder
from physcli.models.raters.mplug_owl_video import MplugOwlVideo, build_rater, load_rater
from physcli.models.tiny import architecture, asset_part
from physcli.progress import Reporter
from physcli.recipe import (
    Alignment,
    AnyRecipe,
    Critic,
    EncoderRecipe,
    GeneratorRecipe,
    MethodSettings,
    MoAlign,
    MotionFieldRecipe,
    MotionProjectorRecipe,
    RaterRecipe,
    Rounds,
    VaeRecipe,
    VideoJam,
)
from physcli.simulation.violations import KINDS
from physcli.tasks.processes import Processes
from physcli.tasks.training.clips import ClipReader
from physcli.tasks.training.compute import OnDemand, Signal
from physcli.tasks.training.encoder import EncoderTrainee
from physcli.tasks.training.generator import GeneratorTrainee
from physcli.tasks.training.material import Material, Source
from physcli.tasks.training.motion import FieldTrainee, MotionProjectorTrainee
from physcli.tasks.training.rater import RaterTrainee, twins_of
from physcli.tasks.training.rater_samples import SampledVideo, sampled_videos
from physcli.tasks.training.reward import RewardsJudge, RewardTrainee
from physcli.tasks.training.scoring import Judge, LawsJudge, OcpJudge, asked_of
from physcli.tasks.training.signals import (
    Prompts,
    flow_of,
    latents_of,
    motion_channels,
    motion_of,
    saliency_of,
    teacher_of,
)
from physcli.tasks.training.trainee import Trainee
from physcli.tasks.training.vae import VaeTrainee

# Recipes whose training reads what is computed of clips before.
Precomputed = GeneratorRecipe | MotionFieldRecipe | MotionProjectorRecipe

_HELD_OUT = {"generator": 64, "motion-field": 256, "motion-projector": 256}  # clips, at most


@dataclass(frozen=True)
class Prepared:
    """What a recipe reads of its clips, computed, and the models that did it, whose memory was given back.

    Attributes:
        material: Windows with their signals.
        generator: Where the recipe has one: its weights are read part by part, when they are needed.
        prompts: Of the generator.
        encoder: Fingerprint of the frozen encoder, where there is one.
    """

    material: Material
    generator: Generator | None = None
    prompts: Prompts | None = None
    encoder: str = ""


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
    """What a recipe trains, with its data: latents and whatever else it reads computed, then the models loaded.

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
        DataError: clips that cannot be used, or a disk that is full or too small.
    """

    def reader(size: tuple[int, int], clips: Sequence[Clip] = training) -> ClipReader:
        return ClipReader(
            clips,
            size=size,
            seed=seed,
            memory_gb=recipe.data.memory_gb,
            max_bad=recipe.data.max_bad,
            reporter=reporter,
        )

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
    if isinstance(recipe, RaterRecipe):
        rater = _rater(recipe)
        size = rater.config.vision.image_size

        def sampled(clips: Sequence[Clip], most: int) -> list[SampledVideo]:
            return sampled_videos(
                recipe.objective.sampled_from,
                clips,
                most,
                steps=recipe.objective.sample_steps,
                seed=seed,
                cache=cache,
                device=device,
                processes=processes,
                reporter=reporter,
            )

        some = recipe.objective.sampled > 0
        return RaterTrainee(
            rater,
            reader=reader((size, size)),
            twins=reader((size, size), twins_of(training)),
            sampled=sampled(training, recipe.objective.num_sampled) if some else [],
            held_out=held_out,
            held_out_sampled=sampled(held_out, recipe.objective.validated) if some else [],
            objective=recipe.objective,
            seed=seed,
        )
    if isinstance(recipe, VaeRecipe):
        generator = _generator(recipe, parts=("vae",), reporter=reporter)
        return VaeTrainee(
            generator,
            reader=reader(generator.facts.size),
            held_out=held_out,
            objective=recipe.objective,
            steps=recipe.train.steps,
            seed=seed,
            subject=recipe.model,
        )
    if isinstance(recipe, GeneratorRecipe) and isinstance(recipe.method, Rounds):
        _refuse_contradictions(recipe)
        generator = _generator(recipe, parts=("vae", "text_encoder"), reporter=reporter)
        generator.place(device)
        _check_fit(recipe, generator)
        generator.need("transformer", dtype=getattr(torch, recipe.lora.base_dtype) if recipe.lora else None)
        return RewardTrainee(
            generator,
            recipe=recipe,
            training=training,
            held_out=held_out,
            seed=seed,
            judge=_judge(recipe, generator, held_out, seed, cache, processes, reporter),
            processes=processes,
        )
    num_samples = recipe.train.steps * recipe.train.accumulate * recipe.train.batch_size * processes.count
    source = Source(training, held_out, recipe.data, seed, num_samples, cache, processes, reporter)
    made = prepare(recipe, source, device)
    if isinstance(recipe, MotionProjectorRecipe):
        return MotionProjectorTrainee(made.encoder, recipe=recipe, material=made.material, seed=seed)
    assert made.prompts is not None
    assert made.generator is not None
    if isinstance(recipe, MotionFieldRecipe):
        return FieldTrainee(made.generator, recipe=recipe, material=made.material, prompts=made.prompts, seed=seed)
    made.generator.need("transformer", dtype=getattr(torch, recipe.lora.base_dtype) if recipe.lora else None)
    trainee = GeneratorTrainee(
        made.generator,
        recipe=recipe,
        material=made.material,
        prompts=made.prompts,
        critic=_critic(recipe, made.generator, reporter) if isinstance(recipe.method, Critic) else None,
        seed=seed,
        judge=_judge(recipe, made.generator, held_out, seed, cache, processes, reporter),
        reporter=reporter,
    )
    if not any(parameter.requires_grad for parameter in trainee.parameters()):
        raise UsageError(
            f"freeze=true with method.name={recipe.method.name}: nothing is left to train.",
            expected="a method that has a projector",
            fix="leave freeze out",
        )
    return trainee


def _critic(recipe: GeneratorRecipe, generator: Generator, reporter: Reporter) -> Generator:
    """The frozen generator that looks at predictions.

    Raises:
        UsageError: none to begin with, or one of other latents or other text.
    """
    assert isinstance(recipe.method, Critic)
    if recipe.method.critic is None and recipe.init == "random":
        raise UsageError(
            "method.name=critic with init=random, and no method.critic: there is nothing to look with.",
            expected="a trained generator of the same latents",
            fix="name it: method.critic=NAME",
        )
    name = recipe.method.critic or recipe.model
    critic = loading.load_generator(
        name, what="method.critic=", device=generator.device, dtype="float32", reporter=reporter
    )
    critic.merge_adapter()
    parts = ("vae",) if recipe.objective.text_encoder else ("vae", "text_encoder")
    for part in parts:
        if critic.fingerprint(part) != generator.fingerprint(part):
            raise UsageError(
                f"method.critic={name} has another {part} than {generator.name}.",
                expected="a generator of the same latents and text",
            )
    critic.release("vae", "text_encoder")
    critic.network.requires_grad_(False).eval()
    return critic


def _judge(
    recipe: GeneratorRecipe,
    generator: Generator,
    held_out: Sequence[Clip],
    seed: int,
    cache: Path,
    processes: Processes,
    reporter: Reporter,
) -> Judge | None:
    """What scores the generator while it is trained, if anything does.

    Raises:
        UsageError: a judge that cannot judge these clips, or has no such metric.
    """
    if not recipe.train.score_every:
        return None
    judge: Judge
    if recipe.scoring.judge == "ocp":
        judge = OcpJudge(recipe, generator, seed=seed, cache=cache, processes=processes, reporter=reporter)
    else:
        items = asked_of(held_out, recipe, seed=seed, default_rate_hz=generator.facts.frame_rate_hz)
        judged_by = {"laws": LawsJudge, "rewards": RewardsJudge}[recipe.scoring.judge]
        judge = judged_by(items, recipe, processes=processes)
    metric = recipe.scoring.metric
    if metric is not None and metric not in judge.metrics:
        raise unknown(f"metric of scoring.judge={recipe.scoring.judge}", metric, judge.metrics)
    return judge


def twins_wanted(recipe: AnyRecipe) -> tuple[str, ...]:
    """Kinds of impossible twins that simulated clips must have for this recipe."""
    return KINDS if isinstance(recipe, RaterRecipe) else ()


def reads_captions(recipe: AnyRecipe) -> bool:
    """Whether what clips show, in words, has a part in this recipe's training."""
    if isinstance(recipe, GeneratorRecipe):
        return recipe.objective.caption_dropout < 1
    return isinstance(recipe, MotionFieldRecipe | RaterRecipe)


def prepare(recipe: Precomputed, source: Source, device: torch.device) -> Prepared:
    """Compute what a recipe's training reads of its clips, unless it is kept already; models are loaded only for that.

    Args:
        recipe: The recipe.
        source: Its clips, and where things are kept.
        device: Where models run.

    Raises:
        UsageError: a model of the wrong kind, or a recipe that does not fit it.
        ModelError: a model that does not load.
        DataError: clips that cannot be used, or a disk that is full or too small.
    """
    if isinstance(recipe, MotionProjectorRecipe):
        encoder, objective = _frozen_encoder(recipe.model, "--model ", device), recipe.objective
        signals = {
            "tokens": teacher_of(encoder, objective.view, cache=source.store("teacher")),
            "flow": flow_of(encoder, objective.view, kind=objective.flow, cache=source.store("flow")),
        }
        return Prepared(_material(recipe, source, signals, validated=tuple(signals)), encoder=encoder.fingerprint)
    if isinstance(recipe, GeneratorRecipe) and isinstance(recipe.method, Rounds):
        raise UsageError(
            f"Nothing is computed beforehand for method.name={recipe.method.name}: it learns from videos of its own.",
            expected="a recipe that reads clips",
        )
    _refuse_contradictions(recipe)
    generator = _generator(recipe, parts=(), reporter=source.reporter)
    generator.place(device)
    prompts = Prompts(
        generator,
        cache=source.store("text"),
        room=recipe.data.memory_gb / 3,
        processes=source.processes,
        reporter=source.reporter,
    )
    signals, embedded = {"latents": latents_of(generator, cache=source.store("latents"))}, True
    if isinstance(recipe, GeneratorRecipe):
        _check_fit(recipe, generator)
        signals |= _method_signals(recipe.method, generator, source, device)
        embedded = not recipe.objective.text_encoder
    material = _material(recipe, source, signals, validated=("latents",), prompts=prompts if embedded else None)
    return Prepared(material, generator, prompts)


def _material(recipe: Precomputed, source: Source, signals: dict[str, Signal], **options: Any) -> Material:
    held_out = _HELD_OUT[recipe.trains]
    return Material(source, choice=recipe.objective, signals=signals, num_held_out=held_out, **options)


def _check_fit(recipe: GeneratorRecipe, generator: Generator) -> None:
    """Refuse what does not fit the generator before anything is computed."""
    if isinstance(recipe.method, Alignment):
        check_taps(recipe.method.taps or (), generator.num_blocks)
    if isinstance(recipe.method, VideoJam):
        generator.check_motion(motion_channels(recipe.method, generator))
    if recipe.lora is not None:
        generator.lora_layers(recipe.lora.targets)
    generator.codec.check(recipe.objective.frames, decoding=True)
    shift = recipe.objective.noise_shift
    if shift != 1 and recipe.objective.noise == "timesteps" and generator.noise.prediction != "velocity":
        raise UsageError(
            f"objective.noise_shift={shift:g} with uniform timesteps of {generator.name}, whose noise schedule has a "
            "shift of its own.",
            expected="a shift of 1",
            fix="leave it out, or use objective.noise=sigmas",
        )


def _method_signals(
    method: MethodSettings, generator: Generator, source: Source, device: torch.device
) -> dict[str, Signal]:
    """What a method reads of a window beside its latents."""
    if isinstance(method, VideoJam):
        return {"flow": motion_of(generator, method, cache=source.store("flow"))}
    if not isinstance(method, Alignment):
        return {}
    teacher, head = _teacher(method, device)
    if isinstance(method, MoAlign):
        source.reporter.note(f"The motion subspace is that of {method.motion_projector}.")
    makers: dict[str, Callable[..., Signal]] = {
        "teacher": partial(teacher_of, head=head),
        "saliency": saliency_of,
        "flow": flow_of,
    }
    return {
        name: makers[name](teacher, method.view, **settings, cache=source.store(name))
        for name, settings in method.signals().items()
    }


def _refuse_contradictions(recipe: Precomputed) -> None:
    if not isinstance(recipe, GeneratorRecipe):
        return
    by_reward = (isinstance(recipe.method, Rounds), f"method.name={recipe.method.name}")
    jam = (isinstance(recipe.method, VideoJam), "method.name=videojam")
    half = (recipe.lora is not None and recipe.lora.base_dtype != "float32", "lora.base_dtype of half precision")
    for first, other in (
        ((recipe.freeze, "freeze=true"), (recipe.lora is not None, "lora")),
        ((recipe.freeze, "freeze=true"), (recipe.objective.text_encoder, "objective.text_encoder=true")),
        # An adapter holds the transformer's updates alone.
        ((recipe.objective.text_encoder, "objective.text_encoder=true"), (recipe.lora is not None, "lora")),
        (half, jam),  # the layers at the ends are trained whole, and steps of theirs vanish in half precision
        ((recipe.train.compile, "train.compile=true"), by_reward),
        ((recipe.freeze, "freeze=true"), by_reward),
        ((recipe.objective.text_encoder, "objective.text_encoder=true"), by_reward),
    ):
        if first[0] and other[0]:
            raise UsageError(
                f"{first[1]} with {other[1]}.", expected="one of them", fix=f"leave {first[1]} or {other[1]} out"
            )


def _teacher(method: Alignment, device: torch.device) -> tuple[OnDemand, nn.Module | None]:
    """The frozen encoder of the recipe's method and what maps its tokens further, if anything does."""
    teacher = _frozen_encoder(method.teacher, "method.teacher=", device)
    if not isinstance(method, MoAlign):
        return teacher, None
    folder = part_folder(method.motion_projector, "motion_projector", "method.motion_projector=")
    try:
        projector = MotionProjector.load(folder)
    except ValueError as error:
        raise ModelError(
            f"method.motion_projector={method.motion_projector}: {error}.", expected="a whole one"
        ) from error
    # By its files; or, without files or in others, by its weights in memory.
    known = projector.info.get("encoder_weights")
    if known != teacher.fingerprint and known != hash_module(teacher.get()):
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


def _frozen_encoder(name: str, said: str, device: torch.device) -> OnDemand:
    resolved = names.fetch(names.resolve(name))
    if resolved.kind != "encoder":
        raise UsageError(f"{said}{name} is a generator.", expected="an encoder")

    def load() -> Encoder:
        return loading.load_encoder(resolved, device=device, dtype="float32").requires_grad_(False)

    return OnDemand(names.fingerprint(resolved), load)


@contextmanager
def _explain_architecture() -> Iterator[None]:
    """Whatever diffusers and transformers say of a wrong architecture is the recipe's fault."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UsageError(
            f"The recipe's architecture cannot be built: {reason}.",
            expected="every part's config, as in the recipes in pretrain/",
        ) from error


def _encoder(recipe: EncoderRecipe) -> VideoMAE:
    if recipe.init == "random":
        with _explain_architecture():
            built = build_videomae(recipe.architecture or architecture(recipe.model))
        built.name = recipe.model
        return built
    encoder = loading.load(recipe.model, device="cpu", dtype="float32")
    if not isinstance(encoder, VideoMAE):
        raise UsageError(f"--model {recipe.model} is not a VideoMAE encoder.", expected="videomae-tiny or a folder")
    return encoder


def _rater(recipe: RaterRecipe) -> MplugOwlVideo:
    if recipe.init == "random":
        with _explain_architecture():
            rater = build_rater(recipe.architecture or architecture(recipe.model))
        rater.name = recipe.model
        return rater
    return load_rater(recipe.model, device="cpu", dtype="float32")


def _generator(
    recipe: VaeRecipe | GeneratorRecipe | MotionFieldRecipe, *, parts: Sequence[str], reporter: Reporter
) -> Generator:
    """The generator on the CPU in float32, with the recipe's VAE; of one that is in files, these parts are read."""
    adapter, scale = (recipe.adapter, recipe.adapter_scale) if isinstance(recipe, GeneratorRecipe) else (None, 1.0)
    if recipe.init == "random":
        if adapter is not None or scale != 1:
            raise UsageError("adapter or adapter_scale with init=random.", expected="a model that it was trained on")
        with _explain_architecture():
            given = dict(recipe.architecture)
            family = given.pop("family", BUILT_IN[recipe.model].family if recipe.model in BUILT_IN else "cogvideox")
            if family not in GENERATORS:
                raise unknown("family", str(family), GENERATORS)
            built = names.import_class(GENERATORS[family])
            generator: Generator = built.build(given or architecture(recipe.model), name=recipe.model)
    else:
        resolved = names.resolve(recipe.model, adapter=adapter, adapter_scale=scale)
        generator = loading.load_generator(resolved, device="cpu", dtype="float32", parts=parts, reporter=reporter)
        if generator.has_adapter and isinstance(recipe, GeneratorRecipe) and recipe.lora is not None:
            has = "which has a LoRA itself" if adapter is None else f"on which adapter={adapter} lies"
            raise UsageError(
                f"lora with --model {recipe.model}, {has}: what both lie on would be in no file.",
                expected="a whole model",
                fix="leave lora out: the first one is merged then",
            )
        generator.merge_adapter()
    if isinstance(recipe, GeneratorRecipe) and recipe.vae is not None:
        generator.use_vae(_folder_of(recipe.vae, "vae"))
    if isinstance(recipe, GeneratorRecipe) and recipe.text_encoder is not None:
        generator.use_text_encoder(_folder_of(recipe.text_encoder, "text_encoder"))
    return generator


def _family_of(architecture: Mapping[str, Any] | None) -> str:
    """The family that an architecture of a recipe is of: it names it, or is CogVideoX's, as all once were."""
    return str((architecture or {}).get("family", "cogvideox"))


def _folder_of(name: str, part: str) -> Path:
    """A part of a built-in model, of a run or pipeline folder, or the folder itself."""
    if name in BUILT_IN:
        shipped = asset_part(name, part)
        if shipped is None:
            raise ModelError(f"{part}: {name} has no trained weights yet.", expected="a folder", fix="train one first")
        return shipped
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"{part}: {name} is not there.", expected="a built-in name or an existing folder")
    return next((inner for inner in (folder / part, folder / "model" / part) if inner.is_dir()), folder)
