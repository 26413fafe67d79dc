"""GeoPhys (arXiv 2606.20707): is the path of a video's features smooth? Nothing was released; the equations are those
of its project page.

With z_t the pooled feature of frame t, v_t = z_{t+1} − z_t and θ_t the angle between v_t and v_{t+1}:

    speed  std of |v_t|        curv  mean of θ_t        ang  std of θ_t
    accel  mean of |v_{t+1} − v_t|²                      perr  mean of |ε_t|, ε_t what a linear prediction misses

The larger, the less plausible. Our reading of what is open: the population's std; ε_t is the distance to the affine
span of the three frames before (a full linear map would fit any one video exactly); pairs of which one step has no
length have no angle. Of several videos of one prompt each signal is divided by its standard deviation over them, and
the five are added: an offset that all share moves no choice.

A still video has zero of all five, the best there is: `physcli eval select` says how often one would win.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from physcli.errors import DataError
from physcli.tasks.verifiers.base import (
    Candidate,
    Setting,
    Verifier,
    as_clip,
    identity_of,
    read_encoder,
    resolve_encoder,
)

SIGNALS = ("speed", "curv", "ang", "accel", "perr")
_HISTORY = 3  # frames that the next is predicted from
_CELLS = 8  # mean colours a side
_AT_ONCE = 32  # frames a pass
_ALIKE = 1e-9  # relative: what differs by less is rounding


def signals(path: np.ndarray, history: int = _HISTORY) -> dict[str, float]:
    """The five of a path of features.

    Args:
        path: [T, D], any float dtype.
        history: H frames before, whose affine span predicts the next.

    Raises:
        ValueError: fewer than H + 1 frames, or than 3.
    """
    z = np.asarray(path, dtype=np.float64)
    if z.ndim != 2 or len(z) < max(3, history + 1):
        raise ValueError(f"expected [T ≥ {max(3, history + 1)}, D], got {list(z.shape)}")
    steps = np.diff(z, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    angles = _angles(steps, lengths)
    return {
        "speed": float(lengths.std()),
        "curv": float(angles.mean()) if len(angles) else 0.0,
        "ang": float(angles.std()) if len(angles) else 0.0,
        "accel": float(np.square(np.diff(steps, axis=0)).sum(axis=1).mean()),
        "perr": float(np.mean([_off_span(z[t - history : t], z[t]) for t in range(history, len(z))])),
    }


def _angles(steps: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Between neighbouring steps, in radians; half angles, because an arccos loses half the digits near 0."""
    both = (lengths[:-1] > 0) & (lengths[1:] > 0)
    a = steps[:-1][both] / lengths[:-1][both, None]
    b = steps[1:][both] / lengths[1:][both, None]
    return 2 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1))


def _off_span(before: np.ndarray, point: np.ndarray) -> float:
    """Distance of a point [D] to the affine span of points [H, D]."""
    offset = point - before[-1]
    if len(before) > 1:
        directions = (before[:-1] - before[-1]).T
        offset = offset - directions @ np.linalg.lstsq(directions, offset, rcond=None)[0]
    return float(np.linalg.norm(offset))


class GeoPhys(Verifier):
    """Of an encoder's last block, averaged over each frame's tokens. An encoder of videos sees each frame held."""

    relative = True

    def __init__(self, setting: Setting) -> None:
        resolved = resolve_encoder(setting, "videomae-tiny")
        self.encoder = read_encoder(resolved, setting)
        self.identity, self.found = identity_of(resolved), {}

    def path(self, frames: np.ndarray) -> np.ndarray:
        """[T, D] of uint8 [T, H, W, 3]."""
        encoder = self.encoder
        held = as_clip(frames)[0][:, None].expand(-1, encoder.tubelet_size, -1, -1, -1)
        with torch.no_grad():
            passes = [encoder.encode(some.to(encoder.device)) for some in held.split(_AT_ONCE)]
        return torch.cat(passes).mean(dim=(1, 2, 3)).double().cpu().numpy()

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return scores_of([signals_of(self.path(one.frames), one) for one in candidates])


class Pixels(Verifier):
    """Of 8 × 8 mean colours: what needs no encoder."""

    relative = True

    def __init__(self, setting: Setting) -> None:
        self.identity, self.found = {"cells": _CELLS}, {}

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return scores_of([signals_of(colors(one.frames), one) for one in candidates])


def colors(frames: np.ndarray) -> np.ndarray:
    """Mean colours of 8 × 8 cells, [T, 192] in [0, 1], of uint8 [T, H, W, 3]."""
    small = [cv2.resize(frame.astype(np.float32), (_CELLS, _CELLS), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(small).reshape(len(frames), -1) / 255


def signals_of(path: np.ndarray, candidate: Candidate) -> dict[str, float]:
    """`signals`, where a video may be too short for them.

    Raises:
        DataError: it is.
    """
    if len(path) <= _HISTORY:
        raise DataError(
            f"{candidate.name} has {len(path)} frames.", expected=f"more than {_HISTORY} for geophys and pixels"
        )
    return signals(path)


def scores_of(found: Sequence[dict[str, float]]) -> np.ndarray:
    """Minus the sum of the signals, each over its standard deviation among the videos [N]; one in which all are alike
    decides nothing."""
    table = np.array([[one[name] for name in SIGNALS] for one in found])
    spread = table.std(axis=0)
    differs = spread > _ALIKE * np.abs(table).max(axis=0)
    return -(table[:, differs] / spread[differs]).sum(axis=1)
