"""Distances of feature sets: closed forms, reference implementations, means over many draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg

from physcli.benchmarks.distance import KERNELS, FeatureSet, MeanDiscrepancy, frechet, frechet_of, mmd2_of


def named(features, clusters=None, prompts=None, prefix=""):
    """A set; by default each video is a cluster and has a prompt of its own."""
    own = [f"{prefix}{number}" for number in range(len(features))]
    return FeatureSet(np.asarray(features, float), clusters or own, prompts or own)


def normal(rng, n, d, *, mean=0.0, scale=1.0):
    return rng.normal(size=(n, d)) * scale + mean


def with_moments(rng, n, mean, deviations):
    """n points whose sample mean and covariance are exactly these (a diagonal one)."""
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x * deviations + mean


# -- Fréchet ---------------------------------------------------------------------------------------------------------


def test_frechet_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 5)), rng.uniform(0.5, 2, size=(2, 5))
    x, y = (with_moments(rng, 40, mean, scale) for mean, scale in zip(means, deviations, strict=True))
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet(x, y) == pytest.approx(expected, rel=1e-10)


def test_frechet_nears_the_distributions_own_from_above():
    rng = np.random.default_rng(1)
    true = 4 * 0.5**2 + 4 * (1.5 - 1) ** 2
    means = []
    for n in (10, 40, 160):
        draws = [frechet(normal(rng, n, 4, mean=0.5, scale=1.5), normal(rng, n, 4)) for _ in range(100)]
        means.append(np.mean(draws))
    assert means[0] > means[1] > means[2] > true
    assert means[2] == pytest.approx(true, rel=0.1)


def test_frechet_is_that_of_square_roots_of_matrices():
    rng = np.random.default_rng(2)
    x = normal(rng, 60, 7) @ rng.normal(size=(7, 7))
    y = normal(rng, 45, 7, mean=0.3) @ rng.normal(size=(7, 7))
    covariances = [np.cov(one, rowvar=False) for one in (x, y)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(sum(covariances) - 2 * np.real(root))
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_singular_covariances_are_taken_as_they_are():
    """6 and 9 points of 20 dimensions: by the eigenvalues of A^½ B A^½, without anything added to A or B."""
    rng = np.random.default_rng(3)
    x, y = normal(rng, 6, 20), normal(rng, 9, 20, scale=2)
    a, b = (np.cov(one, rowvar=False) for one in (x, y))
    values, vectors = np.linalg.eigh(a)
    half = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(half @ b @ half), 0, None)).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * shared
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_weights_are_repetitions():
    rng = np.random.default_rng(4)
    x, y = normal(rng, 12, 3), normal(rng, 9, 3, mean=1)
    times = np.array([0, 2, 1, 1, 3, 1, 0, 1, 1, 2, 1, 1])
    assert frechet(x, y, x_times=times.astype(float)) == pytest.approx(frechet(np.repeat(x, times, axis=0), y))


@pytest.mark.parametrize(("n", "d"), [(30, 4), (8, 20)])
def test_a_set_is_at_no_distance_from_itself(n, d):
    x = normal(np.random.default_rng(5), n, d)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    for kernel in KERNELS.values():
        assert MeanDiscrepancy(named(x), named(x), kernel).value == pytest.approx(0, abs=1e-12)


def test_bad_features_are_refused():
    x = np.zeros((3, 4))
    with pytest.raises(ValueError, match="expected"):
        frechet(x, np.zeros((3, 5)))
    with pytest.raises(ValueError, match="at least 2"):
        frechet(x[:1], x)
    with pytest.raises(ValueError, match="3 clusters"):
        named(x[:1])
    with pytest.raises(ValueError, match="3 clusters"):
        named(x, ["a", "a", "a"])
    with pytest.raises(ValueError, match="finite"):
        named([[1.0, np.nan], [1.0, 2.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="clusters"):
        FeatureSet(x, ["a", "b"], ["a", "b", "c"])


# -- MMD² ------------------------------------------------------------------------------------------------------------


def by_hand(x, y, kernel):
    """Three means over pairs, with loops."""

    def k(a, b):
        return (float(a @ b) / len(a) + kernel.coef) ** kernel.degree

    def mean(one, other):
        told = [
            k(one.features[i], other.features[j])
            for i, j in itertools.product(range(len(one.features)), range(len(other.features)))
            if one.clusters[i] != other.clusters[j] and one.prompts[i] != other.prompts[j]
        ]
        return sum(told) / len(told)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


@pytest.mark.parametrize("name", KERNELS)
def test_mmd2_is_the_double_sum(name):
    rng = np.random.default_rng(6)
    x = named(normal(rng, 9, 5, mean=0.5), clusters=list("aabbccdde"), prompts=list("123456789"))
    y = named(normal(rng, 7, 5), clusters=list("PPQQRRS"), prompts=list("1pqqrst"))
    assert MeanDiscrepancy(x, y, KERNELS[name]).value == pytest.approx(by_hand(x, y, KERNELS[name]), rel=1e-10)
    plain, other = named(x.features, prefix="x"), named(y.features, prefix="y")
    assert MeanDiscrepancy(plain, other, KERNELS[name]).value == pytest.approx(
        by_hand(plain, other, KERNELS[name]), rel=1e-10
    )


def test_the_kernels_are_those_of_kid_and_jedi():
    x, y = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    assert KERNELS["kid"](x, y)[0, 0] == pytest.approx((1 / 2 + 1) ** 3)
    assert KERNELS["jedi"](x, y)[0, 0] == pytest.approx((1 / 2) ** 2)


@pytest.mark.parametrize("name", KERNELS)
def test_mmd2_of_one_distribution_is_0_on_average(name):
    rng = np.random.default_rng(7)
    draws = []
    for _ in range(400):
        x, y = named(normal(rng, 12, 6), prefix="x"), named(normal(rng, 12, 6), prefix="y")
        draws.append(MeanDiscrepancy(x, y, KERNELS[name]).value)
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(len(draws))
    assert min(draws) < 0


def test_videos_of_one_prompt_add_nothing():
    """Two alike of each of eight prompts. With pairs of one prompt among the others, MMD² would be far above 0."""
    rng = np.random.default_rng(8)
    clustered, plain = [], []
    for _ in range(300):
        x, y = (np.repeat(normal(rng, 8, 6), 2, axis=0) for _ in range(2))
        twice = [str(number // 2) for number in range(16)]
        sets = [named(one, [f"{p}{c}" for c in twice], [f"{p}{c}" for c in twice]) for p, one in (("x", x), ("y", y))]
        clustered.append(MeanDiscrepancy(*sets, KERNELS["kid"]).value)
        plain.append(MeanDiscrepancy(named(x, prefix="x"), named(y, prefix="y"), KERNELS["kid"]).value)
    error = np.std(clustered) / np.sqrt(len(clustered))
    assert abs(np.mean(clustered)) < 3 * error
    assert np.mean(plain) > 10 * error


def test_mmd2_of_shifted_distributions_is_the_closed_form():
    """Degree 2 without a constant: k = (x·y/D)², so that MMD² = |E xxᵀ − E yyᵀ|²/D²."""
    rng, d, shift = np.random.default_rng(9), 3, 0.8
    moments = np.full((d, d), shift**2) + np.eye(d)
    expected = np.square(moments - np.eye(d)).sum() / d**2
    draws = [
        MeanDiscrepancy(
            named(normal(rng, 30, d, mean=shift), prefix="x"), named(normal(rng, 30, d), prefix="y"), KERNELS["jedi"]
        ).value
        for _ in range(300)
    ]
    assert np.mean(draws) == pytest.approx(expected, abs=3 * np.std(draws) / np.sqrt(len(draws)))


def test_order_changes_nothing():
    rng = np.random.default_rng(10)
    x, y = normal(rng, 15, 6, mean=0.2), normal(rng, 15, 6)
    order = rng.permutation(15)
    names = [str(number // 2) for number in range(15)]
    told = [names[number] for number in order]
    one, shuffled = named(x, names, names), named(x[order], told, told)
    other = named(y, prefix="y")
    assert frechet(x[order], y) == pytest.approx(frechet(x, y))
    first, second = (MeanDiscrepancy(some, other, KERNELS["kid"]) for some in (one, shuffled))
    assert second.value == pytest.approx(first.value)
    assert second.shares() == pytest.approx(first.shares()[[*order, *range(15, 30)]])
    for of in (lambda some: mmd2_of(some, other, KERNELS["kid"]), lambda some: frechet_of(some, other)):
        assert of(shuffled).interval.stderr == pytest.approx(of(one).interval.stderr)


def test_shares_have_the_distance_as_their_mean_and_are_its_derivative():
    rng = np.random.default_rng(11)
    names = list("aabbcdefgh")
    x, y = named(normal(rng, 10, 4, mean=0.4), names, names), named(normal(rng, 12, 4), prefix="y")
    found = MeanDiscrepancy(x, y, KERNELS["kid"])
    shares = found.shares()
    assert shares.shape == (22,)
    assert shares.mean() == pytest.approx(found.value)
    step = 1e-6
    for number in range(22):
        weights = np.ones(22)
        weights[number] += step
        change = (found.drawn(weights[None, :10], weights[None, 10:])[0] - found.value) / step
        assert shares[number] == pytest.approx(found.value + 22 * change, abs=1e-3)


def test_paired_shares_tell_how_much_a_difference_of_distances_varies():
    """Two sets of the same noise against one real set, all drawn anew: the spread, and what the shares say of it."""
    rng = np.random.default_rng(12)
    told, differences = [], []
    for _ in range(200):
        noise, real = normal(rng, 40, 8), named(normal(rng, 40, 8), prefix="y")
        pair = [named(noise * scale + shift, prefix="x") for shift, scale in ((0.6, 1.0), (0.4, 1.1))]
        one, other = (MeanDiscrepancy(some, real, KERNELS["kid"]) for some in pair)
        differences.append(one.value - other.value)
        told.append(np.std(one.shares() - other.shares(), ddof=1) / np.sqrt(80))
    assert np.mean(told) == pytest.approx(np.std(differences), rel=0.2)


# -- intervals -------------------------------------------------------------------------------------------------------


def test_intervals_hold_what_other_sets_of_the_same_size_give():
    rng = np.random.default_rng(13)
    values, ends = {"mmd2": [], "frechet": []}, {"mmd2": [], "frechet": []}
    for _ in range(60):
        x, y = named(normal(rng, 24, 6, mean=0.5), prefix="x"), named(normal(rng, 24, 6), prefix="y")
        found = {"mmd2": mmd2_of(x, y, KERNELS["kid"], num_resamples=200), "frechet": frechet_of(x, y)}
        for name, one in found.items():
            values[name].append(one.value)
            ends[name].append((one.interval.low, one.interval.high, one.interval.stderr))
    for name, some in values.items():
        low, high, stderr = np.array(ends[name]).T
        held = np.mean((low <= np.mean(some)) & (np.mean(some) <= high))
        assert held >= 0.88
        assert 0.8 < np.mean(stderr) / np.std(some) < 1.8


def test_clusters_are_what_varies():
    """Four of each prompt, all alike: a quarter as many things vary."""
    rng = np.random.default_rng(14)
    x, y = np.repeat(normal(rng, 12, 5), 4, axis=0), named(normal(rng, 48, 5), prefix="y")
    names = [str(number // 4) for number in range(48)]
    whole = frechet_of(named(x, names, [str(number) for number in range(48)]), y).interval.stderr
    assert whole > 1.5 * frechet_of(named(x, prefix="x"), y).interval.stderr


def test_many_clusters_are_left_out_in_groups():
    rng = np.random.default_rng(15)
    x, y = named(normal(rng, 90, 3), prefix="x"), named(normal(rng, 90, 3), prefix="y")
    one_by_one, grouped = frechet_of(x, y).interval.stderr, frechet_of(x, y, most_groups=40).interval.stderr
    assert grouped == pytest.approx(one_by_one, rel=0.5)
