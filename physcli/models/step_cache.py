"""Caches of diffusers that leave out most of the network at some denoising steps: faster, and lossy.

- `taylorseer` (TaylorSeer, arXiv 2503.06923): in between, the prediction is continued along a line through the last
  two. The paper does so with the output of every attention and feed-forward layer; here it is that of the whole
  network, which diffusers calls lite. (Its other patterns fit no layer of CogVideoX or Wan: nothing is left out.)
- `magcache` (MagCache, arXiv 2506.09045): what the blocks add is reused while its length, known beforehand for each
  step, has changed by less than a threshold. diffusers has these lengths for Flux alone; `ratios` measures them.
- `fbcache` (First Block Cache of ParaAttention, after TeaCache, arXiv 2411.19108): what the other blocks add is reused
  while what the first one adds has changed by less than a threshold, on average over the batch: so one video at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from physcli.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class KnownCache:
    """A cache: what it does, in a few words; the setting it has, `interval` or `threshold`, with its default; whether
    videos of a batch bear on each other; whether it must know how the blocks' output changes (`ratios`)."""

    summary: str
    setting: str
    default: float
    mixes_batch: bool = False
    needs_ratios: bool = False


CACHES = {
    "taylorseer": KnownCache("continue the prediction along a line, with a whole step now and then", "interval", 3),
    "magcache": KnownCache(
        "reuse what the blocks added, by how its length changes", "threshold", 0.06, needs_ratios=True
    ),
    "fbcache": KnownCache(
        "reuse what the blocks added, by how the first one's changes", "threshold", 0.1, mixes_batch=True
    ),
}


@dataclass(frozen=True)
class CacheSettings:
    """A cache by its name in `CACHES`, and the value of its one setting.

    Raises:
        UsageError: no such cache, or a value that cannot be.
    """

    name: str
    value: float

    def __post_init__(self) -> None:
        if self.name not in CACHES:
            raise unknown("cache", self.name, CACHES)
        if CACHES[self.name].setting == "threshold":
            if not 0 < self.value < float("inf"):
                raise UsageError(f"--cache-threshold {self.value:g}.", expected="a number above 0")
        elif self.value < 2 or self.value != int(self.value):
            raise UsageError(f"--cache-interval {self.value:g}.", expected="at least 2; 1 would leave no step out")

    @property
    def in_words(self) -> str:
        """As tables show it."""
        return f"{self.name} {self.value:g}"


@dataclass
class Counted:
    """How often the network was asked, how often its middle block was computed, and how often the cache was told which
    call it is: with the prompt, without, or both."""

    asked: int = 0
    computed: int = 0
    told: int = 0

    @property
    def share(self) -> float:
        return self.computed / self.asked if self.asked else float("nan")


@dataclass(frozen=True)
class StepCache:
    """A cache for videos of so many steps.

    Attributes:
        settings: Which, and how much it leaves out.
        steps: Denoising steps.
        ratios: For `magcache`: of each step, the length of what the blocks add, as a share of the step before.
    """

    settings: CacheSettings
    steps: int
    ratios: Sequence[float] = field(default=())

    @contextlib.contextmanager
    def on(self, network: Any, blocks: nn.ModuleList) -> Iterator[Counted]:
        """Inside, the network has the cache, with nothing in it at first.

        Args:
            network: A transformer of diffusers.
            blocks: Its blocks.

        Raises:
            UsageError: diffusers has no such cache for this network, it would leave out none of its blocks, or it was
                not told which call is which.
        """
        from torch import nn

        counted = Counted()
        if not hasattr(network, "enable_cache") or len(blocks) < 2:
            raise UsageError(
                f"--cache {self.settings.name} for a {type(network).__name__} of {len(blocks)} blocks.",
                expected="a network of diffusers that takes caches, of at least two blocks",
                fix="leave it out",
            )
        try:
            network.enable_cache(self._config(network))
        except (ImportError, ValueError) as error:  # an older diffusers, or blocks that it does not know
            raise UsageError(
                f"--cache {self.settings.name} for a {type(network).__name__}: {error}", fix="leave it out"
            ) from error
        # Inside a block, which diffusers passes over; the block itself may be called and give what is remembered.
        inner = next((m for m in blocks[len(blocks) // 2].modules() if isinstance(m, nn.Linear)), None)
        handles = [network.register_forward_hook(lambda *_: setattr(counted, "asked", counted.asked + 1))]
        if inner is not None:
            handles.append(inner.register_forward_hook(lambda *_: setattr(counted, "computed", counted.computed + 1)))
        told = network.cache_context

        def cache_context(*arguments: Any, **named: Any) -> Any:
            counted.told += 1
            return told(*arguments, **named)

        network.cache_context = cache_context
        try:
            left = [block for block in blocks if not getattr(getattr(block, "_diffusers_hook", None), "hooks", None)]
            if left or inner is None:
                raise UsageError(
                    f"--cache {self.settings.name} takes hold of {len(blocks) - len(left)} of the {len(blocks)} blocks "
                    f"of a {type(network).__name__}.",
                    expected="all of them",
                    fix="leave it out",
                )
            yield counted
            if counted.told < counted.asked:  # MagCache would take what it knows of one for the other
                raise UsageError(
                    f"--cache {self.settings.name} for a pipeline that does not say which call of its "
                    f"{type(network).__name__} is with the prompt, and which without.",
                    fix="leave it out",
                )
        finally:
            del network.cache_context  # the class's own again
            for handle in handles:
                handle.remove()
            network.disable_cache()

    def _config(self, network: Any) -> Any:
        """diffusers' own settings. Raises ImportError where it is too old."""
        import diffusers

        name, value = self.settings.name, self.settings.value
        if name == "taylorseer":
            # In the network's precision: in bfloat16, the default, the line has steps of a part in 256.
            return diffusers.TaylorSeerCacheConfig(
                cache_interval=int(value), use_lite_mode=True, taylor_factors_dtype=network.dtype
            )
        if name == "magcache":
            return diffusers.MagCacheConfig(
                threshold=value, num_inference_steps=self.steps, mag_ratios=list(self.ratios)
            )
        return diffusers.FirstBlockCacheConfig(threshold=value)


def ratios(blocks: nn.ModuleList, make_video: Callable[[Callable[[], None]], object]) -> list[float]:
    """How the length of what the blocks add changes from step to step, for `magcache`: as diffusers measures it, the
    mean over tokens of each step's length over that of the step before, 1 at the first; of the network's calls at a
    step, with and without the prompt, the mean.

    Args:
        blocks: Of the network.
        make_video: Makes a video with it, calling what it is given after every step.

    Returns:
        A number a step.
    """
    found: list[float] = []
    entered: list[Tensor] = []
    before: list[Tensor] = []  # of the calls of the step before, what the blocks added to each token
    now: list[Tensor] = []

    def enter(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        entered.append(named["hidden_states"] if "hidden_states" in named else arguments[0])

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        now.append(((output[0] if isinstance(output, tuple) else output) - entered.pop()).float())

    def end_step() -> None:
        shares = [
            float((added.norm(dim=-1) / (last.norm(dim=-1) + 1e-8)).mean())
            for added, last in zip(now, before or now, strict=True)
        ]
        found.append(sum(shares) / len(shares))
        before[:], now[:] = now, []

    handles = [
        blocks[0].register_forward_pre_hook(enter, with_kwargs=True),
        blocks[-1].register_forward_hook(leave),
    ]
    try:
        make_video(end_step)
    finally:
        for handle in handles:
            handle.remove()
    return found
