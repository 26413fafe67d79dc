"""Scoring sets of videos: what is written, what is missing, what a broken-off run keeps, and who judges."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from made_videos import GOLDEN

from physcli.data.video import read_video, write_video
from physcli.errors import DataError, FileChanged, ModelError, UsageError
from physcli.models.raters import TINY_RATER
from physcli.models.raters.mplug_owl_video import load_rater
from physcli.progress import Bar, Reporter
from physcli.tasks import eval as task
from physcli.tasks.agreement import AgreementSettings, agreement
from physcli.tasks.eval import EvalSettings, evaluate
from physcli.tasks.report import write_run_report
from physcli.tasks.run_dir import read_run
from physcli.tasks.scored_runs import read_scored_run

RANDOM = f"{TINY_RATER}:random"


class Heard(Reporter):
    def __init__(self):
        self.said = []

    def note(self, message):
        self.said.append(message)

    def warn(self, message):
        self.said.append(message)


@pytest.fixture
def videos(simulated, tmp_path):
    """A list of four clips of the simulated world, the second of them frozen, as `physcli sample` leaves it."""
    folder = tmp_path / "set"
    (folder / "videos").mkdir(parents=True)
    clips = [json.loads(line) for line in (simulated / "metadata.jsonl").read_text().splitlines()][:4]
    rows = []
    for number, clip in enumerate(clips):
        frames = read_video(simulated / clip["file_name"])
        frames = np.repeat(frames[:1], len(frames), axis=0) if number == 1 else frames
        write_video(folder / "videos" / f"{number}.mp4", frames, 20)
        rows.append({"video": f"videos/{number}.mp4", "caption": clip["prompt"], "prompt": clip["prompt"]})
        rows[-1] |= {"seed": number, "index": number, "model": "real", "simulated_world": True}
    write_list(folder, rows)
    return folder


def write_list(folder, rows):
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]


def values(result):
    return {row["metric"]: (row["value"], row["n"]) for row in result.rows if row["group"] == "all"}


def test_laws(videos, tmp_path):
    result = evaluate(EvalSettings("laws", str(videos)), out=tmp_path / "run")
    found = values(result)
    assert found["moves"] == (0.75, 4)
    assert result.items[1]["joint"] is False
    assert result.items[1]["motion_px"] < min(item["motion_px"] for item in result.items if item["index"] != 1)
    assert found["missing/video"] == (0, 4)
    scored = read_scored_run(str(tmp_path / "run"))  # as `physcli compare` reads it
    assert len(scored.items) == 4
    assert {"sa", "pc", "joint", "dynamic_degree", "law/permanence"} <= scored.metrics.keys()
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")


def test_a_video_that_cannot_be_scored_is_counted(videos, tmp_path):
    rows = rows_of(videos)
    rows[0]["prompt"] = rows[0]["caption"] = "nothing the simulator knows"
    write_list(videos, rows)
    (videos / "videos" / "2.mp4").write_bytes(b"no video")
    (videos / "videos" / "3.mp4").unlink()
    heard = Heard()
    result = evaluate(EvalSettings("laws", str(videos)), out=tmp_path / "run", reporter=heard)
    assert values(result)["missing/video"] == (0.75, 4)
    assert values(result)["pc"][1] == 1
    assert [item["pc"] is None for item in result.items] == [True, False, True, True]
    assert sum("Not scored" in line for line in heard.said) == 3


def test_several_cores_score_as_one_does(videos, tmp_path, monkeypatch):
    """Also what cannot be scored."""
    next(videos.rglob("*.mp4")).write_bytes(b"nothing")
    one = evaluate(EvalSettings("laws", str(videos)), out=tmp_path / "one", batch_size=1)
    monkeypatch.setattr(task, "_LEAST_A_WORKER", 1)
    monkeypatch.setattr(task.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(task, "_score", lambda *_, **__: pytest.fail("scored by the parent"))
    several = evaluate(EvalSettings("laws", str(videos)), out=tmp_path / "several", batch_size=1)
    assert several.rows == one.rows
    assert (several.path / "items.jsonl").read_bytes() == (one.path / "items.jsonl").read_bytes()


def test_what_colours_are_stored_as_is_told(videos, tmp_path):
    from physcli.tasks.tables import scores

    def said(name):
        result = evaluate(EvalSettings("laws", str(videos)), out=tmp_path / name)
        record = json.loads((tmp_path / name / "run.json").read_text())
        return [item["pixel_format"] for item in result.items], record["pixel_formats"], scores(result).caption

    formats, counts, caption = said("full")
    assert (formats, counts) == (["yuv444p"] * 4, {"yuv444p": 4})
    assert "colour" not in caption
    for number in range(2):
        file = videos / "videos" / f"{number}.mp4"
        write_video(file, read_video(file), 20, full_chroma=False)
    formats, counts, caption = said("mixed")
    assert (formats[1:3], counts) == (["yuv420p", "yuv444p"], {"yuv420p": 2, "yuv444p": 2})
    assert "The videos differ in chroma (2 yuv420p, 2 yuv444p)" in caption


def test_not_one_can_be_scored(videos, tmp_path):
    for file in (videos / "videos").iterdir():
        file.write_bytes(b"no video")
    with pytest.raises(DataError, match="Not one of 4 videos could be scored"):
        evaluate(EvalSettings("laws", str(videos)), out=tmp_path / "run")


def test_a_broken_off_run_scores_the_rest(videos, tmp_path):
    settings = EvalSettings("laws", str(videos))
    whole = evaluate(settings, out=tmp_path / "whole")
    log = tmp_path / "run"
    partial = evaluate(settings, out=log)
    heard = Heard()
    assert evaluate(settings, out=log, reporter=heard).rows == partial.rows == whole.rows
    assert "already holds these scores" in heard.said[0]
    # As a kill leaves it: two rows scored, a third cut short, no result.
    rows = [json.loads(line) for line in (log / "items.jsonl").read_text().splitlines()]
    kept = "".join("\n" + json.dumps({"number": number, **rows[number]}) for number in (0, 1))
    (log / "items-0.part.jsonl").write_text(kept + '\n{"number": 2, "vid')
    for name in ("items.jsonl", "metrics.json", "report.html"):
        (log / name).unlink()
    record = json.loads((log / "run.json").read_text())
    (log / "run.json").write_text(json.dumps(record | {"status": "running"}))
    heard = Heard()
    again = evaluate(settings, out=log, reporter=heard)
    assert "2 of 4 videos are scored already." in heard.said
    assert again.rows == whole.rows
    assert again.items == whole.items
    assert not list(log.glob("*.part.jsonl"))


def test_a_run_without_its_report_is_not_finished(videos, tmp_path, monkeypatch):
    settings, out = EvalSettings("laws", str(videos)), tmp_path / "run"

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("physcli.tasks.eval.write_run_report", full)
        with pytest.raises(OSError, match="No space"):
            evaluate(settings, out=out)
    assert read_run(out)["status"] == "failed"
    heard = Heard()
    evaluate(settings, out=out, reporter=heard)
    assert "4 of 4 videos are scored already." in heard.said
    # Earlier versions wrote it after the record: a kill between the two left none.
    report = (out / "report.html").read_text()
    (out / "report.html").unlink()
    evaluate(settings, out=out)
    assert (out / "report.html").read_text().count("<tr>") == report.count("<tr>")


@pytest.mark.parametrize("how", ["vanishes", "is replaced"])
def test_a_file_that_changes_while_the_run_reads_is_not_scored(videos, tmp_path, how):
    """Its score would stand beside the hash of what it was; what is scored before is kept."""
    settings, out = EvalSettings("laws", str(videos)), tmp_path / "run"
    whole = evaluate(settings, out=tmp_path / "whole")
    file, other = videos / "videos" / "2.mp4", videos / "videos" / "0.mp4"
    content = file.read_bytes()

    class Meddler(Heard):
        @contextmanager
        def bar(self, *arguments):
            file.unlink()
            if how == "is replaced":
                shutil.copy(other, file)
            yield Bar()

    with pytest.raises(FileChanged, match="has vanished" if how == "vanishes" else "has changed"):
        evaluate(settings, out=out, batch_size=1, reporter=Meddler())
    assert read_run(out)["status"] == "failed"
    file.write_bytes(content)
    heard = Heard()
    again = evaluate(settings, out=out, reporter=heard)
    assert "2 of 4 videos are scored already." in heard.said
    assert (again.rows, again.items) == (whole.rows, whole.items)


def test_a_file_that_vanishes_before_the_report_is_not_left_out_of_it(videos, tmp_path, monkeypatch):
    settings, out, file = EvalSettings("laws", str(videos)), tmp_path / "run", videos / "videos" / "1.mp4"
    whole = evaluate(settings, out=tmp_path / "whole")
    content = file.read_bytes()

    def late(run, **options):
        file.unlink()
        return write_run_report(run, **options)

    with monkeypatch.context() as patch:
        patch.setattr("physcli.tasks.eval.write_run_report", late)
        with pytest.raises(FileChanged, match="has vanished"):
            evaluate(settings, out=out)
    file.write_bytes(content)
    assert evaluate(settings, out=out).rows == whole.rows
    one, other = ((folder / "report.html").read_text().count("<video") for folder in (out, tmp_path / "whole"))
    assert one == other > 0


@pytest.mark.parametrize("benchmark", ["videophy", "videophy2"])
def test_raters(videos, tmp_path, benchmark):
    heard = Heard()
    result = evaluate(EvalSettings(benchmark, str(videos), RANDOM), out=tmp_path / "run", reporter=heard)
    assert any("random weights" in line for line in heard.said)
    assert {row["rater"] for row in result.rows} == {f"{TINY_RATER} (random init)"}
    for what in ("sa", "pc"):
        with (tmp_path / "run" / f"official_{what}.csv").open(newline="") as file:
            table = list(csv.reader(file))
        scores = [item[f"{what}_mean"] for item in result.items]
        if benchmark == "videophy":
            assert [float(row[2]) for row in table] == scores
            assert all(0 <= score <= 1 for score in scores)
        else:
            assert table[0] == ["", "caption", "videopath", "score"]
            assert [row[3] for row in table[1:]] == ["" if score is None else str(float(score)) for score in scores]
            assert all(1 <= item[f"{what}_expected"] <= 5 for item in result.items)
    assert values(result)["missing/video"] == (0, 4)
    read_scored_run(str(tmp_path / "run"))


@pytest.mark.parametrize("benchmark", ["videophy", "videophy2"])
def test_videos_of_the_simulated_world_need_no_rater_named(videos, tmp_path, benchmark):
    heard = Heard()
    result = evaluate(EvalSettings(benchmark, str(videos)), out=tmp_path / "run", reporter=heard)
    assert f"The rater is {TINY_RATER}." in heard.said
    assert {row["rater"] for row in result.rows} == {TINY_RATER}
    assert values(result)["missing/video"] == (0, 4)
    assert not any("random" in line for line in heard.said)


def test_a_rater_against_the_laws(videos, tmp_path):
    evaluate(EvalSettings("laws", str(videos)), out=tmp_path / "laws")
    evaluate(EvalSettings("videophy", str(videos), RANDOM), out=tmp_path / "rater", device_map="auto")
    result = agreement(AgreementSettings(str(tmp_path / "laws"), str(tmp_path / "rater")), out=tmp_path / "run")
    assert (result.truth, result.judge) == ("laws", f"{TINY_RATER} (random init)")
    assert sum(result.counts("pc")) == result.num_videos == 4
    assert result.verdicts == ["sa", "pc", "joint"]
    assert result.row("pc", "rank_correlation")["n"] == 4


def test_rules(videos, tmp_path):
    """Asked for as many videos at a time as the batch holds; the same as one by one; official columns."""
    names = [f"videos/{number}.mp4" for number in (0, 0, 2)]
    told = list(zip(names, ["The ball falls.", "The box floats.", "The ball stops."], strict=True))
    path = tmp_path / "rule.csv"
    path.write_text("videopath,rule\n" + "".join(f"{name},{rule}\n" for name, rule in told))
    settings = EvalSettings("videophy2", str(videos), RANDOM, rules=str(path))
    one = evaluate(settings, out=tmp_path / "one", batch_size=1)
    run = evaluate(settings, out=tmp_path / "run", batch_size=3)
    assert [[judged["rule"] for judged in item.get("judged", ())] for item in run.items] == [
        ["The ball falls.", "The box floats."],
        [],
        ["The ball stops."],
        [],
    ]
    for ours, theirs in zip(run.items, one.items, strict=True):
        assert ours["pc_expected"] == pytest.approx(theirs["pc_expected"], abs=1e-5)
        assert ours["sa_answer"] == theirs["sa_answer"]
        assert ours.get("judged") == theirs.get("judged")
    with (tmp_path / "run" / "official_rule.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["", "videopath", "rule", "score"]
    assert [tuple(row[1:3]) for row in table[1:]] == told
    assert {"missing/rules", "rules", "rules_undecided"} <= values(run).keys()
    assert len(read_scored_run(str(tmp_path / "run")).items) == 4


@pytest.mark.parametrize("benchmark", ["videophy", "videophy2"])
def test_a_caption_that_cannot_be_asked_about_loses_its_own_video_alone(videos, tmp_path, benchmark):
    rows = rows_of(videos)
    rows[1]["caption"] = "a <|video|> in the words"
    write_list(videos, rows)
    result = evaluate(EvalSettings(benchmark, str(videos), RANDOM), out=tmp_path / "run", batch_size=4)
    assert values(result)["missing/video"] == (0.25, 4)
    assert "cannot be asked about" in result.items[1]["error"]
    assert ["error" in item for item in result.items] == [False, True, False, False]


def test_a_list_of_rules_alone_has_no_adherence(videos, tmp_path):
    path = videos / "rule.csv"
    path.write_text("videopath,rule\nvideos/0.mp4,The ball falls.\nvideos/2.mp4,The ball stops.\n")
    result = evaluate(EvalSettings("videophy2", str(path), RANDOM), out=tmp_path / "run")
    found = values(result)
    assert found["missing/rules"][1] == 2
    assert "pc" in found
    assert not {"sa", "joint", "sa_mean", "missing/sa"} & found.keys()
    assert not (tmp_path / "run" / "official_sa.csv").exists()
    assert (tmp_path / "run" / "official_pc.csv").exists()


def test_other_weights_are_another_run(videos, tmp_path):
    rater = load_rater(RANDOM)
    rater.save(tmp_path / "rater")
    settings = EvalSettings("videophy2", str(videos), str(tmp_path / "rater"), limit=1)
    evaluate(settings, out=tmp_path / "run")
    with torch.no_grad():
        rater.query_tokens.add_(1)
    rater.save(tmp_path / "rater")
    with pytest.raises(UsageError, match="rater"):
        evaluate(settings, out=tmp_path / "run")


def test_who_judges_by_default(videos, tmp_path):
    rows = rows_of(videos)
    write_list(videos, [row | {"simulated_world": False} for row in rows])
    with pytest.raises(ModelError, match="the rater of videophy2 is not here") as caught:
        evaluate(EvalSettings("videophy2", str(videos)), out=tmp_path / "run")
    assert "videophysics/videophy_2_auto, about 15 GB" in str(caught.value.expected)
    assert "eval laws" in str(caught.value.fix)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"benchmark": "videophy3"}, "videophy3"),
        ({"rater": "any"}, "--rater with eval laws"),
        ({"benchmark": "videophy", "options": {"threshold": 2.0}}, "--threshold 2.0"),
        ({"options": {"treshold": 0.5}}, "Unknown setting of eval laws: 'treshold'"),
        ({"rules": "rule.csv"}, "Rules with eval laws"),
    ],
)
def test_settings_that_cannot_be(videos, tmp_path, changes, said):
    settings = EvalSettings(**({"benchmark": "laws", "videos": str(videos)} | changes))
    with pytest.raises(UsageError, match=said):
        evaluate(settings, out=tmp_path / "run")


def test_a_simulated_folder_says_what_of_it_is_scored(simulated, tmp_path):
    heard = Heard()
    evaluate(EvalSettings("laws", str(simulated), limit=1), out=tmp_path / "run", reporter=heard)
    num_test = sum(json.loads(line)["split"] == "test" for line in (simulated / "metadata.jsonl").open())
    assert any(line.startswith(f"The {num_test} test clips of") for line in heard.said)


def test_files_as_they_come(tmp_path):
    """Damaged videos are missing and named; what a container says counts, or not, as is asked for."""
    prompt = "a red ball is thrown up and falls towards a yellow cylinder and hits it, filmed at 20 frames per second"
    names = [f"drop-{name}.mp4" for name in ("upright", "rotation-flag", "wide-pixels", "variable-rate")]
    broken = ["broken-off-faststart.mp4", "bit-flip.mp4", "size-changes.mkv"]
    rows = [{"video": str(GOLDEN / name), "caption": prompt, "simulated_world": True} for name in (*broken, *names)]
    write_list(tmp_path, rows)
    heard = Heard()
    result = evaluate(EvalSettings("laws", str(tmp_path)), out=tmp_path / "laws", reporter=heard)
    assert [bool(item.get("error")) for item in result.items] == [True] * 3 + [False] * 4
    assert [item["pc"] for item in result.items] == [None] * 3 + [True] * 4
    assert values(result)["missing/video"] == (pytest.approx(3 / 7), 7)
    for name, what in zip(broken, ("breaks off", "damaged", "changes its size"), strict=True):
        assert any(name in line and what in line for line in heard.said)
    assert any("variable-rate.mp4 has a variable frame rate: 17 of its 33 frames" in line for line in heard.said)


def test_as_decord(tmp_path):
    """A file that says it is to be turned scores as its upright twin, unless decord's reading is asked for."""
    rows = [{"video": str(GOLDEN / f"drop-{name}.mp4"), "caption": "x"} for name in ("upright", "rotation-flag")]
    write_list(tmp_path, rows)
    found = {}
    for as_decord in (False, True):
        settings = EvalSettings("videophy", str(tmp_path), rater=TINY_RATER, as_decord=as_decord)
        items = evaluate(settings, out=tmp_path / f"run-{as_decord}").items
        found[as_decord] = [item["sa_mean"] for item in items]
    assert found[False][1] == pytest.approx(found[False][0], abs=0.02)
    assert found[True][0] == found[False][0]
    assert abs(found[True][1] - found[False][1]) > 1e-3
    with pytest.raises(UsageError, match="--as-decord"):
        evaluate(EvalSettings("laws", str(tmp_path), as_decord=True), out=tmp_path / "laws")


def test_scores_of_an_earlier_reading_are_not_served(tmp_path):
    """A run that did not heed what its videos say of themselves is another run."""
    prompt = "a red ball is thrown up and falls towards a yellow cylinder and hits it, filmed at 20 frames per second"
    for name in ("upright", "rotation-flag", "420"):
        folder, out = tmp_path / name, tmp_path / f"run-{name}"
        folder.mkdir()
        write_list(folder, [{"video": str(GOLDEN / f"drop-{name}.mp4"), "caption": prompt}])
        evaluate(EvalSettings("laws", str(folder)), out=out)
        record = json.loads((out / "run.json").read_text())
        was = record["inputs"].pop("what videos say of themselves", None)
        assert (was is None) == (name == "upright")
        (out / "run.json").write_text(json.dumps(record))
        if name == "upright":
            assert evaluate(EvalSettings("laws", str(folder)), out=out).items[0]["pc"]
        else:
            with pytest.raises(UsageError, match="what videos say of themselves"):
                evaluate(EvalSettings("laws", str(folder)), out=out)
