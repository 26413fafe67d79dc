"""From measured views to rows of metrics.json and items.jsonl, and to the official tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physcli.benchmarks.physics_iq import (
    IOUS,
    MOVING,
    NUMBERS,
    ORIGINAL,
    RATIOS,
    VERIFIED,
    View,
    original_parts,
    scenario_numbers,
    to_table,
    verified_terms,
)
from physcli.files import write_text
from physcli.rows import Metric, Row, make_row
from physcli.stats import bootstrap_interval

_TERMS = (*IOUS, "mse")
_OfRuns = Callable[[np.ndarray], np.ndarray]  # numbers of the drawn scenarios → a value for each run [R]


@dataclass(frozen=True)
class ScoredRun:
    """A model's videos of one sampling seed, or a control.

    Attributes:
        views: All views of the scored scenarios.
        moving_area: For each view, the share of pixels in the video's masks; None of a table.
        real_moving_area: The same of take 1.
        paths: For each view, the video; None of a control and of a table.
    """

    views: Sequence[View]
    moving_area: Sequence[float] | None = None
    real_moving_area: Sequence[float] | None = None
    paths: Sequence[Path] | None = None


def aggregate(runs: Sequence[ScoredRun], *, categories: dict[str, str], seed: int, **columns: Any) -> list[Row]:
    """A subject's rows: means over its runs, with `std`, the sample standard deviation over them, and 95 % intervals
    from a bootstrap over scenarios.

    Args:
        runs: One for each sampling seed, of the same scenarios.
        categories: Scenario → category; "" where there is none.
        seed: Of the bootstrap.
        columns: The other arguments of `make_row`.
    """
    rows = _rows_of(runs, seed=seed, group="all", **columns)
    named = {name for name in categories.values() if name}
    for category in sorted(named) if len(named) > 1 else ():
        rows += _rows_of([_of(run, category, categories) for run in runs], seed=seed, group=category, **columns)
    return rows


def _of(run: ScoredRun, category: str, categories: dict[str, str]) -> ScoredRun:
    kept = [number for number, view in enumerate(run.views) if categories.get(view.scenario) == category]
    mine, real = (None if a is None else [a[n] for n in kept] for a in (run.moving_area, run.real_moving_area))
    return ScoredRun([run.views[number] for number in kept], mine, real)


def _rows_of(runs: Sequence[ScoredRun], *, seed: int, **columns: Any) -> list[Row]:
    scenarios = list(dict.fromkeys(view.scenario for view in runs[0].views))
    place = {scenario: number for number, scenario in enumerate(scenarios)}
    numbers = np.stack([scenario_numbers(_ordered(run.views, place)) for run in runs])  # [R, S, 2, 4]
    terms = np.stack([_by_scenario(run, place, lambda v: list(verified_terms(v).values())) for run in runs])
    assert list(verified_terms(runs[0].views[0])) == list(_TERMS)

    # Each a mean over the drawn scenarios, for every run.
    found: list[tuple[Metric, _OfRuns, dict[str, float]]] = [
        (VERIFIED, _mean_of(terms.mean(axis=2)), {}),
        (ORIGINAL, lambda drawn: np.array([original_parts(one[drawn])["score"] for one in numbers]), {}),
    ]
    for index, (metric, ratio) in enumerate(zip(NUMBERS, RATIOS, strict=True)):
        takes = float(numbers[0, :, 1, index].mean())
        found.append((metric, _mean_of(numbers[:, :, 0, index]), {"takes": takes}))
        found.append((ratio, _mean_of(terms[:, :, index]), {}))
    areas = [run.moving_area for run in runs]
    if all(area is not None for area in areas):
        moving = np.stack([_by_scenario(run, place, None, run.moving_area)[:, 0] for run in runs])
        real = runs[0].real_moving_area
        more = {} if real is None else {"take_1": float(np.mean(real))}
        found.append((MOVING, _mean_of(moving), more))

    rows = []
    for metric, of_runs, more in found:
        values = of_runs(np.arange(len(scenarios)))
        ends = bootstrap_interval(_over_runs(of_runs), clusters=scenarios, seed=seed)
        row = make_row(metric, float(values.mean()), stderr=ends.stderr, n=len(runs[0].views), **columns)
        rows.append(
            row
            | {
                "low": _known(ends.low),
                "high": _known(ends.high),
                "std": float(values.std(ddof=1)) if len(runs) > 1 else None,
                "num_runs": len(runs),
                "num_clusters": len(scenarios),
                **more,
            }
        )
    return rows


def _mean_of(values: np.ndarray) -> _OfRuns:
    """Of each run's scenarios [R, S] the mean over those that are drawn."""
    return lambda drawn: values[:, drawn].mean(axis=1)


def _over_runs(of_runs: _OfRuns) -> Callable[[np.ndarray], float]:
    return lambda drawn: float(of_runs(drawn).mean())


def _ordered(views: Sequence[View], place: dict[str, int]) -> list[View]:
    return sorted(views, key=lambda view: place[view.scenario])


def _by_scenario(
    run: ScoredRun,
    place: dict[str, int],
    of_view: Callable[[View], list[float]] | None,
    values: Sequence[float] | None = None,
) -> np.ndarray:
    """Means over the views of each scenario [S, K]."""
    each = [[value] for value in values] if values is not None else [of_view(view) for view in run.views]  # type: ignore[misc]
    sums: list[list[list[float]]] = [[] for _ in place]
    for view, value in zip(run.views, each, strict=True):
        sums[place[view.scenario]].append(value)
    return np.array([np.mean(some, axis=0) for some in sums])


def item_rows(subject: str, runs: Sequence[ScoredRun], categories: dict[str, str]) -> list[dict[str, Any]]:
    """A row a run and view."""
    rows = []
    for number, run in enumerate(runs):
        for index, view in enumerate(run.views):
            terms, mine, takes = verified_terms(view), view.take_1.numbers(), view.takes.numbers()
            rows.append(
                {
                    "subject": subject,
                    "run": number,
                    "scenario": view.scenario,
                    "view": view.view,
                    "category": categories.get(view.scenario) or None,
                    "video": str(run.paths[index]) if run.paths is not None else None,
                    VERIFIED.name: float(np.mean(list(terms.values()))),
                    **{name: mine[name] for name in _TERMS},
                    **{f"{name}_takes": takes[name] for name in _TERMS},
                    **{f"{name}_ratio": terms[name] for name in _TERMS},
                    MOVING.name: None if run.moving_area is None else run.moving_area[index],
                    "real_moving_area": None if run.real_moving_area is None else run.real_moving_area[index],
                }
            )
    return rows


def write_table(path: Path, views: Sequence[View]) -> None:
    """The official CSV of one run.

    Raises:
        DataError: the file cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(to_table(views))
    write_text(path, text.getvalue())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
