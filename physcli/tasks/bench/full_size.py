"""`physcli bench finetune --full-size …`: training steps of the published architectures, without their weights.

Time and memory of a step depend on shapes, not on values. So the transformer is built from its configuration with
random weights, and latents, text and teacher features are random numbers of the shapes that a cache would give. VAE,
text encoder and teacher have no part in a step and are not there.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

from physcli.errors import UsageError, unknown
from physcli.hashing import seeded
from physcli.models import device as devices
from physcli.models.cogvideox import CogVideoX
from physcli.models.diffusers_generator import DiffusersGenerator
from physcli.models.features import check_taps
from physcli.models.generator import Generator
from physcli.models.parts import cast_part
from physcli.models.wan import Wan
from physcli.progress import Reporter
from physcli.recipe import Alignment, Critic, GeneratorRecipe, MoAlign, TeacherView, VideoJam
from physcli.tasks.bench.finetune import motion_stage, recipes_for, time_methods
from physcli.tasks.processes import on_cpu
from physcli.tasks.training.alignment import JointMotion, build_method
from physcli.tasks.training.clips import noise_of, rng_of
from physcli.tasks.training.denoising import TOLD, DenoisingSteps
from physcli.tasks.training.signals import motion_channels


@dataclass(frozen=True)
class Checkpoint:
    """A published generator: its hub id, the adapter of its family, its network, its native size (height, width), and
    where its network's configuration differs from diffusers' defaults; `others` makes the parts that have no part in a
    step, small ones with the checkpoint's strides and scales; `recipes`: the model with whose recipes it is timed,
    where it has none itself."""

    model: str
    family: type[DiffusersGenerator]
    network: Any
    size: tuple[int, int]
    others: Callable[[], tuple[Any, dict[str, Any]]]  # the pipeline's class, its VAE and its scheduler
    config: dict[str, Any] = field(default_factory=dict)
    recipes: str = ""


def _cogvideox(scaling_factor: float, snr_shift_scale: float) -> tuple[Any, dict[str, Any]]:
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=8,
        layers_per_block=1,
        latent_channels=16,
        scaling_factor=scaling_factor,
    )
    scheduler = CogVideoXDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        snr_shift_scale=snr_shift_scale,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    return CogVideoXPipeline, {"vae": vae, "scheduler": scheduler}


def _wan() -> tuple[Any, dict[str, Any]]:
    vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1)  # strides and moments are the defaults
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline, {"vae": vae, "scheduler": scheduler}


CHECKPOINTS: dict[str, Checkpoint] = {
    # diffusers' defaults are CogVideoX-2B's, and Wan 14B's.
    "2b": Checkpoint(
        "zai-org/CogVideoX-2b",
        CogVideoX,
        CogVideoXTransformer3DModel,
        (480, 720),
        functools.partial(_cogvideox, 1.15258426, 3.0),
    ),
    "5b": Checkpoint(
        "zai-org/CogVideoX-5b",
        CogVideoX,
        CogVideoXTransformer3DModel,
        (480, 720),
        functools.partial(_cogvideox, 0.7, 1.0),
        {"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True},
    ),
    "wan-1.3b": Checkpoint(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        Wan,
        WanTransformer3DModel,
        (480, 832),
        _wan,
        {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
    ),
    "wan-14b": Checkpoint(
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        Wan,
        WanTransformer3DModel,
        (480, 832),
        _wan,
        recipes="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    ),
}
# Teacher → features, patch and tubelet of its tokens.
TEACHERS: dict[str, tuple[int, int, int]] = {"OpenGVLab/VideoMAEv2-Base": (768, 16, 2)}


def bench_full_size(
    name: str,
    *,
    methods: Sequence[str] = (),
    overrides: Sequence[str] = (),
    height: int | None = None,
    width: int | None = None,
    dtype: str = "bfloat16",
    rounds: int = 3,
    device: str = "auto",
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Time training steps of a published architecture with random weights on random latents.

    Args:
        name: A key of CHECKPOINTS.
        methods: As `recipes_for` names those of the checkpoint; all by default.
        overrides: `key=value`, for every recipe.
        height: Of the clips, in pixels; the checkpoint's own by default.
        width: The same.
        dtype: bfloat16, float32, …: of the transformer's weights, and so of their gradients and of AdamW's moments. A
            LoRA is float32.
        rounds: Timed steps of each kind.
        device: auto, cpu, cuda, ….
        seed: Of all random numbers.
        reporter: Receives progress.

    Returns:
        Rows of `time_methods`.

    Raises:
        UsageError: an unknown name or method, or clips that the architecture cannot take.
    """
    reporter = reporter or Reporter()
    if name not in CHECKPOINTS:
        raise unknown("checkpoint", name, CHECKPOINTS)
    checkpoint = CHECKPOINTS[name]
    recipes = recipes_for(checkpoint.recipes or checkpoint.model, methods, overrides)
    chosen = devices.pick_device("cpu" if on_cpu(device) else device)
    weights = devices.pick_dtype(dtype, chosen)
    with devices.quiet_libraries():
        generator = build_random(checkpoint, dtype=weights, device=chosen, seed=seed)
    reporter.note(f"{generator.name}: only times and memory mean anything.")
    for recipe in recipes.values():
        if isinstance(recipe.method, VideoJam):  # all methods are timed on one network: none sees the zeros beside it
            generator.add_motion(motion_channels(recipe.method, generator))
    first = next(iter(recipes.values()))
    if first.lora is not None:
        generator.add_lora(**first.lora.model_dump(exclude={"base_dtype"}), seed=seed)
    else:
        generator.network.requires_grad_(True)

    size = height or checkpoint.size[0], width or checkpoint.size[1]

    def build(recipe: GeneratorRecipe) -> DenoisingSteps:
        return RandomSteps(generator, recipe=recipe, height=size[0], width=size[1], seed=seed)

    return time_methods(recipes, build, subject=generator.name, rounds=rounds, device=chosen, reporter=reporter)


def build_random(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> DiffusersGenerator:
    """A generator of the checkpoint's architecture with random weights, which are nowhere held in another dtype.

    It has no text encoder, and its VAE is a small one with the checkpoint's strides and scale.
    """
    with torch.device("meta"):
        transformer: Any = checkpoint.network(**checkpoint.config)
    cast_part(transformer, dtype)
    transformer = transformer.to_empty(device=device)
    # The table of positions is no weight: it is taken from a model that was built in the ordinary way.
    without_blocks: Any = checkpoint.network(**checkpoint.config | {"num_layers": 0})
    for key, table in without_blocks.named_buffers():
        transformer.get_buffer(key).copy_(table)
    with torch.no_grad(), seeded(seed):
        for key, weight in transformer.named_parameters():
            if weight.ndim > 1:
                weight.uniform_(-1, 1).mul_(weight[0].numel() ** -0.5)
            else:
                weight.fill_(float("norm" in key and key.endswith("weight")))
    with seeded(seed):
        pipeline_class, others = checkpoint.others()
    pipeline = pipeline_class(tokenizer=None, text_encoder=None, transformer=transformer, **others)
    name = f"{checkpoint.model.rpartition('/')[2]}, random weights"
    generator = checkpoint.family(pipeline, name=name, random_init=True)
    generator.place(device)
    return generator


class RandomSteps(DenoisingSteps):
    """Steps on random latents, prompt embeddings and teacher features.

    Args:
        generator: Shared by several trainees; what of it is trained is settled.
        recipe: Whose method.
        height: Of the clips that are not there, in pixels.
        width: Of the same.
        seed: Of all random numbers.

    Raises:
        UsageError: a size, a number of frames or taps that the generator cannot take, or an unknown teacher.
    """

    def __init__(self, generator: Generator, *, recipe: GeneratorRecipe, height: int, width: int, seed: int) -> None:
        frames = recipe.objective.frames
        grid = generator.token_grid(frames, height, width)
        teacher_shape: tuple[int, ...] = ()
        if isinstance(recipe.method, Alignment):
            check_taps(recipe.method.taps or (), generator.num_blocks)
            scale = (height / generator.facts.size[0], width / generator.facts.size[1])
            teacher_shape = _teacher_shape(recipe.method, frames, scale)
        critic = None
        if isinstance(recipe.method, Critic):
            critic = copy.copy(generator)  # but for a network of its own, whose memory counts
            critic.transformer = copy.deepcopy(generator.network).requires_grad_(False)  # type: ignore[attr-defined]
        method = build_method(
            recipe.method,
            generator,
            student_grid=grid,
            teacher_shape=teacher_shape or None,
            seed=seed,
            critic=critic,
        )
        super().__init__(generator, recipe=recipe, method=method, reporter=Reporter())
        self.seed, self._teacher_shape = seed, teacher_shape
        self._latents_shape = generator.latent_shape(frames, height, width)

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        facts, rng = self.generator.facts, rng_of(self.seed, "timesteps")
        batch: dict[str, Any] = {
            "latents": self._noise("latents", samples, self._latents_shape),
            "noise": self._noise("noise", samples, self._latents_shape),
            "time": self.generator.noise.draw_uniform(rng, len(samples)),
            f"{TOLD}text": self._noise("text", samples, (facts.max_text_tokens, facts.text_width)),
            **self.about_step(step),
        }
        if self.method is None:
            return batch
        if "teacher" in self.method.needs:
            batch["teacher"] = self._noise("teacher", samples, self._teacher_shape).half()
        if "saliency" in self.method.needs:
            share = self.recipe.method.signals()["saliency"]["share"]
            rank = self._noise("saliency", samples, self._teacher_shape[:3]).flatten(2).argsort(dim=2)
            batch["saliency"] = (rank < share * rank.shape[2]).byte().view(len(samples), *self._teacher_shape[:3])
        if isinstance(self.method, JointMotion):
            batch["flow"] = self._noise("flow", samples, self.method.latent_shape).half()
        draws = [self.method.draw(sample, self.seed) for sample in samples]
        return batch | {key: torch.stack([draw[key] for draw in draws]) for key in draws[0]}

    def _noise(self, what: str, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
        return torch.stack([noise_of(self.seed, what, sample, shape=shape) for sample in samples])


def _teacher_shape(method: Alignment, frames: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """(f, h, w, D) of the teacher's features of a clip of so many frames, `scale` times its native height and width.

    Raises:
        UsageError: a teacher whose tokens are not known here.
    """
    if method.teacher not in TEACHERS:
        raise unknown("teacher", method.teacher, TEACHERS)
    width, patch, tubelet = TEACHERS[method.teacher]
    view: TeacherView = method.view
    if view.layout != "whole" or view.size is None:
        raise UsageError(
            f"method.view.layout={view.layout} with method.view.size={view.size}.",
            expected="layout whole and a size, as in the packaged recipes",
        )
    rows, columns = (max(1, round(side * part / patch)) for side, part in zip(view.size, scale, strict=True))
    if isinstance(method, MoAlign):
        width = motion_stage(method).objective.dim
    return max(1, (frames - view.drop_first) // tubelet), rows, columns, width
