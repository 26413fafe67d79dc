"""The control subjects: state tells the outcome, single pixels do not."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from physcli.errors import DataError
from physcli.simulation.controls import ballistic_score, pixel_features, state_features, state_predict
from physcli.simulation.suite import Sample, make_pair

THINGS = [
    {"role": "agent", "size": [0.3]},
    {"role": "patient", "size": [0.3, 0.3, 0.3]},
    {"role": "support", "size": [1.0, 1.0, 0.1]},
]


def track(velocity: tuple[float, float, float], gravity: float = 0.0) -> np.ndarray:
    """[17, 3, 3]: an agent that is 2 m left of the patient and 1 m above it at the last frame."""
    time = (np.arange(17) - 16)[:, None] / 20
    positions = np.zeros((17, 3, 3))
    positions[:, 0] = [-2, 0, 1] + np.array(velocity) * time - gravity / 2 * time**2 * np.array([0, 0, 1])
    return positions


UPRIGHT = np.broadcast_to([1.0, 0, 0, 0], (17, 3, 4))


def test_ballistic_score_is_the_gap_left() -> None:
    record = {"things": THINGS}
    # Along the level line y = 0, z = 1 the nearest point is 1 m above the patient; it flies on in 1.6 s.
    assert ballistic_score(record, track((2, 0, 0))) == pytest.approx(0.6 - 1.0, abs=1e-6)
    assert ballistic_score(record, track((-2, 0, 0))) == pytest.approx(0.6 - np.sqrt(5), abs=1e-6)
    # In free fall it lands on the patient when level speed is distance / time to fall 1 m.
    fall = np.sqrt(2 / 9.81)
    assert ballistic_score(record, track((2 / fall, 0, 0), gravity=9.81)) > 0.45
    assert ballistic_score(record, track((4 / fall, 0, 0), gravity=9.81)) < 0


def test_state_features_see_the_scene_from_the_patient() -> None:
    record = {"things": THINGS}
    positions = track((2, 0.5, 0), gravity=9.81)
    features = state_features(record, positions, UPRIGHT)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features[:3], [-2, 0, 1], atol=1e-5)
    np.testing.assert_allclose(features[9:12], [2, 0.5, 0], atol=1e-4)
    np.testing.assert_allclose(features[15:18], [0, 0, -9.81], atol=1e-3)
    # Nothing after the context is read.
    longer = np.concatenate([positions, positions + 9])
    np.testing.assert_array_equal(state_features(record, longer, np.tile(UPRIGHT, (2, 1, 1))), features)
    moved = state_features(record, positions + np.array([3, -1, 0]), UPRIGHT)
    np.testing.assert_allclose(moved, features, atol=1e-4)
    with pytest.raises(DataError, match="5 frames"):
        state_features(record, positions[:5], UPRIGHT)


def test_pixel_features_are_frames_and_differences() -> None:
    frames = np.zeros((17, 64, 64, 3), np.uint8)
    frames[8:] = 255
    features = pixel_features(frames).reshape(5, 16, 16, 3)
    np.testing.assert_array_equal(features[:, 0, 0, 0], [0, 1, 1, 1, 0])


@functools.cache
def clips(scenario: str, stream: str, pairs: int) -> list[Sample]:
    return [sample for index in range(pairs) for sample in make_pair(scenario, stream, index)]


def arrays(samples: list[Sample]) -> tuple[np.ndarray, ...]:
    motions = [s.motion for s in samples]
    return (
        np.stack([state_features(s.record, m.positions, m.quaternions) for s, m in zip(samples, motions, strict=True)]),
        np.array([ballistic_score(s.record, m.positions) for s, m in zip(samples, motions, strict=True)]),
        np.array([m.label for m in motions]),
        np.array([s.pair for s in samples]),
        np.array([s.scene.scenario for s in samples]),
    )


@pytest.mark.slow
def test_state_predicts_the_outcome() -> None:
    train = [arrays(clips(scenario, "probe-train", 16)) for scenario in ("link", "roll")]
    test = [arrays(clips(scenario, "probe-test", 8)) for scenario in ("link", "roll")]
    x, b, y, pairs, scenarios = (np.concatenate(parts) for parts in zip(*train, strict=True))
    tx, tb, ty, _, tscenarios = (np.concatenate(parts) for parts in zip(*test, strict=True))
    scores = state_predict(x, b, y, pairs, scenarios, test_features=tx, test_ballistic=tb, test_scenarios=tscenarios)
    assert scores.shape == ty.shape
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((scores >= 0.5) == ty).mean() >= 0.85


def test_too_few_pairs() -> None:
    x, b, y, pairs, scenarios = arrays(clips("roll", "probe-train", 1))
    with pytest.raises(DataError, match="1 training pair"):
        state_predict(x, b, y, pairs, scenarios, test_features=x, test_ballistic=b, test_scenarios=scenarios)
