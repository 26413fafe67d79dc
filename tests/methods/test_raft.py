"""Which of several videos are learnt from."""

from __future__ import annotations

import pytest
import torch

from physcli.methods.raft import best_of

REWARDS = torch.tensor([[0.2, 0.9, 0.9, 0.5], [0.1, 0.0, 0.3, 0.2], [0.7, 0.7, 0.7, 0.7]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 6, 8]),
        ({"keep": 2}, [1, 2, 6, 7, 8, 9]),
        ({"keep": 2, "least": 0.6}, [1, 2, 8, 9]),
        ({"keep": 9, "least": 0.5}, [1, 2, 3, 8, 9, 10, 11]),
        ({"keep": 4, "least": 0.0}, list(range(12))),
        ({"keep": 4, "least": 2.0}, [1]),  # none is good enough: the best of all
    ],
)
def test_the_best_of_each_prompt(options, expected):
    assert best_of(REWARDS, **options).tolist() == expected


@pytest.mark.parametrize(
    ("rewards", "options"),
    [
        (torch.zeros(3), {}),
        (torch.zeros(0, 3), {}),
        (torch.tensor([[float("nan"), 1.0]]), {}),
        (torch.zeros(1, 2), {"keep": 0}),
    ],
)
def test_refused(rewards, options):
    with pytest.raises(ValueError, match="rewards must be numbers"):
        best_of(rewards, **options)
