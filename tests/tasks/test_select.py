"""The best of several videos: what verifiers pick, what that is worth, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from physcli.data.clips import read_dataset
from physcli.data.video import read_video, write_video
from physcli.errors import DataError, PhyscliError, UsageError
from physcli.tasks import select as task
from physcli.tasks.best_of import best_of
from physcli.tasks.eval import EvalSettings, evaluate
from physcli.tasks.select import SelectSettings, select

RATE_HZ = 20 / 3


@pytest.fixture(scope="module")
def videos(simulated, tmp_path_factory):
    """Four prompts with three videos each: held, whole, broken (back at the beginning half way)."""
    folder = tmp_path_factory.mktemp("videos")
    clips = [clip for clip in read_dataset(simulated).clips if clip.split == "test" and clip.label][:4]
    rows = []
    for number, clip in enumerate(clips):
        frames = clip.read()[::3]
        broken = frames.copy()
        broken[9:] = frames[:1]
        for index, video in enumerate((np.repeat(frames[:1], 17, axis=0), frames, broken)):
            name = f"{number}-{index}.mp4"
            write_video(folder / name, video, RATE_HZ)
            prompt = f"{clip.prompt}, filmed at 7 frames per second"
            row = {"video": name, "caption": prompt, "prompt": prompt, "index": index, "seed": index}
            rows.append(row | {"model": "real", "random_init": False, "simulated_world": True})
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def judged(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("judged") / "laws"
    return evaluate(EvalSettings("laws", str(videos)), out=out)


def choose(judged, tmp_path, session_cache, *verifiers, out="out", **options):
    settings = SelectSettings(str(judged.path), verifiers, **options)
    return select(settings, out=tmp_path / out, device="cpu", cache_dir=session_cache)


def test_what_picks_are_worth(judged, tmp_path, session_cache):
    done = choose(judged, tmp_path, session_cache, "laws", "pixels", "random")
    joint = np.array([item["joint"] for item in judged.items], dtype=float).reshape(4, 3)
    motion = np.array([item["motion_px"] for item in judged.items]).reshape(4, 3)
    head = done.row("all videos", "joint")
    assert (done.metric, head["n"], head["fewest_videos"], head["most_videos"]) == ("joint", 4, 3, 3)
    assert done.like_judges == ["laws"]
    assert done.subjects == ["all videos", "laws", "pixels", "random", "oracle"]
    assert done.row("all videos", "joint")["value"] == pytest.approx(joint.mean())
    assert done.row("oracle", "joint")["value"] == pytest.approx(joint.max(axis=1).mean())
    assert done.row("oracle", "gain_share")["value"] == pytest.approx(1)
    assert done.row("laws", "gain_share")["value"] == pytest.approx(1)  # it is the judge
    assert done.row("oracle", "still_wins") is None
    # The floor likes the still one of the three, which earns nothing and does not move.
    assert done.row("pixels", "joint")["value"] == 0
    assert done.row("pixels", "joint_gain")["value"] == pytest.approx(-joint.mean())
    assert done.row("pixels", "motion_px")["value"] == pytest.approx(motion[:, 0].mean())
    assert done.row("pixels", "still_wins")["value"] == 1  # even than a still that has been through a codec
    assert done.row("laws", "still_wins")["value"] == 0
    items = [json.loads(line) for line in (done.path / "items.jsonl").read_text().splitlines()]
    assert [number % 3 for number, item in enumerate(items) if "pixels" in item["picked_by"]] == [0] * 4
    for number in range(4):
        scores = [item["random"] for item in items[3 * number : 3 * number + 3]]
        [picked] = [place for place in range(3) if "random" in items[3 * number + place]["picked_by"]]
        assert picked == int(np.argmax(scores))


def test_goes_on_where_it_stopped(judged, tmp_path, session_cache, monkeypatch):
    whole = choose(judged, tmp_path, session_cache, "pixels", "random", out="whole")
    asked = []
    ask = task._ask

    def stop(verifiers, group, *, strict):
        asked.append(group[0].prompt)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(verifiers, group, strict=strict)

    monkeypatch.setattr(task, "_ask", stop)
    with pytest.raises(KeyboardInterrupt):
        choose(judged, tmp_path, session_cache, "pixels", "random")
    done = choose(judged, tmp_path, session_cache, "pixels", "random")
    assert len(asked) == 5
    assert done.rows == whole.rows
    assert sorted(p.name for p in done.path.iterdir()) == ["items.jsonl", "metrics.json", "run.json"]
    again = choose(judged, tmp_path, session_cache, "pixels", "random")  # whole: nothing is scored again
    assert (again.rows, len(asked)) == (done.rows, 5)


def test_best_of(videos, session_cache, tmp_path):
    path, best = best_of(videos, "laws", device="cpu", cache_dir=session_cache)
    assert path == videos / "best-laws.jsonl"
    assert [row["index"] for row in best] == [1] * 4
    assert {row["chosen_of"] for row in best} == {3}
    # It is a list like any other.
    found = evaluate(EvalSettings("laws", str(path)), out=tmp_path / "laws")
    assert len(found.items) == 4
    assert np.mean([item["joint"] for item in found.items]) == pytest.approx(
        np.mean([max(row["scores"]) > 1 for row in best])
    )


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"verifiers": ("geophis",)}, UsageError, "Did you mean 'geophys'"),
        ({"verifiers": ("random",), "metric": "joit"}, UsageError, "Did you mean 'joint'"),
        (
            {"verifiers": ("laws", "random"), "encoder": "videomae-tiny"},
            UsageError,
            "which has none",
        ),
    ],
)
def test_refused(judged, tmp_path, session_cache, changes, error, said):
    with pytest.raises(error, match=said):
        select(SelectSettings(str(judged.path), **changes), out=tmp_path / "out", cache_dir=session_cache)
    assert not (tmp_path / "out").exists()


def test_one_video_a_prompt_is_no_choice(videos, tmp_path):
    lines = (videos / "videos.jsonl").read_text().splitlines(keepends=True)
    (videos / "one.jsonl").write_text(lines[1])
    one = evaluate(EvalSettings("laws", str(videos / "one.jsonl")), out=tmp_path / "laws")
    with pytest.raises(PhyscliError, match="no prompt with several videos"):
        select(SelectSettings(str(one.path), ("random",)), out=tmp_path / "out")


def test_one_that_cannot_score_them_is_left_out(judged, tmp_path, session_cache, listener):
    """Eight frames a second is no rate of the simulated world. By its name it is refused."""
    folder = tmp_path / "videos"
    folder.mkdir()
    rows = []
    for item in judged.items[:6]:
        frames = read_video(item["video"])
        write_video(folder / Path(item["video"]).name, frames, 8)
        rows.append({"video": Path(item["video"]).name, "caption": item["caption"], "prompt": item["prompt"]})
        rows[-1] |= {"index": item["index"], "seed": item["seed"]}
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    slow = evaluate(EvalSettings("laws", str(folder)), out=tmp_path / "laws")
    heard = listener()
    done = select(SelectSettings(str(slow.path)), out=tmp_path / "out", cache_dir=session_cache, reporter=heard)
    assert {"surprise", "foresight"}.isdisjoint(done.subjects)
    assert {"geophys", "pixels", "videophy2", "laws", "random"} <= set(done.subjects)
    assert any("surprise is left out" in text and "8 frames a second" in text for text in heard.said)
    with pytest.raises(DataError, match="8 frames a second"):
        select(SelectSettings(str(slow.path), ("foresight",)), out=tmp_path / "two", cache_dir=session_cache)


def test_chosen_by_another_model_is_another_list(videos, session_cache, tmp_path):
    best_of(videos, "pixels", device="cpu", cache_dir=session_cache)
    path, best = best_of(videos, "videophy2", rater="mplug-owl-video-tiny", device="cpu", cache_dir=session_cache)
    assert path.name == "best-videophy2-mplug-owl-video-tiny.jsonl"
    assert best[0]["chosen_by"].keys() == {"verifier", "rater", "rater_hash"}
    with pytest.raises(UsageError, match="--encoder x with pixels, which has none"):
        best_of(videos, "pixels", encoder="x")


_RANK = """
from pathlib import Path
from physcli.tasks.best_of import best_of
from physcli.tasks.processes import Processes
from physcli.tasks.select import SelectSettings, select
cache = Path({cache!r})
with Processes("cpu").together():
    done = select(SelectSettings({run!r}, ("foresight", "random")), out=Path({out!r}), device="cpu", cache_dir=cache)
    best_of(Path({videos!r}), "random", device="cpu", cache_dir=cache)
"""


@pytest.mark.slow
def test_two_processes_choose_as_one(judged, videos, tmp_path, session_cache, start, two_processes):
    one = choose(judged, tmp_path, session_cache, "foresight", "random", out="one")
    alone = best_of(videos, "random", device="cpu", cache_dir=session_cache)[1]
    code = _RANK.format(cache=str(session_cache), run=str(judged.path), out=str(tmp_path / "two"), videos=str(videos))
    ranks = two_processes(lambda environment: start(code, env=environment))
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr
    assert json.loads((tmp_path / "two" / "metrics.json").read_text()) == one.rows
    found = [json.loads(line) for line in (videos / "best-random.jsonl").read_text().splitlines()]
    assert [row["video"] for row in found] == [row["video"] for row in alone]
