"""All that a recipe's training reads of its clips: windows, signals and prompts, computed where they are not kept.

`physcli data precompute` stops here; `physcli finetune` goes on to train.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from physcli.data.clips import Clip
from physcli.data.subsets import spread
from physcli.progress import Reporter
from physcli.recipe import Data, WindowChoice
from physcli.tasks.features import View
from physcli.tasks.processes import Processes
from physcli.tasks.training.compute import Signal, Values, compute_signals
from physcli.tasks.training.signals import Prompts
from physcli.tasks.training.windows import Windows, prompt_of

_MANY = 3  # samples a window: so many draw nearly all of them


@dataclass(frozen=True)
class Source:
    """Where a run's clips come from, and how what is computed of them is kept.

    Attributes:
        training: Clips to train on.
        held_out: For validation.
        data: The recipe's section.
        seed: Of windows and of the order of clips.
        num_samples: That the run will draw; None where every window is wanted.
        cache: The cache's root.
        processes: Each computes its part.
        reporter: Receives progress.
    """

    training: Sequence[Clip]
    held_out: Sequence[Clip]
    data: Data
    seed: int
    num_samples: int | None
    cache: Path
    processes: Processes
    reporter: Reporter

    def store(self, name: str) -> Path | None:
        """The cache's root for a signal, or None if the recipe does not keep it."""
        return self.cache if name in self.data.cache else None


class Material:
    """Windows of clips and what is read of them, all computed.

    Args:
        source: Clips, and where things are kept.
        choice: How windows are chosen.
        signals: What is read of a window, by the name that training knows it by.
        validated: Of these, what is also read of held-out windows.
        num_held_out: At most so many held-out clips are validated on.
        prompts: Embedded, if the recipe reads embeddings.

    Attributes:
        windows, held_windows: To train and to validate on.
        held_out: The clips of the latter.
        values: Of every signal.
        tallies: What is kept of each.

    Raises:
        DataError: clips that cannot be used, or a disk that is too small.
    """

    def __init__(
        self,
        source: Source,
        *,
        choice: WindowChoice,
        signals: dict[str, Signal],
        validated: Sequence[str],
        num_held_out: int,
        prompts: Prompts | None = None,
    ) -> None:
        processes, reporter = source.processes, source.reporter
        self.held_out = spread(source.held_out, num_held_out)
        arrays = any(signal.reads_arrays for signal in signals.values())
        self.windows, self.held_windows = (
            Windows(clips, choice=choice, seed=source.seed, reporter=reporter, arrays=arrays)
            for clips in (source.training, self.held_out)
        )
        held_signals = [signals[name] for name in validated]

        def compute(views: Sequence[View]) -> dict[Path, str]:
            asked = [
                (signal, [*views, *(self.held_windows.views if signal in held_signals else ())])
                for signal in signals.values()
            ]
            said = ["", *dict.fromkeys(prompt_of(view) for view in (*views, *self.held_windows.views))]
            beside = prompts.bytes_to_keep(said) if prompts is not None else 0.0
            problems, self.tallies = compute_signals(
                asked, root=source.cache, processes=processes, reporter=reporter, beside=beside
            )
            if prompts is not None:
                self.tallies += prompts.embed(said)
            return problems

        # A short run draws few of the windows, and only those are computed, unless one of them cannot be read: what
        # takes its place depends on which others can.
        wanted = self.windows.views
        if source.num_samples is not None and source.num_samples < _MANY * len(wanted):
            self.windows.settle(lambda view: True, [], max_bad=source.data.max_bad)
            wanted = self.windows.first_drawn(source.num_samples)
        problems = compute(wanted)
        left_out = {view.key for view in self.windows.views} - {view.key for view in wanted}
        read_of_all = list(signals.values())
        lost = any(view.clip.path in problems or not _is_usable(read_of_all, left_out, view) for view in wanted)
        if left_out and lost:
            wanted, left_out = self.windows.views, set()
            problems |= compute(wanted)
        for windows, read in ((self.windows, read_of_all), (self.held_windows, held_signals)):
            own = dict.fromkeys(problems[v.clip.path] for v in windows.views if v.clip.path in problems)
            windows.settle(partial(_is_usable, read, left_out), list(own), max_bad=source.data.max_bad)
        room = source.data.memory_gb / (len(signals) + (prompts is not None))
        self.values = {
            name: Values(
                signal,
                [
                    *(view for view in self.windows.views if view.key not in left_out),
                    *(self.held_windows.views if name in validated else ()),
                ],
                room=room,
            )
            for name, signal in signals.items()
        }

    @property
    def problems(self) -> list[str]:
        """Why clips were left out, a line each."""
        return [*self.windows.problems, *self.held_windows.problems]


def _is_usable(signals: Sequence[Signal], left_out: Collection[str], view: View) -> bool:
    """Whether all that is kept of a window is there, or nothing of it is read."""
    return view.key in left_out or all(view.key in signal.cache for signal in signals if signal.cache is not None)
