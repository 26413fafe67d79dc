"""VBench's dynamic degree against its golden numbers, and DIS in its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from physcli.benchmarks.dynamic_degree import MotionRule, is_dynamic, largest_motion, rule_for
from physcli.data.flow import dis_flow

GOLDEN = Path(__file__).parents[1] / "golden" / "vbench"
TABLES = json.loads((GOLDEN / "dynamic_degree.json").read_text())


@pytest.mark.parametrize("case", TABLES["cases"], ids=lambda case: case["name"])
def test_vbench_cases(case):
    rule = rule_for(case["total_frames"], case["height"], case["width"], case["fps"])
    assert rule == MotionRule(case["interval"], case["sampled_frames"], case["threshold"], case["count_needed"])
    assert is_dynamic(case["top5_scores"], rule) == case["dynamic"]
    # The stored flows are a few pairs of each case, those before and after it changes.
    with np.load(GOLDEN / "flows.npz") as flows:
        some = flows[case["name"]].transpose(0, 2, 3, 1)
        pairs = flows[f"{case['name']}_pairs"]
    np.testing.assert_allclose(largest_motion(some), np.array(case["top5_scores"])[pairs], rtol=1e-6)


@pytest.mark.parametrize("row", TABLES["rule_table"], ids=lambda row: f"{row['height']}-{row['frames']}-{row['fps']}")
def test_vbench_thresholds(row):
    rule = rule_for(row["frames"], row["height"], row["width"], row["fps"])
    assert rule == MotionRule(row["interval"], row["sampled"], row["threshold"], row["count_needed"])


@pytest.mark.parametrize("row", TABLES["decision_table"])
def test_vbench_decisions(row):
    rule = MotionRule(1, len(row["scores"]) + 1, row["threshold"], row["count_needed"])
    assert is_dynamic(row["scores"], rule) == row["dynamic"]


def test_twenty_frames_a_second_by_hand():
    assert rule_for(20, 256, 256, 20) == MotionRule(2, 10, 6.0, 2)


def sliding(step_px, num_frames=16, size=96):
    """A blurred noise texture that slides to the right by so many pixels a frame."""
    rng = np.random.default_rng(0)
    texture = np.kron(rng.uniform(40, 215, (size // 8, 4 * size // 8)), np.ones((8, 8)))
    frames = [texture[:, 2 * size - t * step_px :][:, :size] for t in range(num_frames)]
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("step_px", "dynamic"), [(0, False), (1, False), (4, True)])
def test_with_dis_flow(step_px, dynamic):
    frames = sliding(step_px)
    rule = rule_for(len(frames), *frames.shape[1:3], 8)
    assert rule.threshold_px == 2.25
    motion = largest_motion(dis_flow(frames[:: rule.interval]))
    assert is_dynamic(motion, rule) == dynamic
    assert np.median(motion) == pytest.approx(step_px, abs=0.3)


def test_odd_flows_are_refused():
    with pytest.raises(ValueError, match=r"flows are \[3, 2, 8, 8\]; expected \[pairs, H, W, 2\]"):
        largest_motion(np.zeros((3, 2, 8, 8)))
    with pytest.raises(ValueError, match="must be at least one"):
        largest_motion(np.zeros((3, 4, 4, 2)))
