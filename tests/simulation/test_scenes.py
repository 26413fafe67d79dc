"""Every scenario's drawing: what is in a scene, in which colours, and that it compiles to what the renderer expects."""

from __future__ import annotations

import colorsys

import mujoco
import numpy as np
import pytest

from physcli.simulation.physics import TIMESTEP_S, compile_scene, simulate
from physcli.simulation.scenes import PLANS
from physcli.simulation.scenes.drop import flight_time
from physcli.simulation.scenes.stage import AGENT_RED, COLORS, FLOORS, PATIENT_YELLOW, SKIES, Stage, draw_look
from physcli.simulation.types import FRAME_RATE_HZ, SCENARIOS


def hue_deg(color: tuple[float, ...]) -> float:
    return colorsys.rgb_to_hsv(*color)[0] * 360


def test_every_scenario_has_a_plan() -> None:
    assert tuple(PLANS) == SCENARIOS
    steps = 1 / (FRAME_RATE_HZ * TIMESTEP_S)  # a frame is so many whole ones
    assert steps == pytest.approx(round(steps))


def test_red_and_yellow_belong_to_agent_and_patient() -> None:
    assert hue_deg(AGENT_RED) < 10
    assert 35 < hue_deg(PATIENT_YELLOW) < 65
    for color in (*COLORS.values(), *FLOORS, *SKIES):
        saturation = colorsys.rgb_to_hsv(*color)[1]
        assert saturation < 0.1 or 90 < hue_deg(color) < 300, color


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scene_follows_the_renderer_contract(scenario: str) -> None:
    for row in PLANS[scenario](np.random.default_rng(3)):
        assert len(row) == 2
        for scene in row:
            model = compile_scene(scene)
            bodies = {model.body(model.geom(g).bodyid[0]).name for g in range(model.ngeom)}
            assert bodies == {"world", *(thing.name for thing in scene.things)}
            assert [model.geom(g).name for g in range(model.ngeom) if model.geom(g).bodyid == 0] == ["floor"]
            assert [thing.role for thing in scene.things[:2]] == ["agent", "patient"]
            ghosts = [g for g in range(model.ngeom) if model.geom(g).name.endswith("~")]
            assert [model.body(model.geom(g).bodyid[0]).name for g in ghosts] == ["agent"]
            assert not model.geom_contype[ghosts].any()
            assert not model.geom_conaffinity[ghosts].any()
            for thing in scene.things:
                assert bool(model.body(thing.name).dofnum[0]) == thing.moves
                if thing.role not in ("agent", "patient"):
                    assert thing.color == COLORS[thing.color_name]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_starts_inside_anything(scenario: str) -> None:
    plans = [PLANS[scenario](np.random.default_rng(seed)) for seed in range(8)]
    for scene in [scene for plan in plans for row in plan for scene in row]:
        model = compile_scene(scene)
        data = mujoco.MjData(model)
        data.qpos[:] = scene.params["launch"]["qpos"]
        mujoco.mj_forward(model, data)
        assert data.contact.dist.min(initial=0.0) > -1e-4


def test_resting_cylinders_rest() -> None:
    for seed in range(12):
        look = draw_look(np.random.default_rng(seed), elevation_deg=(20, 20), height=1, view=6, turn_deg=180)
        stage = Stage("drop", look)
        stage.add("agent", "sphere", (0.3,), (2, 0, 0.3))
        stage.add("patient", "cylinder", (0.3 + 0.01 * seed, 0.35), (0, 0, 0.35))
        motion = simulate(stage.scene(), compile_scene(stage.scene()))
        assert motion is not None
        assert np.abs(motion.positions[:, 1] - motion.positions[0, 1]).max() < 2e-3


def test_free_flight_is_a_parabola() -> None:
    scene = PLANS["drop"](np.random.default_rng(0))[0][0]
    motion = simulate(scene, compile_scene(scene), num_frames=17)
    assert motion is not None
    time = np.arange(17) / FRAME_RATE_HZ
    start, speed = np.array(scene.params["launch"]["qpos"][:3]), np.array(scene.params["launch"]["qvel"][:3])
    # MuJoCo's semi-implicit steps of h fall short of g t²/2 by exactly g t h/2.
    fall = 9.81 * time * (time + TIMESTEP_S) / 2
    expected = start + speed * time[:, None] - fall[:, None] * [0, 0, 1]
    np.testing.assert_allclose(motion.positions[:, 0], expected, atol=1e-5)
    assert flight_time(4.905, 0.0) == pytest.approx(1.0)


def test_ball_rolls_down_the_slope_at_five_sevenths() -> None:
    scene = PLANS["roll"](np.random.default_rng(0))[0][0]
    motion = simulate(scene, compile_scene(scene), num_frames=17)
    assert motion is not None
    height = motion.positions[:, 0, 2].astype(float)
    rate = np.polyfit(np.arange(3, 17) / FRAME_RATE_HZ, height[3:], 2)[0] * 2
    slope = np.sin(np.radians(scene.params["tilt_deg"]))
    assert rate == pytest.approx(-5 / 7 * 9.81 * slope**2, rel=0.05)


def test_turning_a_stage_turns_motion_with_it() -> None:
    look = draw_look(np.random.default_rng(0), elevation_deg=(20, 20), height=1, view=6)
    scenes = []
    for turn in (0.0, 90.0):
        stage = Stage("drop", type(look)(look.camera, look.light, look.floor, turn))
        stage.add("agent", "box", (0.1, 0.2, 0.3), (1, 0, 2), velocity=(1, 0, 0), spin=(0, 2, 0))
        stage.add("patient", "sphere", (0.2,), (-1, 0, 0.2))
        scenes.append(stage.scene())
    plain, turned = (simulate(scene, compile_scene(scene), num_frames=8) for scene in scenes)
    assert plain is not None
    assert turned is not None
    x, y, z = np.moveaxis(plain.positions, -1, 0)
    np.testing.assert_allclose(turned.positions, np.stack([-y, x, z], axis=-1), atol=1e-4)
