"""agreement: what a judge and the truth say of the same videos, and what is refused."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from scipy.stats import spearmanr

from physcli.errors import PhyscliError
from physcli.stats import bootstrap_interval, cohens_kappa, roc_auc
from physcli.tasks import agreement as task
from physcli.tasks.agreement import AgreementSettings, agreement, grade

TRUE = {
    "sa": [True, True, False, False, True, False],
    "pc": [True, False, True, False, True, None],
    "joint": [True, False, False, False, True, None],
    "sa_grade": [5, 4, 2, 1, 5, 3],
    "law/color": [True, False, True, False, True, None],
    "law/shape": [True, True, None, False, True, None],
}
SAID = {
    "sa": [True, False, False, False, True, True],
    "pc": [True, True, False, False, True, True],
    "joint": [True, False, False, False, True, True],
    "sa_expected": [4.9, 3.1, 2.2, 1.0, 4.4, 4.0],
    "pc_expected": [4.8, 4.2, 3.0, 1.1, 4.6, 4.5],
}


@pytest.fixture
def runs(tmp_path, eval_run, monkeypatch):
    monkeypatch.setattr(task, "bootstrap_interval", partial(bootstrap_interval, num_resamples=300))
    eval_run(tmp_path / "truth", TRUE, videos=True)
    eval_run(tmp_path / "judge", SAID, videos=True, benchmark="videophy2", rater="a rater")
    return tmp_path


def measure(folder, out="out", judge="judge", truth="truth", **options):
    settings = AgreementSettings(str(folder / truth), str(folder / judge))
    return agreement(settings, out=folder / out, **options)


def test_counts_and_measures(runs):
    result = measure(runs)
    assert (result.judge, result.truth, result.num_videos) == ("a rater", "laws", 6)
    assert {verdict: result.counts(verdict) for verdict in result.verdicts} == {
        "sa": [2, 1, 1, 2],
        "pc": [2, 1, 1, 1],  # the truth has no verdict of the last
        "joint": [2, 0, 0, 3],
    }
    assert result.row("sa", "agreement")["value"] == pytest.approx(4 / 6)
    assert (result.row("pc", "agreement")["n"], result.row("pc", "agreement")["num_missing"]) == (5, 1)
    assert result.row("sa", "kappa")["value"] == pytest.approx(1 / 3)
    rho = spearmanr(TRUE["sa_grade"], SAID["sa_expected"]).statistic
    assert result.row("sa", "rank_correlation")["value"] == pytest.approx(rho)
    laws = [5, 3, 5, 1, 5]  # 1 + 4·share of the laws that hold
    rho = spearmanr(laws, SAID["pc_expected"][:5]).statistic
    assert result.row("pc", "rank_correlation")["value"] == pytest.approx(rho)
    assert result.row("pc", "ranking_area")["value"] == pytest.approx(
        5 / 6
    )  # 4.8 and 4.6 are above 4.2 and 1.1, 3.0 above 1.1
    assert result.row("joint", "rank_correlation") is None
    row = result.row("sa", "agreement")
    assert row["low"] < row["value"] < row["high"]
    assert row["stderr"] == pytest.approx(np.sqrt(4 / 6 * 2 / 6 / 6), rel=0.15)
    assert result.groups == ["a", "b"]
    assert sum(sum(result.counts("sa", group)) for group in result.groups) == 6
    assert result.rows == json.loads((runs / "out" / "metrics.json").read_text())
    lines = [json.loads(line) for line in (runs / "out" / "items.jsonl").read_text().splitlines()]
    assert [(line["pc_truth"], line["pc_judge"], line["sa_grade_judge"]) for line in lines][-1] == (None, 1, 4.0)
    assert measure(runs).rows == result.rows  # and again, over it


def test_a_run_agrees_with_itself(runs):
    result = measure(runs, judge="truth")
    for verdict in ("sa", "pc", "joint"):
        assert result.row(verdict, "agreement")["value"] == result.row(verdict, "kappa")["value"] == 1
        assert result.counts(verdict)[1:3] == [0, 0]


def test_a_judge_of_one_word_knows_nothing(runs, eval_run):
    eval_run(runs / "yes", {"sa": [True] * 6, "pc": [True] * 6, "sa_mean": [4.0] * 6}, videos=True)
    result = measure(runs, judge="yes")
    assert result.row("sa", "agreement")["value"] == 0.5
    assert result.row("sa", "kappa")["value"] == 0
    assert result.row("sa", "ranking_area")["value"] == 0.5
    assert result.row("sa", "rank_correlation")["value"] is None


def test_refusals(runs, eval_run):
    eval_run(runs / "fewer", {"pc": [True] * 5}, videos=True)
    with pytest.raises(PhyscliError, match=r"1 of 6 videos of .*truth are not in .*fewer"):
        measure(runs, judge="fewer")
    with pytest.raises(PhyscliError, match=r"1 of 6 videos of .*truth are not in .*fewer"):
        measure(runs, judge="truth", truth="fewer")
    eval_run(runs / "others", {"pc": [True] * 6}, videos=True, tint=60)
    with pytest.raises(PhyscliError, match="they are not the same video"):
        measure(runs, judge="others")
    eval_run(runs / "motion", {"dynamic_degree": [True] * 6}, videos=True)
    with pytest.raises(PhyscliError, match="no verdict in common"):
        measure(runs, judge="motion")
    assert not (runs / "out").exists()


@pytest.mark.parametrize(
    ("values", "verdict", "expected"),
    [
        ({"sa": 1, "sa_mean": 4, "sa_expected": 3.7}, "sa", 3.7),
        ({"sa": 1, "sa_mean": 0.7}, "sa", 0.7),
        ({"pc": 0, "law/a": 1, "law/b": 0, "law/c": None}, "pc", 3),
        ({"pc": 1}, "pc", 1),
        ({"sa": 1, "sa_mean": 5, "pc": 0, "pc_mean": 2}, "joint", 2),
    ],
)
def test_grades(values, verdict, expected):
    assert grade(values, verdict) == expected


def test_measures_at_their_ends():
    passes = np.array([True, True, False])
    assert roc_auc(np.array([2, 3, 1]), passes) == 1
    assert roc_auc(np.array([0, 0, 1]), passes) == 0
    assert cohens_kappa(passes, ~passes) < 0
    assert np.isnan(cohens_kappa(passes | True, passes | True))
    assert np.isnan(roc_auc(np.array([1, 2]), np.array([True, True])))
