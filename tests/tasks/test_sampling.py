"""Motion prior guidance in the stock pipeline: what the scheduler is fed, and that nothing else changes."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest
import torch

from physcli.errors import ModelError, UsageError
from physcli.methods.lamo import MotionField, guidance_update, pool_prompt
from physcli.models.loading import load
from physcli.models.names import resolve
from physcli.tasks.motion_fields import check_field, find_field, read_field
from physcli.tasks.sampling import SCHEDULERS, Guide, generate, use_scheduler

PROMPTS, SEEDS = ["a red ball rolls into a yellow box", "a box"], [1, 2]
SIZE = {"num_frames": 9, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def tiny():
    return load("cogvideox-tiny", device="cpu")


@pytest.fixture(scope="module")
def field():
    return read_field(find_field(None, resolve("cogvideox-tiny")))


def make(generator, guide=None, steps=4, prompts=PROMPTS, seeds=SEEDS):
    return generate(generator, prompts, seeds, steps=steps, guide=guide, **SIZE)


@pytest.fixture(params=sorted(SCHEDULERS))
def scheduled(tiny, request):
    """The generator with each of the schedulers."""
    own = tiny.pipeline.scheduler
    use_scheduler(tiny, request.param)
    assert type(tiny.pipeline.scheduler) is SCHEDULERS[request.param]
    assert tiny.pipeline.scheduler.config.timestep_spacing == own.config.timestep_spacing
    yield tiny
    tiny.pipeline.scheduler = own


def test_scale_0_is_the_unguided_video_and_measures(scheduled, field):
    """With the DPM scheduler too, which must go on at second order."""
    plain = make(scheduled)
    measured = make(scheduled, Guide(field, scale=0))
    np.testing.assert_array_equal(measured.frames, plain.frames)
    assert plain.measured is None
    assert measured.guided == (0, 1, 2, 3)
    assert (measured.measured["guidance_loss"] > 0).all()
    assert (measured.measured["update_ratio"] == 0).all()
    assert "step" not in vars(scheduled.pipeline.scheduler)


def test_guidance_changes_the_video(scheduled, field):
    plain = make(scheduled)
    guided = make(scheduled, Guide(field, scale=0.2, reduction="normalized"))
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
    make(scheduled, Guide(field, scale=15.0, reduction="sum", ratio=1), steps=1)
    (plain, timestep, noisy), (guided, *_) = fed
    expected, _ = guidance_update(
        plain,
        field,
        pool_prompt(scheduled.encode_prompt(PROMPTS)),
        predict_clean=lambda v: scheduled.predict_clean(v, noisy, timestep.expand(2)),
        scale=15.0,
        reduction="sum",
    )
    assert not torch.equal(expected, plain)
    torch.testing.assert_close(guided, expected, rtol=1e-6, atol=1e-6)


def test_company_changes_nothing(tiny, field):
    guide = Guide(field, scale=0.1, reduction="sum")
    together = make(tiny, guide)
    for number in (0, 1):
        alone = make(tiny, guide, prompts=PROMPTS[number : number + 1], seeds=SEEDS[number : number + 1])
        assert np.abs(together.frames[number].astype(int) - alone.frames[0]).max() <= 1
        for name, values in alone.measured.items():
            np.testing.assert_allclose(values[0], together.measured[name][number], rtol=1e-3, err_msg=name)


@pytest.mark.parametrize(("window", "first"), [("exact", 2), ("released", 1)])
def test_windows(tiny, field, window, first):
    """(1 − 0.8)·10 is 1.9999… in binary fractions."""
    made = make(tiny, Guide(field, scale=0, window=window), steps=10, prompts=PROMPTS[:1], seeds=SEEDS[:1])
    assert made.guided == tuple(range(first, 10))
    assert made.measured["guidance_loss"].shape == (1, 10 - first)


def test_a_lag_of_all_frames_is_refused(tiny, field):
    with pytest.raises(UsageError, match="--motion-lag 3 with 9 frames, which are 3 latent frames"):
        make(tiny, Guide(field, scale=1, lag=3))
    assert "step" not in vars(tiny.pipeline.scheduler)


def test_where_the_field_is_found(tmp_path, field):
    model = resolve("cogvideox-tiny")
    own = MotionField(channels=8, hidden=8, num_blocks=1, text_dim=128, cond_dim=4)
    own.save(tmp_path / "run" / "motion_field")
    assert find_field(None, model).name == "motion-field-tiny"
    assert find_field(str(tmp_path / "run"), model) == tmp_path / "run" / "motion_field"
    assert find_field(str(tmp_path / "run" / "motion_field"), model) == tmp_path / "run" / "motion_field"
    beside = resolve("cogvideox-tiny")
    object.__setattr__(beside, "adapter", tmp_path / "run" / "adapter")
    assert find_field(None, beside) == tmp_path / "run" / "motion_field"
    assert read_field(tmp_path / "run" / "motion_field").config == own.config
    with pytest.raises(ModelError, match="--motion-field nowhere is not there"):
        find_field("nowhere", model)
    with pytest.raises(ModelError, match="holds no motion field"):
        read_field(tmp_path)


def test_a_field_of_another_model_is_refused(tiny, field):
    check_field(field, tiny, "shipped")
    other = MotionField(channels=16, hidden=8, num_blocks=1, text_dim=4096, cond_dim=4, scaling_factor=0.7)
    with pytest.raises(UsageError) as error:
        check_field(other, tiny, "other")
    said = error.value.received
    assert "latent channels 16 for 8, prompt width 4096 for 128, VAE scaling factor 0.7 for 2.0394" in said
    assert "lamo-field --model cogvideox-tiny" in error.value.fix
