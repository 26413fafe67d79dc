"""Wan through the tasks: every method trains it, its cards say what it is, and its full size can be timed."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from physcli.errors import UsageError
from physcli.guidance.lamo import check_field, read_field
from physcli.hashing import settings_hash
from physcli.models import LORA_FILE
from physcli.models.device import quiet_libraries
from physcli.models.loading import load, load_generator
from physcli.models.tiny import architecture
from physcli.models.wan import Wan
from physcli.recipe import Alignment, LayerSync, MoAlign, list_recipes, read_recipe
from physcli.tasks.bench import full_size
from physcli.tasks.bench.finetune import recipes_for
from physcli.tasks.bench.full_size import bench_full_size, build_random
from physcli.tasks.finetune import finetune
from physcli.tasks.training.request import FinetuneRequest

pytestmark = pytest.mark.usefixtures("no_pictures")

WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
METHODS = (
    "sft",
    "repa",
    "irepa",
    "crepa",
    "videorepa",
    "tsa",
    "m-tsa",
    "moalign",
    "lamo",
    "layersync",
    "motif",
    "critic",
    "videojam",
)
LORA = ("lora.rank=2", "lora.alpha=6", "train.optimizer.lr=0.02")


def small_architecture():
    model = architecture("wan-tiny")
    model["transformer"] |= {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32}
    model["transformer"] |= {"in_channels": 4, "out_channels": 4, "freq_dim": 16, "text_dim": 16}
    model["vae"] |= {"base_dim": 4, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [0.2] * 4}
    model["text_encoder"] |= {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model["facts"]["size"] = [16, 16]
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "wan"
    with quiet_libraries():
        Wan.build(small_architecture(), name="base").save(folder)
    return folder


@pytest.fixture(scope="module")
def run(base, encoder_folder, simulated, session_cache, tmp_path_factory):
    """`run("repa", "key=value", …)`: a run of two steps on the small Wan."""
    out = tmp_path_factory.mktemp("runs")
    teacher = encoder_folder("teacher", 0)

    def go(name, *overrides, steps=2):
        recipe = read_recipe(name)
        method = getattr(recipe, "method", None)
        changes = ["data.limit=4", "train.batch_size=2", "train.schedule.warmup_steps=0"]
        if recipe.trains == "generator":
            changes.append("objective.samples=0")
        if isinstance(method, Alignment):
            changes += [f"method.teacher={teacher}", "method.projector.hidden_dim=20"]
        if isinstance(method, LayerSync):
            changes.append("method.pairs=[[0, 1]]")  # of two blocks
        if isinstance(method, MoAlign):
            changes.append(f"method.motion_projector={go('moalign-motion').path}")
        target = out / f"{name.replace('/', '-')}-{settings_hash({'overrides': overrides, 'steps': steps})}"
        if target.exists():
            return finetune(FinetuneRequest(**given(name, target, changes, overrides, recipe, steps)), resume="latest")
        return finetune(FinetuneRequest(**given(name, target, changes, overrides, recipe, steps)))

    def given(name, target, changes, overrides, recipe, steps):
        return {
            "recipe_name": name,
            "overrides": (*changes, *overrides),
            "model": str(teacher if recipe.trains == "motion-projector" else base),
            "data": str(simulated),
            "steps": steps,
            "device": "cpu",
            "cache_dir": session_cache,
            "out": target,
        }

    return go


def velocity(generator):
    noise = torch.randn(1, 5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return generator.denoise(noise, generator.noise.at(0.6), generator.encode_prompts([""])).output


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_it(run, base, name):
    done = run(name)
    rows = [json.loads(line) for line in (done.path / "steps.jsonl").read_text().splitlines()]
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows)
    assert (
        rows[0].get("denoising", rows[0]["loss"]) == run("sft").steps[0]["loss"]
    )  # the same clips, noise and captions
    plain = WanPipeline.from_pretrained(done.model)
    ours = load(str(done.path), device="cpu")
    before, after = load_generator(str(base)).network.state_dict(), ours.network.state_dict()
    for key, weight in plain.transformer.state_dict().items():
        assert torch.equal(weight, after[key])
    assert not torch.equal(
        ours.network.state_dict()["blocks.0.attn1.to_q.weight"], before["blocks.0.attn1.to_q.weight"]
    )
    card = (done.model / "README.md").read_text()
    assert ("from diffusers import WanPipeline" in card) == (name != "videojam")
    assert ("does not\nsample from it" in card) == (name == "videojam")
    assert "Flow matching: mean squared error of the velocity ε − x0 at uniformly drawn noise levels" in card
    assert name == "videojam" or "reads 32 text tokens, and plain diffusers pads to 512" in card
    assert "CogVideoX" not in card
    assert ("weighted by 1 − σ², which is how physcli reads" in card) == (name == "lamo")


@pytest.mark.parametrize("changes", [(), LORA])
def test_it_learns_from_its_own_videos(run, base, changes):
    rounds = ("method.num_prompts=2", "method.group=2", "method.sample_steps=2", "method.steps_per_round=1")
    scored = ("train.score_every=2", "scoring.videos=2", "scoring.sample_steps=2", "train.mixed_precision=no")
    done = run("nft", *changes, *rounds, *scored)
    assert [row["step"] for row in done.steps if "reward" in row] == [1, 2]
    assert not torch.equal(velocity(load(str(done.path), device="cpu")), velocity(load_generator(str(base))))
    card = (done.model / "README.md").read_text()
    assert "DiffusionNFT (settings: the recipe below): error of x̂0" in card


@pytest.mark.parametrize(
    "name",
    [m if m in ("sft", "lamo") else pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "videojam"],
)
def test_every_method_trains_a_lora(run, base, name):
    done = run(name, *LORA)
    pipeline = WanPipeline.from_pretrained(base)
    pipeline.load_lora_weights(done.model, weight_name=LORA_FILE)
    ours = load(str(done.path), device="cpu")
    stock = load_generator(str(base))
    assert not torch.equal(velocity(ours), velocity(stock))
    text = ours.encode_prompts([""]).text
    noise = torch.randn(1, 5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        [output] = pipeline.transformer(noise.transpose(1, 2), torch.tensor([600.0]), text, return_dict=False)
    torch.testing.assert_close(output.transpose(1, 2), velocity(ours), atol=1e-5, rtol=0)
    assert "load_lora_weights" in (done.model / "README.md").read_text()


def test_videojam_with_a_lora_leaves_a_whole_model(run, base):
    """A LoRA file has no place for new channels: it is merged, and the layers at the ends were trained whole."""
    done = run("videojam", *LORA)
    assert done.model.name == "model"
    ours, before = load(str(done.path), device="cpu"), load_generator(str(base))
    assert ours.facts.motion_channels == 8
    weights, old = ours.network.state_dict(), before.network.state_dict()
    assert weights.keys() == old.keys()
    assert weights["patch_embedding.weight"][:, 4:].abs().max() > 0
    assert weights["proj_out.weight"].reshape(4, 12, -1)[:, 4:].abs().max() > 0
    trained = {key for key in old if weights[key].shape != old[key].shape or not torch.equal(weights[key], old[key])}
    assert {key.rpartition(".")[0] for key in trained} == {
        *("patch_embedding", "proj_out"),
        *(f"blocks.{n}.attn{k}.{to}" for n in range(2) for k in (1, 2) for to in ("to_q", "to_k", "to_v", "to_out.0")),
    }
    assert not torch.equal(velocity(ours), velocity(before))


def test_losses_fall(run):
    rows = run(
        "sft", "train.optimizer.lr=0.01", "train.schedule.name=constant", "objective.strides=[1]", steps=30
    ).steps
    first, last = (sum(row["loss"] for row in part) for part in (rows[:6], rows[-6:]))
    assert last < 0.9 * first


def test_a_motion_field_of_its_latents(run, base):
    done = run("lamo-field", "objective.hidden=16", "objective.num_blocks=1")
    field = read_field(done.model)
    check_field(field, load_generator(str(base)), "it")
    other = Wan.build(small_architecture() | {"vae": small_architecture()["vae"] | {"latents_std": [0.3] * 4}})
    with pytest.raises(UsageError, match=r"latent space channels \w+ for channels"):
        check_field(field, other, "it")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["objective.noise=logit-normal", "objective.noise_shift=3"],
            "σ = sigmoid(n), n normal with mean 0",
        ),
        (["objective.noise=sigmas", "objective.noise_shift=5"], "uniformly drawn noise levels, shifted by 5"),
    ],
)
def test_how_noise_was_drawn_is_in_the_card(run, changes, said):
    done = run("sft", *changes)
    assert said in (done.model / "README.md").read_text()


@pytest.mark.slow
def test_the_recipe_of_its_vae(few, session_cache, tmp_path):
    done = finetune(
        FinetuneRequest(
            recipe_name="pretrain/wan-vae-tiny",
            overrides=("data.limit=4", "train.batch_size=2", "objective.crop=16", "objective.frames=9"),
            data=str(few),
            steps=2,
            device="cpu",
            cache_dir=session_cache,
            out=tmp_path / "vae",
        )
    )
    vae = AutoencoderKLWan.from_pretrained(done.model)
    assert len(vae.config.latents_mean) == len(vae.config.latents_std) == 16
    assert vae.config.latents_mean != architecture("wan-tiny")["vae"]["latents_mean"]
    assert "AutoencoderKLWan.from_pretrained" in (done.model / "README.md").read_text()
    generator = Wan.build()
    generator.place("cpu")
    generator.use_vae(done.model)
    assert generator.codec.moments()[0].flatten().tolist() == pytest.approx(vae.config.latents_mean, abs=1e-6)


def test_a_decoder_alone_is_trained_on_latents_that_stay(run, base):
    changes = ("init=pretrained", "save_dtype=float32", "objective.crop=16", "objective.frames=9")
    done = run("pretrain/wan-vae-tiny", *changes, "objective.freeze_encoder=true", "train.optimizer.name=muon")
    before, after = (AutoencoderKLWan.from_pretrained(folder) for folder in (base / "vae", done.model))
    assert after.config.latents_std == before.config.latents_std
    for name, weight in before.state_dict().items():
        frozen = name.startswith(("encoder.", "quant_conv."))
        if frozen or name.endswith("conv_out.weight"):
            assert torch.equal(weight, after.state_dict()[name]) == frozen, name


# -- the published size ------------------------------------------------------------------------------------------

SMALL = {"num_layers": 18, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "freq_dim": 16}
SMALL |= {"text_dim": 16}


def test_every_method_has_a_recipe():
    assert set(recipes_for(WAN)) == set(METHODS)
    assert {n for n in list_recipes() if n.endswith("-lora")} >= {f"{m}-wan-1.3b-lora" for m in ("sft", "lamo")}
    lora = 'lora={"rank": 32, "alpha": 32, "base_dtype": "bfloat16"}'
    for recipe in recipes_for(WAN, overrides=[lora, "train.optimizer.lr=1e-4"]).values():
        assert recipe.lora.rank == recipe.lora.alpha == 32


def test_the_published_configurations():
    counts = {}
    for name in ("wan-1.3b", "wan-14b"):
        checkpoint = full_size.CHECKPOINTS[name]
        with torch.device("meta"):
            counts[name] = sum(p.numel() for p in checkpoint.network(**checkpoint.config).parameters())
    assert {name: round(count / 1e9, 2) for name, count in counts.items()} == {"wan-1.3b": 1.42, "wan-14b": 14.29}


@pytest.fixture
def narrow(monkeypatch):
    """The published checkpoints, 32 features wide and 18 blocks deep."""
    for name in ("wan-1.3b", "wan-14b"):
        checkpoint = full_size.CHECKPOINTS[name]
        config = checkpoint.config | SMALL
        monkeypatch.setitem(full_size.CHECKPOINTS, name, dataclasses.replace(checkpoint, config=config))


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("wan-1.3b", ["lamo"]),
        pytest.param("wan-1.3b", [m for m in METHODS if m not in ("sft", "lamo")], marks=pytest.mark.slow),
        pytest.param("wan-14b", ["lamo"], marks=pytest.mark.slow),
    ],
)
def test_a_step_of_the_full_size(narrow, name, methods):
    """Beside `sft`, which always runs."""
    overrides = ["objective.frames=9", "train.batch_size=1", "train.accumulate=1"]
    rows = bench_full_size(name, methods=methods, overrides=overrides, height=64, width=96, rounds=1, device="cpu")
    assert list(dict.fromkeys(row["group"] for row in rows)) == [*methods, "sft", "all"]
    assert all(row["value"] > 0 for row in rows)
    assert "random weights" in rows[0]["subject"]


def test_random_weights_of_the_full_size(narrow):
    generator = build_random(full_size.CHECKPOINTS["wan-1.3b"], dtype=torch.bfloat16, device=torch.device("cpu"))
    weights = dict(generator.network.named_parameters())
    assert all(weight.isfinite().all() for weight in weights.values())
    assert weights["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert weights["scale_shift_table"].dtype == torch.float32
    assert weights["blocks.0.attn1.norm_q.weight"].eq(1).all()
    assert (generator.facts.size, generator.facts.num_frames) == ((480, 832), 81)
    assert generator.token_grid(81, 480, 832) == (21, 30, 52)
