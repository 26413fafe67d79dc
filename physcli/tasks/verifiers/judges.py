"""Judges of single videos as verifiers: a rater, and the laws of the simulated world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from physcli.benchmarks.laws import check_laws, grade
from physcli.data.flow import dis_flow
from physcli.models.raters import TINY_RATER
from physcli.models.raters.mplug_owl_video import load_rater, rater_fingerprint
from physcli.tasks.ask import rate
from physcli.tasks.verifiers.base import Candidate, Need, Verifier


class Rated(Verifier):
    """The mean of the two ratings of VideoPhy-2, SA and PC."""

    reads = "rater"

    def __init__(self, need: Need) -> None:
        name = need.rater or TINY_RATER
        self.rater = load_rater(name, device=need.device)
        self.facts = {"rater": name, "rater_hash": rater_fingerprint(name)}

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([np.mean(rate(self.rater, one.frames, one.caption)) for one in candidates])


class Lawful(Verifier):
    """Joint first; of those that are alike in it, `physcli.benchmarks.laws.grade`."""

    sees_laws = True

    def __init__(self, need: Need) -> None:
        self.facts = {}

    def scores(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([self._score(one) for one in candidates])

    def _score(self, one: Candidate) -> float:
        found = check_laws(one.frames, one.frame_rate_hz, one.prompt, flow=dis_flow, chroma_step=one.chroma_step)
        return float(found.scores["joint"] or 0) + grade(found.scores)
