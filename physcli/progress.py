"""How a task tells its caller what it is doing, without printing.

Tasks take a `Reporter`; the base class is silent (libraries, tests). The command line passes one that draws
rich progress bars on stderr.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Bar:
    """One running count. The base class draws nothing."""

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more items as done."""

    def show(self, status: str) -> None:
        """Say how it stands, beside the count: a loss, a rate."""


class Reporter:
    """Receives what a task has to say while it runs. The base class says nothing."""

    @contextmanager
    def bar(self, description: str, total: int | None, unit: str = "it") -> Iterator[Bar]:
        """A progress bar over `total` items of `unit`, with rate and time left."""
        yield Bar()

    def note(self, message: str) -> None:
        """Something worth knowing (a choice that was made, a count)."""

    def warn(self, message: str) -> None:
        """Something that may make the result wrong or smaller than asked for."""


def warn_of_left_out(reporter: Reporter, problems: Sequence[str]) -> None:
    """Say what was left out of a list and why: the first five, and how many there are."""
    for problem in problems[:5]:
        reporter.warn(f"Left out: {problem}")
    if len(problems) > 5:
        reporter.warn(f"{len(problems)} entries were left out in all.")


def duration_in_words(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def size_in_words(num_bytes: float) -> str:
    """Bytes as a person reads them (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def counted(count: int, noun: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
