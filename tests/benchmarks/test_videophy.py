"""Questions and their segments, strict parsing, and what is counted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from physcli.benchmarks.videophy import (
    MEDIA,
    QUESTIONS,
    RatedVideo,
    aggregate,
    calibrated_rating,
    parse_rating,
    parse_rule,
    read_hard,
    score_videophy,
    score_videophy2,
)
from physcli.errors import DataError
from physcli.stats import stderr_of_mean

GOLDEN = Path(__file__).parents[1] / "golden" / "videophy_rater"
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text())
TEXTS = {"v1_sa": "A ball rolls.", "v2_sa": "A ball rolls.", "v2_rule": "The ball falls down."}


@pytest.mark.parametrize("name", PROMPTS["templates"])
def test_prompts_and_their_segments_are_the_official_ones(name):
    question, text = QUESTIONS[name], TEXTS.get(name, "")
    assert question.template == PROMPTS["templates"][name]
    example = PROMPTS["tokenizer_segments_example"][name]
    assert question.fill(text) == example["filled_prompt"]
    layout = [MEDIA if isinstance(part, dict) else part for part in example["layout"][1:]]
    assert list(question.segments(text)) == layout
    assert "".join(layout) == question.fill(text)


def test_texts_go_in_as_they_are():
    odd = 'He says "{caption}",\n<script>alert(1)</script> {0} \\1'
    assert f'description: "{odd}"?' in QUESTIONS["v1_sa"].fill(odd)
    assert "".join(QUESTIONS["v2_sa"].segments(odd)) == QUESTIONS["v2_sa"].fill(odd)
    assert QUESTIONS["v1_pc"].field is None
    for text in ("", "  \n", f"a {MEDIA} b"):
        with pytest.raises(DataError, match=r"caption .* cannot be asked about"):
            QUESTIONS["v2_sa"].segments(text)


@pytest.mark.parametrize("case", json.loads((GOLDEN / "parsing.json").read_text()), ids=lambda case: repr(case["text"]))
def test_ratings_are_parsed_strictly(case):
    assert parse_rating(case["text"]) in case["accept"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5 out of 5", 5),
        ("2/5", 2),
        ("three out of five", 3),
        ("I would rate this video 5 on a scale from 1 to 5.", 5),
        ("4.0", 4),
        ("On a scale from 1 to 5", None),
        ("4 out of 50", None),
        ("5th", None),
        ("mp4", None),
        ("-4", None),
        ("−4", None),
        ("1e3", None),
        ("4 (out of 10)", None),
        ("the 2 balls rate 2", 2),
    ],
)
def test_more_ratings(text, value):
    assert parse_rating(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1.", 1), (" 2\n", 2), ("Zero", 0), ("3", None), ("1 or 2", None), ("none", None), ("valid", None)],
)
def test_rules(text, value):
    assert parse_rule(text) == value


def test_calibrated_reading():
    even = calibrated_rating([0.0] * 5)
    assert even.expected == pytest.approx(3)
    sure = calibrated_rating([0, 0, 0, 0, 1000.0])
    assert (sure.expected, sure.best) == (5, 5)
    logits = np.log([0.1, 0.2, 0.3, 0.15, 0.25])
    found = calibrated_rating(logits - 40)
    assert found.expected == pytest.approx(0.1 + 0.4 + 0.9 + 0.6 + 1.25)
    assert found.best == 3
    for wrong in ([0.0] * 4, [0, 0, 0, 0, math.nan]):
        with pytest.raises(ValueError, match="5 finite logits"):
            calibrated_rating(wrong)


def by_name(rows, group="all"):
    return {row["metric"]: row for row in rows if row["group"] == group}


def test_videophy_rows():
    probabilities = [(0.9, 0.5), (0.5, 0.2), (0.49, 0.9), (0.8, 0.8)]
    states = ["solid_solid", "solid_solid", "fluid_fluid", ""]
    items = [
        RatedVideo(score_videophy(sa, pc), prompt=f"p{n}", state=state)
        for n, ((sa, pc), state) in enumerate(zip(probabilities, states, strict=True))
    ]
    rows = aggregate(items, benchmark="videophy", subject="base", rater="tiny")
    assert {row["group"] for row in rows} == {"all", "solid_solid", "fluid_fluid"}
    found = by_name(rows)
    assert {name: found[name]["value"] for name in ("sa", "pc", "joint")} == {"sa": 0.75, "pc": 0.75, "joint": 0.5}
    assert found["sa_mean"]["value"] == pytest.approx(np.mean([0.9, 0.5, 0.49, 0.8]))
    assert found["sa"]["stderr"] == pytest.approx(stderr_of_mean(np.array([1, 1, 0, 1])))
    assert found["missing/sa"] | {"stderr": 0.0} == {
        **{"benchmark": "videophy", "task": "eval", "subject": "base", "split": "test", "group": "all"},
        **{"metric": "missing/sa", "value": 0.0, "stderr": 0.0, "n": 4, "higher_is_better": False, "count": 0},
        **{"rater": "tiny", "threshold": 0.5},
        **{"kind": "rate", "role": "plain", "interval": "none"},
    }
    assert by_name(rows, "solid_solid")["joint"]["value"] == 0.5
    assert by_name(rows, "fluid_fluid")["sa"]["stderr"] is None  # one video
    strict = [RatedVideo(score_videophy(sa, pc, threshold=0.85), prompt=str(sa)) for sa, pc in probabilities]
    assert by_name(aggregate(strict, benchmark="videophy", subject="b", rater="r"))["sa"]["value"] == 0.25
    with pytest.raises(ValueError, match=r"one threshold, got 8 videos"):
        aggregate([*items, *strict], benchmark="videophy", subject="b", rater="r")
    with pytest.raises(ValueError, match="expected probabilities"):
        score_videophy(1.2, 0.5)


def test_missing_answers_are_counted_and_not_guessed():
    answers = [("5", "4"), ("4", "3"), ("maybe", "5"), ("3", "no idea"), ("10", "?")]
    items = [RatedVideo(score_videophy2(sa, pc), prompt=str(n)) for n, (sa, pc) in enumerate(answers)]
    found = by_name(aggregate(items, benchmark="videophy2", subject="s", rater="r"))
    assert (found["sa"]["value"], found["sa"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (found["pc"]["value"], found["pc"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (found["joint"]["value"], found["joint"]["n"]) == (0.5, 2)
    assert (found["missing/sa"]["value"], found["missing/sa"]["count"], found["missing/sa"]["n"]) == (0.4, 2, 5)
    assert found["pc_mean"]["value"] == 4
    assert "sa_expected" not in found
    assert "rules" not in found
    nothing = by_name(aggregate(items[2:3], benchmark="videophy2", subject="s", rater="r"))["sa"]
    assert (nothing["value"], nothing["stderr"], nothing["n"]) == (None, None, 0)
    json.dumps(aggregate(items, benchmark="videophy2", subject="s", rater="r"), allow_nan=False)


def test_hard_only_if_every_item_says_so():
    def rows(*hard):
        items = [RatedVideo(score_videophy2("5", "5" if h else "1"), prompt=str(n), hard=h) for n, h in enumerate(hard)]
        return by_name(aggregate(items, benchmark="videophy2", subject="s", rater="r"), "hard")

    assert rows(True, False, True)["joint"]["value"] == 1
    assert not rows(True, None, False)
    assert not rows(False, False)
    assert [read_hard(v) for v in ("1", 0, "True", "false", "", None, math.nan, "1.0")] == [
        *(True, False, True, False, None, None, None, True)
    ]
    with pytest.raises(DataError, match="is_hard is 'maybe'"):
        read_hard("maybe")


def test_rules_calibration_and_clusters():
    logits = np.log([0.1, 0.1, 0.1, 0.2, 0.5])
    score = score_videophy2("?", "4", sa_digits=logits, pc_digits=-logits, rule_answers=["1", "0", "2", "x", "one"])
    assert score.rules == (1, 0, 2, None, 1)
    assert score.sa_expected == pytest.approx(0.1 + 0.2 + 0.3 + 0.8 + 2.5)
    items = [
        RatedVideo(score, prompt="a"),
        RatedVideo(score, prompt="a"),
        RatedVideo(score_videophy2("1", "1"), prompt="b"),
    ]
    found = by_name(aggregate(items, benchmark="videophy2", subject="s", rater="r"))
    assert (found["rules"]["value"], found["rules"]["n"]) == (pytest.approx(2 / 3), 6)
    assert (found["rules_undecided"]["value"], found["rules_undecided"]["higher_is_better"]) == (0.25, None)
    assert (found["missing/rules"]["count"], found["missing/rules"]["n"]) == (2, 10)
    assert found["sa_expected"]["n"] == 2
    # Two videos of one prompt are one: two clusters, not three.
    assert found["pc"]["stderr"] == pytest.approx(stderr_of_mean(np.array([1, 1, 0]), ["a", "a", "b"]))
