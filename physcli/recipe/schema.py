"""What recipes may say.

A recipe is a YAML mapping. `trains` says what is trained and so which fields there are; every field has a type, an
unknown one is an error, and `key=value` on the command line overrides any of them. `method` hangs on its `name`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    model_validator,
)

from physcli.methods.settings import FieldSettings, MethodSettings, Sft, TeacherView
from physcli.sections import Decay, Numbers, Section, Share

Cached = Literal["latents", "text", "teacher", "saliency", "flow"]


class Data(Section):
    """What is trained on.

    `source`: simulated, simulated:N (3N training and N held-out clips), a folder that physcli reads, or
    hub:OWNER/NAME, a dataset of the Hugging Face hub.
    `purpose`: which of the simulator's streams of scenes; no two share a scene.
    `limit`: train on this many clips only, evenly spread over the set.
    `memory_gb`: decoded clips are kept in memory up to this size; the rest is decoded again each time.
    `max_bad`: share of the clips that may turn out unreadable before training stops.
    `max_uncaptioned`: share of the clips that may have no caption where training reads captions; 1 if none is needed.
    `cache`: what is computed of them once and kept on disk. The rest is computed whenever it is read, by models that
    then stay loaded: slower, for a disk that cannot hold it.
    """

    source: str = "simulated"
    purpose: Literal["pretrain", "finetune"] = "finetune"
    limit: PositiveInt | None = None
    memory_gb: NonNegativeFloat = 6.0
    max_bad: Share = 0.05
    max_uncaptioned: Share = 0.05
    cache: tuple[Cached, ...] = ("latents", "text", "teacher", "saliency", "flow")


class Optimizer(Section):
    """AdamW; `adamw-8bit` keeps its moments in 8 bits (bitsandbytes, CUDA); `muon` trains the weights of the linear
    layers and convolutions in a model's blocks with Muon, in steps of AdamW's size, and all else with AdamW. `rest_lr`:
    AdamW's learning rate beside Muon's `lr`; none given: the same. `momentum`: Muon's."""

    name: Literal["adamw", "adamw-8bit", "muon"] = "adamw"
    lr: PositiveFloat = 1e-3
    rest_lr: PositiveFloat | None = None
    momentum: Decay = 0.95
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 1e-4

    @model_validator(mode="after")
    def _refuse_idle_fields(self) -> Self:
        if self.name != "muon" and (self.rest_lr, self.momentum) != (None, 0.95):
            raise ValueError(f"rest_lr and momentum are for name: muon, and name is {self.name}")
        return self


class Schedule(Section):
    """The learning rate: a linear warmup, then constant or a cosine or line down to `final` of it.

    The warmup takes `warmup_steps`, or a tenth of all steps if that is fewer.
    """

    name: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    final: Share = 0.0


class Train(Section):
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
    score_every: NonNegativeInt = 0  # 0: never; else before the first step and after the last, too
    trackers: tuple[Literal["tensorboard", "wandb", "comet_ml", "mlflow", "swanlab"], ...] = ()


class Recipe(Section):
    """`model` is a built-in name, hub id or folder; `init: random` builds a built-in's architecture with fresh weights.

    `architecture`: configs of the model's parts, and the `family` of a generator that is no built-in (`cogvideox` where
    it is not said); only the recipes of the built-in models have it. None given: that of the built-in model.
    """

    description: str = ""
    model: str
    init: Literal["random", "pretrained"] = "pretrained"
    architecture: dict[str, Any] = Field({})
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # on disk
    data: Data = Data()
    train: Train

    @model_validator(mode="after")
    def _refuse_scores_of_others(self) -> Self:
        if self.train.score_every and "scoring" not in type(self).model_fields:
            raise ValueError("train.score_every is for trains: generator; other models are validated alone")
        return self


class Reconstruction(Section):
    """See `physcli.methods.reconstruction`. Crops are of `crop_frames` frames and `crop` pixels a side; the last
    `whole_share` of the steps sees whole windows of `frames` frames. `strides`: frames between two that are shown.
    `object_crops`: share of the crops that lie around a pixel of a thing, and `object_weight`: of the squared error on
    things and next to them (both of simulated clips, whose things are known).
    `halved_chroma`: share of the clips that are encoded from 4:2:0, and shall come out as they were before.
    `freeze_encoder`: the decoder alone is trained, so that the latents stay what generators know."""

    kl_weight: NonNegativeFloat = 1e-4
    edge_weight: NonNegativeFloat = 0.0
    crop_frames: PositiveInt = 9
    crop: PositiveInt = 32
    frames: PositiveInt = 17
    strides: Numbers = (1, 3)
    whole_share: Share = 0.0
    object_crops: Share = 0.0
    object_weight: PositiveFloat = 1.0
    halved_chroma: Share = 0.0
    freeze_encoder: bool = False


class VaeRecipe(Recipe):
    """Trains the VAE of a generator."""

    trains: Literal["vae"]
    objective: Reconstruction = Reconstruction()


class FuturePrediction(Section):
    """See `physcli.methods.future_prediction`. `contexts`: frames shown, one drawn a step; `horizons`: frames after
    the last one shown that are predicted; `cells`: colours a place is divided into, a side."""

    contexts: Numbers = (8, 12, 16)
    horizons: Numbers = (2, 4, 8, 12, 16, 20, 24, 28, 32)
    cells: PositiveInt = 2
    scale: PositiveFloat = 5.0
    threshold: NonNegativeFloat = 0.03
    moving_weight: PositiveFloat = 20.0


class EncoderRecipe(Recipe):
    """Trains a VideoMAE encoder to predict what comes next."""

    trains: Literal["encoder"]
    objective: FuturePrediction = FuturePrediction()


class WindowChoice(Section):
    """Windows: `frames` of a clip, `strides` apart (one drawn each time, a stride named twice twice as often; the rate
    is said in a simulated clip's prompt). `windows` of them are computed of every clip and stride."""

    frames: PositiveInt = 17
    strides: Numbers = (1, 3)
    windows: PositiveInt = 2


class Denoising(WindowChoice):
    """The generator's own objective. `noise`: drawn uniformly over training `timesteps`, as CogVideoX is trained (three
    in five have σ > 0.9: next to nothing of the clip is seen); uniformly over noise levels, `sigmas`; or
    `logit-normal`, σ = 1/(1 + exp(−x)) with normal x. `noise_mean`: of x; `noise_std`: standard deviation of x.
    `noise_shift`: s, by which a drawn σ becomes s·σ/(1 + (s − 1)·σ), for generators trained by flow matching; 1 leaves
    it. `text_encoder`: trained too. `samples`: videos made for held-out prompts at the end, and a quarter of them at
    every validation before, in `sample_steps` denoising steps.
    `guidance_scale`: they are made with, and whoever samples the model later unless another is asked for; none given:
    as the model had it. `rope_grid_type`: where the rotary positions of a CogVideoX sit on a grid that is not the
    native one; none given: as its sampling pipeline has them (`linspace` for 5B, `slice` for 1.5). The released
    training code of 5B has `slice`; on the native grid the two are the same."""

    noise: Literal["timesteps", "sigmas", "logit-normal"] = "timesteps"
    noise_mean: float = 0.0
    noise_std: PositiveFloat = 1.0
    noise_shift: PositiveFloat = 1.0
    caption_dropout: Share = 0.1
    text_encoder: bool = False
    samples: NonNegativeInt = 16
    sample_steps: PositiveInt = 50
    guidance_scale: NonNegativeFloat | None = None
    rope_grid_type: Literal["linspace", "slice"] | None = None

    @model_validator(mode="after")
    def _refuse_idle_fields(self) -> Self:
        if self.noise != "logit-normal" and (self.noise_mean, self.noise_std) != (0.0, 1.0):
            raise ValueError(f"noise_mean and noise_std are for noise: logit-normal, and noise is {self.noise}")
        return self


class Lora(Section):
    """Low-rank updates in place of full fine-tuning (PEFT). `targets`: ends of the names of the linear layers that
    get one. `base_dtype`: in which the weights below them, which stay as they are, are held."""

    rank: PositiveInt = 128
    alpha: PositiveInt = 64
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("to_q", "to_k", "to_v", "to_out.0")


class Scoring(Section):
    """The judge that scores a generator every `train.score_every` steps, always on the same items with the same seeds.

    `judge`: `laws`, of videos for held-out prompts of simulated clips (`physcli eval laws`); `rewards`, those of the
    method `nft`, of the same videos; or `ocp`, the readout of contact from the generator's features (`physcli probe
    physion`). `metric`: the weights by which it is highest are kept in best/; none given: the judge's headline,
    `joint`, the method's reward or `accuracy`. Of the first two: `videos`, made in `sample_steps` steps. Of ocp:
    `data`, the clips; `limit`, at most so many of each split; `block`, counted from 0, none given: round(0.6·n)−1;
    `sigma`, of the noise."""

    judge: Literal["laws", "rewards", "ocp"] = "laws"
    metric: str | None = None
    videos: PositiveInt = 32
    sample_steps: PositiveInt = 25
    data: str = "simulated"
    limit: PositiveInt | None = None
    block: NonNegativeInt | None = None
    sigma: Annotated[float, Field(gt=0, lt=1)] = 0.3

    @model_validator(mode="after")
    def _refuse_idle_fields(self) -> Self:
        others = ("videos", "sample_steps") if self.judge == "ocp" else ("data", "limit", "block", "sigma")
        idle = [name for name in others if getattr(self, name) != type(self).model_fields[name].default]
        if idle:
            raise ValueError(f"{' and '.join(idle)} mean nothing to judge: {self.judge}")
        return self


class GeneratorRecipe(Recipe):
    """Trains a text-to-video diffusion model. `adapter`: a LoRA that is merged into the model before (a folder, a file,
    or a run with adapter/), where `model` has none itself; `adapter_scale`: what the update of either is multiplied by.
    `vae`: another VAE than the model's own: that of a built-in model, of a run, or a folder. `text_encoder`: another
    text encoder's weights to begin with, likewise; those of a T5 fit Wan's UMT5. `freeze`: the model itself is not
    trained, only what the method brings along: how much of a method's loss its projector can explain. `scoring`: what
    scores it on the way."""

    trains: Literal["generator"]
    adapter: str | None = None
    adapter_scale: float = 1.0
    vae: str | None = None
    text_encoder: str | None = None
    freeze: bool = False
    lora: Lora | None = None
    objective: Denoising = Denoising()
    method: SerializeAsAny[MethodSettings] = Sft(name="sft")
    scoring: Scoring = Scoring()


class FieldPrediction(WindowChoice, FieldSettings):
    """The motion field alone."""


class MotionFieldRecipe(Recipe):
    """Trains LaMo's motion field on the latents of `model`."""

    trains: Literal["motion-field"]
    objective: FieldPrediction = FieldPrediction()


class MotionSubspace(WindowChoice):
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


class MotionProjectorRecipe(Recipe):
    """Trains MoAlign's motion projector (stage 1) on the tokens of the encoder `model`."""

    trains: Literal["motion-projector"]
    objective: MotionSubspace = MotionSubspace()


class Rating(Section):
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


class RaterRecipe(Recipe):
    """Trains an mPLUG-Owl-Video rater to answer VideoPhy's and VideoPhy-2's questions about simulated clips."""

    trains: Literal["rater"]
    objective: Rating = Rating()


AnyRecipe = VaeRecipe | EncoderRecipe | GeneratorRecipe | MotionFieldRecipe | MotionProjectorRecipe | RaterRecipe
KINDS: dict[str, type[AnyRecipe]] = {
    "vae": VaeRecipe,
    "encoder": EncoderRecipe,
    "generator": GeneratorRecipe,
    "motion-field": MotionFieldRecipe,
    "motion-projector": MotionProjectorRecipe,
    "rater": RaterRecipe,
}
