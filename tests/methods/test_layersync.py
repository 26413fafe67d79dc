"""LayerSync against numbers of the released code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from physcli.methods.layersync import layersync_loss
from physcli.methods.settings import LayerSync

GOLDEN = Path(__file__).parents[1] / "golden" / "layersync"


def read(name):
    case = {key: value.double() for key, value in load_file(GOLDEN / f"{name}.safetensors").items()}
    return case, json.loads((GOLDEN / f"{name}.json").read_text())["values"]


def test_golden():
    case, values = read("loss")
    for dtype, kind, rel in ((torch.float64, "f64", 1e-12), (torch.float32, "f32", 1e-6)):
        student, teacher = (case[name].to(dtype, copy=True).requires_grad_() for name in ("student", "teacher"))
        loss = layersync_loss(student, teacher).mean()
        assert loss.item() == pytest.approx(values[f"loss_{kind}"], rel=rel)
        loss.backward()
        expected = case["grad_student.detached.f64"]
        assert (student.grad - expected).abs().max() < 10 * rel * expected.abs().max()
        assert teacher.grad is None


def test_golden_without_stopping_the_gradient():
    """As the released code for video has it."""
    case, values = read("loss")
    student, teacher = case["student"].requires_grad_(), case["teacher"].requires_grad_()
    loss = layersync_loss(student, teacher, detach=False).mean()
    assert loss.item() == pytest.approx(values["lora_code"]["reg_f64"], rel=1e-12)
    (values["lora_code"]["weight"] * loss).backward()
    torch.testing.assert_close(student.grad, case["grad_student.lora_code.f64"], atol=1e-17, rtol=1e-10)
    torch.testing.assert_close(teacher.grad, case["grad_teacher.lora_code.f64"], atol=1e-17, rtol=1e-10)


def test_only_blocks_up_to_the_first_get_a_gradient():
    case, values = read("stack")
    weights = [case[f"weight.{i}"].requires_grad_() for i in range(values["blocks"])]
    hidden, outputs = case["x"], []
    for weight in weights:
        hidden = hidden + torch.tanh(hidden @ weight)
        outputs.append(hidden)
    student, teacher = (outputs[values[f"{side}_block_from_0"]] for side in ("student", "teacher"))
    loss = layersync_loss(student, teacher).mean()
    assert loss.item() == pytest.approx(values["reg_f64"], rel=1e-12)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    reached = [number for number, gradient in enumerate(gradients) if gradient is not None]
    assert reached == values["blocks_with_gradient_of_reg_from_0"]
    for number in reached:
        torch.testing.assert_close(gradients[number], case[f"grad.reg.weight.{number}.f64"], atol=1e-14, rtol=1e-10)


def test_centred_tokens():
    """What all tokens of a clip share says nothing."""
    torch.manual_seed(0)
    block, deeper = torch.randn(2, 3, 4, 4, 8), torch.randn(2, 3, 4, 4, 8)
    shared = 10 * torch.randn(2, 1, 1, 1, 8)
    expected = layersync_loss(block, deeper, centered=True)
    torch.testing.assert_close(layersync_loss(block + shared, deeper - shared, centered=True), expected)
    assert (layersync_loss(block + shared, deeper + shared) < -0.8).all()


@pytest.mark.parametrize("pairs", [[[3, 3]], [[1, 3], [4, 2]]])
def test_a_block_that_is_not_deeper_is_refused(pairs):
    with pytest.raises(ValidationError, match="the second block must be deeper than the first"):
        LayerSync(name="layersync", pairs=pairs)
