"""TSA: the student shall find each token again, in every frame, where the teacher finds it.

A token's cosines with all places of a frame, sharpened by a temperature, are a distribution over where it went. TSA
aligns these distributions for every token and frame; M-TSA does so only for the tokens that move.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from physcli.methods.similarity import unit

# Query rows taken at once. Measured with one CPU thread (no GPU), value and gradient: 128 to 512 alike at N = 512, 256
# to 1024 at N = 3600. There, with D = 768: 1.0 s (0.2 s for a fifth of the queries), autograd on whole tables 1.5 s.
TILE_ROWS = 256

Ties = Literal["paper", "positive"]


def tsa_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.1,
    queries: Tensor | None = None,
    own_frame: bool = True,
) -> Tensor:
    """Mean over queries and target frames of KL(P_teacher ‖ P_student) (TSA, Eqs. 6-9; with `queries` Eq. 13).

    P[i, f] = softmax over the H·W places of frame f of cos(token i, place) / temperature. Every token of a clip is a
    query, or those in `queries`; targets are never masked. The gradient in the cosines is the closed form of Eq. 10,
    (P_student − P_teacher) / temperature, with the 1 / (queries · frames) of the mean that the paper leaves out
    there. It is formed with the value, a few hundred queries at a time, so the N×N table is never held whole and
    nothing is computed for tokens outside the mask.

    Computed in float32 also for bf16 input.

    Args:
        student: Projected features [B, F, H, W, D] on the teacher's grid.
        teacher: [B, F, H, W, E]; no gradient flows to it. E need not be D.
        temperature: τ > 0.
        queries: Bool [B, F, H, W], for instance from `motion_saliency`; all tokens by default. Each clip's mean is
            over its own queries; a clip without any has loss 0 and no gradient.
        own_frame: Whether a query's own frame is among its targets. The paper's sums include it, and so the query
            itself; without it only the places in other frames are aligned.

    Returns:
        [B], float32 (float64 where the student is float64). Differentiable once.

    Raises:
        ValueError: shapes that do not fit, features or a mask of the wrong dtype, temperature ≤ 0, or a single
            frame without `own_frame`, which leaves no target.
    """
    if student.ndim != 5 or teacher.ndim != 5 or student.shape[:4] != teacher.shape[:4] or 0 in student.shape:
        raise ValueError(
            "student and teacher must be [B, F, H, W, D] and [B, F, H, W, E] with the same B, F, H and W, "
            f"none of them 0, got {list(student.shape)} and {list(teacher.shape)}"
        )
    _check_temperature(temperature)
    if queries is None:
        queries = torch.ones(student.shape[:4], dtype=torch.bool, device=student.device)
    elif queries.dtype != torch.bool or queries.shape != student.shape[:4]:
        raise ValueError(f"queries must be bool {list(student.shape[:4])}, got {queries.dtype} {list(queries.shape)}")
    if student.shape[1] == 1 and not own_frame:
        raise ValueError("features of one frame have no target frame without own_frame")
    with torch.autocast(student.device.type, enabled=False):
        tokens = unit(student.flatten(2, 3))  # [B, F, HW, D]
        targets = unit(teacher.detach().flatten(2, 3), tokens.dtype)
        mask = queries.flatten(1).to(tokens.device)
        return _TemperedAlignment.apply(tokens, targets, temperature, mask, own_frame)


class _TemperedAlignment(torch.autograd.Function):
    """`tsa_loss` of unit vectors [B, F, HW, D] and [B, F, HW, E], queries [B, F·HW]."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, temperature: float, queries: Tensor, own_frame: bool
    ) -> Tensor:
        num_frames, num_places = student.shape[1:3]
        total = student.new_zeros(len(student))
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        for clip in range(len(student)):
            x, y = student[clip].flatten(0, 1), teacher[clip].flatten(0, 1)  # [N, D], [N, E]
            wanted = queries[clip].nonzero().squeeze(1)  # [Q]
            num_terms = max(len(wanted), 1) * (num_frames if own_frame else num_frames - 1)
            for rows in wanted.split(TILE_ROWS):
                mine, theirs = (
                    (side[rows] @ side.T).div_(temperature).unflatten(1, (num_frames, num_places)).log_softmax(dim=2)
                    for side in (x, y)
                )  # [Q', F, HW]
                target = theirs.exp()
                divergence = theirs.sub_(mine).mul_(target).sum(dim=2)  # [Q', F]
                slope = mine.exp_().sub_(target)
                if not own_frame:
                    own = torch.arange(len(rows), device=rows.device), rows // num_places
                    divergence[own] = 0
                    slope[own] = 0
                total[clip] += divergence.sum() / num_terms
                if gradient is not None:
                    # A token is met as query and as target; unlike a Gram matrix's, this slope is not symmetric.
                    slope = slope.flatten(1).div_(temperature * num_terms)
                    out = gradient[clip].flatten(0, 1)
                    out.addmm_(slope.T, x[rows])
                    out.index_add_(0, rows, slope @ x)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_output[:, None, None, None] * gradient, None, None, None, None


@torch.no_grad()
def motion_saliency(
    frames: Tensor, *, tubelet: tuple[int, int, int], share: float = 0.2, ties: Ties = "paper"
) -> Tensor:
    """The tokens whose pixels change most, frame by frame (M-TSA, Eqs. 11-12).

    Pixels are cut into tubelets, one a token. A token's change is the sum of absolute differences between its
    tubelet and the one before it at the same place; the first frame takes the second's. Of each frame the n tokens
    of largest change are kept. The paper does not say how its k % of H·W are rounded: here down, and to at least 1.

    On a noise-free still background most changes are 0. Where fewer than n tokens change, the n-th largest change
    is 0 and Eq. 12's ≥ keeps the whole frame; where all frames are such, M-TSA has silently become TSA.

    Args:
        frames: Clean pixels [B, T, 3, H', W'], any number type and range. They must start at the pixel frame that
            the features' first frame starts at.
        tubelet: Frames, rows and columns of pixels a token, chosen so that the result is the token grid.
        share: Of the tokens of a frame, in (0, 1]; k / 100 of the paper.
        ties: "paper" keeps every token whose change is at least the n-th largest, so more than n where changes are
            equal. "positive" keeps only tokens that changed at all, and no more than n: of equal changes those that
            come first in reading order.

    Returns:
        Bool [B, F, H, W], the grid T, H', W' divided by the tubelet.

    Raises:
        ValueError: frames that are not [B, T, 3, H', W'], do not divide into tubelets, make fewer than two in time
            or hold NaN; a share outside (0, 1]; unknown `ties`.
    """
    if frames.ndim != 5 or frames.shape[2] != 3 or len(frames) == 0:
        raise ValueError(f"frames must be [B, T, 3, H, W], got {list(frames.shape)}")
    size = (frames.shape[1], *frames.shape[3:])
    if any(side < 1 for side in tubelet) or any(whole % side for whole, side in zip(size, tubelet, strict=True)):
        raise ValueError(f"{size[0]} frames of {size[1]}x{size[2]} pixels do not divide into tubelets of {tubelet}")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if ties not in get_args(Ties):
        raise ValueError(f'ties must be "paper" or "positive", got {ties!r}')
    num_frames, num_rows, num_columns = (whole // side for whole, side in zip(size, tubelet, strict=True))
    if num_frames < 2:
        raise ValueError(f"changes need at least two tubelets in time, got {size[0]} frames in tubelets of {tubelet}")

    # Clip by clip: 48 frames of 480×720 are 200 MB in float32.
    delta = torch.stack([_change(clip, tubelet) for clip in frames]).flatten(2)  # [B, F, HW]
    if not delta.isfinite().all():
        raise ValueError("frames hold NaN or infinite pixels")
    # 0.29 * 100 is 28.999999999999996 in floats.
    num_kept = max(math.floor(share * delta.shape[2] + 1e-6), 1)
    if ties == "paper":
        kept = delta >= delta.topk(num_kept, dim=2).values[..., -1:]
    else:
        largest = delta.sort(dim=2, descending=True, stable=True).indices[..., :num_kept]
        kept = torch.zeros_like(delta, dtype=torch.bool).scatter_(2, largest, True) & (delta > 0)
    return kept.unflatten(2, (num_rows, num_columns))


def _change(clip: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
    """Δ of Eq. 11: [T, 3, H', W'] → [F, H, W]. A sum, so its size grows with the tubelet's."""
    frames, rows, columns = tubelet
    wide = clip.to(torch.float64 if clip.dtype == torch.float64 else torch.float32)  # uint8 would wrap around
    change = (wide[frames:] - wide[:-frames]).abs_().sum(dim=1)  # [T - Pt, H', W']
    change = change.unflatten(0, (-1, frames)).unflatten(2, (-1, rows)).unflatten(4, (-1, columns)).sum(dim=(1, 3, 5))
    return torch.cat([change[:1], change])


@torch.no_grad()
def correspondence(features: Tensor, query: tuple[int, int, int], temperature: float = 0.1) -> Tensor:
    """Where one token is found in every frame: P of TSA's Eq. 8, to be looked at.

    Args:
        features: [B, F, H, W, D], any float dtype.
        query: Frame, row and column of the token, counted from 0.
        temperature: τ > 0.

    Returns:
        [B, F, H, W], float32 (float64 for float64 features); each frame sums to 1.

    Raises:
        ValueError: features that are not float [B, F, H, W, D], a query outside the grid, or temperature ≤ 0.
    """
    if features.ndim != 5:
        raise ValueError(f"features must be [B, F, H, W, D], got {list(features.shape)}")
    _check_temperature(temperature)
    if not all(0 <= place < side for place, side in zip(query, features.shape[1:4], strict=True)):
        raise ValueError(f"query {query} is outside the grid of {tuple(features.shape[1:4])}")
    tokens = unit(features)
    frame, row, column = query
    cosines = (tokens * tokens[:, frame, row, column, None, None, None]).sum(dim=-1)  # [B, F, H, W]
    return (cosines / temperature).flatten(2).softmax(dim=2).view_as(cosines)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
