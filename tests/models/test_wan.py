"""The Wan adapter against golden numbers of diffusers, and against the stock pipeline."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile

from physcli.errors import ModelError, UsageError
from physcli.hashing import seeded
from physcli.models import LORA_FILE, wan, wan_vae
from physcli.models.adapters import read_adapter
from physcli.models.generator import Conditioning, denoising_loss
from physcli.models.loading import load_generator
from physcli.models.names import read_facts, resolve
from physcli.models.tiny import architecture, asset_folder
from physcli.models.wan import Wan
from physcli.models.wan_vae import decode_whole, encode_whole

GOLDEN = Path(__file__).parents[1] / "golden" / "wan_objective"


def canonical(tensor: torch.Tensor) -> torch.Tensor:
    """diffusers' [B, C, F, h, w] or [B, C, T, H, W] in physcli's axis order."""
    return tensor.transpose(1, 2)


@pytest.fixture(scope="module", params=["wan21", "wan22_ti2v"])
def golden(request):
    case = load_file(GOLDEN / f"{request.param}.safetensors")
    info = json.loads((GOLDEN / f"{request.param}.json").read_text())
    return load_generator(str(GOLDEN / f"{request.param}_pipeline")), case, info


def level_of(generator, info):
    return generator.noise.of_time(torch.tensor(info["sigmas"], dtype=torch.float64) * 1000)


# -- golden numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unipc", "euler"])
@pytest.mark.parametrize("steps", [4, 10])
def test_schedules(golden, name, steps):
    generator, _, info = golden
    shift = generator.pipeline.scheduler.config.get("flow_shift") or generator.pipeline.scheduler.config.get("shift")
    assert shift == info["flow_shift"]
    generator.use_scheduler(name)
    scheduler = generator.pipeline.scheduler
    scheduler.set_timesteps(steps)
    expected = info["schedules"][f"{name}_shift{info['flow_shift']:g}_{steps}"]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected["sigmas"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(scheduler.timesteps.float(), torch.tensor(expected["timesteps"]), atol=1e-3, rtol=0)
    for index, sigma in enumerate(expected["sigmas"][:-1]):
        # The σ that is solved with, and not the truncated timestep's.
        level = generator.noise.of_step(scheduler, index, scheduler.timesteps[index])
        assert level.sigma.item() == pytest.approx(sigma, abs=1e-6)
    generator.use_scheduler("unipc")


def test_noising_target_and_clean(golden):
    generator, case, info = golden
    level = level_of(generator, info)
    torch.testing.assert_close(level.time, case["timesteps"], atol=0, rtol=0)
    latents, noise = canonical(case["latents"]), canonical(case["noise"])
    noisy = generator.noise.add_noise(latents, noise, level)
    torch.testing.assert_close(noisy, canonical(case["noisy_latents"]), atol=1e-6, rtol=0)
    target = generator.noise.target(latents, noise, level)
    torch.testing.assert_close(target, canonical(case["target"]), atol=1e-6, rtol=0)
    clean = generator.noise.clean(canonical(case["model_output"]), noisy, level)
    torch.testing.assert_close(clean, canonical(case["x0_hat"]), atol=2e-6, rtol=0)


def test_text(golden):
    generator, case, info = golden
    prompts = info["prompts"]
    ids = generator.tokenize(prompts)
    longest = case["input_ids"].shape[1]
    assert torch.equal(ids[:, :longest], case["input_ids"])
    told = generator.encode_prompts(prompts)
    assert told.text.shape[:2] == (2, 512)
    assert torch.equal(told["mask"][:, :longest], case["attention_mask"].bool())
    assert not told["mask"][:, longest:].any()
    torch.testing.assert_close(told.text[:, :longest], case["prompt_embeds_head"], atol=1e-4, rtol=0)
    assert not told.text[~told["mask"]].any()
    negative = generator.encode_prompts([info["negative_prompt"]] * 2)
    head = case["negative_prompt_embeds_head"]
    torch.testing.assert_close(negative.text[:, : head.shape[1]], head, atol=1e-4, rtol=0)
    assert not negative.text[:, head.shape[1] :].any()


def test_encoding_and_decoding(golden):
    generator, case, info = golden
    frames = case["frames_u8"].float() / 255
    latents = generator.codec.encode(frames)
    torch.testing.assert_close(latents, canonical(case["latents"]), atol=1e-4, rtol=0)
    assert latents.shape[1:] == generator.latent_shape(info["num_frames"], info["height"], info["width"])
    mean, std = generator.codec.encode_posterior(frames).unbind(1)
    torch.testing.assert_close(mean, canonical(case["latents"]), atol=1e-4, rtol=0)
    sampled = mean + std * canonical(case["posterior_noise"])
    torch.testing.assert_close(sampled, canonical(case["latents_sampled"]), atol=1e-4, rtol=0)
    own = generator.codec.unscale(case["latents"])
    torch.testing.assert_close(own, case["posterior_mean"], atol=1e-4, rtol=0)

    every = 2 if info["height"] == 32 else 4
    decoded = generator.codec.decode(canonical(case["latents"])[:1])[0] * 2 - 1
    thinned = decoded.transpose(0, 1)[:, :, ::every, ::every]
    torch.testing.assert_close(thinned, case["decoded_thinned"], atol=1e-4, rtol=0)


def test_network_loss_and_gradients(golden):
    generator, case, info = golden
    level, told = level_of(generator, info), generator.encode_prompts(info["prompts"])
    generator.network.requires_grad_(True)
    losses, out = denoising_loss(
        generator,
        canonical(case["latents"]),
        canonical(case["noise"]),
        level,
        told,
        taps=range(generator.num_blocks),
    )
    for block, features in out.features.items():
        assert features.shape[1:4] == tuple(info["grid"])
        torch.testing.assert_close(features, case[f"hidden_after_block_{block}"], atol=3e-4, rtol=0)
    torch.testing.assert_close(out.output, canonical(case["model_output"]), atol=3e-4, rtol=0)
    assert losses.tolist() == pytest.approx(info["loss_per_sample"], rel=1e-4)
    losses.mean().backward()
    parameters = dict(generator.network.named_parameters())
    names = [name.removeprefix("grad.") for name in case if name.startswith("grad.")]
    assert len(names) == 5
    for name in names:
        expected = case[f"grad.{name}"]
        torch.testing.assert_close(parameters[name].grad, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)
    generator.network.requires_grad_(False).zero_grad()


def test_one_level_a_token_is_one_a_clip(golden):
    """Wan 2.2 TI2V's pipeline passes a timestep for every token; as text to video all are equal."""
    generator, case, info = golden
    told = generator.encode_prompts(info["prompts"])
    tokens = case["hidden_after_block_0"].flatten(1, 3).shape[1]
    with torch.no_grad():
        [output] = generator.network(
            case["noisy_latents"],
            case["timesteps"][:, None].expand(-1, tokens),
            told.text,
            return_dict=False,
        )
    torch.testing.assert_close(output, case["model_output"], atol=3e-4, rtol=0)


def test_wrong_readings_are_told_apart(golden):
    generator, case, info = golden
    level, told = level_of(generator, info), generator.encode_prompts(info["prompts"])
    noisy = canonical(case["noisy_latents"])
    rounded = level._replace(time=level.time.floor())
    readings = {
        "int_timesteps": (rounded, told),
        "226_tokens": (level, Conditioning({"text": told.text[:, :226]})),
        "negative_prompt": (level, generator.encode_prompts([info["negative_prompt"]] * 2)),
    }
    with torch.no_grad():
        right = generator.denoise(noisy, level, told).output
        for name, (at, conditioning) in readings.items():
            wrong = generator.denoise(noisy, at, conditioning).output
            expected = canonical(case[f"model_output_{name}"])
            torch.testing.assert_close(wrong, expected, atol=3e-4, rtol=0, msg=name)
            assert (wrong - right).abs().max() > 1e-2, name


class Recorder:
    """A guidance that changes nothing and keeps what it sees."""

    mixes = False

    def __init__(self):
        self.steps = []

    def prepare(self, conditioning, **sizes):
        pass

    def after(self, step):
        self.steps.append(step)
        return step.output, {}


@pytest.mark.parametrize("name", ["unipc", "euler"])
def test_sampling(golden, name, monkeypatch):
    generator, case, info = golden
    generator.use_scheduler(name)
    # From the golden noise and against the golden negative prompt, which users do not choose.
    monkeypatch.setattr(generator.pipeline, "prepare_latents", lambda *args, **kwargs: case["sample_init"].clone())
    encode = generator.encode_prompts
    monkeypatch.setattr(
        generator, "encode_prompts", lambda prompts: encode([p or info["negative_prompt"] for p in prompts])
    )
    seen = Recorder()
    made = generator.sample(
        info["prompts"],
        [0, 1],
        num_frames=info["num_frames"],
        height=info["height"],
        width=info["width"],
        steps=4,
        guidance_scale=info["guidance_scale"],
        guidance=seen,
    )
    generator.use_scheduler("unipc")
    expected = info["schedules"][f"{name}_shift{info['flow_shift']:g}_4"]
    for index, step in enumerate(seen.steps):
        assert step.level.sigma.tolist() == pytest.approx([expected["sigmas"][index]] * 2, abs=1e-6)
        key = f"sample_{name}_step_{index}"
        if key in case:
            torch.testing.assert_close(step.noisy, canonical(case[key]), atol=1e-3, rtol=0)
    last = generator.codec.decode(canonical(case[f"sample_{name}_step_4"]))
    shown = torch.from_numpy(made.frames).permute(0, 1, 4, 2, 3).float() / 255
    torch.testing.assert_close(shown, last, atol=1 / 510 + 1e-3, rtol=0)


# -- what is refused, and what is not ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(GOLDEN / "wan21_pipeline", tmp_path / "wan")


def change(file: Path, **entries) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_two_networks_are_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"two networks: transformer for much noise, transformer_2 for little"
    ) as error:
        load_generator(str(GOLDEN / "wan22_a14b_pipeline"))
    assert "Wan 2.2 TI2V-5B" in error.value.expected


def test_another_family_is_refused_and_the_families_are_named(folder):
    change(folder / "model_index.json", _class_name="LTXPipeline")
    with pytest.raises(ModelError, match=r"holds a LTXPipeline, which physcli cannot use") as error:
        load_generator(str(folder))
    assert "families: cogvideox, wan" in error.value.expected


def test_image_to_video_is_refused(folder):
    change(folder / "transformer" / "config.json", in_channels=8)
    with pytest.raises(ModelError, match="an image-to-video model"):
        read_facts(resolve(str(folder)))


def test_a_scheduler_that_does_not_sample_a_flow_is_refused(folder):
    change(folder / "scheduler" / "scheduler_config.json", use_flow_sigmas=False, prediction_type="epsilon")
    with pytest.raises(ModelError, match="does not sample a flow"):
        load_generator(str(folder))


def test_a_boundary_between_networks_does_not_stop_a_folder_of_one(folder):
    change(folder / "model_index.json", boundary_ratio=0.875)
    sizes = {"num_frames": 5, "height": 16, "width": 16, "steps": 2}
    given, plain = (
        load_generator(str(where)).sample(["a ball"], [0], **sizes) for where in (folder, GOLDEN / "wan21_pipeline")
    )
    assert np.array_equal(given.frames, plain.frames)


@pytest.mark.parametrize("num_frames", [8, 12])
def test_lengths_that_the_pipeline_would_cut_in_silence(golden, num_frames):
    generator, _, _ = golden
    with pytest.raises(UsageError, match=f"cannot take clips of {num_frames} frames") as error:
        generator.codec.encode(torch.rand(1, num_frames, 3, 32, 32))
    assert "4k+1" in error.value.expected


# -- the VAE on whole clips ------------------------------------------------------------------------------------------

RESIDUAL = {"is_residual": True, "decoder_base_dim": 4, "patch_size": 2, "in_channels": 12, "out_channels": 12}


@pytest.mark.parametrize("frames", [1, 5, 17])
@pytest.mark.parametrize("more", [{}, RESIDUAL])
def test_a_whole_clip_is_its_pieces(more, frames):
    config = {
        "base_dim": 4,
        "z_dim": 3,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
    }
    with seeded(0):
        vae = AutoencoderKLWan(**{**config, **more})
        pixels = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist
        latents = expected.sample(torch.Generator().manual_seed(0))
        decoded = vae.decode(latents).sample
        torch.testing.assert_close(encode_whole(vae, pixels).parameters, expected.parameters, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(decode_whole(vae, latents), decoded, atol=1e-5, rtol=1e-4)


def slow_convolutions(vae, pixels):
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        decode_whole(vae, encode_whole(vae, pixels).mode())
    return sum(event.count for event in seen.key_averages() if event.key == "aten::slow_conv3d_forward")


def test_a_clip_alone_is_what_it_is_in_company():
    """Not by PyTorch's own kernels, which are slow, and with its gradients."""
    with seeded(0):
        vae = Wan.build().part("vae")
        pixels = torch.rand(2, 3, 5, 16, 16) * 2 - 1
    posterior = encode_whole(vae, pixels[:1])
    decoded = decode_whole(vae, posterior.mode())
    assert slow_convolutions(vae, pixels[:1]) == slow_convolutions(vae, pixels)  # those of one pixel and one frame
    both = encode_whole(vae, pixels)
    torch.testing.assert_close(posterior.parameters, both.parameters[:1])
    torch.testing.assert_close(decoded, decode_whole(vae, both.mode())[:1], atol=1e-5, rtol=1e-4)
    alone, together = (
        torch.autograd.grad(loss, vae.encoder.conv_in.weight)[0]
        for loss in (
            decoded.square().sum(),
            vae.decode(vae.encode(pixels[:1]).latent_dist.mode()).sample.square().sum(),
        )
    )
    torch.testing.assert_close(alone, together, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("clips", [1, 2, 3, 5])
def test_a_few_clips_at_a_time_are_all_at_once(monkeypatch, clips):
    with seeded(0):
        vae = Wan.build().part("vae")
        pixels = torch.rand(clips, 3, 5, 16, 16) * 2 - 1
    seen = []
    monkeypatch.setattr(wan_vae, "_CACHED_PIXELS", 2 * 5 * 16 * 16)
    vae.encoder.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        posterior = encode_whole(vae, pixels)
        expected = vae.encode(pixels).latent_dist
        torch.testing.assert_close(posterior.parameters, expected.parameters, atol=1e-5, rtol=1e-4)
        decoded = vae.decode(expected.mode()).sample
        torch.testing.assert_close(decode_whole(vae, expected.mode()), decoded, atol=1e-5, rtol=1e-4)
    assert seen[: -(-clips // 2)] == [2] * -(-clips // 2)  # a last one alone is doubled


def test_large_clips_go_in_pieces(golden, monkeypatch):
    generator, _, _ = golden
    size = (64, 96)
    frames = torch.rand(1, 5, 3, *size)
    latents = generator.codec.encode(frames)
    decoded = generator.codec.decode(latents)
    called = []
    monkeypatch.setattr(wan, "is_small", lambda *sizes: called.append(sizes) or False)
    torch.testing.assert_close(generator.codec.encode(frames), latents, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(generator.codec.decode(latents), decoded, atol=1e-4, rtol=1e-3)
    assert called == [(1, 5, *size)] * 2


# -- wan-tiny: plain diffusers loads what physcli saves ----------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    generator = Wan.build()
    generator.place("cpu")
    return generator


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "tiny"
    tiny.save(folder)
    return folder


@pytest.mark.parametrize("scheduler", ["unipc", "euler"])
def test_a_saved_folder_is_a_plain_pipeline_and_makes_the_same_video(tiny, saved, scheduler, monkeypatch, recwarn):
    said = []
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda logger, record: said.append(record))
    pipeline = WanPipeline.from_pretrained(saved)
    assert not [record for record in said if record.levelno >= logging.WARNING]
    assert not [warning for warning in recwarn if "deprecat" not in str(warning.message).lower()]
    pipeline.set_progress_bar_config(disable=True)
    if scheduler == "euler":
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    generator = load_generator(str(saved))
    generator.use_scheduler(scheduler)
    prompts = ["A red ball rolls from left to right.", "the blue  box &amp; the cube"]
    made = generator.sample(prompts, [3, 4], num_frames=9, height=32, width=48, steps=3, guidance_scale=4.0)
    stock = pipeline(
        prompts,
        num_frames=9,
        height=32,
        width=48,
        num_inference_steps=3,
        guidance_scale=4.0,
        max_sequence_length=32,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
    ).frames
    assert np.array_equal(made.frames, (stock * 255).round().astype(np.uint8))
    ours = Recorder()
    again = generator.sample(
        prompts, [3, 4], num_frames=9, height=32, width=48, steps=3, guidance_scale=4.0, guidance=ours
    )
    assert np.array_equal(again.frames, made.frames)


def test_the_text_encoder_of_the_other_family_says_the_same():
    own, other = Wan.build(), load_generator("cogvideox-tiny")
    before = {name: value.clone() for name, value in own.part("text_encoder").state_dict().items()}
    own.use_text_encoder(asset_folder("cogvideox-tiny") / "text_encoder")
    assert not torch.equal(before["shared.weight"], own.part("text_encoder").state_dict()["shared.weight"])
    ids = own.pipeline.tokenizer(
        ["A red ball rolls into a yellow box.", "a blue ring"], padding="max_length", max_length=32, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        mine = own.embed(ids)
        theirs = other.pipeline.text_encoder(ids, mine["mask"].long())[0]
    torch.testing.assert_close(mine.text, theirs * mine["mask"][..., None])


def test_a_text_encoder_of_other_sizes_is_refused(saved):
    small = {**architecture("wan-tiny"), "text_encoder": {**architecture("wan-tiny")["text_encoder"], "d_ff": 16}}
    with pytest.raises(ModelError, match=r"other weights than that of wan-tiny, such as encoder\.block\.0"):
        Wan.build(small).use_text_encoder(saved / "text_encoder")


def test_own_facts_go_round(tiny, saved):
    facts = load_generator(str(saved), parts=()).facts
    assert facts == tiny.facts
    assert (facts.max_text_tokens, facts.size, facts.num_frames) == (32, (64, 64), 17)


# -- LoRA --------------------------------------------------------------------------------------------------------

LATENTS = torch.randn(1, 3, 16, 8, 8, generator=torch.Generator().manual_seed(1))


def velocity(generator) -> torch.Tensor:
    with torch.no_grad():
        told = generator.encode_prompts(["a red ball falls"])
        return generator.denoise(LATENTS, generator.noise.at(0.6), told).output


@pytest.fixture(scope="module")
def adapter(saved, tmp_path_factory):
    """A LoRA of rank 2 and alpha 6 with live dropout in training, and what it gives."""
    generator = load_generator(str(saved))
    before = velocity(generator)
    generator.add_lora(rank=2, alpha=6, dropout=0.5, seed=0)
    generator.network.eval()
    assert torch.equal(velocity(generator), before)  # nothing yet
    with torch.no_grad(), seeded(1):
        for name, weight in generator.network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("wan") / "adapter"
    generator.save_lora(folder)
    after = velocity(generator)
    assert (after - before).abs().max() > 1e-2
    return folder, after


def test_a_lora_goes_round_through_plain_diffusers(saved, adapter):
    folder, expected = adapter
    pipeline = WanPipeline.from_pretrained(saved)
    pipeline.load_lora_weights(folder, weight_name=LORA_FILE)
    pipeline.transformer.eval()
    generator = load_generator(str(saved))
    told = generator.encode_prompts(["a red ball falls"])
    with torch.no_grad():
        [output] = pipeline.transformer(LATENTS.transpose(1, 2), torch.tensor([600.0]), told.text, return_dict=False)
    torch.testing.assert_close(output.transpose(1, 2), expected, atol=1e-5, rtol=0)
    file = load_file(folder / LORA_FILE)
    assert all(name.startswith("transformer.blocks.") for name in file)
    assert {name.split(".")[3] for name in file} == {"attn1", "attn2"}

    loaded = load_generator(str(saved), adapter=folder)
    torch.testing.assert_close(velocity(loaded), expected, atol=1e-5, rtol=0)
    loaded.merge_adapter()
    torch.testing.assert_close(velocity(loaded), expected, atol=1e-5, rtol=0)


# diffusers' part of a layer's name → that of Wan's own repository, which ComfyUI and musubi-tuner keep.
OWN_NAMES = (("attn1", "self_attn"), ("attn2", "cross_attn"), ("to_out.0", "o"), ("to_", ""), ("transformer.", ""))


def in_own_names(weights, prefix, *, flat):
    """A LoRA of diffusers' names as others write it, with alpha 6 as a tensor beside every pair."""
    others = {}
    for name, weight in weights.items():
        layer, half = name.removesuffix(".weight").rsplit(".", 1)
        for ours, own in OWN_NAMES:
            layer = layer.replace(ours, own)
        layer = prefix + (layer.replace(".", "_") if flat else layer)
        others[f"{layer}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = weight
        others[f"{layer}.alpha"] = torch.tensor(6.0)
    return others


@pytest.mark.parametrize(("prefix", "flat"), [("diffusion_model.", False), ("lora_unet_", True)])
def test_alphas_beside_the_weights_count(saved, adapter, tmp_path, prefix, flat):
    folder, expected = adapter
    weights = load_file(folder / LORA_FILE)
    if flat:  # musubi-tuner's files have all layers
        generator = load_generator(str(saved))
        for name, layer in generator.network.named_modules():
            if name.startswith("blocks.") and name.endswith(("ffn.net.0.proj", "ffn.net.2")):
                place = "transformer." + name.replace("net.0.proj", "0").replace("net.2", "2")
                weights[f"{place}.lora_A.weight"] = torch.zeros(2, layer.in_features)
                weights[f"{place}.lora_B.weight"] = torch.zeros(layer.out_features, 2)
    file = tmp_path / "theirs.safetensors"
    save_file(in_own_names(weights, prefix, flat=flat), file)
    assert read_adapter(file).names_alpha
    torch.testing.assert_close(velocity(load_generator(str(saved), adapter=file)), expected, atol=1e-5, rtol=0)


def test_alphas_of_another_name_do_not(saved, adapter, tmp_path):
    folder, expected = adapter
    weights = load_file(folder / LORA_FILE)
    file = tmp_path / "theirs.safetensors"
    alphas = {name.replace("lora_A.weight", "lora_alpha"): torch.tensor(6.0) for name in weights if "lora_A" in name}
    save_file(weights | alphas, file)
    assert not read_adapter(file).names_alpha
    save_file(weights, tmp_path / "bare.safetensors")
    as_if, without = (load_generator(str(saved), adapter=path) for path in (file, tmp_path / "bare.safetensors"))
    assert torch.equal(velocity(as_if), velocity(without))
    assert not torch.allclose(velocity(as_if), expected, atol=1e-3)


def test_a_lora_of_a_few_layers_that_musubi_tuner_would_not_write_is_refused(saved, adapter, tmp_path):
    folder, _ = adapter
    file = tmp_path / "theirs.safetensors"
    weights = in_own_names(load_file(folder / LORA_FILE), "lora_unet_", flat=True)
    save_file({name: weight for name, weight in weights.items() if not name.endswith("alpha")}, file)
    with pytest.raises(ModelError, match=r"diffusers looks in it for 'blocks_0_self_attn_q.alpha', and does not find"):
        load_generator(str(saved), adapter=file)


def test_a_loaded_lora_s_dropout_is_off_here_and_in_plain_diffusers(saved, adapter):
    folder, _ = adapter
    loaded = load_generator(str(saved), adapter=folder)
    sizes = {"num_frames": 5, "height": 16, "width": 16, "steps": 2}
    first, second = (loaded.sample(["a ball"], [0], **sizes).frames for _ in range(2))
    assert np.array_equal(first, second)
    with safe_open(folder / LORA_FILE, framework="pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["transformer.lora_alpha"] == 6
    assert metadata["transformer.lora_dropout"] == 0.0  # peft would leave it on for whoever loads the file
    pipeline = WanPipeline.from_pretrained(saved)
    pipeline.load_lora_weights(folder, weight_name=LORA_FILE)
    text = loaded.encode_prompts(["a ball"]).text
    with torch.no_grad():
        outputs = [
            pipeline.transformer(LATENTS.transpose(1, 2), torch.tensor([600.0]), text, return_dict=False)[0]
            for _ in range(2)
        ]
    assert torch.equal(*outputs)


# -- half precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_random_weights_are_cast_as_loading_casts_them(saved, dtype):
    of_folder = load_generator(str(saved), dtype=dtype)
    of_nothing = load_generator("wan-tiny:random", dtype=dtype)
    for part in ("transformer", "vae", "text_encoder"):
        ours, loaded = (
            {name: value.dtype for name, value in (*module.named_parameters(), *module.named_buffers())}
            for module in (of_nothing.part(part), of_folder.part(part))
        )
        assert ours == loaded
    kept = {name for name, weight in of_folder.network.named_parameters() if weight.dtype == torch.float32}
    assert {"scale_shift_table", "condition_embedder.time_embedder.linear_1.weight"} < kept
    assert "blocks.0.attn1.to_q.weight" not in kept
    assert str(of_folder.dtype) == str(of_nothing.dtype) == f"torch.{dtype}"
    assert torch.equal(velocity(of_folder), velocity(of_nothing))


def test_noise_levels_reach_the_network_in_float32_in_half_precision(saved):
    generator = load_generator(str(saved), dtype="bfloat16")
    seen = []
    handle = generator.network.condition_embedder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        generator.denoise(LATENTS, generator.noise.at(0.6012), generator.encode_prompts(["a ball"]))
    handle.remove()
    assert seen[0].dtype == torch.float32
    assert seen[0].tolist() == pytest.approx([601.2])
