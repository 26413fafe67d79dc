"""High dynamic range to the range that models know: PQ and HLG pictures as they look on an ordinary screen.

Both are turned into light (SMPTE ST 2084; Recommendation ITU-R BT.2100-2), scaled so that diffuse white, which Report
ITU-R BT.2408 puts at 203 cd/m², is white, and coded for the screen of BT.1886, gamma 2.4. What is brighter keeps its
hue and is cut off there. HLG's display gamma acts on each colour by itself, as FFmpeg's `zscale` has it; BT.2100 puts
it on luminance, with which saturated colours come out paler.
"""

from __future__ import annotations

import functools

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# The codes of ITU-T H.273 for a stream's transfer characteristics.
PQ, HLG = 16, 18
HIGH_RANGE = {PQ: "PQ", HLG: "HLG"}
_BT2020_PRIMARIES = 9

DIFFUSE_WHITE_NIT = 203.0
_PQ_PEAK_NIT = 10_000.0
# HLG is light of the scene; a display of 1,000 cd/m² shows it with this gamma.
_HLG_PEAK_NIT, _HLG_GAMMA = 1_000.0, 1.2
_SCREEN_GAMMA = 2.4
# Recommendation ITU-R BT.2087-0, inverted: linear BT.2020 → linear BT.709.
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)


def tone_mapped(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """A PQ or HLG frame as uint8 [H, W, 3] RGB.

    Args:
        frame: Its `color_trc` is one of `HIGH_RANGE`.
        reformatter: Kept from frame to frame.
    """
    # Not rgb48le: PyAV 17.0's FFmpeg gets its colours wrong.
    coded = reformatter.reformat(frame, format="gbrpf32le").to_ndarray()  # [H, W, 3] RGB
    light = _linear(int(frame.color_trc))[(coded.clip(0, 1) * 65535 + 0.5).astype(np.uint16)]  # 1 is the peak
    light *= (_PQ_PEAK_NIT if frame.color_trc == PQ else _HLG_PEAK_NIT) / DIFFUSE_WHITE_NIT
    if frame.color_primaries == _BT2020_PRIMARIES:
        light = np.maximum(light @ _TO_BT709.T, 0)
    light /= np.maximum(light.max(axis=2, keepdims=True), 1)
    return (255 * np.power(light, 1 / _SCREEN_GAMMA) + 0.5).astype(np.uint8)


@functools.cache
def _linear(transfer: int) -> np.ndarray:
    """float32 [65536]: light for each code, 1 at the peak."""
    code = np.arange(65536, dtype=np.float64) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12) ** _HLG_GAMMA
    return light.astype(np.float32)
