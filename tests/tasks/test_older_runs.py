"""Runs of older versions are known as what they are: the same settings, the same models."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from physcli.guidance import NONE, guidance_class
from physcli.models.fingerprints import hash_files
from physcli.models.names import fingerprint, read_facts, resolve
from physcli.progress import Reporter
from physcli.tasks import finetune, sample
from physcli.tasks.probe_physion import ProbeSettings
from physcli.tasks.run_dir import same_settings, with_defaults
from physcli.tasks.sample import SampleSettings
from physcli.tasks.training.request import FinetuneRequest

GOLDEN = Path(__file__).parents[1] / "golden" / "older_runs"
PROMPT = "a red ball rolls towards a yellow box and hits it"
MOTION = {"motion_reduction": "normalized", "motion_scale": 0.1}


def record_of(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def sampled(given):
    """Settings, and what completes older ones, as `sample` has them before anything is loaded."""
    settings = sample._checked(given, "cpu", 1, Reporter())
    if settings.guidance_scale is None:
        settings = replace(settings, guidance_scale=read_facts(resolve(settings.model)).guidance_scale)
    return settings.record, settings.completing(given)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sample", SampleSettings(prompts=(PROMPT,), steps=6)),
        ("sample-lamo", SampleSettings(prompts=(PROMPT,), steps=6, guidance="lamo", guidance_options=MOTION)),
    ],
)
def test_samples(name, given):
    record = record_of(name)
    assert same_settings(record, *sampled(given))
    assert record["inputs"]["model"] == fingerprint(resolve(given.model))
    if given.guidance != NONE:
        chosen = guidance_class(given.guidance)
        files = chosen.files(chosen.settings(given.guidance_options), resolve(given.model))
        hashes = {name: hash_files(path).hex() for name, path in files.items()}
        assert record["inputs"].items() >= hashes.items()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 7},
        {"scheduler": "ddim"},
        {"guidance_scale": 3.0},
        {"guidance": NONE, "guidance_options": {}},
        {"guidance": "cfg-zero", "guidance_options": {}},
        {"guidance_options": MOTION | {"motion_scale": 0.2}},
        {"guidance_options": MOTION | {"motion_lag": 2}},
        {"guidance_options": MOTION | {"motion_ratio": 1.0}},
    ],
)
def test_other_samples_are_others(change):
    given = SampleSettings(prompts=(PROMPT,), steps=6, guidance="lamo", guidance_options=MOTION)
    assert not same_settings(record_of("sample-lamo"), *sampled(replace(given, **change)))


def test_a_probe():
    record = record_of("probe")
    models = ("cogvideox-tiny", "videomae-tiny", "cogvideox-tiny:random")
    given = ProbeSettings(models=models, data="simulated:28", layers=(1, 3), sigmas=(0.1, 0.3))
    assert same_settings(record, asdict(given), with_defaults(given))
    assert not same_settings(record, asdict(replace(given, snrs=(1.0,))), with_defaults(given))
    assert record["inputs"].items() >= {name: fingerprint(resolve(name)) for name in models}.items()


@pytest.mark.parametrize("name", ["sft-timesteps", "lora", "lamojoint", "moalign", "lamo-field"])
def test_training(name):
    record = record_of(name)
    options = {"--recipe": "", "--steps": "", "--data": "", "--seed": ""}
    words = iter(record["arguments"][1:])
    overrides = []
    for word in words:
        if word in options:
            options[word] = next(words)
        else:
            overrides.append(word)
    request = FinetuneRequest(
        options["--recipe"], tuple(overrides), data=options["--data"], steps=int(options["--steps"])
    )
    seed = int(options["--seed"])

    def same(recipe):
        settings = finetune._settings(recipe.model_dump(mode="json"), seed)
        return same_settings(record, settings, partial(finetune._complete, recipe=recipe))

    assert same(request.recipe())
    assert not same(replace(request, overrides=(*overrides, "train.batch_size=3")).recipe())
