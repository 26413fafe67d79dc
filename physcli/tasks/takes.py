"""`physcli data simulate --takes 2`: the test clips filmed twice from three sides, in Physics-IQ's own layout.

    OUT/physics-iq-benchmark/split-videos/testing-videos/{20,30}FPS/…   five seconds, from just after the first frame on
    OUT/physics-iq-benchmark/switch-frames/….png                        the first frame, for image-to-video
    OUT/physics-iq-benchmark/descriptions.csv                           prompts, scenarios, names of generated videos
    OUT/physics-iq-benchmark/takes.jsonl                                of every video: its clip, start, light, camera

Take 1 from the centre is the clip itself, going on. No list of the simulated set names these files, so that no probe or
training reads them; nothing of training clips is filmed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from physcli.benchmarks.physics_iq import DURATION_S, SOURCE_RATE_HZ, VIEWS
from physcli.data.physics_iq import generated_name, switch_frame_path, testing_path
from physcli.data.video import write_video
from physcli.errors import UsageError
from physcli.files import write_bytes, write_text
from physcli.simulation.physics import compile_scene
from physcli.simulation.renderer import render
from physcli.simulation.suite import Sample
from physcli.simulation.takes import FILM_RATE_HZ, SIDES_DEG, Take, camera_again, first_take, second_take, turned
from physcli.simulation.types import FRAME_RATE_HZ
from physcli.tasks.run_dir import write_jsonl

TAKES_FOLDER = "physics-iq-benchmark"
TAKES_LIST, DESCRIPTIONS = "takes.jsonl", "descriptions.csv"
# The clips' own rate, and the one from which videos of other rates are compared.
RATES_HZ = (FRAME_RATE_HZ, SOURCE_RATE_HZ)
# At 64 pixels half of all views have no mask of motion at all, at 128 a fifth, at 256 none.
MIN_SIZE = 256
_MOST_SCENES = 9999 // (2 * len(VIEWS))  # numbers have four digits
_COLUMNS = ("scenario", "description", "category", "generated_video_name", "first_frame")


def check_takes(takes: int, *, height: int, width: int, num_scenes: int) -> None:
    """Raises UsageError for takes that cannot be made."""
    if takes not in (1, 2):
        raise UsageError(f"--takes {takes}.", expected="1, or 2: Physics-IQ compares one take with another")
    if takes == 1:
        return
    if min(height, width) < MIN_SIZE:
        raise UsageError(
            f"--takes 2 with --size {height}x{width}.",
            expected=f"at least {MIN_SIZE}x{MIN_SIZE}: in smaller pictures much of what moves leaves no mask",
            fix=f"leave out --size, or --size {MIN_SIZE}x{MIN_SIZE}",
        )
    if num_scenes > _MOST_SCENES:
        raise UsageError(
            f"--takes 2 with {num_scenes} test clips.",
            expected=f"at most {_MOST_SCENES}: Physics-IQ numbers its videos with four digits, six of each",
        )


def film_takes(
    sample: Sample, number: int, num_scenes: int, root: Path, *, height: int, width: int, seed: int
) -> list[dict[str, Any]]:
    """Film and write both takes of a test clip; a row for each take and view.

    Args:
        sample: The clip.
        number: Of the clip among all that are filmed, from 0.
        num_scenes: How many those are.
        root: The simulated set.
        height: Of a picture, in pixels.
        width: Of a picture, in pixels.
        seed: Of the whole set.
    """
    one = first_take(sample, duration_s=DURATION_S)
    rows = []
    for take, made in enumerate((one, second_take(sample, one, seed=seed)), start=1):
        for place, (view, angle) in enumerate(zip(VIEWS, SIDES_DEG, strict=True)):
            camera = turned(made.scene.camera, angle)
            if take == 2:
                camera = camera_again(camera, sample, view, seed=seed)
            row = {
                "number": f"{(take - 1) * len(VIEWS) * num_scenes + len(VIEWS) * number + place + 1:04d}",
                "take": take,
                "view": view,
                "clip": sample.name,
                "scenario": sample.scene.scenario,
                "prompt": sample.prompt,
                "label": made.motion.label,
                "draws": made.draws,
                "camera": asdict(camera),
                "light": asdict(made.scene.light),
                "launch": made.scene.params["launch"],
            }
            seen = replace(made, scene=replace(made.scene, camera=camera))
            rows.append(row | {"files": _write(row, seen, root, height=height, width=width)})
    return rows


def _write(row: Mapping[str, Any], seen: Take, root: Path, *, height: int, width: int) -> list[str]:
    """Draw and write one video, at all rates, and of the first take its first frame; their names within the set."""
    steps = {rate: FILM_RATE_HZ // rate for rate in RATES_HZ}
    moments = sorted({moment for step in steps.values() for moment in range(0, len(seen.motion.qpos), step)})
    scene = seen.scene
    pictures = render(scene, compile_scene(scene), seen.motion, height=height, width=width, frames=moments).rgb
    number, view, scenario = row["number"], row["view"], _scenario_name(row["clip"])
    names = []
    for rate, step in steps.items():
        path = TAKES_FOLDER / testing_path(number, rate, view, row["take"], scenario)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shown = [index for index, moment in enumerate(moments) if moment and moment % step == 0]
        write_video(root / path, pictures[shown], rate)
        names.append(path.as_posix())
    if row["take"] == 1:
        path = TAKES_FOLDER / switch_frame_path(number, view, scenario, ".png")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(root / path, cv2.imencode(".png", np.ascontiguousarray(pictures[0][..., ::-1]))[1].tobytes())
        names.append(path.as_posix())
    return names


def write_lists(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `takes.jsonl` and `descriptions.csv`.

    Args:
        root: The simulated set.
        rows: All of `film_takes`, in any order.
    """
    ordered = sorted(rows, key=lambda row: row["number"])
    lines: list[Sequence[str]] = [_COLUMNS]
    for row in ordered:
        if row["take"] == 1:
            number, view, scenario = row["number"], row["view"], _scenario_name(row["clip"])
            first_frame = switch_frame_path(number, view, scenario, ".png").as_posix()
            name = generated_name(number, view, scenario)
            filmed = f"{number}_{view}_take-1_{scenario}"
            lines.append((filmed, row["prompt"], row["scenario"], name, first_frame))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text(root / TAKES_FOLDER / DESCRIPTIONS, text.getvalue())
    write_jsonl(root / TAKES_FOLDER / TAKES_LIST, ordered)


def _scenario_name(clip: str) -> str:
    return f"trimmed-{clip.replace('_', '-')}.mp4"
