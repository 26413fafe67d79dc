"""What `physcli recipes` does: rows, the files as they are, all their fields, and copies that replace nothing."""

from __future__ import annotations

from urllib.parse import unquote

import pytest

from physcli.errors import UsageError
from physcli.recipe import RecipeError, find_recipe, list_recipes, load_yaml, read_recipe, schema_file
from physcli.tasks.recipes import SCHEMA_LINE, copy_recipe, list_rows, read_text, resolved


def test_a_row_for_every_recipe():
    rows = {row["name"]: row for row in list_rows()}
    assert rows.keys() == list_recipes().keys()
    assert all(row["description"] for row in rows.values())
    assert rows["m-tsa"] == {
        **{"name": "m-tsa", "trains": "generator", "method": "tsa", "model": "cogvideox-tiny"},
        **{"steps": load_yaml(find_recipe("m-tsa"))["train"]["steps"], "description": "Fine-tuned with M-TSA."},
    }
    assert {name: rows[name]["method"] for name in ("sft", "lamo-field", "pretrain/vae-tiny")} == {
        **{"sft": "sft", "lamo-field": None, "pretrain/vae-tiny": None}
    }


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_the_text_is_the_file_and_the_rest_goes_round(name, tmp_path):
    assert read_text(name) == find_recipe(name).read_text(encoding="utf-8")
    recipe, text = resolved(name, ["train.steps=3"])
    assert recipe.train.steps == 3
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    assert read_recipe(tmp_path / "again.yaml") == recipe
    assert recipe == read_recipe(name, ["train.steps=3"])


def schema_named(path):
    """The schema file that a recipe's first line names, and the rest of the recipe."""
    first, rest = path.read_text(encoding="utf-8").split("\n", 1)
    assert first.startswith(SCHEMA_LINE)
    place = first.removeprefix(SCHEMA_LINE)
    assert " " not in place  # editors read up to a space
    return (path.parent / unquote(place.removeprefix("file://"))).resolve(), rest


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_the_first_line_names_the_schema(name):
    assert schema_named(find_recipe(name))[0] == schema_file()
    assert schema_file().is_file()


@pytest.mark.parametrize(
    ("name", "target", "made"),
    [
        ("repa", None, "repa.yaml"),
        ("pretrain/vae-tiny", None, "vae-tiny.yaml"),
        ("repa", "", "repa.yaml"),
        ("repa", "here", "here/repa.yaml"),
        ("repa", "deep/new", "deep/new/repa.yaml"),
        ("repa", "deep/own.yaml", "deep/own.yaml"),
        ("repa", "own.yml", "own.yml"),
        ("repa.yaml", "own.v2", "own.v2/repa.yaml"),
    ],
)
def test_copies(tmp_path, monkeypatch, name, target, made):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    path = copy_recipe(name, tmp_path / target if target is not None else None)
    assert path.resolve() == tmp_path / made
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / made]
    assert schema_named(path) == schema_named(find_recipe(name))  # a relative place there, an absolute one here
    assert read_recipe(path) == read_recipe(name)


def test_a_copy_replaces_nothing_unasked(tmp_path):
    own = tmp_path / "repa.yaml"
    own.write_text("mine")
    for target in (own, tmp_path):
        with pytest.raises(UsageError, match=r"repa\.yaml is there already") as error:
            copy_recipe("repa", target)
        assert "--overwrite" in error.value.fix
    assert own.read_text() == "mine"
    assert copy_recipe("repa", own, overwrite=True) == own
    assert schema_named(own) == schema_named(find_recipe("repa"))
    copied = own.read_bytes()
    assert copy_recipe(str(own), own, overwrite=True).read_bytes() == copied
    assert list(tmp_path.iterdir()) == [own]


def test_a_recipe_without_the_line_gets_it_and_one_that_is_no_text_is_refused(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("# mine\ntrains: vae\n")
    assert schema_named(copy_recipe(str(own), tmp_path / "copy.yaml")) == (schema_file(), own.read_text())
    own.write_bytes(b"a: \xe9\n")
    with pytest.raises(RecipeError, match=r"own\.yaml cannot be read"):
        copy_recipe(str(own), tmp_path / "other.yaml")


def test_no_such_recipe(tmp_path):
    with pytest.raises(UsageError, match=r"Unknown recipe: 'rapa'\. Did you mean 'repa'"):
        copy_recipe("rapa", tmp_path / "new")
    with pytest.raises(RecipeError, match="No such recipe file"):
        copy_recipe("rapa.yaml", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
