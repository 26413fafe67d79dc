"""Folders of clips: which layout it is, what is in it, what is wrong with it.

Four layouts are recognised, in this order:

- *simulated* (`dataset.json` with `"format": "physcli-simulated"`): what `physcli data simulate` writes, one row a clip
  in `metadata.jsonl`, videos in `physion_mp4s/{train,test}/`, arrays in `arrays/{train,test}/`;
- *physion-v1.5*: `physion_mp4s/{train,test}/*.mp4` with an `all_video_labels.json` inside each of the two;
- *physion-v1*: `*.hdf5` files, one a clip, at any depth;
- *video*: anything else that holds videos, captions as in `physcli.data.captions`.

Listing decodes nothing, so thousands of clips take seconds; `check` decodes everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from physcli.data.captions import read_captions
from physcli.data.tables import read_jsonl
from physcli.data.video import VIDEO_SUFFIXES, VideoInfo, count_frames, heeded, read_video, video_info
from physcli.errors import DataError, MissingExtra
from physcli.files import files_below, read_json
from physcli.progress import Reporter

# Words in a file's stem → row name. "collision" counts only where "roll" is absent: Physion has rolling stimuli
# called `…rollingSliding_simple_collision…`.
KEYWORDS = {
    "collision": "collide",
    "contain": "contain",
    "dominoes": "dominoes",
    "drop": "drop",
    "link": "link",
    "roll": "roll",
    "towers": "support",
}
# Of what `physcli data simulate` writes, and part of the key of cached suites: a change to the files, or to the clips
# that the same settings give, raises it. MuJoCo's release stands beside it (`installed_mujoco`): with another one the
# same settings give other clips, and every reader reads them all the same.
SIMULATED_VERSION = 2
NOT_RECORDED = "not recorded"  # in place of MuJoCo's release, of sets that were made before it was written down
SPLITS = ("train", "test")
LABEL_FILE = "all_video_labels.json"
TWINS_LIST = "impossible.jsonl"  # of a simulated set
HDF5_SUFFIXES = frozenset({".hdf5", ".h5"})
HDF5_FRAME_RATE_HZ = 100.0  # one frame is 10 ms of simulation
LAYOUTS = (
    "a folder from `physcli data simulate`, a Physion v1.5 folder (physion_mp4s/{train,test}/ with "
    f"{LABEL_FILE} in each), Physion v1 *.hdf5 files, or any folder of videos"
)


class Problem(NamedTuple):
    """A file that cannot be used, and why. It is not among the dataset's clips."""

    path: Path
    message: str


@dataclass(frozen=True)
class Clip:
    """One clip and what is known of it without decoding.

    Attributes:
        name: The file's stem; unique only within a split.
        split: "train" or "test" (plain videos: "test").
        path: The video or HDF5 file.
        kind: "simulated", "physion-v1.5", "physion-v1" or "video".
        scenario: collide, contain, dominoes, drop, link, roll, support, or None.
        pair: Name shared by a positive and its negative twin, or None.
        label: 1 if agent and patient touch, 0 if not, None if unknown.
        contact_frame: First frame of contact; None for negatives.
        center_frame: The frame a contact-detection (OCD) window is laid around: the contact frame; for a negative
            its twin's contact frame, in real Physion the stand-in that the labels give.
        num_frames: Where the listing knows it; `count_frames` always does.
        prompt: The text that goes with it, "" if none.
        record: The clip's row of `metadata.jsonl`, {} if none.
        arrays: `.npz` with poses, segmentation and flow, or None.
    """

    name: str
    split: str
    path: Path
    kind: str
    scenario: str | None = None
    pair: str | None = None
    label: int | None = None
    contact_frame: int | None = None
    center_frame: int | None = None
    num_frames: int | None = None
    prompt: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    arrays: Path | None = None

    def read(self, indices: Sequence[int] | None = None) -> np.ndarray:
        """Decode the frames `indices` (all by default), in that order, repeats allowed.

        Returns:
            uint8 [T, H, W, 3] RGB.

        Raises:
            DataError: the file is missing or broken, or shorter than the largest index.
            MissingExtra: an HDF5 clip without h5py.
        """
        if self.path.suffix in HDF5_SUFFIXES:
            return _read_hdf5(self.path, indices)
        return read_video(self.path, indices)

    def heeded(self) -> str:
        """As `physcli.data.video.heeded`; "" of what is no video of others."""
        return heeded(self.path) if self.kind in ("video", "physion-v1.5") else ""

    def count_frames(self) -> int:
        """The number of frames: known, or as the file tells it, or else by decoding.

        Raises:
            DataError: the file cannot be opened or holds no frame.
        """
        if self.num_frames is not None:
            return self.num_frames
        return _hdf5_info(self.path).num_frames if self.path.suffix in HDF5_SUFFIXES else count_frames(self.path)


@dataclass(frozen=True)
class Dataset:
    """The clips of one folder (train before test, by name within) and the files that cannot be used.

    `has_splits`: False of plain videos that no folder, table or row says a split of; all are "test" then.
    """

    kind: str
    root: Path
    clips: tuple[Clip, ...]
    problems: tuple[Problem, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # dataset.json
    has_splits: bool = True

    @property
    def mujoco(self) -> str | None:
        """MuJoCo's release that simulated it, `NOT_RECORDED` of an older set; None if it is not simulated."""
        return str(self.settings.get("mujoco", NOT_RECORDED)) if self.kind == "simulated" else None


def installed_mujoco() -> str:
    """MuJoCo's release: the same seed gives the same clips with one release only."""
    return metadata.version("mujoco")


def scenarios_of(stem: str) -> tuple[str, ...]:
    """Row names of all Physion scenarios whose keyword is in a file's stem.

    A whole clip has exactly one. Unlike the official reader this never looks at folder names, where a `/dropbox/`
    would put every clip into one more scenario.
    """
    found = tuple(row for word, row in KEYWORDS.items() if word in stem)
    return tuple(row for row in found if row != "collide") if "roll" in found else found


def read_dataset(folder: str | Path) -> Dataset:
    """List a folder of clips without decoding them.

    Args:
        folder: The dataset, in one of the layouts of this module. For v1.5 `physion_mp4s` itself will do.

    Raises:
        DataError: no such folder, nothing in it, an unreadable label or metadata file, or not one usable clip.
        MissingExtra: HDF5 clips without h5py.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is {'a file' if root.exists() else 'not there'}.", expected=f"a folder: {LAYOUTS}")
    whole = Path(os.path.abspath(root))  # the name of "." is empty
    for base in (root, whole.parent) if whole.name == "physion_mp4s" else (root,):
        if (base / "dataset.json").is_file():
            settings = read_json(base / "dataset.json")
            if isinstance(settings, dict) and settings.get("format") == "physcli-simulated":
                return _whole(_read_simulated(base, settings))
    for base in (root / "physion_mp4s", root):
        if any((base / split / LABEL_FILE).is_file() for split in SPLITS) or (
            base.name == "physion_mp4s" and any((base / split).is_dir() for split in SPLITS)
        ):
            return _whole(_read_v15(root, base))
    files, unlisted = files_below(root)
    problems = tuple(Problem(path, message) for path, message in unlisted)
    hdf5 = [path for path in files if path.suffix in HDF5_SUFFIXES]
    if hdf5:
        return _whole(_read_v1(root, hdf5), problems)
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos:
        return _whole(_read_videos(root, videos, sorted(set(files) - set(videos))), problems)
    raise DataError(
        f"{root} holds no clip ({len(files)} files)"
        + (f"; {len(problems)} problems, the first: {problems[0].path}: {problems[0].message}." if problems else "."),
        expected=LAYOUTS,
        fix="check the path, or make a set with `physcli data simulate --out DIR --num-clips 280`",
    )


def read_impossible(folder: str | Path) -> list[Clip]:
    """The impossible twins in a simulated set, without decoding them; `record` has "violation" and "twin_of".

    Raises:
        DataError: none are there, or a row of impossible.jsonl or a video is not as it was written.
    """
    root, table = Path(folder), Path(folder) / TWINS_LIST
    if not table.is_file():
        raise DataError(
            f"{root} holds no impossible twins.",
            expected="a simulated set with an impossible.jsonl",
            fix="make one with `physcli data simulate --impossible all`",
        )
    clips = []
    for number, record in _read_jsonl(table):
        path = root / record["file_name"]
        try:
            row = _SimulatedRow.model_validate(record)
        except ValidationError as error:
            raise DataError(
                f"{table}, line {number}: {error.errors()[0]['msg']}.", fix="simulate the set again"
            ) from None
        if "violation" not in record or "twin_of" not in record or not path.is_file():
            raise DataError(
                f"{table}, line {number}: {record['file_name']}.",
                expected='a video that is there, with "violation" and "twin_of"',
                fix="simulate the set again",
            )
        clips.append(_simulated_clip(path, row, record, arrays=path.with_suffix(".npz")))
    return clips


def check(dataset: Dataset, reporter: Reporter | None = None) -> tuple[dict[Path, VideoInfo], list[Problem]]:
    """Decode every clip, several at a time.

    Returns:
        Facts of the clips that are whole, and the problems: those of the listing, then the clips that do not decode or
        have another length than is recorded.
    """
    infos: dict[Path, VideoInfo] = {}
    problems = list(dataset.problems)
    with (
        (reporter or Reporter()).bar("Decoding", len(dataset.clips), "clip") as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for clip, found in zip(dataset.clips, pool.map(_decode, dataset.clips), strict=True):
            if isinstance(found, DataError):
                problems.append(Problem(clip.path, found.received))
            elif clip.num_frames not in (None, found.num_frames):
                message = f"has {found.num_frames} frames where {clip.num_frames} are recorded"
                problems.append(Problem(clip.path, message))
            else:
                infos[clip.path] = found
            bar.advance()
    return infos, problems


def _decode(clip: Clip) -> VideoInfo | DataError:
    try:
        return _hdf5_info(clip.path) if clip.path.suffix in HDF5_SUFFIXES else video_info(clip.path)
    except DataError as error:
        return error


def _whole(dataset: Dataset, problems: tuple[Problem, ...] = ()) -> Dataset:
    dataset = replace(dataset, problems=problems + dataset.problems)
    if not dataset.clips:
        first = dataset.problems[0] if dataset.problems else None
        raise DataError(
            f"{dataset.root} ({dataset.kind}) has no usable clip"
            + (f"; {len(dataset.problems)} problems, the first: {first.path}: {first.message}" if first else "."),
            expected=LAYOUTS,
            fix=f"`physcli data inspect {dataset.root}` lists them all",
        )
    clips = sorted(dataset.clips, key=lambda clip: (clip.split != "train", clip.split, clip.name))
    return replace(dataset, clips=tuple(clips))


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in read_jsonl(path):
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{path}, line {number}: no file_name.", expected='a JSON object with a "file_name" string')
        yield number, row


def _one_scenario(stem: str) -> tuple[str | None, str]:
    """The scenario, or None and what is wrong with the name."""
    found = scenarios_of(stem)
    if len(found) == 1:
        return found[0], ""
    has = f"the keywords of {' and '.join(found)}" if found else "no scenario keyword"
    return None, f"its name has {has}; expected exactly one of {', '.join(KEYWORDS)}"


# --- simulated ---


class _SimulatedRow(BaseModel):
    """What is read of a row of metadata.jsonl; the rest of it is passed on as it is."""

    model_config = ConfigDict(strict=True)

    file_name: str
    split: Literal["train", "test"]
    scenario: str
    label: Literal[0, 1]
    context: list[NonNegativeInt] = Field(min_length=2, max_length=2)
    pair: str | None = None
    contact_frame: NonNegativeInt | None = None
    num_frames: PositiveInt | None = None
    prompt: str = ""


def _simulated_clip(
    path: Path, row: _SimulatedRow, record: Mapping[str, Any], *, arrays: Path | None, center_frame: int | None = None
) -> Clip:
    return Clip(
        name=path.stem,
        split=row.split,
        path=path,
        kind="simulated",
        scenario=row.scenario,
        pair=row.pair,
        label=row.label,
        contact_frame=row.contact_frame,
        center_frame=center_frame,
        num_frames=row.num_frames,
        prompt=row.prompt,
        record=record,
        arrays=arrays,
    )


def _read_simulated(root: Path, settings: Mapping[str, Any]) -> Dataset:
    if settings.get("version") != SIMULATED_VERSION:
        raise DataError(
            f"{root / 'dataset.json'} says version {settings.get('version')!r}.",
            expected=f"version {SIMULATED_VERSION}",
            fix="simulate the set again with this physcli (--overwrite)",
        )
    table = root / "metadata.jsonl"
    if not table.is_file():
        raise DataError(
            f"{root} has no metadata.jsonl.",
            expected="one row a clip",
            fix="the simulation was cut short; run it again",
        )
    videos = _videos_below(root / "physion_mp4s")
    rows: dict[Path, tuple[_SimulatedRow, dict[str, Any]]] = {}
    problems = []
    listed: set[Path] = set()
    for number, record in _read_jsonl(table):
        path = root / record["file_name"]
        message = ""
        try:
            row = _SimulatedRow.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            message = f"line {number} of metadata.jsonl, {field}: {first['msg']}, not {first['input']!r:.60}"
        else:
            if path in listed:
                message = f"line {number} of metadata.jsonl names it a second time"
            elif path not in videos:
                message = "in metadata.jsonl, but the video is not there"
            else:
                rows[path] = row, record
        if message:
            problems.append(Problem(path, message))
        listed.add(path)
    contacts = {(row.split, row.pair): row.contact_frame for row, _ in rows.values() if row.contact_frame is not None}
    clips = []
    for path, (row, record) in rows.items():
        arrays = root / "arrays" / row.split / f"{path.stem}.npz"
        clips.append(
            _simulated_clip(
                path,
                row,
                record,
                arrays=arrays if arrays.is_file() else None,
                # A negative's window is laid around its twin's contact.
                center_frame=row.contact_frame if row.pair is None else contacts.get((row.split, row.pair)),
            )
        )
    problems += [Problem(path, "no row in metadata.jsonl") for path in sorted(videos - listed)]
    return Dataset("simulated", root, tuple(clips), tuple(problems), settings)


def _videos_below(folder: Path) -> set[Path]:
    return {path for path in files_below(folder)[0] if path.suffix.lower() in VIDEO_SUFFIXES}


# --- Physion v1.5 ---


def _read_v15(root: Path, base: Path) -> Dataset:
    clips, problems = [], []
    for split in SPLITS:
        folder = base / split
        if not folder.is_dir():
            continue
        videos = {path.stem: path for path in sorted(folder.glob("*.mp4")) if not path.name.startswith(".")}
        if not (folder / LABEL_FILE).is_file():
            raise DataError(
                f"{folder} has {len(videos)} videos but no {LABEL_FILE}.",
                expected=f"{LABEL_FILE} inside each of train and test",
                fix="copy it from the Physion v1.5 archive",
            )
        labels = read_json(folder / LABEL_FILE)
        if not isinstance(labels, dict):
            raise DataError(
                f"{folder / LABEL_FILE} holds a {type(labels).__name__}.",
                expected='an object: stem → {"label", "contact_frame_label"}',
            )
        for stem in sorted(labels.keys() | videos.keys()):
            path = videos.get(stem, folder / f"{stem}.mp4")
            entry = labels.get(stem)
            scenario, message = _one_scenario(stem)
            if stem not in videos:
                message = f"labelled in {LABEL_FILE}, but the video is not there"
            elif entry is None:
                message = f"no label in {LABEL_FILE}"
            elif not isinstance(entry, dict) or entry.get("label") not in (0, 1):
                message = f"its entry in {LABEL_FILE} is {entry!r}; expected a label of 0 or 1"
            elif not isinstance(entry.get("contact_frame_label"), int | None):
                message = f"contact_frame_label is {entry['contact_frame_label']!r}; expected a frame number"
            if message:
                problems.append(Problem(path, message))
                continue
            assert entry is not None
            label, center = int(entry["label"]), entry.get("contact_frame_label")
            clips.append(
                Clip(
                    name=stem,
                    split=split,
                    path=path,
                    kind="physion-v1.5",
                    scenario=scenario,
                    label=label,
                    contact_frame=center if label else None,
                    center_frame=center,
                )
            )
    return Dataset("physion-v1.5", root, tuple(clips), tuple(problems))


# --- Physion v1: one HDF5 file a clip ---


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("Reading Physion HDF5 files", package="h5py", extra="hdf5") from error
    return h5py


@contextmanager
def _hdf5_frames(path: Path) -> Iterator[list[Any]]:
    """The groups frames/0000, frames/0001, … of an open file."""
    h5py = _h5py()
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened as HDF5: {error}.", expected="a whole file", fix="copy it again"
        ) from error
    with file:
        frames = file.get("frames")
        numbers = sorted(int(name) for name in frames if name.isdigit()) if frames is not None else []
        if not numbers:
            raise DataError(f"{path} has no frames.", expected="groups frames/0000, frames/0001, …")
        gaps = sorted(set(range(numbers[-1] + 1)) - set(numbers))
        if gaps:
            named = ", ".join(f"{number:04d}" for number in gaps[:5]) + (", …" if len(gaps) > 5 else "")
            raise DataError(
                f"{path} lacks {len(gaps)} of {numbers[-1] + 1} frames ({named}).",
                expected="frames numbered 0000, 0001, … without a gap",
                fix="copy or render the file again",
            )
        yield [frames[f"{number:04d}"] for number in numbers]


def _hdf5_image(path: Path, number: int, frame: Any) -> np.ndarray:
    """uint8 [H, W, 3] RGB; v1 calls the encoded image `_img`, v1.5 `_img_cam0`."""
    images = frame.get("images")
    name = next((name for name in ("_img", "_img_cam0") if images is not None and name in images), None)
    if images is None or name is None:
        raise DataError(
            f"{path}, frame {number:04d}: no image.", expected="images/_img (v1) or images/_img_cam0 (v1.5)"
        )
    image = cv2.imdecode(np.asarray(images[name], dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}, frame {number:04d}: the image cannot be decoded.", expected="PNG or JPEG bytes")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _read_hdf5(path: Path, indices: Sequence[int] | None) -> np.ndarray:
    with _hdf5_frames(path) as frames:
        wanted = range(len(frames)) if indices is None else indices
        if not wanted or min(wanted) < 0:
            raise ValueError(f"frame indices must be non-negative and not empty, got {indices!r}")
        if max(wanted) >= len(frames):
            raise DataError(
                f"{path} has {len(frames)} frames, but frame {max(wanted)} (counted from 0) was asked for.",
                expected=f"a clip of at least {max(wanted) + 1} frames",
                fix="use a longer clip, or ask for fewer frames",
            )
        images = {number: _hdf5_image(path, number, frames[number]) for number in sorted(set(wanted))}
    return np.stack([images[number] for number in wanted])


def _hdf5_info(path: Path) -> VideoInfo:
    with _hdf5_frames(path) as frames:
        for number, frame in enumerate(frames):
            height, width = _hdf5_image(path, number, frame).shape[:2]
        return VideoInfo(path, len(frames), HDF5_FRAME_RATE_HZ, height, width, "hdf5", "rgb24")


def _read_v1(root: Path, paths: Sequence[Path]) -> Dataset:
    """Labels as the official v1 loader takes them: true if any frame touches; contact at the first such frame."""
    clips, problems = [], []
    for path in paths:
        # Training folders of the release number their files; there the folder's name is the stimulus.
        name = f"{path.parent.name}_{path.stem}" if path.stem.isdigit() else path.stem
        scenario, message = _one_scenario(name)
        touching: list[bool] = []
        try:
            with _hdf5_frames(path) as frames:
                for number, frame in enumerate(frames):
                    if "labels/target_contacting_zone" not in frame:
                        message = f"frame {number:04d} has no labels/target_contacting_zone"
                        break
                    touching.append(bool(frame["labels/target_contacting_zone"][()]))
        except DataError as error:
            message = error.received
        if message:
            problems.append(Problem(path, message))
            continue
        contact = touching.index(True) if any(touching) else None
        folders = [part.lower() for part in path.relative_to(root).parts[:-1]]
        clips.append(
            Clip(
                name=name,
                split="train" if any("train" in folder for folder in folders) else "test",
                path=path,
                kind="physion-v1",
                scenario=scenario,
                label=int(contact is not None),
                contact_frame=contact,
                center_frame=contact if contact is not None else len(touching) // 2,
                num_frames=len(touching),
            )
        )
    return Dataset("physion-v1", root, tuple(clips), tuple(problems))


# --- plain videos ---


def _read_videos(root: Path, paths: Sequence[Path], others: Sequence[Path]) -> Dataset:
    captions = read_captions(root, paths, others)
    rows = [captions.rows[path] for path in paths]
    clips = tuple(
        Clip(
            name=path.stem,
            split=row.split or "test",
            path=path,
            kind="video",
            prompt=row.prompt,
            record=row.record,
        )
        for path, row in zip(paths, rows, strict=True)
    )
    problems = tuple(Problem(path, message) for path, message in captions.problems)
    return Dataset("video", root, clips, problems, has_splits=any(row.split for row in rows))
