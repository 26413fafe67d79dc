#!/usr/bin/env bash
# PyTorch 2.13.0: what a `with` block of a torch function mode holds for when backward() is called inside it.
#
# One would guess that a mode is on for all that runs in its block, on its thread. Function modes, to which
# `torch.device(...)` as a context belongs, are off in whatever Python the autograd engine calls: the backward of one's
# own autograd.Function, and the second run of a checkpointed block. So the same line makes its tensor on one device in
# the forward pass and on another in the backward one, and what a mode puts in an operation's place is there the first
# time and not the second: activation checkpointing then finds other saved tensors than before and gives up. Only the
# device is brought back, by the kind of checkpointing that is not reentrant. Dispatch modes stay on everywhere.
#
# Seen: inside `with torch.device("meta")`, torch.empty(1) is on meta in the forward pass and on cpu in the backward of
# a Function and in the second run of a reentrantly checkpointed block (on meta where it is not reentrant), all on one
# thread; a function mode counts the call in the forward pass alone, a dispatch mode counts all. Exit status 1 when any
# of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/python" - <<'PY'
import sys
import threading

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

counted = {"function": 0, "dispatch": 0}


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        counted["function"] += func is torch.erf
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        counted["dispatch"] += func is torch.ops.aten.erf.default
        return func(*args, **(kwargs or {}))


def look():
    """Where a new tensor lies, on which thread; and one operation for the modes to count."""
    with torch.no_grad():
        torch.erf(torch.ones(2, device="cpu"))
    return torch.empty(1).device.type, threading.get_ident()


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        seen.append(look())
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        seen.append(look())
        return gradient * 2


def block(x):
    seen.append(look())
    return torch.sin(x) * 2


failed = False
for name, run, later in (
    ("a Function of one's own", Own.apply, "cpu"),
    ("reentrant checkpoint", lambda x: checkpoint(block, x, use_reentrant=True), "cpu"),
    ("checkpoint", lambda x: checkpoint(block, x, use_reentrant=False), "meta"),
):
    seen = []
    counted.update(function=0, dispatch=0)
    x = torch.ones(3, requires_grad=True)
    with Functions(), Dispatches(), torch.device("meta"):
        run(x).sum().backward()
    devices, threads = [device for device, _ in seen], {thread for _, thread in seen}
    print(f"{name}: new tensors on {devices}, {len(threads)} thread; erf was run {len(seen)} times, counted {counted}")
    failed |= devices != ["meta", later] or len(threads) != 1 or counted != {"function": 1, "dispatch": 2}
sys.exit(failed)
PY
