"""The clips of a training run: which one a sample number means, and its decoded frames."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from physcli.data.clips import Clip, read_dataset
from physcli.data.subsets import thin
from physcli.data.video import resize
from physcli.errors import DataError, FileChanged
from physcli.files import refuse_changed, stamp
from physcli.hashing import seed_from
from physcli.progress import Reporter
from physcli.recipe import Data
from physcli.tasks.processes import Processes
from physcli.tasks.sources import clips_folder

_MOST_HELD_OUT = 280  # of a folder without splits


def read_clips(
    data: Data,
    *,
    cache: Path,
    processes: Processes,
    reporter: Reporter,
    captions: bool = False,
    impossible: tuple[str, ...] = (),
) -> tuple[list[Clip], list[Clip]]:
    """Training and held-out clips of a recipe's `data`; what is not there is made or downloaded. Says how many of each.

    A folder without splits gives its last twentieth (at most 280 clips) for validation; so does one whose clips are all
    for training. `captions`: training reads them, and clips without one are counted. `impossible`: kinds of twins that
    are made beside simulated clips (`physcli.data.clips.read_impossible`); they are not among the clips.

    Raises:
        UsageError: no such suite, or no such way to write a hub dataset.
        DataError: nothing usable in the folder or nothing to train on, too many clips without a caption, or the hub's
            dataset cannot be downloaded.
    """
    folder = clips_folder(
        data.source,
        purpose=data.purpose,
        impossible=impossible,
        cache=cache,
        processes=processes,
        reporter=reporter,
    )
    dataset = read_dataset(folder)
    for problem in dataset.problems[:5]:
        reporter.warn(f"Left out: {problem.path}: {problem.message}")
    if len(dataset.problems) > 5:
        reporter.warn(
            f"{len(dataset.problems)} files or rows were left out in all; `physcli data inspect {folder}` names them."
        )
    training = [clip for clip in dataset.clips if clip.split == "train"]
    held_out = [clip for clip in dataset.clips if clip.split == "test"]
    how = "by their splits"
    if not training and dataset.kind == "video" and dataset.has_splits:
        raise DataError(
            f"{folder} has no clip to train on: all {len(held_out)} are held out by their splits or folders.",
            expected="clips of a split `train`",
            fix="add them, or pass the folder that the clips are in, whose own name says nothing",
        )
    if not training or not held_out:
        clips = list(dataset.clips)
        if len(clips) < 2:
            raise DataError(f"{folder} holds {len(clips)} usable clips.", expected="at least 2")
        count_out = min(_MOST_HELD_OUT, max(1, len(clips) // 20))
        why = f"all are {clips[0].split} clips" if dataset.has_splits else "no split is named"
        how = f"the last, as {why}"
        training, held_out = clips[:-count_out], clips[-count_out:]
    chosen = thin(training, data.limit)
    limited = f" (of {len(training):,}; data.limit)" if len(chosen) < len(training) else ""
    reporter.note(f"{len(chosen):,} clips to train on{limited}, {len(held_out):,} held out ({how}).")
    if captions:
        _check_captions(chosen, held_out, data, folder, reporter)
    return chosen, held_out


def _check_captions(
    training: Sequence[Clip], held_out: Sequence[Clip], data: Data, folder: Path, reporter: Reporter
) -> None:
    """Say how many clips have no caption.

    Raises:
        DataError: more of the training clips than `data.max_uncaptioned` allows.
    """
    for clips, kind in ((training, "training"), (held_out, "held-out")):
        silent = [os.path.relpath(clip.path, folder) for clip in clips if not clip.prompt]
        if not silent:
            continue
        named = ", ".join(silent[:3]) + (", …" if silent[3:] else ".")
        told = f"{len(silent):,} of {len(clips):,} {kind} clips have no caption: {named}"
        if kind == "training" and len(silent) > data.max_uncaptioned * len(clips):
            raise DataError(
                told,
                expected=f"at most {data.max_uncaptioned:.0%} (data.max_uncaptioned)",
                fix="caption them, by metadata.csv or x.txt beside x.mp4 (which tables are not read says `physcli data "
                f"inspect {folder}`), or say data.max_uncaptioned=1 if they are to be learnt without words",
            )
        reporter.warn(told)


class ClipReader:
    """Decoded clips by sample number, in an order that depends on the seed alone.

    Sample n is clip n mod N of the permutation of epoch n // N. A clip that cannot be read is replaced by the next of
    the permutation; it is named once, and too many of them end the run.

    Args:
        clips: N clips.
        size: (height, width) of what is read; other clips are resized, whole frames.
        seed: Of the order.
        memory_gb: Keep decoded clips up to this size.
        max_bad: Share of the clips that may be unreadable.
        reporter: Told of every unreadable clip.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        size: tuple[int, int],
        seed: int,
        memory_gb: float = 6.0,
        max_bad: float = 0.05,
        reporter: Reporter | None = None,
    ) -> None:
        self.clips, self.size, self.seed = clips, size, seed
        self.max_bad, self.reporter = max_bad, reporter or Reporter()
        self.bad: dict[int, str] = {}
        self._seen = [stamp(clip.path) for clip in clips]
        self._room = memory_gb * 1e9
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def number(self, sample: int) -> int:
        """Which clip sample n is."""
        return sample_order(sample, len(self.clips), self.seed)

    def read(self, sample: int) -> tuple[Clip, np.ndarray]:
        """The clip of a sample and all its frames, uint8 [T, H, W, 3].

        Raises:
            DataError: more than `max_bad` of the clips cannot be read.
            FileChanged: a clip's file is not what it was when the run began; no other takes its place.
        """
        for later in range(len(self.clips)):
            number = self.number(sample + later)
            if number not in self.bad:
                try:
                    return self.clips[number], self.frames(number)
                except FileChanged:
                    raise
                except DataError as error:
                    self._note_bad(number, error)
        raise DataError("No clip can be read.", expected="clips that decode", fix="run `physcli data inspect` on them")

    def frames(self, number: int) -> np.ndarray:
        """All frames of clip `number`.

        Raises:
            DataError: they cannot be read.
            FileChanged: its file is not what it was.
        """
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        clip = self.clips[number]
        try:
            frames = resize(clip.read(), *self.size)
        finally:
            refuse_changed(clip.path, self._seen[number])
        with self._lock:
            if number not in self._kept and frames.nbytes <= self._room:
                self._kept[number] = frames
                self._room -= frames.nbytes
        return frames

    def _note_bad(self, number: int, error: DataError) -> None:
        with self._lock:
            if number in self.bad:
                return
            self.bad[number] = f"{self.clips[number].path}: {error.received}"
            so_far = list(self.bad.values())
        self.reporter.warn(f"Left out, the next clip takes its place: {self.bad[number]}")
        refuse_too_many_bad(so_far, len(self.clips), self.max_bad)


def rng_of(seed: int, *parts: object) -> np.random.Generator:
    """Random numbers that depend on the seed and `parts` alone."""
    return np.random.default_rng(seed_from(seed, *parts))


def noise_of(seed: int, *parts: object, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal float32 noise that depends on the seed and `parts` alone."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed_from(seed, *parts)))


def refuse_too_many_bad(bad: Sequence[str], total: int, max_bad: float) -> None:
    """Raises DataError where more than `max_bad` of `total` clips are unreadable; `bad` says which and why."""
    if len(bad) > max_bad * total:
        raise DataError(
            f"{len(bad)} of {total} clips cannot be used, such as {bad[-1]}",
            expected=f"at most {max_bad:.0%} (data.max_bad)",
            fix="mend or remove them (`physcli data inspect` names them), or raise data.max_bad",
        )


def sample_order(sample: int, count: int, seed: int) -> int:
    """Which of `count` things sample n is: n mod count of the permutation of epoch n // count."""
    epoch, place = divmod(sample, count)
    return int(_permutation(count, seed, epoch)[place])


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(seed_from(seed, "order", epoch)).permutation(count)
