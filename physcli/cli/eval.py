"""`physcli eval …`: do videos obey physics, and show what was asked?"""

from __future__ import annotations

from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.options import ModelRun, shared

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Do videos obey physics, and show what was asked? Scores with intervals.",
)

Videos = Annotated[
    str,
    typer.Option(
        metavar="DIR|FILE|RUN",
        help="A run of physcli sample, a folder of captioned videos, or a .csv or .jsonl list.",
        show_default=False,
    ),
]
Rater = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|DIR",
        help="\\[default: the tiny one if all videos are of the simulated world, else the official one]",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Videos the rater sees at a time.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many videos, evenly spaced.", show_default=False)]


@app.command("laws")
@shared(ModelRun)
def laws(common: ModelRun, videos: Videos, limit: Limit = None) -> None:
    """The laws of the simulated world, checked on the pixels: no model judges."""
    _evaluate(common, "laws", videos, limit)


@app.command("videophy")
@shared(ModelRun)
def videophy(
    common: ModelRun,
    videos: Videos,
    rater: Rater = None,
    threshold: Annotated[float, typer.Option(help="P(Yes) from which a video passes.")] = 0.5,
    batch_size: BatchSize = 4,
    limit: Limit = None,
) -> None:
    """VideoPhy: semantic adherence and physical commonsense, by the probability of Yes."""
    _evaluate(common, "videophy", videos, limit, rater=rater, threshold=threshold, batch_size=batch_size)


@app.command("videophy2")
@shared(ModelRun)
def videophy2(
    common: ModelRun,
    videos: Videos,
    rater: Rater = None,
    rules: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Physical rules to judge: a .csv or .jsonl list, a video and a rule a row. It may be --videos itself.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 4,
    limit: Limit = None,
) -> None:
    """VideoPhy-2: both rated 1 to 5, and Joint; 4 is enough. Rules: followed, violated or undecided."""
    _evaluate(common, "videophy2", videos, limit, rater=rater, rules=rules, batch_size=batch_size)


def _evaluate(
    common: ModelRun,
    benchmark: str,
    videos: str,
    limit: int | None,
    *,
    rater: str | None = None,
    threshold: float | None = None,
    rules: str | None = None,
    batch_size: int = 1,
) -> None:
    from dataclasses import replace

    from physcli.tasks.eval import EvalSettings, evaluate
    from physcli.tasks.run_dir import to_json

    settings = EvalSettings(benchmark, videos, rater, rules=rules, limit=limit, dtype=common.dtype)
    done = evaluate(
        settings if threshold is None else replace(settings, threshold=threshold),
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        batch_size=batch_size,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if not done.is_main:
        return
    if common.json:
        render.json_text(to_json({"run": done.path, "rows": done.rows, "items": done.items}))
        return
    head = [row for row in done.rows if row["group"] == "all"]
    first = head[0]
    lines = []
    for row in head:
        rate = row.get("unit") is None and not row["metric"].endswith(("_mean", "_grade", "_expected"))
        scale, digits = (100, 1) if rate else (1, 3)
        value = "–" if row["value"] is None else f"{scale * row['value']:.{digits}f}" + (" %" if rate else "")
        error = "" if row["stderr"] is None else f"±{1.96 * scale * row['stderr']:.{digits}f}"
        lines.append([row["metric"].replace("_", " "), value, error, row["n"]])
    judge = f"Rater: {first['rater']}." if "rater" in first else "Checked on the pixels."
    lost = next(row for row in head if row["metric"] == "missing/video")["count"]
    render.table(
        f"{benchmark}: {len(done.items)} videos of {first['subject']}",
        ["", "value", "95 %", "n"],
        lines,
        caption=f"{judge} {lost} videos could not be scored. A still video breaks few laws: read pc beside what moves.",
        right=(1, 2, 3),
    )
    render.files(done.files())
