"""Lists of prompts to generate from: text, CSV or JSONL, the VideoPhy and VideoPhy-2 lists among them.

A row has the text that is generated from (`prompt`, VideoPhy's `detailed_caption`, VideoPhy-2's `upsampled_caption`)
and the short caption that raters are asked about (`caption`); where one of the two is missing, the other stands for
it. All other columns are kept, such as states of matter, by which scores are grouped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from physcli.data.tables import READERS, first_of, no_column, read_text
from physcli.errors import DataError

DETAILED_COLUMNS = ("prompt", "detailed_caption", "upsampled_caption", "detailed_prompt")
SHORT_COLUMNS = ("caption", "short_caption", "text")


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
    """The prompts of a file, in its order: `.txt` (one a line), `.csv` or `.jsonl`.

    Blank lines of a `.txt` are passed over. Spaces and quotation marks around a text stay as they are: they are part
    of what published videos were made from.

    Raises:
        DataError: no such file, another kind of file, no column with prompts, a row without one, or no prompt at all.
    """
    if path.suffix.lower() not in (".txt", *READERS):
        raise DataError(f"{path} is no list of prompts.", expected="a .txt (a prompt a line), .csv or .jsonl file")
    if path.suffix.lower() == ".txt":
        prompts = [Prompt(line) for line in read_text(path).split("\n") if line.strip()]
    else:
        prompts = [prompt_of_row(path, number, row) for number, row in READERS[path.suffix.lower()](path)]
    if not prompts:
        raise DataError(f"{path} holds no prompt.", expected="at least one")
    return prompts


def prompt_of_row(path: Path, number: int, row: Mapping[str, Any]) -> Prompt:
    """The texts of a row of a list; `path` and its line `number` are for what is wrong with it.

    Raises:
        DataError: no column with a prompt, or none in it.
    """
    detailed, short = first_of(row, DETAILED_COLUMNS), first_of(row, SHORT_COLUMNS)
    if detailed is None and short is None:
        raise no_column(path, number, row, (*DETAILED_COLUMNS, *SHORT_COLUMNS), what="prompt")
    texts = []
    for column in (detailed, short):
        value = "" if column is None else row[column]
        if not isinstance(value, str):
            raise DataError(f"{path}, line {number}: {column} is {value!r}.", expected="text")
        texts.append(value)
    text, caption = (value if value.strip() else "" for value in texts)
    if not (text or caption):
        raise DataError(f"{path}, line {number}: the prompt is empty.", fix="fill it, or remove the row")
    rest = {str(key): value for key, value in row.items() if key not in (detailed, short)}
    return Prompt(text or caption, caption or text, rest)
