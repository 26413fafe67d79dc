"""Imports run one way: cli → tasks → {models, methods, data, simulation, benchmarks, report} → errors and the like."""

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
COMMON = {"errors", "hashing", "progress", "rows", "stats", "recipe"}


def imports_of(path: Path) -> set[str]:
    """Second parts of all `physcli.X…` imports in a file, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("physcli.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    place = path.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = {
        "cli": {"cli", "tasks", "simulation", "data", "benchmarks"} | COMMON,
        "tasks": {"tasks"} | LEAVES | COMMON,
        "__init__": set(),
        "__main__": {"cli"},
    }.get(place, ({place} | COMMON) if place in LEAVES else COMMON)
    assert imports_of(path) <= allowed


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
