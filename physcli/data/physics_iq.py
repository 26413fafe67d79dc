"""Physics-IQ's files: the real videos as they are downloaded, and a folder of generated ones with the official names.

    ROOT/split-videos/testing-videos/30FPS/0001_testing-videos_30FPS_perspective-left_take-1_trimmed-NAME.mp4
    ROOT/split-videos/conditioning-videos/30FPS/0001_conditioning-videos_30FPS_…         what comes before
    ROOT/switch-frames/0001_switch-frames_anyFPS_perspective-left_trimmed-NAME.jpg       the last frame of that, or .png
    ROOT/descriptions.csv                                                                prompts, categories
    GENERATED/0001_perspective-left_trimmed-NAME.mp4, or 0001_ANYTHING.mp4

ROOT may also be a folder of testing videos itself. The number in a name is what counts: of take 1, of a view.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from physcli.data.tables import read_csv
from physcli.data.video import count_frames, frame_rate
from physcli.errors import DataError

_TESTING = re.compile(
    r"(?P<number>\d{4})_testing-videos_(?P<rate>\d+)FPS_(?P<view>[^_]+)_take-(?P<take>[12])_(?P<scenario>[^_]+\.mp4)"
)
_GENERATED = re.compile(r"(?P<number>\d{4})_.*\.mp4", re.IGNORECASE)
_OFFICIAL = re.compile(r"\d{4}_(?P<view>perspective-[^_]+)_(?P<scenario>[^_]+\.mp4)")
_RATE_FOLDER = re.compile(r"(\d+)FPS")
_TESTING_FOLDERS = ("split-videos/testing-videos", "split-videos/testing", "testing-videos")
_DESCRIPTIONS = ("descriptions.csv", "../descriptions.csv", "descriptions/descriptions.csv")
_LAYOUT = (
    "the folder physics-iq-benchmark as it is downloaded, with split-videos/testing-videos/30FPS/0001_testing-videos_"
    "30FPS_perspective-left_take-1_NAME.mp4 and so on, or that last folder itself"
)
_TOLERANCE_S = 0.001  # of a generated video's length, as in the released code
_NAMED = 3  # files or scenarios that a message names


@dataclass(frozen=True)
class RealView:
    """A scenario from one side: both takes, and what shows the moment before they begin.

    Attributes:
        number: Of take 1, four digits: what a generated video's name begins with.
        scenario: Its name, with `.mp4`.
        view: As `perspective-left`.
        takes: The files of take 1 and take 2.
        switch_frame: A picture, the last conditioning frame.
        conditioning: The video that ends with it, where there is no such picture.
        category: As the descriptions have it; "" where they are not there.
    """

    number: str
    scenario: str
    view: str
    takes: tuple[Path, Path]
    switch_frame: Path | None = None
    conditioning: Path | None = None
    category: str = ""

    @property
    def name(self) -> str:
        """Of the generated video."""
        return generated_name(self.number, self.view, self.scenario)


@dataclass(frozen=True)
class RealSet:
    """The real videos at one frame rate, in the order of their numbers."""

    rate_hz: int
    views: tuple[RealView, ...]

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(view.scenario for view in self.views))


def testing_path(number: str, rate_hz: int, view: str, take: int, scenario: str) -> Path:
    """Where a real video lies in ROOT."""
    name = f"{number}_testing-videos_{rate_hz}FPS_{view}_take-{take}_{scenario}"
    return Path(_TESTING_FOLDERS[0]) / f"{rate_hz}FPS" / name


def switch_frame_path(number: str, view: str, scenario: str, suffix: str = ".jpg") -> Path:
    """Where the last conditioning frame lies in ROOT."""
    return Path("switch-frames") / f"{number}_switch-frames_anyFPS_{view}_{Path(scenario).stem}{suffix}"


def generated_name(number: str, view: str, scenario: str) -> str:
    """What a generated video is called."""
    return f"{number}_{view}_{scenario}"


def read_real(root: Path, rate_hz: int, *, views: Sequence[str], source_rate_hz: int) -> RealSet:
    """The real videos for generated ones at a frame rate.

    Args:
        root: See the head of this file.
        rate_hz: Of the generated videos. Where no real ones have it, those at `source_rate_hz` are taken.
        views: All that each scenario has to have.
        source_rate_hz: From which other rates are made.

    Raises:
        DataError: there is no such folder or no such videos; a scenario lacks a take or a view.
    """
    if not root.is_dir():
        raise DataError(f"--data {root} is {'a file' if root.exists() else 'not there'}.", expected=_LAYOUT)
    by_rate = _testing_folders(root)
    if not by_rate:
        raise DataError(f"{root} holds no testing videos of Physics-IQ.", expected=_LAYOUT, fix="download the videos")
    rate = rate_hz if rate_hz in by_rate else source_rate_hz
    if rate not in by_rate:
        has = ", ".join(f"{known}" for known in sorted(by_rate))
        raise DataError(
            f"{root} has real videos at {has} frames a second; the generated ones have {rate_hz}.",
            expected=f"{rate_hz} or {source_rate_hz} frames a second, from which all other rates are blended",
            fix=f"download the folder {source_rate_hz}FPS",
        )
    found: dict[tuple[str, str], dict[str, tuple[str, Path]]] = {}
    for path in sorted(by_rate[rate].iterdir()):
        match = _TESTING.fullmatch(path.name)
        if match is not None and int(match["rate"]) == rate:
            takes = found.setdefault((match["scenario"], match["view"]), {})
            if match["take"] in takes:
                raise DataError(f"{path.name} and {takes[match['take']][1].name} are the same take.", fix="remove one")
            takes[match["take"]] = (match["number"], path)
    problems = [f"{s}, {v}: take {take}" for (s, v), t in found.items() for take in ("1", "2") if take not in t]
    problems += [f"{s}: {v}" for s in dict.fromkeys(s for s, _ in found) for v in views if (s, v) not in found]
    if problems:
        raise DataError(
            f"{by_rate[rate]} is incomplete: {listed(problems)} missing.",
            expected=f"both takes of all of {', '.join(views)}, for each scenario",
            fix="download the missing files, or move the scenario's others elsewhere",
        )
    categories = _categories(root)
    made = []
    for (scenario, view), takes in found.items():
        (number, one), (_, other) = takes["1"], takes["2"]
        switch = [root / switch_frame_path(number, view, scenario, suffix) for suffix in (".jpg", ".png")]
        picture = next((path for path in switch if path.is_file()), None)
        conditioning = None if picture is not None else _conditioning(root, number, rate)
        made.append(RealView(number, scenario, view, (one, other), picture, conditioning, categories.get(number, "")))
    return RealSet(rate, tuple(sorted(made, key=lambda view: view.number)))


def _testing_folders(root: Path) -> dict[int, Path]:
    """Frame rate → folder of the real videos."""
    found: dict[int, Path] = {}
    for within in _TESTING_FOLDERS:
        for folder in sorted((root / within).iterdir()) if (root / within).is_dir() else ():
            match = _RATE_FOLDER.fullmatch(folder.name)
            if match is not None and folder.is_dir():
                found.setdefault(int(match[1]), folder)
    if not found:
        rates = {int(match["rate"]) for path in root.iterdir() if (match := _TESTING.fullmatch(path.name))}
        found = dict.fromkeys(sorted(rates), root)
    return found


def _conditioning(root: Path, number: str, rate: int) -> Path | None:
    folder = root / "split-videos" / "conditioning-videos" / f"{rate}FPS"
    return next(iter(sorted(folder.glob(f"{number}_*_take-1_*.mp4"))), None) if folder.is_dir() else None


def _categories(root: Path) -> dict[str, str]:
    """Number → category, as `descriptions.csv` has it."""
    for name in _DESCRIPTIONS:
        if (root / name).is_file():
            rows = [row for _, row in read_csv(root / name)]
            return {str(row.get("scenario") or "")[:4]: str(row.get("category") or "") for row in rows}
    return {}


def find_generated(folder: Path) -> dict[str, Path]:
    """Number → generated video.

    Raises:
        DataError: there is no such folder or no such video, or a number twice.
    """
    if not folder.is_dir():
        raise DataError(
            f"--videos {folder} is {'a file' if folder.exists() else 'not there'}.",
            expected="a folder of videos 0001_….mp4, or a table .csv that Physics-IQ's code wrote",
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _GENERATED.fullmatch(path.name)
        if match is None:
            continue
        number = match["number"]
        if number in found:
            raise DataError(f"{path} and {found[number].name} have one number.", expected="one video a number")
        found[number] = path
    if not found:
        raise DataError(
            f"{folder} holds no generated video of Physics-IQ.",
            expected="files such as 0001_perspective-left_trimmed-ball-and-block-fall.mp4; four digits, _ and .mp4 are "
            "enough",
        )
    return found


def check_names(videos: Mapping[str, Path], real: Iterable[RealView]) -> None:
    """Raises DataError for a number that is no take 1, and for a name that is that of another view."""
    known = {view.number: view for view in real}
    for number, path in videos.items():
        if number not in known:
            raise DataError(
                f"{path} begins with {number}, which is no take 1 of the real videos.",
                expected=f"one of {listed(sorted(known))}",
                fix="name it as the column generated_video_name of descriptions.csv has it",
            )
        if _OFFICIAL.fullmatch(path.name) is not None and path.name != known[number].name:
            raise DataError(
                f"{path} is called after another scenario or view than its number.",
                expected=known[number].name,
                fix="give it the right number, or the right name",
            )


def common_rate(videos: Mapping[str, Path]) -> int:
    """The frame rate of generated videos.

    Raises:
        DataError: they have several, or one that is no whole number.
    """
    rates: dict[float, Path] = {}
    for path in videos.values():
        rates.setdefault(round(frame_rate(path), 3), path)
    if len(rates) > 1:
        said = ", ".join(f"{rate:g} ({path.name})" for rate, path in sorted(rates.items())[:_NAMED])
        raise DataError(
            f"{next(iter(videos.values())).parent} has videos at {said} frames a second.",
            expected="one rate in the folder",
            fix="encode them again at one, `ffmpeg -i IN -r 24 OUT`",
        )
    rate, path = next(iter(rates.items()))
    if rate < 1 or rate != round(rate):
        raise DataError(
            f"{path} has {rate:g} frames a second.",
            expected="a whole number: real videos are blended to the same rate, and 8, 16, 24 and 30 are official",
            fix=f"encode it again, `ffmpeg -i IN -r {max(1, round(rate))} OUT`",
        )
    return round(rate)


def check_lengths(videos: Mapping[str, Path], rate_hz: int, duration_s: float) -> int:
    """The number of frames that are compared.

    Raises:
        DataError: a generated video is longer or shorter than `duration_s`.
    """
    wanted = round(duration_s * rate_hz)
    lengths = {path: count_frames(path) for path in videos.values()}
    wrong = [path for path, count in lengths.items() if abs(count / rate_hz - duration_s) > _TOLERANCE_S]
    if wrong:
        path = wrong[0]
        seconds = lengths[path] / rate_hz
        if seconds > duration_s:
            fix = f"keep what comes right after the last conditioning frame, `ffmpeg -i IN -t {duration_s:g} OUT`"
        else:
            fix = f"generate {wanted} frames"
        others = f" So are {len(wrong) - 1} others." if len(wrong) > 1 else ""
        raise DataError(
            f"{path} has {lengths[path]} frames at {rate_hz} a second, {seconds:.3f} s.{others}",
            expected=f"{duration_s:.3f} s, {wanted} frames (the last conditioning frame is not among them)",
            fix=fix + f"; --duration {seconds:g} compares so much of the real videos, which is not the official score",
        )
    return wanted


def listed(names: Sequence[str]) -> str:
    """A few of them, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
