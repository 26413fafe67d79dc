"""`physcli probe …`: how much physics does a model understand?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from physcli.cli import render
from physcli.cli.options import ProbeRun, shared
from physcli.errors import UsageError
from physcli.tasks.models import refuse_unknown_models

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="How much physics does a model understand?",
)


@app.callback()
def _group() -> None:
    pass


def parse_numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """A comma-separated list of numbers."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} {text!r}.", expected=f"{'whole ' if kind is int else ''}numbers separated by commas"
        ) from None


@app.command("physion")
@shared(ProbeRun)
def physion(
    common: ProbeRun,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Built-in name, hub id, folder or run directory; generator or encoder; may be repeated.  "
            "\\[default: videomae-tiny and cogvideox-tiny]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="simulated, simulated:N (N test and 3N training clips), or a folder: simulated, Physion v1.5 MP4s, "
            "or Physion v1 HDF5; or such a hub dataset: hub:OWNER/NAME or hub:OWNER/NAME@REVISION/FOLDER."
        ),
    ] = "simulated",
    task: Annotated[
        str,
        typer.Option(help="ocp: will they touch, from the context only; ocd: did they, seeing the contact."),
    ] = "ocp",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Blocks, counted from 0: one, several (17,20) or all; several are chosen between on training folds.  "
            "\\[default: round(0.6·n)−1 of a generator (17 of 30, the papers' 18th), the last of an encoder]",
            show_default=False,
        ),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            help="Noise levels for generators: √(1−ᾱ) or, for flow matching, σ; one or several.  \\[default: 0.3]",
            show_default=False,
        ),
    ] = None,
    snr: Annotated[
        str | None,
        typer.Option(
            help="Signal-to-noise ratios instead, for equal noise in models of different kinds: σ of 0.3 is 10.1 of "
            "CogVideoX and 5.4 of a flow model.",
            show_default=False,
        ),
    ] = None,
    pool: Annotated[
        str, typer.Option(help="Tokens kept per latent frame: grid (at most 4×4 places), mean (one), all.")
    ] = "grid",
    readout: Annotated[
        str,
        typer.Option(
            help="pooled: one readout, folds grouped by pair; per-scenario: as Physion v1; official: as v1.5, exactly."
        ),
    ] = "pooled",
    unfiltered: Annotated[
        bool,
        typer.Option(
            "--unfiltered",
            help="As the official evaluation: keep positives whose contact is already visible in the context, and "
            "clips that end inside it (their last frame is repeated).",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per forward pass.")] = 16,
    max_bad: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of unreadable clips that may be skipped before the run fails."),
    ] = 0.05,
) -> None:
    """Object contact prediction or detection (Physion), by a linear readout of frozen features."""
    models = tuple(model or ("videomae-tiny", "cogvideox-tiny"))
    refuse_unknown_models(models)
    from physcli.tasks.probe_physion import ProbeSettings, probe_physion

    if sigma is not None and snr is not None:
        raise UsageError(f"--sigma {sigma} with --snr {snr}.", expected="one of them", fix="leave one out")
    settings = ProbeSettings(
        models=models,
        data=data,
        task=task,
        layers=None if layers is None else "all" if layers == "all" else tuple(parse_numbers("--layers", layers, int)),
        sigmas=tuple(parse_numbers("--sigma", sigma or "0.3", float)),
        snrs=() if snr is None else tuple(parse_numbers("--snr", snr, float)),
        pool=pool,
        readout=readout,
        unfiltered=unfiltered,
        limit=common.limit,
        seed=common.seed,
        dtype=common.dtype,
    )
    done = probe_physion(
        settings,
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        batch_size=batch_size,
        max_bad=max_bad,
        cache_dir=common.cache_dir,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, rows=done.rows, dropped=done.dropped):
        return
    show_probe(done)


_LABEL, _CELL = 14, 13  # characters of the scenarios' column, and of one with errors


def show_probe(done: Any, more_files: Mapping[str, object] | None = None) -> None:
    """The probe's tables and the paths of its files."""
    from physcli.tasks.tables import probe, probe_differences

    render.show(probe(done, errors=_LABEL + _CELL * len(done.subjects) <= render.width()))
    differences = probe_differences(done)
    if differences is not None:
        render.show(differences)
    render.files(done.files() | dict(more_files or {}))
