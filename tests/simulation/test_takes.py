"""Second takes: how a scene is set up once more, and from which sides it is filmed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from physcli.simulation.suite import make_pair
from physcli.simulation.takes import (
    BRIGHTNESS_SHARE,
    CAMERA_M,
    FILM_RATE_HZ,
    LIGHT_M,
    SIDES_DEG,
    SPEED_SHARE,
    START_M,
    TURN_DEG,
    camera_again,
    first_take,
    second_take,
    turned,
)
from physcli.simulation.types import FRAME_RATE_HZ, SCENARIOS

SECONDS = 2.5  # a clip and a little more


def starts(scene):
    launch = scene.params["launch"]
    return np.array(launch["qpos"]).reshape(-1, 7), np.array(launch["qvel"]).reshape(-1, 6)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_first_take_is_the_clip_and_a_second_is_close_to_it(scenario):
    every = FILM_RATE_HZ // FRAME_RATE_HZ
    for sample in make_pair(scenario, "probe-test", 1):
        one = first_take(sample, duration_s=SECONDS)
        assert (one.motion.qpos[::every][: len(sample.motion.qpos)] == sample.motion.qpos).all()
        two = second_take(sample, one)
        assert two.motion.label == one.motion.label == sample.motion.label
        assert len(two.motion.qpos) == len(one.motion.qpos) == SECONDS * FILM_RATE_HZ + 1
        first, second = one.scene, two.scene
        assert (second.xml, second.things, second.camera, second.floor) == (
            first.xml,
            first.things,
            first.camera,
            first.floor,
        )

        (pose, velocity), (pose_again, velocity_again) = starts(first), starts(second)
        moved = np.abs(pose_again[:, :2] - pose[:, :2])
        assert (moved <= START_M).all()
        assert (moved > 0).all()
        assert (pose_again[:, 2] == pose[:, 2]).all()
        turn = 2 * np.arccos(np.abs((pose * pose_again)[:, 3:].sum(axis=1)).clip(0, 1))
        assert (turn <= math.radians(TURN_DEG) + 1e-6).all()
        for part in (slice(0, 3), slice(3, 6)):
            speed, again = (np.linalg.norm(v[:, part], axis=1) for v in (velocity, velocity_again))
            assert (np.abs(again - speed) <= SPEED_SHARE * speed + 1e-12).all()
        assert np.abs(np.subtract(second.light.position, first.light.position)).max() <= LIGHT_M
        for name in ("ambient", "diffuse"):
            assert abs(getattr(second.light, name) / getattr(first.light, name) - 1) <= BRIGHTNESS_SHARE


def test_the_seed_and_the_clip_make_the_second_take():
    both = make_pair("roll", "probe-test", 0)
    firsts = [first_take(sample, duration_s=SECONDS) for sample in both]
    one, same, other = (second_take(both[0], firsts[0], seed=seed) for seed in (0, 0, 1))
    assert (one.scene, one.draws) == (same.scene, same.draws)
    assert (one.motion.qpos == same.motion.qpos).all()
    assert one.scene.light != other.scene.light
    assert one.scene.light != second_take(both[1], firsts[1], seed=0).scene.light


def test_a_draw_that_begins_inside_something_or_ends_otherwise_is_not_taken(monkeypatch):
    sample = make_pair("roll", "probe-test", 5)[0]
    one = first_take(sample, duration_s=SECONDS)
    seen = [second_take(sample, one, seed=seed).draws for seed in range(4)]
    assert max(seen) > 1  # some shifts push the ball into its slope
    wrong = dataclasses.replace(one, motion=dataclasses.replace(one.motion, contact_frame=None))
    monkeypatch.setattr("physcli.simulation.takes.MAX_DRAWS", 3)
    with pytest.raises(RuntimeError, match="came out otherwise"):
        second_take(sample, wrong)


def test_sides():
    sample = make_pair("drop", "probe-test", 0)[0]
    camera = sample.scene.camera
    left, centre, right = (turned(camera, angle) for angle in SIDES_DEG)
    assert np.allclose(centre.position, camera.position)
    arms = [np.subtract(c.position, c.look_at) for c in (left, centre, right)]
    assert np.allclose([np.linalg.norm(arm) for arm in arms], np.linalg.norm(arms[1]))
    assert np.allclose([arm[2] for arm in arms], arms[1][2])
    across = np.cross(np.subtract(camera.look_at, camera.position), [0, 0, 1])  # to the right of the picture
    assert arms[0] @ across < arms[1] @ across < arms[2] @ across
    again = camera_again(left, sample, "perspective-left")
    assert again == camera_again(left, sample, "perspective-left")
    assert again != camera_again(left, sample, "perspective-right")
    assert again.fov_deg == left.fov_deg
    for name in ("position", "look_at"):
        assert 0 < np.abs(np.subtract(getattr(again, name), getattr(left, name))).max() <= CAMERA_M
