"""Recipe files: where they are, what they may say, and YAML read without its surprises.

A recipe is a YAML mapping. `trains` says what is trained and so which fields there are; every field has a type, an
unknown one is an error, and `key=value` on the command line overrides any of them.

PyYAML follows YAML 1.1, where `1e-4` is a string, `no` is False, `16:9` is 969, a date is an object and the last of
two equal keys wins silently. Here scalars follow YAML 1.2: only `true`/`false` are booleans, `1e-4` is a number,
`16:9` and dates are strings, and an equal key is an error.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import GenerateJsonSchema

from physcli.errors import PhyscliError, UsageError, unknown

_SUFFIXES = (".yaml", ".yml")


class RecipeError(PhyscliError):
    """A recipe file that is missing, cannot be read, or says what no recipe may say."""


Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Numbers = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
Cached = Literal["latents", "text", "teacher", "saliency", "flow"]


def _describe_fields(schema: dict[str, Any], section: type[BaseModel]) -> None:
    """What docstrings say of fields ("`name`: what it is"), where editors look for it."""
    for kind in reversed(section.__mro__):
        text = " ".join((vars(kind).get("__doc__") or "").split())
        for name, meaning in re.findall(r"`(\w+)`: (.+?)(?= `\w+`: |$)", text):
            if name in schema["properties"]:
                schema["properties"][name]["description"] = meaning.rstrip(";")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, json_schema_extra=_describe_fields)


class Data(_Section):
    """What is trained on.

    `source`: simulated, simulated:N (3N training and N held-out clips), a folder that physcli reads, or
    hub:OWNER/NAME, a dataset of the Hugging Face hub.
    `purpose`: which of the simulator's streams of scenes; no two share a scene.
    `limit`: train on this many clips only, evenly spread over the set.
    `memory_gb`: decoded clips are kept in memory up to this size; the rest is decoded again each time.
    `max_bad`: share of the clips that may turn out unreadable before training stops.
    `cache`: what is computed of them once and kept on disk. The rest is computed whenever it is read, by models that
    then stay loaded: slower, for a disk that cannot hold it.
    """

    source: str = "simulated"
    purpose: Literal["pretrain", "finetune"] = "finetune"
    limit: PositiveInt | None = None
    memory_gb: NonNegativeFloat = 6.0
    max_bad: Share = 0.05
    cache: tuple[Cached, ...] = ("latents", "text", "teacher", "saliency", "flow")


class Optimizer(_Section):
    """AdamW; `adamw-8bit` keeps its moments in 8 bits (bitsandbytes, CUDA)."""

    name: Literal["adamw", "adamw-8bit"] = "adamw"
    lr: PositiveFloat = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 1e-4


class Schedule(_Section):
    """The learning rate: a linear warmup, then constant or a cosine or line down to `final` of it.

    The warmup takes `warmup_steps`, or a tenth of all steps if that is fewer.
    """

    name: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    final: Share = 0.0


class Train(_Section):
    """How it is trained. Steps are optimizer steps; `batch_size` is clips per process and forward pass."""

    steps: PositiveInt
    batch_size: PositiveInt = 8
    accumulate: PositiveInt = 1
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    clip_norm: NonNegativeFloat = 1.0  # 0: not clipped
    ema: Decay = 0.0  # 0: none
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"  # auto: bf16 where the device computes in it, else no
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    validate_every: NonNegativeInt = 500  # 0: at the end only
    trackers: tuple[Literal["tensorboard", "wandb", "comet_ml", "mlflow", "swanlab"], ...] = ()


class _Recipe(_Section):
    """`model` is a built-in name, hub id or folder; `init: random` builds a built-in's architecture with fresh weights.

    `architecture`: configs of the model's parts; only the recipes of the built-in models have it.
    """

    description: str = ""
    model: str
    init: Literal["random", "pretrained"] = "pretrained"
    architecture: dict[str, Any] = {}
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # on disk
    data: Data = Data()
    train: Train


class Reconstruction(_Section):
    """See `physcli.methods.reconstruction`. Crops are of `crop_frames` frames and `crop` pixels a side; the last
    `whole_share` of the steps sees whole windows of `frames` frames. `strides`: frames between two that are shown."""

    kl_weight: NonNegativeFloat = 1e-4
    edge_weight: NonNegativeFloat = 0.0
    crop_frames: PositiveInt = 9
    crop: PositiveInt = 32
    frames: PositiveInt = 17
    strides: Numbers = (1, 3)
    whole_share: Share = 0.0


class VaeRecipe(_Recipe):
    """Trains the VAE of a generator."""

    trains: Literal["vae"]
    objective: Reconstruction = Reconstruction()


class FuturePrediction(_Section):
    """See `physcli.methods.future_prediction`. `contexts`: frames shown, one drawn a step; `horizons`: frames after
    the last one shown that are predicted; `cells`: colours a place is divided into, a side."""

    contexts: Numbers = (8, 12, 16)
    horizons: Numbers = (2, 4, 8, 12, 16, 20, 24, 28, 32)
    cells: PositiveInt = 2
    scale: PositiveFloat = 5.0
    threshold: NonNegativeFloat = 0.03
    moving_weight: PositiveFloat = 20.0


class EncoderRecipe(_Recipe):
    """Trains a VideoMAE encoder to predict what comes next."""

    trains: Literal["encoder"]
    objective: FuturePrediction = FuturePrediction()


class Sampling(_Section):
    """Windows: `frames` of a clip, `strides` apart (one drawn each time; the rate is said in a simulated clip's
    prompt). `windows` of them are computed of every clip and stride."""

    frames: PositiveInt = 17
    strides: Numbers = (1, 3)
    windows: PositiveInt = 2


class Denoising(Sampling):
    """The generator's own objective. `noise`: drawn uniformly over training `timesteps`, as CogVideoX is trained (three
    in five have σ > 0.9: next to nothing of the clip is seen), or over noise levels, `sigmas`. `text_encoder`: trained
    too. `samples`: videos made for held-out prompts at the end, and a quarter of them at every validation before, in
    `sample_steps` denoising steps.
    `guidance_scale`: they are made with, and whoever samples the model later unless another is asked for; none given:
    as the model had it."""

    noise: Literal["timesteps", "sigmas"] = "timesteps"
    caption_dropout: Share = 0.1
    text_encoder: bool = False
    samples: NonNegativeInt = 16
    sample_steps: PositiveInt = 50
    guidance_scale: NonNegativeFloat | None = None


class TeacherView(_Section):
    """How a teacher sees the window: `whole` frames at `size`, in one pass; in `groups` of as many frames as the
    teacher was trained on, one after the other; or in `crops` of the teacher's own size, laid together again.
    `size`: (height, width) the frames are resized to first; none given: the teacher's own. `drop_first`: the first
    frame, which a causal video VAE encodes alone, is not shown."""

    layout: Literal["whole", "groups", "crops"] = "whole"
    size: tuple[PositiveInt, PositiveInt] | None = None
    drop_first: bool = True


class ProjectorSettings(_Section):
    """From the generator's features to the teacher's grid and width; see `physcli.methods.projector`.

    `num_layers: 0` with `resample: interpolate`: no weights at all, the tapped features themselves are compared
    (relations need no common width).
    """

    num_layers: NonNegativeInt = 3
    hidden_dim: PositiveInt = 2048
    resample: Literal["conv2d", "conv3d", "interpolate"] = "conv2d"


class Sft(_Section):
    """No method: the control that every comparison needs."""

    name: Literal["sft"]


class Alignment(_Section):
    """What the methods with a teacher share.

    `taps`: blocks of the generator, counted from 0 (the papers' 18th layer is 17); none given: block round(0.6·n)−1.
    Several have a projector each, and their losses are averaged. `interpolate`: whose features are brought to the
    other's grid. `drop_first`: the first latent frame has no partner.
    """

    weight: NonNegativeFloat = 0.5
    taps: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    teacher: str
    view: TeacherView = TeacherView()
    interpolate: Literal["student", "teacher"] = "student"
    drop_first: bool = True
    projector: ProjectorSettings = ProjectorSettings()


class Repa(Alignment):
    """See `physcli.methods.repa`."""

    name: Literal["repa"]


class VideoRepa(Alignment):
    """See `physcli.methods.videorepa`."""

    name: Literal["videorepa"]
    margin: NonNegativeFloat = 0.1
    reading: Literal["released", "paper"] = "released"
    below: Literal["subtract", "zero"] = "subtract"
    part: Literal["both", "spatial", "temporal"] = "both"


class Tsa(Alignment):
    """See `physcli.methods.tsa`. `queries: salient` is M-TSA: only the `saliency_share` of the places of each frame
    that change most ask."""

    name: Literal["tsa"]
    temperature: PositiveFloat = 0.1
    own_frame: bool = True
    queries: Literal["all", "salient"] = "all"
    saliency_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    saliency_ties: Literal["paper", "positive"] = "paper"


class MoAlign(Alignment):
    """See `physcli.methods.moalign`. `motion_projector`: a built-in name, a run or a folder of stage 1; its own
    teacher is used."""

    name: Literal["moalign"]
    motion_projector: str
    tau: PositiveFloat = 10.0
    reduction: Literal["mean", "sum"] = "mean"


class FieldSettings(_Section):
    """See `field_loss` and `MotionField` of `physcli.methods.lamo`. `noise_share`: of the frames, shown noised."""

    hidden: Annotated[int, Field(gt=0, multiple_of=8)] = 256
    num_blocks: PositiveInt = 8
    cond_dim: PositiveInt = 128
    lag: PositiveInt = 1
    cosine_weight: NonNegativeFloat = 0.3
    noise_scale: NonNegativeFloat = 0.3
    noise_share: Share = 0.5
    caption_dropout: Share = 0.1


class JointField(FieldSettings):
    """A motion field trained beside the generator, on the same clean latents; neither reaches the other's weights.
    `lr`: its own rate, on the generator's schedule."""

    lr: PositiveFloat = 5e-4


class LaMo(_Section):
    """The motion drift loss of `physcli.methods.lamo`. `field`: train the motion field too, in the same steps."""

    name: Literal["lamo"]
    weight: NonNegativeFloat = 0.4
    lag: PositiveInt = 2
    reading: Literal["clamp", "add", "ratio_of_sums"] = "clamp"
    noise_weight: Literal["released", "abar", "none"] = "released"
    per_sample: bool = False
    field: JointField | None = None


Method = Annotated[Sft | Repa | VideoRepa | Tsa | MoAlign | LaMo, Field(discriminator="name")]
_METHODS: dict[Any, type[_Section]] = {
    "sft": Sft,
    "repa": Repa,
    "videorepa": VideoRepa,
    "tsa": Tsa,
    "moalign": MoAlign,
    "lamo": LaMo,
}


class Lora(_Section):
    """Low-rank updates in place of full fine-tuning (PEFT). `targets`: ends of the names of the linear layers that
    get one. `base_dtype`: in which the weights below them, which stay as they are, are held."""

    rank: PositiveInt = 128
    alpha: PositiveInt = 64
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("to_q", "to_k", "to_v", "to_out.0")


class GeneratorRecipe(_Recipe):
    """Trains a text-to-video diffusion model. `vae`: another VAE than the model's own: that of a built-in
    model, of a run, or a folder. `freeze`: the model itself is not trained, only what the method brings along: how
    much of a method's loss its projector can explain."""

    trains: Literal["generator"]
    vae: str | None = None
    freeze: bool = False
    lora: Lora | None = None
    objective: Denoising = Denoising()
    method: Method = Sft(name="sft")


class FieldPrediction(Sampling, FieldSettings):
    """The motion field alone."""


class MotionFieldRecipe(_Recipe):
    """Trains LaMo's motion field on the latents of `model`."""

    trains: Literal["motion-field"]
    objective: FieldPrediction = FieldPrediction()


class MotionSubspace(Sampling):
    """See `physcli.methods.moalign`. `flow`: `exact` (simulated clips only), or from pixels: `dis`, or `raft` (with
    torchvision, which downloads weights). `dim`: of the subspace. `moving_weight`: how much a pixel counts that moves
    by a tenth of `scale_px` or more (ours; 1 is plain L1, to which a small thing on a still ground is next to nothing).
    """

    view: TeacherView = TeacherView()
    flow: Literal["exact", "dis", "raft"] = "dis"
    dim: PositiveInt = 64
    hidden_dim: PositiveInt = 256
    num_layers: PositiveInt = 3
    kernel: PositiveInt = 3
    decoder_dim: PositiveInt = 64
    decoder_layers: PositiveInt = 2
    flows_per_token: PositiveInt = 1
    upscale: PositiveInt = 4
    scale_px: PositiveFloat = 1.0
    moving_weight: PositiveFloat = 1.0


class MotionProjectorRecipe(_Recipe):
    """Trains MoAlign's motion projector (stage 1) on the tokens of the encoder `model`."""

    trains: Literal["motion-projector"]
    objective: MotionSubspace = MotionSubspace()


class Rating(_Section):
    """See `physcli.tasks.training.rater`. Of the videos shown, `twins` are impossible twins and `static` are one frame
    repeated; the rest is real. `words_weight`: of a head that names the words of the true caption, `breaks_weight`: of
    one that says in which frame which law is broken, `reading_weight`: of one that says of every colour, noun, way and
    outcome in a caption whether it is true; all are for training only. `validated`: held-out clips.

    `sampled` are videos that the generator `sampled_from` made for `num_sampled` training captions in `sample_steps`
    steps; the laws of the simulated world (`physcli eval laws`) say what is right of them."""

    twins: Share = 0.45
    static: Share = 0.1
    sampled: Share = 0.0
    sampled_from: str = "cogvideox-tiny"
    num_sampled: PositiveInt = 300
    sample_steps: PositiveInt = 30
    words_weight: NonNegativeFloat = 0.5
    breaks_weight: NonNegativeFloat = 1.0
    reading_weight: NonNegativeFloat = 1.0
    validated: PositiveInt = 140


class RaterRecipe(_Recipe):
    """Trains an mPLUG-Owl-Video rater to answer VideoPhy's and VideoPhy-2's questions about simulated clips."""

    trains: Literal["rater"]
    objective: Rating = Rating()


AnyRecipe = VaeRecipe | EncoderRecipe | GeneratorRecipe | MotionFieldRecipe | MotionProjectorRecipe | RaterRecipe
_KINDS: dict[Any, type[_Recipe]] = {
    "vae": VaeRecipe,
    "encoder": EncoderRecipe,
    "generator": GeneratorRecipe,
    "motion-field": MotionFieldRecipe,
    "motion-projector": MotionProjectorRecipe,
    "rater": RaterRecipe,
}
_ADAPTER: TypeAdapter[AnyRecipe] = TypeAdapter(Annotated[AnyRecipe, Field(discriminator="trains")])


def read_recipe(name_or_path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> AnyRecipe:
    """A recipe, checked, with `key=value` overrides (`train.steps=10`, `objective.horizons=[4, 8]`).

    Raises:
        RecipeError: unreadable, or a field that is missing, unknown or of the wrong type.
        UsageError: an override that is no `key=value`, or of a field there is not.
    """
    path = find_recipe(name_or_path)
    content = load_yaml(path)
    given = list(overrides)
    for override in given:
        _override(content, override)
    try:
        return _validate(content)
    except ValidationError as error:
        problems = [_explain(problem, content) for problem in error.errors()]
        told = "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" if problems[3:] else "")
        place = _place(error.errors()[0])
        expected = _fields(content, place)
        if given and _is_valid(load_yaml(path)):  # the file alone is in order
            where = ".".join(place)
            named = [one for one in given if (key := one.partition("=")[0]).startswith(where) or where.startswith(key)]
            raise UsageError(
                f"{' '.join(named or given)}: {told}", expected=expected, fix="correct the key=value"
            ) from None
        raise RecipeError(f"{path}: {told}", expected=expected, fix="correct the recipe or the key=value") from None


def dump_recipe(recipe: BaseModel) -> str:
    """All fields as YAML, defaults included."""
    content = recipe.model_dump(mode="json")
    return yaml.dump(content, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, width=100)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipes: what `read_recipe` accepts, told to editors.

    It cannot say what is checked only when a recipe meets a model, such as blocks that the model does not have.
    """
    return {
        "$schema": _Schema.schema_dialect,
        "title": "A physcli recipe",
        **_ADAPTER.json_schema(schema_generator=_Schema),
    }


class _Schema(GenerateJsonSchema):
    """Fields are called what they are called: no titles made of their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise UsageError(f"{override!r}.", expected="key=value, such as train.steps=100")
    try:
        value = yaml.load(text, _StrictLoader)
    except yaml.YAMLError:
        raise UsageError(f"{override!r}: {text!r} is not YAML.", expected="a number, a word or [a, list]") from None
    place: Any = content
    *parents, last = key.split(".")
    for name in parents:
        if place.get(name) is None:  # not in the file, or a heading with nothing below it
            place[name] = {}
        if not isinstance(place[name], dict):
            raise UsageError(f"{override!r}: {name} is not a section.", expected=_fields(content))
        place = place[name]
    place[last] = value


def _validate(content: Mapping[str, Any]) -> AnyRecipe:
    # Strictly, or `true` would be 1 and `"10"` 10; as JSON, which alone lets a list be a tuple then.
    return _ADAPTER.validate_json(json.dumps(content), strict=True)


def _is_valid(content: Mapping[str, Any]) -> bool:
    try:
        _validate(content)
    except ValidationError:
        return False
    return True


def _place(problem: Any) -> list[str]:
    """Where one of pydantic's complaints is; it names the kind of recipe and of method before their fields."""
    place = [str(part) for part in problem["loc"]]
    place = place[1:] if place and place[0] in _KINDS else place
    return [*place[:1], *place[2:]] if place[:1] == ["method"] and place[1:2] and place[1] in _METHODS else place


def _explain(problem: Any, content: Mapping[str, Any]) -> str:
    """One of pydantic's complaints, in words: where, what, what was received."""
    place = _place(problem)
    key = ".".join(place) or "the recipe"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(place[-1], _section(content, place)[1].model_fields, n=1, cutoff=0.5)
        return f"unknown field {key}" + (f", did you mean {close[0]}?" if close else "")
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"].startswith("union_tag"):
        tag, section = ("method.name", content["method"]) if place == ["method"] else ("trains", content)
        key = tag.rpartition(".")[2]
        return f"{tag} is {section[key]!r}" if key in section else f"{tag} is missing"
    return f"{key} is {problem['input']!r} ({problem['msg'][0].lower()}{problem['msg'][1:]})"


def _section(content: Mapping[str, Any], place: Sequence[str]) -> tuple[list[str], type[_Section]]:
    """The innermost section that a place in a recipe of this kind lies in, and its own place."""
    section: type[_Section] = _KINDS[content["trains"]]
    path: list[str] = []
    for name in place:
        kinds = _sections_of(section, name)
        method = content.get("method")
        chosen = str(method.get("name")) if isinstance(method, dict) else None
        inner = kinds[0] if len(kinds) == 1 else _METHODS.get(chosen)
        if not kinds or inner is None:
            break
        section, path = inner, [*path, name]
    return path, section


def _sections_of(section: type[_Section], name: str) -> list[type[_Section]]:
    """The sections that a field can be: none of a plain value, several of a method."""
    if name not in section.model_fields:
        return []
    annotation = section.model_fields[name].annotation
    return [
        kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, _Section)
    ]


def _fields(content: Mapping[str, Any], place: Sequence[str] = ()) -> str:
    """The fields there are in the section of a recipe that `place` lies in."""
    if str(content.get("trains")) not in _KINDS:
        return f"trains: one of {', '.join(_KINDS)}"
    path, section = _section(content, place)
    if list(place[:1]) == ["method"] and not path:
        return f"method.name: one of {', '.join(_METHODS)}"
    return f"the fields {', '.join('.'.join([*path, name]) for name in section.model_fields)}"


def recipe_folders() -> list[Path]:
    """Where recipes live: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    return [folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()]


def schema_file() -> Path:
    """The packaged recipes' JSON schema, which is what `recipe_schema` gives."""
    return recipe_folders()[0] / "schema.json"


def list_recipes() -> dict[str, Path]:
    """Name → file of every packaged recipe; a name is the path without suffix, such as `pretrain/vae-tiny`."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.rglob("*.yaml")):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def find_recipe(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a packaged recipe's name, or the given file.

    Raises:
        RecipeError: a path that does not exist.
        UsageError: a name that no packaged recipe has.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix in _SUFFIXES:
        if path.is_file():
            return path
        packaged = list_recipes().get(path.with_suffix("").as_posix())
        if packaged is None:
            raise RecipeError(
                f"No such recipe file: {path}.",
                expected=f"an existing .yaml file, or one of {', '.join(list_recipes())}",
            )
        return packaged
    recipes = list_recipes()
    if str(name_or_path) not in recipes:
        raise unknown("recipe", str(name_or_path), recipes)
    return recipes[str(name_or_path)]


def recipe_text(path: Path) -> str:
    """A recipe's file as it is.

    Raises:
        RecipeError: it is not there, or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"No such recipe file: {path}.", expected="an existing .yaml file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}.", expected="a text file in UTF-8") from error


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one YAML mapping, strictly.

    Returns:
        Plain dicts, lists, str, int, float, bool and None.

    Raises:
        RecipeError: unreadable, not YAML, not a mapping, an equal key twice, or a key that is not text; the message
            has file and line.
    """
    path = Path(path)
    try:
        content = yaml.load(recipe_text(path), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(
            f"{where}: {error.problem or error.context}.", expected="YAML 1.2", fix="correct that line"
        ) from error
    except yaml.YAMLError as error:  # a character that YAML forbids; it has a position but no mark
        raise RecipeError(f"{path}: {error}".replace("\n", " "), expected="YAML 1.2") from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} holds {'nothing' if content is None else f'a {type(content).__name__}'}.",
            expected="a mapping, `key: value` lines",
        )
    return content


class _StrictLoader(yaml.SafeLoader):
    """Resolves scalars by YAML 1.2's core schema and refuses repeated or non-text keys."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (not the base class's, which are YAML 1.1)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not text; put it in quotes", key_node.start_mark
                )
            if key in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there already, in line {lines[key]}", key_node.start_mark
                )
            lines[key] = line
        return super().construct_mapping(node, deep=True)

    def _construct_map(self, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
        content: dict[Any, Any] = {}
        yield content  # before its entries exist, so that an alias may point back to it
        content.update(self.construct_mapping(node))

    def _construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text.lower().startswith(("0x", "0o")) else int(text)

    def _construct_float(self, node: yaml.ScalarNode) -> float:
        # Python reads what YAML writes once the dot of `.inf` and `.nan` is gone.
        return float(re.sub(r"\.(inf|nan)$", r"\1", self.construct_scalar(node), flags=re.IGNORECASE))


class _StrictDumper(yaml.SafeDumper):
    """Puts text in quotes that either version of YAML would take for something else."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _class in (_StrictLoader, _StrictDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
_StrictLoader.add_constructor("tag:yaml.org,2002:map", _StrictLoader._construct_map)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader._construct_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader._construct_float)
