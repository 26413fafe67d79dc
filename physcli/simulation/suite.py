"""Matched pairs of clips, balanced and reproducible: the same arguments give the same bytes in any process or order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from physcli.errors import unknown
from physcli.simulation.flow import pinhole
from physcli.simulation.physics import TIMESTEP_S, compile_scene, gap_between_roles, role_body, simulate
from physcli.simulation.prompts import describe
from physcli.simulation.scenes import PLANS
from physcli.simulation.scenes.stage import bystanders
from physcli.simulation.types import (
    CONTEXT_FRAMES,
    FIRST_CONTACT_FRAME,
    FRAME_RATE_HZ,
    KEYWORDS,
    NUM_FRAMES,
    SCENARIOS,
    Motion,
    Scene,
)

# Each stream has its own branch of numpy's seed tree, so no two of them ever share a scene.
STREAMS = {
    "pretrain": 0,
    "finetune": 1,
    "probe-train": 2,
    "probe-test": 3,
    "laws": 4,
    "pretrain-test": 5,
    "finetune-test": 6,
}

LAST_CONTACT_FRAME = 44
SETTLED_FRAMES = NUM_FRAMES + FRAME_RATE_HZ  # a miss must still be one a second after the clip
CLEAR_MISS_M = 0.08
AT_REST_M = 0.01  # the patient stays where it is until it is touched
MAX_ATTEMPTS = 400
# At 64 pixels a side, agent and patient are at least this many pixels across throughout the context.
MIN_PIXELS, REFERENCE_PIXELS = 5.0, 64


@dataclass(frozen=True)
class Sample:
    """One clip before it is drawn.

    Attributes:
        name: File stem; holds exactly one of Physion's scenario words.
        scene: What is there.
        motion: What happens.
        prompt: What happens, in words.
        pair: Shared by the two clips of a pair and by nothing else in the stream.
        record: Everything for metadata.jsonl; JSON-able.
    """

    name: str
    scene: Scene
    motion: Motion
    prompt: str
    pair: str
    record: dict[str, Any]


def make_pair(
    scenario: str,
    stream: str,
    index: int,
    *,
    seed: int = 0,
    distractors: bool = False,
    occluders: bool = False,
) -> tuple[Sample, Sample]:
    """Make the two clips of a pair: one in which agent and patient touch, one in which they do not.

    Args:
        scenario: One of `SCENARIOS`.
        stream: One of `STREAMS`; streams never share a scene.
        index: Which pair of the stream, from 0.
        seed: The seed of the whole suite.
        distractors: Add still objects that take no part.
        occluders: Add a slender screen in front, which may hide part of the action.

    Returns:
        (positive, negative). They have camera, light and objects in common.

    Raises:
        UsageError: An unknown scenario or stream.
    """
    if scenario not in PLANS:
        raise unknown("scenario", scenario, PLANS)
    if stream not in STREAMS:
        raise unknown("stream", stream, STREAMS)
    branch = (STREAMS[stream], SCENARIOS.index(scenario), index)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=branch))
    grid, motions, attempts = _draw(scenario, rng, distractors=distractors, occluders=occluders)
    order, place = rng.permutation(2), int(rng.integers(len(grid)))
    pair = f"{KEYWORDS[scenario]}_{stream}_{seed}_{index:06d}"
    samples = []
    for hit in (True, False):
        launch = place if hit else 1 - place
        scene, motion = grid[place][launch], motions[place][launch]
        name = f"{pair}_{'ab'[order[int(hit)]]}"
        samples.append(_sample(name, pair, scene, motion, stream, seed, index, attempts))
    return samples[0], samples[1]


def _draw(
    scenario: str, rng: np.random.Generator, *, distractors: bool, occluders: bool
) -> tuple[list[list[Scene]], list[list[Motion]], int]:
    """Draw plans until all of one's clips end as planned; also how many it took."""
    for attempts in range(1, MAX_ATTEMPTS + 1):
        grid = PLANS[scenario](rng)
        if distractors or occluders:
            add = bystanders(rng, distractors=distractors, occluders=occluders)
            grid = [[add(scene) for scene in row] for row in grid]
        motions = _run(grid)
        if motions is not None:
            return grid, motions, attempts
    raise RuntimeError(f"{MAX_ATTEMPTS} plans of {scenario} in a row came out otherwise than planned.")


def _run(grid: list[list[Scene]]) -> list[list[Motion]] | None:
    """Simulate all places × launches, or None as soon as one does not end as planned.

    All four are run even though a pair uses two: keeping only scenes of which every combination works makes the
    accepted launches the same for hits and misses, so that rejection cannot leak the label.
    """
    kept: dict[tuple[int, int], Motion] = {}
    cells = [(place, launch) for place in range(len(grid)) for launch in range(2)]
    # Hits fail soonest, so they go first.
    for place, launch in sorted(cells, key=lambda cell: cell[0] != cell[1]):
        scene = grid[place][launch]
        motion = _settled(scene, compile_scene(scene), hit=launch == place)
        if motion is None:
            return None
        kept[place, launch] = motion
    return [[kept[place, launch] for launch in range(2)] for place in range(len(grid))]


def _settled(scene: Scene, model: mujoco.MjModel, *, hit: bool) -> Motion | None:
    """The clip's motion if it keeps the clock, stays in the picture and ends clearly as planned."""
    stop = _refusal(scene, model, hit=hit)
    motion = simulate(scene, model, num_frames=NUM_FRAMES if hit else SETTLED_FRAMES, stop_when=stop)
    if motion is None or motion.label != hit:
        return None
    return truncate(motion, NUM_FRAMES)


def _refusal(scene: Scene, model: mujoco.MjModel, *, hit: bool) -> Callable[[int, int | None, mujoco.MjData], bool]:
    agent, patient = (role_body(scene, model, role) for role in ("agent", "patient"))
    radius = np.array([apparent_radius(thing.size) for thing in scene.things[:2]])
    camera = pinhole(scene.camera, REFERENCE_PIXELS, REFERENCE_PIXELS)

    home = np.zeros(3)
    gap = gap_between_roles(scene, model, limit=2 * CLEAR_MISS_M)

    def refuse(frame: int, contact_frame: int | None, data: mujoco.MjData) -> bool:
        if contact_frame is not None and (not hit or contact_frame < FIRST_CONTACT_FRAME):
            return True
        if hit and contact_frame is None and frame >= LAST_CONTACT_FRAME:
            return True
        if frame < CONTEXT_FRAMES:
            if frame == 0:
                home[:] = data.xpos[patient]
            if math.dist(home, data.xpos[patient]) > AT_REST_M:
                return True
            points = data.xpos[[agent, patient]]
            size_px = radius * camera.focal_px / ((points - camera.origin) @ camera.axes[2])
            off_center = np.abs(camera.project(points) - REFERENCE_PIXELS / 2).max(axis=1)
            if (off_center + size_px > REFERENCE_PIXELS / 2).any() or (2 * size_px < MIN_PIXELS).any():
                return True
        return not hit and gap(data) < CLEAR_MISS_M

    return refuse


def apparent_radius(size: tuple[float, ...]) -> float:
    """Half of how wide a thing looks: the middle of its half sizes."""
    return float(np.median(size))


def truncate(motion: Motion, num_frames: int) -> Motion:
    """The first frames of a motion."""
    arrays = ("qpos", "positions", "quaternions", "visible", "colors", "shape_swap")
    contact = motion.contact_frame
    return dataclasses.replace(
        motion,
        contact_frame=contact if contact is not None and contact < num_frames else None,
        **{name: getattr(motion, name)[:num_frames] for name in arrays},
    )


def _sample(
    name: str, pair: str, scene: Scene, motion: Motion, stream: str, seed: int, index: int, attempts: int
) -> Sample:
    prompt = describe(scene, motion)
    record = {
        "scenario": scene.scenario,
        "pair": pair,
        "seed": seed,
        "stream": stream,
        "index": index,
        "label": motion.label,
        "contact_frame": motion.contact_frame,
        "num_frames": len(motion.qpos),
        "context": [0, CONTEXT_FRAMES],
        "frame_rate_hz": FRAME_RATE_HZ,
        "simulation_step_s": TIMESTEP_S,
        "attempts": attempts,
        "prompt": prompt,
        "camera": _plain(dataclasses.asdict(scene.camera)),
        "light": _plain(dataclasses.asdict(scene.light)),
        "floor": _plain(dataclasses.asdict(scene.floor)),
        "parameters": _plain(scene.params),
        "things": [_plain(dataclasses.asdict(thing)) for thing in scene.things],
    }
    return Sample(name, scene, motion, prompt, pair, record)


def _plain(value: Any) -> Any:
    """Tuples and numpy scalars as what JSON gives back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
