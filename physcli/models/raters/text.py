"""Prompts as the raters were trained on them: segments that are tokenised one by one, the video between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from physcli.errors import ModelError
from physcli.models.hub import first_line

MEDIA = "<|video|>"  # a segment that is exactly this stands for the video
MEDIA_ID = -2  # where its embeddings go; never an embedding itself
SENTENCEPIECE_FILE, FAST_FILE = "tokenizer.model", "tokenizer.json"

Segments = Sequence[str]


class Tokenizer(Protocol):
    """Text to ids and back, without any special token; `bos` and `eos` are ids, `size` is one more than the last."""

    bos: int
    eos: int
    size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def save(self, folder: Path) -> None: ...


class SentencePiece:
    """LLaMA's own `tokenizer.model`, through sentencepiece itself: every segment gets the space mark it was trained
    with, whatever the version of transformers."""

    def __init__(self, file: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._file = file
        self._processor: Any = SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(file.read_bytes())
        self.bos, self.eos = int(self._processor.bos_id()), int(self._processor.eos_id())
        self.size = int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in self._processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        # Ids that were added to the model later, for padding, have no text.
        return str(self._processor.decode([int(number) for number in ids if number < self.size]))

    def save(self, folder: Path) -> None:
        (folder / SENTENCEPIECE_FILE).write_bytes(self._file.read_bytes())


class Fast:
    """A tokenizer of the `tokenizers` library, as transformers wraps it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise ValueError("it names no begin or no end token")
        self.bos, self.eos, self.size = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id), len(tokenizer)

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in self.tokenizer.encode(text, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode([int(number) for number in ids], skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's own tokenizer: `tokenizer.model`, which the official code reads, or else `tokenizer.json`.

    Raises:
        ModelError: there is neither, or it cannot be read.
    """
    file = next((folder / name for name in (SENTENCEPIECE_FILE, FAST_FILE) if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(
            f"{folder} holds no tokenizer.",
            expected=f"{SENTENCEPIECE_FILE} or {FAST_FILE} beside the weights",
            fix="download the whole checkpoint",
        )
    try:
        if file.name == SENTENCEPIECE_FILE:
            return SentencePiece(file)
        from transformers import PreTrainedTokenizerFast

        return Fast(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # both libraries raise whatever their parsers raise, plain Exceptions among them
        raise ModelError(
            f"{file} cannot be read: {first_line(error)}",
            expected="the tokenizer of a LLaMA checkpoint",
            fix="download it again",
        ) from error


@dataclass(frozen=True)
class Prompt:
    """A prompt in ids. `num_cut`: ids at its end that were over the limit."""

    ids: tuple[int, ...]
    num_cut: int = 0


def tokenize(segments: Segments, tokenizer: Tokenizer, *, media_length: int, max_tokens: int | None = None) -> Prompt:
    """Begin token, then segment by segment; no end token.

    Args:
        segments: Text, and `MEDIA` once.
        tokenizer: The checkpoint's.
        media_length: Embeddings a video takes, Q + 1.
        max_tokens: Cut what is longer, as the official VideoPhy scorer does at 257.

    Raises:
        ValueError: not exactly one video, or one that is cut.
    """
    if sum(segment == MEDIA for segment in segments) != 1:
        raise ValueError(f"expected segments with {MEDIA!r} once, got {list(segments)!r}")
    ids = [tokenizer.bos]
    for segment in segments:
        ids += [MEDIA_ID] * media_length if segment == MEDIA else tokenizer.encode(segment)
    kept = tuple(ids[:max_tokens])
    if kept.count(MEDIA_ID) != media_length:
        raise ValueError(f"max_tokens={max_tokens} leaves no room for the video's {media_length} embeddings")
    return Prompt(kept, len(ids) - len(kept))
