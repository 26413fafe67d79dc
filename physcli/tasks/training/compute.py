"""What training reads of windows of clips beside their prompts: computed where it is not kept, kept, and read again.

A signal is a tensor a window of a clip. It is kept under the window's content and everything else that affects the
value, so a changed setting recomputes what depends on it and nothing else. All signals of a window are computed from
one decoding of its frames, by models that are loaded for the first window that lacks something.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physcli.data.cache import TensorCache
from physcli.errors import DataError, FileChanged
from physcli.progress import Reporter, size_in_words
from physcli.tasks.features import View
from physcli.tasks.processes import Processes

COMPUTED_AT_ONCE = 16
BATCHES_A_SHARD = 16
_PIXELS_AT_ONCE = 16 * 17 * 64 * 64


class OnDemand:
    """A frozen model that is loaded when something is to be computed with it.

    Args:
        fingerprint: Of its weights and configuration: what is computed with it is known by this.
        load: Gives the model.
    """

    def __init__(self, fingerprint: str, load: Callable[[], Any]) -> None:
        self.fingerprint = fingerprint
        self._load = load
        self._model: Any = None
        self._loading = threading.Lock()

    def get(self) -> Any:
        """The model."""
        with self._loading:
            if self._model is None:
                self._model = self._load()
            return self._model

    def release(self) -> None:
        """Give its memory back; it is loaded again when it is needed."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Signal:
    """One kind of tensor: what it is called, where it is kept, and how it is computed.

    `name` is one of those in a recipe's `data.cache`. `compute` takes some windows and their frames, uint8
    [T, H, W, 3] each and alike in size, and gives [B, …] as stored. `cache`: None where it is computed whenever it is
    asked for. `release` gives back the memory of what `compute` loads. `reads_arrays`: of the clip's arrays as well.
    """

    name: str
    cache: TensorCache | None
    compute: Callable[[Sequence[View], list[np.ndarray]], Tensor]
    release: Callable[[], None] = lambda: None
    reads_arrays: bool = False


@dataclass(frozen=True)
class Tally:
    """What came of one kind of thing that is kept.

    Attributes:
        signal: Its name.
        wanted: Different windows (or prompts) that are read of it.
        kept: Of them, those that were there before.
        computed: Those computed now, by all processes.
        num_bytes: Of all that are there now.
        folder: Where they are.
    """

    signal: str
    wanted: int
    kept: int
    computed: int
    num_bytes: float
    folder: Path

    @classmethod
    def of(cls, signal: str, cache: TensorCache, keys: set[str], missing: set[str]) -> Tally:
        """Of a cache once everything is computed; `missing` of the `keys` were not there before."""
        kept, there = len(keys) - len(missing), len(keys) - len(cache.missing(keys))
        return cls(signal, len(keys), kept, there - kept, row_bytes(cache, keys) * there, cache.folder)


# A signal, and the windows that it is read of.
Asked = Sequence[tuple[Signal, Sequence[View]]]


def compute_signals(
    asked: Asked, *, root: Path, processes: Processes, reporter: Reporter, beside: float = 0.0
) -> tuple[dict[Path, str], list[Tally]]:
    """Compute what is not kept yet, each process its part; back when all are done.

    Args:
        asked: Those without a cache are passed over.
        root: The cache's root, which must exist: its disk is looked at.
        processes: All of them.
        reporter: Receives progress.
        beside: Bytes of something else that will be written to the same disk.

    Returns:
        Why clips could not be read, a line for each file, on every process; and what is kept of each signal.

    Raises:
        DataError: the disk is too small for what all processes are to write, or full, or not writable. What is
            finished is kept.
    """
    caches = {signal.name: signal.cache for signal, _ in asked if signal.cache is not None}
    keys = {signal.name: {view.key for view in views} for signal, views in asked if signal.name in caches}
    missing = {name: set(cache.missing(keys[name])) for name, cache in caches.items()}
    signals = [signal for signal, _ in asked if signal.name in caches]
    every = {view.key: view for signal, views in asked if signal.name in caches for view in views}
    # All are shared out, not what is missing: of that a process that comes late sees less.
    mine = processes.share(list(every.values()))
    todo = [view for view in mine if any(view.key in some for some in missing.values())]
    held: dict[str, dict[str, Tensor]] = {name: {} for name in caches}
    problems: dict[Path, str] = {}
    for name, cache in caches.items():
        for shard in cache.broken:
            reporter.warn(f"Damaged cache file of {name}, computed again: {shard}")

    def store() -> None:
        for name, cache in caches.items():
            cache.put(held[name])
            held[name] = {}

    def compute(some: Sequence[View]) -> None:
        for alike in _decode(some, problems):
            for signal in signals:
                wanted = [(view, frames) for view, frames in alike if view.key in missing[signal.name]]
                for part in _batches(wanted):
                    values = signal.compute([view for view, _ in part], [frames for _, frames in part]).cpu()
                    held[signal.name] |= {v.key: row.clone() for (v, _), row in zip(part, values, strict=True)}

    names = ", ".join(name for name in caches if missing[name])
    try:
        with reporter.bar(names.capitalize() or "Signals", len(todo), "window") as bar:
            # Every process tells how large its first values are, those with nothing to do as well.
            for number, first in enumerate(range(0, max(1, len(todo)), COMPUTED_AT_ONCE), start=1):
                some = todo[first : first + COMPUTED_AT_ONCE]
                compute(some)
                if number == 1:
                    own = {name: next(iter(rows.values())).nbytes for name, rows in held.items() if rows}
                    sizes = {name: row_bytes(cache, keys[name]) for name, cache in caches.items()}
                    for part in processes.collect([own]):
                        sizes |= part
                    needed = {name: sizes[name] * len(missing[name]) for name in caches}
                    _check_room({**needed, "text": beside}, root, processes, reporter)
                if number % BATCHES_A_SHARD == 0:
                    store()
                bar.advance(len(some))
    finally:  # also on Ctrl-C: what is computed is kept
        store()
    processes.wait()
    for signal in signals:
        signal.release()
    for cache in caches.values():
        cache.refresh()
    return dict(processes.collect(list(problems.items()))), [
        Tally.of(name, cache, keys[name], missing[name]) for name, cache in caches.items()
    ]


def _batches(windows: list[tuple[View, np.ndarray]]) -> Iterator[list[tuple[View, np.ndarray]]]:
    """So many windows that a model can take them at once: 16 of the tiny world, one of 49×480×720."""
    size = max(1, _PIXELS_AT_ONCE // windows[0][1][..., 0].size) if windows else 1
    for first in range(0, len(windows), size):
        yield windows[first : first + size]


def _check_room(needed: dict[str, float], root: Path, processes: Processes, reporter: Reporter) -> None:
    """Say how many bytes all processes together will write below `root`, and refuse what the disk cannot hold."""
    needed = {name: size for name, size in needed.items() if size}
    if not needed:
        return
    total, free = sum(needed.values()), processes.tell(shutil.disk_usage(root).free)
    parts = ", ".join(f"{name} {size_in_words(size)}" for name, size in needed.items())
    if total > free:
        raise DataError(
            f"{size_in_words(total)} are to be kept ({parts}); {size_in_words(free)} are free at {root}.",
            expected="room for all of them",
            fix="choose another --cache-dir (or PHYSCLI_CACHE), fewer clips (data.limit) or objective.windows, or name "
            "in data.cache only what shall be kept: the rest is computed whenever it is read",
        )
    reporter.note(f"To be computed and kept: {parts}; {size_in_words(free)} are free.")


def row_bytes(cache: TensorCache, keys: Iterable[str]) -> float:
    """Bytes of one of a cache's values; 0 if it has none of these keys."""
    key = next((key for key in keys if key in cache), None)
    return float(cache.get([key])[key].nbytes) if key is not None else 0.0


def _decode(views: Sequence[View], problems: dict[Path, str]) -> list[list[tuple[View, np.ndarray]]]:
    """The readable ones of some windows, those alike in size together."""
    by_clip: dict[int, list[View]] = {}
    for view in views:
        by_clip.setdefault(id(view.clip), []).append(view)
    by_shape: dict[tuple[int, ...], list[tuple[View, np.ndarray]]] = {}
    for some in by_clip.values():
        for view, frames in _read(some, problems):
            by_shape.setdefault(frames.shape, []).append((view, frames))
    return list(by_shape.values())


def _read(views: Sequence[View], problems: dict[Path, str]) -> list[tuple[View, np.ndarray]]:
    """Windows of one clip, which is decoded once for all of them: that takes longer than to encode a few frames."""
    every = sorted({frame for view in views for frame in view.frames})
    try:
        frames = replace(views[0], frames=tuple(every)).read()
    except FileChanged:
        raise
    except DataError as error:
        if len(views) > 1:  # a part of it may be whole
            return [read for view in views for read in _read([view], problems)]
        problems.setdefault(views[0].clip.path, f"{views[0].clip.path}: {error.received}")
        return []
    return [(view, frames[np.searchsorted(every, view.frames)]) for view in views]


class Kept:
    """Values in a cache: in memory as far as there is room, the rest read when it is asked for.

    Args:
        cache: Of values already computed.
        keys: That will be asked for.
        room: In GB.
    """

    def __init__(self, cache: TensorCache, keys: Sequence[str], *, room: float) -> None:
        self.cache = cache
        keys = list(dict.fromkeys(keys))
        fits = int(room * 1e9 // max(1.0, row_bytes(cache, keys)))
        self._held = cache.get(keys[:fits])

    def get(self, keys: Sequence[str]) -> list[Tensor]:
        """The values of these keys."""
        if any(key not in self._held for key in keys):
            found = self.cache.get(keys)
            return [found[key] for key in keys]
        return [self._held[key] for key in keys]


class Values:
    """A signal's values of windows; of one that is not kept, computed from the clip's file when they are asked for.

    Args:
        signal: Already computed, if it is kept.
        views: That will be asked for.
        room: For those in memory, in GB.
    """

    def __init__(self, signal: Signal, views: Sequence[View], *, room: float) -> None:
        self.signal, self._first = signal, views[0]
        self._kept = None if signal.cache is None else Kept(signal.cache, [view.key for view in views], room=room)
        self._computing = threading.Lock()  # batches are made by several threads

    def one(self) -> Tensor:
        """Some value, for its shape."""
        return self.get([self._first])[0]

    def get(self, views: Sequence[View]) -> list[Tensor]:
        """The values of these windows.

        Raises:
            DataError: a clip that cannot be read, where nothing is kept that would have shown it before.
        """
        if self._kept is not None:
            return self._kept.get([view.key for view in views])
        with self._computing:  # one by one: what the others of a batch are changes no value
            return [self.signal.compute([view], [view.read()])[0].cpu() for view in views]
