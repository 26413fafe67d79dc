"""Training the VAE of a generator: crops first, which are cheap, then whole windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from physcli.benchmarks.chroma import LUMA
from physcli.data.clips import Clip
from physcli.data.subsets import spread
from physcli.errors import UsageError
from physcli.methods.reconstruction import reconstruction_loss
from physcli.models.generator import Generator
from physcli.recipe import Reconstruction
from physcli.report.plots import contact_sheet
from physcli.tasks.features import to_tensor
from physcli.tasks.training.clips import ClipReader, noise_of, rng_of
from physcli.tasks.training.trainee import Trainee, held_out_row

_VALIDATION_CLIPS = 64
_SCALE_CLIPS = 256  # latents of so many clips set the scaling factor
_SHOWN = 8


class VaeTrainee(Trainee):
    """A generator's video autoencoder, in pixels.

    Args:
        generator: Whose VAE is trained; of its other parts nothing is needed.
        reader: Training clips.
        held_out: For validation.
        objective: The recipe's.
        steps: Of the whole run.
        seed: Of windows, crops and noise.
        subject: Name in metric rows.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        reader: ClipReader,
        held_out: Sequence[Clip],
        objective: Reconstruction,
        steps: int,
        seed: int,
        subject: str,
    ) -> None:
        super().__init__()
        generator.need("vae")
        self.vae: Any = generator.part("vae").requires_grad_(True)
        if objective.freeze_encoder:
            for part in (self.vae.encoder, self.vae.quant_conv):
                if part is not None:
                    part.requires_grad_(False)
        self.codec = codec = generator.codec
        self.reader, self.held_out, self.objective, self.seed, self.subject = reader, held_out, objective, seed, subject
        self._whole_from = round(steps * (1 - objective.whole_share))
        step = codec.step(decoding=True)
        for name, frames in (("crop_frames", objective.crop_frames), ("frames", objective.frames)):
            if (frames - 1) % step:
                raise UsageError(f"objective.{name} is {frames}.", expected=f"{step}k+1 frames, such as 9 or 17")
        if objective.crop % codec.spatial or objective.crop > min(reader.size):
            raise UsageError(
                f"objective.crop is {objective.crop}.",
                expected=f"a multiple of {codec.spatial}, at most {min(reader.size)} pixels",
            )

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        objective = self.objective
        whole = step >= self._whole_from
        num_frames = objective.frames if whole else objective.crop_frames
        height, width = self.reader.size if whole else (objective.crop, objective.crop)
        windows, noise, halved, masks = [], [], [], []
        for sample in samples:
            clip, frames = self.reader.read(sample)
            rng = rng_of(self.seed, "window", sample)
            chosen = window(rng, len(frames), num_frames, objective.strides, clip)
            things = self._things(clip, chosen)
            top, left = self._corner(rng, frames.shape[1:3], (height, width), things)
            windows.append(frames[chosen, top : top + height, left : left + width])
            if things is not None:
                masks.append(things[:, top : top + height, left : left + width])
            noise.append(noise_of(self.seed, "noise", sample, shape=self._latent_shape(num_frames, height, width)))
            halved.append(objective.halved_chroma > 0 and rng.random() < objective.halved_chroma)
        shown = to_tensor(windows)
        batch = {"frames": shown, "noise": torch.stack(noise)}
        if objective.object_weight != 1:
            # With the pixels next to them: edges are theirs, too.
            near = F.max_pool2d(torch.from_numpy(np.stack(masks)).float(), 3, stride=1, padding=1)
            batch["weights"] = 1 + (objective.object_weight - 1) * near
        if any(halved):
            batch["shown"] = torch.where(torch.tensor(halved)[:, None, None, None, None], halve_chroma(shown), shown)
        return batch

    def _things(self, clip: Clip, frames: Sequence[int]) -> np.ndarray | None:
        """Where things are in a clip's frames [T, H, W]: nowhere, where that is not known; None, if not asked for."""
        if not self.objective.object_crops and self.objective.object_weight == 1:
            return None
        if clip.arrays is None:
            return np.zeros((len(frames), *self.reader.size), bool)
        things = np.load(clip.arrays)["segmentation"][list(frames)] > 0
        rows, columns = (
            np.arange(size) * own // size for size, own in zip(self.reader.size, things.shape[1:], strict=True)
        )  # as large as the frames are read
        return things[:, rows][:, :, columns]

    def _corner(
        self, rng: np.random.Generator, whole: Sequence[int], crop: Sequence[int], things: np.ndarray | None
    ) -> tuple[int, int]:
        """Top and left of a crop."""
        highest = [size - part for size, part in zip(whole, crop, strict=True)]
        wanted = self.objective.object_crops > 0 and rng.random() < self.objective.object_crops
        if wanted and things is not None and things.any():
            places = np.argwhere(things)
            _, *place = places[rng.integers(len(places))]
            near = [p - int(rng.integers(part)) for p, part in zip(place, crop, strict=True)]
            top, left = (int(np.clip(n, 0, most)) for n, most in zip(near, highest, strict=True))
            return top, left
        return int(rng.integers(highest[0] + 1)), int(rng.integers(highest[1] + 1))

    def _latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        space = self.codec.spatial
        return self.codec.channels, self.codec.latent_frames(num_frames), height // space, width // space

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return reconstruction_loss(
            partial(self.codec.posterior, self.vae),
            partial(self.codec.pixels, self.vae),
            batch["frames"],
            batch["noise"],
            shown=batch.get("shown"),
            weights=batch.get("weights"),
            kl_weight=self.objective.kl_weight,
            edge_weight=self.objective.edge_weight,
        )

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """PSNR of reconstructions from the posterior mean, and the error of objects' mean colours, on whole windows."""
        psnr: list[float] = []
        halved: list[float] = []
        color: list[float] = []
        shown: list[tuple[str, np.ndarray]] = []
        for number, clip in enumerate(spread(self.held_out, _VALIDATION_CLIPS)):
            stride = self.objective.strides[number % len(self.objective.strides)]
            indices = [i * stride for i in range(self.objective.frames)]
            frames = to_tensor([clip.read(indices)]).to(self.device)
            decoded = self._decode(self._encode(frames)).clamp(0, 1)
            psnr.append(_psnr(decoded, frames))
            if self.objective.halved_chroma:
                halved.append(_psnr(self._decode(self._encode(halve_chroma(frames))).clamp(0, 1), frames))
            if clip.arrays is not None:
                segmentation = np.load(clip.arrays)["segmentation"][indices]
                color += color_errors(frames[0].cpu().numpy(), decoded[0].cpu().numpy(), segmentation)
            if len(shown) < 2 * _SHOWN:
                for name, pixels in (("original", frames), ("decoded", decoded)):
                    images = pixels[0, :: self.objective.frames // 4].mul(255).round().byte().permute(0, 2, 3, 1)
                    shown.append((f"{name}: {clip.scenario or clip.name}", images.cpu().numpy()))
        columns = [str(i) for i in range(0, self.objective.frames, self.objective.frames // 4)]
        contact_sheet(folder / "reconstructions.png", rows=shown, columns=columns)
        rows = [held_out_row("vae", self.subject, "psnr_db", psnr, higher_is_better=True)]
        if halved:
            rows.append(held_out_row("vae", self.subject, "psnr_db_halved_chroma", halved, higher_is_better=True))
        if color:
            rows.append(
                held_out_row("vae", self.subject, "object_color_error", color, higher_is_better=False, kind="rate")
            )
        return rows

    def _encode(self, frames: Tensor) -> Tensor:
        """Posterior means [B, C, F, h, w], not scaled."""
        posterior = self.codec.posterior(self.vae, frames.transpose(1, 2).mul(2).sub(1))
        return posterior.mode()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.codec.pixels(self.vae, latents).float().transpose(1, 2).add(1).div(2)

    @torch.no_grad()
    def export(self, folder: Path) -> Path:
        """Write `vae/`, with the statistics that give latents of training clips unit variance; those of an encoder that
        was not trained stay."""
        if not self.objective.freeze_encoder:
            self._measure_statistics()
        self.vae.save_pretrained(folder / "vae", safe_serialization=True)
        return folder / "vae"

    def _measure_statistics(self) -> None:
        count = 0
        total, squares = (torch.zeros(self.codec.channels, dtype=torch.float64) for _ in range(2))
        for which, number in enumerate(spread(range(len(self.reader.clips)), _SCALE_CLIPS)):
            if number in self.reader.bad:
                continue
            stride = self.objective.strides[which % len(self.objective.strides)]
            frames = self.reader.frames(number)[: (self.objective.frames - 1) * stride + 1 : stride]
            latents = self._encode(to_tensor([frames]).to(self.device))[0].double().flatten(1).cpu()  # [C, …]
            count += latents.shape[1]
            total += latents.sum(dim=1)
            squares += latents.square().sum(dim=1)
        mean = total / count
        self.codec.register_statistics(mean.tolist(), (squares / count - mean.square()).sqrt().tolist())

    def parts(self) -> dict[str, int]:
        return {"vae": sum(p.numel() for p in self.vae.parameters())}

    def facts(self) -> dict[str, Any]:
        return {"vae": type(self.vae).__name__}

    def problems(self) -> list[str]:
        return list(self.reader.bad.values())


def halve_chroma(frames: Tensor) -> Tensor:
    """Frames as 4:2:0 video has them: each two by two pixels share the mean of their colour differences.

    Brightness (BT.601) stays each pixel's own. Without the rounding, the low-pass filters and the compression of an
    encoder.

    Args:
        frames: [..., 3, H, W] in [0, 1], both sides even.

    Returns:
        The same shape, in [0, 1].
    """
    luma = (frames * frames.new_tensor(LUMA)[:, None, None]).sum(dim=-3, keepdim=True)
    *lead, height, width = frames.shape
    chroma = (frames - luma).reshape(*lead, height // 2, 2, width // 2, 2).mean(dim=(-3, -1))
    return (luma + chroma.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)).clamp(0, 1)


def window(rng: np.random.Generator, length: int, count: int, strides: Sequence[int], clip: Clip) -> list[int]:
    """`count` frame numbers, evenly `stride` apart, somewhere in a clip of `length` frames.

    Raises:
        UsageError: the clip is too short for any of the strides.
    """
    possible = [stride for stride in strides if (count - 1) * stride < length]
    if not possible:
        raise UsageError(
            f"{clip.path} has {length} frames.",
            expected=f"at least {(count - 1) * min(strides) + 1}",
            fix="use longer clips, or fewer frames in the recipe's objective",
        )
    stride = possible[int(rng.integers(len(possible)))]
    start = int(rng.integers(length - (count - 1) * stride))
    return [start + i * stride for i in range(count)]


def _psnr(decoded: Tensor, frames: Tensor) -> float:
    return float(-10 * torch.log10((decoded - frames).square().mean()))


def color_errors(original: np.ndarray, decoded: np.ndarray, segmentation: np.ndarray) -> list[float]:
    """How far each object's mean colour is off, as a fraction of the full range; mean over channels and frames.

    Args:
        original: [T, 3, H, W] in [0, 1].
        decoded: The same shape.
        segmentation: uint8 [T, H, W], 0 for the background.

    Returns:
        One number an object that is ever seen on at least 4 pixels.
    """
    errors = []
    for thing in np.unique(segmentation[segmentation > 0]):
        masks = segmentation == thing
        seen = [t for t in range(len(masks)) if masks[t].sum() >= 4]
        if seen:
            off = [np.abs((original[t] - decoded[t])[:, masks[t]].mean(axis=1)).mean() for t in seen]
            errors.append(float(np.mean(off)))
    return errors
