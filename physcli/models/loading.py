"""Loading a model: the one place that decides source, device, dtype, revision, adapter and memory options."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

from physcli.errors import UsageError
from physcli.models.adapters import read_adapter, remarks_on
from physcli.models.device import computes_in_bfloat16 as computes_in_bfloat16
from physcli.models.device import pick_device, pick_dtype, quiet_libraries, refuse_too_large
from physcli.models.encoders import ENCODERS
from physcli.models.fingerprints import hash_files
from physcli.models.integrity import MODEL_PARTS, num_values, weight_bytes
from physcli.models.names import Resolved, fetch, generator_class, import_class, resolve
from physcli.models.names import fingerprint as fingerprint
from physcli.models.parts import cast_part
from physcli.progress import Reporter

if TYPE_CHECKING:
    import torch

    from physcli.models.encoders.base import Encoder
    from physcli.models.generator import Generator


def load(
    name: str | Resolved,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    adapter_scale: float = 1.0,
    cpu_offload: bool = False,
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    local_files_only: bool = False,
    parts: Collection[str] = MODEL_PARTS,
    reporter: Reporter | None = None,
) -> Generator | Encoder:
    """Load a model, whole and strictly, frozen and in evaluation mode.

    Args:
        name: As for `resolve`, or what `resolve` returned (then `revision`, `adapter` and its scale are taken from it).
        device: "auto" (CUDA, then Apple's MPS, then CPU), or a torch device.
        dtype: "auto" (see `pick_dtype`), or float32/fp32, bfloat16/bf16, float16/fp16.
        revision: For hub ids.
        adapter: LoRA on top of a generator.
        adapter_scale: What its update is multiplied by.
        cpu_offload: Generators on CUDA: keep parts in main memory until they run.
        vae_tiling: Generators: encode and decode large frames in tiles.
        vae_slicing: Generators: encode and decode the clips of a batch one by one.
        local_files_only: Never reach for the network.
        parts: Of a generator's transformer, vae and text_encoder, those to read now; the others are read when they are
            needed. The transformer is, where there is an adapter.
        reporter: Told what a LoRA leaves unsaid, and that it was trained on another model.

    Returns:
        A generator or an encoder; `kind`, `name` and `random_init` are attributes of both.

    Raises:
        UsageError: unknown name, device or dtype; options that do not fit the model.
        ModelError: the checkpoint is missing, incomplete, damaged, unreachable, does not fit its class, or is larger
            than main memory on a CPU.
    """
    place = pick_device(device)
    resolved = (
        name
        if isinstance(name, Resolved)
        else resolve(
            name,
            revision=revision,
            adapter=adapter,
            adapter_scale=adapter_scale,
            local_files_only=local_files_only,
        )
    )
    if resolved.kind == "encoder" and (cpu_offload or vae_tiling or vae_slicing):
        raise UsageError(
            f"{resolved.name} is an encoder: it has no parts to offload and no VAE.",
            fix="leave the memory options out",
        )
    if cpu_offload and place.type == "cpu":
        raise UsageError(
            "CPU offload was asked for, but the device is the CPU.",
            expected="a CUDA device",
            fix="leave it out",
        )
    resolved = fetch(resolved, local_files_only=local_files_only)
    weight_dtype = pick_dtype(dtype, place, weight_bytes(resolved.path))
    if resolved.kind == "generator" and resolved.path is not None:
        refuse_too_large(resolved.name, num_values(resolved.path, parts), weight_dtype, place)
    with quiet_libraries():
        loaded = _load(resolved, place, weight_dtype, cpu_offload, vae_tiling, vae_slicing, parts)
    if reporter is not None:
        for remark in _adapter_remarks(resolved):
            reporter.warn(remark)
    return loaded


def _adapter_remarks(resolved: Resolved) -> list[str]:
    if resolved.adapter is None:
        return []
    facts = read_adapter(resolved.adapter)
    folder = None if resolved.path is None else resolved.path / "transformer"
    known = facts.base_sha256 is not None and folder is not None and folder.is_dir()
    sha256 = hash_files(folder).hex() if known and folder is not None else None
    return remarks_on(facts, resolved.adapter_scale, resolved.base, sha256)


def _load(
    resolved: Resolved,
    device: torch.device,
    dtype: torch.dtype,
    cpu_offload: bool,
    vae_tiling: bool,
    vae_slicing: bool,
    parts: Collection[str],
) -> Generator | Encoder:
    if resolved.kind == "encoder":
        encoder_class = import_class(ENCODERS[resolved.family])
        if resolved.random_init:
            encoder: Encoder = encoder_class.build(device=device, dtype=dtype)
        else:
            encoder = encoder_class.from_pretrained(resolved.path, device=device, dtype=dtype)
        encoder.requires_grad_(False).eval()
        encoder.name = resolved.name
        encoder.random_init = resolved.random_init
        return encoder

    family = generator_class(resolved)
    if resolved.random_init:
        generator = family.build(name=resolved.name, base=resolved.base)
        for part in generator.weight_parts:
            cast_part(generator.part(part), dtype)
    else:
        parts = {*parts, "transformer"} if resolved.adapter is not None else parts
        generator = family.from_pretrained(resolved.path, dtype=dtype, name=resolved.name, parts=parts)
    if resolved.adapter is not None:
        generator.load_adapter(resolved.adapter, resolved.adapter_scale)
    generator.place(device, cpu_offload=cpu_offload, vae_tiling=vae_tiling, vae_slicing=vae_slicing)
    return cast("Generator", generator)


def load_generator(name: str | Resolved, *, what: str = "--model ", **options: Any) -> Generator:
    """`load`, where an encoder will not do.

    Args:
        name: As for `load`.
        what: How the name was given, for the message.
        options: As for `load`.

    Raises:
        UsageError, ModelError: as `load`; or it is an encoder.
    """
    model = load(name, **options)
    if model.kind != "generator":
        shown = name if isinstance(name, str) else name.name
        raise UsageError(f"{what}{shown} is an encoder.", expected="a generator; `physcli models ls` lists them")
    return cast("Generator", model)


def load_encoder(name: str | Resolved, *, what: str = "--model ", **options: Any) -> Encoder:
    """`load`, where a generator will not do.

    Raises:
        UsageError, ModelError: as `load`; or it is a generator.
    """
    model = load(name, **options)
    if model.kind != "encoder":
        shown = name if isinstance(name, str) else name.name
        raise UsageError(f"{what}{shown} is a generator.", expected="an encoder; `physcli models ls` lists them")
    return cast("Encoder", model)
