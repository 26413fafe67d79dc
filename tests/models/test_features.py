from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEModel

from physcli.errors import UsageError
from physcli.models.cogvideox import build_cogvideox
from physcli.models.features import default_tap, tapped
from physcli.models.tiny import architecture


def transformer():
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 4, "num_attention_heads": 2}
    return build_cogvideox(model).transformer


def inputs():
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 3, 8, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(1, 32, 128, generator=generator),
        "timestep": torch.tensor([500]),
    }


@pytest.mark.parametrize(("num_blocks", "block"), [(30, 17), (42, 24), (6, 3), (1, 0)])
def test_default_tap(num_blocks, block):
    assert default_tap(num_blocks) == block


@pytest.mark.parametrize("features_only", [False, True])
def test_gradients_through_checkpointed_blocks_are_the_plain_ones(features_only):
    model = transformer()
    gradients = []
    for checkpointing in (False, True):
        model.enable_gradient_checkpointing() if checkpointing else model.disable_gradient_checkpointing()
        model.train().zero_grad()
        with tapped(model.transformer_blocks, [2], features_only=features_only) as hidden:
            model(**inputs())
        assert len(model.transformer_blocks) == 4
        hidden[2].square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert any(name.startswith("transformer_blocks.0.") for name in plain)
    assert not any(name.startswith("transformer_blocks.3.") for name in plain)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], atol=1e-7, rtol=1e-5)


def test_backward_inside_the_block_does_not_replace_the_features():
    model = transformer().train()
    model.enable_gradient_checkpointing()
    with tapped(model.transformer_blocks, [1]) as hidden:
        model(**inputs())
        first = hidden[1]
        first.sum().backward()
    assert hidden[1] is first


def test_reentrant_checkpointing_is_refused():
    model = transformer().train()

    def reentrant(function, *args):
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=True)

    model.enable_gradient_checkpointing(reentrant)
    with pytest.raises(ValueError, match="use_reentrant=False"), tapped(model.transformer_blocks, [1]):
        model(**inputs())


def test_the_model_is_as_before_after_an_error():
    model = transformer()
    names = list(model.state_dict())
    with pytest.raises(RuntimeError), tapped(model.transformer_blocks, [0], features_only=True):
        model(**inputs() | {"encoder_hidden_states": torch.zeros(1, 3, 5)})
    assert list(model.state_dict()) == names
    assert not any(block._forward_hooks for block in model.transformer_blocks)


def test_other_models_blocks():
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2
    )
    model = VideoMAEModel(config).eval()
    frames = torch.randn(1, 4, 3, 32, 32)
    with torch.no_grad():
        expected = model(frames, output_hidden_states=True).hidden_states[2]  # 0 is the embedding
        with tapped(model.encoder.layer, [1], features_only=True) as hidden:
            model(frames)
    torch.testing.assert_close(hidden[1], expected)


def test_bad_taps():
    blocks = nn.ModuleList([nn.Linear(1, 1) for _ in range(30)])
    with pytest.raises(UsageError, match=r"(?s)No such block: 30, -1\..*0 to 29.*30 blocks, counted from 0"):
        tapped(blocks, [3, 30, -1]).__enter__()
    with pytest.raises(ValueError, match="at least one tap"):
        tapped(blocks, [], features_only=True).__enter__()
