"""Scenes: a few clips of the same thing, possible ones and ones that break a law. Two layouts.

- *simulated*: what `physcli data simulate --impossible …` writes. A scene is a test clip with its twins; both clips of
  a pair are of one place, so that scenes of a pair are one cluster.
- *LikePhys* (the benchmark of arXiv 2510.11512 as its code reads it): `SCENARIO/SCENE/KIND_NN.mp4`, where KIND is
  `valid` or the name of a violation (`over_bounce_00.mp4`), and a scene holds all clips to be compared. The folder may
  be a scenario itself. A `prompt.txt` in a scene or scenario says the text; without one it is the scenario's name in
  words. The released code has a prompt of its own for each of its scenarios, which are not in its data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from physcli.data.clips import Clip, Problem, read_dataset, read_impossible
from physcli.data.video import VIDEO_SUFFIXES
from physcli.errors import DataError
from physcli.files import files_below

VALID = "valid"
PROMPT_FILE = "prompt.txt"
LIKEPHYS_LAYOUT = "SCENARIO/SCENE/valid_00.mp4 beside SCENARIO/SCENE/VIOLATION_00.mp4"


@dataclass(frozen=True)
class Scene:
    """Clips of one scene.

    Attributes:
        scenario: What kind of scene it is.
        name: Tells it from the others of its scenario.
        cluster: What it shares with scenes that are not independent of it.
        prompt: The text that goes with all its clips.
        valid: Possible clips, at least one.
        invalid: Violation → clips that have it, at least one.
    """

    scenario: str
    name: str
    cluster: str
    prompt: str
    valid: tuple[Clip, ...]
    invalid: Mapping[str, tuple[Clip, ...]]

    @property
    def clips(self) -> tuple[Clip, ...]:
        return (*self.valid, *(clip for clips in self.invalid.values() for clip in clips))


@dataclass(frozen=True)
class SceneSet:
    """The scenes of a folder, in order of name; what was left out, and why; MuJoCo's release, of simulated ones."""

    kind: str
    scenes: tuple[Scene, ...]
    problems: tuple[Problem, ...] = ()
    mujoco: str | None = None


def read_scenes(folder: str | Path) -> SceneSet:
    """List the scenes of a folder; nothing is decoded.

    Raises:
        DataError: no folder, or none with a scene; a simulated set without twins, or one that is not as it was written.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is " + ("a file." if root.exists() else "not there."), expected="a folder of scenes")
    found = _simulated(root) if (root / "dataset.json").is_file() else _likephys(root)
    if not found.scenes:
        first = found.problems[0] if found.problems else None
        raise DataError(
            f"{root} holds no scene with both possible and impossible clips"
            + (f"; {len(found.problems)} problems, the first: {first.path}: {first.message}." if first else "."),
            expected=f"{LIKEPHYS_LAYOUT}, or a set from `physcli data simulate --impossible all`",
        )
    return found


def _simulated(root: Path) -> SceneSet:
    dataset = read_dataset(root)
    twins: dict[str, dict[str, tuple[Clip, ...]]] = {}
    for twin in read_impossible(root):
        if twin.split == "test":
            twins.setdefault(twin.record["twin_of"], {})[twin.record["violation"]["kind"]] = (twin,)
    scenes, problems = [], list(dataset.problems)
    for clip in dataset.clips:
        if clip.split != "test":
            continue
        scenario = clip.scenario or ""
        if clip.name not in twins:
            problems.append(Problem(clip.path, "it has no impossible twin"))
            continue
        cluster = f"{scenario}/{clip.pair or clip.name}"
        scenes.append(Scene(scenario, clip.name, cluster, clip.prompt, (clip,), twins[clip.name]))
    return SceneSet("simulated", tuple(scenes), tuple(problems), dataset.mujoco)


def _likephys(root: Path) -> SceneSet:
    files, unlisted = files_below(root)
    problems = [Problem(path, message) for path, message in unlisted]
    folders: dict[Path, list[Path]] = {}
    for path in sorted(files):
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
            folders.setdefault(path.parent, []).append(path)
    scenes = []
    for place, videos in folders.items():
        parts = place.relative_to(root).parts
        if not 1 <= len(parts) <= 2:
            problems.append(Problem(videos[0], f"it is not in a scene's folder; expected {LIKEPHYS_LAYOUT}"))
            continue
        scenario = parts[0] if len(parts) == 2 else root.resolve().name
        kinds: dict[str, list[Clip]] = {}
        for path in videos:
            kind, mark, number = path.stem.rpartition("_")
            if not mark or not kind or not number.isdigit():
                problems.append(Problem(path, f"its name is not KIND_NN; expected {LIKEPHYS_LAYOUT}"))
                continue
            kinds.setdefault(kind, []).append(Clip(path.stem, "test", path, "video", scenario=scenario))
        valid = tuple(kinds.pop(VALID, ()))
        if not valid or not kinds:
            problems.append(Problem(place, f"the scene has no {'impossible' if valid else 'valid'} clip"))
            continue
        name = parts[-1]
        prompt = _prompt(place, scenario)
        invalid = {kind: tuple(clips) for kind, clips in sorted(kinds.items())}
        scenes.append(Scene(scenario, name, f"{scenario}/{name}", prompt, valid, invalid))
    scenes.sort(key=lambda scene: (scene.scenario, scene.name))
    return SceneSet("likephys", tuple(scenes), tuple(problems))


def _prompt(scene: Path, scenario: str) -> str:
    for folder in (scene, scene.parent):
        if (folder / PROMPT_FILE).is_file():
            try:
                return " ".join((folder / PROMPT_FILE).read_text(encoding="utf-8").split())
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{folder / PROMPT_FILE} cannot be read: {error}.", expected="text in UTF-8") from error
    return scenario.replace("_", " ")


def with_prompt(scenes: SceneSet, prompt: str) -> SceneSet:
    """The same scenes, all with one text."""
    return replace(scenes, scenes=tuple(replace(scene, prompt=prompt) for scene in scenes.scenes))
