"""The law-checker: does a clip of the simulated world, real or generated, obey its laws and show what was asked?

From pixels alone: objects are found by colour (`objects`) and followed (`tracks`), their outlines are held against the
prompt's nouns (`law_nouns`), and each law is checked by itself (`law_identity`, `law_mechanics`). The checks know how
the simulator films: its camera never moves, and looks down at 12 to 46 degrees. They cannot know depth, so what happens
behind something is not judged.

Scores are named as in VideoPhy-2 (Bansal et al. 2025): semantic adherence (SA) and physical commonsense (PC), and Joint
where both hold. Differs from it in the judge, which is no model but arithmetic; in PC, which is not a grade from 1 to 5
but whether every law holds that the clip lets one test; and in Joint, which asks for motion where the prompt does, for
a video that stands still breaks no law.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from physcli.benchmarks.base import Benchmark, Context, Video
from physcli.benchmarks.chroma import restore_chroma
from physcli.benchmarks.dynamic_degree import DYNAMIC_DEGREE, is_dynamic, largest_motion, rule_for
from physcli.benchmarks.law_events import heads, hits, moves
from physcli.benchmarks.law_identity import color, permanence, shape
from physcli.benchmarks.law_mechanics import energy, gravity, inertia, solidity
from physcli.benchmarks.law_nouns import other_nouns
from physcli.benchmarks.law_view import Finding, View, scenario_of
from physcli.benchmarks.objects import LEADING_COLORS, ObjectsResult, find_objects, masks_of_colors, shows_found
from physcli.benchmarks.tracks import follow
from physcli.rows import Metric

# Law → what checks it. Adding one is a line here and a function of a view.
LAWS: dict[str, Callable[[View], Finding]] = {
    "permanence": permanence,
    "shape": shape,
    "color": color,
    "solidity": solidity,
    "gravity": gravity,
    "inertia": inertia,
    "energy": energy,
}
METRICS = (
    Metric("sa", "rate", True, interval="wilson"),
    Metric("pc", "rate", True, role="commonsense", interval="wilson"),
    Metric("joint", "rate", True, role="headline", interval="wilson"),
    replace(DYNAMIC_DEGREE, higher_is_better=True),
    Metric("moves", "rate", True, interval="wilson"),
    Metric("sa_grade", "grade", True),
    *(Metric(f"law/{law}", "rate", True, interval="wilson") for law in LAWS),
)
BEST_GRADE, ADHERES_FROM = 5, 4  # VideoPhy-2 counts SA of 4 and 5 as adherence
# What is taken off the grade for each.
MISSING, EXTRA, OTHER_NOUN, OTHER_OUTCOME, NO_OUTCOME, OTHER_WAY, STILL = 2, 1, 2, 2, 1, 2, 2
MOTION_WORDS = re.compile(r"\b(rolls?|slides?|falls?|thrown|topples?|tips?|moves?|bounces?|rolling|falling|moving)\b")
LEAST_FRAMES = 5
# In larger pictures a sample of colour for 2×2 pixels is finer than what the laws look at.
COARSE_BELOW_PX = 256


@dataclass(frozen=True)
class LawResult:
    """What `check_laws` says of one clip.

    Attributes:
        sa: Semantic adherence, 5 (all that was asked for) to 1.
        adheres: SA is 4 or 5.
        pc: Physical commonsense: at least one law could be tested, and none was broken.
        joint: Adheres and obeys; and moves, if the prompt asks for motion.
        moves: Something goes somewhere, by at least 2 pixels of 64.
        asks_motion: The prompt asks for motion.
        dynamic: Dynamic by VBench's rule.
        motion_px: The mean over frame pairs of what that rule looks at, the longest 5 % of the flow, in pixels.
        hits: Agent and patient touch; None if one of the two is not there.
        laws: Each law of `LAWS`: it holds, it is broken, or (None) the clip does not let it be tested.
        reasons: Why, for each broken law; and "sa" where something is taken off.
        objects: What of the prompt's objects is there.
    """

    sa: int
    adheres: bool
    pc: bool
    joint: bool
    moves: bool
    asks_motion: bool
    dynamic: bool
    motion_px: float
    hits: bool | None
    laws: dict[str, bool | None]
    reasons: dict[str, str]
    objects: ObjectsResult

    @property
    def scores(self) -> dict[str, float | None]:
        """By the names of `METRICS`; None where a law is not tested."""
        return {
            "sa": self.adheres,
            "pc": self.pc,
            "joint": self.joint,
            "dynamic_degree": self.dynamic,
            "moves": self.moves,
            "sa_grade": self.sa,
            **{f"law/{law}": holds for law, holds in self.laws.items()},
        }


def grade(scores: Mapping[str, Any]) -> float:
    """How good a video is by `LawResult.scores`, 0 to 1: nothing where what should move does not, else half the share
    of tested laws that hold and half of SA's grade."""
    tested = [holds for law in LAWS if (holds := scores[f"law/{law}"]) is not None]
    obeyed = sum(tested) / len(tested) if tested else 0.0
    return float(scores["moves"]) * (obeyed + (scores["sa_grade"] - 1) / (BEST_GRADE - 1)) / 2


def check_laws(
    frames: np.ndarray,
    frame_rate_hz: float,
    prompt: str,
    *,
    flow: Callable[[np.ndarray], np.ndarray],
    chroma_step: tuple[int, int] = (1, 1),
) -> LawResult:
    """Judge one clip.

    Args:
        frames: uint8 [T, H, W, 3] RGB, the whole clip from its start.
        frame_rate_hz: Frames a second of the world: a simulated clip has 20, of every third frame 20/3.
        prompt: What was asked for, as the simulator writes it. Laws that an action of other words leaves open are not
            tested.
        flow: uint8 [T, H, W, 3] → float [T − 1, H, W, 2] in pixels, such as `data.flow.dis_flow`.
        chroma_step: How many (rows, columns) of pixels the video has a sample of colour for: (2, 2) of 4:2:0.

    Raises:
        DataError: the prompt names no coloured object.
        ValueError: frames of another type or shape, fewer than 5 of them, or no positive rate.
    """
    if len(frames) < LEAST_FRAMES or not frame_rate_hz > 0:
        raise ValueError(
            f"{len(frames)} frames at {frame_rate_hz} per second; expected at least {LEAST_FRAMES}, and a positive rate"
        )
    coarse = chroma_step != (1, 1) and min(frames.shape[1:3]) < COARSE_BELOW_PX
    if coarse:
        frames = restore_chroma(frames, chroma_step)
    found = find_objects(frames)
    height, width = size = frames.shape[1:3]
    objects = shows_found(found, size, prompt)
    masks = masks_of_colors(found, size)
    agent, patient = (follow(frames, found, color, masks) for color in LEADING_COLORS)
    view = View(agent, patient, masks, frame_rate_hz, prompt, coarse)

    findings = {law: check(view) for law, check in LAWS.items()}
    broken = {law: finding.reason for law, finding in findings.items() if finding.holds is False}
    tested = any(finding.holds is not None for finding in findings.values())
    pc = tested and not broken

    hit, moving = hits(view), moves(view, frames)
    asks_motion = bool(MOTION_WORDS.search(prompt.lower()))
    still = asks_motion and not moving
    sa, why = _grade(prompt, objects, nouns=other_nouns(view), hit=hit, way=heads(view), still=still)
    rule = rule_for(len(frames), height, width, frame_rate_hz)
    motion = largest_motion(flow(frames[:: rule.interval]))
    adheres = sa >= ADHERES_FROM
    return LawResult(
        sa=sa,
        adheres=adheres,
        pc=pc,
        joint=adheres and pc and (moving or not asks_motion),
        moves=moving,
        asks_motion=asks_motion,
        dynamic=is_dynamic(motion, rule),
        motion_px=float(motion.mean()),
        hits=hit,
        laws={law: finding.holds for law, finding in findings.items()},
        reasons=broken | ({"sa": why} if why else {}),
        objects=objects,
    )


def _grade(
    prompt: str, objects: ObjectsResult, *, nouns: Sequence[str], hit: bool | None, way: str | None, still: bool
) -> tuple[int, str]:
    """SA from 5 to 1, and what is wrong.

    Taken off are 2 for each colour that is missing, 1 for each that was not asked for, 2 for each thing that is another
    than was asked for (`nouns` says which), 2 for another outcome than the prompt tells (1 if it cannot be seen), 2 for
    another direction and 2 for standing still: one small thing may be wrong, a main one not.
    """
    text = prompt.lower()
    flaws = [(MISSING, f"no {color} as asked for") for color in objects.missing]
    flaws += [(EXTRA, f"too much {color}") for color in objects.extra]
    flaws += [(OTHER_NOUN, what) for what in nouns]
    wanted = re.search(r"\b(hits|misses)\b", text)
    if wanted and hit is None:
        flaws.append((NO_OUTCOME, "no outcome to be seen"))
    elif wanted and hit != (wanted[1] == "hits"):
        flaws.append((OTHER_OUTCOME, f"{'hits' if hit else 'misses'}"))
    asked_way = re.search(r"\bto the (left|right)\b", text)
    # Of a row the agent is the last block, and may not be reached.
    if asked_way and way not in (None, asked_way[1]) and scenario_of(prompt) != "dominoes":
        flaws.append((OTHER_WAY, f"goes {way}"))
    if still:
        flaws.append((STILL, "nothing moves"))
    return max(1, BEST_GRADE - sum(cost for cost, _ in flaws)), "; ".join(what for _, what in flaws)


class Laws(Benchmark):
    """The law-checker over a set of videos.

    `sa` is the share with SA ≥ 4, `pc`, `joint` and `dynamic_degree` are shares, `sa_grade` is the mean grade, `moves`
    the share that moves; `law/<name>` is the share in which the law holds of those n clips in which it could be tested
    (no row where it never could). Groups: the kind of violation of impossible twins, else the prompt's scenario.
    """

    name = "laws"
    metrics = METRICS
    restores_chroma = True
    task = "laws"

    def score(self, video: Video, context: Context) -> dict[str, Any]:
        result = check_laws(
            context.frames,
            context.frame_rate_hz,
            video.prompt,
            flow=context.flow,
            chroma_step=context.chroma_step,
        )
        group = video.columns.get("violation", {}).get("kind") or scenario_of(video.prompt) or "other"
        return {**result.scores, "motion_px": result.motion_px, "group": str(group), "reasons": result.reasons}
