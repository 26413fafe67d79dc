"""Attention in bfloat16 on a CPU: what is put in PyTorch's place is the same, and is put there only where it helps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from physcli.models.attention import quick_attention

_CPU = torch.device("cpu")
_FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def _tensors(*, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 20, 8), (2, 3, 12, 8), (2, 3, 12, 8)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def _masks() -> dict[str, Tensor | None]:
    shown = torch.ones(2, 1, 1, 12, dtype=torch.bool)
    shown[1, ..., 7:] = False
    added = torch.randn(2, 3, 20, 12, generator=torch.Generator().manual_seed(1))
    return {"none": None, "boolean": shown, "added": added}


def _run(tensors: list[Tensor], mask: Tensor | None, **settings: float) -> list[Tensor]:
    """The output and the gradient of each tensor."""
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(tensors[0].dtype)
    output = functional.scaled_dot_product_attention(*tensors, attn_mask=mask, **settings)
    target = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    return [output.detach(), *torch.autograd.grad((output.float() * target).sum(), tensors)]


def _operations(*, quick: bool, tensors: list[Tensor]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen, quick_attention(_CPU if quick else torch.device("meta")):
        functional.scaled_dot_product_attention(*tensors)
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
@pytest.mark.parametrize("settings", [{}, {"scale": 0.5}])
def test_it_is_as_near_to_float32_as_the_fused_kernel(mask: str, settings: dict[str, float]) -> None:
    exact = _run(_tensors(dtype=torch.float32), _masks()[mask], **settings)
    fused = _run(_tensors(dtype=torch.bfloat16), _masks()[mask], **settings)
    with quick_attention(_CPU):
        quick = _run(_tensors(dtype=torch.bfloat16), _masks()[mask], **settings)
    for wanted, theirs, ours in zip(exact, fused, quick, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - wanted).norm() <= max(2 * (theirs.float() - wanted).norm(), 0.004 * wanted.norm())


def test_under_autocast_it_takes_float32_tensors() -> None:
    exact = _run(_tensors(dtype=torch.float32), None)
    with torch.autocast("cpu", torch.bfloat16), quick_attention(_CPU):
        quick = _run(_tensors(dtype=torch.float32), None)
    for wanted, ours in zip(exact, quick, strict=True):
        torch.testing.assert_close(ours.float(), wanted, atol=0.02 * float(wanted.abs().max()), rtol=0)


def test_only_bfloat16_with_gradients_is_changed() -> None:
    assert _FUSED not in _operations(quick=True, tensors=_tensors(dtype=torch.bfloat16))
    assert _FUSED in _operations(quick=False, tensors=_tensors(dtype=torch.bfloat16))
    assert _FUSED in _operations(quick=True, tensors=_tensors(dtype=torch.float32))
    with torch.no_grad():
        assert _FUSED in _operations(quick=True, tensors=_tensors(dtype=torch.bfloat16))


def test_what_it_does_not_know_is_left_to_pytorch() -> None:
    query, _, _ = _tensors(dtype=torch.bfloat16)
    wanted = functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    with quick_attention(_CPU):
        ours = functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert torch.equal(ours, wanted)
