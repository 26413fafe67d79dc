"""`physcli eval distance`: how far do generated videos lie from real clips?"""

from __future__ import annotations

from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.options import ModelRun, shared

_WIDE = 100  # columns that both intervals take


@shared(ModelRun)
def distance(
    common: ModelRun,
    videos: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]DIR|FILE|RUN",
            help="A run of physcli sample, a folder of captioned videos, or a .csv or .jsonl list; may be repeated. "
            "All of one length and rate.",
            show_default=False,
        ),
    ],
    real: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Real clips: simulated[:N], a folder, or hub:OWNER/NAME; of those with splits the test clips. Half of "
            "them is what all is held against, so give twice as many as there are videos.",
        ),
    ] = "simulated",
    encoder: Annotated[str, typer.Option(help="Whose features: a built-in name, hub id or folder.")] = "videomae-tiny",
    layer: Annotated[
        int | None,
        typer.Option(min=0, help="Its block, counted from 0.  \\[default: the last]", show_default=False),
    ] = None,
    kernel: Annotated[
        str,
        typer.Option(
            metavar="kid|jedi",
            help="Of MMD², polynomial: kid has degree 3 and a constant of 1, jedi degree 2 and none.",
        ),
    ] = "kid",
    batch_size: Annotated[int, typer.Option(min=1, help="Videos the encoder sees at a time.")] = 16,
    limit: Annotated[
        int | None, typer.Option(min=3, help="At most so many videos of each set, evenly spaced.", show_default=False)
    ] = None,
) -> None:
    """How far do videos lie from real clips? MMD² and Fréchet distance in an encoder's features; not FVD."""
    from physcli.tasks import tables
    from physcli.tasks.distance.run import DistanceSettings
    from physcli.tasks.distance.run import distance as task

    done = task(
        DistanceSettings(tuple(videos), real, encoder, layer, kernel, limit, common.seed, common.dtype),
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        batch_size=batch_size,
        cache_dir=common.cache_dir,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows, items=done.items):
        return
    render.show(tables.distance(done, wide=render.width() >= _WIDE))
    render.show(tables.distance_controls(done))
    render.files(done.files())
