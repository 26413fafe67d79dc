"""`physcli eval likephys`: which clips are likely to a generator, the possible or the impossible?"""

from __future__ import annotations

from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.options import ModelRun, shared


@shared(ModelRun)
def likephys(
    common: ModelRun,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A generator: built-in name, hub id, folder or run directory; may be repeated.  "
            "\\[default: cogvideox-tiny]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="simulated:N (N test clips with all their impossible twins), or a folder: of `physcli data simulate "
            "--impossible`, or SCENARIO/SCENE/valid_00.mp4 beside VIOLATION_00.mp4, as LikePhys has them; or such a "
            "hub dataset: hub:OWNER/NAME."
        ),
    ] = "simulated:28",
    reading: Annotated[
        str | None,
        typer.Option(
            metavar="v|eps|x0",
            help="What the loss is an error of; of one loss only the weights of its levels differ.  \\[default: the "
            "model's own objective]",
            show_default=False,
        ),
    ] = None,
    num_levels: Annotated[int, typer.Option(help="Noise levels, evenly over the timesteps.")] = 10,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="One text for all clips, '' for none.  \\[default: the clip's own, a prompt.txt beside it, or the "
            "scenario's name]",
            show_default=False,
        ),
    ] = None,
    guidance_scale: Annotated[
        float, typer.Option(help="Of classifier-free guidance, which doubles the work; 1 for none.")
    ] = 1.0,
    negative_prompt: Annotated[str, typer.Option(help="For --guidance-scale.", show_default=False)] = "",
    untrained: Annotated[
        bool, typer.Option("--untrained/--no-untrained", help="Each model's untrained twin, a control.")
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Noise levels of a clip per forward pass.")] = 10,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many scenes.", show_default=False)] = None,
) -> None:
    """LikePhys: does a generator's own loss prefer possible clips to impossible ones? With its controls."""
    from physcli.tasks.likephys.run import LikePhysSettings, likephys
    from physcli.tasks.tables import likephys as likephys_errors
    from physcli.tasks.tables import likephys_controls

    settings = LikePhysSettings(
        models=tuple(model or ("cogvideox-tiny",)),
        data=data,
        reading=reading,
        num_levels=num_levels,
        prompt=prompt,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        untrained=untrained,
        limit=limit,
        seed=common.seed,
        dtype=common.dtype,
    )
    done = likephys(
        settings,
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        batch_size=batch_size,
        cache_dir=common.cache_dir,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows, items=done.items):
        return
    room = _LABEL + _CELL * len(done.subjects) <= render.width()
    render.show(likephys_errors(done, wide=room))
    render.show(likephys_controls(done, wide=render.width() >= _WIDE))
    render.files(done.files())


_WIDE = 110  # columns that the controls with intervals take
_LABEL, _CELL = 20, 23  # characters of the violations' column, and of one with intervals
