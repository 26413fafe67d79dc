"""Scenes of possible and impossible clips: simulated twins and LikePhys' layout."""

from __future__ import annotations

import numpy as np
import pytest

from physcli.data.twins import read_scenes, with_prompt
from physcli.data.video import write_video
from physcli.errors import DataError
from physcli.tasks.simulate import SimulateSettings, simulate


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "one.mp4"
    write_video(path, np.zeros((9, 32, 32, 3), np.uint8), 8)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, video):
    """`folder("ball_drop/00/valid_00.mp4", …)`: a folder that holds these videos."""

    def make(*names):
        for name in names:
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(video)
        return tmp_path / "set"

    return make


def test_likephys_layout(folder):
    root = folder(
        "ball_drop/00/valid_00.mp4",
        "ball_drop/00/valid_01.mp4",
        "ball_drop/00/over_bounce_00.mp4",
        "ball_drop/00/over_bounce_01.mp4",
        "ball_drop/00/teleport_00.mp4",
        "ball_drop/01/valid_00.mp4",
        "ball_drop/01/teleport_00.mp4",
        "river/a/valid_00.mp4",
        "river/a/reversed_00.mp4",
    )
    (root / "river" / "prompt.txt").write_text("water in\n a tank\n")
    (root / "ball_drop" / "01" / "prompt.txt").write_text("a ball")
    found = read_scenes(root)
    assert (found.kind, found.problems, found.mujoco) == ("likephys", (), None)
    said = [(scene.scenario, scene.name, scene.cluster, scene.prompt) for scene in found.scenes]
    assert said == [
        ("ball_drop", "00", "ball_drop/00", "ball drop"),
        ("ball_drop", "01", "ball_drop/01", "a ball"),
        ("river", "a", "river/a", "water in a tank"),
    ]
    first = found.scenes[0]
    assert [clip.name for clip in first.valid] == ["valid_00", "valid_01"]
    assert {kind: len(clips) for kind, clips in first.invalid.items()} == {"over_bounce": 2, "teleport": 1}
    assert len(first.clips) == 5
    assert {scene.prompt for scene in with_prompt(found, "").scenes} == {""}


def test_a_scenario_alone(folder):
    root = folder("00/valid_00.mp4", "00/teleport_00.mp4")
    [scene] = read_scenes(root).scenes
    assert (scene.scenario, scene.name) == ("set", "00")


def test_what_is_left_out_is_named(folder):
    root = folder(
        "a/0/valid_00.mp4",
        "a/0/teleport_00.mp4",
        "a/0/teleport.mp4",
        "a/1/teleport_00.mp4",
        "a/2/valid_00.mp4",
        "loose_00.mp4",
        "a/b/c/valid_00.mp4",
    )
    found = read_scenes(root)
    assert [scene.name for scene in found.scenes] == ["0"]
    said = {str(problem.path.relative_to(root)): problem.message for problem in found.problems}
    assert said.keys() == {"a/0/teleport.mp4", "a/1", "a/2", "loose_00.mp4", "a/b/c/valid_00.mp4"}
    assert said["a/1"] == "the scene has no valid clip"  # by the released code perfect: it would score 0
    assert said["a/2"] == "the scene has no impossible clip"
    assert said["a/0/teleport.mp4"].startswith("its name is not KIND_NN; expected SCENARIO/SCENE/valid_00.mp4")
    assert said["loose_00.mp4"].startswith("it is not in a scene's folder")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "is not there"),
        (("0/teleport_00.mp4",), "holds no scene with both possible and impossible clips; 1 problems"),
    ],
)
def test_no_scene(folder, names, said):
    with pytest.raises(DataError, match=said):
        read_scenes(folder(*names))


def test_a_prompt_that_is_no_text(folder):
    root = folder("0/valid_00.mp4", "0/teleport_00.mp4")
    (root / "0" / "prompt.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"prompt\.txt cannot be read"):
        read_scenes(root)


def test_simulated(tmp_path):
    settings = SimulateSettings(2, 4, ("collide", "drop"), 32, 32, impossible=("color", "teleport"), seed=3)
    simulate(settings, out=tmp_path / "set", workers=1)
    found = read_scenes(tmp_path / "set")
    assert found.kind == "simulated"
    assert found.mujoco is not None
    assert len(found.scenes) == 4
    assert len({scene.cluster for scene in found.scenes}) == 2  # both clips of a pair are of one place
    for scene in found.scenes:
        [valid] = scene.valid
        assert valid.split == "test"
        for kind, (twin,) in scene.invalid.items():
            assert twin.record["twin_of"] == valid.name
            assert twin.record["violation"]["kind"] == kind
            assert twin.prompt == valid.prompt == scene.prompt


def test_simulated_without_twins(simulated):
    with pytest.raises(DataError, match="holds no impossible twins"):
        read_scenes(simulated)
