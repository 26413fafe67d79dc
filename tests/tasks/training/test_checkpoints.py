"""Checkpoints are whole or not there: written, cut short, found, passed over, tidied."""

from __future__ import annotations

import json
import resource
import shutil

import pytest
import torch

from physcli.errors import DataError, UsageError
from physcli.tasks.training import checkpoints
from physcli.tasks.training.checkpoints import find_checkpoint, prune, read_manifest, write_checkpoint


def save(folder):
    (folder / "deep").mkdir()
    (folder / "model.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "deep" / "state.bin").write_bytes(b"state")


def write(run, step, save=save, **facts):
    return write_checkpoint(run, step, save, {"samples": 4 * step, **facts}, is_main=True, wait=lambda: None)


def test_written_whole(tmp_path):
    folder = write(tmp_path, 3, settings={"a": 1})
    assert folder == tmp_path / "checkpoint-3"
    manifest = read_manifest(folder)
    assert (manifest["step"], manifest["samples"], manifest["settings"]) == (3, 12, {"a": 1})
    assert sorted(manifest["files"]) == ["deep/state.bin", "model.bin"]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


def cut(folder):
    with (folder / "model.bin").open("r+b") as file:
        file.truncate(5000)


def flip(folder):
    content = bytearray((folder / "model.bin").read_bytes())
    content[77] ^= 1
    (folder / "model.bin").write_bytes(content)


def rewrite(**changes):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest |= changes
        (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))

    return change


DAMAGES = {
    "cut short": (cut, "model.bin was cut short or altered"),
    "one bit": (flip, "model.bin was cut short or altered"),
    "file lost": (lambda f: (f / "deep" / "state.bin").unlink(), "deep/state.bin is missing"),
    "manifest lost": (lambda f: (f / "manifest.json").unlink(), "no readable manifest"),
    "manifest of zero bytes": (lambda f: (f / "manifest.json").write_text(""), "no readable manifest"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), "no readable manifest"),
    "manifest is {}": (lambda f: (f / "manifest.json").write_text("{}"), "no readable manifest"),
    "no file named": (rewrite(files={}), "names no file"),
    "files are a word": (rewrite(files="all"), "no readable manifest"),
    "no step": (rewrite(step=None), "no readable manifest"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_is_passed_over(tmp_path, heard, name):
    damage, said = DAMAGES[name]
    for step in (2, 4, 10):  # 10 is newer than 4, though not as text
        write(tmp_path, step)
    reporter = heard()
    assert find_checkpoint("latest", tmp_path, reporter) == tmp_path / "checkpoint-10"
    assert reporter.said == []
    damage(tmp_path / "checkpoint-10")
    for resume in ("latest", str(tmp_path), str(tmp_path / "checkpoint-10")):
        reporter = heard()
        assert find_checkpoint(resume, tmp_path, reporter) == tmp_path / "checkpoint-4"
        assert len(reporter.said) == 1
        assert "checkpoint-10 is not whole" in reporter.said[0]
        assert said in reporter.said[0]
    assert find_checkpoint(str(tmp_path / "checkpoint-2"), tmp_path, heard()) == tmp_path / "checkpoint-2"


def test_none_is_whole(tmp_path, heard):
    for step in (2, 4):
        cut(write(tmp_path, step))
    with pytest.raises(DataError, match=r"None of the 2 checkpoints in .* is whole"):
        find_checkpoint("latest", tmp_path, heard())


@pytest.mark.parametrize(
    ("resume", "said"),
    [
        ("latest", "--resume latest: no checkpoint in"),
        ("no/such/place", "--resume no/such/place: no such folder"),
        ("{run}", "no checkpoint in"),
        ("{run}/checkpoint-7", "checkpoint-7: no such folder"),
        ("{run}/file", "file: not a folder"),
    ],
)
def test_nothing_to_resume(tmp_path, heard, resume, said):
    (tmp_path / "file").touch()
    (tmp_path / "checkpoint-best").mkdir()  # no number: not one of ours
    (tmp_path / ".checkpoint-2.part").mkdir()  # of a run that was killed while it wrote
    with pytest.raises(UsageError) as error:
        find_checkpoint(resume.format(run=tmp_path), tmp_path, heard())
    assert said in str(error.value)


def test_latest_without_a_run_directory(tmp_path, heard):
    with pytest.raises(UsageError, match="no checkpoint in"):
        find_checkpoint("latest", tmp_path / "none", heard())
    assert not (tmp_path / "none").exists()


def test_only_the_newest_are_kept(tmp_path):
    for step in (2, 4, 10, 12):
        write(tmp_path, step)
    prune(tmp_path, 2, 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12"]


def test_a_later_one_of_another_run_does_not_push_out_the_new(tmp_path):
    cut(write(tmp_path, 6))  # resuming fell back to an earlier one; now 3 is written
    for step in (2, 3):
        write(tmp_path, step)
    prune(tmp_path, 1, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-6"]


def test_a_broken_one_is_replaced_when_its_step_comes_again(tmp_path, heard):
    folder = write(tmp_path, 2)
    cut(folder)
    (folder / "stray").touch()
    write(tmp_path, 2)
    assert find_checkpoint("latest", tmp_path, heard()) == folder
    assert not (folder / "stray").exists()


def test_leftovers_of_a_killed_run_go(tmp_path):
    (tmp_path / ".checkpoint-9.part").mkdir()
    (tmp_path / ".checkpoint-9.part" / "model.bin").touch()
    write(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.fixture
def no_large_files():
    """The system refuses to write files beyond 64 kB: a real error, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def torch_save(folder):
    torch.save({"a": torch.zeros(50_000)}, folder / "state.pt")


def safetensors_save(folder):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(50_000)}, folder / "model.safetensors")


@pytest.mark.parametrize("big_save", [torch_save, safetensors_save])
def test_a_disk_that_takes_no_more(tmp_path, heard, no_large_files, big_save):
    first = write(tmp_path, 2)
    with pytest.raises(DataError) as error:
        write(tmp_path, 4, big_save)
    assert "checkpoint-4 could not be written" in error.value.received
    assert "MB are free" in error.value.expected
    assert "--resume latest" in error.value.fix
    assert "checkpoint-2 is whole" in error.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]
    assert find_checkpoint("latest", tmp_path, heard()) == first


def test_a_full_disk_is_called_full(tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 4096, 4096)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)

    def full(folder):  # what torch says when the disk is full
        (folder / "half").write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0: …")

    with pytest.raises(DataError, match=r"checkpoint-1 could not be written to .*: the disk is full\.") as error:
        write(tmp_path, 1, full)
    assert "there is no checkpoint yet" in error.value.fix
    assert list(tmp_path.iterdir()) == []
