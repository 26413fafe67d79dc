"""What training reads of its clips: latents, teacher features, motion masks, optical flow, embedded prompts.

Each is known by the content of the files of the model that makes it, so that on a full cache none is loaded.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from physcli.data.cache import TensorCache
from physcli.data.flow import dis_flow, flow_between
from physcli.data.raft import raft_flow, raft_identity
from physcli.data.video import resize
from physcli.errors import DataError, UsageError
from physcli.methods.settings import VideoJam
from physcli.methods.tsa import motion_saliency
from physcli.methods.videojam import flow_picture, pooled_flow
from physcli.models.encoders.base import Encoder
from physcli.models.fingerprints import hash_module
from physcli.models.generator import Generator
from physcli.progress import Reporter
from physcli.recipe import TeacherView
from physcli.tasks.features import View, to_tensor
from physcli.tasks.processes import Processes
from physcli.tasks.training.clips import noise_of
from physcli.tasks.training.compute import BATCHES_A_SHARD, COMPUTED_AT_ONCE, Kept, OnDemand, Signal, Tally, Values

_VERSION = 2


def _cache(root: Path | None, kind: str, settings: dict[str, Any]) -> TensorCache | None:
    return None if root is None else TensorCache(root, kind, {"version": _VERSION, **settings})


def latents_of(generator: Generator, *, cache: Path | None) -> Signal:
    """VAE posteriors, scaled: mean and standard deviation, float16 [2, F, C, h, w].

    A probe's latents are kept apart: it takes the mean alone, in float32, of other clips. Posteriors in float32 would
    take twice the room, which is what runs short with many clips.
    """
    settings = {"what": "posterior", "vae": generator.fingerprint("vae"), "size": list(generator.facts.size)}

    def compute(_: Sequence[View], frames: list[np.ndarray]) -> Tensor:
        pixels = to_tensor([resize(images, *generator.facts.size) for images in frames])
        return generator.codec.encode_posterior(pixels).half()

    return Signal("latents", _cache(cache, "latents", settings), compute, lambda: generator.release("vae"))


def draw_latents(posteriors: Values, view: View, seed: int, *parts: object) -> Tensor:
    """A point of a window's posterior, float32 [F, C, h, w]; its noise is known by the seed and `parts`."""
    mean, std = posteriors.get([view])[0].float()
    return mean + std * noise_of(seed, *parts, shape=mean.shape)


def teacher_of(
    teacher: OnDemand, view: TeacherView, *, cache: Path | None, head: torch.nn.Module | None = None
) -> Signal:
    """A frozen encoder's last tokens, float16 [f, h, w, D].

    Args:
        teacher: An encoder of the loading core, in float32.
        view: How it sees a window.
        cache: The cache's root; None: nothing is kept.
        head: Maps its tokens [B, f, h, w, D] further, such as a motion projector.
    """
    settings = {
        "what": "teacher",
        "encoder": teacher.fingerprint,
        "view": view.model_dump(mode="json"),
        "head": hash_module(head) if head is not None else None,
    }

    @torch.no_grad()
    def compute(_: Sequence[View], frames: list[np.ndarray]) -> Tensor:
        encoder = teacher.get()
        tokens = look(encoder, to_tensor(frames).to(encoder.device), view)
        return (tokens if head is None else head(tokens)).half()

    return Signal("teacher", _cache(cache, "features", settings), compute, teacher.release)


def saliency_of(
    teacher: OnDemand, view: TeacherView, *, share: float, ties: Literal["paper", "positive"], cache: Path | None
) -> Signal:
    """M-TSA's motion-salient places on the teacher's token grid, uint8 [f, h, w].

    Of the teacher only sizes matter, but those are not known before it is loaded: another teacher's are kept anew.
    """
    settings = {
        "what": "saliency",
        "encoder": teacher.fingerprint,
        "view": view.model_dump(mode="json"),
        "share": share,
        "ties": ties,
    }

    def compute(_: Sequence[View], frames: list[np.ndarray]) -> Tensor:
        encoder = teacher.get()
        pixels = to_tensor([resize(images, *_seen_size(encoder, view, images)) for images in frames])
        tubelet = (encoder.tubelet_size, encoder.patch_size, encoder.patch_size)
        return motion_saliency(pixels[:, int(view.drop_first) :], tubelet=tubelet, share=share, ties=ties).byte()

    return Signal("saliency", _cache(cache, "features", settings), compute, teacher.release)


def flow_of(teacher: OnDemand, view: TeacherView, *, kind: str, cache: Path | None) -> Signal:
    """Optical flow between the frames an encoder sees, in pixels of its own picture, float16 [T−1, 2, H, W].

    Args:
        teacher: What this encoder sees is the flow's picture.
        view: How it sees a window.
        kind: `exact` (simulated clips: put together over the frames that a window leaves out); from pixels `dis`, or
            `raft` on the encoder's device.
        cache: The cache's root; None: nothing is kept.

    Raises:
        MissingExtra: `raft` without torchvision.
    """
    settings: dict[str, Any] = {
        "what": "flow",
        "kind": kind,
        "encoder": teacher.fingerprint,
        "view": view.model_dump(mode="json"),
    }
    if kind == "raft":
        settings["estimator"] = raft_identity()

    def one(window: View, frames: np.ndarray) -> np.ndarray:
        encoder = teacher.get()
        size = _seen_size(encoder, view, frames)
        flow = _flow(kind, window, frames, size, encoder.device, said="objective.flow")
        return flow[int(view.drop_first) :]

    def compute(windows: Sequence[View], frames: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([one(*both) for both in zip(windows, frames, strict=True)])).half()

    kept = _cache(cache, "features", settings)
    return Signal("flow", kept, compute, teacher.release, reads_arrays=kind == "exact")


def _flow(
    kind: str, window: View, frames: np.ndarray, size: tuple[int, int], device: torch.device, *, said: str
) -> np.ndarray:
    """A window's optical flow in pixels of a picture of this (height, width), float32 [T−1, 2, H, W]; `said`: the
    recipe's field for its kind."""
    height, width = size
    if kind == "exact":
        if window.clip.arrays is None:
            raise DataError(
                f"{window.clip.path} has no exact flow.",
                expected="clips of `physcli data simulate`",
                fix=f"use {said}=dis",
            )
        with np.load(window.clip.arrays) as arrays:
            flow = flow_between(arrays["flow"], window.frames)
    elif kind == "raft":
        flow = raft_flow(resize(frames, height, width), device)
    else:
        flow = dis_flow(resize(frames, height, width))
    scale = np.array([width / flow.shape[2], height / flow.shape[1]], np.float32)
    sized = [cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA) * scale for field in flow]
    return np.stack(sized).transpose(0, 3, 1, 2)


def motion_channels(method: VideoJam, generator: Generator) -> int:
    """M of the motion latents that a recipe of VideoJAM asks for."""
    return generator.facts.latent_channels if method.motion == "picture" else 2 * generator.codec.temporal


def motion_of(generator: Generator, method: VideoJam, *, cache: Path | None) -> Signal:
    """Motion latents of VideoJAM, float16 [F, M, h, w].

    Args:
        generator: In its pictures flow is measured, and its VAE encodes it where it is shown as one.
        method: What motion latents are.
        cache: The cache's root; None: nothing is kept.

    Raises:
        MissingExtra: `raft` without torchvision.
    """
    height, width = generator.facts.size
    codec = generator.codec
    settings: dict[str, Any] = {"what": "motion", "kind": method.flow, "size": [height, width], "as": method.motion}
    if method.motion == "picture":
        settings["vae"] = generator.fingerprint("vae")
    else:
        settings |= {"scale_px": method.scale_px, "spatial": codec.spatial, "temporal": codec.temporal}
    if method.flow == "raft":
        settings["estimator"] = raft_identity()

    def compute(windows: Sequence[View], frames: list[np.ndarray]) -> Tensor:
        flows = [
            torch.from_numpy(_flow(method.flow, *both, (height, width), generator.device, said="method.flow"))
            for both in zip(windows, frames, strict=True)
        ]
        if method.motion == "picture":
            return codec.encode(torch.stack([flow_picture(flow) for flow in flows])).half()
        size = (height // codec.spatial, width // codec.spatial)
        pooled = [
            pooled_flow(flow, frames_per_latent=codec.temporal, size=size, scale_px=method.scale_px) for flow in flows
        ]
        return codec.pad(torch.stack(pooled)).half()

    kept = _cache(cache, "features", settings)
    return Signal("flow", kept, compute, lambda: generator.release("vae"), reads_arrays=method.flow == "exact")


class Prompts:
    """Token ids of prompts, and of a text encoder that is not trained their embeddings, computed once.

    Args:
        generator: Its tokenizer and text encoder.
        cache: The cache's root; None: embeddings are computed whenever they are asked for.
        room: For embeddings in memory, in GB.
        processes: Each embeds its part.
        reporter: Receives progress.
    """

    def __init__(
        self, generator: Generator, *, cache: Path | None, room: float, processes: Processes, reporter: Reporter
    ) -> None:
        self.generator, self.room, self.processes, self.reporter = generator, room, processes, reporter
        self._ids: dict[str, Tensor] = {}
        self._cache: TensorCache | None = None
        self._kept: Kept | None = None
        self._computing = threading.Lock()  # batches are made by several threads
        if cache is not None:
            settings = {
                "what": "text",
                "text_encoder": generator.fingerprint("text_encoder"),
                "tokens": generator.facts.max_text_tokens,
            }
            self._cache = _cache(cache, "text", settings)

    def tokens(self, prompt: str) -> Tensor:
        """Token ids [L] as the stock pipeline makes them."""
        if prompt not in self._ids:
            self._ids[prompt] = self.generator.tokenize([prompt])[0]
        return self._ids[prompt]

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(self.tokens(prompt).numpy().tobytes()).hexdigest()[:40]

    @staticmethod
    def _place(key: str, name: str) -> str:
        """Where a part of a prompt's conditioning is kept: the text by the prompt's own key."""
        return key if name == "text" else f"{key}:{name}"

    def bytes_to_keep(self, prompts: Sequence[str]) -> float:
        """What `embed` will write, all processes together."""
        if self._cache is None:
            return 0.0
        facts = self.generator.facts
        missing = self._missing(self._cache, [self._key(prompt) for prompt in prompts])
        return 4.0 * facts.max_text_tokens * facts.text_width * len(missing)

    def _missing(self, store: TensorCache, keys: Iterable[str]) -> set[str]:
        """The prompts' keys of which some part is not kept."""
        names = self.generator.conditioning_parts
        return {key for key in keys if store.missing(self._place(key, name) for name in names)}

    def embed(self, prompts: Sequence[str]) -> list[Tally]:
        """Compute what is not kept yet; back when all processes are done.

        Returns:
            What is kept now; nothing where nothing is.
        """
        store = self._cache
        if store is None:
            return []
        keys = {prompt: self._key(prompt) for prompt in prompts}
        by_key = {key: prompt for prompt, key in keys.items()}
        missing = self._missing(store, by_key)
        todo = [by_key[key] for key in self.processes.share(sorted(by_key)) if key in missing]
        with self.reporter.bar("Prompts", len(todo), "prompt") as bar:
            for first in range(0, len(todo), COMPUTED_AT_ONCE * BATCHES_A_SHARD):
                shard = todo[first : first + COMPUTED_AT_ONCE * BATCHES_A_SHARD]
                held: dict[str, Tensor] = {}
                for start in range(0, len(shard), COMPUTED_AT_ONCE):
                    some = shard[start : start + COMPUTED_AT_ONCE]
                    told = self.generator.encode_prompts(some).to("cpu")
                    for number, prompt in enumerate(some):
                        row = told.row(number)
                        held |= {self._place(keys[prompt], name): part.clone() for name, part in row.items()}
                store.put(held)
                bar.advance(len(shard))
        self.processes.wait()
        self.generator.release("text_encoder")
        store.refresh()
        self._kept = Kept(
            store,
            [self._place(key, name) for key in by_key for name in self.generator.conditioning_parts],
            room=self.room,
        )
        return [Tally.of("text", store, set(keys.values()), missing)]

    def embedding(self, prompt: str) -> dict[str, Tensor]:
        """What the network is told of a prompt, part by part: text [L, D] and whatever else its family has; of one that
        was embedded, where embeddings are kept."""
        if self._kept is not None:
            names = self.generator.conditioning_parts
            places = [self._place(self._key(prompt), name) for name in names]
            return dict(zip(names, self._kept.get(places), strict=True))
        with self._computing:
            return self.generator.encode_prompts([prompt]).to("cpu").row(0)


def look(teacher: Encoder, frames: Tensor, view: TeacherView) -> Tensor:
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
    if view.layout == "stills":
        tubelet = teacher.tubelet_size
        if frames.shape[1] % tubelet:
            raise UsageError(
                f"The window has {frames.shape[1]} frames for {teacher.name}, whose time steps are {tubelet} frames.",
                expected=f"a multiple of {tubelet}, and one more where the first is dropped",
                fix="choose other objective.frames",
            )
        chosen = frames[:, tubelet // 2 :: tubelet].flatten(0, 1)
        stills = chosen[:, None].expand(-1, own.num_frames or tubelet, -1, -1, -1)
        tokens = teacher.encode(stills, size=view.size or "native").mean(dim=1)
        return tokens.unflatten(0, (frames.shape[0], -1))
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


def _seen_size(teacher: Encoder, view: TeacherView, frames: np.ndarray) -> tuple[int, int]:
    """(height, width) of the picture that a teacher's tokens of frames [T, H, W, 3] cover: see `look`."""
    if view.size is not None:
        return view.size
    height, width = frames.shape[1:3]
    if view.layout == "crops":
        return height, width
    return teacher.preprocessing.height or height, teacher.preprocessing.width or width
