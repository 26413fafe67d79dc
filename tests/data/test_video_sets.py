"""Sets of videos to score: every way they may lie, and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from physcli.data.video import write_video
from physcli.data.video_sets import add_rules, read_video_set
from physcli.errors import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "videos" / name, np.zeros((5, 32, 32, 3), np.uint8), 8)
    return tmp_path


def write_csv(path, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_what_sample_leaves(folder):
    rows = [
        {"video": "videos/a.mp4", "caption": "short", "prompt": "long", "seed": 7, "index": 1, "model": "m"},
        {"video": "videos/b.mp4", "prompt": "other", "seed": 8, "index": 0, "model": "m", "simulated_world": True},
    ]
    rows[0]["columns"] = {"states_of_matter": "solid_solid"}
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (folder, folder / "videos.jsonl"):
        found = read_video_set(source)
        assert found.subject == "m"
        one, other = found.items
        assert (one.path, one.caption, one.prompt) == (folder / "videos" / "a.mp4", "short", "long")
        assert (one.index, one.seed, one.simulated) == (1, 7, False)
        assert one.columns["states_of_matter"] == "solid_solid"
        assert (other.caption, other.prompt, other.simulated) == ("other", "other", True)


def test_an_official_list_names_another_folder(folder):
    caption = 'a "b",\n<script>alert(1)</script>'
    rows = [["caption", "videopath"], [caption, "examples/a.mp4"], [caption, "examples/b.mp4"], ["x", "gone/c.mp4"]]
    found = read_video_set(write_csv(folder / "sa_pc.csv", *rows))
    assert [item.path.name for item in found.items if item.path.is_file()] == ["a.mp4", "b.mp4"]
    assert [item.caption for item in found.items] == [caption, caption, "x"]
    assert [item.index for item in found.items] == [0, 1, 0]  # told apart, though their texts are the same
    assert found.subject == "sa_pc"


def beside(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((folder / "videos" / "a.mp4").read_bytes())


@pytest.mark.parametrize(
    ("names", "there"),
    [
        # Some are as the list says: the others are not replaced by what has their name.
        (["modelA/0001.mp4", "modelB/0001.mp4", "modelC/0002.mp4"], {"modelA/0001.mp4", "modelB/0001.mp4", "0002.mp4"}),
        (["modelC/0002.mp4", "modelD/0001.mp4"], {"modelC/0002.mp4", "0001.mp4"}),
        # None is, and two have one name: either could be meant.
        (["modelC/0002.mp4", "modelD/0002.mp4"], {"0002.mp4"}),
        (["/gone/modelC/0002.mp4", "modelD/0002.mp4"], {"videos/0002.mp4"}),
    ],
)
def test_an_absent_video_is_missing_whatever_has_its_name(folder, names, there):
    beside(folder, *there)
    found = read_video_set(write_csv(folder / "list.csv", ["caption", "videopath"], *(["x", name] for name in names)))
    assert {item.name for item in found.items if item.path.is_file()} == there & set(names)
    assert all(item.path == folder / item.name for item in found.items)


def test_columns_in_capitals_and_tabs(folder):
    (folder / "list.tsv").write_text(
        "\ufeffVideo\tCaption\tRule\tSeed\nvideos/a.mp4\tx\tit falls\t7\n", encoding="utf-8"
    )
    [item] = read_video_set(folder / "list.tsv").items
    assert (item.caption, item.rules, item.seed, item.path.is_file()) == ("x", ("it falls",), 7, True)


@pytest.mark.parametrize(
    ("head", "received", "fix"),
    [
        ("clip,caption", "line 2: no video; it has clip, caption.", "rename `clip` to `video`"),
        ("filename,caption", "line 2: no video; it has filename, caption.", "rename `filename` to `file_name`"),
        ("video,captions", "line 2: no prompt; it has captions.", "rename `captions` to `caption`"),
        ("video,text_prompt", "line 2: no prompt; it has text_prompt.", "rename `text_prompt` to `prompt`"),
        ("video,q7", "line 2: no prompt; it has q7.", "rename the column"),
    ],
)
def test_columns_by_other_names(folder, head, received, fix):
    path = folder / "list.csv"
    path.write_text(f"{head}\na.mp4,x\n")
    with pytest.raises(DataError) as error:
        read_video_set(path)
    assert (error.value.received, error.value.fix) == (f"{path}, {received}", fix)
    assert error.value.expected.startswith("one of ")


def test_seed_and_index_of_a_csv(folder):
    rows = [["caption", "videopath", "seed", "index"], ["x", "a.mp4", "7", "1"], ["x", "b.mp4", "8", "0"]]
    found = read_video_set(write_csv(folder / "list.csv", *rows, ["x", "c.mp4", "", "two"]))
    assert [(item.seed, item.index) for item in found.items] == [(7, 1), (8, 0), (None, 2)]


def test_files_of_one_name_in_several_folders(folder):
    beside(folder, "set/x/1.mp4", "set/y/1.mp4", "set/y/2.mp4")
    for path in (folder / "set").rglob("*.mp4"):
        path.with_suffix(".txt").write_text("a caption")
    found = read_video_set(folder / "set")
    assert [item.name for item in found.items] == ["x/1.mp4", "y/1.mp4", "2.mp4"]


def test_a_row_that_comes_twice_counts_once(folder):
    rows = [["caption", "videopath"], ["x", "a.mp4"], ["x", "a.mp4"], ["y", "a.mp4"]]
    found = read_video_set(write_csv(folder / "list.csv", *rows))
    assert [item.caption for item in found.items] == ["x", "y"]
    assert found.problems == ("line 3 repeats a.mp4",)


def test_a_folder_with_captions(folder):
    for name in "ab":
        (folder / "videos" / f"{name}.txt").write_text(f"caption of {name}")
    found = read_video_set(folder / "videos")
    assert [(item.name, item.caption) for item in found.items] == [
        ("a.mp4", "caption of a"),
        ("b.mp4", "caption of b"),
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["caption"], ["x"]], "line 2: no video; it has caption"),
        ([["videopath", "score"], ["a.mp4", "1"]], "line 2: no prompt; it has score"),
        ([["caption", "videopath"]], "lists no video"),
        ([["caption", "videopath"], ["", "a.mp4"]], "line 2: the prompt is empty"),
    ],
)
def test_lists_that_are_refused(folder, rows, said):
    with pytest.raises(DataError, match=said):
        read_video_set(write_csv(folder / "list.csv", *rows))


def test_folders_that_are_refused(folder, tmp_path_factory):
    with pytest.raises(DataError, match="2 of 2 videos of"):
        read_video_set(folder / "videos")
    with pytest.raises(DataError, match="holds no clip"):
        read_video_set(tmp_path_factory.mktemp("empty"))
    with pytest.raises(DataError, match="is not there"):
        read_video_set(folder / "not-there")
    (folder / "notes.md").write_text("")
    with pytest.raises(DataError, match="is no set of videos"):
        read_video_set(folder / "notes.md")


def test_a_list_of_rules_alone(folder):
    """VideoPhy-2's rule.csv: no caption; a video once, with all its rules."""
    rows = [["videopath", "rule"], ["a.mp4", "It falls."], ["b.mp4", "It floats."], ["a.mp4", "It stops."]]
    found = read_video_set(write_csv(folder / "rule.csv", *rows, ["a.mp4", "It falls."]))
    assert [(item.prompt, item.caption, item.rules) for item in found.items] == [
        ("a.mp4", "", ("It falls.", "It stops.")),
        ("b.mp4", "", ("It floats.",)),
    ]
    assert found.problems == ("line 5 repeats a.mp4",)


def test_rules_are_added_by_the_name_of_the_file(folder):
    videos = read_video_set(write_csv(folder / "list.csv", ["caption", "videopath"], ["x", "a.mp4"], ["y", "b.mp4"]))
    rows = [["videopath", "rule"], ["examples/b.mp4", "It floats."], ["c.mp4", "It stops."]]
    found = add_rules(videos, write_csv(folder / "rule.csv", *rows))
    assert [(item.caption, item.rules) for item in found.items] == [("x", ()), ("y", ("It floats.",))]
    assert found.problems == ("the rules of c.mp4 in rule.csv, for no such video is here",)


def test_rules_go_to_the_path_they_name(folder):
    names = ["modelA/1.mp4", "modelB/1.mp4", "modelB/2.mp4"]
    beside(folder, *names)
    videos = read_video_set(write_csv(folder / "list.csv", ["caption", "videopath"], *(["x", name] for name in names)))
    rules = [["modelA/1.mp4", "It falls."], ["modelB/1.mp4", "It rolls."], ["other/2.mp4", "It stops."]]
    found = add_rules(videos, write_csv(folder / "rule.csv", ["videopath", "rule"], *rules))
    assert [item.rules for item in found.items] == [("It falls.",), ("It rolls.",), ("It stops.",)]
    by_name = [["1.mp4", "It falls."], ["2.mp4", "It stops."]]
    found = add_rules(videos, write_csv(folder / "rule.csv", ["videopath", "rule"], *by_name))
    assert [item.rules for item in found.items] == [(), (), ("It stops.",)]
    assert found.problems == ("the rules of 1.mp4 in rule.csv, for several videos have that name",)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["videopath", "caption"], ["a.mp4", "x"]], "line 2: no rule; it has videopath, caption"),
        ([["videopath", "rule"], ["a.mp4", " "]], "line 2: the rule is ' '"),
        ([["videopath", "rule"], ["c.mp4", "It stops."]], "has no rule for any of the 1 videos"),
    ],
)
def test_rules_that_are_refused(folder, rows, said):
    videos = read_video_set(write_csv(folder / "list.csv", ["caption", "videopath"], ["x", "a.mp4"]))
    with pytest.raises(DataError, match=said):
        add_rules(videos, write_csv(folder / "rule.csv", *rows))
