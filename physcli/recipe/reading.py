"""Recipes read and checked, with overrides; written; and their JSON schema."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema

from physcli.errors import RecipeError, UsageError
from physcli.methods import METHODS, settings_class
from physcli.methods.settings import Sft
from physcli.recipe.explain import Problem, explain, fields_of, tell, unknown_choice
from physcli.recipe.files import find_recipe
from physcli.recipe.schema import KINDS, AnyRecipe, GeneratorRecipe, Recipe
from physcli.yaml12 import dump_yaml, load_yaml, parse_value


def read_recipe(name_or_path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> AnyRecipe:
    """A recipe, checked, with `key=value` overrides (`train.steps=10`, `objective.horizons=[4, 8]`).

    Raises:
        RecipeError: unreadable, or a field that is missing, unknown or of the wrong type.
        UsageError: an override that is no `key=value`, or of a field there is not.
    """
    path = find_recipe(name_or_path)
    content = load_yaml(path)
    given = list(overrides)
    for override in given:
        _override(content, override)
    checked = _check(content)
    if isinstance(checked, Recipe):
        return checked
    told = tell(checked)
    place = checked[0].place
    expected = _fields(content, place)
    if given and isinstance(_check(load_yaml(path)), Recipe):  # the file alone is in order
        where = ".".join(place)
        named = [one for one in given if (key := one.partition("=")[0]).startswith(where) or where.startswith(key)]
        raise UsageError(f"{' '.join(named or given)}: {told}", expected=expected, fix="correct the key=value")
    raise RecipeError(f"{path}: {told}", expected=expected, fix="correct the recipe or the key=value")


def dump_recipe(recipe: BaseModel) -> str:
    """All fields as YAML, defaults included."""
    return dump_yaml(recipe.model_dump(mode="json"))


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipes: what `read_recipe` accepts, told to editors.

    It cannot say what is checked only when a recipe meets a model, such as blocks that the model does not have.
    """
    methods = tuple(settings_class(name) for name in METHODS)
    every = [_narrowed(kind, methods) for kind in KINDS.values()]
    some_kind: Any = Annotated[_one_of(every), Field(discriminator="trains")]
    return {
        "$schema": _Schema.schema_dialect,
        "title": "A physcli recipe",
        **TypeAdapter(some_kind).json_schema(schema_generator=_Schema),
    }


class _Schema(GenerateJsonSchema):
    """Fields are called what they are called: no titles made of their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise UsageError(f"{override!r}.", expected="key=value, such as train.steps=100")
    try:
        value = parse_value(text)
    except yaml.YAMLError:
        raise UsageError(f"{override!r}: {text!r} is not YAML.", expected="a number, a word or [a, list]") from None
    place: Any = content
    *parents, last = key.split(".")
    for name in parents:
        if place.get(name) is None:  # not in the file, or a heading with nothing below it
            place[name] = {}
        if not isinstance(place[name], dict):
            raise UsageError(f"{override!r}: {name} is not a section.", expected=_fields(content))
        place = place[name]
    place[last] = value


def _check(content: Mapping[str, Any]) -> AnyRecipe | list[Problem]:
    """The recipe that this is, or what is wrong with it."""
    kind = _kind(content)
    if kind is None:
        told = f"trains is {content['trains']!r}" if "trains" in content else "trains is missing"
        return [Problem(("trains",), told)]
    chosen = _chosen(kind, content)
    try:
        # Strictly, or `true` would be 1 and `"10"` 10; as JSON, which alone lets a list be a tuple then.
        checked = chosen.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        return [explain(problem, chosen) for problem in error.errors()]
    # `chosen` knew which method; whoever gets the recipe asks for the kind alone.
    return kind.model_construct(checked.model_fields_set, **dict(checked))


def _kind(content: Mapping[str, Any]) -> type[AnyRecipe] | None:
    name = content.get("trains")
    return KINDS.get(name) if isinstance(name, str) else None


def _chosen(kind: type[AnyRecipe], content: Mapping[str, Any]) -> type[Recipe]:
    """The kind of recipe with the section that this one's method chooses."""
    method = content.get("method", {"name": "sft"})
    name = method.get("name") if isinstance(method, dict) else None
    if isinstance(name, str) and name in METHODS:
        return _narrowed(kind, (settings_class(name),))
    return _narrowed(kind, (unknown_choice("name", tuple(METHODS)),))


@cache
def _narrowed(kind: type[AnyRecipe], methods: tuple[type[BaseModel], ...]) -> type[Recipe]:
    """The kind of recipe, its `method` being one of these."""
    if not issubclass(kind, GeneratorRecipe):
        return kind
    one = _one_of(methods)
    field: Any = (Annotated[one, Field(discriminator="name")] if methods[1:] else one, Sft(name="sft"))
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, method=field)


def _one_of(classes: Sequence[type[BaseModel]]) -> Any:
    """The type of a field that is one of these."""
    return reduce(or_, classes)


def _fields(content: Mapping[str, Any], place: tuple[str, ...] = ()) -> str:
    """The fields there are in the section of a recipe that `place` lies in."""
    kind = _kind(content)
    return f"trains: one of {', '.join(KINDS)}" if kind is None else fields_of(_chosen(kind, content), place)
