"""YAML 1.2, strictly: read without the surprises of PyYAML, and written so that nobody else is surprised.

PyYAML follows YAML 1.1, where `1e-4` is a string, `no` is False, `16:9` is 969, a date is an object and the last of
two equal keys wins silently. Here scalars follow YAML 1.2: only `true`/`false` are booleans, `1e-4` is a number,
`16:9` and dates are strings, and an equal key is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from physcli.errors import RecipeError


def read_text(path: Path) -> str:
    """A recipe's file as it is.

    Raises:
        RecipeError: it is not there, or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"No such recipe file: {path}.", expected="an existing .yaml file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}.", expected="a text file in UTF-8") from error


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one YAML mapping, strictly.

    Returns:
        Plain dicts, lists, str, int, float, bool and None.

    Raises:
        RecipeError: unreadable, not YAML, not a mapping, an equal key twice, or a key that is not text; the message
            has file and line.
    """
    path = Path(path)
    try:
        content = yaml.load(read_text(path), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(
            f"{where}: {error.problem or error.context}.", expected="YAML 1.2", fix="correct that line"
        ) from error
    except yaml.YAMLError as error:  # a character that YAML forbids; it has a position but no mark
        raise RecipeError(f"{path}: {error}".replace("\n", " "), expected="YAML 1.2") from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} holds {'nothing' if content is None else f'a {type(content).__name__}'}.",
            expected="a mapping, `key: value` lines",
        )
    return content


def dump_yaml(content: Mapping[str, Any]) -> str:
    """A mapping as YAML whose text either version of YAML takes for text."""
    return yaml.dump(content, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, width=100)


def parse_value(text: str) -> Any:
    """The value that a piece of YAML stands for.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, _StrictLoader)


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Resolves scalars by YAML 1.2's core schema and refuses repeated or non-text keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (not the base class's, which are YAML 1.1)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not text; put it in quotes", key_node.start_mark
                )
            if key in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there already, in line {lines[key]}", key_node.start_mark
                )
            lines[key] = line
        return super().construct_mapping(node, deep=True)

    def _construct_map(self, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
        content: dict[Any, Any] = {}
        yield content  # before its entries exist, so that an alias may point back to it
        content.update(self.construct_mapping(node))

    def _construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text.lower().startswith(("0x", "0o")) else int(text)

    def _construct_float(self, node: yaml.ScalarNode) -> float:
        # Python reads what YAML writes once the dot of `.inf` and `.nan` is gone.
        return float(re.sub(r"\.(inf|nan)$", r"\1", self.construct_scalar(node), flags=re.IGNORECASE))


class _StrictDumper(yaml.SafeDumper):
    """Puts text in quotes that either version of YAML would take for something else."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _class in (_StrictLoader, _StrictDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
_StrictLoader.add_constructor("tag:yaml.org,2002:map", _StrictLoader._construct_map)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader._construct_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader._construct_float)
