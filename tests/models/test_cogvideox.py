"""The CogVideoX adapter against golden numbers of the public training code, and against stock diffusers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from physcli.errors import ModelError, UsageError
from physcli.models import LORA_FILE
from physcli.models.cogvideox import CogVideoX, build_cogvideox
from physcli.models.diffusers_generator import read_own_facts
from physcli.models.features import default_tap
from physcli.models.generator import Conditioning
from physcli.models.tiny import architecture

GOLDEN = Path(__file__).parents[1] / "golden" / "cogvideox_objective"


def make(transformer_config: dict, scheduler_config: dict, device: str = "cpu") -> CogVideoX:
    with torch.device(device):
        transformer = CogVideoXTransformer3DModel(**transformer_config).eval()
    pipeline = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=CogVideoXDPMScheduler(**scheduler_config),
    )
    return CogVideoX(pipeline, name="test")


def told(embeds: torch.Tensor) -> Conditioning:
    """What the network is told of prompts with these embeddings."""
    return Conditioning({"text": embeds})


@pytest.fixture(scope="module", params=["2b", "5b"])
def golden(request):
    info = json.loads((GOLDEN / f"{request.param}.json").read_text())
    weights = load_file(GOLDEN / f"{request.param}_weights.safetensors")
    generator = make(info["transformer_config"], info["scheduler_config"])
    kept = {k: v for k, v in weights.items() if not k.startswith(("projectors.", "downsampler_"))}
    generator.transformer.load_state_dict(kept, strict=True)
    return generator, load_file(GOLDEN / f"{request.param}_case.safetensors"), info


@pytest.fixture(scope="module")
def tiny():
    return CogVideoX(build_cogvideox(), name="cogvideox-tiny", random_init=True)


# -- golden numbers ----------------------------------------------------------------------------------------------


def test_schedule(golden):
    generator, case, _ = golden
    torch.testing.assert_close(generator.noise.alphas_cumprod, case["alphas_cumprod"], atol=1e-12, rtol=0)


def test_network_and_loss(golden):
    generator, case, info = golden
    with torch.no_grad():
        out = generator.denoise(
            case["noisy_latents"],
            generator.noise.of_time(case["timesteps"]),
            told(case["prompt_embeds"]),
            taps=range(generator.num_blocks),
        )
    for block, features in out.features.items():
        assert features.shape == (2, 3, 4, 6, 32)
        torch.testing.assert_close(features.flatten(1, 3), case[f"hidden_after_block_{block + 1}"], atol=5e-4, rtol=0)
    torch.testing.assert_close(out.output, case["v_pred"], atol=5e-4, rtol=0)
    level = generator.noise.of_time(case["timesteps"])
    clean = generator.noise.clean(out.output, case["noisy_latents"], level)
    torch.testing.assert_close(clean, case["x0_estimate"], atol=5e-4, rtol=0)
    loss = torch.nn.functional.mse_loss(out.output, generator.noise.target(case["x0"], case["noise"], level))
    assert loss.item() == pytest.approx(info["loss"]["official_weighted_x0_f32"], rel=2e-5)


def test_rotary_tables(golden):
    generator, case, _ = golden
    if "rope_cos" not in case:
        assert generator.rotary_embeddings((3, 4, 6)) is None
        return
    for grid_type, suffix in (("slice", ""), ("linspace", "_pipeline"), (None, "_pipeline")):
        cos, sin = generator.rotary_embeddings((3, 4, 6), grid_type)
        torch.testing.assert_close(cos, case[f"rope_cos{suffix}"], atol=1e-6, rtol=0)
        torch.testing.assert_close(sin, case[f"rope_sin{suffix}"], atol=1e-6, rtol=0)
    for frames, rows, columns in [(3, 8, 6), (3, 5, 20), (3, 7, 3), (3, 30, 45), (5, 13, 9)]:
        stock = generator.pipeline._prepare_rotary_positional_embeddings(
            rows * 16, columns * 16, frames, torch.device("cpu")
        )
        ours = generator.rotary_embeddings((frames, rows, columns))
        assert torch.equal(ours[0], stock[0])
        assert torch.equal(ours[1], stock[1])
        # The training code's table goes on beyond the native grid too.
        cos = generator.rotary_embeddings((frames, max(rows, 4), max(columns, 6)), "slice")[0]
        inside = cos.unflatten(0, (frames, max(rows, 4), max(columns, 6)))[:3, :4, :6]
        torch.testing.assert_close(inside.flatten(0, 2), case["rope_cos"], atol=1e-6, rtol=0)


def test_the_rotary_grid_can_be_chosen(golden):
    generator, case, _ = golden
    if "rope_cos" not in case:
        with pytest.raises(UsageError, match=r"rope_grid_type=slice .* a cogvideox whose positions leave no choice"):
            generator.use_rope_grid("slice")
        return
    usual, grid = generator.rope_grid_type, (3, 8, 6)  # the native one is 4x6, where both are the same
    before = generator.rotary_embeddings(grid)[0]
    generator.use_rope_grid("slice")
    inside = generator.rotary_embeddings(grid)[0].unflatten(0, grid)[:, :4]
    torch.testing.assert_close(inside.flatten(0, 2), case["rope_cos"], atol=1e-6, rtol=0)
    generator.use_rope_grid(usual)
    assert torch.equal(generator.rotary_embeddings(grid)[0], before)
    assert (before.unflatten(0, grid)[:, :4] - inside).abs().max() > 0.1


# -- sizes -------------------------------------------------------------------------------------------------------


def test_full_scale_sizes_without_weights():
    info = json.loads((GOLDEN / "2b.json").read_text())
    two_b = make({}, info["scheduler_config"], device="meta")  # diffusers' defaults are CogVideoX-2B
    assert (two_b.num_blocks, two_b.hidden_size, two_b.facts.latent_channels) == (30, 1920, 16)
    assert (two_b.facts.num_frames, two_b.facts.size) == (49, (480, 720))
    assert two_b.token_grid(49, 480, 720) == (13, 30, 45)
    assert default_tap(two_b.num_blocks) == 17
    version_1_5 = {"patch_size_t": 2, "sample_height": 300, "sample_width": 300, "sample_frames": 81, "num_layers": 1}
    one_five = make(version_1_5 | {"use_rotary_positional_embeddings": True}, info["scheduler_config"], "meta")
    assert one_five.facts.size == (768, 1360)
    assert one_five.token_grid(81, *one_five.facts.size) == (11, 48, 85)
    assert sum(p.numel() for p in two_b.transformer.parameters()) == pytest.approx(1.69e9, rel=0.01)


def test_sizes_that_do_not_fit(tiny):
    with pytest.raises(UsageError, match=r"(?s)clips of 16 frames.*4k\+1 frames, for instance 13 or 17"):
        tiny.token_grid(16, 64, 64)
    with pytest.raises(UsageError, match=r"(?s)frames of 64x60 .*multiples of 8"):
        tiny.token_grid(17, 64, 60)
    with pytest.raises(UsageError, match=r"(?s)cannot make clips of 13 frames.*8k\+1 frames, for instance 9 or 17"):
        tiny.codec.decode(torch.zeros(1, 4, 8, 16, 16))
    level = tiny.noise.of_time(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"must be \[B, F, 8, H, W\]"):
        tiny.denoise(torch.zeros(1, 8, 5, 16, 16), level, told(torch.zeros(1, 32, 128)))
    with pytest.raises(ValueError, match="must have 32 tokens, got 31"):
        tiny.denoise(torch.zeros(1, 5, 8, 16, 16), level, told(torch.zeros(1, 31, 128)))


# -- pixels and prompts against stock diffusers ------------------------------------------------------------------


def test_prompts(tiny):
    prompts = ["A red ball rolls towards a yellow box.", "", "ball " * 40]
    embeds = tiny.encode_prompts(prompts).text
    assert embeds.shape == (3, 32, 128)
    assert tiny.prompt_lengths(prompts) == [10, 1, 41]  # each with its end token
    torch.testing.assert_close(embeds[1:2], tiny.encode_prompts([""]).text, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        embeds[2:], tiny.encode_prompts(["ball " * 31]).text, atol=1e-5, rtol=0
    )  # cut to 32 tokens
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (embeds[one] - embeds[other]).abs().max() > 0.1


# -- the network -------------------------------------------------------------------------------------------------


def test_features_only_stops_early_and_equals_a_full_pass(tiny):
    latents, embeds = torch.randn(2, 5, 8, 16, 16), torch.randn(1, 32, 128)
    level = tiny.noise.of_time(torch.tensor([100, 900]))
    calls = [0] * tiny.num_blocks
    handles = []
    for index, block in enumerate(tiny.transformer.transformer_blocks):

        def count(*_, index: int = index) -> None:
            calls[index] += 1

        handles.append(block.register_forward_hook(count))
    with torch.no_grad():
        full = tiny.denoise(latents, level, told(embeds), taps=[3, 1])
        assert calls == [1] * 6
        short = tiny.denoise(latents, level, told(embeds), taps=[3, 1], features_only=True)
    assert calls == [2, 2, 2, 2, 1, 1]
    assert short.output is None
    assert list(short.features) == [1, 3]
    for block in (1, 3):
        assert torch.equal(short.features[block], full.features[block])
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("size", [(16, 16, 17), (8, 24, 9)])
def test_native_and_other_sizes_are_as_diffusers_runs_them(tiny, size):
    height, width, num_frames = size
    latents = torch.randn(1, (num_frames - 1) // 4 + 1, 8, height, width)
    embeds, timesteps = torch.randn(1, 32, 128), torch.tensor([300])
    with torch.no_grad():
        stock = tiny.transformer(latents, embeds, timesteps, return_dict=False)[0]
        out = tiny.denoise(latents, tiny.noise.of_time(timesteps), told(embeds), taps=[5])
    assert torch.equal(out.output, stock)
    assert out.features[5].shape[1:4] == tiny.token_grid(num_frames, height * 4, width * 4)


@pytest.fixture(scope="module")
def version_1_5():
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {
        "num_layers": 2,
        "patch_size_t": 2,
        "ofs_embed_dim": 128,  # must equal time_embed_dim
        "use_rotary_positional_embeddings": True,
        "patch_bias": False,
    }
    return CogVideoX(build_cogvideox(model), name="1.5")


@pytest.mark.parametrize(
    ("version", "num_frames", "expected"),
    [("tiny", 13, 4), ("tiny", 45, 12), ("version_1_5", 13, 2), ("version_1_5", 17, 3), ("version_1_5", 45, 6)],
)
def test_token_frames_can_be_told_before_encoding(version, num_frames, expected, request):
    generator = request.getfixturevalue(version)
    grid = generator.token_grid(num_frames, *generator.facts.size)
    assert grid == (expected, 8, 8)
    latents = generator.codec.encode(torch.rand(1, num_frames, 3, *generator.facts.size))
    with torch.no_grad():
        level = generator.noise.of_time(torch.tensor([300]))
        out = generator.denoise(latents, level, told(torch.zeros(1, 32, 128)), taps=[1], features_only=True)
    assert out.features[1].shape == (1, *grid, 192)


def test_version_1_5_layout(version_1_5):
    generator = version_1_5
    frames = torch.rand(1, 17, 3, 32, 32)
    latents = generator.codec.encode(frames)
    assert latents.shape[1] == 6  # 5 made even by repeating the first
    assert torch.equal(latents[:, 0], latents[:, 1])
    assert generator.token_grid(17, 32, 32) == (3, 4, 4)
    assert generator.codec.decode(latents, num_frames=17).shape == frames.shape

    prompt, timesteps = generator.encode_prompts(["a red ball"]), torch.tensor([400])
    level = generator.noise.of_time(timesteps)
    with torch.no_grad():
        out = generator.denoise(latents, level, prompt, taps=[0, 1])
        stock = generator.transformer(
            latents,
            prompt.text,
            timesteps,
            ofs=torch.tensor([2.0]),
            image_rotary_emb=generator.pipeline._prepare_rotary_positional_embeddings(
                32, 32, latents.shape[1], torch.device("cpu")
            ),
            return_dict=False,
        )[0]
    assert out.features[0].shape == (1, 3, 4, 4, 192)
    assert out.output.shape == latents.shape
    assert torch.equal(out.output, stock)
    with pytest.raises(ValueError, match="do not divide into patches of 2x2x2"):
        generator.denoise(latents[:, 1:], level, prompt)


def test_image_to_video_and_foreign_schedulers_are_refused():
    info = json.loads((GOLDEN / "2b.json").read_text())
    with pytest.raises(ModelError, match="image-to-video"):
        make(info["transformer_config"] | {"in_channels": 8}, info["scheduler_config"])
    with pytest.raises(ModelError, match="prediction_type='epsilon'"):
        make(info["transformer_config"], info["scheduler_config"] | {"prediction_type": "epsilon"})


# -- training: taps with gradients, LoRA -------------------------------------------------------------------------


@pytest.fixture
def small():
    """Two blocks of 32, fresh for every test."""
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    return CogVideoX(build_cogvideox(model), name="small")


def run(generator, **options):
    """A pass over a fixed input."""
    random = torch.Generator().manual_seed(0)
    latents, embeds = torch.randn(2, 3, 8, 4, 6, generator=random), torch.randn(2, 32, 128, generator=random)
    return generator.denoise(latents, generator.noise.of_time(torch.tensor([100, 900])), told(embeds), **options)


def test_gradients_pass_through_tapped_tokens(small):
    out = run(small, taps=[0, 1])
    for block in (0, 1):
        assert out.features[block].shape == (2, 3, 2, 3, 32)
        assert torch.equal(out.tokens[block], out.features[block].flatten(1, 3))
        [gradient] = torch.autograd.grad(out.output.square().sum(), out.tokens[block], retain_graph=True)
        assert gradient.abs().max() > 0
    with pytest.raises(RuntimeError, match="not have been used"):  # a view of them, off the network's way
        torch.autograd.grad(out.output.sum(), out.features[0])


def test_a_new_lora_changes_nothing(small):
    before = run(small).output
    state = torch.random.get_rng_state()
    small.add_lora(rank=2, alpha=8, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(run(small).output, before)
    trained = {name: p for name, p in small.transformer.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 4 * 2  # blocks, targets, A and B
    for name, parameter in trained.items():
        assert any(f".{target}.lora_" in name for target in ("to_q", "to_k", "to_v", "to_out.0"))
        assert parameter.shape == ((2, 32) if "lora_A" in name else (32, 2))
        assert bool(parameter.any()) == ("lora_A" in name)


@pytest.mark.parametrize(("seed", "same"), [(1, True), (2, False)])
def test_a_lora_s_weights_are_of_its_seed(seed, same):
    weights = []
    for number, one in enumerate((1, seed)):
        torch.manual_seed(number)  # is nothing to it
        model = architecture("cogvideox-tiny")
        model["transformer"] |= {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 32}
        generator = CogVideoX(build_cogvideox(model), name="small")
        generator.add_lora(rank=2, alpha=2, seed=one)
        weights.append(
            dict(generator.transformer.named_parameters())["transformer_blocks.0.attn1.to_q.lora_A.default.weight"]
        )
    assert torch.equal(*weights) == same


def test_a_lora_of_a_half_precision_model_is_float32(small):
    small.transformer.to(torch.bfloat16)
    small.add_lora(rank=2, alpha=2)
    for name, parameter in small.transformer.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name


def test_lora_targets(small):
    small.add_lora(rank=2, alpha=2, targets=["ff.net.2", "proj"])
    trained = {name for name, p in small.transformer.named_parameters() if p.requires_grad}
    assert {name.partition(".lora_")[0] for name in trained} == {
        f"transformer_blocks.{block}.ff.net.{layer}" for block in (0, 1) for layer in ("0.proj", "2")
    }


@pytest.mark.parametrize("targets", [["q"], ["to_q", "to_x"], ["norm_q"], ["TO_Q"], ["patch_embed.proj"]])
def test_lora_targets_that_are_no_linear_layers(small, targets):
    with pytest.raises(UsageError, match=f"no linear layer of small is called {targets[-1]}") as error:
        small.add_lora(rank=2, alpha=2, targets=targets)
    assert "ends of attn1.to_k, attn1.to_out.0, attn1.to_q, attn1.to_v, ff.net.0.proj, ff.net.2" in error.value.expected
    assert not any("lora_" in name for name, _ in small.transformer.named_parameters())


@pytest.mark.parametrize("targets", [("to_q", "ff.net.2"), ("to_q", "proj")])
def test_a_lora_goes_round(small, tmp_path, targets):
    """`patch_embed.proj` is a convolution: then the layers are named one by one."""
    small.add_lora(rank=2, alpha=6, targets=targets)
    for name, parameter in small.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    small.save_lora(tmp_path / "adapter")
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == [LORA_FILE]
    with safe_open(tmp_path / "adapter" / LORA_FILE, framework="pt") as file:
        facts = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (facts["transformer.r"], facts["transformer.lora_alpha"]) == (2, 6)
    assert ("to_q" in facts["transformer.target_modules"]) == ("proj" not in targets)

    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    other = CogVideoX(build_cogvideox(model), name="other")
    bare = run(other).output
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(run(other).output, run(small).output, rtol=0, atol=1e-5)
    assert (run(other).output - bare).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_layers": 1}, "4 of its 8 weights are of layers that this model does not have"),
        ({"attention_head_dim": 32}, "size mismatch"),
    ],
)
def test_a_lora_for_another_model_is_refused(small, tmp_path, capfd, change, said):
    """Diffusers would only log that half of it finds no layer."""
    small.add_lora(rank=2, alpha=6, targets=("to_q", "ff.net.2"))
    small.save_lora(tmp_path / "adapter")
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16} | change
    other = CogVideoX(build_cogvideox(model), name="other")
    with pytest.raises(ModelError, match=f"does not load onto other: .*{said}"):
        other.load_adapter(tmp_path / "adapter")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda name: name if "lora_A" in name else None, r"it has \S+lora_A.weight and no \S+lora_B.weight"),
        (lambda name: name if "lora_B" in name else None, r"it has \S+lora_B.weight and no \S+lora_A.weight"),
        (
            lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
            "diffusers cannot read weights with names such as transformer.*lora_down",
        ),
    ],
    ids=["half", "the other half", "other names"],
)
def test_a_lora_that_is_no_whole_one_of_diffusers_is_refused(small, tmp_path, rename, said):
    small.add_lora(rank=2, alpha=6, targets=("to_q",))
    small.save_lora(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / LORA_FILE)
    renamed = {new: weight for name, weight in weights.items() if (new := rename(name)) is not None}
    save_file(renamed, tmp_path / "adapter.safetensors")
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    other = CogVideoX(build_cogvideox(model), name="other")
    with pytest.raises(ModelError, match=f"does not load onto other: {said}"):
        other.load_adapter(tmp_path / "adapter.safetensors")


# -- the guidance scale ------------------------------------------------------------------------------------------


def test_the_guidance_scale_goes_round(small, tmp_path):
    assert small.guidance_scale == 6
    small.save(tmp_path / "usual")
    assert not (tmp_path / "usual" / "physcli.json").exists()
    assert CogVideoX.from_pretrained(tmp_path / "usual").guidance_scale == 6
    small.guidance_scale = 1.5
    small.save(tmp_path / "own")
    assert json.loads((tmp_path / "own" / "physcli.json").read_text()) == {"guidance_scale": 1.5}
    assert CogVideoX.from_pretrained(tmp_path / "own").guidance_scale == 1.5
    CogVideoXPipeline.from_pretrained(tmp_path / "own")


def test_no_guidance_scale_is_named(small, tmp_path):
    assert [read_own_facts(folder) for folder in (None, tmp_path, tmp_path / "none")] == [{}] * 3
    (tmp_path / "physcli.json").write_text("{}")
    assert read_own_facts(tmp_path) == {}
    assert small.guidance_scale == 6
    (tmp_path / "physcli.json").write_text('{"guidance_scale": 0}')
    assert read_own_facts(tmp_path) == {"guidance_scale": 0}
    assert CogVideoX(small.pipeline, name="own", own=read_own_facts(tmp_path)).guidance_scale == 0


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[1]", b"3", b"\xff", b'{"guidance_scale": null}', b'{"guidance_scale": "much"}'),
        *(b'{"guidance_scale": [2]}', b'{"guidance_scale": NaN}', b'{"guidance_scale": Infinity}'),
        *(b'{"guidance_scale": -1}', b'{"guidance_scale": true}', b'{"guidance_scale": 0, "more": 1}'),
        *(b'{"num_frames": 16.5}', b'{"num_frames": 0}', b'{"frame_rate_hz": 0}', b'{"max_text_tokens": -1}'),
        *(b'{"size": 64}', b'{"size": [64]}', b'{"size": [64, 0]}', b'{"size": [64, 64.5]}'),
    ],
)
def test_broken_facts_of_its_own(tmp_path, content):
    (tmp_path / "physcli.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"physcli\.json"):
        read_own_facts(tmp_path)
    if content.startswith(b'{"'):
        with pytest.raises(ModelError, match=r"physcli\.json: \w+ is ") as error:
            read_own_facts(tmp_path)
        assert '"guidance_scale" and "frame_rate_hz" (numbers)' in error.value.expected


def test_facts_of_its_own_go_round(small, tmp_path):
    """What a folder says beside its configs: its size, frames, rate."""
    own = {"num_frames": 9, "frame_rate_hz": 20.0, "size": [32, 48]}
    generator = CogVideoX(small.pipeline, name="own", own=own)
    assert (generator.facts.num_frames, generator.facts.frame_rate_hz, generator.facts.size) == (9, 20, (32, 48))
    generator.save(tmp_path / "own")
    assert json.loads((tmp_path / "own" / "physcli.json").read_text()) == own
    assert CogVideoX.facts_of(tmp_path / "own", "again") == generator.facts
    assert CogVideoX.from_pretrained(tmp_path / "own").facts == generator.facts
