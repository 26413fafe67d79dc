"""`bench faults`: what counts as the same, and a small campaign with nothing wrong."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter

import pytest
import torch

from physcli.errors import UsageError
from physcli.files import write_tensors
from physcli.tasks.bench.faults import COMMANDS, FAULTS, bench_faults, products


def test_only_times_and_half_written_files_of_the_cache_may_differ(tmp_path):
    def left(name, started, loss, *, parts=((0, 1),), more=()):
        folder = tmp_path / name
        (folder / "out").mkdir(parents=True)
        (folder / "out" / "run.json").write_text(json.dumps({"status": "finished", "started": started}))
        (folder / "out" / "steps.jsonl").write_text(json.dumps({"loss": loss, "seconds": started}) + "\n")
        for part in parts:
            tensors = {f"key {number}": torch.tensor([number]) for number in part}
            write_tensors(folder / "cache" / "text" / "a" / f"{part[0]}.safetensors", tensors)
        for name in more:
            (folder / name).write_text("")
        return products(folder)

    whole = left("whole", 1, 0.5)
    assert left("later", 2, 0.5, parts=((0,), (1,)), more=["cache/text/a/.x.safetensors.12.part"]) == whole
    assert left("other", 1, 0.6) != whole
    assert left("less", 1, 0.5, parts=((0,),)) != whole
    assert left("more", 1, 0.5, more=["out/.items.jsonl.12.part"]) != whole


@pytest.mark.parametrize(
    ("given", "said"),
    [({"commands": ["evaluate"]}, "Unknown command: 'evaluate'"), ({"faults": ["flood"]}, "Unknown fault: 'flood'")],
)
def test_names_that_there_are_not(given, said):
    with pytest.raises(UsageError, match=said):
        bench_faults(**given)


@pytest.mark.slow
@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_broken_runs_go_on_to_the_same_bytes(listener):
    heard = listener()
    # At file operations and not at moments: the same ones on a fast and on a slow machine.
    rows = bench_faults(faults=["kill at write"], kills=1, reporter=heard)
    rows += bench_faults(commands=["eval"], faults=FAULTS, kills=1, reporter=heard)
    counts = Counter()
    for row in rows:
        counts[row["metric"]] += row["value"]
    assert counts["wrong"] == 0, heard.warnings
    assert {row["group"] for row in rows} >= {f"{command}: kill at write" for command in COMMANDS}
