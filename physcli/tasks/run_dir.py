"""The run directory: what was asked, on what, with what result, and whether it was finished.

It holds `run.json` (always), `metrics.json` (a list of rows), `items.jsonl` where there are items, and whatever else
a command makes. Files are written to a temporary name and renamed, so a reader never meets half a file.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import math
import os
import platform
import shlex
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from physcli import __version__
from physcli.errors import PhyscliError, UsageError
from physcli.files import hold, is_left_over, make_folder, remove_left_over, write_text
from physcli.progress import Reporter
from physcli.tasks.processes import Processes

# From settings as an earlier version recorded them to the same with those that have been added since.
Complete = Callable[[Mapping[str, Any]], Mapping[str, Any]]

# Raise it when the default of a setting changes: a run that was written before that setting existed then counts as
# another run, in place of going on with a default it never had.
SETTINGS_VERSION = 1

_VERSIONED = ("torch", "diffusers", "transformers", "accelerate", "numpy", "scikit-learn", "mujoco", "av")


def cache_root(cache_dir: Path | None) -> Path:
    """Where things that can be made again are kept: --cache-dir, PHYSCLI_CACHE, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("PHYSCLI_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "physcli"


def _plain(value: Any) -> Any:
    """JSON has no NaN: a value that does not exist is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and callable(value.item):  # numpy scalars
        return _plain(value.item())
    return value


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """Strict JSON; NaN and infinity become null."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    write_text(path, to_json(value) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(to_json(row, indent=None) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `write_jsonl` wrote."""
    # Not splitlines: a text may hold a line separator of Unicode's, which JSON leaves as it is.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def append_row(log: Path, row: Mapping[str, Any]) -> None:
    """Note a row in the log of a run under way."""
    with log.open("a", encoding="utf-8") as file:
        file.write("\n" + to_json(row, indent=None))  # begins a line: the one before may have been cut short by a kill


def read_log(log: Path) -> list[dict[str, Any]]:
    """The whole rows of a log; none where there is no log."""
    rows = []
    for line in log.read_text(encoding="utf-8").split("\n") if log.is_file() else []:
        with contextlib.suppress(ValueError):  # empty, or cut short by a kill
            rows.append(json.loads(line))
    return rows


def hardware() -> dict[str, Any]:
    """Processor, memory and, where PyTorch is used, its threads and accelerators, as recorded in every run."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
    }
    if "torch" in sys.modules:  # what a run without it computes on is said already, and importing it takes seconds
        import torch

        found["threads"] = torch.get_num_threads()
        found["accelerators"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


@functools.cache
def versions() -> Mapping[str, str]:
    found = {"physcli": __version__}
    for name in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class RunDir:
    """One run's folder, as a context manager: `running` inside, then `finished`, `failed` or `interrupted`.

    A run that fails with a `PhyscliError` before it wrote anything leaves no folder behind. One that was killed stays
    `running` in its run.json; the next removes what it left half-written. While a run writes, its folder is held (see
    `hold`), so that no second process writes there.

    Args:
        out: The folder, or None for `runs/<command>-<time>`.
        command: The command's name, such as "probe physion".
        settings: All resolved settings that bear on the result, JSON-able. Two runs with equal settings (and inputs,
            see `check_inputs`) are the same run: the second continues the first.
        complete: Adds to a run's settings those that there were none of yet when it was made; see `with_defaults`.
        overwrite: Replace a run with other settings.
        reporter: Told when the run is interrupted, and how to go on.
        processes: All that enter this run together: the main one alone writes, and tells the others which folder it is
            and whether it is finished. By default, no others.

    Attributes:
        already_finished: The folder holds this very run, finished; nothing need be done.

    Raises:
        UsageError: `out` holds another run, or something that is not a run, or another process is writing to it.
        DataError: the folder cannot be written.
    """

    def __init__(
        self,
        out: Path | None,
        command: str,
        settings: Mapping[str, Any],
        *,
        complete: Complete | None = None,
        overwrite: bool = False,
        reporter: Reporter | None = None,
        processes: Processes | None = None,
    ) -> None:
        if out is None:
            stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            out = Path("runs") / f"{command.replace(' --', '-').replace(' ', '-')}-{stamp}"
        self.path = out
        self.reporter = reporter or Reporter()
        self.processes = processes or Processes.alone()
        self.writes = self.processes.is_main
        self.complete = complete
        self.record: dict[str, Any] = {
            "command": command,
            "settings": _plain(dict(settings)),
            "settings_version": SETTINGS_VERSION,
            "inputs": {},
            "arguments": sys.argv[1:],
            "status": "running",
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "duration_s": None,
            "versions": versions(),
            "hardware": hardware(),
        }
        self._previous: dict[str, Any] | None = None
        self._aside: Path | None = None  # the run that --overwrite replaces, kept until this one has come to something
        self._made: list[Path] = []  # folders this run made, the innermost first
        self._begun = False
        self._held: weakref.finalize | None = None  # closes the folder, which is open and held
        if self.writes:
            try:
                self._claim(overwrite)
            except BaseException:
                self._let_go()
                raise
        self.already_finished = self._is_finished()

    def _claim(self, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--out {self.path} is a file.", expected="a folder, or a new name")
        if not self._holds_files():  # killed between the two: what --overwrite has put aside, and the new run
            for aside in self._put_aside():
                if self.path.is_dir():
                    self.path.rmdir()
                aside.rename(self.path)
        if self._holds_files():
            self._previous = read_run(self.path)
            if overwrite or not self._is_finished():
                self._hold()
                self._previous = read_run(self.path)  # another process may have begun or finished it since
                self._aside = next(self._put_aside(), None)
            if self._previous is None and any(not is_left_over(path) for path in self.path.iterdir()):
                raise UsageError(
                    f"--out {self.path} holds files but no run.json.",
                    expected="a new or empty folder, or one a physcli run made",
                    fix="choose another --out",
                )
        if self._previous is not None:
            # Even --overwrite replaces a run of the same command only: a dataset is never taken for a probe's folder.
            self._refuse_if_different("command")
            if not overwrite:
                self._refuse_if_different("settings")
            elif self._aside is not None:  # what is here replaced it, and was killed
                shutil.rmtree(self.path)
            else:
                self._aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.replaced")
                self.path.rename(self._aside)
            if overwrite:
                self._let_go()
                self._previous = None
        self._made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        make_folder(self.path, fix="choose another --out")
        if not self._is_finished():
            self._hold()
            remove_left_over(self.path)
            if self._previous is not None:  # whoever is killed before `check_inputs` must not lose them
                self.record["inputs"] = self._previous.get("inputs", {})
            self._begin()

    def _holds_files(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def _put_aside(self) -> Iterator[Path]:
        """Runs that an --overwrite of this folder has put aside and, as it was killed, neither removed nor restored."""
        start, end = f".{self.path.name}.", ".replaced"
        for path in self.path.parent.iterdir() if self.path.parent.is_dir() else ():
            if path.name.startswith(start) and path.name.endswith(end) and path.name[len(start) : -len(end)].isdigit():
                yield path

    def _hold(self) -> None:
        """Keep other processes from writing to the folder, until this run is left.

        Raises:
            UsageError: another one is at it.
        """
        if self._held is not None:
            return
        try:
            folder = os.open(self.path, os.O_RDONLY)
        except OSError:  # Windows opens no folder
            return
        self._held = weakref.finalize(self, os.close, folder)
        if not hold(folder):
            raise UsageError(
                f"Another physcli process is writing to --out {self.path}.",
                expected="one at a time",
                fix="wait for it, stop it, or choose another --out",
            )

    def _let_go(self) -> None:
        if self._held is not None:
            self._held()
            self._held = None

    def check_inputs(self, inputs: Mapping[str, str], *, new: Collection[str] = ()) -> None:
        """Say what went in, as content hashes; they count as settings.

        Args:
            inputs: Name → hash.
            new: Those of them that earlier versions did not record: an earlier run without one is not held against it.

        Raises:
            UsageError: the folder holds a run of the same settings on other inputs.
        """
        self.record["inputs"] = dict(inputs)
        if self._previous is not None and self._previous.get("inputs"):
            for name in set(new) & inputs.keys() - self._previous["inputs"].keys():
                self._previous["inputs"][name] = inputs[name]
            try:
                self._refuse_if_different("inputs")
            except UsageError:
                if self._begun:  # give the other run its record back
                    write_json(self.path / "run.json", self._previous)
                    self._begun = False
                raise
        if self.writes and not self.already_finished:
            self._begin()

    def _is_finished(self) -> bool:
        return self._previous is not None and is_finished(self.path, self._previous)

    def reopen(self) -> None:
        """Treat a finished run as unfinished, because some of its files are missing or are to be made again."""
        self.already_finished = False
        if self.writes:
            self._hold()
            remove_left_over(self.path)
            self._begin()

    def _refuse_if_different(self, *parts: str) -> None:
        assert self._previous is not None
        for part in parts:
            then, now = self._previous.get(part), self.record[part]
            if part == "settings":
                then = _settings_then(self._previous, now, self.complete)
            if _as_text(then) != _as_text(now):
                replace = "" if part == "command" else ", or add --overwrite to replace that run"
                raise UsageError(
                    f"--out {self.path} holds another run: {_difference(then, now)}.",
                    expected="the same settings, to continue that run, or a new folder",
                    fix=f"choose another --out{replace}",
                )

    def _begin(self) -> None:
        self._begun = True
        write_json(self.path / "run.json", self.record)

    def __enter__(self) -> RunDir:
        self._start = time.monotonic()
        self.path = Path(self.processes.tell(str(self.path)))
        self.already_finished = self.processes.tell(self.already_finished)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(kind, error)
        finally:
            self._let_go()

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        if not self._begun:
            return
        if kind is not None and issubclass(kind, PhyscliError) and self._withdraw():
            return
        if self._aside is not None:
            shutil.rmtree(self._aside)
        self.record |= {"duration_s": self._seconds(), "hardware": hardware()}
        if kind is None:
            self.record["status"] = "finished"
        elif issubclass(kind, KeyboardInterrupt):
            self.record["status"] = "interrupted"
            self.reporter.warn(f"Interrupted. What is finished is kept; to go on: {self._again()}")
        else:
            self.record["status"] = "failed"
            first_line = (str(error).splitlines() or [""])[0]
            self.record["error"] = f"{kind.__name__}: {first_line}"
        # On a full disk the record cannot be written; the error that brought us here is the one to tell.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            write_json(self.path / "run.json", self.record)

    def as_finished(self) -> dict[str, Any]:
        """The record that run.json will be, if nothing more goes wrong."""
        return self.record | {"status": "finished", "duration_s": self._seconds(), "hardware": hardware()}

    def _seconds(self) -> float:
        return round(time.monotonic() - self._start, 2)

    def _again(self) -> str:
        """The command that continues this run."""
        words = self.record["command"].split()
        own = sys.argv[1 : 1 + len(words)] == words  # a run within another command's is continued by that command
        again = ["physcli", *(word for word in sys.argv[1:] if word != "--overwrite")]

        def given(option: str) -> bool:
            return any(word == option or word.startswith(f"{option}=") for word in again)

        if own and not given("--out"):
            again += ["--out", str(self.path)]
        if own and not given("--resume") and any(self.path.glob("checkpoint-*")):
            again += ["--resume", "latest"]
        return shlex.join(again)

    def _withdraw(self) -> bool:
        """Remove a folder this run made and put nothing into but its record; whether it did."""
        if self.path not in self._made and self._aside is None:
            return False
        if [path.name for path in self.path.iterdir()] != ["run.json"]:
            return False
        (self.path / "run.json").unlink()
        if self._aside is not None:
            self.path.rmdir()
            self._aside.rename(self.path)
            return True
        for folder in self._made:
            with contextlib.suppress(OSError):  # another run has begun in the parent
                folder.rmdir()
        return True

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write `metrics.json`: a JSON list of rows."""
        write_json(self.path / "metrics.json", list(rows))


def with_defaults(
    given: Any,
    resolved: Any = None,
    *,
    spread: Mapping[str, Mapping[str, Any]] | None = None,
    gone: Mapping[str, Any] | None = None,
) -> Complete:
    """For `RunDir`: a setting that a run does not name counts as its default, or as what that is resolved to today.

    Args:
        given: A dataclass of settings as they were given: fields at their default are known by it.
        resolved: The same, as they are recorded; as given by default.
        spread: Fields that are mappings, and stand in the record as their entries: name → those entries' defaults.
        gone: Settings that there are none of any more → the value at which a run that names them is still the same.
    """
    now = asdict(given if resolved is None else resolved)
    defaults = {}
    for field in fields(given):
        if field.default_factory is not MISSING:
            default: Any = field.default_factory()
        elif field.default is not MISSING:
            default = field.default
        else:
            continue  # was always there
        defaults[field.name] = now[field.name] if getattr(given, field.name) == default else default
    for name, entries in (spread or {}).items():
        defaults.pop(name)
        defaults |= entries
    left_out = dict(gone or {}).items()
    return lambda then: {**defaults, **{name: value for name, value in then.items() if (name, value) not in left_out}}


def same_settings(record: Mapping[str, Any], settings: Mapping[str, Any], complete: Complete) -> bool:
    """Whether a run or checkpoint with this record was made with these settings; `complete` as for `RunDir`."""
    now = _plain(settings)
    return _as_text(_settings_then(record, now, complete)) == _as_text(now)


def _settings_then(record: Mapping[str, Any], now: Any, complete: Complete | None) -> Any:
    """The settings in a record; those that there were none of yet have their defaults, those that are gone since and
    had not been given are left out.

    The record holds every setting as it was resolved, so a default that has changed since is noticed, as another value.
    """
    then = record.get("settings", {})
    if complete is None or not isinstance(then, Mapping) or record.get("settings_version", 1) != SETTINGS_VERSION:
        return then
    if "mujoco" in now:  # an older run does not name it as a setting, but what was installed
        then = {"mujoco": record.get("versions", {}).get("mujoco", now["mujoco"]), **then}
    return _plain(complete({key: value for key, value in then.items() if value is not None or key in now}))


def _as_text(settings: Any) -> str:
    return json.dumps(settings, sort_keys=True)


def _difference(then: Any, now: Any) -> str:
    """The first setting that differs, in words."""
    if not isinstance(then, Mapping) or not isinstance(now, Mapping):
        return f"it is a run of `{then}`"
    changed = next(key for key in sorted({*then, *now}) if then.get(key) != now.get(key))
    if isinstance(then.get(changed), Mapping) and isinstance(now.get(changed), Mapping):
        return f"{changed}.{_difference(then[changed], now[changed])}"
    return f"{changed} was {_short(then.get(changed))}, now {_short(now.get(changed))}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def read_run(path: Path) -> dict[str, Any] | None:
    """The `run.json` of a run directory, or None if the folder holds none.

    Raises:
        PhyscliError: it holds one that is not JSON.
    """
    file = path / "run.json"
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise PhyscliError(
            f"{file} is not the record of a run.",
            expected="the JSON object physcli wrote there",
            fix="remove the folder or choose another --out",
        )
    return record


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a finished run."""
    return json.loads((path / "metrics.json").read_text(encoding="utf-8"))


def is_finished(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether the run with this `run.json` came to its end, and its metrics are there."""
    if record.get("status") != "finished":
        return False
    try:
        read_metrics(path)
    except (OSError, ValueError):
        return False
    return True
