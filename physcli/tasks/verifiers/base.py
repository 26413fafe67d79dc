"""What every verifier does: videos of one prompt in, a score for each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from physcli.errors import UsageError
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
        frame_rate_hz: Frames a second.
        prompt: What was asked for.
        caption: What a rater is asked about.
        name: Told apart from all others by it.
        chroma_step: How many (rows, columns) of pixels it has a sample of colour for.
    """

    frames: np.ndarray
    frame_rate_hz: float
    prompt: str
    caption: str
    name: str
    chroma_step: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Need:
    """Where a verifier gets what it needs.

    Attributes:
        encoder: In place of its own encoder.
        rater: In place of its own rater.
        device: Where models run.
        seed: Of what is drawn.
        cache: The cache's root.
        processes: All of them; clips that are missing are simulated by one.
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
        sees_laws: It looks at what the judge `laws` looks at, so that with this judge it is no fair verifier.
        reads: Of `Need`: "encoder", "rater" or nothing.
        facts: What its scores depend on beside the videos, for the run's record.
    """

    sees_laws: ClassVar[bool] = False
    reads: ClassVar[str] = ""
    facts: dict[str, Any]

    @abstractmethod
    def __init__(self, need: Need) -> None: ...

    @abstractmethod
    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """float64 [N], higher is better. They may depend on each other: only candidates of one prompt compare.

        Raises:
            DataError: a video that cannot be scored.
        """


class Random(Verifier):
    """Any of them, by a hash of its name."""

    def __init__(self, need: Need) -> None:
        self.seed = need.seed
        self.facts = {"seed": need.seed}

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([float(seed_from(self.seed, "verifier", one.name)) for one in candidates])


def resolve_encoder(need: Need, default: str) -> Resolved:
    """The encoder that a verifier reads, its files at hand.

    Raises:
        UsageError: it is none.
    """
    resolved = resolve(need.encoder or default)
    if resolved.kind != "encoder":
        raise UsageError(f"--encoder {resolved.name} is a generator.", expected="an encoder, such as videomae-tiny")
    return fetch(resolved)


def read_encoder(resolved: Resolved, need: Need) -> tuple[Encoder, dict[str, Any]]:
    """The encoder, frozen, and what it is known by."""
    encoder = load_encoder(resolved, device=need.device, dtype="float32").requires_grad_(False)
    if resolved.random_init:
        need.reporter.warn(f"{resolved.name} has random weights.")
    return encoder, {"encoder": resolved.name, "encoder_hash": fingerprint(resolved)}


def as_clip(frames: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] → float32 [1, T, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None].float() / 255
