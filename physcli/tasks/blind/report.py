"""report.html of votes: what was preferred, how far raters agree, and the clearest and the most disputed pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from physcli import __version__
from physcli.files import write_text
from physcli.progress import counted
from physcli.report.html import (
    Case,
    Cell,
    Content,
    Markup,
    Player,
    callout,
    case,
    details,
    interval,
    page,
    section,
    shares,
    table,
)
from physcli.tasks.blind.ballots import Ballot
from physcli.tasks.blind.key import RULES, rule_words
from physcli.tasks.blind.votes_result import MODELS, RELIABILITY, VotesResult, ends_text, value_text
from physcli.tasks.figures import ALPHA, number, p_text, score_texts
from physcli.tasks.report import Players
from physcli.tasks.scored_runs import Score

_CASES = 3  # of each kind
_MAX_VIDEO_MB = 24.0


def write_votes_report(result: VotesResult, path: Path, *, record: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        result: The votes' numbers.
        path: The HTML file.
        record: Of the run, as it will be finished.
    """
    key = result.key
    parts: list[Content] = [callout("In short", result.sentences())]
    if result.notes:
        parts.append(callout("Good to know", result.notes))
    parts += [
        section(
            "Preferences", _preferences(result), lead="A tie is half a vote. Repeats and checks do not count here."
        ),
        section("Strengths", _strengths(result)),
        section("Raters", _reliability(result), details("Each rater", _raters(result)), _rules(result)),
        _cases(result),
        section("Settings", _settings(result, record)),
    ]
    title = f"{' and '.join(key.runs)}: what {counted(len(result.ballots), 'rater')} preferred"
    footer = f"Written by physcli {__version__}, `physcli eval votes`. Everything on this page is inside this one file."
    write_text(path, page(title, key.record["question"], *parts, footer=footer))


def _preferences(result: VotesResult) -> Markup:
    lines: list[list[Content | Cell]] = []
    for row in result.preferences:
        name = Cell(row["subject"], detail=f"against {row['reference']}")
        if row["value"] is None:
            lines.append([name, "–", None, 0, None, None, "–", "–"])
            continue
        clear = row["p_holm"] < ALPHA
        tone = ("better" if row["value"] > 0.5 else "worse") if clear else ""
        ends = [None if row[end] is None else 100 * (row[end] - 0.5) for end in ("low", "high")]
        won = [("won", row["prompts_won"]), ("tied", row["prompts_tied"]), ("lost", row["prompts_lost"])]
        lines.append(
            [
                name,
                Cell(f"{number(row['value'], 'rate')} %", tone=tone, detail=ends_text(row)),
                interval(100 * (row["value"] - 0.5), *ends, reach=50, tone=tone),
                Cell(row["n"], detail=f"{row['wins']} / {row['ties']} / {row['losses']}"),
                row["num_raters"],
                Cell(
                    shares(won, tones=("better", "", "worse")),
                    detail=f"{row['prompts_won']} / {row['prompts_tied']} / {row['prompts_lost']}, "
                    f"p {p_text(row['p_prompts'])}",
                ),
                Cell(p_text(row["p"]), detail=f"Holm {p_text(row['p_holm'])}"),
                Cell(
                    p_text(row["p_votes"]),
                    detail="" if row["design_effect"] is None else f"×{row['design_effect']:.2f}",
                ),
            ]
        )
    return table(
        ["", "preferred", "", "votes: for / tie / against", "raters", "prompts won / tied / lost", "p", "p of votes"],
        lines,
        label="Preferences",
        caption="Interval: 95 %, prompts drawn again. p: a permutation test, random sign flips of the prompts. Below "
        "prompts: a binomial test on those won and lost. p of votes: the same on decided votes, as if those on one "
        f"prompt were independent; × is how much they are not (the design effect). {result.needed()}",
        right=(1, 3, 4, 6, 7),
    )


def _strengths(result: VotesResult) -> Markup:
    lines: list[list[Content | Cell]] = []
    for number_, run in enumerate(result.key.runs):
        line: list[Content | Cell] = [run]
        for model in result.models:
            row = result.rows_of("strength", model)[number_]
            line.append(Cell(value_text(row), detail="the reference" if not number_ else ends_text(row)))
        lines.append(line)
    for metric, name in (("side_bias", "left side"), ("tie_parameter", "ν, of ties")):
        found = [result.row(metric, model) for model in result.models]
        if any(found):
            cells = ["–" if row is None else Cell(value_text(row), detail=ends_text(row)) for row in found]
            lines.append([name, *cells])
    return table(
        ["", *(MODELS[model] for model in result.models)],
        lines,
        label="Strengths",
        caption="In logits; the left side's is what it adds to the video there. Bradley–Terry takes a tie for half a "
        "vote each, Davidson models ties. Intervals: 95 %, prompts and raters drawn again.",
        right=range(1, 1 + len(result.models)),
    )


def _reliability(result: VotesResult) -> Markup:
    lines: list[list[Content | Cell]] = []
    for metric, words in RELIABILITY.items():
        row = result.row(metric)
        if row is not None:
            lines.append([words, *score_texts(row), row["n"]])
    return table(["", "value", "95 % interval", "n"], lines, label="Raters", right=(1, 2, 3))


def _raters(result: VotesResult) -> Markup:
    lines: list[list[Content | Cell]] = []
    for ballot in result.ballots:
        seconds = [vote.seconds for vote in ballot.votes if vote.counts]
        checks = ballot.of("check")
        lines.append(
            [
                ballot.name,
                f"{len(seconds)} of {ballot.num_trials}",
                f"{np.median(seconds):.1f}" if seconds else "–",
                sum(vote.plays + vote.replays for vote in ballot.votes),
                f"{sum(vote.passed for vote in checks)} of {len(checks)}",
                _left(ballot),
                sum(vote.choice == "tie" for vote in ballot.of("pair")),
                result.excluded.get(ballot.name, ""),
            ]
        )
    columns = ["rater", "answered", "median s", "plays", "checks", "left / right", "ties", "left out by"]
    return table(columns, lines, label="Each rater", right=range(1, 7))


def _left(ballot: Ballot) -> str:
    chosen = [vote.choice for vote in ballot.of("pair")]
    return f"{chosen.count('left')} / {chosen.count('right')}"


def _rules(result: VotesResult) -> Markup:
    lines: list[list[Content | Cell]] = [
        [rule, rule_words(rule, bound), sum(name == rule for name in result.excluded.values())]
        for rule, bound in ((rule, result.key.rules[rule]) for rule in RULES)
    ]
    return table(
        ["rule", "a rater is left out who", "raters"],
        lines,
        label="Rules of exclusion",
        caption=f"Registered when the page {result.key.page} was made; its id is the hash of its key, rules included.",
        right=(2,),
    )


def _cases(result: VotesResult) -> Markup:
    """For each pair of runs the items won and lost most clearly, and those that divide raters most."""
    votes: dict[tuple[int, int, int], list[float]] = {}
    for ballot in result.ballots:
        if ballot.name in result.excluded:
            continue
        for vote in ballot.of("pair"):
            first, second = sorted((vote.left, vote.right))
            value = {first: 0.0, second: 1.0}.get(-1 if vote.chosen is None else vote.chosen, 0.5)
            votes.setdefault((first, second, vote.item or 0), []).append(value)
    files = {(v["run"], v["item"]): Path(v["path"]) for v in result.key.videos.values() if "run" in v}
    chosen: dict[tuple[int, int, int], str] = {}
    for match in sorted({place[:2] for place in votes}):
        inside = {place: values for place, values in votes.items() if place[:2] == match}
        runs = [result.key.runs[run] for run in match]
        order = sorted(inside, key=lambda place: (sum(inside[place]) - len(inside[place]) / 2, place), reverse=True)
        disputed = sorted(inside, key=lambda place: (-float(np.var(inside[place])), place))
        for number_ in range(_CASES):
            for ranked, words in ((order, f"clearest for {runs[1]}"), (order[::-1], f"clearest for {runs[0]}")):
                side = 1 if ranked is order else -1
                place = ranked[number_] if number_ < len(ranked) else None
                if place is not None and side * (float(np.mean(inside[place])) - 0.5) > 0:
                    chosen.setdefault(place, words)
        for place in disputed[:_CASES]:
            if np.var(inside[place]) > 0:
                chosen.setdefault(place, "most disputed")
    players, drawn = Players(_MAX_VIDEO_MB), []
    for place, title in chosen.items():
        *pair, item = place
        facts, values = result.key.items[item], np.array(votes[place])
        scores = [(values == 0).sum(), (values == 1).sum()]
        shown = [
            (result.key.runs[run], Score((), "", None, None, {}, video=files[run, item])) for run in pair
        ]  # fmt: skip
        made = [
            Player(result.key.runs[run], [Cell(int(count), detail="votes")])
            for run, count in zip(pair, scores, strict=True)
        ]
        where = f"index {facts['index']}, seed {facts['seed']}, {counted(int((values == 0.5).sum()), 'tie')}"
        drawn.append(
            case(Case(title[0].upper() + title[1:], facts["prompt"], where, players.add(shown, made)))
        )  # fmt: skip
    lead = f"{len(drawn)} of {len(votes)} pairs that were voted on. {players.said()}"
    return section("Side by side", *drawn, lead=lead)


def _settings(result: VotesResult, record: Mapping[str, Any]) -> Markup:
    key = result.key
    facts = {
        "question": key.record["question"],
        "page": key.page,
        "checks": key.record["checks"] or "none",
        **{f"run: {run['label']}": run["path"] for run in key.record["runs"]},
        **{f"votes: rater {ballot.name}": str(ballot.path) for ballot in result.ballots},
        "seed": record["settings"]["seed"],
        "started": record["started"],
    }
    lines: list[list[Content | Cell]] = [[name, Cell(str(value), tone="code")] for name, value in facts.items()]
    return details("What was compared, and the files", table(["", ""], lines, label="Settings"))
