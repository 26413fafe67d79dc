"""Files that are written whole or not at all, and JSON that is read with an error a user can act on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from physcli.errors import DataError, FileChanged, PhyscliError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path, *, suffix: str = ".part") -> Iterator[Path]:
    """A temporary name beside `path`: what the block writes there becomes `path` at its end, or is removed if it fails.

    A reader meets the old file or the new one, never half of it, and several processes may write at once.

    Args:
        path: The file to make or replace; its folder exists.
        suffix: Of the temporary name, for writers that choose the format by it (".part.png").
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def new_file_mode() -> int:
    """The permissions that a new file gets; safetensors' `save_file` leaves its files to their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


# What `replacing` leaves of a process that was killed while it wrote.
_LEFT = re.compile(r"\..+\.\d+\.part(\.\w+)?")


def is_left_over(path: Path) -> bool:
    """Whether a file has a temporary name of `replacing`."""
    return _LEFT.fullmatch(path.name) is not None


def remove_left_over(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Remove what killed processes left half-written below a folder.

    Args:
        folder: Where nobody else is writing, or
        older_than_s: so many seconds since it was last written to that nobody can be at it any more.
    """
    for path in folder.rglob(".*"):
        if is_left_over(path) and path.is_file() and time.time() - path.stat().st_mtime >= older_than_s:
            path.unlink(missing_ok=True)


def hold(file: int, *, wait: bool = False) -> bool:
    """Hold an open file or folder (by its descriptor) against all other processes until it is closed.

    The system closes it when a process dies, however it dies. Windows has no flock, and some network disks refuse it:
    there nothing is held, and the answer is yes.

    Args:
        file: The descriptor.
        wait: Until whoever holds it lets go.

    Returns:
        False if another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


# What tells a file from another one under the same name, and from itself once it was written to.
Stamp = tuple[int, int, int] | None


def stamp(path: Path) -> Stamp:
    """A file's inode, size in bytes and time of change in ns; None if it is not there."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def refuse_changed(path: Path, before: Stamp) -> None:
    """Raises FileChanged: the file's stamp is not what it was when the run hashed it."""
    now = stamp(path)
    if now != before:
        how = "has vanished" if now is None else "has appeared" if before is None else "has changed"
        raise FileChanged(
            f"{path} {how} since the run began.",
            expected="files that stay as they are while they are read",
            fix="put it back as it was and give the same command again, or begin anew in another --out",
        )


def make_folder(path: Path, *, what: str = "", fix: str) -> None:
    """Make a folder, with those above it.

    Args:
        path: The folder; it may be there already.
        what: It is, for the message ("The cache folder").
        fix: What to do if it cannot be made.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{what} {path} cannot be made: {error.strerror}.".lstrip(),
            expected="a folder this user may write",
            fix=fix,
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; its folder is made."""
    import safetensors.torch

    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: value.detach().contiguous() for name, value in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(whole, {"format": "pt", **(metadata or {})}))
        sort_metadata(temporary)


def sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order, which the library writes in another one in every process.

    Without it the same weights would be another file each time, and all that is known by their hash be made again.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= length:  # as ever: the same entries, written as compactly
            file.seek(8)
            file.write(content.ljust(length))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        ValueError: No such file, or not a whole safetensors file.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def read_json(path: Path, *, error: type[PhyscliError] = DataError, fix: str = "mend it") -> Any:
    """What a JSON file in UTF-8 holds.

    Args:
        path: The file.
        error: Raised if it cannot be read or is not JSON.
        fix: What to do about a file that is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}.", expected="a JSON file") from problem
    except ValueError as problem:
        where = f"line {problem.lineno}: {problem.msg}" if isinstance(problem, json.JSONDecodeError) else str(problem)
        raise error(f"{path} is not valid JSON ({where}).", expected="a JSON file", fix=fix) from problem


def read_json_object(path: Path, *, error: type[PhyscliError] = DataError, fix: str = "mend it") -> dict[str, Any]:
    """As `read_json`; what is not an object is refused as well."""
    content = read_json(path, error=error, fix=fix)
    if not isinstance(content, dict):
        raise error(f"{path} holds a {type(content).__name__}.", expected="a JSON object", fix=fix)
    return content


def files_below(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """All files below a folder, sorted, and what cannot be listed, with the reason.

    Links are followed, to folders as well, but no folder is listed twice: where a link leads to one that is below the
    folder anyway, or to one that holds the link, it is named instead. Names that begin with a dot are passed over.
    """
    files: list[Path] = []
    problems: list[tuple[Path, str]] = []
    listed: dict[str, Path] = {}
    waiting, links = deque([folder]), deque[Path]()
    while waiting or links:  # folders before links to them
        here = waiting.popleft() if waiting else links.popleft()
        real = os.path.realpath(here)
        if real in listed:
            if here.is_symlink():
                problems.append((here, f"a link to {listed[real]}, whose files are there already"))
            continue
        if here != folder and Path(os.path.realpath(here.parent)).is_relative_to(real):
            problems.append((here, "not followed: a link to a folder that it is in"))
            continue
        listed[real] = here
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            problems.append((here, f"cannot be listed: {error.strerror}"))
            continue
        for entry in entries:
            path = here / entry.name
            if entry.name.startswith("."):
                continue
            if os.path.isdir(path):
                (links if entry.is_symlink() else waiting).append(path)
            elif os.path.isfile(path):
                files.append(path)
            elif entry.is_symlink():
                problems.append((path, f"a link to {os.readlink(path)}, which is not there"))
    return sorted(files), problems


def short_names(paths: Sequence[Path], root: Path, *, suffixes: bool = True) -> list[str]:
    """Names that tell files apart: of each its own where no other has it, else its path from `root` on.

    Args:
        paths: The files, below `root`.
        root: The folder that a path is told from.
        suffixes: False for names without them; a path from `root` keeps its own.
    """
    names = [path.name if suffixes else path.stem for path in paths]
    counts = Counter(names)
    return [
        name if counts[name] == 1 else Path(os.path.relpath(path, root)).as_posix()
        for name, path in zip(names, paths, strict=True)
    ]
