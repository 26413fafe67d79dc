"""`physcli bench …`: how fast the parts are here, as times and as ratios; and whether broken-off runs go on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from physcli.cli import render
from physcli.cli.data import parse_size
from physcli.cli.options import ModelRun, Run, TrainRun, shared
from physcli.errors import UsageError
from physcli.guidance import GUIDANCES, NONE
from physcli.progress import counted
from physcli.tasks.cache_options import CACHES, cache_of_options

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="How fast the parts are here, as times and as ratios measured in one run; whether broken-off runs go on.",
)


def _show(common: Run, title: str, rows: list[dict[str, Any]], settings: dict[str, Any], caption: str) -> None:
    from physcli.tasks.bench.timing import table_of
    from physcli.tasks.run_dir import RunDir, to_json

    with RunDir(common.out, title, settings, overwrite=common.overwrite) as run:
        run.reopen()  # a time measured again is another time
        run.write_metrics(rows)
    if common.json:
        render.json_text(to_json({"run": run.path, "rows": rows}))
        return
    columns, lines = table_of(rows)
    render.table(title, columns, lines, caption=caption, right=range(1, len(columns)))
    render.files({"rows": run.path / "metrics.json"})


@app.command("simulate")
@shared(Run)
def simulate(
    common: Run,
    num_pairs: Annotated[int, typer.Option(min=1, help="Pairs of each scenario.")] = 4,
    size: Annotated[str, typer.Option(help="Height x width in pixels.", metavar="HxW")] = "64x64",
) -> None:
    """Milliseconds a simulated clip takes one process, by part."""
    from physcli.tasks.bench.simulate import bench_simulate

    height, width = parse_size(size)
    rows = bench_simulate(
        num_pairs=num_pairs,
        height=height,
        width=width,
        seed=common.seed,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    _show(
        common,
        "bench simulate",
        rows,
        {"num_pairs": num_pairs, "size": [height, width], "seed": common.seed},
        "one process, 49 frames; physics includes rejected attempts",
    )


@app.command("probe")
@shared(ModelRun)
def probe(
    common: ModelRun,
    model: Annotated[str, typer.Option(help="A generator or an encoder.")] = "cogvideox-tiny",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per forward pass.")] = 16,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames of a generator's clip.")] = 17,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each kind.")] = 15,
) -> None:
    """What features at block k of n cost, as a share of a full forward pass."""
    from physcli.tasks.bench.probe import bench_probe

    rows = bench_probe(
        model=model,
        device=common.device,
        dtype=common.dtype,
        batch_size=batch_size,
        num_frames=num_frames,
        rounds=rounds,
        seed=common.seed,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    _show(
        common,
        "bench probe",
        rows,
        {
            "model": model,
            "device": common.device,
            "dtype": common.dtype,
            "batch_size": batch_size,
            "num_frames": num_frames,
            "rounds": rounds,
            "seed": common.seed,
        },
        "medians over alternating passes, as shares of a full forward pass; excess should be at most 0.10",
    )


@app.command("finetune")
@shared(TrainRun)
def finetune(
    common: TrainRun,
    model: Annotated[
        str | None,
        typer.Option(help="A generator.  \\[default: cogvideox-tiny]", show_default=False),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Repeat for several.  \\[default: every packaged recipe of the model]", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each kind, after one that is not.")] = 15,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Clips a step.  \\[default: the recipe's; 1 with --full-size]", show_default=False),
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames of a clip.  \\[default: the recipe's]", show_default=False),
    ] = None,
    lora: Annotated[
        bool | None,
        typer.Option("--lora/--no-lora", help="Low-rank updates or all weights.  \\[default: the recipe's]"),
    ] = None,
    full_size: Annotated[
        str | None,
        typer.Option(
            "--full-size",
            metavar="2b|5b|wan-1.3b|wan-14b",
            help="CogVideoX-2B or -5B, or Wan 2.1 from its configuration with random weights, on random latents and "
            "features.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="With --full-size.  \\[default: the checkpoint's]", metavar="HxW", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the weights with --full-size.  \\[default: bfloat16]", show_default=False),
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Token relation distillation alone: time and memory at published sizes.")
    ] = False,
) -> None:
    """What a training step costs with each method, as a share of one without (sft); caches are filled."""
    recipes = {"--method": method, "--batch-size": batch_size, "--num-frames": num_frames, "--lora": lora}
    weights = {"--size": size, "--dtype": dtype}
    if kernels:
        others = {"--model": model, "--full-size": full_size, **recipes, **weights}
        _refuse("with --kernels", others, fix="leave it out, or --kernels")
    elif full_size is not None:
        _refuse("with --full-size", {"--model": model}, fix="leave one of them out")
    else:
        _refuse("without --full-size", weights, fix="add --full-size, such as --full-size 2b")

    from physcli.tasks.bench.finetune import DEFAULT_MODEL, MEASURE_EVERY, bench_finetune
    from physcli.tasks.bench.full_size import bench_full_size
    from physcli.tasks.bench.kernels import bench_kernels

    settings: dict[str, Any] = {"rounds": rounds, "device": common.device, "seed": common.seed}
    reporter = render.RichReporter(quiet=common.quiet)
    if kernels:
        rows = bench_kernels(**settings, reporter=reporter)
        _show(common, "bench finetune --kernels", rows, settings, "value and gradient, one clip, float32; medians")
        return
    overrides = [
        *([f"train.batch_size={batch_size or 1}"] if batch_size or full_size else []),
        *([f"objective.frames={num_frames}"] if num_frames else []),
        *([f"lora={'{}' if lora else 'null'}"] if lora is not None else []),
    ]
    settings |= {"methods": method or [], "overrides": overrides}
    caption = (
        "A step of each method over one of sft, timed in turn (medians), latents and features cached. One step in "
        f"{MEASURE_EVERY} also compares the two losses' gradients (measured_over_sft); average_over_sft counts that in."
    )
    if full_size is None:
        settings |= {"model": model or DEFAULT_MODEL}
        rows = bench_finetune(**settings, reporter=reporter)
        title = f"bench finetune: {settings['model']}"
    else:
        height, width = parse_size(size) if size else (None, None)
        settings |= {"dtype": dtype or "bfloat16", "height": height, "width": width}
        rows = bench_full_size(full_size, **settings, reporter=reporter)
        settings |= {"full_size": full_size}
        title = f"bench finetune: {rows[0]['subject']}"
        caption += " No VAE, text encoder or teacher: caches stand in for them."
    _show(common, title, rows, settings, caption)


@app.command("sample")
@shared(ModelRun)
def sample(
    common: ModelRun,
    model: Annotated[str, typer.Option(help="A generator.")] = "cogvideox-tiny",
    guidance: Annotated[
        str,
        typer.Option(
            metavar="|".join([NONE, *GUIDANCES]),
            help="Timed beside none; inner: a model without motion gets zeros for it.",
        ),
    ] = "lamo",
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(CACHES),
            help="Timed as well, with the default setting; may be repeated.",
            show_default=False,
        ),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Time compiled blocks as well.")] = False,
    motion_field: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|random",
            help="For lamo: a motion field; random: of the released size, random weights.  "
            "\\[default: as sample finds it]",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos a pass.")] = 4,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Of a video.  \\[default: the model's own]", show_default=False)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="In pixels.  \\[default: the model's own]", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps of a video.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Timed videos of each kind, after one that is not.")] = 8,
) -> None:
    """What sampling costs beside bare diffusers, what a guidance adds, and what caches and compiling save."""
    from physcli.tasks.bench.sample import bench_sample

    settings: dict[str, Any] = {
        "model": model,
        "guidance": None if guidance == NONE else guidance,
        "caches": [cache_of_options(name) for name in cache or []],
        "compiled": compiled,
        "motion_field": motion_field,
        "device": common.device,
        "dtype": common.dtype,
        "batch_size": batch_size,
        "num_frames": num_frames,
        "size": None if size is None else parse_size(size),
        "steps": steps,
        "rounds": rounds,
        "seed": common.seed,
    }
    rows = bench_sample(**settings, reporter=render.RichReporter(quiet=common.quiet))
    settings["caches"] = [asdict(one) for one in settings["caches"]]
    caption = "whole videos timed in turn; guidance at every step; medians of ratios, and of seconds without guidance"
    _show(common, "bench sample", rows, settings, caption)


@app.command("command")
@shared(Run)
def command(
    common: Run,
    arguments: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="A command of physcli, after --.")],
    against: Annotated[
        str, typer.Option(metavar="ENV", help="A virtual environment with another build.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each build.")] = 5,
    cold_cache: Annotated[bool, typer.Option("--cold-cache", help="An empty cache for every run.")] = False,
) -> None:
    """A whole command of this build beside the same of another one: time and peak memory, as ratios."""
    from physcli.tasks.bench.against import bench_command

    rows = bench_command(
        arguments,
        against=Path(against).expanduser(),
        rounds=rounds,
        cold_cache=cold_cache,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    settings = {"command": arguments, "against": against, "rounds": rounds, "cold_cache": cold_cache}
    [shown] = [row for row in rows if (row["group"], row["metric"]) == ("ratio", "seconds")]
    ends = "" if shown["low"] is None else f", 95 % {shown['low']:.3g} to {shown['high']:.3g}"
    caption = f"medians of {counted(rounds, 'run')}, in turn; ratio of seconds {shown['value']:.3g}{ends}"
    _show(common, "bench command", rows, settings, caption)


@app.command("faults")
@shared(Run)
def faults(
    common: Run,
    command: Annotated[
        list[str] | None,
        typer.Option(
            help="finetune, precompute, sample, eval or simulate; repeat for several.  \\[default: all]",
            show_default=False,
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="kill, kill at write, full disk, read-only disk, vanishing file, two at once; repeat for several.  "
            "\\[default: all]",
            show_default=False,
        ),
    ] = None,
    kills: Annotated[int, typer.Option(min=1, help="Of each command and kind; of other faults a fifth.")] = 20,
) -> None:
    """Do broken-off runs go on to the same bytes? Kills, full and read-only disks, lost files. Exit code 1 if not."""
    from physcli.tasks.bench.faults import COMMANDS, FAULTS, WRONG, bench_faults

    settings: dict[str, Any] = {
        "commands": command or list(COMMANDS),
        "faults": fault or list(FAULTS),
        "kills": kills,
        "seed": common.seed,
    }
    rows = bench_faults(**settings, reporter=render.RichReporter(quiet=common.quiet))
    caption = (
        "early: nothing was written yet; exact: it went on to the bytes of an unbroken run; refused: one message, then "
        "exact once mended; wrong: anything else"
    )
    _show(common, "bench faults", rows, settings, caption)
    if any(row["value"] for row in rows if row["metric"] == WRONG):
        raise typer.Exit(1)


def _refuse(where: str, others: dict[str, Any], fix: str) -> None:
    """Refuse options that mean nothing where they stand.

    Raises:
        UsageError: one of `others` was given.
    """
    given = [name for name, value in others.items() if value not in (None, [])]
    if given:
        raise UsageError(f"{', '.join(given)} {where}.", expected="options that mean something together", fix=fix)
