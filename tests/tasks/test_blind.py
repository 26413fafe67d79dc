"""The blind study: who sees what, what the page hides, what votes say, what is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from blind_raters import sample_run, save_votes, trials_of, vote

from physcli.benchmarks.preferences import crossed_intervals
from physcli.data.video import read_video, video_info
from physcli.errors import DataError, PhyscliError, UsageError
from physcli.progress import Reporter
from physcli.tasks.blind import page as page_task
from physcli.tasks.blind import votes as votes_task
from physcli.tasks.blind.ballots import Ballot, Vote
from physcli.tasks.blind.key import KEY_FILE, RULES, read_key, read_rules
from physcli.tasks.blind.page import BlindSettings, make_blind_page
from physcli.tasks.blind.schedule import all_pairs, schedule
from physcli.tasks.blind.votes import VotesSettings, excluded_by, score_votes

HOSTILE = "</script><script>document.title = 'taken'</script> \"&'"


class Listener(Reporter):
    def __init__(self):
        self.said = []

    def note(self, message):
        self.said.append(message)

    def warn(self, message):
        self.said.append("Warning: " + message)


def make(*runs, out, listener=None, overwrite=False, **settings):
    return make_blind_page(
        BlindSettings(tuple(map(str, runs)), **settings), out=out, reporter=listener, overwrite=overwrite
    )


def score(*files, out, page=None, listener=None):
    settings = VotesSettings(tuple(map(str, files)), None if page is None else str(page))
    return score_votes(settings, out=out, reporter=listener)


@pytest.fixture(autouse=True)
def few_resamples(request, monkeypatch):
    """Tests that look at intervals are slow and have all of them."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(votes_task, "crossed_intervals", partial(crossed_intervals, num_resamples=100))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    prompts = [HOSTILE, *(f"A block moves, number {number}." for number in range(1, 6))]
    for name, tint in (("run-alpha", 0), ("run-beta", 60), ("run-gamma", 120)):
        sample_run(folder / name, tint=tint, prompts=prompts)
    return folder


@pytest.fixture(scope="module")
def study(runs):
    make(runs / "run-alpha", runs / "run-beta", out=runs / "page", raters=8)
    return runs / "page"


@pytest.fixture(scope="module")
def key(study):
    return read_key(study / KEY_FILE)


# --- who sees what ---


@pytest.mark.parametrize(("items", "num_runs", "per_rater"), [(20, 2, 20), (7, 3, 21), (30, 3, 17), (5, 4, 1)])
def test_sides_and_pairs_are_balanced(items, num_runs, per_rater):
    pairs = all_pairs(items, num_runs, seed=1)
    assert len(set(pairs)) == len(pairs) == items * num_runs * (num_runs - 1) // 2
    seen, sides = Counter(), Counter()
    for rater in range(40):
        shown = schedule(pairs, rater, per_rater=per_rater, repeat_share=0.1, num_checks=2, seed=1)
        numbers = [s.number for s in shown if s.kind == "pair"]
        assert len(set(numbers)) == len(numbers) == per_rater
        by_match = Counter()
        for s in shown:
            if s.kind == "pair":
                seen[s.number] += 1
                sides[s.number] += 1 if s.swapped else -1
                by_match[pairs[s.number].first, pairs[s.number].second] += 1 if s.swapped else -1
        assert max(map(abs, by_match.values())) <= 1
        assert abs(sum(by_match.values())) <= 1
        repeats = [(place, s) for place, s in enumerate(shown) if s.kind == "repeat"]
        assert len(repeats) == max(1, round(0.1 * per_rater))
        for place, s in repeats:
            [(before, first)] = [(at, o) for at, o in enumerate(shown) if (o.kind, o.number) == ("pair", s.number)]
            assert before < place
            assert first.swapped != s.swapped
        assert sorted(s.number for s in shown if s.kind == "check") == [0, 1]
    assert not any(sides.values())  # over each two raters
    assert max(seen.values()) - min(seen[number] for number in range(len(pairs))) <= 2
    assert schedule(pairs, 3, per_rater=per_rater, repeat_share=0.1, num_checks=2, seed=1) == schedule(
        pairs, 3, per_rater=per_rater, repeat_share=0.1, num_checks=2, seed=1
    )


def test_a_prompt_comes_back_late_with_three_runs():
    pairs = all_pairs(30, 3, seed=0)
    for item in range(30):
        places = [number for number, pair in enumerate(pairs) if pair.item == item]
        assert np.diff(places).min() > 20


# --- what the page hides ---


def test_the_page_says_nothing_of_whose_the_videos_are(runs, study, key):
    text = next(study.glob("blind-*.html")).read_text()
    words = re.sub(r"data:video/mp4;base64,[A-Za-z0-9+/=]+", "", text)
    for secret in ("alpha", "beta", str(runs), "repeat", "check", "shuffled", "seed", ".mp4"):
        assert secret not in words.split("<body>")[1].split("<script>")[0], secret
    assert key.page in text
    assert key.record["salt"] not in text
    assert set(re.findall(r'id="v-(\w+)"', text)) == set(key.videos)
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    assert "<script>document.title" not in text
    kinds = Counter(trial["kind"] for trial in trials_of(key, 1))
    assert kinds == {"pair": 6, "repeat": 1, "check": 1}


def test_videos_are_encoded_alike_and_checks_are_broken(study, key, tmp_path):
    import base64

    text = next(study.glob("blind-*.html")).read_text()
    found = dict(re.findall(r'id="v-(\w+)" src="data:video/mp4;base64,([A-Za-z0-9+/=]+)"', text))
    frames = {}
    for name, content in found.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(base64.b64decode(content))
        info = video_info(path)
        assert (info.pixel_format, info.height, info.width, info.num_frames) == ("yuv420p", 256, 256, 9)
        frames[name] = read_video(path).astype(int)
    [whole] = [name for name, v in key.videos.items() if v.get("broken") is False]
    [broken] = [name for name, v in key.videos.items() if v.get("broken")]
    steps = [np.abs(np.diff(frames[name], axis=0)).mean() for name in (whole, broken)]
    assert steps[1] > 1.5 * steps[0]  # it jumps
    nearest = [int(np.abs(frames[whole] - frame).mean(axis=(1, 2, 3)).argmin()) for frame in frames[broken]]
    assert sorted(nearest) == list(range(9))  # the same frames
    assert nearest != list(range(9))


@pytest.mark.parametrize("kind", ["reversed", "frozen"])
def test_other_ways_to_break(runs, tmp_path, kind):
    make(runs / "run-alpha", runs / "run-beta", out=tmp_path / "out", checks=kind, raters=1, check_share=0.4)
    assert sum("check" in video for video in read_key(tmp_path / "out" / KEY_FILE).videos.values()) == 4


def test_checks_by_impossible_twins(runs, made_once, small, tmp_path):
    from dataclasses import replace

    folder = made_once("blind", replace(small, num_train=4, num_test=4, impossible=("vanish",)))
    make(runs / "run-alpha", runs / "run-beta", out=tmp_path / "out", checks=str(folder), raters=1)
    checks = [v for v in read_key(tmp_path / "out" / KEY_FILE).videos.values() if "check" in v]
    assert len(checks) == 2
    assert "impossible" in checks[0]["path"]


def test_the_same_settings_find_the_page_and_others_are_refused(runs, study, key):
    before = {path.name: path.read_bytes() for path in study.iterdir()}
    make(runs / "run-alpha", runs / "run-beta", out=study, raters=8)
    assert {path.name: path.read_bytes() for path in study.iterdir()} == before
    with pytest.raises(UsageError, match="question was"):
        make(runs / "run-alpha", runs / "run-beta", out=study, raters=8, question="Which moves more?")


def test_made_anew_it_is_the_same_page(runs, study, key, tmp_path):
    done = make(runs / "run-alpha", runs / "run-beta", out=tmp_path / "again", raters=8)
    assert done.page == key.page
    assert done.html.read_bytes() == next(study.glob("blind-*.html")).read_bytes()
    other = make(runs / "run-alpha", runs / "run-beta", out=tmp_path / "other", raters=8, exclude=("one-sided=1",))
    assert other.page != key.page  # the rules are part of it


def test_eval_runs_of_the_videos_will_do(runs, eval_run, tmp_path):
    for name, tint in (("a", 0), ("b", 60)):
        eval_run(tmp_path / name, {"pc": [True] * 4}, videos=True, tint=tint)
    done = make(tmp_path / "a", tmp_path / "b", out=tmp_path / "out", raters=2)
    assert done.count(page_task.PAIRS) == 4
    assert "too few for one of 65 %" in done.sentences(2)[1]


def test_three_runs_are_compared_in_all_pairs(runs, tmp_path):
    done = make(runs / "run-alpha", "B=" + str(runs / "run-beta"), runs / "run-gamma", out=tmp_path / "out", raters=2)
    assert done.count(page_task.PAIRS) == 18
    assert read_key(tmp_path / "out" / KEY_FILE).runs == ["run-alpha", "B", "run-gamma"]


# --- what is refused of runs and settings ---


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"question": " "}, "--question is empty"),
        ({"raters": 0}, "--raters is 0"),
        ({"pairs_per_rater": 0}, "--pairs-per-rater is 0"),
        ({"repeat_share": 0.7}, "--repeat-share is 0.7"),
        ({"check_share": -1}, "--check-share is -1"),
        ({"checks": "backwards"}, "no way to break a video"),
        ({"limit": 0}, "--limit is 0"),
        ({"limit": -1}, "--limit is -1"),
        ({"exclude": ("failed=1",)}, "Did you mean 'failed-checks'"),
        ({"exclude": ("failed-checks",)}, "'nothing' is no bound"),
        ({"exclude": ("failed-checks=34",)}, "0 to 1; 0 or off for never"),
    ],
)
def test_settings_that_cannot_be(runs, tmp_path, settings, said):
    with pytest.raises(UsageError) as refused:
        make(runs / "run-alpha", runs / "run-beta", out=tmp_path / "out", **settings)
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_compared(runs, tmp_path, eval_run):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="1 run to compare"):
        make(runs / "run-alpha", out=out)
    with pytest.raises(DataError, match="nothing is not there"):
        make(runs / "run-alpha", tmp_path / "nothing", out=out)
    with pytest.raises(UsageError, match="2 runs"):
        make(f"{runs / 'run-alpha'},{runs / 'run-beta'}", runs / "run-gamma", out=out)
    other = sample_run(tmp_path / "other", prompts=[f"Another thing {n}" for n in range(6)])
    with pytest.raises(PhyscliError, match="0 are in all of them"):
        make(runs / "run-alpha", other, out=out)
    seeds = sample_run(tmp_path / "seeds", seed=50)
    mine = sample_run(tmp_path / "mine")
    with pytest.raises(PhyscliError, match="--ignore-seeds") as refused:
        make(mine, seeds, out=out)
    assert "sample all sets with the same --seed" in str(refused.value)
    assert make(mine, seeds, out=tmp_path / "ignored", ignore_seeds=True, raters=1).count(page_task.PAIRS) == 6
    short = sample_run(tmp_path / "short", num=4)
    with pytest.raises(PhyscliError, match="--intersect compares the 4"):
        make(mine, short, out=out)
    assert make(mine, short, out=tmp_path / "some", intersect=True, raters=1).count(page_task.PAIRS) == 4
    (short / "videos" / "2.mp4").unlink()
    with pytest.raises(DataError, match=r"1 of 4 videos of short are not there: .*number 2"):
        make(mine, short, out=out, intersect=True)
    (seeds / "run.json").write_text(json.dumps({"command": "sample", "status": "interrupted"}))
    with pytest.raises(PhyscliError, match="is not finished: its status is 'interrupted'"):
        make(mine, seeds, out=out)
    (seeds / "run.json").write_text(json.dumps({"command": "finetune", "status": "finished"}))
    (seeds / "videos.jsonl").unlink()
    with pytest.raises(PhyscliError, match="holds no list of videos"):
        make(mine, seeds, out=out)
    (seeds / "run.json").write_text(json.dumps({"command": "eval likephys", "status": "finished"}))
    with pytest.raises(PhyscliError, match="run of `physcli eval likephys`, which asks a model about given clips"):
        make(mine, seeds, out=out)
    still = [sample_run(tmp_path / name, still=True, tint=tint) for name, tint in (("still-a", 0), ("still-b", 9))]
    with pytest.raises(PhyscliError, match="Too few videos move for 1 check"):
        make(*still, out=out, raters=1)
    assert make(*still, out=tmp_path / "without", raters=1, check_share=0).rows
    with pytest.raises(DataError, match=r"would hold about .* of videos"):
        make(*still, out=out, raters=1, max_video_mb=0.01)


def test_what_tells_the_runs_apart_is_warned_of(runs, tmp_path):
    large = sample_run(
        tmp_path / "large", size=96, prompts=[HOSTILE, *(f"A block moves, number {n}." for n in range(1, 6))]
    )
    listener = Listener()
    make(runs / "run-alpha", large, out=tmp_path / "out", listener=listener, raters=1)
    assert any("differ in size, length or rate" in line and "96×96, 9 frames" in line for line in listener.said)


# --- votes ---


@pytest.fixture
def files(key, tmp_path):
    return [save_votes(tmp_path / f"{r}.json", key.page, r, vote(key, r, [0, 2.0], seed=1)) for r in range(1, 9)]


def test_votes_are_scored(files, study, tmp_path):
    done = score(*files, out=tmp_path / "out", page=study)
    [row] = done.preferences
    assert (row["subject"], row["reference"], row["n"], row["num_prompts"], row["num_raters"]) == (
        "run-beta",
        "run-alpha",
        48,
        6,
        8,
    )
    assert row["wins"] + row["losses"] == 48
    assert row["value"] == pytest.approx(row["wins"] / 48)
    assert row["low"] < row["value"] < row["high"]
    assert done.rows == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert done.row("checks_passed")["value"] == 1
    assert (done.row("checks_passed")["n"], done.row("repeat_agreement")["n"]) == (8, 8)
    assert [row["value"] for row in done.rows if row["metric"] == "votes_needed"] == [783, 194, 85]
    lines = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert len(lines) == 64
    assert Counter(line["kind"] for line in lines) == {"pair": 48, "repeat": 8, "check": 8}
    assert sum(line.get("preferred") == "run-beta" for line in lines if line["kind"] == "pair") == row["wins"]
    text = (tmp_path / "out" / "report.html").read_text()
    assert "run-beta is preferred to run-alpha" in text
    assert "<script>document.title" not in text
    assert text.count("<video") >= 4


def test_a_tie_is_half_a_vote_and_davidson_joins(key, study, tmp_path):
    files = []
    for rater in (1, 2):
        rows = vote(key, rater, [0, 0])
        kinds = {trial["trial"]: trial["kind"] for trial in trials_of(key, rater)}
        beta = {name for name, video in key.videos.items() if video.get("run") == 1}
        for number, row in enumerate(rows):
            if kinds[row["trial"]] != "check":
                row["choice"] = "tie" if number % 2 else "left" if row["left"] in beta else "right"
        files.append(save_votes(tmp_path / f"{rater}.json", key.page, rater, rows))
    done = score(*files, out=tmp_path / "out", page=study)
    row = done.preferences[0]
    assert row["value"] == pytest.approx((row["wins"] + row["ties"] / 2) / row["n"])
    assert (row["losses"], row["ties"] > 0) == (0, True)
    assert done.models == ["bradley-terry", "davidson"]
    [_, strength] = done.rows_of("strength", "davidson")
    assert (strength["value"], strength["boundless"]) == (None, "above")  # run-beta never lost


def test_raters_are_left_out_by_the_registered_rules(key, study, tmp_path):
    def rows(rater, change):
        made = vote(key, rater, [0, 1.0])
        kinds = {trial["trial"]: trial["kind"] for trial in trials_of(key, rater)}
        return [row | change(kinds[row["trial"]], number) for number, row in enumerate(made)]

    swap = {"left": "right", "right": "left"}
    wrong = {
        t["trial"]: swap[v["choice"]]
        for t, v in zip(trials_of(key, 2), vote(key, 2, [0, 1.0]), strict=True)
        if t["kind"] == "check"
    }
    files = [
        save_votes(tmp_path / "1.json", key.page, 1, rows(1, lambda kind, number: {})),
        save_votes(tmp_path / "2.json", key.page, 2, [r | {"choice": wrong.get(r["trial"], r["choice"])} for r in rows(2, lambda k, n: {})]),  # noqa: E501
        save_votes(tmp_path / "3.json", key.page, 3, rows(3, lambda kind, number: {"ms": 400})),
        save_votes(tmp_path / "4.json", key.page, 4, rows(4, lambda kind, number: {})[:3]),
        save_votes(tmp_path / "5.json", key.page, 5, rows(5, lambda kind, n: {"choice": "skip"} if n > 1 else {})),
        save_votes(tmp_path / "6.json", key.page, 6, rows(6, lambda kind, number: {"plays": 0} if not number else {})),
    ]  # fmt: skip
    done = score(*files, out=tmp_path / "out", page=study)
    assert done.excluded == {"2": "failed-checks", "3": "median-s", "4": "answered", "5": "answered"}
    counts = {row["group"]: row["value"] for row in done.rows if row["metric"] == "excluded_raters"}
    assert counts == {"all": 4, "answered": 2, "failed-checks": 1, "median-s": 1, "one-sided": 0, "repeats": 0}
    assert done.preferences[0]["num_raters"] == 2
    assert done.row("missing/votes")["count"] == 7  # six skipped, one unseen
    said = " ".join(done.sentences())
    assert "Left out 4 of 6 raters: 1 failed more than 34 % of the checks" in said
    reasons = Counter(
        json.loads(line)["excluded"] for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()
    )
    assert reasons["unseen"] == 1


def ballot():
    """Twelve pairs, always left, of 100 to be seen; a failed check and a repeat of the first pair, also left."""
    usual = {"item": 0, "left": 0, "right": 1, "choice": "left", "plays": 1, "replays": 0, "seconds": 0.5, "revised": 0}
    votes = [Vote(f"p{n}", "pair", n, **usual) for n in range(12)]
    votes += [
        Vote("c", "check", None, **usual | {"left": 1, "right": 0}),
        Vote("r", "repeat", 0, **usual | {"left": 1, "right": 0}),
    ]
    return Ballot(Path("1.json"), "1", 1, "0" * 16, 100, tuple(votes))


def test_every_rule_is_off_at_0():
    assert excluded_by(ballot(), read_rules(())) == "answered"
    off = tuple(f"{name}=off" for name in RULES)
    assert set(read_rules(off).values()) == {0.0}
    assert excluded_by(ballot(), read_rules(off)) is None
    for name in RULES:
        for never in ("0", "off"):  # it alone
            rules = read_rules(tuple(f"{other}={never}" for other in RULES if other == name))
            assert rules[name] == 0
            assert excluded_by(ballot(), rules) != name
        bound = "0.9" if name in ("one-sided", "failed-checks") else "1"
        rules = read_rules((*(one for one in off if not one.startswith(name)), f"{name}={bound}"))
        assert excluded_by(ballot(), rules) == name


def test_a_bound_itself_leaves_nobody_out():
    """Of 100, 14 are answered; half a second; one check failed; all left; no repeat with the same answer."""
    exact = ("answered=0.14", "failed-checks=1", "median-s=0.5", "one-sided=1", "repeats=off")
    assert excluded_by(ballot(), read_rules(exact)) is None
    assert excluded_by(ballot(), read_rules((*exact, "answered=0.15"))) == "answered"


def test_without_rules_it_is_said(runs, tmp_path):
    off = tuple(f"{name}=0" for name in RULES)
    done = make(runs / "run-alpha", runs / "run-beta", out=tmp_path / "out", raters=1, exclude=off)
    assert done.sentences(1)[-1] == "No rater will be left out."
    key = read_key(tmp_path / "out" / KEY_FILE)
    wrong = [
        row | {"choice": {"left": "right", "right": "left"}[row["choice"]] if trial["kind"] == "check" else "left"}
        for trial, row in zip(trials_of(key, 1), vote(key, 1, [0, 1.0]), strict=True)
    ]
    votes = score(save_votes(tmp_path / "1.json", key.page, 1, wrong), out=tmp_path / "votes", page=tmp_path / "out")
    assert not votes.excluded
    assert "never: it is off" in (tmp_path / "votes" / "report.html").read_text()


def test_one_sided_raters_and_those_at_odds_with_themselves(runs, tmp_path):
    out = tmp_path / "page"
    make(runs / "run-alpha", runs / "run-beta", runs / "run-gamma", out=out, raters=4, exclude=("repeats=0.5",))
    key = read_key(out / KEY_FILE)

    def saved(rater, choose):
        rows = []
        for trial, row in zip(trials_of(key, rater), vote(key, rater, [0, 1.0, 0]), strict=True):
            rows.append(row if trial["kind"] == "check" else row | {"choice": choose(trial)})
        return save_votes(out / f"{rater}.json", key.page, rater, rows)

    def first_run(trial, worse=False):
        left, right = (key.videos[trial[side]]["run"] for side in ("left", "right"))
        return "left" if (left < right) != worse else "right"

    files = [
        saved(1, first_run),
        saved(2, lambda trial: "left"),
        saved(3, lambda trial: first_run(trial, worse=trial["kind"] == "repeat")),
        saved(4, first_run),
    ]
    done = score(*files, out=tmp_path / "out")  # the key is beside the files
    assert done.excluded == {"2": "one-sided", "3": "repeats"}
    assert [row["value"] for row in done.preferences] == [0, 0, 0]
    assert done.row("krippendorff_alpha")["value"] is None  # they all say the same
    assert done.row("repeat_agreement")["value"] == 1


# --- files of votes that cannot be used ---


def test_files_that_cannot_be_scored(files, key, study, runs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="No file of votes"):
        score(out=out, page=study)
    with pytest.raises(UsageError, match="named twice"):
        score(files[0], files[0], out=out, page=study)
    with pytest.raises(PhyscliError, match=r"The key of page \w+ is not in .* or ") as refused:
        score(files[0], out=out)
    assert "--page DIR" in str(refused.value)
    with pytest.raises(DataError, match="cannot be read"):
        score(tmp_path / "nothing.json", out=out, page=study)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        score(files[0], tmp_path / "bad.json", out=out, page=study)
    with pytest.raises(DataError, match="is no file of votes"):
        score(study / KEY_FILE, out=out, page=study)
    (tmp_path / KEY_FILE).write_text("{}")
    with pytest.raises(DataError, match="is no key of a blind page"):
        score(files[0], out=out)
    (tmp_path / KEY_FILE).write_text('{"physcli_blind": 1}')
    with pytest.raises(DataError, match="is not whole: 'runs' is missing"):
        score(files[0], out=out)
    assert not out.exists()


def test_an_edited_file_is_noticed(files, study, tmp_path):
    record = json.loads(files[0].read_text())
    swap = {"left": "right", "right": "left"}
    record["votes"][0]["choice"] = swap[record["votes"][0]["choice"]]
    files[0].write_text(json.dumps(record))
    with pytest.raises(DataError, match="is not as the page saved it") as refused:
        score(*files, out=tmp_path / "out", page=study)
    assert "ask the rater to save the votes again" in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"trial": "0" * 12},
        {"choice": "both"},
        {"ms": -1},
        {"left": "0" * 12},
        {"plays": "one"},
    ],
)
def test_votes_that_do_not_fit_the_page(key, study, tmp_path, change):
    rows = vote(key, 1, [0, 1])
    file = save_votes(tmp_path / "1.json", key.page, 1, [rows[0] | change, *rows[1:]])
    with pytest.raises(DataError, match=r"vote 1: .* does not fit its page"):
        score(file, out=tmp_path / "out", page=study)
    twice = save_votes(tmp_path / "2.json", key.page, 1, [rows[0], rows[0]])
    with pytest.raises(DataError, match="vote 2"):
        score(twice, out=tmp_path / "out", page=study)
    other = save_votes(tmp_path / "3.json", key.page, 3, rows)  # votes of rater 1, sent as rater 3's
    with pytest.raises(DataError, match="vote 1"):
        score(other, out=tmp_path / "out", page=study)


def test_another_pages_votes_and_changed_rules(files, key, study, runs, tmp_path):
    make(runs / "run-alpha", runs / "run-gamma", out=tmp_path / "page", raters=8)
    with pytest.raises(DataError, match=r"holds votes on page .* is the key of page"):
        score(*files, out=tmp_path / "out", page=tmp_path / "page")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in study.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    record = json.loads((moved / KEY_FILE).read_text())
    record["rules"]["failed-checks"] = 1.0
    (moved / KEY_FILE).write_text(json.dumps(record))
    with pytest.raises(DataError, match="was changed after its page was made") as refused:
        score(*files, out=tmp_path / "out", page=moved)
    assert "fixed before anybody voted" in str(refused.value)


def test_no_votes(key, study, tmp_path):
    none = save_votes(tmp_path / "1.json", key.page, 1, [])
    with pytest.raises(DataError, match="No vote counts: 0 votes of 1 rater, left out 1 by answered"):
        score(none, out=tmp_path / "out", page=study)
    assert not (tmp_path / "out").exists()


def test_a_rater_who_saved_twice_and_two_with_one_number(key, study, tmp_path):
    rows = vote(key, 1, [0, 1])
    whole = save_votes(tmp_path / "whole.json", key.page, 1, rows)
    part = save_votes(tmp_path / "part.json", key.page, 1, rows[:5], saved="2026-01-01T10:10:00.000Z")
    other = save_votes(tmp_path / "other.json", key.page, 1, vote(key, 1, [0, 1], seed=5), session="f" * 16)
    listener = Listener()
    done = score(part, whole, other, out=tmp_path / "out", page=study, listener=listener)
    assert [len(ballot.votes) for ballot in done.ballots] == [8, 8]
    assert [ballot.name for ballot in done.ballots] == ["1 (0000)", "1 (ffff)"]
    assert "part.json is left out: whole.json is of the same rater, and was saved later." in listener.said
    assert any("Several people voted as rater 1" in line for line in listener.said)


def test_the_file_that_was_saved_last_counts(key, study, tmp_path):
    """Also if a vote was taken back since; of two saved at once, the one with more votes."""
    rows = vote(key, 1, [0, 1])
    more = save_votes(tmp_path / "more.json", key.page, 1, rows)
    last = save_votes(tmp_path / "last.json", key.page, 1, rows[:-1], saved="2026-01-01T10:21:00.000Z")
    fewer = save_votes(tmp_path / "fewer.json", key.page, 1, rows[:-2])
    for number, files in enumerate(((more, last), (last, more))):
        listener = Listener()
        done = score(*files, out=tmp_path / f"{number}", page=study, listener=listener)
        assert [len(ballot.votes) for ballot in done.ballots] == [len(rows) - 1]
        assert "more.json is left out: last.json is of the same rater, and was saved later." in listener.said
    listener = Listener()
    done = score(fewer, more, out=tmp_path / "once", page=study, listener=listener)
    assert [len(ballot.votes) for ballot in done.ballots] == [len(rows)]
    assert any("holds no fewer votes, saved at the same time" in line for line in listener.said)


def test_without_krippendorff_it_is_said(files, study, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "krippendorff", None)
    listener = Listener()
    done = score(*files, out=tmp_path / "out", page=study, listener=listener)
    assert done.row("krippendorff_alpha") is None
    assert any("pip install 'physcli[votes]'" in line for line in listener.said)


# --- 200 raters whose preferences are known ---


@pytest.fixture(scope="module")
def large_study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for name, tint in (("a", 0), ("b", 60), ("c", 120)):
        sample_run(folder / name, tint=tint, num=30, num_frames=4)
    make(folder / "a", folder / "b", folder / "c", out=folder / "page", raters=200, pairs_per_rater=30)
    return folder / "page"


@pytest.mark.slow
@pytest.mark.parametrize("tie", [0.0, 0.5])
def test_known_strengths_and_side_are_found(large_study, tmp_path, tie):
    """200 raters, strengths 0, .5 and −.4 and .36 for the left side, in logits; a tie has ν."""
    key = read_key(large_study / KEY_FILE)
    strengths = [0.0, 0.5, -0.4]
    files = [
        save_votes(tmp_path / f"{r}.json", key.page, r, vote(key, r, strengths, side=0.36, tie=tie))
        for r in range(1, 201)
    ]
    done = score(*files, out=tmp_path / "out", page=large_study)
    model = "davidson" if tie else "bradley-terry"
    assert done.models[-1] == model
    found = done.rows_of("strength", model)
    assert [row["value"] for row in found] == pytest.approx(strengths, abs=0.15)  # 3.5 standard errors
    for row, true in zip(found[1:], strengths[1:], strict=True):
        assert row["low"] < true < row["high"]
        assert row["high"] - row["low"] < 0.4
    [side] = done.rows_of("side_bias", model)
    assert side["low"] < 0.36 < side["high"]
    assert side["low"] > 0.2
    if tie:
        [parameter] = done.rows_of("tie_parameter", model)
        assert parameter["low"] < tie < parameter["high"]
    for row in done.preferences:  # over both sides
        second, first = (strengths["abc".index(row[name])] for name in ("subject", "reference"))
        shares = []
        for side_ in (0.36, -0.36):
            delta = second - first + side_
            odds = np.array([np.exp(delta / 2), tie, np.exp(-delta / 2)])
            shares.append((odds[0] + odds[1] / 2) / odds.sum())
        assert row["low"] < np.mean(shares) < row["high"]
        assert row["p_holm"] < 0.001
    assert done.row("checks_passed")["value"] == 1
    assert not done.excluded
