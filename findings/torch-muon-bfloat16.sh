#!/usr/bin/env bash
# PyTorch 2.13.0: the precision of torch.optim.Muon.
#
# One would guess that an optimizer computes in its parameters' dtype, or in a better one. Muon rounds each gradient to
# bfloat16 before it orthogonalises it and comes back from there, for parameters in float32 and float64, too, and no
# option of it says otherwise. So the step has eight bits, gradients that round to the same bfloat16 give one and the
# same step (a gradient check of it in float64 fails), and on a CPU without bfloat16 arithmetic it takes many times as
# long as the same sums in float32.
#
# Seen: the update of a square float64 matrix at a learning rate of 1 is exact in bfloat16, entry by entry, and a change
# of the gradient by 1e-9 of itself leaves all of it the same to the bit. AdamW's is not and does not. Times are printed
# and not checked. Exit status 1 when any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/python" - <<'PY'
import sys
import time

import torch

torch.set_num_threads(1)
gradient = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def update(make, gradient):
    weight = torch.nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient
    make([weight]).step()
    return weight.detach()


def muon(weights):
    return torch.optim.Muon(weights, lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0)


def adamw(weights):
    return torch.optim.AdamW(weights, lr=1.0, betas=(0.9, 0.99), eps=1.0, weight_decay=0.0)


failed = False
for name, make, rounded in (("Muon", muon, True), ("AdamW", adamw, False)):
    step = update(make, gradient)
    short = torch.equal(step.bfloat16().double(), step)
    noise = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    same = float((update(make, gradient * (1 + 1e-9 * noise)) == step).double().mean())
    print(f"{name}: dtype {step.dtype}; exact in bfloat16: {short}; entries that a change by 1e-9 leaves alone: {same:.0%}")
    failed |= short != rounded or (same == 1) != rounded

matrix = gradient.float().repeat(10, 3)  # 640 x 192
weight = torch.nn.Parameter(torch.zeros_like(matrix))
weight.grad = matrix
optimizer = muon([weight])
optimizer.step()
start = time.perf_counter()
for _ in range(5):
    optimizer.step()
own = (time.perf_counter() - start) / 5


def the_same_in_float32():
    x = matrix.T / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x


the_same_in_float32()
start = time.perf_counter()
for _ in range(5):
    the_same_in_float32()
print(f"a step of 640 x 192: {own * 1000:.1f} ms, the same sums in float32 {(time.perf_counter() - start) * 200:.1f} ms")
sys.exit(failed)
PY
