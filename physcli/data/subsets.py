"""A few of many things, evenly spaced: sets may be in order of scenario."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def thin(things: Sequence[T], most: int | None) -> list[T]:
    """At most so many of them, in order, beginning with the first; None for all."""
    if most is None or most >= len(things):
        return list(things)
    return [things[i * len(things) // most] for i in range(most)]


def spread(things: Sequence[T], most: int) -> list[T]:
    """At most so many of them, in order, the first and the last among them."""
    places = np.linspace(0, len(things) - 1, min(most, len(things))).round().astype(int)
    return [things[place] for place in places]
