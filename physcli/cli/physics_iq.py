"""`physcli eval physics-iq`: do generated videos go on as the real ones did?"""

from __future__ import annotations

from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.options import Run, shared

_WIDE = 120  # columns that scores with intervals take


@shared(Run)
def physics_iq(
    common: Run,
    videos: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR[,DIR…]",
            help="Generated videos, named 0001_….mp4 to 0198_….mp4 after take 1; folders joined by commas are one "
            "model with several sampling seeds. Also tables .csv that Physics-IQ's code wrote. May be repeated; where "
            "there is none, the controls stand alone.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The real videos: the folder physics-iq-benchmark, as it is downloaded or as data simulate --takes 2 "
            "makes it, or one of testing videos.",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        str,
        typer.Option(
            metavar="mp4v|lossless",
            help="mp4v: masks pass through a lossy file, as in the released code and all published scores.",
        ),
    ] = "mp4v",
    duration: Annotated[
        float,
        typer.Option(help="Seconds of a generated video, from the last conditioning frame on; the protocol has 5."),
    ] = 5.0,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score the scenarios whose videos are all there, and leave out others.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many scenarios.", show_default=False)] = None,
) -> None:
    """Physics-IQ, original and Verified: do videos go on as the real ones did? Beside a still video and take 2."""
    from physcli.tasks import tables
    from physcli.tasks.physics_iq.run import PhysicsIQSettings
    from physcli.tasks.physics_iq.run import physics_iq as task

    done = task(
        PhysicsIQSettings(tuple(videos or ()), data, masks, duration, partial, limit, common.seed),
        out=common.out,
        overwrite=common.overwrite,
        cache_dir=common.cache_dir,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows, items=done.items):
        return
    render.show(tables.physics_iq(done, wide=render.width() >= _WIDE))
    render.show(tables.physics_iq_terms(done))
    render.files(done.files())
