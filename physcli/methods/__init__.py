"""The table of alignment methods. Nothing heavy is imported here: a recipe is read, or refused, without torch.

Adding a method with a teacher is its file here – the loss, and its settings: a subclass of
`physcli.methods.settings.Alignment` that names the loss – a line below, and a recipe. `physcli recipes schema` then
makes `recipes/schema.json` anew.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from physcli.methods.settings import MethodSettings

# `method.name` in a recipe → its settings. A module is imported when a recipe names its method.
METHODS: dict[str, str] = {
    "sft": "physcli.methods.settings:Sft",
    "repa": "physcli.methods.settings:Repa",
    "irepa": "physcli.methods.settings:IRepa",
    "crepa": "physcli.methods.settings:Crepa",
    "videorepa": "physcli.methods.settings:VideoRepa",
    "tsa": "physcli.methods.settings:Tsa",
    "moalign": "physcli.methods.settings:MoAlign",
    "lamo": "physcli.methods.settings:LaMo",
    "layersync": "physcli.methods.settings:LayerSync",
    "motif": "physcli.methods.settings:Motif",
    "critic": "physcli.methods.settings:Critic",
    "videojam": "physcli.methods.settings:VideoJam",
    "nft": "physcli.methods.settings:Nft",
    "raft": "physcli.methods.settings:Raft",
}


def settings_class(name: str) -> type[MethodSettings]:
    """The settings of a method in the table."""
    return imported(METHODS[name])


def imported(target: str) -> Any:
    """What `module:name` stands for."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
