"""Loading raters strictly from what people have, and one answer whatever else is in the batch."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from physcli.errors import ModelError, UsageError
from physcli.models.encoders.preprocessing import Preprocessing
from physcli.models.raters import TINY_RATER
from physcli.models.raters.mplug_owl_video import build_rater, load_rater
from physcli.models.raters.preprocessing import CLIP_MEAN, CLIP_STD, normalise
from physcli.models.raters.text import MEDIA, MEDIA_ID, tokenize

PROMPTS = [
    ["Does this video match?\n", MEDIA, "AI: "],
    [MEDIA, "\nHuman: Does this video do what people and assistants of all kinds have long wanted of it?\n", "AI: "],
    ["Yes ", MEDIA, "No"],
]


@pytest.fixture
def load(rater_folder):
    return lambda **options: load_rater(rater_folder, **{"device": "cpu", "dtype": "float32", **options})


def videos(count=3, frames=4, size=56):
    return torch.randn(count, 3, frames, size, size, generator=torch.Generator().manual_seed(0))


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


# --- loading ---


def test_whole_frozen_and_in_evaluation_mode(load):
    rater = load()
    assert not rater.training
    assert not any(p.requires_grad for p in rater.parameters())
    assert (rater.kind, rater.random_init, rater.num_frames, rater.media_length) == ("rater", False, 32, 9)
    # eps from where the official code takes them
    assert {n.eps for n in rater.vision_model.modules() if isinstance(n, torch.nn.LayerNorm)} == {2e-4, 1e-5}
    assert {n.eps for n in rater.abstractor.modules() if isinstance(n, torch.nn.LayerNorm)} == {5e-4, 1e-5}
    assert rater.language_model.config.rms_norm_eps == 1e-4
    assert rater.preprocessing == Preprocessing(CLIP_MEAN, CLIP_STD, 56, 56, 32, "bilinear", antialias=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("abstractor.vit_eos"), r"1 missing \(abstractor\.vit_eos\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (lambda s: s.update(query_tokens=torch.zeros(1, 9, 64)), r"1 of the wrong shape \(query_tokens\)"),
        (
            lambda s: s.pop("language_model.lm_head.weight") is s.update({"lm_head.weight": torch.zeros(1)}),
            r"1 missing \(language_model\.lm_head\.weight\); 1 unexpected \(lm_head\.weight\)",
        ),
    ],
)
def test_every_key_is_there_and_used(load, rater_folder, change, message):
    rewrite(rater_folder, change)
    with pytest.raises(ModelError, match=message):
        load()


def test_rotary_frequencies_may_be_missing(load, rater_folder):
    names = [name for name in load_file(rater_folder / "model.safetensors") if name.endswith("inv_freq")]
    assert len(names) == 2
    before = load().next_logits(videos(), PROMPTS)
    rewrite(rater_folder, lambda state: [state.pop(name) for name in names])
    assert torch.equal(load().next_logits(videos(), PROMPTS), before)


def to_shards(folder, suffix):
    """The weights in two files with an index, as transformers writes large models."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    weight_map = {}
    for number in (1, 2):
        part = {name: v for n, (name, v) in enumerate(sorted(state.items())) if n % 2 == number - 1}
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(load, rater_folder, suffix):
    before = load().state_dict()
    to_shards(rater_folder, suffix)
    after = load().state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    gone = next(rater_folder.glob(f"*-00002-of-*.{suffix}"))
    gone.unlink()
    with pytest.raises(ModelError, match=rf"lacks 1 of 2 weight files: {gone.name}"):
        load()


def test_one_torch_file(load, rater_folder):
    before = load().state_dict()
    torch.save(load_file(rater_folder / "model.safetensors"), rater_folder / "pytorch_model.bin")
    (rater_folder / "model.safetensors").unlink()
    after = load().state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_code_in_a_torch_file_is_never_run(load, rater_folder):
    (rater_folder / "model.safetensors").unlink()
    (rater_folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin cannot be read"):
        load()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), r"model\.safetensors cannot be read"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
        (lambda f: (f / "tokenizer.model").unlink(), "holds no tokenizer"),
        (lambda f: (f / "tokenizer.model").write_bytes(b"none"), r"tokenizer\.model cannot be read"),
        (lambda f: (f / "config.json").unlink(), "model without a config.json, which is no rater"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "is a llama, which is no rater"),
        (lambda f: set_config(f, text_config={"vocab_size": 99}), "tokenizer in .* has 3.. tokens"),
        (lambda f: set_config(f, text_config=None), "is a mplug-owl without text_config"),
        (lambda f: set_config(f, vision_config={"hidden_size": 32}), "vision tower is 32 wide, the abstractor"),
        (lambda f: set_config(f, num_query_tokens="many"), "describes a network that cannot be built"),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"crop_size": {"height": 224, "width": 224}}'),
            "is for frames of 224x224",
        ),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"crop_size": 56, "num_frames": 1}'),
            "num_frames is 1",
        ),
    ],
)
def test_folders_that_are_none(load, rater_folder, spoil, message):
    spoil(rater_folder)
    with pytest.raises(ModelError, match=message):
        load()


def set_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))


def test_the_processor_files_mean_and_deviation_count(load, rater_folder):
    content = {"crop_size": {"height": 56, "width": 56}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}
    (rater_folder / "preprocessor_config.json").write_text(json.dumps(content))
    frames = torch.full((2, 56, 56, 3), 255, dtype=torch.uint8).numpy()
    assert load().prepare(frames)[:, 0, 0, 0].tolist() == [1.0, 2.0, 1.0]
    with pytest.raises(ValueError, match=r"expected uint8 frames \[T, 56, 56, 3\]"):
        normalise(frames[:, :8], load().preprocessing)


def test_names(rater_folder, tmp_path):
    with pytest.raises(ModelError, match="There is no model at"):
        load_rater(tmp_path / "none")
    with pytest.raises(ModelError, match="is a file, but a rater is a folder"):
        load_rater(rater_folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"There is no trained {TINY_RATER}:other"):
        load_rater(f"{TINY_RATER}:other")
    with pytest.raises(UsageError, match="device cpu and device_map auto"):
        load_rater(rater_folder, device="cpu", device_map="auto")
    for wrong in ("balanced", {"vision_model": "cpu"}):
        with pytest.raises(UsageError, match=r"device.map"):
            load_rater(rater_folder, device_map=wrong)


def test_a_rater_larger_than_memory_is_refused_on_a_cpu(rater_folder, monkeypatch):
    needed = sum(4 * value.numel() for value in load_rater(rater_folder, device="cpu").state_dict().values())
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=0.6 * needed))
    with pytest.raises(ModelError, match="are free") as error:
        load_rater(rater_folder, device="cpu")
    assert "--dtype bfloat16" in error.value.fix
    load_rater(rater_folder, device="cpu", dtype="bfloat16")


def test_a_hub_id_brings_the_tokenizer_along(rater_folder, monkeypatch):
    asked = []

    def download(name, *, allow_patterns, **options):
        asked.append((name, options["revision"], sorted(allow_patterns)))
        return str(rater_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert (
        load_rater("videophysics/videophy_2_auto", device="cpu", revision="main").name == "videophysics/videophy_2_auto"
    )
    assert asked == [("videophysics/videophy_2_auto", "main", ["*.json", "*.safetensors", "tokenizer.model"])]


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map(rater_folder, load, device_map):
    spread = load_rater(rater_folder, dtype="float32", device_map=device_map)
    assert torch.equal(spread.next_logits(videos(), PROMPTS), load().next_logits(videos(), PROMPTS))


# --- answering ---


def test_the_batch_changes_nothing(load):
    rater = load()
    assert len({len(rater.tokenize(prompt).ids) for prompt in PROMPTS}) == 3
    together = rater.rate(videos(), PROMPTS, max_new_tokens=6)
    yes = rater.yes_probability(videos(), PROMPTS)
    logits = rater.next_logits(videos(), PROMPTS)
    for n, prompt in enumerate(PROMPTS):
        one = videos()[n : n + 1]
        alone = rater.rate(one, [prompt], max_new_tokens=6)
        assert alone.texts == together.texts[n : n + 1]
        assert (alone.digit_logits - together.digit_logits[n]).abs().max() < 1e-4
        assert (rater.next_logits(one, [prompt]) - logits[n]).abs().max() < 1e-4
        assert (rater.yes_probability(one, [prompt]) - yes[n]).abs().max() < 1e-5
    media = rater.encode_videos(videos())
    assert torch.equal(rater.next_logits(media, PROMPTS), logits)
    assert rater.answer(media, PROMPTS, max_new_tokens=6) == together.texts


def test_an_answer_ends_at_its_own_end(load):
    rater = load()
    _, ids = rater.generate(videos(), PROMPTS, max_new_tokens=6)
    rater.tokenizer.eos = ids[0][2]
    _, ended = rater.generate(videos(), PROMPTS, max_new_tokens=6)
    expected = [row[: row.index(ids[0][2])] if ids[0][2] in row else row for row in ids]
    assert ended == expected
    assert len(ended[0]) == 2


def test_digits_and_yes_are_the_tokens_that_would_come(load, sentencepiece_model):
    rater = load()
    encode = rater.tokenizer.encode
    digits = [encode(digit)[-1] for digit in "12345"]
    assert len(set(digits)) == 5
    assert [rater.tokenizer.decode([number]) for number in digits] == list("12345")  # without a space mark
    logits = rater.next_logits(videos(), PROMPTS)
    rating = rater.rate(videos(), PROMPTS, max_new_tokens=1)
    assert torch.equal(rating.digit_logits, logits[:, digits])
    assert torch.equal(rater.digit_logits(videos(), PROMPTS), logits[:, digits])
    assert (rating.digit_mass - logits.softmax(-1)[:, digits].sum(-1)).abs().max() < 1e-6
    yes, no = encode("Yes")[0], encode("No")[0]
    share = logits.softmax(-1)[:, yes] / (logits.softmax(-1)[:, yes] + logits.softmax(-1)[:, no])
    assert (rater.yes_probability(videos(), PROMPTS) - share).abs().max() < 1e-6


def test_prompts_are_tokenised_segment_by_segment_and_cut(load):
    rater = load()
    encode = rater.tokenizer.encode
    segments = ["a b\n", MEDIA, "c", "d"]
    ids = [1, *encode("a b\n"), *[MEDIA_ID] * 9, *encode("c"), *encode("d")]
    assert encode("c") + encode("d") != encode("cd")
    assert rater.tokenize(segments).ids == tuple(ids)
    cut = rater.tokenize(segments, max_tokens=len(ids) - 1)
    assert (cut.ids, cut.num_cut) == (tuple(ids[:-1]), 1)
    long = [[MEDIA, "word " * 300]]
    a, b = (rater.yes_probability(videos(1), prompts, max_tokens=100) for prompts in (long, [[MEDIA, "word " * 400]]))
    assert torch.equal(a, b)
    for wrong in (["a"], [MEDIA, MEDIA]):
        with pytest.raises(ValueError, match="once"):
            rater.tokenize(wrong)
    with pytest.raises(ValueError, match="no room for the video's 9 embeddings"):
        tokenize(segments, rater.tokenizer, media_length=9, max_tokens=8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (videos(frames=1), r"T >= 2"),
        (videos(size=28), "expected frames of 56x56"),
        (videos(2), "as many videos as prompts"),
        (torch.zeros(3, 8, 64), "as many videos as prompts"),
    ],
)
def test_wrong_videos(load, given, message):
    with pytest.raises(ValueError, match=message):
        load().next_logits(given, PROMPTS)


def test_half_precision(load):
    rater, full = load(dtype="bf16"), load()
    assert {p.dtype for p in rater.parameters()} == {torch.bfloat16}
    assert rater.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    a, b = rater.next_logits(videos(), PROMPTS), full.next_logits(videos(), PROMPTS)
    assert a.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99
    assert all(isinstance(text, str) for text in rater.answer(videos(), PROMPTS, max_new_tokens=4))


# --- the tiny one ---


@pytest.fixture(scope="module")
def tiny():
    return load_rater(f"{TINY_RATER}:random", device="cpu")


def test_the_tiny_one_is_small_seeded_and_says_that_it_is_random(tiny):
    assert sum(p.numel() for p in tiny.parameters()) <= 1.5e6
    assert tiny.random_init
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    again = build_rater()
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in tiny.state_dict().items())
    assert all(p.std() > 0 for n, p in tiny.named_parameters() if p.ndim > 1), "no weight is left at zero"


def test_what_is_saved_is_what_is_loaded(tiny, tmp_path):
    tiny.save(tmp_path)
    loaded = load_rater(tmp_path, device="cpu")
    assert not loaded.random_init
    assert loaded.preprocessing == tiny.preprocessing
    assert loaded.num_frames == 16
    frames = videos(2, 16, 64)
    prompts = [["does this video follow a red ball ?", MEDIA, "ai :"], ["2", MEDIA, "ai :"]]
    assert torch.equal(loaded.next_logits(frames, prompts), tiny.next_logits(frames, prompts))
    assert loaded.tokenizer.encode("A red ball, yes 5") == tiny.tokenizer.encode("A red ball, yes 5")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("yes")) == "yes"
