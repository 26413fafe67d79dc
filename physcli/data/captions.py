"""Captions of a plain folder of videos, in the layouts that public trainers use.

The first of these that is there counts:

- `metadata.jsonl` or `metadata.csv`: a row a video, with `file_name` (or `video`, `path`) relative to the folder and
  `prompt` (or `caption`, `text`); optionally `split`;
- any other single `*.csv` with such columns: OpenVid's (`video,caption`);
- `prompts.txt` and `videos.txt`: line by line;
- `x.txt` beside `x.mp4`.

Tables are separated by commas, semicolons or tabs. Tables that are not used are named, and what is not used of one.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from physcli.errors import DataError

VIDEO_COLUMNS = ("file_name", "video", "path", "video_path")
PROMPT_COLUMNS = ("prompt", "caption", "text")


class Captions(NamedTuple):
    """`rows`: video → its row, the caption under "prompt". `source`: the file they are from, or None. Where there is
    one, a video without a row has no caption there. `lines`: video → the row's line in it. `problems`: a file, and what
    is not used of it."""

    rows: dict[Path, dict[str, Any]]
    source: Path | None
    lines: Mapping[Path, int] = {}
    problems: tuple[tuple[Path, str], ...] = ()


def read_captions(root: Path, videos: Sequence[Path]) -> Captions:
    """The captions of a folder.

    Args:
        root: The folder.
        videos: Those in it.

    Raises:
        DataError: a table without the columns that are needed, lists of different length, or a file that cannot be
            read.
    """
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in READERS and path.is_file())
    for name in ("metadata.jsonl", "metadata.csv"):
        if (root / name) in tables:
            return _beside_others(_from_table(root, root / name), tables)
    lists = root / "prompts.txt", root / "videos.txt"
    if all(path.is_file() for path in lists):
        return _beside_others(_from_lists(root, *lists), tables)
    usable = [path for path in tables if path.suffix.lower() == ".csv" and _has_captions(path)]
    if len(usable) == 1:
        return _beside_others(_from_table(root, usable[0]), tables)
    beside = {path: path.with_suffix(".txt") for path in videos}
    found = {path: {"prompt": read_text(text).strip()} for path, text in beside.items() if text.is_file()}
    return _beside_others(Captions(found, None), tables, num_usable=len(usable))


def _has_captions(table: Path) -> bool:
    """Whether a CSV file's head names videos and captions; or it is of something else."""
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        columns = _columns(file.readline())
    return bool(first_of(columns, VIDEO_COLUMNS) and first_of(columns, PROMPT_COLUMNS))


def _beside_others(captions: Captions, tables: Sequence[Path], *, num_usable: int = 1) -> Captions:
    """The same captions; the other tables are named. `num_usable`: how many of them could have been read."""
    others = [path for path in tables if path != captions.source]
    if captions.source is not None:
        why = f"not read: the captions are from {captions.source.name}"
    elif num_usable > 1:
        why = f"not read: {num_usable} tables have captions; call the one to use metadata.csv"
    else:
        why = (
            f"not read: no table called metadata.csv, and none whose head has one of {', '.join(VIDEO_COLUMNS)} "
            f"and one of {', '.join(PROMPT_COLUMNS)}"
        )
    return captions._replace(problems=(*captions.problems, *((path, why) for path in others)))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of every line that is not blank.

    Raises:
        DataError: a line that is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error.msg}).",
                expected="one JSON object a line",
                fix="mend or remove the line",
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not an object.", expected="one JSON object a line")
        yield number, row


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of every row below the head line; a text may hold separators, quotes and line breaks.

    Raises:
        DataError: not a CSV table in UTF-8, or a row with more cells than the head.
    """
    text = read_text(path)
    columns = _columns(text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text))
    try:
        next(reader, None)
        for cells in reader:
            if not cells:
                continue
            if len(cells) > len(columns):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells below a head of {len(columns)}.",
                    expected="as many as in the head",
                    fix='put a text that holds the separator in quotes: "a red ball, rolling"',
                )
            yield reader.line_num, dict(itertools.zip_longest(columns, cells))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.", expected="a CSV table with a head line") from error


def _columns(text: str) -> list[str]:
    """The names in a CSV table's head, without spaces around them."""
    return [name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text)), [])]


def _separator(text: str) -> str:
    """Comma, semicolon or tab, whichever the head has most of."""
    head = text.partition("\n")[0]
    return max((",", ";", "\t"), key=head.count)


def _from_table(root: Path, path: Path) -> Captions:
    rows: dict[Path, dict[str, Any]] = {}
    lines: dict[Path, int] = {}
    problems: list[tuple[Path, str]] = []
    for number, row in READERS[path.suffix.lower()](path):
        video, prompt = first_of(row, VIDEO_COLUMNS), first_of(row, PROMPT_COLUMNS)
        if video is None or not isinstance(row[video], str) or not row[video]:
            raise DataError(
                f"{path}, line {number}: no file_name; it has {', '.join(map(str, row))}.",
                expected=f"one of {', '.join(VIDEO_COLUMNS)}, and one of {', '.join(PROMPT_COLUMNS)}",
                fix="rename the column",
            )
        place = root / row[video]
        if not place.is_file() and (root / "videos" / row[video]).is_file():
            place = root / "videos" / row[video]
        text = row[prompt] if prompt is not None else ""
        if not isinstance(text, str):
            raise DataError(f"{path}, line {number}: {prompt} is {text!r}.", expected="text")
        if place in rows:
            problems.append((path, f"line {number} names {row[video]} again; line {lines[place]} counts"))
            continue
        rows[place], lines[place] = {**row, "prompt": text.strip()}, number
    return Captions(rows, path, lines, tuple(problems))


def _from_lists(root: Path, prompts: Path, videos: Path) -> Captions:
    texts, names = (read_text(path).strip("\n").split("\n") for path in (prompts, videos))
    if len(texts) != len(names):
        raise DataError(
            f"{prompts} has {len(texts)} lines and {videos.name} has {len(names)}.",
            expected="a line each for every video",
            fix="mend the shorter one: from the missing line on, every video would have another's caption",
        )
    pairs = zip(names, texts, strict=True)
    return Captions({root / name.strip(): {"prompt": text.strip()} for name, text in pairs}, videos)


def first_of(row: Any, names: Sequence[str]) -> str | None:
    """The first of some columns that a row has."""
    return next((name for name in names if name in row), None)


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        DataError: it cannot be read.
    """
    if not path.exists():
        raise DataError(f"{path} is not there.", expected="a UTF-8 text file", fix="check the path")
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", expected="a UTF-8 text file") from error


# The lists that hold a row a video or a prompt: how the kind of file is read, as (line number, row).
READERS: dict[str, Any] = {".csv": read_csv, ".jsonl": read_jsonl}
