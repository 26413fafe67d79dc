"""RAFT (Dong et al. 2023, arXiv 2304.06767): reward-ranked fine-tuning. Of several videos of a prompt the best are
kept, and the generator learns from them as from any clips.

The paper keeps the one best of each prompt, of language and of images. Ours: more than one may be kept, and none of a
prompt whose videos are all below a least reward; real clips of the same prompts may stand beside them.
"""

from __future__ import annotations

from torch import Tensor


def best_of(rewards: Tensor, *, keep: int = 1, least: float = 0.0) -> Tensor:
    """Which videos are learnt from: of each prompt the `keep` with the highest rewards, of those with at least `least`.
    If there is none at all, the one best.

    Args:
        rewards: [P, K], K videos of each of P prompts. Of equal ones the first is taken.
        keep: At most so many of each prompt.
        least: Reward.

    Returns:
        Their places in [P·K], int64, ascending; at least one.

    Raises:
        ValueError: another shape, a reward that is no number, or nothing to be kept.
    """
    if rewards.ndim != 2 or 0 in rewards.shape or rewards.isnan().any() or keep < 1:
        raise ValueError(f"rewards must be numbers [P, K] and keep at least 1, got {list(rewards.shape)} and {keep}")
    order = rewards.argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1)
    kept = ((ranks < keep) & (rewards >= least)).flatten().nonzero().flatten()
    return kept if len(kept) else rewards.flatten().argmax()[None]
