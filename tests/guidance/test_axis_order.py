"""What a guidance is shown of a step: frames before channels in every family, also where there are as many of both."""

from __future__ import annotations

import functools

import pytest
import torch

from physcli.guidance.base import Guidance
from physcli.models.cogvideox import CogVideoX
from physcli.models.tiny import architecture
from physcli.models.wan import Wan


class Recorder(Guidance):
    """Keeps every step, and changes nothing."""

    title, prefix, Settings = "test", "test", object

    def __init__(self):
        self.steps = []

    @classmethod
    def build(cls, settings, generator, files, reporter):
        return cls()

    def after(self, step):
        self.steps.append(step)
        return step.output, {}


def small(family):
    """17 or 13 frames are as many latent frames as there are channels."""
    if family == "cogvideox":
        model = architecture("cogvideox-tiny")
        model["transformer"] |= {"num_layers": 1, "in_channels": 5, "out_channels": 5}
        model["vae"] |= {"latent_channels": 5}
        return CogVideoX.build(model), 17
    model = architecture("wan-tiny")
    model["transformer"] |= {"num_layers": 1, "in_channels": 4, "out_channels": 4}
    model["vae"] |= {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    return Wan.build(model), 13


@pytest.mark.parametrize("family", ["cogvideox", "wan"])
def test_a_guidance_sees_frames_before_channels(family):
    generator, num_frames = small(family)
    generator.place("cpu")
    scheduler, fed = generator.pipeline.scheduler, []
    stock = type(scheduler).step

    class Watched(type(scheduler)):
        @functools.wraps(stock)  # its signature is read
        def step(self, model_output, *args, **kwargs):
            fed.append((model_output, args, kwargs))
            return stock(self, model_output, *args, **kwargs)

    scheduler.__class__ = Watched
    recorder = Recorder()
    generator.sample(
        ["a red ball"], [0], num_frames=num_frames, height=32, width=64, steps=2, guidance_scale=3, guidance=recorder
    )
    assert len(recorder.steps) == len(fed) == 2
    for step, (output, _, _) in zip(recorder.steps, fed, strict=True):
        _, frames, channels, height, width = step.noisy.shape
        assert frames == channels == generator.facts.latent_channels
        assert (height, width) == (8, 16)
        own = output if family == "cogvideox" else output.transpose(1, 2)
        assert torch.equal(step.output, own)
        assert not torch.equal(step.output, own.transpose(1, 2))
    # x̂0 of the last step is what its level says of these very tensors.
    last = recorder.steps[-1]
    a, b = float(last.level.signal[0]), float(last.level.sigma[0])
    expected = a * last.noisy - b * last.output if family == "cogvideox" else last.noisy - b * last.output
    torch.testing.assert_close(last.clean(last.output), expected.float(), atol=1e-5, rtol=0)
