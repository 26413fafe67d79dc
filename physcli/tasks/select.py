"""`physcli eval select`: which verifier picks the best of several videos of one prompt, and what does it cost?

A finished run of `physcli eval` holds a judge's scores of N videos of each prompt. Every verifier picks one of each;
the judge's scores of the picks are compared with those of all videos (what choosing blindly gives) and of the judge's
own picks (the oracle, which nothing beats):

    METRIC         of the picks; METRIC_gain: less all videos, paired
    gain_share     (picks − all) / (oracle − all)
    motion_px      of the picks, and the same difference: a verifier that likes still videos shows here
    still_wins     share of prompts where the first frame of its pick, held, would have been preferred to the pick

    OUT/metrics.json    for each verifier and measure a row; bootstrap intervals over prompts
    OUT/items.jsonl     for each video a row: the judge's score, every verifier's, and who picks it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from physcli.benchmarks.dynamic_degree import LARGEST_MOTION
from physcli.errors import DataError, PhyscliError, unknown
from physcli.hashing import settings_hash
from physcli.models.device import pick_device
from physcli.progress import Reporter
from physcli.rows import Metric, Row, interval_columns, make_row, mean_row
from physcli.stats import bootstrap_interval
from physcli.tasks.part_log import PartLog
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, cache_root, read_metrics, with_defaults, write_jsonl
from physcli.tasks.scored_runs import Score, ScoredRun, read_scored_run
from physcli.tasks.verifiers import ALL, GAIN, ORACLE, VERIFIERS, check_verifiers, verifier_class
from physcli.tasks.verifiers.base import Setting, Verifier, able_verifiers, cannot, read_candidate

GAIN_SHARE = Metric("gain_share", "score", True, interval="bootstrap")
STILL_WINS = Metric("still_wins", "rate", False, interval="wilson")


@dataclass(frozen=True)
class SelectSettings:
    """Meanings as in `physcli eval select --help`; `verifiers`: none given: all that can score these videos."""

    run: str
    verifiers: tuple[str, ...] = ()
    metric: str | None = None
    encoder: str | None = None
    rater: str | None = None
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class SelectResult:
    """Rows of metrics.json."""

    path: Path
    rows: list[dict[str, Any]]
    is_main: bool = True

    @property
    def metric(self) -> str:
        return str(self.rows[0]["metric"])

    @property
    def subjects(self) -> list[str]:
        """All videos, the verifiers, the oracle."""
        return list(dict.fromkeys(row["subject"] for row in self.rows))

    @property
    def like_judges(self) -> list[str]:
        """Verifiers that look at what the judge looks at."""
        return [name for name in self.subjects if name in VERIFIERS and VERIFIERS[name].judge == self.rows[0]["task"]]

    def row(self, subject: str, metric: str) -> dict[str, Any] | None:
        return next((row for row in self.rows if (row["subject"], row["metric"]) == (subject, metric)), None)

    def files(self) -> dict[str, Path]:
        return {"rows": self.path / "metrics.json", "videos": self.path / "items.jsonl"}


def select(
    settings: SelectSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> SelectResult:
    """Let verifiers pick, and see what the judge says of their picks.

    Args:
        settings: Which run, and which verifiers.
        out: The run directory.
        overwrite: Replace a run with other settings.
        device: Of encoders and raters.
        cache_dir: Simulated clips that a verifier is fitted to.
        reporter: Receives progress.

    Raises:
        UsageError: an unknown verifier or metric, or a model that none of the verifiers reads.
        PhyscliError: the run is none of `physcli eval` over videos, or has one video of each prompt.
        DataError: a video that cannot be read, or that a verifier cannot score that was asked for by name.
    """
    names = settings.verifiers or tuple(VERIFIERS)
    check_verifiers(names, encoder=settings.encoder, rater=settings.rater)
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    scored = read_scored_run(settings.run)
    metric = _metric(scored, settings.metric)
    groups = _groups(scored, metric, settings.limit)
    run = RunDir(
        out,
        "eval select",
        asdict(settings),
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
        processes=processes,
    )
    cache = cache_root(cache_dir)
    setting = Setting(settings.encoder, settings.rater, pick_device(device), settings.seed, cache, processes, reporter)
    with run:
        verifiers = {name: verifier_class(name)(setting) for name in names}
        inputs = {f"run/{name}": sha for name, sha in scored.hashes.items()}
        inputs |= {f"verifier/{name}": settings_hash(one.identity) for name, one in verifiers.items()}
        run.check_inputs(inputs)
        if run.already_finished:
            reporter.note(f"{run.path} already holds these choices.")
            processes.finish()
            return SelectResult(run.path, read_metrics(run.path), processes.is_main)
        log = PartLog(run.path, "chosen", processes)
        mine = log.todo(len(groups))
        with reporter.bar("Choosing", len(mine), "prompt") as bar:
            for number in mine:
                log.note(number, {"said": _ask(verifiers, groups[number], strict=bool(settings.verifiers))})
                bar.advance()
        processes.wait()
        rows: list[Row] = []
        if processes.is_main:
            done = log.rows()
            said = [done[number]["said"] for number in range(len(groups))]
            able = able_verifiers(said, names, reporter)
            scores = [{name: one[name] for name in able} for one in said]
            run.record["verifiers"] = {name: verifiers[name].identity | verifiers[name].found for name in able}
            rows = _measure(scored, groups, scores, metric, settings.seed)
            write_jsonl(run.path / "items.jsonl", _rows_of_videos(groups, scores, metric))
            run.write_metrics(rows)
            log.clear()
    processes.finish()
    return SelectResult(run.path, rows, processes.is_main)


def _metric(scored: ScoredRun, name: str | None) -> Metric:
    if scored.kind != "eval":
        raise PhyscliError(
            f"{scored.path} is a run of `physcli {scored.record['command']}`, which scores no videos.",
            expected="a run of `physcli eval` over videos",
        )
    if name is not None:
        if name not in scored.metrics:
            raise unknown(f"metric of {scored.path}", name, scored.metrics)
        return scored.metrics[name]
    return next((m for m in scored.metrics.values() if m.role == "headline"), next(iter(scored.metrics.values())))


def _groups(scored: ScoredRun, metric: Metric, limit: int | None) -> list[list[Score]]:
    """The videos of each prompt, those that have a score."""
    by_prompt: dict[str, list[Score]] = {}
    for item in scored.items.values():
        if item.values[metric.name] is not None:
            by_prompt.setdefault(item.cluster, []).append(item)
    groups = [group for group in by_prompt.values() if len(group) > 1][:limit]
    if not groups:
        raise PhyscliError(
            f"{scored.path} has no prompt with several videos that have a {metric.name}.",
            expected="a run of `physcli eval` over several videos of each prompt",
            fix="make them: physcli sample --num-samples 8 …; then `physcli eval` again",
        )
    return groups


def _ask(verifiers: Mapping[str, Verifier], group: Sequence[Score], *, strict: bool) -> dict[str, dict[str, Any]]:
    """Every verifier's scores of the videos of a prompt, and whether it prefers its pick's first frame, held.

    Args:
        verifiers: By name.
        group: The videos.
        strict: One that cannot score them ends the run; else it says why, as `cannot`.
    """
    candidates = []
    for item in group:
        assert item.video is not None
        candidates.append(
            read_candidate(item.video, prompt=item.prompt, caption=item.caption, pixel_format=item.pixel_format)
        )
    said: dict[str, dict[str, Any]] = {}
    for name, verifier in verifiers.items():
        try:
            scores = verifier.scores(candidates)
            pick = int(scores.argmax())
            held = candidates[pick].held()
            if verifier.relative:
                *beside, still = verifier.scores([*candidates, held])
            else:
                beside, [still] = list(scores), verifier.scores([held])
        except DataError as error:
            if strict:
                raise
            said[name] = cannot(error)
            continue
        said[name] = {"scores": scores.tolist(), "still_wins": bool(still > beside[pick])}
    return said


def _picks(
    scores: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[Score]], metric: Metric
) -> dict[str, list[int]]:
    """The place of the video of each prompt that each verifier picks, and of the oracle's."""
    sign = -1 if metric.higher_is_better is False else 1
    picks = {name: [int(np.argmax(one[name]["scores"])) for one in scores] for name in scores[0]}
    best = [int(np.argmax([sign * (item.values[metric.name] or 0) for item in group])) for group in groups]
    return picks | {ORACLE: best}


class _Rows:
    """Rows of statistics over prompts, with their intervals."""

    def __init__(self, num_prompts: int, seed: int, common: Mapping[str, Any]) -> None:
        self._everything, self._seed = np.arange(num_prompts), seed
        self._common = {**common, "n": num_prompts}

    def row(self, metric: Metric, subject: str, statistic: Callable[[np.ndarray], float]) -> Row:
        """Of the numbers of the prompts that are drawn."""
        spread = bootstrap_interval(statistic, clusters=self._everything.tolist(), seed=self._seed)
        value, ends = statistic(self._everything), interval_columns(spread)
        return make_row(metric, value, stderr=spread.stderr, subject=subject, **self._common, **ends)

    def mean(self, metric: Metric, subject: str, values: np.ndarray) -> Row:
        return self.row(metric, subject, lambda drawn: float(values[drawn].mean()))


def _values(
    groups: Sequence[Sequence[Score]], picks: Mapping[str, Sequence[int]], metric: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of the prompts of which all videos have this metric: the mean over their videos, and that of every pick."""
    whole = [n for n, group in enumerate(groups) if all(item.values[metric] is not None for item in group)]
    table = [[float(item.values[metric] or 0) for item in groups[n]] for n in whole]
    mean = np.array([np.mean(column) for column in table])
    of = {
        name: np.array([column[places[n]] for n, column in zip(whole, table, strict=True)])
        for name, places in picks.items()
    }
    return mean, of


def _measure(
    scored: ScoredRun,
    groups: Sequence[Sequence[Score]],
    scores: Sequence[Mapping[str, Any]],
    metric: Metric,
    seed: int,
) -> list[Row]:
    sizes = [len(group) for group in groups]
    common: dict[str, Any] = {"benchmark": "select", "task": str(scored.rows[0]["benchmark"]), "group": "all"}
    common |= {"split": scored.rows[0].get("split"), "fewest_videos": min(sizes), "most_videos": max(sizes)}
    picks = _picks(scores, groups, metric)
    motion = [scored.metrics[LARGEST_MOTION.name]] if LARGEST_MOTION.name in scored.metrics else []
    rows: list[Row] = []
    for one in (metric, *motion):
        mean, of = _values(groups, picks, one.name)
        if not len(mean):
            continue
        made, shown = _Rows(len(mean), seed, common), replace(one, interval="bootstrap")
        gained = replace(shown, name=f"{one.name}{GAIN}", role="plain")
        rows.append(made.mean(shown, ALL, mean))
        for name, values in of.items():
            rows += [made.mean(shown, name, values), made.mean(gained, name, values - mean)]
            if one is metric:
                rows.append(made.row(GAIN_SHARE, name, _share(values - mean, of[ORACLE] - mean)))
    for name in scores[0]:
        wins = [float(one[name]["still_wins"]) for one in scores]
        rows.append(mean_row(STILL_WINS, wins, subject=name, **common))
    return rows


def _share(gain: np.ndarray, most: np.ndarray) -> Callable[[np.ndarray], float]:
    """The mean of one over the mean of the other, of the prompts that are drawn; NaN of nothing to gain."""

    def share(drawn: np.ndarray) -> float:
        whole = float(most[drawn].mean())
        return float(gain[drawn].mean()) / whole if whole else math.nan

    return share


def _rows_of_videos(
    groups: Sequence[Sequence[Score]], scores: Sequence[Mapping[str, Any]], metric: Metric
) -> list[dict[str, Any]]:
    """Every video: what the judge and the verifiers say, and who picks it."""
    picks = _picks(scores, groups, metric)
    lines = []
    for number, group in enumerate(groups):
        for place, item in enumerate(group):
            row: dict[str, Any] = {"video": str(item.video), "prompt": item.prompt}
            row |= {metric.name: item.values[metric.name]}
            row |= {name: found["scores"][place] for name, found in scores[number].items()}
            lines.append(row | {"picked_by": [name for name, places in picks.items() if places[number] == place]})
    return lines
