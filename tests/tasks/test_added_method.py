"""Adding a method with a teacher is one file, one line of the table and a recipe."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from physcli.cli.app import app
from physcli.errors import UsageError
from physcli.methods import METHODS
from physcli.recipe import read_recipe, recipe_schema

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def nearest_place(monkeypatch, base, encoder_folder, simulated, tmp_path):
    """A recipe of a method whose file is importable and whose line is in the table."""
    file = Path(__file__).parents[1] / "methods" / "nearest_place.py"
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("nearest_place", file))
    monkeypatch.setitem(sys.modules, "nearest_place", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "nearest-place", "nearest_place:NearestPlace")
    recipe = {
        "trains": "generator",
        "model": str(base),
        "data": {"source": str(simulated), "limit": 4},
        "train": {"steps": 2, "batch_size": 2, "validate_every": 0},
        "objective": {"samples": 0},
        "method": {
            "name": "nearest-place",
            "sharpness": 3,
            "teacher": str(encoder_folder("teacher", 0)),
            "projector": {"hidden_dim": 20},
        },
    }
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    return tmp_path / "own.yaml"


def test_it_trains_by_a_recipe(nearest_place, session_cache, tmp_path):
    arguments = ["--recipe", nearest_place, "--out", tmp_path / "run", "--device", "cpu", "--cache-dir", session_cache]
    app([str(word) for word in ("finetune", *arguments, "--quiet")], standalone_mode=False)
    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["nearest-place"] > 0 for step in steps)
    assert (tmp_path / "run" / "projector.safetensors").is_file()
    assert read_recipe(tmp_path / "run" / "recipe.yaml").method == read_recipe(nearest_place).method


def test_its_settings_are_checked_and_in_the_schema(nearest_place):
    with pytest.raises(UsageError, match=r"unknown field method\.sharpnes, did you mean sharpness"):
        read_recipe(nearest_place, ["method.sharpnes=1"])
    field = recipe_schema()["$defs"]["NearestPlace"]["properties"]["sharpness"]
    assert field["description"] == "how much closer neighbours count more."
