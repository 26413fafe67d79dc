"""`physcli study`: what does each method do to the videos?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from physcli.cli import render
from physcli.cli.options import TrainRun, shared
from physcli.errors import UsageError
from physcli.progress import counted, duration_in_words
from physcli.tasks.study.file import find_study, read_study


@shared(TrainRun)
def study(
    common: TrainRun,
    file: Annotated[str, typer.Argument(metavar="STUDY", help="A packaged study or a YAML file.", show_default=False)],
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run this arm now; may be repeated. The report is of all that were run.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is left to run, and how long that takes; leave nothing.")
    ] = False,
) -> None:
    """Train, sample and score many arms, and compare each with a control: one report, with seeds and intervals."""
    if common.seed:
        raise UsageError(
            f"--seed {common.seed} with study.", expected="the seeds that its file names", fix="leave it out"
        )
    read_study(find_study(file))
    from physcli.tasks.run_dir import to_json
    from physcli.tasks.study.page import beyond_noise
    from physcli.tasks.study.run import plan_study
    from physcli.tasks.study.run import study as task
    from physcli.tasks.tables import study_arms

    reporter = render.RichReporter(quiet=common.quiet)
    asked: dict[str, Any] = {"only": tuple(only or ()), "device": common.device, "cache_dir": common.cache_dir}
    asked["reporter"] = reporter
    if dry_run:
        plans = plan_study(file, out=common.out, **asked)
        if common.json:
            render.json_text(to_json([{**asdict(plan), "unit": str(plan.unit)} for plan in plans]))
            return
        parts = [(str(plan.unit), plan.train, plan.sample, plan.judge) for plan in plans]
        rows = [[name, *(duration_in_words(s) if s else "–" for s in seconds)] for name, *seconds in parts]
        whole = sum(sum(seconds) for _, *seconds in parts)
        render.table(
            f"Left to run: {counted(len(plans), 'run')}, {duration_in_words(whole)} with one process",
            ["arm", "training", "videos", "scores"],
            rows,
            caption="Measured on few steps and videos; the probe is not counted." if plans else "",
            right=(1, 2, 3),
        )
        return
    done = task(file, out=common.out, overwrite=common.overwrite, **asked)
    if not done.is_main:
        return
    if common.json:
        compared = [row for comparison in done.comparisons.values() for row in comparison.rows]
        render.json_text(to_json({"run": done.path, "rows": compared, "missing": [str(unit) for unit in done.missing]}))
        return
    for judge, comparison in done.comparisons.items():
        render.show(study_arms(comparison, judge))
        for sentence in beyond_noise(comparison):
            render.result(sentence)
        render.result("")
    render.files(done.files())
