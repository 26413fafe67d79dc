"""`physcli eval …`: do videos obey physics, and show what was asked?

A command for each benchmark of the table, made from what the benchmark says of itself when it is called; one that puts
two of their runs side by side, one for the best of several videos, one for the votes of people and one for scores that
others made; one that asks a generator itself, not its videos; and two that compare videos with real ones, one by one or
as sets.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from physcli.benchmarks import BENCHMARKS, find_benchmark
from physcli.cli import render
from physcli.cli.distance import distance
from physcli.cli.likephys import likephys
from physcli.cli.options import ModelRun, Run, once_each, shared
from physcli.cli.physics_iq import physics_iq
from physcli.tasks.verifiers import VERIFIERS

Videos = Annotated[
    str,
    typer.Option(
        metavar="DIR|FILE|RUN",
        help="A run of physcli sample, a folder of captioned videos, or a .csv or .jsonl list.",
        show_default=False,
    ),
]
Rater = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|DIR",
        help="\\[default: the tiny one if all videos are of the simulated world, else the official one]",
        show_default=False,
    ),
]
Rules = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Physical rules to judge: a .csv or .jsonl list, a video and a rule a row. It may be --videos itself.",
        show_default=False,
    ),
]
AsDecord = Annotated[
    bool,
    typer.Option(
        "--as-decord",
        help="Show the rater frames as decord reads them, which the official code uses: not turned, and not at even "
        "times where the frame rate varies.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Videos the rater sees at a time.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(metavar="auto", help="auto: spread the rater over all devices there are.", show_default=False),
]
Encoder = Annotated[
    str | None, typer.Option(help="Of surprise, foresight, geophys.  \\[default: videomae-tiny]", show_default=False)
]
TinyRater = Annotated[
    str | None, typer.Option(help="Of videophy2.  \\[default: mplug-owl-video-tiny]", show_default=False)
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many videos, evenly spaced.", show_default=False)]


class _Benchmarks(TyperGroup):
    """The benchmarks by name and one line each; a benchmark is imported once its command is called or completed."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        listed = {name: TyperCommand(name, help=line) for name, (_, line) in BENCHMARKS.items()}
        self.commands = {**listed, **self.commands}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name not in BENCHMARKS:
            return name, command, rest
        one = typer.Typer(add_completion=False, rich_markup_mode="rich")
        one.command(name)(_command(name))
        real = get_command(one)
        real.name = name
        once_each(real)
        return name, real, rest


app = typer.Typer(
    cls=_Benchmarks,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Do videos obey physics, and show what was asked? Scores with intervals.",
)


@app.callback()
def _group() -> None:  # with one command of its own, this would otherwise be that command
    pass


def _command(name: str) -> Callable[..., None]:
    """The command of a benchmark: its options are what it needs, and the fields of its settings."""
    benchmark = find_benchmark(name)
    rated = "rater" in benchmark.needs
    options: dict[str, tuple[Any, Any]] = {"videos": (Videos, inspect.Parameter.empty)}
    if rated:
        options["rater"] = (Rater, None)
    if "rules" in benchmark.needs:
        options["rules"] = (Rules, None)
    types = typing.get_type_hints(benchmark.Settings)
    own = {item.name: item for item in fields(benchmark.Settings)}
    for item in own.values():
        option = typer.Option(help=item.metadata["help"], metavar=item.metadata["metavar"])
        options[item.name] = (Annotated[types[item.name], option], item.default)
    if rated:
        options |= {"as_decord": (AsDecord, False), "batch_size": (BatchSize, 4), "device_map": (DeviceMap, None)}
    options["limit"] = (Limit, None)

    def command(common: ModelRun, **arguments: Any) -> None:
        chosen = {name: arguments.pop(name) for name in own}
        _evaluate(common, name, options=chosen, **arguments)

    kind = inspect.Parameter.KEYWORD_ONLY
    first = inspect.Parameter("common", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    made = [inspect.Parameter(n, kind, default=default, annotation=a) for n, (a, default) in options.items()]
    command.__signature__ = inspect.Signature([first, *made])  # type: ignore[attr-defined]
    command.__annotations__ = {n: a for n, (a, _) in options.items()}
    command.__doc__ = BENCHMARKS[name][1]
    return shared(ModelRun)(command)


@app.command("agreement")
@shared(Run)
def agreement(
    common: Run,
    truth: Annotated[str, typer.Argument(metavar="TRUTH", help="A run of eval, such as that of eval laws.")],
    judge: Annotated[str, typer.Argument(metavar="JUDGE", help="A run of eval over the same videos.")],
) -> None:
    """Does a rater say what the laws, or another rater, say of the same videos? Counts, κ and rank correlation."""
    from physcli.tasks import tables
    from physcli.tasks.agreement import AgreementSettings, agreement

    done = agreement(
        AgreementSettings(truth, judge, common.seed),
        out=common.out,
        overwrite=common.overwrite,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows):
        return
    for table in tables.agreement(done):
        render.show(table)
    render.files(done.files())


@app.command("select")
@shared(ModelRun)
def select(
    common: ModelRun,
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run of eval over several videos of each prompt (sample --num-samples)."),
    ],
    verifier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(VERIFIERS),
            help="Who picks; may be repeated.  \\[default: all that can]",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Of the run; what counts.  \\[default: its headline]", show_default=False)
    ] = None,
    encoder: Encoder = None,
    rater: TinyRater = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts.", show_default=False)] = None,
) -> None:
    """Which verifier picks the best of several videos? By a judge's scores, with the share of the oracle's gain."""
    from physcli.tasks import tables
    from physcli.tasks.select import SelectSettings
    from physcli.tasks.select import select as task

    done = task(
        SelectSettings(run, tuple(verifier or ()), metric, encoder, rater, limit, common.seed),
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        cache_dir=common.cache_dir,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows):
        return
    render.show(tables.selection(done))
    render.files(done.files())


@app.command("controls")
@shared(ModelRun)
def controls(
    common: ModelRun,
    data: Annotated[
        str,
        typer.Option(
            help="simulated:N (N test clips with all their impossible twins), or a folder or hub dataset as eval "
            "likephys takes them."
        ),
    ] = "simulated:28",
    verifier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(VERIFIERS),
            help="Who judges; may be repeated.  \\[default: all that can]",
            show_default=False,
        ),
    ] = None,
    encoder: Encoder = None,
    rater: TinyRater = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="One text for all clips.  \\[default: the clip's own, a prompt.txt beside it, or the scenario's name]",
            show_default=False,
        ),
    ] = None,
    num_frames: Annotated[int, typer.Option(help="Of each clip, evenly over the whole of it.")] = 17,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many scenes.", show_default=False)] = None,
) -> None:
    """Which verifier can be fooled by what? Clips against still, blurred, backwards, slow and impossible copies."""
    from physcli.tasks import tables
    from physcli.tasks.controls import ControlsSettings
    from physcli.tasks.controls import controls as task

    done = task(
        ControlsSettings(data, tuple(verifier or ()), encoder, rater, prompt, num_frames, limit, common.seed),
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        cache_dir=common.cache_dir,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows):
        return
    render.show(tables.controls(done, wide=render.width() >= _LABEL + _CELL * len(done.subjects)))
    render.files(done.files())


app.command("likephys")(likephys)
app.command("physics-iq")(physics_iq)
app.command("distance")(distance)


@app.command("import")
@shared(Run)
def import_scores(
    common: Run,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE…",
            help="Scores of one set of videos. sa=FILE or pc=FILE where a file does not say which of the two it holds.",
            show_default=False,
        ),
    ],
    subject: Annotated[
        str | None, typer.Option(help="Whose videos they are.  \\[default: the file's name]", show_default=False)
    ] = None,
    rater: Annotated[
        str | None, typer.Option(help="Who rated them, of VideoPhy and VideoPhy-2.", show_default=False)
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the files.  \\[default: known by their content]", show_default=False),
    ] = None,
) -> None:
    """Scores that others made (VideoPhy, VBench, Physics-IQ, FastVideo, …) as a run that physcli compare takes."""
    from physcli.tasks import tables
    from physcli.tasks.import_scores import ImportSettings
    from physcli.tasks.import_scores import import_scores as task

    done = task(
        ImportSettings(tuple(files), subject, rater, layout),
        out=common.out,
        overwrite=common.overwrite,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, layout=done.layout, rows=done.rows, notes=done.notes):
        return
    render.show(tables.imported(done))
    render.files(done.files())


@app.command("votes")
@shared(Run)
def votes(
    common: Run,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="What raters saved on the page.", show_default=False)
    ],
    page: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="The run of `physcli compare --blind`, for its key.  \\[default: beside the files, or a folder above]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """What do people prefer? The votes of a page of `physcli compare --blind`: shares, strengths, agreement."""
    from physcli.tasks import tables
    from physcli.tasks.blind.votes import VotesSettings, score_votes

    done = score_votes(
        VotesSettings(tuple(files), page, common.seed),
        out=common.out,
        overwrite=common.overwrite,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows, excluded=done.excluded):
        return
    for table in tables.votes(done):
        render.show(table)
    for sentence in done.sentences():
        render.result(sentence)
    render.files(done.files())


def _evaluate(
    common: ModelRun, benchmark: str, *, batch_size: int = 1, device_map: str | None = None, **settings: Any
) -> None:
    """`settings`: the other fields of `EvalSettings`."""
    from physcli.tasks import tables
    from physcli.tasks.eval import EvalSettings, evaluate

    done = evaluate(
        EvalSettings(benchmark, dtype=common.dtype, **settings),
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        device_map=device_map,
        batch_size=batch_size,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows, items=done.items):
        return
    render.show(tables.scores(done))
    render.files(done.files())


_LABEL, _CELL = 20, 17  # characters of the table of controls: the copies' column with n, and one with intervals
