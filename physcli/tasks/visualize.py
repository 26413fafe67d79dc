"""`physcli visualize`: what methods look at in a video, as a picture and as a video over its frames.

drift           LaMo: the places that move with the clip's drift, of VAE latents
field           LaMo: where the motion field expects change
saliency        M-TSA: the tokens whose pixels change most
correspondence  TSA: where one place is found again in every frame, by the teacher and by the generator

OUT/<video>-<kind>.png, OUT/<video>-<kind>.mp4, OUT/metrics.json, run.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physcli.data.tables import read_jsonl
from physcli.data.video import frame_rate, read_video, resize, video_info, write_video
from physcli.errors import DataError, UsageError, unknown
from physcli.guidance.lamo import check_field, find_field, read_field
from physcli.hashing import content_hash, seed_from
from physcli.methods.lamo import display_map, drift_map, field_map
from physcli.methods.tsa import correspondence, motion_saliency
from physcli.models.encoders.base import Encoder
from physcli.models.generator import Generator
from physcli.models.loading import load, load_encoder
from physcli.models.names import fingerprint, resolve
from physcli.progress import Reporter
from physcli.report.overlays import enlarge, mark, overlay
from physcli.report.plots import contact_sheet
from physcli.rows import Metric, make_row
from physcli.tasks.features import choose_taps, to_tensor
from physcli.tasks.run_dir import RunDir, with_defaults

KINDS = ("drift", "field", "correspondence", "saliency")
TEMPERATURES = (0.02, 0.1, 0.5)  # 0.1 is TSA's
_COLUMNS = 5

# A caption and its heat, float [T, H, W] in [0, 1].
Layer = tuple[str, np.ndarray]


@dataclass(frozen=True)
class VisualizeSettings:
    """All that bears on the pictures. Meanings as in `physcli visualize --help`."""

    kind: str
    videos: tuple[str, ...]
    model: str = "cogvideox-tiny"
    teacher: str = "videomae-tiny"
    motion_field: str | None = None
    prompt: str = ""
    lag: int | None = None
    query: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of the clip's length, height and width
    temperatures: tuple[float, ...] = TEMPERATURES
    layer: int | None = None
    sigma: float = 0.3
    share: float = 0.2
    limit: int = 4
    seed: int = 0


@dataclass(frozen=True)
class VisualizeResult:
    """The files that were made, and rows of metrics.json."""

    path: Path
    pictures: list[Path]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class _Video:
    """A video to look at."""

    path: Path
    prompt: str


def visualize(
    settings: VisualizeSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    reporter: Reporter | None = None,
) -> VisualizeResult:
    """Draw.

    Raises:
        UsageError: no such kind, or values the models cannot take.
        DataError: a video that cannot be read or is too short.
        ModelError: a model that does not load.
    """
    reporter = reporter or Reporter()
    if settings.kind not in KINDS:
        raise unknown("picture", settings.kind, KINDS)
    if not all(temperature > 0 for temperature in settings.temperatures):
        raise UsageError(f"--temperature {settings.temperatures}.", expected="above 0")
    if not all(0 <= place <= 1 for place in settings.query):
        raise UsageError(f"--query {settings.query}.", expected="three numbers from 0 to 1: time, height, width")
    videos = _find(settings)
    resolved = resolve(settings.teacher if settings.kind == "saliency" else settings.model)
    wanted = "encoder" if settings.kind == "saliency" else "generator"
    if resolved.kind != wanted:
        option = "--teacher" if settings.kind == "saliency" else "--model"
        raise UsageError(f"{option} {resolved.name} is no {wanted}.", expected=f"a {wanted}")
    recorded = asdict(settings)
    with RunDir(
        out, "visualize", recorded, complete=with_defaults(settings), overwrite=overwrite, reporter=reporter
    ) as run:
        run.check_inputs(
            {"model": fingerprint(resolved)} | {str(video.path): content_hash(video.path) for video in videos}
        )
        run.reopen()  # pictures are quickly drawn
        model = load(resolved, device=device, dtype=dtype, reporter=reporter)
        if resolved.random_init:
            reporter.warn(f"{resolved.name} has random weights.")
        draw = _DRAW[settings.kind](model, settings, device, reporter)
        pictures: list[Path] = []
        rows: list[dict[str, Any]] = []
        with reporter.bar(settings.kind.capitalize(), len(videos), "video") as bar:
            for number, video in enumerate(videos):
                frames = _read(video, model, settings)
                layers, facts, box = draw(frames, video)
                name = f"{number:02d}-{video.path.stem}-{settings.kind}"
                pictures += _write(run.path / name, frames, layers, box, frame_rate(video.path) or 8.0)
                rows += [
                    make_row(
                        Metric(name, "score", None, interval="none"),
                        value,
                        benchmark="visualize",
                        task=settings.kind,
                        subject=resolved.name,
                        group=video.path.name,
                        n=1,
                    )
                    for name, value in facts.items()
                ]
                bar.advance()
        run.write_metrics(rows)
    return VisualizeResult(run.path, pictures, rows)


# Frames uint8 [T, H, W, 3] and their video → layers, figures to keep, and a box to mark: top, left, bottom, right as
# shares of the frame.
_Draw = Callable[[np.ndarray, _Video], tuple[list[Layer], dict[str, float], tuple[float, float, float, float] | None]]


def _drift(model: Generator, settings: VisualizeSettings, device: str, reporter: Reporter) -> _Draw:
    lag = 2 if settings.lag is None else settings.lag

    def draw(frames: np.ndarray, video: _Video) -> Any:
        latents = _latents(model, frames)
        _check_lag(lag, latents)
        # Each pair by itself: of a clip of two frames, lag 1 is that pair.
        pairs = torch.stack([latents[0, i::lag][:2] for i in range(latents.shape[1] - lag)])
        heat, _ = drift_map(pairs, lag=1)
        _, facts = drift_map(latents, lag=lag)
        found = {"strongest_pair": float(facts["frames"][0]), "drift": float(facts["drift_norms"].max())}
        return [(f"along the drift, lag {lag}", _spread(heat, len(frames), frames.shape[1:3]))], found, None

    return draw


def _field(model: Generator, settings: VisualizeSettings, device: str, reporter: Reporter) -> _Draw:
    path = find_field(settings.motion_field, resolve(settings.model), model)
    field = read_field(path)
    check_field(field, model, str(path))
    field = field.to(model.device).eval().requires_grad_(False)
    reporter.note(f"The motion field is {path.name}.")

    @torch.no_grad()
    def draw(frames: np.ndarray, video: _Video) -> Any:
        latents = _latents(model, frames)
        _check_lag(field.lag, latents)
        prompt = model.encode_prompts([video.prompt]).pooled() if field.prompt_proj is not None else None
        maps = {
            reading: torch.cat(
                [
                    field_map(field, latents, torch.tensor([i], device=latents.device), prompt, reading=reading)
                    for i in range(latents.shape[1] - field.lag)
                ]
            )
            for reading in ("resid", "norm")
        }
        change = (latents[:, field.lag :] - latents[:, : -field.lag])[0].norm(dim=1)
        layers = [
            ("expected, beyond what any frame gets", maps["resid"]),
            ("expected change", maps["norm"]),
            ("what did change", change),
        ]
        flat = torch.stack([maps["norm"].flatten(), change.flatten()])
        shown = [(caption, _spread(heat, len(frames), frames.shape[1:3])) for caption, heat in layers]
        return shown, {"correlation_with_change": float(torch.corrcoef(flat)[0, 1])}, None

    return draw


def _saliency(encoder: Encoder, settings: VisualizeSettings, device: str, reporter: Reporter) -> _Draw:
    def draw(frames: np.ndarray, video: _Video) -> Any:
        size = (encoder.tubelet_size, encoder.patch_size, encoder.patch_size)
        shown = resize(
            frames, encoder.preprocessing.height or frames.shape[1], encoder.preprocessing.width or frames.shape[2]
        )
        length = len(shown) // size[0] * size[0]  # the first frame is left out where it does not fit, as papers do
        kept = motion_saliency(
            to_tensor([shown[len(shown) - length :]]), tubelet=size, share=settings.share, ties="positive"
        )
        heat = _spread(kept[0].float(), len(frames), frames.shape[1:3], smooth=False)
        return [(f"the {settings.share:.0%} that change most", heat)], {"share_kept": float(kept.float().mean())}, None

    return draw


def _correspondence(model: Generator, settings: VisualizeSettings, device: str, reporter: Reporter) -> _Draw:
    teacher = load_encoder(settings.teacher, what="--teacher ", device=device, dtype="float32")
    [tap] = choose_taps(model, None if settings.layer is None else [settings.layer], [settings.sigma])

    @torch.no_grad()
    def draw(frames: np.ndarray, video: _Video) -> Any:
        latents = _latents(model, frames)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed_from(settings.seed, "noise")))
        level = model.noise.at(settings.sigma)
        noisy = model.noise.add_noise(latents, noise.to(latents.device), level)
        told = model.encode_prompts([video.prompt])
        if model.takes_frame_rates:
            told = told.at_rates([frame_rate(video.path) or model.facts.frame_rate_hz])
        seen = model.denoise(noisy, level, told, taps=[tap.block], features_only=True).features[tap.block]
        wanted = teacher.preprocessing.num_frames or len(frames)
        shown = to_tensor([frames[-wanted:]]).to(teacher.device)
        features = {f"{settings.teacher}": teacher.encode(shown), f"{model.name}, {tap.label}": seen}
        layers: list[Layer] = []
        facts: dict[str, float] = {}
        for name, tokens in features.items():
            query = _token(settings.query, tokens.shape[1:4])
            for temperature in settings.temperatures:
                where = correspondence(tokens.float(), query, temperature)[0]
                layers.append((f"{name}, τ={temperature:g}", _spread(where, len(frames), frames.shape[1:3])))
                facts[f"peak, {name}, tau {temperature:g}"] = float(where.flatten(1).max(dim=1).values.mean())
        grid = seen.shape[2:4]
        _, row, column = _token(settings.query, seen.shape[1:4])
        box = (row / grid[0], column / grid[1], (row + 1) / grid[0], (column + 1) / grid[1])
        return layers, facts, box

    return draw


_DRAW: dict[str, Callable[[Any, VisualizeSettings, str, Reporter], _Draw]] = {
    "drift": _drift,
    "field": _field,
    "correspondence": _correspondence,
    "saliency": _saliency,
}


def _find(settings: VisualizeSettings) -> list[_Video]:
    """Video files as they are; of a run of `sample`, its first videos with their prompts."""
    found: list[_Video] = []
    for name in settings.videos:
        path = Path(name).expanduser()
        if path.is_dir():
            listed = path / "videos.jsonl"
            if not listed.is_file():
                raise UsageError(
                    f"{name} is a folder without videos.jsonl.", expected="a video file, or a run of `physcli sample`"
                )
            rows = [row for _, row in read_jsonl(listed)][: settings.limit]
            found += [_Video(path / row["video"], settings.prompt or row.get("prompt", "")) for row in rows]
        elif path.is_file():
            found.append(_Video(path, settings.prompt))
        else:
            raise DataError(f"{name} is not there.", expected="a video file, or a run of `physcli sample`")
    if not found:
        raise UsageError("No video.", expected="at least one file or run")
    return found


def _read(video: _Video, model: Generator | Encoder, settings: VisualizeSettings) -> np.ndarray:
    """The first frames of a video, as many as the model takes, uint8 [T, H, W, 3] at the model's size."""
    length = video_info(video.path).num_frames
    if model.kind == "generator":
        count = min(model.codec.usable_frames(length), model.facts.num_frames)
        size = model.facts.size
    else:
        count = min(length, (model.preprocessing.num_frames or 16) + 1)
        height, width = video_info(video.path).height, video_info(video.path).width
        size = (model.preprocessing.height or height, model.preprocessing.width or width)
    if count < 2:
        raise DataError(f"{video.path} has {length} frames.", expected="more of them: nothing moves here")
    return resize(read_video(video.path, list(range(count))), *size)


def _latents(model: Generator, frames: np.ndarray) -> Tensor:
    """[1, F, C, h, w]."""
    return model.codec.encode(to_tensor([frames]))


def _check_lag(lag: int, latents: Tensor) -> None:
    if not 1 <= lag < latents.shape[1]:
        raise UsageError(
            f"A lag of {lag} for {latents.shape[1]} latent frames.", expected=f"1 to {latents.shape[1] - 1}"
        )


def _token(query: Sequence[float], grid: Sequence[int]) -> tuple[int, int, int]:
    frame, row, column = (min(int(place * side), side - 1) for place, side in zip(query, grid, strict=True))
    return frame, row, column


def _spread(heat: Tensor, num_frames: int, size: tuple[int, int], *, smooth: bool = True) -> np.ndarray:
    """Maps [F, h, w] → [T, H, W] in [0, 1]: each as long as its share of the frames, stretched over its own range."""
    maps = heat.float().cpu()
    if smooth:
        maps = display_map(maps, size)
    else:
        maps = torch.nn.functional.interpolate(maps[:, None], size=size, mode="nearest")[:, 0]
    which = (np.arange(num_frames) * len(maps) // num_frames).clip(max=len(maps) - 1)
    return maps.numpy()[which]


def _write(
    path: Path,
    frames: np.ndarray,
    layers: Sequence[Layer],
    box: tuple[float, float, float, float] | None,
    frame_rate_hz: float,
) -> list[Path]:
    """A picture, five moments of every layer; and a video, frames and layers side by side."""
    large = enlarge(frames)
    times = large.shape[1] // frames.shape[1]
    if box is not None:
        height, width = large.shape[1:3]
        top, left, bottom, right = box
        large = mark(large, int(top * height), int(left * width), int(bottom * height), int(right * width))
    over = [(caption, overlay(large, heat.repeat(times, axis=1).repeat(times, axis=2))) for caption, heat in layers]
    moments = np.linspace(0, len(frames) - 1, min(_COLUMNS, len(frames))).round().astype(int)
    shown = [("frames", large[moments]), *((caption, picture[moments]) for caption, picture in over)]
    picture, video = (path.with_name(f"{path.name}{suffix}") for suffix in (".png", ".mp4"))
    contact_sheet(picture, rows=shown, columns=[f"frame {n}" for n in moments])
    write_video(video, np.concatenate([large, *(layer for _, layer in over)], axis=2), frame_rate_hz, full_chroma=False)
    return [picture, video]
