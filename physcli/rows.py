"""Result rows: what a number means (`Metric`), and the only place where a row of metrics.json is made (`make_row`).

A metric is defined once, by the benchmark or task that measures it. Its kind, role and interval go into every row, so
that whoever reads a run (tables, reports, comparisons) need not guess from names or values what is in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from physcli.stats import Interval, share_interval, stderr_of_mean

# rate: a fraction of one, shown in per cent. grade: a rating, 1 to 5. px: pixels. score: any other number.
Kind = Literal["rate", "grade", "px", "count", "seconds", "score"]
# headline: what cases are ranked by. commonsense rises where less moves; motion is what then falls: `physcli compare`
# flags the two together.
Role = Literal["headline", "commonsense", "motion", "plain"]
# Of 95 %. wilson: of a rate, from its standard error, unless `low` and `high` are in the row. normal: ± 1.96 standard
# errors. bootstrap: `low` and `high` are in the row. none: the value is no estimate, or nothing is known of its spread.
IntervalKind = Literal["wilson", "normal", "bootstrap", "none"]

Row = dict[str, Any]

_QUANTILE = 1.96


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Attributes:
        name: Its column in items.jsonl, and `metric` in metrics.json.
        kind: How it is shown.
        higher_is_better: None where neither is.
        role: What comparisons and reports take it for.
        interval: Which interval its mean has.
    """

    name: str
    kind: Kind
    higher_is_better: bool | None
    role: Role = "plain"
    interval: IntervalKind = "normal"


def make_row(
    metric: Metric,
    value: float | None,
    *,
    benchmark: str,
    task: str,
    subject: str,
    split: str | None = "all",
    group: str = "all",
    stderr: float | None = None,
    n: int | None,
    **more: Any,
) -> Row:
    """A row of metrics.json.

    Args:
        metric: What was measured.
        value: None, as NaN, where there is no value; rates are fractions.
        benchmark: What measured it.
        task: The part of the benchmark.
        subject: Whose value it is: a model, a set of videos.
        split: Of the data.
        group: "all", or a scenario or category.
        stderr: Standard error; None, as NaN, where it is not known.
        n: Items.
        more: Further columns.
    """
    return {
        "benchmark": benchmark,
        "task": task,
        "subject": subject,
        "split": split,
        "group": group,
        "metric": metric.name,
        "value": _known(value),
        "stderr": _known(stderr),
        "n": n,
        "higher_is_better": metric.higher_is_better,
        "kind": metric.kind,
        "role": metric.role,
        "interval": metric.interval,
        **more,
    }


def mean_row(
    metric: Metric, values: Sequence[float | None], *, clusters: Sequence[object] | None = None, **columns: Any
) -> Row:
    """A row of the mean over items.

    Args:
        metric: What was measured.
        values: Of N items; those without one (None) are left out, of the mean and of `n`.
        clusters: [N] what each item belongs to, if items are not independent (videos of one prompt, say), for the
            standard error.
        columns: The other arguments of `make_row`.
    """
    names = range(len(values)) if clusters is None else clusters
    known = [(float(value), name) for value, name in zip(values, names, strict=True) if value is not None]
    if not known:
        return make_row(metric, None, n=0, **columns)
    numbers = np.array([value for value, _ in known])
    stderr = stderr_of_mean(numbers, [name for _, name in known])
    return make_row(metric, float(numbers.mean()), stderr=stderr, n=len(known), **columns)


def interval_columns(interval: Interval) -> dict[str, Any]:
    """The columns `low` and `high` of a row; None for an end that is not finite."""
    ends = {"low": interval.low, "high": interval.high}
    return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def metric_of(row: Mapping[str, Any]) -> Metric:
    """The metric of a row of metrics.json, also of a run from before rows said what they are."""
    name, higher = str(row["metric"]), row.get("higher_is_better")
    if "kind" in row:
        return Metric(name, row["kind"], higher, row.get("role", "plain"), row.get("interval", "normal"))
    kind = "px" if row.get("unit") == "px" else _old_kind(name)
    interval: IntervalKind = "none" if name.startswith("missing/") else "wilson" if kind == "rate" else "normal"
    return Metric(name, kind, higher, _OLD_ROLES.get(name, "plain"), interval)


def interval_of(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Both ends of a row's 95 % interval; None where nothing is known of the spread."""
    value, stderr, interval = row["value"], row.get("stderr"), metric_of(row).interval
    if value is None or interval == "none":
        return None
    if interval != "normal" and row.get("low") is not None:
        return row["low"], row["high"]
    if interval == "wilson":
        return share_interval(value, stderr, row["n"]) if row.get("n") else None
    if interval == "bootstrap" or stderr is None:
        return None
    return value - _QUANTILE * stderr, value + _QUANTILE * stderr


# --- runs from before rows had a kind ---

_OLD_RATES = ("sa", "pc", "joint", "dynamic_degree", "moves", "rules", "rules_undecided")
_OLD_ROLES: Mapping[str, Role] = {
    "joint": "headline",
    "accuracy": "headline",
    "pc": "commonsense",
    **dict.fromkeys(("dynamic_degree", "dynamic", "motion", "motion_px"), "motion"),
}


def _old_kind(name: str) -> Kind:
    """By the name alone, never by the values. What is not known to be a rate is shown as it is."""
    if name in _OLD_RATES or name.startswith(("law/", "missing/")) or name.endswith("accuracy"):
        return "rate"
    if name.endswith(("_grade", "_expected")):
        return "grade"
    return "px" if name.endswith("_px") else "score"


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
