"""Rows of metrics.json: what is in them, what is read of them, also of runs from before they said what they are."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest

import physcli
from physcli.rows import Metric, interval_columns, interval_of, make_row, mean_row, metric_of
from physcli.stats import Interval, share_interval, stderr_of_mean

COLUMNS = {"benchmark": "b", "task": "t", "subject": "s"}
PASSES = Metric("passes", "rate", True, role="headline", interval="wilson")
GRADE = Metric("grade", "grade", None)


def test_a_row_says_what_it_is():
    row = make_row(PASSES, 0.5, **COLUMNS, stderr=math.nan, n=4, rater="r")
    assert row == {
        **{"benchmark": "b", "task": "t", "subject": "s", "split": "all", "group": "all", "metric": "passes"},
        **{"value": 0.5, "stderr": None, "n": 4, "higher_is_better": True},
        **{"kind": "rate", "role": "headline", "interval": "wilson", "rater": "r"},
    }
    assert metric_of(row) == PASSES
    assert make_row(PASSES, math.nan, **COLUMNS, n=0)["value"] is None


def test_means_leave_out_what_is_missing():
    values, clusters = [True, None, False, True], ["a", "a", "b", "c"]
    row = mean_row(PASSES, values, clusters=clusters, **COLUMNS)
    assert (row["value"], row["n"]) == (pytest.approx(2 / 3), 3)
    assert row["stderr"] == stderr_of_mean(np.array([1.0, 0, 1]), ["a", "b", "c"])
    assert mean_row(GRADE, [2.0], **COLUMNS)["stderr"] is None
    nothing = mean_row(GRADE, [None, None], **COLUMNS)
    assert (nothing["value"], nothing["stderr"], nothing["n"]) == (None, None, 0)


def test_intervals():
    passes = make_row(PASSES, 0.25, **COLUMNS, stderr=0.1, n=20)
    assert interval_of(passes) == share_interval(0.25, 0.1, 20)
    grade = make_row(GRADE, 4.0, **COLUMNS, stderr=0.5, n=20)
    assert interval_of(grade) == pytest.approx((3.02, 4.98))
    assert interval_of(grade | {"stderr": None}) is None
    assert interval_of(grade | {"interval": "bootstrap", "low": 3.0, "high": 4.5}) == (3.0, 4.5)
    assert interval_of(passes | {"low": 0.1, "high": 0.5}) == (0.1, 0.5)  # its own
    assert interval_of(grade | {"interval": "bootstrap"}) is None
    assert interval_of(passes | {"interval": "none"}) is None
    assert interval_of(make_row(PASSES, None, **COLUMNS, n=0)) is None


def test_ends_that_are_not_finite_are_not_known():
    assert interval_columns(Interval(0.25, math.inf, 0.1)) == {"low": 0.25, "high": None}
    assert interval_columns(Interval(-math.inf, math.nan, math.nan)) == {"low": None, "high": None}


@pytest.mark.parametrize(
    ("name", "kind", "role"),
    [
        ("sa", "rate", "plain"),
        ("pc", "rate", "commonsense"),
        ("joint", "rate", "headline"),
        ("law/permanence", "rate", "plain"),
        ("missing/video", "rate", "plain"),
        ("balanced_accuracy", "rate", "plain"),
        ("dynamic_degree", "rate", "motion"),
        ("motion_px", "px", "motion"),
        ("sa_mean", "score", "plain"),
        ("sa_grade", "grade", "plain"),
        ("pc_expected", "grade", "plain"),
        ("a metric of somebody else's", "score", "plain"),
    ],
)
def test_rows_of_older_runs_are_told_by_their_names(name, kind, role):
    found = metric_of({"metric": name, "value": 1.0, "higher_is_better": True})
    assert (found.kind, found.role) == (kind, role)


def test_rows_are_made_in_one_place():
    """A dict with a metric and its direction is a row made by hand."""
    root = Path(physcli.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.name == "rows.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                assert not keys & {"metric", "higher_is_better", "stderr"}, f"{path}:{node.lineno}"
