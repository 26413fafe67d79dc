"""What is wrong with a recipe, in words: where, what, what was received, and which fields there are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, create_model


class Problem(NamedTuple):
    """`place`: the names of the sections and the field; `told`: a sentence."""

    place: tuple[str, ...]
    told: str


class UnknownChoice(BaseModel):
    """In place of a section whose kind is not known: anything is taken but the name that should choose it."""

    model_config = ConfigDict(extra="allow")

    chosen_by: ClassVar[str]
    options: ClassVar[tuple[str, ...]]


@cache
def unknown_choice(chosen_by: str, options: tuple[str, ...]) -> type[UnknownChoice]:
    """The class for a section whose field `chosen_by` should be one of the options."""
    # Any: a field that may be one of several is made while the program runs.
    field: Any = (Literal[options], ...)
    made = create_model("UnknownChoice", __base__=UnknownChoice, **{chosen_by: field})
    made.chosen_by, made.options = chosen_by, options
    return made


def explain(problem: Any, recipe: type[BaseModel]) -> Problem:
    """One of pydantic's complaints about a recipe of this class."""
    place = tuple(str(part) for part in problem["loc"])
    key = ".".join(place) or "the file"
    path, section = _section(recipe, place)
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(place[-1], section.model_fields, n=1, cutoff=0.5)
        told = f"unknown field {key}" + (f", did you mean {close[0]}?" if close else "")
    elif problem["type"] == "missing":
        told = f"{key} is missing"
    elif problem["type"] == "value_error":
        told = f"{key}: {problem['ctx']['error']}"
    elif issubclass(section, UnknownChoice) and place != path:
        told = f"{key} is {problem['input']!r}"  # what is expected has the options
    else:
        told = f"{key} is {problem['input']!r} ({problem['msg'][0].lower()}{problem['msg'][1:]})"
    return Problem(place, told)


def tell(problems: Sequence[Problem]) -> str:
    """The first three, and how many more there are."""
    told = "; ".join(problem.told for problem in problems[:3])
    return told + (f" (and {len(problems) - 3} more)" if problems[3:] else "")


def fields_of(recipe: type[BaseModel], place: Sequence[str]) -> str:
    """The fields there are in the section that `place` lies in."""
    path, section = _section(recipe, place)
    if issubclass(section, UnknownChoice):
        return f"{'.'.join([*path, section.chosen_by])}: one of {', '.join(section.options)}"
    return f"the fields {', '.join('.'.join([*path, name]) for name in section.model_fields)}"


def _section(recipe: type[BaseModel], place: Sequence[str]) -> tuple[tuple[str, ...], type[BaseModel]]:
    """The innermost section that a place in a recipe lies in, and its own place."""
    section, path = recipe, tuple[str, ...]()
    for name in place:
        inner = _inner(section, name)
        if inner is None:
            break
        section, path = inner, (*path, name)
    return path, section


def _inner(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section that a field is, if it is one."""
    if name not in section.model_fields:
        return None
    annotation = section.model_fields[name].annotation
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
