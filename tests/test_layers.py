"""Imports run one way: cli → tasks → {models, methods, data, simulation, benchmarks, report} → errors and the like.

`recipe` stands between tasks and methods, whose settings are sections of a recipe."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import physcli

ROOT = Path(physcli.__file__).parent
LEAVES = {"models", "methods", "data", "simulation", "benchmarks", "report"}
# Modules at the top of the package that everything may use; they import nothing of physcli but each other.
COMMON = {"errors", "files", "hashing", "packaged", "progress", "rows", "sections", "stats", "yaml12"}
# Files that import each other in a circle, to be taken apart.
CIRCLES: list[set[str]] = []


def imports_of(path: Path) -> set[str]:
    """All `physcli.X…` that a file imports, without `physcli.`, also those inside functions and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.removeprefix("physcli.") for name in names if name.startswith("physcli.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    place = path.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = {
        "cli": {"cli", "tasks", "guidance", "simulation", "data", "benchmarks"} | COMMON,
        "tasks": {"tasks", "recipe", "guidance"} | LEAVES | COMMON,
        "guidance": {"guidance", "methods", "models"} | COMMON,
        "recipe": {"recipe", "methods"} | COMMON,
        "__init__": set(),
        "__main__": {"cli"},
    }.get(place, ({place} | COMMON) if place in LEAVES else COMMON)
    assert {name.partition(".")[0] for name in imports_of(path)} <= allowed


def test_no_files_import_each_other_in_a_circle():
    files = {module_of(path): path for path in ROOT.rglob("*.py")}
    imports = {}
    for name, path in files.items():
        # `from physcli.a import b` is of a.b where that is a file, else of a.
        inside = {found if found in files else found.rpartition(".")[0] for found in imports_of(path)}
        imports[name] = inside & files.keys() - {name}

    def reached(name):
        seen, todo = set(), [name]
        while todo:
            new = imports[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    behind = {name: reached(name) for name in imports}
    circles = {frozenset(other for other in behind[name] if name in behind[other]) for name in imports} - {frozenset()}
    assert sorted(map(sorted, circles)) == sorted(map(sorted, CIRCLES))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_only_render_prints():
    for path in sorted((ROOT).rglob("*.py")):
        if path.name == "render.py":
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], path


def test_help_loads_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom physcli.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'mujoco', 'pydantic', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "quickstart" in done.stdout


def test_a_mistyped_recipe_is_refused_without_torch():
    code = (
        "import sys\nfrom physcli.cli.app import app\nfrom physcli.errors import UsageError\n"
        "try:\n    app(['finetune', '--recipe', 'm-tsa', 'method.temprature=1'], standalone_mode=False)\n"
        "except UsageError as error:\n    print(error)\n"
        "print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "unknown field method.temprature, did you mean temperature?" in done.stdout
    assert done.stderr.strip() == "[]"
