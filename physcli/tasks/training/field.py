"""LaMo's motion field as it is trained, alone or beside a generator: how it begins, and what it draws at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from physcli.errors import UsageError
from physcli.hashing import seed_from, seeded
from physcli.methods.lamo import MotionField, field_loss
from physcli.models.generator import Generator
from physcli.models.noise import NoiseProcess
from physcli.recipe import FieldSettings
from physcli.tasks.training.clips import noise_of, rng_of

FIELD_DRAWS = ("noise", "noise_mask", "sigmas", "prompt_keep")


def draw_field(
    objective: FieldSettings, latent_shape: Sequence[int], process: NoiseProcess, *, sample: int, seed: int
) -> dict[str, Tensor]:
    """What `field_loss` needs at random for one sample.

    Args:
        objective: Its noise, its share, and how often the prompt is dropped.
        latent_shape: (F, C, h, w) of the sample's latents.
        process: The generator's noise; a pair's level is drawn uniformly over its timesteps.
        sample: Its number, counted over the whole run.
        seed: Of the run.

    Returns:
        FIELD_DRAWS: float32 [P, C, h, w], bool [P], float32 [P] and bool [P] for the P = F − lag pairs.
    """
    frames, *rest = latent_shape
    pairs = frames - objective.lag
    rng = rng_of(seed, "field", sample)
    mask = rng.random(pairs) < objective.noise_share
    levels = process.of_time(process.draw_uniform(rng, pairs))
    return {
        "noise": noise_of(seed, "field noise", sample, shape=(pairs, *rest)),
        "noise_mask": torch.from_numpy(mask),
        "sigmas": levels.sigma.float(),
        "prompt_keep": torch.from_numpy(rng.random(pairs) >= objective.caption_dropout),
    }


def loss_of_field(
    field: MotionField, objective: FieldSettings, latents: Tensor, prompts: Tensor, drawn: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """`field_loss` as a recipe sets it.

    Args:
        field: The motion field.
        objective: The recipe's.
        latents: Clean x0 [B, F, C, h, w].
        prompts: Pooled [B, D].
        drawn: FIELD_DRAWS of every sample, and whatever else; [B, …] each.
    """
    return field_loss(
        field,
        latents,
        prompts,
        lag=objective.lag,
        cosine_weight=objective.cosine_weight,
        noise_scale=objective.noise_scale,
        **{name: drawn[name] for name in FIELD_DRAWS},
    )


def new_field(objective: FieldSettings, generator: Generator, *, latent_shape: Sequence[int], seed: int) -> MotionField:
    """A motion field that predicts no motion yet.

    Raises:
        UsageError: a lag of all frames there are.
    """
    frames, channels = latent_shape[:2]
    factor = generator.codec.scaling_factor
    if objective.lag >= frames:
        raise UsageError(
            f"The motion field's lag is {objective.lag}, and a clip has {frames} latent frames.",
            expected="fewer than those",
        )
    with seeded(seed_from(seed, "field")):
        field = MotionField(
            channels=channels,
            hidden=objective.hidden,
            num_blocks=objective.num_blocks,
            text_dim=generator.facts.text_width,
            cond_dim=objective.cond_dim,
            scaling_factor=factor,
            latent_space=generator.codec.space if factor is None else None,
            lag=objective.lag,
        )
    if field.null_prompt is not None:
        field.null_prompt.requires_grad_(False)  # every window has its prompt; DDP wants no idle weights
    return field
