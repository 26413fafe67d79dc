"""The command line as a user meets it: processes of their own, exit codes, clean stdout, one message an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import physcli


@pytest.fixture(scope="module")
def run(run_physcli):
    return run_physcli


def test_a_fresh_interpreter(tmp_path):
    """All as it is typed; what else is tested of the command line starts from one that has imported everything."""
    script = Path(sys.executable).with_name("physcli")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"physcli {physcli.__version__}", "")


@pytest.mark.slow
def test_a_command_in_a_fresh_interpreter(tmp_path):
    command = [sys.executable, "-m", "physcli", "sample", "--prompt", "a ball", "--model", "videomae-tiny"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is an encoder" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help(run):
    assert run("--version").stdout.strip() == f"physcli {physcli.__version__}"
    shown = run("probe", "physion", "--help")
    assert shown.returncode == 0
    for option in ("--model", "--layers", "--sigma", "--out", "--seed", "--json", "--cache-dir", "--limit"):
        assert option in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["prob"], 2, "Did you mean 'probe'"),
        (["probe", "physion", "--modle", "x"], 2, "--modle"),
        (["probe", "physion", "--model", "videomae-tyni"], 2, "Did you mean 'videomae-tiny'"),
        (["probe", "physion", "--layers", "a"], 2, "--layers 'a'"),
        (["probe", "physion", "--device", "cuda:9"], 2, "cuda:9"),
        (["probe", "physion", "--dtype", "float23"], 2, "Did you mean 'float32'"),
        (["data", "simulate", "--num-clips", "7"], 2, "--num-clips 7"),
        (["data", "simulate", "--size", "big"], 2, "--size 'big'"),
        (["data", "inspect", "no/such/folder"], 1, "no/such/folder"),
        (["probe", "physion", "--sigma", "0.1", "--sigma=0.3"], 2, "--sigma is given 2 times"),
        (["eval", "laws", "--videos", "a", "--videos", "b"], 2, "--videos is given 2 times"),
        (
            ["study", "x", "--only", "a", "--only", "b", "--out", "a", "--out", "b"],
            2,
            "--out is given 2 times",
        ),
        (["models", "show", "no/such/model"], 1, "no/such/model"),
        (["data", "cache", "clear", "holidays"], 1, "holidays"),
    ],
)
def test_errors_are_one_message(run, arguments, code, said, tmp_path, simulated):
    if arguments[0] == "probe":
        arguments = [*arguments, "--data", simulated]
    done = run(*arguments, env={"PHYSCLI_CACHE": str(tmp_path / "cache")}, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


MISTYPED = [
    (["finetune", "--recipe", "videorepo"], "Did you mean 'videorepa'"),
    (["finetune", "--recipe", "sft", "--model", "wan-tny"], "Did you mean 'wan-tiny'"),
    (["finetune", "--recipe", "repa", "method.teacher=videoma-tiny"], "Did you mean 'videomae-tiny'"),
    (["data", "precompute", "--recipe", "sft", "model=wan-tny"], "Did you mean 'wan-tiny'"),
    (["probe", "physion", "--model", "wan-tny"], "Did you mean 'wan-tiny'"),
    (["sample", "--prompts", "simulated", "--model", "wan-tny"], "Did you mean 'wan-tiny'"),
    (["sample", "--prompts", "simulated", "--guidance", "lamoo"], "Did you mean 'lamo'"),
    (["models", "show", "wan-tny"], "Did you mean 'wan-tiny'"),
    (["study", "method"], "Did you mean 'methods'"),
    (["eval", "laws", "--videos", "nowhere"], "nowhere is not there"),
]
_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "mujoco")))
from physcli.cli.app import main
main()
"""


@pytest.mark.parametrize(("arguments", "said"), MISTYPED, ids=lambda value: " ".join(value[:2]))
def test_what_is_mistyped_is_said_at_once(arguments, said, tmp_path):
    """Before anything is simulated, and before torch is imported: it cannot be here."""
    command = [sys.executable, "-c", _WITHOUT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") or (done.returncode == 1 and arguments[0] == "eval"), done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(run, tmp_path):
    done = run("data", "inspect", tmp_path / "nothing", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_json_is_all_there_is_on_stdout(run, tmp_path, simulated):
    cache = {"PHYSCLI_CACHE": str(tmp_path / "cache")}
    made = run("data", "simulate", "--num-clips", 4, "--scenario", "drop", "--out", tmp_path / "d", "--json")
    assert json.loads(made.stdout)["num_clips"] == 4
    assert json.loads(made.stdout)["absent_scenarios"] == {}
    found = json.loads(run("data", "inspect", simulated, "--json").stdout)
    assert (found["kind"], found["num_usable"], found["problems"]) == ("simulated", 40, [])
    assert json.loads(run("data", "cache", "ls", "--json", env=cache).stdout)["kinds"] == {}
    names = {row["name"] for row in json.loads(run("models", "ls", "--json").stdout)}
    assert {"cogvideox-tiny", "videomae-tiny", "mplug-owl-video-tiny", "motion-field-tiny"} <= names
    facts = json.loads(run("models", "show", "videomae-tiny", "--json").stdout)
    assert (facts["kind"], facts["blocks"], facts["weights"]) == ("encoder", 6, "trained")
    facts = json.loads(run("models", "show", "videomae-tiny:random", "--json").stdout)
    assert (facts["kind"], facts["blocks"], facts["weights"]) == ("encoder", 6, "random init")
    facts = json.loads(run("models", "show", "mplug-owl-video-tiny:random", "--json").stdout)
    assert (facts["kind"], facts["weights"]) == ("rater", "random init")
    assert facts["frames shown"] == "16 of 64x64, evenly spaced"
    facts = json.loads(run("models", "show", "motion-field-tiny", "--json").stdout)
    assert (facts["kind"], facts["parameters"], facts["lag"]) == ("motion field", 195784, "1 latent frame")
    checks = json.loads(run("doctor", "--json", env=cache).stdout)
    assert {"Software", "Devices", "Extras", "Storage", "Models"} == {check["area"] for check in checks}


def test_inspect_names_broken_files(run, tmp_path, simulated):
    for number, path in enumerate(sorted((simulated / "physion_mp4s" / "test").glob("*.mp4"))[:3]):
        payload = path.read_bytes()
        (tmp_path / f'a "clip", no. {number}.mp4').write_bytes(payload if number else payload[:99])
    done = run("data", "inspect", tmp_path)
    assert done.returncode == 0
    assert "1 broken or unusable" in done.stdout
    assert 'a "clip", no. 0.mp4' in done.stdout


def test_completion_knows_the_commands(run):
    done = run(env={"_PHYSCLI_COMPLETE": "complete_bash", "COMP_WORDS": "physcli pro", "COMP_CWORD": "1"})
    assert "probe" in done.stdout


@pytest.mark.slow
def test_bench_gives_rows(run, tmp_path):
    rows = json.loads(run("bench", "simulate", "--num-pairs", 1, "--out", tmp_path / "b", "--json").stdout)["rows"]
    assert {row["metric"] for row in rows} >= {"physics_ms_per_clip", "draw_ms_per_clip", "clips_per_second_per_core"}
    assert json.loads((tmp_path / "b" / "metrics.json").read_text()) == rows
    options = ("--rounds", 1, "--batch-size", 1, "--out", tmp_path / "p", "--json")
    rows = json.loads(run("bench", "probe", *options).stdout)["rows"]
    assert len([row for row in rows if row["metric"] == "tapped_over_full"]) == 6


@pytest.mark.long
def test_quickstart(run, tmp_path):
    """As it is; a shorter one is in tests/tasks/test_quickstart.py."""
    done = run("quickstart", "--out", tmp_path / "run", env={"PHYSCLI_CACHE": str(tmp_path / "cache")}, timeout=3600)
    assert done.returncode == 0, done.stderr
    for name in ("clips.png", "probe-before/probe.png", "probe-after/probe.png", "compare/report.html"):
        assert (tmp_path / "run" / name).exists(), name
    assert "random init" not in done.stdout
