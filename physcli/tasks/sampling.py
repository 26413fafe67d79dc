"""A batch of videos from a generator's stock diffusers pipeline, with or without motion prior guidance.

Guidance changes what the scheduler is fed and nothing else, so it works with every scheduler and every checkpoint,
and scale 0 is the unguided video to the bit. (LaMo's own pipeline also drops the previous x̂0 of the DPM scheduler,
and so samples first order where plain diffusers samples second order.)
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from torch import Tensor

from physcli.errors import ModelError, UsageError
from physcli.methods.lamo import MotionField, guidance_update, guided_steps, pool_prompt
from physcli.models.loading import quiet_libraries

SCHEDULERS: dict[str, Any] = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}


@dataclass(frozen=True)
class Guide:
    """A motion field and how to follow it; see `physcli.methods.lamo.guidance_update`.

    Attributes:
        field: f_φ, float32, where the generator computes.
        scale: λ; 0 only measures.
        reduction: mean, sum or normalized.
        lag: In latent frames; None for the one the field was trained with.
        ratio: ρ, the share of the steps, counted from the end, that are guided.
        window: How ρ becomes a step; see `guided_steps`.
    """

    field: MotionField
    scale: float
    reduction: Literal["mean", "sum", "normalized"] = "mean"
    lag: int | None = None
    ratio: float = 0.8
    window: Literal["exact", "released"] = "exact"


@dataclass(frozen=True)
class Sampled:
    """Videos uint8 [B, T, H, W, 3], and what guidance measured: name → [B, guided steps], in the order of the steps
    counted from 0 in `guided`. Without guidance both are empty."""

    frames: np.ndarray
    guided: tuple[int, ...] = ()
    measured: dict[str, np.ndarray] | None = None


def generate(
    generator: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_frames: int,
    height: int,
    width: int,
    steps: int = 50,
    guidance_scale: float | None = None,
    guide: Guide | None = None,
    each_step: Callable[[], None] | None = None,
) -> Sampled:
    """One batch of videos from the stock pipeline, its scheduler as the checkpoint has it.

    Args:
        generator: A generator adapter, already where it shall run.
        prompts: B texts.
        seeds: B seeds, of each video's first noise and of what the scheduler adds.
        num_frames: Pixel frames T.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance_scale: Classifier-free guidance against the empty prompt; none at 1 and below. Default: the model's.
        guide: Motion prior guidance.
        each_step: Called after every denoising step.

    Raises:
        ModelError: the output is not finite.
        UsageError: the motion field's lag is all latent frames there are.
    """
    scale = generator.guidance_scale if guidance_scale is None else guidance_scale

    def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if each_step is not None:
            each_step()
        return {}

    generator.pipeline.set_progress_bar_config(disable=True)
    with quiet_libraries():  # prompts that are too long are told of by `sample`, in its own words
        # Encoded here, once, as the pipeline would: the motion field reads them too.
        embeds, negative = generator.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=scale > 1,
            max_sequence_length=generator.max_text_seq_length,
            device=generator.device,
        )
        with _guided(generator, guide, embeds, steps, num_frames) as measured:
            made = generator.pipeline(
                prompt_embeds=embeds,
                negative_prompt_embeds=negative,
                num_frames=num_frames,
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=scale,
                max_sequence_length=generator.max_text_seq_length,
                # On the CPU whatever the device, so that every device gets the same noise.
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=[],
                output_type="np",
            ).frames
    pixels = np.asarray(made)
    if not np.isfinite(pixels).all():
        raise ModelError(
            f"The videos of {generator.name} are not numbers (NaN), in {generator.dtype}.",
            expected="finite pixels",
            fix="try --dtype float32 or bfloat16; if it stays so, the weights are damaged",
        )
    frames = (pixels * 255).round().astype(np.uint8)
    if guide is None:
        return Sampled(frames)
    rows = {name: torch.stack([step[name] for step in measured], dim=1).cpu().numpy() for name in (measured or [{}])[0]}
    return Sampled(frames, tuple(guided_steps(steps, guide.ratio, reading=guide.window)), rows)


@contextlib.contextmanager
def _guided(
    generator: Any, guide: Guide | None, embeds: Tensor, steps: int, num_frames: int
) -> Iterator[list[dict[str, Tensor]]]:
    """Inside, the pipeline's scheduler is fed guided outputs; gives what each guided step measures, [B] a name."""
    measured: list[dict[str, Tensor]] = []
    if guide is None:
        yield measured
        return
    lag = guide.field.lag if guide.lag is None else guide.lag
    latent_frames = (num_frames - 1) // generator.vae_scale_factor_temporal + 1
    if lag >= latent_frames:
        raise UsageError(
            f"--motion-lag {lag} with {num_frames} frames, which are {latent_frames} latent frames.",
            expected=f"a lag below {latent_frames}",
            fix="sample more frames, or name a motion field of a shorter lag",
        )
    scheduler = generator.pipeline.scheduler
    stock = scheduler.step
    signature = inspect.signature(stock)
    active = set(guided_steps(steps, guide.ratio, reading=guide.window))
    prompt = pool_prompt(embeds) if guide.field.prompt_proj is not None else None
    step = 0

    @functools.wraps(stock)  # the pipeline reads its signature
    def guided(*args: Any, **kwargs: Any) -> Any:
        nonlocal step
        if step in active:
            bound = signature.bind(*args, **kwargs)
            noisy, timestep = bound.arguments["sample"], bound.arguments["timestep"]
            timesteps = torch.as_tensor(timestep).reshape(1).expand(len(noisy))
            output, logs = guidance_update(
                bound.arguments["model_output"],
                guide.field,
                prompt,
                predict_clean=lambda v: generator.predict_clean(v, noisy, timesteps),
                scale=guide.scale,
                reduction=guide.reduction,
                lag=lag,
            )
            bound.arguments["model_output"] = output
            args, kwargs = bound.args, bound.kwargs
            measured.append(logs)
        step += 1
        return stock(*args, **kwargs)

    scheduler.step = guided
    try:
        yield measured
    finally:
        del scheduler.step  # the class's own again


def use_scheduler(generator: Any, name: str | None) -> None:
    """Sample with another scheduler on the checkpoint's own noise schedule and spacing; None leaves its own."""
    if name is not None:
        generator.pipeline.scheduler = SCHEDULERS[name].from_config(generator.pipeline.scheduler.config)
