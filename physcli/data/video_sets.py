"""Sets of videos to score: what `physcli sample` leaves, a list of videos, a folder of clips.

A list is `videos.jsonl`, another `.jsonl` or a `.csv`, such as VideoPhy's and VideoPhy-2's; a row has a video (`video`,
`videopath`, `file_name`, `path`) and its texts as `physcli.data.prompts` reads them. Videos are where the row says,
from the list's folder on. The official lists name a folder that is somewhere else by the time they are used: where not
one of a list's videos is as it says, and no two have the same name, they are looked for by their names beside the list
and in `videos/`. What is in neither place is missing, whatever else has its name.

A list may have physical rules to be judged, one a row (`rule`), a video in as many rows as it has rules; with no other
text, as VideoPhy-2's `rule.csv`, there is no caption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from physcli.data.clips import TWINS_LIST, read_dataset
from physcli.data.prompts import DETAILED_COLUMNS, SHORT_COLUMNS, prompt_of_row
from physcli.data.tables import READERS, first_of, name_in_row, no_column
from physcli.errors import DataError
from physcli.files import short_names

LIST = "videos.jsonl"
VIDEO_COLUMNS = ("video", "videopath", "file_name", "path", "video_path")
RULE_COLUMN = "rule"
FILE_COLUMNS = ("reference", "first_frame")  # other files that belong to a video


@dataclass(frozen=True)
class Video:
    """A video to score.

    Attributes:
        name: As its list has it.
        path: The file; it may not be there.
        caption: What raters are asked about; "" in a list of rules alone.
        prompt: What it was made from; the video's name in a list of rules alone.
        index: Which video of its prompt; with `seed`, what pairs it with another run's.
        seed: Its noise; None where unknown.
        simulated: It is of the simulated world, filmed there or made by a model of that world.
        columns: What else its row says.
        rules: What is to be judged of it.
    """

    name: str
    path: Path
    caption: str
    prompt: str
    index: int = 0
    seed: int | None = None
    simulated: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class VideoSet:
    """Videos, whose they are, what of the list is not used and why, and what else is worth knowing."""

    items: tuple[Video, ...]
    subject: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_video_set(source: Path) -> VideoSet:
    """The videos of a run of `physcli sample`, of a list, or of a folder (its test clips, where it has splits).

    Raises:
        DataError: nothing there to be read, a list without videos or texts, a clip without a caption.
    """
    if source.is_dir() and (source / LIST).is_file():
        return _from_list(source / LIST, source.name)
    if source.suffix.lower() in READERS and source.is_file():
        return _from_list(source, source.parent.name if source.name == LIST else source.stem)
    if (source.is_dir() and not (source / "run.json").is_file()) or (source / "dataset.json").is_file():
        return _from_folder(source)
    raise DataError(
        f"{source} is " + ("no set of videos." if source.exists() else "not there."),
        expected=f"a run of `physcli sample`, its {LIST}, a {', '.join(READERS)} list, or a folder of captioned videos",
        fix="check the path",
    )


def add_rules(videos: VideoSet, path: Path) -> VideoSet:
    """The same set, each video with its rules of a list (a video and a `rule` a row).

    A rule goes to the video that has the path it names, as its own list has it or from the rules' folder on; else to
    the one with that file name, if only one video has it and the rules name it by one path.

    Raises:
        DataError: the list cannot be read, has a row without a video or rule, or no rule for any of these videos.
    """
    rules: dict[str, list[str]] = {}
    for number, row in _rows(path):
        video, rule = row[_video_column(path, number, row)], _rule_of(path, number, row)
        if rule is None:
            raise no_column(path, number, row, (RULE_COLUMN,), what="rule")
        told = rules.setdefault(video, [])
        if rule not in told:
            told.append(rule)
    by_file, rules_by_file = _groups(item.name for item in videos.items), _groups(rules)
    by_path = {item.path.resolve(): item.name for item in videos.items}
    names = {item.name for item in videos.items}
    owners: dict[str, str] = {}  # the video's name in the rules → in the set
    for video in rules:
        exact = video if video in names else by_path.get((path.parent / video).resolve())
        alike = by_file.get(Path(video).name, set())
        if exact is not None:
            owners[video] = exact
        elif len(alike) == len(rules_by_file[Path(video).name]) == 1:
            [owners[video]] = alike
    added: dict[str, list[str]] = {}
    for video, owner in owners.items():
        added.setdefault(owner, []).extend(rules[video])
    items = tuple(
        replace(item, rules=tuple(dict.fromkeys((*item.rules, *added.get(item.name, ()))))) for item in videos.items
    )
    unknown = rules.keys() - owners.keys()
    if not owners:
        raise DataError(
            f"{path} has no rule for any of the {len(items)} videos of {videos.subject}.",
            expected=f"rows with names such as {Path(items[0].name).name}",
            fix="give the list that belongs to these videos",
        )
    lost = tuple(
        f"the rules of {name} in {path.name}, for "
        + ("several videos have that name" if by_file.get(Path(name).name) else "no such video is here")
        for name in sorted(unknown)
    )
    return replace(videos, items=items, problems=videos.problems + lost)


def _groups(names: Iterable[str]) -> dict[str, set[str]]:
    """File name → the paths that end in it."""
    found: dict[str, set[str]] = {}
    for name in names:
        found.setdefault(Path(name).name, set()).add(name)
    return found


def _from_list(path: Path, name: str) -> VideoSet:
    items: dict[tuple[str, str, str], Video] = {}
    problems: list[str] = []
    models: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    rows = list(_rows(path))
    videos = places(path.parent, {row[_video_column(path, number, row)] for number, row in rows})
    others = {
        what: places(path.parent, {row[what] for _, row in rows if isinstance(row.get(what), str)})
        for what in FILE_COLUMNS
    }
    for number, row in rows:
        column, rule = _video_column(path, number, row), _rule_of(path, number, row)
        video = row[column]
        texts = {key: value for key, value in row.items() if key not in (column, first_of(row, (RULE_COLUMN,)))}
        if rule is not None and first_of(row, (*DETAILED_COLUMNS, *SHORT_COLUMNS)) is None:
            prompt, caption, columns = video, "", texts
        else:
            read = prompt_of_row(path, number, texts)
            prompt, caption, columns = read.text, read.caption, dict(read.columns)
        named = {what: columns[what] for what in FILE_COLUMNS if isinstance(columns.get(what), str)}
        columns |= {what: str(others[what][file]) for what, file in named.items()}
        key = (video, prompt, caption)
        if (known := items.get(key)) is not None:
            if rule is None or rule in known.rules:
                problems.append(f"line {number} repeats {video}")
            else:
                items[key] = replace(known, rules=(*known.rules, rule))
            continue
        index = _whole(_value(row, "index"))
        items[key] = Video(
            name=video,
            path=videos[video],
            caption=caption,
            prompt=prompt,
            index=counts[prompt] if index is None else index,
            seed=_whole(_value(row, "seed")),
            simulated=row.get("simulated_world") is True or "violation" in row,
            columns={**columns, **(row.get("columns") or {})},
            rules=() if rule is None else (rule,),
        )
        counts[prompt] += 1
        models[str(row.get("baseline") or row.get("model") or name)] += 1
    if not items:
        raise DataError(f"{path} lists no video.", expected="at least one")
    told_apart = tuple(_told_apart(list(items.values())))
    return VideoSet(told_apart, next(iter(models)) if len(models) == 1 else name, tuple(problems))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a list.

    Raises:
        DataError: it is no such file, is not there, or cannot be read.
    """
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path} is no list.", expected=f"one of {', '.join(READERS)}", fix="check the path")
    yield from READERS[path.suffix.lower()](path)


def _video_column(path: Path, number: int, row: Mapping[str, Any]) -> str:
    name_in_row(path, number, row, VIDEO_COLUMNS, what="video")
    return str(first_of(row, VIDEO_COLUMNS))


def _rule_of(path: Path, number: int, row: Mapping[str, Any]) -> str | None:
    """The row's rule; None where the list has none."""
    column = first_of(row, (RULE_COLUMN,))
    if column is None:
        return None
    if not isinstance(row[column], str) or not row[column].strip():
        raise DataError(f"{path}, line {number}: the rule is {row[column]!r}.", expected="text")
    return str(row[column])


def _value(row: Mapping[str, Any], name: str) -> Any:
    """What a row says in a column, however that is written."""
    column = first_of(row, (name,))
    return None if column is None else row[column]


def _whole(value: Any) -> int | None:
    """A whole number, which is text in a CSV file; None of anything else."""
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def places(folder: Path, names: Collection[str]) -> dict[str, Path]:
    """Where the files of a list in this folder are, there or not; by their names alone only where the whole list names
    another folder."""
    as_said = {name: folder / name for name in names}
    unlike = len({Path(name).name for name in names}) == len(names)
    if not unlike or any(place.is_file() for place in as_said.values()):
        return as_said
    found = {}
    for name, place in as_said.items():
        nearby = (folder / Path(name).name, folder / "videos" / Path(name).name)
        found[name] = next((one for one in nearby if one.is_file()), place)
    return found


def _from_folder(folder: Path) -> VideoSet:
    dataset = read_dataset(folder)
    splits = {clip.split for clip in dataset.clips}
    clips = [clip for clip in dataset.clips if len(splits) == 1 or clip.split == "test"]
    mute = [clip.name for clip in clips if not clip.prompt.strip()]
    if mute:
        raise DataError(
            f"{len(mute)} of {len(clips)} videos of {folder} have no caption, such as {mute[0]}.",
            expected="a caption for each: metadata.csv, or x.txt beside x.mp4",
            fix="add them; scores are about what a video was to show",
        )
    names = short_names([clip.path for clip in clips], folder)
    items = [
        Video(name, clip.path, clip.prompt, clip.prompt, simulated=clip.kind == "simulated")
        for name, clip in zip(names, clips, strict=True)
    ]
    problems = tuple(f"{problem.path}: {problem.message}" for problem in dataset.problems)
    notes = []
    if len(clips) < len(dataset.clips):
        notes.append(f"The {len(clips)} test clips of {folder}; its {len(dataset.clips) - len(clips)} others are not.")
    if (folder / TWINS_LIST).is_file():
        notes.append(f"Its impossible twins are a list of their own: --videos {folder / TWINS_LIST}.")
    return VideoSet(tuple(_told_apart(items)), folder.name or str(folder), problems, tuple(notes))


def _told_apart(items: list[Video]) -> list[Video]:
    """The same items, numbered anew where several of a prompt have the same number and seed."""
    if len({(item.prompt, item.index, item.seed) for item in items}) == len(items):
        return items
    counts: Counter[str] = Counter()
    numbered = []
    for item in items:
        numbered.append(replace(item, index=counts[item.prompt]))
        counts[item.prompt] += 1
    return numbered
