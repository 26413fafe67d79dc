"""LikePhys (Yuan et al. 2025, arXiv 2510.11512): does a denoiser's own loss prefer possible clips to impossible ones?

The definition, not its released code. All clips of a scene are noised with the same ε. The loss of a clip is the mean,
over timesteps spread evenly, of the squared error of what the network predicts; the plausibility preference error (PPE)
of a violation is the mean over scenes of the share of (valid, invalid) pairs with loss(valid) ≥ loss(invalid). Ties are
errors: who cannot tell two clips apart does not know which is possible.

The released code (YuanJianhao508/LikePhys, 2046e5c) computes something else under the same name. Its scheduler's step
index is set once and never moves, so that the network sees all ten noised clips divided by the scale of the first (by
4096 for CogVideoX); the noise is read from the network's output with the clean clip where the noised one belongs; flow
models whose scheduler names no prediction type are scored as if they predicted ε, on a beta schedule that is not
theirs; and only > is an error, so that ties, NaN and constant predictors are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from physcli.errors import UsageError
from physcli.rows import Metric

READINGS = ("v", "eps", "x0")
NUM_LEVELS = 10
# Scenario → violations that the released table leaves out, without saying why.
LEFT_OUT = {
    "pendulum": ("reverse_gravity", "break_conservation_energy"),
    "river": ("color_change", "teleporting_fluid", "negative_viscosity"),
    "shadowm": ("shadow_disconnection",),
}

PPE = Metric("ppe", "rate", False, role="headline", interval="wilson")
MARGIN = Metric("loss_margin", "score", True)
VIOLATIONS_MEAN = Metric("ppe_mean_of_violations", "rate", False, interval="bootstrap")
SCENARIOS_MEAN = Metric("ppe_mean_of_scenarios", "rate", False, interval="bootstrap")
STILL = Metric("still_preferred", "rate", False, interval="wilson")
BLUR = Metric("blur_preferred", "rate", False, interval="wilson")
LOCALISATION = Metric("localisation_ap", "rate", True)
LOCALISATION_GAIN = Metric("localisation_gain", "rate", True)


def loss_weights(reading: str | None, prediction: str, signal: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """By what the squared error of a network's output is multiplied at each level, to be read as another error.

    With x_t = a·x0 + b·ε, an error δ of v̂ (variance-preserving or flow) is one of b·δ in x̂0 and of a·δ in ε̂, so that
    L_ε = a²·L_v and L_x0 = b²·L_v: ᾱ and 1 − ᾱ of a variance-preserving path, (1 − σ)² and σ² of a flow.

    Args:
        reading: "v" (of a flow its velocity), "eps", "x0", or None for the model's own objective.
        prediction: What the network predicts: "v", "velocity" or "epsilon".
        signal: a, float64 [S].
        sigma: b, float64 [S].

    Returns:
        float64 [S].

    Raises:
        UsageError: no such reading, or one that an ε-network has none of where nothing of the clip is left.
    """
    if reading is not None and reading not in READINGS:
        raise UsageError(f"--reading {reading}.", expected=f"one of {', '.join(READINGS)}")
    own = "eps" if prediction == "epsilon" else "v"
    of_v = {"v": np.ones_like(signal), "eps": signal**2, "x0": sigma**2}
    if own == "v" or reading in (None, "eps"):
        return of_v[reading or own] if own == "v" else np.ones_like(signal)
    if (signal == 0).any():
        raise UsageError(
            f"--reading {reading} of a model that predicts ε, at a level without any signal.",
            expected="--reading eps, the model's own",
        )
    return of_v[reading or own] / signal**2


def share_misranked(valid: Sequence[float], invalid: Sequence[float]) -> float:
    """The share of a scene's (valid, invalid) pairs that a loss ranks wrongly; ties and NaN among them.

    Args:
        valid: Losses [V] of its possible clips.
        invalid: Losses [I] of its clips with one violation.
    """
    possible, impossible = np.array(valid, float)[:, None], np.array(invalid, float)[None, :]
    return float(np.mean(~(possible < impossible)))


def mean_of_violations(scenarios: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over all violations of all scenarios (the released code's default).

    Args:
        scenarios: Scenario → violation → PPE; each has one at least.
    """
    return float(np.mean([value for ppe in scenarios.values() for value in ppe.values()]))


def mean_of_scenarios(scenarios: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over scenarios of the mean over a scenario's violations; arguments as for `mean_of_violations`."""
    return float(np.mean([mean_of_violations({name: ppe}) for name, ppe in scenarios.items()]))
