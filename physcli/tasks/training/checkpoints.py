"""`checkpoint-N`: all that is needed to go on exactly, whole or not at all.

The folder is written under another name, then a manifest with the hash of every file, then it is renamed. A folder
whose files do not match its manifest is not used: training falls back to the one before, and says so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from physcli.errors import DataError, UsageError
from physcli.hashing import content_hash
from physcli.progress import Reporter
from physcli.tasks.run_dir import write_json

MANIFEST = "manifest.json"


def write_checkpoint(
    run: Path,
    step: int,
    save: Callable[[Path], None],
    facts: Mapping[str, Any],
    *,
    is_main: bool,
    wait: Callable[[], None],
) -> Path:
    """Write `checkpoint-<step>`; called by every process.

    Args:
        run: The run directory.
        step: Optimizer steps done.
        save: Writes the state into a folder (each process its part).
        facts: Kept in the manifest.
        is_main: This process makes, renames and removes folders.
        wait: Returns when every process has come here.

    Raises:
        DataError: the disk is full or not writable; earlier checkpoints are as they were.
    """
    final = run / f"checkpoint-{step}"
    part = run / f".checkpoint-{step}.part"
    try:
        if is_main:
            for left in run.glob(".checkpoint-*.part"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            part.mkdir()
        wait()
        save(part)
        wait()
        if is_main:
            hashes = {p.relative_to(part).as_posix(): content_hash(p) for p in sorted(part.rglob("*")) if p.is_file()}
            write_json(part / MANIFEST, {"step": step, **facts, "files": hashes})
            if final.exists():
                shutil.rmtree(final)
            part.rename(final)
        wait()
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the system's error
        failure = cannot_write(f"checkpoint-{step}", run, error)
        shutil.rmtree(part, ignore_errors=True)
        raise failure from error
    return final


def cannot_write(what: str, run: Path, error: Exception) -> DataError:
    """The error for something that could not be written into a run directory, and how to go on.

    To be made before the half-written is removed: what is free then says whether the disk was full. torch does not
    (it says "unexpected pos 64 vs 0"), and neither does safetensors reliably.
    """
    free = shutil.disk_usage(run).free
    reason = "the disk is full" if free < 2**20 else (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"{what} could not be written to {run}: {reason}.",
        expected=f"a writable disk with room for it ({free / 1e6:,.0f} MB are free)",
        fix=f"free some space, then {how_to_go_on(run)}",
    )


def how_to_go_on(run: Path) -> str:
    """What to do once the reason why a run ended is mended."""
    newest = next((folder for folder in checkpoint_folders(run) if _damage(folder) is None), None)
    if newest is None:
        return "give the same command again: there is no checkpoint yet"
    return f"add --resume latest to the same command: {newest.name} is whole"


def prune(run: Path, keep: int, step: int) -> None:
    """Remove all but the `keep` newest checkpoints of steps up to `step`.

    Later ones are of a run that went on from an earlier step, a damaged one perhaps: they must not push out this run's.
    """
    reached = [folder for folder in checkpoint_folders(run) if (step_of(folder) or 0) <= step]
    for folder in reached[keep:]:
        shutil.rmtree(folder)


def resume_folder(resume: str) -> Path:
    """The folder that `--resume` names: a checkpoint or a run directory.

    Raises:
        UsageError: there is none.
    """
    path = Path(resume).expanduser()
    if not path.is_dir():
        raise UsageError(
            f"--resume {resume}: {'not a folder' if path.exists() else 'no such folder'}.",
            expected="latest, a checkpoint-N folder or a run directory",
            fix="leave --resume out to start a new run",
        )
    return path


def find_checkpoint(resume: str, run: Path, reporter: Reporter) -> Path:
    """The whole checkpoint that `--resume` names: `latest` in the run directory, a run directory, or a checkpoint.

    A checkpoint that was cut short is passed over for the one before it, with a warning.

    Raises:
        UsageError: nothing there.
        DataError: there are checkpoints, but none is whole.
    """
    if resume == "latest":
        candidates = checkpoint_folders(run)
        where = f"{run} (the run directory; --out names it)"
    else:
        path = resume_folder(resume)
        named = step_of(path)
        older = [f for f in checkpoint_folders(path.parent) if (step_of(f) or 0) < named] if named is not None else []
        candidates = [path, *older] if named is not None else checkpoint_folders(path)
        where = str(path)
    if not candidates:
        raise UsageError(
            f"--resume {resume}: no checkpoint in {where}.",
            expected="a folder with checkpoint-N folders",
            fix="leave --resume out to start a new run",
        )
    for folder in candidates:
        damage = _damage(folder)
        if damage is None:
            return folder
        reporter.warn(f"{folder.name} is not whole ({damage}); trying the one before it.")
    raise DataError(
        f"None of the {len(candidates)} checkpoints in {where} is whole.",
        expected="a checkpoint-N folder as physcli wrote it",
        fix="start again without --resume, with --overwrite or in another --out",
    )


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What `write_checkpoint` kept beside the state."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = read_manifest(folder)
        files = dict(manifest["files"])
        int(manifest["step"]), int(manifest["samples"])
    except (OSError, ValueError, KeyError, TypeError):
        return "no readable manifest"
    if not files:
        return "its manifest names no file"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if content_hash(folder / name) != expected:
            return f"{name} was cut short or altered"
    return None


def checkpoint_folders(run: Path) -> list[Path]:
    """Checkpoint folders of a run, the newest first."""
    found = [p for p in run.glob("checkpoint-*") if p.is_dir() and step_of(p) is not None] if run.is_dir() else []
    return sorted(found, key=lambda p: step_of(p) or 0, reverse=True)


def step_of(path: Path) -> int | None:
    """N of `checkpoint-N`, or None for another folder."""
    number = path.name.removeprefix("checkpoint-")
    return int(number) if path.name.startswith("checkpoint-") and number.isdigit() else None
