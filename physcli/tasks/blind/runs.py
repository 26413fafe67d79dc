"""The runs a blind page is made of: of `physcli sample`, of `physcli eval`, or any set of captioned videos."""

from __future__ import annotations

from pathlib import Path

from physcli.data.video_sets import LIST, read_video_set
from physcli.errors import DataError, PhyscliError
from physcli.hashing import content_hash, settings_hash
from physcli.tasks.run_dir import is_finished, read_run
from physcli.tasks.scored_runs import Key, Score, ScoredRun, describe, kind_of, read_scored_run


def read_blind_run(name: str, *, ignore_seeds: bool = False) -> ScoredRun:
    """A run's videos by (prompt, index, seed), those of `physcli sample` without scores.

    Args:
        name: A run directory, a folder of captioned videos, or a list of videos.
        ignore_seeds: Tell videos apart by prompt and index alone.

    Raises:
        PhyscliError: it is none of these, or not finished.
        DataError: two videos of the same prompt, index and seed.
    """
    path = Path(name)
    record = (read_run(path) if path.is_dir() else None) or {}
    command = str(record.get("command", ""))
    if command.startswith(("eval ", "probe ")):
        if kind_of(record) != "eval":
            raise PhyscliError(
                f"{path} is a run of `physcli {command}`, which asks a model about given clips: it made no videos.",
                expected="runs of `physcli sample`, or of `physcli eval` of sampled videos",
            )
        return read_scored_run(name, ignore_seeds=ignore_seeds)
    if command == "sample" and not is_finished(path, record):
        raise PhyscliError(
            f"{path} is not finished: its status is {record.get('status')!r}.",
            expected="a finished run",
            fix=f"run `physcli sample … --out {path}` again: it goes on where it stopped",
        )
    if command and command != "sample" and not (path / LIST).is_file():
        raise PhyscliError(
            f"{path} is a run of `physcli {command}`, which holds no list of videos.",
            expected="runs of `physcli sample`, or of `physcli eval`",
        )
    found = read_video_set(path)
    items: dict[Key, Score] = {}
    for video in found.items:
        key: Key = (video.prompt, video.index) if ignore_seeds else (video.prompt, video.index, video.seed)
        if any("\ud800" <= character <= "\udfff" for character in video.prompt):
            raise DataError(f"{path}: a prompt holds half a surrogate pair.", expected="text", fix="mend the prompt")
        if key in items:
            raise DataError(f"{path} has two videos of {describe(key)}.", expected="one video for each")
        items[key] = Score(
            key=key,
            cluster=video.prompt,
            stratum=None,
            group=None,
            values={},
            video=video.path,
            caption=video.caption,
            prompt=video.prompt,
        )
    listed = path / LIST if path.is_dir() else path
    known = (
        content_hash(listed)
        if listed.is_file()
        else settings_hash({str(key): str(i.video) for key, i in items.items()})
    )
    return ScoredRun(
        path=path,
        subject=found.subject,
        record={"command": "sample", **record},
        rows=[],
        items=items,
        metrics={},
        sums=(),
        hashes={LIST: known},
    )
