"""Intervals and tests for scores of the same items: cluster-robust standard errors, paired bootstrap, McNemar,
sign flips, Holm's correction, the minimum detectable effect, several training seeds of one method, and
how far two judges of the same items agree.

Items come in pairs (a positive and its negative twin), and the two are not independent: wherever `clusters` is asked
for, whole clusters are the unit of resampling. Scenarios are strata: the mean over scenarios is unweighted, and each
scenario is resampled by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its `stats` takes a second to import, and is when it is first used

from physcli.hashing import seed_from

_FLIPS_AT_ONCE = 1000  # rows of random signs held in memory
_MOST_ENUMERATED = 12  # clusters; 2 to this power sign patterns are all tried


def stderr_of_mean(values: np.ndarray, clusters: Sequence[object] | None = None) -> float:
    """Standard error of the mean of `values` [N], by clusters where items are not independent.

    With C clusters of sums s_c of deviations from the mean: √(C/(C−1)·Σ s_c²)/N. With one item a cluster this is the
    usual s/√N. NaN for fewer than two clusters.
    """
    values = np.asarray(values, dtype=np.float64)
    if clusters is None:
        clusters = range(len(values))
    _, index = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)
    count = int(index.max()) + 1 if len(values) else 0
    if count < 2:
        return math.nan
    sums = np.bincount(index, weights=values - values.mean(), minlength=count)
    return float(np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(values))


def share_interval(value: float, stderr: float | None, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, which stays within 0 and 1.

    Args:
        value: The share.
        stderr: Its standard error, by clusters where items are not independent: the interval is that of so many
            independent items as would have it, and never of more than `n`. None or 0 (all or none of the items, or one
            cluster): of `n` items.
        n: Items.

    Raises:
        ValueError: no item, or no share.
    """
    if n < 1 or not 0 <= value <= 1:
        raise ValueError(f"value {value} of {n} items; expected a share of at least one")
    size = min(n, value * (1 - value) / stderr**2) if stderr else n
    quantile = float(scipy.stats.t.ppf(0.975, math.inf))
    middle = (value + quantile**2 / (2 * size)) / (1 + quantile**2 / size)
    half = quantile / (1 + quantile**2 / size) * math.sqrt(value * (1 - value) / size + quantile**2 / (4 * size**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def stderr_of_strata(stderrs: Sequence[float]) -> float:
    """Standard error of the unweighted mean of independent strata's means."""
    array = np.asarray(stderrs, dtype=np.float64)
    return float(np.sqrt(np.sum(array**2)) / len(array))


@dataclass(frozen=True)
class Difference:
    """A paired difference a − b: value, 95 % interval, standard error, McNemar's exact p, clusters won and lost."""

    value: float
    low: float
    high: float
    stderr: float
    p: float
    wins: int
    losses: int
    n: int


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided exact p that wins and losses are equally likely (binomial with one half)."""
    return float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    clusters: Sequence[object],
    strata: Sequence[object] | None = None,
    seed: int = 0,
    num_resamples: int = 2000,
) -> Difference:
    """Compare two subjects' scores of the same items.

    Args:
        a: Scores [N] of the first subject; 0/1 for correctness.
        b: Scores [N] of the second, same items in the same order.
        clusters: What each item belongs to (its pair); whole clusters are drawn again.
        strata: Each item's scenario; the statistic is the unweighted mean over strata. None for one stratum.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.

    Returns:
        The difference with a percentile bootstrap interval. Wins and losses count clusters in which `a` (`b`) scores
        higher, and McNemar's test is on those: twins err together, and counted apart they would look like twice the
        evidence. Where a stratum has one cluster only, nothing is known of its spread, and interval and stderr are NaN.
    """
    delta = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    names = np.asarray([str(s) for s in strata]) if strata is not None else np.full(len(delta), "all")
    units = np.asarray([str(c) for c in clusters])
    rng = np.random.default_rng(seed_from("paired bootstrap", seed))
    draws = np.zeros(num_resamples)
    value, wins, losses = 0.0, 0, 0
    strata_names = np.unique(names)
    for name in strata_names:
        mask = names == name
        _, index = np.unique(units[mask], return_inverse=True)
        count = int(index.max()) + 1
        if count < 2:
            draws += math.nan
        sums = np.bincount(index, weights=delta[mask], minlength=count)
        wins, losses = wins + int(np.sum(sums > 0)), losses + int(np.sum(sums < 0))
        sizes = np.bincount(index, minlength=count).astype(np.float64)
        value += sums.sum() / sizes.sum() / len(strata_names)
        times_drawn = rng.multinomial(count, np.full(count, 1 / count), size=num_resamples).astype(np.float64)
        draws += (times_drawn @ sums) / (times_drawn @ sizes) / len(strata_names)
    return Difference(
        value=float(value),
        low=float(np.quantile(draws, 0.025)),
        high=float(np.quantile(draws, 0.975)),
        stderr=float(draws.std(ddof=1)),
        p=mcnemar_exact(wins, losses),
        wins=wins,
        losses=losses,
        n=len(delta),
    )


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment of p values [M], which holds the chance of any false find below α.

    The smallest is multiplied by M, the next by M − 1, …; none may fall below the one before, none exceeds 1. NaN is
    a test that was not made: it stays NaN and does not count.
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), math.nan)
    order = [index for index in np.argsort(values, kind="stable") if not math.isnan(values[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def sign_flip_p(effects: np.ndarray, *, seed: int = 0, num_flips: int = 10_000) -> float:
    """Two-sided p that the sum of `effects` is 0, were each as likely to have the other sign.

    Args:
        effects: One number a cluster [C]: its share of the difference. Zeros have no say.
        seed: Of the random signs.
        num_flips: How many; all 2^C are tried instead where C is 12 or less.
    """
    effects = np.asarray(effects, dtype=np.float64)
    effects = effects[effects != 0]
    if not len(effects):
        return 1.0
    # Rounding must not make a pattern that is as extreme look less so.
    observed = abs(effects.sum()) - 1e-9 * np.abs(effects).sum()
    if len(effects) <= _MOST_ENUMERATED:
        patterns = np.arange(2 ** len(effects))[:, None] >> np.arange(len(effects)) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ effects) >= observed))
    rng = np.random.default_rng(seed_from("sign flips", seed))
    as_extreme = 0
    for first in range(0, num_flips, _FLIPS_AT_ONCE):
        rows = min(_FLIPS_AT_ONCE, num_flips - first)
        signs = 2.0 * rng.integers(0, 2, size=(rows, len(effects))) - 1
        as_extreme += int(np.sum(np.abs(signs @ effects) >= observed))
    return (1 + as_extreme) / (1 + num_flips)


def minimum_detectable_effect(
    stderr: float, *, degrees_of_freedom: float = math.inf, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The true difference that a two-sided test at `alpha` finds with probability `power`: (t_1−α/2 + t_power)·stderr.

    NaN where the standard error is 0 or does not exist: where nothing varies, nothing is known of the spread.
    """
    if not stderr > 0:
        return math.nan
    quantiles = scipy.stats.t.ppf(1 - alpha / 2, degrees_of_freedom) + scipy.stats.t.ppf(power, degrees_of_freedom)
    return float(quantiles * stderr)


def minimum_detectable_effect_of_mcnemar(discordant: int, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference of two shares that McNemar's exact test finds with probability `power`.

    Args:
        discordant: Items of n in which the two subjects differ: the more, the larger a difference drowns in them.
            A difference δ needs a discordant share of δ at least, so that is what it is taken to be for larger δ.
        n: Items.
        alpha: Of the two-sided test.
        power: Chance to find it.

    Returns:
        A share, exact to 1e-6; infinity where even a change of every item could not be found (n of 5 or less).
    """
    counts = np.arange(n + 1)
    # The fewest wins (or losses) among so many discordant items that are significant: 2·P(X ≥ k) ≤ α.
    needed = scipy.stats.binom.isf(alpha / 2, counts, 0.5) + 1

    def power_at(difference: float) -> float:
        share = min(1.0, max(discordant / n, difference))
        wins = 0.5 * (1 + difference / share)
        found = scipy.stats.binom.sf(needed - 1, counts, wins) + scipy.stats.binom.cdf(counts - needed, counts, wins)
        return float(np.sum(scipy.stats.binom.pmf(counts, n, share) * found))

    if n < 1 or power_at(1.0) < power:
        return math.inf
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if power_at(middle) >= power else (middle, high)
    return high


@dataclass(frozen=True)
class SeedsDifference(Difference):
    """A difference of two methods over their training seeds; `degrees_of_freedom` are those of its standard error."""

    degrees_of_freedom: float


def seeds_difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    clusters: Sequence[object],
    strata: Sequence[object] | None = None,
    seed: int = 0,
    num_resamples: int = 2000,
) -> SeedsDifference:
    """Compare two methods, each trained with several seeds, by a hierarchical bootstrap: seeds, then prompts.

    Every run scores the same items, so seeds and prompts are crossed: a resample draws each method's seeds anew, and
    one set of prompts for all of them. S − 1 of S seeds are drawn, which makes the variance of a mean over seeds
    unbiased (Rao & Wu 1988); with S of S, three seeds would understate it by a third. A method with one run adds no
    spread over seeds: the interval then speaks of that one run.

    Few seeds also make the spread itself uncertain. The percentile interval is stretched about the value by Student's
    t over the normal quantile (Hesterberg 2015, "expanded"), with Welch's degrees of freedom over the seeds of both
    methods and the prompts; p is of the same t.

    Args:
        a: Scores [S, N] of the first method: a row a training seed.
        b: Scores [R, N] of the second; same items in the same order.
        clusters: What each item belongs to (its prompt, its pair); whole clusters are drawn again.
        strata: As for `paired_difference`.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.

    Returns:
        The difference of the means over seeds. Wins and losses count clusters in which the mean over seeds is higher.
    """
    sides = np.atleast_2d(np.asarray(a, dtype=np.float64)), np.atleast_2d(np.asarray(b, dtype=np.float64))
    num_items = sides[0].shape[1]
    names = np.asarray([str(s) for s in strata]) if strata is not None else np.full(num_items, "all")
    units = np.asarray([str(c) for c in clusters])
    rng = np.random.default_rng(seed_from("seeds bootstrap", seed))
    seed_weights = [_draw_seeds(rng, len(side), num_resamples) for side in sides]
    run_means = [np.zeros(len(side)) for side in sides]
    draws, prompts_only = np.zeros(num_resamples), np.zeros(num_resamples)
    wins, losses, num_clusters = 0, 0, 0
    strata_names = np.unique(names)
    for name in strata_names:
        mask = names == name
        _, index = np.unique(units[mask], return_inverse=True)
        count = int(index.max()) + 1
        num_clusters += count
        if count < 2:
            draws += math.nan
        sizes = np.bincount(index, minlength=count).astype(np.float64)
        sums = [np.stack([np.bincount(index, weights=run[mask], minlength=count) for run in side]) for side in sides]
        delta = sums[0].mean(axis=0) - sums[1].mean(axis=0)
        # Means over different seeds of equal scores may differ in the last bit.
        tolerance = 1e-9 * max(1.0, float(np.abs(sides[0]).max()), float(np.abs(sides[1]).max()))
        wins, losses = wins + int(np.sum(delta > tolerance)), losses + int(np.sum(delta < -tolerance))
        times_drawn = rng.multinomial(count, np.full(count, 1 / count), size=num_resamples).astype(np.float64)
        total = times_drawn @ sizes * len(strata_names)
        of_runs = [times_drawn @ side.T for side in sums]  # [resamples, seeds]
        draws += (np.sum(of_runs[0] * seed_weights[0], axis=1) - np.sum(of_runs[1] * seed_weights[1], axis=1)) / total
        prompts_only += (of_runs[0].mean(axis=1) - of_runs[1].mean(axis=1)) / total
        run_means = [
            means + side.sum(axis=1) / sizes.sum() / len(strata_names)
            for means, side in zip(run_means, sums, strict=True)
        ]
    value = float(run_means[0].mean() - run_means[1].mean())
    stderr = float(draws.std(ddof=1))
    parts = [(float(np.var(m, ddof=1)) / len(m), len(m) - 1) for m in run_means if len(m) > 1]
    parts.append((float(prompts_only.var(ddof=1)), max(1, num_clusters - 1)))
    weights = sum(variance**2 / freedom for variance, freedom in parts)
    freedom = sum(variance for variance, _ in parts) ** 2 / weights if weights > 0 else float(num_clusters - 1)
    stretch = float(scipy.stats.t.ppf(0.975, freedom) / scipy.stats.t.ppf(0.975, math.inf)) if freedom > 0 else math.nan
    return SeedsDifference(
        value=value,
        low=value + stretch * (float(np.quantile(draws, 0.025)) - value),
        high=value + stretch * (float(np.quantile(draws, 0.975)) - value),
        stderr=stderr,
        p=1.0 if value == 0 else float(2 * scipy.stats.t.sf(abs(value) / stderr, freedom)) if stderr > 0 else math.nan,
        wins=wins,
        losses=losses,
        n=num_items,
        degrees_of_freedom=freedom,
    )


def _draw_seeds(rng: np.random.Generator, count: int, num_resamples: int) -> np.ndarray:
    """Weights [resamples, seeds] of a mean over S − 1 seeds drawn with replacement; of one seed, itself."""
    if count == 1:
        return np.ones((num_resamples, 1))
    return rng.multinomial(count - 1, np.full(count, 1 / count), size=num_resamples) / (count - 1)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two judges' grades [N] of the same items, ties sharing their mean rank.

    NaN where one of them grades all items alike, and where there are fewer than two.
    """
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:  # scipy would warn, at every draw of a bootstrap
        return math.nan
    return float(scipy.stats.spearmanr(a, b).statistic)


def roc_auc(grades: np.ndarray, passes: np.ndarray) -> float:
    """The area under the ROC curve: how often an item that passes is graded above one that fails, ties counting half.

    Not scikit-learn's, which gives the same number but takes 30 times as long (2.4 ms): a bootstrap asks for 1000.

    Args:
        grades: [N].
        passes: Booleans [N].

    Returns:
        0 to 1, by chance ½; NaN where all pass or all fail.
    """
    passes = np.asarray(passes, dtype=bool)
    above, below = int(passes.sum()), int((~passes).sum())
    if not above or not below:
        return math.nan
    return float((scipy.stats.rankdata(grades)[passes].sum() - above * (above + 1) / 2) / (above * below))


def cohens_kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's κ of two judges' verdicts, booleans [N]: agreement beyond what their pass rates alone would give.

    NaN where both give one and the same verdict throughout. Not scikit-learn's, for the reason given at `roc_auc`.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    observed = float(np.mean(a == b))
    by_chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return (observed - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan


@dataclass(frozen=True)
class Interval:
    """A 95 % interval and the standard error; NaN where nothing is known of the spread."""

    low: float
    high: float
    stderr: float


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], *, clusters: Sequence[object], seed: int = 0, num_resamples: int = 1000
) -> Interval:
    """The percentile bootstrap of any statistic of N items.

    Args:
        statistic: Of the numbers of the items that are drawn [M]; a draw for which it is NaN is left out.
        clusters: What each of the N items belongs to; whole clusters are drawn again.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.
    """
    _, index = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2:
        return Interval(math.nan, math.nan, math.nan)
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    rng = np.random.default_rng(seed_from("bootstrap", seed))
    drawn = [
        statistic(np.concatenate([members[cluster] for cluster in rng.integers(0, count, size=count)]))
        for _ in range(num_resamples)
    ]
    values = np.array([value for value in drawn if not math.isnan(value)])
    if len(values) < 2:
        return Interval(math.nan, math.nan, math.nan)
    return Interval(float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975)), float(values.std(ddof=1)))
