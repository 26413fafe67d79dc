"""Results as tables, and their numbers as text: one way for the terminal, for reports and for comparisons.

What a number is, its row says (`physcli.rows`): rates are shown in per cent, all else as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from physcli.benchmarks.dynamic_degree import LARGEST_MOTION
from physcli.data.video import chroma_step
from physcli.progress import counted
from physcli.rows import metric_of
from physcli.tasks.blind.votes_result import MODELS, RELIABILITY, ends_text
from physcli.tasks.blind.votes_result import value_text as strength_text
from physcli.tasks.figures import (
    ALPHA,
    interval_text,
    least_text,
    p_text,
    score_texts,
    value_text,
)
from physcli.tasks.probe_result import probe_title
from physcli.tasks.verifiers import GAIN, TWINS

if TYPE_CHECKING:
    from physcli.tasks.agreement import AgreementResult
    from physcli.tasks.blind.votes_result import VotesResult
    from physcli.tasks.compare_result import CompareResult, Side
    from physcli.tasks.controls import ControlsResult
    from physcli.tasks.distance.result import DistanceResult
    from physcli.tasks.eval import EvalResult
    from physcli.tasks.import_scores import ImportResult
    from physcli.tasks.likephys.result import LikePhysResult
    from physcli.tasks.physics_iq.result import PhysicsIQResult
    from physcli.tasks.probe_result import ProbeResult
    from physcli.tasks.select import SelectResult

_OF_A_STUDY = ("joint", "sa", "pc", "dynamic_degree", "motion_px")  # of the metrics there may be, those with room
_VERDICTS = {"sa": "SA", "pc": "PC", "joint": "Joint"}


class Toned(NamedTuple):
    """A cell that is drawn as good ("better") or bad news ("worse")."""

    text: str
    tone: str


@dataclass(frozen=True)
class Table:
    """A table ready to be drawn.

    Attributes:
        title: Above it.
        columns: Headings.
        rows: Cells; None is a dash.
        caption: Below it.
        right: Columns aligned right.
        whole: Columns whose cells are never broken over lines.
        sections: Rows after which a line is drawn.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    right: Sequence[int] = ()
    whole: Sequence[int] = ()
    sections: Sequence[int] = ()


# --- numbers ---


def scores(result: EvalResult) -> Table:
    """The scores over all videos: a line for each metric."""
    head = [row for row in result.rows if row["group"] == "all"]
    first = head[0]
    counts = {row["metric"].removeprefix("missing/"): row.get("count") for row in head}
    answers = [f"{counts[what]} {what.upper()}" for what in ("sa", "pc") if counts.get(what)]
    caption = [
        f"Rater: {first['rater']}." if "rater" in first else "Checked on the pixels.",
        f"{counts['video']} of {len(result.items)} could not be scored"
        + (f"; answers that cannot be read: {', '.join(answers)}." if answers else "."),
    ]
    formats = Counter(item["pixel_format"] for item in result.items if item.get("pixel_format"))
    if len({chroma_step(name) for name in formats}) > 1:
        said = ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))
        caption.append(f"The videos differ in chroma ({said}): small things lose colour where pixels share one.")
    elif any(chroma_step(name) != (1, 1) for name in formats):
        said = ", ".join(sorted(formats))
        caption.append(
            f"In these videos pixels share colours ({said}): compare them with none that were written in 4:4:4."
        )
    caption += [
        f"A still video does well in {row['metric']}: read it beside what moves."
        for row in head
        if metric_of(row).role == "commonsense"
    ]
    return Table(
        f"{first['benchmark']}: {counted(len(result.items), 'video')} of {first['subject']}",
        ["", "value", "95 %", "n"],
        [[row["metric"], *score_texts(row), row["n"]] for row in head],
        " ".join(caption),
        right=(1, 2, 3),
    )


def imported(result: ImportResult) -> Table:
    """Scores that others made, over all videos: a line for each metric, and the official number where there is one."""
    head = [row for row in result.rows if row["group"] == "all"]
    first = head[0]
    official = any("official" in row for row in head)
    still = [row["metric"] for row in head if metric_of(row).role == "commonsense"]
    caption = [f"Read as {result.layout}."]
    if "rater" in first:
        caption.append(f"Rater: {first['rater']}.")
    if still:
        caption.append(f"A still video does well in {', '.join(still)}: read it beside what moves.")
    return Table(
        f"{first['benchmark']}: {counted(len(result.items), 'video')} of {first['subject']}",
        ["", "value", "95 %", "n", *(["official"] if official else [])],
        [
            [
                row["metric"],
                *score_texts(row),
                row["n"],
                *([value_text(row["official"], row) if "official" in row else "–"] if official else []),
            ]
            for row in head
        ],
        " ".join(caption),
        right=(1, 2, 3, 4)[: 4 if official else 3],
    )


def agreement(result: AgreementResult) -> list[Table]:
    """How far a judge agrees with the truth; how many videos pass; the same by group."""

    def cell(verdict: str, measure: str, group: str = "all") -> str | None:
        row = result.row(verdict, measure, group)
        if row is None or row["value"] is None:
            return None
        return f"{row['value']:.2f}" + ("" if row["stderr"] is None else f" ±{1.96 * row['stderr']:.2f}")

    names, verdicts = _VERDICTS, result.verdicts
    measures = ("agreement", "kappa", "ranking_area", "rank_correlation")
    tables = [
        Table(
            f"{result.judge} against {result.truth}: {counted(result.num_videos, 'video')}",
            ["", "agree", "κ", "ranking", "rank correlation"],
            [[names[verdict], *(cell(verdict, measure) for measure in measures)] for verdict in verdicts],
            "± is a 95 % interval over prompts. κ: 0 by chance, 1 where they always agree. ranking: how often a video "
            "that truly passes is graded above one that fails; ½ by chance.",
            right=range(1, 5),
            whole=range(5),
        ),
        Table(
            "How many videos pass",
            ["", "both", f"only by {result.truth}", "only by the judge", "neither", "no answer"],
            [[names[v], *result.counts(v), result.num_videos - sum(result.counts(v))] for v in verdicts],
            right=range(1, 6),
        ),
    ]
    if result.groups:
        lines = [
            [group, sum(result.counts(verdicts[0], group)), *(cell(v, "agreement", group) for v in verdicts)]
            for group in result.groups
        ]
        columns = ["", "n", *(names[verdict] for verdict in verdicts)]
        right, whole = range(1, len(columns)), range(len(columns))
        tables.append(Table("Agreement by group", columns, lines, right=right, whole=whole))
    return tables


def selection(result: SelectResult) -> Table:
    """What each verifier's picks are worth to the judge, and what was paid in motion."""
    motion = LARGEST_MOTION.name

    def gain(subject: str, metric: str) -> dict[str, Any] | None:
        return result.row(subject, f"{metric}{GAIN}")

    def shown(subject: str, metric: str) -> str | None:
        row = result.row(subject, metric)
        return None if row is None or row["value"] is None else value_text(row["value"], row)

    def moved(subject: str) -> str | None:
        """The motion, and what is gained of it."""
        change, value = gain(subject, motion), shown(subject, motion)
        return value if change is None else f"{value} ({value_text(change['value'], change, sign=True)})"

    def percent(subject: str, metric: str) -> str | None:
        row = result.row(subject, metric)
        return None if row is None or row["value"] is None else f"{100 * row['value']:.0f} %"

    lines = []
    for subject in result.subjects:
        more = gain(subject, result.metric)
        told = [None, None] if more is None else [value_text(more["value"], more, sign=True), interval_text(more)]
        share, still = percent(subject, "gain_share"), percent(subject, "still_wins")
        lines.append([subject, shown(subject, result.metric), *told, share, moved(subject), still])
    head = result.rows[0]
    few, many = head["fewest_videos"], head["most_videos"]
    videos = str(many) if few == many else f"{few} to {many}"
    caption = (
        "Gains, of motion in brackets, are over all videos; intervals over prompts. The oracle is the judge itself. "
        "still wins: where the first frame of its pick, held, would be preferred to it."
    )
    if result.like_judges:
        caption += f" {', '.join(result.like_judges)} looks at what the judge looks at."
    return Table(
        f"The best of {videos} videos of each of {counted(head['n'], 'prompt')}",
        ["picked by", result.metric, "gain", "95 %", "of oracle", "motion, px", "still wins"],
        lines,
        caption,
        right=range(1, 7),
        whole=(0,),
        sections=(0, len(lines) - 2),
    )


def _rate_cell(row: Mapping[str, Any] | None, *, wide: bool) -> str | None:
    """A rate without its sign, with its interval where it is `wide`; None of none."""
    if row is None or row["value"] is None:
        return None
    value, spread = score_texts(row)
    return value.removesuffix(" %") + (f" ({spread})" if wide and spread != "–" else "")


def controls(result: ControlsResult, *, wide: bool) -> Table:
    """How often each verifier prefers a copy to the clip itself, in per cent; with intervals where it is `wide`."""

    def cell(subject: str, group: str) -> str | None:
        return _rate_cell(result.row(subject, group), wide=wide)

    subjects, groups = result.subjects, result.groups
    counts = {group: row["n"] for group in groups if (row := result.row(subjects[0], group)) is not None}
    return Table(
        "Copies preferred to the clip itself, %",
        ["", "n", *subjects],
        [[group, counts[group], *(cell(subject, group) for subject in subjects)] for group in groups],
        f"Ties count half. 50 is chance, 0 is right. {TWINS}: the twins that break a law, and below by what they do. "
        "Backwards, a clip may be as possible as before.",
        right=range(1, len(subjects) + 2),
        whole=(0,),
        sections=[groups.index(TWINS) - 1, groups.index(TWINS)] if TWINS in groups else (),
    )


def votes(result: VotesResult) -> list[Table]:
    """What raters preferred; strengths; how far raters are to be trusted."""
    lines: list[list[Any]] = []
    for row in result.preferences:
        if row["value"] is None:
            lines.append([f"{row['subject']} to {row['reference']}", None, None, 0, None, None])
            continue
        clear = row["p_holm"] < ALPHA
        tone = ("better" if row["value"] > 0.5 else "worse") if clear else ""
        prompts = f"{row['prompts_won']} / {row['prompts_tied']} / {row['prompts_lost']}"
        share = Toned(f"{100 * row['value']:.1f}", tone)
        name = f"{row['subject']} to {row['reference']}"
        lines.append([name, share, ends_text(row), row["n"], prompts, p_text(row["p_holm"])])
    preferred = Table(
        f"{counted(len(result.ballots) - len(result.excluded), 'rater')}: {result.key.record['question']}",
        ["preferred", "%", "95 %", "votes", "prompts", "Holm"],
        lines,
        "A tie is half a vote. Interval: prompts drawn again. Prompts: won, tied, lost. Holm: p of a permutation "
        "test, random sign flips of the prompts, corrected. " + result.needed(),
        right=range(1, 6),
        whole=range(1, 6),
    )
    lines = [
        [name, *(text for row in found for text in (strength_text(row), ends_text(row)))]
        for name, found in _strength_rows(result)
    ]
    columns = ["strength, logits", *(name for model in result.models for name in (MODELS[model], "95 %"))]
    strengths = Table(
        "Strengths, and what the left side adds",
        columns,
        lines,
        "Interval: prompts and raters drawn again.",
        right=range(1, len(columns)),
        whole=range(1, len(columns)),
    )
    known = [(words, result.row(metric)) for metric, words in RELIABILITY.items()]
    trust = [[words, *score_texts(row), row["n"]] for words, row in known if row is not None]
    return [preferred, strengths, Table("Raters", ["", "value", "95 %", "n"], trust, right=(1, 2, 3), whole=(1, 2, 3))]


def _strength_rows(result: VotesResult) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for number, run in enumerate(result.key.runs):
        yield run, [result.rows_of("strength", model)[number] for model in result.models]
    yield "left side", [result.rows_of("side_bias", model)[0] for model in result.models]


# --- compare ---


def study_arms(result: CompareResult, judge: str) -> Table:
    """Arms by metrics, the control first: values, and how each differs from the control's."""
    metrics = list(dict.fromkeys(row["of"] for row in result.rows))
    chosen = [name for name in _OF_A_STUDY if name in metrics] or metrics[:5]
    lines: list[list[Any]] = []
    for number, side in enumerate(result.sides):
        rows = {row["of"]: row for row in result.rows_of(side if number else result.sides[1])}
        line: list[Any] = [side.label + (f" ×{len(side.runs)}" if len(side.runs) > 1 else "")]
        for name in chosen:
            row = rows[name]
            if not number:
                line.append(value_text(row["reference_value"], row))
                continue
            text = f"{value_text(row['compared_value'], row)} ({value_text(row['value'], row, sign=True)})"
            line.append(Toned(text, row["verdict"] if row["verdict"] in ("better", "worse") else ""))
        lines.append(line)
    return Table(
        f"{judge}: {counted(len(result.keys), 'video')} a run, each arm against {result.reference.label}",
        ["", *chosen],
        lines,
        "Rates are in per cent, differences in points; coloured: beyond noise, after Holm. The report has intervals.",
        right=range(1, len(chosen) + 1),
    )


def comparison(result: CompareResult, side: Side, *, wide: bool) -> Table:
    """A compared run against the reference: a line for each metric; with p and the pairs' counts where it is `wide`."""
    columns = ["", "ref.", "diff.", "95 % interval", "Holm", "least", ""]
    if wide:
        columns = ["", "n", "ref.", "run", "diff.", "95 % interval", "p", "Holm", f"{result.unit} won / tied / lost"]
        columns += ["least", ""]
    lines: list[list[Any]] = []
    for row in result.rows_of(side):
        difference = [value_text(row["value"], row, sign=True), interval_text(row)]
        end = [least_text(row), Toned(row["verdict"], row["verdict"])]
        if wide:
            counts = None if row["wins"] is None else f"{row['wins']} / {row['ties']} / {row['losses']}"
            means = [value_text(row[f"{of}_value"], row) for of in ("reference", "compared")]
            p = [p_text(row["p"]), p_text(row["p_holm"])]
            lines.append([row["of"], row["n"], *means, *difference, *p, counts, *end])
        else:
            name = row["of"].replace("/", "/ ").replace("_", " ")  # so that it breaks where words end
            lines.append([name, value_text(row["reference_value"], row), *difference, p_text(row["p_holm"]), *end])
    missing = {row["of"]: row["num_missing"] for row in result.rows_of(side) if row["num_missing"]}
    told = [result.caption(side)]
    if missing:
        told.append(
            "Pairs without a score of one of the two are left out: "
            + ", ".join(f"{count} of {name}" for name, count in missing.items())
            + "."
        )
    count = counted(len(result.keys), "pair")
    return Table(
        f"{side.label} against {result.reference.label}, the reference ({count}; rates in %)",
        columns,
        lines,
        " ".join(told),
        right=range(1, len(columns) - 1),
        whole=range(1, len(columns)),
    )


# --- likephys ---


def likephys(result: LikePhysResult, *, wide: bool) -> Table:
    """Preference errors in per cent: a line for each violation, a column for each model and control; with intervals
    where it is `wide`."""

    def cell(subject: str, metric: str, group: str = "all") -> str | None:
        return _rate_cell(result.row(subject, metric, group), wide=wide)

    subjects, first = result.subjects, result.rows[0]
    lines: list[list[Any]] = [
        [group, *(cell(subject, "ppe", group) for subject in subjects)] for group in result.groups
    ]
    means = [("pooled", "ppe"), ("mean of violations", "ppe_mean_of_violations")]
    means += [("mean of scenarios", "ppe_mean_of_scenarios")]
    for name, metric in means:
        values = [cell(subject, metric) for subject in subjects]
        if any(values):
            lines.append([name, *values])
    least, most = min(row["min_num_frames"] for row in result.rows), max(row["max_num_frames"] for row in result.rows)
    frames = f"{least}" if least == most else f"{least} to {most}"
    told = f"{first['num_scenes']} scenes of {result.data}, {frames} frames, {first['num_levels']} levels"
    readings = sorted({f"{row['reading']} ({row['subject']})" for row in result.rows if not row["control"]})
    caption = [
        f"{told}; loss: {', '.join(readings)}. Lower is better; ties are errors.",
        "/untrained: the network with random weights; /zero: no network. A coin gives 50, they do not: some violations "
        "are cheaper to denoise for any network.",
    ]
    if wide:
        caption.append("Intervals: 95 %, by clusters of scenes.")
    if any(row.get("in_means") is False for row in result.rows):
        caption.append(
            "Violations that the released table leaves out are not in the means of violations and scenarios."
        )
    return Table(
        "PPE: impossible clips preferred, %",
        ["", *(name.replace("/", "\n/") for name in subjects)],
        lines,
        " ".join(caption),
        right=range(1, len(subjects) + 1),
        whole=(0,),
        sections=[len(result.groups) - 1],
    )


def likephys_controls(result: LikePhysResult, *, wide: bool) -> Table:
    """What else the loss prefers, and whether it sees the violation where it is; with intervals where it is `wide`."""
    lines: list[list[Any]] = []
    for subject in result.subjects:
        line: list[Any] = [subject]
        for metric in ("still_preferred", "blur_preferred", "localisation_ap", "localisation_gain"):
            row = result.row(subject, metric)
            if row is None or row["value"] is None:
                line.append(None)
                continue
            value, spread = score_texts(row)
            shown = value.removesuffix(" %")
            told = f"{shown} {spread}" if spread.startswith("±") else f"{shown} ({spread})"
            line.append(told if wide and spread != "–" else shown)
            if metric == "localisation_ap":
                line.append(f"{100 * row['prevalence']:.1f}")
        if len(line) < 6:  # no masks
            line.insert(-1, None)
        lines.append(line)
    return Table(
        "Preferred to the clip itself, and where the violation is seen, %",
        ["", "still", "blurred", "AP", "by chance", "gain"],
        lines,
        "still, blurred: the clip's first frame held, or the clip blurred, has a loss no higher than the clip itself. "
        "AP: of the difference of the twins' errors against the violation's mask, among places with things; by "
        "chance: the share of these places that are in the mask.",
        right=range(1, 6),
        whole=(0,),
    )


# --- physics-iq ---

_TERMS = ("spatiotemporal_iou", "spatial_iou", "weighted_spatial_iou", "mse")


def physics_iq(result: PhysicsIQResult, *, wide: bool) -> Table:
    """Both scores and the four numbers: a line for each model and control; with intervals where it is `wide`."""
    seeds = any(row["num_runs"] > 1 for row in result.rows)

    def cell(subject: str, metric: str) -> str | None:
        row = result.row(subject, metric)
        if row is None or row["value"] is None:
            return None
        value, spread = score_texts(row)
        shown = value.removesuffix(" %")
        if row["std"] is not None:
            shown += f" ±{value_text(row['std'], row)}"
        return shown + (f" ({spread})" if wide and spread != "–" and metric.startswith("physics_iq") else "")

    metrics = ("physics_iq_verified", "physics_iq", *_TERMS, "moving_area")
    lines = [[subject, *(cell(subject, metric) for metric in metrics)] for subject in result.subjects]
    first = result.rows[0]
    caption = [
        f"{first['num_scenarios']} scenarios, {first['num_frames']} frames. ST, S, WS: spatiotemporal, spatial and "
        "weighted spatial IoU; moves: pixels in the masks; all in per cent, but for MSE."
    ]
    caption.append("still: the last conditioning frame, held. take 2: the real thing once more, the ceiling.")
    if seeds:
        caption.append("±: sample standard deviation over sampling seeds.")
    if wide:
        caption.append("Intervals: 95 %, over scenarios.")
    return Table(
        "Physics-IQ, %",
        ["", "Verified", "original", "ST", "S", "WS", "MSE", "moves"],
        lines,
        " ".join(caption),
        right=range(1, len(metrics) + 1),
        whole=(0,),
        sections=[len(result.models) - 1] if result.models else (),
    )


def physics_iq_terms(result: PhysicsIQResult) -> Table:
    """The four terms of the Verified score."""
    lines: list[list[Any]] = []
    for subject in result.subjects:
        found = [result.row(subject, f"{name}_ratio") for name in _TERMS]
        lines.append([subject, *(None if row is None else value_text(row["value"], row) for row in found)])
    return Table(
        "Terms of the Verified score, %",
        ["", "ST", "S", "WS", "MSE"],
        lines,
        "Each number over that between the two takes (MSE: the other way), at most 100; the mean of the four is the "
        "score.",
        right=range(1, 5),
        whole=(0,),
        sections=[len(result.models) - 1] if result.models else (),
    )


# --- distance ---


def distance(result: DistanceResult, *, wide: bool) -> Table:
    """Both distances to a half of the real clips: a line for each set; with the Fréchet distance's interval where it is
    `wide`."""
    columns = ["", "MMD²", "95 %", "Fréchet", *(["95 %"] if wide else [])]
    lines: list[list[Any]] = []
    for subject in result.subjects:
        found = [result.row(subject, metric) for metric in ("mmd2", "frechet")]
        texts = [text for row in found if row is not None for text in score_texts(row)]
        lines.append([subject, *texts[: len(columns) - 1]])
    first = result.first
    shown = f"{first['encoder']}, block {first['block']}, {first['dimension']} dimensions"
    caption = [
        f"{first['n']} videos a set, {first['num_frames']} frames each; {shown}; kernel {first['kernel']}. Lower is "
        "nearer. /still: the first frame of each video, held. real: two halves of the real clips, the floor.",
        "MMD² is unbiased and may be below 0. Fréchet, squared, is biased upwards by so few videos: the floor is not 0"
        + (", and of no more videos than dimensions it says little." if result.rank_deficient else "."),
    ]
    return Table(
        f"Distance to real clips, in features of {first['encoder']}",
        columns,
        lines,
        " ".join(caption),
        right=range(1, len(columns)),
        whole=range(1, len(columns)),
        sections=[len(lines) - 4],
    )


def distance_controls(result: DistanceResult) -> Table:
    """What holding the first frame, and blur, add to MMD²: whether these features see it."""
    lines = []
    for subject in result.subjects:
        row = result.row(subject, "mmd2_added")
        if row is not None:
            lines.append([subject, row["reference_subject"], *score_texts(row)])
    return Table(
        "What still and blurred videos add to MMD²",
        ["", "beyond that of", "MMD²", "95 %"],
        lines,
        "Paired; intervals over prompts and scenes. What adds nothing, these features do not see.",
        right=(2, 3),
        whole=(2, 3),
    )


# --- probe ---


def probe(result: ProbeResult, *, errors: bool = True) -> Table:
    """Accuracy: a line for each scenario, a column for each subject. Without `errors`, which take room, only those of
    the mean are told, in a line of their own."""
    rows = result.rows
    groups = [g for g in dict.fromkeys(r["group"] for r in rows if r["metric"] == "accuracy") if g != "all"]
    published = {(r["subject"], r["group"]): r["value"] for r in rows if r["metric"] == "published_accuracy"}
    by_scenario = [name for name in dict.fromkeys(name for name, _ in published) if (name, "all") not in published]
    lines: list[list[Any]] = []
    for group in [*groups, "all"]:
        line: list[Any] = ["mean" if group == "all" else group]
        for subject in result.subjects:
            row = result.accuracy(subject, group)
            line.append(None if row is None else _percent(row["value"], row["stderr"] if errors else None))
        for name in by_scenario:
            value = published.get((name, group))
            line.append(None if value is None else _percent(value, None))
        lines.append(line)
    if not errors:
        means = [result.accuracy(subject) for subject in result.subjects]
        told = [None if row is None or row["stderr"] is None else f"±{100 * row['stderr']:.1f}" for row in means]
        lines.append(["", *told, *("" for _ in by_scenario)])
    heads = {subject: row for subject in result.subjects if (row := result.accuracy(subject)) is not None}
    columns = [
        "accuracy, %",
        *(name + ("\n(random init)" if row.get("random_init") else "") for name, row in heads.items()),
        *(f"{name}\n(published)" for name in by_scenario),
    ]
    head = next(iter(heads.values()))
    taps = [
        f"{name}: {row['tap']}" + (f" (SNR {row['snr']:.3g})" if row.get("snr") is not None else "")
        for name, row in heads.items()
        if row.get("tap")
    ]
    overall = [f"{name} {_percent(value, None)}" for (name, group), value in published.items() if group == "all"]
    caption = [
        "± one standard error, clustered by pair; chance is 50.",
        f"{head['num_train']} training and {head['n_total']} test clips"
        + "".join(f"; {len(names)} dropped: {reason}" for reason, names in result.dropped.items())
        + ".",
    ]
    if taps:
        caption.append(f"Features: {'; '.join(taps)}.")
    if overall:
        caption.append(f"Published means, official readout, all of Physion v1.5: {', '.join(overall)}.")
    return Table(
        probe_title(result),
        columns,
        lines,
        " ".join(caption),
        right=range(1, len(columns)),
        whole=(0,),
        sections=[len(groups) - 1],
    )


def probe_differences(result: ProbeResult) -> Table | None:
    """The paired comparisons of a probe's subjects, mean over scenarios; None of one subject."""
    lines = []
    for row in (row for row in result.rows if row["metric"] == "accuracy_difference"):
        interval, remark = "–", "too few items"
        if row["low"] is not None and np.isfinite(row["low"]):
            interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
            remark = "within noise" if row["low"] <= 0 <= row["high"] else ""
        lines.append([row["subject"], f"{100 * row['value']:+.1f}", interval, f"{row['p']:.2g}", remark])
    if not lines:
        return None
    return Table(
        "Paired differences (same items; McNemar's p)",
        ["a − b", "points", "95 % interval", "p", ""],
        lines,
        "within noise: the interval, of the mean over scenarios, holds 0. p counts pairs won and lost, whatever their "
        "scenario.",
        right=(1, 2, 3),
        whole=(1, 2, 3, 4),
    )


def _percent(value: float, stderr: float | None) -> str:
    return f"{100 * value:.1f}" + (f" ±{100 * stderr:.1f}" if stderr is not None else "")
