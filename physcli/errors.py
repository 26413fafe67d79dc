"""Errors a user can mend: what was received, what was expected, what to do next.

Leaf code raises these (or a plain `ValueError` for a programming mistake); `physcli.cli.app.main` is the only
place that turns them into a message and an exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PhyscliError(Exception):
    """A problem the user can mend.

    Args:
        received: What physcli met, in one sentence (a path, a value, a count).
        expected: What it needed instead.
        fix: The next step, ideally a command to type.
    """

    def __init__(self, received: str, *, expected: str = "", fix: str = "") -> None:
        self.received, self.expected, self.fix = received, expected, fix
        super().__init__(received)

    def __str__(self) -> str:
        parts = [self.received]
        if self.expected:
            parts.append(f"Expected: {self.expected}")
        if self.fix:
            parts.append(f"What to do: {self.fix}")
        return "\n".join(parts)


class UsageError(PhyscliError):
    """An option value that cannot be right whatever is on the disk; exit code 2."""


class DataError(PhyscliError):
    """A clip, label file or dataset folder that cannot be used."""


class FileChanged(DataError):
    """A file that is no longer what it was when the run began: what was made of it cannot be mixed with the rest."""


class ModelError(PhyscliError):
    """A checkpoint that cannot be found, reached or loaded whole."""


class RecipeError(PhyscliError):
    """A recipe file that is missing, cannot be read, or says what no recipe may say."""


class MissingExtra(PhyscliError):
    """A feature whose optional dependency is not installed; `instead` is what needs none."""

    def __init__(self, feature: str, *, package: str, extra: str, instead: str = "") -> None:
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed.",
            fix=f"pip install 'physcli[{extra}]'" + (f", or {instead}" if instead else ""),
        )


def unknown(kind: str, name: str, options: Iterable[str]) -> UsageError:
    """The error for a name that is not in a table: a did-you-mean and the whole list."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return UsageError(
        f"Unknown {kind}: {name!r}." + (f" Did you mean {close[0]!r}?" if close else ""),
        expected=f"one of {', '.join(options)}",
    )
