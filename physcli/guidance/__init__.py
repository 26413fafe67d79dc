"""Guidances of sampling: what the scheduler is fed in place of the network's output. One file each.

Adding one is its file and a line here: the options of its `Settings` become options of `physcli sample`. Nothing heavy
is imported before a guidance is used, so that its options are known at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from physcli.errors import unknown

if TYPE_CHECKING:
    from physcli.guidance.base import Guidance

NONE = "none"  # the stock pipeline

GUIDANCES: dict[str, str] = {
    "lamo": "physcli.guidance.lamo:MotionPrior",
    "cfg-zero": "physcli.guidance.cfg_zero:CfgZero",
    "inner": "physcli.guidance.inner:InnerGuidance",
}


def guidance_class(name: str) -> type[Guidance]:
    """The class of a guidance.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in GUIDANCES:
        raise unknown("guidance", name, [NONE, *GUIDANCES])
    module, _, class_name = GUIDANCES[name].partition(":")
    found: type[Guidance] = getattr(importlib.import_module(module), class_name)
    return found
