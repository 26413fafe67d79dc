"""Windows of clips that training draws from: chosen frames of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from physcli.data.clips import Clip
from physcli.errors import DataError, UsageError
from physcli.progress import Reporter
from physcli.recipe import WindowChoice
from physcli.simulation.prompts import RATES, with_rate
from physcli.tasks.features import View, stride_of, views_of
from physcli.tasks.training.clips import refuse_too_many_bad, rng_of, sample_order


class Windows:
    """Windows of clips; `settle` says which of them can be used.

    Args:
        clips: To choose from.
        choice: How many frames, how far apart, how many windows a clip.
        seed: Of where windows begin and of the order of clips.
        reporter: Told of every clip that is left out.
        arrays: Their keys are of the content of the clips' arrays as well.

    Attributes:
        problems: Why clips were left out.
        views: All windows, once settled those that can be used.
    """

    def __init__(
        self, clips: Sequence[Clip], *, choice: WindowChoice, seed: int, reporter: Reporter, arrays: bool = False
    ) -> None:
        self.choice, self.seed, self.reporter, self._arrays = choice, seed, reporter, arrays
        self.problems: list[str] = []
        self._num_clips = len(clips)
        self._by_clip: list[dict[int, list[View]]] = []
        self.views = self._choose(clips)

    def settle(self, usable: Callable[[View], bool], problems: Sequence[str], *, max_bad: float) -> None:
        """Leave out what cannot be read.

        Args:
            usable: Whether all that is kept of a window is there.
            problems: Why clips could not be read, a line each.
            max_bad: Share of the clips that may be left out.

        Raises:
            DataError: no clip is long enough, or too many are unreadable.
        """
        for problem in problems:
            self._leave_out(problem)
        by_clip: dict[int, dict[int, list[View]]] = {}
        for view in self.views:
            if usable(view):
                by_clip.setdefault(id(view.clip), {}).setdefault(stride_of(view), []).append(view)
        if not by_clip:
            raise DataError(
                f"None of the {self._num_clips} clips has {self.choice.frames} frames that can be read.",
                expected="longer clips, or fewer frames in objective.frames",
            )
        refuse_too_many_bad(self.problems, self._num_clips, max_bad)
        self._by_clip = list(by_clip.values())
        self.views = [view for strides in self._by_clip for views in strides.values() for view in views]

    def _choose(self, clips: Sequence[Clip]) -> list[View]:
        chosen: list[tuple[Clip, list[int]]] = []
        for number, clip in enumerate(clips):
            try:
                length = clip.count_frames()
            except DataError as error:
                self._leave_out(f"{clip.path}: {error.received}")
                continue
            rng = rng_of(self.seed, "starts", number)
            before = len(chosen)
            for stride in dict.fromkeys(self.choice.strides):
                latest = length - 1 - (self.choice.frames - 1) * stride
                if latest < 0:
                    continue
                # The beginning first: it is what a probe of the same model shows.
                starts = [0, *rng.permutation(np.arange(1, latest + 1)).tolist()][: self.choice.windows]
                chosen += [(clip, [s + i * stride for i in range(self.choice.frames)]) for s in starts]
            if len(chosen) == before:
                self._leave_out(f"{clip.path}: {length} frames, and a window has {self.choice.frames}.")
        return views_of([clip for clip, _ in chosen], [frames for _, frames in chosen], {}, arrays=self._arrays)

    def _leave_out(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)
            self.reporter.warn(f"Left out: {problem}")

    def draw(self, sample: int, rng: np.random.Generator) -> View:
        """The window that is sample n: its clip by the order of samples, stride and place by `rng`."""
        by_stride = self._by_clip[sample_order(sample, len(self._by_clip), self.seed)]
        strides = [stride for stride in self.choice.strides if stride in by_stride]
        among = by_stride[strides[int(rng.integers(len(strides)))]]
        return among[int(rng.integers(len(among)))]

    def first_drawn(self, num_samples: int) -> list[View]:
        """The windows of samples 0 to n − 1, each once."""
        drawn = (self.draw(sample, rng_of(self.seed, "sample", sample)) for sample in range(num_samples))
        return list({view.key: view for view in drawn}.values())

    def first(self) -> list[View]:
        """One window of every clip and stride."""
        return [windows[0] for strides in self._by_clip for windows in strides.values()]


def prompt_of(view: View) -> str:
    """What a window's clip shows; of a simulated clip, with the rate of the frames that are seen of it."""
    return prompt_at(view.clip, stride_of(view))


def prompt_at(clip: Clip, stride: int) -> str:
    """What a clip shows, seen every `stride` frames.

    Raises:
        UsageError: a simulated clip at a rate that its prompts have no words for.
    """
    if clip.kind != "simulated":
        return clip.prompt
    if stride not in RATES:
        raise UsageError(
            f"Simulated clips seen every {stride} frames: their prompts have no words for that rate.",
            expected=f"objective.strides of {', '.join(map(str, RATES))} for simulated clips",
        )
    return with_rate(clip.prompt, stride)
