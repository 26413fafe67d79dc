"""The training loop, for whatever is trained, under accelerate.

One optimizer step draws `batch_size` samples in each process, `accumulate` times. Sample numbers run over processes
and steps, and everything random about a sample depends on its number alone, so two processes train as one does at
twice the batch, and a run that resumes at step N does what an unbroken run does from step N on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers

from physcli.errors import MissingExtra, UsageError
from physcli.files import write_text
from physcli.models.device import computes_in_bfloat16, most_memory, pick_device
from physcli.progress import Reporter
from physcli.recipe import Train
from physcli.tasks.processes import on_cpu
from physcli.tasks.run_dir import RunDir, to_json
from physcli.tasks.training.checkpoints import cannot_write, prune, read_manifest, write_checkpoint
from physcli.tasks.training.scoring import ScoreLog, overall
from physcli.tasks.training.step import OptimizerStep, TrainingError
from physcli.tasks.training.trainee import Trainee

KeepBest = Callable[[int, float, list[dict[str, Any]]], object]  # step, seconds, rows

_BATCHES_AHEAD = 2
_VALIDATION = "validation.json"  # of the last one: its step and rows
_TRACKER_PACKAGES = {"comet_ml": "comet-ml"}


@dataclass
class TrainingResult:
    """What a training run logged and measured.

    Attributes:
        steps: The rows of steps.jsonl: one per optimizer step.
        rows: Metric rows of the last validation, and of the last scoring.
        scores: What a judge said on the way.
        resumed: The step that training went on from; None for a new run.
        seconds: Spent on training, those of the resumed run included.
        problems: Clips that could not be read, in words.
    """

    steps: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    scores: ScoreLog
    resumed: int | None = None
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def build_accelerator(settings: Train, *, device: str, folder: Path | None = None) -> Accelerator:
    """The accelerator for these settings; its own config file or launcher may ask for DDP, FSDP or DeepSpeed.

    Args:
        settings: The recipe's `train`.
        device: auto, cpu, cuda, ….
        folder: Where trackers write.

    Raises:
        MissingExtra: a tracker that is not installed.
        UsageError: no such device, or fp16 without a GPU.
    """
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it names every tied weight at every checkpoint
    chosen = pick_device("cpu" if on_cpu(device) else device)
    if settings.mixed_precision == "fp16" and chosen.type == "cpu":
        raise UsageError(
            "train.mixed_precision=fp16 on the CPU.", expected="auto, bf16 or no", fix="use train.mixed_precision=auto"
        )
    for name in settings.trackers:  # accelerate leaves out what is not installed without a word
        if name not in [str(tracker) for tracker in get_available_trackers()]:
            raise MissingExtra(f"The tracker {name}", package=_TRACKER_PACKAGES.get(name, name), extra="trackers")
    alone = not torch.distributed.is_initialized()
    if alone and chosen.index is not None:
        torch.cuda.set_device(chosen)
    # accelerate keeps the first precision and device of a process for good; one process may train twice.
    AcceleratorState._reset_state(reset_partial_state=alone)
    return Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision=pick_precision(settings, chosen),
        gradient_accumulation_steps=settings.accumulate,
        log_with=list(settings.trackers) or None,
        project_dir=str(folder) if folder is not None else None,
        step_scheduler_with_optimizer=False,
    )


def pick_precision(settings: Train, device: torch.device) -> str:
    """`train.mixed_precision` on this device: no, bf16 or fp16."""
    if settings.mixed_precision != "auto":
        return settings.mixed_precision
    return "bf16" if computes_in_bfloat16(device) else "no"


def train(
    trainee: Trainee,
    settings: Train,
    *,
    run: RunDir,
    accelerator: Accelerator,
    seed: int,
    resume: Path | None = None,
    facts: dict[str, Any] | None = None,
    keep_best: KeepBest | None = None,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train, validate, write checkpoints, and leave the trainee with its final (averaged) weights.

    Args:
        trainee: What is trained; moved to the accelerator's device.
        settings: The recipe's `train`.
        run: Gets steps.jsonl, checkpoints, samples.
        accelerator: Of `build_accelerator`.
        seed: Of the order of clips and all noise.
        resume: A whole checkpoint (`find_checkpoint`), or None to start anew.
        facts: Kept in every checkpoint.
        keep_best: Called by the main process after a step whose score is the best so far, with the step, the seconds
            and the rows, while the trainee has the weights that were scored.
        reporter: Receives progress.

    Raises:
        TrainingError: NaN or infinite loss or gradient. The weights before it are in a checkpoint.
        DataError: the disk is full, or too many clips are broken.
    """
    reporter = reporter or Reporter()
    loop = _Loop(trainee, settings, run, accelerator, seed, facts or {}, keep_best, reporter)
    loop.begin(resume)
    return loop.run_to_end()


class _Loop:
    def __init__(
        self,
        trainee: Trainee,
        settings: Train,
        run: RunDir,
        accelerator: Accelerator,
        seed: int,
        facts: dict[str, Any],
        keep_best: KeepBest | None,
        reporter: Reporter,
    ) -> None:
        self.trainee, self.settings, self.run, self.accelerator = trainee, settings, run, accelerator
        self.seed, self.facts, self.keep_best, self.reporter = seed, facts, keep_best, reporter
        self.step = 0
        self.samples = 0  # drawn by all processes together
        self.resumed: int | None = None
        self.history: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.scores = ScoreLog(run.path, trainee.judged_by, writes=accelerator.is_main_process)
        self._saved: int | None = None
        self._owes_validation = False
        self._problems: list[str] = []  # before the checkpoint
        self.optimizer_step = OptimizerStep(trainee, settings, accelerator, seed=seed)
        self.ema = self.optimizer_step.ema
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)
        accelerator.register_for_checkpointing(*trainee.states)
        if settings.trackers:
            accelerator.init_trackers("physcli", config={"recipe": to_json(facts.get("recipe", {}), indent=None)})

    @property
    def _log(self) -> Path:
        return self.run.path / "steps.jsonl"

    def begin(self, resume: Path | None) -> None:
        """Load the checkpoint, if one is given, and cut the log back to its step."""
        if resume is None:
            # Nothing here draws from these two, but checkpoints keep them: so those of equal runs are equal files.
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)  # noqa: NPY002 (the state that checkpoints keep)
            if self.accelerator.is_main_process:
                self._log.unlink(missing_ok=True)  # of a run that came to no checkpoint
            self.scores.begin(0, None)
            return
        manifest = read_manifest(resume)
        self.accelerator.load_state(str(resume))
        self.step = self.resumed = self._saved = int(manifest["step"])
        # Its count of accumulated batches; a NaN's checkpoint is of the middle of a step.
        self.accelerator.step = self.step * self.settings.accumulate
        self.samples = int(manifest["samples"])
        self._problems = list(manifest.get("problems", []))
        log = resume.parent / "steps.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        self.history = [row for row in map(json.loads, _whole(lines)) if row["step"] <= self.step]
        if self.accelerator.is_main_process:
            write_text(self._log, "".join(to_json(row, indent=None) + "\n" for row in self.history))
        # Steps are kept before they are validated, which a kill may have prevented.
        if self._is_validated(self.step) and self.step < self.settings.steps:
            self._owes_validation = self._last_validated() != self.step
        self.scores.begin(self.step, resume.parent)
        self.accelerator.wait_for_everyone()  # all have read it before the main process writes it
        if self.scores.last == self.step:  # heard of after the checkpoint was written
            self.trainee.after_score(self.scores.values(), self.step)
        self.reporter.note(f"Resumed at step {self.step} from {resume}.")

    def _is_validated(self, step: int) -> bool:
        return bool(self.settings.validate_every) and step % self.settings.validate_every == 0

    def _last_validated(self) -> int | None:
        try:
            return json.loads((self.run.path / _VALIDATION).read_text(encoding="utf-8"))["step"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def run_to_end(self) -> TrainingResult:
        """All remaining steps."""
        settings, start = self.settings, time.monotonic()
        self._earlier = self.history[-1]["seconds"] if self.history else 0.0
        self._begun_at, self._first_step, self._first_sample = start, self.step, self.samples
        if self._owes_validation:
            self._validate()
        if self._is_scored() and self.scores.last != self.step:
            self._score()
        with (
            self.reporter.bar("Training", settings.steps, "step") as bar,
            _stop_requests(self.accelerator.num_processes == 1) as stop,
            contextlib.closing(_ahead(self._prepare, self.step * settings.accumulate)) as batches,
        ):
            bar.advance(self.step)
            while self.step < settings.steps:
                row = self._one_step(batches)
                self._log_row(row)
                if settings.trackers:
                    self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=self.step)
                bar.advance(1)
                bar.show(self._status(row))
                last = self.step == settings.steps
                if last or self.step % settings.checkpoint_every == 0:
                    self._checkpoint()
                if not last and self._is_validated(self.step):
                    self._validate()
                if self._is_scored():
                    self._score()
                if stop() and not last:
                    self._checkpoint()
                    self.reporter.note(f"checkpoint-{self.step} is written; --resume latest goes on from there.")
                    raise KeyboardInterrupt
        self._validate()
        self.accelerator.wait_for_everyone()
        if settings.trackers:
            self.accelerator.end_training()
        if self.ema is not None:  # for good
            self.ema.apply()
        self.trainee.eval()
        rows = self.rows + self.scores.overall()
        return TrainingResult(self.history, rows, self.scores, self.resumed, self._seconds(), self._all_problems())

    def _seconds(self) -> float:
        return self._earlier + time.monotonic() - self._begun_at

    def _all_problems(self) -> list[str]:
        return list(dict.fromkeys([*self._problems, *self.trainee.problems()]))

    def _log_row(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if not self.accelerator.is_main_process:
            return
        try:
            with self._log.open("a", encoding="utf-8") as log:  # open no longer than this: closing writes, too
                log.write(to_json(row, indent=None) + "\n")
        except OSError as error:
            raise cannot_write(self._log.name, self.run.path, error) from error

    def _prepare(self, number: int) -> dict[str, Any]:
        """The batch of this process for micro-step `number`."""
        accumulate = self.settings.accumulate
        samples = self.optimizer_step.samples(number - self._first_step * accumulate, first=self._first_sample)
        return self.trainee.batch(samples, number // accumulate)

    def _one_step(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        settings = self.settings
        try:
            done = self.optimizer_step(itertools.islice(batches, settings.accumulate), self.step)
        except TrainingError as error:
            raise self._give_up(error) from None
        self.step += 1
        self.samples += settings.batch_size * settings.accumulate * self.accelerator.num_processes
        row = {"step": self.step, "samples": self.samples, **done.means, "grad_norm": done.grad_norm, "lr": done.lr}
        row["seconds"] = round(self._seconds(), 3)
        return row

    def _give_up(self, error: TrainingError) -> TrainingError:
        """Keep the state before this step; the error that says so."""
        intact = all(bool(torch.isfinite(p).all()) for p in self.trainee.parameters())
        self.optimizer_step.optimizer.zero_grad()
        if intact:
            self._checkpoint()
        kept = (
            f"checkpoint-{self._saved} holds the weights before it" if self._saved is not None else "nothing was saved"
        )
        return TrainingError(error.received, expected=error.expected, fix=f"{kept}; {error.fix}, in another --out")

    def _checkpoint(self) -> None:
        if self._saved == self.step:
            return
        facts = {**self.facts, "samples": self.samples, "problems": self._all_problems()}
        write_checkpoint(
            self.run.path,
            self.step,
            lambda folder: self.accelerator.save_state(str(folder), safe_serialization=True),
            facts,
            is_main=self.accelerator.is_main_process,
            wait=self.accelerator.wait_for_everyone,
        )
        self._saved = self.step
        if self.accelerator.is_main_process:
            prune(self.run.path, self.settings.keep_checkpoints, self.step)

    def _validate(self) -> None:
        """The main process measures; the others wait."""
        if self.accelerator.is_main_process:
            folder = self.run.path / "samples" / f"step-{self.step:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            self.trainee.eval()
            with self.ema.applied() if self.ema is not None else contextlib.nullcontext(), torch.no_grad():
                self.rows = self.trainee.validate(folder, final=self.step == self.settings.steps)
            self.trainee.train()
            if not any(folder.iterdir()):
                folder.rmdir()
            values = {row["metric"]: row["value"] for row in self.rows if row["group"] == "all"}
            write_text(self.run.path / _VALIDATION, to_json({"step": self.step, "rows": self.rows}) + "\n")
            summary = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.reporter.note(f"Step {self.step}: {summary}")
            if self.settings.trackers:
                self.accelerator.log({f"validation/{name}": value for name, value in values.items()}, step=self.step)
        self.accelerator.wait_for_everyone()

    def _is_scored(self) -> bool:
        every = self.settings.score_every
        return bool(every) and (self.step % every == 0 or self.step == self.settings.steps)

    def _score(self) -> None:
        """Every process takes its part; a NaN in what is made ends the run as it would end `sample`."""
        folder = self.run.path / "samples" / f"step-{self.step:06d}"
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.trainee.eval()
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext(), torch.no_grad():
            rows = self.trainee.score(folder)
            best = self.step > 0 and self.scores.is_best(rows)
            if best and self.accelerator.is_main_process and self.keep_best is not None:
                self.keep_best(self.step, self._seconds(), overall(rows))
        self.scores.add(self.step, rows)
        self.trainee.train()
        self.accelerator.wait_for_everyone()
        values = self.scores.values()
        self.trainee.after_score(values, self.step)
        self.reporter.note(f"Step {self.step}: {self.scores.metric} {values[self.scores.metric]:.4g}")
        if self.settings.trackers:
            self.accelerator.log({f"score/{name}": value for name, value in values.items()}, step=self.step)

    def _status(self, row: dict[str, Any]) -> str:
        if self.accelerator.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 1e9
        else:
            memory = most_memory() / 1e9
        return f"loss {row['loss']:.4g} · grad {row['grad_norm']:.3g} · lr {row['lr']:.2g} · {memory:.1f} GB"


def _whole(lines: list[str]) -> Iterator[str]:
    """Lines up to the first that a killed run left half-written."""
    for line in lines:
        try:
            json.loads(line)
        except ValueError:
            return
        yield line


def _ahead(prepare: Callable[[int], dict[str, Any]], first: int) -> Generator[dict[str, Any]]:
    """Batches `first`, `first`+1, …, prepared by threads before they are asked for."""
    pool = ThreadPoolExecutor(_BATCHES_AHEAD)
    waiting: list[Future[dict[str, Any]]] = []
    number = first
    try:
        while True:
            while len(waiting) < _BATCHES_AHEAD:
                waiting.append(pool.submit(prepare, number))
                number += 1
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _stop_requests(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM wait for the end of the step, so that it can be kept; a second one does not wait.

    Of several processes none can stop alone at a step's end: there the signal acts at once.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]  # not nohup's
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
