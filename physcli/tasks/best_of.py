"""`physcli sample --best-of N --verifier NAME`: of N videos of each prompt, which is kept.

Nothing is thrown away: beside the run's videos.jsonl stands one list more, `best-VERIFIER.jsonl` (of another model than
the verifier's own `best-VERIFIER-MODEL.jsonl`), with the rows of the videos that were chosen, the scores of all of
their prompt, and what chose them. Every command that takes a list of videos takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from physcli.data.video import pixel_format
from physcli.data.video_sets import LIST
from physcli.models.device import pick_device
from physcli.progress import Reporter
from physcli.tasks.processes import Processes
from physcli.tasks.run_dir import cache_root, read_rows, write_jsonl
from physcli.tasks.verifiers import check_verifiers, verifier_class
from physcli.tasks.verifiers.base import Setting, read_candidate


def best_of(
    path: Path,
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
        UsageError: no such verifier, or one that has no such model.
        DataError: a video that cannot be read or scored.
    """
    check_verifiers([verifier], encoder=encoder, rater=rater)
    processes = Processes(device)
    reporter = processes.reporter(reporter)
    setting = Setting(encoder, rater, pick_device(device), seed, cache_root(cache_dir), processes, reporter)
    chooser = verifier_class(verifier)(setting)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_rows(path / LIST):
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
            scores = chooser.scores(candidates)
            about = {"chosen_by": {"verifier": verifier, **chooser.identity}, "chosen_of": len(group)}
            found.append((number, {**group[int(scores.argmax())], **about, "scores": scores.tolist()}))
            bar.advance()
    rows = [row for _, row in sorted(processes.collect(found), key=lambda pair: pair[0])]
    model = encoder or rater
    target = path / f"best-{verifier}{f'-{Path(model).name}' if model else ''}.jsonl"
    if processes.is_main:
        write_jsonl(target, rows)
    processes.finish()
    return target, rows
