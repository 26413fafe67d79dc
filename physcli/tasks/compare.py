"""`physcli compare`: is one run really better than another, beyond noise?

The first run is the reference; every other one is compared with it, item by item.

1. Read the runs; refuse what cannot be compared: other benchmarks, other raters, other items.
2. Pair the items: videos by (prompt, index, seed), a probe's clips, likephys' scenes and physics-iq's views by name.
   A distance is of whole sets: its items are shares of videos and of real clips.
3. For each metric: the mean difference, a 95 % bootstrap interval over prompts, a test, and the smallest difference so
   many items could show. Several training seeds of one method, joined by commas, are one side.
4. Holm's correction over all tests of the call.
5. The guards: physical commonsense that rises while motion falls is a flag, and so are videos that differ in chroma.

    OUT/metrics.json    a row a metric and compared run
    OUT/items.jsonl     a row a pair: the difference in each metric
    OUT/report.html     the same with players, in one file
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from physcli.data.clips import NOT_RECORDED
from physcli.data.video import chroma_step, pixel_format
from physcli.errors import DataError, PhyscliError, UsageError, unknown
from physcli.progress import Reporter
from physcli.rows import Metric, Role, Row, make_row
from physcli.stats import (
    holm,
    minimum_detectable_effect,
    minimum_detectable_effect_of_mcnemar,
    paired_difference,
    seeds_difference,
    sign_flip_p,
)
from physcli.tasks.compare_result import CompareResult, Side
from physcli.tasks.figures import ALPHA, FEWEST_CLUSTERS, difference_text
from physcli.tasks.report import same_file, write_comparison
from physcli.tasks.run_dir import RunDir, with_defaults, write_jsonl
from physcli.tasks.scored_runs import SUBJECT_MARK, Key, Score, ScoredRun, describe, read_scored_run
from physcli.tasks.sheets import draw_side_by_side

_EXAMPLES = 3
# Columns of metrics.json in which all runs must agree, and what they are called; and those of distances besides.
_ALIKE = {"benchmark": "benchmarks", "task": "tasks", "rater": "raters"}
_DISTANCES_ALIKE = {
    "encoder": "encoders",
    "block": "blocks of the encoder",
    "kernel": "kernels",
    "features": "features (weights, preprocessing or precision of the encoder)",
    "reference": "real clips",
}
_WHOLE_PATH = 100  # more parts than a path has


@dataclass(frozen=True)
class CompareSettings:
    """All that bears on the result. Meanings as in `physcli compare --help`."""

    runs: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    intersect: bool = False
    ignore_seeds: bool = False
    cases: int = 6
    max_video_mb: float = 24.0
    seed: int = 0


def compare(
    settings: CompareSettings,
    *,
    sides: Sequence[Side] | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> CompareResult:
    """Compare scored runs with the first of them.

    Args:
        settings: Which runs, and how.
        sides: The runs themselves, where they were read already; `settings.runs` then only names them.
        out: The run directory.
        overwrite: Replace a run with other settings.
        reporter: Receives notes and warnings.

    Raises:
        UsageError: fewer than two runs, a metric they do not have, or a name that could be two things.
        PhyscliError: what is named is no scored run, is not finished, or is of another benchmark, rater or other items.
        DataError: items that are not as they should be.
    """
    reporter = reporter or Reporter()
    if len(settings.runs) < 2:
        raise UsageError(
            f"{len(settings.runs)} run to compare.",
            expected="two or more: the reference, then those compared with it (several training seeds of one method "
            "joined by commas)",
        )
    if settings.cases < 0 or settings.max_video_mb < 0:
        raise UsageError("--cases or --max-video-mb is below 0.", expected="0 or more")

    # 1. The runs.
    sides = label_sides(list(sides or [read_side(text, settings.ignore_seeds) for text in settings.runs]))
    runs = [run for side in sides for run in side.runs]
    of_sets = any(run.kind == "distance" for run in runs)
    if of_sets and settings.intersect:
        raise UsageError(
            "--intersect with runs of `eval distance`.",
            expected="the same videos in every run: a distance is that of a whole set",
            fix="measure the videos that all have",
        )
    _refuse_unlike(sides)
    with RunDir(
        out, "compare", asdict(settings), complete=with_defaults(settings), overwrite=overwrite, reporter=reporter
    ) as run_dir:
        run_dir.check_inputs(
            {f"{run.path}{SUBJECT_MARK}{run.subject}/{name}": sha for run in runs for name, sha in run.hashes.items()}
        )
        run_dir.reopen()  # it takes seconds

        # 2. The pairs.
        keys, notes = pair_items(sides, intersect=settings.intersect, ignore_seeds=settings.ignore_seeds)
        metrics = _choose_metrics(sides, settings.metrics, notes)
        notes += [*_differing_settings(sides), *same_videos(sides, keys)]
        if of_sets:
            notes.append(
                "A distance is no score of single videos: paired are the first-order shares of videos and real clips, "
                "whose mean is the set's MMD²."
            )
        for message in notes:
            reporter.note(message)

        # 3. The differences, by metric; and by group, without a test.
        rows = []
        for side in sides[1:]:
            for metric in metrics:
                row = _compare_metric(sides[0], side, metric, keys, settings)
                rows += [row, *_compare_groups(sides[0], side, metric, keys, settings)]

        # 4. Holm, and what to say.
        tested = [row for row in rows if row["p"] is not None]
        for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = float(adjusted)
        for row in rows:
            row["verdict"] = _verdict(row) if row["group"] == "all" else None

        # 5. The guards, and the files.
        flags = [*_guard(rows, sides), *differing_chroma(sides, keys)]
        for message in flags:
            reporter.warn(message)
        run_dir.record["flags"] = flags
        run_dir.record["notes"] = notes
        write_jsonl(run_dir.path / "items.jsonl", _item_rows(sides, metrics, keys))
        result = CompareResult(run_dir.path, rows, sides, keys, notes, flags)
        write_comparison(result, run_dir.path / "report.html", cases=settings.cases, max_video_mb=settings.max_video_mb)
        if runs[0].kind == "eval":
            draw_side_by_side(run_dir.path / "contact_sheet.png", [_videos_of(sides, key) for key in keys])
        run_dir.write_metrics(rows)
    return result


def _videos_of(sides: Sequence[Side], key: Key) -> list[tuple[str, Path]]:
    """For each side, caption and file of its video of an item."""
    items = [side.runs[0].items[key] for side in sides]
    return [(f"{s.label}: {i.prompt}", i.video) for s, i in zip(sides, items, strict=True) if i.video is not None]


# --- which runs ---


def read_side(text: str, ignore_seeds: bool, *, read: Callable[..., ScoredRun] = read_scored_run) -> Side:
    """`RUN`, `RUN,RUN,…` or `NAME=RUN,RUN,…`; a folder of that very name is taken as it is."""
    label, _, rest = text.partition("=") if "=" in text and not Path(text).is_dir() else ("", "", text)
    names = [rest] if Path(rest).is_dir() else [name.strip() for name in rest.split(",")]
    if "" in names or ("=" in text and rest != text and not label.strip()):
        raise UsageError(f"{text!r} names no run.", expected="RUN, RUN,RUN,… or NAME=RUN,RUN,…")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{text!r} names {twice} twice.", expected="runs of different training seeds: one run is no more than one"
        )
    return Side(label.strip(), tuple(read(name, ignore_seeds=ignore_seeds) for name in names))


def label_sides(sides: list[Side]) -> list[Side]:
    """Names for tables: as given, else the shortest end of the path that tells all apart."""
    given = [side.label for side in sides if side.label]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"Two sides are called {twice!r}.", expected="a name of its own for each")
    whole = {side.label or _short_name(side, _WHOLE_PATH) for side in sides}
    depth = next(d for d in range(_WHOLE_PATH + 1) if len({s.label or _short_name(s, d) for s in sides}) == len(whole))
    named = [side.label or _short_name(side, depth) for side in sides]
    # The same run may be there twice, which is a fair question to ask of a ruler.
    return [
        replace(side, label=name if named.count(name) == 1 else f"{name} ({number})")
        for number, (side, name) in enumerate(zip(sides, named, strict=True), start=1)
    ]


def _short_name(side: Side, depth: int) -> str:
    """The last `depth` parts of the paths; where the model says more than the folder, that first."""
    of_models = side.runs[0].kind != "eval"
    names = ["/".join(run.path.resolve().parts[-max(depth, not of_models) :]) for run in side.runs]
    if of_models:
        subjects = [run.subject for run in side.runs]
        names = [f"{n}{SUBJECT_MARK}{s}" if depth else s for n, s in zip(names, subjects, strict=True)]
    if len(names) == 1:
        return names[0]
    common = re.sub(r"[\W_]*(seed|s)?[\W_]*\d*$", "", _common_beginning(names))
    return f"{common or '+'.join(names)} ×{len(names)}"


def _common_beginning(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _refuse_unlike(sides: Sequence[Side]) -> None:
    runs = [(side, run) for side in sides for run in side.runs]
    distances = any(run.kind == "distance" for _, run in runs)
    for column, what in (_ALIKE | (_DISTANCES_ALIKE if distances else {})).items():
        found = {str(run.path): run.values_of(column) for _, run in runs}
        if len({tuple(values) for values in found.values()}) > 1:
            said = "; ".join(f"{path}: {', '.join(values) or 'none'}" for path, values in found.items())
            raise PhyscliError(
                f"The runs are of different {what}. {said}.",
                expected=f"one and the same: scores of different {what} say nothing of each other",
                fix="score the videos of all runs with the same `physcli eval` command",
            )
    made_by = {str(run.path): run.values_of("mujoco") for _, run in runs if run.kind != "eval"}
    if len({release for found in made_by.values() for release in found} - {NOT_RECORDED}) > 1:
        said = "; ".join(f"{path}: MuJoCo {', '.join(found) or NOT_RECORDED}" for path, found in made_by.items())
        raise PhyscliError(
            f"The runs' clips were simulated by different releases of MuJoCo. {said}.",
            expected="one release: another one makes other clips of the same names",
            fix="run them again where the release that all shall have is installed, or on one and the same folder",
        )


# --- which items ---


def pair_items(sides: Sequence[Side], *, intersect: bool, ignore_seeds: bool) -> tuple[list[Key], list[str]]:
    """The items that all runs hold, in the first run's order, and what is to be said of them.

    Raises:
        PhyscliError: the runs hold different items, and no `intersect` was asked for or none are in all of them.
    """
    runs = [run for side in sides for run in side.runs]
    common = set.intersection(*(set(run.items) for run in runs))
    union = set.union(*(set(run.items) for run in runs))
    notes: list[str] = []
    dropped = len(union) - len(common)
    if dropped:
        counts = ", ".join(f"{len(run.items)} in {run.path}" for run in runs)
        found = f"The runs hold different items: {counts}; {len(common)} are in all of them."
        examples = "; ".join(
            f"only in {run.path}: " + " | ".join(describe(key) for key in only[:_EXAMPLES])
            for run in runs
            if (
                only := [
                    key for key in run.items if key not in set.union(*(set(o.items) for o in runs if o is not run))
                ]
            )
        )
        expected = "the same videos in every run" if runs[0].kind == "eval" else "the same clips in every run"
        if not common:
            raise PhyscliError(
                f"{found} {examples}".strip(),
                expected=expected + (", told by prompt, index and seed" if runs[0].kind == "eval" else ""),
                fix=_mend_seeds(runs, ignore_seeds) or "score videos of the same prompts",
            )
        if not intersect:
            raise PhyscliError(
                f"{found} {examples}".strip(),
                expected=expected,
                fix=f"--intersect compares the {len(common)} that all have, and says so",
            )
        notes.append(f"--intersect: {dropped} of {len(union)} items are dropped, because not every run holds them.")
    keys = [key for key in runs[0].items if key in common]
    for run in runs[1:]:
        other = next((key for key in keys if run.items[key].label != runs[0].items[key].label), None)
        if other is not None:
            raise PhyscliError(
                f"{describe(other)} has another label in {run.path} than in {runs[0].path}.",
                expected="probes of the same clips; these only share their names",
                fix="probe both models with the same --data",
            )
    data = {str(run.path): run.record.get("inputs", {}).get("data") for run in runs if run.kind != "eval"}
    if len(set(data.values())) > 1:
        if not dropped:
            raise PhyscliError(
                "The runs' clips have the same names but not the same content: the hashes of their data differ.",
                expected="runs on the same clips",
                fix="ask both models of the same --data",
            )
        notes.append("That the clips are the same is known by their names alone: the hashes of the data differ.")
    return keys, notes


def _mend_seeds(runs: Sequence[ScoredRun], ignore_seeds: bool) -> str:
    """The remedy where the prompts agree and only the seeds do not."""
    if runs[0].kind != "eval" or ignore_seeds:
        return ""
    if not set.intersection(*({key[:2] for key in run.items} for run in runs)):
        return ""
    return (
        "the prompts are the same but the seeds differ: sample all sets with the same --seed (the same noise makes the "
        "comparison sharper), or pair by prompt and index alone with --ignore-seeds"
    )


def _choose_metrics(sides: Sequence[Side], wanted: Sequence[str], notes: list[str]) -> list[str]:
    runs = [run for side in sides for run in side.runs]
    shared = [metric for metric in runs[0].metrics if all(metric in run.metrics for run in runs)]
    if not shared:
        raise PhyscliError(
            "The runs have no metric in common: "
            + "; ".join(f"{run.path}: {', '.join(run.metrics)}" for run in runs)
            + ".",
            expected="runs of the same `physcli eval` command",
        )
    for metric in wanted:
        if metric not in shared:
            raise unknown("metric", metric, shared)
    partly = sorted({metric for run in runs for metric in run.metrics} - set(shared))
    if partly:
        notes.append(f"Not in every run, so not compared: {', '.join(partly)}.")
    sums = sorted({metric for run in runs for metric in run.sums})
    if sums:
        notes.append(f"Without a value per item, so not compared: {', '.join(sums)}.")
    return list(dict.fromkeys(wanted)) if wanted else shared


def _differing_settings(sides: Sequence[Side]) -> list[str]:
    """Settings of the scoring itself that differ between the runs: they may be the whole difference."""
    told = {
        "videos",
        "models",
        "files",
        "subject",
        "seed",
        "limit",
        "cache_dir",
    }  # what is compared, or changes no score
    runs = [run for side in sides for run in side.runs]
    names = sorted({name for run in runs for name in run.record.get("settings", {})} - told)
    differing = [n for n in names if len({str(run.record.get("settings", {}).get(n)) for run in runs}) > 1]
    if not differing:
        return []
    said = "; ".join(
        f"{name}: " + ", ".join(str(run.record.get("settings", {}).get(name))[:60] for run in runs)
        for name in differing
    )
    return [f"The runs were not scored alike, which may be the difference itself. {said}."]


def same_videos(sides: Sequence[Side], keys: Sequence[Key]) -> list[str]:
    """Videos that two sides share byte for byte: a mistyped folder, or a change that never took hold."""
    if sides[0].runs[0].kind != "eval":
        return []
    notes = []
    reference = sides[0].runs[0].items
    for side in sides[1:]:
        items = side.runs[0].items
        same = sum(same_file(reference[key].video, items[key].video) for key in keys)
        if same:
            count = "all" if same == len(keys) else f"{same} of {len(keys)}"
            notes.append(f"{side.label} and {sides[0].label}: {count} videos are the same, byte for byte.")
    return notes


def differing_chroma(sides: Sequence[Side], keys: Sequence[Key]) -> list[str]:
    """Pairs of videos of which one keeps a colour for each pixel and the other for several."""
    reference = sides[0].runs[0].items
    flags = []
    for side in sides[1:]:
        pairs = [(_pixel_format(side.runs[0].items[key]), _pixel_format(reference[key])) for key in keys]
        unlike = Counter(pair for pair in pairs if chroma_step(pair[0]) != chroma_step(pair[1]) and all(pair))
        if unlike:
            said = "; ".join(f"{ours} against {theirs}: {count}" for (ours, theirs), count in sorted(unlike.items()))
            flags.append(
                f"{side.label} and {sides[0].label} differ in chroma in {unlike.total()} of {len(keys)} pairs "
                f"({said}). Small things lose colour and outline where several pixels share a colour, which may be the "
                "difference itself: write both sets alike."
            )
    return flags


def _pixel_format(item: Score) -> str:
    """As the run says; an older one does not, and its file is asked."""
    if item.pixel_format or item.video is None:
        return item.pixel_format
    try:
        return pixel_format(item.video)
    except DataError:
        return ""


# --- the numbers ---


def _compare_metric(reference: Side, side: Side, metric: str, keys: Sequence[Key], settings: CompareSettings) -> Row:
    """A row of metrics.json: side − reference, over the pairs in which every run has a score."""
    run = reference.runs[0]
    runs = (*reference.runs, *side.runs)
    ours, theirs = side.values(metric, keys), reference.values(metric, keys)
    whole = np.flatnonzero(~np.isnan(np.concatenate([ours, theirs])).any(axis=0)).tolist()
    items = [run.items[keys[index]] for index in whole]
    ours, theirs = ours[:, whole], theirs[:, whole]
    clusters = [item.cluster for item in items]
    strata = [item.stratum for item in items] if run.kind == "probe" else None
    measured = run.metrics[metric]
    binary = all(r.is_binary(metric) for r in runs)
    num_clusters = len(set(clusters))
    columns: dict[str, Any] = {
        "benchmark": run.rows[0]["benchmark"],
        "task": run.rows[0].get("task"),
        "subject": f"{side.label} − {reference.label}",
        "split": run.rows[0].get("split"),
        "n": len(items),
        "compared": side.label,
        "reference": reference.label,
        "of": metric,
        "binary": binary,
        "num_clusters": num_clusters,
        "num_missing": len(keys) - len(items),
        "training_seeds": [len(side.runs), len(reference.runs)],
    }
    if run.values_of("rater"):
        columns["rater"] = ", ".join(run.values_of("rater"))
    empty = (
        "num_changed",
        "compared_value",
        "reference_value",
        "low",
        "high",
        "wins",
        "ties",
        "losses",
        "p",
        "p_holm",
        "test",
    )
    columns |= dict.fromkeys((*empty, "smallest_detectable"))
    of = Metric(f"{metric}_difference", measured.kind, measured.higher_is_better, interval="bootstrap")
    if not items:
        return make_row(of, None, **columns)
    means = [_mean(values.mean(axis=0), strata) for values in (ours, theirs)]
    difference: Any
    if len(runs) > 2:
        difference = seeds_difference(ours, theirs, clusters=clusters, strata=strata, seed=settings.seed)
        test, p = "seeds", difference.p
        least = minimum_detectable_effect(difference.stderr, degrees_of_freedom=difference.degrees_of_freedom)
    else:
        difference = paired_difference(ours[0], theirs[0], clusters=clusters, strata=strata, seed=settings.seed)
        single = num_clusters == len(items) and strata is None
        if binary:
            test, p = "mcnemar", difference.p
        else:
            test, p = "sign flips", sign_flip_p(_effects(ours[0] - theirs[0], clusters, strata), seed=settings.seed)
        if binary and single:
            least = minimum_detectable_effect_of_mcnemar(difference.wins + difference.losses, len(items))
        else:
            freedom = max(1, num_clusters - 1)
            least = minimum_detectable_effect(difference.stderr, degrees_of_freedom=freedom)
        if num_clusters < FEWEST_CLUSTERS:
            least = math.inf
    wins, losses = difference.wins, difference.losses
    if measured.higher_is_better is False:
        wins, losses = losses, wins
    columns |= {
        "low": difference.low,
        "high": difference.high,
        "num_changed": int(np.sum(ours.mean(axis=0) != theirs.mean(axis=0))),
        "compared_value": means[0],
        "reference_value": means[1],
        "wins": wins,
        "ties": num_clusters - wins - losses,
        "losses": losses,
        "p": None if math.isnan(p) else p,
        "test": test,
        "smallest_detectable": least if math.isfinite(least) else None,
    }
    return make_row(of, difference.value, stderr=difference.stderr, **columns)


def _compare_groups(
    reference: Side, side: Side, metric: str, keys: Sequence[Key], settings: CompareSettings
) -> list[Row]:
    """Rows by group, to look at: intervals without a test, for the question was asked of all items."""
    items = reference.runs[0].items
    groups = sorted({group for key in keys if (group := items[key].group) is not None})
    if len(groups) < 2:
        return []
    rows = []
    for group in groups:
        inside = [key for key in keys if items[key].group == group]
        row = _compare_metric(reference, side, metric, inside, settings)
        rows.append(row | {"group": group, "p": None, "test": None})
    return rows


def _mean(values: np.ndarray, strata: Sequence[str | None] | None) -> float:
    """Of all items, or the unweighted mean of the strata's."""
    if strata is None:
        return float(values.mean())
    names = np.array([str(name) for name in strata])
    return float(np.mean([values[names == name].mean() for name in np.unique(names)]))


def _effects(delta: np.ndarray, clusters: Sequence[str], strata: Sequence[str | None] | None) -> np.ndarray:
    """Each cluster's share of the mean difference, up to a factor."""
    names = np.array([str(name) for name in strata]) if strata is not None else np.full(len(delta), "all")
    _, stratum, sizes = np.unique(names, return_inverse=True, return_counts=True)
    _, index = np.unique(np.array([f"{s}/{c}" for s, c in zip(stratum, clusters, strict=True)]), return_inverse=True)
    return np.bincount(index, weights=delta / sizes[stratum])


def _verdict(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "no scores"
    if not row["num_changed"]:
        return "identical"
    if row["p_holm"] is None or row["p_holm"] >= ALPHA:
        return "not shown"
    if row["higher_is_better"] is None:
        return "higher" if row["value"] > 0 else "lower"
    return "better" if (row["value"] > 0) == row["higher_is_better"] else "worse"


def _guard(rows: Sequence[Mapping[str, Any]], sides: Sequence[Side]) -> list[str]:
    """A video that stands still breaks no law: say where physical commonsense rose and motion fell.

    Either must be more than noise: the interval of motion lies below zero, or commonsense is better after Holm.
    """
    metrics = sides[0].runs[0].metrics
    flags = []
    for side in sides[1:]:
        of = {row["of"]: row for row in rows if row["compared"] == side.label and row["group"] == "all"}

        def changed(role: Role, sign: int, of: Mapping[str, Mapping[str, Any]] = of) -> list[Mapping[str, Any]]:
            return [row for name, row in of.items() if metrics[name].role == role and sign * (row["value"] or 0) > 0]

        for commonsense in changed("commonsense", 1):
            for motion in changed("motion", -1):
                clear = motion["high"] is not None and motion["high"] < 0
                if clear or commonsense["verdict"] == "better":
                    flags.append(
                        f"{side.label}: {commonsense['of']} rises ({difference_text(commonsense)}) while "
                        f"{motion['of']} falls ({difference_text(motion)}{'' if clear else ', within noise'}). A video "
                        "in which less happens breaks fewer laws: this is no proof of better physics."
                    )
                    break
    return flags


def _item_rows(sides: Sequence[Side], metrics: Sequence[str], keys: Sequence[Key]) -> list[dict[str, Any]]:
    rows = []
    reference = sides[0]
    for side in sides[1:]:
        delta = {m: side.values(m, keys).mean(axis=0) - reference.values(m, keys).mean(axis=0) for m in metrics}
        for number, key in enumerate(keys):
            item = reference.runs[0].items[key]
            rows.append(
                {
                    "compared": side.label,
                    "reference": reference.label,
                    "item": list(key),
                    "group": item.group,
                    **{f"{metric}_difference": float(values[number]) for metric, values in delta.items()},
                }
            )
    return rows
