"""Frames to latents and back: axis order, pixel range, scaling and legal lengths of a video VAE.

Frames are [B, T, 3, H, W] in [0, 1], latents [B, F, C, h, w] scaled to about unit variance. diffusers' video VAEs take
and give [B, C, T, H, W] in [−1, 1].
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from physcli.errors import UsageError


@dataclass
class LatentStats:
    """Pixel range and latent moments over everything encoded so far. Latents should come out near mean 0, std 1;
    a VAE fed the wrong pixel range shows here first."""

    pixel_min: float = float("inf")
    pixel_max: float = float("-inf")
    count: int = 0
    total: float = 0.0
    total_squares: float = 0.0

    def update(self, frames: Tensor, latents: Tensor) -> None:
        """Count in `frames` (any shape, [0, 1]) and their scaled `latents` (any shape)."""
        self.pixel_min = min(self.pixel_min, float(frames.min()))
        self.pixel_max = max(self.pixel_max, float(frames.max()))
        values = latents.detach().double()
        self.count += values.numel()
        self.total += float(values.sum())
        self.total_squares += float(values.square().sum())

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")

    @property
    def std(self) -> float:
        if not self.count:
            return float("nan")
        return float(max(self.total_squares / self.count - self.mean**2, 0.0) ** 0.5)


class VideoCodec(ABC):
    """A diffusers video VAE.

    Args:
        get_vae: The VAE, read by now; or, where its config is enough, not yet.
        get_device: Where it computes.
        name: Of the model, for messages.
        temporal: Frames of a latent frame.
        spatial: Pixels of a latent along each side.
        side: What both sides of a picture must be multiples of, in pixels: a token's.
        channels: C.

    Attributes:
        stats: Of everything encoded so far.
    """

    def __init__(
        self,
        get_vae: Callable[[bool], Any],
        get_device: Callable[[], torch.device],
        *,
        name: str,
        temporal: int,
        spatial: int,
        side: int,
        channels: int,
    ) -> None:
        self._get_vae, self._get_device = get_vae, get_device
        self.name, self.temporal, self.spatial, self.side, self.channels = name, temporal, spatial, side, channels
        self.stats = LatentStats()

    # -- lengths and sizes ---------------------------------------------------------------------------------------

    def step(self, *, decoding: bool = False) -> int:
        """k, where a clip must have a multiple of k frames and one more; that of clips to be decoded may be larger."""
        return self.temporal

    def usable_frames(self, available: int) -> int:
        """The largest legal length of a clip of so many frames."""
        return (available - 1) // self.step() * self.step() + 1

    def check(self, num_frames: int, *, decoding: bool = False) -> None:
        """Refuse clip lengths the VAE cannot represent.

        Args:
            num_frames: Pixel frames.
            decoding: The clip will also be decoded.

        Raises:
            UsageError: not a multiple of `step` and one more.
        """
        step = self.step(decoding=decoding)
        if num_frames < 1 or (num_frames - 1) % step:
            below = max((num_frames - 1) // step, 0) * step + 1
            raise UsageError(
                f"{self.name} cannot {'make' if decoding else 'take'} clips of {num_frames} frames.",
                expected=f"{step}k+1 frames, for instance {below} or {below + step}",
                fix="choose other frames of the clip, or another --num-frames",
            )

    def check_size(self, height: int, width: int) -> None:
        """Refuse pictures that do not divide into tokens.

        Raises:
            UsageError: names what both sides must be multiples of.
        """
        if height < self.side or width < self.side or height % self.side or width % self.side:
            raise UsageError(
                f"{self.name} cannot take frames of {height}x{width} (height x width).",
                expected=f"multiples of {self.side} on both sides",
                fix="resize or crop the clips",
            )

    def latent_frames(self, num_frames: int) -> int:
        """F of so many pixel frames."""
        return (num_frames - 1) // self.temporal + 1

    def num_frames(self, latent_frames: int) -> int:
        """Pixel frames of so many latent frames."""
        return (latent_frames - 1) * self.temporal + 1

    # -- scaling -------------------------------------------------------------------------------------------------

    @abstractmethod
    def scale(self, latents: Tensor) -> Tensor:
        """The VAE's own [B, C, F, h, w] → about unit variance."""

    @abstractmethod
    def unscale(self, latents: Tensor) -> Tensor:
        """The inverse."""

    @abstractmethod
    def scale_std(self, std: Tensor) -> Tensor:
        """A standard deviation of the VAE's own, scaled as latents are."""

    @property
    @abstractmethod
    def space(self) -> str:
        """What tells these latents from others with as many channels: a motion field knows one space alone."""

    @property
    def scaling_factor(self) -> float | None:
        """The one factor that latents are multiplied by, where it is one."""
        return None

    @abstractmethod
    def register_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Scale by these moments of the VAE's own latents from now on, kept in its config.

        Args:
            mean: Of each channel, [C].
            std: The same.
        """

    # -- pixels and latents --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, frames: Tensor, *, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """Latents of clips.

        Args:
            frames: [B, T, 3, H, W], RGB, any float dtype, in [0, 1].
            generator: Draws from the posterior; one for the batch or one a clip. None takes the posterior mean.

        Returns:
            float32 [B, F, C, h, w].

        Raises:
            ValueError: not a float [B, T, 3, H, W] in [0, 1].
            UsageError: a length or size that the model cannot take.
        """
        posterior = self._posterior(frames)
        sample = posterior.mode() if generator is None else posterior.sample(generator=generator)
        latents = self.scale(sample.float()).transpose(1, 2)
        self.stats.update(frames, latents)
        return self.pad(latents)

    @torch.no_grad()
    def encode_posterior(self, frames: Tensor) -> Tensor:
        """The posterior, scaled as latents are: frames as for `encode` → float32 [B, 2, F, C, h, w], the mean and the
        standard deviation. mean + deviation·ε is a latent, so what is stored can be drawn from again."""
        posterior = self._posterior(frames)
        mean, std = self.scale(posterior.mean.float()), self.scale_std(posterior.std.float())
        both = torch.stack([mean, std], dim=1).transpose(2, 3)
        self.stats.update(frames, both[:, 0])
        return self.pad(both, axis=2)

    def pad(self, latents: Tensor, axis: int = 1) -> Tensor:
        """Latents with the leading frames that the network needs, if any."""
        return latents

    def _posterior(self, frames: Tensor) -> Any:
        if frames.ndim != 5 or frames.shape[2] != 3 or not frames.is_floating_point():
            raise ValueError(f"frames must be float [B, T, 3, H, W], got {frames.dtype} {list(frames.shape)}")
        if not (frames.min() >= -1e-3 and frames.max() <= 1 + 1e-3):
            raise ValueError(f"frames must lie in [0, 1], got [{frames.min():.3g}, {frames.max():.3g}]")
        self.check(frames.shape[1])
        self.check_size(*frames.shape[3:])
        vae = self._get_vae(True)
        pixels = frames.to(self._get_device(), torch.float32).mul(2).sub(1).to(vae.dtype)
        return self.posterior(vae, pixels.transpose(1, 2))

    def posterior(self, vae: Any, pixels: Tensor) -> Any:
        """The VAE's own posterior of [B, 3, T, H, W] in [−1, 1], with gradients where they are enabled."""
        return vae.encode(pixels).latent_dist

    def pixels(self, vae: Any, latents: Tensor) -> Tensor:
        """The VAE's own latents [B, C, F, h, w] → [B, 3, T, H, W] in [−1, 1], with gradients where they are enabled."""
        pixels: Tensor = vae.decode(latents).sample
        return pixels

    @torch.no_grad()
    def decode(self, latents: Tensor, *, num_frames: int | None = None) -> Tensor:
        """Frames of latents.

        Args:
            latents: [B, F, C, h, w], any float dtype, with or without the leading frames of `pad`.
            num_frames: Pixel frames of the clip, which tells leading frames from content. Default: there are none.

        Returns:
            float32 [B, T, 3, H, W], clamped to [0, 1].

        Raises:
            UsageError: a length that cannot be decoded.
        """
        if num_frames is None:
            num_frames = self.num_frames(latents.shape[1])
        self.check(num_frames, decoding=True)
        latents = latents[:, -self.latent_frames(num_frames) :]
        vae = self._get_vae(True)
        own = self.unscale(latents.to(self._get_device(), torch.float32).transpose(1, 2))
        pixels = self.pixels(vae, own.to(vae.dtype))
        return pixels.float().transpose(1, 2).add(1).div(2).clamp(0, 1)


class FactorCodec(VideoCodec):
    """Latents multiplied by one number, `scaling_factor` in the VAE's config."""

    @property
    def scaling_factor(self) -> float:
        return float(self._get_vae(False).config.scaling_factor)

    def scale(self, latents: Tensor) -> Tensor:
        return latents * self._get_vae(False).config.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        return latents / self._get_vae(False).config.scaling_factor

    def scale_std(self, std: Tensor) -> Tensor:
        return self.scale(std)

    @property
    def space(self) -> str:
        return f"factor {self.scaling_factor:g}"

    def register_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        total = sum(s**2 + m**2 for m, s in zip(mean, std, strict=True)) / len(mean)
        overall = sum(mean) / len(mean)
        self._get_vae(True).register_to_config(scaling_factor=round((total - overall**2) ** -0.5, 5))


class ChannelCodec(VideoCodec):
    """(z − mean)/std, each channel by itself: `latents_mean` and `latents_std` in the VAE's config."""

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and std, float32 [C, 1, 1, 1] on the CPU."""
        config = self._get_vae(False).config
        mean, std = (torch.tensor(list(config[name]), dtype=torch.float32) for name in ("latents_mean", "latents_std"))
        return mean[:, None, None, None], std[:, None, None, None]

    def scale(self, latents: Tensor) -> Tensor:
        mean, std = (part.to(latents) for part in self.moments())
        return (latents - mean) / std

    def unscale(self, latents: Tensor) -> Tensor:
        mean, std = (part.to(latents) for part in self.moments())
        return latents * std + mean

    def scale_std(self, std: Tensor) -> Tensor:
        return std / self.moments()[1].to(std)

    @property
    def space(self) -> str:
        mean, std = self.moments()
        values = torch.cat([mean.flatten(), std.flatten()])
        return f"channels {hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]}"

    def register_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        vae = self._get_vae(True)
        vae.register_to_config(
            latents_mean=[round(value, 5) for value in mean], latents_std=[round(value, 5) for value in std]
        )
