"""eval flickering: VBench's golden videos through the whole command, and what a still one gets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from physcli.tasks.eval import EvalSettings, evaluate

GOLDEN = Path(__file__).parents[1] / "golden" / "vbench"
TOLD = json.loads((GOLDEN / "temporal_flickering.json").read_text())


def test_golden_videos(tmp_path):
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = [(str(GOLDEN / case["video"]), Path(case["video"]).stem) for case in TOLD["per_video"]]
        csv.writer(file).writerows([("video", "caption"), *rows])
    result = evaluate(EvalSettings("flickering", str(tmp_path / "list.csv")), out=tmp_path / "run")
    for item, case in zip(result.items, TOLD["per_video"], strict=True):
        # Another decoder than the released code's: its colours may be a level off.
        assert item["temporal_flickering"] == pytest.approx(case["score"], abs=1e-3)
    by = {row["metric"]: row for row in result.rows}
    assert by["temporal_flickering"]["value"] == pytest.approx(TOLD["average"], abs=1e-3)
    still = next(item for item in result.items if item["caption"] == "still")
    assert (still["temporal_flickering"], still["dynamic_degree"], still["motion_px"]) == (1.0, False, 0.0)
    assert {"dynamic_degree", "motion_px", "missing/video"} <= by.keys()
