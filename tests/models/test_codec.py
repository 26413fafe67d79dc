"""Frames to latents and back: against stock diffusers, ranges, lengths and sizes that cannot be."""

from __future__ import annotations

import pytest
import torch

from physcli.errors import UsageError
from physcli.models.cogvideox import CogVideoX
from physcli.models.wan import Wan


@pytest.fixture(scope="module")
def tiny():
    return CogVideoX.build()


@pytest.fixture(scope="module")
def wan():
    return Wan.build()


def test_video_round_trip_is_the_stock_one(tiny):
    frames = torch.rand(2, 9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = tiny.codec.encode(frames)
    assert latents.shape == (2, 3, 8, 8, 8)
    assert latents.dtype == torch.float32
    with torch.no_grad():
        stock = tiny.vae.encode(frames.transpose(1, 2) * 2 - 1).latent_dist.mode() * tiny.vae.config.scaling_factor
        torch.testing.assert_close(latents, stock.transpose(1, 2), atol=1e-6, rtol=0)
        pixels = tiny.pipeline.decode_latents(latents)
    video = tiny.pipeline.video_processor.postprocess_video(pixels, output_type="pt")
    decoded = tiny.codec.decode(latents)
    assert decoded.shape == frames.shape
    torch.testing.assert_close(decoded, video, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["tiny", "wan"])
def test_scaling_has_an_inverse_and_a_posterior_the_same_scale(name, request):
    codec = request.getfixturevalue(name).codec
    frames = torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    latents, posterior = codec.encode(frames), codec.encode_posterior(frames)
    assert posterior.shape == (2, 2, *latents.shape[1:])
    assert torch.equal(posterior[:, 0], latents)
    assert (posterior[:, 1] > 0).all()
    own = latents.transpose(1, 2)
    torch.testing.assert_close(codec.scale(codec.unscale(own)), own)
    # A mean and a deviation away from it are two latents.
    torch.testing.assert_close(codec.scale(own + 0.5) - codec.scale(own), codec.scale_std(torch.full_like(own, 0.5)))


def test_latent_stats_are_those_of_everything_encoded():
    generator = CogVideoX.build()
    frames = torch.rand(3, 5, 3, 32, 32)
    latents = torch.cat([generator.codec.encode(frames[:1]), generator.codec.encode(frames[1:])])
    stats = generator.codec.stats
    assert stats.mean == pytest.approx(latents.mean().item(), abs=1e-6)
    assert stats.std == pytest.approx(latents.std(correction=0).item(), abs=1e-6)
    assert (stats.pixel_min, stats.pixel_max) == (frames.min().item(), frames.max().item())
    assert stats.count == latents.numel()


def test_posterior_noise_depends_on_the_clip_s_generator_alone(tiny):
    frames = torch.rand(2, 5, 3, 32, 32)
    together = tiny.codec.encode(frames, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)])
    alone = tiny.codec.encode(frames[1:], generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=0)
    assert (alone - tiny.codec.encode(frames[1:])).abs().max() > 0.1


@pytest.mark.parametrize("name", ["tiny", "wan"])
def test_wrong_pixel_range_is_refused(name, request):
    codec = request.getfixturevalue(name).codec
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got \[-1, 1\]"):
        codec.encode(torch.tensor([-1.0, 1.0]).repeat(1, 5, 3, 32, 16))
    with pytest.raises(ValueError, match=r"must be float \[B, T, 3, H, W\]"):
        codec.encode(torch.zeros(1, 5, 3, 32, 32, dtype=torch.uint8))


def test_sizes_that_do_not_fit(tiny):
    codec = tiny.codec
    with pytest.raises(UsageError, match=r"(?s)cannot take clips of 16 frames.*4k\+1 frames, for instance 13 or 17"):
        codec.encode(torch.zeros(1, 16, 3, 64, 64))
    with pytest.raises(UsageError, match=r"(?s)frames of 64x60 .*multiples of 8"):
        codec.encode(torch.zeros(1, 17, 3, 64, 60))
    with pytest.raises(UsageError, match=r"(?s)frames of 0x64 .*multiples of 8"):
        codec.check_size(0, 64)
    with pytest.raises(UsageError, match=r"(?s)cannot make clips of 13 frames.*8k\+1 frames, for instance 9 or 17"):
        codec.decode(torch.zeros(1, 4, 8, 16, 16))


@pytest.mark.parametrize("name", ["tiny", "wan"])
def test_lengths(name, request):
    codec = request.getfixturevalue(name).codec
    assert [codec.usable_frames(count) for count in (1, 4, 5, 8, 9, 50)] == [1, 1, 5, 5, 9, 49]
    for count in (1, 5, 9, 17, 49):
        codec.check(count)
        assert codec.num_frames(codec.latent_frames(count)) == count
    for count in (0, -3, 2, 16):
        with pytest.raises(UsageError, match=f"clips of {count} frames"):
            codec.check(count)


def test_the_space_tells_latents_apart(tiny, wan):
    """A motion field is refused by it, where another VAE has as many channels."""
    other = Wan.build(name="other")
    assert other.codec.space == wan.codec.space != tiny.codec.space
    channels = wan.codec.channels
    other.codec.register_statistics([0.5] * channels, [2.0] * channels)
    assert other.codec.space != wan.codec.space
    latents = torch.ones(1, channels, 1, 2, 2)
    torch.testing.assert_close(other.codec.scale(latents), torch.full_like(latents, 0.25))
    assert (tiny.codec.scaling_factor, wan.codec.scaling_factor) == (tiny.vae.config.scaling_factor, None)


def test_statistics_become_one_factor():
    """1/std over all channels, of a mixture of their moments."""
    codec = CogVideoX.build().codec
    draws = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0)).double()
    values = draws * torch.tensor([1.0, 3.0]) + torch.tensor([-1.0, 2.0])
    codec.register_statistics(values.mean(0).tolist(), values.std(0, correction=0).tolist())
    assert codec.scaling_factor == pytest.approx(1 / float(values.std(correction=0)), abs=1e-5)
