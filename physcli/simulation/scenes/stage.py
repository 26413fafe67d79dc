"""Building one scene: objects are added to a `Stage`, which writes the MuJoCo XML and the launch state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from physcli.simulation.physics import TIMESTEP_S
from physcli.simulation.types import Camera, Floor, Light, Scene, Thing

RGB = tuple[float, float, float]
Vector = tuple[float, float, float]

AGENT_RED: RGB = (0.75, 0.02, 0.02)
PATIENT_YELLOW: RGB = (0.85, 0.62, 0.02)
# Linear RGB, none of it near red or yellow: a model must not mistake a bystander for agent or patient.
COLORS: dict[str, RGB] = {
    "blue": (0.05, 0.12, 0.70),
    "green": (0.04, 0.38, 0.10),
    "purple": (0.30, 0.06, 0.55),
    "cyan": (0.05, 0.50, 0.55),
    "grey": (0.22, 0.22, 0.24),
    "white": (0.80, 0.80, 0.80),
}
FLOORS: tuple[RGB, ...] = (
    (0.30, 0.31, 0.33),
    (0.45, 0.46, 0.48),
    (0.22, 0.28, 0.36),
    (0.24, 0.34, 0.30),
    (0.36, 0.34, 0.42),
)
SKIES: tuple[RGB, ...] = ((0.45, 0.60, 0.80), (0.60, 0.66, 0.74), (0.35, 0.42, 0.55), (0.55, 0.65, 0.65))
# MuJoCo's plane-cylinder contact divides rounding errors by one another where the two axes differ by 1e-15 or so, and
# then kicks a resting cylinder into the air (one in ten was). This tilt, too small to be seen, prevents it.
UPRIGHT_CYLINDER = (1.0, 1e-5, 0.0, 0.0)
NOUNS = {"sphere": "ball", "box": "box", "cylinder": "cylinder"}


@dataclass(frozen=True)
class Look:
    """What all clips of a pair share beside the objects: camera, light, floor, and the turn of the whole action."""

    camera: Camera
    light: Light
    floor: Floor
    turn_deg: float  # the objects are turned by this about the vertical


def draw_look(
    rng: np.random.Generator,
    *,
    elevation_deg: tuple[float, float],
    height: float,
    view: float,
    turn_deg: float = 0.0,
) -> Look:
    """Draw camera, light and floor.

    Args:
        rng: The scene's random numbers.
        elevation_deg: Range of the camera's angle above the horizon.
        height: Height in metres of the point looked at.
        view: Height in metres of the picture at that point.
        turn_deg: The action is turned about the vertical by up to this much either way.
    """
    azimuth = math.radians(rng.uniform(-10, 10))
    elevation = math.radians(rng.uniform(*elevation_deg))
    distance = rng.uniform(9.5, 11.5)
    target = np.array([rng.uniform(-0.15, 0.15), rng.uniform(-0.1, 0.1), height + rng.uniform(-0.1, 0.1)])
    flat = math.cos(elevation)
    arm = np.array([math.sin(azimuth) * flat, -math.cos(azimuth) * flat, math.sin(elevation)])
    fov = 2 * math.degrees(math.atan(view * rng.uniform(0.97, 1.05) / 2 / distance))
    a, b = rng.choice(len(FLOORS), 2, replace=False)
    # The light comes from in front, so that shadows fall behind things: one thing's shadow on another would tell even a
    # linear readout how near they are.
    return Look(
        camera=Camera(vector(target + distance * arm), vector(target), fov),
        light=Light(
            (rng.uniform(-4, 4), rng.uniform(-9, -6.5), rng.uniform(6, 8)),
            ambient=rng.uniform(0.35, 0.5),
            diffuse=rng.uniform(0.5, 0.65),
        ),
        floor=Floor(FLOORS[a], FLOORS[b], tile=rng.uniform(0.7, 1.4), sky=SKIES[int(rng.integers(len(SKIES)))]),
        turn_deg=float(rng.uniform(-turn_deg, turn_deg)),
    )


def vector(values: Any) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z


def pick(rng: np.random.Generator, options: Any) -> Any:
    options = list(options)
    return options[int(rng.integers(len(options)))]


def sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def about_y(angle_deg: float) -> tuple[float, float, float, float]:
    """The quaternion that tips +z towards +x by this angle."""
    half = math.radians(angle_deg) / 2
    return math.cos(half), 0.0, math.sin(half), 0.0


def draw_solid(
    rng: np.random.Generator, shapes: tuple[str, ...], low: float, high: float
) -> tuple[str, tuple[float, ...]]:
    """Draw a shape and its half sizes: sphere (r,), box (x, y, z), cylinder (r, z); all in [low, high] metres."""
    shape = pick(rng, shapes)
    count = {"sphere": 1, "box": 3, "cylinder": 2}[shape]
    return shape, tuple(float(size) for size in rng.uniform(low, high, count))


def half_height(size: tuple[float, ...]) -> float:
    """Half the height of a sphere, box or cylinder as `draw_solid` sizes them."""
    return size[-1]


def half_width(size: tuple[float, ...]) -> float:
    return size[0]


def geom(kind: str, size: tuple[float, ...], **attributes: Any) -> str:
    """One MuJoCo geom without its name; vectors are written as space-separated numbers."""
    words = {"type": kind, "size": size, **attributes}
    text = " ".join(f'{key}="{_text(value)}"' for key, value in words.items())
    return f"<geom {text}/>"


def _text(value: Any) -> str:
    if isinstance(value, tuple | list | np.ndarray):
        return " ".join(repr(float(x)) for x in value)
    return repr(float(value)) if isinstance(value, float) else str(value)


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of two quaternions (w, x, y, z): first b, then a."""
    product = np.empty(4)
    mujoco.mju_mulQuat(product, a, b)
    return product


def rotate(quaternion: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A vector [3] turned by a quaternion (w, x, y, z)."""
    turned = np.empty(3)
    mujoco.mju_rotVecQuat(turned, v, quaternion)
    return turned


@dataclass
class Stage:
    """A scene under construction. Positions are metres before the look's turn; z = 0 is the floor.

    The XML holds every movable body at the origin: where they are and how fast, is in `params["launch"]`, so
    that the clips of a pair share one model.
    """

    scenario: str
    look: Look
    params: dict[str, Any] = field(default_factory=dict)
    things: list[Thing] = field(default_factory=list)
    _bodies: list[str] = field(default_factory=list)
    _qpos: list[float] = field(default_factory=list)
    _qvel: list[float] = field(default_factory=list)

    def add(
        self,
        role: str,
        shape: str,
        size: tuple[float, ...],
        position: Vector,
        *,
        name: str | None = None,
        color_name: str = "",
        noun: str = "",
        quaternion: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0),
        velocity: Vector = (0.0, 0.0, 0.0),
        spin: Vector = (0.0, 0.0, 0.0),
        moves: bool = True,
        geoms: list[str] | None = None,
        other: str | None = None,
        **attributes: Any,
    ) -> None:
        """Add one thing.

        Args:
            role: agent, patient, support, distractor or occluder; agent and patient get their own colours.
            shape: The geom's type, or any word if `geoms` are given.
            size: Half sizes in metres as MuJoCo orders them.
            position: Of the body's centre.
            name: Body name; the role if left out.
            color_name: A key of `COLORS`; not for agent and patient.
            noun: The word prompts use; from the shape if left out.
            quaternion: (w, x, y, z).
            velocity: Metres per second.
            spin: Radians per second about world axes (before the turn).
            moves: False fixes the body to the world.
            geoms: The body's geoms where it is not one simple solid.
            other: The agent's other shape, as `geom` writes it, where it is not one simple solid.
            attributes: More MuJoCo geom attributes (friction, density, …).
        """
        name = name or role
        color_name = {"agent": "red", "patient": "yellow"}.get(role, color_name)
        color = {"red": AGENT_RED, "yellow": PATIENT_YELLOW, **COLORS}[color_name]
        parts = geoms or [geom(shape, size, **attributes)]
        parts = [part.replace("<geom", f'<geom name="{name}{i}"', 1) for i, part in enumerate(parts)]
        if role == "agent":
            other = other or (
                geom("box", (0.82 * size[0],) * 3) if shape != "box" else geom("sphere", (float(1.1 * np.mean(size)),))
            )
            ghost = f'<geom name="{name}~" contype="0" conaffinity="0" mass="0"'
            parts.append(other.replace("<geom", ghost, 1))
        half = math.radians(self.look.turn_deg) / 2
        turn = np.array([math.cos(half), 0.0, 0.0, math.sin(half)])
        at, quat = rotate(turn, np.array(position, float)), multiply(turn, np.array(quaternion, float))
        if shape == "cylinder":
            quat = multiply(quat, np.array(UPRIGHT_CYLINDER))
        if moves:
            body = f'<body name="{name}"><freejoint/>'
            # MuJoCo's free joints take linear velocity in world axes but angular velocity in the body's own.
            inverse = quat * np.array([1.0, -1.0, -1.0, -1.0])
            own_spin = rotate(inverse, rotate(turn, np.array(spin, float)))
            self._qpos += [*map(float, at), *map(float, quat)]
            self._qvel += [*map(float, rotate(turn, np.array(velocity, float))), *map(float, own_spin)]
        else:
            body = f'<body name="{name}" pos="{_text(at)}" quat="{_text(quat)}">'
        self._bodies.append(body + "".join(parts) + "</body>")
        self.things.append(
            Thing(
                name,
                role,
                shape,
                noun or NOUNS[shape],
                color_name,
                color,
                tuple(float(x) for x in size),
                moves,
            )
        )

    def scene(self) -> Scene:
        """Finish: agent first, patient second, then the rest, whatever the order of adding."""
        rank = {"agent": 0, "patient": 1}
        xml = (
            f'<mujoco><option timestep="{TIMESTEP_S}" integrator="implicitfast"/>'
            '<size memory="4M"/>'
            # Contact bits 1 and 2: `violations.py` takes one each from agent and patient to let them pass.
            '<default><geom contype="3" conaffinity="3" density="300" friction="0.8 0.02 0.005"/></default>'
            '<worldbody><geom name="floor" type="plane" size="0 0 1"/>'
            f"{''.join(self._bodies)}</worldbody></mujoco>"
        )
        launch = {"qpos": self._qpos, "qvel": self._qvel}
        return Scene(
            scenario=self.scenario,
            xml=xml,
            things=tuple(sorted(self.things, key=lambda thing: rank.get(thing.role, 2))),
            camera=self.look.camera,
            light=self.look.light,
            floor=self.look.floor,
            params={**self.params, "turn_deg": self.look.turn_deg, "launch": launch},
        )


def bystanders(rng: np.random.Generator, *, distractors: bool, occluders: bool) -> Callable[[Scene], Scene]:
    """Draw still things that take no part, and return what adds them to any scene of the pair.

    Distractors stand beside and behind the action; the occluder is a slender screen in front of it.
    """
    added: list[Thing] = []
    bodies: list[str] = []

    def stand(name: str, role: str, shape: str, size: tuple[float, ...], x: float, y: float, noun: str) -> None:
        color_name = pick(rng, COLORS)
        added.append(Thing(name, role, shape, noun, color_name, COLORS[color_name], size, moves=False))
        body = geom(shape, size).replace("<geom", f'<geom name="{name}0"', 1)
        bodies.append(f'<body name="{name}" pos="{_text((x, y, half_height(size)))}">{body}</body>')

    if distractors:
        for i in range(int(rng.integers(1, 4))):
            shape, size = draw_solid(rng, tuple(NOUNS), 0.25, 0.5)
            side = sign(rng) * rng.uniform(2.95, 3.4)
            stand(f"distractor{i}", "distractor", shape, size, side, rng.uniform(1.6, 3.0), NOUNS[shape])
    if occluders:
        size = (rng.uniform(0.12, 0.25), 0.05, rng.uniform(0.7, 1.1))
        stand("occluder0", "occluder", "box", size, rng.uniform(-2.0, 2.0), rng.uniform(-3.0, -2.7), "screen")

    def add(scene: Scene) -> Scene:
        xml = scene.xml.replace("</worldbody>", "".join(bodies) + "</worldbody>")
        return dataclasses.replace(scene, xml=xml, things=(*scene.things, *added))

    return add
