"""mPLUG-Owl-Video, the architecture of VideoPhy's and VideoPhy-2's raters (Bansal et al. 2024, arXiv 2406.03520; 2025,
arXiv 2503.06800), on today's transformers: own vision tower and abstractor, LLaMA from transformers.

Differs from the released code in: no still images and one video a prompt (what the raters are asked); prompts of one
batch may differ in length, and none sees another's padding; rotary frequencies stay float32 in half precision.

Shapes: B prompts, T frames, Q queries, L width of the language model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel

from physcli.errors import ModelError, UsageError
from physcli.hashing import seeded
from physcli.models.device import pick_device, pick_dtype, refuse_too_large
from physcli.models.encoders.checkpoint import fetch, read_config
from physcli.models.encoders.preprocessing import Preprocessing, from_processor, write_preprocessing
from physcli.models.fingerprints import hash_files
from physcli.models.raters import TINY_RATER
from physcli.models.raters.preprocessing import PROCESSOR_FILE, frame_indices, normalise, read_rater_preprocessing
from physcli.models.raters.shards import Shards
from physcli.models.raters.text import (
    MEDIA_ID,
    SENTENCEPIECE_FILE,
    Fast,
    Prompt,
    Segments,
    Tokenizer,
    read_tokenizer,
    tokenize,
)
from physcli.models.raters.vision import Abstractor, AbstractorConfig, VisionConfig, VisionTower
from physcli.models.tiny import BEGIN, architecture, asset_folder, build_tokenizer, random_fingerprint, vocabulary

MODEL_TYPE = "mplug-owl"
WEIGHTS_FILE = "model.safetensors"
DIGITS = "12345"
# Old checkpoints keep LLaMA's rotary frequencies, which follow from the config.
UNUSED = ("language_model.*.rotary_emb.inv_freq",)
# What is read of text_config. All else there is transformers' bookkeeping of 2023.
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# What LLaMA's forward calls its cache; later versions of transformers drop the first name.
_CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
_RANDOM = f"{TINY_RATER}:random"
_UNSPLIT = ["VisionLayer", "VisionEmbeddings", "Abstractor", "LlamaDecoderLayer"]


@dataclasses.dataclass(frozen=True)
class RaterConfig:
    """The official config.json, as far as it says something about the network."""

    vision: VisionConfig
    abstractor: AbstractorConfig
    text: Mapping[str, Any]
    num_query_tokens: int = 64

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str) -> RaterConfig:
        """Raises ModelError: not such a config, or one whose parts do not fit each other."""
        sections = {}
        for name in ("vision_config", "visual_abstractor_config", "text_config"):
            section = content.get(name)
            if content.get("model_type") != MODEL_TYPE or not isinstance(section, Mapping):
                raise ModelError(
                    f"{source} is a {content.get('model_type', 'model without a config.json')}"
                    + (f" without {name}." if content.get("model_type") == MODEL_TYPE else ", which is no rater."),
                    expected=f"the config.json of an mPLUG-Owl-Video checkpoint (model_type {MODEL_TYPE}, with "
                    "vision_config, visual_abstractor_config and text_config)",
                )
            sections[name] = section
        config = cls(
            vision=_pick(VisionConfig, sections["vision_config"]),
            abstractor=_pick(AbstractorConfig, sections["visual_abstractor_config"]),
            text={key: sections["text_config"][key] for key in _TEXT_FIELDS if key in sections["text_config"]},
            num_query_tokens=content.get("num_query_tokens", cls.num_query_tokens),
        )
        widths = (config.vision.hidden_size, config.abstractor.encoder_hidden_size, config.abstractor.hidden_size)
        if len(set(widths)) > 1:
            raise ModelError(
                f"{source}: the vision tower is {widths[0]} wide, the abstractor's memory {widths[1]} and itself "
                f"{widths[2]}.",
                expected="one width",
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_type": MODEL_TYPE,
            "num_query_tokens": self.num_query_tokens,
            "vision_config": dataclasses.asdict(self.vision),
            "visual_abstractor_config": dataclasses.asdict(self.abstractor),
            "text_config": {"model_type": "llama", **self.text},
        }


def _cached(cache: DynamicCache | None) -> dict[str, Any]:
    """The cache as this version of transformers wants it."""
    return {_CACHE: cache, "use_cache": cache is not None}


def _pick(kind: Any, section: Mapping[str, Any]) -> Any:
    return kind(**{field.name: section[field.name] for field in dataclasses.fields(kind) if field.name in section})


@dataclasses.dataclass(frozen=True)
class Rating:
    """What a rater says of each of B videos.

    Attributes:
        texts: The generated answers.
        digit_logits: [B, K] float32, of the first answer token, for the K digits asked about.
        digit_mass: [B] float32, their probability among the whole vocabulary: the rater's own idea of whether a digit
            comes first.
    """

    texts: list[str]
    digit_logits: Tensor
    digit_mass: Tensor


class MplugOwlVideo(nn.Module):
    """A rater: one video and one question a prompt.

    `videos` is in every method [B, 3, T, H, W] of `prepare`, or [B, Q + 1, L] of `encode_videos`: a video that is asked
    several questions is looked at once. All computing is batched and the same as one by one, up to rounding.

    Args:
        config: Sizes.
        tokenizer: The checkpoint's.
        preprocessing: The checkpoint's.
        name: For tables: every table names its rater.
    """

    kind: Literal["rater"] = "rater"

    def __init__(self, config: RaterConfig, *, tokenizer: Tokenizer, preprocessing: Preprocessing, name: str) -> None:
        super().__init__()
        self.config, self.tokenizer, self.preprocessing, self.name = config, tokenizer, preprocessing, name
        self.random_init = False
        width, queries = config.abstractor.hidden_size, config.num_query_tokens
        self.vision_model = VisionTower(config.vision)
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, width))
        self.temporal_query_tokens = nn.Parameter(torch.zeros(1, queries, width))
        self.abstractor = Abstractor(config.abstractor, config.text["hidden_size"])
        self.language_model = LlamaForCausalLM(LlamaConfig(**config.text, tie_word_embeddings=False))

    # --- what goes in ---

    @property
    def num_frames(self) -> int:
        """Frames shown of every video."""
        assert self.preprocessing.num_frames is not None
        return self.preprocessing.num_frames

    @property
    def media_length(self) -> int:
        """Embeddings a video takes in a prompt: Q + 1."""
        return self.config.num_query_tokens + 1

    def frame_indices(self, num_video_frames: int) -> list[int]:
        """Which frames of a video are shown; see `physcli.models.raters.preprocessing.frame_indices`."""
        return frame_indices(num_video_frames, self.num_frames)

    def prepare(self, frames: np.ndarray) -> Tensor:
        """The shown frames, uint8 [T, H, W, 3] of the model's size → float32 [3, T, H, W]."""
        return normalise(frames, self.preprocessing)

    def tokenize(self, segments: Segments, *, max_tokens: int | None = None) -> Prompt:
        """A prompt's ids; see `physcli.models.raters.text.tokenize`."""
        return tokenize(segments, self.tokenizer, media_length=self.media_length, max_tokens=max_tokens)

    # --- what comes out ---

    def encode_videos(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, T, H, W] → [B, Q + 1, L], what stands for a video in a prompt."""
        weight = self.vision_model.embeddings.patch_embed.weight
        return self.summarise(self.vision_model(self._enter(pixel_values, weight)))

    def summarise(self, tokens: Tensor) -> Tensor:
        """The vision tower's tokens [B, T, 1 + P, D] → [B, Q + 1, L]."""
        queries = torch.cat([self.query_tokens, self.temporal_query_tokens], dim=1).to(tokens.device)
        return self.abstractor(queries.expand(len(tokens), -1, -1), tokens.flatten(1, 2))

    def next_logits(self, videos: Tensor, prompts: Sequence[Segments], *, max_tokens: int | None = None) -> Tensor:
        """Logits [B, V] float32 of the token after each prompt: the scoring position."""
        return self._start(videos, prompts, max_tokens)[0]

    def yes_probability(self, videos: Tensor, prompts: Sequence[Segments], *, max_tokens: int | None = None) -> Tensor:
        """P(Yes) / (P(Yes) + P(No)) [B] float32, on the CPU: VideoPhy's entailment score.

        Args:
            videos: See the class.
            prompts: B prompts.
            max_tokens: Cut prompts that are longer; the official VideoPhy scorer's limit is 257. `tokenize` tells
                which ones are.
        """
        yes, no = (self.tokenizer.encode(word)[0] for word in ("Yes", "No"))
        logits = self.next_logits(videos, prompts, max_tokens=max_tokens)
        return torch.sigmoid(logits[:, yes] - logits[:, no]).cpu()

    def digit_logits(self, videos: Tensor, prompts: Sequence[Segments], digits: str = DIGITS) -> Tensor:
        """Logits [B, K] float32, on the CPU, of the first answer token being each of the K digits."""
        return self._digits(self.next_logits(videos, prompts), digits)[0]

    def answer(self, videos: Tensor, prompts: Sequence[Segments], *, max_new_tokens: int = 32) -> list[str]:
        """Greedy answers, each up to its end token or `max_new_tokens`."""
        return self.rate(videos, prompts, max_new_tokens=max_new_tokens).texts

    def rate(
        self, videos: Tensor, prompts: Sequence[Segments], *, digits: str = DIGITS, max_new_tokens: int = 32
    ) -> Rating:
        """Answers and the logits of the digits in one go; arguments as above."""
        logits, ids = self.generate(videos, prompts, max_new_tokens=max_new_tokens)
        return Rating([self.tokenizer.decode(row) for row in ids], *self._digits(logits, digits))

    @torch.no_grad()
    def generate(
        self, videos: Tensor, prompts: Sequence[Segments], *, max_new_tokens: int
    ) -> tuple[Tensor, list[list[int]]]:
        """The first step's logits [B, V] float32 and the greedily chosen ids, without the end token."""
        cache = DynamicCache()
        logits, lengths, attended = self._start(videos, prompts, None, cache)
        first = logits
        rows: list[list[int]] = [[] for _ in prompts]
        finished = torch.zeros(len(prompts), dtype=torch.bool)
        for step in range(max_new_tokens):
            chosen = logits.argmax(dim=-1)
            finished |= (chosen == self.tokenizer.eos).cpu()
            for row, number, done in zip(rows, chosen.tolist(), finished.tolist(), strict=True):
                if not done:
                    row.append(number)
            if bool(finished.all()) or step == max_new_tokens - 1:
                break
            # Right padding stays where it is: masked out, and new tokens follow it in the cache but not in position.
            attended = torch.cat([attended, torch.ones_like(attended[:, :1])], dim=1)
            hidden = self.language_model.model(
                inputs_embeds=self._embed(chosen[:, None]),
                attention_mask=attended,
                position_ids=(lengths + step)[:, None],
                **_cached(cache),
            ).last_hidden_state
            logits = self.language_model.lm_head(hidden[:, -1]).float()
        return first, rows

    def _start(
        self, videos: Tensor, prompts: Sequence[Segments], max_tokens: int | None, cache: DynamicCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits after each prompt, the prompts' lengths [B] and the mask of what is no padding [B, N]."""
        media = self.encode_videos(videos) if videos.ndim == 5 else videos
        if not len(media) == len(prompts) > 0 or media.ndim != 3 or media.shape[1] != self.media_length:
            raise ValueError(
                f"expected as many videos as prompts, [B, 3, T, H, W] or [B, {self.media_length}, L]; got "
                f"{tuple(videos.shape)} and {len(prompts)} prompts"
            )
        rows = [torch.tensor(self.tokenize(prompt, max_tokens=max_tokens).ids) for prompt in prompts]
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.eos)
        hidden, attended = self.run(ids, lengths, media, cache)
        last = lengths.to(hidden.device) - 1
        logits = self.language_model.lm_head(hidden[torch.arange(len(hidden), device=hidden.device), last]).float()
        return logits, lengths.to(attended.device), attended

    def run(
        self, ids: Tensor, lengths: Tensor, media: Tensor, cache: DynamicCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """The language model over prompts.

        Args:
            ids: int64 [B, N], right padded, `MEDIA_ID` Q + 1 times a row where the video is.
            lengths: int64 [B], without padding.
            media: [B, Q + 1, L].
            cache: Filled, if one is given.

        Returns:
            Hidden states [B, N, L] after the last norm, and the mask int64 [B, N] of what is no padding.
        """
        is_media = ids == MEDIA_ID
        embeds = self._embed(ids.masked_fill(is_media, 0))
        is_media = is_media.to(embeds.device)
        embeds = embeds.masked_scatter(is_media[..., None], media.to(embeds))
        attended = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(embeds.device)
        output = self.language_model.model(
            inputs_embeds=embeds,
            attention_mask=attended,
            position_ids=torch.arange(ids.shape[1], device=embeds.device)[None].expand(len(ids), -1),
            **_cached(cache),
        )
        return output.last_hidden_state, attended

    def _embed(self, ids: Tensor) -> Tensor:
        embedding = self.language_model.model.embed_tokens
        return embedding(ids.to(self._place(embedding.weight)))

    def _digits(self, logits: Tensor, digits: str) -> tuple[Tensor, Tensor]:
        """The prompt ends in the mark of a space, so a digit's token is the last of its encoding, without that mark."""
        numbers = [self.tokenizer.encode(digit)[-1] for digit in digits]
        mass = torch.log_softmax(logits, dim=-1)[:, numbers].logsumexp(dim=-1).exp()
        return logits[:, numbers].cpu(), mass.cpu()

    def _enter(self, x: Tensor, weight: Tensor) -> Tensor:
        return x.to(device=self._place(weight), dtype=weight.dtype)

    def _place(self, weight: Tensor) -> torch.device:
        """Where the inputs of a weight's module go; offloaded weights are brought there by accelerate's hooks."""
        return weight.device if not weight.is_meta else torch.device(self._hf_hook.execution_device)  # type: ignore

    # --- on disk ---

    def save(self, folder: Path) -> None:
        """Write config.json, weights, tokenizer and processor file: a folder that `load_rater` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n", encoding="utf-8")
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        self.tokenizer.save(folder)
        write_preprocessing(folder, self.preprocessing)
        path = folder / PROCESSOR_FILE
        content = json.loads(path.read_text(encoding="utf-8")) | {"num_frames": self.num_frames}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_rater(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> MplugOwlVideo:
    """Load a rater, whole and strictly, frozen and in evaluation mode.

    Args:
        name: A name of `physcli.models.raters` (`…:random` for the tiny one with seeded random weights), a hub id, or
            a folder with config.json, weights (safetensors or .bin, also in shards) and tokenizer.
        device: "auto" (CUDA, then Apple's MPS, then CPU) or a torch device; not with `device_map`.
        dtype: "auto" (bfloat16 for large checkpoints on accelerators, else float32), or as for
            `physcli.models.loading.pick_dtype`.
        device_map: "auto" to spread the model over all devices there are, or accelerate's map from parts to devices.
        revision: Of a hub id.
        local_files_only: Never reach for the network.

    Raises:
        ModelError: not there, not whole, damaged, of another architecture, or with a weight missing, left over or of
            the wrong shape.
        UsageError: an unknown device or dtype, or both `device` and `device_map`.
    """
    if device_map is not None and str(device) != "auto":
        raise UsageError(f"device {device} and device_map {device_map}.", expected="one of them")
    place = pick_device(device)
    if str(name) == _RANDOM:
        rater = build_rater().to(place, pick_dtype(dtype, place))
        rater.random_init = True
    else:
        folder = _folder(name, revision=revision, local_files_only=local_files_only)
        rater = _read(folder, str(name), place, dtype, device_map)
    return rater.requires_grad_(False).eval()


def rater_fingerprint(name: str | Path) -> str:
    """A hash of everything that determines a rater's answers: weights, configs, tokenizer. Fetches a hub rater.

    Args:
        name: As for `load_rater`.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        ModelError: it is not there.
    """
    if str(name) == _RANDOM:
        return random_fingerprint(TINY_RATER)
    return hash_files(_folder(name)).hex()


def _folder(name: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Where a trained rater's files are."""
    if str(name).partition(":")[0] != TINY_RATER:
        return fetch(name, revision=revision, local_files_only=local_files_only, beside=(SENTENCEPIECE_FILE,))
    folder = asset_folder(TINY_RATER) if str(name) == TINY_RATER else None
    if folder is None:
        raise ModelError(
            f"There is no trained {name} in this installation.",
            expected=f"{_RANDOM}, a hub id or a folder",
            fix="videos of the simulated world are scored without a rater by `physcli eval laws`; or train this one, "
            f"two hours on one core, with `physcli finetune --recipe pretrain/{TINY_RATER}`, then --rater RUN/model",
        )
    return folder


def _read(
    folder: Path, name: str, device: torch.device, dtype: str | torch.dtype, device_map: str | Mapping[str, Any] | None
) -> MplugOwlVideo:
    if not folder.is_dir():
        raise ModelError(
            f"{folder} is a file, but a rater is a folder.", expected="a folder with config.json, weights and tokenizer"
        )
    config = RaterConfig.from_dict(read_config(folder), str(folder))
    tokenizer = read_tokenizer(folder)
    if tokenizer.size > config.text.get("vocab_size", 0):
        raise ModelError(
            f"The tokenizer in {folder} has {tokenizer.size} tokens.",
            expected=f"at most text_config.vocab_size, {config.text.get('vocab_size')}",
            fix="check that config.json and tokenizer are of one checkpoint",
        )
    preprocessing = read_rater_preprocessing(folder, config.vision.image_size)
    shards = Shards(folder, unused=UNUSED)
    weights_dtype = pick_dtype(dtype, device, shards.num_bytes)
    rater = build_empty(config, lambda c: MplugOwlVideo(c, tokenizer=tokenizer, preprocessing=preprocessing, name=name))
    shapes = {key: tuple(value.shape) for key, value in rater.state_dict().items()}
    shards.check(shapes)
    if device_map is None:
        refuse_too_large(name, sum(map(math.prod, shapes.values())), weights_dtype, device)
    places: Mapping[str, Any] = {"": device}
    if device_map == "auto":
        places = infer_auto_device_map(rater, no_split_module_classes=_UNSPLIT, dtype=weights_dtype)
        if "disk" in places.values():
            raise ModelError(
                f"{name} does not fit into the memory of this machine's devices and its main memory together.",
                expected=f"{shards.num_bytes / 1e9:.0f} GB and some room to compute",
                fix="use a larger machine",
            )
    elif isinstance(device_map, str):
        raise UsageError(f"device_map {device_map!r}.", expected="auto, or a map from parts to devices")
    elif device_map is not None:
        places = device_map
    for key, value in shards.tensors():
        set_module_tensor_to_device(rater, key, _device_of(key, places), value=value, dtype=weights_dtype)
    if len(set(map(str, places.values()))) > 1:
        return dispatch_model(rater, dict(places))
    return rater.to(next(iter(places.values())))  # buffers


def build_empty(config: RaterConfig, build: Callable[[RaterConfig], MplugOwlVideo]) -> MplugOwlVideo:
    """The network with its parameters on the meta device; nothing is drawn at random.

    Raises:
        ModelError: sizes there cannot be.
    """
    try:
        with init_empty_weights():  # buffers, LLaMA's rotary frequencies, keep their values
            return build(config)
    except (TypeError, ValueError, KeyError, ZeroDivisionError, RuntimeError) as error:
        raise ModelError(
            f"The config.json describes a network that cannot be built: {error!r}.",
            expected="the sizes of an mPLUG-Owl-Video checkpoint",
        ) from error


def _device_of(key: str, places: Mapping[str, Any]) -> Any:
    """The device of the longest prefix of a weight's name."""
    parts = key.split(".")
    for end in range(len(parts), -1, -1):
        if (prefix := ".".join(parts[:end])) in places:
            return places[prefix]
    raise UsageError(f"The device map has no place for {key}.", expected="one for every part, or {'': DEVICE}")


def build_rater(model: Mapping[str, Any] | None = None) -> MplugOwlVideo:
    """The tiny rater with seeded random weights, float32 on the CPU, in evaluation mode.

    Args:
        model: As `architecture("mplug-owl-video-tiny")`, the default: the official config's sections, `words` that its
            questions need beside the simulator's, and `preprocessor`.
    """
    model = model or architecture(TINY_RATER)
    tokenizer = build_tokenizer(
        [*vocabulary(), *model["words"].split()], max_length=model["text_config"]["max_position_embeddings"]
    )
    tokenizer.add_special_tokens({"bos_token": BEGIN})
    text = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text |= {"pad_token_id": tokenizer.pad_token_id}
    content = {**model, "model_type": MODEL_TYPE, "text_config": text | model["text_config"]}
    config = RaterConfig.from_dict(content, f"{TINY_RATER}'s recipe")
    size = config.vision.image_size
    native = Preprocessing(height=size, width=size, num_frames=model["preprocessor"]["num_frames"])
    preprocessing = dataclasses.replace(from_processor(model["preprocessor"], native), antialias=False)
    with seeded(model["seed"]):
        rater = MplugOwlVideo(config, tokenizer=Fast(tokenizer), preprocessing=preprocessing, name=TINY_RATER)
        # All else has the initialisation of its layer. Places and queries must be told apart from the first step on.
        embeddings = rater.vision_model.embeddings
        for parameter, std in (
            (embeddings.cls_token, 0.5),
            (embeddings.position_embedding, 0.5),
            (rater.query_tokens, 1.0),
            (rater.temporal_query_tokens, 1.0),
            (rater.abstractor.vit_eos, config.text["initializer_range"]),
        ):
            nn.init.normal_(parameter, std=std)
    return rater.eval()
