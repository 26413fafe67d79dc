"""Running a scene through MuJoCo: poses per frame, and the first agent-patient contact."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import mujoco
import numpy as np

from physcli.simulation.types import FRAME_RATE_HZ, NUM_FRAMES, Motion, Scene

TIMESTEP_S = 0.005
# Farther apart than this at a frame, agent and patient cannot touch before the next: that takes 20 m/s.
NEAR_M = 1.0


@functools.lru_cache(maxsize=64)
def _compile(xml: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(xml)


def compile_scene(scene: Scene) -> mujoco.MjModel:
    """Compile the scene's XML. The model is cached and shared: copy it before changing it."""
    return _compile(scene.xml)


def launch(scene: Scene, model: mujoco.MjModel) -> mujoco.MjData:
    """A fresh simulation state in the scene's launch pose and velocity (`params["launch"]`)."""
    data = mujoco.MjData(model)
    data.qpos[:] = scene.params["launch"]["qpos"]
    data.qvel[:] = scene.params["launch"]["qvel"]
    return data


def role_body(scene: Scene, model: mujoco.MjModel, role: str) -> int:
    """The MuJoCo body id of the scene's agent or patient."""
    name = next(thing.name for thing in scene.things if thing.role == role)
    return int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name))


def simulate(
    scene: Scene,
    model: mujoco.MjModel,
    *,
    num_frames: int = NUM_FRAMES,
    frame_rate_hz: int = FRAME_RATE_HZ,
    change_frame: int | None = None,
    change: Callable[[mujoco.MjModel, mujoco.MjData], None] | None = None,
    hold: bool = False,
    stop_when: Callable[[int, int | None, mujoco.MjData], bool] | None = None,
) -> Motion | None:
    """Simulate a scene and record every frame.

    Args:
        scene: The scene; its launch state is in `params["launch"]`.
        model: The compiled scene. `change` may write to it, so hand in a copy then.
        num_frames: T, the number of frames to record; frame 0 is the launch state.
        frame_rate_hz: Each frame is the state at the simulation step nearest to its time. The rate changes nothing of
            what happens.
        change_frame: The first frame that shows what `change` did.
        change: Called once, with the state at `change_frame`, before that frame is recorded.
        hold: Keep the agent where it is from `change_frame` on, whatever acts on it.
        stop_when: Called at every frame with (frame, contact frame so far, state); True ends the run early.

    Returns:
        The motion, or None if `stop_when` ended it.
    """
    data = launch(scene, model)
    agent, patient = role_body(scene, model, "agent"), role_body(scene, model, "patient")
    bodies = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, thing.name) for thing in scene.things]
    q = int(model.jnt_qposadr[model.body_jntadr[agent]])
    v = int(model.body_dofadr[agent])
    reach = NEAR_M + _radius(model, agent) + _radius(model, patient)
    held: np.ndarray | None = None
    contact_frame: int | None = None
    body_of = model.geom_bodyid
    qpos, positions, quaternions = [], [], []
    for frame in range(num_frames):
        substeps = _steps_until(frame, frame_rate_hz) - _steps_until(frame - 1, frame_rate_hz)
        far = math.dist(data.xpos[agent], data.xpos[patient]) > reach
        if frame > 0 and held is None and (far or contact_frame is not None):
            mujoco.mj_step(model, data, substeps)
        elif frame > 0:
            for substep in range(substeps):
                mujoco.mj_step(model, data)
                if held is not None:
                    data.qpos[q : q + 7] = held
                    data.qvel[v : v + 6] = 0
                # mj_step finds contacts in the pose *before* it moves, so the first substep of an interval
                # still belongs to the frame before.
                if contact_frame is None and data.ncon:
                    pairs = body_of[data.contact.geom]
                    if ((pairs == agent).any(axis=1) & (pairs == patient).any(axis=1)).any():
                        contact_frame = frame if substep else frame - 1
        mujoco.mj_kinematics(model, data)
        if change is not None and frame == change_frame:
            change(model, data)
            mujoco.mj_kinematics(model, data)
            held = data.qpos[q : q + 7].copy() if hold else None
        if stop_when is not None and stop_when(frame, contact_frame, data):
            return None
        qpos.append(data.qpos.copy())
        positions.append(data.xpos[bodies])
        quaternions.append(data.xquat[bodies])
    shape = (num_frames, len(scene.things))
    return Motion(
        qpos=np.stack(qpos),
        positions=np.stack(positions).astype(np.float32),
        quaternions=np.stack(quaternions).astype(np.float32),
        contact_frame=contact_frame,
        visible=np.ones(shape, bool),
        colors=np.broadcast_to(np.array([thing.color for thing in scene.things], np.float32), (*shape, 3)).copy(),
        shape_swap=np.zeros(shape, bool),
    )


def _steps_until(frame: int, frame_rate_hz: int) -> int:
    return round(frame / (frame_rate_hz * TIMESTEP_S))


def _radius(model: mujoco.MjModel, body: int) -> float:
    """Radius in metres of a ball around a body's centre that holds all of its geoms."""
    geoms = np.flatnonzero(model.geom_bodyid == body)
    return float((np.linalg.norm(model.geom_pos[geoms], axis=1) + model.geom_rbound[geoms]).max())


def gap_between_roles(scene: Scene, model: mujoco.MjModel, *, limit: float) -> Callable[[mujoco.MjData], float]:
    """What measures the distance in metres between the surfaces of agent and patient, at most `limit`."""
    agent, patient = role_body(scene, model, "agent"), role_body(scene, model, "patient")
    solid = np.flatnonzero(model.geom_contype)
    geoms = [[int(g) for g in solid[model.geom_bodyid[solid] == body]] for body in (agent, patient)]
    reach = limit + _radius(model, agent) + _radius(model, patient)

    def gap(data: mujoco.MjData) -> float:
        if math.dist(data.xpos[agent], data.xpos[patient]) > reach:
            return limit
        return min(mujoco.mj_geomDistance(model, data, *pair, limit, None) for pair in itertools.product(*geoms))

    return gap
