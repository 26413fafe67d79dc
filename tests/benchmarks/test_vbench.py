"""VBench's totals and temporal flickering against their golden numbers and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from physcli.benchmarks.temporal_flickering import temporal_flickering
from physcli.benchmarks.vbench import VARIANTS, normalised, totals

GOLDEN = Path(__file__).parents[1] / "golden" / "vbench"
CONSTANTS = json.loads((GOLDEN / "constants.json").read_text())
FINAL = json.loads((GOLDEN / "final_score_examples.json").read_text())
FLICKERING = json.loads((GOLDEN / "temporal_flickering.json").read_text())


def in_files(raw):
    return {name.replace(" ", "_"): value for name, value in raw.items()}


def test_ranges_weights_and_groups():
    for name, told in in_files(CONSTANTS["dimensions"]).items():
        one = VARIANTS["vbench"].dimensions[name]
        assert (one.low, one.high, one.weight, one.group) == (told["min"], told["max"], told["weight"], told["group"])
    assert len(VARIANTS["vbench"].dimensions) == len(CONSTANTS["dimensions"]) == 16
    image = CONSTANTS["i2v"]
    for name, known_as in image["result_key_to_name"].items():
        one, told = VARIANTS["vbench-i2v"].dimensions[name], image["dimensions"][known_as]
        assert (one.low, one.high, one.weight, one.group) == (told["min"], told["max"], told["weight"], told["group"])
    assert len(VARIANTS["vbench-i2v"].dimensions) == len(image["dimensions"])


@pytest.mark.parametrize("example", FINAL["examples"])
def test_official_totals(example):
    raw = in_files(example["raw"])
    found = totals(raw, missing_as_zero=True)
    assert found == {name: pytest.approx(example[name], rel=1e-12) for name in ("quality", "semantic", "total")}
    for name, value in raw.items():
        expected = in_files(example["weighted_normalised"])[name]
        assert normalised(value, VARIANTS["vbench"].dimensions[name]) == pytest.approx(expected, rel=1e-12)


def test_a_missing_dimension_leaves_no_total():
    example = FINAL["examples"][3]
    raw = {name: value for name, value in in_files(example["raw"]).items() if name != "scene"}
    assert totals(raw) == {"quality": pytest.approx(example["quality"]), "semantic": None, "total": None}
    assert totals(raw, missing_as_zero=True)["total"] == pytest.approx(example["total"], rel=1e-12)
    assert totals({"Mechanics": 0.5}, "vbench-2.0") == {}


def test_image_to_video_totals():
    image = CONSTANTS["i2v"]["result_key_to_name"]
    example = FINAL["i2v_example"]
    found = totals({name: example["raw"][known_as] for name, known_as in image.items()}, "vbench-i2v")
    assert found == {name: pytest.approx(example[name], rel=1e-12) for name in ("i2v", "quality", "total")}


@pytest.mark.parametrize("case", FLICKERING["per_video"], ids=lambda case: case["video"])
def test_flickering(case):
    with np.load(GOLDEN / "frames_rgb.npz") as found:
        frames = found[Path(case["video"]).stem]
    assert len(frames) == case["frames"]
    assert temporal_flickering(frames) == pytest.approx(case["score"], abs=2e-7)


def test_flickering_by_hand():
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1] = 51  # 0 → 51 → 0
    assert temporal_flickering(frames) == pytest.approx(0.8)
    assert temporal_flickering(np.full((9, 4, 4, 3), 7, np.uint8)) == 1.0
    frames[:, 1] = 0  # half of the pixels
    assert temporal_flickering(frames) == pytest.approx(0.9)


@pytest.mark.parametrize("frames", [np.zeros((1, 4, 4, 3), np.uint8), np.zeros((3, 4, 4, 3), np.float32)])
def test_what_has_no_flickering(frames):
    with pytest.raises(ValueError, match="expected at least 2, of uint8"):
        temporal_flickering(frames)
