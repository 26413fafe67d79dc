"""`physcli eval likephys`: does a generator's own loss prefer possible clips to their impossible twins?

scenes → latents (cached) → the same noise for all clips of a scene → squared errors by level and place (cached) →
losses → pairs ranked wrongly, by violation → rows, pictures, page.

    OUT/items.jsonl             a row for each subject, scene and violation
    OUT/metrics.json            preference errors by violation and pooled, localisation, controls
    OUT/ppe.png, localisation-*.png, report.html
    OUT/run.json                with the time of each pass beside that of its bare forward passes

In the same table as every model stand its untrained twin (the same VAE and text, the network with random weights), the
zero predictor (no network at all), and how often the clip's first frame, held, and a blurred clip are preferred to the
clip itself. Chance is not 50: the latents alone have preferences.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physcli.benchmarks.likephys import NUM_LEVELS, READINGS, loss_weights
from physcli.errors import UsageError, unknown
from physcli.models import display_names
from physcli.models.device import pick_device, pick_dtype
from physcli.models.loading import load_generator
from physcli.models.names import Resolved, fingerprint, resolve
from physcli.progress import Reporter
from physcli.tasks.likephys.losses import DenoisingErrors, Subject, levels_of, untrain
from physcli.tasks.likephys.page import draw_localisation, draw_ppe, pick_cases, write_page
from physcli.tasks.likephys.result import UNTRAINED, ZERO, LikePhysResult
from physcli.tasks.likephys.rows import aggregate, score_scene
from physcli.tasks.likephys.scenes import ShownScene, show
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, cache_root, with_defaults, write_jsonl
from physcli.tasks.scene_sets import find_scenes, scenes_hash
from physcli.tasks.sources import pinned, simulated_by, source_name


@dataclass(frozen=True)
class LikePhysSettings:
    """All that bears on the result. Meanings as in `physcli eval likephys --help`."""

    models: tuple[str, ...]
    data: str = "simulated:28"
    reading: str | None = None
    num_levels: int = NUM_LEVELS
    prompt: str | None = None
    guidance_scale: float = 1.0
    negative_prompt: str = ""
    untrained: bool = True
    limit: int | None = None
    seed: int = 0
    dtype: str = "auto"


def likephys(
    settings: LikePhysSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = NUM_LEVELS,
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> LikePhysResult:
    """Ask generators which clips they find likely.

    Args:
        settings: What to measure.
        out: The run directory.
        overwrite: Replace a run with other settings.
        device: Where models run.
        batch_size: Noise levels of a clip per forward pass.
        cache_dir: Where simulated clips, latents and errors are kept; a run that was broken off goes on from there.
        reporter: Receives progress.

    Raises:
        PhyscliError: bad settings, data or models; see the message.
    """
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    _check(settings, device)
    cache = cache_root(cache_dir)
    resolved = {name: resolve(name) for name in dict.fromkeys(settings.models)}
    recorded = asdict(settings) | {"data": source_name(settings.data)} | simulated_by(settings.data)
    run = RunDir(
        out,
        "eval likephys",
        recorded,
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
        processes=processes,
    )
    with run:
        # 1. The scenes.
        found = find_scenes(
            settings.data,
            prompt=settings.prompt,
            limit=settings.limit,
            cache=cache,
            processes=processes,
            reporter=reporter,
        )
        if commit := pinned(settings.data):
            run.record["dataset"] = commit
        hashes: dict[Path, str] = {}
        inputs = {name: fingerprint(item) for name, item in resolved.items()}
        release = {} if found.mujoco is None else {"mujoco": found.mujoco}
        run.check_inputs(inputs | {"data": scenes_hash(found, hashes)} | release)
        if run.already_finished:
            reporter.note(f"{run.path} already holds this run, finished; nothing is computed again.")
            processes.finish()
            return LikePhysResult.read(run.path, is_main=processes.is_main)
        shown_as = display_names(settings.models)

        # 2. Every model with its controls: errors, then scores.
        rows: list[dict[str, Any]] = []
        items: list[dict[str, Any]] = []
        timing: dict[str, Any] = {}
        for name, item in resolved.items():
            model = load_generator(item, device=device, dtype=settings.dtype, reporter=reporter)
            scenes = show(model, found.scenes, hashes)
            level = levels_of(model.noise, settings.num_levels)
            weights = loss_weights(settings.reading, model.noise.prediction, level.signal.numpy(), level.sigma.numpy())
            for subject, shown in _subjects(shown_as[name], item, settings):
                if subject == "untrained":
                    untrain(model, settings.seed)
                errors = DenoisingErrors(
                    model,
                    shown,
                    subject,
                    fingerprint=inputs[name],
                    vae_fingerprint=fingerprint(item, part="vae"),
                    num_levels=settings.num_levels,
                    guidance_scale=settings.guidance_scale,
                    negative_prompt=settings.negative_prompt,
                    seed=settings.seed,
                    cache=cache,
                    batch_size=batch_size,
                    processes=processes,
                    reporter=reporter,
                )
                errors.compute(scenes)
                timing[shown] = processes.collect([errors.clock.record()])
                if not processes.is_main:
                    continue
                columns = {
                    "benchmark": "likephys",
                    "task": found.kind,
                    "subject": shown,
                    "split": "test",
                    "control": subject != "model",
                    "random_init": item.random_init or subject == "untrained",
                    "family": item.family,
                    "reading": settings.reading or ("eps" if model.noise.prediction == "epsilon" else "v"),
                    "num_levels": settings.num_levels,
                    "min_num_frames": min(scene.num_frames for scene in scenes),
                    "max_num_frames": max(scene.num_frames for scene in scenes),
                    "num_scenes": len(scenes),
                    "data": source_name(settings.data),
                    "seed": settings.seed,
                    **release,
                }
                mine, controls = _score(scenes, errors, weights)
                items += [{"subject": shown, **row} for row in mine]
                by_scenario = found.kind != "simulated" and len({scene.scenario for scene in found.scenes}) > 1
                rows += aggregate(mine, controls, by_scenario=by_scenario, **columns)
                if subject == "model":
                    cases = pick_cases(scenes, mine)
                    draw_localisation(run.path, shown, cases, errors, weights)
            del model, errors
            gc.collect()

        # 3. Files.
        if processes.is_main:
            run.record["timing"] = {name: _total(some) for name, some in timing.items()}
            run.record["left_out"] = [f"{problem.path}: {problem.message}" for problem in found.problems]
            write_jsonl(run.path / "items.jsonl", items)
            result = LikePhysResult(run.path, rows, items)
            draw_ppe(result)
            write_page(result, run.as_finished())
            run.write_metrics(rows)
    processes.finish()
    return LikePhysResult.read(run.path, is_main=processes.is_main)


def _check(settings: LikePhysSettings, device: str) -> None:
    pick_dtype(settings.dtype, pick_device(device))
    if not settings.models:
        raise UsageError("No --model.", expected="at least one generator")
    if settings.reading is not None and settings.reading not in READINGS:
        raise unknown("reading", settings.reading, READINGS)
    if not 1 <= settings.num_levels <= 100:
        raise UsageError(f"--num-levels {settings.num_levels}.", expected="1 to 100")
    if settings.negative_prompt and settings.guidance_scale == 1:
        raise UsageError(
            "--negative-prompt without guidance.", expected="--guidance-scale other than 1", fix="leave one out"
        )


def _subjects(shown: str, item: Resolved, settings: LikePhysSettings) -> list[tuple[Subject, str]]:
    """A model and its controls, in the order in which they are measured: random weights cannot be taken back."""
    found: list[tuple[Subject, str]] = [("model", shown), ("zero", shown + ZERO)]
    if settings.untrained and not item.random_init:
        found.append(("untrained", shown + UNTRAINED))
    return found


def _score(
    scenes: Sequence[ShownScene], errors: DenoisingErrors, weights: np.ndarray
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of items and of controls, scene by scene: all maps at once may be larger than main memory."""
    items: list[dict[str, Any]] = []
    controls: list[dict[str, Any]] = []
    for scene in scenes:
        rows, preferred = score_scene(scene, errors.load(scene), weights)
        items += rows
        controls.append({"cluster": scene.scene.cluster, **preferred})
    return items, controls


def _total(clocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all processes together."""
    whole, forwards = (sum(clock[name] for clock in clocks) for name in ("pass_s", "forwards_s"))
    return {
        "clips": sum(clock["clips"] for clock in clocks),
        "pass_s": round(whole, 3),
        "forwards_s": round(forwards, 3),
        "ratio": round(whole / forwards, 4) if forwards else None,
    }
