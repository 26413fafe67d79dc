"""`physcli compare --blind` and `physcli eval votes` as a user meets them."""

from __future__ import annotations

import json

import pytest
from blind_raters import sample_run, save_votes, vote

from physcli.tasks.blind.key import KEY_FILE, read_key


@pytest.fixture(scope="module")
def study(tmp_path_factory, run_physcli):
    folder = tmp_path_factory.mktemp("study")
    for name, tint in (("base", 0), ("with-a-rather-long-name", 60)):
        sample_run(folder / name, tint=tint, num=8)
    options = (
        "--raters",
        "6",
        "--question",
        "Which falls better?",
        "--exclude",
        "median-s=2",
        "--exclude",
        "repeats=0.1",
    )
    done = run_physcli("compare", "--blind", "base", "with-a-rather-long-name", *options, "--out", "page", cwd=folder)
    assert done.returncode == 0, done.stderr
    key = read_key(folder / "page" / KEY_FILE)
    for rater in range(1, 7):
        save_votes(folder / "page" / f"{rater}.json", key.page, rater, vote(key, rater, [0, 2.0], tie=0.3))
    return folder, done


def test_making_the_page_says_what_it_can_show(study):
    folder, done = study
    words = " ".join(done.stdout.split())
    assert "8 pairs; each of 6 raters is asked 10 times, repeats and checks among them." in words
    assert "48 votes on each pair of runs, too few for one of 65 %" in words
    assert "783 for 55 %, 194 for 60 %, 85 for 65 %" in words
    assert "took less than 2 s for half of the votes" in words
    assert "said the same in less than 10 % of the repeats" in words
    [page] = (folder / "page").glob("blind-*.html")
    assert page.name in words
    assert "<h1>Which falls better?</h1>" in page.read_text()


@pytest.mark.parametrize("columns", [80, 160])
def test_votes_as_tables(study, run_physcli, tmp_path, columns):
    files = [str(study[0] / "page" / f"{rater}.json") for rater in range(1, 7)]
    done = run_physcli("eval", "votes", *files, "--out", tmp_path / "out", columns=columns)
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split("is preferred to")[0].rsplit("\n", 1)[0]
    assert max(map(len, tables.splitlines())) <= columns
    assert "6 raters: Which falls better?" in tables
    assert "with-a-rather-long-name is preferred to base:" in done.stdout
    assert "Krippendorff" in tables
    assert "report.html" in done.stdout


def test_json_is_all_there_is_on_stdout(study, run_physcli, tmp_path):
    files = [f"{rater}.json" for rater in range(1, 7)]
    done = run_physcli("eval", "votes", *files, "--out", tmp_path / "out", "--json", cwd=study[0] / "page")
    found = json.loads(done.stdout)
    assert found["excluded"] == {}
    assert next(row["n"] for row in found["rows"] if row["metric"] == "preferred") == 48
    made = run_physcli("compare", "--blind", "base", "base", "--out", tmp_path / "page", "--json", cwd=study[0])
    assert json.loads(made.stdout)["page"].endswith(".html")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("compare", "base", "base", "--raters", "3"), 2, "--raters is for a blind study"),
        (("compare", "--blind", "base", "base", "--metric", "pc"), 2, "people judge the videos"),
        (("compare", "--blind", "base"), 2, "1 run to compare"),
        (("compare", "--blind", "base", "base", "--checks", "none"), 2, "--check-share 0 for none"),
        (("compare", "--blind", "base", "base", "--exclude", "median=1"), 2, "Did you mean 'median-s'?"),
        (("compare", "base", "base"), 1, "which gives no item a score"),
        (("compare", "page", "page"), 1, "is a run of `physcli compare --blind`"),
        (("eval", "votes"), 2, "Missing argument"),
        (("eval", "votes", "base/run.json"), 1, "is no file of votes"),
    ],
)
def test_errors_are_one_message(study, run_physcli, arguments, code, said):
    done = run_physcli(*arguments, cwd=study[0])
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (study[0] / "runs").exists()
