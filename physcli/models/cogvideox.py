"""CogVideoX 1.0 and 1.5, text to video.

Its latents are [B, F, C, h, w] in the pipeline and in the transformer alike, and [B, C, F, h, w] in the VAE alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from physcli.errors import ModelError
from physcli.models.codec import FactorCodec
from physcli.models.diffusers_generator import DiffusersGenerator
from physcli.models.features import tapped
from physcli.models.generator import Conditioning, Denoised, Facts
from physcli.models.noise import NoiseLevel, NoiseProcess, VPrediction
from physcli.models.tiny import architecture, build_part, check_sections, tiny_tokenizer


class CogVideoXCodec(FactorCodec):
    """Latent frames in front are repeated until their number divides by the transformer's patch, as 1.5 was trained.

    The stock decoder works on an odd number of latent frames only: it turns 4 of them into 16 frames, not 13.
    (`invert_scale_latents` of the 1.5 VAE concerns image conditions; video latents are multiplied as always.)
    """

    patch_frames = 1

    def step(self, *, decoding: bool = False) -> int:
        return self.temporal * (2 if decoding else 1)

    def pad(self, latents: Tensor, axis: int = 1) -> Tensor:
        padding = -latents.shape[axis] % self.patch_frames
        return torch.cat([latents.narrow(axis, 0, 1)] * padding + [latents], dim=axis)


class CogVideoX(DiffusersGenerator):
    """A `CogVideoXPipeline` as a generator.

    Attributes:
        rope_grid_type: Where rotary positions sit on a grid that is not the native one. "linspace" (1.0) spreads the
            grid over the native extent, "slice" (1.5) takes the first rows and columns. These are what the stock
            pipeline samples with, so they are the default; the 1.0 training code uses "slice", which is the same at
            the native grid only. No effect on models without rotary positions.

    Raises:
        ModelError: the scheduler is not a v-prediction scheduler with `alphas_cumprod`, or the transformer takes
            image latents beside the noisy ones (image-to-video).
    """

    family = "cogvideox"
    pipeline_class = "CogVideoXPipeline"
    channel_by_channel = True
    part_classes: ClassVar[Mapping[str, Any]] = {
        "transformer": CogVideoXTransformer3DModel,
        "vae": AutoencoderKLCogVideoX,
        "text_encoder": T5EncoderModel,
    }

    def __init__(self, pipeline: Any, **options: Any) -> None:
        super().__init__(pipeline, **options)
        self.rope_grid_type: Literal["linspace", "slice"] = (
            "linspace" if self.transformer.config.patch_size_t is None else "slice"
        )

    @classmethod
    def build(
        cls, model: Mapping[str, Any] | None = None, *, name: str = "cogvideox-tiny", base: str = "cogvideox-tiny"
    ) -> CogVideoX:
        """One with seeded random weights.

        Args:
            model: As `architecture("cogvideox-tiny")`, the default; tests pass smaller ones.
            name: Shown in tables.
            base: The built-in whose architecture is the default.
        """
        return cls(build_cogvideox(model or architecture(base)), name=name, random_init=True)

    @classmethod
    def read_facts(cls, configs: Mapping[str, Any], own: Mapping[str, Any], name: str) -> Facts:
        config = configs["transformer"]
        patch_frames = config.get("patch_size_t")
        if config["in_channels"] != config["out_channels"]:
            raise ModelError(
                f"{name} takes {config['in_channels']} latent channels and gives {config['out_channels']}: an "
                "image-to-video model.",
                expected="a text-to-video CogVideoX",
            )
        size = own.get("size") or (
            # The 1.5 config says 300×300 latents: how far its positions reach, not a size it was trained on.
            (768, 1360)
            if patch_frames is not None and config["sample_height"] == config["sample_width"] == 300
            else tuple(config[side] * _spatial(configs) for side in ("sample_height", "sample_width"))
        )
        return Facts(
            size=(size[0], size[1]),
            num_frames=own.get("num_frames") or config["sample_frames"],
            frame_rate_hz=own.get("frame_rate_hz") or (8.0 if patch_frames is None else 16.0),  # of their model cards
            guidance_scale=float(own.get("guidance_scale", 6.0)),
            latent_channels=config["out_channels"] - own.get("motion_channels", 0),
            motion_channels=own.get("motion_channels", 0),
            patch=(patch_frames or 1, config["patch_size"], config["patch_size"]),
            num_blocks=config["num_layers"],
            hidden_size=config["num_attention_heads"] * config["attention_head_dim"],
            text_width=config["text_embed_dim"],
            max_text_tokens=config["max_text_seq_length"],
            schedulers={"ddim": "diffusers:CogVideoXDDIMScheduler", "dpm": "diffusers:CogVideoXDPMScheduler"},
        )

    def _noise_process(self) -> NoiseProcess:
        scheduler = self.pipeline.scheduler
        prediction_type = scheduler.config.get("prediction_type")
        if prediction_type != "v_prediction" or not hasattr(scheduler, "alphas_cumprod"):
            raise ModelError(
                f"The scheduler of {self.name} is a {type(scheduler).__name__} with "
                f"prediction_type={prediction_type!r}.",
                expected="a CogVideoXDDIMScheduler or CogVideoXDPMScheduler with prediction_type='v_prediction'",
                fix="restore scheduler/scheduler_config.json of the original checkpoint",
            )
        return VPrediction(scheduler.alphas_cumprod)

    def _codec(self) -> CogVideoXCodec:
        codec = self._codec_of(
            CogVideoXCodec,
            temporal=self.pipeline.vae_scale_factor_temporal,
            spatial=self.pipeline.vae_scale_factor_spatial,
        )
        codec.patch_frames = self.facts.patch[0]
        return codec

    # -- text --------------------------------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Conditioning:
        """T5 embeddings of all L tokens, padding included and without a mask, as the stock pipeline."""
        return Conditioning({"text": self.pipeline.text_encoder(ids.to(self.device))[0]})

    def _prompt_arguments(self, conditioning: Conditioning, negative: Conditioning | None) -> dict[str, Any]:
        return {
            "prompt_embeds": conditioning.text,
            "negative_prompt_embeds": None if negative is None else negative.text,
            "max_sequence_length": self.facts.max_text_tokens,
        }

    # -- sampling ----------------------------------------------------------------------------------------------------

    def _canonical(self, latents: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        return latents

    def _as_pipeline(self, latents: Tensor) -> Tensor:
        return latents

    def _both_outputs(self, outputs: Sequence[Tensor], guided: bool) -> tuple[Tensor, Tensor | None]:
        [output] = outputs
        if not guided:
            return output, None
        unconditional, conditional = output.chunk(2)
        return conditional, unconditional

    # -- the network -------------------------------------------------------------------------------------------------

    def use_rope_grid(self, kind: Literal["linspace", "slice"]) -> None:
        if not self.transformer.config.use_rotary_positional_embeddings:
            super().use_rope_grid(kind)
        self.rope_grid_type = kind

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
        native_rows, native_columns = (
            config.sample_height // config.patch_size,
            config.sample_width // config.patch_size,
        )
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

    @property
    def blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = self.transformer.transformer_blocks
        return blocks

    def denoise(
        self,
        noisy: Tensor,
        level: NoiseLevel,
        conditioning: Conditioning,
        *,
        taps: Sequence[int] = (),
        features_only: bool = False,
    ) -> Denoised:
        grid = self._check_latents(noisy)
        batch_size, text = len(noisy), conditioning.text
        if text.shape[1] != self.facts.max_text_tokens:
            # The position table has exactly that many text places; fewer would shift every video position.
            raise ValueError(f"the text must have {self.facts.max_text_tokens} tokens, got {text.shape[1]}")
        has_ofs = self.transformer.config.ofs_embed_dim is not None
        arguments = {
            "hidden_states": self._with_motion(noisy).to(self.device, self.dtype),
            "encoder_hidden_states": text.to(self.device, self.dtype).expand(batch_size, -1, -1),
            "timestep": level.time.to(self.device).expand(batch_size),
            "ofs": torch.full((1,), 2.0, device=self.device, dtype=self.dtype) if has_ofs else None,
            "image_rotary_emb": self.rotary_embeddings(grid),
            "return_dict": False,
        }
        with tapped(self.blocks, taps, features_only=features_only) as hidden_states:
            output = self.transformer(**arguments)[0]
        return self._denoised(None if features_only else output[:, :, : noisy.shape[2]], hidden_states, grid)

    def ends(self) -> tuple[Any, Any]:
        return self.transformer.patch_embed.proj, self.transformer.proj_out


def _spatial(configs: Mapping[str, Any]) -> int:
    """Pixels of a latent: the VAE halves its picture before every level but the first. 8 where there is no VAE."""
    return 2 ** (len(configs["vae"]["block_out_channels"]) - 1) if "vae" in configs else 8


def build_cogvideox(model: Mapping[str, Any] | None = None) -> CogVideoXPipeline:
    """A whole `CogVideoXPipeline` with seeded random weights, float32 on the CPU.

    Args:
        model: As `architecture("cogvideox-tiny")`, the default; tests pass smaller ones.
    """
    model = model or architecture("cogvideox-tiny")
    check_sections(model, ("seed", "transformer", "vae", "text_encoder", "scheduler"))
    tokenizer = tiny_tokenizer(model["text_encoder"], max_length=model["transformer"]["max_text_seq_length"])
    return CogVideoXPipeline(
        tokenizer=tokenizer,
        scheduler=CogVideoXDPMScheduler(**model["scheduler"]),
        text_encoder=build_part(lambda: T5EncoderModel(T5Config(**model["text_encoder"])), model["seed"]),
        vae=build_part(lambda: AutoencoderKLCogVideoX(**model["vae"]), model["seed"]),
        transformer=build_part(lambda: CogVideoXTransformer3DModel(**model["transformer"]), model["seed"]),
    )
