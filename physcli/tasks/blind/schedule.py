"""Which rater sees which pairs of videos, in which order and on which side.

* Raters come in twos who see the same pairs with sides exchanged: over two raters every pair has been shown both ways.
* Each rater sees, of every pair of runs, either run on the left half of the time, or one time more.
* Where a rater sees only some of all pairs, the twos take turns through one shuffled list, so that every pair is seen
  as often as any other, or once (by two raters) more.
* Repeats, with sides exchanged, come from the first half of what a rater sees and stand after the middle.
* Checks are strewn evenly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from physcli.hashing import seed_from

Kind = Literal["pair", "repeat", "check"]


@dataclass(frozen=True)
class Showing:
    """Two videos beside each other.

    Attributes:
        kind: repeat: once more, with sides exchanged. check: a video and the same one broken.
        number: Of the pair (in `all_pairs`), or of the check.
        swapped: The pair's second run, or the check's broken video, is on the left.
    """

    kind: Kind
    number: int
    swapped: bool


@dataclass(frozen=True)
class Pair:
    """An item's videos by two runs, `first` < `second`."""

    item: int
    first: int
    second: int


def all_pairs(num_items: int, num_runs: int, seed: int) -> list[Pair]:
    """Every item in every pair of runs, shuffled; pairs of runs in turn, and an item's own far apart."""
    order = np.random.default_rng(seed_from("blind pairs", seed)).permutation(num_items)
    matches = list(itertools.combinations(range(num_runs), 2))
    return [
        Pair(int(order[(place + number * num_items // len(matches)) % num_items]), first, second)
        for place in range(num_items)
        for number, (first, second) in enumerate(matches)
    ]


def schedule(
    pairs: Sequence[Pair], rater: int, *, per_rater: int, repeat_share: float, num_checks: int, seed: int
) -> list[Showing]:
    """What one rater sees, in order.

    Args:
        pairs: All pairs, as `all_pairs` gives them.
        rater: From 0.
        per_rater: Pairs a rater sees, without repeats and checks.
        repeat_share: Of these, how many come again; one at least unless it is 0.
        num_checks: Checks, each shown once.
        seed: Of the study.
    """
    two, turned = divmod(rater, 2)
    numbers = [(two * per_rater + place) % len(pairs) for place in range(per_rater)]
    sides = _sides(pairs, numbers, np.random.default_rng(seed_from("blind sides", seed, two)))
    rng = np.random.default_rng(seed_from("blind order", seed, rater))
    shown = [Showing("pair", number, sides[number] != bool(turned)) for number in rng.permutation(numbers).tolist()]
    half = math.ceil(len(shown) / 2)
    count = min(half, max(1, round(repeat_share * len(shown)))) if repeat_share else 0
    again = [shown[place] for place in rng.permutation(half)[:count]]
    late = _strewn(shown[half:], [Showing("repeat", s.number, not s.swapped) for s in again], rng)
    checks = [
        Showing("check", int(number), bool((place + rater) % 2))
        for place, number in enumerate(rng.permutation(num_checks))
    ]
    return _strewn([*shown[:half], *late], checks, rng)


def _sides(pairs: Sequence[Pair], numbers: Sequence[int], rng: np.random.Generator) -> dict[int, bool]:
    """Half of each pair of runs exchanged; the odd ones in turn, so that they do not add up."""
    by_match: dict[tuple[int, int], list[int]] = {}
    for number in numbers:
        by_match.setdefault((pairs[number].first, pairs[number].second), []).append(number)
    sides: dict[int, bool] = {}
    more = bool(rng.integers(2))
    for match in sorted(by_match):
        inside = by_match[match]
        exchanged = len(inside) // 2 + (more and len(inside) % 2)
        more = more != bool(len(inside) % 2)
        sides |= {inside[at]: place < exchanged for place, at in enumerate(rng.permutation(len(inside)))}
    return sides


def _strewn(shown: Sequence[Showing], among: Sequence[Showing], rng: np.random.Generator) -> list[Showing]:
    """`among` put into `shown`, one in each of as many equal stretches, in random places of these."""
    result = list(shown)
    for place in reversed(range(len(among))):
        low, high = (len(shown) * end // len(among) for end in (place, place + 1))
        result.insert(int(rng.integers(low, high + 1)), among[place])
    return result
