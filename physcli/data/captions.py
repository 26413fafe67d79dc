"""Captions of a plain folder of videos, in the layouts that public trainers use.

Each folder below the root may have tables. Of one folder, the first of these that is there counts:

- `metadata.jsonl` or `metadata.csv`: a row a video, with `file_name` (or `video`, `path`) relative to the table's
  folder and `prompt` (or `caption`, `text`); optionally `split`;
- `prompts.txt` and `videos.txt` (or `prompt.txt`, `captions.txt`, `video.txt`): line by line;
- all other `*.csv`, `*.tsv` and `*.jsonl` with such columns: OpenVid's (`video,caption`).

A video is looked for from the table's folder on, then from the root on, and in `video/` and `videos/` of both: OpenVid
has its tables in `data/train/`. Where several tables name a video, metadata counts before other tables, and a deeper
folder before one above it. A video that has no caption in a table has that of `x.txt` beside `x.mp4`.

Tables that are not used are named, and what is not used of one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from physcli.data.tables import (
    PROMPT_COLUMNS,
    READERS,
    VIDEO_COLUMNS,
    columns_of,
    first_of,
    lacking,
    name_in_row,
    read_text,
)
from physcli.errors import DataError

# What public datasets call their parts; validation is held out here as a test part is.
SPLIT_NAMES = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"), "test"
)
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
_PROMPT_LISTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
_VIDEO_LISTS = ("videos.txt", "video.txt")
_VIDEO_FOLDERS = ("", "videos", "video")
_OTHER_FORMATS = frozenset({".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".ods"})
_PACKED = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip"})
_NO_CAPTION = frozenset({"nan", "none", "null", "n/a"})  # what spreadsheets and pandas write for an empty cell


class Row(NamedTuple):
    """What is known of a video.

    Attributes:
        prompt: "" if there is none.
        record: Its row of a table, with the "prompt".
        split: "train" or "test": as its row says, else as a folder that it is in is called, else as its table is.
        table_split: As the table or a folder that the table is in is called.
        table: Where the row is.
        line: Of the table, from 1.
    """

    prompt: str
    record: Mapping[str, Any]
    split: str | None = None
    table_split: str | None = None
    table: Path | None = None
    line: int = 0

    def contradicts(self, other: Row) -> bool:
        """Whether both say something of the caption or the split, and not the same."""
        said = zip(
            (self.prompt, self.split, self.table_split), (other.prompt, other.split, other.table_split), strict=True
        )
        return any(one and another and one != another for one, another in said)

    def completed_by(self, other: Row) -> Row:
        """This row, with what it does not say and the other does. What one of them holds out is held out."""
        prompt = self.prompt or other.prompt
        return self._replace(
            prompt=prompt,
            record={**other.record, **self.record, "prompt": prompt},
            split=_held_out_first(self.split, other.split),
            table_split=_held_out_first(self.table_split, other.table_split),
        )


class Captions(NamedTuple):
    """`rows`: of all videos. `problems`: a file, and what is not used of it."""

    rows: dict[Path, Row]
    problems: tuple[tuple[Path, str], ...]


def read_captions(root: Path, videos: Sequence[Path], others: Sequence[Path]) -> Captions:
    """The captions of a folder.

    Args:
        root: The folder.
        videos: Those in it.
        others: All other files in it.

    Raises:
        DataError: a table without the columns that are needed, lists of different length, a split that has no meaning,
            or a file that cannot be read.
    """
    used, problems = _find_tables(root, others)
    places, splits = _Places(root, videos), _Splits(root, [*videos, *(files[-1] for files in used)])
    rows: dict[Path, Row] = {}
    absent: list[tuple[Path, str]] = []
    mute: dict[Path, str] = {}  # tables without captions
    for files in used:
        table, again = files[-1], []
        found, lacks = _read_table(files)
        if not found:
            problems.append((table, "no row below the head"))
        if lacks:
            mute[table] = lacks
        table_split = splits.of_table(table)
        for name, row in found:
            row = row._replace(table_split=table_split)
            video = places.find(table.parent, name)
            if video is None:
                why = places.why_not(table.parent / name)
                absent.append((table.parent / name, f"in {_told(root, table)}, line {row.line}, but {why}"))
            elif (known := rows.setdefault(video, row)) is not row:
                if known.table == table:
                    again.append(f"line {row.line} names {name} again; line {known.line} counts")
                elif known.contradicts(row):
                    assert known.table is not None
                    other = f"{_told(root, known.table)}, line {known.line}"
                    again.append(f"line {row.line} says otherwise of {name} than {other}, which counts")
                rows[video] = known.completed_by(row)
        if again:
            problems.append((table, again[0] + (f"; {len(again) - 1} more such lines" if again[1:] else "")))
    problems += _add_texts_beside(rows, videos, others)
    folder_splits = {folder: splits.of_folder(folder) for folder in {video.parent for video in videos}}
    for video in videos:
        row = rows.get(video, Row("", {}))
        rows[video] = row._replace(split=row.split or folder_splits[video.parent] or row.table_split)
    silent = [row for row in rows.values() if not row.prompt]
    if silent:
        problems += _not_understood(videos, others, used)
        problems += [(table, mute[table]) for table in mute if any(row.table == table for row in silent)]
    return Captions(rows, (*problems, *absent))


def _told(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _held_out_first(one: str | None, other: str | None) -> str | None:
    return "test" if "test" in (one, other) else one or other


# --- which tables ---

# Files that are read as one: a table, or a list of prompts and one of videos.
_Table = tuple[Path, ...]


def _find_tables(root: Path, others: Sequence[Path]) -> tuple[list[_Table], list[tuple[Path, str]]]:
    """The tables that are read, those that count more first, and the others with the reason."""
    folders: dict[Path, dict[str, Path]] = {}
    for path in others:
        folders.setdefault(path.parent, {})[path.name.lower()] = path
    used: list[_Table] = []
    problems: list[tuple[Path, str]] = []
    for folder, files in folders.items():
        tables = [path for path in files.values() if path.suffix.lower() in READERS]
        metadata = [files[name] for name in _METADATA if name in files]
        prompts, videos = ([files[name] for name in names if name in files] for names in (_PROMPT_LISTS, _VIDEO_LISTS))
        reasons = {path: _why_unusable(path) for path in tables}
        here: list[_Table] = [(path,) for path in metadata[:1]]
        if prompts and videos and not metadata:
            here = [(prompts[0], videos[0])]
        if here and not reasons.get(here[0][0]):
            left = [path for path in (*tables, *prompts, *videos) if path not in here[0]]
            problems += _by_folder(folder, left, f"not read: the captions are from {here[0][-1].name}")
        else:  # of metadata without captions too, which may have splits
            here += [(path,) for path in tables if not reasons[path] and path not in metadata]
            unusable = [path for path in tables if reasons[path] and path not in metadata[:1]]
            for why in dict.fromkeys(reasons[path] for path in unusable):
                problems += _by_folder(folder, [path for path in unusable if reasons[path] == why], why)
            for lists, partners in ((prompts, _VIDEO_LISTS), (videos, _PROMPT_LISTS)):
                problems += [(path, f"not read: no {partners[0]} beside it") for path in lists]
        packed = [
            path
            for path in files.values()
            if path.suffix.lower() in _OTHER_FORMATS
            or (path.suffix.lower() in _PACKED and Path(path.stem).suffix.lower() in (*READERS, ".json"))
        ]
        problems += _by_folder(folder, packed, f"not read: save it as {' or '.join(READERS)}")
        used += here
    used.sort(key=lambda table: (table[-1].name.lower() not in _METADATA, -len(table[-1].parts), table[-1]))
    return used, problems


def _by_folder(folder: Path, files: Sequence[Path], why: str) -> list[tuple[Path, str]]:
    """A problem of each file, or one of all where they are many, as of a folder with a table for each video."""
    if len(files) <= 3:
        return [(path, why) for path in files]
    return [(folder, f"{len(files)} files, such as {files[0].name}: {why}")]


def _why_unusable(table: Path) -> str:
    """What a table lacks by its head; "" where it names videos and captions."""
    try:
        columns = columns_of(table)
    except DataError as error:
        why = " ".join((error.received.removeprefix(str(table)).lstrip(" ,:"), error.fix)).strip()
        return f"not read: {why}"
    for accepted in (VIDEO_COLUMNS, PROMPT_COLUMNS):
        if first_of(columns, accepted) is None:
            has, expected, fix = lacking(columns, accepted)
            return f"not read: it has {has}; expected {expected}; {fix}"
    return ""


def _not_understood(
    videos: Sequence[Path], others: Sequence[Path], used: Sequence[_Table]
) -> Iterable[tuple[Path, str]]:
    """Files that may hold the captions that are missing, in a form that is not read."""
    beside = {path.with_suffix("") for path in videos}
    read = {path for table in used for path in table}
    folders: dict[Path, list[Path]] = {}
    for path in others:
        suffix, stem = path.suffix.lower(), path.stem.lower()
        alike = suffix == ".json" or (suffix == ".txt" and ("caption" in stem or "prompt" in stem))
        if alike and path.with_suffix("") not in beside and path not in read:
            if path.name.lower() in (*_PROMPT_LISTS, *_VIDEO_LISTS):
                continue  # said
            folders.setdefault(path.parent, []).append(path)
    why = (
        "not read: captions are in .csv, .tsv or .jsonl tables, in prompts.txt with videos.txt, or in x.txt beside "
        "x.mp4"
    )
    return [problem for folder, files in folders.items() for problem in _by_folder(folder, files, why)]


def _add_texts_beside(rows: dict[Path, Row], videos: Sequence[Path], others: Sequence[Path]) -> list[tuple[Path, str]]:
    """Give `x.txt` to `x.mp4` where no table has a caption for it; returns what is not read."""
    texts = {path.with_suffix(""): path for path in others if path.suffix.lower() == ".txt"}
    unread: list[Path] = []
    for video in videos:
        text = texts.get(video.with_suffix(""))
        if text is None:
            continue
        row = rows.get(video, Row("", {}))
        if row.prompt:
            unread.append(text)
            continue
        prompt = _caption(read_text(text))
        rows[video] = row._replace(prompt=prompt, record={**row.record, "prompt": prompt})
    if not unread:
        return []
    more = f" (and {len(unread) - 1} more)" if unread[1:] else ""
    return [(unread[0], f"not read{more}: a table has a caption for its video")]


# --- what they say ---


def _read_table(files: _Table) -> tuple[list[tuple[str, Row]], str]:
    """(a video's name, its row) of every line; and what is lacking, of a table without captions."""
    path = files[-1]
    if len(files) == 2:
        lines = _read_lists(*files)
        return [(name, Row(text, {"prompt": text}, table=path, line=line)) for line, name, text in lines], ""
    found: list[tuple[str, Row]] = []
    columns: dict[str, None] = {}
    values: dict[str, set[str]] = {}  # of columns that hold nothing but names of splits: which splits
    for number, row in READERS[path.suffix.lower()](path):
        name = name_in_row(path, number, row, VIDEO_COLUMNS, what="file_name")
        column = first_of(row, PROMPT_COLUMNS)
        text = "" if column is None else row[column]
        if not isinstance(text, str):
            raise DataError(f"{path}, line {number}: {column} is {text!r}.", expected="text")
        text = _caption(text)
        split = _split_in(path, number, row)
        found.append((name, Row(text, {**row, "prompt": text}, split, table=path, line=number)))
        if len(found) == 1:
            values = {key: set() for key in row}
        columns |= dict.fromkeys(row)
        words = {key: str(row.get(key) or "").strip().lower() for key in values}
        values = {
            key: values[key] | {SPLIT_NAMES[word] for word in [words[key]] if word}
            for key in values
            if words[key] in SPLIT_NAMES or not words[key]
        }
    if first_of(columns, ("split",)) is None:
        for key, splits in values.items():
            if len(splits) > 1:
                raise DataError(
                    f"{path}: the column `{key}` holds nothing but names of splits.",
                    expected="a column `split`, by which clips are held out",
                    fix=f"rename `{key}` to `split`, or remove it",
                )
    if found and first_of(columns, PROMPT_COLUMNS) is None:
        has, expected, fix = lacking(list(columns), PROMPT_COLUMNS)
        return found, f"no captions: it has {has}; expected {expected}; {fix}"
    return found, ""


def _split_in(path: Path, number: int, row: Mapping[str, Any]) -> str | None:
    """ "train" or "test", as a row says; None where it says nothing.

    Raises:
        DataError: it says something else.
    """
    column = first_of(row, ("split",))
    word = "" if column is None or row[column] is None else str(row[column]).strip()
    if not word:
        return None
    if word.lower() not in SPLIT_NAMES:
        raise DataError(
            f"{path}, line {number}: the split is {word!r}.",
            expected=f"one of {', '.join(SPLIT_NAMES)}",
            fix="correct it, or leave the column out",
        )
    return SPLIT_NAMES[word.lower()]


def _read_lists(prompts: Path, videos: Path) -> Iterator[tuple[int, str, str]]:
    """(line number from 1, a video's name, its caption); blank lines at the end are nothing."""
    texts, names = (text.split("\n") if (text := read_text(path).rstrip()) else [] for path in (prompts, videos))
    if len(texts) != len(names):
        raise DataError(
            f"{prompts} has {len(texts)} lines and {videos.name} has {len(names)}.",
            expected="a line each for every video",
            fix="mend the shorter one: from the missing line on, every video would have another's caption",
        )
    for number, (name, text) in enumerate(zip(names, texts, strict=True), start=1):
        if name.strip():
            yield number, name.strip(), _caption(text)
        elif text.strip():
            raise DataError(f"{videos}, line {number} is empty, and {prompts.name} has a caption there.")


def _caption(text: str) -> str:
    stripped = text.strip()
    return "" if stripped.lower() in _NO_CAPTION else stripped


class _Splits:
    """Which splits the names of a dataset's folders and tables say: `train/`, `data/val/x.csv`, `test.jsonl`.

    `train_videos/` and `clips-val.csv` do so where there is a name of each part, as `crash_test/` alone is none.
    """

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self._root = root
        exact, alike = {}, {}
        folders = {path.parent for path in files}
        names = {self._stem(path) for path in files} | {name for folder in folders for name in self._names(folder)}
        for name in names:
            words = [word for word in re.split(r"[-._ 0-9]+", name) if word]
            if name in SPLIT_NAMES:
                exact[name] = SPLIT_NAMES[name]
            elif found := {SPLIT_NAMES[word] for word in (*words[:1], *words[-1:]) if word in SPLIT_NAMES}:
                alike[name] = "test" if "test" in found else "train"
        self._known = exact | alike if len({*exact.values(), *alike.values()}) == 2 else exact

    def of_folder(self, folder: Path) -> str | None:
        """As a folder is called, or one that it is in, the outermost first."""
        return next((self._known[name] for name in self._names(folder) if name in self._known), None)

    def of_table(self, path: Path) -> str | None:
        """As a table is called, or a folder that it is in."""
        return self._known.get(self._stem(path)) or self.of_folder(path.parent)

    def _names(self, folder: Path) -> list[str]:
        return [part.lower() for part in folder.relative_to(self._root).parts]

    @staticmethod
    def _stem(path: Path) -> str:
        return path.stem.lower() if path.suffix.lower() in (*READERS, ".txt") else ""  # a video's name says nothing


class _Places:
    """Which of a folder's videos a table means."""

    def __init__(self, root: Path, videos: Sequence[Path]) -> None:
        self._root, self._videos = root, videos
        self._listed = {os.path.abspath(path): path for path in videos}
        self._bases: dict[Path, list[str]] = {}  # of a table's folder: where its videos may be

    def find(self, folder: Path, name: str) -> Path | None:
        """The video of that name, as it is listed; None if there is none."""
        if folder not in self._bases:
            bases = dict.fromkeys((folder, self._root))
            self._bases[folder] = [os.path.abspath(base / within) for base in bases for within in _VIDEO_FOLDERS]
        for base in self._bases[folder]:
            listed = self._listed.get(os.path.normpath(os.path.join(base, name)))
            if listed is not None:
                return listed
        alike = self._by_file.get(os.path.realpath(folder / name), [])
        return alike[0] if len(alike) == 1 else None

    def why_not(self, place: Path) -> str:
        """Why a listed file is none of the videos."""
        if not place.is_file():
            return "the video is not there"
        if len(self._by_file.get(os.path.realpath(place), [])) > 1:
            return "several videos of the folder are links to it"
        inside = Path(os.path.realpath(place)).is_relative_to(os.path.realpath(self._root))
        return "it is " + ("no video that is read" if inside else "outside the folder: move it there, or link to it")

    @cached_property
    def _by_file(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self._videos:
            found.setdefault(os.path.realpath(path), []).append(path)
        return found
