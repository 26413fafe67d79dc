"""What a guidance of sampling is, and how its settings become options."""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from physcli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from physcli.models.generator import Conditioning, Generator, Step
    from physcli.models.names import Resolved
    from physcli.progress import Reporter


class Measured(NamedTuple):
    """A row of metrics.json over what a guidance logs at every step: `log` is the logged name; of its steps, the `mean`
    or the `last` counts."""

    metric: str
    log: str
    of_steps: Literal["mean", "last"]
    higher_is_better: bool | None
    kind: Literal["rate", "score"] = "score"


def option(default: Any, help: str, *, metavar: str | None = None) -> Any:
    """A field of `Settings`.

    Args:
        default: Its value where nobody gives one.
        help: For `physcli sample --help`; says the default.
        metavar: Its choices, "a|b", where it has some.
    """
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


class Option(NamedTuple):
    """An option of the command line: `motion_scale`, its type, what its help says."""

    name: str
    type: Any
    help: str
    metavar: str | None


class Guidance(ABC):
    """One guidance; an instance is prepared for each batch of videos.

    Attributes:
        title: Of its options' panel.
        summary: What it does, in a few words.
        prefix: Of its options: `motion` gives `--motion-scale` for the field `scale`.
        Settings: A frozen dataclass of `option` fields; its `__post_init__` raises UsageError for values that cannot
            be.
        mixes: It makes the mix of classifier-free guidance itself.
        more_forwards: How often it asks the network at a step, beside the pipeline.
        metrics: Rows over what it logs.
    """

    title: ClassVar[str]
    summary: ClassVar[str]
    prefix: ClassVar[str]
    Settings: ClassVar[type[Any]]
    mixes: ClassVar[bool] = False
    more_forwards: ClassVar[int] = 0
    metrics: ClassVar[tuple[Measured, ...]] = ()

    @classmethod
    def options(cls) -> list[Option]:
        """Those of the command line."""
        hints = typing.get_type_hints(cls.Settings)
        return [
            Option(f"{cls.prefix}_{item.name}", hints[item.name], item.metadata["help"], item.metadata["metavar"])
            for item in dataclasses.fields(cls.Settings)
        ]

    @classmethod
    def settings(cls, given: Mapping[str, Any]) -> Any:
        """`Settings` of the options that were given, by their names on the command line.

        Raises:
            UsageError: an option of another guidance, or a value that cannot be.
        """
        names = {option.name for option in cls.options()}
        strange = sorted(given.keys() - names)
        if strange:
            raise UsageError(f"{flag(strange[0])} is no option of {cls.title}.", fix="leave it out")
        return cls.Settings(**{name.removeprefix(f"{cls.prefix}_"): value for name, value in given.items()})

    @classmethod
    def record(cls, settings: Any) -> dict[str, Any]:
        """Settings by their names on the command line."""
        return {f"{cls.prefix}_{name}": value for name, value in dataclasses.asdict(settings).items()}

    @classmethod
    def files(cls, settings: Any, model: Resolved) -> dict[str, Path]:
        """What it reads from disk, by a name for each: its content is part of a run's identity.

        Raises:
            ModelError: it is not there.
            UsageError: nothing there is fits the model.
        """
        return {}

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, generator: Generator, files: Mapping[str, Path], reporter: Reporter) -> Self:
        """The guidance for this generator.

        Raises:
            UsageError: it does not fit the generator.
            ModelError: a file that does not load.
        """

    def prepare(self, conditioning: Conditioning, *, latent_frames: int, steps: int, scale: float) -> None:
        """Begin a batch.

        Args:
            conditioning: Of its prompts.
            latent_frames: F.
            steps: Denoising steps.
            scale: Of classifier-free guidance.

        Raises:
            UsageError: videos that cannot be guided so.
        """
        return None

    def mix(self, step: Step) -> Tensor:
        """The output in place of the mix u + scale·(c − u), [B, F, C, H, W]; asked only of those that have `mixes`."""
        return step.output

    def after(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The output that the scheduler is fed, and what was measured, [B] each."""
        return step.output, {}

    @classmethod
    def in_words(cls, value: Callable[[str], float | None]) -> str:
        """A sentence on what it did, from the values of its metrics; empty where there is nothing to say."""
        return ""


def flag(name: str) -> str:
    """`motion_scale` → `--motion-scale`."""
    return "--" + name.replace("_", "-")
