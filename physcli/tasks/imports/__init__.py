"""The table of layouts in which others publish scores of videos; each is one file with a `fits` and a `read`.

A new layout is one file and one line here.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from physcli.errors import DataError, UsageError, unknown
from physcli.tasks.imports import cosmos, fastvideo, vbench, videophy, videophy2
from physcli.tasks.imports.base import Imported, Source

LAYOUTS: dict[str, ModuleType] = {
    "videophy": videophy,
    "videophy2": videophy2,
    "vbench": vbench,
    "fastvideo": fastvideo,
    "cosmos-sampson": cosmos,
}
# Public results that hold no score of a single video: how they are known, and what they are.
_OF_SETS = {
    frozenset({"FID"}): "a FID of Cosmos' scripts",
    frozenset({"FVD"}): "an FVD of Cosmos' scripts",
    frozenset({"num_videos", "temporal", "cross_view"}): "the summary of Cosmos' Sampson errors",
}


def find_layout(sources: Sequence[Source], wanted: str | None) -> str:
    """The one layout that all files are in, by their content.

    Args:
        sources: The files.
        wanted: Its name, where the content fits several; None to find it.

    Raises:
        UsageError: there is no layout of that name, or the content fits several.
        DataError: the content fits none, or files are in different ones.
    """
    if wanted is not None and wanted not in LAYOUTS:
        raise unknown("layout", wanted, LAYOUTS)
    known = "; ".join(f"{name} ({module.WHAT})" for name, module in LAYOUTS.items())
    found: list[tuple[str, ...]] = []
    for source in sources:
        fits = tuple(name for name, module in LAYOUTS.items() if module.fits(source))
        if not fits:
            if "scenario" in source.columns and any(name.startswith("v1_mse_") for name in source.columns):
                raise UsageError(
                    f"{source.path} is a table of Physics-IQ.",
                    expected="its own command",
                    fix=f"physcli eval physics-iq --videos {source.path}",
                )
            of_set = next((what for keys, what in _OF_SETS.items() if keys <= set(source.keys)), None)
            if of_set is not None:
                raise DataError(
                    f"{source.path} is {of_set}: one number of a whole set.",
                    expected="scores of single videos, which runs are paired by",
                )
            raise DataError(f"{source.path} is in no layout that is known: {source.describe()}.", expected=known)
        if wanted is not None and wanted not in fits:
            raise DataError(
                f"{source.path} is not in the layout {wanted}: {source.describe()}.",
                expected=LAYOUTS[wanted].WHAT,
                fix=f"its content fits {' and '.join(fits)}: leave out --layout",
            )
        found.append(fits if wanted is None else (wanted,))
    common = [name for name in LAYOUTS if all(name in fits for fits in found)]
    if not common:
        said = "; ".join(f"{s.path}: {' or '.join(fits)}" for s, fits in zip(sources, found, strict=True))
        raise DataError(
            f"The files are in different layouts. {said}.", expected="the scores of one set of videos, in one layout"
        )
    if len(common) > 1:
        raise UsageError(
            f"{sources[0].path} could be {' or '.join(common)}: {sources[0].describe()}.",
            expected="content that only one layout has",
            fix=f"say which: --layout {' or --layout '.join(common)}",
        )
    return common[0]


def read_sources(sources: Sequence[Source], layout: str) -> Imported:
    """The scores in files of one layout.

    Raises:
        DataError: what they hold is not as it should be.
    """
    imported: Imported = LAYOUTS[layout].read(sources)
    return imported
