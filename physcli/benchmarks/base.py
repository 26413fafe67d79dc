"""What a benchmark of videos is: scoring one video, and aggregating many, apart from each other.

It never reads a file or loads a model: it says what it `needs`, and `physcli eval` hands it over in a `Context`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from physcli.errors import DataError
from physcli.rows import Metric, Row, mean_row

MEDIA = "<|video|>"  # stands for the video in a rater's prompt

# rater: answers to `questions`. rules: lists of videos may have rules to be judged, and there is `--rules`. reference,
# first_frame: the video's list names their files, in columns of these names.
Need = Literal["rater", "rules", "reference", "first_frame"]


class Video(Protocol):
    """What a benchmark sees of a row of the list of videos; `data.video_sets.Video` says more."""

    @property
    def name(self) -> str: ...
    @property
    def caption(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, Any]: ...
    @property
    def rules(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Question:
    """What a rater is asked.

    Attributes:
        template: With `{caption}` or `{rule}` where a text goes in, or neither.
        splits: Where the prompt is cut into segments that are tokenised one by one; each of these is one itself.
        answer: "yes": only the probability of Yes is read. "text": the rater's words, and its logits of 1 to 5.
        max_tokens: Longer prompts are cut.
    """

    template: str
    splits: tuple[str, ...] = (MEDIA,)
    answer: Literal["yes", "text"] = "text"
    max_tokens: int | None = None

    @property
    def field(self) -> str | None:
        """What goes in: "caption", "rule" or None."""
        found = re.search(r"\{(\w+)\}", self.template)
        return found[1] if found else None

    def fill(self, text: str = "") -> str:
        """The whole prompt; `text` is the caption or rule, and unused where the question has none.

        Raises:
            DataError: the text is empty where one is needed, or holds the mark that stands for the video.
        """
        if self.field is None:
            return self.template
        if not text.strip() or MEDIA in text:
            raise DataError(
                f"The {self.field} {text!r} cannot be asked about.", expected=f"text without the mark {MEDIA}"
            )
        return self.template.replace("{" + self.field + "}", text)

    def segments(self, text: str = "") -> tuple[str, ...]:
        """The filled prompt in its segments, `MEDIA` one of them; joined they are `fill(text)`."""
        pattern = "|".join(map(re.escape, self.splits))
        return tuple(part for part in re.split(f"({pattern})", self.fill(text)) if part)


@dataclass(frozen=True)
class Answer:
    """A rater's answer: the probability of Yes, or its text and logits [5] of the digits 1 to 5."""

    yes: float | None = None
    text: str = ""
    digits: np.ndarray | None = None


@dataclass(frozen=True)
class Context:
    """What a video is scored by.

    Attributes:
        read: The whole video, uint8 [T, H, W, 3] RGB of at least 5 frames; `frames` is the same, read once.
        frame_rate_hz: Frames a second.
        flow: uint8 [T, H, W, 3] → float [T − 1, H, W, 2], pixels (right, down).
        answers: To the benchmark's `questions`, in their order; none unless it needs a rater.
        reference: uint8 [T', H', W', 3], the real video, where needed.
        first_frame: uint8 [H', W', 3], what the video was to begin with, where needed.
        chroma_step: How many (rows, columns) of pixels the video has a sample of colour for: (2, 2) of 4:2:0.
    """

    read: Callable[[], np.ndarray]
    frame_rate_hz: float
    flow: Callable[[np.ndarray], np.ndarray]
    answers: Sequence[Answer] = ()
    reference: np.ndarray | None = None
    first_frame: np.ndarray | None = None
    chroma_step: tuple[int, int] = (1, 1)

    @cached_property
    def frames(self) -> np.ndarray:
        return self.read()


@dataclass(frozen=True)
class Score:
    """A video and what `score` said of it."""

    video: Video
    values: Mapping[str, Any]


@dataclass(frozen=True)
class NoSettings:
    """Of a benchmark without settings."""


class Benchmark(ABC):
    """A benchmark of videos.

    Attributes:
        name: Its key in `BENCHMARKS`.
        Settings: A frozen dataclass; its fields, made by `option`, are the command's options. Raises UsageError for
            values that cannot be.
        metrics: Of each video; what `aggregate` makes rows of.
        needs: Beyond the video itself.
        restores_chroma: It heeds `Context.chroma_step`.
        official_rater: The rater of videos that are not of the simulated world.
        task: Of the rows.
        split: Of the rows.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Any]] = NoSettings
    metrics: ClassVar[Sequence[Metric]]
    needs: ClassVar[frozenset[Need]] = frozenset()
    restores_chroma: ClassVar[bool] = False
    official_rater: ClassVar[str] = ""
    task: ClassVar[str] = "eval"
    split: ClassVar[str] = "all"

    def __init__(self, settings: Any = None) -> None:
        self.settings = self.Settings() if settings is None else settings

    def questions(self, video: Video) -> Sequence[tuple[Question, str]]:
        """What a rater is asked of a video, each with the text that goes in."""
        return ()

    @abstractmethod
    def score(self, video: Video, context: Context) -> dict[str, Any]:
        """Score one video.

        Returns:
            Its fields in items.jsonl: a number, truth value or None for each metric; `group` where it has one; and
            what else is worth keeping. Without `motion_px`, dynamic degree and motion are added.

        Raises:
            DataError: this video cannot be scored; it is counted as missing, and the others are scored.
        """

    def aggregate(self, scores: Sequence[Score], **columns: Any) -> list[Row]:
        """Rows of metrics.json, over all and for each group: the means; a metric that a group never has, has no row.

        Args:
            scores: Of at least one video.
            columns: The columns of every row: benchmark, task, subject, split; rater.
        """
        groups = sorted({str(score.values["group"]) for score in scores if score.values.get("group") is not None})
        rows = []
        for group in ("all", *groups):
            members = [score for score in scores if group == "all" or str(score.values.get("group")) == group]
            prompts = [score.video.prompt for score in members]
            for metric in self.metrics:
                values = [score.values.get(metric.name) for score in members]
                if any(value is not None for value in values):
                    rows.append(mean_row(metric, values, clusters=prompts, group=group, **columns))
        return rows

    def tables(self, scores: Sequence[Score]) -> Mapping[str, Sequence[Sequence[Any]]]:
        """The official scorer's tables, if it leaves any: name of a CSV file (`official_….csv`) → lines."""
        return {}


def option(default: Any, help: str, *, metavar: str | None = None) -> Any:
    """A field of a benchmark's `Settings`: an option of `physcli eval NAME`."""
    return field(default=default, metadata={"help": help, "metavar": metavar})
