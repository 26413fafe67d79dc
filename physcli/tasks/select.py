"""`physcli eval select`: which verifier picks the best of several videos of one prompt, and what does it cost?

A finished run of `physcli eval` holds a judge's scores of N videos of each prompt. Every verifier picks one of each;
the judge's scores of the picks are compared with those of all videos (what choosing blindly gives) and of the judge's
own picks (the oracle, which nothing beats):

    METRIC         of the picks; METRIC_gain: less all videos, paired
    gain_share     (picks − all) / (oracle − all)
    motion_px      of the picks, and the same difference: a verifier that likes still videos shows here
    still_wins     share of prompts where the first frame of its pick, held, would have been preferred to the pick

    OUT/metrics.json    a row a verifier and measure; bootstrap intervals over prompts
    OUT/items.jsonl     a row a video: the judge's score, every verifier's, and who picks it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from physcli.benchmarks.dynamic_degree import LARGEST_MOTION
from physcli.data.video import chroma_step, frame_rate, read_video
from physcli.errors import PhyscliError, unknown
from physcli.models.device import pick_device
from physcli.progress import Reporter
from physcli.rows import Metric, Row, make_row, mean_row
from physcli.stats import bootstrap_interval
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, append_row, cache_root, read_log, with_defaults, write_jsonl
from physcli.tasks.scored_runs import Score, ScoredRun, read_scored_run
from physcli.tasks.verifiers import ALL, GAIN, ORACLE, VERIFIERS, verifier_class
from physcli.tasks.verifiers.base import Candidate, Need, Verifier

GAIN_SHARE = Metric("gain_share", "score", True, interval="bootstrap")
STILL_WINS = Metric("still_wins", "rate", False)
_LOG = "chosen-{}.part.jsonl"


@dataclass(frozen=True)
class SelectSettings:
    """Meanings as in `physcli eval select --help`."""

    run: str
    verifiers: tuple[str, ...] = tuple(VERIFIERS)
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
    metric: str
    num_prompts: int
    fewest: int
    most: int
    is_main: bool = True

    @property
    def subjects(self) -> list[str]:
        """All videos, the verifiers, the oracle."""
        return list(dict.fromkeys(row["subject"] for row in self.rows))

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
        UsageError: an unknown verifier or metric.
        PhyscliError: the run is none of `physcli eval`, or has one video of each prompt.
        DataError: a video that cannot be read or scored.
    """
    processes = Processes(device)
    reporter = reporter if reporter is not None and processes.is_main else Reporter()
    for name in settings.verifiers:
        verifier_class(name)
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
        writes=processes.is_main,
    )
    need = Need(
        settings.encoder, settings.rater, pick_device(device), settings.seed, cache_root(cache_dir), processes, reporter
    )
    with run:
        run.path = Path(processes.tell(str(run.path)))
        run.check_inputs({f"run/{name}": sha for name, sha in scored.hashes.items()})
        run.reopen()
        verifiers = {name: verifier_class(name)(need) for name in settings.verifiers}
        done = processes.tell(_logged(run.path))
        mine = [number for number in processes.share(range(len(groups))) if number not in done]
        with reporter.bar("Choosing", len(mine), "prompt") as bar:
            for number in mine:
                row = {"number": number, "scores": _ask(verifiers, groups[number])}
                append_row(run.path / _LOG.format(processes.rank), row)
                bar.advance()
        processes.wait()
        rows: list[Row] = []
        if processes.is_main:
            done = _logged(run.path)
            scores = [done[number]["scores"] for number in range(len(groups))]
            run.record["verifiers"] = {name: verifier.facts for name, verifier in verifiers.items()}
            rows = _measure(scored, groups, scores, metric, settings.seed)
            write_jsonl(run.path / "items.jsonl", _rows_of_videos(groups, scores, metric))
            run.write_metrics(rows)
            for part in run.path.glob(_LOG.format("*")):
                part.unlink()
    processes.finish()
    sizes = [len(group) for group in groups]
    return SelectResult(run.path, rows, metric.name, len(groups), min(sizes), max(sizes), processes.is_main)


def _metric(scored: ScoredRun, name: str | None) -> Metric:
    if scored.kind == "probe":
        raise PhyscliError(f"{scored.path} is a probe of a model.", expected="a run of `physcli eval` over videos")
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


def read_candidate(video: Path, *, prompt: str, caption: str, pixel_format: str) -> Candidate:
    """A candidate from its file.

    Raises:
        DataError: it cannot be decoded.
    """
    step = chroma_step(pixel_format) if pixel_format else (1, 1)
    return Candidate(read_video(video), frame_rate(video), prompt, caption or prompt, str(video.name), step)


def held(candidate: Candidate) -> Candidate:
    """Its first frame, all along."""
    frames = np.repeat(candidate.frames[:1], len(candidate.frames), axis=0)
    name = f"{candidate.name}, held"
    return Candidate(frames, candidate.frame_rate_hz, candidate.prompt, candidate.caption, name, candidate.chroma_step)


def _ask(verifiers: Mapping[str, Verifier], group: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Every verifier's scores of the videos of a prompt, and whether it prefers its pick's first frame, held."""
    candidates = [
        read_candidate(item.video, prompt=item.prompt, caption=item.caption, pixel_format=item.pixel_format)
        for item in group
        if item.video is not None
    ]
    found = {}
    for name, verifier in verifiers.items():
        scores = verifier.scores(candidates)
        pick = int(scores.argmax())
        *beside, still = verifier.scores([*candidates, held(candidates[pick])])
        found[name] = {"scores": scores.tolist(), "still_wins": bool(still > beside[pick])}
    return found


def _logged(path: Path) -> dict[int, dict[str, Any]]:
    return {row["number"]: row for part in sorted(path.glob(_LOG.format("*"))) for row in read_log(part)}


def _picks(
    scores: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[Score]], metric: Metric
) -> dict[str, list[int]]:
    """The place of the video of each prompt that each verifier picks, and of the oracle's."""
    sign = -1 if metric.higher_is_better is False else 1
    picks = {name: [int(np.argmax(one[name]["scores"])) for one in scores] for name in scores[0]}
    best = [int(np.argmax([sign * (item.values[metric.name] or 0) for item in group])) for group in groups]
    return picks | {ORACLE: best}


class _Bootstrap:
    """Statistics over prompts, with their intervals, as columns of a row."""

    def __init__(self, num_prompts: int, seed: int) -> None:
        self._everything, self._seed = np.arange(num_prompts), seed

    def of(self, statistic: Callable[[np.ndarray], float]) -> dict[str, Any]:
        spread = bootstrap_interval(statistic, clusters=self._everything.tolist(), seed=self._seed)
        found = {"value": statistic(self._everything), "stderr": spread.stderr, "low": spread.low, "high": spread.high}
        return {name: None if np.isnan(value) else value for name, value in found.items()}

    def mean(self, values: np.ndarray) -> dict[str, Any]:
        return self.of(lambda drawn: float(values[drawn].mean()))


def _measure(
    scored: ScoredRun,
    groups: Sequence[Sequence[Score]],
    scores: Sequence[Mapping[str, Any]],
    metric: Metric,
    seed: int,
) -> list[Row]:
    common: dict[str, Any] = {"benchmark": "select", "task": str(scored.rows[0]["benchmark"]), "group": "all"}
    common |= {"split": scored.rows[0].get("split"), "n": len(groups)}
    bootstrap, picks = _Bootstrap(len(groups), seed), _picks(scores, groups, metric)
    motion = [scored.metrics[LARGEST_MOTION.name]] if LARGEST_MOTION.name in scored.metrics else []
    rows: list[Row] = []
    for one in (metric, *motion):
        shown = replace(one, interval="bootstrap")
        table = [np.array([item.values[one.name] or 0.0 for item in group], dtype=np.float64) for group in groups]
        mean = np.array([column.mean() for column in table])
        gained = replace(shown, name=f"{one.name}{GAIN}", role="plain")
        rows.append(make_row(shown, subject=ALL, **common, **bootstrap.mean(mean)))
        for name, places in picks.items():
            of = np.array([column[place] for column, place in zip(table, places, strict=True)])
            rows.append(make_row(shown, subject=name, **common, **bootstrap.mean(of)))
            rows.append(make_row(gained, subject=name, **common, **bootstrap.mean(of - mean)))
    table = [np.array([item.values[metric.name] or 0.0 for item in group], dtype=np.float64) for group in groups]
    mean = np.array([column.mean() for column in table])
    best = np.array([column[place] for column, place in zip(table, picks[ORACLE], strict=True)])
    for name, places in picks.items():
        of = np.array([column[place] for column, place in zip(table, places, strict=True)])

        def share(drawn: np.ndarray, of: np.ndarray = of) -> float:
            most = float((best - mean)[drawn].mean())
            return float((of - mean)[drawn].mean()) / most if most else math.nan

        rows.append(make_row(GAIN_SHARE, subject=name, **common, **bootstrap.of(share)))
        if name != ORACLE:
            wins = [float(one[name]["still_wins"]) for one in scores]
            rows.append(mean_row(STILL_WINS, wins, subject=name, **{k: v for k, v in common.items() if k != "n"}))
    return rows


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
