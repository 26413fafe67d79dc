"""`--cache`: what goes with what."""

from __future__ import annotations

import pytest

from physcli.errors import UsageError
from physcli.tasks.cache_options import CacheSettings, cache_of_options


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "fbcash"}, "Did you mean 'fbcache'"),
        ({"name": "fbcache", "interval": 3}, "--cache-interval 3 with --cache fbcache"),
        ({"name": "taylorseer", "threshold": 0.1}, "--cache-threshold 0.1 with --cache taylorseer"),
        ({"name": None, "interval": 3}, "--cache-interval 3 without --cache"),
        ({"name": "taylorseer", "interval": 1}, "--cache-interval 1"),
        ({"name": "magcache", "threshold": 0.0}, "--cache-threshold 0"),
        ({"name": "magcache", "threshold": float("nan")}, "--cache-threshold nan"),
    ],
)
def test_bad_settings(given, said):
    with pytest.raises(UsageError, match=said):
        cache_of_options(**given)


def test_defaults():
    assert cache_of_options(None) is None
    assert cache_of_options("taylorseer") == CacheSettings("taylorseer", 3)
    assert cache_of_options("magcache") == CacheSettings("magcache", 0.06)
    assert cache_of_options("fbcache", threshold=0.2).in_words == "fbcache 0.2"
