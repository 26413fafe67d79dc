"""Captions of plain video folders, in every layout; what is wrong with them is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from physcli.data.captions import read_captions
from physcli.data.clips import read_dataset
from physcli.errors import DataError
from physcli.files import files_below


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "videos/c.mp4"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def captions(folder):
    """Name → caption, and the tables that they came from."""
    found = read_captions(folder, *listing(folder))
    rows = {path: row for path, row in found.rows.items() if row.prompt}
    tables = {row.table.relative_to(folder).as_posix() for row in rows.values() if row.table is not None}
    return {path.relative_to(folder).as_posix(): row.prompt for path, row in rows.items()}, tables


def listing(folder):
    files, _ = files_below(folder)
    videos = [path for path in files if path.suffix == ".mp4"]
    return videos, [path for path in files if path not in videos]


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
    found, tables = captions(folder)
    assert found == {"a.mp4": "one, two", "b.mp4": second}
    assert (not tables) == (case == "beside")


def test_the_first_layout_counts(folder):
    for name, text in {**CASES["beside"][0], **CASES["lists"][0], **CASES["csv"][0]}.items():
        (folder / name).write_text(text)
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "prompt": "first"}\n')
    assert captions(folder)[0] == {"a.mp4": "first", "b.mp4": "z"}  # a text beside a video that no table has


def test_videos_may_lie_in_their_own_folder(folder):
    (folder / "metadata.csv").write_text("video,caption\nc.mp4,there\n")
    assert captions(folder)[0] == {"videos/c.mp4": "there"}


def test_a_table_of_something_else_is_no_caption_file(folder):
    (folder / "scores.csv").write_text("video,score\na.mp4,3\n")
    assert captions(folder) == ({}, set())


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
    assert captions(folder) == ({"a.mp4": "cap a", "b.mp4": "cap b"}, {name})
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
        ("metadata.csv", "line 4 names a.mp4 again; line 2 counts"),
        ("b.mp4 ", "in metadata.csv, line 3, but the video is not there"),
    ]


def test_tables_that_are_not_read_are_named(folder):
    for name in ("one.csv", "two.csv"):
        (folder / name).write_text("video,caption\na.mp4,x\n")
    assert captions(folder) == ({"a.mp4": "x"}, {"one.csv"})
    assert problems(folder) == []  # two say the same
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


def make(root, files):
    """Empty videos and tables; `{root}` in a text is the folder's path."""
    root.mkdir(exist_ok=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        content = text if isinstance(text, bytes) else text.replace("{root}", str(root)).encode()
        (root / name).write_bytes(content)
    return root


def told(root):
    """Name → (caption, split) and what is wrong: `file: why`."""
    dataset = read_dataset(root)
    clips = {clip.path.relative_to(root).as_posix(): (clip.prompt, clip.split) for clip in dataset.clips}
    return clips, [f"{path.relative_to(root).as_posix()}: {message}" for path, message in dataset.problems]


A, B = ("cap a", "test"), ("cap b", "test")
BOTH = "video,caption\na.mp4,cap a\nb.mp4,cap b\n"
HERE = {"a.mp4": "", "b.mp4": ""}
LAYOUTS = {
    "OpenVid": (
        {"video/a.mp4": "", "video/b.mp4": "", "data/train/OpenVid-1M.csv": BOTH, "data/train/OpenVidHD.csv": BOTH},
        {"video/a.mp4": ("cap a", "train"), "video/b.mp4": ("cap b", "train")},
    ),
    "two tables": (
        {**HERE, "one.csv": "video,caption\na.mp4,cap a\n", "two.tsv": "video\tcaption\nb.mp4\tcap b\n"},
        {"a.mp4": A, "b.mp4": B},
    ),
    "a table of rows": (
        {**HERE, "clips.jsonl": '{"video": "a.mp4", "caption": "cap a"}\n'},
        {"a.mp4": A, "b.mp4": ("", "test")},
    ),
    "metadata in folders": (
        {
            **{"a.mp4": "", "x/a.mp4": "", "y/a.mp4": "", "metadata.csv": "file_name,text\na.mp4,cap a\n"},
            **{
                "x/metadata.csv": "file_name,text\na.mp4,cap b\n",
                "y/metadata.jsonl": '{"file_name": "a.mp4", "text": "c"}',
            },
        },
        {"a.mp4": A, "x/a.mp4": B, "y/a.mp4": ("c", "test")},
    ),
    "prompt.txt": (
        {**HERE, "prompt.txt": "cap a\ncap b\n\n", "videos.txt": "a.mp4\r\nb.mp4\r\n"},
        {"a.mp4": A, "b.mp4": B},
    ),
    "captions.txt": (
        {**HERE, "captions.txt": "\ncap b", "video.txt": "a.mp4\nb.mp4"},
        {"a.mp4": ("", "test"), "b.mp4": B},
    ),
    "splits in a table, captions beside": (
        {**HERE, "metadata.csv": "video,split\na.mp4,train\nb.mp4,dev\n", "a.TXT": "cap a", "b.txt": "cap b"},
        {"a.mp4": ("cap a", "train"), "b.mp4": B},
    ),
    "splits in one table, captions in another": (
        {**HERE, "metadata.csv": "video,split\na.mp4,train\nb.mp4,dev\n", "captions.csv": BOTH},
        {"a.mp4": ("cap a", "train"), "b.mp4": B},
    ),
    "whole paths": (
        {**HERE, "t.csv": BOTH.replace("a.mp4", "{root}/a.mp4").replace("b.mp4", "x/../b.mp4")},
        {"a.mp4": A, "b.mp4": B},
    ),
    "CRLF": ({**HERE, "t.csv": BOTH.replace("\n", "\r\n")}, {"a.mp4": A, "b.mp4": B}),
    "empty rows": ({**HERE, "t.csv": BOTH + ",\n\n  \n"}, {"a.mp4": A, "b.mp4": B}),
    "mark and semicolons": ({**HERE, "t.csv": "\ufeff" + BOTH.replace(",", ";")}, {"a.mp4": A, "b.mp4": B}),
    "capitals": ({**HERE, "t.csv": BOTH.replace("video,caption", "Video,CAPTION")}, {"a.mp4": A, "b.mp4": B}),
    "nan": ({**HERE, "t.csv": BOTH.replace("cap b", "nan")}, {"a.mp4": A, "b.mp4": ("", "test")}),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_folders_as_they_are_published(tmp_path, case, monkeypatch):
    files, right = LAYOUTS[case]
    make(tmp_path / "set", files)
    assert told(tmp_path / "set") == (right, [])
    monkeypatch.chdir(tmp_path)
    assert told(Path("set")) == (right, [])  # from where one is
    (tmp_path / "link").symlink_to("set")
    assert told(tmp_path / "link") == (right, [])


NAMED = {
    "contradiction": (
        {"one.csv": BOTH, "two.csv": "video,caption\nb.mp4,other\n"},
        "two.csv: line 2 says otherwise of b.mp4 than one.csv, line 3, which counts",
    ),
    "no captions": (
        {"metadata.csv": BOTH.replace("caption", "captions")},
        "metadata.csv: no captions: it has video, captions; expected one of prompt, caption, text; rename `captions` "
        "to `caption`",
    ),
    "a prompt by another name": (
        {"t.csv": BOTH.replace("caption", "text_prompt")},
        "t.csv: not read: it has video, text_prompt; expected one of prompt, caption, text; rename `text_prompt` to "
        "`prompt`",
    ),
    "a video by another name": (
        {"t.csv": BOTH.replace("video", "clip")},
        "t.csv: not read: it has clip, caption; expected one of file_name, video, path, video_path; rename `clip` to "
        "`video`",
    ),
    "head only": ({"metadata.csv": "video,caption\n"}, "metadata.csv: no row below the head"),
    "empty": ({"t.csv": " \n"}, "t.csv: not read: it is empty."),
    "UTF-16": ({"t.csv": BOTH.encode("utf-16")}, "t.csv: not read: cannot be read: it is in UTF-16. save it in UTF-8"),
    "no object": ({"t.jsonl": "[]\n"}, "t.jsonl: not read: line 1: no JSON object."),
    "packed": ({"metadata.csv.gz": b"\x1f\x8b"}, "metadata.csv.gz: not read: save it as .csv or .tsv or .jsonl"),
    "parquet": ({"train.parquet": b"PAR1"}, "train.parquet: not read: save it as .csv or .tsv or .jsonl"),
    "JSON": ({"captions.json": "{}"}, "captions.json: not read: captions are in .csv, .tsv or .jsonl tables"),
    "prompts alone": ({"prompt.txt": "x"}, "prompt.txt: not read: no videos.txt beside it"),
    "both lists": (
        {"prompt.txt": "cap a", "prompts.txt": "cap b", "videos.txt": "a.mp4"},
        "prompt.txt: not read: the captions are from videos.txt",
    ),
    "texts and a table": ({"t.csv": BOTH, "a.txt": "x", "b.txt": "x"}, "a.txt: not read (and 1 more): a table has"),
    "outside": (
        {"t.csv": "video,caption\n../o.mp4,x\n", "../o.mp4": ""},
        "../o.mp4: in t.csv, line 2, but it is outside the folder",
    ),
    "a picture": (
        {"t.csv": "video,caption\no.pdf,x\n", "o.pdf": ""},
        "o.pdf: in t.csv, line 2, but it is no video that",
    ),
    "many tables": ({f"p/{n}.csv": "x,y\n1,2\n" for n in range(5)}, "p: 5 files, such as 0.csv: not read: it has x, y"),
}


@pytest.mark.parametrize("case", NAMED)
def test_what_is_not_used_is_named(tmp_path, case):
    files, message = NAMED[case]
    make(tmp_path / "set", {**HERE, **files})
    [found] = [f"{path.relative_to(tmp_path / 'set')}: {why}" for path, why in read_dataset(tmp_path / "set").problems]
    assert found.startswith(message)


REFUSED = {
    "counts": ({"prompt.txt": "x\n", "videos.txt": "a.mp4\nb.mp4\n"}, "prompt.txt has 1 lines and videos.txt has 2"),
    "nameless caption": ({"prompt.txt": "x\ny", "videos.txt": "\na.mp4"}, "videos.txt, line 1 is empty"),
    "column twice": ({"metadata.csv": "video,caption,caption\na.mp4,x,y\n"}, "the column `caption` is there twice"),
    "the line of a row": (
        {"t.csv": 'video,caption\na.mp4,"two\nlines"\nb.mp4,x,y\n'},
        "line 4: 3 cells below a head of 2",
    ),
    "UTF-16": ({"metadata.csv": BOTH.encode("utf-16")}, "metadata.csv cannot be read: it is in UTF-16"),
    "UTF-16 unmarked": ({"metadata.csv": BOTH.encode("utf-16-le")}, "metadata.csv cannot be read: it is in UTF-16"),
    "Latin-1": ({"metadata.csv": BOTH.replace("cap b", "caf\xe9").encode("latin-1")}, "cannot be read: line 3"),
    "an empty name": ({"t.csv": "video,caption\n,x\n"}, "line 2: video is ''"),
    "another name of splits": (
        {"t.csv": "video,caption,subset\na.mp4,x,train\nb.mp4,y,Val\n"},
        "the column `subset` holds nothing but names of splits",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tables_that_mean_nothing_certain_are_refused(tmp_path, case):
    files, message = REFUSED[case]
    make(tmp_path / "set", {**HERE, **files})
    with pytest.raises(DataError, match=re.escape(message)):
        read_dataset(tmp_path / "set")


ONE = "video,caption\n{}.mp4,x\n"
SPLITS = {
    "capitals": {**HERE, "t.csv": "video,caption,Split\na.mp4,x,train\nb.mp4,y,validation\n"},
    "rows": {**HERE, "t.jsonl": '{"video": "a.mp4", "text": "x", "SPLIT": "Train"}\n{"video": "b.mp4", "text": "y"}\n'},
    "blank": {**HERE, "t.csv": "video,caption,split\na.mp4,x,train\nb.mp4,y, \n"},
    "tables": {**HERE, "train.csv": ONE.format("a"), "validation.csv": ONE.format("b")},
    "names of tables": {**HERE, "train_captions.csv": ONE.format("a"), "captions-val.csv": ONE.format("b")},
    "folders of tables": {
        **{"video/a.mp4": "", "video/b.mp4": ""},
        **{"data/train/x.csv": ONE.format("a"), "data/Test/x.csv": ONE.format("b")},
    },
    "folders": {"train_videos/a.mp4": "", "videos_test/b.mp4": ""},
    "in both": {**HERE, "train.csv": ONE.format("a"), "test.csv": ONE.format("b"), "x/train.csv": ONE.format("../b")},
    "evaluation": {"train/a.mp4": "", "Evaluation/b.mp4": ""},
    "a folder before a table": {"a.mp4": "", "val/b.mp4": "", "train.csv": ONE.format("a") + "val/b.mp4,y\n"},
}


@pytest.mark.parametrize("case", SPLITS)
def test_what_is_held_out_in_any_way_stays_held_out(tmp_path, case):
    dataset = read_dataset(make(tmp_path / "set", SPLITS[case]))
    assert {clip.name: clip.split for clip in dataset.clips} == {"a": "train", "b": "test"}
    assert dataset.has_splits


def test_a_word_in_a_name_alone_is_no_split(tmp_path):
    dataset = read_dataset(make(tmp_path / "set", {"crash_test/a.mp4": "", "other/b.mp4": ""}))
    assert not dataset.has_splits


def test_links(tmp_path):
    """As a hub's cache has them: files that lead elsewhere, two of them to one; and folders."""
    make(tmp_path / "blobs", HERE)
    root = make(tmp_path / "set", {"metadata.csv": BOTH + f"video/c.mp4,c\n{tmp_path}/blobs/b.mp4,d\n"})
    for name in ("a.mp4", "b.mp4"):
        (root / name).symlink_to(tmp_path / "blobs" / "a.mp4")
    make(tmp_path / "elsewhere", {"c.mp4": ""})
    (root / "video").symlink_to("../elsewhere")
    (root / "again").symlink_to("video")
    (root / "loop").symlink_to(".")
    (root / "gone.mp4").symlink_to("/nowhere/gone.mp4")
    clips, wrong = told_links(root)
    assert clips == {"a.mp4": "cap a", "b.mp4": "cap b", "again/c.mp4": "c"}
    assert wrong == [
        "gone.mp4: a link to /nowhere/gone.mp4, which is not there",
        f"loop: a link to {root}, whose files are there already",
        f"video: a link to {root}/again, whose files are there already",
        "b.mp4: in metadata.csv, line 5, but it is outside the folder: move it there, or link to it",
    ]


def told_links(root):
    dataset = read_dataset(root)
    clips = {clip.path.relative_to(root).as_posix(): clip.prompt for clip in dataset.clips}
    return clips, [f"{problem.path.name}: {problem.message}" for problem in dataset.problems]
