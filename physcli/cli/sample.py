"""`physcli sample`: videos for prompts."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from physcli.cli import render
from physcli.cli.data import parse_size
from physcli.cli.options import ModelRun, parameter, shared
from physcli.errors import UsageError
from physcli.guidance import GUIDANCES, NONE, guidance_class
from physcli.guidance.base import flag
from physcli.progress import counted
from physcli.tasks.cache_options import CACHES, CacheSettings, cache_of_options
from physcli.tasks.models import refuse_unknown_models
from physcli.tasks.processes import Processes
from physcli.tasks.verifiers import VERIFIERS, check_verifiers

if TYPE_CHECKING:
    from physcli.tasks.sample import SampleResult

_SHOWN = 20
BASELINES = "Instead of sampling"
CHOICE = "The best of several"
FASTER = "Faster"


def _guidance_options() -> list[inspect.Parameter]:
    """The options of every guidance."""
    return [
        parameter(option.name, option.type, option.help, option.metavar, panel=guidance_class(name).title)
        for name in GUIDANCES
        for option in guidance_class(name).options()
    ]


@shared(ModelRun, more=_guidance_options())
def sample(
    common: ModelRun,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the video shall show; may be repeated.", show_default=False),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|simulated[:N]",
            help="A list: .txt (a prompt a line), .csv, .jsonl or .json; of VideoPhy's the detailed captions are used "
            "and the short ones kept for scoring. Or a simulated suite or folder: the whole events of its test clips.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="At most this many prompts of the list, evenly spaced; of a simulated suite the first.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A generator: built-in name, hub id, folder or run directory.")
    ] = "cogvideox-tiny",
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="A LoRA on top: a folder, a file or a run directory with adapter/.", show_default=False
        ),
    ] = None,
    adapter_scale: Annotated[
        float,
        typer.Option(
            metavar="FLOAT",
            help="What the LoRA's update is multiplied by, beside the alpha / rank of its file; alpha / rank itself "
            "where the file names no alpha.",
        ),
    ] = 1.0,
    num_samples: Annotated[int, typer.Option(min=1, help="Videos of each prompt.")] = 1,
    best_of: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="So many videos of each prompt, and a list of the best one of each, chosen by --verifier.",
            show_default=False,
            rich_help_panel=CHOICE,
        ),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(VERIFIERS),
            help="What it prefers: " + "; ".join(f"{name}: {known.prefers}" for name, known in VERIFIERS.items()) + ".",
            show_default=False,
            rich_help_panel=CHOICE,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Of surprise, foresight and geophys.  \\[default: videomae-tiny]",
            show_default=False,
            rich_help_panel=CHOICE,
        ),
    ] = None,
    rater: Annotated[
        str | None,
        typer.Option(
            help="Of videophy2.  \\[default: mplug-owl-video-tiny]", show_default=False, rich_help_panel=CHOICE
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Classifier-free guidance; 1 or less is none.  \\[default: the model's own]",
            show_default=False,
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="On the checkpoint's own noise schedule: ddim or dpm of CogVideoX, unipc or euler of Wan.  "
            "\\[default: the checkpoint's own]",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Height x width in pixels.  \\[default: the checkpoint's own]", show_default=False
        ),
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(help="Frames of each video.  \\[default: the checkpoint's own]", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos a pass; changes speed and memory only.")] = 1,
    guidance: Annotated[
        str,
        typer.Option(
            metavar="|".join([NONE, *GUIDANCES]),
            help="; ".join(f"{name}: {guidance_class(name).summary}" for name in GUIDANCES) + ".",
            rich_help_panel="Guidance",
        ),
    ] = NONE,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(CACHES),
            help="Leave out most of the network at some steps: faster, and lossy. "
            + "; ".join(f"{name}: {known.summary}" for name, known in CACHES.items())
            + ".",
            show_default=False,
            rich_help_panel=FASTER,
        ),
    ] = None,
    cache_interval: Annotated[
        int | None,
        typer.Option(
            help=f"Of taylorseer: a whole step in so many.  \\[default: {CACHES['taylorseer'].default:g}]",
            show_default=False,
            rich_help_panel=FASTER,
        ),
    ] = None,
    cache_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="FLOAT",
            help="The change up to which a step is left out.  \\[default: of magcache "
            f"{CACHES['magcache'].default:g}, of fbcache {CACHES['fbcache'].default:g}]",
            show_default=False,
            rich_help_panel=FASTER,
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the network's blocks first; values differ in rounding.", rich_help_panel=FASTER
        ),
    ] = False,
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="The first frame of each of --videos, repeated: what scores owe to stillness.",
            rich_help_panel=BASELINES,
        ),
    ] = False,
    repeat_real: Annotated[
        bool,
        typer.Option(
            "--repeat-real",
            help="Real clips (--videos) through the model's VAE alone: the upper bound.",
            rich_help_panel=BASELINES,
        ),
    ] = False,
    videos: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|DIR",
            help="For --static a run of sample, or its videos.jsonl; for --repeat-real simulated[:N] or a folder of "
            "clips.",
            show_default=False,
            rich_help_panel=BASELINES,
        ),
    ] = None,
    cpu_offload: Annotated[
        bool, typer.Option("--cpu-offload", help="On a GPU, keep each part in main memory until it runs.")
    ] = False,
    vae_tiling: Annotated[bool, typer.Option("--vae-tiling", help="Decode large frames in tiles.")] = False,
    vae_slicing: Annotated[bool, typer.Option("--vae-slicing", help="Decode the videos of a pass one by one.")] = False,
    **guidance_options: Any,
) -> None:
    """Make videos for prompts, through the model's diffusers pipeline; run again, it makes only what is missing."""
    refuse_unknown_models([model])
    if guidance != NONE:
        guidance_class(guidance)
    _check_choice(best_of, num_samples, verifier, encoder=encoder, rater=rater)
    cached = cache_of_options(cache, interval=cache_interval, threshold=cache_threshold)
    from physcli.tasks.prompt_sets import listed_prompts
    from physcli.tasks.sample import SampleSettings
    from physcli.tasks.sample import sample as task

    if static or repeat_real:
        given = {
            "--prompt": prompt,
            "--prompts": prompts,
            "--adapter": adapter,
            "--adapter-scale": adapter_scale != 1,
            "--best-of": best_of,
            "--cache": cache,
            "--compile": compiled,
            **{flag(name): value for name, value in guidance_options.items()},
        }
        _baseline(
            common,
            videos,
            static,
            repeat_real,
            [name for name, value in given.items() if value],
            model,
            num_frames,
            limit,
        )
        return
    if videos is not None:
        raise UsageError("--videos without --static or --repeat-real.", expected="one of them", fix="add it")
    reporter = render.RichReporter(quiet=common.quiet)
    listed = (
        []
        if prompts is None
        else listed_prompts(prompts, limit=limit, cache_dir=common.cache_dir, device=common.device, reporter=reporter)
    )
    settings = SampleSettings(
        prompts=(*(prompt or ()), *listed),
        model=model,
        adapter=adapter,
        adapter_scale=adapter_scale,
        num_samples=best_of or num_samples,
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        size=None if size is None else parse_size(size),
        num_frames=num_frames,
        guidance=guidance,
        guidance_options={name: value for name, value in guidance_options.items() if value is not None},
        cache=cached,
        seed=common.seed,
        dtype=common.dtype,
    )
    best: dict[str, Any] | None = None
    with Processes(common.device).together():
        done = task(
            settings,
            out=common.out,
            overwrite=common.overwrite,
            device=common.device,
            batch_size=batch_size,
            cpu_offload=cpu_offload,
            vae_tiling=vae_tiling,
            vae_slicing=vae_slicing,
            compiled=compiled,
            reporter=reporter,
        )
        if verifier is not None:
            from physcli.tasks.best_of import best_of as choose

            path, rows = choose(
                done.path,
                verifier,
                encoder=encoder,
                rater=rater,
                seed=common.seed,
                device=common.device,
                cache_dir=common.cache_dir,
                reporter=reporter,
            )
            best = {"list": path, "videos": rows}
    if not done.is_main:
        return
    _show(common, done, best)


def _check_choice(
    best_of: int | None, num_samples: int, verifier: str | None, *, encoder: str | None, rater: str | None
) -> None:
    """Refuse a choice that nobody makes, and a chooser without a choice."""
    if best_of is None:
        for option, value in (("verifier", verifier), ("encoder", encoder), ("rater", rater)):
            if value is not None:
                said = f"--{option} {value} without --best-of."
                raise UsageError(said, expected="several videos to choose from", fix="add --best-of N")
        return
    if num_samples != 1:
        raise UsageError(f"--best-of {best_of} with --num-samples {num_samples}.", expected="one of them")
    if verifier is None:
        raise UsageError(f"--best-of {best_of} without --verifier.", expected=f"one of {', '.join(VERIFIERS)}")
    check_verifiers([verifier], encoder=encoder, rater=rater)


def _baseline(
    common: ModelRun,
    videos: str | None,
    static: bool,
    repeat_real: bool,
    others: list[str],
    model: str,
    num_frames: int | None,
    limit: int | None,
) -> None:
    from physcli.tasks import baselines

    kind = "static" if static else "repeat-real"
    if static and repeat_real:
        raise UsageError("--static with --repeat-real.", expected="one of them", fix="make them one after the other")
    if others:
        raise UsageError(f"{', '.join(others)} with --{kind}, which samples nothing.", fix="leave one of them out")
    if videos is None:
        raise UsageError(f"--{kind} without --videos.", expected="the videos to make it of", fix="add --videos RUN")
    settings = baselines.BaselineSettings(kind, videos, model, num_frames, limit)
    reporter = render.RichReporter(quiet=common.quiet)
    if static:
        done = baselines.static(settings, out=common.out, overwrite=common.overwrite, reporter=reporter)
    else:
        done = baselines.repeat_real(
            settings,
            out=common.out,
            overwrite=common.overwrite,
            device=common.device,
            dtype=common.dtype,
            cache_dir=common.cache_dir,
            reporter=reporter,
        )
    _show(common, done)


def _show(common: ModelRun, done: SampleResult, best: dict[str, Any] | None = None) -> None:
    """`best`: the list of the chosen videos, and its rows."""
    from physcli.tasks.run_dir import to_json
    from physcli.tasks.sheets import shorten

    if common.json:
        found = {"run": done.path, "videos": done.videos, "items": done.items, "rows": done.rows}
        render.json_text(to_json(found if best is None else found | {"best": best}))
        return
    head, rest = done.videos[0], len(done.videos) - _SHOWN
    if (seconds := done.value("seconds_per_video")) is None:
        facts = f"{done.rows[0]['subject']}."
    else:
        facts = f"{head['steps']} steps, guidance {head['guidance_scale']:g}; {seconds:.3g} s a video."
    if (moved := done.value("mean_flow_px")) is not None:
        facts += f" Optical flow {moved:.3g} px a frame."
    if (guidance := head.get("guidance", NONE)) != NONE and (said := guidance_class(guidance).in_words(done.value)):
        facts += f" {said}"
    if (share := done.value("computed_share")) is not None:
        cache = CacheSettings(**head["cache"])
        facts += f" {cache.in_words} left {1 - share:.0%} of the network's calls out, which is lossy."
    size = f"{head['height']}x{head['width']}"
    render.table(
        f"{done.label}: {counted(len(done.videos), 'video')} of {head['num_frames']} frames, {size}",
        ["prompt", "sample", "fps", "video"],
        [
            [shorten(row["prompt"]), row["index"], f"{row['fps']:.3g}", row["video"].removeprefix("videos/")]
            for row in done.videos[:_SHOWN]
        ],
        caption=facts + (f" {rest} more are in videos.jsonl." if rest > 0 else ""),
        right=(1, 2),
    )
    render.files(done.files() | ({} if best is None else {"best": best["list"]}))
