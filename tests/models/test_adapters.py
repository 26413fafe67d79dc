"""What a LoRA says of itself, what it leaves unsaid, and by how much it is multiplied."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from physcli.errors import UsageError
from physcli.models import LORA_FILE
from physcli.models.cogvideox import build_cogvideox
from physcli.models.loading import load, load_generator
from physcli.models.names import fingerprint, resolve
from physcli.models.tiny import architecture
from physcli.progress import Reporter
from physcli.recipe import read_recipe
from physcli.tasks.training.build import _generator

ALPHA, RANK = 6, 2


class Heard(Reporter):
    def __init__(self):
        self.said = []

    def warn(self, message):
        self.said.append(message)


def build(folder, seed):
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    pipeline = build_cogvideox(model)
    torch.nn.init.constant_(pipeline.transformer.proj_out.bias, seed)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build(tmp_path_factory.mktemp("models") / "the-base", 0)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """As a training run leaves it."""
    generator = load_generator(str(base), device="cpu")
    generator.add_lora(rank=RANK, alpha=ALPHA, targets=("to_q",))
    for name, weight in generator.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    generator.save_lora(folder)
    return folder


@pytest.fixture
def bare(adapter, tmp_path):
    """The same weights with nothing said of them, as other trainers leave them."""
    folder = tmp_path / "bare"
    folder.mkdir()
    save_file(load_file(adapter / LORA_FILE), folder / LORA_FILE)
    return folder


def loaded(base, adapter, scale=1.0):
    """The generator, and what was said."""
    heard = Heard()
    return load(str(base), adapter=adapter, adapter_scale=scale, device="cpu", reporter=heard), heard.said


def update(generator, base):
    """What is added to the first query projection."""
    generator.merge_adapter()
    name = "transformer_blocks.0.attn1.to_q.weight"
    own = load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")[name]
    return generator.transformer.state_dict()[name] - own


def test_an_adapter_that_says_all_is_loaded_without_a_word(base, adapter):
    assert loaded(base, adapter)[1] == []


def test_a_file_without_alpha_says_so_and_a_scale_gives_it(base, adapter, bare):
    generator, [said] = loaded(base, bare)
    assert f"{LORA_FILE} names no alpha: it is taken for the rank" in said
    assert "multiplied by 1; if it was trained with another, --adapter-scale with alpha / rank gives it." in said
    weights = load_file(adapter / LORA_FILE)
    [up], [down] = ([w for name, w in weights.items() if f"lora_{part}" in name] for part in "BA")
    torch.testing.assert_close(update(generator, base), up @ down, atol=1e-6, rtol=0)

    generator, [said] = loaded(base, bare, ALPHA / RANK)
    assert said.endswith("so the update is multiplied by 3.")
    torch.testing.assert_close(update(generator, base), update(loaded(base, adapter)[0], base), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.5, -1.0])
def test_the_scale_multiplies_alpha_by_rank(base, adapter, scale):
    whole = update(loaded(base, adapter)[0], base)
    assert whole.abs().max() > 0.01
    generator, said = loaded(base, adapter, scale)
    assert said == []
    torch.testing.assert_close(update(generator, base), scale * whole, atol=1e-6, rtol=0)


def test_pefts_config_beside_the_file_is_not_read_by_diffusers_and_so_named(base, bare):
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, base_model_name_or_path="someone/THE-BASE").to_dict()
    (bare / "adapter_config.json").write_text(json.dumps({n: config[n] for n in ("r", "lora_alpha")}))
    _, [said] = loaded(base, bare)
    assert "adapter_config.json beside it says alpha 6 and rank 2, so --adapter-scale 3" in said


@pytest.mark.parametrize(("scale", "what"), [(0.0, "0"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_scales_that_cannot_be(base, adapter, scale, what):
    with pytest.raises(UsageError, match=f"--adapter-scale {what}") as raised:
        resolve(str(base), adapter=adapter, adapter_scale=scale)
    assert "a number other than 0" in raised.value.expected


def test_a_scale_without_an_adapter_is_refused(base):
    with pytest.raises(UsageError, match=r"--adapter-scale 2 for .*the-base, which has no adapter"):
        resolve(str(base), adapter_scale=2)


def test_another_scale_is_another_model_and_1_is_none(base, adapter):
    one, same, other = (
        resolve(str(base), adapter=adapter, **more) for more in ({}, {"adapter_scale": 1.0}, {"adapter_scale": 2.0})
    )
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert fingerprint(one, "vae") == fingerprint(other, "vae")


def test_an_adapter_on_another_base_is_warned_of(base, adapter, tmp_path):
    shutil.copytree(base, tmp_path / "moved")
    assert loaded(tmp_path / "moved", adapter)[1] == []  # the same weights elsewhere
    [said] = loaded(build(tmp_path / "another", 1), adapter)[1]
    assert said.endswith(f"was trained on the-base, and lies on {tmp_path / 'another'}: its update may not fit.")
    [said] = loaded(build(tmp_path / "x" / "the-base", 1), adapter)[1]
    assert "was trained on other weights of the-base, and lies on" in said


@pytest.mark.parametrize("where", ["adapter_config.json", "README.md", "run.json"])
def test_bases_that_others_name_are_compared_by_name(base, adapter, tmp_path, where):
    folder = tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    save_file(load_file(adapter / LORA_FILE), folder / LORA_FILE)

    def said(name):
        content = {
            "adapter_config.json": json.dumps({"base_model_name_or_path": name}),
            "README.md": f"---\nbase_model: {name}\n---\n# A LoRA\n",
            "run.json": json.dumps({"settings": {"recipe": {"model": name}}}),
        }[where]
        place = folder.parent if where == "run.json" else folder
        (place / where).write_text(content)
        return [text for text in loaded(base, folder)[1] if "names no alpha" not in text]

    assert said("Someone/The-Base") == []
    assert said("/cache/models--someone--the-base/snapshots/0123") == []
    [text] = said("someone/else")
    assert "was trained on someone/else, and lies on" in text


def test_a_recipe_merges_an_adapter_times_its_scale(base, adapter):
    given = [f"model={base}", f"adapter={adapter}", "adapter_scale=0.5"]
    recipe = read_recipe("sft", given)
    generator = _generator(recipe, parts=(), reporter=Reporter())
    assert not generator.has_adapter
    own = update(generator, base)
    torch.testing.assert_close(own, 0.5 * update(loaded(base, adapter)[0], base), atol=1e-6, rtol=0)
    with pytest.raises(UsageError, match=r"on which adapter=.* lies"):
        _generator(read_recipe("sft", [*given, "lora.rank=2"]), parts=(), reporter=Reporter())
    with pytest.raises(UsageError, match="adapter or adapter_scale with init=random"):
        _generator(read_recipe("sft", [*given, "init=random"]), parts=(), reporter=Reporter())
    with pytest.raises(UsageError, match="--adapter-scale 0"):
        _generator(read_recipe("sft", [f"model={base}", "adapter_scale=0"]), parts=(), reporter=Reporter())
