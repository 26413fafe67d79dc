"""`bench command`: two builds run in turn, each by its own physcli, and what cannot be compared is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import physcli
from physcli.errors import UsageError
from physcli.tasks.bench import against
from physcli.tasks.bench.against import OURS, THEIRS, Taken, bench_command, find_python, run_timed

SOURCE = Path(physcli.__file__).parents[1]


@pytest.fixture
def other(tmp_path):
    """An environment whose physcli is this one, with another version and a line in its log for each run."""
    log = tmp_path / "log.txt"
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\necho "$PHYSCLI_CACHE" >> {log}\nPYTHONPATH={SOURCE} exec {sys.executable} "$@"\n', encoding="utf-8"
    )
    python.chmod(0o755)
    return python, log


def test_both_run_in_turn_with_caches_of_their_own(other):
    python, log = other
    rows = bench_command(["recipes", "ls"], against=python.parents[1], rounds=2)
    found = {(row["group"], row["metric"]): row["value"] for row in rows}
    assert found.keys() == {
        *((name, metric) for name in (OURS, THEIRS) for metric in ("seconds", "least_seconds", "peak_mb")),
        ("ratio", "seconds"),
        ("ratio", "peak_mb"),
    }
    assert 0.2 < found["ratio", "peak_mb"] < 5
    assert found[OURS, "peak_mb"] > 10
    caches = log.read_text().split("\n")[1:-1]  # the first asked whether there is a physcli
    assert len(caches) == 3  # one is not timed
    assert len(set(caches)) == 1
    log.write_text("")
    bench_command(["recipes", "ls"], against=python, rounds=2, cold_cache=True)
    assert len(set(log.read_text().split("\n")[1:-1])) == 2


def test_ratio_is_of_the_rounds(monkeypatch, other):
    """3 to 1 in every round, whatever the rounds themselves take."""
    seconds = {True: iter([30.0, 3.0, 6.0, 9.0]), False: iter([10.0, 1.0, 2.0, 3.0])}
    monkeypatch.setattr(
        against, "run_timed", lambda *a, own, **b: Taken(next(seconds[own]), 100.0 if own else 50.0, 0, "")
    )
    rows = bench_command(["doctor"], against=other[0], rounds=3)
    [shown] = [row for row in rows if (row["group"], row["metric"]) == ("ratio", "seconds")]
    assert (shown["value"], shown["low"], shown["high"], shown["n"]) == (3, 3, 3, 3)
    [memory] = [row for row in rows if (row["group"], row["metric"]) == ("ratio", "peak_mb")]
    assert memory["value"] == 2


def test_a_mistyped_command_is_timed_too(tmp_path):
    found = run_timed(Path(sys.executable), ["study", "method"], place=tmp_path / "x", cache=tmp_path / "c", own=True)
    assert found.exit_code == 2
    assert "Did you mean 'methods'" in found.said


@pytest.mark.parametrize(
    ("arguments", "where", "said"),
    [
        ([], None, "No command"),
        (["doctor", "--out", "x"], None, "each run gets a folder of its own"),
        (["doctor"], "nowhere", "no Python there"),
    ],
)
def test_refused(arguments, where, said, other):
    with pytest.raises(UsageError, match=said):
        bench_command(arguments, against=other[0] if where is None else Path(where))


def test_an_environment_without_physcli(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(UsageError, match="has no physcli"):
        find_python(python)


def test_builds_that_end_differently(monkeypatch, other):
    monkeypatch.setattr(
        against, "run_timed", lambda *a, own, **b: Taken(1, 1, 0 if own else 2, "No such option: --new\n")
    )
    with pytest.raises(UsageError, match=r"exit codes 0, 2: the other said .*--new"):
        bench_command(["doctor"], against=other[0], rounds=1)
