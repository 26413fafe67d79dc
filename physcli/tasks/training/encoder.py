"""Training a VideoMAE encoder to predict what comes next (`physcli.methods.future_prediction`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physcli.data.clips import Clip
from physcli.data.subsets import spread
from physcli.errors import UsageError
from physcli.hashing import seeded
from physcli.methods.future_prediction import FutureHead, color_cells, future_changes, future_loss
from physcli.models.encoders.preprocessing import write_preprocessing
from physcli.recipe import FuturePrediction
from physcli.report.plots import contact_sheet
from physcli.tasks.features import to_tensor
from physcli.tasks.training.clips import ClipReader, rng_of
from physcli.tasks.training.trainee import Trainee, held_out_row

_VALIDATION_CLIPS = 128
_SHOWN = 8


class EncoderTrainee(Trainee):
    """A VideoMAE encoder and the linear layer that reads the future from its last tokens.

    The stock class takes one length only, so shorter contexts are the whole window with the later tokens masked away:
    they are left out of the sequence before the first block.

    Args:
        encoder: The physcli wrapper.
        reader: Training clips.
        held_out: For validation.
        objective: The recipe's.
        seed: Of windows and flips.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        reader: ClipReader,
        held_out: Sequence[Clip],
        objective: FuturePrediction,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        self.reader, self.held_out, self.objective, self.seed = reader, held_out, objective, seed
        self._length = int(encoder.model.config.num_frames)
        self._grid = encoder.token_grid(self._length, *reader.size)
        for context in objective.contexts:
            if context % encoder.tubelet_size or context > self._length:
                raise UsageError(
                    f"objective.contexts has {context}.",
                    expected=f"multiples of {encoder.tubelet_size}, at most {self._length}",
                )
        with seeded(seed):
            self.head = FutureHead(encoder.hidden_size, objective.horizons, objective.cells)

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        context = int(rng_of(self.seed, "context", step).choice(self.objective.contexts))
        windows, futures = [], []
        for sample in samples:
            _, frames = self.reader.read(sample)
            rng = rng_of(self.seed, "window", sample)
            start = int(rng.integers(max(0, len(frames) - self._length) // 8 + 1))
            window, future = self._cut(frames, start, context)
            flipped = rng.random() < 0.5
            windows.append(window[:, :, ::-1] if flipped else window)
            futures.append(future[:, :, ::-1] if flipped else future)
        return {"frames": to_tensor(windows), "future": to_tensor(futures), "context": context}

    def _cut(self, frames: np.ndarray, start: int, context: int) -> tuple[np.ndarray, np.ndarray]:
        """The window [length, H, W, 3] and the frames at the horizons; past its end a clip stands still."""
        last = len(frames) - 1
        window = frames[np.minimum(np.arange(start, start + self._length), last)]
        future = frames[[min(start + context - 1 + h, last) for h in self.objective.horizons]]
        return window, future

    def _whole(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Whole windows [B, T, 3, H, W], as a probe shows them, and the frames at the horizons [B, K, 3, H, W]."""
        cut = [self._cut(clip.read(), 1, self._length) for clip in clips]
        windows, futures = (to_tensor(part).to(self.device) for part in zip(*cut, strict=True))
        return windows, futures

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        frames, context = batch["frames"], batch["context"]
        _, rows, columns = self._grid
        predicted = self._predict(frames, context)
        changes, ever = future_changes(
            frames[:, context - 1], batch["future"], grid=(rows, columns), cells=self.objective.cells
        )
        return future_loss(
            predicted,
            changes,
            ever,
            scale=self.objective.scale,
            threshold=self.objective.threshold,
            moving_weight=self.objective.moving_weight,
        )

    def _predict(self, frames: Tensor, context: int) -> tuple[Tensor, Tensor]:
        time, rows, columns = self._grid
        seen = context // self.encoder.tubelet_size
        hidden = torch.zeros(len(frames), time * rows * columns, dtype=torch.bool, device=frames.device)
        hidden[:, seen * rows * columns :] = True
        pixels = self.encoder.prepare(frames)
        tokens = self.encoder.model(pixels, bool_masked_pos=hidden).last_hidden_state
        return self.head(tokens[:, -rows * columns :])

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """Share of the change of moving places that is foreseen, whole windows; predicted and true last horizons."""
        clips = spread(self.held_out, _VALIDATION_CLIPS)
        explained: list[float] = []
        for first in range(0, len(clips), 32):
            some = clips[first : first + 32]
            frames, future = self._whole(some)
            batch = {"frames": frames, "future": future, "context": self._length}
            explained += self(batch)[1]["explained"].tolist()
        shown = self._pictures(spread(clips, _SHOWN))
        columns = ["last seen", *(f"+{h}" for h in self.objective.horizons[1::2])]
        contact_sheet(folder / "predictions.png", rows=shown, columns=columns)
        return [held_out_row("future", self.encoder.name, "change_explained", explained, higher_is_better=True)]

    def _pictures(self, clips: Sequence[Clip]) -> list[tuple[str, np.ndarray]]:
        """What came and what was foreseen, in coarse cells."""
        frames, future = self._whole(clips)
        _, rows, columns = self._grid
        cells = self.objective.cells
        changes, _ = self._predict(frames, self._length)
        now = color_cells(frames[:, -1:], (rows, columns), cells)  # [B, 1, N, cells·cells·3]
        foreseen = now + changes.float().transpose(1, 2) / self.objective.scale
        came = color_cells(future, (rows, columns), cells)
        shown = []
        for i in range(len(clips)):
            for name, values in (("came", came[i]), ("foreseen", foreseen[i])):
                picked = torch.cat([now[i], values[1::2]])
                images = picked.unflatten(1, (rows, columns)).unflatten(3, (cells, cells, 3))
                images = images.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
                caption = f"{name}: {clips[i].scenario or clips[i].name}"
                shown.append((caption, images.clamp(0, 1).mul(255).round().byte().cpu().numpy()))
        return shown

    def export(self, folder: Path) -> Path:
        """Write `model/`, a transformers VideoMAEModel folder; the head is only needed for training."""
        target = folder / "model"
        self.encoder.model.save_pretrained(target, safe_serialization=True)
        write_preprocessing(target, self.encoder.preprocessing)
        return target

    def parts(self) -> dict[str, int]:
        return {"encoder": sum(p.numel() for p in self.encoder.model.parameters())}

    def problems(self) -> list[str]:
        return list(self.reader.bad.values())
