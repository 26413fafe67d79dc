"""LTX-Video as a generator of one's own: a family that physcli does not have, given as `ltx:LTX@FOLDER`.

It asks the most of the interface: tokens [B, F·H·W, C] in pipeline and network, a text mask, 8k+1 frames, the frame
rate as a condition, latent statistics in the VAE's weights, a decoder that takes a noise level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from physcli.models.codec import ChannelCodec
from physcli.models.diffusers_generator import DiffusersGenerator
from physcli.models.features import tapped
from physcli.models.generator import Conditioning, Denoised, Facts
from physcli.models.noise import FlowMatching, NoiseLevel, NoiseProcess
from physcli.models.tiny import build_part, tiny_tokenizer

# Decoders of 0.9.1 and later clean up what little noise is added before them.
DECODE_TIMESTEP, DECODE_NOISE_SCALE = 0.05, 0.025


class LTXCodec(ChannelCodec):
    """Mean and std are buffers of the VAE: they are there when its weights are read, and (0, 1) before."""

    def moments(self) -> tuple[Tensor, Tensor]:
        vae = self._get_vae(True)
        mean, std = vae.latents_mean.float().cpu(), vae.latents_std.float().cpu() / vae.config.scaling_factor
        return mean[:, None, None, None], std[:, None, None, None]

    def register_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        vae = self._get_vae(True)
        vae.latents_mean.copy_(torch.tensor(mean))
        vae.latents_std.copy_(torch.tensor(std) * vae.config.scaling_factor)

    def decode_noise(self, shape: Sequence[int]) -> Tensor:
        """Of one clip [C, F, h, w]; the same for every one, so that a clip's frames do not depend on its batch."""
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))

    def pixels(self, vae: Any, latents: Tensor) -> Tensor:
        if not vae.config.timestep_conditioning:
            return super().pixels(vae, latents)
        noise = self.decode_noise(latents.shape[1:]).to(latents)
        noisy = (1 - DECODE_NOISE_SCALE) * latents + DECODE_NOISE_SCALE * noise
        return vae.decode(noisy, torch.full((len(latents),), DECODE_TIMESTEP).to(latents)).sample


class LTX(DiffusersGenerator):
    """An `LTXPipeline` as a generator."""

    family = "ltx"
    pipeline_class = "LTXPipeline"
    part_classes: ClassVar[Mapping[str, Any]] = {
        "transformer": LTXVideoTransformer3DModel,
        "vae": AutoencoderKLLTXVideo,
        "text_encoder": T5EncoderModel,
    }
    conditioning_parts = ("text", "mask")
    takes_frame_rates = True
    vae_identity = ("latent_channels", "timestep_conditioning")

    @classmethod
    def build(cls, model: Mapping[str, Any] | None = None, *, name: str = "ltx-tiny", base: str = "ltx-tiny") -> LTX:
        model = model or ARCHITECTURE
        return cls(build_ltx(model), name=name, random_init=True, own=model["facts"])

    @classmethod
    def read_facts(cls, configs: Mapping[str, Any], own: Mapping[str, Any], name: str) -> Facts:
        config = configs["transformer"]
        native: dict[str, Any] = {
            "size": (512, 704),
            "num_frames": 161,
            "frame_rate_hz": 25.0,
            "guidance_scale": 3.0,
        } | dict(own)
        return Facts(
            size=(native["size"][0], native["size"][1]),
            num_frames=native["num_frames"],
            frame_rate_hz=float(native["frame_rate_hz"]),
            guidance_scale=float(native["guidance_scale"]),
            latent_channels=config["out_channels"],
            patch=(config["patch_size_t"], config["patch_size"], config["patch_size"]),
            num_blocks=config["num_layers"],
            hidden_size=config["num_attention_heads"] * config["attention_head_dim"],
            text_width=config["caption_channels"],
            max_text_tokens=native.get("max_text_tokens", 128),
            schedulers={"euler": "diffusers:FlowMatchEulerDiscreteScheduler"},
        )

    def _noise_process(self) -> NoiseProcess:
        return FlowMatching(self.pipeline.scheduler.config.num_train_timesteps)

    def _codec(self) -> LTXCodec:
        return self._codec_of(
            LTXCodec,
            temporal=self.pipeline.vae_temporal_compression_ratio,
            spatial=self.pipeline.vae_spatial_compression_ratio,
        )

    # -- text --------------------------------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Conditioning:
        """T5 sees the padding, the network does not."""
        ids = ids.to(self.device)
        mask = ids != self.pipeline.tokenizer.pad_token_id
        return Conditioning({"text": self.pipeline.text_encoder(ids)[0], "mask": mask})

    def _prompt_arguments(self, conditioning: Conditioning, negative: Conditioning | None) -> dict[str, Any]:
        rates = self._frame_rates(conditioning)
        if len(rates.unique()) > 1:  # [B, 1, 1, 1, 1] of both halves; the pipeline has a number in mind
            rates = (rates if negative is None else rates.repeat(2))[:, None, None, None, None]
        return {
            "prompt_embeds": conditioning.text,
            "prompt_attention_mask": conditioning["mask"],
            "negative_prompt_embeds": None if negative is None else negative.text,
            "negative_prompt_attention_mask": None if negative is None else negative["mask"],
            "frame_rate": rates[0].item() if rates.ndim == 1 else rates,
            "decode_timestep": DECODE_TIMESTEP,
            "decode_noise_scale": DECODE_NOISE_SCALE,
            "max_sequence_length": self.facts.max_text_tokens,
        }

    def _frame_rates(self, conditioning: Conditioning) -> Tensor:
        """float32 [B], or [1] of all."""
        rates = conditioning.get("frame_rate_hz")
        return torch.tensor([self.facts.frame_rate_hz], device=self.device) if rates is None else rates.to(self.device)

    # -- sampling ----------------------------------------------------------------------------------------------------

    def _canonical(self, latents: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        frames, _, rows, columns = shape
        return latents.unflatten(1, (frames, rows, columns)).movedim(-1, 2)

    def _as_pipeline(self, latents: Tensor) -> Tensor:
        return latents.movedim(2, -1).flatten(1, 3)

    def _both_outputs(self, outputs: Sequence[Tensor], guided: bool) -> tuple[Tensor, Tensor | None]:
        [output] = outputs
        if not guided:
            return output, None
        unconditional, conditional = output.chunk(2)
        return conditional, unconditional

    # -- the network -------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.transformer_blocks

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
        batch_size = len(noisy)
        temporal, spatial = self.codec.temporal, self.codec.spatial
        seconds = temporal / self._frame_rates(conditioning)[:, None, None, None, None]
        with tapped(self.blocks, taps, features_only=features_only) as hidden_states:
            output = self.transformer(
                hidden_states=self._as_pipeline(noisy.to(self.device, self.dtype)),
                encoder_hidden_states=conditioning.text.to(self.device, self.dtype).expand(batch_size, -1, -1),
                timestep=level.time.to(self.device, torch.float32).expand(batch_size),
                encoder_attention_mask=conditioning["mask"].to(self.device).expand(batch_size, -1),
                num_frames=grid[0],
                height=grid[1],
                width=grid[2],
                rope_interpolation_scale=(seconds, spatial, spatial),
                return_dict=False,
            )[0]
        clean = None if features_only else self._canonical(output, (grid[0], noisy.shape[2], *grid[1:]))
        return self._denoised(clean, hidden_states, grid)


ARCHITECTURE: dict[str, Any] = {
    "seed": 0,
    "facts": {"size": [64, 64], "num_frames": 17, "frame_rate_hz": 10.0, "max_text_tokens": 32},
    "transformer": {
        "in_channels": 8,
        "out_channels": 8,
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 16,
    },
    "vae": {
        "latent_channels": 8,
        "block_out_channels": [8, 8, 8, 8, 8],
        "decoder_block_out_channels": [8, 8, 16],
        "layers_per_block": [1, 1, 1, 1, 1],
        "decoder_layers_per_block": [1, 1, 1, 1],
        "spatio_temporal_scaling": [True, True, True, True],
        "decoder_spatio_temporal_scaling": [True, True, True],
        "decoder_inject_noise": [False, False, False, False],
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
        "upsample_residual": [True, True, True],
        "upsample_factor": [1, 1, 2],
        "timestep_conditioning": True,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
    "text_encoder": {
        "vocab_size": 128,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    },
    "scheduler": {
        "use_dynamic_shifting": True,
        "base_shift": 0.95,
        "max_shift": 2.05,
        "base_image_seq_len": 1024,
        "max_image_seq_len": 4096,
        "shift_terminal": 0.1,
    },
}


def build_ltx(model: Mapping[str, Any]) -> LTXPipeline:
    """A whole `LTXPipeline` with seeded random weights, float32 on the CPU."""
    return LTXPipeline(
        tokenizer=tiny_tokenizer(model["text_encoder"], max_length=model["facts"]["max_text_tokens"]),
        scheduler=FlowMatchEulerDiscreteScheduler(**model["scheduler"]),
        text_encoder=build_part(lambda: T5EncoderModel(T5Config(**model["text_encoder"])), model["seed"]),
        vae=build_part(lambda: AutoencoderKLLTXVideo(**model["vae"]), model["seed"]),
        transformer=build_part(lambda: LTXVideoTransformer3DModel(**model["transformer"]), model["seed"]),
    )
