"""Verifiers: reference numbers, closed forms, and what each prefers on clips whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import VJEPA2Model

from physcli.data.clips import read_dataset
from physcli.errors import DataError, UsageError
from physcli.progress import Reporter
from physcli.tasks.processes import Processes
from physcli.tasks.verifiers import VERIFIERS, check_verifiers, verifier_class
from physcli.tasks.verifiers.base import Candidate, Setting
from physcli.tasks.verifiers.geophys import SIGNALS, colors, scores_of, signals
from physcli.tasks.verifiers.surprise import fit_readout, shown_to_vjepa2, vjepa2_surprise, window_starts

GOLDEN = Path(__file__).parents[2] / "golden"


def golden(name):
    return json.loads((GOLDEN / name / "expected.json").read_text())


@pytest.fixture
def need(session_cache):
    def make(**changes):
        given = {"encoder": None, "rater": None, "device": torch.device("cpu"), "seed": 0, "cache": session_cache}
        return Setting(**given | {"processes": Processes("cpu"), "reporter": Reporter()} | changes)

    return make


def candidate(frames, name="one", rate_hz=20 / 3, prompt="a red ball rolls into a yellow box"):
    return Candidate(frames, rate_hz, prompt, prompt, name)


# -- V-JEPA 2 ---


@pytest.fixture(scope="module")
def vjepa2():
    return VJEPA2Model.from_pretrained(GOLDEN / "wmreward", dtype=torch.float64).eval()


@pytest.mark.parametrize("name", ["moving_49", "still_49", "teleport_49", "noise_24", "moving_19", "moving_80"])
def test_surprise_is_that_of_the_released_code(vjepa2, name):
    expected = golden("wmreward")["videos"][name]
    frames = np.load(GOLDEN / "wmreward" / "videos.npz")[name]
    pixels = shown_to_vjepa2(frames, vjepa2.config.crop_size)
    assert len(pixels) == len(expected["frame_indices"])
    for stride in (2, 8):
        found = vjepa2_surprise(vjepa2, pixels, stride=stride)
        torch.testing.assert_close(found.tolist(), expected[f"stride{stride}"]["windows"], rtol=0, atol=1e-6)
    small = vjepa2_surprise(vjepa2, pixels, stride=4, window=8, context=4)
    assert float(small.mean()) == pytest.approx(expected["window8_context4_stride4"], abs=1e-6)


def test_surprise_does_not_see_the_future(vjepa2):
    """`VJEPA2Model` given masks lets the context look ahead: another number, which is in the reference too."""
    frames = np.load(GOLDEN / "wmreward" / "videos.npz")["moving_49"]
    found = vjepa2_surprise(vjepa2, shown_to_vjepa2(frames, vjepa2.config.crop_size)[:16])
    leaks = golden("wmreward")["transformers"]
    assert float(found) == pytest.approx(leaks["window0_context_encoded_alone"], abs=1e-6)
    assert float(found) != pytest.approx(leaks["window0_model_forward_with_masks_LEAKS"], abs=1e-3)


def test_vjepa2_by_its_folder(need):
    verifier = verifier_class("surprise")(need(encoder=str(GOLDEN / "wmreward")))
    videos = np.load(GOLDEN / "wmreward" / "videos.npz")
    names = ["moving_49", "still_49"]
    found = verifier.scores([candidate(videos[name], name) for name in names])
    expected = [-golden("wmreward")["videos"][name]["stride2_float32"] for name in names]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(DataError, match="15 frames"):
        verifier.scores([candidate(videos["moving_49"][:15])])


def test_windows():
    assert window_starts(16) == [0]
    assert window_starts(49)[-1] == 32
    assert len(window_starts(49)) == 17
    assert window_starts(49, 8) == [0, 8, 16, 24, 32]
    with pytest.raises(ValueError, match="15 frames"):
        window_starts(15)


# -- a fitted readout ---


def test_a_linear_world_is_read_out():
    """Changes that are linear in the tokens are found again, but for the ridge, and a constant one too."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(400, 5, generator=rng, dtype=torch.float64)
    true = torch.randn(5, 2, 3, generator=rng, dtype=torch.float64)
    changes = torch.einsum("nd,dkc->nkc", tokens, true) + 0.7
    found = fit_readout(tokens, changes)
    torch.testing.assert_close(found.weights[:5], true, rtol=0, atol=0.01)
    torch.testing.assert_close(found.weights[5], torch.full((2, 3), 0.7, dtype=torch.float64), rtol=0, atol=0.01)
    torch.testing.assert_close(found(tokens), changes, rtol=0, atol=0.03)


@pytest.fixture(scope="module")
def events(simulated):
    """Whole events: every third frame of real clips."""
    return [clip.read()[::3] for clip in read_dataset(simulated).clips if clip.split == "test"]


def test_foresight_wants_motion_and_surprise_does_not(need, events):
    """A still video is no surprise and earns nothing; backwards in time, fewer clips go as foreseen."""
    surprise, foresight = verifier_class("surprise")(need()), verifier_class("foresight")(need())
    stills = [candidate(np.repeat(frames[:1], 17, axis=0)) for frames in events]
    forward = [candidate(frames) for frames in events]
    back = [candidate(frames[::-1].copy()) for frames in events]
    assert (surprise.scores(stills) >= surprise.scores(forward)).mean() > 0.7
    earned = foresight.scores(forward)
    assert (foresight.scores(stills) <= 0).all()
    assert (earned > 0).all()
    assert earned.mean() > foresight.scores(back).mean()
    [explained] = foresight.found.values()
    assert 0.1 < explained < 1


def test_another_frame_rate_is_no_rate_of_the_simulated_world(need, events):
    with pytest.raises(DataError, match="8 frames a second"):
        verifier_class("foresight")(need()).scores([candidate(events[0], rate_hz=8)])


# -- GeoPhys ---


@pytest.mark.parametrize(
    "name",
    [
        "random_walk",
        "straight",
        "circle",
        "jump",
        "stops",
        "still",
        "noisy",
        "more_dims_than_frames",
        "reversed_walk",
        "shortest",
    ],
)
def test_signals_are_the_reference(name):
    expected = golden("geophys")["statistics"][name]
    found = signals(np.load(GOLDEN / "geophys" / "trajectories.npz")[name])
    for signal in SIGNALS:
        want = expected["perr_affine_H3" if signal == "perr" else signal]
        assert found[signal] == pytest.approx(want, abs=1e-7 if signal in ("perr", "curv") else 1e-10), signal


def test_time_s_direction_shows_in_the_prediction_alone():
    paths = np.load(GOLDEN / "geophys" / "trajectories.npz")
    there, back = signals(paths["random_walk"]), signals(paths["random_walk"][::-1])
    assert {name for name in SIGNALS if there[name] != pytest.approx(back[name], abs=1e-12)} == {"perr"}


def test_a_signal_in_which_all_are_alike_decides_nothing():
    found = [dict.fromkeys(SIGNALS, 1.0) | {"speed": speed} for speed in (3.0, 1.0, 2.0)]
    assert scores_of(found).argmax() == 1
    assert np.isfinite(scores_of([dict.fromkeys(SIGNALS, 0.0)] * 3)).all()


def test_colors():
    frames = np.zeros((2, 16, 32, 3), np.uint8)
    frames[1, :2, :4] = (255, 0, 51)
    found = colors(frames).reshape(2, 8, 8, 3)
    np.testing.assert_allclose(found[1, 0, 0], [1, 0, 0.2], atol=1e-6)
    assert found[1].sum() == pytest.approx(1.2)


@pytest.mark.parametrize("name", ["geophys", "pixels"])
def test_a_still_video_beats_all(need, events, name):
    moving = [candidate(frames, str(n)) for n, frames in enumerate(events[:3])]
    still = candidate(np.repeat(events[0][:1], 17, axis=0), "still")
    assert verifier_class(name)(need()).scores([*moving, still]).argmax() == 3
    with pytest.raises(DataError, match="3 frames"):
        verifier_class(name)(need()).scores([candidate(events[0][:3])])


# -- judges, chance, and names ---


def test_laws_and_rater_prefer_the_whole_clip(need, simulated):
    [clip, *_] = [clip for clip in read_dataset(simulated).clips if clip.split == "test" and clip.label]
    frames = clip.read()[::3]
    broken = frames.copy()
    broken[9:] = frames[:1]  # back at the beginning
    both = [
        candidate(video, name, prompt=f"{clip.prompt}, filmed at 7 frames per second")
        for name, video in (("whole", frames), ("broken", broken))
    ]
    for name in ("laws", "videophy2"):
        assert verifier_class(name)(need()).scores(both).argmax() == 0, name


def test_random_is_of_the_name_and_the_seed(need):
    frames = np.zeros((16, 16, 16, 3), np.uint8)
    some = [candidate(frames, str(n)) for n in range(8)]
    one, other = (verifier_class("random")(need(seed=seed)).scores(some) for seed in (0, 1))
    assert (one == verifier_class("random")(need()).scores(some)).all()
    assert (one != other).any()


def test_names(need):
    with pytest.raises(UsageError, match="Did you mean 'geophys'"):
        verifier_class("geophis")
    with pytest.raises(UsageError, match="is a generator"):
        verifier_class("geophys")(need(encoder="wan-tiny"))
    with pytest.raises(UsageError, match="--rater x with geophys, laws, which has none"):
        check_verifiers(["geophys", "laws"], encoder=None, rater="x")
    check_verifiers(VERIFIERS, encoder="x", rater="y")


@pytest.mark.parametrize("rate_hz", [0.0, 5.0])
def test_rates_that_are_not_known(need, events, rate_hz):
    with pytest.raises(DataError, match=r"20, 10, 6\.67: the readout"):
        verifier_class("foresight")(need()).scores([candidate(events[0], rate_hz=rate_hz)])
    if not rate_hz:
        with pytest.raises(DataError, match="17 frames at 0 a second"):
            verifier_class("laws")(need()).scores([candidate(events[0], rate_hz=rate_hz)])
