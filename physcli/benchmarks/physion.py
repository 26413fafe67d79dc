"""Physion: which frames of which clips are shown, and what is known to go wrong with them.

Bear et al. 2021, "Physion: Evaluating Physical Prediction from Vision in Humans and Machines" (v1), and the v1.5
evaluation of neuroailab/physion_evaluator. Two tasks: object contact prediction (`ocp`: will the agent touch the
patient, from frames before it could) and detection (`ocd`: did it, seeing the moment). One frame of real Physion is
10 ms of simulation, whatever rate the container claims; simulated clips say their context in `metadata.jsonl`.

Readouts are in `readout.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from physcli.benchmarks import readout
from physcli.errors import DataError, unknown

TASKS = ("ocp", "ocd")
SUBJECTS = ("generator", "encoder", "image")
FRAME_PERIOD_MS = 10
CONTEXT_MS = 450  # OCP shows frames 0..45
LAST_FRAME = 45
LAST_FRAME_COLLIDE = 15  # a collision is over within half a second, so its context stops earlier
SIMULATED_OCD_FRAMES = 17
IMAGE_FRAMES = 4

# Accuracy of people on v1 OCP (Bear et al. 2021), to be shown beside v1 data only.
HUMAN_ACCURACY_V1 = {
    "collide": 0.810,
    "contain": 0.767,
    "dominoes": 0.694,
    "drape": 0.678,
    "drop": 0.746,
    "link": 0.645,
    "roll": 0.871,
    "support": 0.765,
}
# Mean OCP accuracy over the seven v1.5 scenarios as published for the official readout (Venkatesh et al. 2024,
# "Understanding Physical Dynamics with Counterfactual World Modeling"); unfiltered, hence with the known leak.
PUBLISHED_ACCURACY_V15 = {
    "human": 0.798,
    "CWM": 0.761,
    "VideoMAE": 0.736,
    "ResNet": 0.736,
    "DINOv2": 0.727,
}

# Test stimuli the v1.5 evaluation leaves out as badly simulated (training clips of these names are other clips).
BLACKLIST_V15 = frozenset(
    {
        "pilot-containment-cone-plate_0017",
        "pilot-containment-cone-plate_0022",
        "pilot-containment-cone-plate_0029",
        "pilot-containment-cone-plate_0034",
        "pilot-containment-multi-bowl_0042",
        "pilot-containment-multi-bowl_0048",
        "pilot-containment-vase_torus_0031",
        "pilot_dominoes_SJ020_d3chairs_o1plants_tdwroom_0005",
        "pilot_it2_collision_non-sphere_box_0002",
        "pilot_it2_collision_non-sphere_tdw_1_dis_1_occ_0004",
        "pilot_it2_collision_non-sphere_tdw_1_dis_1_occ_0007",
        "pilot_it2_drop_simple_box_0000",
        "pilot_it2_drop_simple_box_0042",
        "pilot_it2_drop_simple_tdw_1_dis_1_occ_0003",
        "pilot_it2_rollingSliding_simple_collision_box_0008",
        "pilot_it2_rollingSliding_simple_collision_box_large_force_0009",
        "pilot_it2_rollingSliding_simple_collision_tdw_1_dis_1_occ_0002",
        "pilot_it2_rollingSliding_simple_ledge_tdw_1_dis_1_occ_sphere_small_zone_0022",
        "pilot_it2_rollingSliding_simple_ramp_box_small_zone_0006",
        "pilot_it2_rollingSliding_simple_ramp_tdw_1_dis_1_occ_small_zone_0004",
        "pilot_it2_rollingSliding_simple_ramp_tdw_1_dis_1_occ_small_zone_0017",
        "pilot_linking_nl1-8_mg000_aCyl_bCyl_tdwroom1_long_a_0022",
        "pilot_linking_nl1-8_mg000_aCylcap_bCyl_tdwroom1_0012",
        "pilot_linking_nl1-8_mg000_aCylcap_bCyl_tdwroom_small_rings_0006",
        "pilot_linking_nl1-8_mg000_aCylcap_bCyl_tdwroom_small_rings_0010",
        "pilot_linking_nl1-8_mg000_aCylcap_bCyl_tdwroom_small_rings_0029",
        "pilot_linking_nl1-8_mg000_aCylcap_bCyl_tdwroom_small_rings_0036",
        "pilot_linking_nl6_aNone_bCone_occ1_dis1_boxroom_0028",
        "pilot_towers_nb4_fr015_SJ000_gr000sph_mono1_dis0_occ0_tdwroom_stable_0000",
        "pilot_towers_nb4_fr015_SJ000_gr000sph_mono1_dis0_occ0_tdwroom_stable_0002",
        "pilot_towers_nb4_fr015_SJ000_gr000sph_mono1_dis0_occ0_tdwroom_stable_0003",
        "pilot_towers_nb4_fr015_SJ000_gr000sph_mono1_dis0_occ0_tdwroom_stable_0010",
        "pilot_towers_nb4_fr015_SJ000_gr000sph_mono1_dis0_occ0_tdwroom_stable_0013",
        "pilot_towers_nb4_fr015_SJ000_gr000sph_mono1_dis0_occ0_tdwroom_stable_0017",
        "pilot_towers_nb4_fr015_SJ000_gr000sph_mono1_dis0_occ0_tdwroom_stable_0018",
        "pilot_towers_nb4_fr015_SJ000_gr000sph_mono1_dis0_occ0_tdwroom_stable_0032",
        "pilot_towers_nb4_fr015_SJ000_gr000sph_mono1_dis0_occ0_tdwroom_stable_0036",
        "pilot_towers_nb4_fr015_SJ000_gr01_mono0_dis1_occ1_tdwroom_unstable_0021",
        "pilot_towers_nb4_fr015_SJ000_gr01_mono0_dis1_occ1_tdwroom_unstable_0041",
        "pilot_towers_nb5_fr015_SJ030_mono0_dis0_occ0_boxroom_unstable_0006",
        "pilot_towers_nb5_fr015_SJ030_mono0_dis0_occ0_boxroom_unstable_0009",
    }
)
# Test stimuli the v1 authors report as glitchy.
BLACKLIST_V1 = frozenset(
    {
        "pilot_towers_nb4_fr015_SJ000_gr-01_mono1_dis1_occ1_boxroom_0001",
        "pilot_towers_nb4_fr015_SJ000_gr015sph_mono1_dis0_occ0_tdwroom_0000",
        "pilot_it2_collision_yeet_box_1_dis_1_occ_0005",
        "pilot_it2_collision_yeet_tdw_1_dis_1_occ_0006",
        "pilot_linking_nl1-8_mg000_aCylcap_bCyl_tdwroom_0013",
        "pilot_linking_nl1-8_mg000_aCylcap_bCyl_tdwroom_0022",
        "pilot-containment-box_0004",
        "pilot-containment-box_0012",
        "pilot-containment-box_0016",
        "pilot-containment-cone-plate_0003",
        "pilot-containment-cone-plate_0008",
        "pilot-containment-cone-plate_0013",
        "pilot-containment-cylinder-bowl_0003",
        "pilot-containment-cylinder-bowl_0006",
        "pilot-containment-cylinder-bowl_0008",
        "pilot-containment-cylinder-bowl_0010",
        "pilot-containment-cylinder-bowl_0016",
        "pilot-containment-cylinder-bowl_0018",
        "pilot-containment-cylinder-bowl_0024",
        "pilot_it2_drop_sizes_box_1_dis_1_occ_0007",
        "test10_0014",
        "test11_0015",
        "test13_0001",
        "test13_0010",
        "test14_0016",
        "test17_0004",
    }
)


class PhysionClip(readout.LabelledClip, Protocol):
    """What this module reads of a clip (see `physcli.data.clips.Clip`)."""

    @property
    def kind(self) -> str: ...
    @property
    def contact_frame(self) -> int | None: ...
    @property
    def center_frame(self) -> int | None: ...
    @property
    def num_frames(self) -> int | None: ...
    @property
    def record(self) -> Mapping[str, Any]: ...


T = TypeVar("T", bound=PhysionClip)


@dataclass(frozen=True)
class Selection(Generic[T]):
    """The items of one task, and the names of those left out, by reason."""

    items: tuple[T, ...]
    dropped: Mapping[str, tuple[str, ...]]

    @property
    def train(self) -> tuple[T, ...]:
        return tuple(item for item in self.items if item.split == "train")

    @property
    def test(self) -> tuple[T, ...]:
        return tuple(item for item in self.items if item.split == "test")


def frame_indices(
    task: str,
    scenario: str,
    *,
    frame_gap_ms: int = 150,
    num_frames: int = 4,
    contact_frame: int = 0,
    video_frames: int,
    official: bool = False,
) -> list[int]:
    """Frames of a real Physion clip, at a gap, as the v1.5 evaluation chooses them.

    OCP counts back from frame 45 (collide: 15) in steps of ceil(gap / 10 ms) and returns them ascending. OCD counts
    back from contact + 15 to contact − 30. Either is filled up in front with its first element to
    max(num_frames, 450 // gap + 1) frames, and never shortened; frames past the end become the last frame.

    OCD differs from the released code, which returns descending time, drops the earliest frame and repeats the
    latest in its place, and clips a window that sticks out: here it is ascending, complete, and a window that
    sticks out is moved into the video. `official=True` gives the released behaviour of both.

    Args:
        task: "ocp" or "ocd".
        scenario: Row name; only "collide" matters.
        frame_gap_ms: Simulated time between frames.
        num_frames: At least so many are returned.
        contact_frame: OCD's centre.
        video_frames: Length of the video.
        official: Everything as released.

    Returns:
        Frame numbers, repeats possible.

    Raises:
        ValueError: the official OCD at a gap above 450 ms, for which the released code finds no frame and fails.
    """
    _check_task(task)
    step = math.ceil(frame_gap_ms / FRAME_PERIOD_MS)
    if task == "ocp":
        last = LAST_FRAME_COLLIDE if scenario == "collide" else LAST_FRAME
        indices = list(range(last, -1, -step))[::-1]
    else:
        indices = list(range(contact_frame + 15, contact_frame - 31, -step))
        if official:
            indices = indices[:-1]
        else:
            indices = _shift_inside(indices[::-1], video_frames)
    if not indices:
        raise ValueError(f"no frame at a gap of {frame_gap_ms} ms; the official OCD needs at most 450 ms")
    indices = [min(max(index, 0), video_frames - 1) for index in indices]
    required = max(num_frames, CONTEXT_MS // frame_gap_ms + 1)
    return [indices[0]] * (required - len(indices)) + indices


def shown_frames(
    item: PhysionClip,
    task: str,
    *,
    subject: str,
    num_frames: int = 16,
    usable_frames: Callable[[int], int] | None = None,
    video_frames: int | None = None,
    official: bool = False,
    repeat_last: bool = False,
) -> list[int]:
    """The frames of a clip that a subject is shown.

    ============ ============================================== =============================================
    subject      simulated clips (context 0..16)                real Physion
    ============ ============================================== =============================================
    generator    OCP 0..16, OCD 17 frames around the contact    OCP 1..45 (collide 3..15), OCD the 45 frames
                                                                contact − 29 .. contact + 15
    encoder      the same without the first frame; evenly       `frame_indices`, the gap such that num_frames
                 thinned if num_frames is smaller               cover 450 ms (16 frames: 30 ms, 0, 3, …, 45)
    image        four of those, evenly spaced                   `frame_indices` at 150 ms: 0, 15, 30, 45
    ============ ============================================== =============================================

    A generator's window has as many of these frames, the last ones, as its VAE takes. With 4k + 1 all are taken: 45
    frames are 12 latent frames, 13 are 4, 17 are 5; with 8k + 1, 41, 9 and 17. Features of one readout must therefore
    keep a number of latent frames that all scenarios have. An OCD window that sticks out of the clip is moved inside.

    Args:
        item: The clip.
        task: "ocp" or "ocd".
        subject: "generator", "encoder" (takes num_frames at once) or "image" (one frame at a time).
        num_frames: An encoder's native number of frames.
        usable_frames: Of a generator: so many available frames → the most that it can take. Default: 4k + 1.
        video_frames: The clip's length, where `item.num_frames` does not say; without it OCP frames are not checked
            against the length (reading them is), and OCD fails.
        official: The v1.5 evaluation's frames for encoders on real Physion, its oddities included.
        repeat_last: Repeat the last frame of a clip that is too short, as the official loader does, instead of
            failing.

    Raises:
        DataError: the clip is shorter than what must be shown, or has no contact window.
    """
    _check_task(task)
    if subject not in SUBJECTS:
        raise unknown("kind of subject", subject, SUBJECTS)
    usable = usable_frames or (lambda available: (available - 1) // 4 * 4 + 1)
    length = video_frames if video_frames is not None else item.num_frames
    center = item.center_frame
    if task == "ocd":
        if center is None:
            raise DataError(
                f"{item.name} has no contact frame, nor a stand-in for it.",
                expected="a contact frame (for a negative its twin's) to lay the OCD window around",
                fix="use --task ocp, or repair the labels",
            )
        if length is None:
            raise ValueError("OCD needs video_frames")
    if item.kind == "simulated":
        frames = list(range(*_context(item)))
        if task == "ocd":
            assert center is not None
            assert length is not None
            if center >= length:
                raise DataError(
                    f"{item.name} ends at frame {length - 1}, before its contact at frame {center}.",
                    expected="clips that show the contact (or, for a negative, its twin's)",
                    fix="use --task ocp, or simulate clips of 49 frames",
                )
            first = center - SIMULATED_OCD_FRAMES // 2
            frames = _shift_inside(list(range(first, first + SIMULATED_OCD_FRAMES)), length)
        if subject == "generator":
            frames = frames[len(frames) - usable(len(frames)) :]
        else:
            count = IMAGE_FRAMES if subject == "image" else num_frames
            frames = _thin(frames[1:], count)
    elif subject == "generator":
        last = (center or 0) + 15 if task == "ocd" else last_context_frame(item)
        available = LAST_FRAME if task == "ocd" else last
        frames = list(range(last + 1 - usable(available), last + 1))
    else:
        gap_ms = 150 if subject == "image" else FRAME_PERIOD_MS * max(1, math.ceil(45 / max(num_frames - 1, 1)))
        frames = frame_indices(
            task,
            item.scenario or "",
            frame_gap_ms=gap_ms,
            num_frames=IMAGE_FRAMES if subject == "image" else num_frames,
            contact_frame=center or 0,
            # Only the official rule clips here; otherwise a clip that is too short must be noticed below.
            video_frames=length if official and length is not None else 10**9,
            official=official,
        )
    if length is None:
        return frames
    if task == "ocd" and not official:
        frames = _shift_inside(frames, length)
    if max(frames) >= length and not (repeat_last or official):
        raise DataError(
            f"{item.name} has {length} frames.",
            expected=f"at least {max(frames) + 1} for {task.upper()}",
            fix="leave the clip out, or use --readout official, which repeats its last frame",
        )
    return [min(frame, length - 1) for frame in frames]


def last_context_frame(item: PhysionClip) -> int:
    """The last frame OCP shows of a clip."""
    if item.kind == "simulated":
        return _context(item)[1] - 1
    return LAST_FRAME_COLLIDE if item.scenario == "collide" else LAST_FRAME


def select_items(
    clips: Iterable[T], task: str, *, filtered: bool = True, limit: int | None = None, seed: int = 0
) -> Selection[T]:
    """The clips one task is trained and tested on.

    Always left out: clips without label or scenario, clips that are in neither split, and blacklisted test stimuli.
    With `filtered`, also every positive of OCP whose contact happens inside the frames shown, where the answer can
    be seen (in v1 test that is 31 of 75 collide and 28 of 75 roll positives); a negative has no contact. The
    official evaluation keeps those, and its blacklist misses renamed files (`…_0000-redyellow`): that is
    `filtered=False`.

    Args:
        clips: From `read_dataset`; their order is kept.
        task: "ocp" or "ocd".
        limit: At most so many items per split: whole pairs, balanced over scenarios and labels. A larger limit
            contains the items of a smaller one.
        seed: Which ones the limit keeps.

    Returns:
        The items and, by reason, the names of what was left out (a limit is no reason).

    Raises:
        DataError: nothing is left.
    """
    _check_task(task)
    kept: list[T] = []
    dropped: dict[str, list[str]] = {}
    for clip in clips:
        reason = _reason_to_drop(clip, task, filtered)
        if reason:
            dropped.setdefault(reason, []).append(clip.name)
        else:
            kept.append(clip)
    if not kept:
        raise DataError(
            f"No labelled clip is left for {task.upper()}"
            + "".join(f"; {len(names)} dropped: {reason}" for reason, names in dropped.items()),
            expected="clips of a known scenario with a contact label",
            fix="`physcli data inspect` shows what is in the folder",
        )
    if limit is not None:
        chosen = {id(clip) for split in ("train", "test") for clip in _limit(kept, split, limit, seed)}
        kept = [clip for clip in kept if id(clip) in chosen]
    return Selection(tuple(kept), {reason: tuple(names) for reason, names in dropped.items()})


def require_enough(selection: Selection[T], protocol: str = "pooled") -> None:
    """Fail before features are computed if a readout could not be cross-validated on them.

    Args:
        protocol: A name in `readout.READOUTS`.

    Raises:
        DataError: too few training items of a label for the folds, or no test item; says received and needed.
    """
    train, test = selection.train, selection.test
    if not test:
        raise DataError(
            f"Too few items: received {len(train)} for training and 0 for testing.",
            expected="at least 1 test item",
            fix="point --data at a folder with a train and a test split",
        )
    # "" stands for all scenarios together.
    scenarios = sorted({item.scenario or "" for item in test}) if protocol == "per-scenario" else [""]
    for scenario in scenarios:
        members = [item for item in train if scenario in ("", item.scenario)]
        groups = None if protocol == "official" else readout.groups_of(members)
        readout.check_folds([item.label for item in members], groups, readout.NUM_FOLDS, scenario=scenario)


def blacklisted(item: PhysionClip, *, exact: bool = False) -> bool:
    """Whether a test stimulus is on its version's list; `exact` compares the whole stem as the released code does."""
    if item.split != "test" or item.kind not in ("physion-v1", "physion-v1.5"):
        return False
    names = BLACKLIST_V1 if item.kind == "physion-v1" else BLACKLIST_V15
    if exact:
        return item.name in names
    # A longer name is the same stimulus under another rendering unless its number goes on.
    return any(item.name == name or item.name.startswith((f"{name}-", f"{name}_")) for name in names)


def _reason_to_drop(item: PhysionClip, task: str, filtered: bool) -> str:
    if item.split not in ("train", "test"):
        return f"in split {item.split!r}, neither train nor test"
    if item.label is None:
        return "no contact label"
    if item.scenario is None:
        return "no scenario"
    if blacklisted(item, exact=not filtered):
        return "on the authors' list of badly simulated test stimuli"
    leaks = item.label and item.contact_frame is not None and item.contact_frame <= last_context_frame(item)
    if filtered and task == "ocp" and leaks:
        return "contact already visible in the frames shown"
    return ""


def _limit(items: Sequence[T], split: str, limit: int, seed: int) -> list[T]:
    """Take units of one positive and one negative from the scenarios in turn until `limit` items are there."""
    rng = np.random.default_rng([seed, split == "test"])
    queues: list[list[list[T]]] = []
    for scenario in sorted({item.scenario or "" for item in items}):
        members = [item for item in items if item.split == split and (item.scenario or "") == scenario]
        pairs: dict[str, list[T]] = {}
        for item in members:
            if item.pair is not None:
                pairs.setdefault(item.pair, []).append(item)
        whole = list(pairs.values())
        singles = [item for item in members if item.pair is None]
        singles = [singles[i] for i in rng.permutation(len(singles))]
        positives = [item for item in singles if item.label]
        negatives = [item for item in singles if not item.label]
        whole += [list(unit) for unit in zip(positives, negatives, strict=False)]
        whole = [whole[i] for i in rng.permutation(len(whole))]
        # What a filter has left without its twin comes last.
        whole.sort(key=len, reverse=True)
        rest = positives[len(negatives) :] + negatives[len(positives) :]
        queues.append(whole + [[item] for item in rest])
    chosen: list[T] = []
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(chosen) + len(queue[turn]) <= limit:
                chosen += queue[turn]
    return chosen


def _context(item: PhysionClip) -> tuple[int, int]:
    """(first, last + 1) of the frames a simulated clip's record declares as context."""
    context = item.record.get("context")
    if not (isinstance(context, list | tuple) and len(context) == 2 and context[0] < context[1]):
        raise DataError(
            f"{item.name}: context is {context!r} in metadata.jsonl.",
            expected="[first frame, last frame + 1]",
            fix="simulate the set again with this physcli",
        )
    return int(context[0]), int(context[1])


def _shift_inside(frames: list[int], length: int) -> list[int]:
    """Move ascending frame numbers into 0..length − 1; what is longer than the clip keeps its start at 0."""
    shift = min(0, length - 1 - frames[-1])
    shift = max(shift, -frames[0])
    return [frame + shift for frame in frames]


def _thin(frames: list[int], count: int) -> list[int]:
    """`count` of the frames, evenly spaced with both ends; all of them if there are not more."""
    if count >= len(frames):
        return frames
    if count == 1:
        return frames[-1:]
    return [frames[round(i * (len(frames) - 1) / (count - 1))] for i in range(count)]


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise unknown("task", task, TASKS)
