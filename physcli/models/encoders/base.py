"""What every encoder offers: preprocessing that belongs to the checkpoint, and tokens of any block.

Shapes: B batch, T frames, H W pixels, (f, h, w) token grid, N = f·h·w tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physcli.errors import DataError
from physcli.models.encoders.checkpoint import fetch
from physcli.models.encoders.preprocessing import Preprocessing, read_preprocessing
from physcli.models.features import check_taps

# (height, width) in pixels; "native": the checkpoint's own size; None: the frames' size as it is.
Size = tuple[int, int] | Literal["native"] | None


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from the one or two numbers that configs hold."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Encoder(nn.Module):
    """Base of all encoders. A family implements `read`, `embed` and `run_block`.

    Tokens are always those *before* any final norm, as VideoREPA takes them; `final_norm` can be applied to them.
    Parameters are left trainable and gradients are recorded: wrap calls in `torch.no_grad()` for a frozen
    teacher.

    Attributes:
        name: What tables and reports call this encoder.
        random_init: The weights were never trained; every table that shows this encoder must say so.
        preprocessing: The checkpoint's own; assign another (`dataclasses.replace`) to feed it differently.
        num_blocks: Number of transformer blocks, counted from 0.
        hidden_size: D.
        patch_size: Pixels a token spans in height and in width.
        tubelet_size: Frames a token spans (1 for image models).
    """

    kind: Literal["encoder"] = "encoder"
    num_prefix_tokens = 0  # class and register tokens in front of the patches

    def __init__(
        self,
        *,
        name: str,
        preprocessing: Preprocessing,
        num_blocks: int,
        hidden_size: int,
        patch_size: int,
        tubelet_size: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.random_init = False
        self.preprocessing = preprocessing
        self.num_blocks = num_blocks
        self.hidden_size = hidden_size
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a checkpoint, strictly, in eval mode, with the preprocessing of its processor file if it has one.

        Args:
            path_or_id: A folder, a weight file where the family is published as one, or a hub id.
            device: Where the weights go.
            dtype: Of the weights and so of the computation.
            revision: Branch, tag or commit of a hub id.
            local_files_only: Never reach for the network.

        Raises:
            ModelError: Not found, not reachable, unreadable, or weights that do not fit exactly.
        """
        path = fetch(path_or_id, revision=revision, local_files_only=local_files_only)
        encoder = cls.read(path, name=Path(path_or_id).name, dtype=dtype)
        encoder.preprocessing = read_preprocessing(path, encoder.preprocessing)
        return encoder.to(device).eval()

    @classmethod
    def read(cls, path: Path, *, name: str, dtype: torch.dtype) -> Self:
        """The encoder of a folder or weight file on this machine, with the family's usual preprocessing."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm the checkpoint has after its last block, or None; apply it to `[..., D]` tokens."""
        return None

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Patch and position embeddings of a prepared clip `[B, T, 3, H, W]`: the input of block 0."""
        raise NotImplementedError

    def run_block(self, block: int, hidden_states: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The output of one block, same shape as `hidden_states`; `grid` is (f, h, w)."""
        raise NotImplementedError

    def token_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(f, h, w) of a clip of `num_frames` frames of `height` × `width` pixels."""
        return num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    def prepare(self, frames: Tensor, *, size: Size = "native") -> Tensor:
        """Normalise and resize raw frames.

        The whole frame is squashed to the target size; nothing is cropped, because what happens at the border
        is part of the physics.

        Args:
            frames: `[B, T, 3, H, W]`, RGB, floating point in [0, 1].
            size: Target (height, width); "native" for the checkpoint's own; None keeps the frames' size, as
                VideoREPA does with its 160×240 teacher input.

        Returns:
            `[B, T, 3, H', W']`, normalised; float64 stays float64, all else becomes float32.

        Raises:
            ValueError: Frames of another layout, type or range.
            DataError: A size or number of frames that does not divide into patches.
        """
        if frames.ndim != 5 or frames.shape[2] != 3 or not frames.is_floating_point():
            raise ValueError(f"frames must be floating point [B, T, 3, H, W], not {frames.dtype} {tuple(frames.shape)}")
        low, high = (float(v) for v in frames.detach().aminmax())
        if not (low > -0.1 and high < 1.1):  # resampled frames overshoot a little; NaN fails both comparisons
            raise ValueError(f"frames must be in [0, 1], not in [{low:g}, {high:g}]")
        p = self.preprocessing
        height, width = frames.shape[-2:]
        if size == "native":
            height, width = p.height or height, p.width or width
        elif size is not None:
            height, width = size
        self._check_divisible(frames.shape[1], height, width)

        frames = frames if frames.dtype == torch.float64 else frames.float()
        mean, std = (torch.tensor(v, dtype=frames.dtype, device=frames.device) for v in (p.mean, p.std))
        frames = (frames - mean[:, None, None]) / std[:, None, None]
        if frames.shape[-2:] == (height, width):
            return frames
        resized = F.interpolate(
            frames.flatten(0, 1),
            (height, width),
            mode=p.interpolation,
            antialias=p.antialias,
            align_corners=False,
        )
        return resized.unflatten(0, frames.shape[:2])

    def forward(self, pixel_values: Tensor, blocks: Sequence[int] | None = None) -> dict[int, Tensor]:
        """Tokens after the given blocks of an already prepared clip.

        Args:
            pixel_values: `[B, T, 3, H, W]` from `prepare`; cast to the weights' device and dtype.
            blocks: Counted from 0; all of them by default. The pass ends after the deepest one.

        Returns:
            Block → `[B, f, h, w, D]`, before any final norm, class and register tokens dropped.

        Raises:
            UsageError: A block the encoder does not have.
            DataError: A size or number of frames that does not divide into patches.
        """
        wanted = set(range(self.num_blocks) if blocks is None else blocks)
        if not wanted:
            raise ValueError("blocks must name at least one block")
        check_taps(sorted(wanted), self.num_blocks)
        batch, num_frames, _, height, width = pixel_values.shape
        self._check_divisible(num_frames, height, width)
        grid = self.token_grid(num_frames, height, width)
        weight = next(self.parameters())
        hidden_states = self.embed(pixel_values.to(weight.device, weight.dtype))
        features = {}
        for block in range(max(wanted) + 1):
            hidden_states = self.run_block(block, hidden_states, grid)
            if block in wanted:
                tokens = hidden_states[:, self.num_prefix_tokens :]
                features[block] = tokens.reshape(batch, *grid, self.hidden_size)
        return features

    def taps(self, frames: Tensor, blocks: Sequence[int], *, size: Size = "native") -> dict[int, Tensor]:
        """Tokens after the given blocks of raw frames: `prepare`, then `forward`.

        Args:
            frames: `[B, T, 3, H, W]`, RGB, floating point in [0, 1].
            blocks: Counted from 0. The pass ends after the deepest one.
            size: As in `prepare`.

        Returns:
            Block → `[B, f, h, w, D]`, before any final norm.
        """
        return self(self.prepare(frames, size=size), blocks)

    def encode(self, frames: Tensor, *, size: Size = "native") -> Tensor:
        """The last block's tokens `[B, f, h, w, D]` of raw frames `[B, T, 3, H, W]` in [0, 1]."""
        last = self.num_blocks - 1
        return self.taps(frames, [last], size=size)[last]

    def _check_divisible(self, num_frames: int, height: int, width: int) -> None:
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise DataError(
                f"{self.name} cannot cut {height}×{width} frames into patches of {self.patch_size}.",
                expected=f"a height and a width that are multiples of {self.patch_size}",
                fix="resize to such a size, or to the encoder's native size",
            )
        if num_frames % self.tubelet_size or not num_frames:
            raise DataError(
                f"{self.name} was given {num_frames} frames; one of its tokens spans {self.tubelet_size}.",
                expected=f"a number of frames that is a multiple of {self.tubelet_size}",
                fix="leave out a frame or show one more",
            )
