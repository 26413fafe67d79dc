"""`physcli bench finetune --full-size …`: training steps of the published architectures, without their weights.

Time and memory of a step depend on shapes, not on values. So the transformer is built from its configuration with
random weights, and latents, text and teacher features are random numbers of the shapes that a cache would give. VAE,
text encoder and teacher have no part in a step and are not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Tensor

from physcli.errors import UsageError, unknown
from physcli.models import loading
from physcli.models.cogvideox import CogVideoX
from physcli.models.features import check_taps
from physcli.models.tiny import seeded
from physcli.progress import Reporter
from physcli.recipe import Alignment, GeneratorRecipe, MoAlign, TeacherView
from physcli.tasks.bench.finetune import motion_stage, recipes_for, time_methods
from physcli.tasks.processes import on_cpu
from physcli.tasks.training.alignment import build_method
from physcli.tasks.training.clips import noise_of, rng_of
from physcli.tasks.training.denoising import MEASURE_EVERY, DenoisingSteps


@dataclass(frozen=True)
class Checkpoint:
    """A published generator: its hub id, and where its configuration differs from diffusers' defaults, which are
    CogVideoX-2B's."""

    model: str
    scaling_factor: float  # of the VAE's latents
    snr_shift_scale: float  # of the noise schedule
    transformer: dict[str, Any] = field(default_factory=dict)


CHECKPOINTS: dict[str, Checkpoint] = {
    "2b": Checkpoint("zai-org/CogVideoX-2b", scaling_factor=1.15258426, snr_shift_scale=3.0),
    "5b": Checkpoint(
        "zai-org/CogVideoX-5b",
        scaling_factor=0.7,
        snr_shift_scale=1.0,
        transformer={"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True},
    ),
}
# Teacher → features, patch and tubelet of its tokens.
TEACHERS: dict[str, tuple[int, int, int]] = {"OpenGVLab/VideoMAEv2-Base": (768, 16, 2)}


def bench_full_size(
    name: str,
    *,
    methods: Sequence[str] = (),
    overrides: Sequence[str] = (),
    height: int = 480,
    width: int = 720,
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
        height: Of the clips, in pixels.
        width: Of the clips, in pixels.
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
    recipes = recipes_for(checkpoint.model, methods, overrides)
    chosen = loading.pick_device("cpu" if on_cpu(device) else device)
    weights = loading.pick_dtype(dtype, chosen)
    with loading.quiet_libraries():
        generator = build_random(checkpoint, dtype=weights, device=chosen, seed=seed)
    reporter.note(f"{generator.name}: only times and memory mean anything.")
    first = next(iter(recipes.values()))
    if first.lora is not None:
        generator.add_lora(**first.lora.model_dump(exclude={"base_dtype"}), seed=seed)
    else:
        generator.transformer.requires_grad_(True)

    def build(recipe: GeneratorRecipe) -> DenoisingSteps:
        return RandomSteps(generator, recipe=recipe, height=height, width=width, seed=seed)

    return time_methods(recipes, build, subject=generator.name, rounds=rounds, device=chosen, reporter=reporter)


def build_random(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, seed: int = 0) -> CogVideoX:
    """A generator of the checkpoint's architecture with random weights, which are nowhere held in another dtype.

    It has no text encoder, and its VAE is a small one with the checkpoint's strides and scale.
    """
    with torch.device("meta"):
        transformer: Any = CogVideoXTransformer3DModel(**checkpoint.transformer)
    transformer = transformer.to(dtype).to_empty(device=device)
    # The table of positions is no weight: it is taken from a model that was built in the ordinary way.
    without_blocks: Any = CogVideoXTransformer3DModel(**checkpoint.transformer | {"num_layers": 0})
    for key, table in without_blocks.named_buffers():
        transformer.get_buffer(key).copy_(table)
    with torch.no_grad(), seeded(seed):
        for key, weight in transformer.named_parameters():
            if weight.ndim > 1:
                weight.uniform_(-1, 1).mul_(weight[0].numel() ** -0.5)
            else:
                weight.fill_(float("norm" in key and key.endswith("weight")))
    with seeded(seed):
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=8,
            layers_per_block=1,
            latent_channels=16,
            scaling_factor=checkpoint.scaling_factor,
        )
    scheduler = CogVideoXDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        snr_shift_scale=checkpoint.snr_shift_scale,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    pipeline = CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
    )
    name = f"{checkpoint.model.rpartition('/')[2]}, random weights"
    generator = CogVideoX(pipeline, name=name, random_init=True)
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

    def __init__(self, generator: CogVideoX, *, recipe: GeneratorRecipe, height: int, width: int, seed: int) -> None:
        frames = recipe.objective.frames
        grid = generator.latent_grid(frames, height, width)
        teacher_shape: tuple[int, ...] = ()
        if isinstance(recipe.method, Alignment):
            check_taps(recipe.method.taps or (), generator.num_blocks)
            scale = (height / generator.native_size[0], width / generator.native_size[1])
            teacher_shape = _teacher_shape(recipe.method, frames, scale)
        method = build_method(
            recipe.method, generator, student_grid=grid, teacher_shape=teacher_shape or None, seed=seed
        )
        super().__init__(generator, recipe=recipe, method=method, reporter=Reporter())
        self.seed, self._teacher_shape = seed, teacher_shape
        self._latents_shape = (
            grid[0] * generator.patch_size_t,
            generator.latent_channels,
            grid[1] * generator.patch_size,
            grid[2] * generator.patch_size,
        )

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        config = self.transformer.config
        batch: dict[str, Any] = {
            "latents": self._noise("latents", samples, self._latents_shape),
            "noise": self._noise("noise", samples, self._latents_shape),
            "timesteps": torch.from_numpy(
                rng_of(self.seed, "timesteps").integers(len(self.generator.alphas_cumprod), size=len(samples))
            ),
            "text": self._noise("text", samples, (config.max_text_seq_length, config.text_embed_dim)),
            "measure": step % MEASURE_EVERY == 0,
        }
        if self.method is None:
            return batch
        if "teacher" in self.method.needs:
            batch["teacher"] = self._noise("teacher", samples, self._teacher_shape).half()
        if "saliency" in self.method.needs:
            share = self.recipe.method.signals()["saliency"]["share"]
            rank = self._noise("saliency", samples, self._teacher_shape[:3]).flatten(2).argsort(dim=2)
            batch["saliency"] = (rank < share * rank.shape[2]).byte().view(len(samples), *self._teacher_shape[:3])
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
