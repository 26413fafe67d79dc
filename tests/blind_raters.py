"""Raters whose preferences are known, and the files they would save."""

from __future__ import annotations

import json

import numpy as np

from physcli.data.video import write_video
from physcli.tasks.blind.ballots import checksum


def save_votes(path, page, rater, votes, session=None, saved="2026-01-01T10:20:00.000Z"):
    """A file of votes as the page saves it; `votes` is rows of trial, left, right, choice and what differs."""
    usual = {"plays": 1, "replays": 0, "ms": 6000, "revised": 0}
    content = {
        "physcli_votes": 1,
        "page": page,
        "rater": rater,
        "session": session or f"{rater:016x}",
        "started": "2026-01-01T10:00:00.000Z",
        "saved": saved,
        "votes": [{"trial": None, "left": None, "right": None, "choice": None, **usual, **vote} for vote in votes],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    path.write_text(json.dumps(content | {"checksum": checksum(text)}, indent=1, ensure_ascii=False))
    return path


def trials_of(key, rater):
    """The rater's trials with their ids, in the order of the page."""
    return [trial | {"trial": name} for name, trial in key.trials.items() if trial["rater"] == rater]


def vote(key, rater, strengths, *, side=0.0, tie=0.0, spread=0.0, seed=0):
    """All of a rater's votes, drawn by Davidson's model (tie = 0: Bradley and Terry's).

    Args:
        key: Of the page.
        rater: From 1.
        strengths: θ of each run, in logits.
        side: γ of the left side.
        tie: ν.
        spread: Standard deviation of how an item's difference differs from the runs', in logits.
        seed: Of the draw; items are the same for all raters.
    """
    rng = np.random.default_rng([seed, rater])
    items = spread * np.random.default_rng([seed, 0]).standard_normal((len(key.items), len(strengths)))
    rows = []
    for trial in trials_of(key, rater):
        left, right = (key.videos[trial[name]] for name in ("left", "right"))
        if trial["kind"] == "check":
            choice = "left" if right["broken"] else "right"
        else:
            worth = [strengths[v["run"]] + items[v["item"], v["run"]] for v in (left, right)]
            delta = worth[0] - worth[1] + side
            weights = np.array([np.exp(delta / 2), tie, np.exp(-delta / 2)])
            choice = rng.choice(["left", "tie", "right"], p=weights / weights.sum())
        rows.append({name: trial[name] for name in ("trial", "left", "right")} | {"choice": str(choice)})
    return rows


def sample_run(folder, *, tint=0, num=6, num_frames=9, prompts=None, seed=0, still=False, size=64):
    """A run as `physcli sample` leaves it: a block that moves, on a background of its own."""
    (folder / "videos").mkdir(parents=True)
    rows = []
    for number in range(num):
        frames = np.full((num_frames, size, size, 3), 30 + tint, np.uint8)
        for t in range(num_frames):
            at = 4 + (0 if still else 5 * t)
            frames[t, 20:40, at : at + 12] = (220, 40 + number * 20 % 200, 40)
        write_video(folder / "videos" / f"{number}.mp4", frames, 10)
        prompt = prompts[number] if prompts else f"A block moves, number {number}."
        rows.append({"video": f"videos/{number}.mp4", "prompt": prompt, "index": 0, "seed": seed + number})
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "metrics.json").write_text("[]")
    (folder / "run.json").write_text(json.dumps({"command": "sample", "settings": {}, "status": "finished"}))
    return folder
