"""VideoREPA's token relation distillation (TRD): the student's tokens shall relate to each other as the teacher's do.

Relations are cosines between all tokens of a clip, those inside a frame (spatial) and those across frames (temporal).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from physcli.methods.similarity import Below, relation_distance

Reading = Literal["released", "paper"]
Part = Literal["both", "spatial", "temporal"]


def trd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    margin: float = 0.1,
    reading: Reading = "released",
    below: Below = "subtract",
    part: Part = "both",
    rows: int | None = None,
) -> Tensor:
    """Mean absolute difference of the two tables of cosines, beyond a margin (VideoREPA, Eq. 5).

    Spatial is the mean over the f·(hw)² pairs inside a frame, a token with itself included; temporal the mean over
    the f·(f−1)·(hw)² pairs across frames. Eq. 5 ("paper") adds the two. It differs from the released code, which
    takes one mean over all pairs: (spatial + (f−1)·temporal) / f. Where the two parts are alike that is half of
    Eq. 5 for every f, and the spatial part counts 1/f in place of 1: 1/24 at the published size. The same weight in
    front of the loss therefore pulls about twice as hard with "paper".

    Computed in float32 also for bf16 input.

    Args:
        student: Projected features [B, F, H, W, D] on the teacher's grid.
        teacher: [B, F, H, W, E]; no gradient flows to it. E need not be D.
        margin: Differences of cosines up to this are forgiven, ≥ 0. VideoREPA: 0.1 for VideoMAEv2, 0.05 for V-JEPA,
            0 for VideoMAE and OmniMAE.
        reading: "released" or "paper"; they differ only for `part="both"`. The published numbers come from the
            released code.
        below: "subtract" takes the margin off larger differences too, as the released code does; "zero" leaves them
            whole, as the paper's appendix A says.
        part: Both parts, or one alone (Table 3 of the paper).
        rows: For `relation_distance`.

    Returns:
        [B], float32 (float64 where the student is float64). Differentiable once.

    Raises:
        ValueError: shapes that do not fit, an unknown option, a negative margin, or a temporal mean (`part="temporal"`,
            or both in the "paper" reading) of a single frame, which has no pairs: a zero would train nothing and
            hide it.
    """
    if student.ndim != 5 or teacher.ndim != 5 or student.shape[:4] != teacher.shape[:4] or 0 in student.shape:
        raise ValueError(
            "student and teacher must be [B, F, H, W, D] and [B, F, H, W, E] with the same B, F, H and W, "
            f"none of them 0, got {list(student.shape)} and {list(teacher.shape)}"
        )
    if reading not in get_args(Reading):
        raise ValueError(f'reading must be "released" or "paper", got {reading!r}')
    if part not in get_args(Part):
        raise ValueError(f'part must be "both", "spatial" or "temporal", got {part!r}')
    num_frames, num_places = student.shape[1], student.shape[2] * student.shape[3]
    if num_frames == 1 and (part == "temporal" or (part == "both" and reading == "paper")):
        raise ValueError("the temporal part compares tokens of different frames, got features of one frame")

    same_frame = torch.eye(num_frames, dtype=torch.float64)
    spatial = same_frame / (num_frames * num_places**2)
    temporal = (1 - same_frame) / (max(num_frames * (num_frames - 1), 1) * num_places**2)
    if part == "spatial":
        weights = spatial
    elif part == "temporal":
        weights = temporal
    elif reading == "paper":
        weights = spatial + temporal
    else:
        weights = torch.full_like(same_frame, 1 / (num_frames * num_places) ** 2)
    return relation_distance(
        student.flatten(2, 3), teacher.flatten(2, 3), weights, margin=margin, below=below, rows=rows
    )
