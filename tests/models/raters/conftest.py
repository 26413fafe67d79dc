"""The golden rater as a folder: its weights and config, and a small sentencepiece tokenizer of LLaMA's kind."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

GOLDEN = Path(__file__).parents[2] / "golden" / "videophy_rater"
TEXT = [
    "The following is a conversation between a curious human and AI assistant.",
    "Human: Does this video AI: Yes No",
]


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture(scope="session")
def sentencepiece_model():
    """Bytes of a tokenizer.model as LLaMA's: BPE with bytes for what it does not know, a space before every segment."""
    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXT * 20, "1 2 3 4 5 0 " * 20]),
        model_writer=made,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return made.getvalue()


@pytest.fixture
def rater_folder(tmp_path, sentencepiece_model):
    """A fresh copy, to be spoilt at will."""
    folder = tmp_path / "rater"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder / name)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model)
    return folder
