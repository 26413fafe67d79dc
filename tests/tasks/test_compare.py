"""compare: what it finds, what it cannot find, what it refuses, and the page it writes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from physcli.errors import DataError, PhyscliError, UsageError
from physcli.progress import Reporter
from physcli.stats import holm, mcnemar_exact
from physcli.tasks.compare import CompareSettings, compare
from physcli.tasks.report import write_run_report


class Listener(Reporter):
    def __init__(self):
        self.said = []

    def note(self, message):
        self.said.append(message)

    def warn(self, message):
        self.said.append("Warning: " + message)


def run(*runs, out, listener=None, **settings):
    return compare(CompareSettings(tuple(map(str, runs)), **settings), out=out, reporter=listener)


def row_of(result, metric, compared=1, group="all"):
    label = result.sides[compared].label
    return next(r for r in result.rows if (r["of"], r["compared"], r["group"]) == (metric, label, group))


def flips(values, gained, lost):
    """The scores with so many of them turned to true, and so many to false: the change is exactly the difference."""
    values = list(values)
    no, yes = (np.flatnonzero(np.array(values) == state) for state in (False, True))
    for index in [*no[:gained], *yes[:lost]]:
        values[index] = not values[index]
    return values


def coins(num, seed=0):
    return [bool(value) for value in np.random.default_rng(seed).random(num) < 0.5]


# --- what is found ---


def test_identical_runs_do_not_differ(tmp_path, eval_run):
    scores = {"pc": coins(30), "motion_px": [float(x) for x in np.random.default_rng(1).random(30)]}
    eval_run(tmp_path / "a", scores, videos=True)
    eval_run(tmp_path / "b", scores, videos=True)
    listener = Listener()
    result = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out", listener=listener)
    for metric in ("pc", "motion_px"):
        row = row_of(result, metric)
        assert (row["value"], row["low"], row["high"], row["p"], row["p_holm"]) == (0, 0, 0, 1, 1)
        assert (row["wins"], row["ties"], row["losses"], row["verdict"]) == (0, 30, 0, "identical")
    assert result.verdicts(result.sides[1]) == ["b and a have the same scores in pc, motion_px."]
    assert "b and a: all videos are the same, byte for byte." in listener.said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The same file as a, byte for byte." in page
    assert "No difference" in page


def test_a_run_against_itself(tmp_path, eval_run):
    eval_run(tmp_path / "a", {"pc": coins(10)})
    result = run(tmp_path / "a", tmp_path / "a", out=tmp_path / "out")
    assert [side.label for side in result.sides] == ["a (1)", "a (2)"]
    assert row_of(result, "pc")["verdict"] == "identical"


def test_sets_that_differ_in_chroma_are_warned_of(tmp_path, eval_run):
    for name in ("full", "half", "older"):
        eval_run(tmp_path / name, {"pc": coins(4)}, videos=name == "older")
    for name, pixel_format in (("full", "yuv444p"), ("half", "yuv420p")):
        file = tmp_path / name / "items.jsonl"
        rows = [json.loads(line) | {"pixel_format": pixel_format} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listener = Listener()
    result = run(tmp_path / "full", tmp_path / "half", out=tmp_path / "out", listener=listener)
    [said] = result.flags
    assert "half and full differ in chroma in 4 of 4 pairs (yuv420p against yuv444p: 4)." in said
    assert f"Warning: {said}" in listener.said
    # A run that does not say: its files do.
    assert run(tmp_path / "full", tmp_path / "older", out=tmp_path / "same").flags == []
    assert len(run(tmp_path / "half", tmp_path / "older", out=tmp_path / "other").flags) == 1


def test_three_points_are_found_at_2000(tmp_path, eval_run):
    base = coins(2000)
    eval_run(tmp_path / "base", {"pc": base})
    eval_run(tmp_path / "new", {"pc": flips(base, 110, 50)})  # 60 of 2,000 are 3 points; 8 % change
    result = run(tmp_path / "base", tmp_path / "new", out=tmp_path / "out")
    row = row_of(result, "pc")
    assert row["value"] == pytest.approx(0.03)
    assert 0 < row["low"] < 0.03 < row["high"]
    assert row["p"] == pytest.approx(mcnemar_exact(110, 50)) == row["p_holm"]
    assert (row["wins"], row["ties"], row["losses"], row["n"]) == (110, 1840, 50, 2000)
    assert row["smallest_detectable"] < 0.03
    assert row["verdict"] == "better"
    assert result.verdicts(result.sides[1]) == ["new is better than base in pc (+3.0 points)."]


def test_three_points_are_not_found_at_100_and_that_is_said(tmp_path, eval_run):
    base = coins(100)
    eval_run(tmp_path / "base", {"pc": base})
    eval_run(tmp_path / "new", {"pc": flips(base, 6, 3)})
    result = run(tmp_path / "base", tmp_path / "new", out=tmp_path / "out")
    row = row_of(result, "pc")
    assert row["value"] == pytest.approx(0.03)
    assert row["low"] < 0 < row["high"]
    assert (row["verdict"], row["p_holm"] > 0.05, row["smallest_detectable"] > 0.07) == ("not shown", True, True)
    said = " ".join(result.verdicts(result.sides[1]))
    assert "No difference between new and base is shown in pc (+3.0 points)." in said
    assert "100 pairs cannot reliably show (8 times in 10) differences as small as those in pc" in said
    assert "100 pairs cannot reliably show" in (tmp_path / "out" / "report.html").read_text()


def test_eight_pairs_decide_nothing(tmp_path, eval_run):
    base = [False] * 8
    eval_run(tmp_path / "base", {"pc": base})
    eval_run(tmp_path / "new", {"pc": flips(base, 5, 0)})
    result = run(tmp_path / "base", tmp_path / "new", out=tmp_path / "out")
    assert row_of(result, "pc")["verdict"] == "not shown"  # five of five wins: p = .0625
    assert row_of(result, "pc")["smallest_detectable"] > 0.75
    assert "8 pairs cannot reliably show" in " ".join(result.verdicts(result.sides[1]))


def test_five_pairs_cannot_even_show_the_largest_difference(tmp_path, eval_run):
    scores = [float(x) for x in np.random.default_rng(0).random(5)]
    eval_run(tmp_path / "a", {"pc": [False] * 5, "motion_px": scores})
    eval_run(tmp_path / "b", {"pc": [True] * 5, "motion_px": [score + 1 for score in scores]})
    result = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    for metric in ("pc", "motion_px"):
        row = row_of(result, metric)
        assert (row["p"], row["smallest_detectable"], row["verdict"]) == (0.0625, None, "not shown")
    assert "So few prompts can show no difference at all, however large." in result.verdicts(result.sides[1])


def test_rows_carry_the_whole_result(tmp_path, eval_run):
    base = coins(60)
    eval_run(tmp_path / "base", {"pc": base, "sa": base}, rater="tiny")
    eval_run(tmp_path / "new", {"pc": flips(base, 20, 2), "sa": flips(base, 9, 2)}, rater="tiny")
    result = run(tmp_path / "base", tmp_path / "new", out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [(row["metric"], row["group"]) for row in rows] == [
        ("pc_difference", "all"),
        ("pc_difference", "a"),
        ("pc_difference", "b"),
        ("sa_difference", "all"),
        ("sa_difference", "a"),
        ("sa_difference", "b"),
    ]
    head = rows[0]
    assert head["subject"] == "new − base"
    assert (head["test"], head["rater"], head["benchmark"], head["num_clusters"]) == ("mcnemar", "tiny", "laws", 60)
    assert head["compared_value"] - head["reference_value"] == pytest.approx(head["value"])
    assert [row["p_holm"] for row in rows if row["group"] == "all"] == pytest.approx(
        holm([mcnemar_exact(20, 2), mcnemar_exact(9, 2)])
    )
    assert all(row["p"] is None and row["verdict"] is None for row in rows if row["group"] != "all")
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert len(items) == 60
    assert np.mean([item["pc_difference"] for item in items]) == pytest.approx(head["value"])
    assert result.files().keys() == {"report", "rows", "pairs"}


def test_several_compared_runs_share_one_correction(tmp_path, eval_run):
    base = coins(60)
    for name, gained in (("base", 0), ("new", 12), ("newer", 9)):
        eval_run(tmp_path / name, {"pc": flips(base, gained, 1 if gained else 0)})
    result = run(*(tmp_path / name for name in ("base", "new", "newer")), out=tmp_path / "out")
    p = [row_of(result, "pc", compared)["p"] for compared in (1, 2)]
    assert [row_of(result, "pc", compared)["p_holm"] for compared in (1, 2)] == pytest.approx(holm(p))


def test_only_the_metrics_asked_for(tmp_path, eval_run):
    eval_run(tmp_path / "a", {"pc": coins(20), "sa": coins(20)})
    eval_run(tmp_path / "b", {"pc": coins(20, 1), "sa": coins(20, 1)})
    result = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out", metrics=("sa",))
    assert {row["of"] for row in result.rows} == {"sa"}
    with pytest.raises(UsageError, match="Unknown metric: 'sb'"):
        run(tmp_path / "a", tmp_path / "b", out=tmp_path / "other", metrics=("sb",))


def test_prompts_are_the_clusters(tmp_path, eval_run):
    """Four videos a prompt that agree are one piece of evidence, not four."""
    base = [False] * 40
    new = [True] * 12 + [False] * 28  # all videos of three prompts
    for per_prompt, clusters, wins in ((4, 10, 3), (1, 40, 12)):
        eval_run(tmp_path / f"base{per_prompt}", {"pc": base}, per_prompt=per_prompt)
        eval_run(tmp_path / f"new{per_prompt}", {"pc": new}, per_prompt=per_prompt)
        result = run(tmp_path / f"base{per_prompt}", tmp_path / f"new{per_prompt}", out=tmp_path / f"out{per_prompt}")
        row = row_of(result, "pc")
        assert (row["num_clusters"], row["wins"], row["n"]) == (clusters, wins, 40)
        assert row["p"] == pytest.approx(mcnemar_exact(wins, 0))


def test_lower_may_be_better(tmp_path, eval_run):
    base = [float(x) for x in np.random.default_rng(0).random(50)]
    for name, scores in (("a", base), ("b", [x - 0.2 for x in base])):
        eval_run(
            tmp_path / name, {"energy_error": scores, "speed": scores}, higher={"energy_error": False, "speed": None}
        )
    result = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    error, speed = row_of(result, "energy_error"), row_of(result, "speed")
    assert (error["verdict"], error["wins"], error["losses"], error["test"]) == ("better", 50, 0, "sign flips")
    assert (speed["verdict"], speed["wins"], speed["losses"]) == ("lower", 0, 50)
    assert error["kind"] == "score"


def test_scores_that_are_missing_leave_their_pair_out(tmp_path, eval_run):
    base = coins(40)
    ours, theirs = list(base), flips(base, 4, 1)
    ours[:3] = [None] * 3
    theirs[2:8] = [None] * 6
    eval_run(tmp_path / "a", {"pc": base, "law/permanence": ours, "law/inertia": [None] * 40})
    eval_run(tmp_path / "b", {"pc": base, "law/permanence": theirs, "law/inertia": coins(40)})
    result = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    row = row_of(result, "law/permanence")
    assert (row["n"], row["num_missing"]) == (32, 8)
    assert row["reference_value"] == pytest.approx(np.mean([float(x) for x in base[8:]]))
    assert (row_of(result, "pc")["n"], row_of(result, "pc")["num_missing"]) == (40, 0)
    empty = row_of(result, "law/inertia")
    assert (empty["n"], empty["value"], empty["p_holm"], empty["verdict"]) == (0, None, None, "no scores")
    assert "No pair of b and a has scores of law/inertia." in result.verdicts(result.sides[1])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "law/permanence: 8 of 40" in page


# --- the guard ---


def test_commonsense_that_rises_while_motion_falls_is_flagged(tmp_path, eval_run):
    base = coins(80)
    still = [False] * 60 + [True] * 20
    eval_run(tmp_path / "base", {"pc": base, "dynamic_degree": [True] * 80})
    eval_run(tmp_path / "still", {"pc": flips(base, 20, 0), "dynamic_degree": still})
    eval_run(tmp_path / "good", {"pc": flips(base, 20, 0), "dynamic_degree": [True] * 80})
    listener = Listener()
    result = run(*(tmp_path / n for n in ("base", "still", "good")), out=tmp_path / "out", listener=listener)
    assert len(result.flags) == 1
    assert result.flags[0].startswith("still: pc rises (+25.0 points) while dynamic_degree falls (-75.0 points).")
    assert f"Warning: {result.flags[0]}" in listener.said
    assert json.loads((tmp_path / "out" / "run.json").read_text())["flags"] == result.flags
    assert "Flagged" in (tmp_path / "out" / "report.html").read_text()


def test_motion_that_falls_within_noise_is_no_flag_while_commonsense_is_not_better(tmp_path, eval_run):
    base = coins(80)
    eval_run(tmp_path / "a", {"pc": base, "dynamic_degree": base})
    eval_run(tmp_path / "b", {"pc": flips(base, 3, 2), "dynamic_degree": flips(base, 2, 3)})
    assert run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out").flags == []


def test_who_plays_which_part_is_said_by_the_rows(tmp_path, eval_run):
    """The guard and the ranking ask for roles, not for names."""
    base = coins(80)
    roles = {"plausible": "commonsense", "speed": "motion", "overall": "headline"}
    for name, gained, speed in (("base", 0, 1.0), ("still", 20, 0.0)):
        scores = {"plausible": flips(base, gained, 0), "speed": [speed] * 80, "overall": base}
        folder = eval_run(tmp_path / name, scores)
        rows = json.loads((folder / "metrics.json").read_text())
        kinds = {"plausible": "rate", "speed": "score", "overall": "rate"}
        rows = [row | {"kind": kinds[row["metric"]], "role": roles[row["metric"]]} for row in rows]
        (folder / "metrics.json").write_text(json.dumps(rows))
    result = run(tmp_path / "base", tmp_path / "still", out=tmp_path / "out")
    assert result.flags[0].startswith("still: plausible rises (+25.0 points) while speed falls (-1).")
    assert "ranked by overall" in (tmp_path / "out" / "report.html").read_text()


def test_a_unit_is_that_of_the_metric_whatever_its_values_are(tmp_path, eval_run):
    """Grades that happen to be 1 are neither per cent nor passes."""
    for name, grades in (("a", [1.0] * 20), ("b", [1.0] * 10 + [2.0] * 10), ("c", [1.0] * 20)):
        eval_run(tmp_path / name, {"sa_grade": grades, "sa_mean": grades, "pc": [True] * 20})
    result = run(*(tmp_path / name for name in "abc"), out=tmp_path / "out")
    for compared in (1, 2):
        for metric in ("sa_grade", "sa_mean"):
            row = row_of(result, metric, compared)
            assert (row["kind"] == "rate", row["binary"], row["test"]) == (False, False, "sign flips")
        assert row_of(result, "pc", compared)["kind"] == "rate"


# --- several training seeds ---


def test_training_seeds_are_one_side(tmp_path, eval_run):
    base = coins(60)
    for number, (gained, lost) in enumerate([(20, 0), (4, 2), (9, 9)]):
        eval_run(tmp_path / f"repa-seed{number}", {"pc": flips(base, gained, lost)})
        eval_run(tmp_path / f"sft-seed{number}", {"pc": base})
    sides = [",".join(str(tmp_path / f"{name}-seed{number}") for number in range(3)) for name in ("sft", "repa")]
    result = run(*sides, out=tmp_path / "out")
    assert [side.label for side in result.sides] == ["sft ×3", "repa ×3"]
    row = row_of(result, "pc")
    assert (row["test"], row["training_seeds"]) == ("seeds", [3, 3])
    assert row["value"] == pytest.approx((20 + 2 + 0) / 3 / 60)
    assert row["low"] < row["value"] < row["high"]
    single = row_of(run(tmp_path / "sft-seed0", tmp_path / "repa-seed0", out=tmp_path / "one"), "pc")
    assert row["high"] - row["low"] > single["high"] - single["low"]  # the seeds disagree
    named = run(f"control={sides[0]}", f"new={tmp_path / 'repa-seed0'}", out=tmp_path / "named")
    assert [side.label for side in named.sides] == ["control", "new"]
    assert "new is one training run" in named.caption(named.sides[1])


# --- what is refused ---


def test_different_items_are_refused_unless_they_shall_be_intersected(tmp_path, eval_run):
    eval_run(tmp_path / "a", {"pc": coins(20)}, prompts=[f"scene {n}" for n in range(20)])
    eval_run(tmp_path / "b", {"pc": coins(18)}, prompts=[f"scene {n}" for n in range(2, 20)])
    with pytest.raises(PhyscliError) as refused:
        run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    said = str(refused.value)
    assert f"20 in {tmp_path / 'a'}, 18 in {tmp_path / 'b'}; 18 are in all of them" in said
    assert f'only in {tmp_path / "a"}: "scene 0", index 0' in said
    assert "--intersect compares the 18" in said
    assert not (tmp_path / "out").exists()
    listener = Listener()
    result = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out", intersect=True, listener=listener)
    assert row_of(result, "pc")["n"] == 18
    assert "--intersect: 2 of 20 items are dropped, because not every run holds them." in listener.said
    assert "2 of 20 items are dropped" in (tmp_path / "out" / "report.html").read_text()


def test_same_prompts_with_other_seeds(tmp_path, eval_run):
    eval_run(tmp_path / "a", {"pc": coins(20)}, seed=0)
    eval_run(tmp_path / "b", {"pc": coins(20, 1)}, seed=1)
    for intersect in (False, True):
        with pytest.raises(PhyscliError, match="0 are in all of them") as refused:
            run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out", intersect=intersect)
        assert "--ignore-seeds" in str(refused.value)
    result = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out", ignore_seeds=True)
    assert row_of(result, "pc")["n"] == 20


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("benchmark", ("laws", "videophy"), "different benchmarks"),
        ("rater", ("tiny", "videophy_2_auto"), "different raters"),
        ("rater", (None, "tiny"), "different raters"),
    ],
)
def test_scores_of_different_kinds_are_refused(tmp_path, eval_run, column, values, said):
    for name, value in zip("ab", values, strict=True):
        eval_run(tmp_path / name, {"pc": coins(8)}, **{column: value})
    with pytest.raises(PhyscliError, match=said) as refused:
        run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    assert all(str(value or "none") in str(refused.value) for value in values)


def test_runs_without_a_metric_in_common(tmp_path, eval_run):
    eval_run(tmp_path / "a", {"pc": coins(8)})
    eval_run(tmp_path / "b", {"sa": coins(8)})
    with pytest.raises(PhyscliError, match="no metric in common"):
        run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")


def _spoil(folder, what):
    record = json.loads((folder / "run.json").read_text())
    lines = (folder / "items.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    if what == "no run.json":
        (folder / "run.json").unlink()
    elif what == "no items":
        (folder / "items.jsonl").unlink()
    elif what == "empty items":
        (folder / "items.jsonl").write_text("\n")
    elif what == "duplicate":
        (folder / "items.jsonl").write_text("\n".join([*lines, lines[1]]))
    elif what == "no metrics":
        (folder / "metrics.json").unlink()
    elif what == "aggregates only":
        (folder / "metrics.json").write_text((folder / "metrics.json").read_text().replace('"pc"', '"elo"'))
    elif what.startswith("command "):
        (folder / "run.json").write_text(json.dumps(record | {"command": what.removeprefix("command ")}))
    elif what.startswith("status "):
        (folder / "run.json").write_text(json.dumps(record | {"status": what.removeprefix("status ")}))
    else:
        field, value = what.split(" ", 1)
        changed = {name: entry for name, entry in row.items() if name != field}
        if value != "gone":
            changed[field] = json.loads(value)
        (folder / "items.jsonl").write_text("\n".join([lines[0], json.dumps(changed), *lines[2:]]))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no run.json", "is not a run directory"),
        ("no items", "items.jsonl is missing"),
        ("empty items", "items.jsonl is empty"),
        ("duplicate", 'line 9: the same item as line 2: "A red ball rolls, number 1."'),
        ("no metrics", "not finished: its metrics.json cannot be read"),
        ("aggregates only", "no score of a single item"),
        ("command sample", "physcli eval laws --videos"),
        ("command bench probe", "gives no item a score"),
        ("status running", "not finished: its status is 'running'"),
        ("status interrupted", "it goes on where it stopped"),
        ("prompt gone", "line 2: prompt is missing"),
        ('prompt "\\ud800"', "line 2: the prompt holds half a surrogate pair"),
        ("index null", "line 2: index is null"),
        ('seed "x"', 'line 2: seed is "x"'),
        ('pc "yes"', 'line 2: pc is "yes"'),
        ("pc NaN", "line 2: pc is NaN"),
    ],
)
def test_runs_that_cannot_be_read(tmp_path, eval_run, what, said):
    eval_run(tmp_path / "a", {"pc": coins(8)})
    _spoil(eval_run(tmp_path / "b", {"pc": coins(8)}), what)
    with pytest.raises(PhyscliError) as refused:
        run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_names_that_are_wrong(tmp_path, eval_run):
    a = eval_run(tmp_path / "a", {"pc": coins(8)})
    for runs, said in (
        ((a,), "1 run to compare"),
        ((a, tmp_path / "nothing"), "is not there"),
        ((a, f"{a},"), "names no run"),
        ((a, f"{a},{a}"), "twice"),
        ((f"x={a}", f"x={a}"), "Two sides are called 'x'"),
        ((a, f"{a}::someone"), "Unknown subject"),
    ):
        with pytest.raises(PhyscliError, match=re.escape(said)):
            run(*runs, out=tmp_path / "out")


def test_a_folder_whose_name_looks_like_syntax(tmp_path, eval_run):
    for name in ("lr=1,warm::up", "lr=2,warm::up"):
        eval_run(tmp_path / name, {"pc": coins(8)})
    result = run(tmp_path / "lr=1,warm::up", tmp_path / "lr=2,warm::up", out=tmp_path / "out")
    assert [side.label for side in result.sides] == ["lr=1,warm::up", "lr=2,warm::up"]


def test_settings_of_the_scoring_that_differ_are_said(tmp_path, eval_run):
    for name, threshold in (("a", 0.5), ("b", 0.6)):
        folder = eval_run(tmp_path / name, {"pc": coins(8)})
        record = json.loads((folder / "run.json").read_text())
        record["settings"]["threshold"] = threshold
        (folder / "run.json").write_text(json.dumps(record))
    listener = Listener()
    run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out", listener=listener)
    assert any("not scored alike" in line and "threshold: 0.5, 0.6" in line for line in listener.said)


# --- probes ---


def _probe_run(folder, correct, *, subject="videomae-tiny", data="d", block=3):
    """As `physcli probe` leaves it: two scenarios of unequal size, twins, two controls."""
    folder.mkdir()
    rows, metrics = [], []
    names = [("collide" if number < 8 else "roll", number // 2, number % 2) for number in range(len(correct))]
    for who, right in ((subject, correct), ("state", [True] * len(correct)), ("pixels", coins(len(correct)))):
        for (scenario, pair, label), hit in zip(names, right, strict=True):
            row = {"subject": who, "split": "test", "name": f"{scenario}_{pair}_{label}", "scenario": scenario}
            rows.append(row | {"pair": f"{scenario}_{pair}", "label": label, "p_true": 0.5, "pred": 0, "correct": hit})
        scores = [np.mean([h for n, h in zip(names, right, strict=True) if n[0] == s]) for s in ("collide", "roll")]
        for metric in ("accuracy", "balanced_accuracy"):
            common = {"benchmark": "physion", "task": "ocp", "subject": who, "split": "test", "group": "all"}
            common |= {"block": block}
            metrics.append(common | {"metric": metric, "value": float(np.mean(scores)), "higher_is_better": True})
    (folder / "items.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    record = {"command": "probe physion", "settings": {"models": [subject]}, "inputs": {"data": data}}
    (folder / "run.json").write_text(json.dumps(record | {"status": "finished"}))
    return folder


def test_probes_are_compared_by_pairs_and_scenarios(tmp_path):
    before = [False, True] * 14
    after = [True] * 8 + [False, True] * 10  # all of collide's 8 right, roll's 20 as before
    _probe_run(tmp_path / "before", before)
    _probe_run(tmp_path / "after", after)
    listener = Listener()
    result = run(tmp_path / "before", tmp_path / "after", out=tmp_path / "out", listener=listener)
    assert [side.label for side in result.sides] == ["before::videomae-tiny", "after::videomae-tiny"]
    row = row_of(result, "accuracy")
    assert row["value"] == pytest.approx(0.25)  # the mean over scenarios: .5 in one of two
    assert (row["num_clusters"], row["wins"], row["n"]) == (14, 4, 28)
    assert {r["group"] for r in result.rows} == {"all", "collide", "roll"}
    assert "Without a value per item, so not compared: balanced_accuracy." in listener.said
    assert result.unit == "pairs"
    control = run(tmp_path / "before", f"{tmp_path / 'before'}::state", out=tmp_path / "control")
    assert [side.label for side in control.sides] == ["videomae-tiny", "state"]
    assert row_of(control, "accuracy")["compared_value"] == 1


def test_probes_of_other_clips_are_refused(tmp_path):
    _probe_run(tmp_path / "a", coins(20))
    _probe_run(tmp_path / "b", coins(20), data="other")
    with pytest.raises(PhyscliError, match="not the same content"):
        run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")


def test_a_probe_of_two_models_asks_which(tmp_path):
    _probe_run(tmp_path / "a", coins(20))
    lines = (tmp_path / "a" / "items.jsonl").read_text()
    (tmp_path / "a" / "items.jsonl").write_text(lines + "\n" + lines.replace("videomae-tiny", "other"))
    with pytest.raises(UsageError, match="2 models: videomae-tiny, other"):
        run(tmp_path / "a", tmp_path / "a", out=tmp_path / "out")


# --- the page ---


class Page(HTMLParser):
    """Texts, elements and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.elements = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


HOSTILE = [
    'He said "stop" & <script>alert(1)</script>',
    "first line\nsecond line",
    "</bdi></article><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "nul \x00, escape \x1b[31m",
    "{{ 7 * 7 }} ${7} <!-- -->",
    "",
]


def test_everything_from_outside_is_escaped(tmp_path, eval_run):
    name = '<script>alert("run")</script>'.replace("/", "")
    scores = {"pc": coins(7), "<b>law</b>": coins(7, 1)}
    other = {metric: [not value for value in values] for metric, values in scores.items()}
    options = {"prompts": HOSTILE, "groups": ("<i>a</i>", "b"), "rater": "<u>r</u>", "videos": True}
    eval_run(tmp_path / "base", scores, **options)
    folder = eval_run(tmp_path / name, other, **options)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"settings": {"<s>": "<script>alert(2)</script>"}}))
    run(tmp_path / "base", folder, out=tmp_path / "out", cases=7)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert {tag for tag, _ in page.elements}.isdisjoint({"b>", "i", "u", "s", "img", "iframe", "link", "object"})
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for prompt in HOSTILE[:4] + HOSTILE[5:6]:
        assert prompt in page.texts
    assert "nul \ufffd, escape \ufffd[31m" in page.texts
    assert "(empty prompt)" in page.texts


def test_nothing_is_loaded_from_elsewhere(tmp_path, eval_run):
    for name, seed in (("a", 0), ("b", 1)):
        eval_run(tmp_path / name, {"pc": coins(6, seed)}, videos=True)
    run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    sources = [a[key] for _, a in page.elements for key in ("src", "href", "srcset", "poster") if key in a]
    assert sources
    assert all(source.startswith("data:video/mp4;base64,") for source in sources)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_videos_are_left_out_above_the_size_and_that_is_said(tmp_path, eval_run):
    base = coins(12)
    eval_run(tmp_path / "a", {"pc": base}, videos=True)
    eval_run(tmp_path / "b", {"pc": flips(base, 4, 4)}, videos=True, tint=40)
    pages = {}
    for size in (24.0, 0.02, 0.0):
        run(tmp_path / "a", tmp_path / "b", out=tmp_path / f"out{size}", cases=2, max_video_mb=size)
        pages[size] = (tmp_path / f"out{size}" / "report.html").read_text()
    counts = {size: page.count("<video") for size, page in pages.items()}
    assert counts[24.0] == 10  # two worst, two best, one unchanged, of two runs
    assert 0 < counts[0.02] < 10
    assert counts[0.0] == 0
    assert "cases are left out" not in pages[24.0]
    assert "The videos of 5 cases are left out" in pages[0.0]
    assert pages[0.02].index("Worst no. 1") < pages[0.02].index("Best no. 1") < pages[0.02].index("Worst no. 2")
    assert "5 of 12 pairs" in pages[0.0]


def test_videos_that_cannot_be_shown(tmp_path, eval_run):
    base = coins(6)
    eval_run(tmp_path / "a", {"pc": base}, videos=True)
    b = eval_run(tmp_path / "b", {"pc": [not value for value in base]}, videos=True)
    (b / "videos" / "0.mp4").write_bytes((b / "videos" / "0.mp4").read_bytes()[:200])
    (b / "videos" / "1.mp4").unlink()
    run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Cannot be shown." in page
    assert "The file is not there:" in page
    assert page.count("<video") == 10


def test_the_page_of_one_run(tmp_path, eval_run):
    pc = [True] * 5 + [None] + [False] * 6
    folder = eval_run(tmp_path / "a", {"pc": pc, "motion_px": [0.5] * 12}, videos=True, prompts=[*HOSTILE, *"abcde"])
    path = write_run_report(str(folder), cases=2)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(page.texts)
    assert "Worst no. 1" in text
    assert "Best no. 1" in text
    assert "45.5" in text  # 5 of 11
    assert [tag for tag, _ in page.elements].count("video") == 4
    assert [tag for tag, _ in page.elements].count("script") == 1


# --- the run directory ---


def test_the_same_call_again_and_other_settings(tmp_path, eval_run):
    a, b = (eval_run(tmp_path / name, {"pc": coins(20, seed)}) for seed, name in enumerate("ab"))
    first = run(a, b, out=tmp_path / "out")
    again = run(a, b, out=tmp_path / "out")
    assert first.rows == again.rows
    with pytest.raises(UsageError, match="holds another run"):
        run(b, a, out=tmp_path / "out")
    turned = compare(CompareSettings((str(b), str(a))), out=tmp_path / "out", overwrite=True)
    assert row_of(turned, "pc")["value"] == -row_of(first, "pc")["value"]
    items = (a / "items.jsonl").read_text()
    (a / "items.jsonl").write_text(items.replace("true", "false"))
    with pytest.raises(UsageError, match="holds another run"):
        compare(CompareSettings((str(b), str(a))), out=tmp_path / "out")


def test_bad_json_lines_are_named(tmp_path, eval_run):
    a = eval_run(tmp_path / "a", {"pc": coins(8)})
    (a / "items.jsonl").write_text((a / "items.jsonl").read_text() + "{")
    with pytest.raises(DataError, match="line 9: not valid JSON"):
        run(a, a, out=tmp_path / "out")
