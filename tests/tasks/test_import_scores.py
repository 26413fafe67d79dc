"""eval import: every layout in small, what is read from it, and what is refused; compare takes the runs."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from physcli.benchmarks.base import Score
from physcli.benchmarks.videophy import QUESTIONS, VideoPhy, VideoPhy2
from physcli.data.video_sets import Video
from physcli.errors import DataError, UsageError
from physcli.tasks.compare import CompareSettings, compare
from physcli.tasks.import_scores import ImportSettings, import_scores

GOLDEN = Path(__file__).parents[1] / "golden"


def table(path, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")
    return str(path)


def written(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def read(tmp_path, *files, out="run", **settings):
    return import_scores(ImportSettings(tuple(map(str, files)), **settings), out=tmp_path / out)


def row_of(result, metric, group="all"):
    [row] = [row for row in result.rows if (row["metric"], row["group"]) == (metric, group)]
    return row


# --- VideoPhy ---

CAPTIONS = ['A ball, "red", rolls.', "Honey\nflows."]
NAMES = [f"examples/{what}_{number}.mp4" for what in ("ball", "honey") for number in (0, 1)]
SA, PC = [0.9, 0.2, 0.5, 0.7], [0.8, 0.6, 0.49, 1.0]


def official_tables(folder, benchmark, values):
    """As physcli itself writes the official scorers' tables."""
    videos = [Video(name, folder / name, CAPTIONS[n // 2], CAPTIONS[n // 2]) for n, name in enumerate(NAMES)]
    scores = [Score(video, one) for video, one in zip(videos, values, strict=True)]
    return [table(folder / name, lines) for name, lines in benchmark.tables(scores).items()]


def test_videophys_lists(tmp_path):
    files = official_tables(
        tmp_path, VideoPhy(), [{"sa_mean": sa, "pc_mean": pc} for sa, pc in zip(SA, PC, strict=True)]
    )
    result = read(tmp_path, *reversed(files), rater="VideoCon-Physics", subject="M")
    assert (result.layout, len(result.items)) == ("videophy", 4)
    assert [(item["prompt"], item["index"]) for item in result.items] == [(c, n) for c in CAPTIONS for n in (0, 1)]
    assert [item["sa"] for item in result.items] == [True, False, True, True]
    assert [item["joint"] for item in result.items] == [True, False, False, True]
    assert row_of(result, "joint") | {"stderr": 0} == {
        **{"benchmark": "videophy", "task": "eval", "subject": "M", "split": "test", "group": "all"},
        **{"metric": "joint", "value": 0.5, "stderr": 0, "n": 4, "higher_is_better": True, "kind": "rate"},
        **{"role": "headline", "interval": "wilson", "rater": "VideoCon-Physics", "threshold": 0.5},
    }
    assert row_of(result, "sa_mean")["value"] == pytest.approx(np.mean(SA))
    assert "Videos of a prompt are numbered by the ends of their file names." in result.notes


def test_pc_alone_gives_no_sa_and_no_joint(tmp_path):
    path = table(tmp_path / "x.csv", [[name, QUESTIONS["v1_pc"].template, 0.75] for name in NAMES])
    result = read(tmp_path, path)
    assert {row["metric"] for row in result.rows} == {"pc", "pc_mean", "missing/pc"}
    assert result.items[0]["prompt"] == NAMES[0]
    assert "sa" not in result.items[0]


def test_videophy2s_lists(tmp_path):
    judged = [{"rule": "It falls.", "judgement": judgement} for judgement in (1, 0, 2, 1)]
    values = [
        {"sa_mean": sa, "pc_mean": pc, "judged": [rule]}
        for sa, pc, rule in zip([5, 4, 3, 5], [4, None, 4, 5], judged, strict=True)
    ]
    files = official_tables(tmp_path, VideoPhy2(), values)
    result = read(tmp_path, *files)
    assert result.layout == "videophy2"
    assert "official_pc.csv holds PC: its name says so." in result.notes
    assert [item["pc"] for item in result.items] == [True, None, True, True]
    assert [item["joint"] for item in result.items] == [True, None, False, True]
    assert (row_of(result, "rules")["value"], row_of(result, "rules_undecided")["value"]) == (2 / 3, 1 / 4)
    assert row_of(result, "missing/pc")["count"] == 1
    assert row_of(result, "joint")["rater"] == "not named"


def test_a_zero_of_videophy2s_scorer_is_no_rating(tmp_path):
    rows = [["", "caption", "videopath", "score"], [0, "a", "a_0.mp4", 0.0], [1, "a", "a_1.mp4", 4.0]]
    result = read(tmp_path, f"pc={table(tmp_path / 'scores.csv', rows)}")
    assert [item["pc"] for item in result.items] == [None, True]
    assert "1 answers of scores.csv are 0, no rating: they are missing." in result.notes


def test_a_table_of_peoples_answers(tmp_path):
    rows = [["video", "Caption", "sa", "pc", "states_of_matter"]]
    rows += [[f"v{n}.mp4", f"caption {n // 2}", n % 2, 1, "solid_fluid" if n < 2 else "fluid_fluid"] for n in range(4)]
    result = read(tmp_path, table(tmp_path / "people.csv", rows))
    assert result.layout == "videophy"
    assert row_of(result, "joint", "solid_fluid")["value"] == 0.5
    assert [item["index"] for item in result.items] == [0, 1, 0, 1]
    grades = [[*rows[0][:4]], *([f"v{n}.mp4", "c", n + 1, 5] for n in range(4))]
    assert read(tmp_path, table(tmp_path / "grades.csv", grades), out="two").layout == "videophy2"


# --- VBench ---


def vbench(folder, name, *, lift=0.0, **more):
    """Two dimensions of four prompts and three videos each, and imaging quality of half of them."""
    rng = np.random.default_rng(len(name))
    videos = [f"samples/a thing, no {prompt}-{number}.mp4" for prompt in range(8) for number in range(3)]

    def dimension(values, files=videos, scale=1.0):
        values = [float(value) for value in values]
        pairs = zip(files, values, strict=True)
        return [np.mean(values) / scale, [{"video_path": file, "video_results": value} for file, value in pairs]]

    half = videos[:12]
    found = {
        "temporal_flickering": dimension(rng.uniform(0.9, 0.95, len(videos)) + lift),
        "dynamic_degree": [
            0.5,
            [{"video_path": file, "video_results": number % 2 == 0} for number, file in enumerate(videos)],
        ],
        "imaging_quality": dimension(rng.uniform(40, 60, len(half)), half, scale=100),
    }
    return written(folder / f"{name}_eval_results.json", found | more)


def test_vbench_results(tmp_path):
    result = read(tmp_path, vbench(tmp_path, "M"))
    assert (result.layout, len(result.items), result.rows[0]["subject"]) == ("vbench", 24, "M")
    first, last = result.items[0], result.items[-1]
    assert (first["prompt"], first["index"], last["prompt"], last["index"]) == ("a thing, no 0", 0, "a thing, no 7", 2)
    assert first["dynamic_degree"] == 1.0
    assert 0.4 < first["imaging_quality"] < 0.6
    assert last["imaging_quality"] is None
    assert (row_of(result, "imaging_quality")["n"], row_of(result, "dynamic_degree")["kind"]) == (12, "rate")
    row = row_of(result, "temporal_flickering")
    assert row["value"] == pytest.approx(row["official"])
    assert not any(row["metric"].startswith("vbench_") for row in result.rows)
    assert any(note.startswith("Without a total: 13 of 16 dimensions are missing") for note in result.notes)


def test_vbench_totals_are_of_the_official_scores(tmp_path):
    example = json.loads((GOLDEN / "vbench" / "final_score_examples.json").read_text())["examples"][0]
    found = {
        name.replace(" ", "_"): [score, [{"video_path": "a-0.mp4", "video_results": score}]]
        for name, score in example["raw"].items()
    }
    found["subject_consistency"][1].append({"video_path": "a-1.mp4", "video_results": 0.5})
    result = read(tmp_path, written(tmp_path / "all.json", found))
    for name in ("quality", "semantic", "total"):
        row = row_of(result, f"vbench_{name}")
        assert row["value"] == pytest.approx(example[name], rel=1e-12)
        assert row["interval"] == "none"
    assert "subject_consistency: the official score, 0.9678, is not the mean over videos, 0.7339." in result.notes


def test_vbench2_leaves_out_what_is_not_valid(tmp_path):
    results = [{"video_path": f"p-{n}.mp4", "video_results": value} for n, value in enumerate((1, -1, 0))]
    result = read(tmp_path, written(tmp_path / "two.json", {"Mechanics": [0.5, results]}))
    assert (result.layout, result.rows[0]["benchmark"]) == ("vbench", "vbench-2.0")
    assert [item["Mechanics"] for item in result.items] == [1, None, 0]
    assert row_of(result, "Mechanics")["value"] == 0.5


def test_compare_gives_imported_scores_intervals_and_tests(tmp_path):
    read(tmp_path, vbench(tmp_path, "base"), out="base")
    read(tmp_path, vbench(tmp_path, "ours", lift=0.03), out="ours")
    done = compare(CompareSettings((str(tmp_path / "base"), str(tmp_path / "ours"))), out=tmp_path / "compare")
    by = {row["of"]: row for row in done.rows if row["group"] == "all"}
    assert by["temporal_flickering"]["verdict"] == "better"
    assert by["temporal_flickering"]["low"] > 0.01
    assert by["temporal_flickering"]["p"] < 0.05
    assert (by["dynamic_degree"]["value"], by["imaging_quality"]["n"]) == (0.0, 12)
    assert not [note for note in done.notes if "not scored alike" in note]


# --- the others ---


def test_a_table_of_physics_iq_has_a_command_of_its_own(tmp_path):
    with pytest.raises(UsageError, match=r"physcli eval physics-iq --videos .*metrics_official.csv"):
        read(tmp_path, GOLDEN / "physics_iq" / "metrics_official.csv")


def test_fastvideo(tmp_path):
    def scored(number, value):
        skipped = {"name": "common.ssim", "score": None, "details": {"skipped": "no reference"}}
        scores = {"vbench.dynamic_degree": {"name": "vbench.dynamic_degree", "score": value, "details": {}}}
        return {
            "video": f"out/a {'cat' if number < 2 else 'dog'}-{number % 2}.mp4",
            "scores": scores | {"common.ssim": skipped},
        }

    result = read(tmp_path, written(tmp_path / "s.json", [scored(number, number % 2) for number in range(4)]))
    assert result.layout == "fastvideo"
    assert row_of(result, "vbench.dynamic_degree") | {"stderr": None} == {
        **{"benchmark": "fastvideo", "task": "official", "subject": "s", "split": "all", "group": "all"},
        **{"metric": "vbench.dynamic_degree", "value": 0.5, "stderr": None, "n": 4, "higher_is_better": None},
        **{"kind": "rate", "role": "motion", "interval": "wilson"},
    }
    assert "common.ssim has no score of some or all videos (no reference)." in result.notes
    assert [(item["prompt"], item["index"]) for item in result.items] == [
        (f"a {what}", n) for what in ("cat", "dog") for n in (0, 1)
    ]


def test_fastvideos_numbers_that_are_of_no_prompt(tmp_path):
    rows = [{"video": f"out/clip-{n}.mp4", "scores": {"common.psnr": {"score": n}}} for n in range(3)]
    result = read(tmp_path, written(tmp_path / "s.json", rows))
    assert [(item["prompt"], item["index"]) for item in result.items] == [(f"clip-{n}", 0) for n in range(3)]
    assert row_of(result, "common.psnr")["stderr"] == pytest.approx(1 / math.sqrt(3))


def test_sampson_errors_of_cosmos(tmp_path):
    def clip(name, front, cross):
        results = {"T": {"front": {"mean": front, "median": 1}}, "C": {"front-left": {"mean": cross, "median": 1}}}
        return written(tmp_path / f"{name}.json", {"video_path": f"/v/{name}.mp4", "clip_id": name, "results": results})

    result = read(tmp_path, clip("one", 1.5, 3.0), clip("two", 2.5, 5.0), subject="C")
    assert result.layout == "cosmos-sampson"
    row = row_of(result, "temporal_sampson/front")
    assert (row["value"], row["kind"], row["higher_is_better"]) == (2.0, "px", False)
    assert row_of(result, "cross_view_sampson/front-left")["value"] == 4.0


# --- what is refused ---


def test_the_same_again_and_another(tmp_path):
    path = vbench(tmp_path, "M")
    first = read(tmp_path, path)
    assert read(tmp_path, path).rows == first.rows
    with pytest.raises(UsageError, match="holds another run"):
        read(tmp_path, path, subject="another")


def one_of(name):
    return {"video_path": f"{name}.mp4", "video_results": 1}


HEAD = ["", "caption", "videopath", "score"]


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("x.csv", [["foo", "bar"], [1, 2]], {}, "a table that begins with the columns foo, bar"),
        ("x.json", {"a": 1}, {}, "in no layout that is known: a JSON object with a"),
        ("x.json", [], {}, "in no layout that is known: a JSON list without entries"),
        ("x.json", "{", {}, "x.json, line 1: not valid JSON"),
        ("x.json", "", {}, "x.json is empty"),
        ("x.json", {"FID": 45.2, "num_pred_videos": 9}, {}, "is a FID of Cosmos' scripts: one number of a whole set"),
        ("x.json", {"num_videos": 1, "temporal": {}, "cross_view": {}}, {}, "is the summary of Cosmos' Sampson errors"),
        ("x.csv", [["video", "caption", "sa", "pc"], ["a", "a", 1, 1]], {}, "could be videophy or videophy2"),
        ("x.csv", [["video", "caption", "sa", "pc"], ["a", "a", 1, 7]], {}, "in no layout that is known"),
        ("x.csv", [["video", "caption", "sa", "pc"], ["a", "a", 0, 1], ["a", "a", 0, 1]], {}, "a second SA of a"),
        ("x.csv", [HEAD, [0, "a", "a.mp4", 3]], {}, "nothing says whether they are SA or PC"),
        ("sa_pc.csv", [HEAD, [0, "a", "a.mp4", 3]], {}, "nothing says whether they are SA or PC"),
        ("sa.csv", [HEAD, [0, "a", "a.mp4", 6]], {}, "line 2: the score is '6'"),
        ("sa.csv", [HEAD, [0, "a", "a.mp4", 3.5]], {}, "line 2: the score is '3.5'"),
        ("sa.csv", [HEAD, [0, "a", "a.mp4", 3]], {"layout": "vbench"}, "is not in the layout vbench"),
        ("sa.csv", [HEAD, [0, "a", "a.mp4", 3]], {"layout": "vbensh"}, "Did you mean 'vbench'"),
        ("x.json", {"scene": [0.5, []]}, {}, "has no score of a single video"),
        ("x.json", {"scene": [0.5, []], "Mechanics": [0.5, []]}, {}, "Mechanics is no dimension beside the others"),
        ("x.json", {"scene": ["high", []]}, {}, "the score of scene is 'high'"),
        (
            "x.json",
            {"imaging_quality": [0.7, [{"video_path": "a-0.mp4", "video_results": 50}]]},
            {},
            "the score is 0.7, and its videos' mean is neither that nor 100 times that",
        ),
        ("x.json", {"scene": [1, [one_of("a/a-0"), one_of("b/a-0")]]}, {}, "b/a-0.mp4 is the second video 0"),
        ("x.json", {"scene": [1, [one_of("a-0")]]}, {"rater": "R"}, "--rater with scores of vbench"),
    ],
)  # fmt: skip
def test_refused(tmp_path, name, content, options, said):
    path = tmp_path / name
    if isinstance(content, list) and name.endswith(".csv"):
        table(path, content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises((DataError, UsageError)) as error:
        read(tmp_path, path, **options)
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def test_files_of_different_layouts(tmp_path):
    one = vbench(tmp_path, "M")
    other = table(tmp_path / "sa.csv", [HEAD, [0, "a", "a.mp4", 3]])
    with pytest.raises(DataError, match="The files are in different layouts"):
        read(tmp_path, one, other)


def test_an_official_score_that_is_no_number(tmp_path):
    videos = [{"video_path": f"p{n}-0.mp4", "video_results": value} for n, value in enumerate((math.nan, 0.9, 0.8))]
    result = read(tmp_path, written(tmp_path / "x.json", {"temporal_flickering": [math.nan, videos]}))
    row = row_of(result, "temporal_flickering")
    assert (row["value"], row["n"], "official" in row) == (pytest.approx(0.85), 2, False)
    assert any(note.startswith("temporal_flickering: the official score is no number") for note in result.notes)
