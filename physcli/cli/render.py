"""The only place that prints: progress, notes, tables, errors. Results go to stdout, all else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from physcli.errors import PhyscliError
from physcli.progress import Bar, Reporter

if TYPE_CHECKING:
    from physcli.cli.options import Output
    from physcli.tasks import tables

_TONES = {"better": "green", "worse": "red"}
_stderr = Console(stderr=True, highlight=False)
_stdout = Console(highlight=False)


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "it")
        return Text("" if speed is None else f"{speed:.3g} {unit}/s", style="progress.data.speed")


class _Progress(Progress):
    """With a line of its own for what the task says of itself: beside the bar, 80 columns are too few."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(f"  {task.fields['status']}", style="dim") for task in self.tasks if task.fields["status"])


class _RichBar(Bar):
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._task, amount)

    def show(self, status: str) -> None:
        self._progress.update(self._task, status=status)


class RichReporter(Reporter):
    """Draws progress on stderr; where stderr is not a terminal, a line when a piece of work is done."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    @contextmanager
    def bar(self, description: str, total: int | None, unit: str = "it") -> Iterator[Bar]:
        if self._quiet or total == 0:
            yield Bar()
            return
        progress = _Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=_stderr,
            transient=True,
            disable=not _stderr.is_terminal,
        )
        with progress:
            task = progress.add_task(escape(description), total=total, unit=unit, status="")
            yield _RichBar(progress, task)
        done = progress.tasks[0]
        if done.elapsed is not None and done.elapsed > 2:
            speed = f"{done.completed:g} in {done.elapsed:.1f} s, {done.completed / done.elapsed:.3g} {unit}/s"
            _stderr.print(f"[dim]{escape(description)}: {speed}[/dim]")

    def note(self, message: str) -> None:
        if not self._quiet:
            _stderr.print(f"[dim]{escape(message)}[/dim]")

    def warn(self, message: str) -> None:
        # A warning says that the result may be wrong: --quiet does not hide it.
        _stderr.print(f"[yellow]Warning:[/yellow] {escape(message)}")


def error(problem: PhyscliError) -> None:
    """One message: what was received, what was expected, what to do next."""
    _stderr.print(f"[bold red]Error:[/bold red] {escape(problem.received)}", soft_wrap=False)
    if problem.expected:
        _stderr.print(f"  [bold]Expected:[/bold] {escape(problem.expected)}")
    if problem.fix:
        _stderr.print(f"  [bold]What to do:[/bold] {escape(problem.fix)}")


def styled(text: str, style: str) -> Text:
    """A table cell in a style."""
    return Text(text, style=style)


def result(text: str) -> None:
    """Plain text on stdout."""
    _stdout.print(escape(text), soft_wrap=True)


def width() -> int:
    """Columns of the terminal that results go to."""
    return _stdout.width


def answered(common: Output, done: Any, **shown: Any) -> bool:
    """Whether nothing of a result is left to be drawn: another process draws it, or it was written as --json asks.

    Args:
        common: The command's options.
        done: The result, with the run's `path`, and `is_main` where there can be several processes.
        shown: What --json shows beside the run.
    """
    from physcli.tasks.run_dir import to_json

    if not getattr(done, "is_main", True):
        return True
    if common.json:
        json_text(to_json({"run": done.path, **shown}))
    return bool(common.json)


def json_text(text: str) -> None:
    """JSON on stdout, byte for byte."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    caption: str = "",
    right: Sequence[int] = (),
    sections: Sequence[int] = (),
    whole: Sequence[int] = (),
) -> None:
    """A table on stdout.

    Args:
        title: Above it.
        columns: Headings.
        rows: Cells; None is drawn as a dash, strings as they are, `Text` in its style.
        caption: Below it.
        right: Indices of columns aligned right.
        sections: Indices of rows after which a rule is drawn.
        whole: Indices of columns that are never broken over lines.
    """
    drawn = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False)
    drawn.caption = Text(caption) if caption else None
    for index, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if index in right else "left"
        drawn.add_column(Text(name), justify=justify, overflow="fold", no_wrap=index in whole)
    for index, cells in enumerate(rows):
        drawn.add_row(
            *(cell if isinstance(cell, Text) else Text("–" if cell is None else str(cell)) for cell in cells),
            end_section=index in sections,
        )
    _stdout.print(drawn)
    if caption:
        _stdout.print()


def show(drawn: tables.Table) -> None:
    """A result's table on stdout."""
    rows = [[styled(c.text, _TONES.get(c.tone, "")) if hasattr(c, "tone") else c for c in row] for row in drawn.rows]
    table(
        drawn.title,
        drawn.columns,
        rows,
        caption=drawn.caption,
        right=drawn.right,
        sections=drawn.sections,
        whole=drawn.whole,
    )


def files(pairs: Mapping[str, object]) -> None:
    """Where things were written."""
    width = max((len(name) for name in pairs), default=0)
    for name, path in pairs.items():
        _stdout.print(f"  {escape(name):<{width}}  {escape(str(path))}", soft_wrap=True)
