"""`physcli bench faults`: whether runs that a machine has broken off go on to the bytes of unbroken ones.

A tiny run of each command is done once as it should be. Then it is broken in a fresh folder, and given again as a user
would: the same command line, with `--resume latest` where the message asks for it. Afterwards every file must be that
of the unbroken run, but for what `_same` says. The faults:

    kill            SIGKILL to the whole process group at a moment of the run
    kill at write   the same right before a file is opened for writing, renamed or removed, or a folder made
    full disk       room for a part of what the run writes; given again with more
    read-only disk  before the run has begun, and in its middle; given again once it can be written
    vanishing file  an input is removed right before it is read, or once it was hashed; given again when it is back
    two at once     the same command twice on one --out

Each try ends in one of four ways: *early*, as nothing had been written yet; *exact*; *refused*, with one message and an
exit code, and exact once what it complains of is mended; or *wrong*: other bytes, a traceback, a run.json that lies.

The processes are forked from a server that has imported what takes seconds and done nothing yet, so that moments fall
into the run and not into imports.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from physcli.errors import PhyscliError, UsageError, unknown
from physcli.files import is_left_over, read_tensors
from physcli.models.names import resolve
from physcli.progress import Reporter
from physcli.tasks.bench.timing import row
from physcli.tasks.run_dir import is_finished, read_run
from physcli.tasks.simulate import SimulateSettings, simulate

EARLY, EXACT, REFUSED, WRONG = OUTCOMES = ("early", "exact", "refused", "wrong")
FAULTS = ("kill", "kill at write", "full disk", "read-only disk", "vanishing file", "two at once")

# In a run's folder: what is to be watched over. `disk` may be a disk of its own.
_OUT, _CACHE = "disk/out", "disk/cache"
_TRAIN = (
    *("--recipe", "repa", "--data", "inputs/clips", "--device", "cpu", "objective.frames=9", "objective.strides=[1]"),
    *("objective.samples=1", "objective.sample_steps=2"),
)
_STEPS = ("--steps", "4", "train.batch_size=2", "train.checkpoint_every=1", "train.keep_checkpoints=2")
_PROMPTS = ("a red ball rolls", "a blue box falls", "a green ball and a box")
# Command → its arguments, and the folders it reads. All give the same bytes whenever they run.
_COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "finetune": (("finetune", *_TRAIN, *_STEPS, "train.validate_every=3"), ("clips",)),
    "precompute": (("data", "precompute", *_TRAIN, "objective.windows=5"), ("clips",)),
    "sample": (
        (
            *("sample", "--model", "inputs/model", "--steps", "4", "--num-frames", "9", "--device", "cpu"),
            *(f"--prompt={prompt}" for prompt in _PROMPTS),
        ),
        ("model",),
    ),
    "eval": (("eval", "laws", "--videos", "inputs/clips", "--device", "cpu"), ("clips",)),
    "simulate": (("data", "simulate", "--num-clips", "12", "--workers", "1"), ()),
}
COMMANDS = tuple(_COMMANDS)

_CLIPS = SimulateSettings(num_train=6, num_test=2, scenarios=("collide", "roll"), purpose="finetune")
_SERVED = (
    *("typer", "rich.live", "rich.progress", "rich.table", "yaml", "accelerate.data_loader", "sklearn.linear_model"),
    *("physcli.tasks.finetune", "physcli.tasks.precompute", "physcli.tasks.sample", "physcli.tasks.eval"),
    *("physcli.tasks.simulate", "physcli.benchmarks.laws", "physcli.models.cogvideox"),
    *("physcli.models.encoders.videomae", "matplotlib.pyplot", "matplotlib.backends.backend_agg"),
    *("diffusers.pipelines.cogvideo.pipeline_cogvideox", "transformers.models.t5.modeling_t5"),
    *("transformers.models.videomae.modeling_videomae", "physcli.cli.app"),
)
_READ = (".mp4", ".npz", ".safetensors")
_PATIENCE_S = 300


def bench_faults(
    *,
    commands: Sequence[str] = COMMANDS,
    faults: Sequence[str] = FAULTS,
    kills: int = 20,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Break runs and count what becomes of them.

    Args:
        commands: Of `COMMANDS`.
        faults: Of `FAULTS`.
        kills: Tries of each command with each kind of kill, spread evenly over the run; of the other faults a fifth.
        seed: Of the moments.
        reporter: Receives progress, and a warning for everything that is wrong.

    Returns:
        Rows: how many tries, and how many of them ended early, exact, refused, wrong; a group for each command and
        fault.

    Raises:
        UsageError: no such command or fault, or a system without SIGKILL and fork.
        PhyscliError: an unbroken run fails.
    """
    reporter = reporter or Reporter()
    for name in commands:
        if name not in _COMMANDS:
            raise unknown("command", name, _COMMANDS)
    for name in faults:
        if name not in FAULTS:
            raise unknown("fault", name, FAULTS)
    if not hasattr(signal, "SIGKILL") or "forkserver" not in multiprocessing.get_all_start_methods():
        raise UsageError("This system has no SIGKILL, or no fork.", expected="Linux or macOS")
    rows = []
    with tempfile.TemporaryDirectory(prefix="physcli-faults-") as work:
        _make_inputs(Path(work) / "inputs", {name for command in commands for name in _COMMANDS[command][1]})
        for command in commands:
            bench = _Bench(command, Path(work), seed, reporter)
            for fault in faults:
                few = max(1, kills // 5)
                tries = kills if fault in ("kill", "kill at write") else few
                if fault == "vanishing file" and not _COMMANDS[command][1]:
                    continue
                if reason := _impossible(fault):
                    reporter.note(f"{fault}: left out, {reason}")
                    continue
                with reporter.bar(f"{command}: {fault}", tries, "try") as bar:
                    ended = [bench.one(fault, number, tries, bar.advance) for number in range(tries)]
                counts = {"tries": tries} | {name: ended.count(name) for name in OUTCOMES}
                group = f"{command}: {fault}"
                rows += [row("faults", command, group, name, count, tries, None) for name, count in counts.items()]
    return rows


class Wrong(Exception):
    """A run left what it should not, or said what is not so."""


# --- processes ---


@dataclass
class _Process:
    """A `physcli` process, in a process group of its own."""

    process: Any
    log: Path
    started: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended after so many seconds since its start."""
        self.process.join(max(0.0, seconds - (time.monotonic() - self.started)))
        return self.process.exitcode is not None

    def kill(self) -> None:
        for send in (os.killpg, os.kill):  # it may not have made its group yet
            with contextlib.suppress(ProcessLookupError):
                send(self.process.pid, signal.SIGKILL)
        self.process.join()

    def end(self) -> int:
        """Its exit code.

        Raises:
            Wrong: it hangs, or shows a traceback.
        """
        if not self.wait(_PATIENCE_S):
            self.kill()
            raise Wrong(f"it hangs: {self.said()[-300:]}")
        if "Traceback (most recent call last)" in self.said():
            raise Wrong(f"a traceback: {self.said().strip()[-600:]}")
        return self.process.exitcode

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def _physcli(
    words: Sequence[str], folder: str, log: str, kill_at: int | None, lose_at: int | None, largest: int | None
) -> None:
    """In the new process: the command line.

    Args:
        words: Of the command line.
        folder: Where it runs.
        log: Gets all that it says.
        kill_at: It dies before that change of a file below `disk`.
        lose_at: When it opens a file of `inputs` for that time, the one that it opened before is removed, and the first
            time that very one: hashed and not yet read, or not even hashed.
        largest: No file may be larger, in bytes.
    """
    os.setsid()
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if largest is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    disk, inputs = Path("disk").absolute(), Path("inputs").absolute()
    changes, opened = 0, list[Path]()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        try:
            path = Path(os.fsdecode(arguments[0])).absolute()
        except (TypeError, ValueError):  # a descriptor
            return
        mode, flags = arguments[1:3] if event == "open" else ("w", 0)
        writes = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set(mode) & set("wax+")
        if writes and path.is_relative_to(disk):
            changes += 1
            if changes == kill_at:
                os.killpg(0, signal.SIGKILL)
        elif not writes and path.is_relative_to(inputs) and path.suffix in _READ:
            opened.append(path)
            if len(opened) == lose_at:
                opened[max(0, len(opened) - 2)].unlink(missing_ok=True)

    sys.addaudithook(watch)
    sys.argv = ["physcli", *words]
    try:
        runpy.run_module("physcli", run_name="__main__", alter_sys=True)
    finally:
        Path(f"{log}.json").write_text(json.dumps([changes, len(opened)]))


def _server() -> Any:
    """A context whose processes are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_SERVED))
    before = dict(os.environ)
    # One thread, for others do not survive a fork; no network; and no word about what the killed have not given back.
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


# --- one command ---


class _Bench:
    """A command, what its unbroken run left, and ways to break it."""

    def __init__(self, command: str, work: Path, seed: int, reporter: Reporter) -> None:
        self.command, self.seed, self.reporter = command, seed, reporter
        self.words, self.reads = _COMMANDS[command]
        self.inputs, self.folder = work / "inputs", work / "run"
        self.context = _server()
        self._fresh()
        self.start().end()  # what is done but once in a process's life on this machine: fonts, compiled files
        self._fresh()
        started = time.monotonic()
        process = self.start()
        code = process.end()
        self.seconds = time.monotonic() - started
        if code:
            raise PhyscliError(f"The unbroken run of {command} fails:\n{process.said()}", expected="exit code 0")
        self.operations, self.opened = json.loads(Path(f"{process.log}.json").read_text())
        self.whole = products(self.folder / "disk")
        self.num_bytes = sum(path.stat().st_size for path in (self.folder / "disk").rglob("*") if path.is_file())
        reporter.note(f"{command}: {self.seconds:.1f} s, {self.operations} operations on files, unbroken.")

    def start(
        self, *more: str, kill_at: int | None = None, lose_at: int | None = None, largest: int | None = None
    ) -> _Process:
        """The command, in a process of its own."""
        log = Path(tempfile.mkstemp(dir=self.folder, suffix=".log")[1])
        words = (*self.words, "--out", _OUT, "--cache-dir", _CACHE, *more)
        arguments = (words, str(self.folder), str(log), kill_at, lose_at, largest)
        process = self.context.Process(target=_physcli, args=arguments)
        process.start()
        return _Process(process, log)

    def _fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "disk").mkdir(parents=True)
        for name in self.reads:
            shutil.copytree(self.inputs / name, self.folder / "inputs" / name)

    def one(self, fault: str, number: int, tries: int, advance: Callable[[], None]) -> str:
        """Try `number` of `tries`, each in its part of the run; how it ended."""
        rng = random.Random(f"{self.seed}/{self.command}/{fault}/{number}")
        share = (number + rng.random()) / tries
        self._fresh()
        do = {
            "kill": self._kill,
            "kill at write": self._kill_at_write,
            "full disk": self._full_disk,
            "read-only disk": self._read_only,
            "vanishing file": self._vanishing,
            "two at once": self._two,
        }[fault]
        try:
            return do(share, rng)
        except Wrong as problem:
            self.reporter.warn(f"{self.command}, {fault} at {share:.3f}: {problem}")
            return WRONG
        finally:
            advance()

    # Each breaks the run at `share` of it and returns how it went on.

    def _kill(self, share: float, rng: random.Random) -> str:
        for shorter in range(5):  # it may be over sooner than the unbroken run was
            process = self.start()
            if not process.wait(share * self.seconds * 0.9**shorter):
                process.kill()
                return self._after_kill()
            process.end()
            self._fresh()
        raise Wrong("it ends before it can be killed")

    def _kill_at_write(self, share: float, rng: random.Random) -> str:
        process = self.start(kill_at=1 + int(share * self.operations))
        if not process.wait(_PATIENCE_S) or process.process.exitcode != -signal.SIGKILL:
            raise Wrong(f"it was not killed: {process.said()[-300:]}")
        return self._after_kill()

    def _full_disk(self, share: float, rng: random.Random) -> str:
        room = int(share * self.num_bytes)
        if _can_mount():
            with _disk(self.folder / "disk", room) as remount:
                ended = self._ends(self.start())
                remount(f"size={4 * self.num_bytes}")
                return self._goes_on(ended)
        largest = max(path.stat().st_size for path in (self.folder / "disk").rglob("*") if path.is_file())
        return self._goes_on(self._ends(self.start(largest=int(share * largest))))

    def _read_only(self, share: float, rng: random.Random) -> str:
        with _disk(self.folder / "disk", 4 * self.num_bytes) as remount:
            if rng.random() < 0.75:  # else nothing has been written yet
                process = self.start()
                if not process.wait(share * self.seconds):
                    process.kill()
            remount("ro")
            ended = self._ends(self.start(*self._resume()))
            remount("rw")
            return self._goes_on(ended)

    def _vanishing(self, share: float, rng: random.Random) -> str:
        ended = self._ends(self.start(lose_at=1 + int(share * self.opened)))
        inputs = self.folder / "inputs"
        files = [path for name in self.reads for path in (self.inputs / name).rglob("*")]
        gone = [path for path in files if not (inputs / path.relative_to(self.inputs)).exists()]
        for path in gone:
            shutil.copyfile(path, inputs / path.relative_to(self.inputs))
        try:
            return self._goes_on(ended)
        except Wrong as problem:
            raise Wrong(f"without {', '.join(path.name for path in gone)}: {problem}") from None

    def _two(self, share: float, rng: random.Random) -> str:
        first = self.start()
        first.wait(share * self.seconds)
        second = self.start()
        ended = [self._ends(first), self._ends(second)]
        if REFUSED in ended and EXACT not in ended:
            raise Wrong("both are refused")
        self._compare()
        return REFUSED if REFUSED in ended else EXACT

    # What is looked at afterwards.

    def _after_kill(self) -> str:
        """Whether run.json is true, and whether the run goes on."""
        out = self.folder / _OUT
        try:
            record = read_run(out)
        except PhyscliError as error:
            raise Wrong(str(error)) from None
        if record is not None and record["status"] == "finished":
            self._compare()  # it is, to the last file
        elif record is not None and record["status"] != "running":
            raise Wrong(f"run.json says {record['status']} of a killed run")
        before = EARLY if not any((self.folder / "disk").rglob("*.*")) else EXACT
        ended = self._ends(self.start(*self._resume()))
        if ended == REFUSED:
            raise Wrong("it does not go on")
        self._compare()
        return before

    def _resume(self) -> tuple[str, ...]:
        """What a user adds to the same command: --resume latest, once there is a checkpoint."""
        out = self.folder / _OUT
        record = read_run(out)
        unfinished = record is not None and not is_finished(out, record)
        return ("--resume", "latest") if unfinished and any(out.glob("checkpoint-*")) else ()

    def _ends(self, process: _Process) -> str:
        """`exact` if it ends well, which is yet to be seen; `refused` if with one message."""
        code = process.end()
        if code == 0:
            return EXACT
        errors = re.findall(r"^Error:", process.said(), re.MULTILINE)
        if code not in (1, 2) or len(errors) != 1:
            raise Wrong(f"exit code {code} with {len(errors)} messages: {process.said()[-600:]}")
        record = read_run(self.folder / _OUT)
        if record is not None and record["status"] == "finished":
            self._compare()
        return REFUSED

    def _goes_on(self, ended: str) -> str:
        """Given again after what was in its way is gone."""
        if ended == REFUSED:
            again = self.start(*self._resume())
            if self._ends(again) == REFUSED:
                raise Wrong(f"it does not go on: {again.said().strip()[-600:]}")
        self._compare()
        return ended

    def _compare(self) -> None:
        found = products(self.folder / "disk")
        differ = sorted(name for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name))
        if differ:
            how = ["left" if n not in self.whole else "missing" if n not in found else "other" for n in differ]
            named = ", ".join(f"{name} ({why})" for name, why in zip(differ[:5], how, strict=False))
            raise Wrong(f"{len(differ)} files differ: {named}")


# --- what a run leaves ---

# What may differ between an unbroken run and one that was broken and went on: times, and how it was done.
_TIMES = {"started", "duration_s", "seconds", "arguments", "resumed_at"}
_COUNTED = {"seconds_per_video", "clips_per_second", "kept", "computed"}  # rows of metrics.json: a value is theirs


def products(folder: Path) -> dict[str, str]:
    """All files below `folder` (hidden ones, too) → hash of what must be the same.

    Left out are only: `_TIMES` and the values of `_COUNTED` in JSON; the date and the duration in a report; and of the
    cache, which others may be writing to, which values lie together in a shard (each tensor counts as a file), the
    times of change it notes, and what is half-written for an hour.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        in_cache = name.startswith("cache/")
        if not path.is_file() or (in_cache and (path.name == ".verified.json" or is_left_over(path))):
            continue
        if in_cache and path.suffix == ".safetensors":
            for key, tensor in read_tensors(path)[0].items():
                value = f"{tensor.dtype}{list(tensor.shape)}".encode() + tensor.numpy().tobytes()
                found[f"{path.parent.relative_to(folder).as_posix()}/{key}"] = hashlib.sha256(value).hexdigest()
            continue
        found[name] = hashlib.sha256(_same(path)).hexdigest()
    return found


def _same(path: Path) -> bytes:
    """A file's content without what may differ."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(content))).encode()
    if path.name == "report.html":
        times = rb'<tr><th scope="row">(?:started|duration \(s\))</th>.*?</tr>'
        return re.sub(times, b"", content, flags=re.DOTALL)
    if path.suffix == ".jsonl":
        return json.dumps([_timeless(json.loads(line)) for line in content.decode().split("\n") if line]).encode()
    return content


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    left = _TIMES | ({"value", "stderr", "low", "high"} if value.get("metric") in _COUNTED else set())
    return {key: _timeless(item) for key, item in value.items() if key not in left}


# --- disks ---


def _impossible(fault: str) -> str | None:
    """Why a fault cannot be made here, or None."""
    if fault == "read-only disk" and not _can_mount() and os.geteuid() == 0:
        return "root writes into read-only folders, and no disk can be mounted here"
    return None


@functools.cache
def _can_mount() -> bool:
    """Whether this user may, and the system knows tmpfs."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _mounted(Path(folder), 2**20):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextlib.contextmanager
def _mounted(folder: Path, num_bytes: int) -> Iterator[None]:
    _mount("-t", "tmpfs", "-o", f"size={max(num_bytes, 4096)}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@contextlib.contextmanager
def _disk(folder: Path, num_bytes: int) -> Iterator[Callable[[str], None]]:
    """A disk of that size at `folder`, and a way to change it: `ro`, `rw`, `size=…`.

    Without the right to mount, `folder` itself: its size cannot be changed, its permissions can.
    """
    if _can_mount():
        with _mounted(folder, num_bytes):
            yield lambda option: _mount("-o", f"remount,{option}", str(folder))
        return

    def change(option: str) -> None:
        for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            path.chmod(0o555 if option == "ro" else 0o755)

    yield change


def _make_inputs(folder: Path, names: set[str]) -> None:
    """Clips and a model, to be read by all runs."""
    if "clips" in names:
        simulate(_CLIPS, out=folder / "clips", workers=1)
    if "model" in names:
        built_in = resolve("cogvideox-tiny").path
        assert built_in is not None
        shutil.copytree(built_in, folder / "model")
