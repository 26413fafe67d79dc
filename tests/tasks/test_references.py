"""Reference curves beside recipes: thinned, found, compared with the run, drawn."""

from __future__ import annotations

import json

import pytest

from physcli.errors import DataError, UsageError
from physcli.recipe import list_recipes, read_recipe
from physcli.tasks import finetune as task
from physcli.tasks.recipes import copy_recipe
from physcli.tasks.references import MAX_BYTES, find_reference, reference_file, thinned, write_reference
from physcli.tasks.training.request import FinetuneRequest

pytestmark = pytest.mark.usefixtures("no_pictures")

SHIPPED = [name for name in list_recipes() if reference_file(name).is_file()]


def test_thinned():
    """Means over stretches, each curve over the steps that have it."""
    steps = [
        {"step": n, "samples": 2 * n, "loss": float(n), "lr": 0.1, "seconds": n, "ratio": 0.5 if n % 3 == 0 else None}
        for n in range(1, 301)
    ]
    rows = thinned(steps)
    assert len(rows) == 100
    assert rows[0] == {"step": 3, "loss": 2.0, "ratio": 0.5}
    assert rows[-1] == {"step": 300, "loss": 299.0, "ratio": 0.5}
    assert [row["loss"] for row in thinned(steps[:5])] == [1, 2, 3, 4, 5]


def test_shipped_ones_are_small_and_of_their_recipes():
    assert SHIPPED
    for name in SHIPPED:
        assert reference_file(name).stat().st_size <= MAX_BYTES
        recipe = read_recipe(name)
        found = find_reference(name, recipe)
        assert found is not None
        assert found.steps[-1]["loss"] < found.steps[0]["loss"]
        assert find_reference(name, recipe.model_copy(update={"model": "another"})) is None


def test_a_run_s_own_reference(base, few, session_cache, tmp_path, monkeypatch, listener):
    recipe = copy_recipe("sft", tmp_path / "mine.yaml")
    drawn = []
    monkeypatch.setattr(task, "loss_curve", lambda path, *rest, **options: drawn.append(options["reference"]))

    def run(out, *overrides, **options):
        heard = listener()
        given = ("data.limit=4", "train.batch_size=2", "objective.samples=0", *overrides)
        request = FinetuneRequest(
            str(recipe), given, model=str(base), data=str(few), steps=4, device="cpu", out=tmp_path / out,
            cache_dir=session_cache,
        )  # fmt: skip
        return task.finetune(request, reporter=heard, **options), heard

    first, heard = run("one")
    assert drawn.pop() == ()
    assert not any("reference" in note for note in heard.notes)
    with pytest.raises(UsageError, match="is no run of finetune"):
        write_reference(tmp_path, str(recipe))
    path = write_reference(first.path, str(recipe))
    assert path == tmp_path / "mine.steps.jsonl"
    about, *rows = map(json.loads, path.read_text().splitlines())
    assert (about["recipe"]["train"]["batch_size"], about["recipe"]["train"]["steps"]) == (2, 4)
    assert [row["loss"] for row in rows] == [float(f"{row['loss']:.4g}") for row in first.steps]
    with pytest.raises(UsageError, match="is there already"):
        write_reference(first.path, str(recipe))
    write_reference(first.path, str(recipe), overwrite=True)

    _, heard = run("two", "objective.caption_dropout=0.3", "train.checkpoint_every=2")
    assert drawn.pop() == rows
    [told] = [note for note in heard.notes if "reference" in note]
    assert told.endswith("differs from it: objective.caption_dropout=0.3 (reference: 0.1).")
    run("three", reference=False)
    assert drawn.pop() == ()

    path.write_text('{"step": 1}\n')
    with pytest.raises(DataError, match="is no reference curve"):
        run("four")
    assert not (tmp_path / "four").exists()
