"""A method with a teacher in one file, as anyone might add it: see tests/tasks/test_added_method.py."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor

from physcli.methods.settings import Alignment


class NearestPlace(Alignment):
    """`sharpness`: how much closer neighbours count more."""

    loss = f"{__name__}:nearest_place_loss"

    name: Literal["nearest-place"]
    sharpness: PositiveFloat = 2.0


def nearest_place_loss(student: Tensor, teacher: Tensor, *, sharpness: float) -> Tensor:
    """Mean squared difference of the norms of tokens at the same place, [B]."""
    difference = student.norm(dim=-1) - teacher.norm(dim=-1)
    return (sharpness * difference.square()).flatten(1).mean(dim=1)
