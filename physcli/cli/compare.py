"""`physcli compare`: is it really better?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from physcli.cli import render
from physcli.cli.options import Run, parameter, shared
from physcli.errors import UsageError

if TYPE_CHECKING:
    from physcli.tasks.compare_result import CompareResult, Side

_BLIND = "Blind study, with --blind"
_WIDE = 110  # columns of a terminal in which p and its correction, and the pairs' counts, have room
_BLIND_OPTIONS = (
    parameter(
        "question", str, "What raters are asked.  \\[default: Which video is physically more plausible?]", panel=_BLIND
    ),
    parameter(
        "raters", int, "Raters the page has a schedule for; they give their number.  \\[default: 10]", panel=_BLIND
    ),
    parameter(
        "pairs_per_rater", int, "Pairs a rater sees, besides repeats and checks.  \\[default: all]", panel=_BLIND
    ),
    parameter("limit", int, "At most so many items, evenly spaced.", panel=_BLIND),
    parameter("show_prompt", bool, "Show the prompt above each pair.  \\[default: show-prompt]", panel=_BLIND),
    parameter(
        "checks",
        str,
        "Attention checks, a video against the same one broken: its frames shuffled, reversed, frozen at the first; or "
        "clips of a set of `data simulate --impossible` against their twins.  \\[default: shuffled]",
        "shuffled|reversed|frozen|DIR",
        panel=_BLIND,
    ),
    parameter("check_share", float, "Checks for each pair a rater sees; 0 for none.  \\[default: 0.08]", panel=_BLIND),
    parameter(
        "repeat_share", float, "Pairs shown again with sides exchanged; 0 for none.  \\[default: 0.1]", panel=_BLIND
    ),
    parameter(
        "exclude",
        list[str],
        "When raters are left out, registered with the page; 0 or off for never; may be repeated.  \\[default: "
        "answered=0.5 failed-checks=0.34 median-s=1 one-sided=0.95 repeats=0]",
        "RULE=BOUND",
        panel=_BLIND,
    ),
)


@shared(Run, more=_BLIND_OPTIONS)
def compare(
    common: Run,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN…",
            help="Runs of physcli eval or probe; the first is the reference. RUN,RUN,… are training seeds of one "
            "method, NAME=RUN gives it a name, RUN::SUBJECT is one of a probe's models. With --blind also runs of "
            "physcli sample.",
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
    max_video_mb: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="The page holds videos up to so many megabytes.  \\[default: 24; 300 with --blind]",
            show_default=False,
        ),
    ] = None,
    blind: Annotated[
        bool,
        typer.Option(
            "--blind",
            help="Make a page on which people compare the runs' videos without knowing whose they are; physcli eval "
            "votes scores what they send back.",
        ),
    ] = False,
    **study: Any,
) -> None:
    """Paired differences with intervals, tests and a report: is a run better than the first one, beyond noise?"""
    from physcli.tasks.compare import CompareSettings, compare

    given = {name: value for name, value in study.items() if value is not None and value != []}
    if max_video_mb is not None:
        given["max_video_mb"] = max_video_mb
    if blind:
        if metric:
            raise UsageError("--metric is about scores.", expected="no --metric with --blind: people judge the videos")
        _make_page(common, tuple(runs), given | {"intersect": intersect, "ignore_seeds": ignore_seeds})
        return
    alone = next((name for name in given if name != "max_video_mb"), None)
    if alone is not None:
        raise UsageError(f"--{alone.replace('_', '-')} is for a blind study.", expected="--blind with it")
    settings = CompareSettings(
        runs=tuple(runs),
        metrics=tuple(metric or ()),
        intersect=intersect,
        ignore_seeds=ignore_seeds,
        cases=cases,
        seed=common.seed,
        **given,
    )
    done = compare(
        settings, out=common.out, overwrite=common.overwrite, reporter=render.RichReporter(quiet=common.quiet)
    )
    if render.answered(common, done, rows=done.rows, notes=done.notes, flags=done.flags):
        return
    show_comparison(done)


def _make_page(common: Run, runs: tuple[str, ...], settings: dict[str, Any]) -> None:
    from physcli.tasks.blind.page import BlindSettings, make_blind_page

    if "exclude" in settings:
        settings["exclude"] = tuple(settings["exclude"])
    chosen = BlindSettings(runs, seed=common.seed, **settings)
    done = make_blind_page(
        chosen, out=common.out, overwrite=common.overwrite, reporter=render.RichReporter(quiet=common.quiet)
    )
    if render.answered(common, done, page=done.html, rows=done.rows, flags=done.flags):
        return
    for sentence in done.sentences(chosen.raters):
        render.result(sentence)
    render.files(done.files())


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
