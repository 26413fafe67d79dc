"""`--prompts`: lists of prompts in files, and the whole events of simulated clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from physcli.data.clips import Clip, read_dataset
from physcli.data.prompts import Prompt, read_prompts
from physcli.data.subsets import thin
from physcli.errors import DataError
from physcli.progress import Reporter
from physcli.simulation.prompts import RATES, with_rate
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import cache_root
from physcli.tasks.simulate import suite_size
from physcli.tasks.sources import clips_folder


def listed_prompts(
    source: str, *, limit: int | None, cache_dir: Path | None, device: str, reporter: Reporter
) -> list[Prompt]:
    """The prompts of a list.

    Args:
        source: A file (see `read_prompts`), a folder of simulated clips, or simulated[:N]: then the prompts of its test
            clips, each once, at the rate at which a generator of 17 frames shows the whole event.
        limit: At most so many: evenly spaced ones of a file, the first of simulated clips, whose scenarios take turns.
        cache_dir: Simulated suites are kept here.
        device: Tells how many processes there are.
        reporter: Receives progress.

    Raises:
        UsageError: no such suite.
        DataError: a list that cannot be read, or a folder without simulated test clips.
    """
    path = Path(source).expanduser()
    if suite_size(source) is None and not path.is_dir():
        return thin(read_prompts(path), limit)
    folder = clips_folder(source, cache=cache_root(cache_dir), processes=Processes(device), reporter=reporter)
    clips = [clip for clip in read_dataset(folder).clips if clip.split == "test" and clip.kind == "simulated"]
    if not clips:
        raise DataError(
            f"--prompts {source}: a folder without simulated test clips.",
            expected="simulated[:N], a folder of `physcli data simulate`, or a .txt, .csv, .jsonl or .json file",
        )
    stride = max(RATES)
    return [
        Prompt(with_rate(clip.prompt, stride), columns={"scenario": clip.scenario}) for clip in distinct(clips)[:limit]
    ]


def distinct(clips: Sequence[Clip]) -> list[Clip]:
    """The first clip of every prompt, the scenarios in turn."""
    by: dict[str, dict[str, Clip]] = {}
    for clip in clips:
        by.setdefault(clip.scenario or "", {}).setdefault(clip.prompt, clip)
    turns = [list(prompts.values()) for _, prompts in sorted(by.items())]
    return [some[turn] for turn in range(max(map(len, turns))) for some in turns if turn < len(some)]
