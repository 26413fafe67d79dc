"""`physcli bench probe`: what features at a block cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from physcli.models.loading import load
from physcli.progress import Reporter
from physcli.tasks.bench.timing import alternate, ratio, row


def bench_probe(
    *,
    model: str = "cogvideox-tiny",
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    num_frames: int = 17,
    rounds: int = 15,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Cost of features taken at block k of n, as a share of a full forward pass; `excess` is what it is over (k+1)/n.

    Args:
        model: A generator or an encoder.
        device: Where.
        dtype: In which precision.
        batch_size: Clips per pass.
        num_frames: Frames of a generator's clip; encoders see their native number.
        rounds: Timed passes of each kind.
        seed: Of the random input.
        reporter: Receives progress.
    """
    reporter = reporter or Reporter()
    loaded = load(model, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    blocks = range(loaded.num_blocks)
    if loaded.kind == "generator":
        denoise, nothing = loaded.denoise, loaded.encode_prompts([""])
        shape = loaded.latent_shape(num_frames, *loaded.facts.size)
        latents = torch.randn((batch_size, *shape), generator=generator)
        level = loaded.noise.at(0.3).expand(batch_size)

        def full() -> object:
            return denoise(latents, level, nothing).output

        def tapped(block: int) -> Callable[[], object]:
            return lambda: denoise(latents, level, nothing, taps=[block], features_only=True).features
    else:
        encoder = loaded
        frames = loaded.preprocessing.num_frames or 4
        size = (loaded.preprocessing.height or 224, loaded.preprocessing.width or 224)
        pixels = torch.rand((batch_size, frames, 3, *size), generator=generator).to(loaded.device)

        def full() -> object:
            return encoder.encode(pixels)

        def tapped(block: int) -> Callable[[], object]:
            return lambda: encoder.taps(pixels, [block])

    rows = []
    with torch.no_grad(), reporter.bar(f"Timing {loaded.name}", loaded.num_blocks, "block") as bar:
        for block in blocks:
            seconds = alternate({"full": full, "tapped": tapped(block)}, rounds)
            share_of_full = ratio(seconds["tapped"], seconds["full"])
            share = (block + 1) / loaded.num_blocks
            group = f"block {block}"
            rows += [
                row("probe", loaded.name, group, "tapped_over_full", share_of_full, rounds, False),
                row("probe", loaded.name, group, "share_of_blocks", share, rounds, None),
                row("probe", loaded.name, group, "excess", share_of_full - share, rounds, False),
            ]
            bar.advance()
    whole = statistics.median(seconds["full"])
    rows.append(row("probe", loaded.name, "all", "clips_per_second", batch_size / whole, rounds, True))
    return rows
