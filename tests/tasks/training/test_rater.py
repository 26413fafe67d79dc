"""What a rater is shown and asked, that it learns, and that what is left answers."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from physcli.benchmarks.laws import check_laws
from physcli.benchmarks.videophy import MEDIA, parse_rating
from physcli.data.clips import read_dataset, read_impossible
from physcli.data.flow import dis_flow
from physcli.data.video import write_video
from physcli.errors import DataError, UsageError
from physcli.models.raters.mplug_owl_video import build_rater, load_rater
from physcli.models.tiny import architecture
from physcli.progress import Reporter
from physcli.recipe import Rating, read_recipe
from physcli.simulation.prompts import with_rate, words
from physcli.simulation.violations import KINDS
from physcli.tasks.ask import read_frames
from physcli.tasks.finetune import finetune
from physcli.tasks.processes import Processes
from physcli.tasks.simulate import SimulateSettings, simulate
from physcli.tasks.training.build import twins_wanted
from physcli.tasks.training.clips import ClipReader, rng_of
from physcli.tasks.training.rater import (
    OFF_TOPIC,
    RULES,
    RaterTrainee,
    Video,
    own_rating,
    physics_rating,
    set_folder,
    spoil,
    twins_of,
)
from physcli.tasks.training.rater_samples import sampled_videos
from physcli.tasks.training.request import FinetuneRequest

SMALL = {
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "visual_abstractor_config": {"hidden_size": 32, "encoder_hidden_size": 32, "num_hidden_layers": 1},
    "text_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}


def small_architecture():
    model = architecture("mplug-owl-video-tiny")
    for section, changes in SMALL.items():
        model[section] |= changes
    model["vision_config"] |= {"image_size": 32}
    model["preprocessor"] |= {"size": {"height": 32, "width": 32}, "num_frames": 8}
    return model


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite") / "clips"
    settings = SimulateSettings(
        num_train=4, num_test=4, scenarios=("roll", "dominoes"), height=32, width=32, impossible=KINDS, seed=5
    )
    simulate(settings, out=folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def clips(suite):
    return [[c for c in read_dataset(suite).clips if c.split == split] for split in ("train", "test")]


@pytest.fixture(scope="module")
def sampled(clips, tmp_path_factory):
    """Videos of the shipped generator, after two steps: most break laws."""
    cache = tmp_path_factory.mktemp("cache")

    def make(some, count=4):
        return sampled_videos(
            "cogvideox-tiny",
            some,
            count,
            steps=2,
            seed=0,
            cache=cache,
            device=torch.device("cpu"),
            processes=Processes("cpu"),
            reporter=Reporter(),
        )

    return make


@pytest.fixture
def trainee(clips):
    def make(sampled=(), **objective):
        training, held_out = clips
        readers = [ClipReader(some, size=(32, 32), seed=0) for some in (training, twins_of(training))]
        rater = build_rater(small_architecture())
        return RaterTrainee(
            rater,
            reader=readers[0],
            twins=readers[1],
            sampled=sampled,
            held_out=held_out,
            held_out_sampled=sampled,
            objective=Rating(sampled=0.3 if sampled else 0, **objective),
            seed=0,
        )

    return make


def drawn(trainee, count=200):
    for sample in range(count):
        rng = rng_of(0, "rater", sample)
        video = trainee._draw(sample, rng)
        yield video, trainee._ask(video, rng)


def test_twins_are_read_with_what_was_broken(suite, clips):
    twins = read_impossible(suite)
    assert {twin.record["violation"]["kind"] for twin in twins} >= {"vanish", "teleport", "color", "shape", "stop"}
    assert {twin.split for twin in twins} == {"train", "test"}
    assert all(twin.path.is_file() and twin.name.startswith(twin.record["twin_of"]) for twin in twins)
    assert {t.record["twin_of"] for t in twins_of(clips[0])} <= {clip.name for clip in clips[0]}
    assert twins_wanted(read_recipe("pretrain/mplug-owl-video-tiny")) == KINDS
    assert twins_wanted(read_recipe("pretrain/videomae-tiny")) == ()


def test_sets_without_twins_are_refused(simulated, tmp_path):
    plain = list(read_dataset(simulated).clips)
    with pytest.raises(DataError, match="holds no impossible twins"):
        twins_of(plain)
    write_video(tmp_path / "a.mp4", np.zeros((4, 32, 32, 3), np.uint8), 20)
    with pytest.raises(DataError, match="is no simulated clip"):
        set_folder(read_dataset(tmp_path).clips[0])


def test_the_shares_are_as_asked_and_the_answers_what_is_known(trainee):
    made = trainee(twins=0.4, static=0.2)
    kinds = Counter()
    for video, asked in drawn(made):
        group = video.kind if video.kind in ("real", "static") else "twins"
        kinds[group] += 1
        own, wrong, physics, rule = asked
        assert all(question.segments.count(MEDIA) == 1 for question in asked)
        passes = {"real": True, "static": False}.get(video.kind)
        if passes is not None:
            assert own.answer in (("5", "Yes") if passes else ("2", "No"))
        assert wrong.answer in ("1", "2", "No")
        assert physics.answer in {"real": ("5", "Yes"), "static": ("2", "No")}.get(video.kind, ("1", "No"))
        text = rule.segments[2]
        if any(off in text for off in OFF_TOPIC):
            assert rule.answer == "2"
        elif video.kind in RULES:
            assert rule.answer == ("0" if RULES[video.kind] in text else "1")
        else:
            assert rule.answer in (("1",) if video.kind == "real" else ("1", "2"))
        if video.kind == "static":
            assert (video.frames == video.frames[:1]).all()
    assert kinds["twins"] / 200 == pytest.approx(0.4, abs=0.1)
    assert kinds["static"] / 200 == pytest.approx(0.2, abs=0.1)
    with pytest.raises(UsageError, match=r"objective\.twins=0\.7, objective\.static=0\.4"):
        trainee(twins=0.7, static=0.4)


@pytest.mark.slow
def test_sampled_videos_are_made_once_and_judged_by_the_laws(clips, sampled):
    first, again = sampled(clips[0]), sampled(clips[0])
    assert len(first) == len({clip.prompt for clip in clips[0]})
    assert len(sampled(clips[0], 2)) == 2
    for one, same in zip(first, again, strict=True):
        assert one.frames.shape == (17, 64, 64, 3)
        np.testing.assert_array_equal(one.frames, same.frames)
        told = with_rate(one.clip.prompt, 3)
        assert one.law == check_laws(one.frames, 20 / 3, told, flow=dis_flow)


def test_what_is_right_of_a_sampled_video_is_what_the_laws_say(clips, sampled, trainee):
    laws = {"Objects do not vanish.": "permanence", "Objects keep their shape.": "shape"}
    made = trainee(sampled(clips[0]), twins=0.4, static=0.2)
    seen = [(video, asked) for video, asked in drawn(made) if video.kind == "sampled"]
    assert len(seen) / 200 == pytest.approx(0.3, abs=0.1)
    for video, (own, _, physics, rule) in seen:
        broken = sum(holds is False for holds in video.law.laws.values())
        assert own.answer in (str(video.law.sa), "Yes" if video.law.sa >= 4 else "No")
        assert physics.answer in (("5", "Yes") if not broken else ("2", "No") if broken == 1 else ("1", "No"))
        for text, law in laws.items():
            if text in rule.segments[2]:
                assert rule.answer == {True: "1", False: "0", None: "2"}[video.law.laws[law]]
        breaks = made._row(video, [])["breaks"]
        assert (breaks == (0 if video.law.pc else -100)).all()
    assert any(not video.law.pc for video, _ in seen)
    loss, _ = made(made.batch(range(8), 0))
    assert loss.isfinite().all()
    with torch.no_grad():
        rows = {(row["metric"], row["group"]): row for row in made.validate(None, final=True)}
    assert rows["pc_right", "sampled"]["n"] == rows["sa_own_right", "sampled"]["n"] == len(made.held_out_sampled)
    assert rows["pc_right", "real"]["n"] == 4


def test_which_words_of_a_caption_are_true(trainee):
    """Own captions are true but for the outcome; of a caption with one wrong word, that word alone is false."""
    made = trainee(twins=0.4, static=0.2)
    for video, asked in drawn(made, 80):
        row = made._row(video, asked)
        judged = []
        for ids, truths in zip(row["prompts"], row["truths"], strict=True):
            told = made.rater.tokenizer.tokenizer.convert_ids_to_tokens(ids.clamp(min=0).tolist())
            known = {word: int(truth) for word, truth in zip(told, truths, strict=True) if truth >= 0}
            judged.append({word.strip("Ġ▁"): truth for word, truth in known.items()})
        own, wrong, physics, rule = judged
        assert physics == rule == {}
        assert (
            {"red", "yellow"}
            < own.keys()
            <= set(words(video.clip.prompt)) | ({"left", "right"} if video.mirrored else set())
        )
        outcome = ({"hits", "misses"} & own.keys()).pop()
        happens = {0: "misses", 1: "hits"}[video.clip.label]
        assert own.pop(outcome) == (video.kind != "static" and outcome == happens)
        assert set(own.values()) == {1}
        if asked[1].answer == "2":  # one word is wrong: of the twins' captions perhaps the outcome as well
            false = {word for word, truth in wrong.items() if not truth} - {"hits", "misses"}
            assert len(false) <= 1


def test_every_word_is_known_and_left_is_right_in_a_mirror(trainee):
    made = trainee()
    unknown = made.rater.tokenizer.tokenizer.unk_token_id
    sides = set()
    for video, asked in drawn(made, 60):
        for question in asked:
            assert unknown not in made.rater.tokenize(question.segments).ids, question
        side = {"left", "right"} & set(words(video.clip.prompt))
        told = {"left", "right"} & set(words("".join(asked[0].segments)))
        assert (told != side) == (video.mirrored and bool(side))
        sides |= {(*side, *told)}
    assert len(sides - {()}) == 2


def test_a_twin_that_ends_otherwise_is_not_what_was_told(clips):
    twins = twins_of(clips[0])
    for twin in twins:
        told = int("hits" in words(twin.prompt))
        video = Video(twin, np.zeros((1, 8, 8, 3)), twin.record["violation"]["kind"], 1, False)
        assert own_rating(video, told) == (4 if twin.label == told else 2)
        assert physics_rating(video) == 1
    assert {twin.label == int("hits" in words(twin.prompt)) for twin in twins} == {True, False}


def test_spoilt_captions_differ_in_one_word():
    caption = "a red ball rolls down a white slope towards a yellow box and hits it, filmed at 20 frames per second"
    changed = Counter()
    for number in range(60):
        spoilt = spoil(caption, np.random.default_rng(number))
        pairs = [(a, b) for a, b in zip(words(caption), words(spoilt), strict=True) if a != b]
        assert len(pairs) == 1
        changed[pairs[0][0]] += 1
    assert changed.keys() == {"red", "ball", "white", "yellow", "box", "hits"}
    assert changed["hits"] > changed["red"]


def test_batches_depend_on_the_sample_alone(trainee):
    made = trainee()
    whole, later = made.batch(range(4), 0), trainee().batch(range(2, 4), 7)
    assert torch.equal(whole["pixels"][2:], later["pixels"])
    assert torch.equal(whole["breaks"][2:], later["breaks"])
    assert whole["pixels"].shape == (4, 3, 8, 32, 32)
    assert whole["ids"].shape[:2] == whole["lengths"].shape == (4, 4)
    twins = [n for n, (video, _) in enumerate(drawn(made, 20)) if video.first is not None]
    shown = made.batch(twins, 0)["breaks"]
    assert ((shown > 0).sum(1) >= 1).all()
    assert ((shown > 0).sum(1) <= 2).all()


def test_the_loss_falls_in_30_steps(trainee):
    made = trainee().train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        loss, logs = made(made.batch(range(8 * step, 8 * step + 8), step))
        assert loss.shape == logs["sa_right"].shape == (8,)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(float(loss.detach().mean()))
    assert all(p.grad is not None for p in made.parameters()), "every weight is trained"
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


def test_by_a_recipe_from_random_weights_to_a_folder_that_answers(suite, tmp_path):
    recipe = {
        **{"trains": "rater", "model": "mplug-owl-video-tiny", "init": "random", "save_dtype": "float16"},
        "data": {"source": str(suite), "memory_gb": 0.5},
        "train": {"steps": 2, "batch_size": 2, "validate_every": 0, "ema": 0.5},
        "objective": {"validated": 4},
        "architecture": small_architecture(),
    }
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    done = finetune(FinetuneRequest(str(tmp_path / "own.yaml"), out=tmp_path / "run", device="cpu"))
    found = {(row["metric"], row["group"]): row for row in done.rows}
    assert found["pc_right", "real"]["n"] == found["pc_right", "static"]["n"] == found["pc_right", "twins"]["n"] == 4
    assert 0 <= found["pc_real_above_twin", "all"]["value"] <= 1
    rater = load_rater(done.model, device="cpu")
    assert rater.num_frames == 8
    videos = torch.stack([read_frames(clip.path, rater) for clip in read_dataset(suite).clips[:2]])
    assert videos.shape == (2, 3, 8, 32, 32)
    for text in rater.answer(videos, [[MEDIA, "ai :"]] * 2, max_new_tokens=3):
        assert parse_rating(text) in (None, 1, 2, 3, 4, 5)
    card = (done.model / "README.md").read_text()
    assert "load_rater(FOLDER)" in card
    again = {**recipe, "init": "pretrained", "model": str(done.model), "architecture": {}}
    (tmp_path / "again.yaml").write_text(json.dumps(again))
    assert finetune(FinetuneRequest(str(tmp_path / "again.yaml"), out=tmp_path / "more", device="cpu")).model.is_dir()
