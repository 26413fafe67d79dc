"""Objects found by colour: on drawn frames, where each answer is known, and on all scenarios of the simulator."""

from __future__ import annotations

import colorsys
import dataclasses
import json

import cv2
import numpy as np
import pytest

from physcli.benchmarks.objects import (
    FOUND_COLORS,
    HUES_DEG,
    LEADING_COLORS,
    NOT_FOUND_COLORS,
    SATURATIONS,
    UNSAID_COLORS,
    WHITE,
    WantedObject,
    find_objects,
    shows,
    wanted_objects,
)
from physcli.data.clips import read_dataset
from physcli.errors import DataError
from physcli.simulation.physics import compile_scene
from physcli.simulation.prompts import NOUNS, with_rate
from physcli.simulation.renderer import GAMMA, render
from physcli.simulation.scenes.stage import AGENT_RED, COLORS, FLOORS, PATIENT_YELLOW, SKIES
from physcli.simulation.suite import make_pair
from physcli.simulation.types import SCENARIOS

PAINTS = {"red": AGENT_RED, "yellow": PATIENT_YELLOW, **COLORS}
SAMPLINGS = {1: range(17), 3: range(0, 49, 3)}
COLLIDE = "a red ball rolls towards a yellow box and hits it, filmed at 20 frames per second"


def display(color, shade=1.0):
    """A linear colour as the renderer writes it."""
    return (np.array(color) * shade).clip(0, 1) ** (1 / GAMMA) * 255


def canvas(num_frames=17, size=64, floors=(0, 2)):
    """A chequered floor, uint8 [T, H, W, 3]."""
    rows, columns = np.indices((size, size)) // (size // 8)
    odd = ((rows + columns) % 2).astype(bool)
    frame = np.where(odd[..., None], display(FLOORS[floors[0]], 0.8), display(FLOORS[floors[1]], 0.8))
    return np.tile(frame.astype(np.uint8), (num_frames, 1, 1, 1))


def paint(frames, color, y, x, height=7, width=7, shade=0.8):
    """Draw a rectangle from (y, x), its left half in half the light."""
    frames[:, y : y + height, x : x + width] = display(PAINTS[color], shade)
    frames[:, y : y + height, x : x + width // 2] = display(PAINTS[color], shade / 2)


def collide_like(num_frames=17):
    frames = canvas(num_frames)
    paint(frames, "red", 10, 10)
    paint(frames, "yellow", 40, 40)
    return frames


def colors_of(frames):
    return [[thing.color for thing in found] for found in find_objects(frames)]


# --- the table of colours ---


def test_colors_are_the_simulators():
    assert {*HUES_DEG, WHITE, *NOT_FOUND_COLORS} == set(PAINTS)
    for name, hue in HUES_DEG.items():
        red, green, blue = (channel ** (1 / GAMMA) for channel in PAINTS[name])
        assert colorsys.rgb_to_hsv(red, green, blue)[0] * 360 == pytest.approx(hue, abs=0.1)
    assert not set(LEADING_COLORS) & set(COLORS)


def test_saturation_parts_colors_from_floors_and_skies():
    saturations = {color: 1 - (min(color) / max(color)) ** (1 / GAMMA) for color in (*PAINTS.values(), *FLOORS, *SKIES)}
    assert max(saturations[color] for color in (*FLOORS, *SKIES)) + 0.03 < SATURATIONS[0]
    assert min(saturations[PAINTS[name]] for name in HUES_DEG) - 0.2 > SATURATIONS[1]


# --- prompts ---


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        (COLLIDE, [("red", "ball", 1), ("yellow", "box", 1)]),
        (
            "a red ball falls into a blue container and misses a yellow cylinder, filmed at 7 frames per second",
            [("red", "ball", 1), ("blue", "container", 2), ("yellow", "cylinder", 1)],
        ),
        (
            "a red box falls next to a white container and hits a yellow ball, filmed at 20 frames per second",
            [("red", "box", 1), ("white", "container", 1), ("yellow", "ball", 1)],
        ),
        (
            "a row of grey blocks topples to the left and a red block hits a yellow box, filmed at 7 frames per second",
            [("grey", "row", None), ("red", "block", 1), ("yellow", "box", 1)],
        ),
        (
            "a red box is thrown up and falls towards a yellow box and hits it, filmed at 20 frames per second",
            [("red", "box", 1), ("yellow", "box", 1)],
        ),
        (
            "a red ring slides to the left along a purple pole and misses a yellow box, filmed at 20 frames per second",
            [("red", "ring", 1), ("purple", "pole", None), ("yellow", "box", 1)],
        ),
        (
            "a red ball rolls down a cyan slope towards a yellow box and hits it, filmed at 20 frames per second",
            [("red", "ball", 1), ("cyan", "slope", 1), ("yellow", "box", 1)],
        ),
        (
            "a stack of green blocks tips over to the left and a red block hits a yellow box, filmed at 20 frames",
            [("green", "stack", 1), ("red", "block", 1), ("yellow", "box", 1)],
        ),
        ("A red ball by a large blue box", [("red", "ball", 1), ("blue", "box", 1)]),
        ("a ball rolls", []),
    ],
)
def test_wanted_objects_of_each_kind_of_prompt(prompt, wanted):
    assert wanted_objects(prompt) == [WantedObject(*one) for one in wanted]


@pytest.fixture(scope="module")
def samples():
    """One clip of each scenario, hits and misses in turn."""
    return [make_pair(scenario, "laws", 0)[number % 2] for number, scenario in enumerate(SCENARIOS)]


def test_wanted_objects_are_in_the_scene(samples):
    nouns = {"row": "block", "stack": "block"}
    for sample in samples:
        things = sample.scene.things
        wanted = wanted_objects(with_rate(sample.prompt, 3))
        assert wanted == wanted_objects(sample.prompt)
        assert [thing.color for thing in wanted if thing.noun in NOUNS] == ["red", "yellow"]
        assert len(wanted) == (2 if sample.scene.scenario in ("collide", "drop") else 3)
        for one in wanted:
            matching = [t for t in things if (t.color_name, t.noun) == (one.color, nouns.get(one.noun, one.noun))]
            assert matching
            assert one.most is None or one.noun == "stack" or len(matching) <= one.most
        unsaid = {thing.color_name for thing in things} - {one.color for one in wanted}
        assert len(unsaid) <= sum(UNSAID_COLORS.get(one.noun, 0) for one in wanted)


# --- the finder ---


@pytest.mark.parametrize("color", HUES_DEG)
def test_finds_a_color_in_light_and_shadow(color):
    frames = canvas(2)
    paint(frames, color, 20, 30, height=5, width=8)
    for found in find_objects(frames):
        assert [(thing.color, thing.area) for thing in found] == [(color, 40)]
        assert found[0].centroid == (33.5, 22.0)
        assert found[0].mask.dtype == bool
        assert np.array_equal(np.argwhere(found[0].mask), [(y, x) for y in range(20, 25) for x in range(30, 38)])


def test_finds_nothing_on_floors_and_skies_and_little_in_noise():
    rng = np.random.default_rng(0)
    in_noise = []
    for floors in ((0, 1), (2, 3), (4, 2)):
        for sky in SKIES:
            frames = canvas(4, floors=floors)
            frames[:, :9] = display(sky)
            noisy = (frames + rng.normal(0, 8, frames.shape)).clip(0, 255).astype(np.uint8)
            assert colors_of(frames) == [[]] * 4
            in_noise += colors_of(noisy)
    assert len(in_noise) == 48
    assert sum(map(len, in_noise)) <= 4


def test_grey_is_not_found_and_white_in_the_light_is():
    frames = canvas(1)
    paint(frames, "grey", 5, 5)
    paint(frames, "white", 30, 30)
    (found,) = find_objects(frames)
    assert [thing.color for thing in found] == ["white"]
    assert found[0].area == 7 * 4  # the lit part


def test_what_belongs_together_and_what_does_not():
    frames = canvas(1)
    paint(frames, "red", 5, 5)
    paint(frames, "red", 5, 13)  # one pixel between them
    paint(frames, "red", 5, 22)  # two
    paint(frames, "red", 13, 30)  # one, and one down
    paint(frames, "blue", 12, 5)  # touching, of another colour
    assert sorted(colors_of(frames)[0]) == ["blue", "red", "red"]


def test_frames_are_apart():
    frames = canvas(3)
    paint(frames[:1], "green", 57, 20)
    paint(frames[1:2], "green", 0, 20)
    found = find_objects(frames)
    assert [[thing.area for thing in things] for things in found] == [[49], [49], []]
    assert [things[0].centroid[1] for things in found[:2]] == [60.0, 3.0]


def test_specks_and_seams_are_no_objects():
    frames = canvas(1)
    frames[0, 50, 50:53] = display(PAINTS["red"])
    frames[0, 20:30, 20:30] = display(PAINTS["blue"])
    frames[0, 20:30, 31:40] = display(PAINTS["red"])
    frames[0, 20:30, 30] = (frames[0, 20:30, 29].astype(int) + frames[0, 20:30, 31]) // 2
    assert sorted(colors_of(frames)[0]) == ["blue", "red"]
    # The same column by itself, without blue and red beside it, is an object.
    seam = canvas(1)
    seam[0, 20:30, 30] = frames[0, 20:30, 30]
    assert len(colors_of(seam)[0]) == 1


def test_a_color_of_no_name_is_other():
    frames = canvas(1)
    frames[:, 20:28, 20:28] = (230, 60, 190)
    assert colors_of(frames) == [["other"]]
    assert "other" in FOUND_COLORS


def test_larger_pictures_scale():
    small = collide_like(1)
    paint(small, "red", 10, 18)  # joined to the other
    paint(small, "green", 5, 40, height=2, width=5)  # too small to count
    paint(small, "blue", 50, 10, height=1, width=3)  # a speck
    large = small.repeat(3, 1).repeat(3, 2)
    for one, other in zip(find_objects(small)[0], find_objects(large)[0], strict=True):
        assert (other.color, other.area) == (one.color, 9 * one.area)
    assert shows(large, COLLIDE) == shows(small, COLLIDE)


def test_masks_are_where_the_simulators_things_are(simulated):
    overlaps, offsets = [], []
    for clip in read_dataset(simulated).clips[::5]:
        indices = [0, 8, 16]
        segmentation = np.load(clip.arrays)["segmentation"][indices]
        for found, segments in zip(find_objects(clip.read(indices)), segmentation, strict=True):
            assert len({thing.color for thing in found}) == len(found)
            for number, record in enumerate(clip.record["things"], start=1):
                if record["color_name"] not in HUES_DEG:
                    continue
                (thing,) = (thing for thing in found if thing.color == record["color_name"])
                true = segments == number
                overlaps.append((thing.mask & true).sum() / (thing.mask | true).sum())
                offsets.append(np.hypot(*(np.argwhere(true).mean(0)[::-1] - thing.centroid)))
    assert len(overlaps) > 40
    assert np.mean(overlaps) > 0.88
    assert min(overlaps) > 0.7
    assert np.mean(offsets) < 0.3


# --- the rule ---


def test_right_and_why_not():
    right = shows(collide_like(), COLLIDE)
    assert right.right
    assert right.found == {"red": 1, "yellow": 1}
    assert (right.missing, right.extra, right.unjudged) == ((), (), ())

    assert shows(collide_like(), COLLIDE.replace("red", "blue")).missing == ("blue",)
    assert shows(collide_like(), COLLIDE.replace("red", "blue")).extra == ("red",)
    doubled = collide_like()
    paint(doubled, "red", 10, 30)
    result = shows(doubled, COLLIDE)
    assert (result.right, result.missing, result.extra) == (False, (), ("red",))
    assert result.found["red"] == 2
    # Two of one colour that were asked for are two.
    both = "a red ball rolls towards a red box and a yellow box"
    assert shows(doubled, both).right
    assert shows(collide_like(), both).missing == ("red",)


def test_wanted_things_must_be_there_early_and_may_go_later():
    frames = collide_like()
    frames[6:] = canvas(11)
    assert shows(frames, COLLIDE).right
    frames = collide_like()
    frames[:3] = canvas(3)
    assert shows(frames, COLLIDE).missing == ("red", "yellow")


@pytest.mark.parametrize(("num_frames", "right"), [(5, True), (6, False)])
def test_other_colors_count_whenever_they_come(num_frames, right):
    frames = collide_like()
    paint(frames[-num_frames:], "green", 5, 40)
    result = shows(frames, COLLIDE)
    assert result.right == right
    assert result.extra == (() if right else ("green",))


def test_what_is_too_small_does_not_count():
    frames = collide_like()
    paint(frames, "green", 5, 40, height=2, width=5)
    assert shows(frames, COLLIDE).right
    paint(frames, "green", 5, 40, height=3, width=5)
    assert not shows(frames, COLLIDE).right


def test_sizes_tell_poles_slopes_and_rows_from_things():
    slope = collide_like()
    slope[:, 20:38, 5:60] = display(PAINTS["purple"], 0.7)
    prompt = "a red ball rolls down a purple slope towards a yellow box and hits it"
    assert shows(slope, prompt).right
    assert shows(slope, prompt.replace("purple", "cyan")).missing == ("cyan",)
    # Red, and with the ball on it, it cannot be the ball.
    slope[:, 17:38, 5:60] = display(PAINTS["red"], 0.7)
    assert shows(slope, COLLIDE).extra == ("red",)

    small = collide_like()
    paint(small, "purple", 22, 30, height=8, width=8)
    assert shows(small, prompt).missing == ("purple",)
    assert shows(small, prompt.replace("purple slope", "purple box")).right
    assert shows(small, "a row of purple blocks topples, and a red block hits a yellow box").missing == ("purple",)


def test_poles_bring_posts_and_a_knob():
    frames = collide_like()
    paint(frames, "blue", 20, 4, height=2, width=50)
    paint(frames, "green", 22, 2, height=20, width=3)
    paint(frames, "green", 22, 55, height=20, width=3)
    paint(frames, "cyan", 16, 30, height=8, width=3)
    prompt = "a red ring slides to the left along a {} pole and hits a yellow box"
    assert shows(frames, prompt.format("blue")).right
    assert shows(frames, prompt.format("green")).missing == ("green",)
    assert shows(frames, prompt.format("purple")).missing == ("purple",)
    # The pole cannot be a post.
    result = shows(frames, prompt.format("grey"))
    assert (result.right, result.extra, result.unjudged) == (False, ("blue",), ("grey",))
    paint(frames, "purple", 50, 10)
    assert shows(frames, prompt.format("blue")).extra == ("purple",)


def test_grey_is_not_judged():
    prompt = "a red ball rolls down a grey slope towards a yellow box and hits it"
    result = shows(collide_like(), prompt)
    assert result.right
    assert result.unjudged == ("grey",)
    assert shows(collide_like(), prompt.replace("grey", "white")).missing == ("white",)


def test_results_are_plain():
    result = dataclasses.asdict(shows(collide_like(), COLLIDE))
    assert json.loads(json.dumps(result))["found"] == {"red": 1, "yellow": 1}


# --- all scenarios ---


def blurred_and_noisy(frames):
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 0.6) for frame in frames])
    noise = np.random.default_rng(0).normal(0, 8, soft.shape)
    return (soft + noise).clip(0, 255).astype(np.uint8)


def test_each_scenario_shows_what_its_prompt_says_and_not_what_others_say(samples):
    for sample in samples:
        scene, motion = sample.scene, sample.motion
        model = compile_scene(scene)
        film = render(scene, model, motion).rgb
        for every, indices in SAMPLINGS.items():
            prompt = with_rate(sample.prompt, every)
            frames = film[list(indices)]
            assert shows(frames, prompt).right, prompt
            assert shows(blurred_and_noisy(frames), prompt).right, prompt
            for one in wanted_objects(prompt):
                for other in {"red", "green", "blue"} - {one.color}:
                    changed = prompt.replace(f" {one.color} ", f" {other} ")
                    assert not shows(frames, changed).right, changed


def test_what_vanishes_or_changes_color_is_noticed(samples):
    for sample in samples:
        scene, motion = sample.scene, sample.motion
        model = compile_scene(scene)
        for number in range(2):  # agent and patient
            colors, visible = motion.colors.copy(), motion.visible.copy()
            colors[:, number], visible[:, number] = COLORS["purple"], False
            for change in ({"colors": colors}, {"visible": visible}):
                frames = render(scene, model, dataclasses.replace(motion, **change), frames=range(0, 49, 7)).rgb
                result = shows(frames, sample.prompt)
                assert LEADING_COLORS[number] in result.missing, (sample.prompt, change.keys())


def test_clips_with_things_painted_out_doubled_and_recolored(simulated):
    """On videos as they are read, by segmentation: at most one in twenty may be judged wrongly."""
    wrong = {"real": [], "painted out": [], "doubled": [], "recolored": []}
    for clip in read_dataset(simulated).clips[::3]:
        for every, indices in SAMPLINGS.items():
            prompt = with_rate(clip.prompt, every)
            frames = clip.read(indices)
            thing = np.load(clip.arrays)["segmentation"][list(indices)] == 1  # the agent
            grown = np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) for mask in thing])
            wrong["real"].append(not shows(frames, prompt).right)

            without = np.stack([cv2.inpaint(*pair, 2, cv2.INPAINT_TELEA) for pair in zip(frames, grown, strict=True)])
            wrong["painted out"].append("red" not in shows(without, prompt).missing)

            twice = frames.copy()
            columns = np.flatnonzero(grown[:6].any((0, 1)))
            # Away from the first by its own size and more, to the side where there is room.
            step = int(np.ptp(columns)) + 5
            step *= 1 if columns.max() + step < 64 else -1
            copies = np.roll(grown, step, 2).astype(bool)
            twice[copies] = np.roll(frames, step, 2)[copies]
            if columns.min() + step >= 0 and columns.max() + step < 64:
                wrong["doubled"].append("red" not in shows(twice, prompt).extra)

            blue = frames.copy()
            red = grown.astype(bool) & (frames[..., 0] > 1.2 * frames[..., 1:].max(-1))
            blue[red] = frames[red][:, ::-1]
            wrong["recolored"].append("red" not in shows(blue, prompt).missing)
    assert all(len(verdicts) >= 20 for verdicts in wrong.values())
    assert {kind: sum(verdicts) for kind, verdicts in wrong.items() if np.mean(verdicts) > 0.05} == {}


# --- errors ---


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((4, 3, 64, 64), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(frames):
    with pytest.raises(ValueError, match=r"expected uint8 \[T, H, W, 3\], not empty"):
        find_objects(frames)


def test_a_prompt_without_colors_is_refused():
    with pytest.raises(DataError, match="'a ball rolls' names no coloured object") as error:
        shows(canvas(), "a ball rolls")
    assert "a red ball rolls towards a yellow box" in str(error.value)
