from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from diffusers import CogVideoXPipeline

from physcli.models import tiny
from physcli.models.cogvideox import CogVideoX, build_cogvideox
from physcli.models.encoders.preprocessing import Preprocessing
from physcli.models.encoders.videomae import build_videomae


def count(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.fixture(scope="module")
def pipeline():
    return build_cogvideox()


def test_parameter_budgets(pipeline):
    assert isinstance(pipeline, CogVideoXPipeline)
    assert not any(part.training for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder))
    assert count(pipeline.transformer) <= 6
    assert count(pipeline.vae) <= 2
    assert count(pipeline.text_encoder) <= 0.7
    assert count(build_videomae()) <= 1.5


def test_weights_are_seeded_and_the_global_random_state_is_untouched(pipeline):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    again = build_cogvideox()
    encoder = build_videomae()
    assert torch.equal(torch.rand(3), expected)
    for part in ("transformer", "vae", "text_encoder"):
        ours, theirs = getattr(pipeline, part).state_dict(), getattr(again, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = build_cogvideox(tiny.architecture("cogvideox-tiny") | {"seed": 1})
    assert not torch.equal(other.transformer.proj_out.weight, pipeline.transformer.proj_out.weight)
    frames = torch.rand(1, 16, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder.encode(frames), build_videomae().encode(frames))
        other = build_videomae(tiny.architecture("videomae-tiny") | {"seed": 1})
        assert (other.encode(frames) - encoder.encode(frames)).abs().max() > 0.1


def test_videomae_is_preprocessed_as_its_recipe_says():
    encoder = build_videomae(dtype=torch.bfloat16)
    half = (0.5, 0.5, 0.5)
    assert encoder.preprocessing == Preprocessing(
        mean=half, std=half, height=64, width=64, num_frames=16, interpolation="bicubic", antialias=True
    )
    assert (encoder.dtype, encoder.position_table.dtype, encoder.training) == (torch.bfloat16, torch.float32, False)


def test_every_process_can_build_them():
    """transformers writes files on the first process only, so nothing here may pass through a folder."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    expected = build_videomae().state_dict()
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        built = build_videomae().state_dict()
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(built[name], expected[name]) for name in expected)


def test_stock_round_trip_and_generation(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "CogVideoXPipeline"
    loaded = CogVideoXPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    frames = loaded(
        "a red ball rolls towards a yellow box",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=2.0,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames
    assert frames.shape == (1, 9, 3, 64, 64)
    assert frames.isfinite().all()
    prompts = ["a red ball", ""]
    before, after = (CogVideoX(p, name="t").encode_prompts(prompts).text for p in (pipeline, loaded))
    assert torch.equal(before, after)


def test_random_latents_have_about_unit_variance(pipeline):
    # Smooth coloured fields, more like images than white noise is.
    coarse = torch.rand(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    frames = torch.nn.functional.interpolate(coarse, (9, 64, 64), mode="trilinear").transpose(1, 2)
    generator = CogVideoX(pipeline, name="t")
    generator.codec.encode(frames.clamp(0, 1))
    assert 0.5 < generator.codec.stats.std < 2


def test_tokenizer():
    tokenizer = tiny.build_tokenizer(["Ball", "red", "20", ",", "red"], max_length=8)
    assert tokenizer.get_vocab() == {"<pad>": 0, "</s>": 1, "<unk>": 2, "ball": 3, "red": 4, "20": 5, ",": 6}
    ids = tokenizer(["RED ball, 20 zebras", ""], padding="max_length", max_length=8, truncation=True).input_ids
    assert ids == [[4, 3, 6, 5, 2, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    long = tokenizer("ball " * 20, padding="max_length", max_length=8, truncation=True).input_ids
    assert long == [3] * 7 + [1]  # the end token survives the cut


def test_vocabulary_fits_the_text_encoder():
    words = tiny.vocabulary()
    assert len(words) == len(set(words))
    assert len(words) + 3 <= tiny.architecture("cogvideox-tiny")["text_encoder"]["vocab_size"]
    unknown = tiny.build_tokenizer(words).unk_token_id
    assert unknown not in tiny.build_tokenizer(words)(" ".join(words)).input_ids
