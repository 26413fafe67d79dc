"""What every verifier does: videos of one prompt in, a score for each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from physcli.data.copies import held
from physcli.data.video import chroma_step, frame_rate, read_video
from physcli.errors import DataError, UsageError
from physcli.hashing import seed_from
from physcli.models.encoders.base import Encoder
from physcli.models.loading import load_encoder
from physcli.models.names import Resolved, fetch, fingerprint, resolve
from physcli.progress import Reporter
from physcli.tasks.processes import Processes


@dataclass(frozen=True)
class Candidate:
    """One of the videos that are chosen from.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB.
        frame_rate_hz: Frames a second; 0 where the file does not say.
        prompt: What was asked for.
        caption: What a rater is asked about.
        name: Told apart from all others by it; what messages call it.
        chroma_step: How many (rows, columns) of pixels it has a sample of colour for.
    """

    frames: np.ndarray
    frame_rate_hz: float
    prompt: str
    caption: str
    name: str
    chroma_step: tuple[int, int] = (1, 1)

    def held(self) -> Candidate:
        """Its first frame, all along."""
        return replace(self, frames=held(self.frames), name=f"{self.name}, its first frame held")


def read_candidate(video: Path, *, prompt: str, caption: str, pixel_format: str) -> Candidate:
    """A candidate from its file; `pixel_format` may be "", where nothing is known of it.

    Raises:
        DataError: it cannot be decoded.
    """
    step = chroma_step(pixel_format) if pixel_format else (1, 1)
    return Candidate(read_video(video), frame_rate(video), prompt, caption or prompt, str(video), step)


@dataclass(frozen=True)
class Setting:
    """What a verifier is made from.

    Attributes:
        encoder: In place of its own encoder.
        rater: In place of its own rater.
        device: Where models run.
        seed: Of what is drawn.
        cache: The cache's root.
        processes: All of them; each makes the same verifiers in the same order.
        reporter: Receives progress.
    """

    encoder: str | None
    rater: str | None
    device: torch.device
    seed: int
    cache: Path
    processes: Processes
    reporter: Reporter


class Verifier(ABC):
    """Scores the candidates of one prompt; the highest is chosen, of equal ones the first.

    Attributes:
        relative: A score depends on the others that are scored with it.
        identity: What scores depend on beside the videos: names and hashes.
        found: What else was found on the way, for the run's record.
    """

    relative: ClassVar[bool] = False
    identity: dict[str, Any]
    found: dict[str, Any]

    @abstractmethod
    def __init__(self, setting: Setting) -> None:
        """Every process makes it, so that it may wait for the others; `scores` must not."""

    @abstractmethod
    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """float64 [N], higher is better; only candidates of one prompt compare.

        Raises:
            DataError: a video that cannot be scored.
        """


class Random(Verifier):
    """Any of them, by a hash of prompt and name."""

    def __init__(self, setting: Setting) -> None:
        self.seed = setting.seed
        self.identity, self.found = {"seed": setting.seed}, {}

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([float(seed_from(self.seed, "verifier", one.prompt, one.name)) for one in candidates])


def cannot(error: DataError) -> dict[str, Any]:
    """In place of a verifier's answer: why there is none."""
    return {"cannot": f"{error.received} Expected: {error.expected}"}


def able_verifiers(said: Sequence[Mapping[str, Any]], names: Sequence[str], reporter: Reporter) -> list[str]:
    """The verifiers that could score all videos; why the others are left out is said.

    Args:
        said: Of each prompt, verifier → its answer, or `cannot`.
        names: The verifiers.
        reporter: Hears of the others.

    Raises:
        DataError: none could.
    """
    able = []
    for name in names:
        reasons = [one[name]["cannot"] for one in said if "cannot" in one[name]]
        if reasons:
            reporter.warn(f"The verifier {name} is left out: {reasons[0]}")
        else:
            able.append(name)
    if not able:
        raise DataError("No verifier can score these videos.", expected="videos that one of them can score")
    return able


def resolve_encoder(setting: Setting, default: str) -> Resolved:
    """The encoder that a verifier reads, its files at hand.

    Raises:
        UsageError: it is none.
    """
    resolved = resolve(setting.encoder or default)
    if resolved.kind != "encoder":
        raise UsageError(f"--encoder {resolved.name} is a generator.", expected="an encoder, such as videomae-tiny")
    return fetch(resolved)


def identity_of(resolved: Resolved) -> dict[str, Any]:
    """What an encoder is known by."""
    return {"encoder": resolved.name, "encoder_hash": fingerprint(resolved)}


def read_encoder(resolved: Resolved, setting: Setting) -> Encoder:
    """The encoder, frozen."""
    if resolved.random_init:
        setting.reporter.warn(f"{resolved.name} has random weights.")
    return load_encoder(resolved, device=setting.device, dtype="float32").requires_grad_(False)


def as_clip(frames: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] → float32 [1, T, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None].float() / 255
