"""The table of benchmarks that score videos. Nothing heavy is imported here: `physcli eval --help` must be instant.

A new benchmark is one file with a subclass of `benchmarks.base.Benchmark`, and one line here: `physcli eval NAME` with
its options, its tables and report, and `physcli compare` on its runs follow from the two.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from physcli.errors import unknown

if TYPE_CHECKING:
    from physcli.benchmarks.base import Benchmark

# Name → the class, and what `physcli eval --help` says of it.
BENCHMARKS: dict[str, tuple[str, str]] = {
    "laws": (
        "physcli.benchmarks.laws:Laws",
        "The laws of the simulated world, checked on the pixels: no model judges.",
    ),
    "videophy": (
        "physcli.benchmarks.videophy:VideoPhy",
        "VideoPhy: semantic adherence and physical commonsense, by the probability of Yes.",
    ),
    "videophy2": (
        "physcli.benchmarks.videophy:VideoPhy2",
        "VideoPhy-2: both rated 1 to 5, and Joint; 4 is enough. Rules: followed, violated or undecided.",
    ),
    "flickering": (
        "physcli.benchmarks.temporal_flickering:TemporalFlickering",
        "VBench's temporal flickering, beside dynamic degree: a still video has 1.000.",
    ),
}


def find_benchmark(name: str) -> type[Benchmark]:
    """The class of a benchmark.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    module, _, cls = BENCHMARKS[name][0].partition(":")
    found: type[Benchmark] = getattr(importlib.import_module(module), cls)
    return found
