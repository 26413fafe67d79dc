"""`physcli sample --best-of N --verifier NAME`: of N videos of each prompt, which is kept.

Nothing is thrown away: beside the run's videos.jsonl stands one list more, `best-VERIFIER.jsonl`, with the rows of the
videos that were chosen and the scores of all of their prompt. Every command that takes a list of videos takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from physcli.data.video import pixel_format
from physcli.models.device import pick_device
from physcli.progress import Reporter
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import cache_root, write_jsonl
from physcli.tasks.select import read_candidate
from physcli.tasks.verifiers import verifier_class
from physcli.tasks.verifiers.base import Need


def best_of(
    path: Path,
    videos: Sequence[Mapping[str, Any]],
    verifier: str,
    *,
    encoder: str | None = None,
    rater: str | None = None,
    seed: int = 0,
    device: str = "auto",
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> tuple[Path, list[dict[str, Any]]]:
    """Choose one video of each prompt. Every process takes part.

    Args:
        path: A run of `physcli sample`.
        videos: The rows of its videos.jsonl.
        verifier: Who chooses.
        encoder: In place of the verifier's own.
        rater: The same.
        seed: Of a verifier that draws.
        device: Of encoder or rater.
        cache_dir: Simulated clips that a verifier is fitted to.
        reporter: Receives progress.

    Returns:
        The list, and its rows: those of videos.jsonl with `chosen_by`, `chosen_of` and `scores`.

    Raises:
        UsageError: no such verifier.
        DataError: a video that cannot be read or scored.
    """
    processes = Processes(device)
    reporter = reporter if reporter is not None and processes.is_main else Reporter()
    cache = cache_root(cache_dir)
    chosen_by = verifier_class(verifier)(Need(encoder, rater, pick_device(device), seed, cache, processes, reporter))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in videos:
        groups.setdefault(row["prompt"], []).append(row)
    prompts = list(groups)
    mine = processes.share(range(len(prompts)))
    found = []
    with reporter.bar("Choosing", len(mine), "prompt") as bar:
        for number in mine:
            group = groups[prompts[number]]
            candidates = [
                read_candidate(
                    path / row["video"],
                    prompt=row["prompt"],
                    caption=row["caption"],
                    pixel_format=pixel_format(path / row["video"]),
                )
                for row in group
            ]
            scores = chosen_by.scores(candidates)
            about = {"chosen_by": verifier, "chosen_of": len(group), "scores": scores.tolist()}
            found.append((number, {**group[int(scores.argmax())], **about}))
            bar.advance()
    rows = [row for _, row in sorted(processes.collect(found), key=lambda pair: pair[0])]
    target = path / f"best-{verifier}.jsonl"
    if processes.is_main:
        write_jsonl(target, rows)
    processes.finish()
    return target, rows
