"""Shared fixtures: one small simulated dataset, one cache, one probe a test session."""

from __future__ import annotations

import os

# Before numpy and torch are imported: test workers share the cores, and threads of their own would only be in the way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dataclasses
import gc
import hashlib
import json
import multiprocessing
import socket
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from filelock import FileLock

from physcli.data.video import write_video
from physcli.progress import Bar, Reporter
from physcli.tasks.simulate import SimulateSettings, simulate

SMALL = SimulateSettings(num_train=28, num_test=12, scenarios=("collide", "roll"), seed=3)


@pytest.fixture(scope="module", autouse=True)
def _no_search_of_libraries_for_garbage():
    """A search for circles of references takes 0.3 s among all that torch and diffusers make on import."""
    gc.freeze()


@pytest.fixture(scope="session")
def small():
    """Settings of the `simulated` fixture."""
    return SMALL


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """A cache folder that all tests of this process share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once("name", settings)`: a simulated dataset, made by one process for all test workers."""
    here = tmp_path_factory.getbasetemp()
    shared = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here

    def go(name, settings):
        with FileLock(shared / f"{name}.lock"):
            simulate(settings, out=shared / name, workers=1)  # a finished one is left as it is
        return shared / name

    return go


@pytest.fixture(scope="session")
def simulated(made_once):
    """40 simulated clips."""
    return made_once("simulated", SMALL)


class Listener(Reporter):
    """Remembers what was said and the bars that were shown (description → total).

    It ends the run as Ctrl-C would, at once, after `stop_at` units of the bar of that description or unit.
    """

    def __init__(self, stop_at=None, during="Training"):
        self.said, self.notes, self.warnings, self.bars = [], [], [], {}
        self.stop_at, self.during = stop_at, during

    def note(self, message):
        self.said.append(message)
        self.notes.append(message)

    def warn(self, message):
        self.said.append(message)
        self.warnings.append(message)

    @contextmanager
    def bar(self, description, total, unit="it"):
        outer = self
        self.bars[description] = total

        class Counting(Bar):
            count = 0

            def advance(self, amount=1):
                self.count += amount
                if outer.stop_at and outer.during in (description, unit) and self.count >= outer.stop_at:
                    raise KeyboardInterrupt

        yield Counting()


@pytest.fixture(scope="session")
def listener():
    """`listener(stop_at=3)`: a new `Listener`."""
    return Listener


@pytest.fixture(scope="session")
def few(made_once):
    """12 simulated clips, 8 of them for training: where every held-out clip costs something."""
    return made_once("few", dataclasses.replace(SMALL, num_train=8, num_test=4))


# What a process of `start` runs: `code`, as if by `python -c`, in this environment, with both outputs in files.
_CHILD = """
import gc, os, sys
gc.freeze()
os.environ.clear()
os.environ.update(environment)
os.chdir(cwd)
for number, path in enumerate(outputs, 1):
    os.dup2(os.open(path, os.O_WRONLY), number)
exec(code, {"__name__": "__main__"})
"""


class _Process:
    """A process of its own. `wait()` ends with it, as `subprocess.run` does; `pid` until then."""

    def __init__(self, context, folder, code, env, cwd):
        self.outputs = [folder / name for name in ("stdout.txt", "stderr.txt")]
        for path in self.outputs:
            path.touch()
        environment = {name: value for name, value in (os.environ | (env or {})).items() if value is not None}
        names = {"code": code, "environment": environment, "cwd": cwd or os.getcwd(), "outputs": self.outputs}
        self.process = context.Process(target=exec, args=(_CHILD, names | {"__name__": "child"}))
        self.process.start()
        self.pid = self.process.pid

    def running(self):
        return self.process.exitcode is None

    def wait(self, timeout=300):
        self.process.join(timeout)
        if self.running():
            self.process.kill()
            pytest.fail("it hangs")
        said = [path.read_text(encoding="utf-8") for path in self.outputs]
        return subprocess.CompletedProcess([], self.process.exitcode, *said)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """`start(code, env={…}, cwd=…)`: Python code in a process of its own, as by `python -c`, but at once.

    It is forked from a server that has imported what takes seconds, and done nothing yet. So only what a library reads
    of its environment when it is imported is out of reach (`HF_HOME`, say): that takes a `subprocess`.
    """
    context = multiprocessing.get_context("forkserver")
    # Not `physcli.cli`: it takes the terminal's width from the environment when it is imported.
    context.set_forkserver_preload(
        [
            *("typer", "typer.rich_utils", "rich.live", "rich.table", "rich.progress", "rich.traceback", "yaml"),
            *("physcli.tasks.finetune", "physcli.tasks.probe_physion", "physcli.tasks.sample", "physcli.tasks.compare"),
            *("physcli.tasks.simulate", "physcli.tasks.precompute", "physcli.models.cogvideox"),
            *("physcli.models.encoders.videomae", "accelerate.data_loader", "sklearn.linear_model"),
            *("diffusers.pipelines.cogvideo.pipeline_cogvideox", "transformers.models.t5.modeling_t5"),
            *("transformers.models.videomae.modeling_videomae", "matplotlib.pyplot", "matplotlib.backends.backend_agg"),
        ]
    )
    return lambda code, *, env=None, cwd=None: _Process(context, tmp_path_factory.mktemp("process"), code, env, cwd)


@pytest.fixture(scope="session")
def start_physcli(start):
    """`start_physcli("models", "ls", env={…}, cwd=…, before="code")`: the command line in a process of its own."""

    def go(*arguments, before="", **options):
        words = ["physcli", *map(str, arguments)]
        code = f"import sys\nsys.argv = {words!r}\n{before}\nfrom physcli.cli.app import main\nmain()"
        return start(code, **options)

    return go


@pytest.fixture(scope="session")
def run_physcli(start_physcli):
    """`run_physcli("models", "ls", columns=80, …)`: it, ended: its `returncode`, `stdout` and `stderr`."""

    def go(*arguments, columns=80, env=None, timeout=300, **options):
        return start_physcli(*arguments, env={"COLUMNS": str(columns)} | (env or {}), **options).wait(timeout)

    return go


@pytest.fixture(scope="session")
def two_processes():
    """`two_processes(begin)`: `begin(environment)` for each of two ranks, as torchrun would, and how both ended."""

    def go(begin):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [begin(common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
        return [rank.wait() for rank in ranks]

    return go


def write_eval_run(
    folder,
    scores,
    *,
    prompts=None,
    per_prompt=1,
    videos=False,
    groups=("a", "b"),
    rater=None,
    benchmark="laws",
    subject="cogvideox-tiny",
    status="finished",
    higher=None,
    seed=0,
    tint=0,
):
    """An eval run as `physcli eval` leaves it. `scores` is metric → values, one a video; None where there is none."""
    folder.mkdir(parents=True)
    num = len(next(iter(scores.values())))
    rows = []
    for number in range(num):
        prompt = (
            f"A red ball rolls, number {number // per_prompt}." if prompts is None else prompts[number // per_prompt]
        )
        index = number % per_prompt
        row = {"video": f"videos/{number}.mp4", "caption": prompt, "prompt": prompt, "index": index}
        digest = hashlib.sha256(f"{seed}/{prompt}/{index}".encode()).digest()
        row |= {"seed": int.from_bytes(digest[:4], "little"), "group": groups[number % len(groups)]}
        rows.append(row | {metric: values[number] for metric, values in scores.items()})
        if videos:
            (folder / "videos").mkdir(exist_ok=True)
            frames = np.full((9, 64, 64, 3), 30 + tint, np.uint8)
            for t in range(9):
                frames[t, 20:40, 4 + 5 * t : 16 + 5 * t] = (220, 40 + number * 20 % 200, 40)
            write_video(folder / "videos" / f"{number}.mp4", frames, 10)
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    metrics = []
    for metric, values in scores.items():
        known = [float(value) for value in values if value is not None]
        metrics.append(
            {
                "benchmark": benchmark,
                "task": "score",
                "subject": subject,
                "split": "all",
                "group": "all",
                "metric": metric,
                "value": sum(known) / len(known) if known else None,
                "stderr": float(np.std(known) / len(known) ** 0.5) if known else None,
                "n": len(known),
                "higher_is_better": (higher or {}).get(metric, True),
            }
            | ({"rater": rater} if rater else {})
        )
    (folder / "metrics.json").write_text(json.dumps(metrics))
    record = {"command": f"eval {benchmark}", "settings": {"videos": str(folder)}, "inputs": {}, "status": status}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def eval_run():
    """`write_eval_run`."""
    return write_eval_run
