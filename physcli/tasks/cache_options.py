"""`--cache` and the options of its settings."""

from __future__ import annotations

from physcli.errors import UsageError, unknown
from physcli.models.step_cache import CACHES, CacheSettings

__all__ = ["CACHES", "CacheSettings", "cache_of_options"]


def cache_of_options(
    name: str | None, *, interval: int | None = None, threshold: float | None = None
) -> CacheSettings | None:
    """The cache that was asked for, with its default where its setting is not given; None of no name.

    Raises:
        UsageError: no such cache, a setting of another or of none, or a value that cannot be.
    """
    given = {"interval": interval, "threshold": threshold}
    if name is not None and name not in CACHES:
        raise unknown("cache", name, CACHES)
    known = None if name is None else CACHES[name]
    for setting, value in given.items():
        if value is not None and (known is None or setting != known.setting):
            raise UsageError(
                f"--cache-{setting} {value:g} " + ("without --cache." if known is None else f"with --cache {name}."),
                expected="--cache, too" if known is None else f"--cache-{known.setting}",
            )
    if name is None or known is None:
        return None
    value = given[known.setting]
    return CacheSettings(name, known.default if value is None else value)
