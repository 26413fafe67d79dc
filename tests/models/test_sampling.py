"""Sampling through the stock pipeline: what a guidance feeds the scheduler, and that nothing else changes."""

from __future__ import annotations

import functools
import importlib
import inspect

import numpy as np
import pytest
import torch

from physcli.errors import UsageError
from physcli.guidance.lamo import MotionPrior, find_field, read_field
from physcli.methods.lamo import guidance_update
from physcli.models.cogvideox import CogVideoX
from physcli.models.loading import load
from physcli.models.names import resolve

PROMPTS, SEEDS = ["a red ball rolls into a yellow box", "a box"], [1, 2]
SIZE = {"num_frames": 9, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def tiny():
    return load("cogvideox-tiny", device="cpu")


@pytest.fixture(scope="module")
def field():
    return read_field(find_field(None, resolve("cogvideox-tiny")))


def make(generator, guidance=None, steps=4, prompts=PROMPTS, seeds=SEEDS):
    return generator.sample(prompts, seeds, steps=steps, guidance=guidance, **SIZE)


@pytest.fixture(params=["ddim", "dpm"])
def scheduled(tiny, request):
    """The generator with each of the schedulers."""
    assert sorted(tiny.facts.schedulers) == ["ddim", "dpm"]
    own = tiny.pipeline.scheduler
    tiny.use_scheduler(request.param)
    module, _, name = tiny.facts.schedulers[request.param].partition(":")
    assert type(tiny.pipeline.scheduler) is getattr(importlib.import_module(module), name)
    assert tiny.scheduler_name == name
    assert tiny.pipeline.scheduler.config.timestep_spacing == own.config.timestep_spacing
    yield tiny
    tiny.pipeline.scheduler = own


def test_no_such_scheduler(tiny):
    own = tiny.pipeline.scheduler
    tiny.use_scheduler(None)
    assert tiny.pipeline.scheduler is own
    with pytest.raises(UsageError, match="Unknown scheduler: 'euler'"):
        tiny.use_scheduler("euler")


def test_scale_0_is_the_unguided_video_and_measures(scheduled, field):
    """With the DPM scheduler too, which must go on at second order."""
    plain = make(scheduled)
    measured = make(scheduled, MotionPrior(field, scale=0))
    np.testing.assert_array_equal(measured.frames, plain.frames)
    assert plain.measured is None
    assert measured.guided == (0, 1, 2, 3)
    assert (measured.measured["guidance_loss"] > 0).all()
    assert (measured.measured["update_ratio"] == 0).all()
    assert "step" not in vars(scheduled.pipeline.scheduler)


def test_guidance_changes_the_video(scheduled, field):
    plain = make(scheduled)
    guided = make(scheduled, MotionPrior(field, scale=0.2, reduction="normalized"))
    assert (guided.frames != plain.frames).mean() > 0.1
    np.testing.assert_allclose(guided.measured["update_ratio"], 0.2, rtol=1e-4)
    assert guided.measured["changed"].min() > 0.9


def test_the_scheduler_is_fed_the_update_of_the_mixed_output(scheduled, field, monkeypatch):
    """In the one step of a one-step video, both see the same noise."""
    fed = []
    stock = type(scheduled.pipeline.scheduler).step

    def spy(*args, **kwargs):
        seen = inspect.signature(stock).bind(*args, **kwargs).arguments
        fed.append((seen["model_output"].clone(), seen["timestep"], seen["sample"].clone()))
        return stock(*args, **kwargs)

    monkeypatch.setattr(type(scheduled.pipeline.scheduler), "step", functools.wraps(stock)(spy))
    make(scheduled, steps=1)
    make(scheduled, MotionPrior(field, scale=15.0, reduction="sum", ratio=1), steps=1)
    (plain, timestep, noisy), (guided, *_) = fed
    level = scheduled.noise.of_time(timestep.expand(2))
    expected, _ = guidance_update(
        plain,
        field,
        scheduled.encode_prompts(PROMPTS).pooled(),
        predict_clean=lambda v: scheduled.noise.clean(v, noisy, level),
        scale=15.0,
        reduction="sum",
    )
    assert not torch.equal(expected, plain)
    torch.testing.assert_close(guided, expected, rtol=1e-6, atol=1e-6)


class Watches:
    """Keeps what it is shown of every step; mixes as classifier-free guidance does."""

    def __init__(self, mixes):
        self.mixes, self.seen = mixes, []

    def prepare(self, conditioning, *, latent_frames, steps, scale):
        self.told = (conditioning.text.shape[0], latent_frames, steps, scale)

    def mix(self, step):
        return step.unconditional + step.scale * (step.conditional - step.unconditional)

    def after(self, step):
        self.seen.append(step)
        return step.output, {}


@pytest.mark.parametrize("name", ["cogvideox-tiny", "wan-tiny"])
def test_what_a_guidance_sees(name):
    generator = load(name, device="cpu")
    plain = make(generator)
    watching = Watches(mixes=False)
    np.testing.assert_array_equal(make(generator, watching).frames, plain.frames)
    scale = generator.guidance_scale
    assert watching.told == (2, 3, 4, scale)
    mixing = Watches(mixes=True)
    mixed = make(generator, mixing)
    assert np.abs(mixed.frames.astype(int) - plain.frames).max() <= 2  # the same mix, in float32
    for number, (one, other) in enumerate(zip(watching.seen, mixing.seen, strict=True)):
        assert (one.index, one.count, one.scale) == (number, 4, scale)
        assert one.noisy.shape == one.output.shape == (2, *generator.latent_shape(9, 32, 32))
        assert one.conditional is one.unconditional is None
        torch.testing.assert_close(one.output, other.output, atol=2e-2, rtol=2e-2)
        assert (other.conditional - other.unconditional).abs().max() > 0
        # The level is that of the noise: what is left of the clip, by the network's own account, is x̂0.
        torch.testing.assert_close(one.clean(one.output), generator.noise.clean(one.output, one.noisy, one.level))
    sigmas = [step.level.sigma[0].item() for step in watching.seen]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] > 0.95
    # The network's own outputs, asked once more with and without the prompts.
    step = mixing.seen[0]
    level = step.level
    if name == "wan-tiny":  # UniPC hands the network whole timesteps, and solves with the σ that they are cut from
        level = level._replace(time=level.time.floor())
    with torch.no_grad():
        for prompts, output in ((PROMPTS, step.conditional), ([""] * 2, step.unconditional)):
            again = generator.denoise(step.noisy, level, generator.encode_prompts(prompts)).output
            torch.testing.assert_close(again.float(), output, atol=2e-3, rtol=2e-3)


def test_without_classifier_free_guidance_there_is_one_output():
    generator, watching = CogVideoX.build(), Watches(mixes=True)
    watching.mix = lambda step: step.conditional
    plain = generator.sample(PROMPTS, SEEDS, steps=2, guidance_scale=1, **SIZE)
    made = generator.sample(PROMPTS, SEEDS, steps=2, guidance_scale=1, guidance=watching, **SIZE)
    np.testing.assert_array_equal(made.frames, plain.frames)
    assert all(step.unconditional is None for step in watching.seen)


def test_an_error_leaves_the_pipeline_as_it_was(tiny):
    class Breaks(Watches):
        def after(self, step):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        make(tiny, Breaks(mixes=True))
    assert "step" not in vars(tiny.pipeline.scheduler)
    assert not tiny.transformer._forward_hooks
