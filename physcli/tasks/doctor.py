"""`physcli doctor`: what is installed here, what will work, and what will not and why."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from physcli import __version__
from physcli.data.cache import cache_sizes
from physcli.progress import counted
from physcli.tasks.run_dir import cache_root

# extra → (package as imported, what it is for)
EXTRAS = {
    "hdf5": ("h5py", "reading Physion v1 HDF5 files"),
    "eight-bit": ("bitsandbytes", "train.optimizer.name=adamw-8bit on CUDA"),
    "raft": ("torchvision", "objective.flow=raft of motion projectors"),
    "votes": ("krippendorff", "agreement between raters in `physcli eval votes`"),
    "trackers": ("tensorboard", "train.trackers=[tensorboard]"),
}
REQUIRED = (
    "typer",
    "rich",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "av",
    "pyyaml",
    "pydantic",
    "psutil",
    "numpy",
    "scipy",
    "scikit-learn",
    "threadpoolctl",
    "mujoco",
    "opencv-python-headless",
    "matplotlib",
    "safetensors",
    "sentencepiece",
)


@dataclass(frozen=True)
class Check:
    """One finding. `status` is ok, note (works, with a limit) or missing."""

    area: str
    name: str
    status: str
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(cache_dir: Path | None = None) -> list[Check]:
    """All checks, in the order they are shown."""
    return [*_software(), *_devices(), *_extras(), *_storage(cache_dir), *_models()]


def _software() -> list[Check]:
    checks = [
        Check("Software", "physcli", "ok", __version__),
        Check("Software", "Python", "ok", f"{platform.python_version()} on {platform.platform()}"),
    ]
    for name in REQUIRED:
        try:
            checks.append(Check("Software", name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            checks.append(Check("Software", name, "missing", "not installed", "pip install physcli"))
    try:
        import mujoco as mujoco
    except ImportError as error:  # pip's upgrade from 3.x takes away files that 4.0 has put in the same place
        said = str(error).splitlines()[0]
        remedy = "pip install --force-reinstall --no-deps mujoco mujoco-core mujoco-studio"
        checks = [check for check in checks if check.name != "mujoco"]
        checks.append(Check("Software", "mujoco", "missing", f"cannot be imported: {said}", remedy))
    return checks


def _devices() -> list[Check]:
    import torch

    checks = [
        Check(
            "Devices",
            "processor",
            "ok",
            f"{os.cpu_count()} cores, torch uses {counted(torch.get_num_threads(), 'thread')}",
        ),
        _memory(),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            checks.append(Check("Devices", f"cuda:{index}", "ok", f"{facts.name}, {facts.total_memory / 1e9:.0f} GB"))
    else:
        why = "this PyTorch is a CPU build" if torch.version.cuda is None else "no CUDA device or driver is seen"
        checks.append(
            Check(
                "Devices",
                "cuda",
                "note",
                f"none: {why}",
                "built-in models run on the CPU; published generators (CogVideoX, Wan) need a GPU",
            )
        )
    if torch.backends.mps.is_available():
        checks.append(Check("Devices", "mps", "ok", "Apple GPU"))
    return checks


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, AttributeError, OSError):
        return Check("Devices", "memory", "note", "unknown on this system")
    if total < 6e9:
        return Check("Devices", "memory", "note", f"{total / 1e9:.1f} GB", "large probes need about 6 GB; use --limit")
    return Check("Devices", "memory", "ok", f"{total / 1e9:.1f} GB")


def _extras() -> list[Check]:
    checks = []
    for extra, (package, purpose) in EXTRAS.items():
        if importlib.util.find_spec(package) is not None:
            checks.append(Check("Extras", extra, "ok", f"{package} {metadata.version(package)}: {purpose}"))
        else:
            checks.append(
                Check(
                    "Extras",
                    extra,
                    "note",
                    f"{package} is not installed",
                    f"{purpose}: pip install 'physcli[{extra}]'",
                )
            )
    return checks


def _storage(cache_dir: Path | None) -> list[Check]:
    root = cache_root(cache_dir)
    checks = [_writable("cache", root), _writable("working folder", Path.cwd())]
    for kind, (count, size) in cache_sizes(root).items():
        checks.append(Check("Storage", f"cache: {kind}", "ok", f"{size / 1e6:.1f} MB in {count} files"))
    return checks


def _writable(name: str, folder: Path) -> Check:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check("Storage", name, "missing", f"{folder}: {error.strerror}", "choose another --cache-dir or --out")
    if free < 2e9:
        return Check("Storage", name, "note", f"{folder}: {free / 1e9:.1f} GB free", "simulated suites need up to 2 GB")
    return Check("Storage", name, "ok", f"{folder}: {free / 1e9:.0f} GB free")


def _models() -> list[Check]:
    from physcli.models import BUILT_IN
    from physcli.models.tiny import asset_folder

    checks = []
    for name, known in BUILT_IN.items():
        if asset_folder(name) is None:
            means = "its answers" if known.kind == "rater" else "its features"
            checks.append(Check("Models", name, "note", "random init", f"{means} say what an untrained network sees"))
        else:
            checks.append(Check("Models", name, "ok", "trained weights"))
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        checks.append(Check("Models", "hub", "note", "HF_HUB_OFFLINE=1", "hub ids must be in the local cache already"))
    return checks
