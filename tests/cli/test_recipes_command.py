"""`physcli recipes` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from physcli.recipe import find_recipe, list_recipes, load_yaml, read_recipe, schema_file


@pytest.fixture(scope="module")
def run(run_physcli):
    return lambda *arguments, columns=200, **options: run_physcli("recipes", *arguments, columns=columns, **options)


def test_help(run):
    shown = run("--help").stdout
    for command in ("ls", "show", "copy", "validate", "schema"):
        assert f" {command} " in shown
    shown = " ".join(run("copy", "--help").stdout.split())
    assert "[default: the working directory]" in shown
    assert "--overwrite" in shown


def test_ls(run):
    shown = run("ls")
    assert shown.returncode == 0, shown.stderr
    for name in list_recipes():
        assert f" {name} " in shown.stdout
    assert "Fine-tuned with VideoREPA." in shown.stdout
    # At once: nothing heavy is loaded.
    code = (
        "import atexit, sys\nsys.argv = ['physcli', 'recipes', 'ls', '--json']\n"
        "atexit.register(lambda: print(sorted({'torch', 'numpy'} & set(sys.modules)), file=sys.stderr))\n"
        "from physcli.cli.app import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert [row["name"] for row in json.loads(done.stdout)] == list(list_recipes())


def test_show(run, tmp_path):
    own = tmp_path / "own.yaml"
    long = "[bold]not bold[/bold] " * 20
    own.write_text(f"# {long}\n{find_recipe('sft').read_text()}\n# 猫\n", encoding="utf-8")
    assert run("show", own, columns=40).stdout == own.read_text(encoding="utf-8")

    shown = run("show", "sft", "lora.rank=8", "method={name: lamo, lag: 1}", columns=40)
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    asked = read_recipe("sft", ["lora.rank=8", "method={name: lamo, lag: 1}"])
    assert read_recipe(tmp_path / "shown.yaml") == asked
    assert load_yaml(tmp_path / "shown.yaml")["lora"]["alpha"] == 64  # defaults too

    found = json.loads(run("show", "repa", "method.weight=0.25", "--json").stdout)
    assert found == read_recipe("repa", ["method.weight=0.25"]).model_dump(mode="json")


def test_the_packaged_schema_is_the_one_that_is_made(run, tmp_path):
    """`physcli recipes schema > recipes/schema.json` makes it again."""
    shown = run("schema", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == schema_file().read_text(encoding="utf-8")


def test_copy_then_validate(run, tmp_path):
    made = run("copy", "videorepa", "own.yaml", cwd=tmp_path)
    assert (made.returncode, made.stdout.split()) == (0, ["recipe", "own.yaml"])
    again = run("copy", "videorepa", "own.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "own.yaml is there already" in again.stderr
    replaced = run("copy", "repa", "own.yaml", "--overwrite", "--json", cwd=tmp_path)
    assert json.loads(replaced.stdout) == {"recipe": "own.yaml"}
    valid = run("validate", "own.yaml", "method.weight=1", cwd=tmp_path)
    assert valid.returncode == 0
    assert valid.stdout == "own.yaml is a valid recipe; it trains a generator from cogvideox-tiny.\n"
    found = json.loads(run("validate", "lamo-field", "--json").stdout)
    assert found == {"valid": True, "trains": "motion-field", "model": "cogvideox-tiny"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["validate", "videorapa"], 2, "Unknown recipe: 'videorapa'. Did you mean 'videorepa'?"),
        (["validate", "none.yaml"], 1, "No such recipe file: none.yaml"),
        (["validate", "broken.yaml"], 1, "broken.yaml: unknown field trian, did you mean train?"),
        (["validate", "repa", "method.teachr=x"], 2, "unknown field method.teachr, did you mean teacher?"),
        (["validate", "repa", "method.name=ropa"], 2, "method.name is 'ropa'"),
        (["show", "repa", "method.weight"], 2, "'method.weight'. Expected: key=value"),
        (["copy", "repa", "broken.txt"], 1, "broken.txt"),
    ],
)
def test_errors_are_one_message(run, tmp_path, arguments, code, said):
    (tmp_path / "broken.yaml").write_text("trains: vae\nmodel: m\ntrian: {}\ntrain: {steps: 1}\n")
    (tmp_path / "broken.txt").touch()
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
