"""Pictures and the page of `physcli eval likephys`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physcli import __version__
from physcli.benchmarks.localisation import frames_of_latents
from physcli.files import write_text
from physcli.report.html import Content, callout, details, page, picture, section, table
from physcli.report.overlays import diverging, spotlight
from physcli.report.plots import contact_sheet, grouped_bars
from physcli.tasks.likephys.losses import DenoisingErrors
from physcli.tasks.likephys.result import UNTRAINED, ZERO, LikePhysResult
from physcli.tasks.likephys.rows import error_of_places
from physcli.tasks.likephys.scenes import Shown, ShownScene, violation_masks

_COLUMNS = ("possible", "impossible", "error, difference", "violation")
_ENLARGED = 160  # pixels of a picture's height at least


@dataclass(frozen=True)
class Case:
    """A pair of twins to be shown."""

    scene: ShownScene
    valid: Shown
    invalid: Shown
    row: Mapping[str, Any]  # of items.jsonl


def pick_cases(scenes: Sequence[ShownScene], items: Sequence[Mapping[str, Any]]) -> list[Case]:
    """Of every violation the pair whose localisation is the middle one: neither the best nor the worst."""
    by_name = {(scene.scene.scenario, scene.scene.name): scene for scene in scenes}
    cases = []
    for violation in sorted({item["violation"] for item in items}):
        known = [i for i in items if i["violation"] == violation and i["gain"] is not None]
        if known:
            row = sorted(known, key=lambda item: item["gain"])[len(known) // 2]
            scene = by_name[row["scenario"], row["scene"]]
            cases.append(Case(scene, scene.valid[0], scene.invalid[violation][0], row))
    return cases


def draw_localisation(
    folder: Path, subject: str, cases: Sequence[Case], errors: DenoisingErrors, weights: np.ndarray
) -> None:
    """`localisation-SUBJECT.png`: twins at the moment that shows most of the violation, the difference of their error
    maps, and its mask."""
    lines = []
    for case in cases:
        maps = errors.load(case.scene)
        possible, impossible = (error_of_places(maps[one.key], weights) for one in (case.valid, case.invalid))
        difference = impossible - possible
        masks = violation_masks(case.valid, case.invalid, difference.shape)  # type: ignore[arg-type]
        assert masks is not None
        region = masks[0]
        latent = int(region.sum(axis=(1, 2)).argmax())
        frame = frames_of_latents(len(case.invalid.view.frames), len(region))[latent][-1]
        shown = [one.view.read()[frame] for one in (case.valid, case.invalid)]
        heat = diverging(difference[latent], float(np.abs(difference).max()))
        height, width = shown[0].shape[:2]
        rows, columns = (
            np.arange(size) * cells // size for size, cells in zip((height, width), heat.shape, strict=False)
        )
        pictures = [*shown, heat[rows][:, columns], spotlight(shown[1], region[latent])]
        times = max(1, -(-_ENLARGED // height))
        frames = np.stack(pictures).repeat(times, axis=1).repeat(times, axis=2)
        row = case.row
        told = f"{row['violation']}, {row['scenario']}: AP {row['localisation_ap']:.2f}, "
        told += f"prevalence {row['prevalence']:.2f}"
        verdict = "misranked" if row["ppe"] == 1 else "ranked rightly" if row["ppe"] == 0 else "partly misranked"
        lines.append((f"{told}; {verdict}", frames))
    if lines:
        contact_sheet(folder / f"localisation-{_file_name(subject)}.png", rows=lines, columns=_COLUMNS)


def _file_name(subject: str) -> str:
    return re.sub(r"[^\w.-]+", "_", subject).strip("._") or "model"


def draw_ppe(result: LikePhysResult) -> None:
    """`ppe.png`: bars by violation, for each model beside its controls."""
    groups = [*result.groups, "all"]
    series = {}
    for subject in result.subjects:
        rows = [result.row(subject, "ppe", group) for group in groups]
        nothing = float("nan")
        series[subject] = [
            (row["value"], nothing if row["stderr"] is None else row["stderr"]) if row else (nothing, nothing)
            for row in rows
        ]
    grouped_bars(
        result.path / "ppe.png",
        title=f"Preference errors on {result.data}, by violation (± standard error; a coin gives 50)",
        groups=[*(group.replace("/", "/\n") for group in result.groups), "pooled"],
        series=series,
        controls=[name for name in result.subjects if name.endswith((UNTRAINED, ZERO))],
        ylabel="impossible preferred (%)",
    )


def write_page(result: LikePhysResult, record: Mapping[str, Any]) -> None:
    """Write `report.html`.

    Raises:
        DataError: the file cannot be written.
    """
    from physcli.tasks.tables import likephys, likephys_controls

    parts: list[Content] = [callout("How to read it", reading_notes(result))]
    for drawn in (likephys(result, wide=True), likephys_controls(result, wide=True)):
        cells = [[_text(cell) for cell in line] for line in drawn.rows]
        heads = [column.replace("\n", " ") for column in drawn.columns]
        made = table(heads, cells, label=drawn.title, caption=drawn.caption, right=drawn.right)
        parts.append(section(drawn.title, made))
    if (result.path / "ppe.png").is_file():
        alt = "preference errors by violation, of models and their controls"
        parts.append(section("By violation", picture((result.path / "ppe.png").read_bytes(), alt=alt)))
    for subject in result.models:
        drawn_maps = result.path / f"localisation-{_file_name(subject)}.png"
        if drawn_maps.is_file():
            parts.append(
                section(
                    f"Where {subject} sees it",
                    picture(drawn_maps.read_bytes(), alt="twins, difference of their errors, and the violation"),
                    lead="Of every violation the pair in the middle of the ranking by localisation, at the moment that "
                    "shows most of it. Red: the impossible twin is harder to denoise there; blue: easier.",
                )
            )
    parts.append(section("Time", _time_table(record)))
    facts = [[name, str(value)] for name, value in record["settings"].items()]
    facts += [[f"input: {name}", str(value)] for name, value in record["inputs"].items()]
    parts.append(details("Settings and inputs", table(["", ""], facts, label="Settings and inputs")))
    first = result.rows[0]
    subtitle = f"{first['num_scenes']} scenes of {result.data}, {first['num_levels']} noise levels"
    footer = f"Written by physcli {__version__}, `physcli eval likephys`. Everything on this page is inside this file."
    title = f"Which clips are likely to {', '.join(result.models)}"
    write_text(result.path / "report.html", page(title, subtitle, *parts, footer=footer))


def reading_notes(result: LikePhysResult) -> list[str]:
    """What the numbers do not say of themselves."""
    notes = [
        "PPE: the share of pairs in which the impossible clip has the smaller loss, or an equal one; lower is better.",
        f"A coin gives 50, but some violations are cheaper to denoise for any network: read a model beside "
        f"NAME{UNTRAINED} (the same network with random weights) and NAME{ZERO} (no network at all).",
    ]
    for model in result.models:
        for control in (model + UNTRAINED, model + ZERO):
            pair = result.row(model, "ppe"), result.row(control, "ppe")
            if pair[0] is not None and pair[1] is not None and pair[0]["value"] >= pair[1]["value"]:
                notes.append(f"{model} is no better than {control}: its preference is not its training's.")
    return notes


def _text(cell: Any) -> Content:
    return "–" if cell is None else cell


def _time_table(record: Mapping[str, Any]) -> Content:
    lines = [
        [name, clock["clips"], clock["pass_s"], clock["forwards_s"], clock["ratio"]]
        for name, clock in record["timing"].items()
    ]
    return table(
        ["", "clips computed", "pass, s", "its forward passes, s", "ratio"],
        lines,
        label="Time",
        caption="Of this run; clips whose errors were in the cache are not computed again. Latents are made before.",
        right=(1, 2, 3, 4),
    )
