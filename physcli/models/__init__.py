"""The model tables. Nothing heavy is imported here: `physcli models ls` must be instant.

A new backbone is one file and one line in `GENERATORS`; a new encoder one file and one line in
`physcli.models.encoders.ENCODERS`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["generator", "encoder", "rater", "motion field", "motion projector"]

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".torch", ".bin")  # the earlier the better
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name
OWN_FILE = "physcli.json"  # beside model_index.json: what diffusers has no place for


@dataclass(frozen=True)
class KnownModel:
    """A model `physcli models ls` names.

    Attributes:
        kind: What it is.
        family: A key of the tables below; of a motion field or projector, its method.
        description: One line of facts.
        of: The built-in model whose latents or tokens a motion field or projector knows.
    """

    kind: Kind
    family: str
    description: str
    of: str = ""


def shown_name(name: str, random_init: bool) -> str:
    """A model's name as tables show it: random weights are never mistaken for trained ones."""
    return f"{name.removesuffix(':random')} (random init)" if random_init else name


# Family → the class that adapts it.
GENERATORS: dict[str, str] = {
    "cogvideox": "physcli.models.cogvideox:CogVideoX",
    "wan": "physcli.models.wan:Wan",
}

# `_class_name` in a folder's model_index.json → family.
PIPELINES: dict[str, str] = {
    "CogVideoXPipeline": "cogvideox",
    "WanPipeline": "wan",
}

BUILT_IN: dict[str, KnownModel] = {
    "cogvideox-tiny": KnownModel(
        "generator", "cogvideox", "CogVideoX with 4.6 M parameters for the simulated world: 17 frames of 64×64"
    ),
    "wan-tiny": KnownModel(
        "generator", "wan", "Wan 2.1 with 3.7 M parameters for the simulated world: 17 frames of 64×64"
    ),
    "videomae-tiny": KnownModel(
        "encoder", "videomae", "VideoMAE with 1.3 M parameters for the simulated world: 16 frames of 64×64"
    ),
    "mplug-owl-video-tiny": KnownModel(
        "rater", "mplug-owl", "VideoPhy's rater with 1.4 M parameters for the simulated world: 16 frames of 64×64"
    ),
}

# Built-in networks on top of another model: no --model takes them.
MOTION_PARTS: dict[str, KnownModel] = {
    "motion-field-tiny": KnownModel(
        "motion field",
        "lamo",
        "LaMo's, with 0.2 M parameters, of cogvideox-tiny's latents; for --motion-field",
        of="cogvideox-tiny",
    ),
    "motion-field-wan-tiny": KnownModel(
        "motion field",
        "lamo",
        "LaMo's, with 0.2 M parameters, of wan-tiny's latents; for --motion-field",
        of="wan-tiny",
    ),
    "motion-projector-tiny": KnownModel(
        "motion projector",
        "moalign",
        "MoAlign's, with 0.2 M parameters, of videomae-tiny's tokens; for method.motion_projector",
        of="videomae-tiny",
    ),
}

KNOWN_HUB: dict[str, KnownModel] = {
    "zai-org/CogVideoX-2b": KnownModel(
        "generator", "cogvideox", "1.7 B parameters, 30 blocks, 49 frames of 480×720; the papers' base model"
    ),
    "zai-org/CogVideoX-5b": KnownModel(
        "generator", "cogvideox", "5.6 B parameters, 42 blocks, rotary positions, 49 frames of 480×720"
    ),
    "zai-org/CogVideoX1.5-5B": KnownModel(
        "generator", "cogvideox", "5.6 B parameters, 42 blocks, latent frames in pairs, 81 frames of 768×1360"
    ),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": KnownModel(
        "generator", "wan", "1.4 B parameters, 30 blocks, flow matching, 81 frames of 480×832"
    ),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": KnownModel(
        "generator", "wan", "14 B parameters, 40 blocks, flow matching, 81 frames of 480×832"
    ),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": KnownModel(
        "generator", "wan", "5 B parameters, 30 blocks, flow matching, 1/16 in space, 121 frames of 704×1280"
    ),
    "MCG-NJU/videomae-base": KnownModel("encoder", "videomae", "86 M parameters, 16 frames of 224×224"),
    "MCG-NJU/videomae-large": KnownModel("encoder", "videomae", "304 M parameters, 16 frames of 224×224"),
    "OpenGVLab/VideoMAEv2-Base": KnownModel(
        "encoder", "videomaev2", "86 M parameters, 16 frames of 224×224; the papers' default teacher"
    ),
    "facebook/dinov2-base": KnownModel("encoder", "dinov2", "86 M parameters, images, frame by frame"),
    "facebook/dinov2-large": KnownModel("encoder", "dinov2", "304 M parameters, images, frame by frame"),
    "facebook/vjepa2-vitl-fpc64-256": KnownModel("encoder", "vjepa2", "304 M parameters, 64 frames of 256×256"),
}


def display_names(models: Sequence[str], *, taken: Collection[str] = ()) -> dict[str, str]:
    """Names of models for tables: the last part of a path or id where that tells them apart, and from `taken`; else the
    whole."""
    short = {name: name.rstrip("/").rsplit("/", 1)[-1] for name in models}
    return {n: s if list(short.values()).count(s) == 1 and s not in taken else n for n, s in short.items()}
