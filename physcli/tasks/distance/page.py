"""The page of `physcli eval distance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from physcli import __version__
from physcli.files import write_text
from physcli.report.html import callout, details, page, section, table
from physcli.tasks.distance.result import DistanceResult

HOW_TO_READ = (
    "MMD²: unbiased, so that two sets of one kind have 0 on average and may be below it. Fréchet: squared; biased "
    "upwards, so that only sets of the same size compare, and its floor is that of the two real halves, not 0.",
    "Neither is FVD: the features are another network's, and numbers of different encoders, blocks, kernels, sizes and "
    "real clips do not compare.",
)


def write_page(result: DistanceResult, record: Mapping[str, Any], notes: Sequence[str]) -> None:
    """Write `report.html`.

    Raises:
        DataError: the file cannot be written.
    """
    from physcli.tasks.tables import distance, distance_controls

    tables = []
    for drawn in (distance(result, wide=True), distance_controls(result)):
        made = table(drawn.columns, drawn.rows, label=drawn.title, caption=drawn.caption, right=drawn.right)
        tables.append(section(drawn.title, made))
    facts = [[name, str(value)] for name, value in record["settings"].items()]
    first = result.first
    write_text(
        result.path / "report.html",
        page(
            f"Distance of {', '.join(result.models)} to real clips",
            f"{first['n']} videos a set, features of {first['encoder']}, block {first['block']}",
            callout("How to read it", [*HOW_TO_READ, *notes]),
            *tables,
            details("Settings", table(["", ""], facts, label="Settings")),
            footer=f"Written by physcli {__version__}, `physcli eval distance`. All of this page is inside this file.",
        ),
    )
