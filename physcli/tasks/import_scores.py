"""`physcli eval import`: scores that others made, as a run like those of `physcli eval`.

    OUT/items.jsonl    a row a video: its texts, and a field for each metric
    OUT/metrics.json   the means with intervals; of VBench also the official totals
    OUT/report.html    the scores, the worst and the best videos

The layout of the files is known by their content (`physcli.tasks.imports`); what fits none, or several, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from physcli.data.video_sets import places
from physcli.errors import DataError, UsageError
from physcli.hashing import content_hash
from physcli.progress import Reporter
from physcli.rows import Row, make_row, mean_row
from physcli.tasks.imports import find_layout, read_sources
from physcli.tasks.imports.base import Imported, Source, give_indices
from physcli.tasks.report import write_run_report
from physcli.tasks.run_dir import RunDir, with_defaults, write_jsonl

ROLES = ("sa", "pc")
UNNAMED = "not named"  # a rater that nobody says the name of
_SUFFIX = re.compile(r"_(full_info|eval_results)$")


@dataclass(frozen=True)
class ImportSettings:
    """What is read.

    Attributes:
        files: Of one set of videos; `sa=FILE` and `pc=FILE` where a file does not say which it is.
        subject: Whose videos they are; by default the file's name, or the folder's of several files.
        rater: Who rated them, where a model or people did.
        layout: A key of `imports.LAYOUTS`, where the content fits several.
    """

    files: tuple[str, ...]
    subject: str | None = None
    rater: str | None = None
    layout: str | None = None


@dataclass(frozen=True)
class ImportResult:
    """The rows of metrics.json and items.jsonl, and what is worth knowing."""

    path: Path
    layout: str
    rows: list[Row]
    items: list[dict[str, Any]]
    notes: tuple[str, ...]

    def files(self) -> dict[str, Path]:
        return {
            "rows": self.path / "metrics.json",
            "videos": self.path / "items.jsonl",
            "report": self.path / "report.html",
        }


def import_scores(
    settings: ImportSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ImportResult:
    """Read scores of one set of videos into a run directory.

    Args:
        settings: What.
        out: The run directory.
        overwrite: Replace a run with other settings.
        reporter: Receives notes.

    Raises:
        UsageError: no file, a rater where none judged, or content that fits several layouts.
        DataError: content that fits none, or is not as the layout has it.
    """
    reporter = reporter or Reporter()
    sources = [_source(name) for name in settings.files]
    if not sources:
        raise UsageError("No file.", expected="files with scores of one set of videos")
    layout = find_layout(sources, settings.layout)
    imported = read_sources(sources, layout)
    if settings.rater is not None and not imported.rater:
        raise UsageError(
            f"--rater with scores of {layout}.", expected="no rater: it is the benchmark's own metrics that are read"
        )
    notes = (f"Read as {layout}.", *imported.notes, *filter(None, [give_indices(imported.videos)]))
    with RunDir(
        out,
        "eval import",
        asdict(settings) | {"files": [str(source.path.resolve()) for source in sources]},
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
    ) as run:
        run.check_inputs({str(source.path): content_hash(source.path) for source in sources})
        run.reopen()  # it takes seconds
        for note in notes:
            reporter.note(note)
        rows = _rows(imported, settings.subject or _subject(sources), settings.rater)
        items = _items(imported, sources[0].path.parent)
        write_jsonl(run.path / "items.jsonl", items)
        run.record["layout"] = layout
        run.record["notes"] = list(notes)
        run.write_metrics(rows)
        write_run_report(str(run.path), record=run.as_finished())
    return ImportResult(run.path, layout, rows, items, notes)


def _source(name: str) -> Source:
    role, _, rest = name.partition("=")
    if rest and role in ROLES and not Path(name).is_file():
        return Source(Path(rest).expanduser(), role)
    path = Path(name).expanduser()
    if path.is_dir():
        raise DataError(f"{path} is a folder.", expected="a file with scores", fix="name the files in it")
    return Source(path)


def _subject(sources: Sequence[Source]) -> str:
    first = sources[0].path.resolve()
    return _SUFFIX.sub("", first.stem) if len(sources) == 1 else first.parent.name


def _rows(imported: Imported, subject: str, rater: str | None) -> list[Row]:
    columns: dict[str, Any] = {"benchmark": imported.benchmark, "task": imported.task, "subject": subject}
    columns |= {"split": "test" if imported.rater else "all"}
    if imported.rater:
        columns["rater"] = rater or UNNAMED
    if imported.rows is not None:
        return imported.rows(**columns)
    prompts = [video.prompt for video in imported.videos]
    rows = []
    for metric in imported.metrics:
        row = mean_row(
            metric, [video.values.get(metric.name) for video in imported.videos], clusters=prompts, **columns
        )
        official = imported.official.get(metric.name)
        rows.append(row if official is None else row | {"official": official})
    return rows + [make_row(metric, value, n=n, **columns) for metric, value, n in imported.extra]


def _items(imported: Imported, folder: Path) -> list[dict[str, Any]]:
    where = places(folder, {video.name for video in imported.videos})
    fields = list(dict.fromkeys(name for video in imported.videos for name in video.values))
    rows = []
    for video in imported.videos:
        row: dict[str, Any] = {"video": str(where[video.name].resolve()), "name": video.name, "caption": video.caption}
        row |= {"prompt": video.prompt, "index": video.index, "seed": None, "group": video.group}
        rows.append({**row, **{name: video.values.get(name) for name in fields}})
    return rows
