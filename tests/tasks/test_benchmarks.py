"""The table of benchmarks: what a new one gets for its file and its line, and that a figure is the same everywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from physcli.benchmarks import BENCHMARKS, find_benchmark
from physcli.benchmarks.base import Answer, Context, Score
from physcli.benchmarks.dynamic_degree import DYNAMIC_DEGREE, LARGEST_MOTION
from physcli.cli import render
from physcli.cli.app import app
from physcli.data.video import write_video
from physcli.data.video_sets import Video
from physcli.errors import UsageError
from physcli.rows import mean_row
from physcli.tasks import tables
from physcli.tasks.compare import CompareSettings, compare
from physcli.tasks.eval import EvalResult, EvalSettings, evaluate
from physcli.tasks.report import write_run_report


@pytest.fixture
def dummies(monkeypatch):
    """Two more benchmarks in the table."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setitem(BENCHMARKS, "dummy", ("dummy:Dummy", "Is it bright?"))
    monkeypatch.setitem(BENCHMARKS, "beside", ("dummy:Beside", "Is it like the real one?"))


@pytest.fixture
def videos(tmp_path):
    """`videos(name, greys)`: a list of videos, each of one grey."""

    def make(name, greys):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for number, grey in enumerate(greys):
            frames = np.full((8, 32, 32, 3), grey, np.uint8)
            frames[:, 4:8, 4:8] = 255
            write_video(folder / f"{number}.mp4", frames, 8)
            prompt = "nothing" if grey == 0 else f"something of {number}"
            rows.append({"video": f"{number}.mp4", "caption": prompt, "prompt": prompt, "seed": 1, "index": 0})
            rows[-1] |= {"model": name, "reference": "0.mp4", "first_frame": "1.mp4"}
        (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """160 columns, whatever was set when the command line was first imported."""
    monkeypatch.setattr(render._stdout, "_width", 160)
    monkeypatch.setattr(render._stderr, "_width", 160)


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "160"})
    return done.exit_code, done.output


def test_a_file_and_a_line_make_a_command(dummies, videos, tmp_path):
    assert "Is it bright?" in run("eval", "--help")[1]
    code, text = run("eval", "dummy", "--help")
    assert code == 0
    assert "--bright-from" in text
    assert "Mean grey from which a video is bright. [default: 100.0]" in " ".join(text.replace("│", " ").split())
    assert "--rater" not in text
    dark, light = videos("dark", [40, 60, 80, 90, 120, 130, 0]), videos("light", [140, 160, 180, 190, 220, 230, 0])
    for folder in (dark, light):
        out = tmp_path / f"run-{folder.name}"
        code, text = run("eval", "dummy", "--videos", folder, "--bright-from", "100", "--out", out)
        assert code == 0, text
        assert (out / "report.html").is_file()
    assert "dummy: 7 videos of light" in text
    assert "Checked on the pixels. 1 of 7 could not be scored." in " ".join(text.split())
    lines = [line.split() for line in text.splitlines()]
    assert ["bright", "100.0", "%", "61.0", "to", "100.0", "6"] in lines
    assert ["length", "8", "±0", "6"] in lines
    assert "motion_px" in text
    code, text = run("compare", tmp_path / "run-dark", tmp_path / "run-light", "--out", tmp_path / "compared")
    assert code == 0, text
    assert ["bright", "6", "33.3", "100.0", "+66.7"] in [line.split()[:5] for line in text.splitlines()]
    assert "ranked by bright" in (tmp_path / "compared" / "report.html").read_text()
    record = json.loads((tmp_path / "run-dark" / "run.json").read_text())
    assert record["settings"]["bright_from"] == 100.0
    with pytest.raises(UsageError, match=r"--bright-from -1"):
        evaluate(EvalSettings("dummy", str(dark), options={"bright_from": -1.0}), out=tmp_path / "refused")


def test_other_files_of_a_video(dummies, videos, tmp_path):
    folder = videos("set", [40, 60, 80])
    result = evaluate(EvalSettings("beside", str(folder)), out=tmp_path / "run")
    assert [item["distance"] for item in result.items] == pytest.approx([0, 20, 40], abs=3)
    assert [item["first_distance"] for item in result.items] == pytest.approx([20, 0, 20], abs=3)
    rows = [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]
    del rows[1]["reference"]
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(EvalSettings("beside", str(folder)), out=tmp_path / "again")
    assert result.items[1]["error"] == "1.mp4 has no reference."


def test_another_reference_is_another_run(dummies, videos, tmp_path):
    folder, real = videos("set", [40, 60, 80]), tmp_path / "real.mp4"
    write_video(real, np.full((8, 32, 32, 3), 50, np.uint8), 8)
    rows = [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]
    (folder / "videos.jsonl").write_text("".join(json.dumps(row | {"reference": str(real)}) + "\n" for row in rows))
    evaluate(EvalSettings("beside", str(folder)), out=tmp_path / "run")
    evaluate(EvalSettings("beside", str(folder)), out=tmp_path / "run")
    write_video(real, np.full((8, 32, 32, 3), 90, np.uint8), 8)
    with pytest.raises(UsageError, match="files beside them"):
        evaluate(EvalSettings("beside", str(folder)), out=tmp_path / "run")


# --- the same figure everywhere ---


def write_run(folder, metrics, *, benchmark):
    """A run in which every rate is of passes alone, every grade is 1, and other numbers are as they may be."""
    folder.mkdir()
    values = {"rate": 1.0, "grade": 1.0, "score": 0.731, "px": 0.52, "count": 1, "seconds": 0.9}
    columns = {"benchmark": benchmark, "task": "eval", "subject": "s", "split": "all"}
    rows = [mean_row(metric, [values[metric.kind]] * 8, **columns) for metric in metrics]
    rows.append(rows[0] | {"metric": "missing/video", "value": 0.0, "interval": "none", "count": 0})
    items = [
        {"video": f"{n}.mp4", "caption": "c", "prompt": f"p{n}", "index": 0, "seed": 0, "group": None}
        | {metric.name: values[metric.kind] for metric in metrics}
        for n in range(8)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "metrics.json").write_text(json.dumps(rows))
    record = {"command": f"eval {benchmark}", "settings": {}, "inputs": {}, "status": "finished"}
    (folder / "run.json").write_text(json.dumps(record))
    return EvalResult(folder, rows, items)


def cells_of(page, label):
    """Cells of a table of a report, by its first column, without what is small."""
    text = page[page.index(f'aria-label="{label}"') :]
    text = re.sub(r"<small>.*?</small>", "", text[: text.index("</table>")])
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in text.split("<tr>")[2:]]
    return {re.sub("<[^>]+>", "", row[0]): [re.sub("<[^>]+>", "", cell) for cell in row[1:]] for row in rows}


@pytest.mark.parametrize("benchmark", [*BENCHMARKS, "dummy"])
def test_terminal_report_and_comparison_show_the_same_figure(dummies, tmp_path, benchmark):
    known = [metric for metric in find_benchmark(benchmark).metrics if not metric.name.startswith("missing/")]
    known += [m for m in (DYNAMIC_DEGREE, LARGEST_MOTION) if m.name not in {metric.name for metric in known}]
    result = write_run(tmp_path / "a", known, benchmark=benchmark)
    other = write_run(tmp_path / "b", known, benchmark=benchmark)
    terminal = {name: (value, spread) for name, value, spread, _ in tables.scores(result).rows}
    report = cells_of(write_run_report(str(result.path)).read_text(), "Scores")
    compared = compare(CompareSettings((str(result.path), str(other.path))), out=tmp_path / "out")
    side = compared.sides[1]
    wide = {row[0]: row for row in tables.comparison(compared, side, wide=True).rows}
    page = cells_of((tmp_path / "out" / "report.html").read_text(), f"{side.label} against {compared.reference.label}")
    for metric in known:
        value = terminal[metric.name][0].removesuffix(" %")
        assert tuple(report[metric.name][:2]) == terminal[metric.name]
        assert wide[metric.name][2:4] == [value, value], metric
        assert page[metric.name][1:3] == [value, value], metric
        expected = {"rate": "100.0", "grade": "1", "score": "0.731", "px": "0.52", "count": "1"}[metric.kind]
        assert value == expected
        assert terminal[metric.name][0].endswith(" %") == (metric.kind == "rate")


def test_ratings_that_are_all_1_are_no_100_per_cent(tmp_path):
    """In one process with the real benchmark: answers, fields, rows, tables."""
    benchmark = find_benchmark("videophy2")()
    scores = []
    for number in range(4):
        video = Video(f"{number}.mp4", tmp_path, "a ball", "a ball")
        answers = [Answer(text="1", digits=np.array([9.0, 0, 0, 0, 0]))] * 2
        assert len(benchmark.questions(video)) == len(answers)
        context = Context(lambda: np.zeros((5, 4, 4, 3), np.uint8), 8, lambda frames: frames, answers)
        scores.append(Score(video, benchmark.score(video, context)))
    columns = {"benchmark": "videophy2", "task": "eval", "subject": "s", "split": "test", "rater": "r"}
    shown = {row["metric"]: tables.score_texts(row)[0] for row in benchmark.aggregate(scores, **columns)}
    assert (shown["sa"], shown["sa_mean"], shown["pc_mean"]) == ("0.0 %", "1", "1")
    assert shown["sa_expected"] == "1"
