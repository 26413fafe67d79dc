"""`physcli compare`: is it really better?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from physcli.cli import render
from physcli.cli.options import Run, shared
from physcli.progress import counted

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
    from physcli.tasks.compare_result import interval_text, least_text, p_text, value_text

    wide = render.width() >= _WIDE
    columns = ["", "ref.", "diff.", "95 % interval", "Holm", "least", ""]
    if wide:
        columns = ["", "n", "ref.", "run", "diff.", "95 % interval", "p", "Holm", f"{done.unit} won / tied / lost"]
        columns += ["least", ""]
    rows = []
    for row in done.rows_of(side):
        difference = [value_text(row["value"], row, sign=True), interval_text(row)]
        style = {"better": "green", "worse": "red"}.get(row["verdict"], "")
        end = [least_text(row), render.styled(row["verdict"], style)]
        if wide:
            counts = None if row["wins"] is None else f"{row['wins']} / {row['ties']} / {row['losses']}"
            means = [value_text(row[f"{of}_value"], row) for of in ("reference", "compared")]
            p = [p_text(row["p"]), p_text(row["p_holm"])]
            rows.append([row["of"], row["n"], *means, *difference, *p, counts, *end])
        else:
            name = row["of"].replace("/", "/ ").replace("_", " ")  # so that it breaks where words end
            rows.append([name, value_text(row["reference_value"], row), *difference, p_text(row["p_holm"]), *end])
    missing = {row["of"]: row["num_missing"] for row in done.rows_of(side) if row["num_missing"]}
    told = [done.caption(side)]
    if missing:
        told.append(
            "Pairs without a score of one of the two are left out: "
            + ", ".join(f"{count} of {name}" for name, count in missing.items())
            + "."
        )
    count = counted(len(done.keys), "pair")
    render.table(
        f"{side.label} against {done.reference.label}, the reference ({count}; rates in %)",
        columns,
        rows,
        caption=" ".join(told),
        right=range(1, len(columns) - 1),
        whole=range(1, len(columns)),
    )
    for sentence in done.verdicts(side):
        render.result(sentence)
    render.result("")
