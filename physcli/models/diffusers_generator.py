"""What all generators on diffusers' classes share: parts on demand, LoRA, saving, placing, and sampling with a
guidance.

A family's file says what differs: its classes, facts and noise, its codec, how its text is encoded, how its network is
called, and how its pipeline lays latents out.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import importlib
import inspect
import json
import math
import os
import re
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from physcli.errors import ModelError, UsageError, unknown
from physcli.hashing import seeded
from physcli.models import LORA_FILE, OWN_FILE
from physcli.models.adapters import BASE_SHA256, lora_file, shown_base
from physcli.models.codec import VideoCodec
from physcli.models.device import quiet_libraries
from physcli.models.fingerprints import hash_files, hash_module
from physcli.models.generator import Conditioning, Denoised, Facts, Guides, Sampled, Step
from physcli.models.hub import explain_hub_errors, first_line
from physcli.models.integrity import add_metadata, read_json, read_shapes
from physcli.models.noise import NoiseLevel, NoiseProcess
from physcli.models.parts import empty_part, is_empty, link_folder, read_part, widen
from physcli.models.step_cache import StepCache

_Codec = TypeVar("_Codec", bound=VideoCodec)

# The attention's projections, as in the papers.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")

# Keys of config files that say where a model was loaded from.
_OF_THIS_MACHINE = ("_name_or_path", "is_local", "local_files_only")

# What a folder's physcli.json may say of a model, and what each must be.
_OWN_FACTS: dict[str, Callable[[Any], bool]] = {
    "guidance_scale": lambda value: _is_number(value) and 0 <= value < float("inf"),
    "frame_rate_hz": lambda value: _is_number(value) and 0 < value < float("inf"),
    "num_frames": lambda value: type(value) is int and value > 0,
    "motion_channels": lambda value: type(value) is int and value > 0,
    "max_text_tokens": lambda value: type(value) is int and value > 0,
    "size": lambda value: isinstance(value, list) and len(value) == 2 and all(type(v) is int and v > 0 for v in value),
}


def _other_half(name: str) -> str:
    """The weight that belongs to one of a LoRA's two, in the names of diffusers and of others; of others, itself."""
    for one, other in (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up")):
        for part, counterpart in ((one, other), (other, one)):
            if part in name:
                return name.replace(part, counterpart)
    return name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_own_facts(folder: Path | None) -> dict[str, Any]:
    """What a pipeline folder says of its model that diffusers has no place for.

    Raises:
        ModelError: its physcli.json cannot be read, or says what cannot be.
    """
    path = folder / OWN_FILE if folder is not None else None
    if path is None or not path.is_file():
        return {}
    found = read_json(path)
    wrong = [name for name, value in found.items() if name not in _OWN_FACTS or not _OWN_FACTS[name](value)]
    if wrong:
        raise ModelError(
            f"{path}: {wrong[0]} is {found[wrong[0]]!r}.",
            expected='any of "guidance_scale" and "frame_rate_hz" (numbers), "num_frames", "max_text_tokens" and '
            '"motion_channels" (whole numbers), "size" ([height, width])',
        )
    return found


class DiffusersGenerator(ABC):
    """A diffusers pipeline with the interface of `physcli.models.generator.Generator`.

    Args:
        pipeline: The pipeline. `vae`, `text_encoder` and `tokenizer` may be None where only `denoise` is used.
        name: Shown in tables.
        random_init: The weights were never trained.
        own: What `physcli.json` says beside the configs; see `read_own_facts`.

    Attributes:
        pipeline: The stock diffusers pipeline.
        transformer: Its network.
    """

    kind: Literal["generator"] = "generator"
    family: ClassVar[str]
    pipeline_class: ClassVar[str]  # of diffusers
    part_classes: ClassVar[Mapping[str, Any]]  # of the parts with weights
    conditioning_parts: tuple[str, ...] = ("text",)
    takes_frame_rates = False
    channel_by_channel: ClassVar[bool] = False  # of a token, the values of a channel lie together; else of a place
    more_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "scheduler")

    def __init__(
        self, pipeline: Any, *, name: str, random_init: bool = False, own: Mapping[str, Any] | None = None
    ) -> None:
        self.pipeline = cast(Any, pipeline)  # its attributes are set by mixins that type checkers cannot see
        self.name = name
        self.random_init = random_init
        self.transformer = self.pipeline.transformer
        self.weight_parts = tuple(self.part_classes)
        self._folders: dict[str, Path] = {}  # of parts that are in files
        self._home: torch.device | str = "cpu"
        self._offloaded = False
        self._dtype = self.transformer.dtype
        self._reading = threading.Lock()
        configs = {
            part: module.config for part, module in self.pipeline.components.items() if hasattr(module, "config")
        }
        self._own = dict(own or {})
        self.facts = self.read_facts(configs, self._own, name)
        self.guidance_scale = self.facts.guidance_scale
        self.noise = self._noise_process()
        self.codec = self._codec()

    # -- what a family says --------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_facts(cls, configs: Mapping[str, Any], own: Mapping[str, Any], name: str) -> Facts:
        """The facts that configs by part, and `physcli.json`, tell.

        Raises:
            ModelError: a model of the family that is not supported.
        """

    @abstractmethod
    def _noise_process(self) -> NoiseProcess:
        """Raises ModelError where the scheduler is of another kind."""

    @abstractmethod
    def _codec(self) -> VideoCodec: ...

    @abstractmethod
    def embed(self, ids: Tensor) -> Conditioning:
        """What the network is told of prompts with these token ids [B, L], with gradients where they are enabled."""

    @abstractmethod
    def denoise(
        self,
        noisy: Tensor,
        level: NoiseLevel,
        conditioning: Conditioning,
        *,
        taps: Sequence[int] = (),
        features_only: bool = False,
    ) -> Denoised:
        """One forward pass of the network.

        Args:
            noisy: x_t [B, F, C, H, W], any float dtype (cast to the network's). Of a network that denoises M channels
                of motion beside it, with or without them; zeros are the motion that is not known.
            level: Of B clips.
            conditioning: Of B prompts, or of one for all.
            taps: Blocks, counted from 0, whose outputs are wanted: video tokens before the final norm.
            features_only: Stop after the deepest tap; `output` is None.

        Returns:
            The prediction, of as many channels as `noisy` has, and the features, with gradients where gradients are
            enabled.

        Raises:
            UsageError: a tap is not a block of this model.
            ValueError: shapes that do not fit.
        """

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Of the network, in their order."""

    @abstractmethod
    def _prompt_arguments(self, conditioning: Conditioning, negative: Conditioning | None) -> dict[str, Any]:
        """How the pipeline's call takes embedded prompts, and what else it must be told."""

    @abstractmethod
    def _canonical(self, latents: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """The pipeline's latents → [B, F, C, H, W], for a clip's (F, C, H, W)."""

    @abstractmethod
    def _as_pipeline(self, latents: Tensor) -> Tensor:
        """The inverse of `_canonical`."""

    @abstractmethod
    def _both_outputs(self, outputs: Sequence[Tensor], guided: bool) -> tuple[Tensor, Tensor | None]:
        """What the network gave in one step → (with prompts, without), as the pipeline lays latents out. `guided`:
        there is classifier-free guidance."""

    # -- making ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float32,
        name: str | None = None,
        random_init: bool = False,
        parts: Collection[str] | None = None,
    ) -> Self:
        """Load a pipeline folder in diffusers layout onto the CPU, strictly; then `place` it.

        `physcli.models.loading.load` is the usual way in.

        Args:
            path: The folder.
            dtype: Of the weights.
            name: Shown in tables.
            random_init: The weights were never trained.
            parts: Of those with weights, the ones to read now (default: all); the others have their configs, and their
                weights are read when they are needed (`need`).

        Raises:
            ModelError: a part is missing or cannot be read, or its weights do not fit its class exactly.
        """
        import diffusers

        folder = Path(path)
        wanted = cls.part_classes if parts is None else parts
        with explain_hub_errors(str(folder)):
            made = {
                part: read_part(cls.part_class(part, folder / part), folder / part, dtype)
                if part in wanted
                else empty_part(cls.part_class(part, folder / part), folder / part)
                for part in cls.part_classes
            }
            pipeline = getattr(diffusers, cls.pipeline_class).from_pretrained(str(folder), **made)
        generator = cls(pipeline, name=name or folder.name, random_init=random_init, own=read_own_facts(folder))
        generator._folders = {part: folder / part for part in (*cls.part_classes, *cls.more_parts)}
        generator._dtype = dtype
        return generator

    @classmethod
    def part_class(cls, part: str, folder: Path) -> Any:
        """The class of a part in a folder."""
        return cls.part_classes[part]

    @classmethod
    def facts_of(cls, folder: Path, name: str) -> Facts:
        """The facts of a pipeline folder; no weights are read.

        Raises:
            ModelError: its configs cannot be read, or it is not supported.
        """
        configs: dict[str, Any] = {}
        for part in (*cls.part_classes, *cls.more_parts):
            for file in ("config.json", "scheduler_config.json"):
                if (folder / part / file).is_file():
                    configs[part] = read_json(folder / part / file)
        return cls.read_facts(configs, read_own_facts(folder), name)

    # -- parts -------------------------------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        """The denoising network."""
        return cast(nn.Module, self.transformer)

    def _codec_of(self, codec_class: type[_Codec], *, temporal: int, spatial: int) -> _Codec:
        """A codec of this pipeline's VAE."""

        def vae(read: bool) -> Any:
            if read:
                self.need("vae")
            return self.pipeline.vae

        return codec_class(
            vae,
            lambda: self.device,
            name=self.name,
            temporal=temporal,
            spatial=spatial,
            side=spatial * self.facts.patch[1],
            channels=self.facts.latent_channels,
        )

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    @property
    def num_blocks(self) -> int:
        return self.facts.num_blocks

    @property
    def hidden_size(self) -> int:
        return self.facts.hidden_size

    @property
    def components(self) -> Mapping[str, Any]:
        """All parts of the pipeline by name, as its folder has them."""
        return {part: module for part, module in self.pipeline.components.items() if module is not None}

    def part(self, name: str) -> nn.Module:
        """A part by name, its weights read or not."""
        return cast(nn.Module, getattr(self.pipeline, name))

    def need(self, *parts: str, dtype: torch.dtype | None = None) -> None:
        """Read the weights of these parts that have not been read, onto `device`; from any thread.

        Args:
            parts: Of `weight_parts`.
            dtype: Another than the generator was loaded in.

        Raises:
            ModelError: they cannot be read, or do not fit the class exactly.
        """
        with self._reading, quiet_libraries():
            for part in parts:
                if is_empty(getattr(self.pipeline, part)):
                    folder = self._folders[part]
                    made = read_part(self.part_class(part, folder), folder, dtype or self._dtype)
                    self._put(part, made.requires_grad_(False).eval().to(self._home))

    def release(self, *parts: str) -> None:
        """Give back the memory of parts whose weights are in files; they are read again when they are needed."""
        released = []
        for part in parts:
            if part in self._folders and not is_empty(getattr(self.pipeline, part)):
                released.append(weakref.ref(getattr(self.pipeline, part)))
                self._put(part, empty_part(self.part_class(part, self._folders[part]), self._folders[part]))
        if any(there() is not None for there in released):  # in a circle of references, as hooks make them
            gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _put(self, part: str, module: Any) -> None:
        self.pipeline.register_modules(**{part: module})
        if part == "transformer":
            self.transformer = module

    def fingerprint(self, part: str) -> str:
        """A hash of what determines a part's values: of its files, or where it is in none, of config and weights."""
        folder = self._folders.get(part)
        return hash_module(getattr(self.pipeline, part)) if folder is None else hash_files(folder).hex()

    def use_vae(self, path: str | os.PathLike[str]) -> None:
        """Replace the VAE by the one in a folder (diffusers layout), read when it is needed.

        Raises:
            ModelError: it cannot be read, or has other latents.
        """
        vae = empty_part(self.part_classes["vae"], Path(path))
        for key in self.vae_identity:
            if vae.config.get(key) != self.vae.config.get(key):
                raise ModelError(
                    f"The VAE in {path} has {key} {vae.config.get(key)}.", expected=f"{self.vae.config.get(key)}"
                )
        self._folders["vae"] = Path(path)
        self._put("vae", vae)

    vae_identity: ClassVar[tuple[str, ...]] = ("latent_channels", "temporal_compression_ratio")

    def use_rope_grid(self, kind: Literal["linspace", "slice"]) -> None:
        """Choose where rotary positions sit on a grid that is not the native one.

        Raises:
            UsageError: this model has no such choice.
        """
        raise UsageError(
            f"rope_grid_type={kind} for {self.name}, a {self.family} whose positions leave no choice.",
            expected="a CogVideoX with rotary positions (5B, 1.5)",
            fix="leave it out",
        )

    def add_motion(self, channels: int) -> None:
        """Let the network take and give motion latents beside a clip's (VideoJAM). Its new weights are zeros, so that
        it predicts of the clip what it did, whatever the motion. A plain pipeline refuses such a model: the VAE has
        fewer channels.

        Args:
            channels: M.

        Raises:
            UsageError: it has motion latents of another number of channels, or is of a family that cannot have any.
        """
        self.check_motion(channels)
        if channels == self.facts.motion_channels:
            return
        latents = self.facts.latent_channels
        places, whole = math.prod(self.facts.patch), latents + channels
        # Which values of a wider token are those of the old one.
        old = torch.arange(places * whole).reshape((whole, places) if self.channel_by_channel else (places, whole))
        old = (old[:latents] if self.channel_by_channel else old[:, :latents]).flatten()
        first, last = self.ends()
        is_linear = isinstance(first, nn.Linear)  # a convolution takes channels
        widen(first, inputs=(places * whole, old) if is_linear else (whole, torch.arange(latents)))
        widen(last, outputs=(places * whole, old))
        self.transformer.register_to_config(in_channels=latents + channels, out_channels=latents + channels)
        self._own["motion_channels"] = channels
        self.facts = dataclasses.replace(self.facts, motion_channels=channels)
        self._folders.pop("transformer", None)

    def check_motion(self, channels: int) -> None:
        """Raises UsageError where `add_motion` would; no weights are needed."""
        self.ends()
        if self.facts.motion_channels not in (0, channels):
            raise UsageError(
                f"{channels} channels of motion for {self.name}, which has {self.facts.motion_channels}.",
                expected="the same motion latents as it was trained with",
            )

    def ends(self) -> tuple[Any, Any]:
        """The layers that take the noisy latents and give the prediction.

        Raises:
            UsageError: the family does not say which they are, and so cannot have motion latents.
        """
        raise UsageError(
            f"Motion latents for {self.name}, a {self.family}.",
            expected="a CogVideoX or a Wan",
            fix="use another model",
        )

    def use_text_encoder(self, path: str | os.PathLike[str]) -> None:
        """Give the text encoder the weights of the one in a folder (transformers layout).

        Raises:
            ModelError: it cannot be read, or does not fit.
        """
        own = self.pipeline.text_encoder
        weights = self._text_weights(Path(path), own)
        shapes = {name: value.shape for name, value in own.state_dict().items()}
        wrong = [
            name for name in {**shapes, **weights} if name not in weights or weights[name].shape != shapes.get(name)
        ]
        if wrong:
            raise ModelError(
                f"The text encoder in {path} has other weights than that of {self.name}, such as {wrong[0]}.",
                expected=f"a {type(own).__name__} of its sizes",
            )
        made = type(own)(own.config)
        made.load_state_dict(weights)
        self._folders.pop("text_encoder", None)
        self._put("text_encoder", made)

    def _text_weights(self, folder: Path, own: Any) -> dict[str, Tensor]:
        """The weights of a text encoder in a folder, by the names that `own` has them by."""
        weights: dict[str, Tensor] = read_part(type(own), folder, torch.float32).state_dict()
        return weights

    def save(self, folder: Path, *, frozen: Collection[str] = ()) -> None:
        """Write the pipeline as a diffusers folder, with a LoRA merged into its weights. Plain diffusers loads it, and
        samples from it unless it has motion latents.

        Args:
            folder: To be made.
            frozen: Parts that are as they were read: they are linked from where they are (`link_folder`), as are those
                that were not read at all. `vae`, `text_encoder`, `tokenizer`, …
        """
        if self.has_adapter:
            network, folders = self.transformer, dict(self._folders)
            self._put("transformer", copy.deepcopy(network))
            try:
                self.merge_adapter()
                return self.save(folder, frozen=frozen)
            finally:
                self._put("transformer", network)
                self._folders = folders
        self.pipeline.save_config(folder)
        described_in = [*folder.glob("*.json")]
        for part, module in self.components.items():
            if part in self._folders and (part in frozen or (part in self.part_classes and is_empty(module))):
                link_folder(self._folders[part], folder / part)
            elif hasattr(module, "save_pretrained"):
                module.save_pretrained(folder / part)
                described_in += (folder / part).glob("*config.json")
        for file in described_in:
            text = file.read_text(encoding="utf-8")
            # transformers 5 writes a class name that transformers 4 does not have; both know this one.
            described = json.loads(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'))
            for key in _OF_THIS_MACHINE:
                described.pop(key, None)
            file.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        own = self._own | {"guidance_scale": self.guidance_scale}
        configs = {part: module.config for part, module in self.components.items() if hasattr(module, "config")}
        if own["guidance_scale"] == self.read_facts(configs, {}, self.name).guidance_scale:
            del own["guidance_scale"]
        if own:
            (folder / OWN_FILE).write_text(f"{json.dumps(own, indent=2)}\n", encoding="utf-8")

    def place(
        self,
        device: torch.device | str,
        *,
        cpu_offload: bool = False,
        vae_tiling: bool = False,
        vae_slicing: bool = False,
    ) -> None:
        """Put the parts where they shall run, in evaluation mode without gradients.

        Args:
            device: Where to compute.
            cpu_offload: Keep the parts in main memory and bring each to the device only while it runs.
            vae_tiling: Encode and decode large frames in tiles.
            vae_slicing: Encode and decode the clips of a batch one by one.
        """
        self._home, self._offloaded = device, cpu_offload
        parts = [module for name in self.weight_parts if (module := getattr(self.pipeline, name)) is not None]
        for part in parts:
            part.requires_grad_(False).eval()
        if vae_tiling:
            self.vae.enable_tiling()
        if vae_slicing:
            self.vae.enable_slicing()
        if cpu_offload:
            self.pipeline.enable_model_cpu_offload(device=device)
        else:
            for part in parts:
                if not is_empty(part):
                    part.to(device)

    def compile(self) -> None:
        """Run the network's blocks compiled from now on: what they compute differs in rounding, and no cache can lie on
        them."""
        for block in self.blocks:
            block.compile()

    @property
    def device(self) -> torch.device:
        """Where the forward pass runs (with CPU offload, not where the weights rest)."""
        if self._offloaded:
            return self.pipeline._execution_device
        # Not of the pipeline, which looks at every module for it: 4 ms a call.
        first = next(self.transformer.parameters())
        return torch.device(self._home) if first.is_meta else first.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    # -- adapters ----------------------------------------------------------------------------------------------------

    def load_adapter(self, path: str | os.PathLike[str], scale: float = 1.0) -> None:
        """Put a LoRA (a folder or a .safetensors file, diffusers' format) on the transformer.

        Args:
            path: The LoRA.
            scale: A weight W becomes W + scale · alpha / rank · BA, as by `adapter_weights` of diffusers'
                `set_adapters`; where the file names no alpha, alpha / rank is 1.

        Raises:
            ModelError: it cannot be read, or was made for other shapes or layers.
        """
        file = lora_file(Path(path))
        before = self._count_lora()
        try:
            names = {name for name in read_shapes(file) if not name.endswith("alpha")}
            if half := min((name for name in names if _other_half(name) not in names), default=None):
                raise ValueError(f"it has {half} and no {_other_half(half)}")
            with quiet_libraries(), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of layers without an update, which may be meant
                # Offline, diffusers must be told the name.
                try:
                    self.pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
                except (IndexError, TypeError, AttributeError) as error:  # how it meets names that it does not expect
                    raise ValueError(
                        f"diffusers cannot read weights with names such as {min(names, default='none')}"
                    ) from error
                except KeyError as error:
                    raise ValueError(f"diffusers looks in it for {first_line(error)}, and does not find it") from error
            loaded, held = self._count_lora() - before, len(names)
            if loaded != held:  # diffusers passes over weights that find no layer
                raise ValueError(f"{held - loaded} of its {held} weights are of layers that this model does not have")
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, ModelError) as error:
            raise ModelError(
                f"The adapter {file} does not load onto {self.name}: {first_line(error)}",
                expected="a LoRA in diffusers format, trained on the same architecture",
                fix="name the model it was trained on with --model",
            ) from error
        self.transformer.eval()  # peft leaves a loaded adapter's dropout on
        if scale != 1:
            self.transformer.set_adapters(list(self.transformer.peft_config), scale)

    def _count_lora(self) -> int:
        return sum("lora_" in name for name, _ in self.transformer.named_parameters())

    @property
    def has_adapter(self) -> bool:
        """A LoRA lies on the transformer."""
        return bool(getattr(self.transformer, "peft_config", None))

    def merge_adapter(self) -> None:
        """Add a loaded LoRA's updates to the transformer's weights for good; nothing if there is none."""
        if self.has_adapter:
            self.pipeline.fuse_lora(components=["transformer"])
            self.pipeline.unload_lora_weights()
            self._folders.pop("transformer", None)  # its weights are in no file now

    def add_lora(
        self, *, rank: int, alpha: int, dropout: float = 0.0, targets: Sequence[str] = LORA_TARGETS, seed: int = 0
    ) -> None:
        """Give the transformer low-rank updates to train; its own weights are frozen.

        Args:
            rank: r.
            alpha: The update is scaled by alpha / r.
            dropout: On the input of the updates.
            targets: Ends of the names of the linear layers that get one.
            seed: Of their weights. An update is zero at first.

        Raises:
            UsageError: no layer is called so.
        """
        from peft import LoraConfig

        chosen = self.lora_layers(targets)
        self.transformer.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)
        with seeded(seed):
            self.transformer.add_adapter(config)
        for parameter in self.transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # small, and AdamW's steps vanish in bfloat16

    def lora_layers(self, targets: Sequence[str]) -> list[str]:
        """What names the linear layers that `targets` mean, for PEFT. No weights are needed.

        Raises:
            UsageError: no layer is called so.
        """
        modules = dict(self.transformer.named_modules())
        matched = {name for name in modules if f".{name}".endswith(tuple(f".{end}" for end in targets))}
        linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
        unmatched = [end for end in targets if not any(f".{name}".endswith(f".{end}") for name in linear)]
        if unmatched:
            ends = sorted({re.sub(r"^.*?\d+\.", "", name) for name in linear})
            raise UsageError(
                f"lora.targets: no linear layer of {self.name} is called {', '.join(unmatched)}.",
                expected=f"ends of {', '.join(ends)}",
            )
        # By ends, unless a convolution has such a name, too: PEFT would give it one.
        return list(targets) if matched <= linear else sorted(matched & linear)

    def save_lora(self, folder: Path) -> None:
        """Write the updates as diffusers' LoRA file; alpha is in its metadata, without which loaders take it for r, and
        what they were trained on. Dropout is not: loaders leave it on, and the same seed would give two videos."""
        from peft.utils import get_peft_model_state_dict

        self.pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(self.transformer),
            transformer_lora_adapter_metadata=self.transformer.peft_config["default"].to_dict()
            | {"lora_dropout": 0.0, "base_model_name_or_path": shown_base(self.name)},
        )
        if "transformer" in self._folders:
            add_metadata(folder / LORA_FILE, {BASE_SHA256: self.fingerprint("transformer")})

    # -- sizes -------------------------------------------------------------------------------------------------------

    def token_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The token grid (F, H, W) of a clip, in that order; (13, 30, 45) for 49×480×720 in CogVideoX 1.0.

        F counts the leading frames that some models need (`codec.pad`).

        Raises:
            UsageError: a length or size that does not divide.
        """
        self.codec.check(num_frames)
        self.codec.check_size(height, width)
        frames, rows, columns = self.facts.patch
        side = self.codec.spatial
        return -(-self.codec.latent_frames(num_frames) // frames), height // (side * rows), width // (side * columns)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(F, C, h, w) of a clip's latents as the network takes them.

        Raises:
            UsageError: a length or size that does not divide.
        """
        frames, rows, columns = (
            size * part for size, part in zip(self.token_grid(num_frames, height, width), self.facts.patch, strict=True)
        )
        return frames, self.facts.latent_channels, rows, columns

    def _with_motion(self, noisy: Tensor) -> Tensor:
        """What the network takes: where nothing is said of motion, zeros."""
        missing = self.facts.latent_channels + self.facts.motion_channels - noisy.shape[2]
        return functional.pad(noisy, (0, 0, 0, 0, 0, missing)) if missing else noisy

    def _check_latents(self, noisy: Tensor) -> tuple[int, int, int]:
        """The token grid of latents [B, F, C, H, W].

        Raises:
            ValueError: another shape, or one that does not divide into tokens.
        """
        channels = self.facts.latent_channels
        taken = dict.fromkeys((channels, channels + self.facts.motion_channels))
        if noisy.ndim != 5 or noisy.shape[2] not in taken:
            raise ValueError(f"noisy must be [B, F, {' or '.join(map(str, taken))}, H, W], got {list(noisy.shape)}")
        sides = (noisy.shape[1], *noisy.shape[3:])
        if any(size % part for size, part in zip(sides, self.facts.patch, strict=True)):
            raise ValueError(
                f"latents of {'x'.join(map(str, sides))} do not divide into patches of "
                f"{'x'.join(map(str, self.facts.patch))}"
            )
        frames, rows, columns = (size // part for size, part in zip(sides, self.facts.patch, strict=True))
        return frames, rows, columns

    @staticmethod
    def _denoised(output: Tensor | None, hidden_states: Mapping[int, Tensor], grid: tuple[int, int, int]) -> Denoised:
        """`output` [B, F, C, H, W] with what `tapped` kept, tap → [B, F·H·W, D], on the token grid (F, H, W)."""
        tokens = dict(sorted(hidden_states.items()))
        return Denoised(output, {tap: hidden.unflatten(1, grid) for tap, hidden in tokens.items()}, tokens)

    # -- text --------------------------------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids int64 [B, L] as the stock pipeline makes them, padded and cut to L."""
        return self.pipeline.tokenizer(
            self._clean(prompts),
            padding="max_length",
            max_length=self.facts.max_text_tokens,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).input_ids

    def _clean(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as the stock pipeline hands them to its tokenizer."""
        return list(prompts)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """What the network is told of B prompts, on `device`. A longer prompt loses its end; `prompt_lengths` tells
        which."""
        self.need("text_encoder")
        return self.embed(self.tokenize(prompts))

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt, end token included; those above `facts.max_text_tokens` would be cut."""
        return [len(ids) for ids in self.pipeline.tokenizer(self._clean(prompts), truncation=False).input_ids]

    def unknown_words(self, prompt: str) -> list[str]:
        """Words that the tokenizer takes for one and the same unknown token."""
        tokenizer, [text] = self.pipeline.tokenizer, self._clean([prompt])
        if not tokenizer.is_fast:  # only these say which characters a token stands for
            return []
        tokens = tokenizer(text, truncation=False, return_offsets_mapping=True)
        places = zip(tokens.input_ids, tokens.offset_mapping, strict=True)
        found = [text[start:end] for token, (start, end) in places if token == tokenizer.unk_token_id]
        return list(dict.fromkeys(found))

    # -- sampling ----------------------------------------------------------------------------------------------------

    def use_scheduler(self, name: str | None) -> None:
        """Sample with another scheduler on the checkpoint's own noise schedule and spacing; None leaves its own.

        Raises:
            UsageError: the family has no such scheduler.
        """
        if name is None:
            return
        if name not in self.facts.schedulers:
            raise unknown("scheduler", name, self.facts.schedulers)
        module, _, class_name = self.facts.schedulers[name].partition(":")
        self.pipeline.scheduler = self._scheduler(getattr(importlib.import_module(module), class_name))

    def _scheduler(self, scheduler_class: Any) -> Any:
        """One of this class, of diffusers, on the checkpoint's own noise schedule."""
        return scheduler_class.from_config(self.pipeline.scheduler.config)

    @property
    def scheduler_name(self) -> str:
        """The class of what it samples with."""
        return type(self.pipeline.scheduler).__name__

    @property
    def max_steps(self) -> int:
        """The most denoising steps that the scheduler takes."""
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_frames: int,
        height: int,
        width: int,
        steps: int = 50,
        guidance_scale: float | None = None,
        guidance: Guides | None = None,
        cache: StepCache | None = None,
        frame_rates_hz: Sequence[float] | None = None,
        each_step: Callable[[], None] | None = None,
    ) -> Sampled:
        """One batch of videos from the stock pipeline, its scheduler as the checkpoint has it.

        A guidance changes what the scheduler is fed and nothing else, so it works with every scheduler; without one the
        videos are the stock pipeline's to the bit.

        Args:
            prompts: B texts.
            seeds: B seeds, of each video's first noise and of what the scheduler adds.
            num_frames: Pixel frames T.
            height: In pixels.
            width: In pixels.
            steps: Denoising steps.
            guidance_scale: Classifier-free guidance against the empty prompt; none at 1 and below. Default: the
                model's.
            guidance: One of `physcli.guidance`; one that asks the network itself cannot go with a cache.
            cache: Leaves out most of the network at some steps.
            frame_rates_hz: B rates that the videos are to be seen at, or one for all; only some networks are told.
                Default: the model's.
            each_step: Called after every denoising step.

        Raises:
            ModelError: the output is not finite.
            UsageError: the network cannot have this cache.
        """
        scale = self.guidance_scale if guidance_scale is None else guidance_scale

        latest: dict[str, Tensor] = {}

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            latest.update(tensors)
            if each_step is not None:
                each_step()
            return {}

        self.pipeline.set_progress_bar_config(disable=True)
        with quiet_libraries():  # prompts that are too long are told of by `sample`, in its own words
            # Encoded here, once, as the pipeline would: a guidance reads them, too.
            conditioning = self.encode_prompts(prompts)
            negative = self.encode_prompts([""] * len(prompts)) if scale > 1 else None
            if frame_rates_hz is not None:
                conditioning = conditioning.at_rates(frame_rates_hz)
            shape = self.latent_shape(num_frames, height, width)
            if guidance is not None:
                guidance.prepare(conditioning, latent_frames=shape[0], steps=steps, scale=scale)
            cached = contextlib.nullcontext() if cache is None else cache.on(self.transformer, self.blocks)
            with cached as counted, self._guided(guidance, shape, steps=steps, scale=scale) as measured:
                with_motion = self.facts.motion_channels > 0
                made = self.pipeline(
                    **self._prompt_arguments(conditioning, negative),
                    num_frames=num_frames,
                    height=height,
                    width=width,
                    num_inference_steps=steps,
                    guidance_scale=scale,
                    # On the CPU whatever the device, so that every device gets the same noise.
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    callback_on_step_end=after_step,
                    callback_on_step_end_tensor_inputs=["latents"],
                    output_type="latent" if with_motion else "np",
                ).frames
            latents = self._canonical(latest["latents"], shape)[:, :, : shape[1]]
            if with_motion:  # which the pipeline would hand to the VAE
                made = self.codec.decode(latents, num_frames=num_frames).movedim(2, -1).float().cpu()
        pixels = np.asarray(made)
        if not np.isfinite(pixels).all():
            raise ModelError(
                f"The videos of {self.name} are not numbers (NaN), in {self.dtype}.",
                expected="finite pixels",
                fix="try --dtype float32 or bfloat16; if it stays so, the weights are damaged",
            )
        frames = (pixels * 255).round().astype(np.uint8)
        computed = None if counted is None else counted.share
        if guidance is None:
            return Sampled(frames, latents, computed=computed)
        names = next(iter(measured.values()), {})
        rows = {name: torch.stack([logs[name] for logs in measured.values()], dim=1).cpu().numpy() for name in names}
        return Sampled(frames, latents, tuple(measured), rows, computed)

    @contextlib.contextmanager
    def _guided(
        self, guidance: Guides | None, shape: tuple[int, int, int, int], *, steps: int, scale: float
    ) -> Iterator[dict[int, dict[str, Tensor]]]:
        """Inside, the pipeline's scheduler is fed guided outputs; gives what each step measures, [B] a name."""
        measured: dict[int, dict[str, Tensor]] = {}
        if guidance is None:
            yield measured
            return
        scheduler = self.pipeline.scheduler
        stock = scheduler.step
        signature = inspect.signature(stock)
        outputs: list[Tensor] = []  # of the network, since the last step
        index = 0

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output.sample)

        @functools.wraps(stock)  # the pipeline reads its signature
        def guided(*args: Any, **kwargs: Any) -> Any:
            nonlocal index
            bound = signature.bind(*args, **kwargs)
            sample, fed = bound.arguments["sample"], bound.arguments["model_output"]
            noisy = self._canonical(sample, shape)
            timestep = bound.arguments["timestep"]
            level = self.noise.of_step(scheduler, index, timestep).expand(len(noisy))
            conditional = unconditional = None
            if guidance.mixes:
                both = self._both_outputs(outputs, scale > 1)
                conditional, unconditional = (
                    part if part is None else self._canonical(part.float(), shape) for part in both
                )
            clip = noisy[:, :, : shape[1]]
            step = Step(
                index=index,
                count=steps,
                level=level,
                asked=self.noise.of_time(torch.as_tensor(timestep).reshape(1)).expand(len(noisy)),
                noisy=noisy,
                output=self._canonical(fed, shape),
                scale=scale,
                conditional=conditional,
                unconditional=unconditional,
                clean=lambda output: self.noise.clean(output[:, :, : shape[1]], clip, level),
            )
            mixed = guidance.mix(step).to(fed.dtype) if guidance.mixes else step.output
            step = dataclasses.replace(step, noisy=clip, output=mixed[:, :, : shape[1]])
            output, logs = guidance.after(step)
            if logs:
                measured[index] = logs
            if guidance.mixes or output is not step.output:
                whole = torch.cat([output, mixed[:, :, shape[1] :].to(output.dtype)], dim=2)
                bound.arguments["model_output"] = self._as_pipeline(whole).to(fed.dtype)
            index += 1
            outputs.clear()
            return stock(*bound.args, **bound.kwargs)

        handle = self.transformer.register_forward_hook(keep) if guidance.mixes else None
        scheduler.step = guided
        try:
            yield measured
        finally:
            del scheduler.step  # the class's own again
            if handle is not None:
                handle.remove()
