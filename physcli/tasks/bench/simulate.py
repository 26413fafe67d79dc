"""`physcli bench simulate`: what a simulated clip costs, by part."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from physcli.data.video import write_video
from physcli.progress import Reporter
from physcli.simulation.physics import compile_scene
from physcli.simulation.renderer import render
from physcli.simulation.suite import make_pair
from physcli.simulation.types import FRAME_RATE_HZ, SCENARIOS
from physcli.tasks.bench.timing import row
from physcli.tasks.simulate import write_arrays


def bench_simulate(
    *, num_pairs: int = 4, height: int = 64, width: int = 64, seed: int = 0, reporter: Reporter | None = None
) -> list[dict[str, Any]]:
    """Milliseconds a clip of one process, by part and scenario: physics (with rejected attempts), drawing, MP4, arrays.

    Args:
        num_pairs: Pairs of each scenario.
        height: Of the clips, in pixels.
        width: Of the clips, in pixels.
        seed: Of the clips.
        reporter: Receives progress.
    """
    reporter = reporter or Reporter()
    rows, totals = [], {"physics": 0.0, "draw": 0.0, "mp4": 0.0, "arrays": 0.0}
    count = 0
    make_pair(SCENARIOS[0], "laws", 10**6, seed=seed)  # imports and first-call costs are not a clip's
    with reporter.bar("Simulating", len(SCENARIOS) * num_pairs, "pair") as bar, tempfile.TemporaryDirectory() as folder:
        for scenario in SCENARIOS:
            parts = dict.fromkeys(totals, 0.0)
            for index in range(num_pairs):
                start = time.perf_counter()
                pair = make_pair(scenario, "laws", 10**6 + index, seed=seed)
                parts["physics"] += time.perf_counter() - start
                for sample in pair:
                    start = time.perf_counter()
                    footage = render(
                        sample.scene, compile_scene(sample.scene), sample.motion, height=height, width=width
                    )
                    parts["draw"] += time.perf_counter() - start
                    start = time.perf_counter()
                    write_video(Path(folder) / "clip.mp4", footage.rgb, FRAME_RATE_HZ)
                    parts["mp4"] += time.perf_counter() - start
                    start = time.perf_counter()
                    write_arrays(Path(folder) / "clip.npz", sample.motion, footage)
                    parts["arrays"] += time.perf_counter() - start
                bar.advance()
            count += 2 * num_pairs
            for part, seconds in parts.items():
                totals[part] += seconds
                value = 1000 * seconds / (2 * num_pairs)
                rows.append(
                    row("simulate", f"{height}x{width}", scenario, f"{part}_ms_per_clip", value, 2 * num_pairs, False)
                )
    for part, seconds in totals.items():
        value = 1000 * seconds / count
        rows.append(row("simulate", f"{height}x{width}", "all", f"{part}_ms_per_clip", value, count, False))
    rate = count / sum(totals.values())
    rows.append(row("simulate", f"{height}x{width}", "all", "clips_per_second_per_core", rate, count, True))
    return rows
