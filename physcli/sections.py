"""What every section of settings that a user writes is made of: strict pydantic models, and types of their fields.

Leaves may declare sections of their own (a method its settings) without knowing what a recipe is.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Numbers = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


def _describe_fields(schema: dict[str, Any], section: type[BaseModel]) -> None:
    """What docstrings say of fields ("`name`: what it is"), where editors look for it."""
    for kind in reversed(section.__mro__):
        text = " ".join((vars(kind).get("__doc__") or "").split())
        for name, meaning in re.findall(r"`(\w+)`: (.+?)(?= `\w+`: |$)", text):
            if name in schema["properties"]:
                schema["properties"][name]["description"] = meaning.rstrip(";")


class Section(BaseModel):
    """A mapping of known fields, each of its type: an unknown one is an error, and so are NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, json_schema_extra=_describe_fields)


def defaults_of(section: Section) -> dict[str, Any]:
    """Every field that has a default, with that default, also those of the sections inside; as `model_dump` for JSON.

    A field that must be given is not in it.
    """
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            found[name] = defaults_of(value)
        elif not field.is_required():
            found[name] = (
                type(section)
                .model_construct(**{name: field.get_default()})
                .model_dump(mode="json", include={name})[name]
            )
    return found
