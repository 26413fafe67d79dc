"""`physcli quickstart`: the whole story on the embedded default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from physcli.cli import render
from physcli.cli.compare import show_comparison
from physcli.cli.options import Run, shared
from physcli.cli.probe import show_probe
from physcli.progress import counted, duration_in_words


@shared(Run)
def quickstart(common: Run) -> None:
    """Probe, fine-tune with VideoREPA, probe again, sample, score, compare: no GPU, no network, minutes."""
    from physcli.tasks.quickstart import QuickstartSettings
    from physcli.tasks.quickstart import quickstart as task

    done = task(
        QuickstartSettings(seed=common.seed),
        out=common.out,
        overwrite=common.overwrite,
        cache_dir=common.cache_dir,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows, seconds=done.seconds):
        return
    render.result("\n[1] Before fine-tuning: what the features of both tell about contact\n")
    show_probe(done.before, {"clips": done.path / "clips.png"})
    render.result("\n[2] After fine-tuning with VideoREPA\n")
    show_probe(done.after)
    render.result("\n[3] The videos, before and after, and with LaMo's motion guidance\n")
    for benchmark, runs in done.scores.items():
        _show_scores(benchmark, runs)
    for comparison in done.comparisons.values():
        show_comparison(comparison)
    pairs = len(next(iter(done.comparisons.values())).keys)
    spent = ", ".join(f"{name} {duration_in_words(seconds)}" for name, seconds in done.seconds.items())
    render.result(
        f"\n{done.trained.steps[-1]['step']} steps and {pairs} videos decide nothing: they show "
        "how a question is asked. What is beyond noise is said above; for an answer, take the recipe's own steps, "
        "hundreds of prompts and several seeds.\n"
        f"Time: {spent}.\n"
        f"\nOpen {done.path / 'compare' / 'report.html'} in a browser: the videos side by side.\n"
        "Next: physcli finetune --help, physcli sample --help, physcli recipes ls, physcli doctor"
    )


def _show_scores(benchmark: str, runs: Mapping[str, Any]) -> None:
    first = next(iter(runs.values()))
    words = {"sa": "shows the prompt", "pc": "obeys physics", "joint": "both"}
    words |= {"moves": "moves"} if benchmark == "laws" else {"dynamic_degree": "moves"}
    lines = []
    for metric, told in words.items():
        values = [
            next(r["value"] for r in run.rows if (r["metric"], r["group"]) == (metric, "all")) for run in runs.values()
        ]
        lines.append([told, *("–" if value is None else f"{100 * value:.0f} %" for value in values)])
    judge = "checked on the pixels" if benchmark == "laws" else f"rated by {first.rows[0]['rater']}"
    render.table(
        f"{benchmark}: {counted(len(first.items), 'video')} a set, {judge}",
        ["", *runs],
        lines,
        right=range(1, len(runs) + 1),
    )
