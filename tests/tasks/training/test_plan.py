"""A dry run: measured on the real thing, and nothing is left of it."""

from __future__ import annotations

import json

import pytest
from made_videos import GOLDEN

from physcli.errors import DataError, UsageError
from physcli.progress import Reporter
from physcli.recipe import read_recipe
from physcli.tasks.processes import Processes
from physcli.tasks.training.plan import make_plan


@pytest.fixture
def plan(simulated, tmp_path):
    def make(recipe, *overrides, data=None):
        source = f"data.source={json.dumps(str(data or simulated))}"
        settings = read_recipe(recipe, [source, "train.batch_size=2", "objective.windows=2", *overrides])
        return make_plan(
            settings, seed=0, device="cpu", cache=tmp_path / "cache", processes=Processes("cpu"), reporter=Reporter()
        )

    return make


def test_the_field_of_the_tiny_model(plan, tmp_path):
    found = plan("lamo-field")
    # Two windows of 17 frames in a row, and all 49 frames hold one of every third.
    assert (found.num_clips, found.windows) == (28, 28 * 3)
    # Mean and deviation of 5×8×16×16 latents in half precision; the prompts come on top.
    latents = 2 * 5 * 8 * 16 * 16 * 2 * found.windows
    assert latents < found.cache_bytes < 1.6 * latents
    assert found.step_seconds > 0
    assert found.memory_bytes > 0
    assert 50_000 < found.trained < 300_000
    assert 4 * 3 * found.trained <= found.checkpoint_bytes < 4 * 5 * found.trained
    assert list(tmp_path.iterdir()) == []


def test_fewer_clips_keep_less(plan):
    whole, half = plan("lamo-field"), plan("lamo-field", "data.limit=14")
    assert half.num_clips == 14
    assert half.cache_bytes == pytest.approx(whole.cache_bytes / 2, rel=0.05)


def test_of_a_suite_that_is_not_there_yet(plan, tmp_path):
    found = plan("lamo-field", data="simulated:50")
    assert found.num_clips == 150
    assert list(tmp_path.iterdir()) == []


def test_what_would_stop_the_run_stops_it(plan, tmp_path):
    with pytest.raises(UsageError, match="No such block: 9"):
        plan("videorepa", "method.taps=[9]")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_step_together(plan, simulated, start_physcli, two_processes, tmp_path):
    """Each prepares its one clip for itself: shared, there would be none for the second. The first reports."""
    words = [
        "finetune",
        "--recipe",
        "lamo-field",
        "--data",
        simulated,
        "--cache-dir",
        tmp_path / "cache",
        "--device",
        "cpu",
    ]
    words += ["train.batch_size=2", "objective.windows=2", "train.steps=3", "--dry-run", "--json"]
    main, other = two_processes(lambda environment: start_physcli(*words, env=environment))
    assert (main.returncode, other.returncode) == (0, 0), main.stderr + other.stderr
    assert other.stdout == ""
    found = json.loads(main.stdout)["plan"]
    assert found["windows"] == 3 * 2 * 2  # steps × clips × processes
    assert found["step_seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_broken_first_clip_is_passed_over(tmp_path, plan):
    folder = tmp_path.parent / f"{tmp_path.name}-clips"
    (folder / "train").mkdir(parents=True)
    (folder / "test").mkdir()
    rows = []
    for split in ("train", "test"):
        for name in ("broken-off-faststart", "drop-upright", "drop-420"):
            (folder / split / f"{name}.mp4").write_bytes((GOLDEN / f"{name}.mp4").read_bytes())
            rows.append(f"{split}/{name}.mp4,a red ball falls")
    (folder / "metadata.csv").write_text("\n".join(["file_name,prompt", *rows]) + "\n")
    assert plan("sft", "objective.strides=[1]", data=folder).step_seconds > 0
    for split in ("train", "test"):
        for name in ("drop-upright", "drop-420"):
            (folder / split / f"{name}.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="Not one of 3 clips can be used"):
        plan("sft", "objective.strides=[1]", data=folder)
