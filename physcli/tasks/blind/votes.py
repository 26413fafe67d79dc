"""`physcli eval votes`: what people preferred on a page of `physcli compare --blind`.

1. Read the files; join them with the page's key.
2. Leave raters out by the rules that were registered when the page was made, and say how many by each.
3. Of every pair of runs the share of votes for the later one (a tie is half), with a bootstrap over prompts; a test by
   random sign flips of the prompts, as `physcli compare` has it, with Holm's correction; binomial tests on prompts won
   and lost, and on decided votes, which takes votes on a prompt for independent.
4. Strengths by Bradley and Terry with the side's pull, and by Davidson where there are ties; intervals by a bootstrap
   over prompts and raters.
5. Agreement: between raters (Krippendorff's α), of raters with themselves (repeats), with what is known (checks).

    OUT/metrics.json    a row for each number
    OUT/items.jsonl     a row for each vote: what was preferred, by whom, and whether it counts
    OUT/report.html     the same with the videos
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from physcli.benchmarks.preferences import (
    Fit,
    Votes,
    bradley_terry,
    crossed_intervals,
    davidson,
    nominal_alpha,
    votes_needed,
)
from physcli.errors import DataError, MissingExtra, UsageError
from physcli.hashing import content_hash
from physcli.progress import Reporter, counted
from physcli.rows import Metric, Row, interval_columns, make_row, mean_row
from physcli.stats import bootstrap_interval, holm, mcnemar_exact, sign_flip_p, stderr_of_mean
from physcli.tasks.blind.ballots import Ballot, Vote, find_key, read_ballots
from physcli.tasks.blind.key import RULES, PageKey
from physcli.tasks.blind.page import SHARES
from physcli.tasks.blind.report import write_votes_report
from physcli.tasks.blind.votes_result import VotesResult
from physcli.tasks.run_dir import RunDir, with_defaults, write_jsonl

PREFERRED = Metric("preferred", "rate", True, role="headline", interval="bootstrap")
TIES = Metric("ties", "rate", None, interval="wilson")
STRENGTH = Metric("strength", "score", True, interval="bootstrap")
SIDE = Metric("side_bias", "score", None, interval="bootstrap")
TIE = Metric("tie_parameter", "score", None, interval="bootstrap")
LEFT = Metric("left_share", "rate", None, interval="wilson")
KRIPPENDORFF = Metric("krippendorff_alpha", "score", True, interval="bootstrap")
REPEATS = Metric("repeat_agreement", "rate", True, interval="wilson")
CHECKS = Metric("checks_passed", "rate", True, interval="wilson")
RATERS = Metric("raters", "count", None, interval="none")
EXCLUDED = Metric("excluded_raters", "count", None, interval="none")
LOST = Metric("missing/votes", "rate", False, interval="none")
NEEDED = Metric("votes_needed", "count", None, interval="none")

_FEW = 10  # decided votes from which a rater's favourite side means something


@dataclass(frozen=True)
class VotesSettings:
    """The files of votes, the page's run directory (None to look beside them), and the seed of the bootstraps."""

    files: tuple[str, ...]
    page: str | None = None
    seed: int = 0


def score_votes(
    settings: VotesSettings, *, out: Path | None = None, overwrite: bool = False, reporter: Reporter | None = None
) -> VotesResult:
    """Score what raters sent back.

    Args:
        settings: Which files.
        out: The run directory.
        overwrite: Replace a run with other settings.
        reporter: Receives notes and warnings.

    Raises:
        UsageError: no file, or one twice.
        PhyscliError: the page's key is not found.
        DataError: a file that is none of votes, was changed or is of another page; no vote that counts.
    """
    reporter = reporter or Reporter()
    files = [Path(name) for name in settings.files]
    if not files:
        raise UsageError("No file of votes.", expected="one or more that raters saved")
    if len({path.resolve() for path in files}) < len(files):
        raise UsageError("A file of votes is named twice.", expected="each once")

    # 1. The votes.
    key = find_key(files, Path(settings.page) if settings.page is not None else None)
    ballots, notes = read_ballots(files, key)
    with RunDir(
        out, "eval votes", asdict(settings), complete=with_defaults(settings), overwrite=overwrite, reporter=reporter
    ) as run_dir:
        run_dir.check_inputs({"key": key.page, **{str(path): content_hash(path) for path in files}})
        run_dir.reopen()  # it takes seconds

        # 2. Who counts.
        excluded = {ballot.name: rule for ballot in ballots if (rule := excluded_by(ballot, key.rules)) is not None}
        kept = [ballot for ballot in ballots if ballot.name not in excluded]
        votes = [(ballot, vote) for ballot in kept for vote in ballot.of("pair")]
        if not votes:
            counts = ", ".join(f"{number} by {rule}" for rule, number in Counter(excluded.values()).items())
            raise DataError(
                f"No vote counts: {counted(sum(len(b.votes) for b in ballots), 'vote')} of "
                f"{counted(len(ballots), 'rater')}" + (f", left out {counts}." if counts else "."),
                expected="votes on pairs, of raters whom the page's rules keep",
                fix="wait for more raters; the rules were registered with the page and stay as they are",
            )

        # 3. to 5. The numbers.
        common: dict[str, Any] = {"benchmark": "blind", "task": "votes"}
        rows = [
            *_shares(key, votes, common, settings.seed),
            *_strengths(key, votes, common, settings.seed),
            *_agreement(key, kept, ballots, common, settings.seed, notes),
            *_counts(ballots, excluded, common),
        ]
        for message in notes:
            reporter.note(message)
        if len(key.record["items"]) == 1 or len({vote.item for _, vote in votes}) == 1:
            reporter.warn(
                "All votes are on one item: nothing is known of how prompts differ, and no interval is given."
            )
        run_dir.record["notes"] = notes
        write_jsonl(run_dir.path / "items.jsonl", _item_rows(key, ballots, excluded))
        result = VotesResult(run_dir.path, rows, key, ballots, excluded, notes)
        write_votes_report(result, run_dir.path / "report.html", record=run_dir.as_finished())
        run_dir.write_metrics(rows)
    return result


def excluded_by(ballot: Ballot, rules: dict[str, float]) -> str | None:
    """The first rule that leaves a rater out; None if none does. A bound of 0 switches its rule off."""
    answered = [vote for vote in ballot.votes if vote.counts]
    checks, repeats = ballot.of("check"), repeat_pairs(ballot)
    sides = Counter(vote.choice for vote in ballot.of("pair") if vote.chosen is not None)
    decided = sides.total()
    broken = {
        "answered": len(answered) / ballot.num_trials < rules["answered"],
        "failed-checks": bool(checks) and np.mean([not v.passed for v in checks]) > rules["failed-checks"],
        "median-s": bool(answered) and float(np.median([v.seconds for v in answered])) < rules["median-s"],
        "one-sided": decided >= _FEW and max(sides.values()) / decided > rules["one-sided"],
        "repeats": bool(repeats) and np.mean([a.chosen == b.chosen for a, b in repeats]) < rules["repeats"],
    }
    return next((name for name in RULES if rules[name] and broken[name]), None)


def repeat_pairs(ballot: Ballot) -> list[tuple[Vote, Vote]]:
    """A rater's first vote on a pair and the second one, with sides exchanged."""
    first = {vote.pair: vote for vote in ballot.of("pair")}
    return [(first[vote.pair], vote) for vote in ballot.of("repeat") if vote.pair in first]


def _shares(key: PageKey, votes: Sequence[tuple[Ballot, Vote]], common: dict[str, Any], seed: int) -> list[Row]:
    """For each pair of runs the share of the later one, and of ties."""
    rows = []
    for first, second in itertools.combinations(range(len(key.runs)), 2):
        inside = [(ballot, vote) for ballot, vote in votes if {vote.left, vote.right} == {first, second}]
        columns = common | {"subject": key.runs[second], "reference": key.runs[first], "n": len(inside)}
        if not inside:
            rows.append(make_row(PREFERRED, None, **columns, p=None, p_holm=None))
            continue
        values = np.array([0.5 if vote.chosen is None else float(vote.chosen == second) for _, vote in inside])
        prompts = [_prompt(key, vote) for _, vote in inside]
        spread = bootstrap_interval(partial(_mean, values), clusters=prompts, seed=seed)
        sums: dict[str, float] = {}
        for prompt, value in zip(prompts, values, strict=True):
            sums[prompt] = sums.get(prompt, 0.0) + value - 0.5
        won, lost = (sum(sign * total > 0 for total in sums.values()) for sign in (1, -1))
        wins, losses = int(np.sum(values == 1)), int(np.sum(values == 0))
        clustered, simple = stderr_of_mean(values, prompts), stderr_of_mean(values)
        effect = (clustered / simple) ** 2 if simple else math.nan
        rows.append(
            make_row(
                PREFERRED,
                float(values.mean()),
                stderr=clustered,
                **columns,
                **interval_columns(spread),
                wins=wins,
                ties=len(inside) - wins - losses,
                losses=losses,
                num_prompts=len(sums),
                num_raters=len({ballot.name for ballot, _ in inside}),
                prompts_won=won,
                prompts_tied=len(sums) - won - lost,
                prompts_lost=lost,
                p=sign_flip_p(np.array(list(sums.values())), seed=seed),
                p_holm=None,
                test="sign flips",
                p_prompts=mcnemar_exact(won, lost),
                p_votes=mcnemar_exact(wins, losses),
                design_effect=None if math.isnan(effect) else effect,
            )
        )
        rows.append(mean_row(TIES, (values == 0.5).astype(float).tolist(), clusters=prompts, **_without(columns, "n")))
    tested = [row for row in rows if row.get("p") is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = float(adjusted)
    return rows


def _strengths(key: PageKey, votes: Sequence[tuple[Ballot, Vote]], common: dict[str, Any], seed: int) -> list[Row]:
    """Bradley–Terry and, where there are ties, Davidson; the side's pull and share."""
    table = Votes(
        left=np.array([vote.left for _, vote in votes]),
        right=np.array([vote.right for _, vote in votes]),
        outcome=np.array([{"left": 1.0, "right": 0.0, "tie": 0.5}[vote.choice] for _, vote in votes]),
        num_runs=len(key.runs),
    )
    prompts, raters = [_prompt(key, vote) for _, vote in votes], [ballot.name for ballot, _ in votes]
    everyone = ", ".join(key.runs)
    rows = []
    fits = {"bradley-terry": bradley_terry} | ({"davidson": davidson} if np.any(table.outcome == 0.5) else {})
    for model, fit in fits.items():
        found: Fit = fit(table.counts())
        spreads = crossed_intervals(fit, table, prompts=prompts, raters=raters, seed=seed)
        metrics = [*(STRENGTH for _ in key.runs), SIDE, TIE]
        subjects = [*key.runs, everyone, everyone]
        for metric, subject, value, spread in zip(metrics, subjects, found.vector(), spreads, strict=True):
            if metric is TIE and model != "davidson":
                continue
            reference = metric is STRENGTH and subject == key.runs[0]
            row = make_row(
                metric,
                float(value) if math.isfinite(value) else None,
                stderr=None if reference else spread.stderr,
                n=len(votes),
                subject=subject,
                group=model,
                **common,
                **({"low": None, "high": None} if reference else interval_columns(spread)),
                boundless="above" if value == math.inf else "below" if value == -math.inf else None,
            )
            rows.append(row)
    decided = [(_prompt(key, v), float(v.choice == "left")) for _, v in votes if v.chosen is not None]
    clusters = [prompt for prompt, _ in decided]
    rows.append(mean_row(LEFT, [left for _, left in decided], clusters=clusters, subject=everyone, **common))
    return rows


def _agreement(
    key: PageKey, kept: Sequence[Ballot], ballots: Sequence[Ballot], common: dict[str, Any], seed: int, notes: list[str]
) -> list[Row]:
    everyone = common | {"subject": ", ".join(key.runs)}
    rows = []
    units = sorted({vote.pair for ballot in kept for vote in ballot.of("pair")}, key=lambda pair: pair or 0)
    places = {pair: number for number, pair in enumerate(units)}
    ratings = np.full((len(kept), len(units)), math.nan)
    prompts = [""] * len(units)
    for number, ballot in enumerate(kept):
        for vote in ballot.of("pair"):
            low = min(vote.left, vote.right)
            ratings[number, places[vote.pair]] = 1 if vote.chosen is None else 0 if vote.chosen == low else 2
            prompts[places[vote.pair]] = _prompt(key, vote)
    try:
        alpha = nominal_alpha(ratings)
        spread = bootstrap_interval(
            lambda drawn: nominal_alpha(ratings[:, drawn]), clusters=prompts, seed=seed, num_resamples=500
        )
        several = int(np.sum(np.sum(~np.isnan(ratings), axis=0) > 1))
        rows.append(
            make_row(KRIPPENDORFF, alpha, stderr=spread.stderr, n=several, **everyone, **interval_columns(spread))
        )
    except MissingExtra as missing:
        notes.append(f"Agreement between raters is left out. {missing.received} {missing.fix}")
    again = [(ballot.name, a.chosen == b.chosen) for ballot in kept for a, b in repeat_pairs(ballot)]
    passed = [(ballot.name, vote.passed) for ballot in ballots for vote in ballot.of("check")]
    for metric, found in ((REPEATS, again), (CHECKS, passed)):
        values = [float(value) for _, value in found]
        rows.append(mean_row(metric, values, clusters=[name for name, _ in found], **everyone))
    return rows


def _counts(ballots: Sequence[Ballot], excluded: dict[str, str], common: dict[str, Any]) -> Iterable[Row]:
    """Raters, whom the rules leave out, votes that do not count, and the votes that preferences need."""
    columns = common | {"subject": "raters", "n": len(ballots)}
    yield make_row(RATERS, len(ballots), **columns)
    yield make_row(EXCLUDED, len(excluded), **columns)
    by = Counter(excluded.values())
    for rule in RULES:
        yield make_row(EXCLUDED, by[rule], **columns, group=rule)
    votes = [vote for ballot in ballots for vote in ballot.votes]
    lost = sum(not vote.counts for vote in votes)
    yield make_row(LOST, lost / len(votes), count=lost, **columns | {"n": len(votes)})
    for share in SHARES:
        yield make_row(NEEDED, votes_needed(share), **columns | {"n": None}, group=f"{100 * share:g} %", power=0.8)


def _item_rows(key: PageKey, ballots: Sequence[Ballot], excluded: dict[str, str]) -> Iterable[dict[str, Any]]:
    for ballot in ballots:
        for vote in ballot.votes:
            facts: dict[str, Any] = {"rater": ballot.name, "session": ballot.session, "kind": vote.kind}
            if vote.kind == "check":
                facts |= {"passed": vote.passed if vote.counts else None}
            else:
                facts |= key.items[vote.item or 0]
                facts |= {"left": key.runs[vote.left], "right": key.runs[vote.right]}
                facts |= {"preferred": None if vote.chosen is None else key.runs[vote.chosen]}
            times = {name: getattr(vote, name) for name in ("choice", "plays", "replays", "seconds", "revised")}
            reason = excluded.get(ballot.name) or (
                None if vote.counts else "skipped" if vote.choice == "skip" else "unseen"
            )
            yield facts | times | {"excluded": reason}


def _mean(values: np.ndarray, drawn: np.ndarray) -> float:
    return float(values[drawn].mean())


def _prompt(key: PageKey, vote: Vote) -> str:
    return str(key.items[vote.item or 0]["prompt"])


def _without(columns: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in columns.items() if key != name}
