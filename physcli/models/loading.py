"""From a name to a model: the one place that decides source, device, dtype, revision, adapter and memory options.

A name is tried as: a built-in (`NAME:random` for the same architecture with seeded random weights, the control of every
claim about training); an existing path (diffusers or transformers folder, encoder checkpoint, physcli run
directory); a hub id. Built-ins win over a folder of the same name; write `./name` for the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from physcli.errors import ModelError, PhyscliError, UsageError, unknown
from physcli.models import BUILT_IN, GENERATORS, KNOWN_HUB, LORA_FILE, PIPELINES, WEIGHT_SUFFIXES, Kind, shown_name
from physcli.models.encoders import ENCODERS, detect_family
from physcli.models.fingerprints import hash_files
from physcli.models.hub import explain_hub_errors

if TYPE_CHECKING:
    import torch

    from physcli.models.cogvideox import CogVideoX
    from physcli.models.encoders.base import Encoder

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MODEL_PARTS = ("transformer", "vae", "text_encoder")
_BIG_BYTES = 1e9  # above this, weights are held in bfloat16 on accelerators

_DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


@dataclass(frozen=True)
class Resolved:
    """What a model name stands for; nothing is loaded yet.

    Attributes:
        name: As the user wrote it; what tables show.
        kind: "generator" or "encoder".
        family: A key of `GENERATORS` or `ENCODERS`.
        source: Where the name led.
        base: The built-in name, hub id or path that the weights come from.
        path: The folder (or checkpoint file) with the weights; None for random weights, which have no file, and for
            hub models until `fetch`.
        adapter: A LoRA folder or file to put on top, or None.
        random_init: The weights were never trained; every table must say so.
        description: One line of facts.
        revision: Branch, tag or commit of a hub id.
        began_as: Of a run's model, the `began_as` of the model it was trained from, as far as runs say; else `base`.
    """

    name: str
    kind: Kind
    family: str
    source: Literal["built-in", "folder", "run", "hub"]
    base: str
    path: Path | None
    adapter: Path | None = None
    random_init: bool = False
    description: str = ""
    revision: str | None = None
    began_as: str = ""

    def __post_init__(self) -> None:
        if not self.began_as:
            object.__setattr__(self, "began_as", self.base)

    @property
    def for_simulated_world(self) -> bool:
        """Whether it is a built-in model, or was trained from one: its videos are of the simulated world."""
        return self.began_as in BUILT_IN

    @property
    def label(self) -> str:
        """The name as tables show it."""
        return shown_name(self.name, self.random_init)


def resolve(
    name: str,
    *,
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Resolved:
    """Find out what a model name stands for. Only an unknown hub id needs the network, for its small config file.

    Args:
        name: Built-in name, hub id, folder, checkpoint file or run directory.
        revision: For hub ids.
        adapter: A LoRA folder or file, or a run directory that holds `adapter/`; generators only.
        local_files_only: Never reach for the network.

    Raises:
        UsageError: no such name, or a rater's; an adapter for an encoder.
        ModelError: the path is not a model, or not a whole one; the hub cannot be reached.
    """
    found = _resolve_base(name, revision, local_files_only)
    if adapter is not None:
        if found.adapter is not None:
            raise UsageError(
                f"{name} already has the adapter {found.adapter}, and {adapter} was given too.",
                expected="one adapter",
                fix=f"give --model {found.base} with --adapter {adapter}",
            )
        found = replace(found, adapter=_find_adapter(Path(adapter)))
    if found.adapter is not None and found.kind == "encoder":
        raise UsageError(f"{name} is an encoder, and adapters are for generators.", fix="leave --adapter out")
    return found


def _resolve_base(name: str, revision: str | None, local_files_only: bool) -> Resolved:
    built_in, colon, variant = name.partition(":")
    if built_in in BUILT_IN and variant == ("random" if colon else ""):
        from physcli.models.tiny import asset_folder

        known = BUILT_IN[built_in]
        if known.kind == "rater":
            raise UsageError(
                f"{name} is a rater: it watches videos and answers questions.",
                expected="a generator or an encoder",
                fix=f"physcli eval videophy2 --videos RUN --rater {name}",
            )
        folder = None if colon else asset_folder(built_in)
        return Resolved(
            name,
            known.kind,
            known.family,
            "built-in",
            base=built_in,
            path=folder,
            random_init=folder is None,
            description=known.description,
        )
    path = Path(name).expanduser()
    if path.exists():
        if (path / "run.json").is_file():
            return _resolve_run(name, path, revision, local_files_only)
        return _resolve_path(name, path)
    if _HUB_ID.fullmatch(name) and not Path(name.partition("/")[0]).is_dir() and path.suffix not in WEIGHT_SUFFIXES:
        kind, family, description = _inspect_hub(name, revision, local_files_only)
        return Resolved(name, kind, family, "hub", base=name, path=None, description=description, revision=revision)
    if "/" in name or name.startswith((".", "~")) or path.suffix in WEIGHT_SUFFIXES:
        raise ModelError(
            f"There is no {path}.",
            expected="an existing model folder, checkpoint file or run directory",
            fix="check the path; `physcli models ls` lists the names that need none",
        )
    raise unknown("model", name, [*BUILT_IN, *KNOWN_HUB])


def _resolve_path(name: str, path: Path) -> Resolved:
    """A diffusers pipeline folder, or an encoder folder or file."""
    index = path / "model_index.json"
    if index.is_file():
        class_name = str(_read_json(index).get("_class_name"))
        family = PIPELINES.get(class_name)
        if family is None:
            raise ModelError(
                f"{path} holds a {class_name}, which physcli cannot use.",
                expected=f"one of {', '.join(sorted(PIPELINES))}",
            )
        _check_pipeline_folder(path)
        return Resolved(name, "generator", family, "folder", base=name, path=path, description=class_name)
    if path.is_dir() and not any(path.iterdir()):
        raise ModelError(f"{path} is an empty folder.", expected="a model folder or run directory")
    for weights in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        _check_safetensors(weights)
    family = detect_family(path)
    if family is None:
        inside = sorted(entry.name for entry in path.iterdir())[:6] if path.is_dir() else []
        raise ModelError(
            f"{path} is not a model physcli knows" + (f"; it holds {', '.join(inside)}." if inside else "."),
            expected="a diffusers pipeline folder (model_index.json), a transformers encoder folder (config.json), "
            f"an official checkpoint of {', '.join(sorted(ENCODERS))}, or a physcli run directory (run.json)",
        )
    return Resolved(name, "encoder", family, "folder", base=name, path=path, description=f"{family} checkpoint")


def _resolve_run(name: str, run: Path, revision: str | None, local_files_only: bool) -> Resolved:
    """What a physcli run made: its `model/`, or its base model with its `adapter/`."""
    settings = _read_json(run / "run.json").get("settings")
    settings = settings.get("recipe", settings) if isinstance(settings, dict) else None
    base = settings.get("model") if isinstance(settings, dict) else None
    if (run / "model").is_dir():
        found = replace(_resolve_path(name, run / "model"), source="run")
        with contextlib.suppress(PhyscliError):  # the model it was trained from may be gone, or far away
            if isinstance(base, str):
                found = replace(found, began_as=_resolve_base(base, revision, True).began_as)
        return found
    if (run / "adapter").is_dir():
        if not isinstance(base, str):
            raise ModelError(
                f"{run}/run.json does not say which model its adapter belongs to.",
                expected='"settings": {"recipe": {"model": NAME, …}}',
                fix=f"give the base yourself: --model NAME --adapter {run}",
            )
        found = _resolve_base(base, revision, local_files_only)
        return replace(found, name=name, source="run", adapter=_find_adapter(run))
    record = _read_json(run / "run.json")
    raise ModelError(
        f"{run} is a run of `{record.get('command')}` and holds no model (its status: {record.get('status')}).",
        expected="a run of `physcli finetune` that finished: model/ or adapter/ inside",
        fix="finish that run, or name another",
    )


def _find_adapter(path: Path) -> Path:
    """A LoRA folder or file; of a run directory, its `adapter/`."""
    path = path.expanduser()
    for candidate in (path / "adapter", path):
        if (candidate / LORA_FILE).is_file() or (candidate.is_file() and candidate.suffix == ".safetensors"):
            for weights in candidate.glob("*.safetensors") if candidate.is_dir() else [candidate]:
                _check_safetensors(weights)
            return candidate
    raise ModelError(
        f"{path} {'holds no adapter' if path.exists() else 'does not exist'}.",
        expected=f"a folder with {LORA_FILE}, a .safetensors file, or a run directory with adapter/",
    )


def _inspect_hub(name: str, revision: str | None, local_files_only: bool) -> tuple[Kind, str, str]:
    """Kind, family and description of a hub id: from the table, else from its own config file."""
    if name in KNOWN_HUB:
        known = KNOWN_HUB[name]
        return known.kind, known.family, known.description
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def download(file_name: str, only_local: bool) -> Path:
        return Path(hf_hub_download(name, file_name, revision=revision, local_files_only=only_local))

    with explain_hub_errors(name):
        try:
            file = download("model_index.json", local_files_only)
        except LocalEntryNotFoundError:  # offline; an encoder may be in the cache all the same
            file = download("config.json", True)
        except EntryNotFoundError:  # reached, and no pipeline
            file = download("config.json", False)
    if file.name == "config.json":
        family = detect_family(file.parent)
        if family is not None:
            return "encoder", family, f"{family} checkpoint"
        what = f"model_type {_read_json(file).get('model_type')!r}"
    else:
        what = str(_read_json(file).get("_class_name"))
        if what in PIPELINES:
            return "generator", PIPELINES[what], what
    raise ModelError(
        f"{name} is a {what}, which physcli cannot use.",
        expected=f"a pipeline ({', '.join(sorted(PIPELINES))}) or an encoder ({', '.join(sorted(ENCODERS))})",
    )


def fetch(resolved: Resolved, *, local_files_only: bool = False) -> Resolved:
    """The same model with its files on this machine: downloads a hub model, leaves others as they are.

    Raises:
        ModelError: it cannot be downloaded.
    """
    if resolved.path is not None or resolved.random_init:
        return resolved
    with explain_hub_errors(resolved.base):
        if resolved.kind == "generator":
            from diffusers import DiffusionPipeline

            path = Path(
                DiffusionPipeline.download(resolved.base, revision=resolved.revision, local_files_only=local_files_only)
            )
        else:
            from physcli.models.encoders.checkpoint import fetch as fetch_encoder

            path = fetch_encoder(resolved.base, revision=resolved.revision, local_files_only=local_files_only)
    if resolved.kind == "generator":
        _check_pipeline_folder(path)
    return replace(resolved, path=path)


def load(
    name: str | Resolved,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    cpu_offload: bool = False,
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    local_files_only: bool = False,
    parts: Collection[str] = _MODEL_PARTS,
) -> CogVideoX | Encoder:
    """Load a model, whole and strictly, frozen and in evaluation mode.

    Args:
        name: As for `resolve`, or what `resolve` returned (then `revision` and `adapter` are taken from it).
        device: "auto" (CUDA, then Apple's MPS, then CPU), or a torch device.
        dtype: "auto" (see `pick_dtype`), or float32/fp32, bfloat16/bf16, float16/fp16.
        revision: For hub ids.
        adapter: LoRA on top of a generator.
        cpu_offload: Generators on CUDA: keep parts in main memory until they run.
        vae_tiling: Generators: encode and decode large frames in tiles.
        vae_slicing: Generators: encode and decode the clips of a batch one by one.
        local_files_only: Never reach for the network.
        parts: Of a generator's transformer, vae and text_encoder, those to read now; the others are read when they are
            needed. The transformer is, where there is an adapter.

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
        else resolve(name, revision=revision, adapter=adapter, local_files_only=local_files_only)
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
    weight_dtype = pick_dtype(dtype, place, _weight_bytes(resolved.path))
    if resolved.kind == "generator" and resolved.path is not None:
        refuse_too_large(resolved.name, _num_values(resolved.path, parts), weight_dtype, place)
    with quiet_libraries():
        return _load(resolved, place, weight_dtype, cpu_offload, vae_tiling, vae_slicing, parts)


def _load(
    resolved: Resolved,
    device: torch.device,
    dtype: torch.dtype,
    cpu_offload: bool,
    vae_tiling: bool,
    vae_slicing: bool,
    parts: Collection[str],
) -> CogVideoX | Encoder:
    table = GENERATORS if resolved.kind == "generator" else ENCODERS
    model_class = _import(table[resolved.family])

    if resolved.kind == "encoder":
        if resolved.random_init:
            from physcli.models.tiny import build_videomae

            encoder: Encoder = build_videomae(device=device, dtype=dtype)
        else:
            encoder = model_class.from_pretrained(resolved.path, device=device, dtype=dtype)
        encoder.requires_grad_(False).eval()
        encoder.name = resolved.name
        encoder.random_init = resolved.random_init
        return encoder

    if resolved.random_init:
        from physcli.models.tiny import build_cogvideox

        generator: CogVideoX = model_class(build_cogvideox(), name=resolved.name, random_init=True)
        generator.pipeline.to(dtype)
    else:
        parts = {*parts, "transformer"} if resolved.adapter is not None else parts
        generator = model_class.from_pretrained(resolved.path, dtype=dtype, name=resolved.name, parts=parts)
    if resolved.adapter is not None:
        generator.load_adapter(resolved.adapter)
    generator.place(device, cpu_offload=cpu_offload, vae_tiling=vae_tiling, vae_slicing=vae_slicing)
    return generator


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars, load reports, logged errors and deprecation notices of diffusers and transformers: what
    matters is checked here and raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device to compute on.

    Raises:
        UsageError: not a device, or one this machine does not have.
    """
    import torch

    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"Unknown device: {device!r}.", expected="auto, cpu, cuda, cuda:N or mps") from None
    count = torch.cuda.device_count() if chosen.type == "cuda" else 0
    if chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= count):
        raise UsageError(
            f"The device {device} was asked for, but PyTorch {torch.__version__} sees {count} CUDA devices.",
            expected=f"a device below cuda:{count}" if count else "--device cpu, or auto",
            fix="`physcli doctor` shows what PyTorch sees; a CPU build of PyTorch sees no GPU",
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("The device mps was asked for, but PyTorch sees none.", expected="--device cpu, or auto")
    return chosen


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16. A CPU without them takes three times as long as in float32."""
    import torch

    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def pick_dtype(dtype: str | torch.dtype, device: torch.device, num_bytes: int = 0) -> torch.dtype:
    """The dtype of the weights.

    "auto" is bfloat16 (float16 on a GPU without it) for checkpoints above 1 GB on an accelerator, float32 otherwise:
    small models gain nothing from half precision, and CPUs lose time by it.

    Args:
        dtype: "auto", a name, or the dtype itself.
        device: Where it will run.
        num_bytes: Size of the checkpoint on disk.

    Raises:
        UsageError: an unknown name.
    """
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type == "cpu" or num_bytes < _BIG_BYTES:
            return torch.float32
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float16
    if dtype not in _DTYPES:
        raise unknown("dtype", dtype, ["auto", *_DTYPES])
    return getattr(torch, _DTYPES[dtype])


def refuse_too_large(name: str, num_values: int, dtype: torch.dtype, device: torch.device) -> None:
    """On a CPU, refuse a model that is larger than the memory that is free: nobody else would say why it was killed.

    Raises:
        ModelError: names both sizes.
    """
    if device.type != "cpu":
        return
    needed, half, free = num_values * dtype.itemsize, num_values * 2, psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"{name} takes {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}; {free / 1e9:.1f} GB are free.",
            expected="weights that fit into this machine's memory",
            fix=f"--dtype bfloat16 takes {half / 1e9:.1f} GB" if half < min(needed, free) else "use a larger machine",
        )


def _num_values(folder: Path, parts: Collection[str]) -> int:
    """Numbers in the safetensors files of a pipeline's parts."""
    from physcli.models.encoders.checkpoint import read_shapes

    files = [file for part in parts for file in sorted((folder / part).glob("*.safetensors"))]
    return sum(math.prod(shape) for file in files for shape in read_shapes(file).values())


def fingerprint(resolved: Resolved, part: str | None = None) -> str:
    """A hash of everything that determines the model's features: weights, configs, tokenizer, adapter.

    Fetches a hub model. Random weights are hashed by what they are drawn from.

    Args:
        resolved: What `resolve` returned.
        part: Only this folder of a generator, such as "vae": models that share it share what it computes.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    if resolved.random_init:
        from physcli.models.tiny import random_fingerprint

        digest = hashlib.sha256(random_fingerprint(resolved.base, part).encode())
    else:
        path = fetch(resolved).path
        assert path is not None
        digest = hashlib.sha256(hash_files(path / part if part else path))
    if resolved.adapter is not None and part in (None, "transformer"):
        digest.update(hash_files(resolved.adapter))
    return digest.hexdigest()


def _weight_bytes(path: Path | None) -> int:
    """Size on disk of a checkpoint's weight files; 0 where there are none."""
    if path is None:
        return 0
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHT_SUFFIXES)


def _check_pipeline_folder(folder: Path) -> None:
    """Refuse a pipeline folder that is not whole, before anything large is read.

    Raises:
        ModelError: names the missing parts or the damaged file.
    """
    index = _read_json(folder / "model_index.json")
    missing = []
    for part in (*_MODEL_PARTS, "tokenizer", "scheduler"):
        if not index.get(part) or index[part][0] is None:
            missing.append(f"{part} (not in model_index.json)")
        elif not (folder / part).is_dir():
            missing.append(f"{part}/")
        elif part in _MODEL_PARTS:
            if not (folder / part / "config.json").is_file():
                missing.append(f"{part}/config.json")
            if not any(file.suffix in WEIGHT_SUFFIXES for file in (folder / part).iterdir()):
                missing.append(f"the weights in {part}/")
            missing += _missing_shards(folder, part)
    if missing:
        raise ModelError(
            f"{folder} is not a whole pipeline; missing: {', '.join(missing)}.",
            expected="the folder as `save_pretrained` or a full download leaves it",
            fix="copy or download it again",
        )
    for weights in sorted(folder.rglob("*.safetensors")):
        _check_safetensors(weights)


def _missing_shards(folder: Path, part: str) -> list[str]:
    """Weight files that a sharded checkpoint's index names and the folder lacks."""
    shards: set[str] = set()
    for index in (folder / part).glob("*.index.json"):
        weight_map = _read_json(index).get("weight_map", {})
        present = {name for name in weight_map.values() if (folder / part / name).is_file()}
        # Repositories may carry a second index for a format that was not downloaded.
        if present or len(list((folder / part).glob("*.index.json"))) == 1:
            shards |= set(weight_map.values()) - present
    return [f"{part}/{name}" for name in sorted(shards)]


def _check_safetensors(path: Path) -> None:
    """Refuse a safetensors file that is shorter than its own header says; reads the header only."""
    if path.suffix != ".safetensors":
        return
    size = path.stat().st_size
    with path.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        header = stream.read(header_size) if 8 + header_size <= size else b""
    needed = 8 + header_size
    try:
        entries = json.loads(header) if header else None
        if entries is not None:
            needed += max((v["data_offsets"][1] for k, v in entries.items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        entries = None
    if entries is None or size != needed:
        raise ModelError(
            f"{path} is damaged: it has {size:,} bytes" + (f", its header says {needed:,}." if entries else "."),
            expected="a whole safetensors file (a Git LFS pointer or a cut-short download is not one)",
            fix="copy or download it again",
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}.", fix="copy or download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}.", expected="a JSON object")
    return content


def _import(location: str) -> Any:
    """The class a table line names, "module:Class"."""
    module, _, name = location.partition(":")
    return getattr(importlib.import_module(module), name)
