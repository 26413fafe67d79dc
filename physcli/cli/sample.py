"""`physcli sample`: videos for prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.data import parse_size
from physcli.cli.options import ModelRun, shared

_SHOWN = 20


@shared(ModelRun)
def sample(
    common: ModelRun,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the video shall show; may be repeated.", show_default=False),
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
) -> None:
    """Make videos for prompts, through the model's diffusers pipeline."""
    from physcli.tasks.run_dir import to_json
    from physcli.tasks.sample import SampleSettings, shorten
    from physcli.tasks.sample import sample as task

    settings = SampleSettings(
        prompts=tuple(prompt or ()),
        model=model,
        adapter=adapter,
        num_samples=num_samples,
        steps=steps,
        guidance_scale=guidance_scale,
        size=None if size is None else parse_size(size),
        num_frames=num_frames,
        seed=common.seed,
        dtype=common.dtype,
    )
    done = task(
        settings,
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        batch_size=batch_size,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if common.json:
        render.json_text(to_json({"run": done.path, "videos": done.videos, "rows": done.rows}))
        return
    head, cost = done.videos[0], done.rows[0]
    rest = len(done.videos) - _SHOWN
    render.table(
        f"{done.label}: {len(done.videos)} videos of {head['num_frames']} frames, {head['height']}x{head['width']}",
        ["prompt", "sample", "fps", "video"],
        [
            [shorten(row["prompt"]), row["index"], f"{row['fps']:.3g}", row["video"].removeprefix("videos/")]
            for row in done.videos[:_SHOWN]
        ],
        caption=f"{head['steps']} steps, guidance {head['guidance_scale']:g}; {cost['value']:.3g} s a video."
        + (f" {rest} more are in videos.jsonl." if rest > 0 else ""),
        right=(1, 2),
    )
    render.files(done.files())
