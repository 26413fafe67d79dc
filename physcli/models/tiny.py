"""The built-in tiny models: real diffusers and transformers classes, small enough for a laptop.

Weights that ship in `physcli/assets/<name>/` are loaded like any checkpoint. Where none ship, the architecture in
`recipes/pretrain/<name>.yaml` is filled with seeded random weights, and the model says so (`random_init`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from physcli.packaged import recipe_folders
from physcli.yaml12 import load_yaml

if TYPE_CHECKING:
    import torch
    from diffusers import CogVideoXPipeline
    from transformers import PreTrainedTokenizerFast

    from physcli.models.encoders.base import Encoder
    from physcli.models.raters.mplug_owl_video import MplugOwlVideo

ASSETS = Path(__file__).resolve().parent.parent / "assets"
VOCABULARY = ASSETS / "vocabulary.txt"
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in T5
BEGIN = "<s>"  # of raters, the last id


def asset_folder(name: str) -> Path | None:
    """The folder of shipped weights, or None while there are none."""
    folder = ASSETS / name
    return folder if any(folder.rglob("*.safetensors")) else None


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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw weights from `seed` and leave the global random state as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed the accelerators.
        torch.random.default_generator.manual_seed(seed)
        yield


def build_cogvideox(model: dict[str, Any] | None = None) -> CogVideoXPipeline:
    """A whole `CogVideoXPipeline` with seeded random weights, float32 on the CPU.

    Args:
        model: As `architecture("cogvideox-tiny")`, the default; tests pass smaller ones.
    """
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDPMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    model = model or architecture("cogvideox-tiny")
    tokenizer = build_tokenizer(vocabulary(), max_length=model["transformer"]["max_text_seq_length"])
    assert len(tokenizer) <= model["text_encoder"]["vocab_size"], "the vocabulary has outgrown the text encoder"
    classes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "text_encoder": lambda config: T5EncoderModel(T5Config(**config)),
        "vae": lambda config: AutoencoderKLCogVideoX(**config),
        "transformer": lambda config: CogVideoXTransformer3DModel(**config),
    }
    networks: dict[str, Any] = {}
    for part, build in classes.items():
        with seeded(model["seed"]):  # each part by itself, so that changing one leaves the others as they are
            networks[part] = build(model[part])
    for network in networks.values():
        network.eval()
    return CogVideoXPipeline(tokenizer=tokenizer, scheduler=CogVideoXDPMScheduler(**model["scheduler"]), **networks)


def build_videomae(
    model: dict[str, Any] | None = None, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Encoder:
    """The tiny VideoMAE encoder with seeded random weights, in evaluation mode.

    Args:
        model: As `architecture("videomae-tiny")`, the default.
        device: Where the weights go.
        dtype: Of the weights; float32 by default.
    """
    from transformers import VideoMAEConfig, VideoMAEModel

    from physcli.models.encoders.preprocessing import from_processor
    from physcli.models.encoders.videomae import VideoMAE

    model = model or architecture("videomae-tiny")
    with seeded(model["seed"]):
        network = VideoMAEModel(VideoMAEConfig(**model["encoder"]))
    encoder = VideoMAE(network, name="videomae-tiny")
    encoder.preprocessing = from_processor(model["preprocessor"], encoder.preprocessing)
    return encoder.to(device, dtype).eval()


def build_rater(model: dict[str, Any] | None = None) -> MplugOwlVideo:
    """The tiny rater with seeded random weights, float32 on the CPU, in evaluation mode.

    Args:
        model: As `architecture("mplug-owl-video-tiny")`, the default: the official config's sections, `words` that its
            questions need beside the simulator's, and `preprocessor`.
    """
    from torch import nn

    from physcli.models.encoders.preprocessing import Preprocessing, from_processor
    from physcli.models.raters import TINY_RATER
    from physcli.models.raters.mplug_owl_video import MODEL_TYPE, MplugOwlVideo, RaterConfig
    from physcli.models.raters.text import Fast

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
