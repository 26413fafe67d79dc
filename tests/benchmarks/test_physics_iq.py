"""Physics-IQ's masks, numbers and scores, against those of the released code."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from physcli.benchmarks.physics_iq import (
    VIEWS,
    Clip,
    Comparison,
    View,
    blend_frames,
    compare_clips,
    from_table,
    motion_masks,
    original_parts,
    original_score,
    parse_list,
    quarter_size,
    scenario_numbers,
    small_frame,
    small_mask,
    to_table,
    verified_score,
    verified_terms,
)
from physcli.data.mask_video import through_mp4v
from physcli.data.tables import read_csv
from physcli.data.video import read_video
from physcli.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden"
FIRST, SECOND = GOLDEN / "physics_iq", GOLDEN / "physics_iq_verified"
EXPECTED = json.loads((FIRST / "expected.json").read_text())
VERIFIED = json.loads((SECOND / "expected.json").read_text())
MASKS = np.load(SECOND / "masks.npz")
SCENARIOS = ("fast", "slow")
VARIANTS = tuple(VERIFIED["variants"])
BLOCKS = ("official", "lossless_masks")


@pytest.fixture(scope="module")
def frames():
    return dict(np.load(SECOND / "frames.npz"))


def frames_of(frames, variant, scenario, view):
    takes = {"copy": "take-1", "twin": "take-2"}
    if variant in takes:
        return frames[f"real/{scenario}/{view}/{takes[variant]}"]
    return frames[f"{variant}/{scenario}/{view}"]


def masks_of(kind, variant, scenario, view):
    takes = {"copy": "take-1", "twin": "take-2", "take-1": "take-1", "take-2": "take-2"}
    name = f"real/{scenario}/{view}/{takes[variant]}" if variant in takes else f"{variant}/{scenario}/{view}"
    return np.unpackbits(MASKS[f"{kind}/{name}"], axis=-1)[..., :64] * np.uint8(255)


def clip_of(frames, masks):
    size = quarter_size(*frames.shape[1:3])
    return Clip(
        np.stack([small_mask(mask, size) for mask in masks]), np.stack([small_frame(frame, size) for frame in frames])
    )


def views_of(frames, variant, block):
    def clip(name, scenario, view):
        masks = masks_of("raw", name, scenario, view)
        if block == "official":
            masks = list(through_mp4v(masks, 8))
        return clip_of(frames_of(frames, name, scenario, view), masks)

    found = []
    for scenario in SCENARIOS:
        for view in VIEWS:
            one, other, mine = (clip(name, scenario, view) for name in ("copy", "twin", variant))
            takes = compare_clips(one, other)
            found.append(View(scenario, view, compare_clips(one, mine), takes, compare_clips(other, mine)))
    return found


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", np.load(FIRST / "masks_raw.npz").files)
def test_masks_of_files_are_those_of_the_released_code(name):
    number, _, _, view, _, scenario = name.removeprefix("gen:").split("_")
    video = FIRST / "real" / name.replace("video-masks", "testing-videos")
    if name.startswith("gen:"):
        video = FIRST / "generated" / f"{number}_{view}_{scenario}"
    expected = np.load(FIRST / "masks_raw.npz")[name]
    found = np.stack(list(motion_masks(read_video(video))))
    assert (found == expected).all()


def test_masks_of_exact_frames(frames):
    for variant in ("copy", "twin", "still", "late", "wrong", "vanish", "drift"):
        for scenario in SCENARIOS:
            for view in VIEWS:
                found = np.stack(list(motion_masks(frames_of(frames, variant, scenario, view))))
                assert (found == masks_of("raw", variant, scenario, view)).all(), (variant, scenario, view)


def test_masks_that_were_written_as_mp4v(frames):
    for scenario in SCENARIOS:
        for view in VIEWS:
            found = np.stack(list(through_mp4v(masks_of("raw", "wrong", scenario, view), 8)))
            assert ((found > 127) == (masks_of("roundtrip", "wrong", scenario, view) > 0)).all()
    raw, lossy = (np.load(FIRST / f"masks_{name}.npz") for name in ("raw", "mp4v_roundtrip"))
    for name in raw.files:
        assert (np.stack(list(through_mp4v(raw[name], 8))) == lossy[name]).all()


def test_masks_are_scaled_before_they_are_cut():
    quarter, lossy = (np.load(FIRST / f"masks_{name}.npz") for name in ("quarter_binary", "mp4v_roundtrip"))
    for name in quarter.files:
        found = np.stack([small_mask(mask if mask.ndim == 2 else mask[..., 0], (16, 16)) for mask in lossy[name]])
        assert (found == (quarter[name].reshape(len(found), 16, 16, -1)[..., 0] > 0)).all()


def test_a_background_that_is_updated_first_hides_seven_tenths():
    still = np.zeros((32, 32, 3), np.uint8)
    step = still.copy()
    step[8:24, 8:24] = 14  # the background is 4.2 by then, the difference from what is rounded 10: not above it
    assert not np.stack(list(motion_masks([still, step]))).any()
    step[8:24, 8:24] = 15
    assert np.stack(list(motion_masks([still, step])))[1].any()


# -- frame rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8, 16, 24])
def test_frames_are_blended_as_the_released_code_does(rate):
    golden = np.load(FIRST / "fps_changer.npz")
    source, expected = golden["source_30fps"], golden[f"to_{rate}fps"]
    found = list(blend_frames(iter(source), 31, rate))
    assert len(found) == len(expected)
    assert np.array_equal(np.stack(found), expected)


def test_too_few_frames_to_blend():
    with pytest.raises(ValueError, match="3 frames, 5 were promised"):
        list(blend_frames(np.zeros((3, 4, 4, 3), np.uint8), 5, 10))


# -- numbers and scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_of_the_verified_set(frames, variant, block):
    expected = VERIFIED["variants"][variant][block]
    views = views_of(frames, variant, block)
    for view in views:
        for key, value in expected.get("metrics", {}).get(f"{view.scenario}/{view.view}", {}).items():
            assert value_of(view, key) == pytest.approx(value, abs=1e-9), key
        terms = expected["views"][f"{view.scenario}/{view.view}"]
        mine = verified_terms(view)
        for name in ("spatial_iou", "weighted_spatial_iou", "spatiotemporal_iou"):
            assert mine[name] == pytest.approx(min(terms[f"{name}_v1_score"], 1.0), abs=1e-12)
        ratio = 1.0 if terms["v1_mse_score"] is None else terms["v1_mse_score"]  # no error at all: it is divided by
        assert mine["mse"] == pytest.approx(min(ratio, 1.0), abs=1e-12)
        assert np.mean(list(mine.values())) == pytest.approx(terms["final_arithmetic"], abs=1e-12)
    assert verified_score(views) == pytest.approx(expected["table"]["final_score_view"], abs=1e-12)
    assert 100 * original_score(views) == pytest.approx(expected["original_0_100"], abs=1e-9)
    parts = original_parts(scenario_numbers(views))
    assert parts["spatial_iou"] == pytest.approx(expected["table"]["score_spatial"], rel=1e-4)  # rounded elsewhere
    assert parts["mse"] == pytest.approx(expected["table"]["score_mse"], abs=1e-4)


def value_of(view, column):
    """A view's value in a column of the official table, without the perspective."""
    values = dict(zip(*to_table([view]), strict=True))
    value = values[f"{column}_{view.view}"]
    return json.loads(value) if isinstance(value, str) else value


@pytest.mark.parametrize(("block", "file"), [("official", "official"), ("lossless_masks", "lossless_masks")])
def test_scores_of_the_official_table(block, file):
    views = from_table(row for _, row in read_csv(FIRST / f"metrics_{file}.csv"))
    expected = EXPECTED[block]
    assert 100 * original_score(views) == pytest.approx(expected["original_score_0_100"], abs=1e-9)
    assert verified_score(views) == pytest.approx(expected["table"]["final_score_view"], abs=1e-12)
    for view, golden in zip(sorted_views(views), sorted_views(expected["views"]), strict=True):
        assert np.mean(list(verified_terms(view).values())) == pytest.approx(golden["verified_view_score"], abs=1e-12)


def sorted_views(views):
    def key(view):
        return (view.scenario, view.view) if isinstance(view, View) else (view["scenario"], view["view"])

    return sorted(views, key=key)


@pytest.mark.parametrize("number", range(len(EXPECTED["edge_tables"])))
def test_hand_made_tables(number):
    edge = EXPECTED["edge_tables"][number]
    views = [View("one", name, *comparisons(edge["input"])) for name in VIEWS]
    assert 100 * original_score(views) == pytest.approx(edge["original"], abs=1e-9)
    assert verified_score(views) == pytest.approx(edge["verified"], abs=1e-12)


@pytest.mark.parametrize("name", VERIFIED["edge"])
def test_degenerate_tables(name):
    edge = VERIFIED["edge"][name]
    views = [View("one", view, *comparisons(edge["given"])) for view in VIEWS]
    assert verified_score(views) == pytest.approx(edge["verified"], abs=1e-12)
    found = original_score(views)
    if edge["original_0_100"] is None:
        assert math.isnan(found)
    else:
        assert 100 * found == pytest.approx(edge["original_0_100"], abs=1e-9)


def comparisons(given):
    def listed(value):
        return tuple(value) if isinstance(value, list) else (value,)

    mine = Comparison(
        given["spatial_iou_v1"],
        given["weighted_spatial_iou_v1"],
        listed(given["spatiotemporal_iou_v1"]),
        listed(given["v1_mse"]),
    )
    takes = Comparison(
        given["variance_spatial"],
        given["variance_weighted_spatial"],
        listed(given["variance_spatiotemporal_iou"]),
        listed(given["variance_mse"]),
    )
    return mine, takes


def test_other_sizes_are_refused():
    one = Clip(np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4, 3), np.uint8))
    other = Clip(np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) and \(3, 4, 4\); expected one size and length"):
        compare_clips(one, other)


# -- the official table ----------------------------------------------------------------------------------------------


def test_the_table_is_written_as_it_is_read(frames):
    path = FIRST / "metrics_official.csv"
    written = to_table(from_table(row for _, row in read_csv(path)))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(written)
    assert text.getvalue() == path.read_text().replace("\r\n", "\n")


def test_lists_of_the_table():
    assert parse_list("[1.0, -2.5E-1]") == (1.0, -0.25) == tuple(VERIFIED["parse"]["[1.0, -2.5E-1]"])
    assert parse_list("[np.float32(0.5), np.float64(1e-05)]") == (0.5, 1e-05)
    for text in ("[0.12345, nan, 1e-05]", "[inf, 0.5]"):  # the released code drops what is no number
        assert text in VERIFIED["parse"]
        with pytest.raises(ValueError, match="is no finite number"):
            parse_list(text)
    for text in ("[]", "0.5", ""):
        with pytest.raises(ValueError, match="is no list of numbers"):
            parse_list(text)


def test_what_is_wrong_with_a_table():
    row = next(row for _, row in read_csv(FIRST / "metrics_official.csv"))
    with pytest.raises(DataError, match=r"column `v1_mse_perspective-left`: 'nan' is no finite number"):
        from_table([row | {"v1_mse_perspective-left": "[0.1, nan]"}])
    with pytest.raises(DataError, match="No column `scenario`"):
        from_table([{"video": "a"}])
    with pytest.raises(DataError, match="The table has lists of 2, 8 frames"):
        from_table([row | {"v1_mse_perspective-left": "[0.1, 0.2]"}])
    without = {name: value for name, value in row.items() if "v2" not in name}
    assert from_table([without])[0].take_2 is None
