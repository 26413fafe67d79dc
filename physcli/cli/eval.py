"""`physcli eval …`: do videos obey physics, and show what was asked?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from physcli.cli import render
from physcli.cli.options import ModelRun, Run, shared
from physcli.progress import counted

if TYPE_CHECKING:
    from physcli.tasks.agreement import AgreementResult

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
DeviceMap = Annotated[
    str | None,
    typer.Option(metavar="auto", help="auto: spread the rater over all devices there are.", show_default=False),
]
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
    device_map: DeviceMap = None,
    limit: Limit = None,
) -> None:
    """VideoPhy: semantic adherence and physical commonsense, by the probability of Yes."""
    _evaluate(
        common,
        "videophy",
        videos,
        limit,
        rater=rater,
        threshold=threshold,
        batch_size=batch_size,
        device_map=device_map,
    )


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
    device_map: DeviceMap = None,
    limit: Limit = None,
) -> None:
    """VideoPhy-2: both rated 1 to 5, and Joint; 4 is enough. Rules: followed, violated or undecided."""
    _evaluate(
        common, "videophy2", videos, limit, rater=rater, rules=rules, batch_size=batch_size, device_map=device_map
    )


@app.command("agreement")
@shared(Run)
def agreement(
    common: Run,
    truth: Annotated[str, typer.Argument(metavar="TRUTH", help="A run of eval, such as that of eval laws.")],
    judge: Annotated[str, typer.Argument(metavar="JUDGE", help="A run of eval over the same videos.")],
) -> None:
    """Does a rater say what the laws, or another rater, say of the same videos? Counts, κ and rank correlation."""
    from physcli.tasks.agreement import AgreementSettings, agreement
    from physcli.tasks.run_dir import to_json

    done = agreement(
        AgreementSettings(truth, judge, common.seed),
        out=common.out,
        overwrite=common.overwrite,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if common.json:
        render.json_text(to_json({"run": done.path, "rows": done.rows}))
        return
    _show_agreement(done)


def _show_agreement(done: AgreementResult) -> None:
    def cell(verdict: str, measure: str, group: str = "all") -> str | None:
        row = done.row(verdict, measure, group)
        if row is None or row["value"] is None:
            return None
        return f"{row['value']:.2f}" + ("" if row["stderr"] is None else f" ±{1.96 * row['stderr']:.2f}")

    names = {"sa": "SA", "pc": "PC", "joint": "Joint"}
    render.table(
        f"{done.judge} against {done.truth}: {counted(done.num_videos, 'video')}",
        ["", "agree", "κ", "ranking", "rank correlation"],
        [
            [names[verdict], *(cell(verdict, m) for m in ("agreement", "kappa", "ranking_area", "rank_correlation"))]
            for verdict in done.verdicts
        ],
        caption="± is a 95 % interval over prompts. κ: 0 by chance, 1 where they always agree. ranking: how often a "
        "video that truly passes is graded above one that fails; ½ by chance.",
        right=range(1, 5),
        whole=range(5),
    )
    render.table(
        "How many videos pass",
        ["", "both", f"only by {done.truth}", "only by the judge", "neither", "no answer"],
        [[names[v], *done.counts(v), done.num_videos - sum(done.counts(v))] for v in done.verdicts],
        right=range(1, 6),
    )
    if done.groups:
        render.table(
            "Agreement by group",
            ["", "n", *(names[verdict] for verdict in done.verdicts)],
            [
                [
                    group,
                    sum(done.counts(done.verdicts[0], group)),
                    *(cell(v, "agreement", group) for v in done.verdicts),
                ]
                for group in done.groups
            ],
            right=range(1, 2 + len(done.verdicts)),
            whole=range(2 + len(done.verdicts)),
        )
    render.files(done.files())


def _evaluate(
    common: ModelRun,
    benchmark: str,
    videos: str,
    limit: int | None,
    *,
    batch_size: int = 1,
    device_map: str | None = None,
    **settings: Any,
) -> None:
    """`settings`: those of `EvalSettings` that only some benchmarks have."""
    from physcli.stats import share_interval
    from physcli.tasks.eval import EvalSettings, evaluate
    from physcli.tasks.run_dir import to_json

    done = evaluate(
        EvalSettings(benchmark, videos, limit=limit, dtype=common.dtype, **settings),
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        device_map=device_map,
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
        if rate and row["value"] is not None and not row["metric"].startswith("missing/"):
            ends = share_interval(row["value"], row["stderr"], row["n"])
            spread = " to ".join(f"{scale * end:.{digits}f}" for end in ends)
        else:
            spread = "" if row["stderr"] is None else f"±{1.96 * scale * row['stderr']:.{digits}f}"
        lines.append([row["metric"], value, spread, row["n"]])
    judge = f"Rater: {first['rater']}." if "rater" in first else "Checked on the pixels."
    lost = next(row for row in head if row["metric"] == "missing/video")["count"]
    missing = {row["metric"].removeprefix("missing/"): row.get("count") for row in head}
    answers = [f"{missing[what]} {what.upper()}" for what in ("sa", "pc") if missing.get(what)]
    unanswered = f"; answers that cannot be read: {', '.join(answers)}" if answers else ""
    render.table(
        f"{benchmark}: {counted(len(done.items), 'video')} of {first['subject']}",
        ["", "value", "95 %", "n"],
        lines,
        caption=f"{judge} {lost} of {len(done.items)} could not be scored{unanswered}. A still video breaks few laws: "
        "read pc beside what moves.",
        right=(1, 2, 3),
    )
    render.files(done.files())
