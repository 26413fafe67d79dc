"""A family that physcli does not have, through the interface: LTX-Video against golden numbers of diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from physcli.errors import ModelError, UsageError
from physcli.models import GENERATORS
from physcli.models.generator import Conditioning, denoising_loss
from physcli.models.loading import load
from physcli.models.names import fingerprint, read_facts, resolve

GOLDEN = Path(__file__).parents[1] / "golden" / "ltx_objective"


def load_own(folder, **options):
    return load(f"ltx:LTX@{folder}", device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module", autouse=True)
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module", params=["ltx090", "ltx095"])
def case(request, importable):
    return request.param


@pytest.fixture(scope="module")
def generator(case):
    return load_own(GOLDEN / f"{case}_pipeline")


@pytest.fixture(scope="module")
def numbers(case):
    return load_file(GOLDEN / f"{case}.safetensors")


@pytest.fixture(scope="module")
def info(case):
    return json.loads((GOLDEN / f"{case}.json").read_text())


@pytest.fixture(scope="module")
def told(generator, info):
    return generator.encode_prompts(info["prompts"]).at_rates([info["frame_rate"]])


@pytest.fixture(scope="module")
def against(generator, info):
    return generator.encode_prompts([info["negative_prompt"]] * 2).at_rates([info["frame_rate"]])


def close(made, expected, atol):
    torch.testing.assert_close(made, expected, atol=atol, rtol=0)


def ours(tensor):
    """[B, C, F, h, w] of diffusers → [B, F, C, h, w]."""
    return tensor.transpose(1, 2)


# -- golden numbers ----------------------------------------------------------------------------------------------


def test_latents(generator, numbers):
    frames = numbers["frames_u8"].float() / 255
    close(generator.codec.encode(frames), ours(numbers["latents"]), 1e-4)
    mean, std = generator.codec.encode_posterior(frames).unbind(1)
    close(mean, ours(numbers["latents"]), 1e-4)
    close(mean + std * ours(numbers["posterior_noise"]), ours(numbers["latents_sampled"]), 1e-4)


def test_text(told, against, numbers):
    for conditioning, name in ((told, "prompt"), (against, "negative_prompt")):
        close(conditioning.text, numbers[f"{name}_embeds"], 1e-4)
        assert torch.equal(conditioning["mask"], numbers[f"{name}_attention_mask"])


def test_noising_network_and_loss(generator, numbers, info, told):
    clean, noise = ours(numbers["latents"]), ours(numbers["noise"])
    level = generator.noise.of_time(numbers["timesteps"])
    close(level.sigma.float(), torch.tensor(info["sigmas"]), 1e-6)
    noisy = generator.noise.add_noise(clean, noise, level)
    close(noisy, ours(numbers["noisy_latents"]), 1e-6)
    close(generator.noise.target(clean, noise, level), ours(numbers["target"]), 1e-6)
    generator.network.requires_grad_(True)
    losses, denoised = denoising_loss(generator, clean, noise, level, told, taps=range(generator.num_blocks))
    assert denoised.features.keys() == {
        int(name.rpartition("_")[2]) for name in numbers if name.startswith("hidden_after_block_")
    }
    for block, features in denoised.features.items():
        close(features, numbers[f"hidden_after_block_{block}"], 3e-4)
    close(denoised.output, ours(numbers["model_output"]), 3e-4)
    close(generator.noise.clean(denoised.output, noisy, level), ours(numbers["x0_hat"]), 3e-4)
    assert losses.tolist() == pytest.approx(info["loss_per_sample"], rel=1e-4)
    losses.mean().backward()
    for name in (name for name in numbers if name.startswith("grad.")):
        made = generator.transformer.get_parameter(name.removeprefix("grad.")).grad
        scale = numbers[name].abs().max().item()
        torch.testing.assert_close(made, numbers[name], rtol=1e-3, atol=1e-3 * scale)
    generator.network.zero_grad()
    generator.network.requires_grad_(False)


@torch.no_grad()
def test_frame_rate_and_mask_are_told(generator, numbers, told):
    noisy, level = ours(numbers["noisy_latents"]), generator.noise.of_time(numbers["timesteps"])

    def packed(conditioning):
        return generator._as_pipeline(generator.denoise(noisy, level, conditioning).output)

    close(packed(told.at_rates([8])), numbers["model_output_packed_at_8_fps"], 3e-4)
    mixed = packed(told.at_rates([told["frame_rate_hz"][0].item(), 8]))
    close(mixed[:1], numbers["model_output_packed"][:1], 3e-4)
    close(mixed[1:], numbers["model_output_packed_at_8_fps"][1:], 3e-4)
    own = Conditioning({"text": told.text, "mask": told["mask"]})  # 25 frames a second where nobody knows better
    assert torch.equal(packed(own), packed(told.at_rates([25])))
    unmasked = packed(Conditioning({**told, "mask": torch.ones_like(told["mask"])}))
    assert (unmasked - numbers["model_output_packed"]).abs().max() > 0.02


@torch.no_grad()
def test_sampling(generator, numbers, info, told, against):
    """Step by step with `denoise`, and by the pipeline with the arguments that `sample` gives it."""
    scheduler, shape = generator.pipeline.scheduler, generator.latent_shape(9, 64, 64)
    steps = []
    generator.pipeline.set_progress_bar_config(disable=True)
    generator.pipeline(
        **generator._prompt_arguments(told, against),
        latents=numbers["sample_init_packed"],
        num_frames=9,
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=info["guidance_scale"],
        callback_on_step_end=lambda pipeline, step, timestep, tensors: steps.append(tensors["latents"]) or {},
        output_type="latent",
    )
    noisy = generator._canonical(numbers["sample_init_packed"], shape)
    sigmas = np.linspace(1.0, 1 / 4, 4)
    tokens = noisy[0, :, 0].numel()
    mu = 0.95 + (tokens - 1024) * (2.05 - 0.95) / (4096 - 1024)
    scheduler.set_timesteps(sigmas=sigmas, **({"mu": mu} if scheduler.config.use_dynamic_shifting else {}))
    for index, timestep in enumerate(scheduler.timesteps):
        close(steps[index], numbers[f"sample_step_{index + 1}_packed"], 1e-3)
        level = generator.noise.of_step(scheduler, index, timestep).expand(2)
        assert level.time[0].item() == pytest.approx(info["calls"][index][0], abs=1e-3)
        without, with_prompt = (generator.denoise(noisy, level, side).output for side in (against, told))
        output = without + info["guidance_scale"] * (with_prompt - without)
        noisy = scheduler.step(output, timestep, noisy, return_dict=False)[0]
        close(generator._as_pipeline(noisy), numbers[f"sample_step_{index + 1}_packed"], 1e-3)


def test_schedules(generator, info, monkeypatch):
    scheduler = generator.pipeline.scheduler
    for name, schedule in info["schedules"].items():
        if name.startswith("dynamic") == scheduler.config.use_dynamic_shifting:
            steps = int(name.rpartition("_")[2])
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=schedule.get("mu"))
            levels = [generator.noise.of_step(scheduler, i, t) for i, t in enumerate(scheduler.timesteps)]
            assert [level.sigma.item() for level in levels] == pytest.approx(schedule["sigmas"][:-1], abs=1e-6)


def test_decoding(generator, numbers, info, monkeypatch):
    if "decode_noise" in numbers:
        monkeypatch.setattr(generator.codec, "decode_noise", lambda shape: numbers["decode_noise"][0])
    decoded = generator.codec.decode(ours(numbers["latents"])[:1])[0]
    expected = numbers["decoded_thinned"].transpose(0, 1).add(1).div(2).clamp(0, 1)
    close(decoded[:, :, ::4, ::4], expected, 5e-4)


# -- the interface -----------------------------------------------------------------------------------------------


def test_statistics_are_in_the_weights(generator, case):
    """Nobody has to read the VAE first: its space, and scaling, ask for it themselves."""
    lazy = load_own(GOLDEN / f"{case}_pipeline", parts=())
    assert lazy.vae.latents_std.tolist() == [1] * 8
    assert lazy.codec.space == generator.codec.space
    assert lazy.vae.latents_std.tolist() != [1] * 8
    lazy.release("vae")
    latents = torch.randn(1, 8, 2, 2, 2)
    close(lazy.codec.unscale(lazy.codec.scale(latents)), latents, 1e-5)
    before = lazy.codec.space
    lazy.codec.register_statistics([0.5] * 8, [2.0] * 8)
    assert lazy.codec.space != before
    close(lazy.codec.scale(torch.full((1, 8, 1, 1, 1), 2.5)), torch.ones(1, 8, 1, 1, 1), 1e-6)


def test_facts_and_lengths(generator, case, info):
    facts = read_facts(resolve(f"ltx:LTX@{GOLDEN}/{case}_pipeline"))
    assert facts == generator.facts
    assert (facts.size, facts.num_frames, facts.frame_rate_hz, facts.max_text_tokens) == ((512, 704), 161, 25, 128)
    assert generator.token_grid(9, 64, 64) == tuple(info["grid"])
    assert [generator.codec.usable_frames(count) for count in (8, 9, 45, 13)] == [1, 9, 41, 9]
    with pytest.raises(UsageError, match=r"(?s)clips of 16 frames.*8k\+1 frames, for instance 9 or 17"):
        generator.token_grid(16, 64, 64)
    with pytest.raises(UsageError, match=r"(?s)frames of 64x60 .*multiples of 32"):
        generator.token_grid(9, 64, 60)
    assert generator.takes_frame_rates
    assert len(fingerprint(resolve(f"ltx:LTX@{GOLDEN}/{case}_pipeline"))) == 64


def test_sample_tells_the_frame_rate(generator):
    size = {"num_frames": 9, "height": 64, "width": 64, "steps": 2}
    prompts = ["a red ball", "a blue box"]
    made = {
        rates: generator.sample(prompts, [1, 2], frame_rates_hz=rates, **size).frames
        for rates in (None, (25.0,), (8.0, 8.0), (25.0, 8.0))
    }
    assert np.array_equal(made[None], made[25.0,])
    assert not np.array_equal(made[25.0,], made[8.0, 8.0])
    assert np.abs(made[25.0, 8.0][0].astype(int) - made[25.0,][0]).max() <= 1
    assert np.abs(made[25.0, 8.0][1].astype(int) - made[8.0, 8.0][1]).max() <= 1


def test_without_the_class_the_folder_is_refused(tmp_path):
    folder = shutil.copytree(GOLDEN / "ltx090_pipeline", tmp_path / "ltx")
    with pytest.raises(ModelError, match="holds a LTXPipeline, which physcli cannot use") as caught:
        load(str(folder))
    assert f"families: {', '.join(GENERATORS)}" in caught.value.expected
    assert "MODULE:CLASS@FOLDER" in caught.value.fix


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere:LTX", "No module named 'nowhere'"),
        ("ltx:LTY", "has no attribute 'LTY'"),
        ("ltx:LTXCodec", "is no generator"),
    ],
)
def test_a_class_that_is_not_there(given, message):
    with pytest.raises(UsageError, match=message):
        load(f"{given}@{GOLDEN}/ltx090_pipeline")
