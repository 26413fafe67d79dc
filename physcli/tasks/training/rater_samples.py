"""Videos that a generator makes for the rater's training prompts, judged by the laws of the simulated world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from physcli.benchmarks.laws import LawResult, check_laws
from physcli.data.clips import Clip
from physcli.data.flow import dis_flow
from physcli.data.subsets import thin
from physcli.files import write_tensors
from physcli.hashing import seed_from, settings_hash
from physcli.models import names
from physcli.models.loading import load_generator
from physcli.progress import Reporter
from physcli.simulation.prompts import with_rate
from physcli.simulation.types import FRAME_RATE_HZ
from physcli.tasks.processes import Processes

STRIDE = 3  # the whole event in a tiny generator's 17 frames
_AT_ONCE = 16


@dataclass(frozen=True)
class SampledVideo:
    """A video uint8 [T, H, W, 3] made for a clip's caption, and what the laws say of it."""

    clip: Clip
    frames: np.ndarray
    law: LawResult


def sampled_videos(
    model: str,
    clips: Sequence[Clip],
    count: int,
    *,
    steps: int,
    seed: int,
    cache: Path,
    device: torch.device,
    processes: Processes,
    reporter: Reporter,
) -> list[SampledVideo]:
    """A video for each of `count` captions, evenly spaced; made once, and kept in the cache.

    Args:
        model: A generator of the simulated world.
        clips: Whose captions.
        count: At most so many, each caption once.
        steps: Denoising steps.
        seed: Of the noise.
        cache: The cache's root folder.
        device: Where.
        processes: The main one makes them, the others wait.
        reporter: Receives progress.

    Raises:
        UsageError: the model is no generator.
        ModelError: it does not load, or its videos are not numbers.
    """
    by_caption = {with_rate(clip.prompt, STRIDE): clip for clip in clips}
    prompts = thin(list(by_caption), count)
    resolved = names.resolve(model)
    key = settings_hash({"model": names.fingerprint(resolved), "prompts": prompts, "steps": steps, "seed": seed})
    path = cache / "rater-samples" / f"{key}.safetensors"
    if processes.is_main and not path.is_file():
        generator = load_generator(resolved, what="objective.sampled_from=", device=device, reporter=reporter)
        height, width = generator.facts.size
        shape: dict[str, Any] = {"num_frames": generator.facts.num_frames, "height": height, "width": width}
        shape["frame_rates_hz"] = [FRAME_RATE_HZ / STRIDE]
        made = []
        with reporter.bar(f"Videos of {model}", len(prompts), "video") as bar:
            for first in range(0, len(prompts), _AT_ONCE):
                some = prompts[first : first + _AT_ONCE]
                seeds = [seed_from(seed, "rater sample", prompt) for prompt in some]
                made.append(generator.sample(some, seeds, steps=steps, **shape).frames)
                bar.advance(len(some))
        write_tensors(path, {"frames": torch.from_numpy(np.concatenate(made))})
    processes.wait()
    videos = load_file(path)["frames"].numpy()
    judged = []
    with reporter.bar("Checking their laws", len(prompts), "video") as bar:
        for prompt, frames in zip(prompts, videos, strict=True):
            law = check_laws(frames, FRAME_RATE_HZ / STRIDE, prompt, flow=dis_flow)
            judged.append(SampledVideo(by_caption[prompt], frames, law))
            bar.advance()
    return judged
