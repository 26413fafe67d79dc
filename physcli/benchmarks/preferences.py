"""What votes between two videos say: strengths by Bradley and Terry, with a side that draws votes, ties by Davidson,
how far raters agree, and how many votes a preference needs.

A vote names the run on the left l, that on the right r, and who won. With strengths θ (of the first run 0) and the
side's pull γ towards the left,

    Bradley–Terry    log P(l wins) / P(r wins) = θ_l − θ_r + γ      a logit on ±1 rows; a tie is half a vote for each
    Davidson (1970)  P(l wins) : P(tie) : P(r wins) = exp(δ/2) : ν : exp(−δ/2),   δ = θ_l − θ_r + γ

(Bradley & Terry 1952; the order effect as an intercept, Davidson & Beaver 1977.) There is no Elo here: it depends on
the order of the votes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from physcli.errors import MissingExtra
from physcli.hashing import seed_from
from physcli.stats import Interval

# Odds of 160,000 to one. No table of votes has such an estimate unless one side has never lost; then the likelihood
# has no maximum and the optimizer stops somewhere beyond.
_INFINITE = 12.0


@dataclass(frozen=True)
class Votes:
    """N votes between `num_runs` runs.

    Attributes:
        left: Which run was on the left, int [N].
        right: Which was on the right, int [N].
        outcome: 1 where the left one won, 0 where the right one did, ½ for a tie; float [N].
        num_runs: Runs are numbered from 0.
    """

    left: np.ndarray
    right: np.ndarray
    outcome: np.ndarray
    num_runs: int

    def counts(self, weights: np.ndarray | None = None) -> np.ndarray:
        """[runs, runs, 3]: by left and right run, how often the right one won, none did, the left one did."""
        kind = np.rint(2 * self.outcome).astype(int)
        code = (self.left * self.num_runs + self.right) * 3 + kind
        size = self.num_runs**2 * 3
        return np.bincount(code, weights=weights, minlength=size).astype(float).reshape(self.num_runs, -1, 3)


@dataclass(frozen=True)
class Fit:
    """Strengths of a model.

    Attributes:
        strengths: θ in logits [runs], that of the first run 0; infinite where a run never lost (or won), NaN where no
            chain of votes joins it with the first.
        side: γ, the pull of the left side in logits; 0 where it was not asked for.
        tie: Davidson's ν; NaN of Bradley–Terry.
    """

    strengths: np.ndarray
    side: float
    tie: float = math.nan

    def vector(self) -> np.ndarray:
        """[runs + 2]: strengths, side, tie."""
        return np.array([*self.strengths, self.side, self.tie])


def bradley_terry(counts: np.ndarray, *, side: bool = True) -> Fit:
    """Maximum likelihood, by scikit-learn's logit without a penalty; a tie is half a vote for each.

    Args:
        counts: As `Votes.counts` gives them; weights of any size.
        side: With γ; without it the model is the plain one (choix: `ilsr_pairwise`).

    Returns:
        NaN for all where there is no vote.
    """
    from sklearn.linear_model import LogisticRegression

    num_runs = len(counts)
    lefts, rights = np.nonzero(counts.sum(axis=2))
    won = counts[lefts, rights]
    design = np.zeros((len(lefts), num_runs - 1 + side))
    for column, sign in ((lefts, 1.0), (rights, -1.0)):
        present = column > 0
        design[np.flatnonzero(present), column[present] - 1] += sign
    if side:
        design[:, -1] = 1.0
    weights = np.concatenate([won[:, 2] + won[:, 1] / 2, won[:, 0] + won[:, 1] / 2])
    labels = np.repeat([1, 0], len(lefts))
    rows = np.flatnonzero(weights)
    if not len(rows):
        return Fit(np.full(num_runs, math.nan), math.nan)
    if len(np.unique(labels[rows])) == 1:  # every vote went to one side: nothing but that side is known
        return Fit(np.full(num_runs, math.nan), math.inf * (1 if labels[rows[0]] else -1))
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not converge where a run never lost is told by the result
        model.fit(np.tile(design, (2, 1))[rows], labels[rows], sample_weight=weights[rows] / weights.sum())
    found = _unbounded(model.coef_[0])
    return Fit(_known_strengths(counts, found), float(found[-1]) if side else 0.0)


def davidson(counts: np.ndarray) -> Fit:
    """Maximum likelihood with ties: the likelihood is concave in (θ, γ, log ν).

    Returns:
        NaN for all where there is no tie, or nothing but ties.
    """
    num_runs = len(counts)
    lefts, rights = np.nonzero(counts.sum(axis=2))
    won = counts[lefts, rights] / max(1.0, counts.sum())  # [pairs, 3]
    if not won[:, 1].sum() or not won[:, [0, 2]].sum():
        return Fit(np.full(num_runs, math.nan), math.nan)
    # Linear predictors of (right wins, tie, left wins) in the parameters [pairs, 3, runs + 1].
    linear = np.zeros((len(lefts), 3, num_runs + 1))
    for outcome, sign in ((0, -0.5), (2, 0.5)):
        for number, (left, right) in enumerate(zip(lefts, rights, strict=True)):
            if left:
                linear[number, outcome, left - 1] += sign
            if right:
                linear[number, outcome, right - 1] -= sign
        linear[:, outcome, -2] = sign
    linear[:, 1, -1] = 1.0

    def negative(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scores = linear @ parameters
        logs = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
        gradient = np.einsum("po,pok->k", won - won.sum(axis=1, keepdims=True) * np.exp(logs), linear)
        return -float(np.sum(won * logs)), -gradient

    done = scipy.optimize.minimize(negative, np.zeros(num_runs + 1), jac=True, method="BFGS", options={"gtol": 1e-9})
    found = _unbounded(done.x)
    return Fit(_known_strengths(counts, found), float(found[-2]), float(np.exp(found[-1])))


def _known_strengths(counts: np.ndarray, found: np.ndarray) -> np.ndarray:
    """θ [runs] of the parameters that were found. Where votes do not join a run with the first one, the likelihood is
    flat, and the optimizer stays where it began."""
    _, group = scipy.sparse.csgraph.connected_components(counts.sum(axis=2), directed=False)
    return np.where(group == group[0], [0.0, *found[: len(counts) - 1]], math.nan)


def _unbounded(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) > _INFINITE, np.copysign(np.inf, values), values)


def crossed_intervals(
    fit: Callable[[np.ndarray], Fit],
    votes: Votes,
    *,
    prompts: Sequence[object],
    raters: Sequence[object],
    seed: int = 0,
    num_resamples: int = 1000,
) -> list[Interval]:
    """Intervals of a fit's numbers by a bootstrap that draws prompts and raters, each with replacement.

    A vote weighs as often as its prompt was drawn times as often as its rater was (the pigeonhole bootstrap, Owen
    2007): both are samples, of what could be asked and of who could be asked. It errs on the wide side: of 40 simulated
    studies without differences between prompts or raters it held the truth in all. Where there is one prompt, or one
    rater, that is not drawn again.

    Args:
        fit: Of counts, as `bradley_terry`.
        votes: N of them.
        prompts: [N] each vote's.
        raters: [N] each vote's.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.

    Returns:
        For each of `Fit.vector`, percentiles of 2.5 and 97.5 (infinite ones as such), and the standard deviation of
        those that are finite. All NaN where there are neither two prompts nor two raters.
    """
    indices = [np.unique([str(name) for name in names], return_inverse=True)[1] for names in (prompts, raters)]
    sizes = [int(index.max()) + 1 for index in indices]
    if max(sizes) < 2:
        return [Interval(math.nan, math.nan, math.nan)] * (votes.num_runs + 2)
    rng = np.random.default_rng(seed_from("votes", seed))
    drawn = []
    for _ in range(num_resamples):
        weights = np.ones(len(votes.left))
        for index, size in zip(indices, sizes, strict=True):
            if size > 1:
                weights *= rng.multinomial(size, np.full(size, 1 / size))[index]
        drawn.append(fit(votes.counts(weights)).vector())
    return [_percentiles(column) for column in np.array(drawn).T]


def _percentiles(column: np.ndarray) -> Interval:
    values = column[~np.isnan(column)]
    finite = values[np.isfinite(values)]
    if len(values) < 2:
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")  # interpolation would make ∞ − ∞
    return Interval(float(low), float(high), float(finite.std(ddof=1)) if len(finite) > 1 else math.nan)


def nominal_alpha(ratings: np.ndarray) -> float:
    """Krippendorff's α of nominal ratings: 1 full agreement, 0 what chance gives, below 0 less than that.

    Args:
        ratings: Numbers of categories [raters, units], NaN where a rater did not see a unit.

    Returns:
        NaN where no unit has two raters, or all ratings are the same.

    Raises:
        MissingExtra: the package krippendorff is not installed.
    """
    try:
        import krippendorff
    except ImportError:
        raise MissingExtra("Krippendorff's α", package="krippendorff", extra="votes") from None
    paired = ratings[:, np.sum(~np.isnan(ratings), axis=0) > 1]
    if not paired.size or len(np.unique(paired[~np.isnan(paired)])) < 2:
        return math.nan
    return float(krippendorff.alpha(reliability_data=paired, level_of_measurement="nominal"))


def votes_needed(share: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Independent decided votes with which a two-sided test of ½ finds a preference of `share` so often (Fleiss).

    n = ((½·z_1−α/2 + √(p(1−p))·z_power) / (p − ½))². Votes of one prompt, and of one rater, are alike: multiply by the
    design effect.

    Raises:
        ValueError: the share is ½, or none.
    """
    if not 0 < share < 1 or share == 0.5:
        raise ValueError(f"share {share}; expected one between 0 and 1 other than one half")
    normal = scipy.stats.norm.ppf
    root = 0.5 * normal(1 - alpha / 2) + math.sqrt(share * (1 - share)) * normal(power)
    return math.ceil((root / (share - 0.5)) ** 2)
