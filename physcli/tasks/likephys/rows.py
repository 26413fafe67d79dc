"""From error maps to scores: losses, which pairs are ranked wrongly, where the violation is seen; and their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from physcli.benchmarks.likephys import (
    BLUR,
    LEFT_OUT,
    LOCALISATION,
    LOCALISATION_GAIN,
    MARGIN,
    PPE,
    SCENARIOS_MEAN,
    STILL,
    VIOLATIONS_MEAN,
    mean_of_scenarios,
    mean_of_violations,
    share_misranked,
)
from physcli.benchmarks.localisation import localise
from physcli.rows import Metric, Row, interval_columns, make_row, mean_row
from physcli.stats import bootstrap_interval, share_interval
from physcli.tasks.likephys.scenes import Shown, ShownScene, violation_masks

Maps = Mapping[str, Tensor]  # of a scene's clips by key, [S, F, h, w] each


def loss_of(errors: Tensor, weights: np.ndarray) -> float:
    """A clip's loss: the mean over levels of the weighted mean over latent places.

    Args:
        errors: [S, F, h, w].
        weights: Of the levels [S].
    """
    return float((errors.double().mean(dim=(1, 2, 3)).numpy() * weights).mean())


def error_of_places(errors: Tensor, weights: np.ndarray) -> np.ndarray:
    """A clip's error at every latent place, the weighted mean over levels; float64 [F, h, w]. Arguments as above."""
    return (errors.double().numpy() * weights[:, None, None, None]).mean(axis=0)


def group_of(scenario: str, violation: str, *, by_scenario: bool) -> str:
    """A violation's name in tables: with its scenario, where each has violations of its own."""
    return f"{scenario}/{violation}" if by_scenario else violation


def score_scene(scene: ShownScene, maps: Maps, weights: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Score a scene by a subject's error maps.

    Args:
        scene: The scene.
        maps: Its clips' maps.
        weights: Of the levels [S].

    Returns:
        A row of items.jsonl for each violation, without what names the subject; and the shares of valid clips to which
        the controls are preferred, by name of the metric.
    """
    losses = {key: loss_of(errors, weights) for key, errors in maps.items()}
    valid = [losses[shown.key] for shown in scene.valid]
    rows = []
    for violation, clips in scene.invalid.items():
        invalid = [losses[shown.key] for shown in clips]
        ap, prevalence = _localisation(scene.valid, clips, maps, weights)
        rows.append(
            {
                "scenario": scene.scene.scenario,
                "scene": scene.scene.name,
                "violation": violation,
                "cluster": scene.scene.cluster,
                "video": str(clips[0].view.clip.path.resolve()),
                "prompt": clips[0].prompt,
                "num_pairs": len(valid) * len(invalid),
                "loss_valid": float(np.mean(valid)),
                "loss_invalid": float(np.mean(invalid)),
                PPE.name: share_misranked(valid, invalid),
                MARGIN.name: float(np.mean([[(i - v) / v for i in invalid] for v in valid])),
                LOCALISATION.name: ap,
                "prevalence": prevalence,
                "gain": None if ap is None or prevalence is None else ap - prevalence,  # compared, it would be AP again
            }
        )
    preferred = {
        metric.name: float(np.mean([losses[control.key] <= loss for control, loss in zip(made, valid, strict=True)]))
        for metric, made in ((STILL, scene.still), (BLUR, scene.blurred))
    }
    return rows, preferred


def _localisation(
    valid: Sequence[Shown], invalid: Sequence[Shown], maps: Maps, weights: np.ndarray
) -> tuple[float | None, float | None]:
    """Average precision and prevalence, the mean over pairs; None where no pair has a mask, or an empty one."""
    found = []
    for possible in valid:
        for impossible in invalid:
            errors = [error_of_places(maps[shown.key], weights) for shown in (possible, impossible)]
            masks = violation_masks(possible, impossible, errors[0].shape)  # type: ignore[arg-type]
            if masks is not None and masks[0].any():
                found.append(localise(errors[1] - errors[0], *masks))
    if not found:
        return None, None
    ap, prevalence = np.mean(found, axis=0)
    return float(ap), float(prevalence)


def aggregate(
    items: Sequence[Mapping[str, Any]],
    controls: Sequence[Mapping[str, Any]],
    *,
    by_scenario: bool,
    **columns: Any,
) -> list[Row]:
    """A subject's rows of metrics.json.

    Args:
        items: As of `score_scene`, of all scenes.
        controls: For each scene its cluster, and the shares by metric.
        by_scenario: Each scenario has violations of its own.
        columns: The other arguments of `make_row`, `seed` among them, which is also the bootstrap's.
    """
    rows = _mean_rows(items, group="all", **columns)
    groups = [group_of(item["scenario"], item["violation"], by_scenario=by_scenario) for item in items]
    for group in sorted(set(groups)):
        members = [item for item, of in zip(items, groups, strict=True) if of == group]
        found = _mean_rows(members, group=group, **columns)
        rows += [row | {"in_means": not _is_left_out(members[0])} for row in found]
    rows += _means(items, groups, **columns)
    for metric in (STILL, BLUR):
        values = [control[metric.name] for control in controls]
        rows.append(rate_row(metric, values, [control["cluster"] for control in controls], group="all", **columns))
    return rows


def _mean_rows(items: Sequence[Mapping[str, Any]], **columns: Any) -> list[Row]:
    clusters = [item["cluster"] for item in items]
    rows = [rate_row(PPE, [item[PPE.name] for item in items], clusters, **columns)]
    rows.append(mean_row(MARGIN, [item[MARGIN.name] for item in items], clusters=clusters, **columns))
    known = [item for item in items if item[LOCALISATION.name] is not None]
    if known:
        prevalence = float(np.mean([item["prevalence"] for item in known]))
        names = [item["cluster"] for item in known]
        for metric, field in ((LOCALISATION, LOCALISATION.name), (LOCALISATION_GAIN, "gain")):
            row = mean_row(metric, [item[field] for item in known], clusters=names, **columns)
            rows.append(row | {"prevalence": prevalence})
    return rows


def rate_row(metric: Metric, values: Sequence[float], clusters: Sequence[str], **columns: Any) -> Row:
    """A row of the mean of shares, with Wilson's interval by clusters: where all or none are wrong, of so many
    independent items as there are clusters."""
    row = mean_row(metric, values, clusters=clusters, **columns)
    stderr, num_clusters = row["stderr"], len(set(clusters))
    low, high = share_interval(row["value"], stderr, len(values) if stderr else num_clusters)
    return row | {"low": low, "high": high, "num_clusters": num_clusters}


def _is_left_out(item: Mapping[str, Any]) -> bool:
    return item["violation"] in LEFT_OUT.get(item["scenario"], ())


def _means(items: Sequence[Mapping[str, Any]], groups: Sequence[str], **columns: Any) -> list[Row]:
    """The unweighted means of the violations, and where there are several scenarios of these; by a bootstrap over
    clusters. The violations that the released table leaves out are left out."""
    counted = [number for number, item in enumerate(items) if not _is_left_out(item)]
    if not counted:
        return []
    values = np.array([items[number][PPE.name] for number in counted])
    scenarios = [items[number]["scenario"] for number in counted]
    clusters = [items[number]["cluster"] for number in counted]
    named = [groups[number] for number in counted]
    found: list[tuple[Metric, Callable[[np.ndarray], float]]] = [
        (VIOLATIONS_MEAN, lambda drawn: mean_of_violations({"": _by(values, named, drawn)}))
    ]
    if len(set(scenarios)) > 1:
        cells = [(items[number]["scenario"], items[number]["violation"]) for number in counted]

        def of_scenarios(drawn: np.ndarray) -> float:
            nested: dict[str, dict[str, float]] = {}
            for (scenario, violation), ppe in _by(values, cells, drawn).items():
                nested.setdefault(scenario, {})[violation] = ppe
            return mean_of_scenarios(nested)

        found.append((SCENARIOS_MEAN, of_scenarios))
    rows = []
    for metric, statistic in found:
        value = statistic(np.arange(len(values)))
        # The statistic is of the drawn items' numbers; a draw without one of the violations is a mean of the others.
        ends = bootstrap_interval(statistic, clusters=clusters, seed=columns["seed"])
        more: dict[str, Any] = {**interval_columns(ends), "num_clusters": len(set(clusters))}
        rows.append(make_row(metric, value, stderr=ends.stderr, n=len(values), **more, **columns))
    return rows


def _by(values: np.ndarray, groups: Sequence[Any], drawn: np.ndarray) -> dict[Any, float]:
    """Group → the mean over its items that are drawn."""
    names, index = _indexed(tuple(groups))
    sums = np.bincount(index[drawn], weights=values[drawn], minlength=len(names))
    counts = np.bincount(index[drawn], minlength=len(names))
    return {name: sums[i] / counts[i] for i, name in enumerate(names) if counts[i]}


def _indexed(groups: tuple[Any, ...]) -> tuple[list[Any], np.ndarray]:
    names = sorted(set(groups))
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[group] for group in groups])
