"""Shared fixtures: one small simulated dataset, one cache, one probe a test session."""

from __future__ import annotations

import os

# Before numpy and torch are imported: test workers share the cores, and threads of their own would only be in the way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hashlib
import json

import numpy as np
import pytest

from physcli.data.video import write_video
from physcli.tasks.simulate import SimulateSettings, simulate

SMALL = SimulateSettings(num_train=28, num_test=12, scenarios=("collide", "roll"), seed=3)


@pytest.fixture(scope="session")
def small():
    """Settings of the `simulated` fixture."""
    return SMALL


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """A cache folder that all tests of this process share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """40 simulated clips, made by one process."""
    folder = tmp_path_factory.mktemp("data") / "simulated"
    simulate(SMALL, out=folder, workers=1)
    return folder


def write_eval_run(
    folder,
    scores,
    *,
    prompts=None,
    per_prompt=1,
    videos=False,
    groups=("a", "b"),
    rater=None,
    benchmark="laws",
    subject="cogvideox-tiny",
    status="finished",
    higher=None,
    seed=0,
    tint=0,
):
    """An eval run as `physcli eval` leaves it. `scores` is metric → values, one a video; None where there is none."""
    folder.mkdir(parents=True)
    num = len(next(iter(scores.values())))
    rows = []
    for number in range(num):
        prompt = (
            f"A red ball rolls, number {number // per_prompt}." if prompts is None else prompts[number // per_prompt]
        )
        index = number % per_prompt
        row = {"video": f"videos/{number}.mp4", "caption": prompt, "prompt": prompt, "index": index}
        digest = hashlib.sha256(f"{seed}/{prompt}/{index}".encode()).digest()
        row |= {"seed": int.from_bytes(digest[:4], "little"), "group": groups[number % len(groups)]}
        rows.append(row | {metric: values[number] for metric, values in scores.items()})
        if videos:
            (folder / "videos").mkdir(exist_ok=True)
            frames = np.full((9, 64, 64, 3), 30 + tint, np.uint8)
            for t in range(9):
                frames[t, 20:40, 4 + 5 * t : 16 + 5 * t] = (220, 40 + number * 20 % 200, 40)
            write_video(folder / "videos" / f"{number}.mp4", frames, 10)
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    metrics = []
    for metric, values in scores.items():
        known = [float(value) for value in values if value is not None]
        metrics.append(
            {
                "benchmark": benchmark,
                "task": "score",
                "subject": subject,
                "split": "all",
                "group": "all",
                "metric": metric,
                "value": sum(known) / len(known) if known else None,
                "stderr": float(np.std(known) / len(known) ** 0.5) if known else None,
                "n": len(known),
                "higher_is_better": (higher or {}).get(metric, True),
            }
            | ({"rater": rater} if rater else {})
        )
    (folder / "metrics.json").write_text(json.dumps(metrics))
    record = {"command": f"eval {benchmark}", "settings": {"videos": str(folder)}, "inputs": {}, "status": status}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def eval_run():
    """`write_eval_run`."""
    return write_eval_run
