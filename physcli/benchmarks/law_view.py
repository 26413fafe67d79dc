"""What the laws are checked on: agent and patient of a clip, and what its prompt says of the physics to expect."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from physcli.benchmarks.objects import wanted_objects
from physcli.benchmarks.tracks import Track

TOUCH_PX = 2.0  # nearer than this, two things may touch
WIDE_NOUNS = ("slope", "pole")  # what the agent touches all the time, and is no obstacle
EARLY_S = 0.8  # agent and patient are in full view for so long, and have not met
# Where colours are of 2×2 pixels, hues drift by up to 10 degrees in place of 1.2, and small balls have corners.
COARSE_SLACK = 1.5


@dataclass(frozen=True)
class Setting:
    """What a prompt's action says of the physics to expect.

    Attributes:
        words: What tells it in a prompt.
        flies: The agent is in free flight until it meets something.
        lands: What falls ends on a floor whose height in the picture the patient's foot shows.
        glides: The agent goes on in a straight line at a steady speed until it meets something.
        overlap: The most that the smaller of agent's and patient's bounding boxes may be inside the other's.
        covered: The most that the two together may lose of what is seen of them, as a fraction of the agent's area.
        agent_covered: The most of the agent that the patient may cover soon after they meet, as a fraction of what was
            seen of the agent just before.
        patient_covered: The most of the patient that the agent may cover.
        nearer: How much larger than early in the clip the agent may look once it has met the patient.
        lasting_s: For how long these must be exceeded.
        pressed: Two bounding boxes that are so much inside each other are of things that touch.
    """

    words: str
    flies: bool = False
    lands: bool = False
    glides: bool = False
    overlap: float = 1.01
    covered: float = math.inf
    agent_covered: float = 1.01
    patient_covered: float = 1.01
    nearer: float = math.inf
    lasting_s: float = 0.1
    pressed: float = 0.1


# What falls comes to lie on top or in front, so the patient may be hidden, but hardly the agent.
_FALLING = Setting(
    r"\bfalls\b", flies=True, lands=True, overlap=0.80, agent_covered=0.37, patient_covered=0.95, lasting_s=0.25
)
# In this order: the first whose words are in the prompt. How far two solid things may be in front of each other depends
# on how steeply the camera looks and from where they come, so each action has limits of its own.
SETTINGS: dict[str, Setting] = {
    "dominoes": Setting(r"\btopples\b", lands=True, overlap=0.60, covered=0.86, pressed=0.2),
    "support": Setting(
        r"\btips over\b", lands=True, overlap=0.30, covered=0.42, agent_covered=0.22, patient_covered=0.31
    ),
    "link": Setting(r"\balong an? \w+ pole\b", glides=True, overlap=0.42, covered=0.43),
    # What rolls down comes from behind the patient, and stays behind it.
    "roll": Setting(r"\bdown an? \w+ slope\b", patient_covered=0.14, nearer=1.4),
    "drop": dataclasses.replace(_FALLING, words=r"\bthrown up\b"),
    "contain": _FALLING,
    "collide": Setting(r"\b(rolls|slides)\b", glides=True, overlap=0.61, covered=0.76),
}


def scenario_of(prompt: str) -> str | None:
    """The simulator's scenario that a prompt's action belongs to, or None."""
    return next((name for name, one in SETTINGS.items() if re.search(one.words, prompt.lower())), None)


@dataclass(frozen=True)
class View:
    """What the checks see of a clip.

    Attributes:
        agent: The red thing's track.
        patient: The yellow thing's track.
        masks: Of each colour found, bool [T, H, W].
        rate_hz: Frames a second.
        prompt: What was asked for.
        coarse: The video has fewer samples of colour than pixels, so hues and outlines are less certain.
    """

    agent: Track
    patient: Track
    masks: dict[str, np.ndarray]
    rate_hz: float
    prompt: str
    coarse: bool = False

    @property
    def slack(self) -> float:
        """How many times as far as usual hues may drift, and round outlines be from a disc's."""
        return COARSE_SLACK if self.coarse else 1.0

    @cached_property
    def setting(self) -> Setting | None:
        """What the prompt's action says; None for an action that the simulator does not have."""
        scenario = scenario_of(self.prompt)
        return SETTINGS[scenario] if scenario else None

    @cached_property
    def wide(self) -> set[str]:
        """Colours of what the agent rolls on or slides along."""
        return {one.color for one in wanted_objects(self.prompt) if one.noun in WIDE_NOUNS}

    @cached_property
    def obstacles(self) -> list[str]:
        """Colours that may stop the agent."""
        return [color for color in self.agent.colors if color not in self.wide]

    @cached_property
    def early(self) -> slice:
        """Frames before anything can have happened."""
        return slice(0, min(len(self.agent.area), max(2, round(EARLY_S * self.rate_hz))))

    @cached_property
    def floor_y(self) -> float:
        """The lowest row of the resting patient."""
        return float(np.nanmedian(self.patient.box[self.early, 3])) if self.patient.seen[self.early].any() else np.nan

    def frames_in(self, seconds: float) -> int:
        """At least one."""
        return max(1, round(seconds * self.rate_hz))

    def both(self) -> list[Track]:
        return [track for track in (self.agent, self.patient) if track.seen.any()]


@dataclass(frozen=True)
class Finding:
    """Whether a law holds: True, False, or None where the clip does not let it be tested; and why it does not."""

    holds: bool | None
    reason: str = ""


HELD, UNTESTED = Finding(True), Finding(None)


def broken(view: View, frame: int, what: str) -> Finding:
    return Finding(False, f"{what} at {frame / view.rate_hz:.2f} s")
