"""`physcli sample` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MODEL = ("--model", "cogvideox-tiny:random")


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "physcli", "sample", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100", "OMP_NUM_THREADS": "1"},
        cwd=cwd,
    )


def test_table_then_json_of_the_same_run(tmp_path):
    made = (*MODEL, "--prompt", 'a "red" [ball]', "--prompt", "猫", "--steps", 2, "--num-frames", 9, "--size", "32x32")
    out = ("--out", tmp_path / "run", "--batch-size", 2)
    shown = run(*made, *out)
    assert shown.returncode == 0, shown.stderr
    assert "cogvideox-tiny (random init): 2 videos of 9 frames, 32x32" in shown.stdout
    assert 'a "red" [ball]' in shown.stdout
    assert "2 steps, guidance 6" in shown.stdout
    assert "random weights" in shown.stderr
    again = run(*made, *out, "--json", "--quiet")
    found = json.loads(again.stdout)
    assert again.stderr == ""
    assert [row["prompt"] for row in found["videos"]] == ['a "red" [ball]', "猫"]
    assert all((tmp_path / "run" / row["video"]).is_file() for row in found["videos"])
    assert [row["metric"] for row in found["rows"]] == ["seconds_per_video"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No --prompt"),
        (["--prompt", "a ball", "--size", "big"], "--size 'big'"),
        (["--prompt", "a ball", "--size", "60x64"], "60x64"),
        (["--prompt", "a ball", "--num-frames", "16"], "16 frames"),
        (["--prompt", "a ball", "--model", "videomae-tiny"], "is an encoder"),
        (["--prompt", "a ball", "--steps", "0"], "--steps"),
    ],
)
def test_errors_are_one_message(arguments, said, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()
