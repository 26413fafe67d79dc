"""LaMo's motion prior guidance: sampling that follows a motion field (arXiv 2605.23878). After the mix.

Works on x̂0, so with every noise process; x̂0 moves with the output by −√(1−ᾱ) under v-prediction and by −σ in a flow.
(LaMo's own pipeline also drops the previous x̂0 of the DPM scheduler, and so samples first order where plain diffusers
samples second order.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from physcli.errors import ModelError, UsageError, unknown
from physcli.guidance.base import Guidance, Measured, option

if TYPE_CHECKING:
    from torch import Tensor

    from physcli.methods.lamo import MotionField
    from physcli.models.generator import Conditioning, Generator, Step
    from physcli.models.names import Resolved
    from physcli.progress import Reporter

REDUCTIONS = ("mean", "sum", "normalized")
WINDOWS = ("exact", "released")
SHIPPED_FIELDS = "motion-field-"  # what the names of those in the package begin with


@dataclass(frozen=True)
class MotionSettings:
    """See `physcli sample --help`."""

    scale: float = option(15.0, "How far each step follows it; 0 only measures.  \\[default: 15, as published]")
    reduction: str = option(
        "mean",
        "Of the residual; mean as published, normalized: the scale is a share of the output.  \\[default: mean]",
        metavar="|".join(REDUCTIONS),
    )
    lag: int | None = option(None, "Latent frames ahead.  \\[default: the field's own]")
    ratio: float = option(0.8, "Share of the steps that are guided, the last ones.  \\[default: 0.8]")
    window: str = option(
        "exact", "Of 50 steps at 0.8, 40, or as LaMo's code counts 41.  \\[default: exact]", metavar="|".join(WINDOWS)
    )
    field: str | None = option(
        None,
        "A motion field or the run that made it.  \\[default: the model's run's, else the built-in one of its latents]",
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise UsageError(f"--motion-scale {self.scale}.", expected="a number of at least 0; 0 only measures")
        if not 0 < self.ratio <= 1:
            raise UsageError(f"--motion-ratio {self.ratio}.", expected="above 0, at most 1")
        if self.lag is not None and self.lag < 1:
            raise UsageError(f"--motion-lag {self.lag}.", expected="at least 1 latent frame")
        if self.reduction not in REDUCTIONS:
            raise unknown("reduction", str(self.reduction), REDUCTIONS)
        if self.window not in WINDOWS:
            raise unknown("window", str(self.window), WINDOWS)


class MotionPrior(Guidance):
    """A motion field and how to follow it; see `physcli.methods.lamo.guidance_update`.

    Args:
        field: f_φ, float32, where the generator computes.
        scale: λ; 0 only measures.
        reduction: mean, sum or normalized.
        lag: In latent frames; None for the one the field was trained with.
        ratio: ρ, the share of the steps, counted from the end, that are guided.
        window: How ρ becomes a step; see `guided_steps`.
    """

    title = "Motion prior guidance (LaMo)"
    summary = "follow a motion field"
    prefix = "motion"
    Settings = MotionSettings
    metrics: ClassVar[tuple[Measured, ...]] = (
        Measured("update_ratio", "update_ratio", "mean", None),
        Measured("update_changed", "changed", "mean", None, kind="rate"),
        Measured("motion_residual", "guidance_loss", "last", False),
    )

    def __init__(
        self,
        field: MotionField,
        *,
        scale: float,
        reduction: str = "mean",
        lag: int | None = None,
        ratio: float = 0.8,
        window: str = "exact",
    ) -> None:
        self.field, self.scale, self.ratio = field, scale, ratio
        self.reduction = cast(Literal["mean", "sum", "normalized"], reduction)
        self.window = cast(Literal["exact", "released"], window)
        self.lag = field.lag if lag is None else lag
        self._prompt: Tensor | None = None
        self._active: range = range(0)

    @classmethod
    def files(cls, settings: Any, model: Resolved) -> dict[str, Path]:
        return {"motion field": find_field(settings.field, model)}

    @classmethod
    def build(cls, settings: Any, generator: Generator, files: Mapping[str, Path], reporter: Reporter) -> MotionPrior:
        path = files["motion field"]
        field = read_field(path)
        check_field(field, generator, str(path))
        reporter.note(f"The motion field is {path.name}, lag {field.lag}.")
        if settings.lag not in (None, field.lag):
            reporter.warn(
                f"--motion-lag {settings.lag}, but the motion field predicts {field.lag} latent frames ahead."
            )
        options = asdict(settings)
        del options["field"]
        return cls(field.to(generator.device).eval().requires_grad_(False), **options)

    def prepare(self, conditioning: Conditioning, *, latent_frames: int, steps: int, scale: float) -> None:
        from physcli.methods.lamo import guided_steps

        if self.lag >= latent_frames:
            raise UsageError(
                f"--motion-lag {self.lag} with videos of {latent_frames} latent frames.",
                expected=f"a lag below {latent_frames}",
                fix="sample more frames, or name a motion field of a shorter lag",
            )
        self._active = guided_steps(steps, self.ratio, reading=self.window)
        self._prompt = conditioning.pooled() if self.field.prompt_proj is not None else None

    def after(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        from physcli.methods.lamo import guidance_update

        if step.index not in self._active:
            return step.output, {}
        return guidance_update(
            step.output,
            self.field,
            self._prompt,
            predict_clean=step.clean,
            scale=self.scale,
            reduction=self.reduction,
            lag=self.lag,
        )

    @classmethod
    def in_words(cls, value: Callable[[str], float | None]) -> str:
        if (update := value("update_ratio")) is None:
            return ""
        return (
            f"Motion guidance: step/output {update:.2g}, changed {value('update_changed'):.1%} of the values; "
            f"the field's residual at the end {value('motion_residual'):.3g}."
        )


def find_field(name: str | None, model: Resolved, generator: Generator | None = None) -> Path:
    """The motion field to follow: the one that was named, else the one in the model's or the adapter's run, else the
    one in the package that knows the model's latents.

    Args:
        name: A built-in one, a run or a folder.
        model: The generator.
        generator: The same, where it is loaded; else only its configs are read, where the package's are to be tried.

    Raises:
        ModelError: the named one is not there, or the model cannot be read.
        UsageError: none was named, and none in the package fits.
    """
    from physcli.models.loading import load_generator
    from physcli.models.names import part_folder

    if name is not None:
        return part_folder(name, "motion_field", "--motion-field ")
    for path in (model.adapter, model.path):
        if path is not None and (path.parent / "motion_field").is_dir():
            return path.parent / "motion_field"
    return _shipped_field(generator or load_generator(replace(model, adapter=None), device="cpu", parts=()))


def _shipped_field(generator: Generator) -> Path:
    """The one in the package that fits.

    Raises:
        UsageError: none does.
    """
    from physcli.models import MOTION_PARTS
    from physcli.models.tiny import asset_folders

    others = []
    for folder in asset_folders(SHIPPED_FIELDS):
        different = _differences(read_field(folder), generator)
        if not different:
            return folder
        of = f"{MOTION_PARTS[folder.name].of}'s" if folder.name in MOTION_PARTS else "other"
        others.append(f"{folder.name} is of {of} latents ({', '.join(different)})")
    raise _no_field(f"No built-in motion field is for {generator.name}: {'; '.join(others)}.", generator)


def read_field(path: Path) -> MotionField:
    """A motion field's weights.

    Raises:
        ModelError: it is not a whole one.
    """
    from physcli.methods.lamo import MotionField

    try:
        return MotionField.load(path)
    except ValueError as error:
        raise ModelError(
            f"The motion field {path}: {error}.",
            expected="what `physcli finetune --recipe lamo-field` writes to motion_field/, or LaMo's own file",
        ) from error


def check_field(field: MotionField, generator: Generator, name: str) -> None:
    """Refuse a field that knows other latents or other prompts than this generator's.

    Raises:
        UsageError: it does not fit.
    """
    different = _differences(field, generator)
    if different:
        raise _no_field(f"The motion field {name} is not for {generator.name}: {', '.join(different)}.", generator)


def _differences(field: MotionField, generator: Generator) -> list[str]:
    """In what a field's latents or prompts are not this generator's."""
    theirs: dict[str, Any] = {"latent channels": field.channels}
    ours: dict[str, Any] = {"latent channels": generator.facts.latent_channels}
    if field.prompt_proj is not None:
        theirs["prompt width"], ours["prompt width"] = field.text_dim, generator.facts.text_width
    if field.latent_space is not None:
        theirs["latent space"], ours["latent space"] = field.latent_space, generator.codec.space
    elif field.scaling_factor is not None:
        theirs["VAE scaling factor"], ours["VAE scaling factor"] = field.scaling_factor, generator.codec.scaling_factor
    return [f"{key} {theirs[key]} for {ours[key]}" for key in theirs if theirs[key] != ours[key]]


def _no_field(received: str, generator: Generator) -> UsageError:
    return UsageError(
        received,
        expected="a motion field trained on this model's latents",
        fix=f"train one (`physcli finetune --recipe lamo-field --model {generator.name}`) and name it with "
        "--motion-field",
    )
