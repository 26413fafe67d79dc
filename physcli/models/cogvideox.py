"""CogVideoX 1.0 and 1.5, text to video.

Above this file everything is latents [B, F, C, H, W] and features [B, F, H, W, D]. Noising, targets and clean
estimates are computed in float32 from the checkpoint's own float64 noise schedule, whatever dtype the weights have:
in bfloat16 the 5B schedule adds no noise at all at timesteps 0 and 1.
"""

from __future__ import annotations

import gc
import json
import os
import re
import threading
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from safetensors import SafetensorError
from torch import Tensor
from transformers import T5EncoderModel

from physcli.errors import ModelError, UsageError
from physcli.models import GUIDANCE_SCALE, LORA_FILE, OWN_FILE, read_guidance_scale
from physcli.models.encoders.checkpoint import read_shapes
from physcli.models.features import tapped
from physcli.models.fingerprints import hash_files, hash_module
from physcli.models.hub import explain_hub_errors, first_line
from physcli.models.loading import quiet_libraries
from physcli.models.parts import empty_part, is_empty, link_folder, read_part
from physcli.models.tiny import seeded

_PART_CLASSES: dict[str, Any] = {
    "transformer": CogVideoXTransformer3DModel,
    "vae": AutoencoderKLCogVideoX,
    "text_encoder": T5EncoderModel,
}


class NoiseLevel(NamedTuple):
    """A timestep and what it means: x_t = √(1−σ²)·x0 + σ·ε, snr = (1−σ²)/σ²."""

    timestep: int
    sigma: float
    snr: float


@dataclass
class DenoiseOutput:
    """`output` is the network's v [B, F, C, H, W] (None if only features were asked for); `features` holds
    block → [B, F, H, W, D] on the token grid, in the transformer's dtype; `tokens` the same as the blocks gave them,
    [B, F·H·W, D], through which the rest of the network's gradients pass."""

    output: Tensor | None
    features: dict[int, Tensor] = field(default_factory=dict)
    tokens: dict[int, Tensor] = field(default_factory=dict)


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


# Keys of config files that say where a model was loaded from.
_OF_THIS_MACHINE = ("_name_or_path", "is_local", "local_files_only")

# The attention's projections, as in the papers.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class CogVideoX:
    """A `CogVideoXPipeline` with the generator interface.

    Args:
        pipeline: The pipeline. `vae`, `text_encoder` and `tokenizer` may be None where only `denoise` and the
            objective are used.
        name: Shown in tables.
        random_init: The weights were never trained; every table that shows this model must say so.
        guidance_scale: Of classifier-free guidance, what its videos are best at.

    Attributes:
        pipeline: The stock diffusers pipeline, for sampling.
        num_blocks, hidden_size: Of the transformer.
        vae_scale_factor_spatial, vae_scale_factor_temporal: Pixels (frames) per latent along each axis.
        latent_channels: C.
        native_size, native_num_frames: (height, width) in pixels and pixel frames the checkpoint was trained on.
        max_text_seq_length: Text tokens L.
        alphas_cumprod: ᾱ, float64 [num_train_timesteps], on the CPU.
        latent_stats: Pixel range and latent moments of everything encoded so far.
        rope_grid_type: Where rotary positions sit on a grid that is not the native one. "linspace" (1.0) spreads the
            grid over the native extent, "slice" (1.5) takes the first rows and columns. These are what the stock
            pipeline samples with, so they are the default; the 1.0 training code uses "slice", which is the same at
            the native grid only. No effect on models without rotary positions.

    Raises:
        ModelError: the scheduler is not a v-prediction scheduler with `alphas_cumprod`, or the transformer takes
            image latents beside the noisy ones (image-to-video).
    """

    kind = "generator"
    family = "cogvideox"

    def __init__(
        self,
        pipeline: CogVideoXPipeline,
        *,
        name: str,
        random_init: bool = False,
        guidance_scale: float = GUIDANCE_SCALE,
    ) -> None:
        self.pipeline = cast(Any, pipeline)  # its attributes are set by mixins that type checkers cannot see
        self.name = name
        self.random_init = random_init
        self.guidance_scale = guidance_scale
        self.transformer = self.pipeline.transformer
        self.vae = self.pipeline.vae
        self.latent_stats = LatentStats()
        self._folders: dict[str, Path] = {}  # of parts that are in files
        self._home: torch.device | str = "cpu"
        self._dtype = self.transformer.dtype
        self._reading = threading.Lock()

        config = self.transformer.config
        self.num_blocks: int = config.num_layers
        self.hidden_size: int = config.num_attention_heads * config.attention_head_dim
        self.latent_channels: int = config.out_channels
        self.max_text_seq_length: int = config.max_text_seq_length
        self.vae_scale_factor_spatial: int = self.pipeline.vae_scale_factor_spatial
        self.vae_scale_factor_temporal: int = self.pipeline.vae_scale_factor_temporal
        self.patch_size: int = config.patch_size
        self.patch_size_t: int = config.patch_size_t or 1
        self.native_num_frames: int = config.sample_frames
        # The 1.5 config says 300×300 latents: how far its positions reach, not a size it was trained on.
        self.native_size: tuple[int, int] = (
            (768, 1360)
            if config.patch_size_t is not None and config.sample_height == config.sample_width == 300
            else (
                config.sample_height * self.vae_scale_factor_spatial,
                config.sample_width * self.vae_scale_factor_spatial,
            )
        )
        self.rope_grid_type: Literal["linspace", "slice"] = "linspace" if config.patch_size_t is None else "slice"
        if config.in_channels != config.out_channels:
            raise ModelError(
                f"{name} takes {config.in_channels} latent channels and gives {config.out_channels}: an "
                "image-to-video model.",
                expected="a text-to-video CogVideoX",
            )

        scheduler = self.pipeline.scheduler
        prediction_type = scheduler.config.get("prediction_type")
        if prediction_type != "v_prediction" or not hasattr(scheduler, "alphas_cumprod"):
            raise ModelError(
                f"The scheduler of {name} is a {type(scheduler).__name__} with prediction_type={prediction_type!r}.",
                expected="a CogVideoXDDIMScheduler or CogVideoXDPMScheduler with prediction_type='v_prediction'",
                fix="restore scheduler/scheduler_config.json of the original checkpoint",
            )
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.double().cpu()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float32,
        name: str | None = None,
        random_init: bool = False,
        parts: Collection[str] = tuple(_PART_CLASSES),
    ) -> CogVideoX:
        """Load a pipeline folder in diffusers layout onto the CPU, strictly; then `place` it.

        `physcli.models.loading.load` is the usual way in.

        Args:
            path: The folder.
            dtype: Of the weights.
            name: Shown in tables.
            random_init: The weights were never trained.
            parts: Of transformer, vae and text_encoder, those to read now; the others have their configs, and their
                weights are read when they are needed (`need`).

        Raises:
            ModelError: a part is missing or cannot be read, or its weights do not fit its class exactly.
        """
        folder = Path(path)
        with explain_hub_errors(str(folder)):
            made = {
                part: read_part(part_class, folder / part, dtype)
                if part in parts
                else empty_part(part_class, folder / part)
                for part, part_class in _PART_CLASSES.items()
            }
            pipeline = CogVideoXPipeline.from_pretrained(str(folder), **made)
        generator = cls(
            pipeline,
            name=name or folder.name,
            random_init=random_init,
            guidance_scale=read_guidance_scale(folder),
        )
        generator._folders = {part: folder / part for part in (*_PART_CLASSES, "tokenizer", "scheduler")}
        generator._dtype = dtype
        return generator

    # -- parts ---------------------------------------------------------------------------------------------------

    def need(self, *parts: str, dtype: torch.dtype | None = None) -> None:
        """Read the weights of these parts that have not been read, onto `device`; from any thread.

        Args:
            parts: transformer, vae, text_encoder.
            dtype: Another than the generator was loaded in.

        Raises:
            ModelError: they cannot be read, or do not fit the class exactly.
        """
        with self._reading, quiet_libraries():
            for part in parts:
                if is_empty(getattr(self.pipeline, part)):
                    made = read_part(_PART_CLASSES[part], self._folders[part], dtype or self._dtype)
                    self._put(part, made.requires_grad_(False).eval().to(self._home))

    def release(self, *parts: str) -> None:
        """Give back the memory of parts whose weights are in files; they are read again when they are needed."""
        for part in parts:
            if part in self._folders and not is_empty(getattr(self.pipeline, part)):
                self._put(part, empty_part(_PART_CLASSES[part], self._folders[part]))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _put(self, part: str, module: Any) -> None:
        self.pipeline.register_modules(**{part: module})
        if part != "text_encoder":
            setattr(self, part, module)

    def fingerprint(self, part: str) -> str:
        """A hash of what determines a part's values: of its files, or where it is in none, of config and weights."""
        folder = self._folders.get(part)
        return hash_module(getattr(self.pipeline, part)) if folder is None else hash_files(folder).hex()

    def load_adapter(self, path: str | os.PathLike[str]) -> None:
        """Put a LoRA (a folder or a .safetensors file, diffusers' format) on the transformer.

        Raises:
            ModelError: it cannot be read, or was made for other shapes or layers.
        """
        file = Path(path)
        if file.is_dir():
            file /= LORA_FILE
        before = self._count_lora()
        try:
            with quiet_libraries(), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of layers without an update, which may be meant
                # Offline, diffusers must be told the name.
                self.pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
            loaded = self._count_lora() - before
            held = sum(not name.endswith("alpha") for name in read_shapes(file))
            if loaded != held:  # diffusers passes over weights that find no layer
                raise ValueError(f"{held - loaded} of its {held} weights are of layers that this model does not have")
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, ModelError) as error:
            raise ModelError(
                f"The adapter {file} does not load onto {self.name}: {first_line(error)}",
                expected="a LoRA in diffusers format, trained on the same architecture",
                fix="name the model it was trained on with --model",
            ) from error

    def _count_lora(self) -> int:
        return sum("lora_" in name for name, _ in self.transformer.named_parameters())

    @property
    def has_adapter(self) -> bool:
        """A LoRA lies on the transformer."""
        return bool(getattr(self.transformer, "peft_config", None))

    def merge_adapter(self) -> None:
        """Add a loaded LoRA's updates to the transformer's weights for good; nothing if there is none."""
        if self.has_adapter:
            self.pipeline.fuse_lora(components=["transformer"])
            self.pipeline.unload_lora_weights()
            self._folders.pop("transformer", None)  # its weights are in no file now

    def add_lora(
        self, *, rank: int, alpha: int, dropout: float = 0.0, targets: Sequence[str] = LORA_TARGETS, seed: int = 0
    ) -> None:
        """Give the transformer low-rank updates to train; its own weights are frozen.

        Args:
            rank: r.
            alpha: The update is scaled by alpha / r.
            dropout: On the input of the updates.
            targets: Ends of the names of the linear layers that get one.
            seed: Of their weights. An update is zero at first.

        Raises:
            UsageError: no layer is called so.
        """
        from peft import LoraConfig

        chosen = self.lora_layers(targets)
        self.transformer.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)
        with seeded(seed):
            self.transformer.add_adapter(config)
        for parameter in self.transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # small, and AdamW's steps vanish in bfloat16

    def lora_layers(self, targets: Sequence[str]) -> list[str]:
        """What names the linear layers that `targets` mean, for PEFT. No weights are needed.

        Raises:
            UsageError: no layer is called so.
        """
        modules = dict(self.transformer.named_modules())
        matched = {name for name in modules if f".{name}".endswith(tuple(f".{end}" for end in targets))}
        linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
        unmatched = [end for end in targets if not any(f".{name}".endswith(f".{end}") for name in linear)]
        if unmatched:
            ends = sorted({re.sub(r"^.*?\d+\.", "", name) for name in linear})
            raise UsageError(
                f"lora.targets: no linear layer of {self.name} is called {', '.join(unmatched)}.",
                expected=f"ends of {', '.join(ends)}",
            )
        # By ends, unless a convolution has such a name, too: PEFT would give it one.
        return list(targets) if matched <= linear else sorted(matched & linear)

    def save_lora(self, folder: Path) -> None:
        """Write the updates as diffusers' LoRA file; alpha is in its metadata, without which loaders take it for r."""
        from peft.utils import get_peft_model_state_dict

        self.pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(self.transformer),
            transformer_lora_adapter_metadata=self.transformer.peft_config["default"].to_dict(),
        )

    def use_vae(self, path: str | os.PathLike[str]) -> None:
        """Replace the VAE by the one in a folder (diffusers layout), read when it is needed.

        Raises:
            ModelError: it cannot be read, or has other latents.
        """
        vae = empty_part(AutoencoderKLCogVideoX, Path(path))
        for key in ("latent_channels", "temporal_compression_ratio"):
            if vae.config[key] != self.vae.config[key]:
                raise ModelError(f"The VAE in {path} has {key} {vae.config[key]}.", expected=f"{self.vae.config[key]}")
        self._folders["vae"] = Path(path)
        self._put("vae", vae)

    def save(self, folder: Path, *, frozen: Collection[str] = ()) -> None:
        """Write the pipeline as a diffusers folder that plain diffusers loads.

        Args:
            folder: To be made.
            frozen: Parts that are as they were read: they are linked from where they are (`link_folder`), as are those
                that were not read at all. `vae`, `text_encoder`, `tokenizer`, …
        """
        self.pipeline.save_config(folder)
        described_in = [*folder.glob("*.json")]
        for part, module in self.pipeline.components.items():
            if part in self._folders and (part in frozen or (part in _PART_CLASSES and is_empty(module))):
                link_folder(self._folders[part], folder / part)
            else:
                module.save_pretrained(folder / part)
                described_in += (folder / part).glob("*config.json")
        for file in described_in:
            text = file.read_text(encoding="utf-8")
            # transformers 5 writes a class name that transformers 4 does not have; both know this one.
            described = json.loads(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'))
            for key in _OF_THIS_MACHINE:
                described.pop(key, None)
            file.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.guidance_scale != GUIDANCE_SCALE:
            described = json.dumps({"guidance_scale": self.guidance_scale}, indent=2)
            (folder / OWN_FILE).write_text(f"{described}\n", encoding="utf-8")

    def place(
        self,
        device: torch.device | str,
        *,
        cpu_offload: bool = False,
        vae_tiling: bool = False,
        vae_slicing: bool = False,
    ) -> None:
        """Put the parts where they shall run, in evaluation mode without gradients.

        Args:
            device: Where to compute.
            cpu_offload: Keep the parts in main memory and bring each to the device only while it runs.
            vae_tiling: Encode and decode large frames in tiles: less memory, faint seams.
            vae_slicing: Encode and decode the clips of a batch one after the other.
        """
        self._home = device
        parts = [part for part in (self.transformer, self.vae, self.pipeline.text_encoder) if part is not None]
        for part in parts:
            part.requires_grad_(False).eval()
        if vae_tiling:
            self.vae.enable_tiling()
        if vae_slicing:
            self.vae.enable_slicing()
        if cpu_offload:
            self.pipeline.enable_model_cpu_offload(device=device)
        else:
            for part in parts:
                if not is_empty(part):
                    part.to(device)

    @property
    def device(self) -> torch.device:
        """Where the forward pass runs (with CPU offload, not where the weights rest)."""
        read = [module for module in (self.transformer, self.vae, self.pipeline.text_encoder) if not is_empty(module)]
        return self.pipeline._execution_device if len(read) == len(_PART_CLASSES) else torch.device(self._home)

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    # -- sizes ---------------------------------------------------------------------------------------------------

    def check_num_frames(self, num_frames: int, *, decoding: bool = False) -> None:
        """Refuse clip lengths the VAE cannot represent.

        Args:
            num_frames: Pixel frames.
            decoding: The clip will also be decoded. The stock decoder works on an odd number of latent frames
                only: it turns 4 latent frames into 16 frames, not 13.

        Raises:
            UsageError: not 4k+1 frames (8k+1 for decoding), for a temporal factor of 4.
        """
        step = self.vae_scale_factor_temporal * (2 if decoding else 1)
        if num_frames < 1 or (num_frames - 1) % step:
            below = max((num_frames - 1) // step, 0) * step + 1
            raise UsageError(
                f"{self.name} cannot {'make' if decoding else 'take'} clips of {num_frames} frames.",
                expected=f"{step}k+1 frames, for instance {below} or {below + step}",
                fix="choose other frames of the clip, or another --num-frames",
            )

    def latent_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The token grid (F, H, W) of a clip, in that order; (13, 30, 45) for 49×480×720 in CogVideoX 1.0.

        F counts the leading padding that models with `patch_size_t` (1.5) need.

        Raises:
            UsageError: a length or size that does not divide.
        """
        self.check_num_frames(num_frames)
        step = self.vae_scale_factor_spatial * self.patch_size
        if height < step or width < step or height % step or width % step:
            raise UsageError(
                f"{self.name} cannot take frames of {height}x{width} (height x width).",
                expected=f"multiples of {step} on both sides",
                fix="resize or crop the clips",
            )
        latent_frames = (num_frames - 1) // self.vae_scale_factor_temporal + 1
        return -(-latent_frames // self.patch_size_t), height // step, width // step

    # -- pixels and prompts --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_video(
        self, frames: Tensor, *, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> Tensor:
        """VAE latents of clips, scaled to about unit variance.

        Args:
            frames: [B, T, 3, H, W], RGB, any float dtype, in [0, 1]; the VAE's own [-1, 1] is made here.
            generator: Draws from the posterior; one for the batch or one a clip. None takes the posterior mean.

        Returns:
            float32 [B, F, C, h, w] on `device`. Models with `patch_size_t` get the first latent frame repeated in
            front until F is a multiple of it, as CogVideoX 1.5 was trained.

        Raises:
            ValueError: not a float [B, T, 3, H, W] in [0, 1].
            UsageError: a length or size that the model cannot take.
        """
        posterior = self._posterior(frames)
        sample = posterior.mode() if generator is None else posterior.sample(generator=generator)
        # `invert_scale_latents` of the 1.5 VAE concerns image conditions; video latents are multiplied as always.
        latents = sample.float().transpose(1, 2) * self.vae.config.scaling_factor
        self.latent_stats.update(frames, latents)
        padding = -latents.shape[1] % self.patch_size_t
        return torch.cat([latents[:, :1]] * padding + [latents], dim=1)

    @torch.no_grad()
    def encode_posterior(self, frames: Tensor) -> Tensor:
        """The VAE's posterior, scaled as latents are: frames as for `encode_video` → float32 [B, 2, F, C, h, w], the
        mean and the standard deviation. mean + deviation·ε is a latent, so what is stored can be drawn from again."""
        posterior = self._posterior(frames)
        both = torch.stack([posterior.mean, posterior.std], dim=1).float().transpose(2, 3)
        both = both * self.vae.config.scaling_factor
        self.latent_stats.update(frames, both[:, 0])
        padding = -both.shape[2] % self.patch_size_t
        return torch.cat([both[:, :, :1]] * padding + [both], dim=2)

    def _posterior(self, frames: Tensor) -> Any:
        if frames.ndim != 5 or frames.shape[2] != 3 or not frames.is_floating_point():
            raise ValueError(f"frames must be float [B, T, 3, H, W], got {frames.dtype} {list(frames.shape)}")
        if not (frames.min() >= -1e-3 and frames.max() <= 1 + 1e-3):
            raise ValueError(f"frames must lie in [0, 1], got [{frames.min():.3g}, {frames.max():.3g}]")
        self.latent_grid(frames.shape[1], *frames.shape[3:])
        self.need("vae")
        pixels = frames.to(self.device, torch.float32).mul(2).sub(1).to(self.vae.dtype)
        return self.vae.encode(pixels.transpose(1, 2)).latent_dist  # the VAE takes [B, C, T, H, W]

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, *, num_frames: int | None = None) -> Tensor:
        """Frames of scaled latents.

        Args:
            latents: [B, F, C, h, w], any float dtype, with or without the leading padding of `encode_video`.
            num_frames: Pixel frames of the clip, which tells padding from content. Default: no padding.

        Returns:
            float32 [B, T, 3, H, W], clamped to [0, 1], on `device`.

        Raises:
            UsageError: an even number of latent frames (see `check_num_frames`).
        """
        if num_frames is None:
            num_frames = (latents.shape[1] - 1) * self.vae_scale_factor_temporal + 1
        self.check_num_frames(num_frames, decoding=True)
        latents = latents[:, -((num_frames - 1) // self.vae_scale_factor_temporal + 1) :]
        self.need("vae")
        scaled = latents.to(self.device, torch.float32) / self.vae.config.scaling_factor
        pixels = self.vae.decode(scaled.transpose(1, 2).to(self.vae.dtype)).sample
        return pixels.float().transpose(1, 2).add(1).div(2).clamp(0, 1)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """T5 embeddings, padded and cut to the transformer's own text length L (226; tiny models 32).

        A longer prompt loses its end; `prompt_lengths` tells which.

        Returns:
            [B, L, D] in the text encoder's dtype, on `device`.
        """
        self.need("text_encoder")
        return self.pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_text_seq_length,
            device=self.device,
        )[0]

    def prompt_lengths(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt, end token included; those above `max_text_seq_length` would be cut."""
        return [len(ids) for ids in self.pipeline.tokenizer(prompts, truncation=False).input_ids]

    # -- noise schedule and objective ----------------------------------------------------------------------------

    def nearest_timestep(self, sigma: float) -> NoiseLevel:
        """The timestep whose σ = √(1−ᾱ_t) is nearest to `sigma`.

        Raises:
            UsageError: `sigma` is not in [0, 1].
        """
        if not 0 <= sigma <= 1:
            raise UsageError(f"The noise level σ = {sigma} is out of range.", expected="0 (clean) to 1 (pure noise)")
        sigmas = (1 - self.alphas_cumprod).sqrt()
        timestep = int((sigmas - sigma).abs().argmin())
        abar = float(self.alphas_cumprod[timestep])
        return NoiseLevel(timestep, float(sigmas[timestep]), abar / (1 - abar))

    def _schedule(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1−ᾱ_t), float32 [B, 1, 1, 1, 1]: rooted in float64, cast last."""
        abar = self.alphas_cumprod[timesteps.cpu()].reshape(-1, *[1] * (like.ndim - 1))
        return (
            abar.sqrt().to(like.device, torch.float32),
            (1 - abar).sqrt().to(like.device, torch.float32),
        )

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = √ᾱ·x0 + √(1−ᾱ)·ε.

        Args:
            latents: x0 [B, F, C, H, W].
            noise: ε, same shape.
            timesteps: int64 [B].

        Returns:
            float32, same shape.
        """
        signal_rate, noise_rate = self._schedule(timesteps, latents)
        return signal_rate * latents.float() + noise_rate * noise.float()

    def training_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = √ᾱ·ε − √(1−ᾱ)·x0, float32; arguments as for `add_noise`.

        The public trainers' (x̂0−x0)²/(1−ᾱ) is the same as (v̂−v)², without the division.
        """
        signal_rate, noise_rate = self._schedule(timesteps, latents)
        return signal_rate * noise.float() - noise_rate * latents.float()

    def predict_clean(self, output: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """x̂0 = √ᾱ·x_t − √(1−ᾱ)·v̂, float32.

        Args:
            output: The network's v̂ [B, F, C, H, W].
            noisy_latents: x_t, same shape.
            timesteps: int64 [B].
        """
        signal_rate, noise_rate = self._schedule(timesteps, noisy_latents)
        return signal_rate * noisy_latents.float() - noise_rate * output.float()

    # -- the network ---------------------------------------------------------------------------------------------

    def rotary_embeddings(
        self, grid: tuple[int, int, int], grid_type: Literal["linspace", "slice"] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """(cos, sin) tables, each float32 [F·H·W, head size], for a token grid (F, H, W).

        Args:
            grid: Token frames, rows, columns.
            grid_type: Overrides `rope_grid_type`.

        Returns:
            None for models with added (sin-cos) positions, which the transformer makes itself.
        """
        config = self.transformer.config
        if not config.use_rotary_positional_embeddings:
            return None
        frames, rows, columns = grid
        native_rows, native_columns = config.sample_height // self.patch_size, config.sample_width // self.patch_size
        extent: tuple[int, int] | None = None
        crop: tuple[list[int], list[int]] | None = None
        kind = grid_type or self.rope_grid_type
        if kind == "slice":
            # Positions are the plain indices 0, 1, 2, …, so a table longer than native is only a continuation.
            extent = (max(rows, native_rows), max(columns, native_columns))
        else:
            # Fit the grid into the native one, keeping its aspect ratio, and centre it there.
            scale = min(native_rows / rows, native_columns / columns)
            height, width = round(scale * rows), round(scale * columns)
            top, left = round((native_rows - height) / 2), round((native_columns - width) / 2)
            crop = ([top, left], [top + height, left + width])
        tables: Any = get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            crops_coords=crop,
            grid_size=(rows, columns),
            temporal_size=frames,
            grid_type=kind,
            max_size=extent,
            device=self.device,
        )
        return tables

    def denoise(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        *,
        taps: Sequence[int] = (),
        features_only: bool = False,
    ) -> DenoiseOutput:
        """One forward pass of the transformer.

        Args:
            noisy_latents: x_t [B, F, C, H, W], any float dtype (cast to the transformer's); F a multiple of
                `patch_size_t`.
            timesteps: int64 [B].
            prompt_embeds: [B, L, D] of `encode_prompt`, or [1, L, D] for all.
            taps: Blocks, counted from 0, whose outputs are wanted: video tokens before the final norm, the text
                tokens dropped.
            features_only: Stop after the deepest tap; `output` is None.

        Returns:
            v̂ and the features, with gradients where gradients are enabled.

        Raises:
            UsageError: a tap is not a block of this model.
            ValueError: shapes that do not fit.
        """
        if noisy_latents.ndim != 5 or noisy_latents.shape[2] != self.latent_channels:
            raise ValueError(
                f"noisy_latents must be [B, F, {self.latent_channels}, H, W], got {list(noisy_latents.shape)}"
            )
        batch_size, num_frames, _, height, width = noisy_latents.shape
        if num_frames % self.patch_size_t or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"latents of {num_frames}x{height}x{width} do not divide into patches of "
                f"{self.patch_size_t}x{self.patch_size}x{self.patch_size}"
            )
        if prompt_embeds.shape[1] != self.max_text_seq_length:
            # The position table has exactly that many text places; fewer would shift every video position.
            raise ValueError(f"prompt_embeds must have {self.max_text_seq_length} tokens, got {prompt_embeds.shape[1]}")
        grid = (num_frames // self.patch_size_t, height // self.patch_size, width // self.patch_size)
        has_ofs = self.transformer.config.ofs_embed_dim is not None
        arguments = {
            "hidden_states": noisy_latents.to(self.device, self.dtype),
            "encoder_hidden_states": prompt_embeds.to(self.device, self.dtype).expand(batch_size, -1, -1),
            "timestep": timesteps.to(self.device).expand(batch_size),
            "ofs": torch.full((1,), 2.0, device=self.device, dtype=self.dtype) if has_ofs else None,
            "image_rotary_emb": self.rotary_embeddings(grid),
            "return_dict": False,
        }
        with tapped(self.transformer.transformer_blocks, taps, features_only=features_only) as hidden_states:
            output = self.transformer(**arguments)[0]
        tokens = dict(sorted(hidden_states.items()))
        features = {tap: hidden.unflatten(1, grid) for tap, hidden in tokens.items()}
        return DenoiseOutput(None if features_only else output, features, tokens)
