"""The Wan adapter against golden numbers of diffusers, and against the stock pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from physcli.models.generator import Conditioning, denoising_loss
from physcli.models.loading import load_generator

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
