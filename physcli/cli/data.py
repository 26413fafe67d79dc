"""`physcli data …`: make, inspect, and clear clips and caches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from physcli.cli import render
from physcli.cli.finetune import train_request
from physcli.cli.options import Output, Run, TrainRun, shared
from physcli.errors import UsageError
from physcli.progress import size_in_words

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", help="Make, inspect and tidy clips."
)
cache_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="What physcli keeps so as not to compute it twice.",
)
app.add_typer(cache_app, name="cache")


def parse_size(text: str) -> tuple[int, int]:
    """HxW → (height, width)."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UsageError(f"--size {text!r}.", expected="height x width in pixels, such as 64x64") from None
    return height, width


@app.command("simulate")
@shared(Run)
def simulate(
    common: Run,
    num_clips: Annotated[int, typer.Option(help="In all; three quarters are training clips.")] = 280,
    size: Annotated[
        str | None,
        typer.Option(
            help="Height x width in pixels.  \\[default: 64x64; with --takes 2 256x256, the least]",
            metavar="HxW",
            show_default=False,
        ),
    ] = None,
    takes: Annotated[
        int,
        typer.Option(
            help="2: also film the test clips for Physics-IQ, 5 s from three sides, and once more with starts within "
            "1 cm, 1 degree and 2 % of speed, light within 10 cm and 5 %, cameras within 2 cm. They lie in "
            "physics-iq-benchmark of the folder.  \\[default: 1]",
            show_default=False,
        ),
    ] = 1,
    num_frames: Annotated[int, typer.Option(help="At 20 frames per second.")] = 49,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            help="collide, contain, dominoes, drop, link, roll or support; may be repeated.  \\[default: all]",
            show_default=False,
        ),
    ] = None,
    impossible: Annotated[
        str | None,
        typer.Option(
            metavar="KIND|all",
            help="Also draw each clip with one law broken: vanish, teleport, color, shape, pass-through, float, stop.",
            show_default=False,
        ),
    ] = None,
    distractors: Annotated[bool, typer.Option("--distractors", help="Add things that take no part.")] = False,
    occluders: Annotated[bool, typer.Option("--occluders", help="Add things that hide others.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.  \\[default: one a core]", show_default=False)
    ] = None,
) -> None:
    """Simulate clips with exact labels, poses, segmentation and flow, as a Physion v1.5 folder."""
    from physcli.simulation.types import SCENARIOS
    from physcli.simulation.violations import KINDS
    from physcli.tasks.run_dir import to_json
    from physcli.tasks.simulate import SimulateSettings, split_total
    from physcli.tasks.simulate import simulate as task
    from physcli.tasks.takes import MIN_SIZE

    least = f"{MIN_SIZE}x{MIN_SIZE}"
    height, width = parse_size(size or (least if takes == 2 else "64x64"))
    num_train, num_test = split_total(num_clips)
    kinds = () if impossible is None else KINDS if impossible == "all" else impossible.split(",")
    settings = SimulateSettings(
        num_train=num_train,
        num_test=num_test,
        scenarios=tuple(dict.fromkeys(scenario or SCENARIOS)),
        height=height,
        width=width,
        num_frames=num_frames,
        seed=common.seed,
        distractors=distractors,
        occluders=occluders,
        impossible=tuple(dict.fromkeys(kinds)),
        takes=takes,
    )
    done = task(
        settings,
        out=common.out,
        overwrite=common.overwrite,
        workers=workers,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if common.json:
        shown = {"run": done.path, "num_clips": done.num_clips, "absent_scenarios": done.absent, "rows": done.rows}
        if done.takes is not None:
            shown["takes"] = done.takes
        render.json_text(to_json(shown))
        return
    facts = {row["metric"]: row["value"] for row in done.rows if row["group"] == "all"}
    render.result(
        f"{done.num_clips} clips ({num_train} train, {num_test} test)"
        + (f" and {done.num_impossible} impossible twins" if done.num_impossible else "")
        + f", {facts['clips_per_second']:.1f} clips/s, MP4 PSNR {facts['video_psnr_db']:.1f} dB"
    )
    files = {"clips": done.path / "physion_mp4s", "metadata": done.path / "metadata.jsonl"}
    render.files(files if done.takes is None else files | {"takes": done.takes})


@app.command("inspect")
@shared(Output)
def inspect(
    common: Output,
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="A dataset, any folder of videos, or a hub dataset: hub:OWNER/NAME or hub:OWNER/NAME@REVISION/FOLDER.",
        ),
    ],
) -> None:
    """What is in a folder: counts, lengths, rates, sizes, labels, broken files."""
    from physcli.tasks.inspect_data import REMARKS, inspect_data
    from physcli.tasks.run_dir import to_json
    from physcli.tasks.sources import dataset_folder

    found = inspect_data(dataset_folder(source), reporter=render.RichReporter(quiet=common.quiet))
    if common.json:
        render.json_text(to_json(found.as_dict()))
        return
    render.table(f"{found.folder}: {found.kind}", ["what", "found"], found.facts())
    if found.groups:
        render.table(
            "By split and scenario",
            ["split", "scenario", "clips", "positive", "first contact (frame)"],
            found.groups,
            right=(2, 3, 4),
        )
    if found.remarks:
        render.table(
            f"{len(found.remarks)} out of the ordinary",
            ["file", *REMARKS],
            found.remarkable,
        )
    if found.problems:
        render.table(
            f"{len(found.problems)} broken or unusable",
            ["file", "why"],
            [list(item) for item in found.problems],
        )


@app.command("precompute")
@shared(TrainRun)
def precompute(
    common: TrainRun,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of the recipe, as for finetune.", show_default=False),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="A packaged recipe (videorepa, m-tsa, …) or a YAML file.", show_default=False),
    ] = ...,  # type: ignore[assignment]
    model: Annotated[
        str | None, typer.Option(help="As for finetune.  \\[default: the recipe's]", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="As for finetune.  \\[default: the recipe's]", show_default=False)
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="SIGNAL,…",
            help="Of latents, text, teacher, saliency and flow. finetune computes the rest, or whenever it reads it "
            "where its data.cache names these alone.  \\[default: the recipe's data.cache]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compute and keep what finetune with the same recipe, data and seed reads, without training."""
    request = train_request(common, recipe, overrides, model=model, data=data)

    from physcli.tasks.precompute import precompute as task
    from physcli.tasks.run_dir import to_json

    signals = tuple(only.split(",")) if only else ()
    done = task(request, only=signals, reporter=render.RichReporter(quiet=common.quiet))
    if not done.is_main:
        return
    if common.json:
        tallies = [asdict(tally) for tally in done.tallies]
        shown = {"run": done.path, "num_clips": done.num_clips, "signals": tallies, "left_out": done.problems}
        render.json_text(to_json(shown))
        return
    rows = [
        [tally.signal, f"{tally.wanted:,}", f"{tally.kept:,}", f"{tally.computed:,}", size_in_words(tally.num_bytes)]
        for tally in done.tallies
    ]
    render.table(
        f"Kept for {done.num_clips:,} training clips",
        ["signal", "windows or prompts", "kept before", "computed", "size"],
        rows,
        right=(1, 2, 3, 4),
    )
    render.files({tally.signal: tally.folder for tally in done.tallies})
    if done.problems:
        render.table(f"{len(done.problems)} clips left out", ["why"], [[problem] for problem in done.problems])


def _cache_root(common: Output) -> Path:
    from physcli.tasks.run_dir import cache_root

    return cache_root(common.cache_dir)


@cache_app.command("ls")
@shared(Output)
def cache_ls(common: Output) -> None:
    """What the cache holds, and how much room it takes."""
    from physcli.data.cache import cache_sizes
    from physcli.tasks.run_dir import to_json

    root = _cache_root(common)
    sizes = cache_sizes(root)
    if common.json:
        render.json_text(to_json({"root": root, "kinds": {k: {"files": n, "bytes": b} for k, (n, b) in sizes.items()}}))
        return
    rows = [[kind, count, size_in_words(num_bytes)] for kind, (count, num_bytes) in sizes.items()]
    render.table(f"Cache {root}", ["kind", "files", "size"], rows, right=(1, 2))


@cache_app.command("clear")
@shared(Output)
def cache_clear(
    common: Output,
    kind: Annotated[
        str | None, typer.Argument(help="simulated, latents or features.  \\[default: all]", show_default=False)
    ] = None,
) -> None:
    """Remove cached things; they are made again when needed."""
    from physcli.data.cache import clear_cache
    from physcli.tasks.run_dir import to_json

    root = _cache_root(common)
    freed = clear_cache(root, kind)
    if common.json:
        render.json_text(to_json({"root": root, "freed_bytes": freed}))
    else:
        render.result(f"Freed {size_in_words(freed)} in {root}.")
