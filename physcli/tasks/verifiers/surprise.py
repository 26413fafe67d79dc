"""Surprise: does a video go on as an encoder expects of its beginning? (WMReward, arXiv 2601.10553.)

A window of 16 frames is cut into the 8 that are seen and the 8 after them. What the encoder expects of the latter is
compared with what they are; the mean over windows counts, and less is better. There are two ways to expect:

* V-JEPA 2 has a predictor: from the tokens of the frames seen, encoded by themselves, it predicts those of the others.
  Surprise is 1 − the mean cosine to them, both without mean and scale. Differs from `VJEPA2Model` given masks, which
  encodes all frames first, so that the context has seen the future. At most 49 frames are looked at, evenly spaced,
  squashed to the model's square.
* Any other encoder gets a linear readout of the last tokens seen, which predicts how the colours of a token's place
  change: what `videomae-tiny` was trained for. It is fitted, in closed form, to clips of the simulated world; surprise
  is the mean squared error of colour (0 to 1).

A still video goes on as expected. `Foresight` wants what moves, too: of the squared change of colour, how much was
foreseen, less what was not: a still video earns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VJEPA2Model

from physcli.data.clips import installed_mujoco, read_dataset
from physcli.errors import DataError, UsageError
from physcli.methods.future_prediction import future_changes
from physcli.models.encoders.checkpoint import load_transformers
from physcli.models.encoders.vjepa2 import UNUSED
from physcli.models.names import Resolved
from physcli.simulation.types import FRAME_RATE_HZ, NUM_FRAMES
from physcli.tasks.sources import clips_folder
from physcli.tasks.verifiers.base import (
    Candidate,
    Setting,
    Verifier,
    as_clip,
    identity_of,
    read_encoder,
    resolve_encoder,
)

WINDOW, CONTEXT = 16, 8  # frames
STRIDE = 2  # frames from one window to the next
MOST_FRAMES = 49
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_FITTED_ON = "simulated:48"
_CELLS = 2  # a side, of a token's place
_MOVES = 0.03  # change of colour, as in training videomae-tiny
_RIDGE = 1e-3  # of the mean diagonal


def window_starts(num_frames: int, stride: int = STRIDE) -> list[int]:
    """Of the windows that fit, in order.

    Raises:
        ValueError: none does.
    """
    if num_frames < WINDOW:
        raise ValueError(f"{num_frames} frames; expected at least {WINDOW}")
    return list(range(0, num_frames - WINDOW + 1, stride))


# -- V-JEPA 2 ----------------------------------------------------------------------------------------------------------


def shown_to_vjepa2(frames: np.ndarray, size: int) -> Tensor:
    """What V-JEPA 2 sees of a video: uint8 [T, H, W, 3] → float32 [min(T, 49), 3, size, size]."""
    kept = np.linspace(0, len(frames) - 1, min(MOST_FRAMES, len(frames))).astype(int)
    pixels = torch.from_numpy(np.ascontiguousarray(frames[kept])).permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False) / 255
    return (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)


@torch.no_grad()
def vjepa2_surprise(
    model: VJEPA2Model, pixels: Tensor, *, stride: int = STRIDE, window: int = WINDOW, context: int = CONTEXT
) -> Tensor:
    """The surprise of every window.

    Args:
        model: With its predictor.
        pixels: [T, 3, S, S] of `shown_to_vjepa2`.
        stride: Frames from one window to the next.
        window: Frames of a window.
        context: Of these, the first, which are seen.

    Returns:
        [windows], the weights' dtype.
    """
    weight = next(model.parameters())
    found = []
    for start in range(0, len(pixels) - window + 1, stride):
        clip = pixels[start : start + window][None].to(weight)
        target = model.encoder(clip).last_hidden_state
        seen = model.encoder(clip[:, :context]).last_hidden_state
        ids = torch.arange(target.shape[1], device=target.device)[None]
        known, asked = ids[:, : seen.shape[1]], ids[:, seen.shape[1] :]
        # It picks the context's tokens out of all; behind them nothing is read.
        guess = model.predictor(seen, [known], [asked]).last_hidden_state
        guess, target = (_plain(tokens) for tokens in (guess, target[:, seen.shape[1] :]))
        found.append(1 - F.cosine_similarity(guess, target, dim=-1).mean())
    return torch.stack(found)


def _plain(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:])


class _Predictor:
    """V-JEPA 2's own."""

    def __init__(self, resolved: Resolved, setting: Setting) -> None:
        assert resolved.path is not None
        model: Any = load_transformers(VJEPA2Model, resolved.path, dtype=torch.float32, unused=UNUSED)
        self.model = model.to(setting.device).eval()
        self.identity: dict[str, Any] = identity_of(resolved)
        self.found: dict[str, Any] = {}

    def surprise(self, candidate: Candidate) -> float:
        _check_length(candidate)
        pixels = shown_to_vjepa2(candidate.frames, int(self.model.config.crop_size))
        return float(vjepa2_surprise(self.model, pixels).mean())


def _check_length(candidate: Candidate) -> None:
    if len(candidate.frames) < WINDOW:
        raise DataError(
            f"{candidate.name} has {len(candidate.frames)} frames.",
            expected=f"at least {WINDOW} for surprise and foresight",
            fix="choose with another --verifier",
        )


# -- any other encoder -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Readout:
    """From a token and a one to how its place's colours, in [0, 1], change: [D + 1, K horizons, cells · cells · 3]."""

    weights: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """[..., D] → [..., K, C]."""
        return torch.einsum("...d,dkc->...kc", _with_one(tokens), self.weights)


def _with_one(tokens: Tensor) -> Tensor:
    return F.pad(tokens, (0, 1), value=1.0)


def fit_readout(tokens: Tensor, changes: Tensor) -> Readout:
    """Ridge regression. Places that move do not count more, as they did in training `videomae-tiny`: a readout that
    expects motion everywhere is as surprised by a still video as by a real one.

    Args:
        tokens: [N, D] float64.
        changes: [N, K, C] float64, of colours in [0, 1].
    """
    x = _with_one(tokens)
    gram = x.T @ x
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, x.T @ changes.flatten(1))
    return Readout(weights.unflatten(1, changes.shape[1:]))


class _Fitted:
    """A readout of any encoder, fitted for each frame rate that is met."""

    def __init__(self, resolved: Resolved, setting: Setting) -> None:
        self.encoder = read_encoder(resolved, setting)
        if CONTEXT % self.encoder.tubelet_size:
            raise UsageError(
                f"{self.encoder.name} sees {self.encoder.tubelet_size} frames at a time.",
                expected=f"a number that divides the {CONTEXT} frames that are shown",
            )
        self._folder = clips_folder(
            _FITTED_ON,
            purpose="finetune",
            cache=setting.cache,
            processes=setting.processes,
            reporter=setting.reporter,
        )
        self.identity: dict[str, Any] = identity_of(resolved) | {"fitted_on": _FITTED_ON, "mujoco": installed_mujoco()}
        self.found: dict[str, Any] = {}
        self._readouts: dict[int, Readout] = {}

    def compare(self, candidate: Candidate) -> tuple[float, float]:
        """Mean squared error, and mean squared change of colour (0 to 1), over windows, places and horizons.

        Raises:
            DataError: too short, or of a rate that no simulated clip is seen at.
        """
        _check_length(candidate)
        strides = {n: FRAME_RATE_HZ / n for n in range(1, (NUM_FRAMES - 1) // (WINDOW - 1) + 1)}
        stride = next((n for n, rate_hz in strides.items() if abs(rate_hz - candidate.frame_rate_hz) < 0.01), None)
        if stride is None:
            rates = ", ".join(f"{rate_hz:.3g}" for rate_hz in strides.values())
            raise DataError(
                f"{candidate.name} has {candidate.frame_rate_hz:g} frames a second.",
                expected=f"{rates}: the readout is fitted to simulated clips",
                fix="choose with another --verifier, or give surprise V-JEPA 2 with --encoder",
            )
        tokens, changes = self._read(candidate.frames)
        error = (self._readout(stride)(tokens) - changes).square().mean()
        return float(error), float(changes.square().mean())

    def surprise(self, candidate: Candidate) -> float:
        return self.compare(candidate)[0]

    def _read(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens [windows · places, D] of the last time step seen, and the changes [windows · places, K, C]."""
        read = []
        for start in window_starts(len(frames), stride=1):
            window = as_clip(frames[start : start + WINDOW])
            with torch.no_grad():
                last = self.encoder.encode(window[:, :CONTEXT].to(self.encoder.device))[0, -1].cpu()  # [h, w, D]
            grid = (last.shape[0], last.shape[1])
            changes, _ = future_changes(window[:, CONTEXT - 1], window[:, CONTEXT:], grid=grid, cells=_CELLS)
            read.append((last.flatten(0, 1).double(), changes[0].double()))
        tokens, after = zip(*read, strict=True)
        return torch.cat(tokens), torch.cat(after)

    def _readout(self, stride: int) -> Readout:
        if stride not in self._readouts:
            clips = read_dataset(self._folder).clips
            sides = {}
            for split in ("train", "test"):
                read = [self._read(clip.read()[::stride]) for clip in clips if clip.split == split]
                sides[split] = tuple(torch.cat(part) for part in zip(*read, strict=True))
            readout = self._readouts[stride] = fit_readout(*sides["train"])
            tokens, changes = sides["test"]
            moving = (changes.abs().amax(dim=2) > _MOVES)[..., None]
            missed = ((readout(tokens) - changes) * moving).square().sum() / (changes * moving).square().sum()
            # Of the held-out moving places' squared change.
            self.found[f"explained_at_{FRAME_RATE_HZ / stride:.3g}_hz"] = round(1 - float(missed), 4)
        return self._readouts[stride]


class Surprise(Verifier):
    """The least surprise first."""

    def __init__(self, setting: Setting) -> None:
        resolved = resolve_encoder(setting, "videomae-tiny")
        self._expects = (_Predictor if resolved.family == "vjepa2" else _Fitted)(resolved, setting)
        self.identity, self.found = self._expects.identity, self._expects.found

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return -np.array([self._expects.surprise(one) for one in candidates])


class Foresight(Verifier):
    """The most change that was foreseen, less what was not, first."""

    def __init__(self, setting: Setting) -> None:
        self._expects = _Fitted(resolve_encoder(setting, "videomae-tiny"), setting)
        self.identity, self.found = self._expects.identity, self._expects.found

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        both = [self._expects.compare(one) for one in candidates]
        return np.array([change - error for error, change in both])
