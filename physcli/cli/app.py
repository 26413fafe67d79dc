"""The `physcli` command: its groups, and the one place where an error becomes a message and an exit code.

Exit codes: 0 done; 1 something the user can mend went wrong; 2 usage; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from physcli import __version__
from physcli.cli.options import once_each
from physcli.errors import PhyscliError, UsageError
from physcli.tasks.processes import start_all_processes

# Command or group → its line in `physcli --help`. Each is `physcli.cli.<name>`, imported when it is called: help that
# imports everything would be slow help.
COMMANDS = {
    "quickstart": "Probe, fine-tune with VideoREPA, probe again, sample, score, compare: no GPU, no network, minutes.",
    "probe": "How much physics does a model understand?",
    "finetune": "Train a model by a recipe; resumable, on one or many devices.",
    "sample": "Make videos for prompts, with or without motion prior guidance.",
    "eval": "Do videos obey physics, and show what was asked? Scores with intervals.",
    "compare": "Is a run really better than another? Paired, with intervals, tests and a report.",
    "study": "What does each method do to the videos? Many arms, seeds and judges in one report.",
    "visualize": "What methods look at in a video.",
    "prompts": "Make short captions into detailed prompts.",
    "data": "Make, inspect and tidy clips.",
    "models": "Which models there are, and what one is.",
    "recipes": "What can be trained: list, read, copy and check recipes.",
    "bench": "How fast the parts are here, as times and ratios; whether broken-off runs go on.",
    "doctor": "What is installed, what will work here, what will not, and why.",
}


class _LazyGroup(TyperGroup):
    """The top level: names and one line each for help, the real command once it is called or completed."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.commands = {name: TyperCommand(name, help=line) for name, line in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        module = importlib.import_module(f"physcli.cli.{name}")
        group = getattr(module, "app", None)
        if group is None:
            group = typer.Typer(add_completion=False)
            group.command(name)(getattr(module, name))
        real = get_command(group)
        real.name = name
        once_each(real)
        return name, real, rest


app = typer.Typer(
    name="physcli",
    cls=_LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Video diffusion models that obey physics: measure what a model knows, teach it more, sample, score.\n\n"
        "Start with [bold]physcli quickstart[/bold]: it needs no GPU and no network."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"physcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version, and exit.")
    ] = False,
) -> None:
    pass


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    # A cluster's SIGTERM is treated as Ctrl-C, so that the run directory is marked `interrupted`.
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; never returns normally."""
    start_all_processes()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except PhyscliError as error:
        _fail(error, code=2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        _fail(_explain(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _explain(error: OSError) -> PhyscliError:
    """What went wrong with a file or a disk, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return PhyscliError(
            f"The disk is full{where}.",
            fix="free some space, or point --out and --cache-dir to another disk; then run the same command again: "
            "finished parts are kept",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PhyscliError(
            f"{error.strerror}{where}.",
            expected="a path this user may read and write",
            fix="choose another --out or --cache-dir, or change its permissions",
        )
    return PhyscliError(f"{error.strerror or error}{where}.", fix="run again with --debug to see where it happened")


def _fail(error: PhyscliError, code: int = 1) -> NoReturn:
    if "--debug" in sys.argv:
        raise error
    from physcli.cli import render

    render.error(error)
    sys.exit(code)
