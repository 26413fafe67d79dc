"""`physcli visualize …`: what methods look at in a video."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from physcli.cli import render
from physcli.cli.options import ModelRun, shared
from physcli.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="What methods look at in a video: a picture, and a video over its frames.",
)

Videos = Annotated[list[str], typer.Argument(metavar="VIDEO…", help="Video files, or runs of physcli sample.")]
Model = Annotated[str, typer.Option(help="A generator.")]
Teacher = Annotated[str, typer.Option(help="An encoder.")]
Prompt = Annotated[str, typer.Option(help="What the videos show.  \\[default: what a run says]", show_default=False)]
Limit = Annotated[int, typer.Option(min=1, help="Of a run, at most so many videos.")]


def _draw(common: ModelRun, kind: str, videos: list[str], **settings: Any) -> None:
    from physcli.tasks.visualize import VisualizeSettings, visualize

    chosen = replace(VisualizeSettings(kind, tuple(videos), seed=common.seed), **settings)
    done = visualize(
        chosen,
        out=common.out,
        overwrite=common.overwrite,
        device=common.device,
        dtype=common.dtype,
        reporter=render.RichReporter(quiet=common.quiet),
    )
    if render.answered(common, done, files=done.pictures, rows=done.rows):
        return
    lines = [[row["group"], row["metric"].replace("_", " "), f"{row['value']:.3g}"] for row in done.rows]
    render.table(f"visualize {kind}", ["video", "", "value"], lines, right=(2,))
    render.files({path.suffix[1:] + f" {number // 2}": path for number, path in enumerate(done.pictures)})


@app.command("drift")
@shared(ModelRun)
def drift(
    common: ModelRun,
    videos: Videos,
    model: Model = "cogvideox-tiny",
    lag: Annotated[int, typer.Option(min=1, help="Latent frames.")] = 2,
    limit: Limit = 4,
) -> None:
    """LaMo: the places that move with the clip's drift, in the latents of the model's VAE."""
    _draw(common, "drift", videos, model=model, lag=lag, limit=limit)


@app.command("field")
@shared(ModelRun)
def field(
    common: ModelRun,
    videos: Videos,
    model: Model = "cogvideox-tiny",
    motion_field: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="\\[default: as sample finds it]", show_default=False),
    ] = None,
    prompt: Prompt = "",
    limit: Limit = 4,
) -> None:
    """LaMo: where the motion field expects change, beside what did change."""
    _draw(common, "field", videos, model=model, motion_field=motion_field, prompt=prompt, limit=limit)


@app.command("saliency")
@shared(ModelRun)
def saliency(
    common: ModelRun,
    videos: Videos,
    teacher: Teacher = "videomae-tiny",
    share: Annotated[float, typer.Option(min=0.001, max=1, help="Of the tokens of a frame.")] = 0.2,
    limit: Limit = 4,
) -> None:
    """M-TSA: the tokens whose pixels change most."""
    _draw(common, "saliency", videos, teacher=teacher, share=share, limit=limit)


@app.command("correspondence")
@shared(ModelRun)
def correspondence(
    common: ModelRun,
    videos: Videos,
    model: Model = "cogvideox-tiny",
    teacher: Teacher = "videomae-tiny",
    query: Annotated[
        str, typer.Option(metavar="T,Y,X", help="The place that is asked for, as shares of length, height and width.")
    ] = "0.5,0.5,0.5",
    temperature: Annotated[
        list[float] | None, typer.Option(help="May be repeated.  \\[default: 0.02, 0.1, 0.5]", show_default=False)
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(min=0, help="Of the generator, from 0.  \\[default: as probe]", show_default=False),
    ] = None,
    sigma: Annotated[float, typer.Option(min=0, max=1, help="Noise that the generator is shown.")] = 0.3,
    prompt: Prompt = "",
    limit: Limit = 4,
) -> None:
    """TSA: where one place is found again in every frame, by the teacher and by the generator."""
    from physcli.tasks.visualize import TEMPERATURES

    try:
        place = tuple(float(part) for part in query.split(","))
        if len(place) != 3:
            raise ValueError
    except ValueError:
        raise UsageError(f"--query {query!r}.", expected="three numbers from 0 to 1, such as 0.5,0.5,0.5") from None
    _draw(
        common,
        "correspondence",
        videos,
        model=model,
        teacher=teacher,
        query=place,
        temperatures=tuple(temperature or TEMPERATURES),
        layer=layer,
        sigma=sigma,
        prompt=prompt,
        limit=limit,
    )
