"""What a video generator gives: the interface that everything above `models` is written against.

Above it everything is latents [B, F, C, H, W], features [B, F, H, W, D] and frames [B, T, 3, H, W] in [0, 1]; axis
orders, scaling, text rules and noise schedules end in the family's own file. A generator on diffusers' classes inherits
nearly all of this from `diffusers_generator.DiffusersGenerator`.
"""

# B clips, F latent frames, C latent channels, H W grid, L text tokens, D width

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from physcli.models.codec import VideoCodec
from physcli.models.noise import NoiseLevel, NoiseProcess
from physcli.models.step_cache import StepCache


@dataclass(frozen=True)
class Facts:
    """What may be asked of a generator without touching a weight; read off its configs and its folder's `physcli.json`.

    Attributes:
        size: (height, width) in pixels that it was trained on.
        num_frames: Pixel frames that it was trained on.
        frame_rate_hz: Of its videos.
        guidance_scale: Of classifier-free guidance, what its videos are best at.
        latent_channels: C.
        patch: Latent frames, rows and columns of a token.
        num_blocks: Of the network, counted from 0 where they are named.
        hidden_size: D of a token.
        text_width: D of the text embeddings.
        max_text_tokens: L; longer prompts lose their end.
        schedulers: Names of samplers → diffusers' classes; the first is the family's own.
        motion_channels: Of motion latents that its network denoises beside a clip's own (VideoJAM); 0: it has none.
    """

    size: tuple[int, int]
    num_frames: int
    frame_rate_hz: float
    guidance_scale: float
    latent_channels: int
    patch: tuple[int, int, int]
    num_blocks: int
    hidden_size: int
    text_width: int
    max_text_tokens: int
    schedulers: Mapping[str, str]
    motion_channels: int = 0


class Conditioning(Mapping[str, Tensor]):
    """What the network is told of B prompts: `text` [B, L, D]; where a family has them `mask` [B, L] (1 for tokens that
    count), `pooled` [B, D], and whatever else, each with B rows.

    `frame_rate_hz` [B] is of the clips and not of their prompts: who knows the clips adds it (`at_rates`). A family
    that asks for it takes its own where it is missing; the others leave it alone.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Tensor:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def text(self) -> Tensor:
        return self._parts["text"]

    def pooled(self) -> Tensor:
        """Each prompt as one vector [B, D]: the mean of the tokens that count, of all where there is no mask; float32
        (float64 if the embeddings are). Zeros where no token counts.

        CogVideoX passes no mask in LaMo's released code: its mean runs over all 226 tokens, padding included, in
        training and in sampling alike.
        """
        wide = self.text if self.text.dtype == torch.float64 else self.text.float()
        if "mask" not in self._parts:
            return wide.mean(dim=1)
        mask = self._parts["mask"].to(wide)
        return (wide * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)

    def at_rates(self, rates_hz: Sequence[float]) -> Conditioning:
        """The same, of clips with these frame rates, B or one for all."""
        rates = torch.tensor(rates_hz, dtype=torch.float32, device=self.text.device)
        return Conditioning({**self._parts, "frame_rate_hz": rates.expand(len(self.text))})

    def row(self, number: int) -> dict[str, Tensor]:
        """One prompt's parts, without the axis of prompts."""
        return {name: part[number] for name, part in self._parts.items()}

    def expand(self, batch_size: int) -> Conditioning:
        """The one prompt there is, for so many clips; of as many prompts as clips, itself."""
        return Conditioning({name: part.expand(batch_size, *part.shape[1:]) for name, part in self._parts.items()})

    def to(self, device: torch.device | str) -> Conditioning:
        return Conditioning({name: part.to(device) for name, part in self._parts.items()})

    @staticmethod
    def stack(rows: Sequence[Mapping[str, Tensor]]) -> Conditioning:
        """Of B rows."""
        return Conditioning({name: torch.stack([row[name] for row in rows]) for name in rows[0]})


@dataclass
class Denoised:
    """`output` is what the network predicts [B, F, C, H, W] (None if only features were asked for); `features` holds
    block → [B, F, H, W, D] on the token grid, in the network's dtype; `tokens` the same as the blocks gave them,
    [B, F·H·W, D], through which the rest of the network's gradients pass."""

    output: Tensor | None
    features: dict[int, Tensor] = field(default_factory=dict)
    tokens: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A denoising step of sampling, for a guidance. Where the network denoises motion beside the clip, a guidance that
    makes the mix sees both, C + M channels of them, and one that comes after the mix the clip's own.

    Attributes:
        index: Counted from 0.
        count: Steps in all.
        level: Of the noise, [B].
        asked: The level that the network was told, [B]; some schedulers round it.
        noisy: x_t [B, F, C, H, W].
        output: What the scheduler is fed, [B, F, C, H, W]: after classifier-free guidance, where there is any.
        scale: Of classifier-free guidance.
        conditional: What the network predicts with the prompts, same shape; None where nobody asked for it.
        unconditional: What it predicts without; None where there is no classifier-free guidance.
        clean: Output → the clip's x̂0 [B, F, C, H, W]; differentiable, linear, clip by clip.
    """

    index: int
    count: int
    level: NoiseLevel
    asked: NoiseLevel
    noisy: Tensor
    output: Tensor
    scale: float
    conditional: Tensor | None
    unconditional: Tensor | None
    clean: Callable[[Tensor], Tensor]


class Guides(Protocol):
    """What sampling asks of a guidance at every step; see `physcli.guidance`."""

    @property
    def mixes(self) -> bool:
        """It wants `Step.conditional` and `Step.unconditional`, and makes the mix itself."""

    def prepare(self, conditioning: Conditioning, *, latent_frames: int, steps: int, scale: float) -> None:
        """Begin a batch."""

    def mix(self, step: Step) -> Tensor:
        """The output that takes the place of the mix, [B, F, C, H, W]."""

    def after(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The output that the scheduler is fed, and what was measured, [B] each; the very `step.output` where nothing
        is changed."""


@dataclass(frozen=True)
class Sampled:
    """Videos uint8 [B, T, H, W, 3] and their latents [B, F, C, h, w], without those of motion; what a guidance
    measured: name → [B, guided steps], in the order of the steps counted from 0 in `guided`, without guidance both are
    empty; and with a cache, of how many of the network's calls the middle block was computed."""

    frames: np.ndarray
    latents: Tensor
    guided: tuple[int, ...] = ()
    measured: dict[str, np.ndarray] | None = None
    computed: float | None = None


class Generator(Protocol):
    """A video generator.

    Attributes:
        kind: "generator".
        family: A key of `physcli.models.GENERATORS`.
        pipeline_class: Of diffusers, that plain users load its folders with.
        name: Shown in tables.
        random_init: The weights were never trained; every table that shows this model must say so.
        facts: What it is.
        codec: Frames ↔ latents.
        noise: Its path from clips to noise, and what its network predicts.
        guidance_scale: Of classifier-free guidance; begins as `facts.guidance_scale`.
        network: What is trained: the denoising network.
        weight_parts: Names of the parts that have weights, the network's among them.
        conditioning_parts: What a `Conditioning` of its prompts holds.
        takes_frame_rates: Its network is told of each clip's frame rate, too (`Conditioning.at_rates`).
    """

    kind: Literal["generator"]
    family: ClassVar[str]
    pipeline_class: ClassVar[str]
    name: str
    random_init: bool
    guidance_scale: float
    facts: Facts
    codec: VideoCodec
    noise: NoiseProcess
    weight_parts: tuple[str, ...]
    conditioning_parts: tuple[str, ...]
    takes_frame_rates: bool

    @property
    def network(self) -> nn.Module: ...
    @property
    def blocks(self) -> nn.ModuleList: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    # Parts: read when they are needed, given back when they are not.
    @property
    def components(self) -> Mapping[str, Any]: ...
    def part(self, name: str) -> nn.Module: ...
    def need(self, *parts: str, dtype: torch.dtype | None = None) -> None: ...
    def release(self, *parts: str) -> None: ...
    def fingerprint(self, part: str) -> str: ...
    def use_vae(self, path: Path) -> None: ...
    def use_text_encoder(self, path: Path) -> None: ...
    def place(
        self,
        device: torch.device | str,
        *,
        cpu_offload: bool = False,
        vae_tiling: bool = False,
        vae_slicing: bool = False,
    ) -> None: ...
    def compile(self) -> None: ...
    def save(self, folder: Path, *, frozen: Collection[str] = ()) -> None: ...

    # Adapters.
    @property
    def has_adapter(self) -> bool: ...
    def load_adapter(self, path: Path, scale: float = 1.0) -> None: ...
    def merge_adapter(self) -> None: ...
    def add_lora(
        self, *, rank: int, alpha: int, dropout: float = 0.0, targets: Sequence[str] = ..., seed: int = 0
    ) -> None: ...
    def lora_layers(self, targets: Sequence[str]) -> list[str]: ...
    def save_lora(self, folder: Path) -> None: ...

    # Text.
    def tokenize(self, prompts: Sequence[str]) -> Tensor: ...
    def embed(self, ids: Tensor) -> Conditioning: ...
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning: ...
    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]: ...
    def unknown_words(self, prompt: str) -> list[str]: ...

    # The network, and sampling.
    def use_rope_grid(self, kind: Literal["linspace", "slice"]) -> None: ...
    def add_motion(self, channels: int) -> None: ...
    def check_motion(self, channels: int) -> None: ...
    def ends(self) -> tuple[nn.Module, nn.Module]: ...
    def token_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]: ...
    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]: ...
    def denoise(
        self,
        noisy: Tensor,
        level: NoiseLevel,
        conditioning: Conditioning,
        *,
        taps: Sequence[int] = (),
        features_only: bool = False,
    ) -> Denoised: ...
    def use_scheduler(self, name: str | None) -> None: ...
    @property
    def scheduler_name(self) -> str: ...
    @property
    def max_steps(self) -> int: ...
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_frames: int,
        height: int,
        width: int,
        steps: int = 50,
        guidance_scale: float | None = None,
        guidance: Guides | None = None,
        cache: StepCache | None = None,
        frame_rates_hz: Sequence[float] | None = None,
        each_step: Callable[[], None] | None = None,
    ) -> Sampled: ...


def denoising_loss(
    generator: Generator,
    latents: Tensor,
    noise: Tensor,
    level: NoiseLevel,
    conditioning: Conditioning,
    *,
    taps: Sequence[int] = (),
    motion: Tensor | None = None,
) -> tuple[Tensor, Denoised]:
    """The generator's own objective: noise, predict, compare; in float32. Of the clip alone, not of its motion.

    The mean over elements of (v̂ − v)² is the public CogVideoX trainers' mean of (x̂0 − x0)²/(1 − ᾱ) without the
    division, and of a flow model their mean of (x̂0 − x0)²/σ².

    Args:
        generator: Whose network is asked.
        latents: Clean x0 [B, F, C, H, W].
        noise: ε, same shape.
        level: Of each clip.
        conditioning: Of B prompts.
        taps: Blocks whose features are wanted, too.
        motion: Noised motion latents [B, F, M, H, W] that the network sees beside the clip's.

    Returns:
        The loss of each clip [B], float32, and what `denoise` gave.
    """
    noisy = generator.noise.add_noise(latents, noise, level)
    seen = noisy if motion is None else torch.cat([noisy, motion.to(noisy)], dim=2)
    denoised = generator.denoise(seen, level, conditioning, taps=taps)
    assert denoised.output is not None
    target = generator.noise.target(latents, noise, level)
    return (denoised.output[:, :, : latents.shape[2]].float() - target).square().mean(dim=(1, 2, 3, 4)), denoised
