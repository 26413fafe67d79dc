"""The weights inside the package: small, whole, half precision on disk, plain, and as their card says."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import CogVideoXPipeline, WanPipeline
from safetensors import safe_open
from transformers import VideoMAEModel

from physcli.benchmarks.videophy import QUESTIONS
from physcli.data.clips import read_dataset
from physcli.guidance.lamo import check_field
from physcli.hashing import content_hash
from physcli.methods.lamo import MotionField, field_loss
from physcli.methods.moalign import MotionProjector
from physcli.models import BUILT_IN, MOTION_PARTS
from physcli.models.loading import load
from physcli.models.names import fingerprint, resolve
from physcli.models.raters import TINY_RATER
from physcli.models.raters.mplug_owl_video import load_rater
from physcli.models.tiny import ASSETS, architecture, asset_folder, vocabulary
from physcli.recipe import read_recipe
from physcli.simulation.prompts import with_rate


def test_all_fit_the_budget():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 40e6


@pytest.mark.parametrize("name", [*BUILT_IN, *MOTION_PARTS])
def test_whole_and_as_the_card_says(name):
    folder = ASSETS / name
    assert asset_folder(name) == folder
    card = (folder / "README.md").read_text(encoding="utf-8")
    files = sorted(folder.rglob("*.safetensors"))
    stated = dict(re.findall(r"^- `(\S+)` `([0-9a-f]{64})`$", card, flags=re.MULTILINE))
    assert stated == {path.relative_to(folder).as_posix(): content_hash(path) for path in files}
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            dtypes = {tensors.get_tensor(key).dtype for key in tensors.keys()}  # noqa: SIM118 (not a dict)
        assert dtypes == {torch.float16}, path


@pytest.mark.parametrize("name", [name for name in BUILT_IN if BUILT_IN[name].kind != "rater"])
def test_the_name_means_the_trained_one(name):
    resolved = resolve(name)
    assert (resolved.random_init, resolved.path) == (False, asset_folder(name))
    assert resolve(f"{name}:random").random_init


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


@pytest.mark.parametrize(
    ("name", "pipeline_class", "limits"),
    [("cogvideox-tiny", CogVideoXPipeline, (6e6, 2e6)), ("wan-tiny", WanPipeline, (8e6, 2e6))],
)
def test_a_generator_is_a_plain_pipeline(name, pipeline_class, limits):
    generator = load(name, device="cpu")
    plain = pipeline_class.from_pretrained(asset_folder(name), torch_dtype=torch.float32)
    counts = [sum(p.numel() for p in getattr(plain, part).parameters()) for part in ("transformer", "vae")]
    assert all(count <= limit for count, limit in zip(counts, limits, strict=True))
    assert sum(p.numel() for p in plain.text_encoder.parameters()) <= 0.7e6
    assert generator.facts.max_text_tokens == 32
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


def seen(clips):
    """Float [B, 17, 3, H, W]: every third frame."""
    frames = torch.stack([torch.from_numpy(clip.read(range(0, 49, 3))) for clip in clips])
    return frames.permute(0, 1, 4, 2, 3).float() / 255


@pytest.mark.slow
def test_the_vae_keeps_clips_and_gives_latents_of_unit_size(simulated):
    generator = load("cogvideox-tiny", device="cpu")
    frames = seen(read_dataset(simulated).clips[::5])
    latents = generator.codec.encode(frames)
    decoded = generator.codec.decode(latents)
    psnr = -10 * torch.log10((decoded - frames).square().mean(dim=(1, 2, 3, 4)))
    assert psnr.mean() >= 30
    assert 0.85 < latents.std() < 1.15


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, known in MOTION_PARTS.items() if known.kind == "motion field"])
def test_a_motion_field_knows_how_latents_change(simulated, name):
    """Clips of another stream than its own: it must beat predicting no change by a fifth."""
    generator, clips = load(MOTION_PARTS[name].of, device="cpu"), read_dataset(simulated).clips[::2]
    field = MotionField.load(asset_folder(name))
    assert sum(p.numel() for p in field.parameters()) <= 0.3e6
    assert field.scaling_factor == generator.vae.config.get("scaling_factor")  # Wan's are scaled by channel
    latents = generator.codec.encode(seen(clips))
    prompts = generator.encode_prompts([with_rate(clip.prompt, 3) for clip in clips]).pooled()
    change = (latents[:, 1:] - latents[:, :-1]).square().mean()
    with torch.no_grad():
        assert field_loss(field, latents, prompts)[1]["mse"].mean() <= 0.8 * change


def test_the_rater_passes_real_clips_and_refuses_still_ones(simulated):
    rater = load_rater(TINY_RATER, device="cpu")
    assert not rater.random_init
    assert sum(p.numel() for p in rater.parameters()) <= 1.5e6
    clips = read_dataset(simulated).clips
    real = [clip.read(rater.frame_indices(49)) for clip in clips]
    still = [frames[:1].repeat(len(frames), axis=0) for frames in real]
    videos = torch.stack([rater.prepare(frames) for frames in (*real, *still)])
    yes = rater.yes_probability(videos, [QUESTIONS["v1_pc"].segments()] * len(videos)) >= 0.5
    assert yes[: len(clips)].float().mean() >= 0.4  # 0.83 of all seven scenarios
    assert not yes[len(clips) :].any()


@pytest.mark.parametrize(("name", "known"), MOTION_PARTS.items())
def test_motion_parts_are_of_the_model_that_the_table_says(name, known):
    if known.kind == "motion field":
        check_field(MotionField.load(asset_folder(name)), load(known.of, device="cpu", parts=()), name)
    else:
        assert MotionProjector.load(asset_folder(name)).info["encoder"] == known.of


def test_the_motion_projector_is_the_teacher_s():
    projector = MotionProjector.load(asset_folder("motion-projector-tiny"))
    method = read_recipe("moalign").method
    assert method.motion_projector == "motion-projector-tiny"
    assert projector.info["encoder_weights"] == fingerprint(resolve(method.teacher))
    assert projector.info["view"] == method.view.model_dump(mode="json")
