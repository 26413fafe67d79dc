"""Wan 2.1 text to video (Wan Team 2025, arXiv 2503.20314), and Wan 2.2 TI2V-5B as text to video.

Flow matching; latents normalised channel by channel, [B, C, F, h, w] in pipeline, transformer and VAE alike. The
network has no text mask: rows of zeros follow the prompt's own embeddings up to L (512), and count.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResidualBlock
from torch import Tensor, nn
from transformers import T5EncoderModel, UMT5Config, UMT5EncoderModel

from physcli.errors import ModelError
from physcli.models.codec import ChannelCodec
from physcli.models.diffusers_generator import DiffusersGenerator
from physcli.models.features import tapped
from physcli.models.generator import Conditioning, Denoised, Facts
from physcli.models.integrity import read_json
from physcli.models.noise import FlowMatching, NoiseLevel, NoiseProcess
from physcli.models.parts import read_part
from physcli.models.tiny import architecture, build_part, check_sections, tiny_tokenizer
from physcli.models.wan_vae import decode_whole, encode_whole, is_small

# What the released models were trained on: (height, width), frames, frames a second. Their configs do not say.
_WAN21: dict[str, Any] = {"size": (480, 832), "num_frames": 81, "frame_rate_hz": 16.0}
_WAN22_TI2V: dict[str, Any] = {"size": (704, 1280), "num_frames": 121, "frame_rate_hz": 24.0}
# Taken from the log variance of a random VAE's posteriors.
_RANDOM_LOG_VARIANCE = 8.0


class Wan(DiffusersGenerator):
    """A `WanPipeline` as a generator.

    Raises:
        ModelError: image-to-video, or a scheduler that does not sample a flow.
    """

    family = "wan"
    pipeline_class = "WanPipeline"
    part_classes: ClassVar[Mapping[str, Any]] = {
        "transformer": WanTransformer3DModel,
        "vae": AutoencoderKLWan,
        "text_encoder": UMT5EncoderModel,
    }
    conditioning_parts = ("text", "mask")
    vae_identity = ("z_dim", "scale_factor_temporal", "scale_factor_spatial")

    def __init__(self, pipeline: Any, **options: Any) -> None:
        super().__init__(pipeline, **options)
        if self.pipeline.config.boundary_ratio is not None:
            # Some converted folders of one network carry it; the pipeline would call a second one.
            self.pipeline.register_to_config(boundary_ratio=None)

    @classmethod
    def build(cls, model: Mapping[str, Any] | None = None, *, name: str = "wan-tiny", base: str = "wan-tiny") -> Wan:
        """One with seeded random weights.

        Args:
            model: As `architecture("wan-tiny")`, the default; tests pass smaller ones.
            name: Shown in tables.
            base: The built-in whose architecture is the default.
        """
        model = model or architecture(base)
        return cls(build_wan(model), name=name, random_init=True, own=model["facts"])

    @classmethod
    def read_facts(cls, configs: Mapping[str, Any], own: Mapping[str, Any], name: str) -> Facts:
        config, vae = configs["transformer"], configs.get("vae", {})
        if config["in_channels"] != config["out_channels"] or config.get("image_dim") is not None:
            raise ModelError(
                f"{name} takes an image beside the noisy latents: an image-to-video model.",
                expected="a text-to-video Wan",
            )
        native = {**(_WAN22_TI2V if vae.get("is_residual") else _WAN21), **own}
        patch = tuple(config["patch_size"])
        return Facts(
            size=(native["size"][0], native["size"][1]),
            num_frames=native["num_frames"],
            frame_rate_hz=float(native["frame_rate_hz"]),
            guidance_scale=float(native.get("guidance_scale", 5.0)),
            latent_channels=config["out_channels"] - native.get("motion_channels", 0),
            patch=(patch[0], patch[1], patch[2]),
            num_blocks=config["num_layers"],
            hidden_size=config["num_attention_heads"] * config["attention_head_dim"],
            text_width=config["text_dim"],
            max_text_tokens=native.get("max_text_tokens", 512),
            motion_channels=native.get("motion_channels", 0),
            schedulers={
                "unipc": "diffusers:UniPCMultistepScheduler",
                "euler": "diffusers:FlowMatchEulerDiscreteScheduler",
            },
        )

    def _noise_process(self) -> NoiseProcess:
        config = self.pipeline.scheduler.config
        is_flow = config.get("prediction_type", "flow_prediction") == "flow_prediction"
        if not is_flow or not ("shift" in config or config.get("use_flow_sigmas")):
            raise ModelError(
                f"The scheduler of {self.name} is a {type(self.pipeline.scheduler).__name__} that does not sample a "
                "flow.",
                expected="a UniPCMultistepScheduler with use_flow_sigmas, or a FlowMatchEulerDiscreteScheduler",
                fix="restore scheduler/scheduler_config.json of the original checkpoint",
            )
        return FlowMatching(config["num_train_timesteps"])

    def _codec(self) -> WanCodec:
        return self._codec_of(
            WanCodec,
            temporal=self.pipeline.vae_scale_factor_temporal,
            spatial=self.pipeline.vae_scale_factor_spatial,
        )

    # -- text --------------------------------------------------------------------------------------------------------

    def _clean(self, prompts: Sequence[str]) -> list[str]:
        """As the stock pipeline: entities resolved, white space made one blank; quotes straightened where ftfy is
        installed."""
        return [re.sub(r"\s+", " ", html.unescape(html.unescape(_fixed(prompt))).strip()).strip() for prompt in prompts]

    def embed(self, ids: Tensor) -> Conditioning:
        """Embeddings under an attention mask, and rows of zeros after the prompt's end. The mask says which rows are
        the prompt's; the network has none."""
        ids = ids.to(self.device)
        mask = ids != self.pipeline.tokenizer.pad_token_id
        text = self.pipeline.text_encoder(ids, mask.long())[0]
        return Conditioning({"text": torch.where(mask[..., None], text, torch.zeros_like(text)), "mask": mask})

    def _prompt_arguments(self, conditioning: Conditioning, negative: Conditioning | None) -> dict[str, Any]:
        return {
            "prompt_embeds": conditioning.text,
            "negative_prompt_embeds": None if negative is None else negative.text,
        }

    def _text_weights(self, folder: Path, own: Any) -> dict[str, Tensor]:
        if read_json(folder / "config.json").get("model_type") != "t5":
            return super()._text_weights(folder, own)
        # A UMT5 is a T5 whose blocks have positions of their own; T5's are the first block's in all.
        weights = read_part(T5EncoderModel, folder, torch.float32).state_dict()
        positions = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        return {
            **dict.fromkeys((name for name in own.state_dict() if "relative_attention_bias" in name), positions),
            **weights,
        }

    # -- sampling ----------------------------------------------------------------------------------------------------

    def _scheduler(self, scheduler_class: Any) -> Any:
        """The flow's shift, which the two classes call differently, is kept."""
        config = dict(self.pipeline.scheduler.config)
        shift = config.get("flow_shift") if config.get("use_flow_sigmas") else config.get("shift")
        steps = config["num_train_timesteps"]
        if scheduler_class is FlowMatchEulerDiscreteScheduler:
            return scheduler_class(num_train_timesteps=steps, shift=shift)
        return scheduler_class(
            num_train_timesteps=steps, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )

    def _canonical(self, latents: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        return latents.transpose(1, 2)

    def _as_pipeline(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2)

    def _both_outputs(self, outputs: Sequence[Tensor], guided: bool) -> tuple[Tensor, Tensor | None]:
        if not guided:
            [conditional] = outputs
            return conditional, None
        conditional, unconditional = outputs  # one call each, in this order
        return conditional, unconditional

    # -- the network -------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = self.transformer.blocks
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
        grid, channels = self._check_latents(noisy), noisy.shape[2]
        with tapped(self.blocks, taps, features_only=features_only) as hidden_states:
            output = self.transformer(
                hidden_states=self._with_motion(noisy).to(self.device, self.dtype).transpose(1, 2),
                # Never in half precision: 1000·σ rounded to bfloat16 moves the output by 3 to 25 %.
                timestep=level.time.to(self.device, torch.float32).expand(len(noisy)),
                encoder_hidden_states=conditioning.text.to(self.device, self.dtype).expand(len(noisy), -1, -1),
                return_dict=False,
            )[0]
        output = None if features_only else output[:, :channels].transpose(1, 2)
        return self._denoised(output, hidden_states, grid)

    def ends(self) -> tuple[Any, Any]:
        return self.transformer.patch_embedding, self.transformer.proj_out


class WanCodec(ChannelCodec):
    """Small batches at once instead of in pieces: half the time of the VAE's own way on a CPU."""

    def posterior(self, vae: Any, pixels: Tensor) -> Any:
        batch, _, *size = pixels.shape
        if not is_small(batch, *size):
            return super().posterior(vae, pixels)
        return encode_whole(vae, pixels)

    def pixels(self, vae: Any, latents: Tensor) -> Tensor:
        batch, _, frames, height, width = latents.shape
        if not is_small(batch, self.num_frames(frames), height * self.spatial, width * self.spatial):
            return super().pixels(vae, latents)
        return decode_whole(vae, latents)


def _fixed(text: str) -> str:
    try:
        import ftfy
    except ImportError:
        return text
    return ftfy.fix_text(text)


def build_wan(model: Mapping[str, Any] | None = None) -> WanPipeline:
    """A whole `WanPipeline` with seeded random weights, float32 on the CPU. Its text encoder has the other tiny
    generator's sizes and tokenizer, and the class that the pipeline expects: a T5 with positions of its own in every
    block, so that with the first block's in all it is that T5.

    Args:
        model: As `architecture("wan-tiny")`, the default; tests pass smaller ones.
    """
    model = model or architecture("wan-tiny")
    check_sections(model, ("seed", "facts", "transformer", "vae", "text_encoder", "scheduler"))
    tokenizer = tiny_tokenizer(model["text_encoder"], max_length=model["facts"]["max_text_tokens"])
    vae: Any = build_part(lambda: AutoencoderKLWan(**model["vae"]), model["seed"])
    with torch.no_grad():
        # A VAE learns faster whose residual branches begin at zero.
        ends: list[torch.nn.Module] = [b.conv2 for b in vae.modules() if isinstance(b, WanResidualBlock)]
        ends += [b.proj for b in vae.modules() if isinstance(b, WanAttentionBlock)]
        for end in ends:
            for weight in end.parameters():
                weight.zero_()
        # Posteriors as narrow as a trained VAE's: at a log variance of 0, which random weights give, draws would be
        # eight times as wide as their means.
        vae.quant_conv.bias[vae.config.z_dim :] -= _RANDOM_LOG_VARIANCE
    return WanPipeline(
        tokenizer=tokenizer,
        scheduler=UniPCMultistepScheduler(**model["scheduler"]),
        text_encoder=build_part(lambda: UMT5EncoderModel(UMT5Config(**model["text_encoder"])), model["seed"]),
        vae=vae,
        transformer=build_part(lambda: WanTransformer3DModel(**model["transformer"]), model["seed"]),
    )
