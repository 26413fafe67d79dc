"""What may be set of the published methods.

Apart from the losses' own files, which import torch: so a recipe is read, and a mistyped one refused, without it. A
method of one's own may have both in one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from physcli.sections import Decay, Section, Share


class MethodSettings(Section):
    """The `method` section of a recipe that trains a generator; each method has a subclass with its own fields."""

    name: str

    def signals(self) -> dict[str, Mapping[str, Any]]:
        """What the method reads of a window beside latents and text, with the settings of each.

        `teacher`: a frozen encoder's features; `saliency`: where the teacher's picture changes most (share, ties);
        `flow`: the teacher's picture's optical flow (kind).
        """
        return {}


class WeightSchedule(Section):
    """What a method's weight is multiplied by, and when the method ends; steps are optimizer steps, from 0.

    `warmup_steps`: of a line from 0 up to 1. `name`: then constant, or down to `final` on a line, a cosine, or a
    polynomial. `decay_steps`: after the warm-up, of the way down; none given: to the end of training. `power`: of the
    polynomial. `stop_step`: the method is off from this step on. `stop_loss`: off for good once the moving average of
    its unweighted loss is at most this (of a method by cosines the loss is the negative mean cosine). `average_decay`:
    of that average, which begins with the first value. `stop_cosine`: off for good once the cosine between the
    gradients of its loss and the denoising loss at the tapped features is below this (HASTE: −0.05, on the weights of
    the aligned block); measured every 50 steps. `stop_score`: off for good once what `train.score_every` measures is at
    least this.
    """

    warmup_steps: NonNegativeInt = 0
    name: Literal["constant", "linear", "cosine", "polynomial"] = "constant"
    decay_steps: PositiveInt | None = None
    final: Share = 0.0
    power: PositiveFloat = 2.0
    stop_step: PositiveInt | None = None
    stop_loss: float | None = None
    average_decay: Decay = 0.99
    stop_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    stop_score: float | None = None

    @model_validator(mode="after")
    def _refuse_idle_fields(self) -> Self:
        if self.name == "constant" and (self.decay_steps, self.final) != (None, 0.0):
            raise ValueError("decay_steps and final are for a schedule that decays, and name is constant")
        if self.name != "polynomial" and self.power != 2.0:
            raise ValueError(f"power is for name: polynomial, and name is {self.name}")
        if self.stop_loss is None and self.average_decay != 0.99:
            raise ValueError("average_decay is of the average that stop_loss looks at, and there is none")
        return self


class TeacherView(Section):
    """How a teacher sees the window: `whole` frames at `size`, in one pass; in `groups` of as many frames as the
    teacher was trained on, one after the other; in `crops` of the teacher's own size, laid together again; or as
    `stills`, the middle frame of each of its time steps alone, held for as long as it was trained on.
    `size`: (height, width) the frames are resized to first; none given: the teacher's own. `drop_first`: the first
    frame, which a causal video VAE encodes alone, is not shown."""

    layout: Literal["whole", "groups", "crops", "stills"] = "whole"
    size: tuple[PositiveInt, PositiveInt] | None = None
    drop_first: bool = True


class ProjectorSettings(Section):
    """From the generator's features to the teacher's grid and width; see `physcli.methods.projector`.

    `num_layers: 0` with `resample: interpolate`: no weights at all, the tapped features themselves are compared
    (relations need no common width). `num_layers: 0` with `resample: conv3x3`: iREPA's, one convolution.
    """

    num_layers: NonNegativeInt = 3
    hidden_dim: PositiveInt = 2048
    resample: Literal["conv2d", "conv3d", "conv3x3", "interpolate"] = "conv2d"


class Sft(MethodSettings):
    """No method: the control that every comparison needs."""

    name: Literal["sft"]


class Weighted(MethodSettings):
    """What all methods share: the weight of their loss beside the generator's own, and what becomes of it."""

    weight: NonNegativeFloat
    schedule: WeightSchedule = WeightSchedule()


class Alignment(Weighted):
    """What the methods with a teacher share.

    `taps`: blocks of the generator, counted from 0 (the papers' 18th layer is 17); none given: block round(0.6·n)−1.
    Several have a projector each, and their losses are averaged. `interpolate`: whose features are brought to the
    other's grid. `drop_first`: the first latent frame has no partner.
    """

    # "module:function" of (student [B, F, H, W, D], teacher [B, F, H, W, E], **options) → [B]. Where there are these
    # signals, it is also given `queries`, bool [B, F, H, W], of saliency, and `flow`, float32 [B, T, 2, height, width].
    loss: ClassVar[str]
    # "module:function" of (teacher [B, F, H, W, E], **target_options): what of the teacher is compared; None: as it is.
    target: ClassVar[str | None] = None
    needs_common_width: ClassVar[bool] = False  # D must be E

    weight: NonNegativeFloat = 0.5
    taps: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    teacher: str
    view: TeacherView = TeacherView()
    interpolate: Literal["student", "teacher"] = "student"
    drop_first: bool = True
    projector: ProjectorSettings = ProjectorSettings()

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the loss: the method's own fields, those that the methods do not share."""
        return self.model_dump(exclude={"name", *Alignment.model_fields})

    def target_options(self) -> dict[str, Any]:
        """Keyword arguments of the target."""
        return {}

    def signals(self) -> dict[str, Mapping[str, Any]]:
        return {"teacher": {}}


class Repa(Alignment):
    """See `physcli.methods.repa`."""

    loss = "physcli.methods.repa:repa_loss"
    needs_common_width = True

    name: Literal["repa"]


class IRepa(Alignment):
    """See `physcli.methods.irepa`. `gamma`: the share of the mean over places that is taken off the teacher's tokens
    (the paper: 0.6 to 0.8). `over`: the places of a frame, or of the whole clip. `least_std`: a teacher's channel that
    varies less over the places is divided by this instead."""

    loss = "physcli.methods.repa:repa_loss"
    target = "physcli.methods.irepa:spatial_norm"
    needs_common_width = True

    name: Literal["irepa"]
    gamma: Share = 0.6
    over: Literal["frame", "clip"] = "frame"
    least_std: NonNegativeFloat = 0.0
    projector: ProjectorSettings = ProjectorSettings(num_layers=0, resample="conv3x3")

    def options(self) -> dict[str, Any]:
        return {}

    def target_options(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "over": self.over, "least_std": self.least_std}


class Crepa(Alignment):
    """See `physcli.methods.crepa`. `distance`: frames between a token's frame and those of the teacher that it also
    looks at, on both sides; `cumulative`: and at all nearer ones. `tau`: of their weight, e^(−distance/τ).
    `normalized`: each frame's cosines are divided by the weights that were present. `reduction`: over frames."""

    loss = "physcli.methods.crepa:crepa_loss"
    needs_common_width = True

    name: Literal["crepa"]
    distance: NonNegativeInt = 1
    tau: PositiveFloat = 1.0
    cumulative: bool = False
    normalized: bool = False
    reduction: Literal["mean", "sum"] = "mean"


class VideoRepa(Alignment):
    """See `physcli.methods.videorepa`."""

    loss = "physcli.methods.videorepa:trd_loss"

    name: Literal["videorepa"]
    margin: NonNegativeFloat = 0.1
    reading: Literal["released", "paper"] = "released"
    below: Literal["subtract", "zero"] = "subtract"
    part: Literal["both", "spatial", "temporal"] = "both"


class Tsa(Alignment):
    """See `physcli.methods.tsa`. `queries: salient` is M-TSA: only the `saliency_share` of the places of each frame
    that change most ask."""

    loss = "physcli.methods.tsa:tsa_loss"

    name: Literal["tsa"]
    temperature: PositiveFloat = 0.1
    own_frame: bool = True
    queries: Literal["all", "salient"] = "all"
    saliency_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    saliency_ties: Literal["paper", "positive"] = "paper"

    def options(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "own_frame": self.own_frame}

    def signals(self) -> dict[str, Mapping[str, Any]]:
        salient = {"saliency": {"share": self.saliency_share, "ties": self.saliency_ties}}
        return {"teacher": {}, **(salient if self.queries == "salient" else {})}


class MoAlign(Alignment):
    """See `physcli.methods.moalign`. `motion_projector`: a built-in name, a run or a folder of stage 1; its own
    teacher is used."""

    loss = "physcli.methods.moalign:soft_relational_loss"

    name: Literal["moalign"]
    motion_projector: str
    tau: PositiveFloat = 10.0
    reduction: Literal["mean", "sum"] = "mean"

    def options(self) -> dict[str, Any]:
        return {"tau": self.tau, "reduction": self.reduction}


class FieldSettings(Section):
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


class LaMo(Weighted):
    """The motion drift loss of `physcli.methods.lamo`. `field`: train the motion field too, in the same steps."""

    name: Literal["lamo"]
    weight: NonNegativeFloat = 0.4
    lag: PositiveInt = 2
    reading: Literal["clamp", "add", "ratio_of_sums"] = "clamp"
    noise_weight: Literal["released", "abar", "none"] = "released"
    per_sample: bool = False
    field: JointField | None = None


class LayerSync(Weighted):
    """See `physcli.methods.layersync`. `pairs`: (block that learns, deeper block), counted from 0. `detach`: the deeper
    block gets no gradient. `centered`: each clip's mean token is taken off both sides first (ours): any two tokens of
    a block have a high cosine."""

    name: Literal["layersync"]
    weight: NonNegativeFloat = 0.2
    pairs: Annotated[tuple[tuple[NonNegativeInt, NonNegativeInt], ...], Field(min_length=1)]
    detach: bool = True
    centered: bool = False

    @model_validator(mode="after")
    def _refuse_shallow_targets(self) -> Self:
        for block, deeper in self.pairs:
            if deeper <= block:
                raise ValueError(f"the pair [{block}, {deeper}]: the second block must be deeper than the first")
        return self


class Motif(Weighted):
    """See `physcli.methods.motif`. `power`: of the heat by which places are weighed."""

    name: Literal["motif"]
    weight: NonNegativeFloat = 1.0
    power: NonNegativeFloat = 1.0


class Critic(Weighted):
    """See `physcli.methods.critic`. `critic`: a generator of the same latents and text, none given: the weights that
    training begins with. `block`: of it, counted from 0, none given: round(0.6·n)−1. `sigma`: of the noise under which
    it looks. `most_sigma`: predictions from more noise are not asked for."""

    name: Literal["critic"]
    weight: NonNegativeFloat = 0.1
    critic: str | None = None
    block: NonNegativeInt | None = None
    sigma: Annotated[float, Field(gt=0, lt=1)] = 0.2
    most_sigma: Annotated[float, Field(gt=0, le=1)] = 0.8


class VideoJam(Weighted):
    """See `physcli.methods.videojam`. `weight`: of the motion's term beside the clip's. `motion`: what is denoised
    beside the clip, `picture`, the flow as colours through the generator's own VAE, or `pooled`, the flow itself.
    `flow`: `exact` (simulated clips only), or from pixels `dis`, or `raft` (with torchvision, which downloads weights).
    `scale_px`: of `pooled`, so many pixels are 1. `motion_dropout`: share of the samples that do not see the motion;
    captions are dropped by `objective.caption_dropout`, in the paper 0.3. `ends_lr`: of the first and last layer, on
    the generator's schedule, none given: as all others; new weights begin at zero, and AdamW moves a weight by about
    its rate a step."""

    name: Literal["videojam"]
    weight: NonNegativeFloat = 1.0
    motion: Literal["picture", "pooled"] = "picture"
    flow: Literal["exact", "dis", "raft"] = "dis"
    scale_px: PositiveFloat = 1.0
    motion_dropout: Share = 0.2
    ends_lr: PositiveFloat | None = None

    @model_validator(mode="after")
    def _refuse_idle_scale(self) -> Self:
        if self.motion == "picture" and self.scale_px != 1.0:
            raise ValueError("scale_px is for motion: pooled")
        return self


class Rounds(MethodSettings):
    """Fine-tuning by a reward: the generator learns from videos of its own that a reward has judged. Of the data only
    the prompts are read, and their clips where `real_weight` asks for them.

    `reward`: `laws`, 0 where nothing moves that should, else half the share of tested laws that hold and half of how
    much is shown of what was asked for; `joint`, 1 where all of both holds and 0 elsewhere, of `physcli eval laws`;
    `rater`, 0 where nothing moves that should, else the mean of the tiny rater's two ratings; or `rise`, how high the
    red object is in the last frame: for trying out. All videos are judged by all of them.
    A round is `num_prompts` prompts with `group` videos each, made in `sample_steps` steps at `guidance_scale` (1: no
    classifier-free guidance); `steps_per_round` optimizer steps learn from them. `real_weight` (ours): of the denoising
    loss on the real clip of a video's prompt, under the same noise."""

    reward: Literal["laws", "joint", "rater", "rise"] = "laws"
    num_prompts: PositiveInt = 8
    group: Annotated[int, Field(ge=2)] = 6
    steps_per_round: PositiveInt = 8
    sample_steps: PositiveInt = 15
    guidance_scale: NonNegativeFloat = 1.0
    real_weight: NonNegativeFloat = 0.0


class Nft(Rounds):
    """DiffusionNFT, see `physcli.methods.nft`. The old policy, which makes the videos and is learnt against, becomes at
    every round `old_decay` of itself and the rest of the weights that learn: 0, those themselves. `beta`,
    `most_advantage` and `std` are β, A_max and what advantages are divided by. `kl_weight`: of the mean squared
    difference of the output from that of the weights training began with."""

    name: Literal["nft"]
    old_decay: Decay = 0.0
    beta: PositiveFloat = 1.0
    most_advantage: PositiveFloat = 5.0
    std: Literal["all", "group"] = "all"
    kl_weight: NonNegativeFloat = 0.0


class Raft(Rounds):
    """See `physcli.methods.raft`. `keep`: at most so many videos of a prompt. `least`: the reward below which none
    is."""

    name: Literal["raft"]
    keep: PositiveInt = 1
    least: float = 0.0
