"""What a generator is shown of a scene: which frames of its clips, in what words, and the controls made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from physcli.benchmarks.localisation import on_latent_grid, sampled_frames
from physcli.data.clips import Clip
from physcli.data.twins import Scene
from physcli.errors import DataError
from physcli.hashing import content_hash, settings_hash
from physcli.models.generator import Generator
from physcli.tasks.features import View, blurred, views_of
from physcli.tasks.scene_sets import shown_rate, shown_words

_AGENT = 1  # of a simulated clip's segmentation: the first thing, which is the one that breaks the law


@dataclass(frozen=True)
class Shown:
    """A clip as a generator is asked about it.

    Attributes:
        view: Its frames.
        prompt: The text.
        rate_hz: Frames a second, of those that are shown; None where the file does not say.
        noise: Names the noise; the same for all clips of a scene.
    """

    view: View
    prompt: str
    rate_hz: float | None
    noise: str

    @property
    def key(self) -> str:
        """Of the content and all that is said of it."""
        about = {"prompt": self.prompt, "rate_hz": self.rate_hz, "noise": self.noise}
        return f"{self.view.key}-{settings_hash(about)[:12]}"


@dataclass(frozen=True)
class ShownScene:
    """A scene's clips, in its order; `still` and `blurred` are of its valid ones."""

    scene: Scene
    valid: tuple[Shown, ...]
    invalid: dict[str, tuple[Shown, ...]]
    still: tuple[Shown, ...]
    blurred: tuple[Shown, ...]

    @property
    def num_frames(self) -> int:
        """Of every clip, as many as the shortest allows."""
        return len(self.valid[0].view.frames)

    @property
    def all(self) -> tuple[Shown, ...]:
        twins = (shown for some in self.invalid.values() for shown in some)
        return (*self.valid, *twins, *self.still, *self.blurred)


def show(model: Generator, scenes: Sequence[Scene], hashes: dict[Path, str]) -> list[ShownScene]:
    """What a generator is shown: the whole of every clip, in as many frames as it was trained on.

    Args:
        model: The generator.
        scenes: The scenes.
        hashes: File → hash of its content; filled.

    Raises:
        DataError: a clip cannot be opened, or is shorter than the model can be shown.
    """
    return [_show(model, scene, hashes) for scene in scenes]


def _show(model: Generator, scene: Scene, hashes: dict[Path, str]) -> ShownScene:
    lengths = {clip.path: clip.count_frames() for clip in scene.clips}
    count = model.codec.usable_frames(min(model.facts.num_frames, *lengths.values()))
    if count < 2:
        shortest = min(lengths, key=lambda path: lengths[path])
        raise DataError(f"{shortest} has {lengths[shortest]} frames.", expected=f"enough for {model.name}")
    for clip in scene.valid:
        if clip.path not in hashes:
            hashes[clip.path] = content_hash(clip.path)
    noise = settings_hash({"valid": sorted(hashes[clip.path] for clip in scene.valid)})

    def shown(clips: Sequence[Clip], *, still: bool = False) -> tuple[Shown, ...]:
        frames = [sampled_frames(lengths[clip.path], count).tolist() for clip in clips]
        held = [[some[0]] * count for some in frames] if still else frames
        return tuple(
            Shown(view, shown_words(scene.prompt, clip, some), shown_rate(clip, some), noise)
            for view, clip, some in zip(views_of(clips, held, hashes), clips, frames, strict=True)
        )

    valid = shown(scene.valid)
    return ShownScene(
        scene,
        valid,
        {kind: shown(clips) for kind, clips in scene.invalid.items()},
        shown(scene.valid, still=True),
        tuple(replace(one, view=blurred(one.view)) for one in valid),
    )


def violation_masks(valid: Shown, invalid: Shown, grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Where a simulated twin breaks its law, on the latent grid.

    The region is what breaks the law, where it is and where it ought to be: the agent of either twin, from the first
    frame that shows the break. The foreground is every thing of either twin.

    Args:
        valid: The possible clip.
        invalid: Its impossible twin.
        grid: (F, h, w).

    Returns:
        Region and foreground, bool [F, h, w]; None of clips without exact masks: videos, and clips whose arrays are not
        there.
    """
    named = (shown.view.clip.arrays for shown in (valid, invalid))
    arrays = [path for path in named if path is not None and path.is_file()]
    violation = invalid.view.clip.record.get("violation")
    if violation is None or len(arrays) < 2:
        return None
    frames = np.array(invalid.view.frames)
    both = []
    for path in arrays:
        with np.load(path) as stored:
            both.append(stored["segmentation"][frames])
    broken = (frames >= violation["frame"])[:, None, None]
    region = ((both[0] == _AGENT) | (both[1] == _AGENT)) & broken
    foreground = (both[0] > 0) | (both[1] > 0)
    return on_latent_grid(region, grid), on_latent_grid(foreground, grid)
