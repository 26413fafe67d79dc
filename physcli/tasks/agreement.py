"""`physcli eval agreement`: does a judge of videos say what the truth says?

Both are runs of `physcli eval` over the same videos: the truth is `eval laws` for videos of the simulated world, or the
judge that is trusted more. Of SA, PC and Joint, as far as both give them:

* the four counts: both pass a video, both fail it, only one of them passes it;
* how often they agree, and Cohen's κ, which takes away what their pass rates alone would give;
* how often the judge grades a video that truly passes above one that truly fails (the area under the ROC curve);
* of SA and PC, Spearman's rank correlation of their grades.

A grade is finer than passing. Of a rater it is the expected rating, or P(Yes); of the laws, SA's grade, and for PC the
share of laws that hold, from 1 (none) to 5 (all). Joint has none of its own; a judge's is the smaller of the two.

    OUT/metrics.json    a row a measure, over all videos and by the truth's groups; bootstrap intervals over prompts
    OUT/items.jsonl     a row a video: what each of the two says
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physcli.errors import PhyscliError
from physcli.progress import Reporter
from physcli.rows import Kind, Metric, Row, interval_columns, make_row
from physcli.stats import bootstrap_interval, cohens_kappa, rank_correlation, roc_auc
from physcli.tasks.report import same_file
from physcli.tasks.run_dir import RunDir, with_defaults, write_jsonl
from physcli.tasks.scored_runs import Key, Score, ScoredRun, describe, read_scored_run

VERDICTS = ("sa", "pc", "joint")
# What of two judges is measured → kind.
MEASURES: dict[str, Kind] = {
    "agreement": "rate",
    "kappa": "score",
    "ranking_area": "score",
    "rank_correlation": "score",
}
COUNTS = ("both_pass", "only_truth_passes", "only_judge_passes", "both_fail")
_GRADES = {"sa": ("sa_expected", "sa_grade", "sa_mean"), "pc": ("pc_expected", "pc_mean")}
_LAW = "law/"


@dataclass(frozen=True)
class AgreementSettings:
    """The runs, and the seed of the bootstrap."""

    truth: str
    judge: str
    seed: int = 0


@dataclass(frozen=True)
class AgreementResult:
    """Rows of metrics.json; the first of every verdict holds its four counts."""

    path: Path
    rows: list[dict[str, Any]]
    truth: str
    judge: str
    num_videos: int

    def row(self, verdict: str, measure: str, group: str = "all") -> dict[str, Any] | None:
        """None for a measure there is not of this verdict."""
        return next((r for r in self.rows if (r["metric"], r["group"]) == (f"{verdict}_{measure}", group)), None)

    def counts(self, verdict: str, group: str = "all") -> list[int]:
        """Videos that both pass, only the truth, only the judge, neither."""
        row = self.row(verdict, "agreement", group)
        return [row[name] for name in COUNTS] if row is not None else []

    @property
    def verdicts(self) -> list[str]:
        return list(dict.fromkeys(row["of"] for row in self.rows))

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(row["group"] for row in self.rows))[1:]

    def files(self) -> dict[str, Path]:
        return {"rows": self.path / "metrics.json", "videos": self.path / "items.jsonl"}


def agreement(
    settings: AgreementSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> AgreementResult:
    """Compare a judge's verdicts and grades of videos with the truth's.

    Args:
        settings: Which runs.
        out: The run directory.
        overwrite: Replace a run with other settings.
        reporter: Receives notes.

    Raises:
        PhyscliError: a run is none of `physcli eval`, is not finished, or the two are not of the same videos.
        DataError: items that are not as they should be.
    """
    reporter = reporter or Reporter()
    truth, judge = (read_scored_run(name) for name in (settings.truth, settings.judge))
    for run in (truth, judge):
        if run.kind != "eval":
            raise PhyscliError(
                f"{run.path} is about a model, not about videos.", expected="runs of `physcli eval` over videos"
            )
    verdicts = [name for name in VERDICTS if name in truth.metrics and name in judge.metrics]
    if not verdicts:
        said = "; ".join(f"{run.path}: {', '.join(run.metrics)}" for run in (truth, judge))
        raise PhyscliError(f"The runs have no verdict in common. {said}.", expected=f"one of {', '.join(VERDICTS)}")
    keys = _pair(truth, judge)
    with RunDir(
        out,
        "eval agreement",
        asdict(settings),
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
    ) as run_dir:
        run_dir.check_inputs(
            {
                f"{role}/{name}": sha
                for role, r in (("truth", truth), ("judge", judge))
                for name, sha in r.hashes.items()
            }
        )
        run_dir.reopen()  # it takes seconds
        names = _name(truth), _name(judge)
        common = {
            "benchmark": "agreement",
            "task": str(judge.rows[0]["benchmark"]),
            "subject": names[1],
            "truth": names[0],
            "split": truth.rows[0].get("split"),
        }
        groups = sorted({group for key in keys if (group := truth.items[key].group) is not None})
        rows = []
        for group in ("all", *(groups if len(groups) > 1 else ())):
            inside = [key for key in keys if group in ("all", truth.items[key].group)]
            for verdict in verdicts:
                rows += _measure(truth, judge, verdict, inside, settings.seed, common | {"group": group})
        write_jsonl(run_dir.path / "items.jsonl", [_item_row(truth, judge, verdicts, key) for key in keys])
        run_dir.write_metrics(rows)
    return AgreementResult(run_dir.path, rows, *names, len(keys))


def _name(run: ScoredRun) -> str:
    """The judge: a rater's name, or the benchmark of one that has none."""
    return ", ".join(run.values_of("rater")) or str(run.rows[0]["benchmark"])


def _pair(truth: ScoredRun, judge: ScoredRun) -> list[Key]:
    """The videos, in the truth's order; both runs must hold the very same."""
    runs = (truth, judge)
    for run, other in (runs, runs[::-1]):
        only = [key for key in run.items if key not in other.items]
        if only:
            raise PhyscliError(
                f"{len(only)} of {len(run.items)} videos of {run.path} are not in {other.path}, such as "
                f"{describe(only[0])}.",
                expected="two runs over the same videos",
                fix="score the same --videos with both",
            )
    hashes = [run.record.get("inputs", {}).get("videos") for run in runs]
    if hashes[0] is not None and hashes[0] == hashes[1]:
        return list(truth.items)
    for key, item in truth.items.items():
        if not _same_video(item, judge.items[key]):
            raise PhyscliError(
                f"{describe(key)} is {item.video} in {truth.path} and {judge.items[key].video} in {judge.path}, and "
                "they are not the same video.",
                expected="two runs over the same videos",
                fix="score the same --videos with both",
            )
    return list(truth.items)


def _same_video(first: Score, second: Score) -> bool:
    return first.video == second.video or same_file(first.video, second.video)


def _measure(
    truth: ScoredRun, judge: ScoredRun, verdict: str, keys: Sequence[Key], seed: int, columns: Mapping[str, Any]
) -> list[Row]:
    """The four counts with the agreement, and the other measures."""
    scored = [key for key in keys if None not in (truth.items[key].values[verdict], judge.items[key].values[verdict])]
    true, said = (
        np.array([bool(run.items[key].values[verdict]) for key in scored], dtype=bool) for run in (truth, judge)
    )
    grades = [np.array([grade(run.items[key].values, verdict) for key in scored]) for run in (truth, judge)]
    clusters = [truth.items[key].cluster for key in scored]
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "agreement": lambda drawn: float(np.mean(true[drawn] == said[drawn])),
        "kappa": lambda drawn: cohens_kappa(true[drawn], said[drawn]),
        "ranking_area": lambda drawn: roc_auc(grades[1][drawn], true[drawn]),
    }
    if verdict != "joint":
        statistics["rank_correlation"] = lambda drawn: rank_correlation(grades[0][drawn], grades[1][drawn])
    everything = np.arange(len(scored))
    rows = []
    for measure, statistic in statistics.items():
        value = statistic(everything) if scored else math.nan
        spread = bootstrap_interval(statistic, clusters=clusters, seed=seed)
        rows.append(
            make_row(
                Metric(f"{verdict}_{measure}", MEASURES[measure], True, interval="bootstrap"),
                value,
                stderr=spread.stderr,
                n=len(scored),
                **columns,
                of=verdict,
                **interval_columns(spread),
                num_missing=len(keys) - len(scored),
            )
        )
    counts = (true & said, true & ~said, ~true & said, ~true & ~said)
    rows[0] |= {name: int(np.sum(count)) for name, count in zip(COUNTS, counts, strict=True)}
    return rows


def grade(values: Mapping[str, float | None], verdict: str) -> float:
    """An item's grade in a verdict, from its fields; the verdict itself where there is no finer one.

    Args:
        values: Of items.jsonl.
        verdict: sa, pc or joint.
    """
    if verdict == "joint":
        return min(grade(values, "sa"), grade(values, "pc"))
    for name in _GRADES[verdict]:
        if (value := values.get(name)) is not None:
            return float(value)
    laws = [value for name, value in values.items() if name.startswith(_LAW) and value is not None]
    if verdict == "pc" and laws:
        return 1 + 4 * float(np.mean(laws))
    value = values.get(verdict)
    return math.nan if value is None else float(value)


def _item_row(truth: ScoredRun, judge: ScoredRun, verdicts: Sequence[str], key: Key) -> dict[str, Any]:
    item = truth.items[key]
    row: dict[str, Any] = {"video": str(item.video), "prompt": item.prompt, "group": item.group}
    for verdict in verdicts:
        for role, run in (("truth", truth), ("judge", judge)):
            values = run.items[key].values
            row |= {f"{verdict}_{role}": values[verdict], f"{verdict}_grade_{role}": _or_none(grade(values, verdict))}
    return row


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
