"""One process or many: the same command under `accelerate launch -m physcli …` shares its items out."""

from __future__ import annotations

import datetime
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, TypeVar

from physcli.errors import UsageError
from physcli.progress import Reporter

T = TypeVar("T")

# Others wait while the main process simulates or fits readouts; the default limit of minutes would end the run.
_PATIENCE = datetime.timedelta(hours=6)

# Where launchers (torchrun, and MPI in its three dialects) say how many processes there are.
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RELAUNCHED = "PHYSCLI_RELAUNCHED"
_CUT_SHORT = (
    "One process runs: `accelerate launch` started no more. "
    "`torchrun --nproc_per_node N -m physcli …` starts N; on GPUs, so does `accelerate launch --multi_gpu`."
)


def start_all_processes() -> None:
    """Make `accelerate launch --cpu --num_processes N -m physcli …` start N processes.

    On CPUs accelerate (1.8 to 1.15) starts one process whatever N is, without a message: whoever asked for two would
    wait twice as long and not know why. So that one process is replaced (exec) by torchrun, which starts N with the
    same arguments. N is in no environment variable, only in the command line of our parent (`_asked_for`); where that
    cannot be read, `Processes` warns and one process runs. To be called before any work is done; under any other
    launcher it does nothing.
    """
    count = _asked_for() if _is_cut_short() and on_cpu("auto") else 0
    # torchrun's children have a WORLD_SIZE and never come here; the mark is for a torchrun that would not set it.
    if count < 2 or _RELAUNCHED in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), "-m", "physcli", *sys.argv[1:]]
    os.environ[_RELAUNCHED] = "1"
    os.execv(command[0], command)


def on_cpu(device: str) -> bool:
    """Whether the CPU was asked for, by --device or by `accelerate launch --cpu`."""
    return device == "cpu" or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


def _is_cut_short() -> bool:
    """Whether `accelerate launch` was asked for several processes and started this one alone.

    It sets MASTER_ADDR for several; a launcher that did start them sets one of `_COUNTS` as well.
    """
    here = {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys()
    return here and not any(name in os.environ for name in _COUNTS) and _asked_for() != 1


def _asked_for() -> int:
    """N of the `accelerate launch --num_processes N` on one machine that is our parent; 0 if that cannot be learnt.

    It stands nowhere but in the parent's command line, which ends in our own arguments.
    """
    import psutil  # accelerate needs it, so it is there

    try:
        parent = psutil.Process().parent()
        command = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return 0
    own = sys.argv[1:]
    launcher = command[: len(command) - len(own)]
    if not any("accelerate" in word for word in launcher) or command[len(launcher) :] != own:
        return 0
    found = {"--num-processes": "0", "--num-machines": "1"}
    for word, following in zip(launcher, [*launcher[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in found:
            found[name] = value if equals else following
    count, machines = found.values()
    return int(count) if count.isdigit() and machines == "1" else 0


class Processes:
    """Which of the launched processes this is. Alone when not launched by accelerate or torchrun.

    Args:
        device: What the user asked for: "cpu", or anything torch finds.

    Attributes:
        warning: What the user should know of the launch, or "".

    Raises:
        UsageError: the launcher started several processes that cannot talk to each other.
    """

    _together: ClassVar[int] = 0  # such blocks that are open

    def __init__(self, device: str = "auto") -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = 0
        self._state = None
        self.warning = _CUT_SHORT if _is_cut_short() else ""
        if self.count > 1:
            import torch
            from accelerate import PartialState

            self._state = PartialState(cpu=on_cpu(device) or not torch.cuda.is_available(), timeout=_PATIENCE)
            if self._state.num_processes != self.count:
                raise UsageError(
                    f"{self.count} processes were launched, but accelerate sees {self._state.num_processes}.",
                    expected="a launch by `accelerate launch` or `torchrun`",
                    fix="check the launcher's settings with `accelerate env`",
                )
            self.rank = self._state.process_index

    @classmethod
    def alone(cls) -> Processes:
        """This process as if no other had been launched: what it does, it does in full and for itself."""
        found = cls.__new__(cls)
        found.count, found.rank, found.warning, found._state = 1, 0, "", None
        return found

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def reporter(self, given: Reporter | None) -> Reporter:
        """What is told to the user by the main process; the others are silent."""
        return given if given is not None and self.is_main else Reporter()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: every count-th item, so that parts are alike whatever the order."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def finish(self) -> None:
        """Wait for the others and part: a process that leaves early can take the others' connections with it. Inside a
        `together` they only wait: what comes after needs the connections."""
        if self._state is not None:
            self._state.wait_for_everyone()
            if not Processes._together:
                self._state.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which one command after another is run by the same processes; they part at its end."""
        Processes._together += 1
        try:
            yield
        finally:
            Processes._together -= 1
        self.finish()

    def tell(self, value: T) -> T:
        """The main process's value, on every process."""
        if self._state is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def collect(self, items: list[T]) -> list[T]:
        """All processes' items together, on every process."""
        if self._state is None:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)
