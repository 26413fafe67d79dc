"""Where a loss sees a violation: error maps on the latent grid against exact masks.

After LikePhys-PhysLoc (samuruph/LikePhys-PhysLoc), with two changes. What is ranked is the *difference* of the twins'
error maps: of one map alone most is how hard a place is to denoise, in the possible clip as well. And ties have their
expected value: there they go by the order in memory, so that a constant map has an average precision of 1 where the
region comes first, and of next to nothing where it comes last.
"""

# T frames, F latent frames, H W pixels, h w latent places, N tokens that count

from __future__ import annotations

import math

import numpy as np


def sampled_frames(num_frames: int, count: int) -> np.ndarray:
    """`count` of `num_frames` frames, evenly spaced, the first and the last among them; int64 [count]."""
    return np.linspace(0, num_frames - 1, count).round().astype(np.int64)


def frames_of_latents(num_frames: int, num_latent_frames: int) -> list[list[int]]:
    """Which frames each latent frame stands for.

    A causal VAE's first latent frame is the first frame alone, and equal runs follow; where they cannot be equal, all
    frames are cut into runs that differ by one at most.
    """
    rest = num_latent_frames - 1
    if rest and num_frames > 1 and (num_frames - 1) % rest == 0:
        size = (num_frames - 1) // rest
        return [[0], *([1 + size * run + step for step in range(size)] for run in range(rest))]
    return [part.tolist() for part in np.array_split(np.arange(num_frames), num_latent_frames)]


def on_latent_grid(masks: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Masks of frames as masks of latent tokens: a token is in it if any pixel that it touches is.

    Args:
        masks: bool or number [T, H, W], of the frames that the model is shown.
        grid: (F, h, w).

    Returns:
        The maximum over each token's pixels and frames [F, h, w], of the same dtype.
    """
    _, height, width = masks.shape
    frames, rows, columns = grid
    merged = np.stack([masks[run].max(axis=0) for run in frames_of_latents(len(masks), frames)])

    def cells(size: int, count: int) -> list[slice]:
        return [slice(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]

    by_rows = np.stack([merged[:, cell].max(axis=1) for cell in cells(height, rows)], axis=1)
    return np.stack([by_rows[:, :, cell].max(axis=2) for cell in cells(width, columns)], axis=2)


def expected_average_precision(score: np.ndarray, region: np.ndarray) -> float:
    """Average precision of N places ranked by score, the highest first; of ties the mean over all their orders.

    Within a tie of m places, p of them in the region, after n places with P hits: the place at position j is a hit with
    probability p/m, and then the j − 1 before it hold (j − 1)(p − 1)/(m − 1) hits on average.

    Args:
        score: [N].
        region: bool [N].

    Returns:
        0 to 1; NaN where nothing is in the region.
    """
    score, region = np.asarray(score, np.float64).ravel(), np.asarray(region, bool).ravel()
    if not region.any():
        return math.nan
    order = np.argsort(-score, kind="stable")
    ranked, hit = score[order], region[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    ends = np.r_[starts[1:], len(ranked)]
    total, hits = 0.0, 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        size, inside = end - start, int(hit[start:end].sum())
        if inside:
            before = np.arange(size)
            among = before * (inside - 1) / (size - 1) if size > 1 else before
            total += inside / size * float(((hits + 1 + among) / (start + 1 + before)).sum())
        hits += inside
    return total / int(region.sum())


def localise(difference: np.ndarray, region: np.ndarray, foreground: np.ndarray) -> tuple[float, float]:
    """How well a map finds a violation among the tokens that show anything at all.

    Args:
        difference: [F, h, w], the impossible clip's error less its possible twin's (or one clip's error alone).
        region: bool, same shape: the violation's tokens.
        foreground: bool, same shape: tokens of things in either twin; those of the region always count.

    Returns:
        Average precision, and the prevalence, which chance would give (a little more, of few tokens): the region's
        share of the tokens that count. NaN, NaN where the region is empty.
    """
    counted = foreground | region
    if not region.any():
        return math.nan, math.nan
    return expected_average_precision(difference[counted], region[counted]), float(region.sum() / counted.sum())
