"""`physcli bench sample`: what sampling costs beside the bare diffusers pipeline, what guidance adds to it, and what
caches and compiling save."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from physcli.errors import UsageError
from physcli.guidance import guidance_class
from physcli.guidance.base import Guidance
from physcli.guidance.lamo import MotionPrior, check_field, find_field, read_field
from physcli.methods.lamo import MotionField
from physcli.models.loading import load_generator
from physcli.models.names import resolve
from physcli.models.step_cache import CACHES, CacheSettings, StepCache, ratios
from physcli.progress import Bar, Reporter
from physcli.tasks.bench.timing import alternate, ratio, row, synchronize

_PROMPT = "a red ball rolls into a yellow box"


def bench_sample(
    *,
    model: str = "cogvideox-tiny",
    guidance: str | None = "lamo",
    caches: Sequence[CacheSettings] = (),
    compiled: bool = False,
    motion_field: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 4,
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    steps: int = 10,
    rounds: int = 8,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Time whole videos (prompt to pixels) in turn: by diffusers alone, by us, with every step guided, with each cache,
    and with compiled blocks.

    Args:
        model: A generator.
        guidance: A key of `physcli.guidance.GUIDANCES`. For `inner` a model without motion beside its clips is given
            some, of zeros; a bare pipeline cannot run it then, and is left out. None: no guidance is timed.
        caches: Timed as well, one video at a time where a batch would bear on them.
        compiled: Time compiled blocks as well; compiling is not in the time.
        motion_field: For `lamo`: a motion field; the one that sampling would take by default. `random` is one of the
            released size with random weights, for a model that has none.
        device: Where.
        dtype: In which precision.
        batch_size: Videos a pass.
        num_frames: Pixel frames; the model's own by default.
        size: (height, width); the model's own by default.
        steps: Denoising steps of a video, at least 2.
        rounds: Timed videos of each kind.
        seed: Of the noise.
        reporter: Receives progress.

    Returns:
        Rows: `over_diffusers`, our time over that of the bare pipeline; `guided_over_plain`, with guidance over
        without, of whole videos; `guided_step_over_plain`, the same of the denoising steps alone; seconds. In groups of
        their own `over_plain` of each cache and of compiled blocks, and of a cache `computed_share`, of the network's
        calls those it left whole.
    """
    reporter = reporter or Reporter()
    resolved = resolve(model)
    generator = load_generator(resolved, device=device, dtype=dtype)
    pipeline: Any = getattr(generator, "pipeline")  # noqa: B009 (the bare one, to compare with)
    height, width = size or generator.facts.size
    frames = num_frames or generator.facts.num_frames
    guide: Guidance | None = None
    if guidance != "lamo" and motion_field is not None:
        raise UsageError(f"--motion-field with --guidance {guidance}.", expected="--guidance lamo", fix="leave it out")
    if guidance == "lamo":
        if motion_field == "random":
            reporter.note("The motion field has random weights: its time is what matters.")
            field = MotionField(channels=generator.facts.latent_channels, text_dim=generator.facts.text_width)
        else:
            path = find_field(motion_field, resolved, generator)
            field = read_field(path)
            check_field(field, generator, str(path))
        guide = MotionPrior(field.to(generator.device).eval().requires_grad_(False), scale=15.0, ratio=1.0)
    elif guidance is not None:
        if guidance == "inner" and not generator.facts.motion_channels:
            reporter.note("The model gets motion latents of zeros: its time is what matters.")
            generator.add_motion(generator.facts.latent_channels)
        chosen = guidance_class(guidance)
        guide = chosen.build(chosen.Settings(), generator, {}, reporter)
    if compiled:
        generator.compile()  # and not run but for the one side
    prompts, seeds = [_PROMPT] * batch_size, [seed + i for i in range(batch_size)]
    shape: dict[str, Any] = {"num_frames": frames, "height": height, "width": width}

    def bare() -> None:
        with torch.compiler.set_stance("force_eager"):
            call_pipeline()

    def call_pipeline() -> None:
        pipeline.set_progress_bar_config(disable=True)
        pipeline(
            prompts,
            **shape,
            num_inference_steps=steps,
            guidance_scale=generator.guidance_scale,
            max_sequence_length=generator.facts.max_text_tokens,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )

    # Between the ends of steps, so without the first one, the text encoder and the decoder.
    step_seconds: dict[str, list[float]] = {"plain": [], "guided": []}
    computed: dict[str, float] = {}

    def ours(name: str, guide: Guidance | None = None) -> None:
        ends: list[float] = []

        def each_step() -> None:
            synchronize()
            ends.append(time.perf_counter())

        with torch.compiler.set_stance("default" if name == "compiled" else "force_eager"):
            generator.sample(prompts, seeds, steps=steps, guidance=guide, each_step=each_step, **shape)
        step_seconds.setdefault(name, []).append((ends[-1] - ends[0]) / (len(ends) - 1))

    def cached(cache: StepCache) -> None:
        at_once = 1 if CACHES[cache.settings.name].mixes_batch else batch_size
        with torch.compiler.set_stance("force_eager"):
            for first in range(0, batch_size, at_once):
                some = slice(first, first + at_once)
                made = generator.sample(prompts[some], seeds[some], steps=steps, cache=cache, **shape)
        assert made.computed is not None
        computed[cache.settings.in_words] = made.computed

    sides: dict[str, Callable[[], object]] = {
        **({} if generator.facts.motion_channels else {"diffusers": bare}),
        "plain": lambda: ours("plain"),
        **({} if guide is None else {"guided": lambda: ours("guided", guide)}),
        **({"compiled": lambda: ours("compiled")} if compiled else {}),
    }
    for settings in caches:
        known: list[float] = []
        if CACHES[settings.name].needs_ratios:
            with torch.compiler.set_stance("force_eager"):
                known = ratios(
                    generator.blocks,
                    lambda each: generator.sample(prompts[:1], seeds[:1], steps=steps, each_step=each, **shape),
                )
        sides[settings.in_words] = functools.partial(cached, StepCache(settings, steps, known))
    with reporter.bar(f"Timing {generator.name}", len(sides) * (rounds + 1), "run") as bar:
        seconds = alternate({name: _counted(side, bar) for name, side in sides.items()}, rounds)
    plain = seconds["plain"]
    plain_steps = step_seconds["plain"][1:]  # the first is warm-up
    values = {"over_diffusers": ratio(plain, seconds["diffusers"])} if "diffusers" in seconds else {}
    if guide is not None:
        values["guided_over_plain"] = ratio(seconds["guided"], plain)
        values["guided_step_over_plain"] = ratio(step_seconds["guided"][1:], plain_steps)
    values["seconds_per_step"] = statistics.median(plain_steps)
    values["seconds_per_video"] = statistics.median(plain) / batch_size
    found = [("all", name, value) for name, value in values.items()]
    for name in (*computed, *(["compiled"] if compiled else [])):
        found.append((name, "over_plain", ratio(seconds[name], plain)))
        if name in computed:
            found.append((name, "computed_share", computed[name]))
    return [row("sample", generator.name, group, name, value, rounds, False) for group, name, value in found]


def _counted(side: Callable[[], object], bar: Bar) -> Callable[[], None]:
    def run() -> None:
        side()
        bar.advance()

    return run
