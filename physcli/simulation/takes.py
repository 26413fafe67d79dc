"""A second take: the same scene set up and filmed once more, as well as hands and eyes can do it again.

What is in the scene and how it works stays. How it begins and is seen is altered, each number evenly within a bound.
The bounds are those of careful work by hand: things are about 70 cm wide, and stand within a centimetre of their place.
How far apart two takes end is left to the physics: a row of dominoes falls the same, a cube on its edge does not.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from dataclasses import dataclass

import mujoco
import numpy as np

from physcli.simulation.physics import compile_scene, launch, simulate
from physcli.simulation.scenes.stage import multiply, rotate, vector
from physcli.simulation.suite import Sample
from physcli.simulation.types import Camera, Light, Motion, Scene

# The most by which a second take differs from the first, either way.
START_M = 0.01  # where each thing that can move begins: along x, and along y
TURN_DEG = 1.0  # how each is turned about the vertical, and its velocity with it
SPEED_SHARE = 0.02  # of its velocity and its spin
LIGHT_M = 0.1  # where the light hangs: along each axis
BRIGHTNESS_SHARE = 0.05  # of its ambient and its diffuse part
# Where a camera stands, ten metres away, and at what it looks: along each axis. With half of it a third of the pictures
# differ by less than the rounding of Physics-IQ's table, which makes its term of pixels a matter of luck.
CAMERA_M = 0.02

# A draw that puts things into one another is drawn again: MuJoCo would push them apart with a jerk.
OVERLAP_M = 1e-3
# So is one in which agent and patient touch and in the first take they do not, or the other way round: its prompt would
# be wrong. Nothing else is asked of how it ends.
MAX_DRAWS = 200

# By how much the sides from which a scene is filmed are turned about what the camera looks at: left, centre, right.
SIDES_DEG = (-25.0, 0.0, 25.0)
# Every second frame is one at 30 per second, every third one at 20, the clips' own rate.
FILM_RATE_HZ = 60


@dataclass(frozen=True)
class Take:
    """A scene as it was set up, what happened in it at `FILM_RATE_HZ`, and after how many draws (0 of a first take)."""

    scene: Scene
    motion: Motion
    draws: int


def first_take(sample: Sample, *, duration_s: float) -> Take:
    """A clip of `suite.make_pair`, going on for so long."""
    return Take(sample.scene, _film(sample.scene, duration_s), 0)


def second_take(sample: Sample, first: Take, *, seed: int = 0) -> Take:
    """The same once more, with other starts and another light. The cameras are `camera_again`'s.

    Args:
        sample: The clip of which `first` is the first take.
        first: Its first take.
        seed: With the clip's name, all that this depends on.

    Raises:
        RuntimeError: no draw has the first take's outcome.
    """
    rng = _random(sample, "take 2", seed)
    duration_s = (len(first.motion.qpos) - 1) / FILM_RATE_HZ
    deepest = _overlap(first.scene) + OVERLAP_M
    for draws in range(1, MAX_DRAWS + 1):
        scene = dataclasses.replace(
            first.scene,
            light=_light_again(first.scene.light, rng),
            params={**first.scene.params, "launch": _launch_again(first.scene, rng)},
        )
        if _overlap(scene) > deepest:
            continue
        motion = _film(scene, duration_s)
        if motion.label == first.motion.label:
            return Take(scene, motion, draws)
    raise RuntimeError(f"{MAX_DRAWS} second takes of {sample.name} in a row came out otherwise than the first.")


def turned(camera: Camera, angle_deg: float) -> Camera:
    """The camera from another side: turned about the vertical through what it looks at; negative is to its left."""
    half = math.radians(angle_deg) / 2
    about_z = np.array([math.cos(half), 0.0, 0.0, math.sin(half)])
    target = np.array(camera.look_at)
    return dataclasses.replace(camera, position=vector(target + rotate(about_z, np.array(camera.position) - target)))


def camera_again(camera: Camera, sample: Sample, side: str, *, seed: int = 0) -> Camera:
    """A camera set up once more on one side of a clip's scene."""
    rng = _random(sample, side, seed)
    position, target = (_moved(place, CAMERA_M, rng) for place in (camera.position, camera.look_at))
    return dataclasses.replace(camera, position=position, look_at=target)


def _random(sample: Sample, what: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{sample.name} {what}".encode())])


def _film(scene: Scene, duration_s: float) -> Motion:
    count = round(duration_s * FILM_RATE_HZ) + 1
    motion = simulate(scene, compile_scene(scene), num_frames=count, frame_rate_hz=FILM_RATE_HZ)
    assert motion is not None, "without `stop_when` a simulation runs to its end"
    return motion


def _moved(place: tuple[float, ...], bound: float, rng: np.random.Generator) -> tuple[float, float, float]:
    return vector(np.array(place) + rng.uniform(-bound, bound, 3))


def _light_again(light: Light, rng: np.random.Generator) -> Light:
    ambient, diffuse = 1 + rng.uniform(-BRIGHTNESS_SHARE, BRIGHTNESS_SHARE, 2)
    return Light(_moved(light.position, LIGHT_M, rng), float(light.ambient * ambient), float(light.diffuse * diffuse))


def _launch_again(scene: Scene, rng: np.random.Generator) -> dict[str, list[float]]:
    """The launch state (see `Stage`): of each free body 7 of qpos, and 6 of qvel, whose spin is in the body's own axes
    and so is turned with it."""
    start = scene.params["launch"]
    qpos, qvel = np.array(start["qpos"]).reshape(-1, 7), np.array(start["qvel"]).reshape(-1, 6)
    for pose, velocity in zip(qpos, qvel, strict=True):
        pose[:2] += rng.uniform(-START_M, START_M, 2)
        half = math.radians(rng.uniform(-TURN_DEG, TURN_DEG)) / 2
        about_z = np.array([math.cos(half), 0.0, 0.0, math.sin(half)])
        pose[3:] = multiply(about_z, pose[3:])
        velocity[:3] = rotate(about_z, velocity[:3])
        velocity *= 1 + rng.uniform(-SPEED_SHARE, SPEED_SHARE)
    return {"qpos": qpos.ravel().tolist(), "qvel": qvel.ravel().tolist()}


def _overlap(scene: Scene) -> float:
    """How deep in metres anything is in anything else at the start, at most."""
    model = compile_scene(scene)
    data = launch(scene, model)
    mujoco.mj_forward(model, data)
    return float(-data.contact.dist.min(initial=0.0))
