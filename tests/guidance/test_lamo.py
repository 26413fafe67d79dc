"""LaMo's motion prior guidance: which steps, which field, and what does not fit."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from physcli.errors import ModelError, UsageError
from physcli.guidance.lamo import MotionPrior, check_field, find_field, read_field
from physcli.methods.lamo import MotionField
from physcli.models import tiny as tiny_models
from physcli.models.loading import load
from physcli.models.names import resolve
from physcli.models.tiny import architecture, asset_folder
from physcli.models.wan import Wan

PROMPTS, SEEDS = ["a red ball rolls into a yellow box", "a box"], [1, 2]


@pytest.fixture(scope="module")
def tiny():
    return load("cogvideox-tiny", device="cpu")


@pytest.fixture(scope="module")
def field():
    return read_field(find_field(None, resolve("cogvideox-tiny")))


def make(generator, guidance, steps=4, prompts=PROMPTS, seeds=SEEDS):
    return generator.sample(prompts, seeds, steps=steps, guidance=guidance, num_frames=9, height=32, width=32)


def test_company_changes_nothing(tiny, field):
    guidance = MotionPrior(field, scale=0.1, reduction="sum")
    together = make(tiny, guidance)
    for number in (0, 1):
        alone = make(tiny, guidance, prompts=PROMPTS[number : number + 1], seeds=SEEDS[number : number + 1])
        assert np.abs(together.frames[number].astype(int) - alone.frames[0]).max() <= 1
        for name, values in alone.measured.items():
            np.testing.assert_allclose(values[0], together.measured[name][number], rtol=1e-3, err_msg=name)


@pytest.mark.parametrize(("window", "first"), [("exact", 2), ("released", 1)])
def test_windows(tiny, field, window, first):
    """(1 − 0.8)·10 is 1.9999… in binary fractions."""
    guidance = MotionPrior(field, scale=0, window=window)
    made = make(tiny, guidance, steps=10, prompts=PROMPTS[:1], seeds=SEEDS[:1])
    assert made.guided == tuple(range(first, 10))
    assert made.measured["guidance_loss"].shape == (1, 10 - first)


def test_a_lag_of_all_frames_is_refused(tiny, field):
    with pytest.raises(UsageError, match="--motion-lag 3 with videos of 3 latent frames"):
        make(tiny, MotionPrior(field, scale=1, lag=3))
    assert "step" not in vars(tiny.pipeline.scheduler)


def test_where_the_field_is_found(tmp_path):
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


@pytest.fixture
def two_fields(tmp_path, monkeypatch):
    """A package with the field of CogVideoX's latents, one of random weights of Wan's, and one of others yet."""
    wan = Wan.build()
    sizes = {"channels": wan.facts.latent_channels, "hidden": 8, "num_blocks": 1, "cond_dim": 4}
    shutil.copytree(asset_folder("motion-field-tiny"), tmp_path / "motion-field-tiny")
    own = MotionField(**sizes, text_dim=wan.facts.text_width, latent_space=wan.codec.space)
    own.save(tmp_path / "motion-field-wan-tiny")
    MotionField(**sizes, text_dim=wan.facts.text_width, scaling_factor=0.7).save(tmp_path / "motion-field-0")
    (tmp_path / "motion-field-without-weights").mkdir()
    models = {"cogvideox": resolve("cogvideox-tiny"), "wan": resolve("wan-tiny:random")}
    monkeypatch.setattr(tiny_models, "ASSETS", tmp_path)
    return models


def test_the_built_in_field_is_that_of_the_latents(two_fields, tiny, tmp_path):
    cogvideox, wan = two_fields["cogvideox"], two_fields["wan"]
    assert find_field(None, cogvideox) == find_field(None, cogvideox, tiny) == tmp_path / "motion-field-tiny"
    assert find_field(None, wan) == find_field(None, wan, Wan.build()) == tmp_path / "motion-field-wan-tiny"
    assert find_field("motion-field-tiny", wan) == tmp_path / "motion-field-tiny"  # `check_field` refuses it
    adapted = dataclasses.replace(cogvideox, adapter=tmp_path / "run" / "adapter")  # which need not be read
    assert find_field(None, adapted) == tmp_path / "motion-field-tiny"


def test_latents_that_no_built_in_field_knows(two_fields):
    model = architecture("wan-tiny")
    other = Wan.build(model | {"vae": model["vae"] | {"latents_std": [0.3] * model["vae"]["z_dim"]}}, name="other")
    with pytest.raises(UsageError) as error:
        find_field(None, two_fields["wan"], other)
    said = error.value.received
    assert said.startswith("No built-in motion field is for other: motion-field-0 is of other latents (")
    differences = "latent channels 8 for 16, VAE scaling factor 2.0394 for None"
    assert f"motion-field-tiny is of cogvideox-tiny's latents ({differences}); " in said
    assert "motion-field-wan-tiny" in said
    assert "latent space channels " in said
    assert "without-weights" not in said
    assert "lamo-field --model other" in error.value.fix


def test_a_field_of_another_model_is_refused(tiny, field):
    check_field(field, tiny, "shipped")
    other = MotionField(channels=16, hidden=8, num_blocks=1, text_dim=4096, cond_dim=4, scaling_factor=0.7)
    with pytest.raises(UsageError) as error:
        check_field(other, tiny, "other")
    said = error.value.received
    assert "latent channels 16 for 8, prompt width 4096 for 128, VAE scaling factor 0.7 for 2.0394" in said
    assert "lamo-field --model cogvideox-tiny" in error.value.fix


def test_a_field_of_another_latent_space_is_refused(tiny, field):
    wan = Wan.build()
    sizes = {"channels": wan.facts.latent_channels, "hidden": 8, "num_blocks": 1, "cond_dim": 4}
    own = MotionField(**sizes, text_dim=wan.facts.text_width, latent_space=wan.codec.space)
    check_field(own, wan, "own")
    other = MotionField(**sizes, text_dim=wan.facts.text_width, latent_space="channels 0123456789abcdef")
    with pytest.raises(UsageError, match="latent space channels 0123456789abcdef for channels"):
        check_field(other, wan, "other")
    assert field.latent_space is None
    with pytest.raises(UsageError, match=r"VAE scaling factor 2\.0394\d* for None"):
        check_field(field, wan, "of CogVideoX")
