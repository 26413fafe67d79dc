"""What is kept of an arm once its videos are judged: ARM-SEED.json, 0.1 MB, from which reports are made.

asked       what bears on its numbers
seconds     what each stage took
curve       its loss over the steps, thinned
held_out    rows on held-out clips that training left
probe       rows of the readout
videos      what all judges say the same of every video, a list a column, or its one value
judges      of each: its record and rows, and the scores of every video, in the same way
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.errors import DataError
from physcli.files import make_folder, write_text
from physcli.hashing import content_hash
from physcli.rows import metric_of
from physcli.tasks.run_dir import to_json
from physcli.tasks.scored_runs import Score, ScoredRun

_DIGITS = 5
_KEPT_OF_RECORD = ("command", "started", "duration_s", "versions", "hardware")
_KEPT_OF_ROWS = (
    *("benchmark", "task", "split", "group", "metric", "value", "stderr", "n", "kind", "higher_is_better"),
    *("interval", "role", "low", "high", "rater"),
)


@dataclass(frozen=True)
class ArmRows:
    """One arm of one training seed.

    Attributes:
        arm, seed: Which.
        content: Of its file.
        sha256: Of its file.
    """

    arm: str
    seed: int
    content: Mapping[str, Any]
    sha256: str

    def scored(self, judge: str, videos: Path | None = None) -> ScoredRun:
        """Its scores by a judge, as `physcli compare` reads them.

        Args:
            judge: A benchmark.
            videos: The folder that holds the videos; where there is none, a report cannot show them.
        """
        kept = self.content["judges"][judge]
        columns = _expanded(self.content["videos"] | kept["columns"])
        rows = [{**row, "subject": self.arm} for row in kept["rows"]]
        metrics = {row["metric"]: metric_of(row) for row in rows if row["group"] == "all" and row["metric"] in columns}
        items = {}
        for number, prompt in enumerate(columns["prompt"]):
            key = (self.content["prompts"][prompt], columns["index"][number], columns["seed"][number])
            items[key] = Score(
                key=key,
                cluster=key[0],
                stratum=None,
                group=columns["group"][number],
                values={name: _number(columns[name][number]) for name in metrics},
                video=None if videos is None else videos / columns["video"][number],
                caption=columns["caption"][number],
                prompt=key[0],
                pixel_format=str(columns["pixel_format"][number] or ""),
            )
        return ScoredRun(
            path=Path(f"{self.arm}-{self.seed}"),
            subject=self.arm,
            record=kept["record"],
            rows=rows,
            items=items,
            metrics=metrics,
            sums=(),
            hashes={"rows": self.sha256},
        )


def rows_file(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{arm}-{seed}.json"


def read_rows_of(path: Path, arm: str, seed: int) -> ArmRows:
    """Raises DataError: the file is not what `write_rows_of` wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = ArmRows(arm, seed, content, content_hash(path))
        for judge in content["judges"]:
            found.scored(judge)
        content["asked"], content["seconds"], content["curve"], content["held_out"], content["probe"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path} holds no rows of a study: {type(error).__name__} {error}.",
            expected="what `physcli study` writes",
            fix="remove it: the arm is then run again",
        ) from error
    return found


def write_rows_of(
    path: Path,
    *,
    asked: Mapping[str, Any],
    seconds: Mapping[str, float],
    judged: Mapping[str, tuple[Mapping[str, Any], Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]],
    curve: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    probe: Sequence[Mapping[str, Any]],
) -> None:
    """Write what is kept of an arm.

    Args:
        path: The file.
        asked: What bears on its numbers.
        seconds: Of each stage.
        judged: Judge → record of its run, rows and items.
        curve: Thinned rows of training.
        held_out: Rows of training's validation.
        probe: Rows of the readout.
    """
    prompts: dict[str, int] = {}
    judges: dict[str, dict[str, Any]] = {}
    for judge, (record, rows, items) in judged.items():
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        names = [name for name in metrics if all(name in item for item in items)]
        columns: dict[str, list[Any]] = {
            "prompt": [prompts.setdefault(item["prompt"], len(prompts)) for item in items],
            "video": [Path(item["video"]).name for item in items],
            "caption": [item["caption"] if item.get("caption") != item["prompt"] else "" for item in items],
        }
        for name in ("index", "seed", "group", "pixel_format", *names):
            values = [item.get(name) for item in items]
            columns[name] = [int(value) if isinstance(value, bool) else _rounded(value) for value in values]
        judges[judge] = {
            "record": {
                **{name: record.get(name) for name in _KEPT_OF_RECORD},
                "settings": {name: value for name, value in record["settings"].items() if name != "videos"},
            },
            "rows": [
                _kept(row)
                for row in rows
                if row["group"] == "all"  # a report makes those of groups from the items
            ],
            "columns": columns,
        }
    shared = _shared([kept["columns"] for kept in judges.values()])
    for kept in judges.values():
        kept["columns"] = {name: _thin(value) for name, value in kept["columns"].items() if name not in shared}
    content = {
        "asked": asked,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "curve": curve,
        "held_out": [_kept(row) for row in held_out],
        "probe": [_kept(row) for row in probe],
        "prompts": list(prompts),
        "videos": {name: _thin(value) for name, value in shared.items()},
        "judges": judges,
    }
    # A line a part, so that changes can be read.
    lines = [f"{json.dumps(name)}: {to_json(value, indent=None)}" for name, value in content.items()]
    make_folder(path.parent, fix="choose another --out")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _shared(columns: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """The columns that are the same for all judges."""
    first, *others = columns
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _thin(column: list[Any]) -> Any:
    """Itself, or the one value that all its places have. How many there are, `video` says, which has no two alike."""
    return column[0] if len(column) > 1 and column.count(column[0]) == len(column) else column


def _expanded(columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    count = max(len(column) for column in columns.values() if isinstance(column, list))
    return {name: column if isinstance(column, list) else [column] * count for name, column in columns.items()}


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _rounded(row[name]) for name in _KEPT_OF_ROWS if name in row}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
