"""Video files to what a rater sees, and prompts that both sides write alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from physcli.benchmarks import videophy
from physcli.data.video import write_video
from physcli.errors import DataError
from physcli.models.raters import TINY_RATER, text
from physcli.models.raters.mplug_owl_video import load_rater
from physcli.tasks.ask import read_frames


@pytest.fixture(scope="module")
def rater():
    return load_rater(f"{TINY_RATER}:random", device="cpu")


def test_the_video_has_one_mark():
    assert videophy.MEDIA == text.MEDIA


@pytest.mark.parametrize("num_frames", [1, 17, 49])
def test_any_video_becomes_the_models_clip(tmp_path, rater, num_frames):
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, 48, 80, 3), np.uint8)
    write_video(tmp_path / "a, b's “c”.mp4", frames, 20)
    video = read_frames(tmp_path / "a, b's “c”.mp4", rater)
    assert (video.shape, video.dtype) == ((3, 16, 64, 64), torch.float32)
    assert (video[:, 0] == video[:, -1]).all() == (num_frames == 1)


def test_a_video_that_cannot_be_decoded(tmp_path, rater):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="cannot be opened as a video"):
        read_frames(tmp_path / "a.mp4", rater)


@pytest.mark.parametrize("name", videophy.QUESTIONS)
def test_the_tiny_one_knows_every_word_of_the_questions_and_answers(rater, name):
    unknown = rater.tokenizer.tokenizer.unk_token_id
    caption = "a red ball rolls down a grey slope towards a yellow box and hits it, filmed at 7 frames per second"
    prompt = rater.tokenize(videophy.QUESTIONS[name].segments(caption))
    assert unknown not in prompt.ids
    assert len(prompt.ids) + 8 <= rater.config.text["max_position_embeddings"]
    answers = ["Yes", "No", *map(str, (*videophy.RULE_ANSWERS, *videophy.RATINGS))]
    assert len({tuple(rater.tokenizer.encode(answer)) for answer in answers}) == len(answers) - 2  # 1 and 2 are twice
    assert all(len(rater.tokenizer.encode(answer)) == 1 for answer in answers)
    assert unknown not in [rater.tokenizer.encode(answer)[0] for answer in answers]
