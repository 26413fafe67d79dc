"""`physcli sample`: videos for prompts, through the checkpoint's own diffusers pipeline.

    OUT/videos/<prompt>-<hash>-<index>.mp4
    OUT/videos.jsonl           a row a video: its file, its prompt, and all it takes to make it again
    OUT/items.jsonl            a row a video: what it cost, its file's hash, what guidance did at every step
    OUT/contact_sheet.png      five moments of each
    OUT/metrics.json, run.json
    OUT/mag_ratios.json        with --cache magcache: what it knows of the network

A video's noise depends on (seed, prompt, index) alone. Each video has its own random numbers, drawn on the CPU, so
neither the batch size nor the device nor the other prompts nor the number of processes change them. A video is written
as soon as it is made, and a run that was broken off makes only those that are missing or not whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from physcli.data.flow import dis_flow
from physcli.data.prompts import Prompt
from physcli.data.video import write_video
from physcli.errors import UsageError
from physcli.guidance import GUIDANCES, NONE, guidance_class
from physcli.guidance.base import Measured, flag
from physcli.hashing import content_hash, seed_from
from physcli.models import shown_name
from physcli.models.device import pick_device, pick_dtype, quiet_libraries
from physcli.models.fingerprints import hash_files
from physcli.models.generator import Generator, Sampled
from physcli.models.loading import load_generator
from physcli.models.names import fingerprint, read_facts, resolve
from physcli.models.step_cache import CACHES, CacheSettings, StepCache, ratios
from physcli.progress import Reporter
from physcli.rows import Metric, mean_row
from physcli.simulation.prompts import RATES
from physcli.simulation.types import FRAME_RATE_HZ
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import (
    Complete,
    RunDir,
    append_row,
    read_log,
    read_metrics,
    read_rows,
    with_defaults,
    write_json,
    write_jsonl,
)
from physcli.tasks.sheets import draw_sheet, shorten

# Over all pixels and pairs of frames. Not `motion_px` of `physcli eval`, which is of the longest 5 % of the flow.
MEAN_FLOW = Metric("mean_flow_px", "px", None, role="motion")
_SECONDS = Metric("seconds_per_video", "seconds", False)
_COMPUTED = Metric("computed_share", "rate", None)  # of the network's calls, those that a cache left whole

_SLUG_LENGTH = 32
_LEAST_FLOW_SIDE = 16  # pixels


@dataclass(frozen=True)
class SampleSettings:
    """All that bears on the videos. Meanings as in `physcli sample --help`; sizes are (height, width) in pixels."""

    prompts: tuple[str | Prompt, ...]
    model: str = "cogvideox-tiny"
    adapter: str | None = None
    adapter_scale: float = 1.0
    num_samples: int = 1
    steps: int = 50
    guidance_scale: float | None = None  # the model's own
    scheduler: str | None = None  # the checkpoint's own
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    guidance: str = "none"
    guidance_options: Mapping[str, Any] = field(default_factory=dict)  # by their names on the command line
    cache: CacheSettings | None = None
    seed: int = 0
    dtype: str = "auto"

    @property
    def record(self) -> dict[str, Any]:
        """All settings, each by its option's name, the guidance's with its defaults filled in."""
        own = asdict(self)
        given = own.pop("guidance_options")
        if self.guidance == NONE:
            return own | given
        chosen = guidance_class(self.guidance)
        return own | chosen.record(chosen.settings(given))

    def completing(self, given: SampleSettings) -> Complete:
        """How an earlier run's settings are read, for `RunDir`. `given`: these settings, as they came in."""
        chosen = None if self.guidance == NONE else guidance_class(self.guidance)
        defaults = {} if chosen is None else chosen.record(chosen.settings({}))
        return with_defaults(given, self, spread={"guidance_options": defaults})


@dataclass(frozen=True)
class SampleResult:
    """The rows of `videos.jsonl`, `items.jsonl` and `metrics.json`, and where they are."""

    path: Path
    videos: list[dict[str, Any]]
    items: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    is_main: bool = True

    @property
    def label(self) -> str:
        """The model as tables show it."""
        return shown_name(self.videos[0]["model"], self.videos[0]["random_init"])

    def value(self, metric: str) -> float | None:
        """A value of `metrics.json`, or None."""
        return next((row["value"] for row in self.rows if row["metric"] == metric), None)

    def files(self) -> dict[str, Path]:
        return {
            "videos": self.path / "videos",
            "picture": self.path / "contact_sheet.png",
            "list": self.path / "videos.jsonl",
            "rows": self.path / "metrics.json",
        }


@dataclass(frozen=True)
class _Item:
    """One video to make."""

    prompt: Prompt
    index: int
    seed: int

    @property
    def file_name(self) -> str:
        return video_name(self.prompt.text, self.index)


def sample(
    settings: SampleSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 1,
    cpu_offload: bool = False,
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    compiled: bool = False,
    reporter: Reporter | None = None,
) -> SampleResult:
    """Make videos.

    Args:
        settings: What to make.
        out: The run directory.
        overwrite: Replace a run with other settings.
        device: Where the model runs.
        batch_size: Videos a pass; changes nothing but speed and memory.
        cpu_offload: On a GPU, keep each part in main memory until it runs.
        vae_tiling: Decode large frames in tiles.
        vae_slicing: Decode the videos of a batch one by one.
        compiled: Compile the network's blocks first; changes nothing but speed, and values in rounding.
        reporter: Receives progress.

    Raises:
        UsageError: settings no video can have, or that this model cannot take.
        ModelError: the model or the motion field does not load, or makes videos that are not numbers.
        DataError: the run directory cannot be written.
    """
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    given, settings = settings, _checked(settings, device, batch_size, reporter)
    if compiled and settings.cache is not None:
        raise UsageError(
            f"--compile with --cache {settings.cache.name}.",
            expected="one of them: compiled blocks would pass over what the cache puts on them",
        )
    resolved = resolve(settings.model, adapter=settings.adapter, adapter_scale=settings.adapter_scale)
    if resolved.kind != "generator":
        raise UsageError(
            f"--model {settings.model} is an encoder: it makes no videos.",
            expected="a generator, such as cogvideox-tiny; `physcli models ls` lists them",
        )
    if settings.guidance_scale is None:
        settings = replace(settings, guidance_scale=read_facts(resolved).guidance_scale)
    chosen = None if settings.guidance == NONE else guidance_class(settings.guidance)
    guided_by = None if chosen is None else chosen.settings(settings.guidance_options)
    files = {} if chosen is None else chosen.files(guided_by, resolved)
    run = RunDir(
        out,
        "sample",
        settings.record,
        complete=settings.completing(given),
        overwrite=overwrite,
        reporter=reporter,
        processes=processes,
    )
    with run:
        inputs = {"model": fingerprint(resolved)}
        inputs |= {name: hash_files(path).hex() for name, path in files.items()}
        run.check_inputs(inputs)
        items = [
            _Item(prompt, index, seed_from(settings.seed, prompt.text, index))
            for prompt in settings.prompts
            if isinstance(prompt, Prompt)  # all are, since `_checked`
            for index in range(settings.num_samples)
        ]
        finished = run.already_finished
        done = processes.tell(_whole(run.path, items) if processes.is_main else {})
        if finished and len(done) == len(items):
            reporter.note(f"{run.path} already holds these videos; nothing is made again.")
            processes.finish()
            return read_result(run.path, processes.is_main)
        if finished:
            lost = [item.file_name for item in items if item.file_name not in done]
            reporter.warn(f"{run.path} lacks {len(lost)} whole videos, made again: {lost[0]}" + " …" * (len(lost) > 1))
            run.reopen()
        elif done:
            reporter.note(f"{len(done)} of {len(items)} videos are there already.")

        # 1. The model, and whether it can take these sizes, steps and prompts.
        generator = load_generator(
            resolved,
            device=device,
            dtype=settings.dtype,
            cpu_offload=cpu_offload,
            vae_tiling=vae_tiling,
            vae_slicing=vae_slicing,
            reporter=reporter,
        )
        height, width = settings.size or generator.facts.size
        num_frames = generator.facts.num_frames if settings.num_frames is None else settings.num_frames
        generator.codec.check(num_frames, decoding=True)
        generator.codec.check_size(height, width)
        generator.use_scheduler(settings.scheduler)
        if not 1 <= settings.steps <= generator.max_steps:
            raise UsageError(
                f"--steps {settings.steps}.",
                expected=f"1 to {generator.max_steps} denoising steps for {generator.name}",
            )
        guidance = None if chosen is None else chosen.build(guided_by, generator, files, reporter)
        if compiled:
            generator.compile()
        if resolved.random_init:
            reporter.warn(f"{resolved.name} has random weights: its videos show what an untrained network makes.")
        for prompt in dict.fromkeys(item.prompt.text for item in items):
            _warn_of_lost_words(generator, prompt, reporter)

        # 2. The videos, a batch at a time; each is written, and its row with it, as soon as it is made.
        rate_unsaid = FRAME_RATE_HZ if resolved.for_simulated_world else generator.facts.frame_rate_hz
        make = functools.partial(
            generator.sample,
            num_frames=num_frames,
            height=height,
            width=width,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
        )
        cache = None
        if settings.cache is not None:
            cache = StepCache(settings.cache, settings.steps)
            if CACHES[settings.cache.name].needs_ratios:
                found = _ratios(generator, run.path, items[0], make, reporter) if processes.is_main else []
                cache = replace(cache, ratios=tuple(processes.tell(found)))
            if CACHES[settings.cache.name].mixes_batch and batch_size > 1:
                reporter.note(f"--cache {settings.cache.name} makes videos one by one: it averages over a batch.")
                batch_size = 1
        mine = [item for item in processes.share(items) if item.file_name not in done]
        log = run.path / f"items-{processes.rank}.part.jsonl"
        with reporter.bar("Sampling", len(mine) * settings.steps, "step") as bar:
            for first in range(0, len(mine), batch_size):
                batch = mine[first : first + batch_size]
                start = time.perf_counter()
                made = make(
                    [item.prompt.text for item in batch],
                    [item.seed for item in batch],
                    guidance=guidance,
                    cache=cache,
                    frame_rates_hz=[frame_rate_of(item.prompt.text, rate_unsaid) for item in batch],
                    each_step=functools.partial(bar.advance, len(batch)),
                )
                seconds = (time.perf_counter() - start) / len(batch)
                for number, item in enumerate(batch):
                    path, frames = run.path / item.file_name, made.frames[number]
                    path.parent.mkdir(exist_ok=True)  # only now: a run that makes no video leaves no folder behind
                    write_clip(path, frames, frame_rate_of(item.prompt.text, rate_unsaid))
                    row = {"video": item.file_name, "sha256": content_hash(path), "seconds": round(seconds, 3)}
                    row |= {MEAN_FLOW.name: motion_of(frames), **_measured(made, number)}
                    if made.computed is not None:
                        row[_COMPUTED.name] = round(made.computed, 5)
                    append_row(log, row)
        processes.wait()

        # 3. The lists, the picture, the figures.
        if processes.is_main:
            done = _whole(run.path, items)
            made_rows = [done[item.file_name] for item in items]
            videos = [
                {
                    "video": item.file_name,
                    "caption": item.prompt.caption,  # what a rater is asked about; `prompt` is what the model was given
                    "prompt": item.prompt.text,
                    "seed": item.seed,
                    "index": item.index,
                    "model": settings.model,
                    "random_init": resolved.random_init,
                    "simulated_world": resolved.for_simulated_world,
                    "adapter": None if resolved.adapter is None else str(resolved.adapter),
                    "adapter_scale": None if resolved.adapter is None else resolved.adapter_scale,
                    "guidance_scale": settings.guidance_scale,
                    "scheduler": generator.scheduler_name,
                    "steps": settings.steps,
                    "num_frames": num_frames,
                    "height": height,
                    "width": width,
                    "fps": frame_rate_of(item.prompt.text, rate_unsaid),
                    "guidance": settings.guidance,
                    "guided_by": None
                    if guided_by is None
                    else asdict(guided_by) | {n: str(p) for n, p in files.items()},
                    "cache": None if settings.cache is None else asdict(settings.cache),
                    "columns": dict(item.prompt.columns),
                }
                for item in items
            ]
            write_jsonl(run.path / "items.jsonl", made_rows)
            write_jsonl(run.path / "videos.jsonl", videos)
            for part in run.path.glob("items-*.part.jsonl"):
                part.unlink()
            draw_sheet(run.path, videos)
            common = {
                "random_init": resolved.random_init,
                "steps": settings.steps,
                "guidance_scale": settings.guidance_scale,
                "guidance": settings.guidance,
                "cache": None if settings.cache is None else settings.cache.in_words,
                "compiled": compiled,
                "num_frames": num_frames,
                "height": height,
                "width": width,
                "batch_size": batch_size,
                "device": str(generator.device),
                "dtype": str(generator.dtype),
            }
            run.write_metrics(
                [row | common for row in rows_of(made_rows, resolved.name, () if chosen is None else chosen.metrics)]
            )
    processes.finish()
    return read_result(run.path, processes.is_main)


def video_name(prompt: str, index: int) -> str:
    """Where a prompt's video lies in a run directory."""
    return f"videos/{slug(prompt)}-{index}.mp4"


def slug(prompt: str) -> str:
    """A file name for a prompt: its beginning in ASCII letters and digits, and eight hexadecimal digits of its hash."""
    ascii_only = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_only)[:_SLUG_LENGTH].strip("-")
    return f"{words or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


def frame_rate_of(prompt: str, default_hz: float) -> float:
    """Frames per second of a prompt's video: what a simulated-world prompt says, else the default."""
    for every, phrase in RATES.items():
        if phrase in prompt.lower():
            return FRAME_RATE_HZ / every
    return default_hz


def write_clip(path: Path, frames: np.ndarray, frame_rate_hz: float) -> None:
    """Write a video that was made. Large ones keep their colours in 4:2:0 as well, and only that plays in browsers."""
    write_video(path, frames, frame_rate_hz, full_chroma=min(frames.shape[1:3]) < 256)


def motion_of(frames: np.ndarray) -> float | None:
    """Mean length of the optical flow (DIS) between neighbouring frames, in pixels; None of less than two, or tiny."""
    if len(frames) < 2 or min(frames.shape[1:3]) < _LEAST_FLOW_SIDE:
        return None
    return round(float(np.linalg.norm(dis_flow(frames), axis=-1).mean()), 5)


def _checked(settings: SampleSettings, device: str, batch_size: int, reporter: Reporter) -> SampleSettings:
    """The settings with every prompt once, as a `Prompt`, and with the guidance's own defaults filled in.

    Raises:
        UsageError: settings that are wrong for any model.
    """
    pick_dtype(settings.dtype, pick_device(device))
    if not settings.prompts:
        raise UsageError(
            "No prompt.",
            expected="--prompt or --prompts",
            fix='add --prompt "a red ball rolls down a slope", or --prompts FILE',
        )
    prompts: dict[str, Prompt] = {}
    for given in settings.prompts:
        prompt = given if isinstance(given, Prompt) else Prompt(given)
        try:
            prompt.text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"The prompt {prompt.text!a} is not valid text.", expected="UTF-8") from None
        prompts.setdefault(prompt.text, prompt)
    if len(prompts) < len(settings.prompts):
        reporter.warn("Prompts that were given more than once are sampled once; --num-samples makes several of each.")
    for option, value in (("--num-samples", settings.num_samples), ("--batch-size", batch_size)):
        if value < 1:
            raise UsageError(f"{option} {value}.", expected="at least 1")
    scale = settings.guidance_scale
    if scale is not None and not (math.isfinite(scale) and scale >= 0):
        raise UsageError(f"--guidance-scale {scale}.", expected="a number of at least 0; 1 or less is no guidance")
    if settings.guidance != NONE:
        guide = guidance_class(settings.guidance)
        guide.settings(settings.guidance_options)
        if settings.cache is not None and guide.more_forwards:
            raise UsageError(
                f"--cache {settings.cache.name} with --guidance {settings.guidance}, which asks the network by itself.",
                expected="one of them",
            )
    elif settings.guidance_options:
        option = next(iter(settings.guidance_options))
        wanted = next((name for name in GUIDANCES if option.startswith(f"{guidance_class(name).prefix}_")), None)
        raise UsageError(
            f"{flag(option)} without --guidance {wanted}.", expected="both or neither", fix=f"add --guidance {wanted}"
        )
    return replace(settings, prompts=tuple(prompts.values()))


def _ratios(generator: Generator, folder: Path, item: _Item, make: Callable[..., Sampled], reporter: Reporter) -> Any:
    """For `magcache`: from the run's file of them, or measured at a video made without it for the first prompt."""
    file = folder / "mag_ratios.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    reporter.note("--cache magcache: one more video, of the first prompt, shows how the network's output changes.")
    measured = ratios(generator.blocks, lambda each_step: make([item.prompt.text], [item.seed], each_step=each_step))
    found = [round(value, 6) for value in measured]
    write_json(file, found)
    return found


def _measured(made: Sampled, number: int) -> dict[str, Any]:
    """What guidance measured of one video of a batch: lists over the guided steps."""
    if made.measured is None:
        return {}
    return {"guided_steps": list(made.guided)} | {
        name: [float(f"{value:.6g}") for value in values[number]] for name, values in made.measured.items()
    }


def _warn_of_lost_words(generator: Generator, prompt: str, reporter: Reporter) -> None:
    """Say what the text encoder will not see of a prompt: its end, or words it does not know."""
    most = generator.facts.max_text_tokens
    with quiet_libraries():
        length = generator.prompt_lengths([prompt])[0]
        unknown_words = generator.unknown_words(prompt)
    if length > most:
        lost = length - most
        reporter.warn(
            f"{generator.name} reads {most} tokens of a prompt and cuts the last {lost} of: {shorten(prompt)}"
        )
    if unknown_words:
        words = " ".join(unknown_words)
        reporter.warn(
            f"{generator.name} does not know these words, and takes all for one: {words} (in: {shorten(prompt)})"
        )


def rows_of(made: Sequence[Mapping[str, Any]], subject: str, guided: Sequence[Measured] = ()) -> list[dict[str, Any]]:
    """Rows of metrics.json over rows of items.jsonl: what a video costs, how much moves, what a guidance did."""

    found: dict[Metric, list[float | None]] = {}
    if "seconds" in made[0]:
        found[_SECONDS] = [item["seconds"] for item in made]
    if _COMPUTED.name in made[0]:
        found[_COMPUTED] = [item[_COMPUTED.name] for item in made]
    if any(item[MEAN_FLOW.name] is not None for item in made):
        found[MEAN_FLOW] = [item[MEAN_FLOW.name] for item in made]
    for measured in guided:
        steps = [np.array(item[measured.log]) for item in made]
        metric = Metric(measured.metric, measured.kind, measured.higher_is_better)
        found[metric] = [float(one.mean() if measured.of_steps == "mean" else one[-1]) for one in steps]
    return [
        mean_row(metric, values, benchmark="sample", task="text-to-video", subject=subject)
        for metric, values in found.items()
    ]


def _whole(path: Path, items: Sequence[_Item]) -> dict[str, dict[str, Any]]:
    """Videos that are there as they were written: file name → row of items.jsonl, or of a part of a broken-off run."""
    logs = (path / "items.jsonl", *sorted(path.glob("items-*.part.jsonl")))
    found = {row["video"]: _renamed(row) for log in logs for row in read_log(log)}
    rows = {item.file_name: found[item.file_name] for item in items if item.file_name in found}
    return {n: row for n, row in rows.items() if (path / n).is_file() and content_hash(path / n) == row["sha256"]}


def read_result(path: Path, is_main: bool = True) -> SampleResult:
    """What a finished run holds; of processes other than the main one, nothing."""
    if not is_main:
        return SampleResult(path, [], [], [], is_main=False)
    items, rows = read_rows(path / "items.jsonl"), read_metrics(path)
    return SampleResult(path, read_rows(path / "videos.jsonl"), [*map(_renamed, items)], [*map(_renamed, rows)])


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of items.jsonl or metrics.json; in older runs the mean flow has the name of another measure."""
    old = "motion_px"
    return {
        MEAN_FLOW.name if name == old else name: MEAN_FLOW.name if (name, value) == ("metric", old) else value
        for name, value in row.items()
    }
