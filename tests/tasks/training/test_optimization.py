"""Averaged weights, learning rates and decay groups against their closed forms."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
from torch import nn

from physcli.errors import MissingExtra, UsageError
from physcli.recipe import Optimizer, Schedule
from physcli.tasks.training import optimization
from physcli.tasks.training.optimization import (
    Ema,
    Muon,
    ParameterGroup,
    block_matrices,
    build_optimizer,
    learning_rate,
)


def test_ema_is_its_sum():
    module = nn.Linear(2, 1, bias=False)
    values = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.5]]), torch.tensor([[-4.0, 8.0]])]
    module.weight.data.copy_(torch.tensor([[7.0, 7.0]]))
    ema = Ema(module, 0.25)  # below the early decays 2/11, 3/12, 4/13 but for the first
    for value in values:
        module.weight.data.copy_(value)
        ema.update()
    decays = [min(0.25, (1 + n) / (10 + n)) for n in (1, 2, 3)]
    assert decays == [2 / 11, 0.25, 0.25]
    expected = torch.tensor([[7.0, 7.0]])
    for decay, value in zip(decays, values, strict=True):
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(ema.average["weight"], expected)


def test_ema_is_lent_and_taken_back():
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    ema = Ema(module, 0.9)
    assert list(ema.average) == ["weight"]
    own = module.weight.detach().clone()
    module.weight.data += 1
    ema.update()
    changed = module.weight.detach().clone()
    with ema.applied():
        torch.testing.assert_close(module.weight.detach(), own + (1 - 2 / 11))
    torch.testing.assert_close(module.weight.detach(), changed, rtol=0, atol=0)
    with pytest.raises(ValueError, match="stop"), ema.applied():
        raise ValueError("stop")
    torch.testing.assert_close(module.weight.detach(), changed, rtol=0, atol=0)


def test_ema_in_float32_of_half_precision_weights():
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    module.weight.data.fill_(1.0)
    ema = Ema(module, 0.999)
    ema.count = 100_000
    module.weight.data.fill_(1.0078125)  # the next bfloat16: 1/1000 of the way there is no bfloat16
    ema.update()
    assert ema.average["weight"].item() == pytest.approx(1 + 0.0078125 / 1000, rel=1e-7)


def test_ema_state_goes_round():
    module = nn.Linear(2, 2)
    ema = Ema(module, 0.99)
    for _ in range(5):
        module.weight.data += 0.1
        ema.update()
    other = Ema(nn.Linear(2, 2), 0.99)
    other.load_state_dict(ema.state_dict())
    assert other.count == 5
    torch.testing.assert_close(other.average, ema.average)
    assert other.average["weight"] is not ema.average["weight"]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_learning_rates(name):
    schedule = Schedule(name=name, warmup_steps=4, final=0.1)
    rates = [learning_rate(schedule, 2.0, step, 54) for step in range(54)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    for step in range(4, 54):
        done = (step - 4) / 50
        left = {"constant": 1.0, "linear": 1 - done, "cosine": math.cos(math.pi * done / 2) ** 2}[name]
        expected = 2.0 if name == "constant" else 2.0 * (0.1 + 0.9 * left)
        assert rates[step] == pytest.approx(expected)
    assert learning_rate(schedule, 2.0, 54, 54) == pytest.approx(2.0 if name == "constant" else 0.2)


def test_learning_rates_at_the_edges():
    assert learning_rate(Schedule(name="cosine"), 1.0, 0, 10) == 1.0
    short = [learning_rate(Schedule(name="linear", warmup_steps=10), 1.0, step, 40) for step in range(6)]
    assert short == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1 - 1 / 36])  # a tenth of the steps is warmup
    assert learning_rate(Schedule(name="linear", warmup_steps=5), 1.0, 0, 5) == 1.0


def test_only_matrices_decay():
    module = nn.Sequential(nn.Conv1d(2, 4, 3), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].weight.requires_grad_(False)
    optimizer = build_optimizer(module.parameters(), Optimizer(weight_decay=0.3, lr=0.1), torch.device("cpu"))
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert [id(p) for p in groups[0.3]] == [id(module[0].weight)]
    assert [id(p) for p in groups[0.0]] == [id(p) for p in (module[0].bias, *module[1].parameters(), module[2].bias)]
    before = [p.detach().clone() for p in module.parameters()]
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # no gradient: decay alone, by 1 − lr·decay
    for p, old in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old * (1 - 0.1 * 0.3) if p is module[0].weight else old)


def test_groups_without_parameters_are_left_out():
    vector = nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([vector], Optimizer(betas=(0.8, 0.9), eps=1e-6), torch.device("cpu"))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-6


def test_eight_bits_need_bitsandbytes_and_cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra) as error:
        build_optimizer([nn.Parameter(torch.ones(1))], Optimizer(name="adamw-8bit"), torch.device("cpu"))
    assert error.value.fix == "pip install 'physcli[eight-bit]'"
    monkeypatch.setitem(sys.modules, "bitsandbytes", object())
    with pytest.raises(UsageError, match="adamw-8bit on cpu"):
        build_optimizer([nn.Parameter(torch.ones(1))], Optimizer(name="adamw-8bit"), torch.device("cpu"))


@pytest.fixture
def blocks():
    """A small stack of blocks between two ends, and gradients for it."""
    torch.manual_seed(0)
    block = [nn.ModuleDict({"wide": nn.Linear(6, 10), "norm": nn.LayerNorm(6), "back": nn.Linear(10, 6)}) for _ in "ab"]
    module = nn.ModuleDict({"inner": nn.Embedding(5, 6), "blocks": nn.ModuleList(block), "out": nn.Linear(6, 3)})
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    return module


def test_muon_takes_the_matrices_of_blocks_alone(blocks):
    expected = [blocks["blocks"][i][name].weight for i in range(2) for name in ("wide", "back")]
    assert [id(p) for p in block_matrices(blocks)] == [id(p) for p in expected]
    settings = Optimizer(name="muon", lr=0.1, rest_lr=0.02)
    optimizer = build_optimizer(blocks.parameters(), settings, torch.device("cpu"), matrices=expected)
    sizes = [(len(group["params"]), group["lr_scale"]) for group in optimizer.param_groups]
    assert sizes == [(4, 1.0), (2, pytest.approx(0.2)), (9, pytest.approx(0.2))]
    with pytest.raises(UsageError, match="without linear layers or convolutions in repeated blocks"):
        build_optimizer(blocks["out"].parameters(), settings, torch.device("cpu"), matrices=())


def test_muon_leaves_a_module_with_a_rate_of_its_own_to_adamw(blocks):
    own = ParameterGroup(blocks["blocks"][1], 0.3)
    settings = Optimizer(name="muon", lr=0.1)
    optimizer = build_optimizer(
        blocks.parameters(), settings, torch.device("cpu"), groups=[own], matrices=block_matrices(blocks)
    )
    muon = optimizer.param_groups[0]["params"]
    assert [id(p) for p in muon] == [id(blocks["blocks"][0][name].weight) for name in ("wide", "back")]
    assert {round(group["lr_scale"], 6) for group in optimizer.param_groups[1:]} == {1.0, 3.0}


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (12, 40), (40, 12)])
def test_a_first_muon_step_is_orthogonal_and_of_the_size_of_adamw(rows, columns, monkeypatch):
    monkeypatch.setattr(optimization, "computes_in_bfloat16", lambda device: False)  # exact to float32, then
    torch.manual_seed(1)
    p = nn.Parameter(torch.randn(rows, columns))
    before, p.grad = p.detach().clone(), torch.randn(rows, columns)
    Muon([p], lr=0.1, weight_decay=0.5).step()
    update = (before * (1 - 0.1 * 0.5) - p.detach()) / (0.1 * 0.2 * max(rows, columns) ** 0.5)
    u, _, v = torch.linalg.svd(p.grad, full_matrices=False)  # the moment points as the gradient does
    singular = torch.diagonal(u.T @ update @ v.T)
    assert float(singular.min()) > 0.3
    assert float(singular.max()) < 1.25
    torch.testing.assert_close(u @ torch.diag(singular) @ v, update, atol=1e-4, rtol=1e-3)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is of 2.9")
def test_muon_is_that_of_torch_but_for_its_bfloat16():
    torch.manual_seed(2)
    start = [torch.randn(16, 16), torch.randn(8, 32), torch.randn(32, 8)]
    mine, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    ours = Muon(mine, lr=0.05, momentum=0.9, weight_decay=0.1)
    reference = torch.optim.Muon(
        theirs, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        reference.step()
    for a, b, begun in zip(mine, theirs, start, strict=True):
        assert float((a - b).norm() / (b - begun).norm()) < 0.02


def test_kernels_are_matrices_to_muon():
    torch.manual_seed(3)
    kernel, matrix = nn.Parameter(torch.randn(6, 4, 3, 3, 3)), nn.Parameter(torch.empty(6, 108))
    matrix.data.copy_(kernel.detach().flatten(1))
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.flatten(1)
    for p in (kernel, matrix):
        Muon([p], lr=0.1).step()
    assert torch.equal(kernel.detach().flatten(1), matrix.detach())


def test_several_optimizers_resume_as_one(blocks, tmp_path):
    def build(module):
        settings = Optimizer(name="muon", lr=0.1, rest_lr=0.02)
        return build_optimizer(module.parameters(), settings, torch.device("cpu"), matrices=block_matrices(module))

    def step(module, optimizer, seed):
        torch.manual_seed(seed)
        for p in module.parameters():
            p.grad = torch.randn_like(p)
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * group["lr_scale"]
        optimizer.step()

    optimizer = build(blocks)
    step(blocks, optimizer, 1)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    resumed = copy.deepcopy(blocks)
    again = build(resumed)
    again.load_state_dict(torch.load(tmp_path / "optimizer.bin", weights_only=True))
    for module, of in ((blocks, optimizer), (resumed, again)):
        step(module, of, 2)
    for a, b in zip(blocks.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
