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

from physcli.data.clips import read_dataset
from physcli.errors import DataError, UsageError
from physcli.methods.future_prediction import future_changes
from physcli.models.encoders.base import Encoder
from physcli.models.encoders.checkpoint import load_transformers
from physcli.models.encoders.vjepa2 import UNUSED
from physcli.models.names import Resolved, fingerprint
from physcli.simulation.types import FRAME_RATE_HZ
from physcli.tasks.sources import clips_folder
from physcli.tasks.verifiers.base import Candidate, Need, Verifier, as_clip, read_encoder, resolve_encoder

WINDOW, CONTEXT = 16, 8  # frames
STRIDE = 2  # frames from one window to the next
MOST_FRAMES = 49
_MASK_TOKEN = 1
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

    def __init__(self, resolved: Resolved, need: Need) -> None:
        assert resolved.path is not None
        model: Any = load_transformers(VJEPA2Model, resolved.path, dtype=torch.float32, unused=UNUSED)
        self.model = model.to(need.device).eval()
        self.facts = {"encoder": resolved.name, "encoder_hash": fingerprint(resolved)}

    def surprise(self, candidate: Candidate) -> float:
        pixels = shown_to_vjepa2(candidate.frames, int(self.model.config.crop_size))
        return float(vjepa2_surprise(self.model, pixels).mean())


# -- any other encoder -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Readout:
    """From a token [D] and a one to how its place's colours change: [D + 1, K horizons, cells · cells · 3]."""

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
        changes: [N, K, C] float64.
    """
    x = _with_one(tokens)
    gram = x.T @ x
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, x.T @ changes.flatten(1))
    return Readout(weights.unflatten(1, changes.shape[1:]))


class _Fitted:
    """A readout of any encoder, fitted for each frame rate that is met."""

    def __init__(self, resolved: Resolved, need: Need) -> None:
        self.encoder, about = read_encoder(resolved, need)
        self.need = need
        self.facts: dict[str, Any] = about | {"fitted_on": _FITTED_ON}
        if CONTEXT % self.encoder.tubelet_size:
            raise UsageError(
                f"{self.encoder.name} sees {self.encoder.tubelet_size} frames at a time.",
                expected=f"a number that divides the {CONTEXT} frames that are shown",
            )
        self._readouts: dict[int, Readout] = {}

    def compare(self, candidate: Candidate) -> tuple[float, float]:
        """Mean squared error, and mean squared change, over windows, places and horizons."""
        stride = FRAME_RATE_HZ / candidate.frame_rate_hz
        if abs(stride - round(stride)) > 1e-3 or not round(stride):
            raise DataError(
                f"{candidate.name} has {candidate.frame_rate_hz:g} frames a second.",
                expected=f"{FRAME_RATE_HZ} or a whole part of it: the readout is fitted to simulated clips",
            )
        readout = self._readout(round(stride))
        tokens, changes = self._read(candidate.frames, candidate.name)
        error = (readout(tokens) - changes).square().mean()
        return float(error), float(changes.square().mean())

    def surprise(self, candidate: Candidate) -> float:
        return self.compare(candidate)[0]

    def _read(self, frames: np.ndarray, name: str) -> tuple[Tensor, Tensor]:
        """Tokens [windows · places, D] of the last time step seen, and the changes [windows · places, K, C]."""
        encoder: Encoder = self.encoder
        try:
            starts = window_starts(len(frames), stride=1)
        except ValueError as error:
            raise DataError(f"{name}: {error}.", expected=f"videos of at least {WINDOW} frames") from error
        windows = torch.cat([as_clip(frames[start : start + WINDOW]) for start in starts])
        with torch.no_grad():
            last = encoder.encode(windows[:, :CONTEXT].to(encoder.device))[:, -1].cpu()  # [B, h, w, D]
        grid = (last.shape[1], last.shape[2])
        changes, _ = future_changes(windows[:, CONTEXT - 1], windows[:, CONTEXT:], grid=grid, cells=_CELLS)
        return last.flatten(0, 2).double(), changes.flatten(0, 1).double()

    def _readout(self, stride: int) -> Readout:
        if stride not in self._readouts:
            need = self.need
            folder = clips_folder(
                _FITTED_ON, purpose="finetune", cache=need.cache, processes=need.processes, reporter=need.reporter
            )
            clips = read_dataset(folder).clips
            found = {}
            for split in ("train", "test"):
                read = [self._read(clip.read()[::stride], str(clip.path)) for clip in clips if clip.split == split]
                found[split] = tuple(torch.cat(part) for part in zip(*read, strict=True))
            readout = self._readouts[stride] = fit_readout(*found["train"])
            tokens, changes = found["test"]
            moving = (changes.abs().amax(dim=2) > _MOVES)[..., None]
            missed = ((readout(tokens) - changes) * moving).square().sum() / (changes * moving).square().sum()
            # Of the held-out moving places' squared change.
            self.facts[f"explained_at_{FRAME_RATE_HZ / stride:.3g}_hz"] = round(1 - float(missed), 4)
        return self._readouts[stride]


class Surprise(Verifier):
    """The least surprise first."""

    reads = "encoder"

    def __init__(self, need: Need) -> None:
        resolved = resolve_encoder(need, "videomae-tiny")
        self.expects = _Predictor(resolved, need) if resolved.family == "vjepa2" else _Fitted(resolved, need)

    @property
    def facts(self) -> dict[str, Any]:  # type: ignore[override]
        return self.expects.facts

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        for one in candidates:
            if len(one.frames) < WINDOW:
                raise DataError(f"{one.name} has {len(one.frames)} frames.", expected=f"at least {WINDOW} for surprise")
        return -np.array([self.expects.surprise(one) for one in candidates])


class Foresight(Verifier):
    """The most change that was foreseen, less what was not, first."""

    reads = "encoder"

    def __init__(self, need: Need) -> None:
        self.expects = _Fitted(resolve_encoder(need, "videomae-tiny"), need)
        self.facts = self.expects.facts

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        both = [self.expects.compare(one) for one in candidates]
        return np.array([change - error for error, change in both])
