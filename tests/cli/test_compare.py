"""`physcli compare` and `physcli eval agreement` as a user meets it."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def run(run_physcli):
    return lambda *arguments, command=("compare",), **options: run_physcli(*command, *arguments, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, eval_run):
    folder = tmp_path_factory.mktemp("runs")
    base = [number % 3 == 0 for number in range(60)]
    scores = {"law/no_energy_from_nothing": base, "pc": base, "dynamic_degree": [True] * 60}
    eval_run(folder / "base", scores, prompts=[f"<script> {number}" for number in range(60)])
    better = [number % 3 != 1 for number in range(60)]
    still = {"law/no_energy_from_nothing": base, "pc": better, "dynamic_degree": [False] * 30 + [True] * 30}
    eval_run(folder / "new", still, prompts=[f"<script> {number}" for number in range(60)])
    eval_run(folder / "short", {"pc": base[:50]}, prompts=[f"<script> {number}" for number in range(50)])
    return folder


@pytest.mark.parametrize("columns", [80, 160])
def test_the_table_fits(run, runs, tmp_path, columns):
    done = run(runs / "base", runs / "new", "--out", tmp_path / "out", columns=columns)
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("Interval:")[0]
    assert max(map(len, table.splitlines())) <= columns
    assert "new against base, the reference (60 pairs; rates in %)" in table
    line = next(line for line in table.splitlines() if line.split()[:1] == ["pc"])
    assert "+33.3" in line
    assert line.split()[-1] == "better"
    assert (" 20 / 40 / 0 " in line) == (columns == 160)
    assert "permanence" not in table
    words = " ".join(table.split())
    assert ("law/no_energy_from_nothing" in words) == (columns == 160)
    assert "new is better than base in pc (+33.3 points)." in done.stdout
    assert "report.html" in done.stdout
    assert "pc rises (+33.3 points) while dynamic_degree falls" in " ".join(done.stderr.split())


def test_json_is_all_there_is_on_stdout(run, runs, tmp_path):
    done = run(runs / "base", runs / "new", "--out", tmp_path / "out", "--metric", "pc", "--json")
    found = json.loads(done.stdout)
    assert [(row["of"], row["verdict"]) for row in found["rows"] if row["group"] == "all"] == [("pc", "better")]
    assert found["rows"] == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["flags"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "Missing argument"),
        (("base",), 2, "1 run to compare"),
        (("base", "nothing"), 1, "nothing is not there"),
        (("base", "."), 1, "is not a run directory"),
        (("base", "short"), 1, "--intersect compares the 50"),
        (("base", "new", "--metric", "pcc"), 2, "Did you mean 'pc'?"),
        (("base", "new", "--cases", "-1"), 2, "--cases"),
    ],
)
def test_errors_are_one_message(run, runs, arguments, code, said):
    done = run(*arguments, cwd=runs)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (runs / "runs").exists()


def test_intersect_says_what_is_dropped(run, runs, tmp_path):
    done = run(runs / "base", runs / "short", "--intersect", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "10 of 60 items are dropped" in " ".join(done.stderr.split())
    assert "50 pairs" in done.stdout
    assert "Not in every run, so not compared" in " ".join(done.stderr.split())


@pytest.mark.parametrize("columns", [80, 160])
def test_agreement(run, runs, eval_run, tmp_path, columns):
    for name, rater in (("truth", None), ("judge", "a-long-name/of_a_rater_of_videos")):
        verdicts = [rater is not None or number % 2 == 0 for number in range(8)]
        eval_run(tmp_path / name, {"sa": verdicts, "pc": verdicts, "joint": verdicts}, videos=True, rater=rater)
    command = ("eval", "agreement")
    done = run("truth", "judge", "--out", "out", columns=columns, cwd=tmp_path, command=command)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.split("rows  ")[0].splitlines())) <= columns
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["PC", "4", "0", "4", "0", "0"] in lines
    refused = run(runs / "base", runs / "short", cwd=tmp_path, command=command)
    assert refused.returncode == 1
    assert "10 of 60 videos of" in " ".join(refused.stderr.split())
