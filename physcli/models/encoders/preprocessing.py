"""Preprocessing belongs to the checkpoint: what it is, and reading it from a processor file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from physcli.models.encoders.checkpoint import read_json

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as processor files store them


@dataclass(frozen=True)
class Preprocessing:
    """From RGB frames in [0, 1] to the input a checkpoint was trained on.

    Attributes:
        mean: Per channel, RGB, on the [0, 1] scale.
        std: Per channel, RGB, on the [0, 1] scale.
        height: Native height in pixels; None where any multiple of the patch is native.
        width: Native width in pixels, or None.
        num_frames: Native clip length, or None for image models. Other lengths are accepted.
        interpolation: How frames are resized.
        antialias: Whether shrinking filters first. VideoREPA's teachers are fed without.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    height: int | None = 224
    width: int | None = 224
    num_frames: int | None = 16
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = False


def from_processor(processor: Mapping[str, Any], default: Preprocessing) -> Preprocessing:
    """The preprocessing a transformers processor config describes; `default` for what it leaves out.

    Processors resize with Pillow, which filters before it shrinks, hence `antialias=True`. They crop the
    centre; only the size of that crop is taken over (see `Encoder.prepare`).
    """
    size = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    height, width = _height_width(size or processor.get("size")) or (default.height, default.width)
    normalise = processor.get("do_normalize", True)
    mean = tuple(processor.get("image_mean", default.mean)) if normalise else (0.0, 0.0, 0.0)
    std = tuple(processor.get("image_std", default.std)) if normalise else (1.0, 1.0, 1.0)
    return Preprocessing(
        mean=mean,
        std=std,
        height=height,
        width=width,
        num_frames=default.num_frames,
        interpolation=_INTERPOLATIONS.get(processor.get("resample", 2), "bilinear"),  # type: ignore[arg-type]
        antialias=True,
    )


def read_preprocessing(path: Path, default: Preprocessing) -> Preprocessing:
    """The checkpoint's own preprocessing where its folder has a processor file, else `default`."""
    folder = path if path.is_dir() else path.parent
    processor = next((found for name in _PROCESSOR_FILES if (found := read_json(folder / name))), None)
    return default if processor is None else from_processor(processor, default)


def _height_width(size: Any) -> tuple[int, int] | None:
    """Processor files write a size as a number, {"shortest_edge": n} or {"height": h, "width": w}."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    if isinstance(size, dict) and "height" in size:
        return size["height"], size["width"]
    return None


def write_preprocessing(folder: Path, preprocessing: Preprocessing) -> None:
    """Write the processor file that `read_preprocessing` (and transformers) reads."""
    content = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "size": {"height": preprocessing.height, "width": preprocessing.width},
        "resample": next(number for number, name in _INTERPOLATIONS.items() if name == preprocessing.interpolation),
    }
    (folder / _PROCESSOR_FILES[-1]).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
