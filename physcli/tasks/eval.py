"""`physcli eval laws|videophy|videophy2`: scores of videos, with intervals, and how much moves beside them.

    OUT/items.jsonl            a row a video: its texts, a field for each metric, and why
    OUT/metrics.json           the means
    OUT/official_*.csv         the official scorers' tables: sa and pc, and VideoPhy-2's rule
    OUT/report.html            the scores, the worst and the best videos
    OUT/run.json

A video that cannot be scored (it does not decode, is not there, its prompt names nothing the laws know) has null in
every field, and is counted in `missing/video`. A run that was broken off scores only what is not scored yet.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from physcli.benchmarks import laws, videophy
from physcli.benchmarks.dynamic_degree import is_dynamic, largest_motion, rule_for
from physcli.benchmarks.law_view import scenario_of
from physcli.data.flow import dis_flow
from physcli.data.subsets import thin
from physcli.data.video import frame_rate, read_video
from physcli.data.video_sets import VideoItem, VideoSet, add_rules, read_video_set
from physcli.errors import DataError, UsageError, unknown
from physcli.files import write_text
from physcli.hashing import content_hash, settings_hash
from physcli.models import shown_name
from physcli.progress import Reporter
from physcli.stats import stderr_of_mean
from physcli.tasks.processes import Processes
from physcli.tasks.report import write_run_report
from physcli.tasks.run_dir import RunDir, append_row, read_log, read_metrics, read_rows, with_defaults, write_jsonl

if TYPE_CHECKING:  # eval laws needs no torch
    from torch import Tensor

BENCHMARKS = ("laws", "videophy", "videophy2")
_LOGS = "items-*.part.jsonl"  # one a process

# Videos → the fields of each in items.jsonl, or what is wrong with it.
Scorer = Callable[[Sequence[VideoItem]], "list[dict[str, Any] | DataError]"]


@dataclass(frozen=True)
class EvalSettings:
    """What is scored.

    Attributes:
        benchmark: One of `BENCHMARKS`.
        videos: As `read_video_set` takes them.
        rater: As `load_rater` takes it; None for the default.
        threshold: Of VideoPhy's P(Yes).
        rules: For VideoPhy-2, a list of rules to be judged; see `add_rules`.
        limit: At most so many videos, evenly spaced.
        dtype: Of the rater.
    """

    benchmark: str
    videos: str
    rater: str | None = None
    threshold: float = videophy.YES_THRESHOLD
    rules: str | None = None
    limit: int | None = None
    dtype: str = "auto"


@dataclass(frozen=True)
class EvalResult:
    """The rows of metrics.json and items.jsonl."""

    path: Path
    rows: list[dict[str, Any]]
    items: list[dict[str, Any]]
    is_main: bool = True

    def files(self) -> dict[str, Path]:
        found = {"rows": self.path / "metrics.json", "videos": self.path / "items.jsonl"}
        found |= {path.stem.replace("_", " "): path for path in sorted(self.path.glob("official_*.csv"))}
        return found | {"report": self.path / "report.html"}


def evaluate(
    settings: EvalSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    device_map: str | None = None,
    batch_size: int = 4,
    reporter: Reporter | None = None,
) -> EvalResult:
    """Score a set of videos.

    Args:
        settings: What.
        out: The run directory.
        overwrite: Begin anew where it holds another run.
        device: Of the rater.
        device_map: "auto" to spread it over all devices there are, with `device` "auto".
        batch_size: Videos the rater sees at a time.
        reporter: Receives progress.

    Raises:
        UsageError: no such benchmark, or a rater for the laws.
        DataError: the set cannot be read, or not one of its videos can be scored.
        ModelError: the rater is not there or does not load.
    """
    processes = Processes(device)
    reporter = reporter if reporter is not None and processes.is_main else Reporter()
    _check(settings)
    found = read_video_set(Path(settings.videos).expanduser())
    if settings.rules is not None:
        found = add_rules(found, Path(settings.rules).expanduser())
    for problem in found.problems[:5]:
        reporter.warn(f"Left out: {problem}")
    if len(found.problems) > 5:
        reporter.warn(f"{len(found.problems)} entries were left out in all.")
    for note in found.notes:
        reporter.note(note)
    items = thin(found.items, settings.limit)
    run = RunDir(
        out,
        f"eval {settings.benchmark}",
        asdict(settings),
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
        writes=processes.is_main,
    )
    with run:
        run.path = Path(processes.tell(str(run.path)))
        hashes = {item.name: content_hash(item.path) if item.path.is_file() else "missing" for item in items}
        texts = [[item.name, item.caption, item.prompt, item.index, item.seed, *item.rules] for item in items]
        rater = None
        if settings.benchmark != "laws":
            from physcli.tasks.rating import find_rater

            simulated = all(item.simulated for item in items)
            rater = find_rater(settings.benchmark, settings.rater, simulated=simulated)
        inputs = {"videos": settings_hash({"files": hashes, "texts": texts})}
        run.check_inputs(inputs if rater is None else inputs | {"rater": rater[1]})
        if processes.tell(run.already_finished):
            reporter.note(f"{run.path} already holds these scores.")
            processes.finish()
            return _read(run.path, processes.is_main)
        done = processes.tell(_logged(run.path))
        if done:
            reporter.note(f"{len(done)} of {len(items)} videos are scored already.")
        score, label = (
            (_laws, None) if rater is None else _rater_scorer(settings, rater[0], device, device_map, reporter)
        )
        mine = [number for number in processes.share(range(len(items))) if number not in done]
        with reporter.bar("Scoring", len(mine), "video") as bar:
            for first in range(0, len(mine), batch_size):
                some = mine[first : first + batch_size]
                for number, fields in zip(some, score([items[number] for number in some]), strict=True):
                    row = {"number": number, **_row(items[number], fields, reporter)}
                    append_row(run.path / f"items-{processes.rank}.part.jsonl", row)
                    bar.advance()
        processes.wait()
        if processes.is_main:
            by_number = _logged(run.path)
            scored = [by_number[number] for number in range(len(items))]
            _write(run, settings, found, items, scored, label)
            for log in run.path.glob(_LOGS):
                log.unlink()
    if processes.is_main:
        write_run_report(str(run.path))
    processes.finish()
    return _read(run.path, processes.is_main)


def _check(settings: EvalSettings) -> None:
    if settings.benchmark not in BENCHMARKS:
        raise unknown("benchmark", settings.benchmark, BENCHMARKS)
    if settings.benchmark == "laws" and settings.rater is not None:
        raise UsageError("--rater with eval laws.", expected="no rater: the laws are checked on the pixels")
    if settings.benchmark != "videophy2" and settings.rules is not None:
        raise UsageError(f"Rules with eval {settings.benchmark}.", expected="eval videophy2")
    if not 0 < settings.threshold < 1:
        raise UsageError(f"--threshold {settings.threshold}.", expected="between 0 and 1")


def _logged(path: Path) -> dict[int, dict[str, Any]]:
    """What all processes have scored so far: number of the item → row."""
    return {row["number"]: row for log in sorted(path.glob(_LOGS)) for row in read_log(log)}


def _row(item: VideoItem, fields: dict[str, Any] | DataError, reporter: Reporter) -> dict[str, Any]:
    row = {
        "video": str(item.path.resolve()),
        "name": item.name,
        "caption": item.caption,
        "prompt": item.prompt,
        "index": item.index,
        "seed": item.seed,
    }
    if isinstance(fields, DataError):
        reporter.warn(f"Not scored: {fields.received}")
        return row | {"error": fields.received}
    return row | fields


def _frames(item: VideoItem) -> tuple[np.ndarray, float]:
    """All frames and the rate, in frames a second."""
    frames, rate = read_video(item.path), frame_rate(item.path)
    if len(frames) < laws.LEAST_FRAMES:
        raise DataError(f"{item.path} has {len(frames)} frames.", expected=f"at least {laws.LEAST_FRAMES}")
    return frames, rate


def _motion(item: VideoItem) -> dict[str, Any]:
    """How much moves."""
    frames, rate = _frames(item)
    height, width = frames.shape[1:3]
    rule = rule_for(len(frames), height, width, rate)
    motion = largest_motion(dis_flow(frames[:: rule.interval]))
    return {"dynamic_degree": is_dynamic(motion, rule), "motion_px": float(motion.mean())}


def _rater_scorer(
    settings: EvalSettings, name: str, device: str, device_map: str | None, reporter: Reporter
) -> tuple[Scorer, str]:
    """What scores videos, and the rater's name for tables."""
    import torch

    from physcli.models.raters.mplug_owl_video import load_rater
    from physcli.tasks.rating import questions, rate_videophy, rate_videophy2, read_frames

    rater = load_rater(name, device=device, dtype=settings.dtype, device_map=device_map)
    label = shown_name(name, rater.random_init)
    reporter.note(f"The rater is {label}.")
    if rater.random_init:
        reporter.warn("The rater has random weights: its scores mean nothing.")

    def rate(seen: Tensor, items: Sequence[VideoItem]) -> list[dict[str, Any]]:
        if settings.benchmark == "videophy":
            return rate_videophy(rater, seen, items, threshold=settings.threshold)
        return rate_videophy2(rater, seen, items)

    def score(items: Sequence[VideoItem]) -> list[dict[str, Any] | DataError]:
        known: dict[int, dict[str, Any]] = {}
        broken: dict[int, DataError] = {}
        shown = []
        for number, item in enumerate(items):
            try:
                for question, text in questions(settings.benchmark, item):
                    videophy.QUESTIONS[question].fill(text)  # a text that cannot be asked about is this video's fault
                motion = _motion(item)
                shown.append(read_frames(item.path, rater))
                known[number] = motion | {"group": _state_of(item) or None}
            except DataError as error:
                broken[number] = error
        if known:
            seen = rater.encode_videos(torch.stack(shown))
            for number, scores in zip(known, rate(seen, [items[n] for n in known]), strict=True):
                known[number] = scores | known[number]
        return [broken[number] if number in broken else known[number] for number in range(len(items))]

    return score, label


def _state_of(item: VideoItem) -> str:
    return str(item.columns.get("states_of_matter") or "")


def _laws(items: Sequence[VideoItem]) -> list[dict[str, Any] | DataError]:
    scored: list[dict[str, Any] | DataError] = []
    for item in items:
        try:
            frames, rate = _frames(item)
            result = laws.check_laws(frames, rate, item.prompt, flow=dis_flow)
        except DataError as error:
            scored.append(error)
            continue
        group = item.columns.get("violation", {}).get("kind") or scenario_of(item.prompt) or "other"
        scored.append({**result.scores, "motion_px": result.motion_px, "group": str(group), "reasons": result.reasons})
    return scored


def _write(
    run: RunDir,
    settings: EvalSettings,
    found: VideoSet,
    items: Sequence[VideoItem],
    scored: list[dict[str, Any]],
    rater: str | None,
) -> None:
    good = [(item, row) for item, row in zip(items, scored, strict=True) if "error" not in row]
    if not good:
        raise DataError(f"Not one of {len(items)} videos could be scored: {scored[0]['error']}", fix="mend the list")
    if settings.benchmark == "laws":
        rows = _law_rows(good, found.subject)
    else:
        rows = _rater_rows(settings, good, found.subject, str(rater))
        _write_official(run.path, settings.benchmark, good)
    common = {"benchmark": settings.benchmark, "task": rows[0]["task"], "subject": found.subject}
    common |= {"split": rows[0]["split"], "group": "all"} | ({"rater": rater} if rater else {})
    if settings.benchmark != "laws":
        rows.append(common | _mean("dynamic_degree", good) | {"higher_is_better": None})
    rows.append(common | _mean("motion_px", good) | {"higher_is_better": None, "unit": "px"})
    lost = len(items) - len(good)
    rows.append(
        common
        | {"metric": "missing/video", "value": lost / len(items), "stderr": None, "n": len(items), "count": lost}
        | {"higher_is_better": False}
    )
    metrics = {row["metric"] for row in rows}
    for row in scored:  # a video without a score has null, not nothing
        for metric in metrics:
            if not metric.startswith("missing/"):
                row.setdefault(metric, None)
        row.setdefault("group", None)
        row.pop("number")
    write_jsonl(run.path / "items.jsonl", scored)
    run.write_metrics(rows)


def _mean(metric: str, good: Sequence[tuple[VideoItem, Mapping[str, Any]]]) -> dict[str, Any]:
    values = np.array([float(row[metric]) for _, row in good])
    stderr = stderr_of_mean(values, [item.prompt for item, _ in good])
    return {"metric": metric, "value": float(values.mean()), "stderr": stderr, "n": len(values)}


def _law_rows(good: Sequence[tuple[VideoItem, Mapping[str, Any]]], subject: str) -> list[dict[str, Any]]:
    return laws.aggregate_fields(
        [row for _, row in good],
        [str(row["group"]) for _, row in good],
        subject=subject,
        clusters=[item.prompt for item, _ in good],
    )


def _rater_rows(
    settings: EvalSettings, good: Sequence[tuple[VideoItem, Mapping[str, Any]]], subject: str, rater: str
) -> list[dict[str, Any]]:
    threshold = settings.threshold if settings.benchmark == "videophy" else videophy.PASSING_RATING
    scored = [
        videophy.Item(
            videophy.Score(
                *(row["sa_mean"], row["pc_mean"], threshold, row.get("sa_expected"), row.get("pc_expected")),
                rules=tuple(one["judgement"] for one in row.get("judged", ())),
            ),
            item.prompt,
            _state_of(item),
            videophy.read_hard(item.columns.get("is_hard")),
            captioned=bool(item.caption),
        )
        for item, row in good
    ]
    benchmark: Any = settings.benchmark
    return videophy.aggregate(scored, benchmark=benchmark, subject=subject, rater=rater)


def _write_official(path: Path, benchmark: str, good: Sequence[tuple[VideoItem, Mapping[str, Any]]]) -> None:
    """The official scorers' tables: VideoPhy's without a head line, its texts the whole questions."""
    for what in ("sa", "pc"):
        if benchmark == "videophy":
            question = videophy.QUESTIONS[f"v1_{what}"]
            rows = [[item.name, question.fill(item.caption), row[f"{what}_mean"]] for item, row in good]
        else:
            asked = [(item, row) for item, row in good if item.caption or what == "pc"]
            rows = _numbered("caption", "videopath", [(i.caption, i.name, row[f"{what}_mean"]) for i, row in asked])
        if len(rows) > 1 or benchmark == "videophy":
            _write_table(path / f"official_{what}.csv", rows)
    rules = [(item.name, one["rule"], one["judgement"]) for item, row in good for one in row.get("judged", ())]
    if rules:
        _write_table(path / "official_rule.csv", _numbered("videopath", "rule", rules))


def _numbered(first: str, second: str, rows: Sequence[tuple[str, str, float | None]]) -> list[list[Any]]:
    """VideoPhy-2's layout: an index without a name, two texts, a score that is empty where the answer is missing."""
    told = [[number, *texts, "" if score is None else float(score)] for number, (*texts, score) in enumerate(rows)]
    return [["", first, second, "score"], *told]


def _write_table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _read(path: Path, is_main: bool) -> EvalResult:
    if not is_main:
        return EvalResult(path, [], [], is_main=False)
    return EvalResult(path, read_metrics(path), read_rows(path / "items.jsonl"))
