"""The trainable head between the generator's tapped tokens and what they are compared with.

A per-token MLP changes the width, then one step changes the grid. The head is thrown away after training as far as the
generator goes, but it belongs to the checkpoint: without it a run can be neither resumed nor looked into.

Shapes: B batch, (F, H, W) the student's grid, (f, h, w) the teacher's, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from torch import Tensor, nn

from physcli.files import read_tensors, write_tensors
from physcli.methods import grids
from physcli.methods.grids import Grid, Time

Resample = Literal["conv2d", "conv3d", "conv3x3", "interpolate"]

FILE_NAME = "projector.safetensors"

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Projector(nn.Module):
    """Student features → the teacher's width and grid.

    The MLP is `Linear (SiLU Linear)…`: VideoREPA's with 3 layers of 2048, TSA's and REPA's with 3, MoAlign's with 4
    (SiLU is VideoREPA's and REPA's; the other two do not say). The step from grid to grid is one of

    - `interpolate`: no parameters; linear where an axis gets finer, means where it gets coarser.
    - `conv2d`, VideoREPA: time as for `interpolate`, then one 2D convolution of every frame, its kernel as large as
      its stride, the ratio of the grids (30×45 → 10×15: 3×3, stride 3). Equal grids make it one more per-token layer.
    - `conv3d`, TSA, which publishes no more than "a 3D convolutional layer": here the stride is the ratio on all
      three axes; in space the kernel is as large as the stride, in time it sees one more frame on either side
      (the first and last frames repeated), or it would be a 2D convolution where time does not shrink.
    - `conv3x3`, iREPA's: a 2D convolution of 3×3 of every frame on the student's own grid, zeros around it, then as for
      `interpolate`.

    A convolution that changes the grid can neither stride by a fraction nor make an axis finer. So an axis that it
    strides along is first interpolated linearly to the wanted size times the nearest whole ratio, at least 1: 45
    columns to 14 go by way of 42, 8 to 16 by way of 16, and where the ratio is whole there is nothing to interpolate.

    Args:
        in_dim: D of the student.
        out_dim: D that comes out.
        hidden_dim: Width inside the MLP.
        num_layers: Linear layers; 0 leaves the tapped features as they are, which the relation losses allow, since
            they compare no feature across the two sides. Then `interpolate` needs `out_dim` = `in_dim`.
        student_grid: (F, H, W) of the features as tapped, with the first latent frame.
        teacher_grid: (f, h, w) to be met. For the reverse direction, the teacher brought to the student, give the
            student's own grid (without the first frame) and `resample` the teacher.
        drop_first: Leave out latent frame 0.
        resample: The step from grid to grid.

    Attributes:
        config: The arguments, as they are saved.

    Raises:
        ValueError: Sizes that are not positive, no frame left, an unknown `resample`, or widths that nothing changes.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        out_dim: int,
        student_grid: Grid,
        teacher_grid: Grid,
        hidden_dim: int = 2048,
        num_layers: int = 3,
        drop_first: bool = True,
        resample: Resample = "conv2d",
    ) -> None:
        super().__init__()
        for name, grid in (("student_grid", student_grid), ("teacher_grid", teacher_grid)):
            if len(grid) != 3 or min(grid) < 1:
                raise ValueError(f"{name} must be three positive counts, got {grid}")
        if min(in_dim, out_dim, hidden_dim) < 1 or num_layers < 0:
            raise ValueError(
                f"widths must be positive and num_layers 0 or more, got in_dim={in_dim}, out_dim={out_dim}, "
                f"hidden_dim={hidden_dim}, num_layers={num_layers}"
            )
        if resample not in get_args(Resample):
            raise ValueError(f"resample must be one of {get_args(Resample)}, got {resample!r}")
        if student_grid[0] <= drop_first:
            raise ValueError(f"student_grid {student_grid} has no frame left without its first")
        if num_layers == 0 and resample == "interpolate" and in_dim != out_dim:
            raise ValueError(f"nothing changes the width from {in_dim} to {out_dim}: num_layers is 0, no convolution")
        self.config: dict[str, Any] = {
            "in_dim": in_dim,
            "out_dim": out_dim,
            "student_grid": tuple(student_grid),
            "teacher_grid": tuple(teacher_grid),
            "hidden_dim": hidden_dim,
            "num_layers": num_layers,
            "drop_first": drop_first,
            "resample": resample,
        }
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim] if num_layers else [in_dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.SiLU(), nn.Linear(before, after)]
        self.mlp = nn.Sequential(*layers[1:])

        frames, rows, columns = student_grid[0] - drop_first, *student_grid[1:]
        ratios = [old / new for old, new in zip((frames, rows, columns), teacher_grid, strict=True)]
        over_time, down, right = (max(1, round(ratio)) for ratio in ratios)
        self.conv: nn.Conv2d | nn.Conv3d | None = None
        if resample == "conv2d":
            over_time = 1
            self.conv = nn.Conv2d(widths[-1], out_dim, (down, right), (down, right))
        elif resample == "conv3x3":
            self.conv = nn.Conv2d(widths[-1], out_dim, 3, padding=1)
        elif resample == "conv3d":
            self.conv = nn.Conv3d(
                widths[-1],
                out_dim,
                kernel_size=(over_time + 2, down, right),
                stride=(over_time, down, right),
                padding=(1, 0, 0),
                padding_mode="replicate",
            )
        f, h, w = teacher_grid
        self._conv_grid = (f * over_time, h * down, w * right)

    def forward(self, features: Tensor) -> Tensor:
        """Bring tapped features to the teacher.

        Args:
            features: [B, F, H, W, in_dim] on `student_grid`; cast to the dtype of the parameters.

        Returns:
            [B, f, h, w, out_dim] in the dtype of the parameters (under autocast, in autocast's). Interpolation is in
            float32 (or float64), and its result too where no convolution follows.

        Raises:
            ValueError: Features of another shape.
        """
        student, teacher = self.config["student_grid"], self.config["teacher_grid"]
        if features.ndim != 5 or features.shape[1:] != (*student, self.config["in_dim"]):
            expected = ", ".join(map(str, ("B", *student, self.config["in_dim"])))
            raise ValueError(f"features must be [{expected}], got {[*features.shape]}")
        if self.config["drop_first"]:
            features = features[:, 1:]
        tokens = self.mlp(features.to(next((parameter.dtype for parameter in self.parameters()), features.dtype)))
        if self.conv is None:
            return grids.resample(tokens, teacher, time="area", space="area")
        if self.config["resample"] == "conv3x3":
            return grids.resample(self._by_frame(tokens.to(self.conv.weight.dtype)), teacher, time="area", space="area")
        over_time = isinstance(self.conv, nn.Conv3d)
        time: Time = "linear" if over_time else "area"
        tokens = grids.resample(tokens, self._conv_grid, time=time, space="bilinear").to(self.conv.weight.dtype)
        if over_time:
            return self.conv(tokens.movedim(-1, 1)).movedim(1, -1)
        return self._by_frame(tokens)

    def _by_frame(self, tokens: Tensor) -> Tensor:
        """The 2D convolution of every frame: [B, F, H, W, D] → [B, F, h, w, E]."""
        assert self.conv is not None
        return self.conv(tokens.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).unflatten(0, tokens.shape[:2])

    def save(self, folder: str | Path) -> Path:
        """Write `projector.safetensors`, whole or not at all, with the arguments in its metadata; gives its path."""
        path = Path(folder) / FILE_NAME
        write_tensors(path, self.state_dict(), {"config": json.dumps(self.config)})
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The projector that `save` wrote, in float32 on the CPU.

        Raises:
            ValueError: No such file, a broken one, one without physcli's arguments, or weights that do not fit them.
        """
        path = Path(folder) / FILE_NAME
        tensors, metadata = read_tensors(path)
        try:
            arguments = json.loads(metadata["config"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} does not say how its projector is built: no 'config' in its metadata") from error
        return build(cls, arguments, tensors, path)


def from_videorepa(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `conv2d` projector, from the names of VideoREPA's released code.

    There the head is a part of the transformer: `projectors.0` is the MLP, `downsampler_cogvideo_output` the
    convolution. Other names, the transformer's own, are passed over.

    Args:
        tensors: Name → tensor, of a whole transformer or of the head alone.

    Raises:
        ValueError: No such names, or several projectors (several tapped layers).
    """
    several = sorted(name for name in tensors if name.startswith("projectors.") and name.split(".")[1] != "0")
    if several:
        raise ValueError(f"one projector expected, projectors.0; got {several[0]} too")
    renamed: dict[str, Tensor] = {}
    for old, new in (("projectors.0.", "mlp."), ("downsampler_cogvideo_output.", "conv.")):
        part = {new + name.removeprefix(old): value for name, value in tensors.items() if name.startswith(old)}
        if not part:
            raise ValueError(f"no tensor's name starts with {old!r}: not a transformer aligned by VideoREPA's code")
        renamed |= part
    return renamed


def build(cls: type[AnyModule], arguments: Any, tensors: Mapping[str, Tensor], path: Path) -> AnyModule:
    """A module from its keyword arguments and all of its tensors, as read from `path`.

    Raises:
        ValueError: Arguments that are not the class's, or tensors missing, left over or of another shape.
    """
    try:
        module = cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its arguments do not build a {cls.__name__}: {error}") from error
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error
    return module
