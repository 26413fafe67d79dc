"""LayerSync (arXiv 2510.12581): a block's tokens point where those of a deeper block of the same network point, in the
same forward pass, without teacher or projector.

Released code counts blocks from 1 for images and from 0 for video; here from 0, as everywhere. Its video code lets the
gradient into the deeper block, too, and has a weight of 0.002; the paper and its image code do not (`detach`), with
0.2. Of several pairs it keeps the last one alone; here their losses are averaged.
"""

from __future__ import annotations

from torch import Tensor

from physcli.methods.repa import repa_loss


def layersync_loss(block: Tensor, deeper: Tensor, *, detach: bool = True, centered: bool = False) -> Tensor:
    """−mean over tokens of cos(block, deeper).

    Args:
        block: Tokens of the block that learns [B, ..., D].
        deeper: Of the deeper one, same shape.
        detach: No gradient to `deeper`.
        centered: The mean over a clip's tokens is taken off each side first.

    Returns:
        [B], float32 (float64 where `block` is float64).

    Raises:
        ValueError: unequal shapes, no axis between B and D, an empty axis, or integer features.
    """
    if centered and block.ndim >= 3:
        axes = tuple(range(1, block.ndim - 1))
        block, deeper = (tokens - tokens.mean(dim=axes, keepdim=True) for tokens in (block, deeper))
    loss = repa_loss(block, deeper)
    if detach:
        return loss
    other = repa_loss(deeper, block)  # the same value; of each the second side gets no gradient
    return loss + other - other.detach()
