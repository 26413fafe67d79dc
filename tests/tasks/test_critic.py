"""`finetune` with a frozen critic: what it sees, what it leaves alone, and which ones are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from physcli.errors import UsageError
from physcli.models.loading import load
from physcli.tasks.training import build
from physcli.tasks.training.generator import GeneratorTrainee

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = (
    *("data.limit=4", "train.batch_size=4", "train.schedule.warmup_steps=0", "train.validate_every=0"),
    *("train.mixed_precision=no", "objective.samples=0", "objective.noise=timesteps"),
)


@pytest.fixture
def arguments(base, few, session_cache):
    def get(*overrides, **options):
        given = {"model": str(base), "data": str(few), "steps": 1, "device": "cpu", "cache_dir": session_cache}
        return {"recipe_name": "critic", "overrides": (*SMALL, *overrides), **given, **options}

    return get


@pytest.fixture
def trainees(monkeypatch):
    """Trainees as they are made."""
    made = []

    class Kept(GeneratorTrainee):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(build, "GeneratorTrainee", Kept)
    return made


@pytest.mark.parametrize("changes", [(), ("lora.rank=2", "lora.alpha=2")])
def test_the_first_step_s_loss(run, trainees, base, changes):
    """By hand: a second copy of the model looks at x̂0 and x0 under the same noise."""
    done = run("out", "method.most_sigma=0.9", *changes)
    [trainee] = trainees
    batch = trainee.batch(range(4), 0)
    critic, generator = load(str(base), device="cpu", dtype="float32"), load(str(base), device="cpu", dtype="float32")
    latents, noise = batch["latents"], batch["noise"]
    level = generator.noise.of_time(batch["time"])
    told = generator.encode_prompts([""]).expand(4)
    told = type(told)({name: batch[f"told_{name}"] for name in told})
    noisy = generator.noise.add_noise(latents, noise, level)
    expected = []
    with torch.no_grad():
        output = generator.denoise(noisy, level, told).output
        clean = generator.noise.clean(output, noisy, level)
        little = critic.noise.at(0.2).expand(4)
        seen = [
            critic.denoise(critic.noise.add_noise(x, batch["critic_noise"], little), little, told, taps=[0]).features[0]
            for x in (clean, latents)
        ]
        for number in range(4):
            one, other = (tokens[number].flatten(0, 2) for tokens in seen)
            off = float((one - other).square().mean() / (other - other.mean(dim=0)).square().mean())
            expected.append(off if level.sigma[number] <= 0.9 else 0.0)
    assert sum(value > 0 for value in expected) > 0
    assert done.steps[0]["critic"] == pytest.approx(sum(expected) / 4, rel=1e-4)
    assert done.steps[0]["asked"] == pytest.approx(sum(value > 0 for value in expected) / 4)


def test_the_critic_is_frozen_and_in_no_file(run, trainees, base):
    done = run("out", "train.optimizer.lr=0.1", "method.weight=1", "train.checkpoint_every=1")
    [trainee] = trainees
    [critic] = trainee.method._critic
    before = load(str(base), device="cpu", dtype="float32").network.state_dict()
    for name, value in critic.network.state_dict().items():
        assert value.equal(before[name]), name
    assert not any("critic" in name for name in trainee.state_dict())
    sizes = [sum(v.numel() for v in load_file(file).values()) for file in done.path.rglob("model.safetensors")]
    assert sizes
    assert max(sizes) <= sum(value.numel() for value in before.values())


def test_nothing_is_asked_of_much_noise(run):
    row = run("out", "method.most_sigma=1e-6").steps[0]
    assert (row["critic"], row["asked"]) == (0, 0)
    assert row["loss"] == row["denoising"]


@pytest.fixture
def other_vae(base, tmp_path):
    """The same model with other latents."""
    folder = tmp_path / "other"
    shutil.copytree(base, folder)
    config = folder / "vae" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"scaling_factor": 2 * content["scaling_factor"]}))
    return folder


def test_other_latents_are_refused(run, other_vae, tmp_path):
    with pytest.raises(UsageError, match="has another vae than"):
        run("out", f"method.critic={other_vae}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("method.critic=videomae-tiny",), "videomae-tiny is an encoder"),
        (("method.critic=wan-tny",), "Did you mean 'wan-tiny'"),
        (("method.block=7",), "block"),
    ],
)
def test_refused(run, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        run("out", *changes)
