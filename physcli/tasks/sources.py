"""From `--data` to a folder of clips: a simulated suite, a dataset of the Hugging Face hub, or a folder.

A source is tried as `simulated[:N]`; as `hub:OWNER/NAME`, with `@REVISION` and `/FOLDER` after it where one is meant;
anything else is a path. A folder called like one of the former is `./simulated` or `./hub:…`.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from physcli.data.clips import HDF5_SUFFIXES, LAYOUTS, installed_mujoco
from physcli.data.video import VIDEO_SUFFIXES
from physcli.errors import DataError, UsageError
from physcli.models.hub import explain_hub_errors
from physcli.progress import Reporter
from physcli.tasks.processes import Processes
from physcli.tasks.simulate import suite_folder, suite_size

_HUB = "hub:"
_HUB_SOURCE = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@]+))?(/(?P<folder>[^@]+))?")
# All that the readers of `physcli.data.clips` open; repositories also hold archives and tables of something else.
_READ = sorted((*VIDEO_SUFFIXES, *HDF5_SUFFIXES, ".json", ".jsonl", ".csv", ".tsv", ".txt", ".npz"))


def clips_folder(
    source: str,
    *,
    purpose: str = "probe",
    impossible: tuple[str, ...] = (),
    cache: Path,
    processes: Processes,
    reporter: Reporter,
) -> Path:
    """The folder that a source stands for. The main process makes or downloads what is not there; the others wait.

    Args:
        source: As in `--data`.
        purpose: What a simulated suite is for; a key of `physcli.tasks.simulate.STREAMS_FOR`.
        impossible: Kinds of impossible twins that a simulated suite shall have; other sources are as they are.
        cache: Simulated suites are kept here; hub datasets are in the Hugging Face cache.
        processes: All of them.
        reporter: Receives progress.

    Raises:
        UsageError: no such suite, or no such way to write a hub dataset.
        DataError: the hub's dataset cannot be downloaded, or holds no clips.
    """
    num_test = suite_size(source)
    if num_test is not None:
        return suite_folder(
            num_test, cache=cache, purpose=purpose, impossible=impossible, processes=processes, reporter=reporter
        )
    folder = dataset_folder(source) if processes.is_main else None
    processes.wait()
    return dataset_folder(source) if folder is None else folder


def dataset_folder(source: str) -> Path:
    """The folder of a hub dataset, downloaded where it is not in the Hugging Face cache; any other source is a path.

    Raises:
        UsageError: no such way to write a hub dataset.
        DataError: it cannot be downloaded, or holds no clips.
    """
    return _download(source)[0] if source.startswith(_HUB) else Path(source).expanduser()


def pinned(source: str) -> str | None:
    """A hub dataset's source with the commit that was read, which means the same clips for ever; None of others."""
    return _download(source)[1] if source.startswith(_HUB) else None


def source_name(source: str) -> str:
    """How a source is recorded: a path whole, a suite with its size."""
    num_test = suite_size(source)
    if num_test is not None:
        return f"simulated:{num_test}"
    return source if source.startswith(_HUB) else str(Path(source).expanduser().resolve())


def simulated_by(source: str) -> dict[str, str]:
    """A setting of every run on a suite: MuJoCo's release, with which its clips change; none of other sources."""
    return {} if suite_size(source) is None else {"mujoco": installed_mujoco()}


@functools.cache  # a branch that moves while a run goes on changes nothing
def _download(source: str) -> tuple[Path, str]:
    """The folder of a hub dataset, and its source with the commit."""
    found = _HUB_SOURCE.fullmatch(source)
    if found is None:
        raise UsageError(f"--data {source!r}.", expected="hub:OWNER/NAME, hub:OWNER/NAME@REVISION/FOLDER or a folder")
    name, revision, folder = found["name"], found["revision"], found["folder"] or ""
    from huggingface_hub import snapshot_download

    within = f"{folder}/" if folder else ""
    patterns = [f"{within}*{suffix}" for lower in _READ for suffix in (lower, lower.upper())]
    with explain_hub_errors(name, "dataset"):
        snapshot = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns))
    root = snapshot / folder
    if not any(path.suffix.lower() in VIDEO_SUFFIXES | HDF5_SUFFIXES for path in root.rglob("*")):
        raise DataError(
            f"{source} holds no video and no HDF5 file.",
            expected=f"in the repository or its FOLDER, {LAYOUTS}",
            fix="check the folder's name; if the clips are in archives, `hf download "
            f"{name} --repo-type dataset --local-dir FOLDER`, unpack them, and pass that folder",
        )
    return root, f"hub:{name}@{snapshot.name}" + (f"/{folder}" if folder else "")
