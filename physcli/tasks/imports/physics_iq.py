"""The official table of Physics-IQ's metrics: a scenario a row, each with three views.

A view of a scenario is an item, its scenario the prompt. Each has the Verified score, its four parts, and the raw
metrics; the original score is of the whole table. The table names no file.
"""

from __future__ import annotations

from collections.abc import Sequence

from physcli.benchmarks.physics_iq_table import (
    ORIGINAL,
    PARTS,
    RAW,
    VERIFIED,
    View,
    original_score,
    read_views,
    views_in,
)
from physcli.errors import DataError
from physcli.tasks.imports.base import Imported, Scored, Source

WHAT = "a table with `scenario`, `v1_mse_VIEW`, `variance_mse_VIEW` and so on"


def fits(source: Source) -> bool:
    return bool(views_in(source.columns))


def read(sources: Sequence[Source]) -> Imported:
    if len(sources) > 1:
        raise DataError(
            f"{len(sources)} tables of Physics-IQ.",
            expected="one a run",
            fix="import each on its own: they are runs of their own",
        )
    [source] = sources
    views = views_in(source.columns)
    found: dict[tuple[str, int], View] = {}
    for line, row in source.rows:
        for index, one in enumerate(read_views(row, views, f"{source.path}, line {line}")):
            if (one.scenario, index) in found:
                raise DataError(f"{source.path}, line {line}: {one.scenario} for a second time.", expected="each once")
            found[one.scenario, index] = one
    if not found:
        raise DataError(f"{source.path} has no row.", expected="a scenario a row")
    videos = [
        Scored(
            f"{one.view}_{one.scenario}",
            scenario,
            index=index,
            values={
                VERIFIED.name: one.verified,
                **{PARTS[name].name: part for name, part in one.parts.items()},
                **{name: one.video[name] for name in RAW},
            },
        )
        for (scenario, index), one in found.items()
    ]
    original = original_score(list(found.values()))
    return Imported(
        "physics-iq",
        videos,
        (VERIFIED, *PARTS.values(), *RAW.values()),
        notes=("A still video scores high here where little moves: read it beside that of one.",),
        extra=((ORIGINAL, original, len(found)),),
    )
