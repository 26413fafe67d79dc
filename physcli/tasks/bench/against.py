"""`physcli bench command`: a whole command of this build beside the same of another one, run in turn."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physcli.errors import UsageError
from physcli.progress import Reporter
from physcli.rows import Metric, interval_columns, make_row
from physcli.stats import bootstrap_interval
from physcli.tasks.bench.timing import ratio, row

OURS, THEIRS = "this build", "the other"
_MEGABYTE = 1024  # of the kilobytes that the system counts in
_LAST_LINES = 5  # of what a failing command said


@dataclass(frozen=True)
class Taken:
    """What one run of a command took: seconds, and the largest resident memory in MB of any of its processes."""

    seconds: float
    peak_mb: float
    exit_code: int
    said: str


def bench_command(
    arguments: Sequence[str],
    *,
    against: Path,
    rounds: int = 5,
    cold_cache: bool = False,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Time a command line from start to exit by two builds, which go first in turn.

    Args:
        arguments: Of `physcli`, without `--out`: each run is made in an empty folder of its own.
        against: The other build's virtual environment, or its Python.
        rounds: Timed runs of each; with a warm cache after one that is not timed.
        cold_cache: An empty cache for every run; else each build has one of its own, which it fills before.
        reporter: Receives progress.

    Returns:
        Rows: of each build the median and least seconds and the median of peak memory; and both ratios, ours over
        theirs, medians over rounds with bootstrap intervals.

    Raises:
        UsageError: no such environment, no command, or the two do not end alike.
    """
    reporter = reporter or Reporter()
    if not arguments:
        raise UsageError("No command.", expected="one after --", fix="physcli bench command --against ENV -- models ls")
    if "--out" in arguments:
        raise UsageError(
            "--out in the command.", expected="none: each run gets a folder of its own", fix="leave it out"
        )
    builds = {OURS: Path(sys.executable), THEIRS: find_python(against)}
    taken: dict[str, list[Taken]] = {name: [] for name in builds}
    with (
        tempfile.TemporaryDirectory(prefix="physcli-bench-") as folder,
        reporter.bar("Running", (rounds + (not cold_cache)) * 2, "run") as bar,
    ):
        for number in range(-(not cold_cache), rounds):
            for name in list(builds) if number % 2 else reversed(builds):
                place = Path(folder) / f"{name}-{number}"
                cache = place / "cache" if cold_cache else Path(folder) / f"{name}-cache"
                found = run_timed(builds[name], arguments, place=place, cache=cache, own=name == OURS)
                if number >= 0:
                    taken[name].append(found)
                _refuse_unlike(taken)
                bar.advance()
    return _rows(" ".join(arguments), taken)


def find_python(environment: Path) -> Path:
    """The Python of a virtual environment.

    Raises:
        UsageError: there is none, or it has no physcli.
    """
    found = environment if environment.is_file() else environment / "bin" / "python"
    if not found.is_file():
        found = environment / "Scripts" / "python.exe"
    if not found.is_file():
        raise UsageError(f"--against {environment}: no Python there.", expected="a virtual environment, or its python")
    asked = subprocess.run(
        [found, "-c", "import physcli"], capture_output=True, env=_environment({}, own=False), cwd="/"
    )
    if asked.returncode:
        raise UsageError(f"{found} has no physcli.", expected="an environment with another build of physcli")
    return found


def run_timed(python: Path, arguments: Sequence[str], *, place: Path, cache: Path, own: bool) -> Taken:
    """Run a command in a new folder, and wait for it.

    Args:
        python: Whose physcli.
        arguments: Of it.
        place: The working folder, which must not be there.
        cache: PHYSCLI_CACHE.
        own: This build, which may have been put on the path.
    """
    place.mkdir()
    said = place / "said.txt"
    with said.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            [python, "-m", "physcli", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=place,
            env=_environment({"PHYSCLI_CACHE": str(cache)}, own=own),
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = used.ru_maxrss / (1 if sys.platform == "linux" else _MEGABYTE)
    return Taken(seconds, peak / _MEGABYTE, process.returncode, said.read_text(encoding="utf-8", errors="replace"))


def _environment(more: Mapping[str, str], *, own: bool) -> dict[str, str]:
    """This process's; the other build must not find ours on a path that was set for it."""
    return {name: value for name, value in os.environ.items() if own or name != "PYTHONPATH"} | dict(more)


def _refuse_unlike(taken: Mapping[str, Sequence[Taken]]) -> None:
    """Raises UsageError where the runs do not all end with the same exit code."""
    runs = [(name, run) for name, found in taken.items() for run in found]
    codes = {run.exit_code for _, run in runs}
    if len(codes) > 1:
        name, run = max(runs, key=lambda pair: pair[1].exit_code)
        last = " / ".join(run.said.split("\n")[-_LAST_LINES:]).strip()
        raise UsageError(
            f"The command ends with exit codes {', '.join(map(str, sorted(codes)))}: {name} said {last}",
            expected="the same of both builds",
        )


def _rows(command: str, taken: Mapping[str, Sequence[Taken]]) -> list[dict[str, Any]]:
    rows = []
    for name, runs in taken.items():
        seconds = [run.seconds for run in runs]
        for metric, value in (
            ("seconds", statistics.median(seconds)),
            ("least_seconds", min(seconds)),
            ("peak_mb", statistics.median(run.peak_mb for run in runs)),
        ):
            rows.append(row("command", command, name, metric, value, len(runs), False))
    for metric in ("seconds", "peak_mb"):
        ours, theirs = ([getattr(run, metric) for run in taken[name]] for name in (OURS, THEIRS))

        def median(drawn: np.ndarray, ours: Sequence[float] = ours, theirs: Sequence[float] = theirs) -> float:
            return ratio([ours[n] for n in drawn], [theirs[n] for n in drawn])

        spread = bootstrap_interval(median, clusters=range(len(ours)))
        rows.append(
            make_row(
                Metric(metric, "score", False, interval="bootstrap"),
                ratio(ours, theirs),
                stderr=spread.stderr,
                **interval_columns(spread),
                benchmark="bench",
                task="command",
                subject=command,
                group="ratio",
                n=len(ours),
            )
        )
    return rows
