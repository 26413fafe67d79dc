"""Where models run and in which precision, and their libraries kept quiet."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from physcli.errors import ModelError, UsageError, unknown

if TYPE_CHECKING:
    import torch

# Under autocast Wan's norms of queries and keys get half-precision inputs and have float32 weights, which is meant. Not
# in the family's file: that is imported below `quiet_libraries`, which gives the filters back as they were.
warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight", category=UserWarning)

_BIG_BYTES = 1e9  # above this, weights are held in bfloat16 on accelerators
_STATUS = Path("/proc/self/status")

_DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


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


def peak_memory(device: torch.device) -> float:
    """The most bytes that were held: on a GPU reserved there, else by this process."""
    import torch

    return float(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else most_memory()


def most_memory() -> float:
    """Bytes of main memory that this process held at most."""
    if _STATUS.is_file():  # Linux, where getrusage also counts what the process held that started this one
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return 1024.0 * int(line.split()[1])
    import resource  # not on Windows

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
