"""Linear readouts: how well does a straight line through a model's features tell contact from no contact?

Three protocols over features [N, D]:

- `pooled` (default): one classifier over all scenarios, in float64, folds grouped by pair;
- `per-scenario`: one classifier a scenario, balanced by undersampling, C from 1e-8 to 1e8 (Physion v1);
- `official`: as `pooled` but in every detail what the v1.5 evaluation does, its float16 cast included.

All are standardisation → L2 logistic regression, C by 5-fold cross-validation, refit on all training items.
Predicting one item (`Predictions`, `score_items`) is apart from aggregating many (`aggregate`).
The solver is in `logistic.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from physcli.benchmarks.logistic import fit_path
from physcli.errors import DataError
from physcli.rows import Metric, Row, make_row
from physcli.stats import stderr_of_mean, stderr_of_strata

ACCURACY = Metric("accuracy", "rate", True, role="headline", interval="wilson")
BALANCED_ACCURACY = Metric("balanced_accuracy", "rate", True, interval="wilson")
C_GRID = (1e-6, 1e-5, 0.01, 0.1, 1.0, 5.0, 10.0, 20.0)  # v1.5
C_GRID_V1 = tuple(float(c) for c in np.logspace(-8, 8, 17))
NUM_FOLDS = 5
OFFICIAL_SEED = 42
CV_TOLERANCE = 1e-2  # leaves errors of the order of 1e-4 in log-odds, too little to change an accuracy
FLOAT16_MAX = 65504.0

K = TypeVar("K", bound=Hashable)


class LabelledClip(Protocol):
    """What a readout reads of a clip."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def scenario(self) -> str | None: ...
    @property
    def pair(self) -> str | None: ...
    @property
    def label(self) -> int | None: ...


@dataclass(frozen=True)
class CVScore:
    """Cross-validation at one C. `group` is "all" or a scenario; `folds` are the held-out scores."""

    group: str
    C: float
    mean: float
    folds: tuple[float, ...]


@dataclass(frozen=True)
class Predictions:
    """What a readout says of the test items, in their order.

    Attributes:
        p_true: [M] float64, probability of contact.
        pred: [M] int64, 1 where contact is the likelier.
        C: Chosen C by group ("all" or scenario).
        cv: Cross-validation scores.
        train_accuracy: On the items the final classifiers were fitted to.
    """

    p_true: np.ndarray
    pred: np.ndarray
    C: Mapping[str, float]
    cv: tuple[CVScore, ...]
    train_accuracy: float


# --- the three protocols ---


def pooled(
    X_train: np.ndarray,
    train: Sequence[LabelledClip],
    X_test: np.ndarray,
    test: Sequence[LabelledClip],
    *,
    subject: str = "features",
    seed: int = 0,
) -> Predictions:
    """One classifier over all scenarios; C by balanced accuracy on stratified folds that never part a pair.

    Args:
        X_train: [N, D] features of `train`, any float dtype.
        train: The N training items.
        X_test: [M, D] features of `test`.
        test: The M test items.
        subject: The model's name, for messages.
        seed: Of the folds.

    Raises:
        DataError: NaN or infinite features, or too few items for the folds.
    """
    _check_finite(X_train, train, subject)
    _check_finite(X_test, test, subject)
    y = _labels(train)
    cv = cross_validate(X_train, y, groups_of(train), C_GRID, seed=seed)
    C = best(cv).C
    model = fit_path(X_train, y, (C,))
    return _predictions(model.decide(X_train), model.decide(X_test), y, {"all": C}, cv)


def per_scenario(
    X_train: np.ndarray,
    train: Sequence[LabelledClip],
    X_test: np.ndarray,
    test: Sequence[LabelledClip],
    *,
    subject: str = "features",
    seed: int = 0,
) -> Predictions:
    """One classifier a scenario, its training items undersampled to as many of either label (Physion v1).

    Differs from v1 in that the folds never part a pair. Arguments and errors as in `pooled`.
    """
    _check_finite(X_train, train, subject)
    _check_finite(X_test, test, subject)
    decision = np.zeros(len(test))
    chosen: dict[str, float] = {}
    table: list[CVScore] = []
    hits = fitted = 0
    for number, scenario in enumerate(sorted({item.scenario or "" for item in test})):
        rows = [i for i, item in enumerate(train) if (item.scenario or "") == scenario]
        rows = _undersample(rows, train, np.random.default_rng([seed, number]))
        members = [train[i] for i in rows]
        X, y = X_train[rows], _labels(members)
        cv = cross_validate(X, y, groups_of(members), C_GRID_V1, seed=seed, scenario=scenario)
        chosen[scenario] = best(cv).C
        table += cv
        mine = [i for i, item in enumerate(test) if (item.scenario or "") == scenario]
        model = fit_path(X, y, (chosen[scenario],))
        decision[mine] = model.decide(X_test[mine])[:, 0]
        hits += int(((model.decide(X)[:, 0] > 0) == y).sum())
        fitted += len(y)
    return Predictions(expit(decision), (decision > 0).astype(np.int64), chosen, tuple(table), hits / fitted)


def official(
    X_train: np.ndarray,
    train: Sequence[LabelledClip],
    X_test: np.ndarray,
    test: Sequence[LabelledClip],
    *,
    subject: str = "features",
    seed: int = 0,
) -> Predictions:
    """The v1.5 evaluation: features cast to float16 and standardised in it, folds that know nothing of pairs.

    The released code takes the items in the order of an unsorted directory listing, on which its folds depend;
    here they are in the order given. Arguments and errors as in `pooled`, but `seed` changes nothing: 42 is part of
    the protocol.

    Raises:
        DataError: also for features beyond float16's ±65504, which the released code turns into infinity.
    """
    halves = []
    for X, items in ((X_train, train), (X_test, test)):
        _check_finite(X, items, subject)
        largest = np.abs(X).max(axis=1)
        if (largest > FLOAT16_MAX).any():
            worst = int(largest.argmax())
            raise DataError(
                f"{subject}: features overflow float16, {largest[worst]:.4g} in {items[worst].name} "
                f"({int((largest > FLOAT16_MAX).sum())} of {len(items)} items).",
                expected=f"absolute values up to {FLOAT16_MAX:.0f}, because the official readout casts to float16",
                fix="use --readout pooled",
            )
        halves.append(X.astype(np.float16))
    y = _labels(train)
    check_folds(list(y), None, NUM_FOLDS)
    splitter = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=OFFICIAL_SEED)
    table = np.zeros((len(C_GRID), NUM_FOLDS))
    for fold, (fit, held) in enumerate(splitter.split(halves[0], y)):
        scaler = StandardScaler().fit(halves[0][fit])
        Z, Z_held = (scaler.transform(halves[0][rows]) for rows in (fit, held))
        decisions = fit_path(Z, y[fit], C_GRID, standardise=False).decide(Z_held)
        table[:, fold] = ((decisions > 0) == y[held, None]).mean(axis=0)
    cv = _scores(table, C_GRID, "all")
    C = best(cv).C
    # The refit by the very solver of the released code: where it stops short of the optimum is part of its output.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=20000, random_state=OFFICIAL_SEED))
    model.fit(halves[0], y)
    on_train, on_test = (model.decision_function(half)[:, None] for half in halves)
    return _predictions(on_train, on_test, y, {"all": C}, cv)


READOUTS: dict[str, Callable[..., Predictions]] = {
    "pooled": pooled,
    "per-scenario": per_scenario,
    "official": official,
}


def choose(
    candidates: Mapping[K, np.ndarray | Callable[[], np.ndarray]],
    train: Sequence[LabelledClip],
    *,
    subject: str = "features",
    seed: int = 0,
    max_items: int | None = None,
) -> tuple[K, dict[K, CVScore]]:
    """The best of several feature sets (a block, a noise level) by cross-validation on training items alone.

    Args:
        candidates: Key → [N, D] training features, or a function that loads them (one set is held at a time).
        train: The N training items.
        max_items: Compare on at most so many of them (whole pairs, drawn by `seed`); the cost grows with the cube.

    Returns:
        The key with the best score at its best C (the first of equals), and every candidate's best score.

    Raises:
        DataError: NaN or infinite features, or too few items for the folds.
    """
    rows = np.arange(len(train))
    if max_items is not None and max_items < len(train):
        _, group, sizes = np.unique(groups_of(train), return_inverse=True, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(sizes))
        rows = np.flatnonzero(np.isin(group, order[np.cumsum(sizes[order]) <= max_items]))
    members = [train[int(i)] for i in rows]
    scores: dict[K, CVScore] = {}
    for key, features in candidates.items():
        X = (features() if callable(features) else features)[rows]
        _check_finite(X, members, f"{subject}, {key}")
        scores[key] = best(cross_validate(X, _labels(members), groups_of(members), C_GRID, seed=seed))
    return max(scores, key=lambda key: scores[key].mean), scores


def cross_validate(
    X: np.ndarray,
    y: np.ndarray,
    groups: Sequence[str],
    C_grid: Sequence[float],
    *,
    seed: int = 0,
    scenario: str = "",
) -> tuple[CVScore, ...]:
    """Balanced accuracy of each C on each held-out fold; folds are stratified by label and keep groups whole.

    Args:
        X: [N, D] finite features.
        y: [N] labels, 0 or 1.
        groups: [N] names; items of one name stay in one fold.
        C_grid: Ascending.
        scenario: Where only one is meant, its name.

    Raises:
        DataError: too few groups of either label.
    """
    check_folds(list(y), groups, NUM_FOLDS, scenario=scenario)
    table = np.zeros((len(C_grid), NUM_FOLDS))
    splitter = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    for fold, (fit, held) in enumerate(splitter.split(y[:, None], y, groups)):
        decisions = fit_path(X[fit], y[fit], C_grid, tolerance=CV_TOLERANCE).decide(X[held])
        right = (decisions > 0) == y[held, None]
        table[:, fold] = np.mean([right[y[held] == label].mean(axis=0) for label in np.unique(y[held])], axis=0)
    return _scores(table, C_grid, scenario or "all")


def best(scores: Sequence[CVScore]) -> CVScore:
    """The highest mean; of equals the first, which is the most regularised."""
    return max(scores, key=lambda score: score.mean)


def check_folds(
    labels: Sequence[int | None], groups: Sequence[str] | None, num_folds: int, *, scenario: str = ""
) -> None:
    """Fail if some fold could be left without positives or negatives.

    Raises:
        DataError: fewer than `num_folds` groups (items, if groups is None) of a label; says received and needed.
    """
    groups = [str(i) for i in range(len(labels))] if groups is None else groups
    counts = [len({g for g, label in zip(groups, labels, strict=True) if label == value}) for value in (1, 0)]
    if min(counts) < num_folds:
        raise DataError(
            f"Too few training items{scenario and f' of {scenario}'} for {num_folds}-fold cross-validation: "
            f"received {counts[0]} positive and {counts[1]} negative.",
            expected=f"needed at least {num_folds} of each (pairs count once)",
            fix="use more clips (a larger --limit or --num-clips); real Physion loses positives to the leak filter",
        )


def groups_of(items: Sequence[LabelledClip]) -> list[str]:
    """One name per item that items of a pair share, so that folds never part them."""
    return [f"{item.split}/{item.pair or item.name}" for item in items]


# --- scoring ---


def score_items(predictions: Predictions, test: Sequence[LabelledClip]) -> list[dict[str, Any]]:
    """One row a test item: name, scenario, pair, label, p_true, pred, correct."""
    return [
        {
            "name": item.name,
            "scenario": item.scenario,
            "pair": item.pair,
            "label": item.label,
            "p_true": float(p),
            "pred": int(pred),
            "correct": int(pred) == item.label,
        }
        for item, p, pred in zip(test, predictions.p_true, predictions.pred, strict=True)
    ]


def aggregate(predictions: Predictions, test: Sequence[LabelledClip], *, task: str, subject: str) -> list[Row]:
    """Accuracy and balanced accuracy (mean of the two labels' accuracies) per scenario and over scenarios.

    The group "all" is the unweighted mean of the scenarios, Physion's headline. Standard errors are clustered by
    pair: twins show the same scene, so their errors are not independent. Balanced accuracy has no row for a
    scenario that lacks a label, nor then for "all"; stderr is None where there are fewer than two groups.

    Returns:
        Rows as `metrics.json` holds them, rates as fractions.
    """
    y, groups = _labels(test), groups_of(test)
    right = (predictions.pred == y).astype(float)
    scenarios = np.array([item.scenario or "" for item in test])
    rows: list[Row] = []

    def add(group: str, metric: Metric, value: float, stderr: float, n: int) -> None:
        rows.append(
            make_row(
                metric,
                value,
                benchmark="physion",
                task=task,
                subject=subject,
                split="test",
                group=group,
                stderr=stderr,
                n=n,
            )
        )

    for metric, classes in ((ACCURACY, [(0, 1)]), (BALANCED_ACCURACY, [(0,), (1,)])):
        values, stderrs = [], []
        for scenario in sorted(set(scenarios.tolist())):
            inside = np.flatnonzero(scenarios == scenario)
            parts = [np.isin(y[inside], labels) for labels in classes]
            if not all(part.any() for part in parts):
                continue
            means = [right[inside][part].mean() for part in parts]
            # What each item adds to the estimate, whose standard error is that of the mean of these.
            influence = np.zeros(len(inside))
            for part, mean in zip(parts, means, strict=True):
                influence += part * (right[inside] - mean) * len(inside) / (part.sum() * len(parts))
            values.append(float(np.mean(means)))
            stderrs.append(stderr_of_mean(influence, [groups[i] for i in inside]))
            add(scenario, metric, values[-1], stderrs[-1], len(inside))
        if len(values) == len(set(scenarios)):
            add("all", metric, float(np.mean(values)), stderr_of_strata(stderrs), len(test))
    return rows


# --- shared ---


def _predictions(
    on_train: np.ndarray, on_test: np.ndarray, y: np.ndarray, C: dict[str, float], cv: tuple[CVScore, ...]
) -> Predictions:
    """From log-odds [N, 1] and [M, 1]."""
    decision = on_test[:, 0]
    train_accuracy = float(((on_train[:, 0] > 0) == y).mean())
    return Predictions(expit(decision), (decision > 0).astype(np.int64), C, cv, train_accuracy)


def _scores(table: np.ndarray, C_grid: Sequence[float], group: str) -> tuple[CVScore, ...]:
    return tuple(
        CVScore(group, float(C), float(folds.mean()), tuple(map(float, folds)))
        for C, folds in zip(C_grid, table, strict=True)
    )


def _labels(items: Sequence[LabelledClip]) -> np.ndarray:
    return np.array([int(item.label or 0) for item in items], dtype=np.int64)


def _undersample(rows: list[int], items: Sequence[LabelledClip], rng: np.random.Generator) -> list[int]:
    """As many rows of either label, in their order."""
    classes = [[i for i in rows if items[i].label == label] for label in (0, 1)]
    size = min(map(len, classes))
    return sorted(int(i) for members in classes for i in rng.permutation(members)[:size])


def _check_finite(X: np.ndarray, items: Sequence[LabelledClip], subject: str) -> None:
    if X.ndim != 2 or len(X) != len(items):
        raise ValueError(f"features must be [N, D] with N = {len(items)} items, got {X.shape}")
    # By item: one [N, D] array of booleans would be a quarter of the features again.
    bad = [row for row, features in enumerate(X) if not np.isfinite(features).all()]
    if bad:
        raise DataError(
            f"{subject}: features of {items[bad[0]].name} are NaN or infinite ({len(bad)} of {len(X)} items).",
            expected="finite features",
            fix="try --dtype float32, another layer, or check the weights",
        )
