"""Caches of diffusers: what a step that is left out gives, in closed form; what is counted; what is refused."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch
from diffusers import MagCacheConfig

from physcli.errors import UsageError
from physcli.models.loading import load
from physcli.models.step_cache import CacheSettings, StepCache, ratios

PROMPTS, SEEDS = ["a red ball rolls into a yellow box", "a box"], [1, 2]
SIZE = {"num_frames": 9, "height": 32, "width": 32}
STEPS = 8


@pytest.fixture(scope="module", params=["cogvideox-tiny", "wan-tiny"])
def tiny(request):
    return load(request.param, device="cpu")


def make(generator, cache=None, count=1, **more):
    return generator.sample(
        PROMPTS[:count], SEEDS[:count], steps=STEPS, guidance_scale=1.0, cache=cache, **SIZE, **more
    )


class Watched:
    """What each call of the network gave, and what its blocks added."""

    def __init__(self, generator):
        self.outputs, self.added, self._entered = [], [], None
        self.handles = [
            generator.network.register_forward_hook(lambda m, a, output: self.outputs.append(output[0].clone())),
            generator.blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True),
            generator.blocks[-1].register_forward_hook(self._leave),
        ]

    def _enter(self, module, arguments, named):
        self._entered = named.get("hidden_states", arguments[0] if arguments else None)

    def _leave(self, module, arguments, output):
        output = output[0] if isinstance(output, tuple) else output
        self.added.append(output - self._entered)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def test_taylorseer_goes_on_along_a_line(tiny):
    with Watched(tiny) as watched:
        made = make(tiny, StepCache(CacheSettings("taylorseer", 3), STEPS))
    # Steps 0, 1, 2, 4 and 7 are whole; of 3, 5 and 6 the output lies on the line through the last two whole ones.
    assert made.computed == 5 / STEPS
    outputs = watched.outputs
    for step, last, before in ((3, 2, 1), (5, 4, 2), (6, 4, 2)):
        slope = (outputs[last] - outputs[before]) / (last - before)
        expected = outputs[last] + (step - last) * slope
        torch.testing.assert_close(outputs[step], expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_magcache_reuses_what_the_blocks_added(tiny):
    cache = StepCache(CacheSettings("magcache", 0.06), STEPS, ratios=[1.0] * STEPS)
    with Watched(tiny) as watched:
        made = make(tiny, cache)
    # Two whole steps (a fifth of eight, rounded), then at most three left out before the next whole one.
    left_out = (2, 3, 4, 6, 7)
    assert made.computed == (STEPS - len(left_out)) / STEPS
    for step in left_out:
        # The blocks' hooks hand on what they are given, so the sum is what is seen behind the last one.
        last = max(whole for whole in range(step) if whole not in left_out)
        torch.testing.assert_close(watched.added[step], watched.added[last], rtol=0, atol=1e-4)


def test_magcache_leaves_nothing_out_where_lengths_change(tiny):
    cache = StepCache(CacheSettings("magcache", 0.06), STEPS, ratios=[2.0] * STEPS)
    made = make(tiny, cache)
    assert made.computed == 1
    np.testing.assert_array_equal(made.frames, make(tiny).frames)


def test_ratios_are_those_of_diffusers(tiny, capsys):
    found = ratios(tiny.blocks, lambda each_step: make(tiny, each_step=each_step))
    tiny.network.enable_cache(MagCacheConfig(num_inference_steps=STEPS, calibrate=True))
    try:
        make(tiny)
    finally:
        tiny.network.disable_cache()
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0"))
    np.testing.assert_allclose(found, ast.literal_eval(printed), rtol=1e-5)
    assert found[0] == 1
    assert np.std(found) > 0.01


def test_ratios_are_means_over_the_calls_of_a_step(tiny):
    """With guidance Wan is asked twice at a step, CogVideoX once for both."""
    steps = []
    found = ratios(
        tiny.blocks,
        lambda each_step: tiny.sample(
            PROMPTS[:1],
            SEEDS[:1],
            steps=4,
            guidance_scale=2.0,
            each_step=lambda: (steps.append(0), each_step()),
            **SIZE,
        ),
    )
    assert len(found) == len(steps) == 4
    assert found[0] == 1


def test_fbcache_leaves_out_what_changes_little(tiny):
    without = make(tiny)
    never = make(tiny, StepCache(CacheSettings("fbcache", 1e-6), STEPS))
    assert never.computed == 1
    np.testing.assert_array_equal(never.frames, without.frames)
    some = make(tiny, StepCache(CacheSettings("fbcache", 0.6), STEPS))
    most = make(tiny, StepCache(CacheSettings("fbcache", 1e6), STEPS))
    assert 1 > some.computed > most.computed == 1 / STEPS
    change = [float((made.latents - without.latents).norm()) for made in (never, some, most)]
    assert change[0] == 0 < change[1] < change[2]


@pytest.mark.parametrize(("name", "value"), [("taylorseer", 3), ("magcache", 0.06), ("fbcache", 1e6)])
def test_a_video_does_not_depend_on_the_one_before(tiny, name, value):
    cache = StepCache(CacheSettings(name, value), STEPS, ratios=[1.0] * STEPS)
    first, again = make(tiny, cache), make(tiny, cache)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.computed == again.computed < 1
    assert not tiny.network.is_cache_enabled
    np.testing.assert_array_equal(make(tiny).frames, make(tiny, None).frames)


def test_blocks_that_a_cache_would_pass_over_are_refused(tiny):
    others = torch.nn.ModuleList([*tiny.blocks, torch.nn.Linear(2, 2)])
    count = len(tiny.blocks)
    with (
        pytest.raises(UsageError, match=f"takes hold of {count} of the {count + 1} blocks"),
        StepCache(CacheSettings("fbcache", 0.1), STEPS).on(tiny.network, others),
    ):
        pass
    assert not tiny.network.is_cache_enabled


def test_calls_with_and_without_a_prompt_are_told_apart(tiny):
    """A cache that took one for the other would give both the same outputs."""
    calls = []
    handle = tiny.network.register_forward_hook(lambda m, a, output: calls.append(output[0].clone()))
    cache = StepCache(CacheSettings("magcache", 0.06), STEPS, ratios=[1.0] * STEPS)
    try:
        tiny.sample(PROMPTS[:1], SEEDS[:1], steps=STEPS, guidance_scale=3.0, cache=cache, **SIZE)
    finally:
        handle.remove()
    halves = [call.chunk(2) for call in calls] if len(calls) == STEPS else zip(calls[::2], calls[1::2], strict=True)
    assert all(float((one - other).abs().max()) > 1e-3 for one, other in halves)


def test_a_pipeline_that_does_not_tell_them_apart_is_refused(tiny):
    noisy = torch.zeros(1, *tiny.latent_shape(9, 32, 32))
    level = tiny.noise.of_time(torch.tensor([500]) if tiny.family == "cogvideox" else torch.tensor([500.0]))
    cache = StepCache(CacheSettings("magcache", 0.06), STEPS, ratios=[1.0] * STEPS)
    with pytest.raises(UsageError, match="which call of its"), cache.on(tiny.network, tiny.blocks), torch.no_grad():
        tiny.denoise(noisy, level, tiny.encode_prompts(PROMPTS[:1]))
    assert not tiny.network.is_cache_enabled


def test_networks_without_caches_are_refused():
    blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    with (
        pytest.raises(UsageError, match="a Linear of 2 blocks"),
        StepCache(CacheSettings("fbcache", 0.1), STEPS).on(torch.nn.Linear(2, 2), blocks),
    ):
        pass


@pytest.mark.slow
def test_compiled_blocks_differ_in_rounding():
    generator = load("wan-tiny", device="cpu")
    eager = make(generator)
    generator.compile()
    compiled = make(generator)
    assert not np.array_equal(compiled.latents, eager.latents)  # it was compiled
    torch.testing.assert_close(compiled.latents, eager.latents, rtol=0, atol=1e-3)
    with torch.compiler.set_stance("force_eager"):  # as `bench sample` runs its other sides
        assert np.array_equal(make(generator).latents, eager.latents)
