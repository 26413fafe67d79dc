"""Worker processes for jobs on the CPU that do not need each other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

Job = TypeVar("Job")
Done = TypeVar("Done")


def run_jobs(do: Callable[[Job], Done], jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Done]]:
    """Do jobs in so many processes.

    Args:
        do: A function of a module, which workers import.
        jobs: What can be pickled.
        workers: Of 1 or less, the jobs are done here.

    Yields:
        A job and what came of it, as soon as it is done.
    """
    if workers <= 1:
        for job in jobs:
            yield job, do(job)
        return
    # Not fork: torch's and MuJoCo's threads do not survive it.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)
    futures: dict[Future[Done], Job] = {}
    try:
        with _interrupts_held():  # the first jobs start the workers
            for job in jobs:
                futures[pool.submit(do, job)] = job
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# Ctrl-C reaches the whole process group, but the parent alone decides: its workers finish the jobs at hand.


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C for the end of the block. Processes started within never see one, even while they import."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # New processes inherit the mask; here it is not enough, for the system may hand the signal to another thread.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed tells its workers nothing: they would wait for more to do, for good."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
