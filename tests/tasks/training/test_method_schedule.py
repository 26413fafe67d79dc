"""A method's weight over the steps in closed form, and what ends the method."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from physcli.methods.settings import WeightSchedule
from physcli.tasks.training.method_schedule import MethodSchedule

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "crepa" / "schedule.json").read_text())["schedules"]


@pytest.fixture
def made(heard):
    """`made(steps=100, name="cosine", …)`: a schedule; `made.said` of the last."""

    def go(steps=100, **settings):
        reporter = heard()
        go.said = reporter.said
        return MethodSchedule(WeightSchedule(**settings), steps=steps, loss="repa", reporter=reporter)

    return go


def test_constant_is_one_everywhere(made):
    assert {made().factor(step) for step in range(100)} == {1.0}
    assert not made().measures


def test_warm_up_from_nothing_to_one(made):
    schedule = made(warmup_steps=4)
    assert [schedule.factor(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(
    ("settings", "halfway", "quarter"),
    [
        ({"name": "linear"}, 0.5, 0.75),
        ({"name": "cosine"}, 0.5, 0.5 * (1 + math.cos(math.pi / 4))),
        ({"name": "polynomial"}, 0.25, 0.5625),
        ({"name": "polynomial", "power": 3}, 0.125, 0.421875),
    ],
)
@pytest.mark.parametrize("final", [0, 0.2])
def test_ways_down(made, settings, halfway, quarter, final):
    """After the warm-up, to `final`; there it stays."""
    schedule = made(warmup_steps=10, decay_steps=40, final=final, **settings)
    expected = {10: 1, 20: quarter, 30: halfway, 50: 0, 99: 0}
    for step, left in expected.items():
        assert schedule.factor(step) == pytest.approx(final + (1 - final) * left)
    to_the_end = made(steps=50, warmup_steps=10, final=final, **settings)
    assert [to_the_end.factor(step) for step in range(50)] == [schedule.factor(step) for step in range(50)]


def test_off_from_a_step_on(made):
    schedule = made(stop_step=3)
    assert [schedule.is_on(step) for step in range(5)] == [True, True, True, False, False]
    assert schedule.factor(3) == 0
    assert not schedule.measures  # it follows from the step


def test_the_average_of_the_loss_ends_it_for_good(made):
    schedule = made(stop_loss=-0.5)
    average = None
    for step, loss in enumerate([-0.1, *[-0.9] * 200]):
        average = loss if average is None else 0.99 * average + 0.01 * loss
        schedule.observe({"repa": loss, "loss": -100}, step)
        assert schedule.average == pytest.approx(average)
        if average <= -0.5:
            break
        assert schedule.is_on(step + 1)
    assert schedule.ended == step + 1 > 50
    assert not schedule.is_on(step + 1)
    schedule.observe({"repa": 5.0}, step + 1)
    assert schedule.ended == step + 1
    assert made.said[-1].startswith(f"The method ends after step {step + 1}: the moving average of its loss, -0.5")


def test_the_cosine_of_the_gradients_ends_it(made):
    schedule = made(stop_cosine=-0.05)
    for step, cosine in enumerate([0.3, None, -0.04, -0.06]):
        assert schedule.is_on(step)
        schedule.observe({"repa": 1.0} | ({} if cosine is None else {"gradient_cosine": cosine}), step)
    assert schedule.ended == 4


@pytest.mark.parametrize("name", [name for name in GOLDEN if not name.startswith("threshold")])
def test_golden_weights(made, name):
    """Released code counts `decay_steps` from step 0, and 0 means all of the run."""
    config, steps = GOLDEN[name]["config"], GOLDEN[name]["max_train_steps"]
    warmup_steps, weight = config.get("warmup_steps", 0), config["lambda"]
    settings = {"name": config["scheduler"], "warmup_steps": warmup_steps, "stop_step": config.get("cutoff_step")}
    if config["scheduler"] != "constant":
        settings["final"] = config["lambda_end"] / weight
        settings["decay_steps"] = (config["decay_steps"] or steps) - warmup_steps
    schedule = made(steps, **settings)
    for row in GOLDEN[name]["rows"]:
        factor = schedule.factor(row["step"]) if schedule.is_on(row["step"]) else 0
        assert weight * factor == pytest.approx(row["weight"], abs=1e-12)


@pytest.mark.parametrize("name", ["threshold.permanent", "threshold.first_step"])
def test_golden_thresholds(made, name):
    """Of a similarity, the negative loss. Released code looks at it in the step that it switches off, ours after it."""
    config = GOLDEN[name]["config"]
    schedule = made(stop_loss=-config["similarity_threshold"], average_decay=config["similarity_ema_decay"])
    for row in GOLDEN[name]["rows"]:
        was_on = schedule.is_on(row["step"])
        schedule.observe({"repa": -row["similarity"]}, row["step"])
        assert schedule.is_on(row["step"] + 1) == (not row["cut_off"])
        if was_on:
            assert schedule.average == pytest.approx(-row["ema"], abs=1e-12)


def test_its_state_goes_round(made):
    one, other = made(stop_loss=0), made(stop_loss=0)
    one.observe({"repa": 3.0}, 0)
    other.load_state_dict(one.state_dict())
    for schedule in (one, other):
        schedule.observe({"repa": 1.0}, 1)
    assert (one.average, one.ended) == (other.average, other.ended) == (pytest.approx(2.98), None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"decay_steps": 5}, "decay_steps and final are for a schedule that decays"),
        ({"name": "linear", "power": 3}, "power is for name: polynomial, and name is linear"),
        ({"name": "cubic"}, "'constant', 'linear', 'cosine' or 'polynomial'"),
        ({"average_decay": 0.5}, "average_decay is of the average that stop_loss looks at"),
        ({"stop_cosine": -2}, "greater than or equal to -1"),
    ],
)
def test_refusals(settings, said):
    with pytest.raises(ValidationError, match=said):
        WeightSchedule(**settings)
