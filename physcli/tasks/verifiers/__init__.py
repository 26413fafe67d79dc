"""What picks the best of several videos of one prompt: `physcli sample --best-of`, `physcli eval select`.

Nothing heavy is imported here. A new verifier is one file and one line in `VERIFIERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from physcli.errors import UsageError, unknown

if TYPE_CHECKING:
    from physcli.tasks.verifiers.base import Verifier

ALL, ORACLE = "all videos", "oracle"  # beside the verifiers in a table: no choice, and the judge's own
TWINS = "impossible"  # of a table of copies: all twins that break a law
GAIN = "_gain"  # ends the name of a metric's difference from all videos


class KnownVerifier(NamedTuple):
    """A verifier of the table.

    Attributes:
        location: "module:Class".
        prefers: One line on what it prefers.
        reads: The option that gives it another model than its own, or "".
        judge: The benchmark that looks at the same things: with this judge it is no fair verifier.
    """

    location: str
    prefers: str
    reads: Literal["", "encoder", "rater"] = ""
    judge: str = ""


_HERE = "physcli.tasks.verifiers"
VERIFIERS: dict[str, KnownVerifier] = {
    "surprise": KnownVerifier(
        f"{_HERE}.surprise:Surprise",
        "the future that an encoder expects of the video's beginning (WMReward)",
        reads="encoder",
    ),
    "foresight": KnownVerifier(
        f"{_HERE}.surprise:Foresight",
        "the same, and much of it: the change that was foreseen, less what was not",
        reads="encoder",
    ),
    "geophys": KnownVerifier(
        f"{_HERE}.geophys:GeoPhys", "frames whose features move along smooth paths", reads="encoder"
    ),
    "pixels": KnownVerifier(f"{_HERE}.geophys:Pixels", "the same of 8 × 8 mean colours: a floor"),
    "videophy2": KnownVerifier(
        f"{_HERE}.judges:Rated", "what a rater of VideoPhy-2 rates high", reads="rater", judge="videophy2"
    ),
    "laws": KnownVerifier(
        f"{_HERE}.judges:Lawful", "what keeps the simulated world's laws and shows what was asked", judge="laws"
    ),
    "random": KnownVerifier(f"{_HERE}.base:Random", "any of them: the control"),
}


def verifier_class(name: str) -> type[Verifier]:
    """The class of a verifier.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in VERIFIERS:
        raise unknown("verifier", name, VERIFIERS)
    module, _, class_name = VERIFIERS[name].location.partition(":")
    found: type[Verifier] = getattr(importlib.import_module(module), class_name)
    return found


def check_verifiers(names: Iterable[str], *, encoder: str | None, rater: str | None) -> None:
    """Refuse names that there are not, and a model that none of these verifiers reads.

    Raises:
        UsageError: one of the two.
    """
    names = list(names)
    for name in names:
        if name not in VERIFIERS:
            raise unknown("verifier", name, VERIFIERS)
    for option, given in (("encoder", encoder), ("rater", rater)):
        if given is not None and not any(VERIFIERS[name].reads == option for name in names):
            readers = [name for name, known in VERIFIERS.items() if known.reads == option]
            raise UsageError(
                f"--{option} {given} with {', '.join(names)}, which has none.",
                expected=f"one of the verifiers {', '.join(readers)}",
                fix="leave it out",
            )
