"""`physcli compare --blind`: one page on which people compare the runs' videos without knowing whose they are.

1. Read the runs; pair their videos by prompt, index and seed, as `physcli compare` does.
2. Encode every video anew, all alike: neither pixels' format nor a file's metadata says whose it is.
3. Break some for attention checks.
4. Write who sees what, and register the rules by which raters will be left out.

    OUT/blind-ID.html   the page: for the raters
    OUT/key.json        what its ids stand for: not for the raters, and `physcli eval votes` needs it
    OUT/metrics.json    how many pairs, and how many votes of each pair of runs to expect
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from physcli.benchmarks.preferences import votes_needed
from physcli.data.clips import read_dataset, read_impossible
from physcli.data.copies import held
from physcli.data.subsets import thin
from physcli.data.video import read_video, video_info
from physcli.errors import DataError, PhyscliError, UsageError
from physcli.files import write_text
from physcli.hashing import content_hash, seed_from, settings_hash
from physcli.progress import Reporter, counted, size_in_words
from physcli.report.blind import BlindPage, Trial, blind_page
from physcli.rows import Metric, make_row
from physcli.tasks.blind.key import KEY_FILE, hashed_id, read_key, read_rules, rule_words, write_key
from physcli.tasks.blind.runs import read_blind_run
from physcli.tasks.blind.schedule import Pair, Showing, all_pairs, schedule
from physcli.tasks.compare import differing_chroma, label_sides, pair_items, read_side, same_videos
from physcli.tasks.compare_result import Side
from physcli.tasks.report import encode_for_browsers
from physcli.tasks.run_dir import RunDir, read_metrics, with_defaults
from physcli.tasks.scored_runs import Key, Score, describe

QUESTION = "Which video is physically more plausible?"
SHARES = (0.55, 0.6, 0.65)  # preferences of which it is said how many votes they need

PAIRS = Metric("pairs", "count", None, interval="none")
PER_RATER = Metric("shown_per_rater", "count", None, interval="none")
EXPECTED = Metric("expected_votes", "count", None, interval="none")

_NOISE = 24  # levels of 255

Frames = np.ndarray  # uint8 [T, H, W, 3]


def _shuffled(frames: Frames, seed: int) -> Frames:
    """Its frames in an order in which none follows its neighbour, as far as there is one."""
    rng = np.random.default_rng(seed)
    best, fewest = np.arange(len(frames)), len(frames)
    for _ in range(20):
        order = rng.permutation(len(frames))
        neighbours = int(np.sum(np.abs(np.diff(order)) == 1))
        if neighbours < fewest:
            best, fewest = order, neighbours
    return frames[best]


# How a video is broken for a check, by name.
CHECKS: dict[str, Callable[[Frames, int], Frames]] = {
    "shuffled": _shuffled,
    "reversed": lambda frames, seed: frames[::-1],
    "frozen": lambda frames, seed: held(frames),
}


@dataclass(frozen=True)
class BlindSettings:
    """All that bears on the page. Meanings as in `physcli compare --help`."""

    runs: tuple[str, ...]
    question: str = QUESTION
    raters: int = 10
    pairs_per_rater: int | None = None
    show_prompt: bool = True
    checks: str = "shuffled"
    check_share: float = 0.08
    repeat_share: float = 0.1
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    intersect: bool = False
    ignore_seeds: bool = False
    max_video_mb: float = 300.0
    seed: int = 0


@dataclass(frozen=True)
class BlindResult:
    """The page that was made."""

    path: Path
    page: str
    rows: list[dict[str, Any]]
    rules: dict[str, float]
    notes: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def count(self, metric: Metric) -> int:
        return int(next(row["value"] for row in self.rows if row["metric"] == metric.name))

    @property
    def html(self) -> Path:
        return self.path / page_name(self.page)

    def sentences(self, raters: int) -> list[str]:
        """What raters will see, what it can show, and the rules."""
        shown, votes = self.count(PER_RATER), self.count(EXPECTED)
        enough = [share for share in SHARES if votes_needed(share) <= votes]
        need = ", ".join(f"{votes_needed(share)} for {100 * share:g} %" for share in SHARES)
        found = (
            f"enough for a preference of {100 * enough[0]:g} %"
            if enough
            else f"too few for one of {100 * SHARES[-1]:g} %"
        )
        rules = [rule_words(name, bound) for name, bound in self.rules.items() if bound]
        return [
            f"{counted(self.count(PAIRS), 'pair')}; each of {counted(raters, 'rater')} is asked {shown} times, repeats "
            "and checks among them.",
            f"If all answer, {votes} votes on each pair of runs, {found}. Independent votes needed to find one "
            f"8 times in 10: {need}.",
            f"A rater is left out who {'; or '.join(rules)}." if rules else "No rater will be left out.",
        ]

    def files(self) -> dict[str, Path]:
        return {"page, for the raters": self.html, "key, not for them": self.path / KEY_FILE}


def page_name(page: str) -> str:
    return f"blind-{page[:8]}.html"


def make_blind_page(
    settings: BlindSettings, *, out: Path | None = None, overwrite: bool = False, reporter: Reporter | None = None
) -> BlindResult:
    """Make the page and its key.

    Args:
        settings: Which runs, and how.
        out: The run directory.
        overwrite: Replace a run with other settings.
        reporter: Receives notes, warnings and progress.

    Raises:
        UsageError: fewer than two runs, or settings that cannot be.
        PhyscliError: what is named has no videos, or the runs have none in common.
        DataError: videos that cannot be read, or too many for a page.
    """
    reporter = reporter or Reporter()
    rules = _check(settings)

    # 1. The runs and the pairs.
    sides = label_sides([read_side(text, settings.ignore_seeds, read=read_blind_run) for text in settings.runs])
    several = next((side for side in sides if len(side.runs) > 1), None)
    if several is not None:
        raise UsageError(
            f"{several.label} is {len(several.runs)} runs.", expected="with --blind one run on each side, not several"
        )
    with RunDir(
        out,
        "compare --blind",
        asdict(settings),
        complete=with_defaults(settings),
        overwrite=overwrite,
        reporter=reporter,
    ) as run_dir:
        keys, notes = pair_items(sides, intersect=settings.intersect, ignore_seeds=settings.ignore_seeds)
        keys = thin(keys, settings.limit)
        _refuse_missing(sides, keys)
        files = {
            (run, item): _video(sides[run].runs[0].items[key])
            for run in range(len(sides))
            for item, key in enumerate(keys)
        }
        hashes = {place: content_hash(path) for place, path in files.items()}
        inputs = {f"{number}: {side.runs[0].path}": _together(hashes, number) for number, side in enumerate(sides)}
        if settings.checks not in CHECKS and settings.check_share:
            inputs["checks"] = (
                content_hash(Path(settings.checks) / "impossible.jsonl") if _has_twins(settings.checks) else ""
            )
        run_dir.check_inputs(inputs)
        if run_dir.already_finished and (run_dir.path / KEY_FILE).is_file():
            key = read_key(run_dir.path / KEY_FILE)
            if (run_dir.path / page_name(key.page)).is_file():
                return BlindResult(run_dir.path, key.page, read_metrics(run_dir.path), rules)
        if run_dir.already_finished:
            run_dir.reopen()
        notes += same_videos(sides, keys)
        flags = [*_telling(sides, files), *differing_chroma(sides, keys)]
        for message in notes:
            reporter.note(message)
        for message in flags:
            reporter.warn(message)
        run_dir.record["notes"], run_dir.record["flags"] = notes, flags

        # 2. The videos, 3. the checks.
        salt = settings_hash({"settings": asdict(settings), "inputs": inputs})
        videos, table = _videos(settings, sides, keys, files, hashes, salt, reporter)

        # 4. Who sees what.
        pairs = all_pairs(len(keys), len(sides), settings.seed)
        per_rater = min(settings.pairs_per_rater or len(pairs), len(pairs))
        num_checks = sum(video.get("broken", False) for video in table.values())
        shown = [
            schedule(
                pairs,
                rater,
                per_rater=per_rater,
                repeat_share=settings.repeat_share,
                num_checks=num_checks,
                seed=settings.seed,
            )
            for rater in range(settings.raters)
        ]
        trials, schedules, prompts = _trials(shown, pairs, table, keys, salt)
        page = write_key(
            run_dir.path,
            {
                "question": settings.question,
                "runs": [{"label": side.label, "path": str(side.runs[0].path.resolve())} for side in sides],
                "rules": rules,
                "checks": settings.checks if num_checks else None,
                "items": [_item(key) for key in keys],
                "videos": table,
                "trials": trials,
                "salt": salt,
            },
        )
        content = BlindPage(page, settings.question, prompts if settings.show_prompt else [], videos, schedules)
        for old in run_dir.path.glob("blind-*.html"):
            old.unlink()
        write_text(run_dir.path / page_name(page), blind_page(content))
        common: dict[str, Any] = {"benchmark": "blind", "task": "page", "n": len(keys)}
        common["subject"] = ", ".join(side.label for side in sides)
        matches = len(pairs) // len(keys)
        rows = [
            make_row(PAIRS, len(pairs), **common),
            make_row(PER_RATER, len(shown[0]), **common),
            make_row(EXPECTED, settings.raters * per_rater // matches, **common),
        ]
        run_dir.write_metrics(rows)
    return BlindResult(run_dir.path, page, rows, rules, notes, flags)


def _check(settings: BlindSettings) -> dict[str, float]:
    """The rules. Raises UsageError for settings that cannot be, whatever is on the disk."""
    if len(settings.runs) < 2:
        raise UsageError(f"{len(settings.runs)} run to compare.", expected="two or more")
    if not settings.question.strip():
        raise UsageError("--question is empty.", expected="what raters are asked, such as " + repr(QUESTION))
    counts = {"raters": settings.raters, "pairs-per-rater": settings.pairs_per_rater, "limit": settings.limit}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}.", expected="1 or more")
    for name, share in (("--repeat-share", settings.repeat_share), ("--check-share", settings.check_share)):
        if not 0 <= share <= 0.5:
            raise UsageError(f"{name} is {share:g}.", expected="0 to 0.5")
    if settings.check_share and settings.checks not in CHECKS and not _has_twins(settings.checks):
        raise UsageError(
            f"--checks {settings.checks!r} is no way to break a video, and no simulated set with impossible twins.",
            expected=f"{', '.join(CHECKS)}, or a folder of `physcli data simulate --impossible`",
            fix="--check-share 0 for none",
        )
    return read_rules(settings.exclude)


def _has_twins(folder: str) -> bool:
    return (Path(folder) / "impossible.jsonl").is_file()


def _video(item: Score) -> Path:
    return item.video or Path()


def _refuse_missing(sides: Sequence[Side], keys: Sequence[Key]) -> None:
    for side in sides:
        lost = [key for key in keys if not _video(side.runs[0].items[key]).is_file()]
        if lost:
            raise DataError(
                f"{len(lost)} of {len(keys)} videos of {side.label} are not there: {describe(lost[0])}: "
                f"{side.runs[0].items[lost[0]].video or 'its run kept none'}.",
                expected="a video of every item in every run",
                fix="put them back where they were, or sample again",
            )


def _together(hashes: Mapping[tuple[int, int], str], run: int) -> str:
    return settings_hash({str(place): sha for place, sha in hashes.items() if place[0] == run})


def _telling(sides: Sequence[Side], files: Mapping[tuple[int, int], Path]) -> list[str]:
    """Sizes, rates and lengths by which a rater can tell the runs apart."""
    found: dict[str, list[str]] = {}
    for number, side in enumerate(sides):
        infos = [video_info(path) for (run, _), path in files.items() if run == number]
        kinds = sorted({f"{i.width}×{i.height}, {i.num_frames} frames at {i.frame_rate_hz or 0:.4g} Hz" for i in infos})
        found.setdefault("; ".join(kinds), []).append(side.label)
    if len(found) == 1:
        return []
    said = " | ".join(f"{', '.join(labels)}: {kinds}" for kinds, labels in found.items())
    return [f"The runs' videos differ in size, length or rate, by which raters may tell them apart. {said}."]


def _item(key: Key) -> dict[str, Any]:
    return {"prompt": key[0], "index": key[1], "seed": key[2] if len(key) > 2 else None}


def _videos(
    settings: BlindSettings,
    sides: Sequence[Side],
    keys: Sequence[Key],
    files: Mapping[tuple[int, int], Path],
    hashes: Mapping[tuple[int, int], str],
    salt: str,
    reporter: Reporter,
) -> tuple[dict[str, tuple[bytes, tuple[int, int]]], dict[str, dict[str, Any]]]:
    """The page's videos by id, and what the ids stand for."""
    videos: dict[str, tuple[bytes, tuple[int, int]]] = {}
    table: dict[str, dict[str, Any]] = {}
    used = 0.0

    def add(frames: Frames, rate: float | None, what: dict[str, Any], done: int, total: int) -> None:
        nonlocal used
        name = hashed_id(salt, *what.values())
        videos[name] = encode_for_browsers(frames, rate)
        table[name] = what
        used += 4 / 3 * len(videos[name][0])  # base64 takes four bytes for three
        if used > 1e6 * settings.max_video_mb:
            raise DataError(
                f"The page would hold about {size_in_words(used / done * total)} of videos.",
                expected=f"{settings.max_video_mb:g} MB or less, which browsers open well",
                fix=f"--limit {max(1, int(len(keys) * done / total))} takes fewer prompts; --max-video-mb allows more",
            )

    motion = np.zeros((len(sides), len(keys)))
    num_checks = _num_checks(settings, len(keys), len(sides))
    with reporter.bar("Encoding", len(files) + 2 * num_checks, "video") as bar:
        for done, ((run, item), path) in enumerate(files.items(), start=1):
            frames = read_video(path)
            motion[run, item] = _motion(frames)
            what = {"run": run, "item": item, "path": str(path.resolve()), "sha256": hashes[run, item]}
            add(frames, video_info(path).frame_rate_hz, what, done, len(files))
            bar.advance()
        prompts = [str(key[0]) for key in keys]
        for check, made in enumerate(_checks(settings, prompts, motion, files, num_checks)):
            for frames, is_broken in ((made.whole, False), (made.broken, True)):
                what = {"check": check, "broken": is_broken, "prompt": made.prompt, "path": str(made.path.resolve())}
                add(frames, made.frame_rate_hz, what, len(files), len(files))
                bar.advance()
    return videos, table


def _motion(frames: Frames) -> float:
    """How much changes from frame to frame, in levels; 0 where no more than an encoder's noise does."""
    steps = np.abs(np.diff(frames.astype(np.int16), axis=0))
    return float(steps.mean()) if steps.size and steps.max() > _NOISE else 0.0


def _num_checks(settings: BlindSettings, num_items: int, num_runs: int) -> int:
    if not settings.check_share:
        return 0
    pairs = num_items * num_runs * (num_runs - 1) // 2
    shown = min(settings.pairs_per_rater or pairs, pairs)
    return max(1, min(round(settings.check_share * shown), num_items * num_runs))


@dataclass(frozen=True)
class _Check:
    """A video and the same one broken, and what it shows."""

    whole: Frames
    broken: Frames
    frame_rate_hz: float | None
    prompt: str
    path: Path


def _checks(
    settings: BlindSettings,
    prompts: Sequence[str],
    motion: np.ndarray,
    files: Mapping[tuple[int, int], Path],
    count: int,
) -> Iterator[_Check]:
    """Of videos in which most moves, the runs in turn; or of clips and their impossible twins."""
    if count and settings.checks not in CHECKS:
        root = Path(settings.checks)
        real = {clip.name: clip for clip in read_dataset(root).clips}
        twins = [clip for clip in read_impossible(root) if clip.record["twin_of"] in real]
        if not twins:
            raise DataError(f"No impossible twin of {root} has its clip there.", fix="simulate the set again")
        for twin in thin(twins, count):
            clip = real[twin.record["twin_of"]]
            rate = video_info(clip.path).frame_rate_hz
            yield _Check(read_video(clip.path), read_video(twin.path), rate, clip.prompt, twin.path)
        return
    order = np.argsort(-motion, axis=1, kind="stable")  # [runs, items]
    places = [(run, int(item)) for column in order.T for run, item in enumerate(column)][:count]
    for number, place in enumerate(places):
        if motion[place] == 0:
            raise PhyscliError(
                f"Too few videos move for {counted(count, 'check')} by --checks {settings.checks}.",
                expected="videos in which something moves: one that stands still is the same when it is broken",
                fix="--check-share 0 for none, or --checks with a set of impossible twins",
            )
        frames, info = read_video(files[place]), video_info(files[place])
        broken = CHECKS[settings.checks](frames, seed_from("check", settings.seed, number))
        yield _Check(frames, broken, info.frame_rate_hz, prompts[place[1]], files[place])


def _trials(
    shown: Sequence[Sequence[Showing]],
    pairs: Sequence[Pair],
    table: Mapping[str, Mapping[str, Any]],
    keys: Sequence[Key],
    salt: str,
) -> tuple[dict[str, dict[str, Any]], list[list[Trial]], list[str]]:
    """The key's trials, the page's (nothing says which are repeats or checks), and the prompts these number."""
    numbers: dict[str, int] = {}
    of_run = {(v["run"], v["item"]): name for name, v in table.items() if "run" in v}
    of_check = {(v["check"], v["broken"]): name for name, v in table.items() if "check" in v}
    trials: dict[str, dict[str, Any]] = {}
    schedules = []
    for rater, showings in enumerate(shown, start=1):
        listed = []
        for place, showing in enumerate(showings):
            facts: dict[str, Any] = {"rater": rater, "kind": showing.kind}
            if showing.kind == "check":
                ids = [of_check[showing.number, broken] for broken in (False, True)]
                prompt = str(table[ids[0]]["prompt"])
            else:
                pair = pairs[showing.number]
                ids = [of_run[run, pair.item] for run in (pair.first, pair.second)]
                prompt = str(keys[pair.item][0])
                facts["pair"] = showing.number
            left, right = ids[::-1] if showing.swapped else ids
            name = hashed_id(salt, "trial", rater, place)
            trials[name] = facts | {"left": left, "right": right}
            listed.append(Trial(name, left, right, numbers.setdefault(prompt, len(numbers))))
        schedules.append(listed)
    return trials, schedules, list(numbers)
