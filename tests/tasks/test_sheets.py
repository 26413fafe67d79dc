"""Videos of several runs on one sheet."""

from __future__ import annotations

import numpy as np
import pytest

from physcli.data.video import write_video
from physcli.tasks import sheets


@pytest.fixture
def drawn(monkeypatch):
    calls = []
    monkeypatch.setattr(sheets, "contact_sheet", lambda path, **given: calls.append(given))
    return calls


@pytest.fixture
def film(tmp_path):
    def write(name, shade, num_frames):
        write_video(tmp_path / name, np.full((num_frames, 32, 32, 3), shade, np.uint8), 8)
        return tmp_path / name

    return write


def test_an_item_a_line_a_run_a_column(tmp_path, drawn, film):
    rows = [
        [
            ("base: one", film("a.mp4", 40, 9)),
            ("new: one", film("b.mp4", 200, 5)),
            ("third: one", film("c.mp4", 90, 9)),
        ],
        [
            ("base: two", film("d.mp4", 60, 9)),
            ("new: two", tmp_path / "lost.mp4"),
            ("third: two", film("e.mp4", 10, 9)),
        ],
    ]
    sheets.draw_side_by_side(tmp_path / "sheet.png", rows)
    (given,) = drawn
    assert given["abreast"] == 3
    assert given["columns"] == [f"frame {n}" for n in range(5)]  # of the shortest
    assert [caption for caption, _ in given["rows"]] == [caption for row in rows for caption, _ in row]
    shades = [round(float(frames.mean()) / 10) for _, frames in given["rows"]]
    assert shades == [4, 20, 9, 6, 0, 1]


def test_many_items_are_thinned_and_none_draw_nothing(tmp_path, drawn, film):
    path = film("a.mp4", 40, 2)
    sheets.draw_side_by_side(tmp_path / "sheet.png", [[(str(n), path), (str(n), path)] for n in range(100)])
    assert len(drawn[0]["rows"]) == 64
    sheets.draw_side_by_side(tmp_path / "sheet.png", [[("x", tmp_path / "lost.mp4")]])
    assert len(drawn) == 1
