"""What MuJoCo's ray caster does where one would guess otherwise: our pictures hang on it, whatever the release."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from physcli.simulation.physics import compile_scene
from physcli.simulation.renderer import CHANGING, RESTING, _Studio, render
from physcli.simulation.scenes import PLANS
from physcli.simulation.types import SCENARIOS, Camera, Floor, Light, Motion, Scene, Thing

EYE = np.array([0.0, -4.0, 1.0])
XML = """<mujoco><worldbody>
  <geom name="floor" type="plane" size="0 0 1"/>
  <body name="ball"><freejoint/><geom name="b" type="sphere" size=".3" {looks}/></body>
  <body name="wall" pos="0 2 1"><geom name="w" type="box" size="3 .1 1"/></body>
</worldbody></mujoco>"""


def studio(looks: str = "") -> tuple[Scene, mujoco.MjModel, Motion]:
    """A ball at y = −2 before a wall whose face is at y = 1.9, seen from y = −4; in frame 1 the ball is 1 m higher."""
    things = tuple(Thing(name, "distractor", "", "", "", (0.8, 0.1, 0.1), (), moves=True) for name in ("ball", "wall"))
    grey = (0.4, 0.4, 0.4)
    scene = Scene(
        "collide",
        XML.format(looks=looks),
        things,
        Camera(tuple(EYE), (0.0, 0.0, 1.0), 40.0),
        Light((-1.0, -3.0, 4.0), 0.3, 0.7),
        Floor(grey, grey, 0.4, (0.6, 0.7, 0.9)),
    )
    motion = Motion(
        qpos=np.array([[0, -2, 1, 1, 0, 0, 0], [0, -2, 2, 1, 0, 0, 0]], np.float64),
        positions=np.zeros((2, 2, 3), np.float32),
        quaternions=np.zeros((2, 2, 4), np.float32),
        contact_frame=None,
        visible=np.ones((2, 2), bool),
        colors=np.full((2, 2, 3), 0.5, np.float32),
        shape_swap=np.zeros((2, 2), bool),
    )
    return scene, mujoco.MjModel.from_xml_string(scene.xml), motion


@pytest.mark.parametrize("length", [0.05, 1.0, 9.0])
def test_distances_are_lengths_of_the_ray_and_nothing_is_cut_off(length):
    """MuJoCo's cut-off is in metres, and one of a metre drops a ball 1.9 m away yet not a wall: ours is infinite."""
    made = _Studio(*studio(), 16, 16)
    made._pose(0)
    made.model.geom_group[:] = made.groups[0]
    rays = length * np.array([[0.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 4.0, -0.2]])  # ball, wall, ball
    normals = np.empty_like(rays)
    geoms, distances = made._cast(EYE, rays, RESTING, CHANGING, normals=normals)
    assert [made.model.geom(int(g)).name for g in geoms] == ["b", "w", "b"]
    assert distances[:2] * length == pytest.approx([1.7, 5.9 / 2])
    np.testing.assert_allclose(normals[:2], [[0, -1, 0], [0, -1, 0]], atol=1e-9)  # unit, whatever the ray's length
    single = np.zeros(1, np.int32)
    for ray, geom, distance in zip(rays, geoms, distances, strict=True):
        assert mujoco.mj_ray(made.model, made.data, EYE, ray, None, 1, -1, single) == pytest.approx(distance)
        assert single[0] == geom
    geoms, _ = made._cast(EYE, np.array([[0.0, -1.0, 0.0]]), RESTING, CHANGING)
    assert geoms.tolist() == [-1]


def test_poses_are_where_rays_look_before_any_forward_pass():
    """Without kinematics rays see everything at the origin; `_pose` is enough for them."""
    made = _Studio(*studio(), 16, 16)
    ray, seen = np.array([[0.0, 1.0, 0.0]]), []
    for frame in (0, 1):
        made._pose(frame)
        made.model.geom_group[:] = made.groups[frame]
        [geom], [distance] = made._cast(EYE, ray, RESTING, CHANGING)
        seen.append((made.model.geom(int(geom)).name, float(distance)))
    assert seen == [("b", pytest.approx(1.7)), ("w", pytest.approx(5.9))]
    mujoco.mj_forward(made.model, made.data)
    [geom], [distance] = made._cast(EYE, ray, RESTING, CHANGING)
    assert (made.model.geom(int(geom)).name, distance) == ("w", pytest.approx(5.9))


def test_what_mujoco_takes_for_transparent_is_drawn():
    """Rays pass through a geom of alpha 0; which things are seen is said by the motion alone."""
    plain, clear = studio(), studio('rgba="1 0 0 0"')
    hit, data = np.zeros(1, np.int32), mujoco.MjData(clear[1])
    data.qpos[:] = clear[2].qpos[0]
    mujoco.mj_forward(clear[1], data)
    mujoco.mj_ray(clear[1], data, EYE, np.array([0.0, 1.0, 0.0]), None, 1, -1, hit)
    assert clear[1].geom(int(hit[0])).name == "w"
    frames = [render(*world, height=24, width=24) for world in (plain, clear)]
    assert np.array_equal(frames[0].segmentation, frames[1].segmentation)
    assert np.array_equal(frames[0].rgb, frames[1].rgb)
    assert (frames[1].segmentation[0] == 1).any()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_rays_meet_every_geom_and_none_is_a_mesh(scenario):
    """Where a twin's break is in view is asked of the scene's own model. Contacts of meshes changed in MuJoCo 3.8."""
    for scene in PLANS[scenario](np.random.default_rng(3))[0]:
        model = compile_scene(scene)
        assert (model.geom_rgba[:, 3] == 1).all()
        assert (model.geom_matid == -1).all()
        assert model.nmesh == model.nhfield == model.nflex == 0
