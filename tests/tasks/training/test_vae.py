"""What the VAE's training makes of frames before it shows them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_videos import encode

from physcli.data.clips import read_dataset
from physcli.data.video import read_video
from physcli.models.wan import Wan
from physcli.recipe import Reconstruction
from physcli.tasks.training.clips import ClipReader
from physcli.tasks.training.vae import VaeTrainee, halve_chroma


def test_halved_chroma_keeps_brightness_and_shares_colour():
    frames = 0.3 + 0.4 * torch.rand(2, 3, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    halved = halve_chroma(frames)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close((halved * luma).sum(-3), (frames * luma).sum(-3))
    chroma = halved - (halved * luma).sum(-3, keepdim=True)
    for y, x in ((0, 1), (1, 0), (1, 1)):
        torch.testing.assert_close(chroma[..., y::2, x::2], chroma[..., ::2, ::2])
    torch.testing.assert_close(halve_chroma(halved), halved)
    grey = frames.mean(dim=-3, keepdim=True).expand_as(frames)
    torch.testing.assert_close(halve_chroma(grey), grey)


def test_halved_chroma_is_what_a_video_of_it_holds(tmp_path):
    """But for rounding, and for how a decoder spreads colour over the four pixels."""
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(60, 200, (4, 4, 4, 3), np.uint8), 3, 1), 3, 2)  # fields of 3x3 pixels
    frames = np.repeat(frames, 4, 0)
    encode(tmp_path / "a.mp4", frames, options={"crf": "0", "preset": "fast"})
    read = torch.from_numpy(read_video(tmp_path / "a.mp4")).permute(0, 3, 1, 2) / 255
    original = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    off = (read - original).abs().mean().item()
    assert (read - halve_chroma(original)).abs().mean().item() < off / 2
    assert off == pytest.approx((halve_chroma(original) - original).abs().mean().item(), rel=0.3)


@pytest.fixture(scope="module")
def trainee(simulated):
    """`trainee(object_crops=1)`: of an untrained VAE, with crops of 16x16 pixels."""
    clips = [clip for clip in read_dataset(simulated).clips if clip.split == "train"]

    def make(**objective):
        return VaeTrainee(
            Wan.build(),
            reader=ClipReader(clips, size=(64, 64), seed=0),
            held_out=[],
            objective=Reconstruction(crop=16, crop_frames=5, strides=(1, 3), **objective),
            steps=10,
            seed=0,
            subject="it",
        )

    return make


def test_crops_lie_where_things_are_and_their_pixels_count(trainee):
    samples = range(40)
    anywhere, around = trainee(object_weight=4), trainee(object_weight=4, object_crops=1)
    share = {}
    for name, one in (("anywhere", anywhere), ("around", around)):
        batch = one.batch(samples, 0)
        assert batch["weights"].shape == (40, 5, 16, 16)
        assert set(batch["weights"].unique().tolist()) == {1.0, 4.0}
        share[name] = (batch["weights"] == 4).float().mean((1, 2, 3))
    assert bool((share["around"] > 0).all())
    assert share["around"].mean() > 1.5 * share["anywhere"].mean()


def test_crops_are_as_before_where_nothing_is_asked_of_things(trainee):
    plain, weighted = trainee().batch(range(6), 0), trainee(object_weight=2).batch(range(6), 0)
    assert "weights" not in plain
    assert torch.equal(plain["frames"], weighted["frames"])


def test_a_whole_window_has_the_weights_of_its_things(trainee):
    one = trainee(object_weight=3, whole_share=1)
    batch = one.batch([0], 0)
    clip, _ = one.reader.read(0)
    things = np.load(clip.arrays)["segmentation"] > 0
    assert batch["weights"].shape == (1, 17, 64, 64)
    heavy = batch["weights"][0] == 3
    matches = [
        bool((heavy | ~torch.from_numpy(things[start : start + 16 * stride + 1 : stride])).all())
        for stride in (1, 3)
        for start in range(49 - 16 * stride)
    ]
    assert any(matches)
    assert 0 < heavy.float().mean() < 0.6
