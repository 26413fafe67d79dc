"""CFG-Zero*: the mix in closed form, its first steps, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from physcli.errors import UsageError
from physcli.guidance.cfg_zero import CfgZero
from physcli.models.cogvideox import CogVideoX
from physcli.models.generator import Conditioning, Step
from physcli.models.noise import FlowMatching
from physcli.models.wan import Wan
from physcli.progress import Reporter

SIZE = {"num_frames": 5, "height": 32, "width": 32}


def step_of(conditional, unconditional, *, scale=5.0, index=1):
    process = FlowMatching()
    level = process.at(0.5).expand(len(conditional))
    return Step(
        index=index,
        count=4,
        level=level,
        asked=level,
        noisy=torch.zeros_like(conditional),
        output=unconditional + scale * (conditional - unconditional),
        scale=scale,
        conditional=conditional,
        unconditional=unconditional,
        clean=lambda output: -output,
    )


@pytest.fixture
def outputs():
    """What a network says of three clips with and without the prompts, [3, F, C, H, W] each."""
    one, other = torch.randn(2, 3, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).unbind()
    return one + 0.7 * other, other * torch.tensor([1.0, 0.2, 3.0]).reshape(3, 1, 1, 1, 1)


@pytest.mark.parametrize("scale", [1.5, 5.0, 9.0])
def test_the_mix(outputs, scale):
    """v = s·v_u + w·(v_c − s·v_u), s the least squares factor from v_u to v_c, clip by clip."""
    conditional, unconditional = outputs
    guidance = CfgZero(zero_steps=0)
    step = step_of(*outputs, scale=scale)
    mixed = guidance.mix(step)
    for clip in range(3):
        a, b = unconditional[clip].flatten().double().numpy(), conditional[clip].flatten().double().numpy()
        [best], *_ = np.linalg.lstsq(a[:, None], b, rcond=None)
        expected = best * a + scale * (b - best * a)
        np.testing.assert_allclose(mixed[clip].flatten().numpy(), expected, atol=2e-5, rtol=1e-4)
    output, logs = guidance.after(dataclasses.replace(step, output=mixed))
    assert output is mixed
    shorter = (unconditional * logs["zero_scale"].reshape(3, 1, 1, 1, 1) - conditional).flatten(1).norm(dim=1)
    for other in (0.9, 1.1):  # no other factor comes nearer
        worse = (unconditional * logs["zero_scale"].mul(other).reshape(3, 1, 1, 1, 1) - conditional).flatten(1)
        assert (shorter < worse.norm(dim=1)).all()


def test_clips_are_mixed_one_by_one(outputs):
    whole = CfgZero(zero_steps=0).mix(step_of(*outputs))
    for clip in range(3):
        alone = CfgZero(zero_steps=0).mix(step_of(*(part[clip : clip + 1] for part in outputs)))
        torch.testing.assert_close(alone[0], whole[clip], atol=1e-5, rtol=1e-5)


def test_an_output_along_the_unconditional_one_is_left(outputs):
    """v_c = 2·v_u: there is nothing to guide along."""
    _, unconditional = outputs
    guidance = CfgZero(zero_steps=0)
    step = step_of(2 * unconditional, unconditional, scale=7.0)
    torch.testing.assert_close(guidance.mix(step), 2 * unconditional, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guidance.after(step)[1]["zero_scale"], torch.full((3,), 2.0))
    still = CfgZero(zero_steps=0).mix(step_of(unconditional, torch.zeros_like(unconditional), scale=7.0))
    torch.testing.assert_close(still, 7 * unconditional)


def test_first_steps_rest(outputs):
    guidance = CfgZero(zero_steps=2)
    assert [bool(guidance.mix(step_of(*outputs, index=index)).any()) for index in range(4)] == [
        False,
        False,
        True,
        True,
    ]


@pytest.fixture(scope="module")
def wan():
    return Wan.build()


def built(generator, **options):
    return CfgZero.build(CfgZero.settings(options), generator, {}, Reporter())


def test_the_default_of_each_kind_of_model(wan):
    assert built(wan).zero_steps == 1
    assert built(wan, zero_steps=0).zero_steps == 0
    assert built(CogVideoX.build()).zero_steps == 0


def test_a_flow_model_rests_in_its_first_step(wan):
    """Whose noise is still there in the second."""
    seen = []

    class Watched(CfgZero):
        def mix(self, step):
            mixed = super().mix(step)
            seen.append((step.noisy.clone(), mixed))
            return mixed

    asked = {"prompts": ["a red ball", "a box"], "seeds": [1, 2], "steps": 3, "guidance_scale": 30.0, **SIZE}
    made = wan.sample(**asked, guidance=Watched(zero_steps=1))
    assert made.guided == (0, 1, 2)
    assert made.measured["zero_scale"].shape == (2, 3)
    (first, rest), (second, guided), _ = seen
    assert not rest.any()
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    assert guided.abs().max() > 0
    plain = wan.sample(**asked)
    assert (made.frames != plain.frames).mean() > 0.05


def test_refusals(wan):
    with pytest.raises(UsageError, match=r"(?s)--zero-steps 1 with cogvideox-tiny, which predicts v.*a flow model"):
        built(CogVideoX.build(), zero_steps=1)
    with pytest.raises(UsageError, match=r"--zero-steps -1"):
        built(wan, zero_steps=-1)
    told = Conditioning({"text": torch.zeros(1, 2, 3)})
    with pytest.raises(UsageError, match=r"(?s)guidance scale of 1, which is no classifier-free.*a scale above 1"):
        built(wan).prepare(told, latent_frames=2, steps=4, scale=1.0)
    with pytest.raises(UsageError, match=r"(?s)--zero-steps 4 of 4 steps.*at most 3"):
        built(wan, zero_steps=4).prepare(told, latent_frames=2, steps=4, scale=5.0)
    with pytest.raises(UsageError, match=r"--motion-scale is no option of CFG-Zero\*"):
        built(wan, motion_scale=1.0)
