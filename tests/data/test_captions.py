"""Captions of plain video folders, in every layout; what is wrong with them is said."""

from __future__ import annotations

import json

import pytest

from physcli.data.captions import read_captions
from physcli.data.clips import read_dataset
from physcli.errors import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "videos/c.mp4"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def captions(folder):
    """Name → caption, and the name of the file they came from."""
    found = read_captions(folder, sorted(folder.rglob("*.mp4")))
    return {path.relative_to(folder).as_posix(): row["prompt"] for path, row in found.rows.items()}, found.source


CASES = {
    "jsonl": (
        {"metadata.jsonl": '{"file_name": "a.mp4", "prompt": "one, two"}\n\n{"video": "b.mp4", "text": "é"}\n'},
        "é",
    ),
    "csv": ({"metadata.csv": 'file_name,caption\na.mp4,"one, two"\nb.mp4,"say ""hi"""\n'}, 'say "hi"'),
    "bom": ({"metadata.csv": '\ufefffile_name,prompt\na.mp4,"one, two"\nb.mp4,x\n'}, "x"),
    "openvid": ({"OpenVid-1M.csv": 'video,caption,fps\na.mp4,"one, two",24\nb.mp4,"two\nlines",24\n'}, "two\nlines"),
    "lists": ({"prompts.txt": "one, two\ny\n", "videos.txt": "a.mp4\nb.mp4\n"}, "y"),
    "beside": ({"a.txt": "one, two\n", "b.txt": "z"}, "z"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layout(folder, case):
    files, second = CASES[case]
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    found, source = captions(folder)
    assert found == {"a.mp4": "one, two", "b.mp4": second}
    assert (source is None) == (case == "beside")


def test_the_first_layout_counts(folder):
    for name, text in {**CASES["beside"][0], **CASES["lists"][0], **CASES["csv"][0]}.items():
        (folder / name).write_text(text)
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "prompt": "first"}\n')
    assert captions(folder)[0] == {"a.mp4": "first"}


def test_videos_may_lie_in_their_own_folder(folder):
    (folder / "metadata.csv").write_text("video,caption\nc.mp4,there\n")
    assert captions(folder)[0] == {"videos/c.mp4": "there"}


def test_a_table_of_something_else_is_no_caption_file(folder):
    (folder / "scores.csv").write_text("video,score\na.mp4,3\n")
    assert captions(folder) == ({}, None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"prompts.txt": "x\n", "videos.txt": "a.mp4\nb.mp4\n"}, r"prompts\.txt has 1 lines and videos\.txt has 2"),
        ({"metadata.csv": "clip,caption\na.mp4,x\n"}, r"metadata\.csv, line 2: no file_name; it has clip, caption"),
        ({"metadata.jsonl": '{"file_name": "a.mp4", "prompt": 3}\n'}, r"line 1: prompt is 3"),
        ({"metadata.jsonl": "[1]\n"}, "line 1: not an object"),
        ({"metadata.jsonl": "{\n"}, "line 1: not valid JSON"),
        ({"metadata.csv": 'video,caption\na.mp4,"open\n'}, "unexpected end of data"),
    ],
)
def test_broken_tables_are_refused(folder, files, message):
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        captions(folder)


def test_rows_without_a_video_are_named_and_splits_are_kept(folder):
    rows = [{"video": "a.mp4", "caption": "x", "split": "train"}, {"video": "gone.mp4", "caption": "y"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = read_dataset(folder)
    assert [(clip.name, clip.prompt, clip.split) for clip in dataset.clips] == [
        ("a", "x", "train"),
        ("b", "", "test"),
        ("c", "", "test"),
    ]
    assert [(problem.path.name, problem.message) for problem in dataset.problems] == [
        ("gone.mp4", "in metadata.jsonl, line 2, but the video is not there")
    ]


def problems(folder):
    return [(problem.path.name, problem.message) for problem in read_dataset(folder).problems]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffvideo,caption\na.mp4,cap a\nb.mp4,cap b\n",
        "video, caption\na.mp4,cap a\nb.mp4,cap b\n",
        "video;caption\na.mp4;cap a\nb.mp4;cap b\n",
        "video\tcaption\tmore, words\na.mp4\tcap a\t\nb.mp4\tcap b\t\n",
    ],
    ids=["mark", "space in the head", "semicolons", "tabs"],
)
@pytest.mark.parametrize("name", ["metadata.csv", "OpenVid.csv"])
def test_tables_as_people_write_them(folder, text, name):
    (folder / name).write_text(text, encoding="utf-8")
    assert captions(folder) == ({"a.mp4": "cap a", "b.mp4": "cap b"}, folder / name)
    assert problems(folder) == []


@pytest.mark.parametrize("name", ["metadata.csv", "OpenVid.csv"])
def test_bare_commas_are_refused(folder, name):
    (folder / name).write_text("video,caption\na.mp4,a red ball, rolling, fast\nb.mp4,cap b\n")
    with pytest.raises(DataError, match="line 2: 4 cells below a head of 2"):
        read_dataset(folder)


def test_a_video_in_two_rows_has_the_first_caption(folder):
    (folder / "metadata.csv").write_text("video,caption\na.mp4,first\nb.mp4 ,cap b\na.mp4,second\n")
    assert captions(folder)[0]["a.mp4"] == "first"
    assert problems(folder) == [
        ("b.mp4 ", "in metadata.csv, line 3, but the video is not there"),
        ("metadata.csv", "line 4 names a.mp4 again; line 2 counts"),
    ]


def test_tables_that_are_not_read_are_named(folder):
    (folder / "one.csv").write_text("video,caption\na.mp4,x\n")
    (folder / "two.csv").write_text("video,caption\na.mp4,y\n")
    assert captions(folder) == ({}, None)
    assert problems(folder) == [
        (name, "not read: 2 tables have captions; call the one to use metadata.csv") for name in ("one.csv", "two.csv")
    ]
    (folder / "metadata.csv").write_text("video,caption\na.mp4,z\n")
    assert captions(folder)[0] == {"a.mp4": "z"}
    assert [message for _, message in problems(folder)] == ["not read: the captions are from metadata.csv"] * 2


@pytest.mark.parametrize(
    ("word", "split"), [("validation", "test"), ("Val", "test"), ("DEV", "test"), ("Train", "train")]
)
def test_splits_by_the_words_of_public_datasets(folder, word, split):
    (folder / "metadata.csv").write_text(f"video,caption,split\na.mp4,x,{word}\n")
    assert {clip.name: clip.split for clip in read_dataset(folder).clips}["a"] == split
    (folder / "metadata.csv").unlink()
    (folder / word).mkdir()
    (folder / "a.mp4").rename(folder / word / "a.mp4")
    assert {clip.name: clip.split for clip in read_dataset(folder).clips}["a"] == split


def test_an_unknown_split_is_refused(folder):
    (folder / "metadata.csv").write_text("video,caption,split\na.mp4,x,training set\n")
    with pytest.raises(DataError, match="line 2: the split is 'training set'"):
        read_dataset(folder)
