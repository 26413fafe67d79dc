"""Raters: models that watch a video and answer a question about it. Nothing heavy is imported here.

`physcli.models.raters.mplug_owl_video.load_rater` takes any of these names, another hub id, or a folder.
"""

from __future__ import annotations

TINY_RATER = "mplug-owl-video-tiny"

# Hub id → one line of facts. Both are mPLUG-Owl-Video on LLaMA-7B, 32 frames of 224×224.
HUB_RATERS: dict[str, str] = {
    "videophysics/videocon_physics": "VideoPhy's rater: answers Yes or No; 7 B parameters, 32 frames of 224×224",
    "videophysics/videophy_2_auto": "VideoPhy-2's rater: answers 1 to 5; 7 B parameters, 32 frames of 224×224",
}
