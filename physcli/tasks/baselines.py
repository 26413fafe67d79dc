"""Two sets of videos that every comparison of generators needs: one that stands still, and one that is real.

`static`: the first frame of every video, repeated. Raters find it plausible; whoever moves less looks better beside it.
`repeat_real`: real clips through the VAE alone. No generator with that VAE can look more real.

Both leave what `physcli sample` leaves, so scoring and comparing take them as they take any set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from physcli.data.clips import Clip, read_dataset
from physcli.data.subsets import thin
from physcli.data.tables import read_jsonl
from physcli.data.video import frame_rate, read_video, resize, video_info
from physcli.errors import DataError, UsageError
from physcli.files import short_names
from physcli.hashing import content_hash, settings_hash
from physcli.models.loading import load_generator
from physcli.models.names import fingerprint, resolve
from physcli.progress import Reporter
from physcli.simulation.prompts import RATES, with_rate
from physcli.tasks.features import to_tensor
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, cache_root, with_defaults, write_jsonl
from physcli.tasks.sample import MEAN_FLOW, SampleResult, motion_of, read_result, rows_of, video_name, write_clip
from physcli.tasks.sheets import draw_sheet
from physcli.tasks.sources import clips_folder, simulated_by

_LIST = "videos.jsonl"


@dataclass(frozen=True)
class BaselineSettings:
    """`kind`: static or repeat-real; `videos`: RUN, videos.jsonl, or a folder of clips or simulated[:N]."""

    kind: str
    videos: str
    model: str = "cogvideox-tiny"
    num_frames: int | None = None
    limit: int | None = None


def static(
    settings: BaselineSettings, *, out: Path | None = None, overwrite: bool = False, reporter: Reporter | None = None
) -> SampleResult:
    """The first frame of every video of a sampled set, repeated for as long.

    Raises:
        UsageError: `videos` is no sampled set.
        DataError: one of its videos cannot be read.
    """
    reporter = reporter or Reporter()
    listed = _listed(settings)
    with RunDir(
        out, "sample", asdict(settings), complete=with_defaults(settings), overwrite=overwrite, reporter=reporter
    ) as run:
        run.check_inputs({"videos": settings_hash({row["video"]: content_hash(path) for path, row in listed})})
        if run.already_finished:
            reporter.note(f"{run.path} already holds these videos; nothing is made again.")
            return read_result(run.path)
        made = []
        with reporter.bar("Holding the first frame", len(listed), "video") as bar:
            for path, row in listed:
                still = np.repeat(read_video(path, [0]), video_info(path).num_frames, axis=0)
                made.append((still, row | {"baseline": "static", "of": str(path)}))
                bar.advance()
        return _write(run, made, f"static of {settings.videos}")


def repeat_real(
    settings: BaselineSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> SampleResult:
    """Real clips, encoded and decoded by the model's VAE.

    Simulated clips are shown as a generator's videos show them, the whole event; others from their first frame on, at
    their own rate, squashed to the model's size if need be.

    Raises:
        UsageError: the model is an encoder, or cannot take so many frames.
        DataError: no clip is long enough, or one cannot be read.
    """
    reporter = reporter or Reporter()
    resolved = resolve(settings.model)
    if resolved.kind != "generator":
        raise UsageError(f"--model {settings.model} is an encoder: it has no VAE.", expected="a generator")
    with RunDir(
        out,
        "sample",
        asdict(settings) | simulated_by(settings.videos),
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
    ) as run:
        folder = clips_folder(
            settings.videos, cache=cache_root(cache_dir), processes=Processes(device), reporter=reporter
        )
        clips = thin([clip for clip in read_dataset(folder).clips if clip.split == "test"], settings.limit)
        names = short_names([clip.path for clip in clips], folder, suffixes=False)
        run.check_inputs(
            {
                "model": fingerprint(resolved, part="vae"),
                "videos": settings_hash(
                    {name: content_hash(clip.path) for name, clip in zip(names, clips, strict=True)}
                ),
            }
        )
        if run.already_finished:
            reporter.note(f"{run.path} already holds these videos; nothing is made again.")
            return read_result(run.path)
        generator = load_generator(resolved, device=device, dtype=dtype, parts=())
        num_frames = settings.num_frames or generator.facts.num_frames
        generator.codec.check(num_frames, decoding=True)
        made, short = [], []
        with reporter.bar("Through the VAE", len(clips), "clip") as bar:
            for name, clip in zip(names, clips, strict=True):
                bar.advance()
                frames = _frames(clip, num_frames)
                if frames is None:
                    short.append(name)
                    continue
                real, rate, prompt = frames
                pixels = to_tensor([resize(real, *generator.facts.size)])
                with torch.no_grad():
                    decoded = generator.codec.decode(generator.codec.encode(pixels), num_frames=num_frames)[0]
                video = (decoded.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
                height, width = generator.facts.size
                row = {
                    "video": video_name(name, 0),
                    "caption": prompt,
                    "prompt": prompt,
                    "seed": None,
                    "index": 0,
                    "model": settings.model,
                    "random_init": resolved.random_init,
                    "simulated_world": clip.kind == "simulated",
                    "num_frames": num_frames,
                    "height": height,
                    "width": width,
                    "fps": rate,
                    "baseline": "repeat-real",
                    "of": str(clip.path),
                }
                made.append((video, row))
        if short:
            reporter.warn(f"Left out, shorter than {num_frames} frames: {len(short)}, such as {short[0]}")
        if not made:
            raise DataError(f"No clip of {settings.videos} has {num_frames} frames.", expected="longer clips")
        return _write(run, made, f"real clips through the VAE of {settings.model}")


def _listed(settings: BaselineSettings) -> list[tuple[Path, dict[str, Any]]]:
    """The videos of a set and their rows."""
    source = Path(settings.videos).expanduser()
    file = source / _LIST if source.is_dir() else source
    if file.name != _LIST or not file.is_file():
        raise UsageError(
            f"--videos {settings.videos} is no sampled set.",
            expected=f"a run of `physcli sample`, or its {_LIST}",
        )
    rows = [row for _, row in read_jsonl(file)]
    if not rows:
        raise DataError(f"{file} lists no video.", expected="at least one")
    return [(file.parent / row["video"], row) for row in thin(rows, settings.limit)]


def _frames(clip: Clip, num_frames: int) -> tuple[np.ndarray, float, str] | None:
    """What is shown of a clip, its rate in frames per second and its prompt; None of a clip that is too short."""
    length = clip.count_frames()
    if clip.kind == "simulated":
        stride = max((every for every in RATES if (num_frames - 1) * every < length), default=0)
        if not stride:
            return None
        rate, prompt = clip.record["frame_rate_hz"] / stride, with_rate(clip.prompt, stride)
    else:
        if length < num_frames:
            return None
        stride, rate, prompt = 1, frame_rate(clip.path) or 8.0, clip.prompt
    return clip.read([i * stride for i in range(num_frames)]), rate, prompt


def _write(run: RunDir, made: Sequence[tuple[np.ndarray, dict[str, Any]]], subject: str) -> SampleResult:
    items = []
    (run.path / "videos").mkdir(exist_ok=True)
    for frames, row in made:
        path = run.path / row["video"]
        write_clip(path, frames, row["fps"])
        items.append({"video": row["video"], "sha256": content_hash(path), MEAN_FLOW.name: motion_of(frames)})
    write_jsonl(run.path / "items.jsonl", items)
    write_jsonl(run.path / _LIST, [row for _, row in made])
    draw_sheet(run.path, [row for _, row in made])
    run.write_metrics(rows_of(items, subject))
    return read_result(run.path)
