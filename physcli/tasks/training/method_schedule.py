"""A method's weight over the steps of a run, and when the method ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from physcli.methods.settings import WeightSchedule
from physcli.progress import Reporter
from physcli.tasks.training.optimization import way_down

GRADIENT_COSINE = "gradient_cosine"  # its name in steps.jsonl


class MethodSchedule:
    """The factor of a method's weight: a function of the step, until what was measured ends the method for good.

    What is measured are means over all processes, once an optimizer step, so that all end it at the same step; and it
    is in the checkpoint, so that a resumed run goes on as it would have.

    Args:
        settings: The recipe's.
        steps: Of the whole run.
        loss: Name of the method's unweighted loss in what is logged.
        reporter: Told when the method ends.

    Attributes:
        ended: The first step without the method, once something measured has ended it.
        average: Moving average of the method's loss, where that is looked at.
    """

    def __init__(self, settings: WeightSchedule, *, steps: int, loss: str, reporter: Reporter) -> None:
        self.settings, self.steps, self._loss, self.reporter = settings, steps, loss, reporter
        self.ended: int | None = None
        self.average: float | None = None

    @property
    def measures(self) -> bool:
        """Whether anything but the step may end the method."""
        settings = self.settings
        return any(stop is not None for stop in (settings.stop_loss, settings.stop_cosine, settings.stop_score))

    def is_on(self, step: int) -> bool:
        """Whether the method runs in this step."""
        stop = self.settings.stop_step
        return self.ended is None and (stop is None or step < stop)

    def factor(self, step: int) -> float:
        """Of the weight in a step; 0 where the method is off."""
        settings = self.settings
        if not self.is_on(step):
            return 0.0
        if step < settings.warmup_steps:
            return step / settings.warmup_steps
        if settings.name == "constant":
            return 1.0
        decay_steps = settings.decay_steps or max(1, self.steps - settings.warmup_steps)
        power = settings.power if settings.name == "polynomial" else 1.0
        left = way_down(settings.name, min(1.0, (step - settings.warmup_steps) / decay_steps), power)
        return settings.final + (1 - settings.final) * left

    def observe(self, logs: Mapping[str, float], step: int) -> None:
        """Look at what was logged of a step; the next may be the first without the method."""
        settings = self.settings
        if not self.measures or not self.is_on(step) or self._loss not in logs:
            return
        loss, cosine = logs[self._loss], logs.get(GRADIENT_COSINE)
        kept = 0.0 if self.average is None else settings.average_decay
        self.average = kept * (self.average or 0.0) + (1 - kept) * loss
        if settings.stop_loss is not None and self.average <= settings.stop_loss:
            self._end(
                step + 1, f"the moving average of its loss, {self.average:.4g}, is at most {settings.stop_loss:.4g}"
            )
        elif settings.stop_cosine is not None and cosine is not None and cosine < settings.stop_cosine:
            self._end(step + 1, f"the cosine of the gradients, {cosine:.3g}, is below {settings.stop_cosine:.3g}")

    def observe_score(self, score: float, step: int) -> None:
        """Look at what a judge said after `step` steps; the next may be the first without the method."""
        stop = self.settings.stop_score
        if stop is not None and self.is_on(step) and score >= stop:
            self._end(step, f"the judge's score, {score:.4g}, is at least {stop:.4g}")

    def _end(self, step: int, why: str) -> None:
        """`step` steps are done."""
        self.ended = step
        self.reporter.note(f"The method ends after step {step}: {why}.")

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self.ended, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ended, self.average = state["ended"], state["average"]
