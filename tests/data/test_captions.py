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
        ("gone.mp4", "in metadata.jsonl, but the video is not there")
    ]
