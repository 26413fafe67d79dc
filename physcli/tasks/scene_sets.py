"""From `--data` to scenes of possible and impossible clips, and how a clip of one is shown: words and speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from physcli.data.clips import Clip
from physcli.data.subsets import thin
from physcli.data.twins import SceneSet, read_scenes, with_prompt
from physcli.hashing import content_hash, settings_hash
from physcli.progress import Reporter, counted, warn_of_left_out
from physcli.simulation.prompts import RATES, with_rate
from physcli.simulation.violations import KINDS
from physcli.tasks.features import rate_at
from physcli.tasks.processes import Processes
from physcli.tasks.sources import clips_folder


def find_scenes(
    source: str, *, prompt: str | None, limit: int | None, cache: Path, processes: Processes, reporter: Reporter
) -> SceneSet:
    """The scenes of a source; what is left out is said.

    Args:
        source: As in `--data`; a simulated suite is made with all kinds of impossible twins.
        prompt: One text for all clips.
        limit: At most so many scenes, evenly spaced.
        cache: Simulated suites are kept here.
        processes: All of them.
        reporter: Receives progress.

    Raises:
        DataError: no scene is there.
    """
    folder = clips_folder(source, impossible=KINDS, cache=cache, processes=processes, reporter=reporter)
    found = read_scenes(folder)
    warn_of_left_out(reporter, [f"{problem.path}: {problem.message}" for problem in found.problems])
    if prompt is not None:
        found = with_prompt(found, prompt)
    kept = thin(found.scenes, limit)
    twins = sum(len(clips) for scene in kept for clips in scene.invalid.values())
    reporter.note(f"{counted(len(kept), 'scene')} with {counted(twins, 'impossible clip')}.")
    return SceneSet(found.kind, tuple(kept), found.problems, found.mujoco)


def scenes_hash(found: SceneSet, hashes: dict[Path, str]) -> str:
    """Of all that is read of the scenes: videos, words and, for localisation, masks. Fills `hashes`."""
    about = {}
    for scene in found.scenes:
        for clip in scene.clips:
            hashes[clip.path] = content_hash(clip.path)
            masks = content_hash(clip.arrays) if clip.arrays is not None and clip.arrays.is_file() else None
            read = [hashes[clip.path], masks, scene.prompt, clip.record.get("violation"), clip.heeded()]
            about[f"{scene.scenario}/{scene.name}/{clip.name}"] = read
    return settings_hash(about)


def shown_words(prompt: str, clip: Clip, frames: Sequence[int]) -> str:
    """Of simulated clips the prompt with the rate that is shown, as their generators were trained."""
    strides = set(np.diff(frames).tolist())
    stride = strides.pop() if len(strides) == 1 else 0
    told = clip.kind == "simulated" and prompt == clip.prompt and stride in RATES
    return with_rate(prompt, stride) if told else prompt


def shown_rate(clip: Clip, frames: Sequence[int]) -> float | None:
    """Frames a second, of those that are shown; None where the file does not say."""
    rate_hz = rate_at(clip, 1, 0.0)
    return rate_hz * (len(frames) - 1) / (frames[-1] - frames[0]) if rate_hz else None
