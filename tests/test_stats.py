"""Standard errors, bootstrap intervals and McNemar's test against scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as reference
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from physcli.hashing import seed_from
from physcli.stats import (
    bootstrap_interval,
    cohens_kappa,
    holm,
    mcnemar_exact,
    minimum_detectable_effect,
    minimum_detectable_effect_of_mcnemar,
    paired_difference,
    rank_correlation,
    roc_auc,
    seeds_difference,
    share_interval,
    sign_flip_p,
    stderr_of_mean,
    stderr_of_strata,
)


def test_stderr_without_clusters_is_the_usual_one():
    values = np.random.default_rng(0).normal(size=50)
    assert stderr_of_mean(values) == pytest.approx(reference.sem(values), rel=1e-12)


def test_stderr_of_identical_twins_is_that_of_the_pairs():
    values = np.random.default_rng(1).integers(0, 2, 40).astype(float)
    twice = np.repeat(values, 2)
    assert stderr_of_mean(twice, np.repeat(np.arange(40), 2)) == pytest.approx(reference.sem(values), rel=1e-12)


def test_stderr_of_opposite_twins_is_zero():
    values = np.tile([0.0, 1.0], 30)
    assert stderr_of_mean(values, np.repeat(np.arange(30), 2)) == pytest.approx(0, abs=1e-15)


def test_stderr_of_one_cluster_does_not_exist():
    assert np.isnan(stderr_of_mean(np.array([1.0, 0.0]), ["a", "a"]))


def test_stderr_of_strata():
    assert stderr_of_strata([0.03, 0.04]) == pytest.approx(0.025)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 3), (10, 2), (1, 17), (40, 60)])
def test_mcnemar_is_the_exact_binomial_test(wins, losses):
    expected = reference.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar_exact(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_paired_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.3, 1, 400), rng.normal(0, 1, 400)
    ours = paired_difference(a, b, clusters=range(400), num_resamples=8000)
    theirs = reference.bootstrap((a - b,), np.mean, n_resamples=8000, method="percentile", rng=4)
    assert ours.value == pytest.approx(np.mean(a - b), abs=1e-12)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)
    assert ours.stderr == pytest.approx(theirs.standard_error, rel=0.05)


def test_strata_are_weighted_alike():
    a = np.array([1.0] * 10 + [0.0] * 90)
    strata = ["small"] * 10 + ["large"] * 90
    found = paired_difference(a, np.zeros(100), clusters=range(100), strata=strata)
    assert found.value == pytest.approx(0.5)
    assert (found.wins, found.losses, found.n) == (10, 0, 100)


def test_twins_that_err_together_count_once():
    a = np.repeat([1, 1, 1, 0, 1], 2)
    b = np.repeat([0, 0, 1, 1, 1], 2)
    found = paired_difference(a, b, clusters=np.repeat(range(5), 2))
    assert (found.wins, found.losses, found.n) == (2, 1, 10)
    assert found.p == 1
    opposite = paired_difference(np.array([1, 0]), np.array([0, 1]), clusters=["a", "a"])
    assert (opposite.wins, opposite.losses) == (0, 0)


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        pairs = rng.normal(size=(60, 1)) + rng.normal(size=(60, 2))
        found = paired_difference(
            pairs.ravel(), np.zeros(120), clusters=np.repeat(np.arange(60), 2), seed=trial, num_resamples=400
        )
        covered += found.low <= 0 <= found.high
    assert 180 <= covered <= 200


def test_seeds_depend_on_their_parts_alone():
    assert seed_from(0, "clip") == seed_from(0, "clip") != seed_from(1, "clip")
    assert seed_from("ab", "c") != seed_from("a", "bc")
    assert 0 <= seed_from("x") < 2**63


def test_one_cluster_says_nothing_of_the_spread():
    found = paired_difference(np.ones(3), np.zeros(3), clusters=["a", "b", "c"], strata=["x", "x", "y"])
    assert found.value == pytest.approx(1)
    assert np.isnan([found.low, found.high, found.stderr]).all()


# --- Holm ---


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4·.005, 3·.01, 2·.03, then 1·.04 held up to .06
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.9, 0.6], [1.0, 1.0]),
        ([0.01, math.nan, 0.04], [0.02, math.nan, 0.04]),  # a test that was not made does not count
    ],
)
def test_holm_by_hand(p, adjusted):
    np.testing.assert_allclose(holm(p), adjusted, rtol=1e-12)


def test_holm_lies_between_the_plain_p_and_bonferroni_and_is_stricter_than_benjamini_hochberg():
    p = np.random.default_rng(0).uniform(0, 0.2, 30)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, 30 * p) + 1e-15).all()
    assert (adjusted >= reference.false_discovery_control(p) - 1e-15).all()


# --- sign flips ---


def test_sign_flips_agree_with_scipy():
    effects = np.random.default_rng(1).normal(0.25, 1, 60)
    theirs = reference.permutation_test(
        (effects,), np.sum, permutation_type="samples", n_resamples=20_000, rng=2
    ).pvalue
    assert sign_flip_p(effects) == pytest.approx(theirs, abs=0.01)


def test_few_sign_flips_are_all_tried():
    effects = np.array([1.0, 2.0, 0.5, 3.0, -0.25, 0.0])
    exact = reference.permutation_test((effects[effects != 0],), np.sum, permutation_type="samples").pvalue
    assert sign_flip_p(effects) == pytest.approx(exact, rel=1e-12)
    assert sign_flip_p(np.ones(5)) == pytest.approx(2 / 32)
    assert sign_flip_p(np.zeros(9)) == 1


def test_sign_flips_of_votes_are_the_binomial_test():
    votes = np.array([1.0] * 9 + [-1.0] * 2)
    assert sign_flip_p(votes) == pytest.approx(mcnemar_exact(9, 2), rel=1e-12)


# --- the smallest difference that could be seen ---


def test_minimum_detectable_effect_is_2_8_standard_errors():
    assert minimum_detectable_effect(0.02) == pytest.approx(0.02 * (1.959964 + 0.841621), rel=1e-5)
    assert minimum_detectable_effect(0.02, degrees_of_freedom=4) == pytest.approx(
        0.02 * (2.776445 + 0.940965), rel=1e-5
    )
    assert math.isnan(minimum_detectable_effect(0.0))
    assert math.isnan(minimum_detectable_effect(math.nan))


def test_a_difference_of_that_size_is_found_8_times_in_10():
    smallest = minimum_detectable_effect(1 / math.sqrt(200))
    rng = np.random.default_rng(3)
    found = reference.ttest_1samp(rng.normal(smallest, 1, (3000, 200)), 0, axis=1).pvalue < 0.05
    assert np.mean(found) == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize(("discordant", "n"), [(40, 200), (8, 100), (0, 60)])
def test_a_share_of_that_size_is_found_8_times_in_10(discordant, n):
    smallest = minimum_detectable_effect_of_mcnemar(discordant, n)
    share = max(discordant / n, smallest)
    rng = np.random.default_rng(4)
    drawn = rng.multinomial(n, [(share + smallest) / 2, (share - smallest) / 2, 1 - share], size=4000)
    cases, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    found = [mcnemar_exact(int(wins), int(losses)) < 0.05 for wins, losses in cases]
    assert np.average(found, weights=times) == pytest.approx(0.8, abs=0.025)


def test_a_share_is_near_its_normal_approximation_where_n_is_large():
    assert minimum_detectable_effect_of_mcnemar(400, 2000) == pytest.approx(
        minimum_detectable_effect(math.sqrt(0.2 / 2000)), rel=0.03
    )


def test_five_items_can_show_nothing():
    assert minimum_detectable_effect_of_mcnemar(0, 5) == math.inf
    assert minimum_detectable_effect_of_mcnemar(5, 5) == math.inf
    assert minimum_detectable_effect_of_mcnemar(0, 0) == math.inf
    assert minimum_detectable_effect_of_mcnemar(0, 8) > 0.75


# --- several training seeds ---


def test_one_seed_a_side_is_the_paired_bootstrap():
    rng = np.random.default_rng(6)
    a, b = rng.normal(0.2, 1, 300), rng.normal(0, 1, 300)
    one = paired_difference(a, b, clusters=range(300), num_resamples=8000)
    ours = seeds_difference(a[None], b[None], clusters=range(300), num_resamples=8000)
    assert ours.value == pytest.approx(one.value, abs=1e-12)
    assert (ours.low, ours.high, ours.stderr) == pytest.approx((one.low, one.high, one.stderr), abs=0.01)
    assert (ours.wins, ours.losses, ours.n, ours.degrees_of_freedom) == (one.wins, one.losses, 300, 299)


def test_identical_seeds_do_not_differ():
    a = np.random.default_rng(7).integers(0, 2, (3, 50)).astype(float)
    found = seeds_difference(a, a[[2, 0, 1]], clusters=range(50))
    assert (found.value, found.p, found.wins, found.losses) == (pytest.approx(0, abs=1e-15), pytest.approx(1), 0, 0)


def test_spread_over_seeds_is_unbiased():
    """Items without any noise: only the seeds differ, and the variance of a mean of three is s²/3."""
    levels = np.array([0.2, 0.5, 0.9])
    a, b = np.repeat(levels[:, None], 40, axis=1), np.full((1, 40), 0.4)
    found = seeds_difference(a, b, clusters=range(40), num_resamples=20_000)
    assert found.stderr == pytest.approx(reference.sem(levels), rel=0.02)
    assert found.degrees_of_freedom == pytest.approx(2, rel=0.01)
    assert found.p == pytest.approx(reference.ttest_1samp(levels, 0.4).pvalue, rel=0.05)


def test_one_seed_hides_what_three_show():
    """The same items, a method whose seeds differ by more than the gain: no single run may claim the gain."""
    rng = np.random.default_rng(8)
    base = np.repeat(rng.normal(size=(1, 400)), 3, axis=0)
    trained = base + np.array([[0.3], [-0.1], [0.1]]) + 0.05 * rng.normal(size=(3, 400))
    one = paired_difference(trained[0], base[0], clusters=range(400))
    three = seeds_difference(trained, base, clusters=range(400))
    assert one.low > 0
    assert three.low < 0 < three.high


def test_interval_over_seeds_covers_the_truth():
    rng = np.random.default_rng(9)
    covered = 0
    for trial in range(150):
        items = rng.normal(size=80)
        a, b = (items + 0.2 * rng.normal(size=(3, 1)) + 0.3 * rng.normal(size=(3, 80)) for _ in range(2))
        found = seeds_difference(a, b, clusters=range(80), seed=trial, num_resamples=400)
        covered += found.low <= 0 <= found.high
    assert covered >= 137  # 95 % of 150 is 142, its standard deviation 2.7


@pytest.mark.filterwarnings("error")
def test_agreement_against_scipy_and_sklearn():
    rng = np.random.default_rng(0)
    for ties in (3, 1000):
        a = rng.integers(0, ties, 80)
        b = a + rng.integers(0, ties, 80)
        assert rank_correlation(a, b) == pytest.approx(reference.spearmanr(a, b).statistic, rel=1e-12)
        passes = b > np.median(b)
        test = reference.mannwhitneyu(a[passes], a[~passes])
        assert roc_auc(a, passes) == pytest.approx(test.statistic / (passes.sum() * (~passes).sum()), rel=1e-12)
        assert roc_auc(a, passes) == pytest.approx(roc_auc_score(passes, a), rel=1e-12)
        assert cohens_kappa(a > 0, passes) == pytest.approx(cohen_kappa_score(a > 0, passes), rel=1e-9)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5)))
    assert math.isnan(rank_correlation(np.array([1]), np.array([2])))
    assert math.isnan(rank_correlation(np.array([]), np.array([])))
    assert math.isnan(roc_auc(np.array([]), np.array([], dtype=bool)))


def test_kappa_of_a_known_table():
    """20 both, 5 and 10 one alone, 15 neither: agreement .7, by chance .5."""
    a = np.repeat([True, True, False, False], [20, 5, 10, 15])
    b = np.repeat([True, False, True, False], [20, 5, 10, 15])
    assert cohens_kappa(a, b) == pytest.approx(0.4)
    assert cohens_kappa(b, a) == pytest.approx(0.4)


def test_bootstrap_of_a_mean_is_the_standard_error():
    values = np.random.default_rng(0).normal(size=200)

    def mean(drawn):
        return float(values[drawn].mean())

    alone = bootstrap_interval(mean, clusters=range(200), num_resamples=4000)
    assert alone.stderr == pytest.approx(reference.sem(values), rel=0.05)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * reference.sem(values), rel=0.07)
    clusters = np.arange(200) // 4
    by_four = bootstrap_interval(mean, clusters=clusters, num_resamples=4000)
    assert by_four.stderr == pytest.approx(stderr_of_mean(values, clusters), rel=0.07)
    assert bootstrap_interval(mean, clusters=range(200), seed=1) != bootstrap_interval(mean, clusters=range(200))
    assert math.isnan(bootstrap_interval(mean, clusters=["one"] * 200).stderr)
    assert math.isnan(bootstrap_interval(lambda drawn: math.nan, clusters=range(9)).low)


def test_share_interval():
    for count, n in ((0, 2), (1, 2), (2, 2), (7, 20), (199, 200)):
        wilson = reference.binomtest(count, n).proportion_ci(method="wilson")
        share = count / n
        assert share_interval(share, None, n) == pytest.approx((wilson.low, wilson.high), abs=1e-9)
        assert share_interval(share, math.sqrt(share * (1 - share) / n), n) == pytest.approx((wilson.low, wilson.high))
    # twins that always agree: half as many items
    assert share_interval(0.3, math.sqrt(0.21 / 50), 100) == pytest.approx(share_interval(0.3, None, 50))
    assert share_interval(0.3, 0.001, 100) == share_interval(0.3, None, 100)
    with pytest.raises(ValueError, match="at least one"):
        share_interval(0.3, None, 0)
