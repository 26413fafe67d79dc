"""VideoMAE (Tong et al. 2022, arXiv 2203.12602) on top of transformers, mended.

`VideoMAEModel` refuses other sizes than its config's, or builds a new position table for them where VideoREPA
interpolates; and its layer norms default to eps 1e-12 where the original has 1e-6. Only its patch projection and
its layers are run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel

from physcli.hashing import seeded
from physcli.models.encoders.base import Encoder, as_pair
from physcli.models.encoders.checkpoint import load_transformers
from physcli.models.encoders.positions import Grid, interpolate_space_then_time, sinusoid_table
from physcli.models.encoders.preprocessing import Preprocessing, from_processor
from physcli.models.tiny import architecture

# Heads and the pre-training decoder. `position_embeddings` is the decoder's.
UNUSED = (
    "decoder.*",
    "encoder_to_decoder.*",
    "mask_token",
    "position_embeddings",
    "fc_norm.*",
    "classifier.*",
)
# The final norm of `use_mean_pooling=False`, which some checkpoints lack; no token depends on it.
OPTIONAL = ("layernorm.*",)


class VideoMAE(Encoder):
    """VideoMAE with positions of any grid. Native clips: the config's, 16 × 224 × 224 in the released ones.

    Args:
        model: A transformers model; its layer norms get eps 1e-6 where the config has the library's default.
        name: For tables and reports.
    """

    def __init__(self, model: VideoMAEModel, *, name: str) -> None:
        config = model.config
        height, width = as_pair(config.image_size)
        super().__init__(
            name=name,
            preprocessing=Preprocessing(height=height, width=width, num_frames=config.num_frames),
            num_blocks=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            patch_size=as_pair(config.patch_size)[0],
            tubelet_size=config.tubelet_size,
        )
        self.model = model
        # The converted checkpoints carry the library's default, which no original was trained with.
        if config.layer_norm_eps == 1e-12:
            config.layer_norm_eps = 1e-6
            for module in model.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = 1e-6
        self.native_grid = self.token_grid(config.num_frames, height, width)
        f, h, w = self.native_grid
        self.position_table = sinusoid_table(f * h * w, config.hidden_size)

    @classmethod
    def build(cls, **options: Any) -> VideoMAE:
        """The tiny one with seeded random weights; see `build_videomae`."""
        return build_videomae(**options)

    @classmethod
    def read(cls, path: Path, *, name: str, dtype: torch.dtype) -> Self:
        """Pre-training and classification checkpoints are both fine."""
        return cls(load_transformers(VideoMAEModel, path, dtype=dtype, unused=UNUSED, optional=OPTIONAL), name=name)

    @property
    def final_norm(self) -> nn.Module | None:
        return self.model.layernorm

    def positions(self, grid: Grid) -> Tensor:
        """The position table `[1, f·h·w, D]` of any grid, float32."""
        return interpolate_space_then_time(self.position_table, self.native_grid, grid)

    def embed(self, pixel_values: Tensor) -> Tensor:
        _, num_frames, _, height, width = pixel_values.shape
        patches = self.model.embeddings.patch_embeddings.projection(pixel_values.transpose(1, 2))
        tokens = patches.flatten(2).transpose(1, 2)  # [B, D, f, h, w] -> [B, N, D]
        return tokens + self.positions(self.token_grid(num_frames, height, width)).to(tokens)

    def run_block(self, block: int, hidden_states: Tensor, grid: Grid) -> Tensor:
        output = self.model.encoder.layer[block](hidden_states)
        return output[0] if isinstance(output, tuple) else output  # a tuple in transformers 4


def build_videomae(
    model: Mapping[str, Any] | None = None, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> VideoMAE:
    """The tiny VideoMAE encoder with seeded random weights, in evaluation mode.

    Args:
        model: As `architecture("videomae-tiny")`, the default.
        device: Where the weights go.
        dtype: Of the weights; float32 by default.
    """
    model = model or architecture("videomae-tiny")
    with seeded(model["seed"]):
        network = VideoMAEModel(VideoMAEConfig(**model["encoder"]))
    encoder = VideoMAE(network, name="videomae-tiny")
    encoder.preprocessing = from_processor(model["preprocessor"], encoder.preprocessing)
    return encoder.to(device, dtype).eval()
