"""Files are written whole or not at all; JSON that cannot be read is refused in words."""

from __future__ import annotations

import os

import pytest
import torch

from physcli.errors import DataError, FileChanged, ModelError
from physcli.files import (
    read_json,
    read_json_object,
    read_tensors,
    refuse_changed,
    replacing,
    stamp,
    write_bytes,
    write_tensors,
    write_text,
)


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(error):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    for error in (OSError, ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_nothing_either(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_bytes(tmp_path / "folder", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert not any((tmp_path / "folder").iterdir())


def test_the_temporary_file_lies_beside_and_is_hidden(tmp_path):
    with replacing(tmp_path / "a.png", suffix=".part.png") as temporary:
        assert temporary == tmp_path / f".a.png.{os.getpid()}.part.png"
        temporary.write_text("é", encoding="utf-8")
    assert (tmp_path / "a.png").read_text(encoding="utf-8") == "é"


def test_tensors_go_round(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    weight = torch.arange(6.0, requires_grad=True).view(2, 3).T
    write_tensors(path, {"weight": weight}, {"note": "x"})
    tensors, metadata = read_tensors(path)
    assert torch.equal(tensors["weight"], weight)
    assert metadata == {"format": "pt", "note": "x"}
    with pytest.raises(ValueError, match="no file"):
        read_tensors(tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a\.json cannot be read: No such file"),
        (b"{\n", r"a\.json is not valid JSON \(line 2: "),
        (b"\xff", r"a\.json is not valid JSON \('utf-8' codec"),
        (b"[1]", r"a\.json holds a list"),
    ],
)
def test_unreadable_json(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_json_object(path, error=ModelError, fix="download it again")


def test_readable_json(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, '[{"é": 1}]')
    assert read_json(path) == [{"é": 1}]
    with pytest.raises(DataError, match="holds a list"):
        read_json_object(path)


def test_the_same_tensors_are_the_same_file(tmp_path):
    """safetensors writes its metadata in another order in every process, and for every file."""
    metadata = {f"key {number}": f"“{number}”" for number in range(20)}
    contents = set()
    for number in range(5):
        write_tensors(tmp_path / f"{number}.safetensors", {"a": torch.arange(3)}, metadata)
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1
    tensors, found = read_tensors(tmp_path / "0.safetensors")
    assert tensors["a"].tolist() == [0, 1, 2]
    assert found == {"format": "pt", **metadata}


def test_a_file_that_changes_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("one")
    before = stamp(path)
    refuse_changed(path, before)
    refuse_changed(tmp_path / "none", stamp(tmp_path / "none"))
    for change, said in ((lambda: path.write_text("other"), "has changed"), (path.unlink, "has vanished")):
        change()
        with pytest.raises(FileChanged, match=f"{said} since the run began"):
            refuse_changed(path, before)
    path.write_text("")
    with pytest.raises(FileChanged, match="has appeared"):
        refuse_changed(path, None)
