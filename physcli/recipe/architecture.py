"""The `architecture` section of a recipe that trains a built-in generator from nothing: a class a family of models.

The section says of which family it is; CogVideoX's need not, being the first there were.
"""

from __future__ import annotations

from typing import Any, Literal

from physcli.sections import Section

Config = dict[str, Any]  # keyword arguments of a diffusers or transformers class


class Architecture(Section):
    """None is given: it is that of the built-in model which the recipe names."""


class CogVideoXArchitecture(Architecture):
    """`seed`: of the weights. `transformer`: config of CogVideoXTransformer3DModel. `vae`: of AutoencoderKLCogVideoX.
    `text_encoder`: of T5EncoderModel. `scheduler`: of CogVideoXDPMScheduler."""

    family: Literal["cogvideox"] = "cogvideox"
    seed: int
    transformer: Config
    vae: Config
    text_encoder: Config
    scheduler: Config


FAMILIES: dict[str, type[Architecture]] = {"cogvideox": CogVideoXArchitecture}
DEFAULT_FAMILY = "cogvideox"
