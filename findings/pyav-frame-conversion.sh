#!/usr/bin/env bash
# PyAV 18.1.0: what frame.to_ndarray(format="rgb24") costs beside one VideoReformatter for the whole video.
#
# One would guess that the conversion from YUV to RGB is set up once for a stream, since all its frames are alike. A frame
# sets it up for itself and throws it away: of small frames, as most training clips are, that is most of the time of
# reading a file. A VideoReformatter that is kept sets it up once, and gives the same bytes.
#
# Seen (PyAV 18.1.0, 96 frames of 64x64, decoding included): 2 to 4 times as long by the frame's own way, equal arrays.
# Exit status 1 when the arrays differ, or when the frame's own way takes less than 1.4 times as long.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check 'av==18.1.0' 'numpy==2.4.6'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import statistics
import sys
import time

import av
import numpy as np
from av.video.reformatter import VideoReformatter

with av.open("clip.mp4", "w") as container:
    stream = container.add_stream("libx264", rate=20)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    for number in range(96):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[20:40, number % 48 : number % 48 + 12] = (220, 60, 40)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())


def by_frame():
    with av.open("clip.mp4") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def by_one_reformatter():
    reformatter = VideoReformatter()
    with av.open("clip.mp4") as container:
        frames = container.decode(video=0)
        return np.stack([reformatter.reformat(frame, format="rgb24").to_ndarray() for frame in frames])


assert by_frame().shape == (96, 64, 64, 3)
same = np.array_equal(by_frame(), by_one_reformatter())
ratios = []
for _ in range(15):
    seconds = []
    for read in (by_frame, by_one_reformatter):
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    ratios.append(seconds[0] / seconds[1])
ratio = statistics.median(ratios)
print(f"PyAV {av.__version__}: the frame's own way takes {ratio:.1f} times as long, the arrays are equal: {same}")
sys.exit(0 if same and ratio > 1.4 else 1)
PY
