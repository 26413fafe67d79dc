"""What the votes on a blind page gave: its rows, and the same in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.progress import counted
from physcli.tasks.blind.ballots import Ballot
from physcli.tasks.blind.key import PageKey, rule_words
from physcli.tasks.figures import ALPHA, FEWEST_CLUSTERS, number, p_text

MODELS = {"bradley-terry": "Bradley–Terry", "davidson": "Davidson"}  # of strengths, in words

# How far raters are to be trusted: metric → in words.
RELIABILITY = {
    "krippendorff_alpha": "agreement between raters (Krippendorff's α)",
    "repeat_agreement": "the same answer when sides were exchanged",
    "checks_passed": "checks passed, of all raters",
    "left_share": "left, of decided votes",
}


@dataclass(frozen=True)
class VotesResult:
    """Rows of metrics.json, and what the report is drawn from. `excluded` is rater → rule."""

    path: Path
    rows: list[dict[str, Any]]
    key: PageKey
    ballots: Sequence[Ballot]
    excluded: dict[str, str]
    notes: list[str]

    def rows_of(self, metric: str, group: str = "all") -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["metric"], row["group"]) == (metric, group)]

    def row(self, metric: str, group: str = "all") -> dict[str, Any] | None:
        return next(iter(self.rows_of(metric, group)), None)

    @property
    def preferences(self) -> list[dict[str, Any]]:
        """A row for each pair of runs."""
        return self.rows_of("preferred")

    @property
    def models(self) -> list[str]:
        """Of strengths: Bradley–Terry, and Davidson's where there are ties."""
        return list(dict.fromkeys(row["group"] for row in self.rows if row["metric"] == "strength"))

    def sentences(self) -> list[str]:
        """Who is preferred, and what was left out."""
        said = [self._preference(row) for row in self.preferences]
        if self.excluded:
            rules = [
                f"{count} {rule_words(rule, self.key.rules[rule])}"
                for rule, count in Counter(self.excluded.values()).items()
            ]
            said.append(f"Left out {len(self.excluded)} of {counted(len(self.ballots), 'rater')}: {'; '.join(rules)}.")
        else:
            said.append(f"None of {counted(len(self.ballots), 'rater')} is left out.")
        return said

    def _preference(self, row: dict[str, Any]) -> str:
        first, second = row["reference"], row["subject"]
        if row["value"] is None:
            return f"No vote is on {second} and {first}."
        value, low, high = row["value"], row["low"], row["high"]
        if value < 0.5:
            first, second, value = second, first, 1 - value
            low, high = (None, None) if low is None else (1 - high, 1 - low)
        share = f"{number(value, 'rate')} % of {counted(row['n'], 'vote')} for {second}"
        if low is not None:
            share += f", {number(low, 'rate')} to {number(high, 'rate')}"
        if row["p_holm"] < ALPHA:
            return f"{second} is preferred to {first}: {share}; p {p_text(row['p_holm'])}."
        few = " So few prompts can show no preference, however clear." if row["num_prompts"] < FEWEST_CLUSTERS else ""
        return f"No preference between {second} and {first} is shown: {share}; p {p_text(row['p_holm'])}.{few}"

    def needed(self) -> str:
        """How many votes preferences need."""
        rows = [row for row in self.rows if row["metric"] == "votes_needed"]
        votes = ", ".join(f"{row['value']:.0f} votes for {row['group']}" for row in rows)
        effects = [row["design_effect"] for row in self.preferences if row.get("design_effect") is not None]
        worst = (
            f" Here votes on a prompt are alike: {max(effects):.2g} times as many."
            if effects and max(effects) > 1
            else ""
        )
        return f"To find a preference 8 times in 10 takes {votes}, if they are independent and decided.{worst}"

    def files(self) -> dict[str, Path]:
        names = {"report": "report.html", "rows": "metrics.json", "votes": "items.jsonl"}
        return {what: self.path / name for what, name in names.items()}


def ends_text(row: dict[str, Any]) -> str:
    """A bootstrap interval; infinite ends as such."""
    low, high = row.get("low"), row.get("high")
    if low is None and high is None:
        return "–"
    kind = row["kind"]
    return f"{'−∞' if low is None else number(low, kind)} to {'∞' if high is None else number(high, kind)}"


def value_text(row: dict[str, Any]) -> str:
    """A strength, infinite where a run never lost or never won."""
    boundless = {"above": "∞", "below": "−∞"}.get(str(row.get("boundless")))
    return boundless or number(row["value"], row["kind"])
