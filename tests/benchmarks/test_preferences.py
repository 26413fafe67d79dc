"""Strengths, ties, agreement and power against other libraries and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from physcli.benchmarks.preferences import (
    Votes,
    bradley_terry,
    crossed_intervals,
    davidson,
    nominal_alpha,
    votes_needed,
)

# By left and right run: how often the right one won, neither did, the left one did.
COUNTS = np.array(
    [
        [[0, 0, 0], [26, 0, 14], [11, 0, 29]],
        [[14, 0, 26], [0, 0, 0], [9, 0, 31]],
        [[25, 0, 15], [26, 0, 14], [0, 0, 0]],
    ],
    dtype=float,
)


def test_bradley_terry_is_statsmodels_logit():
    fit = bradley_terry(COUNTS)
    np.testing.assert_allclose(fit.strengths, [0, 0.48442182, -0.59249995], atol=1e-6)  # statsmodels 0.15.0, Logit
    assert fit.side == pytest.approx(0.17210729, abs=1e-6)


def test_bradley_terry_without_side_is_choix():
    fit = bradley_terry(COUNTS, side=False)
    np.testing.assert_allclose(fit.strengths, [0, 0.48107202, -0.58841324], atol=1e-6)  # choix 0.4.1, ilsr_pairwise
    assert fit.side == 0


def test_two_runs_have_closed_forms():
    """Both orders alike: no side; θ is the log odds of decided votes, ν the ties over the geometric mean of these."""
    counts = np.zeros((2, 2, 3))
    counts[0, 1], counts[1, 0] = (30, 12, 10), (10, 12, 30)
    fit = davidson(counts)
    assert fit.strengths[1] == pytest.approx(math.log(3), abs=1e-6)
    assert fit.side == pytest.approx(0, abs=1e-6)
    assert fit.tie == pytest.approx(12 / math.sqrt(300), abs=1e-6)
    halves = bradley_terry(counts)
    assert halves.strengths[1] == pytest.approx(math.log(36 / 16), abs=1e-6)
    # A run of raters who take the left one three times in four, whatever it is.
    counts[0, 1], counts[1, 0] = (10, 0, 30), (10, 0, 30)
    assert bradley_terry(counts).side == pytest.approx(math.log(3), abs=1e-6)


def test_without_ties_davidson_says_nothing_and_without_votes_neither():
    assert np.isnan(davidson(COUNTS).strengths).all()
    assert np.isnan(bradley_terry(np.zeros((2, 2, 3))).strengths).all()


def test_who_never_lost_has_no_finite_strength():
    counts = np.zeros((2, 2, 3))
    counts[0, 1], counts[1, 0] = (20, 0, 0), (0, 0, 20)
    fit = bradley_terry(counts)
    assert fit.strengths.tolist() == [0, math.inf]
    # All votes for the left: that is all there is to know.
    counts[0, 1] = (0, 0, 20)
    assert bradley_terry(counts).side == math.inf


@pytest.mark.parametrize("fit", [bradley_terry, davidson])
def test_runs_that_no_votes_join_with_the_first_have_no_strength(fit):
    """Run 1 has no votes; 3 and 4 met each other alone, and still tell of the side and of ties."""
    counts = np.zeros((5, 5, 3))
    counts[0, 2], counts[2, 0] = (30, 12, 10), (10, 12, 30)
    alone = fit(counts)
    assert np.isnan(alone.strengths).tolist() == [False, True, False, True, True]
    two = fit(counts[np.ix_([0, 2], [0, 2])])
    np.testing.assert_allclose(alone.strengths[[0, 2]], two.strengths, atol=1e-6)
    counts[3, 4], counts[4, 3] = (10, 4, 10), (10, 4, 10)
    assert np.isnan(fit(counts).strengths).tolist() == [False, True, False, True, True]
    counts[4, 2] = (5, 2, 5)  # a chain: 0, 2, 4, 3
    assert np.isnan(fit(counts).strengths).tolist() == [False, True, False, False, False]


def test_draws_without_a_run_say_nothing_of_it():
    """Run 2 is met on one prompt of ten: a draw without that has no strength of it, rather than 0."""
    rng = np.random.default_rng(0)
    right = np.where(np.repeat(np.arange(10), 8) == 9, 2, 1)
    outcome = (rng.random(80) < 0.5).astype(float)
    outcome[72:] = [0, 0, 0, 0, 0, 0, 0, 1]
    votes = Votes(np.zeros(80, int), right, outcome, 3)
    spread = crossed_intervals(
        bradley_terry, votes, prompts=np.repeat(np.arange(10), 8), raters=np.zeros(80), num_resamples=200
    )[2]
    # One prompt that is drawn or is not: what little it varies comes from the side, which the others share.
    assert spread.low > 0.5
    never = Votes(np.zeros(80, int), np.ones(80, int), outcome, 3)
    spread = crossed_intervals(
        bradley_terry, never, prompts=np.repeat(np.arange(10), 8), raters=np.zeros(80), num_resamples=50
    )[2]
    assert np.isnan([spread.low, spread.high, spread.stderr]).all()


def test_counts_are_of_left_right_and_outcome():
    votes = Votes(np.array([0, 1, 1]), np.array([1, 0, 0]), np.array([1.0, 0.5, 0.5]), 2)
    assert votes.counts().tolist() == [[[0, 0, 0], [0, 0, 1]], [[0, 2, 0], [0, 0, 0]]]
    assert votes.counts(np.array([3.0, 0.0, 2.0]))[1, 0].tolist() == [0, 2, 0]


def test_intervals_are_of_prompts_and_raters():
    """Ten copies of every vote by the same raters on the same prompts are no news; votes on new prompts are."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(20), 4)
    raters = np.tile(np.arange(4), 20)
    outcome = (rng.random(80) < 0.6).astype(float)

    def width(times, prompt, rater):
        votes = Votes(np.zeros(80 * times, int), np.ones(80 * times, int), np.tile(outcome, times), 2)
        left = crossed_intervals(
            lambda counts: bradley_terry(counts), votes, prompts=prompt, raters=rater, num_resamples=100
        )
        return left[2].high - left[2].low  # the side: each vote has run 0 on the left

    once = width(1, prompts, raters)
    assert width(10, np.tile(prompts, 10), np.tile(raters, 10)) == pytest.approx(once, rel=0.05)
    assert width(10, np.arange(800), np.arange(800)) < 0.7 * once
    one = Votes(np.zeros(3, int), np.ones(3, int), np.ones(3), 2)
    assert all(math.isnan(i.low) for i in crossed_intervals(bradley_terry, one, prompts=["a"] * 3, raters=["b"] * 3))


def test_alpha_by_hand():
    """Two raters, four units, one disagreement: 1 − ¼ / (30/56)."""
    pytest.importorskip("krippendorff")
    ratings = np.array([[0.0, 0, 1, 1], [0, 1, 1, 1]])
    assert nominal_alpha(ratings) == pytest.approx(1 - 0.25 / (30 / 56))
    unseen = np.array([[0.0, 0, 1, 1, 2], [0, 1, 1, 1, np.nan]])
    assert nominal_alpha(unseen) == pytest.approx(1 - 0.25 / (30 / 56))  # what one rater saw says nothing
    assert math.isnan(nominal_alpha(np.ones((2, 3))))
    assert math.isnan(nominal_alpha(np.array([[0.0, np.nan], [np.nan, 1.0]])))


@pytest.mark.parametrize(("share", "votes"), [(0.55, 783), (0.6, 194), (0.65, 85), (0.45, 783)])
def test_votes_needed(share, votes):
    assert votes_needed(share) == votes


def test_half_needs_no_number():
    with pytest.raises(ValueError, match="other than one half"):
        votes_needed(0.5)
