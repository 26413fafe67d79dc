"""The eyes of mPLUG-Owl-Video (Ye et al. 2023, arXiv 2304.14178; the video variant of VideoCon and VideoPhy).

A ViT looks at every frame by itself, and an adapter in each of its layers lets a place see what is there one frame
before and after. An abstractor then sums up all places of all frames in a few tokens for the language model. Module
names are those of the released checkpoints.

Shapes: B videos, T frames, P patches a frame, D vision width, Q queries of a kind, L width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Fixed in the official code, whatever the config says.
ADAPTER_EPS = ABSTRACTOR_EPS = 1e-5
_SWIGLU_STEP = 256
_RELEASED_SWIGLU = 2816


@dataclass(frozen=True)
class VisionConfig:
    """`vision_config` of a config.json. The defaults are the official class's, and the released checkpoints'."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class AbstractorConfig:
    """`visual_abstractor_config` of a config.json; defaults as in `VisionConfig`."""

    hidden_size: int = 1024
    encoder_hidden_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    layer_norm_eps: float = 1e-6

    @property
    def swiglu_size(self) -> int:
        """Width of the gated layer: two thirds of `intermediate_size`, rounded up; 2816 is taken as it is."""
        if self.intermediate_size == _RELEASED_SWIGLU:
            return _RELEASED_SWIGLU
        return -(-int(2 * self.intermediate_size / 3) // _SWIGLU_STEP) * _SWIGLU_STEP


def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702x), everywhere in the tower: the config's `hidden_act` is never read."""
    return x * torch.sigmoid(1.702 * x)


class Pointwise(nn.Conv3d):
    """The checkpoints' 1×1×1 convolution, on channels last, where it is a linear layer and on CPUs faster."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """[…, C] → […, C']."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class OverTime(nn.Conv3d):
    """The checkpoints' depthwise convolution over three frames, zeros beyond the ends, on channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, P, C] → the same shape."""
        assert self.bias is not None
        before, here, after = self.weight.flatten(1).unbind(1)
        padded = F.pad(x, (0, 0, 0, 0, 1, 1))
        return padded[:, :-2] * before + x * here + padded[:, 2:] * after + self.bias


class TemporalAdapter(nn.Module):
    """A bottleneck with a convolution over three frames, place by place."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(hidden_size, eps=ADAPTER_EPS)
        self.down_proj = Pointwise(hidden_size, hidden_size // 2)
        self.conv = OverTime(hidden_size // 2)
        self.up_proj = Pointwise(hidden_size // 2, hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, T, P, D] → the same shape."""
        return self.up_proj(quick_gelu(self.conv(self.down_proj(self.ln(patches)))))


class VisionAttention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        # Head by head, each with its query, key and value; most ViTs put the three outermost.
        fused = self.query_key_value(hidden_states).unflatten(-1, (self.num_heads, 3, -1))
        query, key, value = fused.permute(3, 0, 2, 1, 4)  # [N, heads, 1 + P, D/heads] each
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.dense(mixed.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(quick_gelu(self.fc1(hidden_states)))


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.temporal = TemporalAdapter(width)
        self.input_layernorm = nn.LayerNorm(width, eps=eps)
        self.self_attn = VisionAttention(width, config.num_attention_heads)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps)
        self.mlp = VisionMLP(width, config.intermediate_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, 1 + P, D] → the same shape."""
        cls, patches = tokens[:, :, :1], tokens[:, :, 1:]
        # The official adapter hands CLS back as it came and the layer adds that to its input, so CLS is doubled in
        # every layer. The released weights were trained so.
        tokens = torch.cat([2 * cls, patches + self.temporal(patches)], dim=2)
        frames = tokens.flatten(0, 1)
        frames = frames + self.self_attn(self.input_layernorm(frames))
        frames = frames + self.mlp(self.post_attention_layernorm(frames))
        return frames.unflatten(0, tokens.shape[:2])


class VisionEmbeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        num_tokens = (config.image_size // patch) ** 2 + 1
        self.position_embedding = nn.Parameter(torch.zeros(1, num_tokens, width))
        self.pre_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, T, H, W] → [B, T, 1 + P, D]; nothing tells a frame's place in time but the adapters."""
        num_videos, num_frames = pixel_values.shape[0], pixel_values.shape[2]
        frames = pixel_values.transpose(1, 2).flatten(0, 1)
        patches = self.patch_embed(frames).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(len(patches), -1, -1)
        tokens = self.pre_layernorm(torch.cat([cls, patches], dim=1) + self.position_embedding)
        return tokens.unflatten(0, (num_videos, num_frames))


class LayerList(nn.Module):
    """A list of layers called `layers`, as the checkpoints nest them."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class VisionTower(nn.Module):
    """Frames to tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.encoder = LayerList([VisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, T, H, W], normalised, T ≥ 2 → [B, T, 1 + P, D]: CLS first, then patches row by row.

        Raises:
            ValueError: another shape or size. (One frame would be a still image to the official code, which then
                leaves the adapters out; physcli shows videos only.)
        """
        size = self.config.image_size
        if pixel_values.ndim != 5 or pixel_values.shape[1] != 3 or pixel_values.shape[2] < 2:
            raise ValueError(f"expected pixel values [B, 3, T, H, W] with T >= 2, got {tuple(pixel_values.shape)}")
        if tuple(pixel_values.shape[3:]) != (size, size):
            raise ValueError(f"expected frames of {size}x{size}, got {tuple(pixel_values.shape[3:])}")
        tokens = self.embeddings(pixel_values)
        for layer in self.encoder.layers:
            tokens = layer(tokens)
        return self.post_layernorm(tokens)


class AbstractorAttention(nn.Module):
    """The projections and the attention itself; what comes out of it is projected in `AbstractorOutput`."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.encoder_hidden_size, config.hidden_size)
        self.value = nn.Linear(config.encoder_hidden_size, config.hidden_size)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        projected = (self.query(queries), self.key(memory), self.value(memory))
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class AbstractorMLP(nn.Module):
    """SwiGLU with a norm before the last layer."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.swiglu_size
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(inner, width)
        self.w3 = nn.Linear(width, inner)
        self.ffn_ln = nn.LayerNorm(inner, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.ffn_ln(F.silu(self.w1(x)) * self.w3(x)))


class AbstractorOutput(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=ABSTRACTOR_EPS)
        self.mlp = AbstractorMLP(config)


class AbstractorBlock(nn.Module):
    """Queries look at themselves and at the frames together."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.attention = AbstractorAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=ABSTRACTOR_EPS)
        self.normk = nn.LayerNorm(config.encoder_hidden_size, eps=ABSTRACTOR_EPS)
        self.output = AbstractorOutput(config)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        normed = self.norm1(queries)
        seen = torch.cat([normed, self.normk(memory)], dim=1)
        # The residual is the normalised query, not the query.
        mixed = normed + self.output.out_proj(self.attention(normed, seen))
        return mixed + self.output.mlp(self.output.norm2(mixed))


class AbstractorLayer(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.crossattention = AbstractorBlock(config)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        return self.crossattention(queries, memory)


class Abstractor(nn.Module):
    """All tokens of all frames to Q + 1 embeddings."""

    def __init__(self, config: AbstractorConfig, language_size: int) -> None:
        super().__init__()
        self.encoder = LayerList([AbstractorLayer(config) for _ in range(config.num_hidden_layers)])
        self.visual_fc = nn.Linear(config.hidden_size, language_size)
        self.temporal_visual_fc = nn.Linear(config.hidden_size, language_size)
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, language_size))

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries [B, 2Q, D], the spatial ones first, and memory [B, T·(1 + P), D] → [B, Q + 1, L]."""
        for layer in self.encoder.layers:
            queries = layer(queries, memory)
        spatial, temporal = queries.chunk(2, dim=1)
        embeds = self.visual_fc(spatial) + self.temporal_visual_fc(temporal)
        return torch.cat([embeds, self.vit_eos.expand(len(embeds), -1, -1)], dim=1)
