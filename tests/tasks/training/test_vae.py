"""What the VAE's training makes of frames before it shows them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_videos import encode

from physcli.data.video import read_video
from physcli.tasks.training.vae import halve_chroma


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
