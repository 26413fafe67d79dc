"""Tables with a row a video or a prompt: `.csv`, `.tsv` and `.jsonl`, and what is wrong with one.

They are separated by commas, semicolons or tabs, whichever the head has most of; names of columns may be in capitals.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from physcli.errors import DataError

VIDEO_COLUMNS = ("file_name", "video", "path", "video_path")
PROMPT_COLUMNS = ("prompt", "caption", "text")
# Columns are called so elsewhere, and nothing like what they are called here.
_SYNONYMS = {"clip": "video", "mp4": "video", "filename": "file_name", "description": "caption", "sentence": "caption"}
_HEAD_BYTES = 1 << 20


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
    A row's line is its first. Rows of empty cells are passed over, as spreadsheets leave them.

    Raises:
        DataError: not a CSV table in UTF-8, a row with more cells than the head, or a column twice.
    """
    text = read_text(path)
    columns = _columns(text)
    twice = next((name for number, name in enumerate(columns) if name and name in columns[:number]), None)
    if twice is not None:
        raise DataError(
            f"{path}: the column `{twice}` is there twice.", expected="different names", fix="rename or remove one"
        )
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text))
    try:
        next(reader, None)
        ended = reader.line_num
        for cells in reader:
            number, ended = ended + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(columns):
                raise DataError(
                    f"{path}, line {number}: {len(cells)} cells below a head of {len(columns)}.",
                    expected="as many as in the head",
                    fix='put a text that holds the separator in quotes: "a red ball, rolling"',
                )
            yield number, dict(itertools.zip_longest(columns, cells))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.", expected="a CSV table with a head line") from error


def _columns(text: str) -> list[str]:
    """The names in a CSV table's head, without spaces around them."""
    return [name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text)), [])]


def _separator(text: str) -> str:
    """Comma, semicolon or tab, whichever the head has most of."""
    head = text.partition("\n")[0]
    return max((",", ";", "\t"), key=head.count)


def first_of(row: Iterable[str], names: Sequence[str]) -> str | None:
    """The first of some columns that a row has, whether in capitals or not."""
    return _first_of(tuple(row), tuple(names))


@lru_cache(maxsize=256)  # the rows of a table have the same columns
def _first_of(columns: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    alike = {column.strip().lower(): column for column in reversed(columns)} | {column: column for column in columns}
    return next((alike[name] for name in names if name in alike), None)


def name_in_row(path: Path, number: int, row: Mapping[str, Any], accepted: Sequence[str], *, what: str) -> str:
    """A row's text in one of the accepted columns; `path` and its line `number` are for what is wrong with it.

    Raises:
        DataError: no such column, or nothing in it.
    """
    column = first_of(row, accepted)
    if column is None:
        raise no_column(path, number, row, accepted, what=what)
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{path}, line {number}: {column} is {value!r}.", expected="text", fix="fill it, or remove the row"
        )
    return value


def no_column(
    path: Path, number: int, row: Mapping[str, Any], accepted: Sequence[str], *, what: str, unit: str = "line"
) -> DataError:
    """The error for a row without any of some columns: those it has, those that are read, and which one is meant."""
    has, expected, fix = lacking(list(row), accepted)
    return DataError(f"{path}, {unit} {number}: no {what}; it has {has}.", expected=expected, fix=fix)


def lacking(columns: Sequence[str], accepted: Sequence[str]) -> tuple[str, str, str]:
    """Where none of the accepted columns is there: those that are, those that are expected, and what to do."""
    synonyms = {word: name for word, name in _SYNONYMS.items() if name in accepted}
    best, meant = 0.6, "rename the column"
    for column in columns:
        lower = column.strip().lower()
        last = lower.rpartition("_")[2]  # `video_caption` and `text_prompt` are what they end in
        if last in (*VIDEO_COLUMNS, *PROMPT_COLUMNS) and last not in accepted:
            continue
        for word in (*accepted, *synonyms):
            alike = 1.0 if last == word else difflib.SequenceMatcher(None, lower, word).ratio()
            if alike > best:
                best, meant = alike, f"rename `{column}` to `{synonyms.get(word, word)}`"
    return ", ".join(columns) or "no column", f"one of {', '.join(accepted)}", meant


def columns_of(path: Path) -> list[str]:
    """The columns that the beginning of a table names.

    Raises:
        DataError: it is empty, or not a table in UTF-8.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if not head.strip():
        raise DataError(f"{path}: it is empty.", expected="a table")
    if _is_utf16(head):
        raise _not_utf8(path, "it is in UTF-16")
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if path.suffix.lower() != ".jsonl":
        return _columns(text)
    try:
        row = json.loads(text.partition("\n")[0])
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line 1: no JSON object.", expected="one JSON object a line")
    return list(row)


def _is_utf16(head: bytes) -> bool:
    return head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head[:64]


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        DataError: it cannot be read.
    """
    if not path.exists():
        raise DataError(f"{path} is not there.", expected="a UTF-8 text file", fix="check the path")
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.", expected="a UTF-8 text file") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _not_utf8(path, "it is in UTF-16" if _is_utf16(content) else f"line {line}: {error}") from error
    if _is_utf16(content):
        raise _not_utf8(path, "it is in UTF-16")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_utf8(path: Path, why: str) -> DataError:
    return DataError(f"{path} cannot be read: {why}.", expected="a UTF-8 text file", fix="save it in UTF-8")


# The lists that hold a row a video or a prompt: how the kind of file is read, as (line number, row).
READERS: dict[str, Any] = {".csv": read_csv, ".tsv": read_csv, ".jsonl": read_jsonl}
