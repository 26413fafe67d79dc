"""`data inspect`: what is found is counted, what cannot be used is named."""

from __future__ import annotations

import json
import shutil

import av
import cv2
import numpy as np
import pytest
from made_videos import GOLDEN, patches, stored

from physcli.tasks.inspect_data import REMARKS, inspect_data


def test_counts(simulated):
    found = inspect_data(simulated)
    assert (found.kind, found.problems) == ("simulated", ())
    assert (found.lengths, found.rates, found.sizes, found.codecs) == (
        {49: 40},
        {20.0: 40},
        {"64x64": 40},
        {"h264": 40},
    )
    assert [row[:4] for row in found.groups] == [
        ["test", "collide", 6, 3],
        ["test", "roll", 6, 3],
        ["train", "collide", 14, 7],
        ["train", "roll", 14, 7],
    ]
    assert dict(map(tuple, found.facts()))["usable"] == 40


def test_broken_files_and_wrong_lengths_are_named(simulated, tmp_path):
    shutil.copytree(simulated, tmp_path / "copy")
    rows = [json.loads(line) for line in (tmp_path / "copy" / "metadata.jsonl").read_text().splitlines()]
    rows[1]["num_frames"] = 50
    (tmp_path / "copy" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "copy" / rows[0]["file_name"]).write_bytes(b"")
    found = inspect_data(tmp_path / "copy")
    assert dict(found.problems) == {
        rows[0]["file_name"]: "is empty (0 bytes).",
        rows[1]["file_name"]: "has 49 frames where 50 are recorded",
    }
    assert found.as_dict()["num_usable"] == 38


@pytest.mark.parametrize("suffix", ["hdf5", "h5"])
def test_hdf5(tmp_path, suffix):
    h5py = pytest.importorskip("h5py")
    for name, image in (("a_drop", "_img"), ("b_drop", "_depth")):
        with h5py.File(tmp_path / f"{name}.{suffix}", "w") as file:
            for number in range(4):
                group = file.create_group(f"frames/{number:04d}")
                group[f"images/{image}"] = cv2.imencode(".png", np.zeros((8, 10, 3), np.uint8))[1].ravel()
                group["labels/target_contacting_zone"] = number == 2
    found = inspect_data(tmp_path)
    assert (found.lengths, found.rates, found.sizes) == ({4: 1}, {100.0: 1}, {"8x10": 1})
    assert found.problems == ((f"b_drop.{suffix}", "frame 0000: no image."),)


def test_what_is_out_of_the_ordinary(tmp_path):
    """Columns of their own; what is ordinary has no row."""
    for name in (
        "drop-upright",
        "drop-rotation-flag",
        "drop-wide-pixels",
        "drop-variable-rate",
        "patches-pq",
        "bit-flip",
    ):
        shutil.copy(GOLDEN / f"{name}.mp4", tmp_path)
    stored(tmp_path / "interlaced.mp4", patches(), 0.299, 0.114, interlaced=True)
    clear = np.zeros((6, 32, 32, 4), np.uint8)
    clear[..., 3] = 128
    with av.open(str(tmp_path / "clear.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=24)
        stream.width = stream.height = 32
        stream.pix_fmt = "argb"
        for picture in clear:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format="argb")))
        container.mux(stream.encode())
    found = inspect_data(tmp_path)
    rows = {row[0]: dict(zip(REMARKS, row[1:], strict=True)) for row in found.remarkable}
    said = {name: {column: text for column, text in row.items() if text != "–"} for name, row in rows.items()}
    assert said == {
        "drop-rotation-flag.mp4": {"turned": "90°"},
        "drop-wide-pixels.mp4": {"pixel aspect": "2"},
        "drop-variable-rate.mp4": {"frame rate": "varies: 17 of 33 frames"},
        "patches-pq.mp4": {"range": "HDR (PQ)"},
        "interlaced.mp4": {"lines": "interlaced"},
        "clear.mov": {"opacity": "alpha"},
    }
    assert [name for name, _ in found.problems] == ["bit-flip.mp4"]
    assert {row["file"] for row in found.as_dict()["remarks"]} == set(said)
