"""What every section of settings that a user writes is made of: strict pydantic models, and types of their fields.

Leaves may declare sections of their own (a method its settings) without knowing what a recipe is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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


def completed(then: Mapping[str, Any], section: Section) -> dict[str, Any]:
    """What was written of a section, as `model_dump` for JSON gives it, with the fields that there were none of yet.

    Args:
        then: What was written; a field that is missing counts as its default.
        section: One of today that shall be compared with it: in which fields it has sections, and of which kind.
    """
    found = dict(then)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name in then and isinstance(value, Section) and isinstance(then[name], Mapping):
            found[name] = completed(then[name], value)
        elif name not in then and not field.is_required():
            alone = type(section).model_construct(**{name: field.get_default()})
            found |= alone.model_dump(mode="json", include={name})
    return found
