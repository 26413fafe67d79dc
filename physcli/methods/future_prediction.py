"""Self-supervised training of a video encoder by predicting what comes next.

The encoder sees the first frames of a window. From the tokens of its last time step, one linear layer predicts how
the colours of each token's own place will have changed at several later frames. The readout is too weak to foresee
anything: the encoder itself must work out where things will go, which is what a probe for contact asks of it.

Pixel reconstruction of masked tubes (VideoMAE) on the same clips taught nothing that a random network's features did
not hold; the still background is nearly all of what it must paint. Here a target that does not move is worth little.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FutureHead(nn.Module):
    """One linear layer: token → colour changes of its place at each horizon.

    Args:
        hidden_size: D of the tokens.
        horizons: Frames after the last one seen.
        cells: Each place is divided into cells × cells, each with its mean colour.
    """

    def __init__(self, hidden_size: int, horizons: Sequence[int], cells: int) -> None:
        super().__init__()
        self.horizons, self.cells = tuple(horizons), cells
        # The last output is how much the place will ever change.
        self.linear = nn.Linear(hidden_size, len(self.horizons) * cells * cells * 3 + 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, D] → changes [B, N, K, cells·cells·3] and ever-changing [B, N]."""
        values = self.linear(tokens)
        return values[..., :-1].unflatten(-1, (len(self.horizons), -1)), values[..., -1]


def color_cells(frames: Tensor, grid: tuple[int, int], cells: int) -> Tensor:
    """Mean colours of the cells of every place: [B, T, 3, H, W] → [B, T, rows·columns, cells·cells·3]."""
    rows, columns = grid
    small = F.adaptive_avg_pool2d(frames.flatten(0, 1), (rows * cells, columns * cells))
    small = small.unflatten(0, frames.shape[:2])
    small = small.unflatten(3, (rows, cells)).unflatten(5, (columns, cells))  # [B, T, 3, rows, cells, columns, cells]
    return small.permute(0, 1, 3, 5, 4, 6, 2).flatten(4, 6).flatten(2, 3)


def future_changes(seen: Tensor, future: Tensor, *, grid: tuple[int, int], cells: int) -> tuple[Tensor, Tensor]:
    """What `FutureHead` is to predict.

    Args:
        seen: The last frame seen [B, 3, H, W] in [0, 1].
        future: The frames at the horizons [B, K, 3, H, W].
        grid: Rows and columns of the tokens of one time step.
        cells: As in `FutureHead`.

    Returns:
        Colour changes [B, rows·columns, K, cells·cells·3], and the largest absolute change of each place at any
        horizon [B, rows·columns].
    """
    now = color_cells(seen[:, None], grid, cells)
    later = color_cells(future, grid, cells)
    changes = (later - now).transpose(1, 2)
    return changes, changes.abs().amax(dim=(2, 3))


def future_loss(
    predicted: tuple[Tensor, Tensor],
    changes: Tensor,
    ever: Tensor,
    *,
    scale: float = 5.0,
    threshold: float = 0.03,
    moving_weight: float = 20.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted squared error of the predicted changes.

    Args:
        predicted: What `FutureHead` gave.
        changes, ever: What `future_changes` gave.
        scale: Colour changes are multiplied by this, to be near unit size where something moves.
        threshold: A place whose colour changes by more than this (of 1) at a horizon moves there.
        moving_weight: Weight of moving places against 1 for still ones.

    Returns:
        The loss of each clip [B]; `explained`, the share of the moving places' squared change that is predicted
        [B] (0 for predicting no change, 1 for perfection); and `moving`, their share of all places [B].
    """
    guess, guess_ever = (values.float() for values in predicted)
    moving = (changes.abs().amax(dim=3) > threshold).float()  # [B, N, K]
    weights = 1 + (moving_weight - 1) * moving
    error = (guess - scale * changes).square().mean(dim=3)
    loss = (weights * error).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))
    loss = loss + (guess_ever - scale * ever).square().mean(dim=1)
    with torch.no_grad():
        size = (scale * changes).square().mean(dim=3)
        total = (moving * size).sum(dim=(1, 2))
        explained = 1 - (moving * error).sum(dim=(1, 2)) / total.clamp_min(1e-6)
    return loss, {
        "explained": torch.where(total > 0, explained, torch.zeros_like(total)),
        "moving": moving.mean((1, 2)),
    }
