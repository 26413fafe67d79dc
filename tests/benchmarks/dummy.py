"""A benchmark as somebody would add one: this file, and a line in `BENCHMARKS`."""

from __future__ import annotations

from dataclasses import dataclass

from physcli.benchmarks.base import Benchmark, option
from physcli.errors import DataError, UsageError
from physcli.rows import Metric


@dataclass(frozen=True)
class Settings:
    bright_from: float = option(100.0, "Mean grey from which a video is bright.", metavar="GREY")

    def __post_init__(self):
        if self.bright_from < 0:
            raise UsageError(f"--bright-from {self.bright_from}.", expected="at least 0")


class Dummy(Benchmark):
    name = "dummy"
    Settings = Settings
    metrics = (
        Metric("bright", "rate", True, role="headline", interval="wilson"),
        Metric("grey", "score", None),
        Metric("length", "count", None),
    )

    def score(self, video, context):
        if "nothing" in video.prompt:
            raise DataError(f"{video.name} shows nothing.")
        grey = float(context.frames.mean())
        group = str(video.columns.get("violation", {}).get("kind") or "as filmed")
        return {"bright": grey >= self.settings.bright_from, "grey": grey, "length": len(context.frames)} | {
            "group": group
        }


class Beside(Benchmark):
    """How far a video is from the real one, and from what it was to begin with."""

    name = "beside"
    metrics = (Metric("distance", "score", False), Metric("first_distance", "score", False))
    needs = frozenset({"reference", "first_frame"})

    def score(self, video, context):
        first = abs(context.frames[0].astype(float) - context.first_frame).mean()
        return {
            "distance": float(abs(context.frames.astype(float) - context.reference).mean()),
            "first_distance": first,
        }
