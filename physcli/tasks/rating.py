"""What a rater is shown and asked of videos: VideoPhy's and VideoPhy-2's questions, and the scores that follow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from physcli.benchmarks import videophy
from physcli.data.video import read_scaled, video_info
from physcli.data.video_sets import VideoItem
from physcli.errors import ModelError
from physcli.models.raters import HUB_RATERS, TINY_RATER
from physcli.models.raters.mplug_owl_video import MplugOwlVideo, rater_fingerprint

_OFFICIAL = dict(zip(("videophy", "videophy2"), HUB_RATERS, strict=True))
_RATER_SIZE = "about 15 GB"


def find_rater(benchmark: str, name: str | None, *, simulated: bool) -> tuple[str, str]:
    """A rater's name and a hash of its files.

    Args:
        benchmark: videophy or videophy2.
        name: As `load_rater` takes it; None for the tiny one where all videos are `simulated`, else the official one.
        simulated: Whether all videos are of the simulated world.

    Raises:
        ModelError: it is not there.
    """
    chosen = name or (TINY_RATER if simulated else _OFFICIAL[benchmark])
    try:
        return chosen, rater_fingerprint(chosen)
    except ModelError as error:
        if name is not None or simulated:
            raise
        raise ModelError(
            f"{error.received.rstrip('.')}: the rater of {benchmark} is not here.",
            expected=f"{chosen}, {_RATER_SIZE}",
            fix=f"where there is a network, `hf download {chosen}`; or --rater with its folder; videos of the "
            "simulated world are scored without it by `physcli eval laws`",
        ) from error


def read_frames(path: str | os.PathLike[str], rater: MplugOwlVideo) -> Tensor:
    """What a rater sees of a video file: its frames, scaled and normalised.

    The file is decoded twice: which frames are shown hangs on how many there are, and containers misreport that.

    Returns:
        float32 [3, T, H, W], on the CPU.

    Raises:
        DataError: the file cannot be decoded.
    """
    indices = rater.frame_indices(video_info(path).num_frames)
    size = rater.config.vision.image_size
    return rater.prepare(read_scaled(path, indices, size, size))


def questions(benchmark: str, item: VideoItem) -> list[tuple[str, str]]:
    """What is asked of a video: question and the text in it."""
    if benchmark == "videophy":
        return [("v1_sa", item.caption), ("v1_pc", "")]
    sa = [("v2_sa", item.caption)] if item.caption else []
    return [*sa, ("v2_pc", ""), *(("v2_rule", rule) for rule in item.rules)]


def rate_videophy(
    rater: MplugOwlVideo, seen: Tensor, items: Sequence[VideoItem], *, threshold: float
) -> list[dict[str, Any]]:
    """The fields of each video in items.jsonl: P(Yes) of both questions, and which are `threshold` or more.

    Args:
        rater: The rater.
        seen: The videos as `encode_videos` gives them.
        items: What they are.
        threshold: Of P(Yes).
    """
    sa, pc = (
        rater.yes_probability(
            seen,
            [videophy.QUESTIONS[question].segments(item.caption) for item in items],
            max_tokens=videophy.MAX_TOKENS["videophy"],
        ).tolist()
        for question in ("v1_sa", "v1_pc")
    )
    results = [videophy.score_videophy(*one, threshold=threshold) for one in zip(sa, pc, strict=True)]
    return [{**result.passed, "sa_mean": result.sa, "pc_mean": result.pc} for result in results]


def rate_videophy2(rater: MplugOwlVideo, seen: Tensor, items: Sequence[VideoItem]) -> list[dict[str, Any]]:
    """The same for VideoPhy-2. SA is asked where there is a caption, PC always, and each rule there is."""

    def ask(question: str) -> Iterator[tuple[int, str, np.ndarray]]:
        """Number of the video, answer and digits' logits, as often as it is asked."""
        asked = videophy.QUESTIONS[question]
        about = [
            (number, text)
            for number, item in enumerate(items)
            for which, text in questions("videophy2", item)
            if which == question
        ]
        for first in range(0, len(about), len(items)):
            some = about[first : first + len(items)]
            numbers = [number for number, _ in some]
            rating = rater.rate(seen[numbers], [asked.segments(text) for _, text in some])
            yield from zip(numbers, rating.texts, rating.digit_logits.numpy(), strict=True)

    sa, pc = ({number: (answer, digits) for number, answer, digits in ask(question)} for question in ("v2_sa", "v2_pc"))
    rules = list(ask("v2_rule"))
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        sa_answer, sa_digits = sa.get(number, (None, None))
        pc_answer, pc_digits = pc[number]
        told = [answer for whose, answer, _ in rules if whose == number]
        result = videophy.score_videophy2(
            sa_answer, pc_answer, sa_digits=sa_digits, pc_digits=pc_digits, rule_answers=told
        )
        rows.append(
            {
                **result.passed,
                **{"sa_mean": result.sa, "pc_mean": result.pc},
                **{"sa_expected": result.sa_expected, "pc_expected": result.pc_expected},
                **{"sa_answer": sa_answer, "pc_answer": pc_answer},
            }
        )
        if item.rules:
            judged = zip(item.rules, told, result.rules, strict=True)
            rows[-1] |= {
                **result.rule_shares,
                "judged": [{"rule": rule, "answer": answer, "judgement": value} for rule, answer, value in judged],
            }
    return rows
