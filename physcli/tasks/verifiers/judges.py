"""Judges of single videos as verifiers: a rater, and the laws of the simulated world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from physcli.benchmarks.laws import LEAST_FRAMES, check_laws, grade
from physcli.data.flow import dis_flow
from physcli.errors import DataError
from physcli.models.raters import TINY_RATER
from physcli.models.raters.mplug_owl_video import load_rater, rater_fingerprint
from physcli.tasks.ask import rate
from physcli.tasks.verifiers.base import Candidate, Setting, Verifier


class Rated(Verifier):
    """The mean of the two ratings of VideoPhy-2, SA and PC."""

    def __init__(self, setting: Setting) -> None:
        name = setting.rater or TINY_RATER
        self.rater = load_rater(name, device=setting.device)
        self.identity, self.found = {"rater": name, "rater_hash": rater_fingerprint(name)}, {}

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([np.mean(rate(self.rater, one.frames, one.caption)) for one in candidates])


class Lawful(Verifier):
    """Joint first; of those that are alike in it, `physcli.benchmarks.laws.grade`."""

    def __init__(self, setting: Setting) -> None:
        self.identity, self.found = {}, {}

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([self._score(one) for one in candidates])

    def _score(self, one: Candidate) -> float:
        if len(one.frames) < LEAST_FRAMES or not one.frame_rate_hz > 0:
            raise DataError(
                f"{one.name} has {len(one.frames)} frames at {one.frame_rate_hz:g} a second.",
                expected=f"at least {LEAST_FRAMES}, and a known rate, for the verifier laws",
                fix="choose with another --verifier",
            )
        found = check_laws(one.frames, one.frame_rate_hz, one.prompt, flow=dis_flow, chroma_step=one.chroma_step)
        return float(found.scores["joint"] or 0) + grade(found.scores)
