"""REPA: pull every student token towards the teacher's token at the same place (Yu et al. 2024)."""

from __future__ import annotations

from torch import Tensor

from physcli.methods.similarity import unit


def repa_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus the mean cosine of student and teacher tokens: 0 for unrelated features, −1 for the same directions.

    Eq. 2 of VideoREPA, with the cosine as its similarity, as in REPA's released code. Computed in float32 also for
    bf16 input.

    Args:
        student: Projected features [B, ..., D], for instance [B, F, H, W, D].
        teacher: Same shape; no gradient flows to it.

    Returns:
        [B], float32 (float64 where the student is float64).

    Raises:
        ValueError: unequal shapes, no axis between B and D, an empty axis, or integer features.
    """
    if student.shape != teacher.shape or student.ndim < 3 or 0 in student.shape:
        raise ValueError(
            "student and teacher must be [B, ..., D] of one shape with at least one token, "
            f"got {list(student.shape)} and {list(teacher.shape)}"
        )
    tokens = unit(student)
    cosines = (tokens * unit(teacher.detach(), tokens.dtype)).sum(dim=-1)  # [B, ...]
    return -cosines.flatten(1).mean(dim=1)
