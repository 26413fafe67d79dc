"""MoAlign (Bhowmik et al., ICLR 2026): align the generator with what an encoder knows of motion, not of appearance.

Stage 1 trains, on a frozen video encoder, a projector to a narrow motion subspace from which a light decoder must read
dense optical flow; nothing but the narrowness keeps appearance out. Stage 2 aligns the generator's relations among
tokens with the relations in that subspace; decoder and flow are no longer needed.

The public slides give the two stages, a VideoMAEv2 encoder, supervision by optical flow, and the loss of stage 2. 3D
convolutions, 64 dimensions, an L1 loss and τ = 10 are reported of the paper, which could not be checked here. No code
is public; layers, kernels, units and reductions are not published, and those here are ours, as each docstring says.

Shapes: B batch, F H W or f h w a token grid, n = H·W, D E features, T flow fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physcli.files import read_tensors, write_bytes, write_tensors
from physcli.methods.projector import build
from physcli.methods.similarity import relation_distance

Reduction = Literal["mean", "sum"]
Part = Literal["both", "spatial", "temporal"]


def soft_relational_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    tau: float = 10.0,
    reduction: Reduction = "mean",
    part: Part = "both",
    rows: int | None = None,
) -> Tensor:
    """How far the relations among student tokens are from those among teacher tokens, near frames counting most.

    The slides' "soft relational alignment": with S the cosines between tokens of one clip,

        spatial  = 1/F Σ_f ‖S_student(f) − S_teacher(f)‖₁                 tokens of the same frame f
        temporal = ‖W ⊙ S_student − W ⊙ S_teacher‖₁                       all tokens, W_ij = exp(−Δ_ij/τ)

    where Δ is the distance in frames, and W = 0 inside a frame. `sum` is this as written; it grows with the square of
    the number of tokens (about 10⁶ at 24×10×15). `mean`, ours, is the sum of two means: |ΔS| over the F·n² pairs of a
    frame, and W·|ΔS| over the (F² − F)·n² pairs of different frames, ordered pairs and a token with itself counted as
    written. It is not divided by ΣW, so the temporal term is the smaller, the smaller τ is.

    Args:
        student: [B, F, H, W, D], projected.
        teacher: [B, F, H, W, E], the motion tokens; no gradient reaches it.
        tau: τ in token frames. Large values weigh all frames alike.
        reduction: `mean` or `sum`, above.
        part: `spatial` or `temporal`: that term alone.
        rows: As for `relation_distance`.

    Returns:
        [B], computed in float32 (half-precision features too), or in float64 if the student is. Differentiable once.

    Raises:
        ValueError: Shapes that do not agree, τ not above 0, unknown `reduction` or `part`, or the temporal term of a
            single frame.
    """
    if student.ndim != 5 or teacher.ndim != 5 or student.shape[:4] != teacher.shape[:4] or 0 in student.shape:
        raise ValueError(
            "student and teacher must be [B, F, H, W, D] and [B, F, H, W, E] on one grid, no axis of them empty, "
            f"got {[*student.shape]} and {[*teacher.shape]}"
        )
    if not tau > 0:
        raise ValueError(f"tau must be above 0, in token frames, got {tau}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")
    if part not in get_args(Part):
        raise ValueError(f"part must be one of {get_args(Part)}, got {part!r}")
    if student.shape[1] == 1 and part != "spatial":
        raise ValueError("the temporal part compares tokens of different frames, got features of one frame")
    frames, places = student.shape[1], student.shape[2] * student.shape[3]
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    index = torch.arange(frames, device=student.device, dtype=dtype)
    apart = (index[:, None] - index).abs()
    spatial = torch.eye(frames, device=student.device, dtype=dtype) / frames
    temporal = torch.exp(-apart / tau) * (apart > 0)
    if reduction == "mean":
        spatial = spatial / places**2
        temporal = temporal / (max(frames**2 - frames, 1) * places**2)
    weights = {"both": spatial + temporal, "spatial": spatial, "temporal": temporal}[part]
    return relation_distance(student.flatten(2, 3), teacher.flatten(2, 3), weights, rows=rows)


class MotionProjector(nn.Module):
    """Stage 1: a frozen encoder's tokens → a narrow motion subspace, on the same grid.

    Ours: a layer norm at the entry (VideoREPA's reading of the encoder is before any final norm, where tokens differ
    much in length), three 3D convolutions of kernel 3 with GELU between them, 256 wide, borders padded with what is
    next to them, so that no token can tell by zeros where it stands: 7.5 million parameters on 768-dimensional tokens.

    Args:
        in_dim: E of the encoder's tokens.
        dim: Of the motion subspace.
        hidden_dim: Channels between the convolutions.
        num_layers: Convolutions, at least 1.
        kernel: Odd width of every convolution, in frames, rows and columns.

    Attributes:
        config: The arguments, as they are saved.
        info: What else goes into `config.json` and comes back from it: which encoder and which flow this projector was
            trained on. Its weights are worthless on another encoder of the same width.

    Raises:
        ValueError: Sizes that are not positive, or an even kernel.
    """

    def __init__(
        self, *, in_dim: int, dim: int = 64, hidden_dim: int = 256, num_layers: int = 3, kernel: int = 3
    ) -> None:
        super().__init__()
        _check_sizes(kernel, in_dim=in_dim, dim=dim, hidden_dim=hidden_dim, num_layers=num_layers)
        self.config = {
            "in_dim": in_dim,
            "dim": dim,
            "hidden_dim": hidden_dim,
            "num_layers": num_layers,
            "kernel": kernel,
        }
        self.info: dict[str, Any] = {}
        self.norm = nn.LayerNorm(in_dim)
        self.convs = _convolutions(nn.Conv3d, in_dim, hidden_dim, dim, num_layers, kernel)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, f, h, w, in_dim] → [B, f, h, w, dim], in the dtype of the parameters.

        Raises:
            ValueError: Tokens of another shape.
        """
        _check_tokens(tokens, self.config["in_dim"])
        tokens = self.norm(tokens.to(self.norm.weight.dtype))
        return self.convs(tokens.movedim(-1, 1)).movedim(1, -1)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, each whole or not at all."""
        folder = Path(folder)
        write_tensors(folder / "model.safetensors", self.state_dict())
        described = json.dumps({"arguments": self.config, "info": self.info}, indent=2, ensure_ascii=False)
        write_bytes(folder / "config.json", f"{described}\n".encode())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `save` wrote, in float32 on the CPU.

        Raises:
            ValueError: A file missing or broken, or weights that do not fit the arguments.
        """
        path = Path(folder) / "config.json"
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            arguments, info = described["arguments"], described["info"]
        except OSError:
            raise ValueError(f"no motion projector in {folder}: no file {path}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} does not describe a motion projector: {error!r}") from error
        weights = Path(folder) / "model.safetensors"
        projector = build(cls, arguments, read_tensors(weights)[0], weights)
        projector.info = info
        return projector


class FlowDecoder(nn.Module):
    """Stage 1: motion tokens → optical flow; light, so that it can find no motion that the tokens do not state.

    Ours: 2D convolutions on every token frame by itself with GELU between them, the last of which gives upscale² flow
    vectors for every field and token, laid out as pixels. What happens over time, the projector must have put into
    the token.

    The flow that a token is asked for is that of the frames it covers (`token_flows`), in upscale × upscale cells:
    4 makes cells of 4×4 pixels of a 16×16 patch. Its unit is `scale_px` of `flow_loss`.

    Args:
        dim: Of the motion subspace.
        hidden_dim: Channels between the convolutions.
        num_layers: Convolutions, at least 1.
        kernel: Odd width of every convolution, in rows and columns.
        flows_per_token: Flow fields of every token frame.
        upscale: Flow cells along each side of a token.

    Raises:
        ValueError: Sizes that are not positive, or an even kernel.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        hidden_dim: int = 64,
        num_layers: int = 2,
        kernel: int = 3,
        flows_per_token: int = 1,
        upscale: int = 4,
    ) -> None:
        super().__init__()
        _check_sizes(
            kernel,
            dim=dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            flows_per_token=flows_per_token,
            upscale=upscale,
        )
        self.dim, self.flows_per_token = dim, flows_per_token
        self.convs = _convolutions(nn.Conv2d, dim, hidden_dim, flows_per_token * 2 * upscale**2, num_layers, kernel)
        for parameter in self.convs[-1].parameters():  # "no motion", which most of a picture is, is where it begins
            nn.init.zeros_(parameter)
        self.to_pixels = nn.PixelShuffle(upscale)

    def forward(self, motion: Tensor) -> Tensor:
        """[B, f, h, w, dim] → [B, f·flows_per_token, 2, h·upscale, w·upscale]; (right, down).

        Raises:
            ValueError: Tokens of another shape.
        """
        _check_tokens(motion, self.dim)
        flow = self.to_pixels(self.convs(motion.flatten(0, 1).movedim(-1, 1)))  # [B·f, flows·2, rows, columns]
        return flow.unflatten(1, (self.flows_per_token, 2)).unflatten(0, motion.shape[:2]).flatten(1, 2)


def token_flows(flow: Tensor, *, num_frames: int, tubelet: int, flows_per_token: int = 1) -> tuple[Tensor, Tensor]:
    """The flow fields that each token frame of a clip is to state (ours: the target's clock is not published).

    Token frame i covers frames tubelet·i to tubelet·(i+1) − 1. It is given the flow from frame
    tubelet·i + ⌊j·tubelet/flows_per_token⌋ to the next one, j = 0 … flows_per_token − 1. Fewer flows than a tubelet
    has frames all stay inside it (one flow of a tubelet of 2: from its first frame to its second). As many flows as
    frames follow one another without a gap, but the last of the last token leaves the clip: it is not valid unless
    `flow` goes on that far.

    Args:
        flow: [B, T, 2, H, W], from each frame to the next, the encoder's first frame first; T ≥ `num_frames` − 1.
        num_frames: Frames the encoder sees, a multiple of `tubelet`.
        tubelet: Frames that a token covers.
        flows_per_token: 1 to `tubelet`.

    Returns:
        Flow [B, num_frames/tubelet·flows_per_token, 2, H, W], and which of its fields are valid, bool
        [1, num_frames/tubelet·flows_per_token, 1, 1]: what `flow_loss` takes.

    Raises:
        ValueError: Sizes that do not go together.
    """
    if flow.ndim != 5 or flow.shape[2] != 2 or flow.shape[1] < max(1, num_frames - 1):
        raise ValueError(f"flow must be [B, T, 2, H, W] with T ≥ {max(1, num_frames - 1)}, got {[*flow.shape]}")
    if num_frames < 1 or tubelet < 1 or num_frames % tubelet:
        raise ValueError(f"num_frames must be a positive multiple of the tubelet of {tubelet}, got {num_frames}")
    if not 1 <= flows_per_token <= tubelet:
        raise ValueError(f"flows_per_token must be 1 to {tubelet}, the frames of a tubelet, got {flows_per_token}")
    inside = torch.arange(flows_per_token) * tubelet // flows_per_token
    starts = (torch.arange(0, num_frames, tubelet)[:, None] + inside).flatten().to(flow.device)
    valid = starts < flow.shape[1]
    return flow[:, starts.clamp_max(flow.shape[1] - 1)], valid[None, :, None, None]


def flow_loss(predicted: Tensor, flow: Tensor, *, scale_px: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """L1 between predicted and known flow (ours: its units and its means).

    The known flow keeps the resolution it was made at and is averaged over the cells of the predicted one.

    Args:
        predicted: [B, T, 2, h, w], of `FlowDecoder`, in units of `scale_px`.
        flow: [B, T, 2, H, W] in pixels of its own H × W picture, (right, down); H ≥ h, W ≥ w.
        scale_px: Pixels of flow that count as 1: about the size of common motion, to make the task well scaled.
        valid: Where the flow is known, bool, or how much it counts, float ≥ 0; broadcast to [B, T, H, W]. A cell
            counts as the sum of its pixels. What is not valid may hold anything, NaN too.

    Returns:
        [B], float32 (or float64 if predicted in it): the weighted mean over cells and the two components; 0 for a clip
        without any valid flow.

    Raises:
        ValueError: Shapes that do not go together, or a scale that is not above 0.
    """
    if predicted.ndim != 5 or predicted.shape[2] != 2 or flow.ndim != 5 or flow.shape[:3] != predicted.shape[:3]:
        raise ValueError(
            "predicted and flow must be [B, T, 2, h, w] and [B, T, 2, H, W], "
            f"got {[*predicted.shape]} and {[*flow.shape]}"
        )
    if flow.shape[3] < predicted.shape[3] or flow.shape[4] < predicted.shape[4]:
        raise ValueError(f"flow of {[*flow.shape[3:]]} is coarser than the predicted {[*predicted.shape[3:]]}")
    if not scale_px > 0:
        raise ValueError(f"scale_px must be above 0, got {scale_px}")
    dtype = torch.float64 if predicted.dtype == torch.float64 else torch.float32
    clips, fields, _, height, width = flow.shape
    weights = torch.ones((), device=flow.device) if valid is None else valid
    try:
        weights = weights.to(dtype).broadcast_to(clips, fields, height, width)[:, :, None]  # [B, T, 1, H, W]
    except RuntimeError:
        raise ValueError(f"valid must broadcast to {[clips, fields, height, width]}, got {[*weights.shape]}") from None
    target = torch.where(weights > 0, flow.detach().to(dtype), 0) / scale_px

    def cells(values: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(values.flatten(0, 1), (predicted.shape[3], predicted.shape[4]))
        return pooled.unflatten(0, (clips, fields))

    cell_weights = cells(weights)
    target = cells(weights * target) / torch.where(cell_weights > 0, cell_weights, 1)
    error = (predicted.to(dtype) - target).abs().mean(dim=2, keepdim=True)
    total = cell_weights.sum(dim=(1, 2, 3, 4))
    return (cell_weights * error).sum(dim=(1, 2, 3, 4)) / torch.where(total > 0, total, 1)


def _convolutions(
    kind: type[nn.Conv2d] | type[nn.Conv3d], before: int, hidden: int, after: int, num_layers: int, kernel: int
) -> nn.Sequential:
    """Convolutions that keep the grid, GELU between them."""
    widths = [before, *[hidden] * (num_layers - 1), after]
    layers: list[nn.Module] = []
    for index in range(num_layers):
        conv = kind(widths[index], widths[index + 1], kernel, padding=kernel // 2, padding_mode="replicate")
        layers += [nn.GELU(), conv]
    return nn.Sequential(*layers[1:])


def _check_sizes(kernel: int, **sizes: int) -> None:
    wrong = ", ".join(f"{name}={size}" for name, size in sizes.items() if size < 1)
    if wrong:
        raise ValueError(f"sizes must be positive, got {wrong}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, got {kernel}")


def _check_tokens(tokens: Tensor, dim: int) -> None:
    if tokens.ndim != 5 or tokens.shape[-1] != dim:
        raise ValueError(f"tokens must be [B, f, h, w, {dim}], got {[*tokens.shape]}")
