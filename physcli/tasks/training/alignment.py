"""From a recipe's `method` to a loss: taps, projectors and teacher features, joined with the paper's function.

What there is stands in `physcli.methods.METHODS`. A method with a teacher needs nothing here; one without has its class
below and a branch in `build_method`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physcli.errors import UsageError
from physcli.hashing import seed_from, seeded
from physcli.methods import imported
from physcli.methods.critic import critic_loss
from physcli.methods.grids import Grid, resample
from physcli.methods.lamo import MotionField, drift_loss, drift_weight
from physcli.methods.layersync import layersync_loss
from physcli.methods.motif import motif_loss
from physcli.methods.projector import Projector
from physcli.methods.settings import Alignment, Critic, LaMo, LayerSync, MethodSettings, Motif, VideoJam, Weighted
from physcli.methods.videojam import motion_loss
from physcli.models.features import check_taps, default_tap
from physcli.models.generator import Conditioning, Generator
from physcli.models.noise import NoiseLevel, NoiseProcess
from physcli.tasks.training.clips import noise_of, rng_of
from physcli.tasks.training.field import FIELD_DRAWS, draw_field, loss_of_field, new_field
from physcli.tasks.training.optimization import ParameterGroup


@dataclass
class Pass:
    """One forward pass of the generator, for a method.

    `features`: block → [B, F, H, W, D] of each tap. `clean`, `predicted_clean`: x0 and x̂0 [B, F, C, H, W], float32.
    `level`: of the noise. `signals`: by name, what is cached of the windows and what the method drew for the samples.
    `conditioning`: what the generator was told of the prompts. `output`: all that the network gave, [B, F, C, H, W]
    or, with its motion beside it, [B, F, C + M, H, W]. `noise`: ε of the clip, [B, F, C, H, W].
    """

    features: dict[int, Tensor]
    clean: Tensor
    predicted_clean: Tensor
    level: NoiseLevel
    signals: dict[str, Tensor] = field(default_factory=dict)
    conditioning: Conditioning | None = None
    output: Tensor | None = None
    noise: Tensor | None = None


class Method(nn.Module, ABC):
    """A loss beside the generator's own, with whatever weights it brings along.

    Args:
        settings: The recipe's.

    Attributes:
        weight: λ.
        schedule: Of the weight, over the steps.
        taps: Blocks whose features it wants.
        needs: What it wants of `Pass.signals`, by name.
        parameter_groups: Modules with a learning rate of their own.
    """

    taps: tuple[int, ...] = ()
    needs: tuple[str, ...] = ()
    parameter_groups: Sequence[ParameterGroup] = ()

    def __init__(self, settings: Weighted) -> None:
        super().__init__()
        self.weight, self.schedule = settings.weight, settings.schedule

    def draw(self, sample: int, seed: int) -> dict[str, Tensor]:
        """What it needs at random for a sample of training, by name."""
        return {}

    def save(self, folder: Path) -> None:
        """Write what it brought along below the run directory."""

    def motion(self, signals: Mapping[str, Tensor], level: NoiseLevel) -> Tensor | None:
        """Noised motion latents [B, F, M, H, W] that the network shall see beside the clip's, if any."""
        return None

    def auxiliary_loss(self, seen: Pass) -> tuple[Tensor, dict[str, Tensor]] | None:
        """A loss [B] of modules of its own, with no gradient for the generator, and what to log of it, each [B]."""
        return None

    @abstractmethod
    def forward(self, seen: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        """The unweighted loss of each clip [B], and what else is worth logging, each [B]."""


class TeacherAlignment(Method):
    """A method with a teacher: the tapped features against a frozen encoder's, by the loss that the settings name.

    Args:
        settings: The recipe's.
        taps: Blocks, counted from 0.
        student_dim: D of a tap.
        student_grid: (F, H, W) of a tap.
        teacher_shape: (f, h, w, D) of the teacher's features.
        seed: Of the projectors' weights.

    Raises:
        UsageError: settings that do not fit these grids and widths.
    """

    def __init__(
        self,
        settings: Alignment,
        *,
        taps: Sequence[int],
        student_dim: int,
        student_grid: tuple[int, int, int],
        teacher_shape: Sequence[int],
        seed: int,
    ) -> None:
        super().__init__(settings)
        self.taps = tuple(taps)
        self.compare: Callable[..., Tensor] = imported(settings.loss)
        self.options = settings.options()
        self.target: Callable[..., Tensor] | None = None
        if settings.target is not None:
            self.target = partial(imported(settings.target), **settings.target_options())
        self.needs = tuple(settings.signals())
        own_grid: Grid = (teacher_shape[0], teacher_shape[1], teacher_shape[2])
        self.meets_at = own_grid
        resampled, width = settings.projector.resample, teacher_shape[3]
        if settings.interpolate == "teacher":
            self.meets_at = (student_grid[0] - settings.drop_first, student_grid[1], student_grid[2])
            if resampled != "conv3x3":  # which leaves the student's grid as it is
                resampled = "interpolate"
        if "saliency" in self.needs and self.meets_at != own_grid:
            raise UsageError(
                f"method.interpolate=teacher with method.queries=salient: tokens {self.meets_at}, masks {own_grid}.",
                expected="grids that are the same, or method.interpolate=student",
            )
        if settings.projector.num_layers == 0 and resampled == "interpolate":
            width = student_dim
            if settings.needs_common_width and width != teacher_shape[3]:
                raise UsageError(
                    f"{settings.name} compares features of {width} and {teacher_shape[3]} dimensions, "
                    "without a projector.",
                    expected="method.projector.num_layers of at least 1, or a convolution in method.projector.resample",
                )
        with seeded(seed_from(seed, "projector")):
            self.projectors = nn.ModuleDict(
                {
                    str(tap): Projector(
                        in_dim=student_dim,
                        out_dim=width,
                        hidden_dim=settings.projector.hidden_dim,
                        num_layers=settings.projector.num_layers,
                        student_grid=student_grid,
                        teacher_grid=self.meets_at,
                        drop_first=settings.drop_first,
                        resample=resampled,
                    )
                    for tap in self.taps
                }
            )

    def save(self, folder: Path) -> None:
        """`projector.safetensors`; of several taps, `projector-block-N/projector.safetensors` each."""
        for tap, projector in self.projectors.items():
            assert isinstance(projector, Projector)
            projector.save(folder if len(self.taps) == 1 else folder / f"projector-block-{tap}")

    def forward(self, seen: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        teacher = seen.signals["teacher"].float()
        teacher = resample(teacher if self.target is None else self.target(teacher), self.meets_at)
        options = dict(self.options)
        if "saliency" in self.needs:
            options["queries"] = seen.signals["saliency"].bool()
        if "flow" in self.needs:
            options["flow"] = seen.signals["flow"].float()
        losses, cosines = [], []
        for tap in self.taps:
            student = self.projectors[str(tap)](seen.features[tap]).float()
            losses.append(self.compare(student, teacher, **options))
            if student.shape == teacher.shape:
                cosines.append(F.cosine_similarity(student.detach(), teacher, dim=-1).mean(dim=(1, 2, 3)))
        logs = {"cosine": torch.stack(cosines).mean(dim=0)} if cosines else {}
        if "saliency" in self.needs:
            logs["salient"] = seen.signals["saliency"].float().mean(dim=(1, 2, 3))
        return torch.stack(losses).mean(dim=0), logs


class BlockSync(Method):
    """LayerSync: tapped features against those of deeper blocks. It needs no teacher and brings no weights.

    Args:
        settings: The recipe's.
        num_blocks: Of the generator.

    Raises:
        UsageError: a block that the generator does not have.
    """

    def __init__(self, settings: LayerSync, *, num_blocks: int) -> None:
        super().__init__(settings)
        self.settings = settings
        self.taps = tuple(sorted({block for pair in settings.pairs for block in pair}))
        check_taps(self.taps, num_blocks)

    def forward(self, seen: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        losses = [
            layersync_loss(seen.features[a], seen.features[b], detach=settings.detach, centered=settings.centered)
            for a, b in settings.pairs
        ]
        return torch.stack(losses).mean(dim=0), {}


class MotionDrift(Method):
    """LaMo's drift loss, and its motion field where that is trained in the same steps. It needs no tap and no teacher.

    Args:
        settings: The recipe's.
        process: The generator's noise.
        field: On latents like the generator's.
        latent_shape: (F, C, h, w) of a clip's.
    """

    def __init__(
        self,
        settings: LaMo,
        *,
        process: NoiseProcess,
        field: MotionField | None = None,
        latent_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(settings)
        self.settings, self.process = settings, process
        self.field, self.latent_shape = field, tuple(latent_shape)
        if field is not None and settings.field is not None:
            self.parameter_groups = (ParameterGroup(field, settings.field.lr),)
            self.needs = tuple(f"field_{name}" for name in FIELD_DRAWS)

    def draw(self, sample: int, seed: int) -> dict[str, Tensor]:
        if self.settings.field is None:
            return {}
        drawn = draw_field(self.settings.field, self.latent_shape, self.process, sample=sample, seed=seed)
        return {f"field_{name}": value for name, value in drawn.items()}

    def save(self, folder: Path) -> None:
        if self.field is not None:
            self.field.save(folder / "motion_field")

    def forward(self, seen: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        loss, logs = drift_loss(seen.clean, seen.predicted_clean, lag=settings.lag, reading=settings.reading)
        if settings.noise_weight != "none":
            weights = drift_weight(
                seen.level.time.cpu().double() / self.process.num_steps,
                seen.level.signal,
                seen.level.sigma,
                reading=settings.noise_weight,
                per_sample=settings.per_sample,
            )
            loss, logs["noise_weight"] = weights.to(loss) * loss, weights.to(loss)
        return loss, logs

    def auxiliary_loss(self, seen: Pass) -> tuple[Tensor, dict[str, Tensor]] | None:
        if self.field is None or self.settings.field is None:
            return None
        assert seen.conditioning is not None
        drawn = {name: seen.signals[f"field_{name}"] for name in FIELD_DRAWS}
        prompts = seen.conditioning.pooled().detach()
        loss, logs = loss_of_field(self.field, self.settings.field, seen.clean, prompts, drawn)
        return loss, {f"field_{name}": value for name, value in {"loss": loss.detach(), **logs}.items()}


class MotionFocus(Method):
    """MotiF: the denoising error again, where the clip moves. It needs no tap and no teacher.

    Args:
        settings: The recipe's.
        process: The generator's noise.
    """

    def __init__(self, settings: Motif, *, process: NoiseProcess) -> None:
        super().__init__(settings)
        self.power, self.process = settings.power, process

    def forward(self, seen: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        assert seen.output is not None
        assert seen.noise is not None
        target = self.process.target(seen.clean, seen.noise, seen.level)
        return motif_loss(seen.output[:, :, : seen.clean.shape[2]], target, seen.clean, power=self.power), {}


class FrozenCritic(Method):
    """A frozen generator looks at what is predicted. It needs no tap and brings no weights of its own.

    Args:
        settings: The recipe's.
        process: The generator's noise.
        critic: Frozen, where the generator is; no part of this module, so that no checkpoint holds it.
        latent_shape: (F, C, h, w) of a clip's.

    Raises:
        UsageError: a block that the critic does not have.
    """

    needs = ("critic_noise",)

    def __init__(
        self, settings: Critic, *, process: NoiseProcess, critic: Generator, latent_shape: Sequence[int]
    ) -> None:
        super().__init__(settings)
        self.settings, self.process, self.latent_shape = settings, process, tuple(latent_shape)
        self.block = default_tap(critic.num_blocks) if settings.block is None else settings.block
        check_taps([self.block], critic.num_blocks)
        self._level = critic.noise.at(settings.sigma)
        self._critic = (critic,)

    def draw(self, sample: int, seed: int) -> dict[str, Tensor]:
        return {"critic_noise": noise_of(seed, "critic noise", sample, shape=self.latent_shape)}

    def forward(self, seen: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        assert seen.conditioning is not None
        told = Conditioning({name: part.detach() for name, part in seen.conditioning.items()})
        predicted = self._look(seen.predicted_clean, seen.signals["critic_noise"], told)
        with torch.no_grad():
            real = self._look(seen.clean, seen.signals["critic_noise"], told)
        asked = (seen.level.sigma <= self.settings.most_sigma).to(predicted.device)
        loss = torch.where(asked, critic_loss(predicted, real), 0.0)
        return loss, {"asked": asked.float()}

    def _look(self, latents: Tensor, noise: Tensor, told: Conditioning) -> Tensor:
        """The critic's tokens [B, F, H, W, D] of latents [B, F, C, h, w] under a little noise."""
        [critic] = self._critic
        level = self._level.expand(len(latents))
        noisy = critic.noise.add_noise(latents, noise, level)
        denoised = critic.denoise(noisy, level, told, taps=[self.block], features_only=True)
        return denoised.features[self.block]


class JointMotion(Method):
    """VideoJAM: the motion of the clip, noised and denoised beside it. It needs no teacher; the last block is tapped,
    as the only place where its gradient and that of denoising meet (the outputs are of different channels).

    Args:
        settings: The recipe's.
        generator: With motion latents.
        latent_shape: (F, M, h, w) of a clip's motion latents.
    """

    needs = ("flow", "motion_noise", "motion_shown")

    def __init__(self, settings: VideoJam, *, generator: Generator, latent_shape: Sequence[int]) -> None:
        super().__init__(settings)
        self.settings, self.process, self.latent_shape = settings, generator.noise, tuple(latent_shape)
        self.taps = (generator.num_blocks - 1,)
        if settings.ends_lr is not None:
            self.parameter_groups = tuple(ParameterGroup(end, settings.ends_lr) for end in generator.ends())

    def draw(self, sample: int, seed: int) -> dict[str, Tensor]:
        shown = rng_of(seed, "motion shown", sample).random() >= self.settings.motion_dropout
        noise = noise_of(seed, "motion noise", sample, shape=self.latent_shape)
        return {"motion_noise": noise, "motion_shown": torch.tensor(float(shown))}

    def motion(self, signals: Mapping[str, Tensor], level: NoiseLevel) -> Tensor | None:
        noised = self.process.add_noise(signals["flow"].float(), signals["motion_noise"], level)
        return noised * signals["motion_shown"][:, None, None, None, None]

    def forward(self, seen: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        assert seen.output is not None
        signals = seen.signals
        target = self.process.target(signals["flow"].float(), signals["motion_noise"], seen.level)
        shown = signals["motion_shown"]
        output = seen.output[:, :, -self.latent_shape[1] :]
        # Batches differ in how much moves: what predicting nothing would cost tells the two apart.
        return motion_loss(output, target, shown), {"zero_motion": motion_loss(torch.zeros_like(output), target, shown)}


def build_method(
    settings: MethodSettings,
    generator: Generator,
    *,
    student_grid: tuple[int, int, int],
    teacher_shape: Sequence[int] | None,
    seed: int,
    critic: Generator | None = None,
) -> Method | None:
    """The recipe's method for this generator, or None for `sft`.

    Raises:
        UsageError: settings that do not fit the generator or the clips.
    """
    frames, rows, columns = (a * b for a, b in zip(student_grid, generator.facts.patch, strict=True))  # of latents
    latent_shape = (frames, generator.facts.latent_channels, rows, columns)
    if isinstance(settings, LaMo):
        if settings.lag >= frames:
            raise UsageError(
                f"method.lag is {settings.lag}, and a clip has {frames} latent frames.", expected="fewer than those"
            )
        field = None
        if settings.field is not None:
            field = new_field(settings.field, generator, latent_shape=latent_shape, seed=seed)
        return MotionDrift(settings, process=generator.noise, field=field, latent_shape=latent_shape)
    if isinstance(settings, VideoJam):
        motion_shape = (frames, generator.facts.motion_channels, rows, columns)
        return JointMotion(settings, generator=generator, latent_shape=motion_shape)
    if isinstance(settings, Critic):
        assert critic is not None
        return FrozenCritic(settings, process=generator.noise, critic=critic, latent_shape=latent_shape)
    if isinstance(settings, Motif):
        return MotionFocus(settings, process=generator.noise)
    if isinstance(settings, LayerSync):
        return BlockSync(settings, num_blocks=generator.num_blocks)
    if not isinstance(settings, Alignment):
        return None
    assert teacher_shape is not None
    taps = settings.taps or (default_tap(generator.num_blocks),)
    return TeacherAlignment(
        settings,
        taps=taps,
        student_dim=generator.hidden_size,
        student_grid=student_grid,
        teacher_shape=teacher_shape,
        seed=seed,
    )
