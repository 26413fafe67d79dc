"""`physcli sample`: videos for prompts, through the checkpoint's own diffusers pipeline.

    OUT/videos/<prompt>-<hash>-<index>.mp4
    OUT/videos.jsonl           a row a video: its file, its prompt, and all it takes to make it again
    OUT/items.jsonl            a row a video: what it cost, its file's hash, what guidance did at every step
    OUT/contact_sheet.png      five moments of each
    OUT/metrics.json, run.json

A video's noise depends on (seed, prompt, index) alone. Each video has its own random numbers, drawn on the CPU, so
neither the batch size nor the device nor the other prompts nor the number of processes change them. A video is written
as soon as it is made, and a run that was broken off makes only those that are missing or not whole.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from physcli.data.flow import dis_flow
from physcli.data.prompts import Prompt
from physcli.data.video import write_video
from physcli.errors import UsageError, unknown
from physcli.hashing import content_hash, seed_from
from physcli.models import read_guidance_scale, shown_name
from physcli.models.fingerprints import hash_files
from physcli.models.loading import fingerprint, load, pick_device, pick_dtype, quiet_libraries, resolve
from physcli.progress import Reporter
from physcli.simulation.prompts import RATES
from physcli.simulation.types import FRAME_RATE_HZ
from physcli.stats import stderr_of_mean
from physcli.tasks.motion_fields import check_field, find_field, read_field
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, append_row, read_log, read_metrics, read_rows, with_defaults, write_jsonl
from physcli.tasks.sampling import SCHEDULERS, Guide, Sampled, generate, use_scheduler
from physcli.tasks.sheets import draw_sheet, shorten

GUIDANCES = ("none", "lamo")
REDUCTIONS = ("mean", "sum", "normalized")
MOTION_SCALE = 15.0  # LaMo's released λ
MOTION_RATIO = 0.8

_SLUG_LENGTH = 32
_LEAST_FLOW_SIDE = 16  # pixels


@dataclass(frozen=True)
class SampleSettings:
    """All that bears on the videos. Meanings as in `physcli sample --help`; sizes are (height, width) in pixels."""

    prompts: tuple[str | Prompt, ...]
    model: str = "cogvideox-tiny"
    adapter: str | None = None
    num_samples: int = 1
    steps: int = 50
    guidance_scale: float | None = None  # the model's own
    scheduler: str | None = None  # the checkpoint's own
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    guidance: str = "none"
    motion_scale: float | None = None
    motion_reduction: str | None = None
    motion_lag: int | None = None  # the field's own
    motion_ratio: float | None = None
    motion_window: str | None = None
    motion_field: str | None = None
    seed: int = 0
    dtype: str = "auto"


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
        reporter: Receives progress.

    Raises:
        UsageError: settings no video can have, or that this model cannot take.
        ModelError: the model or the motion field does not load, or makes videos that are not numbers.
        DataError: the run directory cannot be written.
    """
    processes = Processes(device)
    reporter = reporter if reporter is not None and processes.is_main else Reporter()
    given, settings = settings, _checked(settings, device, batch_size, reporter)
    resolved = resolve(settings.model, adapter=settings.adapter)
    if resolved.kind != "generator":
        raise UsageError(
            f"--model {settings.model} is an encoder: it makes no videos.",
            expected="a generator, such as cogvideox-tiny; `physcli models ls` lists them",
        )
    if settings.guidance_scale is None:
        settings = replace(settings, guidance_scale=read_guidance_scale(resolved.path))
    field_at = find_field(settings.motion_field, resolved) if settings.guidance == "lamo" else None
    run = RunDir(
        out,
        "sample",
        asdict(settings),
        complete=with_defaults(given, settings),
        overwrite=overwrite,
        reporter=reporter,
        writes=processes.is_main,
    )
    with run:
        run.path = Path(processes.tell(str(run.path)))
        inputs = {"model": fingerprint(resolved)}
        if field_at is not None:
            inputs["motion field"] = hash_files(field_at).hex()
        run.check_inputs(inputs)
        items = [
            _Item(prompt, index, seed_from(settings.seed, prompt.text, index))
            for prompt in settings.prompts
            if isinstance(prompt, Prompt)  # all are, since `_checked`
            for index in range(settings.num_samples)
        ]
        finished = processes.tell(run.already_finished)
        done = processes.tell(_whole(run.path, items) if processes.is_main else {})
        if finished and len(done) == len(items):
            reporter.note(f"{run.path} already holds these videos; nothing is made again.")
            processes.finish()
            return read_result(run.path, processes.is_main)
        if finished:
            lost = [item.file_name for item in items if item.file_name not in done]
            reporter.warn(f"{run.path} lacks {len(lost)} whole videos, made again: {lost[0]}" + " …" * (len(lost) > 1))
            if processes.is_main:
                run.redo()
        elif done:
            reporter.note(f"{len(done)} of {len(items)} videos are there already.")

        # 1. The model, and whether it can take these sizes, steps and prompts.
        generator: Any = load(
            resolved,
            device=device,
            dtype=settings.dtype,
            cpu_offload=cpu_offload,
            vae_tiling=vae_tiling,
            vae_slicing=vae_slicing,
        )
        height, width = settings.size or generator.native_size
        num_frames = generator.native_num_frames if settings.num_frames is None else settings.num_frames
        generator.check_num_frames(num_frames, decoding=True)
        generator.latent_grid(num_frames, height, width)
        use_scheduler(generator, settings.scheduler)
        _check_steps(generator, settings.steps)
        guide = _guide(settings, generator, field_at, reporter)
        if resolved.random_init:
            reporter.warn(f"{resolved.name} has random weights: its videos show what an untrained network makes.")
        for prompt in dict.fromkeys(item.prompt.text for item in items):
            _warn_of_lost_words(generator, prompt, reporter)

        # 2. The videos, a batch at a time; each is written, and its row with it, as soon as it is made.
        rate_unsaid = _native_frame_rate(generator, built_in=resolved.for_simulated_world)
        mine = [item for item in processes.share(items) if item.file_name not in done]
        log = run.path / f"items-{processes.rank}.part.jsonl"
        with reporter.bar("Sampling", len(mine) * settings.steps, "step") as bar:
            for first in range(0, len(mine), batch_size):
                batch = mine[first : first + batch_size]
                start = time.perf_counter()
                made = generate(
                    generator,
                    [item.prompt.text for item in batch],
                    [item.seed for item in batch],
                    num_frames=num_frames,
                    height=height,
                    width=width,
                    steps=settings.steps,
                    guidance_scale=settings.guidance_scale,
                    guide=guide,
                    each_step=functools.partial(bar.advance, len(batch)),
                )
                seconds = (time.perf_counter() - start) / len(batch)
                for number, item in enumerate(batch):
                    path, frames = run.path / item.file_name, made.frames[number]
                    path.parent.mkdir(exist_ok=True)  # only now: a run that makes no video leaves no folder behind
                    write_clip(path, frames, frame_rate_of(item.prompt.text, rate_unsaid))
                    row = {"video": item.file_name, "sha256": content_hash(path), "seconds": round(seconds, 3)}
                    row |= {"motion_px": motion_of(frames), **_measured(made, number)}
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
                    "guidance_scale": settings.guidance_scale,
                    "scheduler": type(generator.pipeline.scheduler).__name__,
                    "steps": settings.steps,
                    "num_frames": num_frames,
                    "height": height,
                    "width": width,
                    "fps": frame_rate_of(item.prompt.text, rate_unsaid),
                    "guidance": settings.guidance,
                    "motion": None if guide is None else _motion(settings) | {"field": str(field_at)},
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
                "num_frames": num_frames,
                "height": height,
                "width": width,
                "batch_size": batch_size,
                "device": str(generator.device),
                "dtype": str(generator.dtype),
            }
            run.write_metrics([row | common for row in rows_of(made_rows, resolved.name)])
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
    if settings.scheduler is not None and settings.scheduler not in SCHEDULERS:
        raise unknown("scheduler", settings.scheduler, SCHEDULERS)
    return replace(_checked_motion(settings), prompts=tuple(prompts.values()))


def _checked_motion(settings: SampleSettings) -> SampleSettings:
    """The settings of motion guidance, defaults filled in.

    Raises:
        UsageError: values that cannot be, or any of them without the guidance.
    """
    if settings.guidance not in GUIDANCES:
        raise unknown("guidance", settings.guidance, GUIDANCES)
    names = ("scale", "reduction", "lag", "ratio", "window", "field")
    given = [f"--motion-{name}" for name in names if getattr(settings, f"motion_{name}") is not None]
    if settings.guidance == "none":
        if given:
            raise UsageError(
                f"{given[0]} without --guidance lamo.", expected="both or neither", fix="add --guidance lamo"
            )
        return settings
    filled = replace(
        settings,
        motion_scale=MOTION_SCALE if settings.motion_scale is None else settings.motion_scale,
        motion_reduction=settings.motion_reduction or "mean",
        motion_ratio=MOTION_RATIO if settings.motion_ratio is None else settings.motion_ratio,
        motion_window=settings.motion_window or "exact",
    )
    assert filled.motion_scale is not None
    assert filled.motion_ratio is not None
    if not 0 <= filled.motion_scale < math.inf:
        raise UsageError(f"--motion-scale {filled.motion_scale}.", expected="a number of at least 0; 0 only measures")
    if not 0 < filled.motion_ratio <= 1:
        raise UsageError(f"--motion-ratio {filled.motion_ratio}.", expected="above 0, at most 1")
    if filled.motion_lag is not None and filled.motion_lag < 1:
        raise UsageError(f"--motion-lag {filled.motion_lag}.", expected="at least 1 latent frame")
    if filled.motion_reduction not in REDUCTIONS:
        raise unknown("reduction", str(filled.motion_reduction), REDUCTIONS)
    if filled.motion_window not in ("exact", "released"):
        raise unknown("window", str(filled.motion_window), ("exact", "released"))
    return filled


def _guide(settings: SampleSettings, generator: Any, field_at: Path | None, reporter: Reporter) -> Guide | None:
    if field_at is None:
        return None
    field = read_field(field_at)
    check_field(field, generator, str(field_at))
    reporter.note(f"The motion field is {field_at.name}, lag {field.lag}.")
    if settings.motion_lag not in (None, field.lag):
        reporter.warn(
            f"--motion-lag {settings.motion_lag}, but the motion field predicts {field.lag} latent frames ahead."
        )
    return Guide(field.to(generator.device).eval().requires_grad_(False), **_motion(settings))


def _motion(settings: SampleSettings) -> dict[str, Any]:
    """Motion guidance's settings, as `Guide` names them."""
    return {name: getattr(settings, f"motion_{name}") for name in ("scale", "reduction", "lag", "ratio", "window")}


def _measured(made: Sampled, number: int) -> dict[str, Any]:
    """What guidance measured of one video of a batch: lists over the guided steps."""
    if made.measured is None:
        return {}
    return {"guided_steps": list(made.guided)} | {
        name: [float(f"{value:.6g}") for value in values[number]] for name, values in made.measured.items()
    }


def _check_steps(generator: Any, steps: int) -> None:
    most = generator.pipeline.scheduler.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise UsageError(f"--steps {steps}.", expected=f"1 to {most} denoising steps for {generator.name}")


def _native_frame_rate(generator: Any, *, built_in: bool) -> float:
    """Frames per second a model was trained on; of CogVideoX 1.0 and 1.5, what their model cards say."""
    if built_in:
        return FRAME_RATE_HZ
    return 16 if generator.patch_size_t > 1 else 8


def _warn_of_lost_words(generator: Any, prompt: str, reporter: Reporter) -> None:
    """Say what the text encoder will not see of a prompt: its end, or words it does not know."""
    tokenizer, most = generator.pipeline.tokenizer, generator.max_text_seq_length
    with quiet_libraries():
        length = generator.prompt_lengths([prompt])[0]
        if length > most:
            lost = length - most
            reporter.warn(
                f"{generator.name} reads {most} tokens of a prompt and cuts the last {lost} of: {shorten(prompt)}"
            )
        if not tokenizer.is_fast:  # only these say which characters a token stands for
            return
        tokens = tokenizer(prompt, truncation=False, return_offsets_mapping=True)
    unknown_words = [
        prompt[start:end]
        for token, (start, end) in zip(tokens.input_ids, tokens.offset_mapping, strict=True)
        if token == tokenizer.unk_token_id
    ]
    if unknown_words:
        words = " ".join(dict.fromkeys(unknown_words))
        reporter.warn(
            f"{generator.name} does not know these words, and takes all for one: {words} (in: {shorten(prompt)})"
        )


def rows_of(made: Sequence[Mapping[str, Any]], subject: str) -> list[dict[str, Any]]:
    """Rows of metrics.json over rows of items.jsonl: what a video costs, how much moves, what guidance did."""

    def row(metric: str, values: Sequence[float], higher: bool | None) -> dict[str, Any]:
        return {
            "benchmark": "sample",
            "task": "text-to-video",
            "subject": subject,
            "split": "all",
            "group": "all",
            "metric": metric,
            "value": float(np.mean(values)),
            "stderr": stderr_of_mean(np.array(values)),
            "n": len(values),
            "higher_is_better": higher,
        }

    rows = []
    if "seconds" in made[0]:
        rows.append(row("seconds_per_video", [item["seconds"] for item in made], False))
    if moving := [item["motion_px"] for item in made if item["motion_px"] is not None]:
        rows.append(row("motion_px", moving, None))
    if "update_ratio" in made[0]:
        rows.append(row("update_ratio", [float(np.mean(item["update_ratio"])) for item in made], None))
        rows.append(row("update_changed", [float(np.mean(item["changed"])) for item in made], None))
        rows.append(row("motion_residual", [item["guidance_loss"][-1] for item in made], False))
    return rows


def _whole(path: Path, items: Sequence[_Item]) -> dict[str, dict[str, Any]]:
    """Videos that are there as they were written: file name → row of items.jsonl, or of a part of a broken-off run."""
    logs = (path / "items.jsonl", *sorted(path.glob("items-*.part.jsonl")))
    found = {row["video"]: row for log in logs for row in read_log(log)}
    rows = {item.file_name: found[item.file_name] for item in items if item.file_name in found}
    return {n: row for n, row in rows.items() if (path / n).is_file() and content_hash(path / n) == row["sha256"]}


def read_result(path: Path, is_main: bool = True) -> SampleResult:
    """What a finished run holds; of processes other than the main one, nothing."""
    if not is_main:
        return SampleResult(path, [], [], [], is_main=False)
    return SampleResult(path, read_rows(path / "videos.jsonl"), read_rows(path / "items.jsonl"), read_metrics(path))
