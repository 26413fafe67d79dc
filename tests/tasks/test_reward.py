"""`finetune` by a reward: rounds of videos, what is learnt from them, and going on in the middle of one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from physcli.benchmarks.videophy import QUESTIONS, calibrated_rating
from physcli.data.clips import read_dataset
from physcli.data.video import resize, write_video
from physcli.errors import UsageError
from physcli.models.loading import load
from physcli.models.raters import TINY_RATER
from physcli.models.raters.mplug_owl_video import load_rater
from physcli.recipe import Nft
from physcli.tasks.ask import ask, read_frames
from physcli.tasks.training import build
from physcli.tasks.training.reward import REWARDS, RewardTrainee, judge_video
from physcli.tasks.training.scoring import Asked
from physcli.tasks.training.windows import prompt_at

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = (
    *("train.batch_size=2", "train.schedule.warmup_steps=0", "train.validate_every=0", "train.checkpoint_every=2"),
    *(
        "train.mixed_precision=no",
        "train.optimizer.lr=0.01",
        "scoring.videos=2",
        "scoring.sample_steps=2",
        "train.score_every=5",
    ),
    *("method.num_prompts=2", "method.group=2", "method.sample_steps=2", "method.steps_per_round=3"),
)


@pytest.fixture
def arguments(base, few, session_cache):
    def get(*overrides, **options):
        given = {"model": str(base), "data": str(few), "steps": 5, "device": "cpu", "cache_dir": session_cache}
        return {"recipe_name": "nft", "overrides": (*SMALL, *overrides), **given, **options}

    return get


@pytest.fixture
def trainees(monkeypatch):
    """Reward trainees as they are made."""
    made = []

    class Kept(RewardTrainee):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(build, "RewardTrainee", Kept)
    return made


def untimed(path):
    rows = [json.loads(line) for line in (path / "steps.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights_of(path):
    return {name: w for file in sorted(path.rglob("*.safetensors")) for name, w in load_file(file).items()}


def same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=tolerance, msg=name)


def test_rounds(run, trainees, few, base):
    """Two rounds in five steps; the prompts are not those of the report; the result is an ordinary model."""
    done = run("out", "method.kl_weight=0.1")
    [trainee] = trainees
    begun = [row for row in done.steps if "reward" in row]
    assert [row["step"] for row in begun] == [1, 4]
    for row in begun:
        assert row["reward"] == pytest.approx(row["reward/laws"])
        assert {"sa", "pc", "reward/joint", "reward/rater", "reward/rise", "motion_px"} <= row.keys()
    assert done.steps[0]["kl"] == 0
    assert done.steps[4]["kl"] > 0
    # The old policy is the weights at the round's beginning, after three of the five steps.
    three = run("three", "method.kl_weight=0.1", steps=3)
    kept = load_file(three.path / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    same({name: weights for name, weights in trainee.round.old.items()}, {n: kept[n] for n in trainee.round.old})

    clips = read_dataset(few).clips
    training, held_out = (
        [item.prompt for item in trainee._asked([c for c in clips if c.split == split])] for split in ("train", "test")
    )
    expected = [prompt for prompt in training if prompt not in held_out[:2]]  # scoring.videos
    assert [item.prompt for item in trainee._prompts] == expected
    assert {prompt for prompt, _ in trainee.round.items} <= set(expected)
    entries = [json.loads(line) for line in (done.path / "scores.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in done.rows} >= {"reward/laws", "sa", "pc", "motion_px"}
    assert [entry["step"] for entry in entries] == [0, 5]
    assert json.loads((done.path / "run.json").read_text())["best"].keys() == {"step", "reward/laws"}
    assert load(str(done.path / "model"), device="cpu").random_init is False
    begun_with, left = (
        load_file(p / "transformer" / "diffusion_pytorch_model.safetensors") for p in (base, done.model)
    )
    assert any(not left[name].equal(begun_with[name]) for name in left)


def test_the_first_step_s_loss(run, trainees):
    """At the old policy both implicit ones are the policy itself: the loss is A_max times the error, whatever r is."""
    done = run("out", steps=1)
    [trainee] = trainees
    batch = trainee.batch(range(2), 0)
    latents = trainee.round.latents[batch["slot"]]
    noise = trainee.generator.noise
    level = noise.of_time(batch["time"])
    noisy = noise.add_noise(latents, batch["noise"], level)
    prompts = [trainee.round.items[slot][0] for slot in batch["slot"].tolist()]
    with torch.no_grad(), trainee._as(trainee.round.old):
        output = trainee.generator.denoise(noisy, level, trainee.generator.encode_prompts(prompts)).output
    off = (noise.clean(output, noisy, level) - latents).flatten(1)
    expected = 5 * off.square().mean(1) / off.abs().mean(1)
    assert done.steps[0]["loss"] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_real_clips_beside_the_videos(run, trainees, few):
    """The denoising loss on the clip that each video's prompt is of, by hand, with the same noise."""
    plain, done = run("plain", steps=1), run("out", "method.real_weight=0.5", steps=1)
    trainee = trainees[-1]
    batch = trainee.batch(range(2), 0)
    generator = trainee.generator
    noise, level = generator.noise, generator.noise.of_time(batch["time"])
    prompts = [trainee.round.items[slot][0] for slot in batch["slot"].tolist()]
    clips = {}
    for clip in read_dataset(few).clips:
        clips.setdefault(prompt_at(clip, 3), clip)
    size = generator.facts.size
    frames = np.stack([resize(clips[prompt].read(list(range(0, 51, 3))), *size) for prompt in prompts])
    real = generator.codec.encode(torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 255)
    noisy = noise.add_noise(real, batch["noise"], level)
    with torch.no_grad(), trainee._as(trainee.round.old):
        output = generator.denoise(noisy, level, generator.encode_prompts(prompts)).output
    off = (output - noise.target(real, batch["noise"], level)).square().mean(dim=(1, 2, 3, 4))
    assert done.steps[0]["denoising"] == pytest.approx(float(off.mean()), rel=1e-4)
    assert done.steps[0]["loss"] == pytest.approx(plain.steps[0]["loss"] + 0.5 * float(off.mean()), rel=1e-4)


def test_only_the_best_are_learnt_from(run, trainees, base):
    """The denoising loss on the two best of each prompt, by hand; and what is logged of the round."""
    rounds = ("method.group=4", "method.keep=1", "method.least=0", "method.reward=rise", "method.real_weight=0")
    done = run("out", *rounds, "method.num_prompts=2", recipe_name="raft", steps=1)
    [trainee] = trainees
    assert done.steps[0]["kept"] == 0.25
    assert len(trainee.round.kept) == 2
    assert [int(place) // 4 for place in trainee.round.kept] == [0, 1]
    batch = trainee.batch(range(2), 0)
    slots = trainee.round.kept[batch["slot"] % 2]
    latents, noise, level = trainee.round.latents[slots], batch["noise"], trainee.generator.noise.of_time(batch["time"])
    # Before the step: the weights that the generator began with.
    generator = load(str(base), device="cpu", dtype="float32")
    dropped = batch["dropped"].tolist()
    prompts = ["" if drop else trainee.round.items[slot][0] for slot, drop in zip(slots.tolist(), dropped, strict=True)]
    noisy = generator.noise.add_noise(latents, noise, level)
    with torch.no_grad():
        output = generator.denoise(noisy, level, generator.encode_prompts(prompts)).output
    off = (output - generator.noise.target(latents, noise, level)).square().mean(dim=(1, 2, 3, 4))
    assert done.steps[0]["loss"] == pytest.approx(float(off.mean()), rel=1e-5)
    card = (done.model / "README.md").read_text()
    assert "RAFT (settings: the recipe below): v-prediction: mean squared error of v" in card
    assert "Of the clips below only the prompts were read." in card


def test_every_video_once_before_one_again(run, trainees):
    run("out", steps=1)
    [trainee] = trainees
    slots = [slot for first in range(0, 8, 2) for slot in trainee.batch(range(first, first + 2), 0)["slot"].tolist()]
    assert sorted(slots[:4]) == sorted(slots[4:]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("nft", ("method.old_decay=0.5", "method.kl_weight=0.1")),
        ("nft", ("method.real_weight=1", "lora.rank=2", "lora.alpha=2")),
        ("raft", ()),
    ],
)
@pytest.mark.parametrize("stop_at", [3, 5])
def test_resumed(run, listener, name, changes, stop_at):
    """In the middle of a round (a checkpoint of step 2 of 3, or of 4): the same bytes."""
    whole = run("whole", *changes, recipe_name=name, steps=6)
    with pytest.raises(KeyboardInterrupt):
        run("broken", *changes, recipe_name=name, steps=6, reporter=listener(stop_at=stop_at))
    done = run("broken", *changes, recipe_name=name, steps=6, resume="latest")
    assert untimed(done.path) == untimed(whole.path)
    same(weights_of(whole.model), weights_of(done.model))
    assert done.rows == whole.rows


def test_two_processes_are_twice_the_batch(run, arguments, in_two_processes, tmp_path):
    one = run("one", steps=2)
    given = arguments("train.batch_size=1", steps=2) | {"out": tmp_path / "two"}
    in_two_processes(given)
    for mine, theirs in zip(untimed(tmp_path / "two"), untimed(one.path), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4, rel=1e-4)


def real(few):
    [clip, *_] = [clip for clip in read_dataset(few).clips if clip.kind == "simulated"]
    return Asked(f"{clip.prompt}, filmed at 7 frames per second", 0, 20 / 3), clip.read(range(0, 51, 3))


@pytest.fixture(scope="module")
def rater():
    return load_rater(TINY_RATER, device="cpu")


def test_the_rater_s_ratings_are_those_of_eval_videophy2(few, rater, tmp_path):
    """Of the same video in a file; without loss, which moves no rating by more than the file's colours do."""
    item, frames = real(few)
    judged = judge_video(item, frames, rater)
    write_video(tmp_path / "one.mp4", frames, 20 / 3, crf=0)
    asked = [[(QUESTIONS["v2_sa"], item.caption), (QUESTIONS["v2_pc"], "")]]
    [answers] = ask(rater, [read_frames(tmp_path / "one.mp4", rater)], asked)
    for name, answer in zip(("rater_sa", "rater_pc"), answers, strict=True):
        assert judged[name] == pytest.approx(calibrated_rating(answer.digits).expected, abs=0.1)


def test_rewards_of_a_real_clip_and_of_a_still_one(few, rater):
    item, frames = real(few)
    judged = judge_video(item, frames, rater)
    still = judge_video(item, np.repeat(frames[:1], len(frames), axis=0), rater)
    assert judged["reward/laws"] > 0.8
    both = judged["rater_sa"] + judged["rater_pc"]
    assert judged["reward/rater"] == pytest.approx((both / 2 - 1) / 4)
    assert judged["reward/joint"] in (0, 1)
    assert still["moves"] == still["reward/laws"] == still["reward/joint"] == still["reward/rater"] == 0
    assert still["pc"] >= judged["pc"] - 1  # what breaks no law is not for that reason good


@pytest.mark.parametrize(("top", "expected"), [(0, 0.9453125), (48, 0.1953125), (None, 0.0)])
def test_rise(top, expected):
    """A red square of 8 pixels of 64, from this row on: its middle is at top + 3.5."""
    frames = np.full((5, 64, 64, 3), 90, np.uint8)
    if top is not None:
        frames[-1, top : top + 8, 20:28] = (200, 30, 30)
    assert REWARDS["rise"](frames, {}) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("method.num_prompts=50",), "prompts that are not kept for scoring"),
        (("train.compile=true",), "train.compile=true with method.name=nft"),
        (("objective.text_encoder=true",), "objective.text_encoder=true with method.name=nft"),
        (("method.reward=beauty",), "method.reward is 'beauty'"),
    ],
)
def test_what_cannot_be(run, tmp_path, changes, said):
    with pytest.raises(UsageError) as error:
        run("out", *changes)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_recipe_is_what_the_settings_say():
    assert Nft(name="nft").beta == 1
