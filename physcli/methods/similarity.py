"""Cosine similarities between all tokens of a clip, and the weighted distance of two such tables.

Shared by VideoREPA (`videorepa.py`), TSA (`tsa.py`) and MoAlign. Letters in shapes: B clips, F frames, n tokens of a
frame in reading order, N = F·n tokens of a clip, D and E features.

Everything here computes in float32, or in float64 where the student is float64; bf16 and fp16 are widened first,
under autocast too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Vectors shorter than this are divided by it instead of by their length: no NaN at zero, and no gradient above 10⁶
# times what comes in. Any vector longer than this is normalised exactly.
EPS = 1e-6

# Query rows of a tile when nobody chose; a clip of so few tokens is one plain product. Measured with one CPU thread
# (no GPU), value and gradient, N = 320 to 17,550: from 128 to 600 rows alike within the noise, one tile of everything
# 1.2-1.7 times slower. At N = 3600, D = 768: 0.6 s, where the four products of autograd alone take 1.0 s, autograd on
# whole tables 1.2 s and the released code, which copies the features F times, 2.2 s.
TILE_ROWS = 256

Below = Literal["subtract", "zero"]


def unit(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Features at unit length: x / max(‖x‖₂, `EPS`) over the last axis.

    Args:
        features: [..., D], any float dtype.
        dtype: Of the computation and the result; by default float64 for float64 features and float32 for all others.

    Returns:
        [..., D]. A zero vector stays zero; the gradient at it is that of x / `EPS`.

    Raises:
        ValueError: features that are not floating point, or have no axis.
    """
    if not features.is_floating_point() or features.ndim == 0:
        raise ValueError(f"features must be float [..., D], got {features.dtype} {list(features.shape)}")
    if dtype is None:
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    wide = features.to(dtype)
    return wide / torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min(EPS)


def cosine_gram(features: Tensor) -> Tensor:
    """The cosine of every pair of tokens: Eq. 3 of VideoREPA, Eqs. 6-7 of TSA.

    Args:
        features: [B, N, D], any float dtype.

    Returns:
        [B, N, N], float32 (float64 for float64 features). A zero vector has cosine 0 with everything, itself
        included: lengths are taken to be at least `EPS`.

    Raises:
        ValueError: features that are not float [B, N, D].
    """
    if features.ndim != 3:
        raise ValueError(f"features must be [B, N, D], got {list(features.shape)}")
    with torch.autocast(features.device.type, enabled=False):
        tokens = unit(features)
        return tokens @ tokens.transpose(1, 2)


def relation_distance(
    student: Tensor,
    teacher: Tensor,
    frame_weights: Tensor,
    *,
    margin: float = 0.0,
    below: Below = "subtract",
    rows: int | None = None,
) -> Tensor:
    """How far two tables of token relations are apart: Σ_de Σ_ij w[d, e] · h(|S_student − S_teacher|[d, i, e, j]).

    S is the cosine Gram matrix over all F·n tokens of a clip. h(x) is max(x − margin, 0) for "subtract" and
    x·[x ≥ margin] for "zero".

    The N×N tables are never held whole. They are walked in tiles of query rows, and since both are symmetric only
    the tiles on and above the diagonal are computed. The student's gradient is formed on the way: with
    G = ∂loss/∂S = w·sign(ΔS)·h′, also symmetric, the gradient in the unit vectors X is 2·G·X; the normalisation is
    left to autograd. In units of one N×N×D product that is ½ + ½ + 1 where autograd needs 1 + 1 + 2.

    Args:
        student: [B, F, n, D].
        teacher: [B, F, n, E]; no gradient flows to it. E need not be D.
        frame_weights: w [F, F], symmetric; query frame × target frame. No gradient flows to it. Where only frames
            near the diagonal have a weight, the rest is not computed. On the CPU, whatever device the features are
            on, it saves a synchronisation.
        margin: Least difference of cosines that counts, ≥ 0.
        below: What becomes of the margin: "subtract" takes it off every larger difference too (VideoREPA's released
            code), "zero" leaves them whole (the wording of VideoREPA's appendix A).
        rows: At most this many query rows a tile, rounded down to whole frames where that is n or more; from F·n on
            one plain product a side. `TILE_ROWS` by default.

    Returns:
        [B], float32 (float64 where the student is float64). Differentiable once.

    Raises:
        ValueError: shapes that do not fit, integer features, weights that are not symmetric, a negative margin, an
            unknown `below`, or rows < 1.
    """
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[:3] != teacher.shape[:3] or 0 in student.shape:
        raise ValueError(
            "student and teacher must be [B, F, n, D] and [B, F, n, E] with the same B, F and n, "
            f"none of them 0, got {list(student.shape)} and {list(teacher.shape)}"
        )
    num_frames, num_places = student.shape[1:3]
    if frame_weights.shape != (num_frames, num_frames):
        raise ValueError(f"frame_weights must be [{num_frames}, {num_frames}], got {list(frame_weights.shape)}")
    if not torch.equal(frame_weights, frame_weights.T):
        raise ValueError("frame_weights must be symmetric: w[d, e] = w[e, d]")
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    if below not in get_args(Below):
        raise ValueError(f'below must be "subtract" or "zero", got {below!r}')
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    with torch.autocast(student.device.type, enabled=False):
        tokens = unit(student)
        targets = unit(teacher.detach(), tokens.dtype)
        weights = frame_weights.detach().to(tokens)
        tiles = list(_tiles(frame_weights, num_places, TILE_ROWS if rows is None else rows))
        return _RelationDistance.apply(tokens, targets, weights, margin, below, tiles)


def _tiles(weights: Tensor, num_places: int, rows: int) -> Iterator[tuple[slice, int, int, int]]:
    """Tiles on and above the diagonal that carry weight: (frames of its rows, first row = first column, row end,
    column end). The rows are whole frames, or a part of one frame, so that a tile's weights are one row a frame.

    Columns may end before the tile's own rows do: what is cut off of the square on the diagonal has no weight then.
    """
    num_frames = len(weights)
    weighty = (weights != 0).tolist()
    group, part = max(rows // num_places, 1), min(rows, num_places)
    for first in range(0, num_frames, group):
        frames = slice(first, min(first + group, num_frames))
        targets = [e for e in range(first, num_frames) if any(weighty[d][e] for d in range(first, frames.stop))]
        if not targets:
            continue
        for offset in range(0, num_places, part):
            end = (frames.stop - 1) * num_places + min(offset + part, num_places)
            yield frames, first * num_places + offset, end, (targets[-1] + 1) * num_places


class _RelationDistance(torch.autograd.Function):
    """`relation_distance` of unit vectors."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, frame_weights: Tensor, margin: float, below: Below, tiles: list
    ) -> Tensor:
        weights = frame_weights.repeat_interleave(student.shape[2], dim=1)  # [F, N]
        total = student.new_zeros(len(student))
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        for clip in range(len(student)):
            x, y = student[clip].flatten(0, 1), teacher[clip].flatten(0, 1)  # [N, D], [N, E]
            for frames, start, end, column_end in tiles:
                queries, targets = slice(start, end), slice(start, column_end)
                delta = x[queries] @ x[targets].T
                delta -= y[queries] @ y[targets].T
                if below == "subtract":
                    delta = F.softshrink(delta, margin)
                else:
                    delta.masked_fill_(delta.abs() < margin, 0)
                slope = delta.sign().unflatten(0, (frames.stop - frames.start, -1))
                slope = slope.mul_(weights[frames, None, targets]).flatten(0, 1)
                # Right of the square on the diagonal every pair stands for its mirror image too.
                square = end - start
                each = delta.mul_(slope)
                total[clip] += each[:, :square].sum() + 2 * each[:, square:].sum()
                if gradient is not None:
                    out = gradient[clip].flatten(0, 1)
                    out[queries].addmm_(slope, x[targets])
                    out[end:column_end].addmm_(slope[:, square:].T, x[queries])
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(2))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_output[:, None, None, None] * gradient, None, None, None, None, None
