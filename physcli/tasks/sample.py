"""`physcli sample`: videos for prompts, through the checkpoint's own diffusers pipeline.

    OUT/videos/<prompt>-<hash>-<index>.mp4
    OUT/videos.jsonl           a row a video: its file, its prompt, and all it takes to make it again
    OUT/contact_sheet.png      five moments of each
    OUT/metrics.json, run.json

A video's noise depends on (seed, prompt, index) alone. Each video has its own random numbers, drawn on the CPU, so
neither the batch size nor the device nor the other prompts change them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import time
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from physcli.data.video import resize, write_video
from physcli.errors import ModelError, UsageError
from physcli.hashing import seed_from
from physcli.models import BUILT_IN, read_guidance_scale
from physcli.models.loading import Resolved, fingerprint, load, pick_device, pick_dtype, quiet_libraries, resolve
from physcli.progress import Reporter
from physcli.report.plots import contact_sheet
from physcli.simulation.prompts import RATES
from physcli.simulation.types import FRAME_RATE_HZ
from physcli.stats import stderr_of_mean
from physcli.tasks.run_dir import RunDir, read_metrics, write_jsonl

_SLUG_LENGTH = 32
_SHEET_VIDEOS = 24
_SHEET_COLUMNS = 5
_SHEET_HEIGHT = 160  # pixels of a frame on the sheet, at most
_CAPTION_LENGTH = 72


@dataclass(frozen=True)
class SampleSettings:
    """All that bears on the videos. Meanings as in `physcli sample --help`; sizes are (height, width) in pixels."""

    prompts: tuple[str, ...]
    model: str = "cogvideox-tiny"
    adapter: str | None = None
    num_samples: int = 1
    steps: int = 50
    guidance_scale: float | None = None  # the model's own
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True)
class SampleResult:
    """The rows of `videos.jsonl` and of `metrics.json`, and where they are."""

    path: Path
    videos: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """The model as tables show it: random weights are never mistaken for trained ones."""
        model, random_init = self.videos[0]["model"], self.videos[0]["random_init"]
        return f"{model.removesuffix(':random')} (random init)" if random_init else model

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

    prompt: str
    index: int
    seed: int

    @property
    def file_name(self) -> str:
        return f"videos/{slug(self.prompt)}-{self.index}.mp4"


def sample(
    settings: SampleSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 1,
    reporter: Reporter | None = None,
) -> SampleResult:
    """Make videos.

    Args:
        settings: What to make.
        out: The run directory.
        overwrite: Replace a run with other settings.
        device: Where the model runs.
        batch_size: Videos a pass; changes nothing but speed and memory.
        reporter: Receives progress.

    Raises:
        UsageError: settings no video can have, or that this model cannot take.
        ModelError: the model does not load, or makes videos that are not numbers.
        DataError: the run directory cannot be written.
    """
    reporter = reporter or Reporter()
    settings = _checked(settings, device, batch_size, reporter)
    resolved = resolve(settings.model, adapter=settings.adapter)
    if resolved.kind != "generator":
        raise UsageError(
            f"--model {settings.model} is an encoder: it makes no videos.",
            expected="a generator, such as cogvideox-tiny; `physcli models ls` lists them",
        )
    if settings.guidance_scale is None:
        settings = replace(settings, guidance_scale=read_guidance_scale(resolved.path))
    with RunDir(out, "sample", asdict(settings), overwrite=overwrite, reporter=reporter) as run:
        run.check_inputs({"model": fingerprint(resolved)})
        if run.already_finished:
            lost = _missing(run.path)
            if not lost:
                reporter.note(f"{run.path} already holds these videos; nothing is made again.")
                return _read_result(run.path)
            reporter.warn(f"{run.path} lacks {len(lost)} files, such as {lost[0]}: all its videos are made again.")
            run.redo()

        # 1. The model, and whether it can take these sizes, steps and prompts.
        generator: Any = load(resolved, device=device, dtype=settings.dtype)
        height, width = settings.size or generator.native_size
        num_frames = generator.native_num_frames if settings.num_frames is None else settings.num_frames
        generator.check_num_frames(num_frames, decoding=True)
        generator.latent_grid(num_frames, height, width)
        _check_steps(generator, settings.steps)
        if resolved.random_init:
            reporter.warn(f"{resolved.name} has random weights: its videos show what an untrained network makes.")
        for prompt in settings.prompts:
            _warn_of_lost_words(generator, prompt, reporter)

        # 2. The videos, a batch at a time; each is written as soon as it is made.
        rate_unsaid = _native_frame_rate(generator, built_in=resolved.base in BUILT_IN)
        items = [
            _Item(prompt, index, seed_from(settings.seed, prompt, index))
            for prompt in settings.prompts
            for index in range(settings.num_samples)
        ]
        on_sheet = set(sorted(items, key=lambda item: item.index)[:_SHEET_VIDEOS])  # every prompt's first sample first
        shown: list[tuple[str, np.ndarray]] = []
        moments = np.linspace(0, num_frames - 1, min(_SHEET_COLUMNS, num_frames)).round().astype(int)
        videos: list[dict[str, Any]] = []
        seconds: list[float] = []
        with reporter.bar("Sampling", len(items) * settings.steps, "step") as bar:
            for first in range(0, len(items), batch_size):
                batch = items[first : first + batch_size]
                start = time.perf_counter()
                clips = generate(
                    generator,
                    [item.prompt for item in batch],
                    [item.seed for item in batch],
                    num_frames=num_frames,
                    height=height,
                    width=width,
                    steps=settings.steps,
                    guidance_scale=settings.guidance_scale,
                    each_step=functools.partial(bar.advance, len(batch)),
                )
                seconds += [(time.perf_counter() - start) / len(batch)] * len(batch)
                for item, frames in zip(batch, clips, strict=True):
                    row = _row(item, frames, settings, resolved, frame_rate_of(item.prompt, rate_unsaid))
                    _write(run.path / row["video"], frames, row["fps"])
                    videos.append(row)
                    if item in on_sheet:
                        shown.append((_caption(item, settings, resolved), _thumbnails(frames[moments])))

        # 3. The list, the picture, the figures.
        write_jsonl(run.path / "videos.jsonl", videos)
        with warnings.catch_warnings():
            # The font has no Chinese and no emoji; a box in the picture is bearable, the list has the words.
            warnings.filterwarnings("ignore", message="Glyph")
            contact_sheet(run.path / "contact_sheet.png", rows=shown, columns=[f"frame {n}" for n in moments])
        rows = [
            {
                "benchmark": "sample",
                "task": "text-to-video",
                "subject": resolved.name,
                "split": "all",
                "group": "all",
                "metric": "seconds_per_video",
                "value": float(np.mean(seconds)),
                "stderr": stderr_of_mean(np.array(seconds), clusters=[i // batch_size for i in range(len(seconds))]),
                "n": len(videos),
                "higher_is_better": False,
                "random_init": resolved.random_init,
                "steps": settings.steps,
                "guidance_scale": settings.guidance_scale,
                "num_frames": num_frames,
                "height": height,
                "width": width,
                "batch_size": batch_size,
                "device": str(generator.device),
                "dtype": str(generator.dtype),
            }
        ]
        run.write_metrics(rows)
    return _read_result(run.path)


def generate(
    generator: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_frames: int,
    height: int,
    width: int,
    steps: int = 50,
    guidance_scale: float | None = None,
    each_step: Callable[[], None] | None = None,
) -> np.ndarray:
    """One batch of videos from the stock pipeline, its scheduler as the checkpoint has it.

    Args:
        generator: A generator adapter, already where it shall run.
        prompts: B texts.
        seeds: B seeds, of each video's first noise and of what the scheduler adds.
        num_frames: Pixel frames T.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance_scale: Classifier-free guidance against the empty prompt; none at 1 and below. Default: the model's.
        each_step: Called after every denoising step.

    Returns:
        uint8 [B, T, H, W, 3], RGB.

    Raises:
        ModelError: the output is not finite.
    """

    def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if each_step is not None:
            each_step()
        return {}

    generator.pipeline.set_progress_bar_config(disable=True)
    with quiet_libraries():  # prompts that are too long are told of by `sample`, in its own words
        made = generator.pipeline(
            list(prompts),
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=generator.guidance_scale if guidance_scale is None else guidance_scale,
            max_sequence_length=generator.max_text_seq_length,
            # On the CPU whatever the device, so that every device gets the same noise.
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[],
            output_type="np",
        ).frames
    pixels = np.asarray(made)
    if not np.isfinite(pixels).all():
        raise ModelError(
            f"The videos of {generator.name} are not numbers (NaN), in {generator.dtype}.",
            expected="finite pixels",
            fix="try --dtype float32 or bfloat16; if it stays so, the weights are damaged",
        )
    return (pixels * 255).round().astype(np.uint8)


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


def shorten(prompt: str, length: int = 80) -> str:
    """The beginning of a prompt, on one line."""
    words = " ".join(prompt.split()) or "(empty prompt)"
    return words if len(words) <= length else words[: length - 1] + "…"


def _checked(settings: SampleSettings, device: str, batch_size: int, reporter: Reporter) -> SampleSettings:
    """The settings with every prompt once.

    Raises:
        UsageError: settings that are wrong for any model.
    """
    pick_dtype(settings.dtype, pick_device(device))
    if not settings.prompts:
        raise UsageError("No --prompt.", expected="at least one", fix='add --prompt "a red ball rolls down a slope"')
    for prompt in settings.prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UsageError(f"--prompt {prompt!a} is not valid text.", expected="UTF-8") from None
    for option, value in (("--num-samples", settings.num_samples), ("--batch-size", batch_size)):
        if value < 1:
            raise UsageError(f"{option} {value}.", expected="at least 1")
    scale = settings.guidance_scale
    if scale is not None and not (math.isfinite(scale) and scale >= 0):
        raise UsageError(f"--guidance-scale {scale}.", expected="a number of at least 0; 1 or less is no guidance")
    prompts = tuple(dict.fromkeys(settings.prompts))
    if len(prompts) < len(settings.prompts):
        reporter.warn("Prompts that were given more than once are sampled once; --num-samples makes several of each.")
    return replace(settings, prompts=prompts)


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
    unknown = [
        prompt[start:end]
        for token, (start, end) in zip(tokens.input_ids, tokens.offset_mapping, strict=True)
        if token == tokenizer.unk_token_id
    ]
    if unknown:
        words = " ".join(dict.fromkeys(unknown))
        reporter.warn(
            f"{generator.name} does not know these words, and takes all for one: {words} (in: {shorten(prompt)})"
        )


def _row(
    item: _Item, frames: np.ndarray, settings: SampleSettings, resolved: Resolved, frame_rate_hz: float
) -> dict[str, Any]:
    num_frames, height, width, _ = frames.shape
    return {
        "video": item.file_name,
        "caption": item.prompt,  # what a rater is asked about; `prompt` is what the model was given
        "prompt": item.prompt,
        "seed": item.seed,
        "index": item.index,
        "model": settings.model,
        "random_init": resolved.random_init,
        "adapter": None if resolved.adapter is None else str(resolved.adapter),
        "guidance_scale": settings.guidance_scale,
        "steps": settings.steps,
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "fps": frame_rate_hz,
    }


def _write(path: Path, frames: np.ndarray, frame_rate_hz: float) -> None:
    path.parent.mkdir(exist_ok=True)
    # Large clips keep their colours in 4:2:0 as well, and only that plays in browsers.
    write_video(path, frames, frame_rate_hz, full_chroma=min(frames.shape[1:3]) < 256)


def _caption(item: _Item, settings: SampleSettings, resolved: Resolved) -> str:
    """A line of the contact sheet."""
    head = "random init: " if resolved.random_init else ""
    tail = f" ({item.index})" if settings.num_samples > 1 else ""
    words = shorten(item.prompt, _CAPTION_LENGTH - len(head) - len(tail))
    return f"{head}{words}{tail}".replace("$", r"\$")  # matplotlib sets what is between dollars as mathematics


def _thumbnails(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    shrunk = min(height, _SHEET_HEIGHT)
    return resize(frames, shrunk, max(1, round(width * shrunk / height)))


def _missing(path: Path) -> list[str]:
    """Files a finished run should have and has not."""
    try:
        videos = _read_videos(path)
    except (OSError, ValueError):
        return ["videos.jsonl"]
    return [name for name in [row["video"] for row in videos] if not (path / name).is_file()]


def _read_videos(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "videos.jsonl").read_text(encoding="utf-8").splitlines()]


def _read_result(path: Path) -> SampleResult:
    return SampleResult(path, _read_videos(path), read_metrics(path))
