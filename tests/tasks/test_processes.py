"""What a launcher says of itself, and the launcher that says too little."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

import physcli
from physcli.tasks import processes
from physcli.tasks.processes import Processes, on_cpu, start_all_processes

LAUNCH = ["python", "/usr/bin/accelerate", "launch"]
OWN = ["finetune", "--recipe", "r.yaml", "--out", "a b"]
# What accelerate's launcher sets when it starts one process although several were asked for.
ENVIRONMENT = {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_USE_CPU": "True",
}


class Replaced(Exception):
    """Instead of this process being replaced by another."""


@pytest.fixture
def launched(monkeypatch):
    """As if this process had been started by `command`, in accelerate's environment: what would it become?"""
    for name in (*processes._COUNTS, *ENVIRONMENT, processes._RELAUNCHED):
        monkeypatch.delenv(name, raising=False)

    def go(command, own=OWN, **environment):
        for name, value in (ENVIRONMENT | environment).items():
            if value is not None:
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["/x/physcli/__main__.py", *own])
        monkeypatch.setattr(psutil.Process, "cmdline", lambda self: command)
        became = []

        def execv(path, arguments):
            became.extend(arguments)
            raise Replaced

        monkeypatch.setattr(os, "execv", execv)
        try:
            start_all_processes()
        except Replaced:
            return became
        return None

    return go


@pytest.mark.parametrize(
    "options",
    [
        ["--cpu", "--num_processes", "3"],
        ["--cpu", "--num-processes=3"],
        ["--num_processes=3", "--cpu", "--mixed_precision", "no", "--num_machines", "1"],
    ],
)
def test_the_rest_is_started(launched, options):
    became = launched([*LAUNCH, *options, "-m", "physcli", *OWN])
    assert became[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert became[became.index("--nproc_per_node") + 1] == "3"
    assert became[became.index("--master_addr") + 1] == "127.0.0.1"
    assert 1024 < int(became[became.index("--master_port") + 1]) < 65536
    assert became[-len(OWN) - 2 :] == ["-m", "physcli", *OWN]
    assert os.environ[processes._RELAUNCHED] == "1"


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ([*LAUNCH, "--cpu", "--num_processes", "1", "-m", "physcli", *OWN], {}),
        ([*LAUNCH, "--cpu", "--num_processes", "3", "-m", "physcli", *OWN], {"WORLD_SIZE": "3"}),  # started by torchrun
        ([*LAUNCH, "--cpu", "--num_processes", "3", "-m", "physcli", *OWN], {"OMPI_COMM_WORLD_SIZE": "3"}),  # by MPI
        ([*LAUNCH, "--cpu", "--num_processes", "3", "-m", "physcli", *OWN], {"MASTER_ADDR": None}),
        ([*LAUNCH, "--cpu", "--num_processes", "3", "-m", "physcli", *OWN], {"PHYSCLI_RELAUNCHED": "1"}),
        ([*LAUNCH, "--num_processes", "3", "-m", "physcli", *OWN], {"ACCELERATE_USE_CPU": "False"}),  # for a GPU
        ([*LAUNCH, "--cpu", "--num_processes", "4", "--num_machines", "2", "-m", "physcli", *OWN], {}),
        ([*LAUNCH, "--cpu", "--num_processes", "many", "-m", "physcli", *OWN], {}),
        ([*LAUNCH, "--cpu", "--config_file", "c.yaml", "-m", "physcli", *OWN], {}),
        ([*LAUNCH, "--cpu", "--num_processes", "3", "-m", "physcli", "doctor"], {}),  # not our arguments
        (["bash", "run.sh", "--num_processes", "3"], {}),
        ([], {}),
    ],
)
def test_nothing_is_started(launched, command, environment):
    assert launched(command, **environment) is None


@pytest.mark.slow
def test_accelerate_itself():
    """The real launcher; its one process becomes two, each of which says its version."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    environment = {k: v for k, v in os.environ.items() if k not in (*processes._COUNTS, processes._RELAUNCHED)}
    done = subprocess.run(
        [*launcher, "-m", "physcli", "--version"], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["physcli", physcli.__version__] * 2


def test_our_own_arguments_are_not_the_launchers(launched):
    own = ["sample", "--prompt", "--num_processes", "7"]
    assert launched([*LAUNCH, "--cpu", "-m", "physcli", *own], own=own) is None
    assert launched([*LAUNCH, "--cpu", "--num_processes", "2", "-m", "physcli"], own=[])[-2:] == ["-m", "physcli"]


def test_a_parent_that_cannot_be_seen(launched, monkeypatch):
    def hidden(self):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "parent", hidden)
    assert launched([]) is None
    assert "One process runs" in Processes("cpu").warning


@pytest.mark.parametrize(
    ("command", "environment", "warned"),
    [
        (["bash", "run.sh"], {}, True),
        ([*LAUNCH, "--num_processes", "3", "-m", "physcli", *OWN], {"ACCELERATE_USE_CPU": "False"}, True),
        ([*LAUNCH, "--cpu", "--num_processes", "1", "-m", "physcli", *OWN], {}, False),
        ([*LAUNCH, "--cpu", "-m", "physcli", *OWN], {"MASTER_ADDR": None}, False),
        (["bash"], {"ACCELERATE_MIXED_PRECISION": None}, False),  # a cluster's MASTER_ADDR
    ],
)
def test_one_process_of_several_is_said(launched, command, environment, warned):
    assert launched(command, **environment) is None
    assert bool(Processes("cpu").warning) == warned


def test_where(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert on_cpu("cpu")
    assert not on_cpu("auto")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    assert not on_cpu("cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert on_cpu("auto")


def test_alone():
    alone = Processes("cpu")
    assert (alone.count, alone.rank, alone.is_main, alone.warning) == (1, 0, True, "")
    assert alone.share("abc") == "abc"
    assert alone.tell(3) == 3
    assert alone.collect([1]) == [1]
    alone.wait()
    alone.finish()
