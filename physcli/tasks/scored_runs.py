"""Reading scored runs: what `physcli eval …` and `physcli probe physion` leave in their run directories.

An eval run holds, beside `run.json`,

    metrics.json   rows as `physcli.rows` makes them; `rater` where a model judged
    items.jsonl    a row a video: `video` (absolute, or relative to the run directory), `caption`, `prompt`, `index`,
                   `seed` (null where unknown), `group` (or null), `pixel_format` (not in older runs), and a field for
                   each metric: a number, a boolean, or null where there is no score

What the metrics are, metrics.json says: its rows of group "all". Those without a field in items.jsonl are sums that no
item has a part in, and cannot be compared. A probe run's items say which `subject` they are of; its one metric here is
`accuracy` (the field `correct`), its clusters are pairs and its strata scenarios, as in the probe's own table. The
items of `physcli eval likephys` are violations of scenes, of several subjects as well; its clusters are in them. Those
of `physcli eval physics-iq` are views, and scenarios its clusters. Those of `physcli eval distance` are videos and
real clips, of several subjects, and their values shares of a set's MMD².
Subjects whose rows say `control` are not meant where none is named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from physcli.data.tables import read_jsonl
from physcli.errors import DataError, PhyscliError, UsageError, unknown
from physcli.hashing import content_hash
from physcli.rows import Metric, metric_of
from physcli.tasks.probe_result import CONTROLS
from physcli.tasks.run_dir import is_finished, read_metrics, read_run

SUBJECT_MARK = "::"

# What tells an item from all others: (prompt, index, seed) of a video, (split, scenario, name) of a probe's clip,
# (scenario, scene, violation) of likephys, (scenario, view, number of the sampling seed) of physics-iq, (set, prompt or
# name, index and seed) of distance.
Key = tuple[Any, ...]
Kind = Literal["probe", "likephys", "physics-iq", "distance", "eval"]
# Command → what the items of its runs are; of any other, videos that were made for prompts.
_KINDS: dict[str, Kind] = {
    "probe physion": "probe",
    "eval likephys": "likephys",
    "eval physics-iq": "physics-iq",
    "eval distance": "distance",
}


@dataclass(frozen=True)
class Score:
    """One scored video or clip, or a scene's violation. `cluster` is its prompt, pair or scene; `stratum` its scenario,
    of a probe only."""

    key: Key
    cluster: str
    stratum: str | None
    group: str | None
    values: Mapping[str, float | None]
    video: Path | None = None
    caption: str = ""
    prompt: str = ""
    label: int | None = None
    pixel_format: str = ""  # of the video; "" in older runs


@dataclass(frozen=True)
class ScoredRun:
    """A finished run whose items have scores."""

    path: Path
    subject: str
    record: Mapping[str, Any]
    rows: list[dict[str, Any]]  # of metrics.json, this subject's
    items: Mapping[Key, Score]
    metrics: Mapping[str, Metric]  # by name; those that items have
    sums: tuple[str, ...]  # metrics without a value per item
    hashes: Mapping[str, str]

    @property
    def kind(self) -> Kind:
        """What its items are: a dataset's clips, its scenes, or videos that were made."""
        return kind_of(self.record)

    def values_of(self, column: str) -> list[str]:
        """The different entries of a column of metrics.json, such as `benchmark` or `rater`."""
        return sorted({str(row[column]) for row in self.rows if row.get(column) is not None})

    def is_binary(self, metric: str) -> bool:
        """Whether it is a rate of items that pass or fail; of shares within an item it is not."""
        found = {item.values[metric] for item in self.items.values()}
        return self.metrics[metric].kind == "rate" and found <= {0.0, 1.0, None}


def read_scored_run(name: str, *, ignore_seeds: bool = False, record: Mapping[str, Any] | None = None) -> ScoredRun:
    """Read a run of `physcli eval` or `physcli probe`.

    Args:
        name: Its folder; `FOLDER::SUBJECT` for one of several subjects of a probe.
        ignore_seeds: Tell videos apart by prompt and index alone.
        record: Instead of its run.json.

    Raises:
        PhyscliError: the folder is no such run, is not finished, or its items are missing or not as they should be.
        UsageError: a subject it does not have, or several and none is named.
    """
    folder, _, subject = name.partition(SUBJECT_MARK) if not Path(name).is_dir() else (name, "", "")
    path = Path(folder)
    record = record or _read_record(path)
    kind = kind_of(record)
    rows = _read_rows(path)
    lines = _read_items(path)
    subjects = list(dict.fromkeys(str(row["subject"]) for _, row in lines if "subject" in row))
    controls = {*CONTROLS, *(str(row["subject"]) for row in rows if row.get("control"))}
    chosen = _choose_subject(path, subjects, controls, subject) if subjects else _only_subject(path, rows, subject)
    rows = [row for row in rows if row.get("subject") == chosen]
    lines = [(number, row) for number, row in lines if "subject" not in row or str(row["subject"]) == chosen]
    named = {row["metric"]: metric_of(row) for row in rows if row["group"] == "all"}
    fields = {"accuracy": "correct"} if kind == "probe" else {metric: metric for metric in named}
    present = [metric for metric in named if any(fields.get(metric) in row for _, row in lines)]
    if not present:
        raise DataError(
            f"{path} holds no score of a single item: no metric of metrics.json ({', '.join(named) or 'none'}) is a "
            "field of items.jsonl.",
            expected="a field in items.jsonl for each metric of group 'all'",
            fix="score again with `physcli eval`",
        )
    items: dict[Key, Score] = {}
    seen: dict[Key, int] = {}
    for number, row in lines:
        where = f"{path / 'items.jsonl'}, line {number}"
        values = {metric: _score(row.get(fields[metric]), where, fields[metric]) for metric in present}
        if kind == "eval":
            item = _video_item(path, row, values, where, ignore_seeds)
        elif kind == "distance":
            item = _share_item(row, values, where, ignore_seeds)
        else:
            read = {"probe": _probe_item, "likephys": _scene_item, "physics-iq": _view_item}
            item = read[kind](row, values, where)
        if item.key in items:
            raise DataError(
                f"{where}: the same item as line {seen[item.key]}: {describe(item.key)}.",
                expected="one row for each "
                + {
                    "probe": "clip",
                    "likephys": "scene and violation",
                    "physics-iq": "sampling seed, scenario and view",
                    "distance": "prompt and index" if ignore_seeds else "prompt, index and seed",
                    "eval": "(prompt, index)" if ignore_seeds else "video",
                }[kind],
                fix="do without --ignore-seeds" if ignore_seeds else "remove one of the two, or score again",
            )
        items[item.key], seen[item.key] = item, number
    return ScoredRun(
        path=path,
        subject=chosen,
        record=record,
        rows=rows,
        items=items,
        metrics={metric: named[metric] for metric in present},
        sums=tuple(metric for metric in named if metric not in present),
        hashes={name: content_hash(path / name) for name in ("items.jsonl", "metrics.json")},
    )


def describe(key: Key) -> str:
    """An item's key in words, on one line, control characters made visible."""
    first, *rest = key
    if len(key) == 3 and isinstance(rest[0], str):  # a probe's clip, or a scene's violation
        return "/".join(str(part) for part in key)
    text = json.dumps(first if len(first) <= 60 else first[:59] + "…", ensure_ascii=False)
    return ", ".join([text, *(f"{name} {value}" for name, value in zip(("index", "seed"), rest, strict=False))])


def kind_of(record: Mapping[str, Any]) -> Kind:
    """What the items of a run with this run.json are; see `ScoredRun.kind`."""
    return _KINDS.get(record["command"], "eval")


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise PhyscliError(
            f"{path} is " + ("a file." if path.exists() else "not there."),
            expected="a run directory of `physcli eval` or `physcli probe`",
        )
    record = read_run(path)
    if record is None:
        raise PhyscliError(
            f"{path} is not a run directory: it holds no run.json.",
            expected="a run directory of `physcli eval` or `physcli probe`",
            fix=f"score videos first: physcli eval laws --videos {path}",
        )
    command = str(record.get("command"))
    if command not in _KINDS and not command.startswith("eval "):
        raise PhyscliError(
            f"{path} is a run of `physcli {command}`, which gives no item a score.",
            expected="a run directory of `physcli eval` or `physcli probe`",
            fix=f"score it first: physcli eval laws --videos {path}" if command == "sample" else "",
        )
    if not is_finished(path, record):
        status = str(record.get("status"))
        raise PhyscliError(
            f"{path} is not finished: "
            + ("its metrics.json cannot be read." if status == "finished" else f"its status is {status!r}."),
            expected="a finished run",
            fix=f"run `physcli {command} … --out {path}` again: it goes on where it stopped",
        )
    return record


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = read_metrics(path)
    required = {"benchmark", "subject", "group", "metric", "value"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and required <= row.keys() for row in rows):
        raise DataError(
            f"{path / 'metrics.json'} is not a list of rows with {', '.join(sorted(required))}.",
            expected="what physcli wrote there",
            fix="score again",
        )
    return rows


def _read_items(path: Path) -> list[tuple[int, dict[str, Any]]]:
    file = path / "items.jsonl"
    lines = list(read_jsonl(file)) if file.is_file() else []
    if not lines:
        raise DataError(
            f"{path} has no items: items.jsonl is {'empty' if file.is_file() else 'missing'}.",
            expected="a row a video, which runs are paired by",
            fix="score again with `physcli eval`",
        )
    return lines


def _choose_subject(path: Path, subjects: list[str], controls: Collection[str], wanted: str) -> str:
    if wanted:
        if wanted not in subjects:
            raise unknown(f"subject of {path}", wanted, subjects)
        return wanted
    models = [name for name in subjects if name not in controls]
    if len(models) != 1:
        raise UsageError(
            f"{path} holds {len(models)} models: {', '.join(models) or 'none'}.",
            expected="one to compare",
            fix=f"name it: {path}{SUBJECT_MARK}{(models or subjects)[0]}",
        )
    return models[0]


def _only_subject(path: Path, rows: list[dict[str, Any]], wanted: str) -> str:
    subjects = list(dict.fromkeys(str(row["subject"]) for row in rows))
    if wanted and wanted not in subjects:
        raise unknown(f"subject of {path}", wanted, subjects)
    if len(subjects) != 1:
        raise DataError(
            f"{path} holds rows of {len(subjects)} subjects ({', '.join(subjects)}), and its items do not say whose "
            "they are.",
            expected="one subject, or a field `subject` in items.jsonl",
        )
    return subjects[0]


def _video_item(
    path: Path, row: Mapping[str, Any], values: dict[str, float | None], where: str, ignore_seeds: bool
) -> Score:
    kinds: dict[str, Any] = {"video": str, "prompt": str, "index": int, "seed": (int, type(None))}
    for field, kind in kinds.items():
        if field not in row or not isinstance(row[field], kind) or isinstance(row[field], bool):
            raise DataError(
                f"{where}: {field} is {json.dumps(row[field], ensure_ascii=False) if field in row else 'missing'}.",
                expected="video and prompt (text), index (a number), seed (a number or null)",
                fix="score again with `physcli eval`",
            )
    group, prompt = row.get("group"), row["prompt"]
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise DataError(f"{where}: the prompt holds half a surrogate pair.", expected="text", fix="mend the prompt")
    return Score(
        key=(prompt, row["index"]) if ignore_seeds else (prompt, row["index"], row["seed"]),
        cluster=prompt,
        stratum=None,
        group=None if group is None else str(group),
        values=values,
        video=path / row["video"],  # an absolute one stays as it is
        caption=str(row.get("caption") or ""),
        prompt=prompt,
        pixel_format=str(row.get("pixel_format") or ""),
    )


def _probe_item(row: Mapping[str, Any], values: dict[str, float | None], where: str) -> Score:
    for field in ("name", "split", "correct", "label"):
        if row.get(field) is None:
            raise DataError(f"{where}: {field} is missing.", expected="what `physcli probe` writes", fix="probe again")
    name, scenario = str(row["name"]), str(row.get("scenario") or "")
    return Score(
        key=(str(row["split"]), scenario, name),
        cluster=f"{row['split']}/{row.get('pair') or name}",
        stratum=scenario,
        group=scenario or None,
        values=values,
        label=int(row["label"]),
    )


def _scene_item(row: Mapping[str, Any], values: dict[str, float | None], where: str) -> Score:
    names = ("scenario", "scene", "violation", "cluster")
    for field in names:
        if not isinstance(row.get(field), str):
            raise DataError(
                f"{where}: {field} is missing.", expected="what `physcli eval likephys` writes", fix="score again"
            )
    scenario, scene, violation, cluster = (str(row[field]) for field in names)
    return Score((scenario, scene, violation), cluster, None, violation, values, prompt=str(row.get("prompt") or ""))


def _view_item(row: Mapping[str, Any], values: dict[str, float | None], where: str) -> Score:
    for field in ("scenario", "view", "run"):
        if row.get(field) is None:
            raise DataError(
                f"{where}: {field} is missing.", expected="what `physcli eval physics-iq` writes", fix="score again"
            )
    scenario, category = str(row["scenario"]), row.get("category")
    return Score(
        (scenario, str(row["view"]), str(row["run"])), scenario, None, str(category) if category else None, values
    )


def _share_item(row: Mapping[str, Any], values: dict[str, float | None], where: str, ignore_seeds: bool) -> Score:
    names = ("set", "name", "cluster", "prompt", "index")
    for field in names:
        if row.get(field) is None:
            raise DataError(
                f"{where}: {field} is missing.", expected="what `physcli eval distance` writes", fix="score again"
            )
    told, name, _, prompt, index = (str(row[field]) for field in names)
    key: Key = (told, name, "")
    if told == "videos":
        key = (told, prompt, index if ignore_seeds else f"{index}, seed {row.get('seed')}")
    return Score(key, cluster_of(row), None, None, values, prompt=prompt)


def cluster_of(row: Mapping[str, Any]) -> str:
    """What an item of `physcli eval distance` belongs to."""
    return f"{row['set']}/{row['cluster']}"


def _score(value: Any, where: str, field: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise DataError(
            f"{where}: {field} is {json.dumps(value, ensure_ascii=False)}.",
            expected="a number, true, false, or null where there is no score",
            fix="score again with `physcli eval`",
        )
    return float(value)
