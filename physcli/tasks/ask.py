"""Which rater is asked, what it is shown of videos, and its answers to a benchmark's questions."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from physcli.benchmarks.base import Answer, Benchmark, Question
from physcli.benchmarks.videophy import QUESTIONS, calibrated_rating
from physcli.data.video import count_frames, read_scaled, resize
from physcli.errors import ModelError
from physcli.models.raters import TINY_RATER
from physcli.models.raters.mplug_owl_video import MplugOwlVideo, rater_fingerprint

_RATER_SIZE = "about 15 GB"


def find_rater(benchmark: type[Benchmark], name: str | None, *, simulated: bool) -> tuple[str, str]:
    """A rater's name and a hash of its files.

    Args:
        benchmark: Which needs one.
        name: As `load_rater` takes it; None for the tiny one where all videos are `simulated`, else the official one.
        simulated: Whether all videos are of the simulated world.

    Raises:
        ModelError: it is not there.
    """
    chosen = name or (TINY_RATER if simulated else benchmark.official_rater)
    try:
        return chosen, rater_fingerprint(chosen)
    except ModelError as error:
        if name is not None or simulated:
            raise
        raise ModelError(
            f"{error.received.rstrip('.')}: the rater of {benchmark.name} is not here.",
            expected=f"{chosen}, {_RATER_SIZE}",
            fix=f"where there is a network, `hf download {chosen}`; or --rater with its folder; videos of the "
            "simulated world are scored without it by `physcli eval laws`",
        ) from error


def read_frames(path: str | os.PathLike[str], rater: MplugOwlVideo, *, as_decord: bool = False) -> Tensor:
    """What a rater sees of a video file: its frames, scaled and normalised.

    Args:
        path: The file.
        rater: The rater.
        as_decord: As `read_scaled` takes it.

    Returns:
        float32 [3, T, H, W], on the CPU.

    Raises:
        DataError: the file cannot be decoded.
    """
    indices = rater.frame_indices(count_frames(path, as_decord=as_decord))
    size = rater.config.vision.image_size
    return rater.prepare(read_scaled(path, indices, size, size, as_decord=as_decord))


def rate(rater: MplugOwlVideo, frames: np.ndarray, caption: str) -> tuple[float, float]:
    """VideoPhy-2's ratings of a video in memory, 1 to 5: SA and PC, means over the digits' probabilities.

    Args:
        rater: The rater.
        frames: uint8 [T, H, W, 3]; resized as training resizes, not as `read_frames` does.
        caption: What it shall show.
    """
    size = rater.config.vision.image_size
    shown = rater.prepare(resize(frames[rater.frame_indices(len(frames))], size, size))
    [answers] = ask(rater, [shown], [[(QUESTIONS["v2_sa"], caption), (QUESTIONS["v2_pc"], "")]])
    sa, pc = (calibrated_rating(answer.digits).expected for answer in answers if answer.digits is not None)
    return sa, pc


def ask(
    rater: MplugOwlVideo, shown: Sequence[Tensor], asked: Sequence[Sequence[tuple[Question, str]]]
) -> list[list[Answer]]:
    """The rater's answers to each video's questions, in their order.

    All videos are asked one question, then all the next: the rater sees as many at a time as there are videos, also of
    a question that is asked several times of one.

    Args:
        rater: The rater.
        shown: The videos, as `read_frames` gives them.
        asked: Of each, questions and the texts that go in.
    """
    seen = rater.encode_videos(torch.stack(list(shown)))
    answers: list[list[Answer]] = [[Answer()] * len(some) for some in asked]
    for question in dict.fromkeys(question for some in asked for question, _ in some):
        about = [
            (number, place, text)
            for number, some in enumerate(asked)
            for place, (which, text) in enumerate(some)
            if which == question
        ]
        for first in range(0, len(about), len(asked)):
            part = about[first : first + len(asked)]
            videos = seen[[number for number, _, _ in part]]
            prompts = [question.segments(text) for _, _, text in part]
            if question.answer == "yes":
                yes = rater.yes_probability(videos, prompts, max_tokens=question.max_tokens).tolist()
                given = [Answer(yes=value) for value in yes]
            else:
                rating = rater.rate(videos, prompts)
                digits = rating.digit_logits.numpy()
                given = [Answer(text=text, digits=row) for text, row in zip(rating.texts, digits, strict=True)]
            for (number, place, _), answer in zip(part, given, strict=True):
                answers[number][place] = answer
    return answers
