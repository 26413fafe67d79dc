"""`physcli eval laws|videophy|videophy2`: scores of videos, with intervals, and how much moves beside them.

    OUT/items.jsonl            a row a video: its texts, a field for each metric, and why
    OUT/metrics.json           the means
    OUT/official_*.csv         the official scorers' tables (VideoPhy, VideoPhy-2)
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
from typing import Any

import numpy as np

from physcli.benchmarks import laws, videophy
from physcli.benchmarks.dynamic_degree import is_dynamic, largest_motion, rule_for
from physcli.benchmarks.law_view import scenario_of
from physcli.data.flow import dis_flow
from physcli.data.subsets import thin
from physcli.data.video import read_video, video_info
from physcli.data.video_sets import VideoItem, VideoSet, read_video_set
from physcli.errors import DataError, ModelError, UsageError, unknown
from physcli.hashing import content_hash, settings_hash
from physcli.models.raters import HUB_RATERS, TINY_RATER
from physcli.progress import Reporter
from physcli.stats import stderr_of_mean
from physcli.tasks.processes import Processes
from physcli.tasks.report import write_run_report
from physcli.tasks.run_dir import RunDir, append_row, read_log, read_metrics, read_rows, write_jsonl, write_text

BENCHMARKS = ("laws", "videophy", "videophy2")
_OFFICIAL = dict(zip(("videophy", "videophy2"), HUB_RATERS, strict=True))
_RATER_SIZE = "about 15 GB"
_LOGS = "items-*.part.jsonl"  # one a process

# A video → its fields of items.jsonl.
Scorer = Callable[[VideoItem], dict[str, Any]]


@dataclass(frozen=True)
class EvalSettings:
    """`benchmark`: one of `BENCHMARKS`; `videos`: as `read_video_set` takes them; `threshold`: of VideoPhy's P(Yes)."""

    benchmark: str
    videos: str
    rater: str | None = None
    threshold: float = videophy.YES_THRESHOLD
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
    reporter: Reporter | None = None,
) -> EvalResult:
    """Score a set of videos.

    Raises:
        UsageError: no such benchmark, or a rater for the laws.
        DataError: the set cannot be read, or not one of its videos can be scored.
        ModelError: the rater is not there or does not load.
    """
    processes = Processes(device)
    reporter = reporter if reporter is not None and processes.is_main else Reporter()
    _check(settings)
    found = read_video_set(Path(settings.videos).expanduser())
    for problem in found.problems[:5]:
        reporter.warn(f"Left out: {problem}")
    if len(found.problems) > 5:
        reporter.warn(f"{len(found.problems)} entries were left out in all.")
    items = thin(found.items, settings.limit)
    run = RunDir(
        out,
        f"eval {settings.benchmark}",
        asdict(settings),
        overwrite=overwrite,
        reporter=reporter,
        writes=processes.is_main,
    )
    with run:
        run.path = Path(processes.tell(str(run.path)))
        hashes = {item.name: content_hash(item.path) if item.path.is_file() else "missing" for item in items}
        texts = [[item.name, item.caption, item.prompt, item.index, item.seed] for item in items]
        run.check_inputs({"videos": settings_hash({"files": hashes, "texts": texts})})
        if processes.tell(run.already_finished):
            reporter.note(f"{run.path} already holds these scores.")
            processes.finish()
            return _read(run.path, processes.is_main)
        done = processes.tell(_logged(run.path))
        if done:
            reporter.note(f"{len(done)} of {len(items)} videos are scored already.")
        score, rater = _scorer(settings, items, device, reporter)
        mine = [number for number in processes.share(range(len(items))) if number not in done]
        with reporter.bar("Scoring", len(mine), "video") as bar:
            for number in mine:
                row = {"number": number, **_row(items[number], score, reporter)}
                append_row(run.path / f"items-{processes.rank}.part.jsonl", row)
                bar.advance()
        processes.wait()
        if processes.is_main:
            by_number = _logged(run.path)
            scored = [by_number[number] for number in range(len(items))]
            _write(run, settings, found, items, scored, rater)
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
    if not 0 < settings.threshold < 1:
        raise UsageError(f"--threshold {settings.threshold}.", expected="between 0 and 1")


def _logged(path: Path) -> dict[int, dict[str, Any]]:
    """What all processes have scored so far: number of the item → row."""
    return {row["number"]: row for log in sorted(path.glob(_LOGS)) for row in read_log(log)}


def _row(item: VideoItem, score: Scorer, reporter: Reporter) -> dict[str, Any]:
    row = {
        "video": str(item.path.resolve()),
        "name": item.name,
        "caption": item.caption,
        "prompt": item.prompt,
        "index": item.index,
        "seed": item.seed,
    }
    try:
        return row | score(item)
    except DataError as error:
        reporter.warn(f"Not scored: {error.received}")
        return row | {"error": error.received}


def _frames(item: VideoItem) -> tuple[np.ndarray, float]:
    """All frames and the rate, in frames a second."""
    frames, rate = read_video(item.path), video_info(item.path).frame_rate_hz
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


def _scorer(
    settings: EvalSettings, items: Sequence[VideoItem], device: str, reporter: Reporter
) -> tuple[Scorer, str | None]:
    """What scores a video, and the rater's name for tables."""
    if settings.benchmark == "laws":
        return _laws, None
    from physcli.models.raters.mplug_owl_video import load_rater
    from physcli.tasks.rating import read_frames

    simulated = all(item.simulated for item in items)
    name = settings.rater or (TINY_RATER if simulated else _OFFICIAL[settings.benchmark])
    try:
        rater = load_rater(name, device=device, dtype=settings.dtype)
    except ModelError as error:
        if settings.rater is not None or simulated:
            raise
        raise ModelError(
            f"{error.received.rstrip('.')}: the rater of {settings.benchmark} is not here.",
            expected=f"{name}, {_RATER_SIZE}",
            fix=f"where there is a network, `hf download {name}`; or --rater with its folder; videos of the simulated "
            "world are scored without it by `physcli eval laws`",
        ) from error
    label = f"{name.removesuffix(':random')} (random init)" if rater.random_init else name
    reporter.note(f"The rater is {label}.")
    if rater.random_init:
        reporter.warn("The rater has random weights: its scores mean nothing.")
    limit = videophy.MAX_TOKENS[settings.benchmark]

    def score(item: VideoItem) -> dict[str, Any]:
        motion = _motion(item)
        seen = rater.encode_videos(read_frames(item.path, rater)[None])
        if settings.benchmark == "videophy":
            asked = [videophy.QUESTIONS[name].segments(item.caption) for name in ("v1_sa", "v1_pc")]
            sa, pc = (float(rater.yes_probability(seen, [one], max_tokens=limit)[0]) for one in asked)
            result = videophy.score_videophy(sa, pc, threshold=settings.threshold)
            told: dict[str, Any] = {}
        else:
            ratings = [
                rater.rate(seen, [videophy.QUESTIONS[name].segments(item.caption)]) for name in ("v2_sa", "v2_pc")
            ]
            result = videophy.score_videophy2(
                ratings[0].texts[0],
                ratings[1].texts[0],
                sa_digits=ratings[0].digit_logits[0].numpy(),
                pc_digits=ratings[1].digit_logits[0].numpy(),
            )
            told = {"sa_answer": ratings[0].texts[0], "pc_answer": ratings[1].texts[0]}
        fields = {**result.passed, "sa_mean": result.sa, "pc_mean": result.pc}
        if settings.benchmark == "videophy2":
            fields |= {"sa_expected": result.sa_expected, "pc_expected": result.pc_expected}
        return fields | motion | told | {"group": str(item.columns.get("states_of_matter") or "") or None}

    return score, label


def _laws(item: VideoItem) -> dict[str, Any]:
    frames, rate = _frames(item)
    result = laws.check_laws(frames, rate, item.prompt, flow=dis_flow)
    return {
        **result.scores,
        "motion_px": result.motion_px,
        "group": str(item.columns.get("violation", {}).get("kind") or scenario_of(item.prompt) or "other"),
        "reasons": result.reasons,
    }


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
            videophy.Score(row["sa_mean"], row["pc_mean"], threshold, row.get("sa_expected"), row.get("pc_expected")),
            item.prompt,
            str(item.columns.get("states_of_matter") or ""),
            videophy.read_hard(item.columns.get("is_hard")),
        )
        for item, row in good
    ]
    benchmark: Any = settings.benchmark
    return videophy.aggregate(scored, benchmark=benchmark, subject=subject, rater=rater)


def _write_official(path: Path, benchmark: str, good: Sequence[tuple[VideoItem, Mapping[str, Any]]]) -> None:
    """The official scorers' tables: VideoPhy's without a head line, its texts the whole questions."""
    for what in ("sa", "pc"):
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        if benchmark == "videophy":
            question = videophy.QUESTIONS[f"v1_{what}"]
            table.writerows([item.name, question.fill(item.caption), row[f"{what}_mean"]] for item, row in good)
        else:
            table.writerow(["", "caption", "videopath", "score"])
            for number, (item, row) in enumerate(good):
                score = row[f"{what}_mean"]
                table.writerow([number, item.caption, item.name, "" if score is None else float(score)])
        write_text(path / f"official_{what}.csv", text.getvalue())


def _read(path: Path, is_main: bool) -> EvalResult:
    if not is_main:
        return EvalResult(path, [], [], is_main=False)
    return EvalResult(path, read_metrics(path), read_rows(path / "items.jsonl"))
