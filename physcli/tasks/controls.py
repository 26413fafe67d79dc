"""`physcli eval controls`: which verifier can be fooled by what?

Of every real clip there are copies that deserve less: its first frame held, blurred, backwards, its first half in slow
motion, and its impossible twins. A verifier scores them all; how often does it prefer a copy to the clip itself?

    preferred      share of clips whose copy has the higher score, ties half; ½ by chance, 0 is right
    OUT/metrics.json    a row for each verifier and copy (`group`); intervals by clusters of scenes
    OUT/items.jsonl     a row for each clip and copy, with every verifier's score

The whole event is shown in `num_frames` frames. A still clip and a blurred one deserve less because they show less; who
wants to know of laws alone reads the twins. Backwards, a clip may be as possible as before (a collision of equals), so
that not all of what is preferred there is wrong.
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
from physcli.tasks.verifiers.base import Candidate, Setting, Verifier, able_verifiers

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
    reporter = reporter if reporter is not None and processes.is_main else Reporter()
    cache = cache_root(cache_dir)
    run = RunDir(
        out,
        "eval controls",
        asdict(settings) | {"data": source_name(settings.data)} | simulated_by(settings.data),
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
        writes=processes.is_main,
    )
    setting = Setting(settings.encoder, settings.rater, pick_device(device), settings.seed, cache, processes, reporter)
    with run:
        run.path = Path(processes.tell(str(run.path)))
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
        if processes.tell(run.already_finished):
            reporter.note(f"{run.path} already holds this run, finished; nothing is computed again.")
            processes.finish()
            return ControlsResult(run.path, read_metrics(run.path), processes.is_main)
        log = PartLog(run.path, "scored", processes)
        mine = log.todo(len(found.scenes))
        with reporter.bar("Scoring", len(mine), "scene") as bar:
            for number in mine:
                shown = _shown(found.scenes[number], settings.num_frames)
                said = _ask(verifiers, [one for _, one in shown], strict=bool(settings.verifiers))
                log.note(number, {"copies": [copy for copy, _ in shown], "said": said})
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


def _shown(scene: Scene, num_frames: int) -> list[tuple[str, Candidate]]:
    """The clip itself (`REAL`), its copies and its impossible twins, the whole event of each.

    Raises:
        DataError: a clip cannot be read.
    """
    real = scene.valid[0]

    def candidate(clip: Clip, frames: Sequence[int], pixels: np.ndarray, name: str) -> Candidate:
        words = shown_words(scene.prompt, clip, frames)
        about = f"{scene.scenario}/{scene.name}, {name}"
        return Candidate(pixels, shown_rate(clip, frames) or 0.0, words, words, about)

    length = real.count_frames()
    whole = sampled_frames(length, num_frames).tolist()
    half = sampled_frames((length + 1) // 2, num_frames).tolist()
    pixels = real.read(whole)
    shown = [(REAL, candidate(real, whole, pixels, REAL))]
    shown += [(name, candidate(real, whole, copy(pixels), name)) for name, copy in COPIES.items()]
    shown.append((SLOW, candidate(real, whole, real.read(half), SLOW)))  # said to be as fast as the clip itself
    for kind, twins in scene.invalid.items():
        for number, twin in enumerate(twins):
            frames = sampled_frames(twin.count_frames(), num_frames).tolist()
            shown.append((kind, candidate(twin, frames, twin.read(frames), f"{kind} {number}")))
    return shown


def _ask(verifiers: Mapping[str, Verifier], shown: Sequence[Candidate], *, strict: bool) -> dict[str, dict[str, Any]]:
    """Every verifier's scores; of one that cannot score them why, as `cannot`, unless it is `strict`."""
    said: dict[str, dict[str, Any]] = {}
    for name, verifier in verifiers.items():
        try:
            said[name] = {"scores": verifier.scores(shown).tolist()}
        except DataError as error:
            if strict:
                raise
            said[name] = {"cannot": f"{error.received} Expected: {error.expected}"}
    return said


def _items(
    scenes: Sequence[Scene], scored: Sequence[Mapping[str, Any]], verifiers: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each clip and copy."""
    rows = []
    for scene, said in zip(scenes, scored, strict=True):
        about = {"scenario": scene.scenario, "scene": scene.name, "cluster": scene.cluster}
        for place, copy in enumerate(said["copies"]):
            scores = {name: said["said"][name]["scores"][place] for name in verifiers}
            rows.append(about | {"copy": copy, "is_twin": place > len(COPIES) + 1, **scores})
    return rows


def _measure(items: Sequence[Mapping[str, Any]], verifiers: Sequence[str], common: Mapping[str, Any]) -> list[Row]:
    kinds = list(dict.fromkeys(item["copy"] for item in items if item["is_twin"]))
    groups = [*COPIES, SLOW, TWINS, *sorted(kinds)]
    rows = []
    for name in verifiers:
        real = {(item["scenario"], item["scene"]): item[name] for item in items if item["copy"] == REAL}
        for group in groups:
            some = [item for item in items if item["copy"] == group or (group == TWINS and item["is_twin"])]
            less = [np.sign(item[name] - real[item["scenario"], item["scene"]]) for item in some]
            clusters = [item["cluster"] for item in some]
            values = [(1 + float(sign)) / 2 for sign in less]
            rows.append(mean_row(PREFERRED, values, clusters=clusters, subject=name, group=group, **common))
    return rows
