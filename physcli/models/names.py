"""From a name to a model that is not loaded yet: what it stands for, where its files are, what it is known by.

A name is tried as: a built-in (`NAME:random` for the same architecture with seeded random weights, the control of every
claim about training); an existing path (diffusers or transformers folder, encoder checkpoint, physcli run
directory); a hub id. Built-ins win over a folder of the same name; write `./name` for the folder. `MODULE:CLASS@NAME`
reads a folder or hub id with a generator class of one's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from physcli.errors import ModelError, PhyscliError, UsageError, unknown
from physcli.models import (
    BUILT_IN,
    GENERATORS,
    KNOWN_HUB,
    LORA_FILE,
    MOTION_PARTS,
    PIPELINES,
    WEIGHT_SUFFIXES,
    Kind,
    KnownModel,
    shown_name,
)
from physcli.models.adapters import check_scale
from physcli.models.encoders import ENCODERS, detect_family
from physcli.models.fingerprints import hash_files
from physcli.models.hub import explain_hub_errors
from physcli.models.integrity import check_index, check_pipeline_folder, check_safetensors, read_json
from physcli.models.tiny import asset_folder, random_fingerprint

if TYPE_CHECKING:
    from physcli.models.generator import Facts

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OWN_CLASS = re.compile(r"(?P<location>[A-Za-z_][\w.]*:[A-Za-z_]\w*)@(?P<where>.+)")


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
        adapter_scale: What the LoRA's update is multiplied by.
        random_init: The weights were never trained; every table must say so.
        description: One line of facts.
        revision: Branch, tag or commit of a hub id.
        model_class: "module:Class" of a generator that physcli does not know, or None.
        began_as: Of a run's model, the `began_as` of the model it was trained from, as far as runs say; else `base`.
    """

    name: str
    kind: Kind
    family: str
    source: Literal["built-in", "folder", "run", "hub"]
    base: str
    path: Path | None
    adapter: Path | None = None
    adapter_scale: float = 1.0
    random_init: bool = False
    description: str = ""
    revision: str | None = None
    model_class: str | None = None
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
    adapter_scale: float = 1.0,
    local_files_only: bool = False,
) -> Resolved:
    """Find out what a model name stands for. Only an unknown hub id needs the network, for its small config file.

    Args:
        name: Built-in name, hub id, folder, checkpoint file or run directory.
        revision: For hub ids.
        adapter: A LoRA folder or file, or a run directory that holds `adapter/`; generators only.
        adapter_scale: What the update of this LoRA, or of the one that a run directory has, is multiplied by.
        local_files_only: Never reach for the network.

    Raises:
        UsageError: no such name, or that of a rater, motion field or motion projector; an adapter for an encoder; a
            scale that is 0 or no number, or without an adapter.
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
    check_scale(adapter_scale)
    if adapter_scale != 1 and found.adapter is None:
        raise UsageError(
            f"--adapter-scale {adapter_scale:g} for {name}, which has no adapter.",
            expected="a scale for --adapter, or for a run directory with adapter/",
            fix="leave it out, or add --adapter",
        )
    return replace(found, adapter_scale=adapter_scale)


def refuse_unknown(name: str) -> None:
    """Refuse a name that leads nowhere, before anything is simulated, read or fetched. A hub id is left to `resolve`.

    Raises:
        UsageError, ModelError: as `resolve`.
    """
    if not _is_hub_id(name):
        resolve(name)


_MADE_BY = {"motion_projector": "moalign-motion", "motion_field": "lamo-field"}


def part_folder(name: str, part: str, option: str) -> Path:
    """The folder or file of a motion field or projector that a user means: one of the package's, that of a run, or the
    path itself.

    Args:
        name: As given.
        part: motion_projector or motion_field: what a run calls it.
        option: How it was given, for the message.

    Raises:
        ModelError: it is not there.
    """
    if Path(name).name == name and (shipped := asset_folder(name)) is not None:
        return shipped
    path = Path(name).expanduser()
    if not path.exists():
        raise ModelError(
            f"{option}{name} is not there.",
            expected=f"the run of `physcli finetune --recipe {_MADE_BY[part]}`, or its {part}/",
            fix=f"train one first, or name it: {option}DIR",
        )
    return path / part if (path / part).is_dir() else path


def generator_class(resolved: Resolved) -> Any:
    """The class that adapts a generator.

    Raises:
        UsageError: a class of one's own that is not there, or is no generator.
    """
    if resolved.model_class is None:
        return import_class(GENERATORS[resolved.family])
    from physcli.models.diffusers_generator import DiffusersGenerator

    try:
        found = import_class(resolved.model_class)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{resolved.model_class}: {error}.",
            expected="MODULE:CLASS@FOLDER with a module that Python finds",
            fix="install it, or add its folder to PYTHONPATH",
        ) from error
    if not (isinstance(found, type) and issubclass(found, DiffusersGenerator)):
        raise UsageError(
            f"{resolved.model_class} is no generator.",
            expected="a subclass of physcli.models.diffusers_generator.DiffusersGenerator",
        )
    return found


def read_facts(resolved: Resolved) -> Facts:
    """A generator's facts, without reading a weight; fetches a hub model.

    Raises:
        ModelError: its configs cannot be read, or it is not supported.
    """
    family = generator_class(resolved)
    if resolved.random_init:
        return family.build(name=resolved.name, base=resolved.base).facts
    return family.facts_of(fetch(resolved).path, resolved.name)


def import_class(location: str) -> Any:
    """The class that "module:Class" names."""
    module, _, name = location.partition(":")
    return getattr(importlib.import_module(module), name)


def _is_hub_id(name: str) -> bool:
    """Whether it can be nothing else."""
    path = Path(name).expanduser()
    is_one = _HUB_ID.fullmatch(name) and path.suffix not in WEIGHT_SUFFIXES
    return bool(is_one) and not path.exists() and not Path(name.partition("/")[0]).is_dir()


def _resolve_base(name: str, revision: str | None, local_files_only: bool) -> Resolved:
    own = _OWN_CLASS.fullmatch(name)
    if own is not None:
        found = _resolve_own(name, own["where"], revision)
        return replace(found, model_class=own["location"])
    built_in, colon, variant = name.partition(":")
    if built_in in BUILT_IN and variant == ("random" if colon else ""):
        known = BUILT_IN[built_in]
        _refuse_other_kinds(name, known)
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
    if name in MOTION_PARTS:
        _refuse_other_kinds(name, MOTION_PARTS[name])
    path = Path(name).expanduser()
    if path.exists():
        if (path / "run.json").is_file():
            return _resolve_run(name, path, revision, local_files_only)
        return _resolve_path(name, path)
    if _is_hub_id(name):
        kind, family, description = _inspect_hub(name, revision, local_files_only)
        return Resolved(name, kind, family, "hub", base=name, path=None, description=description, revision=revision)
    if "/" in name or name.startswith((".", "~")) or path.suffix in WEIGHT_SUFFIXES:
        raise ModelError(
            f"There is no {path}.",
            expected="an existing model folder, checkpoint file or run directory",
            fix="check the path; `physcli models ls` lists the names that need none",
        )
    raise unknown("model", name, [*BUILT_IN, *MOTION_PARTS, *KNOWN_HUB])


# Kinds that are neither generator nor encoder → what they do, and where their names go.
_ELSEWHERE: dict[Kind, tuple[str, str]] = {
    "rater": ("it watches videos and answers questions", "physcli eval videophy2 --videos RUN --rater {name}"),
    "motion field": (
        "it predicts how {of}'s latents change",
        "physcli sample --guidance lamo --motion-field {name}, or physcli visualize field VIDEO --motion-field {name}",
    ),
    "motion projector": (
        "it maps {of}'s tokens to a motion subspace",
        "physcli finetune --recipe moalign method.motion_projector={name}",
    ),
}


def _refuse_other_kinds(name: str, known: KnownModel) -> None:
    """Raises UsageError for what is neither a generator nor an encoder."""
    if known.kind in _ELSEWHERE:
        what, where = (text.format(name=name, of=known.of) for text in _ELSEWHERE[known.kind])
        raise UsageError(f"{name} is a {known.kind}: {what}.", expected="a generator or an encoder", fix=where)


def _resolve_own(name: str, where: str, revision: str | None) -> Resolved:
    """A folder or hub id of a generator whose class is given with it."""
    path = Path(where).expanduser()
    common: Any = {
        "name": name,
        "kind": "generator",
        "family": "own",
        "base": name,
        "description": "a class of its own",
    }
    if path.exists():
        check_pipeline_folder(path, required=())
        return Resolved(source="folder", path=path, **common)
    if not _HUB_ID.fullmatch(where):
        raise ModelError(f"There is no {path}.", expected="MODULE:CLASS@FOLDER, or MODULE:CLASS@OWNER/NAME of the hub")
    return Resolved(source="hub", path=None, revision=revision, **common)


def _resolve_path(name: str, path: Path) -> Resolved:
    """A diffusers pipeline folder, or an encoder folder or file."""
    index = path / "model_index.json"
    if index.is_file():
        class_name = str(read_json(index).get("_class_name"))
        family = PIPELINES.get(class_name)
        if family is None:
            raise ModelError(
                f"{path} holds a {class_name}, which physcli cannot use.",
                expected=f"one of {', '.join(sorted(PIPELINES))} (families: {', '.join(GENERATORS)})",
                fix="a class of your own can adapt it: --model MODULE:CLASS@FOLDER",
            )
        check_pipeline_folder(path)
        return Resolved(name, "generator", family, "folder", base=name, path=path, description=class_name)
    if path.is_dir() and not any(path.iterdir()):
        raise ModelError(f"{path} is an empty folder.", expected="a model folder or run directory")
    for weights in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        check_safetensors(weights)
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
    settings = read_json(run / "run.json").get("settings")
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
    record = read_json(run / "run.json")
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
                check_safetensors(weights)
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
        what = f"model_type {read_json(file).get('model_type')!r}"
    else:
        what = str(read_json(file).get("_class_name"))
        if what in PIPELINES:
            check_index(read_json(file), name)
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
                DiffusionPipeline.download(
                    resolved.base.rpartition("@")[2], revision=resolved.revision, local_files_only=local_files_only
                )
            )
        else:
            from physcli.models.encoders.checkpoint import fetch as fetch_encoder

            path = fetch_encoder(resolved.base, revision=resolved.revision, local_files_only=local_files_only)
    if resolved.kind == "generator":
        check_pipeline_folder(path, **({} if resolved.model_class is None else {"required": ()}))
    return replace(resolved, path=path)


def fingerprint(resolved: Resolved, part: str | None = None) -> str:
    """A hash of everything that determines the model's features: weights, configs, tokenizer, adapter and its scale.

    Fetches a hub model. Random weights are hashed by what they are drawn from.

    Args:
        resolved: What `resolve` returned.
        part: Only this folder of a generator, such as "vae": models that share it share what it computes.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    if resolved.random_init:
        digest = hashlib.sha256(random_fingerprint(resolved.base, part).encode())
    else:
        path = fetch(resolved).path
        assert path is not None
        digest = hashlib.sha256(hash_files(path / part if part else path))
    if resolved.adapter is not None and part in (None, "transformer"):
        digest.update(hash_files(resolved.adapter))
        if resolved.adapter_scale != 1:
            digest.update(f"times {resolved.adapter_scale!r}".encode())
    return digest.hexdigest()
