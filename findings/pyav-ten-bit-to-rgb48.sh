#!/usr/bin/env bash
# PyAV 17.0.0 and 17.0.1: ten-bit 4:2:0 to rgb48le.
#
# One would guess that RGB with 16 bits differs from RGB with 8 in precision alone. From yuv420p10le, as nearly all HDR video
# is stored, the FFmpeg of these releases gives another colour, with green and blue wrong: a dull red becomes (230, 0, 108)
# for (230, 128, 99). Grey is right, so a test picture may not show it, and nothing is said. To rgb24, gbrp16le and
# gbrpf32le the same frame is right, as is rgb48le from eight bits, from ten-bit 4:2:2 and 4:4:4, and in 17.1.0.
#
# Seen (one colour, Y 600, U 400, V 700 of 1023): see `expected` below.
# Exit status 1 when any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat >"$folder/look.py" <<'PY'
import json
import sys

import av
import numpy as np


def pixel(source, target):
    """What a frame of one colour becomes, of 255."""
    frame = av.VideoFrame(64, 64, source)
    for plane, value in zip(frame.planes, (600, 400, 700)):
        kind, value = (np.uint16, value) if "10" in source else (np.uint8, value // 4)
        plane.update(np.full(plane.buffer_size // kind().nbytes, value, kind).tobytes())
    whole = {"rgb24": 255, "rgb48le": 65535, "gbrp16le": 65535, "gbrpf32le": 1}[target]
    return frame.reformat(format=target).to_ndarray()[8, 8].astype(float) / whole * 255


found = {}
for source in ("yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p"):
    for target in ("rgb48le", "gbrp16le", "gbrpf32le"):
        off = np.abs(pixel(source, target) - pixel(source, "rgb24")).max()
        found[f"{source} to {target}"] = "as rgb24" if off < 4 else f"{pixel(source, target).round().astype(int).tolist()}"
json.dump(found, sys.stdout)
PY
for version in 17.0.0 17.0.1 17.1.0; do
    "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check "av==$version" 'numpy==2.4.6'
    "$folder/venv/bin/python" "$folder/look.py" >"$folder/$version.json"
done
python3 - "$folder" <<'PY'
import json
import pathlib
import sys

wrong = {}
for version in ("17.0.0", "17.0.1", "17.1.0"):
    found = json.loads((pathlib.Path(sys.argv[1]) / f"{version}.json").read_text())
    wrong[version] = {name: colour for name, colour in found.items() if colour != "as rgb24"}
    print(f"PyAV {version}: wrong {wrong[version] or 'nowhere'}, of {len(found)} conversions")
seen = {"yuv420p10le to rgb48le": "[230, 0, 108]"}
expected = {"17.0.0": seen, "17.0.1": seen, "17.1.0": {}}
sys.exit(wrong != expected)
PY
