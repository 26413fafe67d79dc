"""What picks the best of several videos of one prompt: `physcli sample --best-of`, `physcli eval select`.

Nothing heavy is imported here. A new verifier is one file and one line in `VERIFIERS`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from physcli.errors import unknown

if TYPE_CHECKING:
    from physcli.tasks.verifiers.base import Verifier

ALL, ORACLE = "all videos", "oracle"  # beside the verifiers in a table: no choice, and the judge's own
GAIN = "_gain"  # ends the name of a metric's difference from all videos

# Name → "module:Class", and one line on what it prefers.
VERIFIERS: dict[str, tuple[str, str]] = {
    "surprise": (
        "physcli.tasks.verifiers.surprise:Surprise",
        "the future that an encoder expects of the video's beginning (WMReward)",
    ),
    "foresight": (
        "physcli.tasks.verifiers.surprise:Foresight",
        "the same, and much of it: the change that was foreseen, less what was not",
    ),
    "geophys": ("physcli.tasks.verifiers.geophys:GeoPhys", "frames whose features move along smooth paths"),
    "pixels": ("physcli.tasks.verifiers.geophys:Pixels", "the same of 8 × 8 mean colours: a floor"),
    "videophy2": ("physcli.tasks.verifiers.judges:Rated", "what a rater of VideoPhy-2 rates high"),
    "laws": (
        "physcli.tasks.verifiers.judges:Lawful",
        "what breaks few laws of the simulated world and shows what was asked",
    ),
    "random": ("physcli.tasks.verifiers.base:Random", "any of them: the control"),
}


def verifier_class(name: str) -> type[Verifier]:
    """The class of a verifier.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in VERIFIERS:
        raise unknown("verifier", name, VERIFIERS)
    module, _, class_name = VERIFIERS[name][0].partition(":")
    found: type[Verifier] = getattr(importlib.import_module(module), class_name)
    return found
