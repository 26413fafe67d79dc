"""What the built-in tiny models share: their folders, architectures, vocabulary and tokenizer.

They are real diffusers and transformers classes, small enough for a laptop. Weights that ship in
`physcli/assets/<name>/` are loaded like any checkpoint. Where none ship, the architecture in
`recipes/pretrain/<name>.yaml` is filled with seeded random weights by the family's own file, and the model says so
(`random_init`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from physcli.hashing import seeded
from physcli.packaged import recipe_folders
from physcli.yaml12 import load_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_Part = TypeVar("_Part")

ASSETS = Path(__file__).resolve().parent.parent / "assets"
VOCABULARY = ASSETS / "vocabulary.txt"
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in T5
BEGIN = "<s>"  # of raters, the last id


def asset_folder(name: str) -> Path | None:
    """The folder of shipped weights, or None while there are none, or those of some parts alone."""
    folder = ASSETS / name
    whole = any((folder / file).is_file() for file in ("model_index.json", "config.json"))
    return folder if whole and any(folder.rglob("*.safetensors")) else None


def asset_part(name: str, part: str) -> Path | None:
    """The folder of a part's shipped weights, such as a VAE's, which may be there before the whole model's."""
    folder = ASSETS / name / part
    return folder if any(folder.glob("*.safetensors")) else None


def asset_folders(prefix: str) -> list[Path]:
    """The folders of shipped weights whose names begin so, in order."""
    return sorted(path for path in ASSETS.glob(f"{prefix}*") if asset_folder(path.name) is not None)


def architecture(name: str) -> dict[str, Any]:
    """The `architecture:` section of the recipe that trains a built-in: one mapping of config values a component."""
    files = (folder / "pretrain" / f"{name}.yaml" for folder in recipe_folders())
    return load_yaml(next(file for file in files if file.is_file()))["architecture"]


def random_fingerprint(name: str, part: str | None = None) -> str:
    """A hash of all that determines the random weights: architecture, seed, vocabulary; or one part's alone."""
    model = architecture(name)
    facts = [model, vocabulary()] if part is None else [part, model[part], model["seed"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def vocabulary() -> list[str]:
    """The words of the simulator's prompts, from the shipped list (one a line)."""
    return VOCABULARY.read_text(encoding="utf-8").split()


def build_tokenizer(words: Sequence[str], max_length: int = 32) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that behaves like T5's: lower case, an end token, unknown words as one token.

    Args:
        words: Words, numbers and punctuation marks, each one token.
        max_length: Tokens the text encoder takes, end token included.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [PAD, EOS, UNKNOWN]
    ids = {word: number for number, word in enumerate([*special, *dict.fromkeys(w.lower() for w in words)])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # punctuation marks become tokens of their own
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, ids[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=max_length,
    )


def tiny_tokenizer(text_encoder: Mapping[str, Any], max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the simulator's words, for a text encoder of this config.

    Args:
        text_encoder: Its config; its `vocab_size` leaves room for the vocabulary to grow.
        max_length: Tokens it takes, end token included.
    """
    tokenizer = build_tokenizer(vocabulary(), max_length=max_length)
    assert len(tokenizer) <= text_encoder["vocab_size"], "the vocabulary has outgrown the text encoder"
    return tokenizer


def check_sections(model: Mapping[str, Any], expected: Collection[str]) -> None:
    """Refuse an architecture with a section too many; one that lacks a section is noticed where that is built.

    Raises:
        ValueError: names it.
    """
    strange = sorted(set(model) - set(expected))
    if strange:
        raise ValueError(f"there is no section {strange[0]!r}, only {', '.join(expected)}")


def build_part(build: Callable[[], _Part], seed: int) -> _Part:
    """A part with weights drawn from a seed, each by itself, so that changing one leaves the others as they are; in
    evaluation mode."""
    with seeded(seed):
        part: Any = build()
    return part.eval()
