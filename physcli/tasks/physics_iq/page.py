"""The page of `physcli eval physics-iq`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from physcli import __version__
from physcli.files import write_text
from physcli.report.html import Content, callout, details, page, section, table
from physcli.tasks.figures import number, score_texts
from physcli.tasks.physics_iq.result import PhysicsIQResult

HOW_TO_READ = (
    "Verified: of each scenario and view, the three IoUs with take 1 over those between the takes, and the error of "
    "pixels between the takes over the video's, each at most 1; their mean. Original: sums over the whole set, not cut "
    "at 1, so that one scenario can lift all others.",
    "Read a model beside the still video, which does nothing and is far from 0, and beside take 2, which is the real "
    "thing once more.",
)


def write_page(result: PhysicsIQResult, record: Mapping[str, Any], notes: Sequence[str]) -> None:
    """Write `report.html`.

    Raises:
        DataError: the file cannot be written.
    """
    from physcli.tasks.tables import physics_iq, physics_iq_terms

    parts: list[Content] = [callout("How to read it", [*HOW_TO_READ, *notes])]
    for drawn in (physics_iq(result, wide=True), physics_iq_terms(result)):
        cells = [["–" if cell is None else cell for cell in line] for line in drawn.rows]
        made = table(drawn.columns, cells, label=drawn.title, caption=drawn.caption, right=drawn.right)
        parts.append(section(drawn.title, made))
    if result.groups:
        parts.append(section("Verified score by category", _by_category(result)))
    parts.append(section("Scenarios", _by_scenario(result), lead="Verified score, the mean over views and seeds."))
    facts = [[name, str(value)] for name, value in record["settings"].items()]
    parts.append(details("Settings", table(["", ""], facts, label="Settings")))
    first = result.rows[0]
    subtitle = f"{first['num_scenarios']} scenarios, {first['num_frames']} frames"
    footer = f"Written by physcli {__version__}, `physcli eval physics-iq`. All of this page is inside this file."
    write_text(
        result.path / "report.html",
        page(f"Physics-IQ of {', '.join(result.models or result.subjects)}", subtitle, *parts, footer=footer),
    )


def _by_category(result: PhysicsIQResult) -> Content:
    lines: list[list[Content]] = []
    for subject in result.subjects:
        line: list[Content] = [subject]
        for category in result.groups:
            row = result.row(subject, "physics_iq_verified", category)
            line.append("–" if row is None else _value(row))
        lines.append(line)
    label = "Verified score by category, %"
    return table(["", *result.groups], lines, label=label, right=range(1, len(result.groups) + 1))


def _value(row: Mapping[str, Any]) -> str:
    value, spread = score_texts(row)
    return value.removesuffix(" %") + (f" ({spread})" if spread != "–" else "")


def _by_scenario(result: PhysicsIQResult) -> Content:
    scores: dict[str, dict[str, list[float]]] = {}
    for item in result.items:
        by_subject = scores.setdefault(item["scenario"].removesuffix(".mp4"), {})
        by_subject.setdefault(item["subject"], []).append(item["physics_iq_verified"])
    lines: list[list[Content]] = [
        [name, *(number(sum(some) / len(some), "rate") if (some := by.get(s)) else "–" for s in result.subjects)]
        for name, by in sorted(scores.items())
    ]
    return table(
        ["", *result.subjects],
        lines,
        label="Verified score by scenario, %",
        right=range(1, len(result.subjects) + 1),
    )
