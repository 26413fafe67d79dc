"""The weights inside the package: small, whole, half precision on disk, plain, and as their card says."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import CogVideoXPipeline
from safetensors import safe_open
from transformers import VideoMAEModel

from physcli.hashing import content_hash
from physcli.models import BUILT_IN
from physcli.models.loading import load, resolve
from physcli.models.tiny import ASSETS, architecture, asset_folder, vocabulary


def test_all_fit_the_budget():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 25e6


@pytest.mark.parametrize("name", BUILT_IN)
def test_whole_and_as_the_card_says(name):
    folder = asset_folder(name)
    assert folder is not None
    resolved = resolve(name)
    assert (resolved.random_init, resolved.path) == (False, folder)
    assert resolve(f"{name}:random").random_init
    card = (folder / "README.md").read_text(encoding="utf-8")
    files = sorted(folder.rglob("*.safetensors"))
    stated = dict(re.findall(r"^- `(\S+)` `([0-9a-f]{64})`$", card, flags=re.MULTILINE))
    assert stated == {path.relative_to(folder).as_posix(): content_hash(path) for path in files}
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            dtypes = {tensors.get_tensor(key).dtype for key in tensors.keys()}  # noqa: SIM118 (not a dict)
        assert dtypes == {torch.float16}, path


def test_the_encoder_is_a_plain_one_and_not_the_random_one():
    encoder, untrained = load("videomae-tiny", device="cpu"), load("videomae-tiny:random", device="cpu")
    plain = VideoMAEModel.from_pretrained(asset_folder("videomae-tiny"), dtype=torch.float32).eval()
    assert sum(p.numel() for p in plain.parameters()) <= 1.5e6
    assert plain.config.tubelet_size == architecture("videomae-tiny")["encoder"]["tubelet_size"]
    frames = torch.rand(1, 16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = encoder.encode(frames).flatten(1, 3)
        theirs = plain(encoder.prepare(frames)).last_hidden_state
        assert (ours - theirs).abs().max() < 1e-4
        assert (ours - untrained.encode(frames).flatten(1, 3)).abs().max() > 0.1


def test_the_generator_is_a_plain_pipeline():
    generator = load("cogvideox-tiny", device="cpu")
    plain = CogVideoXPipeline.from_pretrained(asset_folder("cogvideox-tiny"), torch_dtype=torch.float32)
    counts = {part: sum(p.numel() for p in getattr(plain, part).parameters()) for part in ("transformer", "vae")}
    assert counts["transformer"] <= 6e6
    assert counts["vae"] <= 2e6
    assert sum(p.numel() for p in plain.text_encoder.parameters()) <= 0.7e6
    assert plain.transformer.config.max_text_seq_length == 32
    assert not [word for word in vocabulary() if plain.tokenizer.unk_token_id in plain.tokenizer(word).input_ids]
    plain.set_progress_bar_config(disable=True)
    video = plain(
        "a red ball rolls towards a yellow box and hits it, filmed at 7 frames per second",
        num_frames=17,
        height=64,
        width=64,
        num_inference_steps=2,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames
    assert video.shape == (1, 17, 3, 64, 64)
    assert bool(torch.isfinite(video).all())
    assert generator.max_text_seq_length == 32


def test_the_vae_keeps_clips_and_gives_latents_of_unit_size(simulated):
    from physcli.data.clips import read_dataset

    generator = load("cogvideox-tiny", device="cpu")
    clips = read_dataset(simulated).clips[::5]
    frames = torch.stack([torch.from_numpy(clip.read(range(0, 49, 3))) for clip in clips])
    frames = frames.permute(0, 1, 4, 2, 3).float() / 255
    latents = generator.encode_video(frames)
    decoded = generator.decode_latents(latents)
    psnr = -10 * torch.log10((decoded - frames).square().mean(dim=(1, 2, 3, 4)))
    assert psnr.mean() >= 30
    assert 0.85 < latents.std() < 1.15
