"""`physcli sample` as a user meets it."""

from __future__ import annotations

import json

import pytest

MODEL = ("--model", "cogvideox-tiny:random")


@pytest.fixture(scope="module")
def run(run_physcli):
    return lambda *arguments, **options: run_physcli("sample", *arguments, columns=100, **options)


def test_table_then_json_of_the_same_run(run, tmp_path):
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
    assert [row["metric"] for row in found["rows"]] == ["seconds_per_video", "mean_flow_px"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No prompt"),
        (["--prompt", "a ball", "--size", "big"], "--size 'big'"),
        (["--prompt", "a ball", "--size", "60x64"], "60x64"),
        (["--prompt", "a ball", "--num-frames", "16"], "16 frames"),
        (["--prompt", "a ball", "--model", "videomae-tiny"], "is an encoder"),
        (["--prompt", "a ball", "--steps", "0"], "--steps"),
    ],
)
def test_errors_are_one_message(run, arguments, said, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "said"), [(None, "is not there"), ("\n", "holds no prompt")])
def test_a_list_without_prompts(run, tmp_path, text, said):
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    done = run("--prompts", "list.txt", cwd=tmp_path)
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_two_processes_make_the_set_of_one(run, start_physcli, two_processes, tmp_path):
    (tmp_path / "list.csv").write_text(
        "caption,detailed_caption,kind\n" + "".join(f"c{i},ball {i},k{i}\n" for i in range(5))
    )
    made = (
        *MODEL,
        "--prompts",
        tmp_path / "list.csv",
        "--limit",
        3,
        "--steps",
        1,
        "--num-frames",
        9,
        "--size",
        "32x32",
    )
    done = run(*made, "--out", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    words = ("sample", *made, "--out", tmp_path / "two")
    for done in two_processes(lambda environment: start_physcli(*words, env=environment)):
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / name / "videos.jsonl").read_text() for name in ("one", "two"))
    assert one == two
    rows = [json.loads(line) for line in one.splitlines()]
    assert [(row["caption"], row["prompt"], row["columns"]) for row in rows] == [
        (f"c{i}", f"ball {i}", {"kind": f"k{i}"}) for i in (0, 1, 3)
    ]
    for row in rows:
        assert (tmp_path / "one" / row["video"]).read_bytes() == (tmp_path / "two" / row["video"]).read_bytes()
    assert not list((tmp_path / "two").glob("*.part*"))
