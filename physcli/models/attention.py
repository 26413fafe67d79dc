"""Attention on a CPU that computes in bfloat16, where PyTorch's fused backward pass is the slow one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_MOST_SCORES = 2**24  # of all heads of a batch: 100 MB a call in float32 and bfloat16, kept for the backward pass


def quick_attention(device: torch.device) -> AbstractContextManager[Any]:
    """A block in which attention is made of two matrix products and a softmax where that is quicker: on a CPU, in
    bfloat16, where a gradient is asked for. PyTorch's fused backward pass takes longer there in bfloat16 than in
    float32: of 48 heads of 320 tokens of 32 1.4 times as long, a third of a training step of a tiny generator
    (findings/torch-sdpa-cpu-bfloat16-backward.sh). The same to bfloat16's rounding; other calls are left as they are.

    Args:
        device: Where the block computes.
    """
    return _Products() if device.type == "cpu" else nullcontext()


class _Products(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            output = _attention(*args, **kwargs)
            if output is not None:
                return output
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """`scaled_dot_product_attention`, of [..., tokens, channels]; None for what is left to PyTorch."""
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not (half or query.dtype == torch.bfloat16) or not torch.is_grad_enabled():
        return None
    if dropout_p or is_causal or enable_gqa or query[..., 0].numel() * key.shape[-2] > _MOST_SCORES:
        return None
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.mT
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
