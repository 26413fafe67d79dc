"""The table of guidances: each has options of its own, and is built for a model."""

from __future__ import annotations

import pytest

from physcli.errors import UsageError
from physcli.guidance import GUIDANCES, NONE, guidance_class
from physcli.guidance.base import Guidance, flag
from physcli.models.loading import load
from physcli.models.names import resolve
from physcli.progress import Reporter
from physcli.tasks.sample import SampleSettings


def test_options_do_not_clash():
    """Nor with those that `physcli sample` has for all."""
    classes = [guidance_class(name) for name in GUIDANCES]
    assert len({each.prefix for each in classes}) == len(classes)
    options = [option.name for each in classes for option in each.options()]
    assert len(set(options)) == len(options)
    assert not set(options) & set(SampleSettings(prompts=()).record)
    for each in classes:
        for option in each.options():
            assert option.name.startswith(f"{each.prefix}_")
            # Which guidance an option is of is read off its beginning.
            assert [other for other in classes if option.name.startswith(f"{other.prefix}_")] == [each]
            assert option.help
            assert flag(option.name) == f"--{option.name.replace('_', '-')}"


@pytest.mark.parametrize("name", GUIDANCES)
def test_each_is_built(name):
    chosen = guidance_class(name)
    assert issubclass(chosen, Guidance)
    generator, model = load("cogvideox-tiny", device="cpu"), resolve("cogvideox-tiny")
    settings = chosen.settings({})
    assert chosen.record(settings).keys() == {option.name for option in chosen.options()}
    assert chosen.settings(chosen.record(settings)) == settings
    if name == "inner":
        with pytest.raises(UsageError, match="--guidance inner with cogvideox-tiny, which denoises no motion"):
            chosen.build(settings, generator, {}, Reporter())
        generator.add_motion(8)
    guidance = chosen.build(settings, generator, chosen.files(settings, model), Reporter())
    made = generator.sample(["a box"], [0], num_frames=9, height=32, width=32, steps=2, guidance=guidance)
    assert made.frames.shape == (1, 9, 32, 32, 3)
    assert {measured.log for measured in chosen.metrics} <= set(made.measured)
    assert set(made.guided) <= {0, 1}


def test_there_is_none_of_that_name():
    with pytest.raises(UsageError, match=r"(?s)Unknown guidance: 'lmao'.*Did you mean 'lamo'"):
        guidance_class("lmao")
    assert NONE not in GUIDANCES
    with pytest.raises(UsageError, match="--motion-power is no option of Motion prior guidance"):
        guidance_class("lamo").settings({"motion_power": 2})
