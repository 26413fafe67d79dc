"""Lists of prompts to generate from: text, CSV, JSONL or JSON, the official lists of benchmarks among them.

A row has the text that is generated from (`prompt`, VideoPhy's `detailed_caption`, VideoPhy-2's `upsampled_caption`)
and the short caption that raters are asked about (`caption`); where one of the two is missing, the other stands for
it. All other columns are kept, such as states of matter, by which scores are grouped.

Known by their columns: VideoPhy and VideoPhy-2; VBench, VBench-I2V and VBench-2.0 (`VBench_full_info.json`,
`VBench2_full_info.json`, the texts of its `VBench2_full_text_info.json`); PhyGenBench (`prompts.json`); WorldModelBench
(`worldmodelbench.json`: the text of the first frame and the instruction, which its text-to-video models are given
together); Physics-IQ (`descriptions.csv`, whose three views have the same text).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from physcli.data.tables import READERS, first_of, no_column, read_text
from physcli.errors import DataError

DETAILED_COLUMNS = ("prompt", "detailed_caption", "upsampled_caption", "detailed_prompt")
SHORT_COLUMNS = ("caption", "short_caption", "text")
# Benchmarks that call a prompt otherwise: the columns by which a row is known → those that make the prompt, joined.
_OFFICIAL: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = (
    (frozenset({"prompt_en", "dimension"}), ("prompt_en",)),  # VBench, VBench-2.0
    (frozenset({"text_first_frame", "text_instruction"}), ("text_first_frame", "text_instruction")),  # WorldModelBench
    (frozenset({"scenario", "description", "generated_video_name"}), ("description",)),  # Physics-IQ
)


@dataclass(frozen=True)
class Prompt:
    """What a video is made from.

    Attributes:
        text: Given to the generator.
        caption: What a rater is asked about; `text` where there is no shorter one.
        columns: What else its row says.
    """

    text: str
    caption: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", self.caption or self.text)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in its order: `.txt` (one a line), `.csv`, `.jsonl` or `.json`.

    Blank lines of a `.txt` are passed over. Spaces and quotation marks around a text stay as they are: they are part
    of what published videos were made from.

    Raises:
        DataError: no such file, another kind of file, no column with prompts, a row without one, or no prompt at all.
    """
    kind = path.suffix.lower()
    if kind not in (".txt", ".json", *READERS):
        raise DataError(
            f"{path} is no list of prompts.", expected="a .txt (a prompt a line), .csv, .jsonl or .json file"
        )
    if kind == ".txt":
        prompts = [Prompt(line) for line in read_text(path).split("\n") if line.strip()]
    elif kind == ".json":
        prompts = [prompt_of_row(path, number, row, unit="entry") for number, row in _entries(path)]
    else:
        prompts = [prompt_of_row(path, number, row) for number, row in READERS[kind](path)]
    if not prompts:
        raise DataError(f"{path} holds no prompt.", expected="at least one")
    return prompts


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of a JSON list of objects, or of an object of them by their prompts."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}).", expected="a JSON list of objects"
        ) from error
    rows = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f"{path} holds {value!r:.60}.", expected="a JSON list of objects, each with a prompt")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, entry {number}: {row!r:.60} is no object.",
                expected="a JSON list of objects, each with a prompt",
            )
        yield number, row


def prompt_of_row(path: Path, number: int, row: Mapping[str, Any], *, unit: str = "line") -> Prompt:
    """The texts of a row of a list; `path` and its `number`, of a line or an entry, are for what is wrong with it.

    Raises:
        DataError: no column with a prompt, or none in it.
    """
    where = f"{path}, {unit} {number}"
    for known_by, parts in _OFFICIAL:
        if known_by <= row.keys():
            detailed, short, used = " ".join(_text(row, part, where) for part in parts), "", parts
            break
    else:
        columns = first_of(row, DETAILED_COLUMNS), first_of(row, SHORT_COLUMNS)
        used = tuple(column for column in columns if column is not None)
        if not used:
            raise no_column(path, number, row, (*DETAILED_COLUMNS, *SHORT_COLUMNS), what="prompt", unit=unit)
        detailed, short = ("" if column is None else _text(row, column, where) for column in columns)
    text, caption = (value if value.strip() else "" for value in (detailed, short))
    if not (text or caption):
        raise DataError(f"{where}: the prompt is empty.", fix="fill it, or remove the row")
    rest = {str(key): value for key, value in row.items() if key not in used}
    return Prompt(text or caption, caption or text, rest)


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    if not isinstance(row[column], str):
        raise DataError(f"{where}: {column} is {row[column]!r}.", expected="text")
    return str(row[column])
