"""Noise: how a model's latents are noised, what its network predicts, and at which levels it is trained.

Everything is a point on a path x_t = a·x0 + b·ε from clean (b = 0) to noise (b = 1):

| process | a, b | network predicts | x̂0 |
|---|---|---|---|
| `VPrediction` | √ᾱ_t, √(1−ᾱ_t), t an integer | v = a·ε − b·x0 | a·x_t − b·v̂ |
| `EpsilonPrediction` | the same | ε | (x_t − b·ε̂)/a |
| `FlowMatching` | 1−σ, σ, any σ in [0, 1] | ε − x0 | x_t − σ·v̂ |

σ in physcli is always b. Equal σ is unlike noise in the two: 0.3 is a signal-to-noise ratio (a/b)² of 10.1 and of 5.4.

Rates are float64 and cast last: in bfloat16 CogVideoX-5B's schedule adds no noise at all at timesteps 0 and 1. Training
noises by this file alone and never by a pipeline's scheduler: flow schedulers' `scale_noise` noises by a counter of
their own and not by t, and multistep ones noise backwards before `set_timesteps`.
"""

# B clips, T training timesteps; latents are [B, F, C, H, W]

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from physcli.errors import UsageError

DENSITIES = ("timesteps", "sigmas", "logit-normal")


class NoiseLevel(NamedTuple):
    """Where B clips are on the path.

    Attributes:
        time: [B] as the network is given it: int64 timesteps, or float32 1000·σ of flow matching.
        signal: a, float64 [B] on the CPU.
        sigma: b, the same.
    """

    time: Tensor
    signal: Tensor
    sigma: Tensor

    @property
    def snr(self) -> Tensor:
        """(a/b)², float64 [B]; infinite without noise."""
        return (self.signal / self.sigma).square()

    def expand(self, batch_size: int) -> NoiseLevel:
        """The one level there is, for so many clips."""
        return NoiseLevel(*(part.expand(batch_size) for part in self))


@dataclass(frozen=True)
class Density:
    """How noise levels are drawn in training.

    Attributes:
        kind: Uniform over training `timesteps`; uniform over `sigmas`; or `logit-normal`, σ = sigmoid(mean + std·n).
        mean: Of the normal n.
        std: Of the same.
        shift: s; σ becomes s·σ/(1 + (s−1)·σ), more noise for s above 1.

    Raises:
        ValueError: another kind, a std or shift that is not positive, or a shift of timesteps that are drawn as such.
    """

    kind: str = "timesteps"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in DENSITIES:
            raise ValueError(f"kind must be one of {', '.join(DENSITIES)}, got {self.kind!r}")
        if not (self.std > 0 and self.shift > 0):
            raise ValueError(f"std and shift must be positive, got {self.std} and {self.shift}")


def shifted(sigma: float, shift: float) -> float:
    """σ moved towards noise, as flow models are sampled and trained (Esser et al. 2024, arXiv 2403.03206, Eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


class NoiseProcess(ABC):
    """One kind of path and of prediction.

    Attributes:
        prediction: What the network predicts.
        loss_name: Of its mean squared error, as rows call it.
        num_steps: T.
    """

    prediction: Literal["v", "epsilon", "velocity"]
    loss_name: str
    num_steps: int

    # -- levels --------------------------------------------------------------------------------------------------

    @abstractmethod
    def of_time(self, time: Tensor) -> NoiseLevel:
        """The level at times [B] as the network is given them."""

    @abstractmethod
    def at(self, sigma: float) -> NoiseLevel:
        """The level [1] nearest to a σ.

        Raises:
            UsageError: σ is not in [0, 1].
        """

    @abstractmethod
    def of_step(self, scheduler: Any, step: int, timestep: Any) -> NoiseLevel:
        """The level [1] of a pipeline's denoising step.

        Args:
            scheduler: After `set_timesteps`.
            step: Counted from 0.
            timestep: As the pipeline hands it to `scheduler.step`.
        """

    @abstractmethod
    def draw(self, rng: np.random.Generator, density: Density) -> Tensor:
        """A clip's time for training, a scalar as `of_time` takes them."""

    @abstractmethod
    def draw_uniform(self, rng: np.random.Generator, count: int) -> Tensor:
        """Times [count], uniform over all timesteps."""

    @abstractmethod
    def spread(self, number: int) -> Tensor:
        """The time that a number stands for, evenly over all timesteps: for held-out clips, the same at every look."""

    def at_snr(self, snr: float) -> NoiseLevel:
        """The level [1] nearest to a signal-to-noise ratio.

        Raises:
            UsageError: the ratio is negative.
        """
        if not snr >= 0:
            raise UsageError(f"The signal-to-noise ratio {snr} is out of range.", expected="0 (noise) and above")
        return self.at(self._sigma_of_snr(snr))

    @abstractmethod
    def _sigma_of_snr(self, snr: float) -> float: ...

    # -- the equations -------------------------------------------------------------------------------------------

    def add_noise(self, clean: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """x_t = a·x0 + b·ε, float32 (float64 of latents in float64, as in the two below).

        Args:
            clean: x0 [B, F, C, H, W].
            noise: ε, same shape.
            level: Of B clips.
        """
        signal, sigma = _rates(level, clean)
        return signal * _wide(clean) + sigma * _wide(noise)

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """What the network should predict, float32; arguments as for `add_noise`."""

    @abstractmethod
    def clean(self, output: Tensor, noisy: Tensor, level: NoiseLevel) -> Tensor:
        """x̂0 of the network's output, float32, linear in it.

        Args:
            output: [B, F, C, H, W].
            noisy: x_t, same shape.
            level: Of B clips.
        """


def _rates(level: NoiseLevel, like: Tensor) -> tuple[Tensor, Tensor]:
    """a and b, float32 (float64 where `like` is) [B, 1, 1, 1, 1] beside `like`."""
    shape = (-1, *[1] * (like.ndim - 1))
    kind = torch.float64 if like.dtype == torch.float64 else torch.float32
    return tuple(rate.reshape(shape).to(like.device, kind) for rate in (level.signal, level.sigma))  # type: ignore[return-value]


def _wide(latents: Tensor) -> Tensor:
    """In float32, or as they are in float64."""
    return latents if latents.dtype == torch.float64 else latents.float()


def _check_sigma(sigma: float) -> None:
    if not 0 <= sigma <= 1:
        raise UsageError(f"The noise level σ = {sigma} is out of range.", expected="0 (clean) to 1 (pure noise)")


def _drawn_sigma(rng: np.random.Generator, density: Density) -> float:
    if density.kind == "logit-normal":
        sigma = float(1 / (1 + np.exp(-(density.mean + density.std * rng.standard_normal()))))
    else:
        sigma = float(rng.random())
    return shifted(sigma, density.shift)


class VariancePreserving(NoiseProcess):
    """A table of ᾱ, whose indices are the timesteps.

    Args:
        alphas_cumprod: ᾱ [T], best in float64.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod.double().cpu()
        self.num_steps = len(self.alphas_cumprod)

    def of_time(self, time: Tensor) -> NoiseLevel:
        if time.is_floating_point() or ((time < 0) | (time >= self.num_steps)).any():
            raise ValueError(f"timesteps must be integers in 0..{self.num_steps - 1}, got {time.dtype} {time.tolist()}")
        alphas = self.alphas_cumprod[time.cpu()]
        return NoiseLevel(time, alphas.sqrt(), (1 - alphas).sqrt())

    def at(self, sigma: float) -> NoiseLevel:
        _check_sigma(sigma)
        return self.of_time(((1 - self.alphas_cumprod).sqrt() - sigma).abs().argmin().reshape(1))

    def of_step(self, scheduler: Any, step: int, timestep: Any) -> NoiseLevel:
        return self.of_time(torch.as_tensor(timestep).reshape(1))

    def draw(self, rng: np.random.Generator, density: Density) -> Tensor:
        if density.kind == "timesteps":
            assert density.shift == 1, "the schedule has a shift of its own"
            return torch.tensor(int(rng.integers(self.num_steps)))
        return self.at(_drawn_sigma(rng, density)).time[0]

    def draw_uniform(self, rng: np.random.Generator, count: int) -> Tensor:
        return torch.from_numpy(rng.integers(self.num_steps, size=count))

    def spread(self, number: int) -> Tensor:
        return torch.tensor(number % self.num_steps)

    def _sigma_of_snr(self, snr: float) -> float:
        return float((1 / (1 + snr)) ** 0.5)


class VPrediction(VariancePreserving):
    """CogVideoX. The public trainers' (x̂0−x0)²/(1−ᾱ) is the same as (v̂−v)², without the division."""

    prediction = "v"
    loss_name = "v_mse"

    def target(self, clean: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        signal, sigma = _rates(level, clean)
        return signal * _wide(noise) - sigma * _wide(clean)

    def clean(self, output: Tensor, noisy: Tensor, level: NoiseLevel) -> Tensor:
        signal, sigma = _rates(level, noisy)
        return signal * _wide(noisy) - sigma * _wide(output)


class EpsilonPrediction(VariancePreserving):
    """The noise itself. At a = 0, where nothing of the clip is left, x̂0 is not defined, and `clean` gives
    infinities."""

    prediction = "epsilon"
    loss_name = "epsilon_mse"

    def target(self, clean: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return _wide(noise)

    def clean(self, output: Tensor, noisy: Tensor, level: NoiseLevel) -> Tensor:
        signal, sigma = _rates(level, noisy)
        return (_wide(noisy) - sigma * _wide(output)) / signal


class FlowMatching(NoiseProcess):
    """Rectified flow: straight lines from clips to noise (Wan, LTX, HunyuanVideo). A level is any σ in [0, 1].

    Args:
        num_steps: What σ is multiplied by for the network.
    """

    prediction = "velocity"
    loss_name = "flow_mse"

    def __init__(self, num_steps: int = 1000) -> None:
        self.num_steps = num_steps

    def of_time(self, time: Tensor) -> NoiseLevel:
        sigma = time.cpu().double() / self.num_steps
        if ((sigma < 0) | (sigma > 1)).any():
            raise ValueError(f"times must lie in 0..{self.num_steps}, got {time.tolist()}")
        return NoiseLevel(time.float(), 1 - sigma, sigma)

    def at(self, sigma: float) -> NoiseLevel:
        _check_sigma(sigma)
        # The level is the σ that was asked for, not its float32 image: it names cached features.
        exact = torch.tensor([sigma], dtype=torch.float64)
        return NoiseLevel((exact * self.num_steps).float(), 1 - exact, exact)

    def of_step(self, scheduler: Any, step: int, timestep: Any) -> NoiseLevel:
        # Not from the timestep: UniPC hands over int(1000·σ) and solves with the untruncated σ.
        return self.at(float(scheduler.sigmas[step]))

    def draw(self, rng: np.random.Generator, density: Density) -> Tensor:
        return torch.tensor(_drawn_sigma(rng, density) * self.num_steps, dtype=torch.float32)

    def draw_uniform(self, rng: np.random.Generator, count: int) -> Tensor:
        return torch.from_numpy(rng.random(count) * self.num_steps).float()

    def spread(self, number: int) -> Tensor:
        return torch.tensor(number % self.num_steps + 0.5, dtype=torch.float32)

    def _sigma_of_snr(self, snr: float) -> float:
        return float(1 / (1 + snr**0.5))

    def target(self, clean: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return _wide(noise) - _wide(clean)

    def clean(self, output: Tensor, noisy: Tensor, level: NoiseLevel) -> Tensor:
        return _wide(noisy) - _rates(level, noisy)[1] * _wide(output)
