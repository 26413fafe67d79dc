"""`physcli eval controls`: which verifier can be fooled by what?

Of every real clip there are copies that deserve less: its first frame held, blurred, backwards, its beginning in slow
motion, and its impossible twins. A verifier scores them; how often does it prefer a copy to the clip itself?

    preferred      share of clips whose copy has the higher score, ties half; ½ by chance, 0 is right
    OUT/metrics.json    a row for each verifier and copy (`group`); intervals by clusters of scenes
    OUT/items.jsonl     a row for each copy; of every verifier two scores, the clip's and the copy's

The whole event is shown in `num_frames` frames; in slow motion, every frame is half as far from the next, or less where
that is no whole number. A verifier whose scores depend on what is scored beside gets every copy alone with the clip. A
still clip and a blurred one deserve less because they show less; who wants to know of laws alone reads the twins.
Backwards, a clip may be as possible as before (a collision of equals), so that not all of what is preferred there is
wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physcli.benchmarks.localisation import sampled_frames
from physcli.data.clips import Clip
from physcli.data.copies import blurred_frame, held
from physcli.data.twins import Scene
from physcli.errors import DataError, UsageError
from physcli.hashing import settings_hash
from physcli.models.device import pick_device
from physcli.progress import Reporter
from physcli.rows import Metric, Row, mean_row
from physcli.tasks.part_log import PartLog
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import RunDir, cache_root, read_metrics, with_defaults, write_jsonl
from physcli.tasks.scene_sets import find_scenes, scenes_hash, shown_rate, shown_words
from physcli.tasks.sources import pinned, simulated_by, source_name
from physcli.tasks.verifiers import TWINS, VERIFIERS, check_verifiers, verifier_class
from physcli.tasks.verifiers.base import Candidate, Setting, Verifier, able_verifiers, cannot

PREFERRED = Metric("preferred", "rate", False, role="headline", interval="wilson")
REAL, SLOW = "real", "slow motion"
COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "still": held,
    "blurred": lambda frames: np.stack([blurred_frame(frame) for frame in frames]),
    "backwards": lambda frames: frames[::-1],
}


@dataclass(frozen=True)
class ControlsSettings:
    """Meanings as in `physcli eval controls --help`; `verifiers`: none given: all that can score these clips."""

    data: str = "simulated:28"
    verifiers: tuple[str, ...] = ()
    encoder: str | None = None
    rater: str | None = None
    prompt: str | None = None
    num_frames: int = 17
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class ControlsResult:
    """Rows of metrics.json."""

    path: Path
    rows: list[dict[str, Any]]
    is_main: bool = True

    @property
    def subjects(self) -> list[str]:
        """The verifiers."""
        return list(dict.fromkeys(row["subject"] for row in self.rows))

    @property
    def groups(self) -> list[str]:
        """The copies; after `TWINS`, the violations one by one."""
        return list(dict.fromkeys(row["group"] for row in self.rows))

    def row(self, subject: str, group: str) -> dict[str, Any] | None:
        return next((row for row in self.rows if (row["subject"], row["group"]) == (subject, group)), None)

    def files(self) -> dict[str, Path]:
        return {"rows": self.path / "metrics.json", "clips": self.path / "items.jsonl"}


def controls(
    settings: ControlsSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> ControlsResult:
    """Let verifiers score real clips and their copies.

    Args:
        settings: Which clips, and which verifiers.
        out: The run directory.
        overwrite: Replace a run with other settings.
        device: Of encoders and raters.
        cache_dir: Simulated clips are kept here.
        reporter: Receives progress.

    Raises:
        UsageError: an unknown verifier, or a model that none of the verifiers reads.
        DataError: no scene, or a clip that cannot be read, or that a verifier cannot score that was asked for by name.
    """
    names = settings.verifiers or tuple(VERIFIERS)
    check_verifiers(names, encoder=settings.encoder, rater=settings.rater)
    if settings.num_frames < 5:
        raise UsageError(f"--num-frames {settings.num_frames}.", expected="at least 5")
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    cache = cache_root(cache_dir)
    run = RunDir(
        out,
        "eval controls",
        asdict(settings) | {"data": source_name(settings.data)} | simulated_by(settings.data),
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
        processes=processes,
    )
    setting = Setting(settings.encoder, settings.rater, pick_device(device), settings.seed, cache, processes, reporter)
    with run:
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
        verifiers = {name: verifier_class(name)(setting) for name in names}
        inputs = {"data": scenes_hash(found, {})}
        inputs |= {f"verifier/{name}": settings_hash(one.identity) for name, one in verifiers.items()}
        run.check_inputs(inputs | ({} if found.mujoco is None else {"mujoco": found.mujoco}))
        if run.already_finished:
            reporter.note(f"{run.path} already holds this run, finished; nothing is computed again.")
            processes.finish()
            return ControlsResult(run.path, read_metrics(run.path), processes.is_main)
        log = PartLog(run.path, "scored", processes)
        mine = log.todo(len(found.scenes))
        with reporter.bar("Scoring", len(mine), "scene") as bar:
            for number in mine:
                shown = _shown(found.scenes[number], settings.num_frames)
                said = _ask(verifiers, shown, strict=bool(settings.verifiers))
                log.note(number, {"copies": [(one.name, one.is_twin) for one in shown[1:]], "said": said})
                bar.advance()
        processes.wait()
        rows: list[Row] = []
        if processes.is_main:
            done = log.rows()
            scored = [done[number] for number in range(len(found.scenes))]
            able = able_verifiers([row["said"] for row in scored], names, reporter)
            run.record["verifiers"] = {name: verifiers[name].identity | verifiers[name].found for name in able}
            task = source_name(settings.data)
            items = _items(found.scenes, scored, able)
            rows = _measure(items, able, {"benchmark": "controls", "task": task, "split": "test"})
            write_jsonl(run.path / "items.jsonl", items)
            run.write_metrics(rows)
            log.clear()
    processes.finish()
    return ControlsResult(run.path, rows, processes.is_main)


@dataclass(frozen=True)
class _Copy:
    """A copy of the clip, or the clip itself (`REAL`); `name` is a violation's where it is an impossible twin."""

    name: str
    is_twin: bool
    candidate: Candidate


def _shown(scene: Scene, num_frames: int) -> list[_Copy]:
    """The clip itself, its copies and its impossible twins, the whole event of each. In slow motion only where the clip
    has the frames for it.

    Raises:
        DataError: a clip cannot be read, or is too short; a violation is called as a copy is.
    """
    real = scene.valid[0]
    clash = sorted({REAL, SLOW, TWINS, *COPIES} & scene.invalid.keys())
    if clash:
        raise DataError(
            f"{scene.scenario}/{scene.name} has a violation called {clash[0]!r}, as a copy is.",
            expected="other names of files: VIOLATION_00.mp4",
        )

    def frames_of(clip: Clip) -> list[int]:
        length = clip.count_frames()
        if length < num_frames:
            raise DataError(
                f"{clip.path} has {length} frames.",
                expected=f"at least {num_frames}",
                fix="give a smaller --num-frames",
            )
        return [int(frame) for frame in sampled_frames(length, num_frames)]

    def copy(name: str, clip: Clip, frames: Sequence[int], pixels: np.ndarray, *, number: int | None = None) -> _Copy:
        words = shown_words(scene.prompt, clip, frames)
        about = f"{scene.scenario}/{scene.name}, {name}" + ("" if number is None else f" {number}")
        candidate = Candidate(pixels, shown_rate(clip, frames) or 0.0, words, words, about)
        return _Copy(name, number is not None, candidate)

    whole = frames_of(real)
    pixels = real.read(whole)
    shown = [copy(REAL, real, whole, pixels)]
    shown += [copy(name, real, whole, altered(pixels)) for name, altered in COPIES.items()]
    stride = (whole[-1] // (num_frames - 1)) // 2
    if stride:  # said to be as fast as the clip itself
        shown.append(copy(SLOW, real, whole, real.read([stride * number for number in range(num_frames)])))
    for kind, twins in scene.invalid.items():
        for number, twin in enumerate(twins):
            frames = frames_of(twin)
            shown.append(copy(kind, twin, frames, twin.read(frames), number=number))
    return shown


def _ask(verifiers: Mapping[str, Verifier], shown: Sequence[_Copy], *, strict: bool) -> dict[str, dict[str, Any]]:
    """Every verifier's scores of the clip and, one by one, of its copies; of one that cannot score them why, as
    `cannot`, unless it is `strict`."""
    real, *copies = (one.candidate for one in shown)
    said: dict[str, dict[str, Any]] = {}
    for name, verifier in verifiers.items():
        try:
            if verifier.relative:
                pairs = np.array([verifier.scores([real, one]) for one in copies])
            else:
                first, *rest = verifier.scores([real, *copies])
                pairs = np.array([(first, one) for one in rest])
            if not np.isfinite(pairs).all():
                raise DataError(f"{name} gives {real.name} or a copy of it no number.", expected="finite scores")
            said[name] = {"pairs": pairs.tolist()}
        except DataError as error:
            if strict:
                raise
            said[name] = cannot(error)
    return said


def _items(
    scenes: Sequence[Scene], scored: Sequence[Mapping[str, Any]], verifiers: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each copy: of every verifier the score of the clip and of the copy."""
    rows = []
    for scene, said in zip(scenes, scored, strict=True):
        about = {"scenario": scene.scenario, "scene": scene.name, "cluster": scene.cluster}
        for place, (copy, is_twin) in enumerate(said["copies"]):
            pairs = {name: said["said"][name]["pairs"][place] for name in verifiers}
            rows.append(about | {"copy": copy, "is_twin": is_twin, **pairs})
    return rows


def _measure(items: Sequence[Mapping[str, Any]], verifiers: Sequence[str], common: Mapping[str, Any]) -> list[Row]:
    kinds = list(dict.fromkeys(item["copy"] for item in items if item["is_twin"]))
    rows = []
    for name in verifiers:
        for group in (*COPIES, SLOW, TWINS, *sorted(kinds)):
            some = [item for item in items if item["copy"] == group or (group == TWINS and item["is_twin"])]
            if some:
                values = [(1 + float(np.sign(copy - real))) / 2 for real, copy in (item[name] for item in some)]
                clusters = [item["cluster"] for item in some]
                rows.append(mean_row(PREFERRED, values, clusters=clusters, subject=name, group=group, **common))
    return rows
