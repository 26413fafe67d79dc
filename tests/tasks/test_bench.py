"""`bench finetune`: which rows there are, on what they stand, and that nothing is timed but what training runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from physcli.errors import UsageError
from physcli.methods.videorepa import trd_loss
from physcli.models.loading import load
from physcli.models.step_cache import CacheSettings
from physcli.recipe import Alignment, list_recipes, read_recipe
from physcli.tasks.bench import finetune, full_size
from physcli.tasks.bench.finetune import bench_finetune, recipes_for
from physcli.tasks.bench.full_size import RandomSteps, bench_full_size, build_random
from physcli.tasks.bench.kernels import bench_kernels, relations_by_copies
from physcli.tasks.bench.sample import bench_sample
from physcli.tasks.bench.timing import table_of

CPU = torch.device("cpu")
SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 18, "text_embed_dim": 16}
SMALL |= {"time_embed_dim": 16, "max_text_seq_length": 4}
METRICS = ("step_over_sft", "measured_over_sft", "average_over_sft", "seconds_per_step", "trained")


@pytest.fixture
def narrow(monkeypatch):
    """CogVideoX's published checkpoints, 32 features wide and 18 blocks deep."""
    for name in ("2b", "5b"):
        checkpoint = full_size.CHECKPOINTS[name]
        small = dataclasses.replace(checkpoint, config=checkpoint.config | SMALL)
        monkeypatch.setitem(full_size.CHECKPOINTS, name, small)


def by_group(rows):
    found = {}
    for row in rows:
        found.setdefault(row["group"], {})[row["metric"]] = row["value"]
    return found


def test_every_recipe_of_a_generator_is_timed():
    names = {n for n in list_recipes() if (r := read_recipe(n)).trains == "generator" and r.init == "pretrained"}
    models = {
        "": "cogvideox-tiny",
        "-2b": "zai-org/CogVideoX-2b",
        "-5b": "zai-org/CogVideoX-5b",
        "-wan-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    }
    timed = {end: set(recipes_for(model)) for end, model in models.items()}
    assert {f"{n}{end}" for end, found in timed.items() for n in found} == {n for n in names if not n.endswith("-lora")}
    tiny, two, wan = timed[""], timed["-2b"], timed["-wan-1.3b"]
    assert wan == two
    assert tiny >= {"sft", "repa", "videorepa", "tsa", "m-tsa", "moalign", "lamo"}
    assert two >= {"sft", "repa", "videorepa", "tsa", "m-tsa", "moalign", "lamo"}


def test_recipes_with_a_method_and_overrides():
    recipes = recipes_for("some/folder", ["repa"], ["train.batch_size=3"])
    assert list(recipes) == ["sft", "repa"]
    assert {(recipe.model, recipe.train.batch_size) for recipe in recipes.values()} == {("some/folder", 3)}
    with pytest.raises(UsageError, match=r"Unknown method: 'videorep'\. Did you mean 'videorepa'") as error:
        recipes_for("cogvideox-tiny", ["videorep"])
    assert "moalign" in error.value.expected
    with pytest.raises(UsageError, match="Unknown method: 'tsa'"):
        recipes_for("zai-org/CogVideoX-5b", ["tsa"])


@pytest.mark.slow
def test_steps_of_the_embedded_default(monkeypatch):
    """Of the trainees that `finetune` builds for the recipes."""
    built, real = [], finetune.build_trainee
    monkeypatch.setattr(finetune, "build_trainee", lambda *arguments: built.append(real(*arguments)) or built[-1])
    rows = bench_finetune(methods=["moalign"], overrides=["train.batch_size=1", "data.limit=2"], rounds=1, device="cpu")
    groups = by_group(rows)
    assert list(groups) == ["moalign", "sft", "all"]
    assert tuple(groups["moalign"]) == METRICS
    values = groups["moalign"]
    expected = values["step_over_sft"] + (values["measured_over_sft"] - values["step_over_sft"]) / 50
    assert values["average_over_sft"] == pytest.approx(expected)
    assert values["trained"] == groups["sft"]["trained"]  # the recipe has no projector
    assert groups["all"]["peak_memory_gb"] > 0.1
    columns, lines = table_of(rows)
    assert len(columns) == len(lines[0]) == 7
    before = load("cogvideox-tiny", device="cpu").transformer.state_dict()
    assert [trainee.recipe.method.name for trainee in built] == ["sft", "moalign"]
    for trainee in built:
        assert not torch.equal(trainee.transformer.state_dict()["proj_out.weight"], before["proj_out.weight"])


def test_the_published_configurations():
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in checkpoint.network(**checkpoint.config).parameters())
            for name, checkpoint in full_size.CHECKPOINTS.items()
        }
    assert {name: round(count / 1e9, 2) for name, count in counts.items()} == {
        "2b": 1.69,
        "5b": 5.57,
        "wan-1.3b": 1.42,
        "wan-14b": 14.29,
    }


@pytest.mark.parametrize("name", ["2b", "5b"])
def test_random_weights(narrow, name):
    generator = build_random(full_size.CHECKPOINTS[name], dtype=torch.bfloat16, device=CPU)
    assert generator.random_init
    assert "random weights" in generator.name
    transformer = generator.transformer
    assert {p.dtype for p in transformer.parameters()} == {torch.bfloat16}
    assert all(p.isfinite().all() for p in transformer.parameters())
    assert transformer.get_parameter("transformer_blocks.0.norm1.norm.weight").eq(1).all()
    assert transformer.get_parameter("proj_out.bias").eq(0).all()
    positions = dict(transformer.named_buffers()).get("patch_embed.pos_embedding")
    assert (positions is None) == (name == "5b")
    if positions is not None:
        plain = full_size.CogVideoXTransformer3DModel(**full_size.CHECKPOINTS[name].config)
        assert torch.equal(positions, plain.patch_embed.pos_embedding.bfloat16())
    assert generator.facts.size == (480, 720)
    assert generator.token_grid(49, 480, 720) == (13, 30, 45)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("2b", ["moalign"]),
        pytest.param("2b", [], marks=pytest.mark.slow),  # all: relations of tokens and large projectors take seconds
        pytest.param("5b", ["lamo"], marks=pytest.mark.slow),
    ],
)
def test_a_step_of_the_full_size(narrow, name, methods):
    """Every method of the large models runs, and what it learns from is what a cache would give."""
    overrides = ["objective.frames=9", "train.batch_size=2", "train.accumulate=1"]
    rows = bench_full_size(name, methods=methods, overrides=overrides, height=64, width=96, rounds=1, device="cpu")
    groups = by_group(rows)
    every = methods or recipes_for("zai-org/CogVideoX-2b")
    assert set(groups) == {*every, "sft", "all"}
    assert {row["subject"] for row in rows} == {f"CogVideoX-{name}, random weights"}
    assert all(row["value"] > 0 for row in rows)


def test_lora_is_float32_and_the_rest_is_left_alone(narrow):
    rows = bench_full_size(
        "2b", methods=["sft"], overrides=["objective.frames=9", "lora={}"], height=64, width=96, rounds=1, device="cpu"
    )
    blocks, width, rank = 18, 32, 128
    assert by_group(rows)["sft"]["trained"] == blocks * 4 * 2 * width * rank


def test_what_a_cache_would_give(narrow):
    """At the published size: 13×30×45 tokens of the generator beside 24×10×15 of the teacher."""
    generator = build_random(full_size.CHECKPOINTS["2b"], dtype=torch.float32, device=CPU)
    shapes = {}
    for name in ("m-tsa", "moalign"):
        recipe = recipes_for("zai-org/CogVideoX-2b", [name])[name]
        assert isinstance(recipe.method, Alignment)
        trainee = RandomSteps(generator, recipe=recipe, height=480, width=720, seed=0)
        batch = trainee.batch([0], 1)
        shapes[name] = {key: list(value.shape) for key, value in batch.items() if isinstance(value, torch.Tensor)}
        if name == "m-tsa":
            assert batch["saliency"].sum(dim=(2, 3)).unique().tolist() == [30]  # a fifth of 150
    common = {"latents": [1, 13, 16, 60, 90], "noise": [1, 13, 16, 60, 90], "time": [1], "told_text": [1, 4, 16]}
    common["method_weight"] = []
    assert shapes["m-tsa"] == common | {"teacher": [1, 24, 10, 15, 768], "saliency": [1, 24, 10, 15]}
    assert shapes["moalign"] == common | {"teacher": [1, 24, 10, 15, 64]}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("3b", {}, "Unknown checkpoint: '3b'"),
        ("2b", {"methods": ["repas"]}, "Unknown method: 'repas'"),
        ("2b", {"dtype": "int8"}, "Unknown dtype: 'int8'"),
        ("2b", {"height": 50}, "cannot take frames of 50x96"),
        ("2b", {"overrides": ["objective.frames=6"]}, "cannot take clips of 6 frames"),
        ("2b", {"overrides": ["objective.frames=5"], "methods": ["lamo"]}, "method.lag is 2"),
    ],
)
def test_what_cannot_be(narrow, name, options, message):
    arguments = {"methods": ["repa"], "overrides": ["objective.frames=9"], "height": 64, "width": 96, "rounds": 1}
    with pytest.raises(UsageError, match=message):
        bench_full_size(name, **arguments | {"device": "cpu"} | options)


def test_a_teacher_nobody_described(narrow):
    generator = build_random(full_size.CHECKPOINTS["2b"], dtype=torch.float32, device=CPU)
    for change, message in (("method.teacher=x/y", "Unknown teacher: 'x/y'"), ("method.view.size=null", "size=None")):
        recipe = read_recipe("repa-2b", [change])
        with pytest.raises(UsageError, match=message):
            RandomSteps(generator, recipe=recipe, height=64, width=96, seed=0)


# -- kernels -----------------------------------------------------------------------------------------------------


def test_relations_by_copies_are_trd():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 2, 4, 8, generator=generator) for _ in range(2))
    torch.testing.assert_close(
        relations_by_copies(student, teacher, margin=0.1), trd_loss(student, teacher, margin=0.1)
    )


def test_rows_of_the_kernels():
    rows = bench_kernels(teacher_grid=(2, 3, 4), student_grid=(4, 8, 8), dim=16, rounds=1, device="cpu")
    groups = by_group(rows)
    assert {name: list(values) for name, values in groups.items()} == {
        "2×3×4": ["over_products", "over_copies", "seconds"],
        "4×8×8": ["extra_memory_gb"],
    }
    assert groups["4×8×8"]["extra_memory_gb"] < 1  # of a process of its own, not of this one


def test_peak_memory_follows_what_is_held(start):
    """In a process of its own: this one's peak may be far above what it holds now."""
    code = """
import torch
from physcli.models.device import peak_memory
before = peak_memory(torch.device("cpu"))
held = torch.ones(100_000_000)
during = peak_memory(torch.device("cpu"))
del held
print(before, during, peak_memory(torch.device("cpu")))
"""
    done = start(code).wait()
    assert done.returncode == 0, done.stderr
    before, during, after = map(float, done.stdout.split())
    assert during - before == pytest.approx(400_000_000, rel=0.2)
    assert after == pytest.approx(during, rel=0.01)


def test_sampling_is_timed_beside_diffusers():
    rows = bench_sample(batch_size=1, num_frames=9, size=(32, 32), steps=2, rounds=1)
    values = {row["metric"]: row["value"] for row in rows}
    assert {*values} == {
        *("over_diffusers", "guided_over_plain", "guided_step_over_plain", "seconds_per_step", "seconds_per_video")
    }
    assert all(value > 0 for value in values.values())


def test_caches_and_compiled_blocks_are_timed_in_groups_of_their_own(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compiled.append(block))  # takes half a minute
    caches = [CacheSettings("fbcache", 1e6), CacheSettings("magcache", 0.06)]
    small = {"batch_size": 2, "num_frames": 9, "size": (32, 32), "steps": 4, "rounds": 1}
    rows = bench_sample(**small, guidance=None, caches=caches, compiled=True)
    values = {(row["group"], row["metric"]): row["value"] for row in rows}
    assert {group for group, _ in values} == {"all", "fbcache 1e+06", "magcache 0.06", "compiled"}
    assert not any("guided" in metric for _, metric in values)
    assert values["fbcache 1e+06", "computed_share"] == 1 / 4
    assert values["magcache 0.06", "over_plain"] > 0
    assert values["compiled", "over_plain"] > 0
    assert len(compiled) == 6  # its blocks


def test_a_guidance_that_asks_once_more_is_timed_without_a_bare_pipeline():
    small = {"batch_size": 1, "num_frames": 9, "size": (32, 32), "steps": 2, "rounds": 1}
    values = {row["metric"]: row["value"] for row in bench_sample(**small, guidance="inner")}
    assert {*values} == {"guided_over_plain", "guided_step_over_plain", "seconds_per_step", "seconds_per_video"}
    with pytest.raises(UsageError, match="--motion-field with --guidance cfg-zero"):
        bench_sample(**small, guidance="cfg-zero", motion_field="random")
