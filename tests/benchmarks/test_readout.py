from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from physcli.benchmarks.readout import (
    C_GRID,
    C_GRID_V1,
    READOUTS,
    Predictions,
    aggregate,
    choose,
    cross_validate,
    groups_of,
    official,
    per_scenario,
    pooled,
    score_items,
)
from physcli.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "physion"
OFFICIAL_SCENARIOS = ("collision", "drop", "towers", "link", "roll", "contain", "dominoes")


@dataclass(frozen=True)
class Item:
    name: str
    split: str = "train"
    scenario: str | None = "drop"
    pair: str | None = None
    label: int | None = 1


def golden_features(folder: str, split: str, task: str = "") -> tuple[np.ndarray, list[Item]]:
    h5py = pytest.importorskip("h5py")
    rows = json.loads((GOLDEN / folder / f"{task}{split}_json.json").read_text())
    scenario = {row: name for name, members in rows.items() for row in members}
    with h5py.File(GOLDEN / folder / f"{task}{split}_features.hdf5") as file:
        X = file["features"][:].reshape(len(file["features"]), -1)
        items = [
            Item(Path(name.decode()).stem, split, scenario[row], label=int(file["label"][row]))
            for row, name in enumerate(file["filenames"][:])
        ]
    return X, items


def noisy_suite(
    num_train: int, num_test: int, num_features: int, *, signal: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, list[Item], np.ndarray, list[Item]]:
    """Pairs of clips whose features share a scene; `signal` says how much of the label one direction tells."""
    rng = np.random.default_rng(seed)
    sets: list[Any] = []
    direction = rng.normal(size=num_features)
    for split, count in (("train", num_train), ("test", num_test)):
        labels = np.tile([0, 1], count // 2)
        scenes = np.repeat(rng.normal(size=(count // 2, num_features)), 2, axis=0)
        X = scenes + rng.normal(size=scenes.shape) + signal * np.outer(labels - 0.5, direction)
        items = [
            Item(f"{split}{i}", split, ("drop", "roll")[i // 2 % 2], f"p{i // 2}", int(label))
            for i, label in enumerate(labels)
        ]
        sets += [X.astype(np.float32), items]
    return sets[0], sets[1], sets[2], sets[3]


@pytest.mark.parametrize(
    ("folder", "task", "key"),
    [("readout", "", None), ("tiny_features", "ocp_", "ocp"), ("tiny_features", "ocd_", "ocd")],
)
def test_official_readout_is_reproduced(folder: str, task: str, key: str | None) -> None:
    name = "expected.json" if key is None else "readout_expected.json"
    expected = json.loads((GOLDEN / folder / name).read_text())
    expected = expected if key is None else expected[key]
    X_train, train = golden_features(folder, "train", task)
    X_test, test = golden_features(folder, "test", task)
    predictions = official(X_train, train, X_test, test, seed=7)

    assert [list(score.folds) for score in predictions.cv] == [entry["folds"] for entry in expected["cv"]]
    assert [(score.C, score.mean) for score in predictions.cv] == [(e["C"], e["mean"]) for e in expected["cv"]]
    results = expected["results"]
    assert dict(predictions.C) == {"all": results["clf__C"]}
    assert predictions.train_accuracy == results["train"]
    rows = aggregate(predictions, test, task="ocp", subject="golden")
    accuracy = {row["group"]: row["value"] for row in rows if row["metric"] == "accuracy"}
    assert {name: accuracy[name] for name in OFFICIAL_SCENARIOS} == {
        name: results[f"{name}_test"] for name in OFFICIAL_SCENARIOS
    }
    assert accuracy["all"] == pytest.approx(results["full_test_sce_acc"], abs=1e-15)

    order = [i for scenario in OFFICIAL_SCENARIOS for i, item in enumerate(test) if item.scenario == scenario]
    golden = expected.get("per_sample") or expected["predictions"]
    assert [test[i].label for i in order] == [entry["actual"] for entry in golden]
    np.testing.assert_allclose(predictions.p_true[order], [entry["p_true"] for entry in golden], atol=9e-4)


def test_pooled_finds_a_signal_and_keeps_pairs_together() -> None:
    X_train, train, X_test, test = noisy_suite(200, 100, 300, signal=0.5)
    predictions = pooled(X_train, train, X_test, test, seed=3)
    assert (predictions.pred == [item.label for item in test]).mean() > 0.85
    assert predictions.pred.tolist() == (predictions.p_true > 0.5).astype(int).tolist()
    again = pooled(X_train, train, X_test, test, seed=3)
    np.testing.assert_array_equal(predictions.p_true, again.p_true)
    assert [score.C for score in predictions.cv] == list(C_GRID)
    assert predictions.C["all"] == max(predictions.cv, key=lambda score: score.mean).C


def test_folds_grouped_by_pair_do_not_reward_memory() -> None:
    """Copies of one clip with one random label: told apart, the folds reward remembering its copy."""
    rng = np.random.default_rng(0)
    scenes = np.repeat(rng.normal(size=(60, 200)), 2, axis=0)
    y = np.repeat(rng.permutation(np.tile([0, 1], 30)), 2)
    pairs = [f"p{i // 2}" for i in range(120)]
    grouped = cross_validate(scenes, y, pairs, (1.0,))[0].mean
    apart = cross_validate(scenes, y, [str(i) for i in range(120)], (1.0,))[0].mean
    assert apart > 0.9
    assert abs(grouped - 0.5) < 0.2
    # And so do all that choose by cross-validation.
    train = [Item(f"{i}", pair=pairs[i], label=int(label)) for i, label in enumerate(y)]
    for protocol in (pooled, per_scenario):
        assert all(score.mean < 0.7 for score in protocol(scenes, train, scenes, train).cv)
    assert choose({"memory": scenes}, train)[1]["memory"].mean < 0.7


@pytest.mark.parametrize("protocol", READOUTS)
def test_shuffled_labels_are_at_chance(protocol: str) -> None:
    X_train, train, X_test, test = noisy_suite(400, 400, 100, signal=1.0)
    rng = np.random.default_rng(5)
    train, test = (
        [
            Item(i.name, i.split, i.scenario, i.pair, int(label))
            for i, label in zip(items, rng.permutation(y), strict=True)
        ]
        for items, y in ((train, [i.label for i in train]), (test, [i.label for i in test]))
    )
    predictions = READOUTS[protocol](X_train, train, X_test, test, seed=0)
    rows = aggregate(predictions, test, task="ocp", subject="shuffled")
    overall = next(row for row in rows if row["group"] == "all" and row["metric"] == "accuracy")
    assert abs(overall["value"] - 0.5) < 3 * overall["stderr"]
    assert overall["stderr"] == pytest.approx(0.025, rel=0.2)


def test_per_scenario_readout_balances_and_separates() -> None:
    """Two scenarios whose labels point in opposite directions: pooled fails, per scenario succeeds."""
    X_train, train, X_test, test = noisy_suite(240, 120, 50, signal=1.0)
    for X, items in ((X_train, train), (X_test, test)):
        X[[item.scenario == "roll" for item in items]] *= -1
    # Keep a third of the drop positives, as a leak filter would.
    kept = [i for i, item in enumerate(train) if not (item.scenario == "drop" and item.label and i % 3)]
    X_train, train = X_train[kept], [train[i] for i in kept]
    predictions = per_scenario(X_train, train, X_test, test)
    assert (predictions.pred == [item.label for item in test]).mean() > 0.9
    assert set(predictions.C) == {"drop", "roll"}
    assert [score.C for score in predictions.cv if score.group == "roll"] == list(C_GRID_V1)
    drop = [i for i, item in enumerate(test) if item.scenario == "drop"]
    assert abs(predictions.pred[drop].mean() - 0.5) < 0.1
    assert (pooled(X_train, train, X_test, test).pred == [item.label for item in test]).mean() < 0.75


def test_per_scenario_readout_undersamples() -> None:
    """Where the features tell nothing, one positive to five negatives makes no readout that always says no."""
    X_train, train, X_test, test = noisy_suite(240, 120, 20, signal=0.0)
    kept = [i for i, item in enumerate(train) if not (item.label and i // 2 % 10 < 8)]
    share = per_scenario(X_train[kept], [train[i] for i in kept], X_test, test).pred.mean()
    assert abs(share - 0.5) < 0.15


def test_choose_uses_training_items_only() -> None:
    X, train, _, _ = noisy_suite(160, 20, 60, signal=1.0)
    noise = np.random.default_rng(9).normal(size=X.shape).astype(np.float32)
    loaded = []

    def load() -> np.ndarray:
        loaded.append(True)
        return X

    key, scores = choose({("block", 3): noise, ("block", 7): load}, train)
    assert (key, loaded) == (("block", 7), [True])
    assert scores[key].mean > 0.8 > scores[("block", 3)].mean
    key, scores = choose({"a": noise, "b": X}, train, max_items=80)
    assert key == "b"
    assert scores["b"] != choose({"b": X}, train)[1]["b"]
    for max_items in (80, 81):  # whole pairs, so never 81
        with pytest.raises(DataError, match=r"\(80 of 80 items\)"):
            choose({"a": np.full_like(X, np.nan)}, train, max_items=max_items)


def test_scoring_and_aggregation() -> None:
    test = [
        Item("a", "test", "drop", "p0", 1),
        Item("b", "test", "drop", "p0", 0),
        Item("c", "test", "drop", "p1", 1),
        Item("d", "test", "drop", None, 1),
        Item("e", "test", "roll", "p2", 1),
        Item("f", "test", "roll", "p2", 0),
        Item("g", "test", "roll", "p3", 1),
        Item("h", "test", "roll", "p3", 0),
    ]
    pred = np.array([1, 1, 1, 0, 1, 0, 0, 0])
    predictions = Predictions(np.where(pred, 0.9, 0.1), pred, {"all": 1.0}, (), 1.0)
    items = score_items(predictions, test)
    assert items[3] == {
        "name": "d",
        "scenario": "drop",
        "pair": None,
        "label": 1,
        "p_true": 0.1,
        "pred": 0,
        "correct": False,
    }
    rows = {(r["group"], r["metric"]): r for r in aggregate(predictions, test, task="ocd", subject="s")}
    assert {key: row["value"] for key, row in rows.items()} == pytest.approx(
        {
            ("drop", "accuracy"): 1 / 2,
            ("roll", "accuracy"): 3 / 4,
            ("all", "accuracy"): 5 / 8,
            ("drop", "balanced_accuracy"): (2 / 3 + 0) / 2,
            ("roll", "balanced_accuracy"): (1 / 2 + 1) / 2,
            ("all", "balanced_accuracy"): (1 / 3 + 3 / 4) / 2,
        }
    )
    # drop: deviations from 1/2 add up within pairs to 0, 1/2, −1/2; over 4 items, 3 groups.
    drop, roll = np.sqrt(3 / 2 * 2 * 0.5**2) / 4, np.sqrt(2 * 2 * 0.5**2) / 4
    assert rows["drop", "accuracy"]["stderr"] == pytest.approx(drop)
    assert rows["roll", "accuracy"]["stderr"] == pytest.approx(roll)
    assert rows["all", "accuracy"]["stderr"] == pytest.approx(np.hypot(drop, roll) / 2)
    assert rows["all", "accuracy"]["n"] == 8
    # drop: each positive's deviation from 2/3 counts for 1/6 (three of them, half the estimate): 1/18, 1/18, −1/9.
    assert rows["drop", "balanced_accuracy"]["stderr"] == pytest.approx(np.sqrt(3 / 2 * (1 + 1 + 4) / 18**2))
    assert rows["roll", "balanced_accuracy"]["stderr"] == pytest.approx(np.sqrt(2 * 2 / 8**2))
    assert rows["all", "balanced_accuracy"]["stderr"] == pytest.approx(np.hypot(1 / 6, 1 / 4) / 2)
    assert json.loads(json.dumps(rows["all", "accuracy"])) == {
        **{"benchmark": "physion", "task": "ocd", "subject": "s", "split": "test", "group": "all"},
        **{"metric": "accuracy", "value": 5 / 8, "stderr": rows["all", "accuracy"]["stderr"], "n": 8},
        **{"higher_is_better": True, "kind": "rate", "role": "headline", "interval": "wilson"},
    }


def test_aggregation_without_one_label_or_group() -> None:
    test = [Item("a", "test", "drop", label=1), Item("b", "test", "roll", label=1), Item("c", "test", "roll", label=0)]
    predictions = Predictions(np.array([0.9, 0.9, 0.9]), np.array([1, 1, 1]), {"all": 1.0}, (), 1.0)
    rows = {(r["group"], r["metric"]): r for r in aggregate(predictions, test, task="ocp", subject="s")}
    assert ("drop", "balanced_accuracy") not in rows
    assert ("all", "balanced_accuracy") not in rows
    assert rows["drop", "accuracy"]["stderr"] is None
    assert rows["all", "accuracy"]["stderr"] is None
    # Unclustered, the stderr of an accuracy is the textbook one.
    many = [Item(str(i), "test", label=1) for i in range(100)]
    pred = (np.arange(100) < 80).astype(np.int64)
    row = aggregate(Predictions(pred * 1.0, pred, {}, (), 1.0), many, task="ocp", subject="s")[0]
    assert row["stderr"] == pytest.approx(np.sqrt(0.8 * 0.2 / 99))


@pytest.mark.parametrize("protocol", READOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_numbers(protocol: str, value: float) -> None:
    X_train, train, X_test, test = noisy_suite(40, 20, 10)
    X_test[7, 2] = value
    message = r"videomae: features of test7 are NaN or infinite \(1 of 20 items\)"
    with pytest.raises(DataError, match=message):
        READOUTS[protocol](X_train, train, X_test, test, subject="videomae")


def test_official_refuses_what_float16_cannot_hold() -> None:
    X_train, train, X_test, test = noisy_suite(40, 20, 10)
    X_train[5, 1] = -70000
    with pytest.raises(DataError, match=r"overflow float16, 7e\+04 in train5 \(1 of 40 items\)"):
        official(X_train, train, X_test, test)
    pooled(X_train, train, X_test, test)


def test_too_few_items() -> None:
    X_train, train, X_test, test = noisy_suite(8, 20, 10)
    for protocol in ("pooled", "official"):
        with pytest.raises(DataError, match="received 4 positive and 4 negative") as caught:
            READOUTS[protocol](X_train, train, X_test, test)
        assert "needed at least 5 of each" in caught.value.expected
    with pytest.raises(DataError, match="Too few training items of drop for 5-fold"):
        per_scenario(X_train, train, X_test, test)
    with pytest.raises(ValueError, match=r"\[N, D\] with N = 8"):
        pooled(X_train[:4], train, X_test, test)


def test_groups_keep_splits_apart() -> None:
    assert groups_of([Item("a", "train", pair="p"), Item("b", "test", pair="p"), Item("c")]) == [
        "train/p",
        "test/p",
        "train/c",
    ]
