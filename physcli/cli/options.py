"""The options every command shares, written once.

`@shared(Run)` gives a command all fields of the dataclass as options and hands it one `Run` instance.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from physcli.errors import UsageError

GENERAL = "Everywhere"


@dataclass(frozen=True)
class Output:
    """How a command speaks."""

    json: Annotated[
        bool,
        typer.Option("--json", help="The result as JSON on stdout; all else on stderr.", rich_help_panel=GENERAL),
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bars and notes.", rich_help_panel=GENERAL)
    ] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=GENERAL)] = (
        False
    )
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            envvar="PHYSCLI_CACHE",
            help="Simulated clips, latents and features are kept here.  \\[default: ~/.cache/physcli]",
            show_default=False,
            rich_help_panel=GENERAL,
        ),
    ] = None


@dataclass(frozen=True)
class Run(Output):
    """How a command that makes a run directory speaks and works."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The run directory.  \\[default: runs/<command>-<time>]",
            show_default=False,
            rich_help_panel=GENERAL,
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a run with other settings in --out.", rich_help_panel=GENERAL),
    ] = False
    seed: Annotated[int, typer.Option("--seed", min=0, help="All randomness.", rich_help_panel=GENERAL)] = 0


@dataclass(frozen=True)
class TrainRun(Run):
    """A run that trains; the recipe decides the precision."""

    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=GENERAL)] = (
        "auto"
    )


@dataclass(frozen=True)
class ModelRun(TrainRun):
    """A run that loads models."""

    dtype: Annotated[
        str,
        typer.Option("--dtype", help="auto, float32, bfloat16, float16.", rich_help_panel=GENERAL),
    ] = "auto"


@dataclass(frozen=True)
class ProbeRun(ModelRun):
    """A run over items of a dataset."""

    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=2,
            help="At most this many items per split: whole pairs, balanced.",
            show_default=False,
            rich_help_panel=GENERAL,
        ),
    ] = None


def parameter(name: str, kind: Any, help: str, metavar: str | None = None, *, panel: str) -> inspect.Parameter:
    """An option that a table brings along; None where it is not given. `help` says its default."""
    option = typer.Option(help=help, metavar=metavar, show_default=False, rich_help_panel=panel)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def once_each(command: Any) -> None:
    """Make a command, or all of a group, refuse an option that is given twice and takes one value: the last one would
    count without a word. Switches are left alone."""
    for each in getattr(command, "commands", {}).values():
        once_each(each)
    make_parser = command.make_parser

    def make(ctx: Any) -> Any:
        parser = make_parser(ctx)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            values, rest, order = parse(args=args)
            given = Counter(max(one.opts, key=len) for one in order if _takes_one_value(one))
            twice = [name for name, count in given.items() if count > 1]
            if twice and not ctx.resilient_parsing:
                raise UsageError(
                    f"{twice[0]} is given {given[twice[0]]} times.",
                    expected="once",
                    fix="leave all but one out; an option that takes several values takes them with commas",
                )
            return values, rest, order

        parser.parse_args = parse_args
        return parser

    command.make_parser = make


def _takes_one_value(parameter: Any) -> bool:
    if parameter.param_type_name != "option" or parameter.multiple:
        return False
    return not (parameter.is_flag or parameter.count)


def shared(
    options: type[Output], *, more: Sequence[inspect.Parameter] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a dataclass; its first parameter receives them as one instance. Those of `more`
    reach its `**` parameter."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(options, include_extras=True)
        own_hints = typing.get_type_hints(command, include_extras=True)
        signature = inspect.signature(command)
        own = [
            parameter.replace(annotation=own_hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(signature.parameters.values())[1:]
            if parameter.kind != inspect.Parameter.VAR_KEYWORD
        ] + list(more)
        extra = [
            inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=hints[item.name]
            )
            for item in fields(options)
        ]

        @functools.wraps(command)
        def wrapped(**arguments: Any) -> None:
            common = options(**{item.name: arguments.pop(item.name) for item in fields(options)})
            command(common, **arguments)

        wrapped.__signature__ = signature.replace(parameters=[*own, *extra])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in [*own, *extra]}
        del wrapped.__wrapped__  # type: ignore[attr-defined]
        return wrapped

    return decorate
