"""`physcli sample`: videos for prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from physcli.cli import render
from physcli.cli.data import parse_size
from physcli.cli.options import ModelRun, shared
from physcli.errors import UsageError
from physcli.progress import counted

if TYPE_CHECKING:
    from physcli.tasks.sample import SampleResult

_SHOWN = 20
BASELINES = "Instead of sampling"
MOTION = "Motion prior guidance (LaMo)"


@shared(ModelRun)
def sample(
    common: ModelRun,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the video shall show; may be repeated.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A list: .txt (a prompt a line), .csv or .jsonl; of VideoPhy's lists the detailed captions are used "
            "and the short ones kept for scoring.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most this many prompts of the list, evenly spaced.", show_default=False),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A generator: built-in name, hub id, folder or run directory.")
    ] = "cogvideox-tiny",
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="A LoRA on top: a folder, a file or a run directory with adapter/.", show_default=False
        ),
    ] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Videos of each prompt.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Classifier-free guidance; 1 or less is none.  \\[default: the model's own, 6 for CogVideoX]",
            show_default=False,
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ddim|dpm",
            help="On the checkpoint's own noise schedule.  \\[default: the checkpoint's own]",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Height x width in pixels.  \\[default: the checkpoint's own]", show_default=False
        ),
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(help="Frames of each video.  \\[default: the checkpoint's own]", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos a pass; changes speed and memory only.")] = 1,
    guidance: Annotated[
        str, typer.Option(metavar="none|lamo", help="lamo: follow a motion field.", rich_help_panel=MOTION)
    ] = "none",
    motion_scale: Annotated[
        float | None,
        typer.Option(
            help="How far each step follows it; 0 only measures.  \\[default: 15, as published]",
            show_default=False,
            rich_help_panel=MOTION,
        ),
    ] = None,
    motion_reduction: Annotated[
        str | None,
        typer.Option(
            metavar="mean|sum|normalized",
            help="Of the residual; mean as published, normalized: the scale is a share of the output.  "
            "\\[default: mean]",
            show_default=False,
            rich_help_panel=MOTION,
        ),
    ] = None,
    motion_lag: Annotated[
        int | None,
        typer.Option(
            help="Latent frames ahead.  \\[default: the field's own]", show_default=False, rich_help_panel=MOTION
        ),
    ] = None,
    motion_ratio: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps that are guided, the last ones.  \\[default: 0.8]",
            show_default=False,
            rich_help_panel=MOTION,
        ),
    ] = None,
    motion_window: Annotated[
        str | None,
        typer.Option(
            metavar="exact|released",
            help="Of 50 steps at 0.8, 40, or as LaMo's code counts 41.  \\[default: exact]",
            show_default=False,
            rich_help_panel=MOTION,
        ),
    ] = None,
    motion_field: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="A motion field or the run that made it.  \\[default: the model's run's, else the built-in one]",
            show_default=False,
            rich_help_panel=MOTION,
        ),
    ] = None,
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="The first frame of each of --videos, repeated: what scores owe to stillness.",
            rich_help_panel=BASELINES,
        ),
    ] = False,
    repeat_real: Annotated[
        bool,
        typer.Option(
            "--repeat-real",
            help="Real clips (--videos) through the model's VAE alone: the upper bound.",
            rich_help_panel=BASELINES,
        ),
    ] = False,
    videos: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|DIR",
            help="For --static a run of sample, or its videos.jsonl; for --repeat-real simulated[:N] or a folder of "
            "clips.",
            show_default=False,
            rich_help_panel=BASELINES,
        ),
    ] = None,
    cpu_offload: Annotated[
        bool, typer.Option("--cpu-offload", help="On a GPU, keep each part in main memory until it runs.")
    ] = False,
    vae_tiling: Annotated[bool, typer.Option("--vae-tiling", help="Decode large frames in tiles.")] = False,
    vae_slicing: Annotated[bool, typer.Option("--vae-slicing", help="Decode the videos of a pass one by one.")] = False,
) -> None:
    """Make videos for prompts, through the model's diffusers pipeline; run again, it makes only what is missing."""
    from physcli.data.prompts import read_prompts
    from physcli.data.subsets import thin
    from physcli.tasks.sample import SampleSettings
    from physcli.tasks.sample import sample as task

    if static or repeat_real:
        given = {"--prompt": prompt, "--prompts": prompts, "--adapter": adapter, "--motion-field": motion_field}
        _baseline(
            common,
            videos,
            static,
            repeat_real,
            [name for name, value in given.items() if value],
            model,
            num_frames,
            limit,
        )
        return
    if videos is not None:
        raise UsageError("--videos without --static or --repeat-real.", expected="one of them", fix="add it")
    listed = [] if prompts is None else thin(read_prompts(prompts), limit)
    settings = SampleSettings(
        prompts=(*(prompt or ()), *listed),
        model=model,
        adapter=adapter,
        num_samples=num_samples,
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        size=None if size is None else parse_size(size),
        num_frames=num_frames,
        guidance=guidance,
        motion_scale=motion_scale,
        motion_reduction=motion_reduction,
        motion_lag=motion_lag,
        motion_ratio=motion_ratio,
        motion_window=motion_window,
        motion_field=motion_field,
        seed=common.seed,
        dtype=common.dtype,
    )
    done = task(
        settings,
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        batch_size=batch_size,
        cpu_offload=cpu_offload,
        vae_tiling=vae_tiling,
        vae_slicing=vae_slicing,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if not done.is_main:
        return
    _show(common, done)


def _baseline(
    common: ModelRun,
    videos: str | None,
    static: bool,
    repeat_real: bool,
    others: list[str],
    model: str,
    num_frames: int | None,
    limit: int | None,
) -> None:
    from physcli.tasks import baselines

    kind = "static" if static else "repeat-real"
    if static and repeat_real:
        raise UsageError("--static with --repeat-real.", expected="one of them", fix="make them one after the other")
    if others:
        raise UsageError(f"{', '.join(others)} with --{kind}, which samples nothing.", fix="leave one of them out")
    if videos is None:
        raise UsageError(f"--{kind} without --videos.", expected="the videos to make it of", fix="add --videos RUN")
    settings = baselines.BaselineSettings(kind, videos, model, num_frames, limit)
    reporter = render.RichReporter(quiet=common.quiet)
    if static:
        done = baselines.static(settings, out=common.out, overwrite=common.overwrite, reporter=reporter)
    else:
        done = baselines.repeat_real(
            settings,
            out=common.out,
            overwrite=common.overwrite,
            device=common.device,
            dtype=common.dtype,
            cache_dir=common.cache_dir,
            reporter=reporter,
        )
    _show(common, done)


def _show(common: ModelRun, done: SampleResult) -> None:
    from physcli.tasks.run_dir import to_json
    from physcli.tasks.sheets import shorten

    if common.json:
        render.json_text(to_json({"run": done.path, "videos": done.videos, "items": done.items, "rows": done.rows}))
        return
    head, rest = done.videos[0], len(done.videos) - _SHOWN
    if (seconds := done.value("seconds_per_video")) is None:
        facts = f"{done.rows[0]['subject']}."
    else:
        facts = f"{head['steps']} steps, guidance {head['guidance_scale']:g}; {seconds:.3g} s a video."
    if (moved := done.value("mean_flow_px")) is not None:
        facts += f" Optical flow {moved:.3g} px a frame."
    if (update := done.value("update_ratio")) is not None:
        facts += (
            f" Motion guidance: step/output {update:.2g}, changed {done.value('update_changed'):.1%} of the values; "
            f"the field's residual at the end {done.value('motion_residual'):.3g}."
        )
    size = f"{head['height']}x{head['width']}"
    render.table(
        f"{done.label}: {counted(len(done.videos), 'video')} of {head['num_frames']} frames, {size}",
        ["prompt", "sample", "fps", "video"],
        [
            [shorten(row["prompt"]), row["index"], f"{row['fps']:.3g}", row["video"].removeprefix("videos/")]
            for row in done.videos[:_SHOWN]
        ],
        caption=facts + (f" {rest} more are in videos.jsonl." if rest > 0 else ""),
        right=(1, 2),
    )
    render.files(done.files())
