"""Physics-IQ's scores of a table of metrics, against the released code's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from physcli.benchmarks.physics_iq_table import View, original_score, read_frames, read_views, views_in
from physcli.data.tables import read_csv
from physcli.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "physics_iq_tables"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
NAMES = {
    "v1_mse": ("video", "mse"),
    "variance_mse": ("takes", "mse"),
    "spatiotemporal_iou_v1": ("video", "spatiotemporal_iou"),
    "variance_spatiotemporal_iou": ("takes", "spatiotemporal_iou"),
    "spatial_iou_v1": ("video", "spatial_iou"),
    "variance_spatial": ("takes", "spatial_iou"),
    "weighted_spatial_iou_v1": ("video", "weighted_spatial_iou"),
    "variance_weighted_spatial": ("takes", "weighted_spatial_iou"),
}


def all_views(name):
    rows = list(read_csv(GOLDEN / name))
    views = views_in(list(rows[0][1]))
    return [one for number, row in rows for one in read_views(row, views, f"line {number}")]


@pytest.mark.parametrize("kind", ["official", "lossless_masks"])
def test_official_tables(kind):
    found, told = all_views(f"metrics_{kind}.csv"), EXPECTED[kind]
    assert [(one.scenario, one.view) for one in found] == [(v["scenario"], v["view"]) for v in told["views"]]
    for one, view in zip(found, told["views"], strict=True):
        assert one.verified == pytest.approx(view["verified_view_score"], rel=1e-12)
        for name, part in one.parts.items():
            key = "v1_mse_score" if name == "mse" else f"{name}_v1_score"
            assert part == pytest.approx(view["verified_components"][key], rel=1e-12)
    assert np.mean([one.verified for one in found]) == pytest.approx(told["table"]["final_score_view"], rel=1e-12)
    assert original_score(found) == pytest.approx(told["original_score_0_100"], abs=1e-9)


def view(given):
    sides = {"video": {}, "takes": {}}
    for name, (side, metric) in NAMES.items():
        value = given[name]
        sides[side][metric] = float(np.mean([round(frame, 4) for frame in value] if isinstance(value, list) else value))
    return View("one", "left", **sides)


@pytest.mark.parametrize("name", EXPECTED["edge"])
def test_tables_made_by_hand(name):
    told = EXPECTED["edge"][name]
    one = view(told["given"])
    assert one.verified == pytest.approx(told["verified"], rel=1e-9)
    if told["original_0_100"] is None:
        assert original_score([one]) is None
    else:
        assert original_score([one]) == pytest.approx(told["original_0_100"], abs=1e-9)


def test_lists_as_the_released_code_reads_them():
    for text, numbers in EXPECTED["parse"].items():
        assert read_frames(text) == numbers


def test_other_tables_have_no_views():
    assert views_in(["scenario", "v1_mse_perspective-left"]) == []
    assert views_in(["video", "sa", "pc"]) == []


def test_a_cell_without_a_number_is_named():
    rows = list(read_csv(GOLDEN / "metrics_official.csv"))
    row = rows[0][1] | {"spatial_iou_v1_perspective-right": "none"}
    with pytest.raises(DataError, match="line 2, spatial_iou_v1_perspective-right: 'none'"):
        read_views(row, views_in(list(row)), "line 2")
