"""What training reads of its clips beside their prompts, computed once: latents, teacher features, motion masks.

A signal is a tensor a window of a clip. It is kept under the window's content and everything else that affects the
value, so a changed setting recomputes what depends on it and nothing else. All signals of a window are computed from
one decoding of its frames.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from physcli.data.cache import TensorCache
from physcli.data.flow import dis_flow, flow_between, raft_flow, raft_identity
from physcli.data.video import resize
from physcli.errors import DataError, UsageError
from physcli.methods.tsa import motion_saliency
from physcli.progress import Reporter
from physcli.recipe import TeacherView
from physcli.tasks.features import View, to_tensor
from physcli.tasks.processes import Processes

_VERSION = 1
_COMPUTED_AT_ONCE = 16
_PIXELS_AT_ONCE = 16 * 17 * 64 * 64
_BATCHES_A_SHARD = 16


@dataclass
class Signal:
    """One kind of tensor: where it is kept, and how it is computed.

    `compute` takes some windows and their frames, uint8 [T, H, W, 3] each and alike in size, and gives [B, …] as
    stored.
    """

    name: str
    cache: TensorCache
    compute: Callable[[Sequence[View], list[np.ndarray]], Tensor]


def compute_signals(
    views: Sequence[View], signals: Sequence[Signal], *, processes: Processes, reporter: Reporter
) -> list[str]:
    """Compute what is not kept yet, each process its part; back when all are done.

    Returns:
        Why clips could not be read, a line each, on every process.

    Raises:
        DataError: the disk is full or not writable. What is finished is kept.
    """
    mine = list({view.key: view for view in processes.share(views)}.values())
    missing = {signal.name: set(signal.cache.missing(view.key for view in mine)) for signal in signals}
    todo = [view for view in mine if any(view.key in keys for keys in missing.values())]
    held: dict[str, dict[str, Tensor]] = {signal.name: {} for signal in signals}
    problems: dict[Path, str] = {}

    def store() -> None:
        for signal in signals:
            signal.cache.put(held[signal.name])
            held[signal.name] = {}

    names = ", ".join(signal.name for signal in signals if missing[signal.name])
    try:
        with reporter.bar(names.capitalize() or "Signals", len(todo), "window") as bar:
            for number, first in enumerate(range(0, len(todo), _COMPUTED_AT_ONCE), start=1):
                some = todo[first : first + _COMPUTED_AT_ONCE]
                for alike in _decode(some, problems):
                    for signal in signals:
                        wanted = [(view, frames) for view, frames in alike if view.key in missing[signal.name]]
                        for part in _batches(wanted):
                            values = signal.compute([view for view, _ in part], [frames for _, frames in part]).cpu()
                            held[signal.name] |= {v.key: row.clone() for (v, _), row in zip(part, values, strict=True)}
                if number == 1:
                    _check_room(signals, held, missing)
                if number % _BATCHES_A_SHARD == 0:
                    store()
                bar.advance(len(some))
    finally:  # also on Ctrl-C: what is computed is kept
        store()
    processes.wait()
    for signal in signals:
        signal.cache.refresh()
    return list(dict(processes.collect(list(problems.items()))).values())


def _batches(windows: list[tuple[View, np.ndarray]]) -> Iterator[list[tuple[View, np.ndarray]]]:
    """So many windows that a model can take them at once: 16 of the tiny world, one of 49×480×720."""
    size = max(1, _PIXELS_AT_ONCE // windows[0][1][..., 0].size) if windows else 1
    for first in range(0, len(windows), size):
        yield windows[first : first + size]


def _check_room(signals: Sequence[Signal], held: dict[str, dict[str, Tensor]], missing: dict[str, set[str]]) -> None:
    """Refuse to begin what the disk cannot hold; sizes are those of the first windows."""
    needed = 0.0
    for signal in signals:
        rows = list(held[signal.name].values())
        needed += sum(row.nbytes for row in rows) / max(1, len(rows)) * len(missing[signal.name])
    free = shutil.disk_usage(signals[0].cache.folder).free
    if needed > free:
        raise DataError(
            f"{', '.join(signal.name for signal in signals)} need {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free "
            f"at {signals[0].cache.folder}.",
            expected="room for all of them",
            fix="choose another --cache-dir (or PHYSCLI_CACHE), or fewer clips (data.limit) or objective.windows",
        )


def _decode(views: Sequence[View], problems: dict[Path, str]) -> list[list[tuple[View, np.ndarray]]]:
    """The readable ones of some windows, those alike in size together."""
    by_shape: dict[tuple[int, ...], list[tuple[View, np.ndarray]]] = {}
    for view in views:
        try:
            frames = view.clip.read(view.frames)
        except DataError as error:
            problems.setdefault(view.clip.path, f"{view.clip.path}: {error.received}")
            continue
        by_shape.setdefault(frames.shape, []).append((view, frames))
    return list(by_shape.values())


def latents_of(generator: Any, *, cache: Path) -> Signal:
    """VAE posteriors, scaled: mean and standard deviation, float16 [2, F, C, h, w]."""
    settings = {
        "version": _VERSION,
        "what": "posterior",
        "vae": hash_module(generator.vae),
        "size": list(generator.native_size),
    }

    def compute(_: Sequence[View], frames: list[np.ndarray]) -> Tensor:
        pixels = to_tensor([resize(images, *generator.native_size) for images in frames])
        return generator.encode_posterior(pixels).half()

    return Signal("latents", TensorCache(cache, "latents", settings), compute)


def teacher_of(teacher: Any, view: TeacherView, *, cache: Path, head: torch.nn.Module | None = None) -> Signal:
    """A frozen encoder's last tokens, float16 [f, h, w, D].

    Args:
        teacher: An encoder of the loading core.
        view: How it sees a window.
        cache: The cache's root.
        head: Maps its tokens [B, f, h, w, D] further, such as a motion projector.
    """
    settings = {
        "version": _VERSION,
        "what": "teacher",
        "family": type(teacher).__name__,
        "weights": hash_module(teacher),
        "dtype": str(teacher.dtype),
        "preprocessing": asdict(teacher.preprocessing),
        "view": view.model_dump(mode="json"),
        "head": hash_module(head) if head is not None else None,
    }

    @torch.no_grad()
    def compute(_: Sequence[View], frames: list[np.ndarray]) -> Tensor:
        tokens = look(teacher, to_tensor(frames).to(teacher.device), view)
        return (tokens if head is None else head(tokens)).half()

    return Signal("teacher features", TensorCache(cache, "features", settings), compute)


def saliency_of(
    teacher: Any, view: TeacherView, *, share: float, ties: Literal["paper", "positive"], cache: Path
) -> Signal:
    """M-TSA's motion-salient places on the teacher's token grid, uint8 [f, h, w]."""
    own = teacher.preprocessing
    settings = {
        "version": _VERSION,
        "what": "saliency",
        "view": view.model_dump(mode="json"),
        "size": [own.height, own.width],
        "token": [teacher.tubelet_size, teacher.patch_size],
        "share": share,
        "ties": ties,
    }

    def compute(_: Sequence[View], frames: list[np.ndarray]) -> Tensor:
        pixels = to_tensor([resize(images, *_seen_size(teacher, view, images)) for images in frames])
        tubelet = (teacher.tubelet_size, teacher.patch_size, teacher.patch_size)
        return motion_saliency(pixels[:, int(view.drop_first) :], tubelet=tubelet, share=share, ties=ties).byte()

    return Signal("motion masks", TensorCache(cache, "features", settings), compute)


def flow_of(encoder: Any, view: TeacherView, *, kind: str, cache: Path) -> Signal:
    """Optical flow between the frames an encoder sees, in pixels of its own picture, float16 [T−1, 2, H, W].

    Args:
        encoder: What it sees is the flow's picture.
        view: How it sees a window.
        kind: `exact` (simulated clips: put together over the frames that a window leaves out); from pixels `dis`, or
            `raft` on the encoder's device.
        cache: The cache's root.

    Raises:
        MissingExtra: `raft` without torchvision.
    """
    own = encoder.preprocessing
    settings = {
        "version": _VERSION,
        "what": "flow",
        "kind": kind,
        "view": view.model_dump(mode="json"),
        "size": [own.height, own.width],
    }
    if kind == "raft":
        settings["estimator"] = raft_identity()

    def one(window: View, frames: np.ndarray) -> np.ndarray:
        height, width = _seen_size(encoder, view, frames)
        if kind == "exact":
            if window.clip.arrays is None:
                raise DataError(
                    f"{window.clip.path} has no exact flow.",
                    expected="clips of `physcli data simulate`",
                    fix="use objective.flow=dis",
                )
            with np.load(window.clip.arrays) as arrays:
                flow = flow_between(arrays["flow"], window.frames)
        elif kind == "raft":
            flow = raft_flow(resize(frames, height, width), encoder.device)
        else:
            flow = dis_flow(resize(frames, height, width))
        flow = flow[int(view.drop_first) :]
        scale = np.array([width / flow.shape[2], height / flow.shape[1]], np.float32)
        sized = [cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA) * scale for field in flow]
        return np.stack(sized).transpose(0, 3, 1, 2)

    def compute(windows: Sequence[View], frames: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([one(*both) for both in zip(windows, frames, strict=True)])).half()

    return Signal("optical flow", TensorCache(cache, "features", settings), compute)


class Kept:
    """Stored values of a signal: in memory as far as there is room, the rest read when it is asked for.

    Args:
        signal: Already computed.
        keys: Of the windows that will be asked for.
        room: In GB.
    """

    def __init__(self, signal: Signal, keys: Sequence[str], *, room: float) -> None:
        self.cache, self.keys = signal.cache, list(dict.fromkeys(keys))
        fits = int(room * 1e9 // max(1, self.one().nbytes))
        self._held = self.cache.get(self.keys[:fits])

    def one(self) -> Tensor:
        """Some value, for its shape."""
        return self.cache.get(self.keys[:1])[self.keys[0]]

    def get(self, keys: Sequence[str]) -> list[Tensor]:
        """The values of these windows."""
        if any(key not in self._held for key in keys):
            found = self.cache.get(keys)
            return [found[key] for key in keys]
        return [self._held[key] for key in keys]


class Prompts:
    """Token ids of prompts, and of a text encoder that is not trained their embeddings, computed once.

    Args:
        generator: Its tokenizer and text encoder.
        cache: The cache's root.
        processes: Each embeds its part.
        reporter: Receives progress.
    """

    def __init__(self, generator: Any, *, cache: Path, processes: Processes, reporter: Reporter) -> None:
        self.generator, self.root, self.processes, self.reporter = generator, cache, processes, reporter
        self._ids: dict[str, Tensor] = {}
        self._embeddings: dict[str, Tensor] = {}

    def tokens(self, prompt: str) -> Tensor:
        """Token ids [L] as the stock pipeline makes them."""
        if prompt not in self._ids:
            self._ids[prompt] = self.generator.pipeline.tokenizer(
                prompt,
                padding="max_length",
                max_length=self.generator.max_text_seq_length,
                truncation=True,
                add_special_tokens=True,
                return_tensors="pt",
            ).input_ids[0]
        return self._ids[prompt]

    def embed(self, prompts: Sequence[str]) -> None:
        """Compute what is not kept yet; back when all processes are done."""
        settings = {
            "version": _VERSION,
            "what": "text",
            "text_encoder": hash_module(self.generator.pipeline.text_encoder),
            "tokens": self.generator.max_text_seq_length,
        }
        store = TensorCache(self.root, "text", settings)
        keys = {prompt: hashlib.sha256(self.tokens(prompt).numpy().tobytes()).hexdigest()[:40] for prompt in prompts}
        mine = self.processes.share(sorted(set(keys)))
        todo = list({keys[prompt]: prompt for prompt in mine if keys[prompt] not in store}.values())
        with self.reporter.bar("Prompts", len(todo), "prompt") as bar:
            for first in range(0, len(todo), _COMPUTED_AT_ONCE * _BATCHES_A_SHARD):
                shard = todo[first : first + _COMPUTED_AT_ONCE * _BATCHES_A_SHARD]
                held: dict[str, Tensor] = {}
                for start in range(0, len(shard), _COMPUTED_AT_ONCE):
                    some = shard[start : start + _COMPUTED_AT_ONCE]
                    rows = self.generator.encode_prompt(some).cpu()
                    held |= {keys[prompt]: row.clone() for prompt, row in zip(some, rows, strict=True)}
                store.put(held)
                bar.advance(len(shard))
        self.processes.wait()
        store.refresh()
        stored = store.get(keys.values())
        self._embeddings |= {prompt: stored[key] for prompt, key in keys.items()}

    def embedding(self, prompt: str) -> Tensor:
        """[L, D] of a prompt that was embedded."""
        return self._embeddings[prompt]


def look(teacher: Any, frames: Tensor, view: TeacherView) -> Tensor:
    """Tokens [B, f, h, w, D] of frames [B, T, 3, H, W] in [0, 1], seen as `view` says.

    Raises:
        UsageError: frames that do not divide into groups or crops of the teacher's size.
    """
    if view.drop_first:
        frames = frames[:, 1:]
    own = teacher.preprocessing
    if view.layout == "whole":
        return teacher.encode(frames, size=view.size or "native")
    if view.layout == "groups":
        length = own.num_frames or 1
        if frames.shape[1] % length:
            raise UsageError(
                f"The window has {frames.shape[1]} frames for {teacher.name}, which sees groups of {length}.",
                expected=f"a multiple of {length}, and one more where the first is dropped",
                fix="choose other objective.frames, or method.view.layout=whole",
            )
        groups = frames.unflatten(1, (-1, length)).flatten(0, 1)
        tokens = teacher.encode(groups, size=view.size or "native")
        return tokens.unflatten(0, (frames.shape[0], -1)).flatten(1, 2)
    height, width = own.height or 0, own.width or 0
    whole = view.size or frames.shape[-2:]
    if not height or not width or whole[0] % height or whole[1] % width:
        raise UsageError(
            f"Frames of {whole[0]}x{whole[1]} for {teacher.name}, which sees crops of {height}x{width}.",
            expected="multiples of its size",
            fix="give method.view.size, or choose another method.view.layout",
        )
    rows = []
    frames = (
        torch.nn.functional.interpolate(
            frames.flatten(0, 1), tuple(whole), mode=own.interpolation, antialias=own.antialias, align_corners=False
        )
        .clamp(0, 1)
        .unflatten(0, frames.shape[:2])
    )
    for top in range(0, whole[0], height):
        crops = [frames[..., top : top + height, left : left + width] for left in range(0, whole[1], width)]
        rows.append(torch.cat([teacher.encode(crop) for crop in crops], dim=3))
    return torch.cat(rows, dim=2)


def _seen_size(teacher: Any, view: TeacherView, frames: np.ndarray) -> tuple[int, int]:
    """(height, width) of the picture that a teacher's tokens of frames [T, H, W, 3] cover: see `look`."""
    if view.size is not None:
        return view.size
    height, width = frames.shape[1:3]
    if view.layout == "crops":
        return height, width
    return teacher.preprocessing.height or height, teacher.preprocessing.width or width


def hash_module(module: Any) -> str:
    """A hash of a model's config and weights, in memory; where it was loaded from and by which version do not count."""
    config = getattr(module, "config", None) or {}
    described = config.to_dict() if hasattr(config, "to_dict") else dict(config)  # transformers' or diffusers'
    described = {
        key: value for key, value in described.items() if not key.startswith("_") and key != "transformers_version"
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
