"""What a layout is given, a file that is parsed but not understood, and what it makes of it: scores of videos."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from physcli.data.tables import columns_of, read_csv, read_text
from physcli.errors import DataError
from physcli.rows import Metric, Row

NUMBERED = re.compile(r"^(?P<prompt>.+)[-_](?P<number>\d+)$", re.DOTALL)  # a file's stem: prompt-0, prompt_0


@dataclass(frozen=True)
class Source:
    """A file; `role` is what it is said to hold: `sa` of `sa=FILE`, or ""."""

    path: Path
    role: str = ""

    @cached_property
    def text(self) -> str:
        """
        Raises:
            DataError: not there, no text in UTF-8, or empty.
        """
        text = read_text(self.path)
        if not text.strip():
            raise DataError(f"{self.path} is empty.", expected="a table or JSON with scores")
        return text

    @property
    def is_json(self) -> bool:
        return self.text.lstrip()[0] in "[{"

    @cached_property
    def value(self) -> Any:
        """The JSON value; None of a table.

        Raises:
            DataError: it is cut short, or otherwise broken.
        """
        if not self.is_json:
            return None
        try:
            return json.loads(self.text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.path}, line {error.lineno}: not valid JSON ({error.msg}).", expected="a whole JSON file"
            ) from error

    @cached_property
    def cells(self) -> list[list[str]]:
        """All lines of a table, the first one too; none of JSON."""
        if self.is_json:
            return []
        return [row for row in csv.reader(io.StringIO(self.text, newline="")) if any(cell.strip() for cell in row)]

    @cached_property
    def columns(self) -> list[str]:
        """The names in the first line of a table, in small letters; none of JSON."""
        return [] if self.is_json else [name.lower() for name in columns_of(self.path)]

    @cached_property
    def rows(self) -> list[tuple[int, dict[str, Any]]]:
        """(line, row) of a table with a head line; names of columns in small letters."""
        return [(number, {name.lower(): value for name, value in row.items()}) for number, row in read_csv(self.path)]

    @property
    def keys(self) -> list[str]:
        """The names in a JSON object."""
        return list(self.value) if isinstance(self.value, dict) else []

    def describe(self) -> str:
        """What the file begins with, in words."""
        if not self.is_json:
            named = ", ".join(cell[:40].replace("\n", " ") or "(no name)" for cell in self.cells[0][:8])
            return f"a table that begins with the columns {named}" + (", …" if len(self.cells[0]) > 8 else "")
        if self.keys:
            return f"a JSON object with {', '.join(self.keys[:8])}" + (", …" if len(self.keys) > 8 else "")
        first = self.value[0] if isinstance(self.value, list) and self.value else None
        if isinstance(first, dict):
            return f"a JSON list of objects with {', '.join(list(first)[:8])}"
        return f"a JSON {'list' if isinstance(self.value, list) else 'object'}" + (
            "" if self.value else " without entries"
        )


@dataclass
class Scored:
    """A video and its scores; `name` as its source has it. Without an `index` it gets one by its name's number."""

    name: str
    prompt: str
    caption: str = ""
    index: int | None = None
    group: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """Scores of a set of videos.

    Attributes:
        benchmark: Whose metrics they are.
        videos: In the source's order.
        metrics: Each is a field of the videos' `values`; None, or no field, where a video has no score.
        rows: Of metrics.json; the benchmark, task and so on are added. None: the means of `metrics`.
        task: Of the rows: "eval" where scores are those that `physcli eval` would give, else "official".
        rater: A model or people gave the scores.
        notes: What a person should know.
        extra: Metrics without a value per video, each with its value and of how many numbers it is.
        official: Metric → the score over the whole set that the source itself gives.
    """

    benchmark: str
    videos: list[Scored]
    metrics: tuple[Metric, ...]
    rows: Callable[..., list[Row]] | None = None
    task: str = "official"
    rater: bool = False
    notes: tuple[str, ...] = ()
    extra: tuple[tuple[Metric, float | None, int], ...] = ()
    official: Mapping[str, float] = field(default_factory=dict)


def number(value: Any, where: str, *, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within bounds, a truth value being 0 or 1.

    Raises:
        DataError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or not low <= found <= high:
        bounds = "" if (low, high) == (-math.inf, math.inf) else f" from {low:g} to {high:g}"
        raise DataError(f"{where} is {str(value)[:60]!r}.", expected=f"a number{bounds}")
    return found


def prompt_and_index(name: str) -> tuple[str, int]:
    """What VBench's file names say, `prompt-0.mp4`; of any other the whole name, and 0."""
    found = re.fullmatch(r"(?P<prompt>.+)-(?P<number>\d+)", stem(name), re.DOTALL)
    return (found["prompt"], int(found["number"])) if found else (stem(name), 0)


def stem(name: str) -> str:
    """A file's name without folders (of any system) and its ending."""
    last = re.split(r"[/\\]", name)[-1]
    return re.sub(r"\.(mp4|avi|mov|mkv|webm|gif)$", "", last, flags=re.IGNORECASE)


def give_indices(videos: Sequence[Scored]) -> str:
    """Number the videos of a prompt where they are not: by the number that their names end in if that tells all apart,
    else in the source's order. What was done, in words; "" where each prompt has one video."""
    if all(video.index is not None for video in videos):
        return ""
    numbers = [NUMBERED.match(stem(video.name)) for video in videos]
    keys = [(video.prompt, found["number"]) for video, found in zip(videos, numbers, strict=True) if found]
    if len(set(keys)) == len(videos):
        for video, found in zip(videos, numbers, strict=True):
            video.index = int(found["number"]) if found else None
        return "Videos of a prompt are numbered by the ends of their file names."
    counts: Counter[str] = Counter()
    for video in videos:
        video.index = counts[video.prompt]
        counts[video.prompt] += 1
    return "Videos of a prompt are numbered in the order of the file." if max(counts.values()) > 1 else ""
