#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: the 3-D convolution of one small clip.
#
# One would guess that a convolution of one clip takes half the time of two. For a batch of one, in float32, PyTorch leaves
# oneDNN out and takes its own slow kernel unless the input is large, and it weighs that by the first four sizes: batch,
# channels, frames and rows, which was the whole of a picture batch and leaves out the columns of a clip. So one clip of 16
# channels, 19 frames and 34x34 pixels takes longer than two, and with 1,000 columns it is still "small". Causal video
# VAEs that work in pieces of a few frames, as Wan's does, are on the slow side throughout when they decode one video.
#
# Seen: which kernel runs for which input, see `expected` below. The times are printed and not checked.
# Exit status 1 when any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/python" - <<'PY'
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile

torch.set_num_threads(1)
weight = torch.randn(16, 16, 3, 3, 3)


def kernel(*shape):
    clip = torch.randn(shape)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.nn.functional.conv3d(clip, weight)
    names = {event.key for event in seen.key_averages()}
    return "own" if "aten::slow_conv3d_forward" in names else "oneDNN" if "aten::mkldnn_convolution" in names else names


def seconds(*shape):
    clip, best = torch.randn(shape), float("inf")
    with torch.no_grad():
        for _ in range(8):
            start = time.perf_counter()
            torch.nn.functional.conv3d(clip, weight)
            best = min(best, time.perf_counter() - start)
    return best


expected = {
    (1, 16, 19, 34, 34): "own",
    (2, 16, 19, 34, 34): "oneDNN",
    (1, 16, 19, 67, 34): "own",  # 16 x 19 x 67 = 20,368
    (1, 16, 19, 68, 34): "oneDNN",  # 20,672: above 20,480
    (1, 16, 19, 34, 1000): "own",  # the columns do not count
}
found = {shape: kernel(*shape) for shape in expected}
for shape, name in found.items():
    print(f"{list(shape)}: {name}")
one, two = seconds(1, 16, 19, 34, 34), seconds(2, 16, 19, 34, 34)
print(f"PyTorch {torch.__version__}: one clip {one * 1000:.1f} ms, two together {two * 1000:.1f} ms")
sys.exit(found != expected)
PY
