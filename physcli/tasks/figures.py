"""A result's numbers in words: the same on the terminal, in reports and in comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from physcli.rows import Kind, interval_of, metric_of

# Of five that all point one way, p = 2/2⁵ = .0625: no test of so few can find anything.
FEWEST_CLUSTERS = 6
ALPHA = 0.05  # below it, after correction, a difference is shown


def number(value: float | None, kind: Kind, *, sign: bool = False) -> str:
    """A value without its unit: rates in per cent (differences in points), others as they are."""
    if value is None or not math.isfinite(value):
        return "–"
    if kind == "rate":
        return f"{100 * value:{'+' if sign else ''}.1f}"
    return f"{value:{'+' if sign else ''}.3g}"


def score_texts(row: Mapping[str, Any]) -> tuple[str, str]:
    """A row's value, of a rate with its unit, and its 95 % interval."""
    metric, ends = metric_of(row), interval_of(row)
    kind, value, spread = metric.kind, number(row["value"], metric.kind), "–"
    if ends is not None:
        symmetric = metric.interval == "normal"
        spread = f"±{number(ends[1] - row['value'], kind)}" if symmetric else " to ".join(number(e, kind) for e in ends)
    return value + (" %" if kind == "rate" and value != "–" else ""), spread


def value_text(value: float | None, row: Mapping[str, Any], *, sign: bool = False) -> str:
    """A value of the kind of a comparison's row."""
    return number(value, row["kind"], sign=sign)


def difference_text(row: Mapping[str, Any]) -> str:
    """A difference with its sign, and its unit where it is of rates."""
    points = row["kind"] == "rate" and row["value"] is not None
    return value_text(row["value"], row, sign=True) + (" points" if points else "")


def interval_text(row: Mapping[str, Any]) -> str:
    if row["low"] is None or not math.isfinite(row["low"]):
        return "–"
    return f"{value_text(row['low'], row, sign=True)} to {value_text(row['high'], row, sign=True)}"


def least_text(row: Mapping[str, Any]) -> str:
    """The smallest difference that could be seen; "none" where no difference, however large, could be."""
    if row["smallest_detectable"] is None and row["num_clusters"] < FEWEST_CLUSTERS and row["value"] is not None:
        return "none"
    return value_text(row["smallest_detectable"], row)


def p_text(p: float | None) -> str:
    """A p value of two digits; very small ones are only said to be small."""
    if p is None:
        return "–"
    return "<.0001" if p < 1e-4 else f"{p:.2g}" if p >= 0.001 else f"{p:.1g}"


# --- eval ---
