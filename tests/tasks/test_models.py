"""`models ls|show`: everything inside the package is listed, and each can be shown."""

from __future__ import annotations

import subprocess
import sys

import pytest

from physcli.models.fingerprints import hash_files
from physcli.models.tiny import ASSETS, asset_folder
from physcli.tasks.models import list_models, show_model

FOLDERS = sorted(path.name for path in ASSETS.iterdir() if path.is_dir() and asset_folder(path.name))


def test_all_that_is_in_the_package_is_listed():
    listed = {row["name"]: row["weights"] for row in list_models()}
    assert {name: listed.get(name) for name in FOLDERS} == dict.fromkeys(FOLDERS, "trained")


def test_the_list_needs_no_torch():
    code = "import sys; from physcli.tasks.models import list_models; list_models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", FOLDERS)
def test_all_that_is_in_the_package_can_be_shown(name):
    [row] = [row for row in list_models() if row["name"] == name]
    facts = show_model(name)
    same = ("name", "kind", "family", "weights")
    assert [facts[key] for key in same] == [row[key] for key in same]
    assert (facts["source"], facts["path"]) == ("built-in", ASSETS / name)
    assert facts["parameters"]
    assert len(facts["content hash"]) == 64


def test_a_motion_field_says_which_latents_it_knows():
    facts = show_model("motion-field-tiny")
    assert facts["latents"] == "of cogvideox-tiny: 8 channels, scaled by 2.0394"
    assert (facts["lag"], facts["prompt width"], facts["parameters"]) == ("1 latent frame", 128, 195784)
    assert facts["content hash"] == hash_files(ASSETS / "motion-field-tiny").hex()


def test_a_motion_projector_says_which_tokens_it_knows():
    facts = show_model("motion-projector-tiny")
    assert (facts["encoder"], facts["tokens"], facts["flow"]) == ("videomae-tiny", "128 to 16 dimensions", "exact")
    assert facts["view"]["layout"] == "whole"
