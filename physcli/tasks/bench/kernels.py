"""`physcli bench finetune --kernels`: token relation distillation alone, at the sizes it is published with."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
import torch
from torch import Tensor

from physcli.methods.grids import Grid
from physcli.methods.similarity import unit
from physcli.methods.videorepa import trd_loss
from physcli.models.device import peak_memory, pick_device
from physcli.progress import Reporter
from physcli.tasks.bench.timing import alternate, ratio, row
from physcli.tasks.processes import on_cpu

MARGIN = 0.1
TEACHER_GRID: Grid = (24, 10, 15)  # 3,600 tokens: where VideoREPA compares
STUDENT_GRID: Grid = (13, 30, 45)  # 17,550 tokens: the generator's own, the worst that `interpolate: teacher` asks for


def bench_kernels(
    *,
    teacher_grid: Grid = TEACHER_GRID,
    student_grid: Grid = STUDENT_GRID,
    dim: int = 768,
    rounds: int = 5,
    device: str = "auto",
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Value and gradient of TRD for one clip, float32, beside two other ways, and the memory it takes.

    Args:
        teacher_grid: Frames, rows and columns of tokens for the times.
        student_grid: Of tokens for the memory.
        dim: Features of both sides.
        rounds: Timed passes of each kind.
        device: auto, cpu, cuda, ….
        seed: Of the features.
        reporter: Receives progress.

    Returns:
        `over_products`: over one N×N product a side and what autograd makes of the student's. `over_copies`: over
        `relations_by_copies`. `seconds`. `extra_memory_gb`: held at most beside the features, in 10⁹ bytes; on the
        CPU that of a process that does nothing else.
    """
    reporter = reporter or Reporter()
    chosen = pick_device("cpu" if on_cpu(device) else device)
    student, teacher = _features(teacher_grid, dim, chosen, seed)
    num_tokens = student.shape[1] * student.shape[2] * student.shape[3]
    slope = torch.ones(num_tokens, num_tokens, device=chosen)

    def products() -> None:
        x, y = student.reshape(num_tokens, dim), teacher.reshape(num_tokens, dim)
        (x @ x.T).backward(slope)
        y @ y.T

    sides: dict[str, Callable[[], object]] = {
        "trd": lambda: trd_loss(student, teacher, margin=MARGIN).sum().backward(),
        "products": products,
        "copies": lambda: relations_by_copies(student, teacher, margin=MARGIN).sum().backward(),
    }
    with reporter.bar("Timing TRD", 2, "size") as bar:
        seconds = alternate(sides, rounds)
        bar.advance()
        if chosen.type == "cpu":
            # A process's memory can only be asked for its peak, which these passes have already set.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                extra = pool.submit(extra_memory, student_grid, dim, str(chosen), seed).result()
        else:
            extra = extra_memory(student_grid, dim, str(chosen), seed)
        bar.advance()
    subject, times, memory = f"TRD, {dim} features", _name(teacher_grid), _name(student_grid)
    return [
        row("kernels", subject, times, "over_products", ratio(seconds["trd"], seconds["products"]), rounds, False),
        row("kernels", subject, times, "over_copies", ratio(seconds["trd"], seconds["copies"]), rounds, False),
        row("kernels", subject, times, "seconds", statistics.median(seconds["trd"]), rounds, False),
        row("kernels", subject, memory, "extra_memory_gb", extra / 1e9, 1, False),
    ]


def relations_by_copies(student: Tensor, teacher: Tensor, *, margin: float) -> Tensor:
    """TRD with all tokens of a clip copied once for every frame, so that a batched product compares frames with them.

    The obvious way, and the yardstick for `trd_loss`, which equals it.

    Args:
        student: [B, F, H, W, D].
        teacher: Same shape.
        margin: Differences of cosines up to this are forgiven.

    Returns:
        [B].
    """

    def cosines(features: Tensor) -> Tensor:
        tokens = unit(features.flatten(2, 3))  # [B, F, n, D]
        copies = tokens.flatten(1, 2)[:, None].repeat(1, tokens.shape[1], 1, 1)  # [B, F, N, D]
        return tokens @ copies.mT  # [B, F, n, N]

    difference = (cosines(student) - cosines(teacher.detach())).abs()
    return (difference - margin).relu().mean(dim=(1, 2, 3))


def extra_memory(grid: Grid, dim: int, device: str, seed: int) -> float:
    """The most bytes that TRD's value and gradient hold beside the features. On the CPU right in a new process only."""
    chosen = torch.device(device)
    student, teacher = _features((2, 2, 2), dim, chosen, seed)
    trd_loss(student, teacher, margin=MARGIN).sum().backward()  # PyTorch's own first allocations are not its
    student, teacher = _features(grid, dim, chosen, seed)
    if chosen.type == "cuda":
        torch.cuda.reset_peak_memory_stats(chosen)
        before = float(torch.cuda.memory_allocated(chosen))
        trd_loss(student, teacher, margin=MARGIN).sum().backward()
        return torch.cuda.max_memory_allocated(chosen) - before
    before = float(psutil.Process().memory_info().rss)
    trd_loss(student, teacher, margin=MARGIN).sum().backward()
    return peak_memory(chosen) - before


def _features(grid: Grid, dim: int, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Random features of student and teacher, float32 [1, F, H, W, D]."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(1, *grid, dim, generator=generator).to(device) for _ in range(2))
    return student.requires_grad_(), teacher


def _name(grid: Grid) -> str:
    return "×".join(map(str, grid))
