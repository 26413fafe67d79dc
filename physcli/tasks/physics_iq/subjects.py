"""What is scored: folders of generated videos and official tables, checked before any work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from physcli.benchmarks.physics_iq import SOURCE_RATE_HZ, VIEWS, View, from_table
from physcli.data.physics_iq import (
    RealSet,
    check_lengths,
    check_names,
    common_rate,
    find_generated,
    listed,
    read_real,
)
from physcli.data.tables import read_csv
from physcli.data.video import count_frames
from physcli.errors import DataError, UsageError
from physcli.progress import Reporter, counted
from physcli.tasks.physics_iq.result import BLURRED, STILL, TAKE_2


@dataclass(frozen=True)
class Source:
    """A model's videos of one sampling seed: a folder with its files by number, or the views of an official table."""

    path: Path
    videos: dict[str, Path] | None = None
    table: tuple[View, ...] | None = None


@dataclass(frozen=True)
class Subject:
    """A model: one source for each sampling seed.

    Attributes:
        label: Its name in tables.
        sources: At least one.
        rate_hz: Of its videos; None where all are tables.
        num_frames: Of each video that are compared.
    """

    label: str
    sources: tuple[Source, ...]
    rate_hz: int | None = None
    num_frames: int | None = None


@dataclass(frozen=True)
class Work:
    """All that is to be scored.

    Attributes:
        subjects: In the order in which they were given.
        real: Frame rate of generated videos → the real ones for them. Empty where there are only tables.
        num_frames: Frame rate → frames that are compared.
        scenarios: That are scored, of all subjects alike.
    """

    subjects: tuple[Subject, ...]
    real: dict[int, RealSet]
    num_frames: dict[int, int]
    scenarios: tuple[str, ...]


def find_work(
    given: Sequence[str],
    data: str | None,
    *,
    duration_s: float,
    partial: bool,
    limit: int | None,
    reporter: Reporter,
) -> Work:
    """Read names, rates and lengths of everything.

    Args:
        given: `PATH`, `PATH,PATH,…` (several sampling seeds) or `LABEL=PATH,…`; a path is a folder or a .csv. None at
            all: the controls alone, at the rate of the source.
        data: The real videos; may be None where all paths are tables.
        duration_s: Length of generated videos.
        partial: Score the scenarios of which everything is there, and leave out the others.
        limit: At most so many scenarios.
        reporter: Told what is left out.

    Raises:
        UsageError: neither paths nor `data`, a path twice, or folders without `data`.
        DataError: files that are not as they should be; see `physcli.data.physics_iq`.
    """
    if not given and data is None:
        raise UsageError("Neither --videos nor --data.", expected="generated videos, real ones, or both")
    subjects = _read(given)
    folders = [source for subject in subjects for source in subject.sources if source.table is None]
    if folders and data is None:
        raise UsageError(
            f"{folders[0].path} holds videos, and there is no --data.",
            expected="the real videos they are compared with",
            fix="add --data physics-iq-benchmark, the folder as it is downloaded",
        )
    real: dict[int, RealSet] = {}
    num_frames: dict[int, int] = {}
    complete: dict[str, set[str]] = {}  # path → scenarios of which it has all views
    found = []
    for subject in subjects:
        sources, rates = [], {}
        for source in subject.sources:
            if source.table is not None:
                by_scenario = {view.scenario for view in source.table}
                sources.append(source)
                complete[str(source.path)] = by_scenario
                continue
            assert data is not None
            videos = find_generated(source.path)
            rate = common_rate(videos)
            rates[rate] = source.path
            if rate not in real:
                real[rate] = read_real(Path(data).expanduser(), rate, views=VIEWS, source_rate_hz=SOURCE_RATE_HZ)
            check_names(videos, real[rate].views)
            num_frames[rate] = check_lengths(videos, rate, duration_s)
            _check_real(real[rate], rate, num_frames[rate], duration_s)
            missing = [view.name for view in real[rate].views if view.number not in videos]
            if missing and not partial:
                raise DataError(
                    f"{source.path} has {len(videos)} of {len(real[rate].views)} videos; missing: {listed(missing)}.",
                    expected="a video of every scenario and view",
                    fix="generate them, or add --partial to score the scenarios that are complete",
                )
            complete[str(source.path)] = {
                scenario
                for scenario in real[rate].scenarios
                if all(view.number in videos for view in real[rate].views if view.scenario == scenario)
            }
            sources.append(replace(source, videos=videos))
        if len(rates) > 1:
            said = ", ".join(f"{rate} in {path}" for rate, path in sorted(rates.items()))
            raise DataError(f"{subject.label} has videos at several frame rates: {said}.", expected="one rate a model")
        rate_hz = next(iter(rates), None)
        found.append(Subject(subject.label, tuple(sources), rate_hz, None if rate_hz is None else num_frames[rate_hz]))
    if not subjects:
        rate = SOURCE_RATE_HZ
        real[rate] = read_real(Path(str(data)).expanduser(), rate, views=VIEWS, source_rate_hz=rate)
        num_frames[rate] = round(duration_s * rate)
        _check_real(real[rate], rate, num_frames[rate], duration_s)
        complete[str(data)] = set(real[rate].scenarios)
    return Work(tuple(found), real, num_frames, _common(complete, partial=partial, limit=limit, reporter=reporter))


def _read(given: Sequence[str]) -> list[Subject]:
    """Subjects with their paths; tables are read."""
    subjects: list[Subject] = []
    seen: set[Path] = set()
    for text in given:
        label, _, rest = text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)
        names = [rest] if Path(rest).exists() else [name.strip() for name in rest.split(",")]
        if "" in names:
            raise UsageError(f"--videos {text!r} names no folder.", expected="DIR, DIR,DIR,… or NAME=DIR,DIR,…")
        paths = [Path(name).expanduser() for name in names]
        for path in paths:
            if path.resolve() in seen:
                raise UsageError(
                    f"--videos names {path} twice.", expected="folders of different models or sampling seeds"
                )
            seen.add(path.resolve())
        sources = tuple(Source(path, table=_table(path) if path.suffix.lower() == ".csv" else None) for path in paths)
        label = label.strip() or (paths[0].stem if sources[0].table is not None else paths[0].resolve().name)
        subjects.append(Subject(label, sources))
    labels = [subject.label for subject in subjects]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(
                f"Two of --videos are called {label!r}.",
                expected="a name of its own for each",
                fix=f"name them, --videos NAME={subjects[labels.index(label)].sources[0].path}; several sampling seeds "
                "of one model are joined by commas",
            )
        if label.partition(",")[0] in (STILL, TAKE_2, BLURRED):
            raise UsageError(f"--videos are called {label!r}, as a control is.", expected="another NAME=DIR")
    return subjects


def _table(path: Path) -> tuple[View, ...]:
    try:
        views = tuple(from_table(row for _, row in read_csv(path)))
    except DataError as error:
        if str(path) in error.received:
            raise
        raise DataError(f"{path}: {error.received}", expected=error.expected, fix=error.fix) from error
    if not views:
        raise DataError(f"{path} has no scenario.", expected="a CSV that Physics-IQ's code wrote")
    twice = [view.scenario for view in views if sum(v.scenario == view.scenario for v in views) > len(VIEWS)]
    if twice:
        raise DataError(f"{path} has {twice[0]} twice.", expected="a line for each scenario", fix="remove one")
    return views


def _check_real(real: RealSet, rate: int, num_frames: int, duration_s: float) -> None:
    for view in real.views:
        for path in view.takes:
            count = count_frames(path)
            if count / real.rate_hz * rate < num_frames - 0.5:
                raise DataError(
                    f"{path} has {count} frames at {real.rate_hz} a second, {count / real.rate_hz:.3f} s.",
                    expected=f"at least the {duration_s:g} s that are compared",
                    fix="download it again, or lower --duration",
                )


def _common(complete: dict[str, set[str]], *, partial: bool, limit: int | None, reporter: Reporter) -> tuple[str, ...]:
    """The scenarios that all subjects have, in alphabetical order."""
    common = sorted(set.intersection(*complete.values()))
    everything = sorted(set.union(*complete.values()))
    if len(common) < len(everything) and not partial:
        poor = next(path for path, names in complete.items() if len(names) < len(everything))
        missing = [name for name in everything if name not in complete[poor]]
        raise DataError(
            f"{poor} has {len(complete[poor])} of {len(everything)} scenarios; missing: {listed(missing)}.",
            expected="the same scenarios of everything that is put side by side",
            fix="add --partial to score those that all have",
        )
    if not common:
        raise DataError("No scenario is complete in all of --videos.", expected="all three views of one, at least")
    if len(common) < len(everything):
        reporter.warn(
            f"{counted(len(everything) - len(common), 'scenario')} left out, which not all of --videos have whole: the "
            "scores are of a part of the benchmark."
        )
    if limit is not None and limit < len(common):
        common = common[:limit]
        reporter.warn(f"The first {counted(limit, 'scenario')} only: the scores are of a part of the benchmark.")
    return tuple(common)
