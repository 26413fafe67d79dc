#!/usr/bin/env bash
# accelerate 1.15.0: what load_checkpoint_in_model(strict=True) is strict about.
#
# One would guess that it raises where weights are missing or left over. With a device_map it raises for left-over weights
# alone: a checkpoint that lacks some loads without error or warning, and those keep the values they had, random ones. A
# torch module's own load_state_dict(strict=True) refuses the same file.
#
# Seen (torch 2.13.0, accelerate 1.15.0): see `expected` below.
# Exit status 1 when any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check \
    'torch==2.13.0' 'accelerate==1.15.0' 'safetensors==0.8.0' 'numpy==2.4.6'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import logging
import pathlib
import sys
import warnings

import torch
from accelerate import load_checkpoint_in_model
from safetensors.torch import load_file, save_file

said = []
logging.getLogger().addHandler(type("Keep", (logging.Handler,), {"emit": lambda self, record: said.append(record)})())
warnings.showwarning = lambda *arguments, **options: said.append(arguments)


def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))


whole = {name: value.clone() for name, value in model().state_dict().items()}
lacking = {name: value for name, value in whole.items() if name != "1.weight"}
for name, state in (("whole", whole), ("lacking", lacking), ("surplus", whole | {"2.weight": torch.zeros(4, 4)})):
    pathlib.Path(name).mkdir()
    save_file(state, f"{name}/model.safetensors", metadata={"format": "pt"})


def outcome(folder, **options):
    made = model()
    before = made[1].weight.detach().clone()
    try:
        load_checkpoint_in_model(made, folder, strict=True, **options)
    except Exception as error:
        return type(error).__name__
    return "loaded, the second weight kept" if torch.equal(made[1].weight, before) else "loaded"


def torch_alone(folder):
    try:
        model().load_state_dict(load_file(f"{folder}/model.safetensors"), strict=True)
    except RuntimeError:
        return "RuntimeError"
    return "loaded"


said.clear()
found = {
    "device_map, a weight missing": outcome("lacking", device_map={"": "cpu"}),
    "records logged and warnings": len(said),
    "device_map, a weight left over": outcome("surplus", device_map={"": "cpu"}),
    "no device_map, a weight missing": outcome("lacking"),
    "torch's load_state_dict, a weight missing": torch_alone("lacking"),
}
for name, value in found.items():
    print(f"{name}: {value}")
expected = {
    "device_map, a weight missing": "loaded, the second weight kept",
    "records logged and warnings": 0,
    "device_map, a weight left over": "AttributeError",
    "no device_map, a weight missing": "loaded, the second weight kept",
    "torch's load_state_dict, a weight missing": "RuntimeError",
}
sys.exit(found != expected)
PY
