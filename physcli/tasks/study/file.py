"""What a study asks: its file, checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from physcli.benchmarks import BENCHMARKS, find_benchmark
from physcli.benchmarks.dynamic_degree import DYNAMIC_DEGREE, LARGEST_MOTION
from physcli.errors import RecipeError, UsageError, unknown
from physcli.guidance import GUIDANCES, NONE, guidance_class
from physcli.packaged import recipe_folders
from physcli.recipe import load_yaml
from physcli.recipe.explain import explain, fields_of, tell
from physcli.recipe.files import STUDIES
from physcli.sections import Section, completed

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


class Videos(Section):
    """The videos of every arm, from the same noise. `prompts`: as `physcli sample --prompts` takes them, or a list that
    lies beside the study's file; `limit`: at most so many of them, with `num_samples` videos each, in `steps` denoising
    steps, `batch_size` at a time."""

    prompts: str = "simulated"
    limit: PositiveInt | None = None
    num_samples: PositiveInt = 1
    steps: PositiveInt = 25
    batch_size: PositiveInt = 8
    seed: NonNegativeInt = 0


class Probe(Section):
    """The readout of contact from every arm's features, as `physcli probe physion` takes it. `limit`: clips of each
    split; `block`: counted from 0, none given: round(0.6·n)−1; `sigma`: of the noise."""

    data: str = "simulated"
    limit: PositiveInt | None = None
    block: NonNegativeInt | None = None
    sigma: Annotated[float, Field(gt=0, lt=1)] = 0.3


class Arm(Section):
    """One of the things compared. `recipe`: what trains it, with `changes` (key=value) of its own after the study's;
    none given: it is not trained. `seeds`: of its trainings, each a run. `like`: another arm, whose trained models are
    taken. `model`: what it begins from, in place of the study's. `guidance`, `options`, `guidance_scale`: how its
    videos are made, options by their names on the command line of `physcli sample`. `static`: its videos are the first
    frames of those of `like`, held."""

    recipe: str | None = None
    changes: tuple[str, ...] = ()
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    like: str | None = None
    model: str | None = None
    guidance: str = NONE
    options: dict[str, Any] = Field({})
    guidance_scale: NonNegativeFloat | None = None
    static: bool = False

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.like is not None and (self.recipe, self.model, self.changes) != (None, None, ()):
            raise ValueError("like, and what it would be trained by or from: one of them")
        if self.recipe is None and (self.changes or self.seeds != (0,)):
            raise ValueError("changes and seeds are for an arm with a recipe")
        if self.static and (self.like is None or self.guidance != NONE or self.options):
            raise ValueError("static is for an arm that is like another one, without a guidance")
        if self.static and self.guidance_scale is not None:
            raise ValueError("static and guidance_scale: one of them")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice in seeds: it is one training")
        if self.guidance not in (NONE, *GUIDANCES):
            raise ValueError(f"guidance is {self.guidance!r}: one of {', '.join((NONE, *GUIDANCES))}")
        if self.guidance == NONE and self.options:
            raise ValueError(f"options without a guidance: {', '.join(self.options)}")
        if self.guidance != NONE:
            try:
                guidance_class(self.guidance).settings(self.options)
            except UsageError as error:
                raise ValueError(f"options: {error.received}") from error
        return self


class Study(Section):
    """`model`: what every arm begins from. `data`, `steps`, `changes`: for every training, in place of the recipes'
    own. `control`: the arm that all others are compared with. `judges`: benchmarks of `physcli eval`. `metrics`: those
    of the judges that are compared, none given: all; fewer questions cost less correction."""

    description: str = ""
    model: str
    data: str | None = None
    steps: PositiveInt | None = None
    changes: tuple[str, ...] = ()
    control: str
    arms: Annotated[dict[str, Arm], Field(min_length=2)]
    videos: Videos = Videos()
    judges: Annotated[tuple[str, ...], Field(min_length=1)] = ("laws",)
    metrics: tuple[str, ...] = ()
    probe: Probe | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_there(self) -> Self:
        for name, arm in self.arms.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"an arm is called {name!r}: letters, digits and . _ + - make a name")
            if arm.like is not None and (arm.like not in self.arms or self.arms[arm.like].like is not None):
                raise ValueError(f"{name} is like {arm.like}, which is no arm that stands for itself")
        if self.control not in self.arms:
            raise ValueError(f"control is {self.control!r}, and the arms are {', '.join(self.arms)}")
        for judge in self.judges:
            if judge not in BENCHMARKS:
                raise ValueError(f"judges has {judge!r}: one of {', '.join(BENCHMARKS)}")
        known = [metric.name for judge in self.judges for metric in find_benchmark(judge).metrics]
        known += [metric.name for metric in (DYNAMIC_DEGREE, LARGEST_MOTION)]
        for metric in self.metrics:
            if metric not in known:
                raise ValueError(f"metrics has {metric!r}: one of {', '.join(dict.fromkeys(known))}")
        return self

    def seeds(self, name: str) -> tuple[int, ...]:
        """Of an arm's trainings."""
        arm = self.arms[name]
        return self.arms[arm.like].seeds if arm.like is not None else arm.seeds

    def asked(self, name: str, seed: int) -> dict[str, Any]:
        """What the file says that bears on an arm's numbers."""
        arm = self.arms[name]
        whole = self.model_dump(mode="json", include={"model", "data", "steps", "changes", "videos", "judges", "probe"})
        made = self.arms[arm.like] if arm.like is not None else arm
        of = {"made": made, "sampled": arm} if arm.like is not None else {"made": made}
        # Sets are the same in any order, and so are batches.
        whole["judges"], whole["videos"] = sorted(whole["judges"]), {**whole["videos"], "batch_size": None}
        arms = {part: one.model_dump(mode="json", exclude={"seeds"}) for part, one in of.items()}
        return _without_training({**whole, "arm": arms, "seed": seed})

    def completed(self, then: Mapping[str, Any]) -> dict[str, Any]:
        """What an earlier version's `asked` was, with the fields that there were none of yet."""
        found = {**then, "videos": completed(then["videos"], self.videos)}
        if self.probe is not None and then["probe"] is not None:
            found["probe"] = completed(then["probe"], self.probe)
        defaults = Arm(options={}).model_dump(mode="json", exclude={"seeds"})
        return _without_training(found | {"arm": {part: defaults | one for part, one in then["arm"].items()}})


def _without_training(asked: dict[str, Any]) -> dict[str, Any]:
    """Of an arm that is not trained: how others are bears on nothing."""
    return asked if asked["arm"]["made"]["recipe"] else asked | {"data": None, "steps": None, "changes": []}


def list_studies() -> dict[str, Path]:
    """Name → file of every packaged study."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted((folder / STUDIES).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_study(name_or_path: str) -> Path:
    """The file of a packaged study's name, or the given file.

    Raises:
        UsageError: neither.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    studies = list_studies()
    if name_or_path not in studies:
        raise unknown("study", name_or_path, [*studies, "a .yaml file"])
    return studies[name_or_path]


def read_study(path: Path) -> Study:
    """A study's file.

    Raises:
        RecipeError: unreadable, or a field that is missing, unknown or of the wrong type.
    """
    try:
        return Study.model_validate_json(json.dumps(load_yaml(path)), strict=True)
    except ValidationError as error:
        problems = [explain(problem, Study) for problem in error.errors()]
        raise RecipeError(f"{path}: {tell(problems)}", expected=fields_of(Study, problems[0].place)) from error
