"""The step that is planned and timed is the step that trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from physcli.recipe import Train
from physcli.tasks.bench.finetune import steps_of
from physcli.tasks.training.optimization import ParameterGroup
from physcli.tasks.training.plan import time_steps
from physcli.tasks.training.step import TrainingError

SETTINGS = {
    "steps": 1,
    "batch_size": 4,
    "accumulate": 2,
    "clip_norm": 0.01,
    "optimizer": {"lr": 0.1, "eps": 1.0, "weight_decay": 0.1},  # eps: AdamW feels the size of a gradient
    "schedule": {"name": "constant"},
}


@pytest.fixture
def dropping(toy):
    """A toy with dropout, whose last layer has a learning rate of its own."""

    class Dropping(toy):
        def forward(self, batch):
            hidden = nn.functional.dropout(self.net[:3](batch["x"]), 0.5, self.training)
            error = (self.net[3](hidden)[:, 0] - batch["y"]) ** 2
            return error, {"root": error.sqrt()}

        def parameter_groups(self):
            return (ParameterGroup(self.net[3], 0.5),)

    return Dropping


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_one_step_of_training_plan_and_bench_is_the_same(run_toy, dropping, tmp_path, precision):
    settings = SETTINGS | {"mixed_precision": precision}
    trained, _ = run_toy("run", toy=dropping(), ema=0.0, **settings)
    train = Train.model_validate(settings)
    planned, timed = dropping(), dropping()
    assert time_steps(planned, train, device="cpu", seed=0, folder=tmp_path, steps=1) > 0
    steps_of(dropping(seed=1), timed, train, device="cpu")["measured"]()
    start = dropping().state_dict()
    for name, value in trained.state_dict().items():
        assert not torch.equal(value, start[name])
        assert torch.equal(value, planned.state_dict()[name])
        assert torch.equal(value, timed.state_dict()[name])


def test_a_plan_ends_where_training_would(dropping, tmp_path):
    with pytest.raises(TrainingError, match="The loss became nan at step 1") as error:
        time_steps(dropping(poison=5), Train.model_validate(SETTINGS), device="cpu", seed=0, folder=tmp_path)
    assert "a lower train.optimizer.lr" in error.value.fix
