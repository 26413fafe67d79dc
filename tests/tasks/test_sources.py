"""Where clips come from. Hub datasets are read from real snapshots in a Hugging Face cache: the tests are offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from made_recipes import TINY_ENCODER

from physcli.data.clips import read_dataset
from physcli.data.video import write_video
from physcli.errors import DataError, UsageError
from physcli.progress import Reporter
from physcli.recipe import Data
from physcli.tasks import sources
from physcli.tasks.finetune import finetune
from physcli.tasks.processes import Processes
from physcli.tasks.sources import clips_folder, dataset_folder, pinned, source_name
from physcli.tasks.training.clips import read_clips
from physcli.tasks.training.request import FinetuneRequest

FIRST, SECOND = "1" * 40, "2" * 40
ENCODER = f"""{TINY_ENCODER}
train: {{steps: 1, batch_size: 1}}
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "x.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8), 8)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch, video):
    """Puts a snapshot where `hf download` would: blobs, links to them by commit, and what a branch means."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    sources._download.cache_clear()

    def add(files, *, commit=FIRST, branch="main", name="owner/name"):
        """files: path → text, or None for a video."""
        root = tmp_path / "hf" / "hub" / f"datasets--{name.replace('/', '--')}"
        for path, text in files.items():
            place = root / "snapshots" / commit / path
            blob = root / "blobs" / f"{commit}-{path.replace('/', '-')}"
            for folder in (place.parent, blob.parent):
                folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, blob) if text is None else blob.write_text(text)
            place.symlink_to(os.path.relpath(blob, place.parent))
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / branch).write_text(commit)
        return root / "snapshots" / commit

    yield add
    sources._download.cache_clear()


def prompts(folder):
    dataset = read_dataset(folder)
    assert dataset.problems == ()
    return {clip.name: clip.prompt for clip in dataset.clips}


@pytest.mark.parametrize(
    "captions",
    [
        {"metadata.csv": "file_name,prompt\na.mp4,one\nb.mp4,two\n"},
        {"metadata.jsonl": '{"file_name": "a.mp4", "prompt": "one"}\n{"file_name": "b.mp4", "prompt": "two"}\n'},
        {"prompts.txt": "one\ntwo\n", "videos.txt": "a.mp4\nb.mp4\n"},
        {"a.txt": "one", "b.txt": "two"},
        {"data.csv": "video,caption\na.mp4,one\nb.mp4,two\n"},
        {"data/train/data.tsv": "video\tcaption\na.mp4\tone\nb.mp4\ttwo\n"},
    ],
    ids=lambda files: "+".join(files),
)
def test_every_layout_of_captions(hub, captions):
    folder = hub({"a.mp4": None, "b.mp4": None, "README.md": "# About", **captions})
    assert dataset_folder("hub:owner/name") == folder
    assert prompts(folder) == {"a": "one", "b": "two"}


def test_revisions_and_folders(hub):
    hub({"a.mp4": None, "part/b.mp4": None, "part/b.txt": "first"})
    hub({"part/b.mp4": None, "part/b.txt": "second"}, commit=SECOND, branch="v2")
    for source, commit, found in [
        ("hub:owner/name", FIRST, {"a": "", "b": "first"}),
        ("hub:owner/name/part", FIRST, {"b": "first"}),
        ("hub:owner/name@v2", SECOND, {"b": "second"}),
        ("hub:owner/name@v2/part", SECOND, {"b": "second"}),
        (f"hub:owner/name@{SECOND}/part", SECOND, {"b": "second"}),
    ]:
        assert prompts(dataset_folder(source)) == found
        folder = "/part" if source.endswith("/part") else ""
        assert pinned(source) == f"hub:owner/name@{commit}{folder}"
        assert dataset_folder(pinned(source)) == dataset_folder(source)


def test_other_sources(simulated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"cache": tmp_path, "processes": Processes(), "reporter": Reporter()}
    assert clips_folder(str(simulated), **asked) == simulated
    assert clips_folder("~/clips", **asked) == Path.home() / "clips"
    assert clips_folder("./hub:a/b", **asked) == Path("hub:a/b")
    assert (pinned("simulated:4"), pinned("clips")) == (None, None)
    assert source_name("simulated") == "simulated:280"
    assert source_name("clips") == str(tmp_path / "clips")
    assert source_name("hub:a/b") == "hub:a/b"


@pytest.mark.parametrize("source", ["hub:", "hub:name", "hub:/name", "hub:a/b@", "hub:a/b/c@v2", "hub:a b/c"])
def test_what_is_no_hub_dataset(source):
    with pytest.raises(UsageError, match=f"--data '{source}'") as error:
        dataset_folder(source)
    assert "hub:OWNER/NAME@REVISION/FOLDER" in error.value.expected


def test_what_is_not_in_the_cache_offline(hub):
    hub({"a.mp4": None})
    for source in ("hub:owner/other", "hub:owner/name@v3"):
        with pytest.raises(DataError, match="is not in the local cache, and HF_HUB_OFFLINE forbids") as error:
            dataset_folder(source)
        assert error.value.expected == "a dataset that was downloaded before"
        name = source.removeprefix("hub:").partition("@")[0]
        assert f"unset HF_HUB_OFFLINE, or on a machine with network, `hf download {name} --repo-type dataset" in (
            error.value.fix
        )


@pytest.mark.parametrize("source", ["hub:owner/name", "hub:owner/name/none"])
def test_a_repository_without_clips(hub, source):
    hub({"clips.zip": "x", "metadata.csv": "video,caption\n"})
    with pytest.raises(DataError, match=f"{source} holds no video and no HDF5 file") as error:
        dataset_folder(source)
    assert "unpack them, and pass that folder" in error.value.fix


def test_a_run_says_which_commit_it_was_trained_on(hub, tmp_path):
    hub({"a.mp4": None, "b.mp4": None, "metadata.csv": "file_name,prompt\na.mp4,one\nb.mp4,two\n"})
    source = "hub:owner/name"
    training, held_out = read_clips(Data(source=source), cache=tmp_path, processes=Processes(), reporter=Reporter())
    assert [clip.prompt for clip in (*training, *held_out)] == ["one", "two"]
    (tmp_path / "own.yaml").write_text(ENCODER)
    given = {"out": tmp_path / "run", "device": "cpu", "cache_dir": tmp_path / "cache"}
    finetune(FinetuneRequest(str(tmp_path / "own.yaml"), data=source, **given))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["dataset"] == f"hub:owner/name@{FIRST}"
    assert record["settings"]["recipe"]["data"]["source"] == source


def test_data_inspect(hub, tmp_path):
    """As a user meets it: the cache is where HF_HOME says."""
    hub({"a.mp4": None, "a.txt": "one"})
    done = subprocess.run(
        [sys.executable, "-m", "physcli", "data", "inspect", "hub:owner/name", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["num_usable"], found["num_prompts"], found["size"]) == (1, 1, {"16x16": 1})


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does of datasets, by the name of the repository."""

    ANSWERS = {  # noqa: RUF012
        "gated": (403, "GatedRepo"),
        "missing": (404, "RepoNotFound"),
        "private": (401, "RepoNotFound"),
        "revision": (404, "RevisionNotFound"),
    }

    def do_GET(self):
        kind, _, repository = self.path.split("/")[2:5]  # /api/datasets/org/<name>/revision/main
        status, code = self.ANSWERS[repository] if kind == "datasets" else (500, "")
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


def test_what_the_hub_refuses_is_explained(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = f"""
import json
from physcli.errors import DataError
from physcli.tasks.sources import dataset_folder
messages = {{}}
for name in {list(Hub.ANSWERS)}:
    try:
        dataset_folder("hub:org/" + name)
    except DataError as error:
        messages[name] = str(error)
print(json.dumps(messages))
"""
    endpoint = f"http://127.0.0.1:{server.server_port}"
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    messages = json.loads(done.stdout)
    expected = {
        "gated": ["gated", "accept the licence at https://huggingface.co/datasets/org/gated", "hf auth login"],
        "missing": ["There is no dataset 'org/missing'", "hub:OWNER/NAME", "for a private dataset"],
        "private": ["or it is private", "hf auth login"],
        "revision": ["no such revision", "https://huggingface.co/datasets/org/revision/commits"],
    }
    for name, parts in expected.items():
        for part in parts:
            assert part in messages[name], (name, messages[name])
