"""The whole story, told small."""

from __future__ import annotations

import dataclasses

import pytest

from physcli.models.raters import TINY_RATER
from physcli.tasks.quickstart import QuickstartSettings, quickstart

SIZES = {"num_test": 14, "num_trained": 2, "steps": 2, "batch_size": 2, "num_prompts": 3, "sample_steps": 2}
SMALL = QuickstartSettings(**SIZES)
# What makes the command's as small.
COMMAND = f"""
from functools import partial
from physcli.tasks import quickstart
quickstart.QuickstartSettings = partial(quickstart.QuickstartSettings, **{SIZES!r})
"""


def told(row):
    return row["subject"], row["group"], row["metric"], row["value"], row["n"]


def made_by(folder):
    """When its weights and videos were made."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".mp4", ".safetensors")}


@pytest.mark.slow
def test_the_whole_story(tmp_path, run_physcli, listener):
    heard = listener()
    done = quickstart(SMALL, out=tmp_path / "run", cache_dir=tmp_path / "cache", reporter=heard)
    stages = [line for line in heard.said if line.startswith("[")]
    assert [line[:5] for line in stages] == [f"[{number}/7]" for number in range(1, 8)]
    assert list(done.seconds) == ["simulate", "probe", "finetune", "probe again", "sample", "eval", "compare"]

    # Before and after, the same clips.
    assert done.before.accuracy("videomae-tiny")["n"] == done.after.accuracy("videorepa")["n"] == 14
    assert done.trained.steps[-1]["step"] == 2
    assert "videorepa" in done.trained.steps[-1]

    # Three sets of the same prompts and seeds, each scored and held against the base.
    for benchmark in done.scores:
        runs = done.scores[benchmark]
        keys = {tuple((item["prompt"], item["seed"]) for item in run.items) for run in runs.values()}
        assert list(runs) == ["base", "videorepa", "guided"]
        assert len(keys) == 1
        assert len(done.comparisons[benchmark].keys) == 3
    asked = {item["prompt"] for item in done.scores["laws"]["base"].items}
    assert len(asked) == 3
    assert all(prompt.endswith(", filmed at 7 frames per second") for prompt in asked)  # whole events
    assert list(done.scores) == list(done.comparisons) == ["laws", "videophy2"]
    assert {row["rater"] for row in done.scores["videophy2"]["guided"].rows} == {TINY_RATER}
    for name in ("clips.png", "compare/report.html", "videorepa/model", "samples-guided/contact_sheet.png"):
        assert (tmp_path / "run" / name).exists(), name

    # Again: nothing is computed anew.
    made = made_by(tmp_path / "run")
    again = quickstart(SMALL, out=tmp_path / "run", cache_dir=tmp_path / "cache")
    assert [told(row) for row in again.rows] == [told(row) for row in done.rows]
    assert made_by(tmp_path / "run") == made

    # As the command line tells it.
    words = ["quickstart", "--out", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
    shown = run_physcli(*words, columns=300, before=COMMAND)
    assert shown.returncode == 0, shown.stderr
    assert made_by(tmp_path / "run") == made
    for part in ("[1] Before fine-tuning", "[2] After fine-tuning", "[3] The videos", "compare/report.html"):
        assert part in shown.stdout, part
    assert "random init" not in shown.stdout

    with pytest.raises(Exception, match="steps"):
        quickstart(dataclasses.replace(SMALL, steps=3), out=tmp_path / "run", cache_dir=tmp_path / "cache")
