"""Parts of a diffusers pipeline folder: read when they are needed, empty until then, linked where they are unchanged.

An empty part has its class and config and no weights: its parameters are on torch's meta device.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from physcli.errors import ModelError
from physcli.models.fingerprints import model_files
from physcli.models.hub import explain_hub_errors, first_line

# Computed from the config on loading, or tied to another weight.
_REDUNDANT_WEIGHTS = frozenset({"patch_embed.pos_embedding", "encoder.embed_tokens.weight"})


def read_part(part_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """`part_class.from_pretrained(folder)`, where missing or left-over weights are an error, not a warning.

    Raises:
        ModelError: the folder cannot be read, or its weights do not fit the class exactly.
    """
    try:
        with explain_hub_errors(str(folder)):
            part, info = part_class.from_pretrained(str(folder), torch_dtype=dtype, output_loading_info=True)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise _does_not_load(part_class, folder, error) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted({str(key) for key in info[problem]} - _REDUNDANT_WEIGHTS)
        if names:
            raise ModelError(
                f"{folder}: {len(names)} {problem.replace('_keys', '')} weights, such as {', '.join(names[:5])}.",
                expected=f"exactly the weights of {part_class.__name__} with that config.json",
                fix="copy or download that folder again",
            )
    return part


@torch.no_grad()
def widen(
    layer: nn.Linear | nn.Conv2d | nn.Conv3d,
    *,
    inputs: tuple[int, Tensor] | None = None,
    outputs: tuple[int, Tensor] | None = None,
) -> None:
    """Give a layer more inputs or outputs, in place; its new weights are zeros.

    Args:
        layer: Linear, or a convolution.
        inputs: How many it shall have, and which of them are those it has, int64 [old number]; None: as they are.
        outputs: Likewise.
    """
    weight = layer.weight
    for axis, new in ((1, inputs), (0, outputs)):
        if new is not None:
            shape = list(weight.shape)
            shape[axis] = new[0]
            weight = weight.new_zeros(shape).index_copy(axis, new[1].to(weight.device), weight)
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if outputs is not None and layer.bias is not None:
        bias = layer.bias.new_zeros(outputs[0]).index_copy(0, outputs[1].to(weight.device), layer.bias)
        layer.bias = nn.Parameter(bias, requires_grad=layer.bias.requires_grad)
    is_linear = isinstance(layer, nn.Linear)
    if inputs is not None:
        setattr(layer, "in_features" if is_linear else "in_channels", inputs[0])
    if outputs is not None:
        setattr(layer, "out_features" if is_linear else "out_channels", outputs[0])


def empty_part(part_class: Any, folder: Path) -> Any:
    """A part as its folder's config.json describes it, without reading its weights.

    Raises:
        ModelError: the config cannot be read, or is of another class.
    """
    try:
        with explain_hub_errors(str(folder)):
            if issubclass(part_class, PreTrainedModel):
                with torch.device("meta"):
                    return part_class(part_class.config_class.from_pretrained(str(folder)))
            with init_empty_weights():  # as diffusers does: buffers keep their values
                return part_class.from_config(part_class.load_config(str(folder)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise _does_not_load(part_class, folder, error) from error


def cast_part(part: nn.Module, dtype: torch.dtype) -> None:
    """Another dtype for a part's weights, as if it had been loaded in it: layers that its class keeps in float32 stay
    so, and in diffusers' classes that have such layers all buffers, too (positions); `.to(dtype)` would lose that."""
    named = set(getattr(part, "_keep_in_fp32_modules", None) or ())
    if isinstance(part, PreTrainedModel) and dtype != torch.float16:
        named = set(part._keep_in_fp32_modules_strict or ())  # the others are there for float16 alone
    if not named or dtype not in (torch.bfloat16, torch.float16):
        part.to(dtype)
        return
    for name, weight in part.named_parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(torch.float32 if named & set(name.split(".")) else dtype)


def is_empty(part: nn.Module | None) -> bool:
    """Whether a part's weights have not been read."""
    first = None if part is None else next(part.parameters(), None)
    return first is not None and first.is_meta


def link_folder(source: Path, target: Path) -> None:
    """Put a folder's model files into another, byte for byte: hard links where the disk has them, copies elsewhere.

    Never symbolic links: the source may be a cache that is cleared.

    Raises:
        OSError: the target cannot be written.
    """
    for file in model_files(source):
        made = target / file.relative_to(source)
        made.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), made)  # the hub's cache is made of symbolic links
        except OSError:
            shutil.copy(file, made)


def _does_not_load(part_class: Any, folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{folder} does not load as {part_class.__name__}: {first_line(error)}",
        expected="weights and config.json of one checkpoint, whole",
        fix="copy or download that folder again",
    )
