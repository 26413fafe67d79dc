"""`report.html`: a comparison, or one scored run, as a page in one file, with the videos inside.

Which cases are shown: those in which the compared run loses and wins most, worst and best in turn, then some in which
nothing changes. Videos are put into the page in that order until it has reached its size; what is left out is said.
A browser plays H.264 in 4:2:0; any other video is encoded anew for the page, small ones enlarged first, so that the
halved chroma takes nothing from them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from physcli import __version__
from physcli.data.video import read_video, video_info, write_video
from physcli.errors import DataError
from physcli.files import write_text
from physcli.hashing import content_hash
from physcli.report.html import (
    Case,
    Cell,
    Content,
    Markup,
    Player,
    callout,
    case,
    details,
    interval,
    page,
    picture,
    section,
    shares,
    table,
)
from physcli.tasks.compare_result import CompareResult, Side, headline
from physcli.tasks.figures import interval_text, least_text, p_text, score_texts, value_text
from physcli.tasks.scored_runs import Key, Score, ScoredRun, read_scored_run

ARROWS = {"better": "▲", "worse": "▼", "higher": "▲", "lower": "▼", "not shown": "·", "identical": "="}
_SIGNS: dict[bool | None, float] = {True: 1.0, False: -1.0, None: 0.0}  # of a metric's direction
_SMALL_SIDE = 256  # pixels: smaller videos are enlarged before their chroma is halved
_CRF = 16  # of videos encoded anew
_UNKNOWN_RATE_HZ = 8.0
_LONG_SETTING = 200  # characters
_HASH_LENGTH = 16
_PICTURES = {"probe.png": "accuracy by scenario", "depth.png": "accuracy by depth"}


def write_comparison(result: CompareResult, path: Path, *, cases: int = 6, max_video_mb: float = 24.0) -> None:
    """Write the page of a comparison.

    Args:
        result: The comparison.
        path: The HTML file.
        cases: Worst cases, and as many best ones, of each compared run.
        max_video_mb: Videos are put into the page up to this size, in megabytes.

    Raises:
        DataError: the file cannot be written.
    """
    reference, others = result.reference, result.sides[1:]
    run = reference.runs[0]
    parts: list[Content] = []
    if result.flags:
        parts.append(callout("Flagged", result.flags, kind="warning"))
    parts.append(callout("In short", [line for side in others for line in result.verdicts(side)]))
    if result.notes:
        parts.append(callout("Good to know", result.notes))
    for side in others:
        parts.append(
            section(
                f"{side.label} against {reference.label}",
                _comparison_table(result, side),
                _missing(result.rows_of(side)),
                lead=f"{len(result.keys)} pairs. Rates are in per cent, their differences in points.",
            )
        )
        by_group = _group_table(result, side)
        if by_group:
            parts.append(by_group)
    if run.kind == "eval":
        parts.append(_cases(result, cases, max_video_mb))
    parts.append(_runs([(side.label, run) for side in result.sides for run in side.runs]))
    title = f"{' and '.join(side.label for side in others)} against {reference.label}"
    write_text(path, page(title, _subtitle(run, len(result.keys)), *parts, footer=_footer("compare")))


def write_run_report(
    run: str,
    path: Path | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    cases: int = 6,
    max_video_mb: float = 24.0,
) -> Path:
    """Write the page of one scored run.

    Args:
        run: Its folder, as `physcli compare` takes it.
        path: The HTML file; `report.html` in the run's folder by default.
        record: Instead of its run.json: of a run that will be finished once it has its report.
        cases: Worst cases, and as many best ones.
        max_video_mb: Videos are put into the page up to this size, in megabytes.

    Returns:
        The file.

    Raises:
        PhyscliError: the folder is no finished, scored run.
        DataError: the file cannot be written.
    """
    scored = read_scored_run(run, record=record)
    path = path or scored.path / "report.html"
    flags = [str(line) for line in scored.record.get("flags", [])]
    parts: list[Content] = [callout("Flagged", flags, kind="warning")] if flags else []
    parts.append(section("Scores", _score_table(scored), lead=f"{len(scored.items)} items."))
    by_group = _score_groups(scored)
    if by_group:
        parts.append(by_group)
    drawn = [
        picture((scored.path / name).read_bytes(), alt=alt)
        for name, alt in _PICTURES.items()
        if (scored.path / name).is_file()
    ]
    if drawn:
        parts.append(section("Pictures", *drawn))
    if scored.kind == "eval":
        parts.append(_run_cases(scored, cases, max_video_mb))
    parts.append(_runs([(scored.subject, scored)]))
    title = f"{scored.subject}: {', '.join(scored.values_of('benchmark'))}"
    write_text(
        path, page(title, _subtitle(scored, len(scored.items)), *parts, footer=_footer(scored.record["command"]))
    )
    return path


# --- tables ---


def _comparison_table(result: CompareResult, side: Side) -> Markup:
    rows = result.rows_of(side)
    reach = _reach(rows)
    lines: list[list[Content | Cell]] = []
    for row in rows:
        tone = row["verdict"] if row["verdict"] in ("better", "worse") else ""
        counts: Content = "–"
        if row["wins"] is not None:
            named = [("won", row["wins"]), ("tied", row["ties"]), ("lost", row["losses"])]
            counts = shares(named, tones=("better", "", "worse"))
        lines.append(
            [
                Cell(row["of"], detail=_direction(row)),
                Cell(f"{ARROWS.get(row['verdict'], '')} {row['verdict']}", tone=tone or "plain"),
                value_text(row["reference_value"], row),
                value_text(row["compared_value"], row),
                Cell(value_text(row["value"], row, sign=True), tone=tone, detail=interval_text(row)),
                _drawn_interval(row, reach, tone),
                Cell(p_text(row["p"]), detail=f"Holm {p_text(row['p_holm'])}"),
                Cell(counts, detail="–" if row["wins"] is None else f"{row['wins']} / {row['ties']} / {row['losses']}"),
                least_text(row),
            ]
        )
    columns = [
        "metric",
        "",
        result.reference.label,
        side.label,
        "difference",
        "",
        "p",
        f"{result.unit} won / tied / lost",
        "least",
    ]
    return table(
        columns,
        lines,
        label=f"{side.label} against {result.reference.label}",
        caption=result.caption(side),
        right=(2, 3, 4, 6, 8),
    )


def _drawn_interval(row: Mapping[str, Any], reach: float, tone: str) -> Content:
    if row["kind"] != "rate" or row["value"] is None:
        return None
    known = row["low"] is not None and np.isfinite([row["low"], row["high"]]).all()
    low, high = (100 * row["low"], 100 * row["high"]) if known else (None, None)
    return interval(100 * row["value"], low, high, reach=reach, tone=tone)


def _reach(rows: Sequence[Mapping[str, Any]]) -> float:
    """How far the axes of all intervals of a table go, in points: one scale for all."""
    rates = [row for row in rows if row["kind"] == "rate"]
    ends = [row[end] for row in rates for end in ("value", "low", "high") if row[end] is not None]
    finite = [abs(100 * end) for end in ends if np.isfinite(end)]
    return max([1.0, *finite]) * 1.05


def _direction(row: Mapping[str, Any]) -> str:
    return {True: "↑ higher is better", False: "↓ lower is better"}.get(row["higher_is_better"], "")


def _missing(rows: Sequence[Mapping[str, Any]]) -> Content:
    lines = [
        f"{row['of']}: {row['num_missing']} of {row['num_missing'] + row['n']}" for row in rows if row["num_missing"]
    ]
    return callout("Pairs left out because one of the two has no score", lines) if lines else None


def _group_table(result: CompareResult, side: Side) -> Content:
    groups = list(dict.fromkeys(row["group"] for row in result.rows if row["group"] != "all"))
    if not groups:
        return None
    metrics = list(dict.fromkeys(row["of"] for row in result.rows_of(side)))
    cells = {(row["group"], row["of"]): row for row in result.rows if row["compared"] == side.label}
    reach = _reach(list(cells.values()))
    lines: list[list[Content | Cell]] = []
    for metric in metrics:
        for group in groups:
            row = cells[group, metric]
            lines.append(
                [
                    Cell(metric if group == groups[0] else "", detail=""),
                    group,
                    row["n"],
                    value_text(row["reference_value"], row),
                    value_text(row["compared_value"], row),
                    value_text(row["value"], row, sign=True),
                    interval_text(row),
                    _drawn_interval(row, reach, ""),
                ]
            )
    columns = ["metric", "group", "n", result.reference.label, side.label, "difference", "95 % interval", ""]
    drawn = table(columns, lines, label=f"By group: {side.label} against {result.reference.label}", right=range(2, 7))
    return details(f"By group ({', '.join(groups)}): to look at, not tested", drawn)


def _score_table(run: ScoredRun) -> Markup:
    lines: list[list[Content | Cell]] = []
    for row in _rows_in(run, "all"):
        value, spread = score_texts(row)
        lines.append(
            [Cell(row["metric"], detail=_direction(row)), value, spread, row.get("n"), _scored(run, row["metric"])]
        )
    return table(
        ["metric", "value", "95 % interval", "n", "without a score"],
        lines,
        label="Scores",
        caption="Rates are in per cent, with Wilson's 95 % interval; other values ± 1.96 standard errors.",
        right=(1, 2, 3, 4),
    )


def _score_groups(run: ScoredRun) -> Content:
    groups = list(dict.fromkeys(row["group"] for row in run.rows if row["group"] != "all"))
    lines: list[list[Content | Cell]] = [
        [row["metric"], group, *score_texts(row), row.get("n")] for group in groups for row in _rows_in(run, group)
    ]
    if not lines:
        return None
    columns = ["metric", "group", "value", "95 % interval", "n"]
    return details("By group", table(columns, lines, label="Scores by group", right=(2, 3, 4)))


def _rows_in(run: ScoredRun, group: str) -> list[dict[str, Any]]:
    """A group's rows of numbers; of a probe, those of the chosen tap."""
    rows = [row for row in run.rows if row["group"] == group and row.get("chosen", True)]
    return [row for row in rows if isinstance(row["value"], int | float) or row["value"] is None]


def _scored(run: ScoredRun, metric: str) -> int | None:
    if metric not in run.metrics:
        return None
    return sum(item.values[metric] is None for item in run.items.values())


# --- cases ---


def _cases(result: CompareResult, count: int, max_video_mb: float) -> Markup:
    """Worst and best cases of every compared run, and some without a difference."""
    metrics = list(dict.fromkeys(row["of"] for row in result.rows))
    run = result.reference.runs[0]
    key_metric = headline([run.metrics[metric] for metric in metrics])
    higher = {row["of"]: row["higher_is_better"] for row in result.rows}
    chosen: dict[Key, list[str]] = {}
    changed: set[Key] = set()
    for side in result.sides[1:]:
        order, size = _ranked(result, side, metrics, key_metric, higher)
        changed |= {key for key, by in zip(order, size, strict=True) if by != (0.0, 0.0)}
        losses = [key for key, by in zip(order, size, strict=True) if by < (0.0, 0.0)]
        wins = [key for key, by in zip(order, size, strict=True) if by > (0.0, 0.0)][::-1]
        for place in range(count):
            for keys, what in ((losses, "worst"), (wins, "best")):
                if place < len(keys):
                    chosen.setdefault(keys[place], []).append(f"{what} no. {place + 1} for {side.label}")
    unchanged = [key for key in result.keys if key not in changed]
    for key in unchanged[: count if not chosen else (count + 2) // 3]:
        chosen.setdefault(key, []).append("no difference")

    players = Players(max_video_mb)
    drawn = []
    for key, titles in chosen.items():
        items = [(side.label, side.runs[0].items[key]) for side in result.sides]
        base = items[0][1]
        made = [_player(label, item, base, metrics, higher, result.sides[0].runs[0]) for label, item in items]
        drawn.append((titles, key, base, players.add(items, made)))
    note = (
        f"{len(drawn)} of {len(result.keys)} pairs, ranked by {key_metric}, then by all metrics together. "
        f"{len(changed)} pairs differ in a score, {len(unchanged)} do not. "
    )
    if any(len(side.runs) > 1 for side in result.sides):
        note += "Of several training seeds the first is shown; the ranking is of their mean. "
    return _case_section("The same prompt and seed, side by side", note + players.said(), drawn)


def _run_cases(run: ScoredRun, count: int, max_video_mb: float) -> Markup:
    metrics = list(run.metrics)
    key_metric = headline(list(run.metrics.values()))
    sign = -1.0 if run.metrics[key_metric].higher_is_better is False else 1.0
    scored = [key for key, item in run.items.items() if item.values[key_metric] is not None]
    order = sorted(scored, key=lambda key: (sign * (run.items[key].values[key_metric] or 0.0), _total(run, key)))
    half = min(count, (len(order) + 1) // 2)
    titles: dict[Key, str] = {}
    for place in range(half):
        titles.setdefault(order[place], f"worst no. {place + 1}")
        titles.setdefault(order[-1 - place], f"best no. {place + 1}")
    players = Players(max_video_mb)
    drawn = []
    for key, title in titles.items():
        item = run.items[key]
        made = [_player(run.subject, item, item, metrics, {}, run)]
        drawn.append(([title], key, item, players.add([(run.subject, item)], made)))
    note = f"{len(drawn)} of {len(run.items)} videos, ranked by {key_metric}, then by all metrics together. "
    return _case_section("Worst and best cases", note + players.said(), drawn)


def _total(run: ScoredRun, key: Key) -> float:
    """The sum of an item's scores, the good ways up; what has no direction does not count."""
    return sum(
        _SIGNS[run.metrics[metric].higher_is_better] * value
        for metric, value in run.items[key].values.items()
        if value is not None
    )


def _case_section(title: str, lead: str, drawn: Sequence[tuple[list[str], Key, Score, list[Player]]]) -> Markup:
    cases = []
    for titles, key, item, players in drawn:
        where = ", ".join(f"{name} {value}" for name, value in zip(("index", "seed"), key[1:], strict=False))
        if item.group is not None:
            where += f", {item.group}"
        caption = item.caption if item.caption != item.prompt else ""
        heading = ", ".join(titles)
        cases.append(case(Case(heading[0].upper() + heading[1:], item.prompt, where, players, caption)))
    return section(title, *cases, lead=lead)


def _ranked(
    result: CompareResult, side: Side, metrics: Sequence[str], key_metric: str, higher: Mapping[str, bool | None]
) -> tuple[list[Key], list[tuple[float, float]]]:
    """Items from the worst to the best, with their differences in the headline and in all metrics together."""
    oriented = {}
    for metric in metrics:
        delta = side.values(metric, result.keys).mean(axis=0) - result.reference.values(metric, result.keys).mean(
            axis=0
        )
        delta = np.where(np.isnan(delta), 0.0, delta) * _SIGNS[higher[metric]]
        oriented[metric] = delta / (np.abs(delta).max() or 1.0)
    total = np.sum(list(oriented.values()), axis=0)
    order = np.lexsort((total, oriented[key_metric]))
    size = [(float(oriented[key_metric][index]), float(total[index])) for index in order]
    return [result.keys[index] for index in order], size


def _player(
    label: str,
    item: Score,
    base: Score,
    metrics: Sequence[str],
    higher: Mapping[str, bool | None],
    run: ScoredRun,
) -> Player:
    """A video's name and scores, with arrows where they differ from the reference's."""
    chips = []
    for metric in metrics:
        value, other = item.values[metric], base.values[metric]
        text = "no score" if value is None else f"{value:.3g}"
        if value is not None and run.is_binary(metric):
            text = "yes" if value else "no"
        tone = ""
        if value is not None and other is not None and value != other:
            text += " ▲" if value > other else " ▼"
            if higher.get(metric) is not None:
                tone = "better" if (value > other) == higher[metric] else "worse"
        chips.append(Cell(text, tone=tone, detail=metric))
    return Player(label, chips)


class Players:
    """Puts videos into cases until the page has reached its size."""

    def __init__(self, max_video_mb: float) -> None:
        self._limit = max_video_mb * 1e6
        self._used = 0.0
        self._left_out = 0
        self._max_video_mb = max_video_mb

    def add(self, items: Sequence[tuple[str, Score]], players: Sequence[Player]) -> list[Player]:
        """The players with their videos: of a case all, or none if they would make the page too large."""
        found = [_playable(item.video) for _, item in items]
        size = sum(4 / 3 * len(mp4) for mp4, _, _ in found if mp4 is not None)  # base64 takes four bytes for three
        fits = self._used + size <= self._limit
        if fits:
            self._used += size
        elif size:
            self._left_out += 1
        first = items[0][1].video
        filled = []
        for number, (player, (mp4, frame_size, note), (_, item)) in enumerate(zip(players, found, items, strict=True)):
            if number and mp4 is not None and same_file(first, item.video):
                note = f"The same file as {items[0][0]}, byte for byte. {note}".strip()
            if mp4 is not None and not fits:
                mp4, note = None, "Left out: the page would be too large."
            filled.append(Player(player.name, player.scores, mp4, frame_size, note))
        return filled

    def said(self) -> str:
        if not self._left_out:
            return ""
        return (
            f"The videos of {self._left_out} cases are left out: with them the page would be above "
            f"{self._max_video_mb:g} MB (--max-video-mb)."
        )


def same_file(first: Path | None, second: Path | None) -> bool:
    """Whether two videos are one, or equal byte for byte. Files that are not there are not."""
    if first is None or second is None or not first.is_file() or not second.is_file():
        return False
    if first.samefile(second):
        return True
    return first.stat().st_size == second.stat().st_size and content_hash(first) == content_hash(second)


def _playable(path: Path | None) -> tuple[bytes | None, tuple[int, int], str]:
    """A video as MP4 bytes that every browser plays, (height, width), and a note; no bytes where there is no video."""
    if path is None:
        return None, (0, 0), "Only the scores of this video were kept."
    if not path.is_file():
        return None, (0, 0), f"The file is not there: {path}"
    try:
        info = video_info(path)
        plays = info.codec == "h264" and info.pixel_format == "yuv420p" and path.suffix.lower() == ".mp4"
        if plays:
            return path.read_bytes(), (info.height, info.width), ""
        return *encode_for_browsers(read_video(path), info.frame_rate_hz), ""
    except DataError as error:
        return None, (0, 0), f"Cannot be shown. {error.received}"


def encode_for_browsers(frames: np.ndarray, frame_rate_hz: float | None) -> tuple[bytes, tuple[int, int]]:
    """uint8 [T, H, W, 3] as MP4 bytes that every browser plays, and their (height, width).

    Small frames are enlarged to 256 pixels or more first, by whole factors; an odd row or column is cut.
    """
    times = max(1, -(-_SMALL_SIDE // min(frames.shape[1:3])))
    frames = frames.repeat(times, axis=1).repeat(times, axis=2)
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2  # 4:2:0 needs even sides
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "video.mp4"
        cut = np.ascontiguousarray(frames[:, :height, :width])
        write_video(made, cut, frame_rate_hz or _UNKNOWN_RATE_HZ, crf=_CRF, full_chroma=False)
        return made.read_bytes(), (height, width)


# --- what was compared ---


def _runs(runs: Sequence[tuple[str, ScoredRun]]) -> Markup:
    """Settings and hashes of the runs, those that differ first."""
    columns = ["", *(f"{label}\n{run.path}" if label != str(run.path) else label for label, run in runs)]
    facts = [_facts(run) for _, run in runs]
    names = list(dict.fromkeys(name for found in facts for name in found))
    differing = [name for name in names if len({found.get(name) for found in facts}) > 1]
    alike = [name for name in names if name not in differing]

    def lines(chosen: Sequence[str]) -> list[list[Content | Cell]]:
        return [[name, *(Cell(found.get(name, "–"), tone="code") for found in facts)] for name in chosen]

    parts: list[Content] = []
    if differing:
        parts.append(table(columns, lines(differing), label="What differs between the runs"))
    if alike:
        summary = f"{len(alike)} settings and facts that all share" if len(runs) > 1 else "Settings and facts"
        parts.append(details(summary, table(columns, lines(alike), label=summary)))
    lead = "What differs between the runs, hashes included." if differing and len(runs) > 1 else ""
    return section("Settings and hashes", *parts, lead=lead)


def _facts(run: ScoredRun) -> dict[str, str]:
    record = run.record
    found: dict[str, str] = {"command": f"physcli {record['command']}", "subject": run.subject}
    rater = run.values_of("rater")
    if rater:
        found["rater"] = ", ".join(rater)
    times = {"started": record.get("started"), "duration (s)": record.get("duration_s")}
    found |= {name: str(value) for name, value in times.items() if value is not None}
    found |= {name: _setting(value) for name, value in _flat(record.get("settings", {}))}
    found |= {f"input: {name}": _setting(value) for name, value in _flat(record.get("inputs", {}))}
    found |= {f"SHA-256 of {name}": f"{value[:_HASH_LENGTH]}…" for name, value in run.hashes.items()}
    found |= {f"version: {name}": _setting(value) for name, value in _flat(record.get("versions", {}))}
    found |= {f"hardware: {name}": _setting(value) for name, value in _flat(record.get("hardware", {}))}
    return found


def _flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            pairs += _flat(item, f"{before}{name}.")
        else:
            pairs.append((f"{before}{name}", item))
    return pairs


def _setting(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONG_SETTING else f"{text[:_LONG_SETTING]}… ({len(text)} characters)"


def _subtitle(run: ScoredRun, count: int) -> str:
    parts = [", ".join(run.values_of("benchmark")), ", ".join(run.values_of("task"))]
    if run.values_of("rater"):
        parts.append(f"rater {', '.join(run.values_of('rater'))}")
    parts.append(f"{count} {'videos' if run.kind == 'eval' else 'clips'}")
    return " · ".join(part for part in parts if part)


def _footer(command: str) -> str:
    return f"Written by physcli {__version__}, `physcli {command}`. Everything on this page is inside this one file."
