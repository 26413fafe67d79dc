"""Judges that score a generator while it is trained, on the same items with the same seeds every time."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from physcli.benchmarks import physion
from physcli.benchmarks.base import Context, Score
from physcli.benchmarks.laws import Laws
from physcli.benchmarks.readout import READOUTS, aggregate
from physcli.data.clips import Clip, read_dataset
from physcli.data.flow import dis_flow
from physcli.errors import UsageError
from physcli.files import write_text
from physcli.hashing import seed_from
from physcli.models.generator import Generator
from physcli.progress import Reporter
from physcli.recipe import GeneratorRecipe
from physcli.report.plots import contact_sheet, score_curves
from physcli.rows import Row, interval_of
from physcli.tasks.features import FeatureExtractor, check_finite, choose_taps, rate_at
from physcli.tasks.probe_physion import ProbeSettings, common_latent_frames, shown_views
from physcli.tasks.processes import Processes
from physcli.tasks.prompt_sets import distinct
from physcli.tasks.run_dir import to_json
from physcli.tasks.sheets import shorten
from physcli.tasks.sources import clips_folder
from physcli.tasks.training.windows import prompt_at

SCORES = "scores.jsonl"  # a line a scoring: its step and rows
_AT_ONCE = 8  # videos of a pass
_SHOWN, _FRAMES_SHOWN = 16, 5


@dataclass(frozen=True)
class Asked:
    """A video to be made and judged: its prompt, first noise and frame rate; what benchmarks see of a video, too."""

    prompt: str
    seed: int
    rate_hz: float
    columns: Mapping[str, Any] = field(default_factory=dict)
    rules: Sequence[str] = ()

    @property
    def name(self) -> str:
        return f"{self.prompt} ({self.seed})"

    @property
    def caption(self) -> str:
        return self.prompt


class Judge(ABC):
    """Scores the generator as it is; every process takes part, and all get the same rows.

    Attributes:
        headline: The metric that counts where the recipe names none.
        metrics: All that it has.
    """

    headline: str
    metrics: tuple[str, ...]

    @abstractmethod
    def score(self, generator: Generator, folder: Path) -> list[Row]:
        """Rows over all items, and for each group.

        Args:
            generator: Its VAE and text encoder are read already.
            folder: For pictures and what is in between; the same for all processes.
        """


class VideoJudge(Judge):
    """Looks at videos for held-out prompts, as they were made: before any video file's losses.

    Args:
        items: What is asked for.
        recipe: Says of how many frames, and how they are made.
        processes: Each makes its part.

    Raises:
        UsageError: no prompt of the simulated world.
    """

    def __init__(self, items: Sequence[Asked], recipe: GeneratorRecipe, *, processes: Processes) -> None:
        if not items:
            raise UsageError(
                f"scoring.judge={recipe.scoring.judge} without simulated held-out clips: the laws are of the simulated "
                "world.",
                expected="simulated clips in data.source, or another judge",
                fix="use scoring.judge=ocp, or leave train.score_every out",
            )
        self.items, self.processes = items[: recipe.scoring.videos], processes
        self.frames, self.steps = recipe.objective.frames, recipe.scoring.sample_steps

    @abstractmethod
    def judge(self, item: Asked, frames: np.ndarray) -> dict[str, Any]:
        """Of uint8 [T, H, W, 3]: every metric, and `reasons`, why laws are broken."""

    @abstractmethod
    def rows(self, judged: Sequence[Mapping[str, Any]], subject: str) -> list[Row]:
        """Over all items, in their order."""

    def score(self, generator: Generator, folder: Path) -> list[Row]:
        mine = self.processes.share(range(len(self.items)))
        made = make_videos(generator, [self.items[n] for n in mine], num_frames=self.frames, steps=self.steps)
        videos = [video for video, _ in made]
        own = [self.judge(self.items[n], video) for n, video in zip(mine, videos, strict=True)]
        judged = dict(self.processes.collect(list(zip(mine, own, strict=True))))
        if self.processes.is_main:
            _draw(folder / "scored.png", [self.items[n] for n in mine], videos, own)
        return self.rows([judged[number] for number in range(len(self.items))], generator.name)


class LawsJudge(VideoJudge):
    """`physcli eval laws`."""

    headline = "joint"
    metrics = tuple(metric.name for metric in Laws.metrics)

    def judge(self, item: Asked, frames: np.ndarray) -> dict[str, Any]:
        return by_laws(item, frames)

    def rows(self, judged: Sequence[Mapping[str, Any]], subject: str) -> list[Row]:
        scores = [Score(*both) for both in zip(self.items, judged, strict=True)]
        columns = {"benchmark": Laws.name, "task": Laws.task, "subject": subject, "split": "held-out"}
        return Laws().aggregate(scores, **columns)


def asked_of(clips: Sequence[Clip], recipe: GeneratorRecipe, *, seed: int, default_rate_hz: float) -> list[Asked]:
    """The prompts of simulated clips, each once, the scenarios in turn, at the recipe's largest stride.

    Args:
        clips: Those that are not simulated are left out.
        recipe: Says the strides.
        seed: Of every video's first noise.
        default_rate_hz: Of clips whose files do not say.
    """
    stride = max(recipe.objective.strides)
    simulated = [clip for clip in clips if clip.kind == "simulated"]
    return [
        Asked(prompt, seed_from(seed, "score", prompt), rate_at(clip, stride, default_rate_hz))
        for clip in (distinct(simulated) if simulated else [])
        for prompt in [prompt_at(clip, stride)]
    ]


def by_laws(item: Asked, frames: np.ndarray) -> dict[str, Any]:
    """What `physcli eval laws` says of uint8 [T, H, W, 3]."""
    return Laws().score(item, Context(lambda: frames, item.rate_hz, dis_flow))


def make_videos(
    generator: Generator, items: Sequence[Asked], *, num_frames: int, steps: int, guidance_scale: float | None = None
) -> list[tuple[np.ndarray, Tensor]]:
    """A video uint8 [T, H, W, 3] for each, and its latents [F, C, h, w] on the CPU; a few at a time."""
    height, width = generator.facts.size
    made: list[tuple[np.ndarray, Tensor]] = []
    for first in range(0, len(items), _AT_ONCE):
        some = items[first : first + _AT_ONCE]
        done = generator.sample(
            [item.prompt for item in some],
            [item.seed for item in some],
            num_frames=num_frames,
            height=height,
            width=width,
            steps=steps,
            guidance_scale=guidance_scale,
            frame_rates_hz=[item.rate_hz for item in some],
        )
        made += zip(done.frames, done.latents.float().cpu(), strict=True)
    return made


def _draw(
    path: Path, items: Sequence[Asked], videos: Sequence[np.ndarray], judged: Sequence[Mapping[str, Any]]
) -> None:
    """A contact sheet of the first of them, with what the laws find wrong."""
    at = np.linspace(0, len(videos[0]) - 1, _FRAMES_SHOWN).round().astype(int)
    rows = []
    for item, video, said in list(zip(items, videos, judged, strict=True))[:_SHOWN]:
        wrong = ", ".join("not as asked" if what == "sa" else what for what in said["reasons"])
        rows.append((shorten(f"{wrong or 'nothing wrong'}: {item.prompt}", 72), video[at]))
    contact_sheet(path, rows=rows, columns=[str(frame) for frame in at])


class OcpJudge(Judge):
    """`physcli probe physion`'s readout of contact (OCP) from one block at one noise level, without its controls.

    Args:
        recipe: Says which clips, block and σ.
        generator: Whose features are read.
        seed: Of the noise that it is shown, and of folds.
        cache: Simulated suites and latents are kept here; features, which are of passing weights, are not.
        processes: Each computes its part.
        reporter: Receives progress.
    """

    headline = "accuracy"
    metrics = ("accuracy", "balanced_accuracy")

    def __init__(
        self,
        recipe: GeneratorRecipe,
        generator: Generator,
        *,
        seed: int,
        cache: Path,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        self.settings = recipe.scoring
        self.seed, self.cache, self.processes, self.reporter = seed, cache, processes, reporter
        blocks = None if self.settings.block is None else [self.settings.block]
        [self.tap] = choose_taps(generator, blocks, [self.settings.sigma])
        folder = clips_folder(self.settings.data, cache=cache, processes=processes, reporter=reporter)
        selection = physion.select_items(read_dataset(folder).clips, "ocp", limit=self.settings.limit, seed=seed)
        physion.require_enough(selection, "pooled")
        self.views = shown_views(generator, selection.items, ProbeSettings(models=()), {})

    def score(self, generator: Generator, folder: Path) -> list[Row]:
        features = folder / "features.part"
        extractor = FeatureExtractor(
            generator,
            fingerprint="in training",
            vae_fingerprint=generator.fingerprint("vae"),
            num_latent_frames=common_latent_frames(generator, self.views),
            seed=self.seed,
            cache=self.cache,
            passing=features,
            processes=self.processes,
            reporter=self.reporter,
        )
        extractor.compute(self.views, [self.tap])
        rows: list[Row] = []
        if self.processes.is_main:
            sides = {split: [view for view in self.views if view.clip.split == split] for split in ("train", "test")}
            found = {split: extractor.load(views, self.tap) for split, views in sides.items()}
            for split, views in sides.items():
                check_finite(found[split], views, generator.name)
            train, test = ([view.clip for view in sides[split]] for split in ("train", "test"))
            predictions = READOUTS["pooled"](
                found["train"], train, found["test"], test, subject=generator.name, seed=self.seed
            )
            rows = aggregate(predictions, test, task="ocp", subject=generator.name)
            shutil.rmtree(features)
        return self.processes.tell(rows)


def overall(rows: Sequence[Row]) -> list[Row]:
    """Those over all items."""
    return [row for row in rows if row["group"] == "all"]


class ScoreLog:
    """What was scored so far, in scores.jsonl, and its picture.

    Args:
        path: The run directory.
        metric: By which the best weights are known; "" where nothing is scored.
        writes: This is the main process.
    """

    def __init__(self, path: Path, metric: str, *, writes: bool) -> None:
        self.path, self.metric, self.writes = path, metric, writes
        self.entries: list[dict[str, Any]] = []

    def begin(self, step: int, earlier: Path | None) -> None:
        """Go on after a step, from another run's log where one is given."""
        if earlier is not None and (earlier / SCORES).is_file():
            lines = (earlier / SCORES).read_text(encoding="utf-8").splitlines()
            self.entries = [entry for entry in map(json.loads, lines) if entry["step"] <= step]
        self._write()

    def is_best(self, rows: Sequence[Row]) -> bool:
        """Whether these are better than all so far."""
        value, best = self._value(rows), self.best
        return value is not None and (best is None or value > best[1])

    def add(self, step: int, rows: Sequence[Row]) -> None:
        """Note what was scored after `step` steps."""
        self.entries.append({"step": step, "rows": list(rows)})
        self._write()

    @property
    def last(self) -> int | None:
        """The step of the last scoring."""
        return self.entries[-1]["step"] if self.entries else None

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the best weights that were trained; of equal ones the first."""
        trained = [(entry["step"], self._value(entry["rows"])) for entry in self.entries if entry["step"] > 0]
        known = [(step, value) for step, value in trained if value is not None]
        return max(known, key=lambda pair: pair[1], default=None)

    def values(self) -> dict[str, float]:
        """Of the last scoring, over all items."""
        return {row["metric"]: row["value"] for row in self.overall()}

    def overall(self) -> list[Row]:
        """Rows of the last scoring, over all items."""
        return overall(self.entries[-1]["rows"]) if self.entries else []

    def _value(self, rows: Sequence[Row]) -> float | None:
        return next((row["value"] for row in overall(rows) if row["metric"] == self.metric), None)

    def _write(self) -> None:
        """The log and its picture: the rates over all items, laws apart."""
        if not self.writes or not self.metric:
            return
        write_text(self.path / SCORES, "".join(to_json(entry, indent=None) + "\n" for entry in self.entries))
        curves: dict[str, list[tuple[int, float, float, float]]] = {}
        for entry in self.entries:
            for row in overall(entry["rows"]):
                if row["kind"] == "rate" and not row["metric"].startswith("law/"):
                    low, high = interval_of(row) or (row["value"], row["value"])
                    curves.setdefault(row["metric"], []).append((entry["step"], row["value"], low, high))
        if curves:
            score_curves(self.path / "scores.png", title="Scored on the way", curves=curves, banded=self.metric)
