"""`physcli quickstart`: the whole story on the embedded default, small enough for a few minutes on two cores.

Probe a generator and the encoder it is to learn from, fine-tune it with VideoREPA, probe again, sample from it before
and after and with motion guidance, score the videos, compare. Each stage is a run of the command of its name, in a
folder of its own, and a quickstart that was broken off goes on where it stopped.

    OUT/clips.png            simulated clips
    OUT/probe-before/        encoder and generator
    OUT/videorepa/           the fine-tuned generator
    OUT/probe-after/         generator and fine-tuned generator
    OUT/samples-*/           base, videorepa, guided: the same prompts and seeds
    OUT/laws-*/              their scores by the laws of the simulated world
    OUT/videophy2-*/         and by VideoPhy-2's questions to the tiny rater
    OUT/compare*/report.html against the base
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from physcli.data.clips import read_dataset
from physcli.progress import Reporter
from physcli.report.plots import contact_sheet
from physcli.tasks.compare import CompareSettings, compare
from physcli.tasks.compare_result import CompareResult
from physcli.tasks.eval import EvalResult, EvalSettings, evaluate
from physcli.tasks.finetune import FinetuneResult, finetune
from physcli.tasks.probe_physion import ProbeSettings, probe_physion
from physcli.tasks.probe_result import ProbeResult
from physcli.tasks.prompt_sets import listed_prompts
from physcli.tasks.run_dir import RunDir, cache_root, with_defaults
from physcli.tasks.sample import SampleSettings, sample
from physcli.tasks.simulate import ensure_simulated
from physcli.tasks.sources import simulated_by
from physcli.tasks.training.request import FinetuneRequest

ENCODER, GENERATOR, RECIPE = "videomae-tiny", "cogvideox-tiny", "videorepa"
JUDGES = ("laws", "videophy2")
_FRAMES = (0, 16, 24, 32, 48)
T = TypeVar("T")


@dataclass(frozen=True)
class QuickstartSettings:
    """How much of everything.

    Attributes:
        num_test: Test clips of the probe; it fits on three times as many.
        num_trained: Test clips of the suite that is trained on; three times as many are trained on.
        steps: Of fine-tuning.
        batch_size: Clips a step.
        lr: Learning rate; gentler than the recipe's, which so short a run pays for with motion.
        num_prompts: Videos of a set.
        sample_steps: Denoising steps.
        seed: Of everything.
    """

    num_test: int = 56
    num_trained: int = 28
    steps: int = 200
    batch_size: int = 4
    lr: float = 2e-4
    num_prompts: int = 8
    sample_steps: int = 20
    seed: int = 0


@dataclass(frozen=True)
class QuickstartResult:
    """What every stage gave. `comparisons` and `scores` by benchmark; `seconds` by stage."""

    path: Path
    before: ProbeResult
    trained: FinetuneResult
    after: ProbeResult
    scores: Mapping[str, Mapping[str, EvalResult]]
    comparisons: Mapping[str, CompareResult]
    seconds: Mapping[str, float]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all stages."""
        rows = [*self.before.rows, *self.trained.rows, *self.after.rows]
        rows += [row for runs in self.scores.values() for run in runs.values() for row in run.rows]
        return rows + [row for comparison in self.comparisons.values() for row in comparison.rows]


def quickstart(
    settings: QuickstartSettings = QuickstartSettings(),
    *,
    out: Path | None = None,
    overwrite: bool = False,
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> QuickstartResult:
    """Tell the whole story; each stage is told of as it begins.

    Raises:
        PhyscliError: a stage cannot be done, such as on a full disk.
    """
    reporter = reporter or Reporter()
    seconds: dict[str, float] = {}

    def stage(name: str, what: str, run: Callable[[], T]) -> T:
        reporter.note(f"[{len(seconds) + 1}/7] {what}")
        start = time.monotonic()
        result = run()
        seconds[name] = time.monotonic() - start
        return result

    common: dict[str, Any] = {"reporter": reporter, "overwrite": overwrite}
    cached = common | {"cache_dir": cache_dir}
    data = f"simulated:{settings.num_test}"
    with RunDir(
        out,
        "quickstart",
        asdict(settings) | simulated_by(data),
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
    ) as run:
        folder = stage(
            "simulate",
            f"Simulating {4 * settings.num_test} clips of seven kinds of scene",
            lambda: ensure_simulated(settings.num_test, cache=cache_root(cache_dir), reporter=reporter),
        )
        draw_clips(folder, run.path / "clips.png")
        before = stage(
            "probe",
            f"Can contact be predicted from what {ENCODER} and {GENERATOR} see?",
            lambda: probe_physion(
                ProbeSettings(models=(ENCODER, GENERATOR), data=data, seed=settings.seed),
                out=run.path / "probe-before",
                **cached,
            ),
        )
        trained = stage(
            "finetune",
            f"Fine-tuning {GENERATOR} with VideoREPA: its tokens shall relate as {ENCODER}'s do",
            lambda: finetune(
                FinetuneRequest(
                    RECIPE,
                    overrides=(
                        f"train.batch_size={settings.batch_size}",
                        f"train.optimizer.lr={settings.lr:g}",
                        "objective.samples=0",
                    ),
                    model=GENERATOR,
                    data=f"simulated:{settings.num_trained}",
                    steps=settings.steps,
                    out=run.path / RECIPE,
                    overwrite=overwrite,
                    seed=settings.seed,
                    cache_dir=cache_dir,
                ),
                reporter=reporter,
            ),
        )
        after = stage(
            "probe again",
            "The same probe after fine-tuning",
            lambda: probe_physion(
                ProbeSettings(models=(str(trained.path), GENERATOR), data=data, seed=settings.seed),
                out=run.path / "probe-after",
                **cached,
            ),
        )
        sets: dict[str, dict[str, Any]] = {
            "base": {"model": GENERATOR},
            RECIPE: {"model": str(trained.path)},
            "guided": {"model": GENERATOR, "guidance": "lamo"},
        }
        # Of whole events: at the clips' own rate a video of 17 frames ends before anything has been hit.
        prompts = tuple(
            listed_prompts(
                str(folder), limit=settings.num_prompts, cache_dir=cache_dir, device="auto", reporter=reporter
            )
        )
        stage(
            "sample",
            f"Sampling {len(prompts)} videos before, after, and before with LaMo's motion guidance",
            lambda: [
                sample(
                    SampleSettings(prompts, steps=settings.sample_steps, seed=settings.seed, **choices),
                    out=run.path / f"samples-{name}",
                    batch_size=len(prompts),
                    **common,
                )
                for name, choices in sets.items()
            ],
        )
        scores = stage(
            "eval",
            "Scoring the videos: do they show what the prompt says, and obey the laws of the simulated world?",
            lambda: {
                benchmark: {
                    name: evaluate(
                        EvalSettings(benchmark, str(run.path / f"samples-{name}")),
                        out=run.path / f"{benchmark}-{name}",
                        **common,
                    )
                    for name in sets
                }
                for benchmark in JUDGES
            },
        )
        comparisons = stage(
            "compare",
            "Comparing them with the base, video by video",
            lambda: {
                benchmark: compare(
                    CompareSettings(tuple(str(result.path) for result in runs.values()), seed=settings.seed),
                    out=run.path / ("compare" if benchmark == "laws" else f"compare-{benchmark}"),
                    **common,
                )
                for benchmark, runs in scores.items()
            },
        )
        result = QuickstartResult(run.path, before, trained, after, scores, comparisons, seconds)
        run.record["seconds"] = seconds
        if not run.already_finished:
            run.write_metrics(result.rows)
    return result


def draw_clips(folder: Path, path: Path) -> None:
    """A contact sheet: the first test pair of every scenario, a clip a row, five moments."""
    clips = [clip for clip in read_dataset(folder).clips if clip.split == "test"]
    rows: list[tuple[str, np.ndarray]] = []
    for scenario in dict.fromkeys(sorted(clip.scenario or "" for clip in clips)):
        pair = next(clip.pair for clip in clips if clip.scenario == scenario)
        for clip in sorted((c for c in clips if c.pair == pair), key=lambda c: -(c.label or 0)):
            outcome = f"contact at frame {clip.contact_frame}" if clip.label else "no contact"
            rows.append((f"{scenario}: {outcome}", clip.read(_FRAMES)))
    contact_sheet(path, rows=rows, columns=[f"frame {number}" for number in _FRAMES])
