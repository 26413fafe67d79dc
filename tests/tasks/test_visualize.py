"""Pictures of what methods look at, on the shipped models."""

from __future__ import annotations

import numpy as np
import pytest

from physcli.data.clips import read_dataset
from physcli.data.video import read_video, video_info, write_video
from physcli.errors import DataError, UsageError
from physcli.report.overlays import enlarge, mark, overlay
from physcli.tasks.visualize import KINDS, VisualizeSettings, visualize


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A red square that goes to the right over grey, 17 frames of 64×64."""
    frames = np.full((17, 64, 64, 3), 128, np.uint8)
    for number, image in enumerate(frames):
        image[24:40, 2 * number : 2 * number + 16] = (200, 0, 0)
    path = tmp_path_factory.mktemp("videos") / "moving.mp4"
    write_video(path, frames, 8)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_and_a_video(moving, tmp_path, kind):
    done = visualize(VisualizeSettings(kind, (str(moving),)), out=tmp_path / "run", device="cpu")
    picture, video = done.pictures
    assert picture.read_bytes().startswith(b"\x89PNG")
    layers = {"drift": 1, "field": 3, "correspondence": 6, "saliency": 1}[kind]
    info = video_info(video)
    assert (info.num_frames, info.height, info.width) == (17, 256, 256 * (1 + layers))
    assert done.rows
    assert all(np.isfinite(row["value"]) for row in done.rows)


def test_salient_places_lie_on_what_moves(moving, tmp_path):
    done = visualize(VisualizeSettings("saliency", (str(moving),)), out=tmp_path / "run", device="cpu")
    both = read_video(done.pictures[1]).astype(int)
    changed = np.abs(both[:, :, 256:] - both[:, :, :256]).sum(axis=-1) > 60
    rows = changed.any(axis=(0, 2))
    assert rows[96:160].any()  # the square's rows, four times enlarged
    assert not rows[:64].any()
    assert not rows[192:].any()


def test_a_run_gives_its_prompts_and_a_limit_holds(simulated, tmp_path):
    clips = read_dataset(simulated).clips[:3]
    lines = [f'{{"video": "{clip.path}", "prompt": "{clip.prompt}"}}\n' for clip in clips]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "videos.jsonl").write_text("".join(lines))
    settings = VisualizeSettings("field", (str(tmp_path / "set"),), limit=2)
    done = visualize(settings, out=tmp_path / "run", device="cpu")
    assert len(done.pictures) == 4
    # The field knows more of where things will change than nothing at all.
    assert all(row["value"] > 0.3 for row in done.rows if row["metric"] == "correlation_with_change")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"kind": "drfit"}, UsageError, "Did you mean 'drift'"),
        ({"videos": ()}, UsageError, "No video"),
        ({"videos": ("none.mp4",)}, DataError, "none.mp4 is not there"),
        ({"videos": ("{folder}",)}, UsageError, "a folder without videos.jsonl"),
        ({"lag": 5}, UsageError, "A lag of 5 for 5 latent frames"),
        ({"model": "videomae-tiny"}, UsageError, "is no generator"),
        ({"kind": "saliency", "teacher": "cogvideox-tiny"}, UsageError, "is no encoder"),
        ({"kind": "correspondence", "layer": 6}, UsageError, "6"),
        ({"kind": "correspondence", "query": (0.5, 0.5, 2.0)}, UsageError, "--query"),
        ({"kind": "correspondence", "temperatures": (0.0,)}, UsageError, "--temperature"),
    ],
)
def test_bad_input(moving, tmp_path, change, error, said):
    (tmp_path / "folder").mkdir()
    settings = {"kind": "drift", "videos": (str(moving),)} | change
    settings["videos"] = tuple(name.format(folder=tmp_path / "folder") for name in settings["videos"])
    with pytest.raises(error, match=said):
        visualize(VisualizeSettings(**settings), out=tmp_path / "run", device="cpu")


def test_a_single_frame_has_no_motion(tmp_path):
    write_video(tmp_path / "one.mp4", np.zeros((1, 64, 64, 3), np.uint8), 8)
    with pytest.raises(DataError, match="nothing moves here"):
        visualize(VisualizeSettings("drift", (str(tmp_path / "one.mp4"),)), out=tmp_path / "run", device="cpu")


def test_overlays():
    frames = np.full((2, 4, 4, 3), 100, np.uint8)
    heat = np.zeros((2, 4, 4))
    heat[1, 0, 0] = 1
    laid = overlay(frames, heat, strength=1.0)
    assert (laid[0] == 100).all()
    assert tuple(laid[1, 0, 0]) == (252, 255, 164)  # the last colour of inferno
    assert enlarge(frames).shape == (2, 256, 256, 3)
    marked = mark(enlarge(frames), 0, 0, 64, 64)
    assert tuple(marked[0, 0, 30]) == (0, 255, 255)
    assert tuple(marked[0, 30, 30]) == (100, 100, 100)
    with pytest.raises(ValueError, match="heat must be"):
        overlay(frames, heat[:1])
