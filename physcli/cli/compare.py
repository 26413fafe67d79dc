"""`physcli compare`: is it really better?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from physcli.cli import render
from physcli.cli.options import Run, shared

if TYPE_CHECKING:
    from physcli.tasks.compare_result import CompareResult, Side

_WIDE = 110  # columns of a terminal in which p and its correction, and the pairs' counts, have room


@shared(Run)
def compare(
    common: Run,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN…",
            help="Runs of physcli eval or probe; the first is the reference. RUN,RUN,… are training seeds of one "
            "method, NAME=RUN gives it a name, RUN::SUBJECT is one of a probe's models.",
            show_default=False,
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare this one only; may be repeated. Fewer questions cost less correction.  \\[default: all]",
            show_default=False,
        ),
    ] = None,
    intersect: Annotated[
        bool, typer.Option("--intersect", help="Compare the items that all runs hold, and say how many are dropped.")
    ] = False,
    ignore_seeds: Annotated[
        bool,
        typer.Option("--ignore-seeds", help="Pair videos by prompt and index alone: sets sampled with other seeds."),
    ] = False,
    cases: Annotated[int, typer.Option(min=0, help="Worst, and best, cases shown in the report for each run.")] = 6,
    max_video_mb: Annotated[float, typer.Option(min=0, help="The report holds videos up to so many megabytes.")] = 24.0,
) -> None:
    """Paired differences with intervals, tests and a report: is a run better than the first one, beyond noise?"""
    from physcli.tasks.compare import CompareSettings, compare
    from physcli.tasks.run_dir import to_json

    settings = CompareSettings(
        runs=tuple(runs),
        metrics=tuple(metric or ()),
        intersect=intersect,
        ignore_seeds=ignore_seeds,
        cases=cases,
        max_video_mb=max_video_mb,
        seed=common.seed,
    )
    done = compare(
        settings, out=common.out, overwrite=common.overwrite, reporter=render.RichReporter(quiet=common.quiet)
    )
    if common.json:
        render.json_text(to_json({"run": done.path, "rows": done.rows, "notes": done.notes, "flags": done.flags}))
        return
    show_comparison(done)


def show_comparison(done: CompareResult) -> None:
    """A table for each compared run, what it means, and the paths of the files."""
    for side in done.sides[1:]:
        _show_side(done, side)
    render.files(done.files())


def _show_side(done: CompareResult, side: Side) -> None:
    from physcli.tasks.tables import comparison

    render.show(comparison(done, side, wide=render.width() >= _WIDE))
    for sentence in done.verdicts(side):
        render.result(sentence)
    render.result("")
