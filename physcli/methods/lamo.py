"""LaMo: motion priors from clean latents alone, without a teacher (arXiv 2605.23878).

Three parts that work apart: a training loss on the spatial mean of the motion (`drift_loss`), a small network that
predicts the next change of the latents (`MotionField`, `field_loss`), and its use while sampling (`guidance_update`).
The paper itself was not at hand: "released" is the authors' code, "port" a third-party one.
"""

# B clips, F latent frames, P = F − lag pairs of frames (i, i + lag), C latent channels, H W latent grid, D text width

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from physcli.files import write_bytes, write_tensors

RELEASED_PREFIX = "physical_lamo."
NUM_GROUPS = 8
EACH = (1, 2, 3, 4)  # all axes of one clip


# -- training the generator: Motion Drift Loss -------------------------------------------------------------------


def drift_loss(
    clean: Tensor,
    predicted_clean: Tensor,
    *,
    lag: int = 2,
    floor: float = 1e-8,
    reading: Literal["clamp", "add", "ratio_of_sums"] = "clamp",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Relative squared error of the drift μ_i = mean over H, W of z_{i+lag} − z_i.

    Differs from the released code in that bfloat16 latents are subtracted in float32 and that a lag below 1 is
    refused, not raised to 1. Its further factors, 0.4 and `drift_weight`, are the caller's.

    Args:
        clean: Latents x0 [B, F, C, H, W], scaled as the network sees them; no gradient reaches them.
        predicted_clean: x̂0, same shape.
        lag: τ, in latent frames.
        floor: Least ‖μ_i‖² (of its sum in `ratio_of_sums`) to divide by; `add` does not use it.
        reading: `clamp` (released) is the mean over pairs of ‖μ̂_i − μ_i‖² / max(‖μ_i‖², floor). `add` (port)
            divides by ‖μ_i‖² + 1e-6. `ratio_of_sums` (ours) divides sums over the clip's pairs, so that pairs which
            hardly drift cannot explode.

    Returns:
        The loss of each clip [B], float32 (float64 if `predicted_clean` is), exactly 0 if F ≤ lag; and [B] each
        `at_floor`, the share of pairs with ‖μ_i‖² ≤ floor, and `drift` and `predicted_drift`, the mean ‖μ_i‖, ‖μ̂_i‖.

    Raises:
        ValueError: shapes, lag, floor or reading that cannot be.
    """
    _check_latents(clean)
    if predicted_clean.shape != clean.shape:
        raise ValueError(f"predicted_clean must be {list(clean.shape)} like clean, got {list(predicted_clean.shape)}")
    _check_lag(lag)
    if not floor > 0:
        raise ValueError(f"floor must be positive, got {floor}")
    predicted_clean = _wide(predicted_clean)
    drift = _changes(clean.detach().to(predicted_clean.dtype), lag).mean(dim=(3, 4))  # [B, P, C]
    predicted = _changes(predicted_clean, lag).mean(dim=(3, 4))
    error, size = (predicted - drift).square().sum(dim=2), drift.square().sum(dim=2)  # [B, P]
    num_pairs = max(drift.shape[1], 1)  # sums over no pairs are 0, means are not
    if reading == "clamp":
        loss = (error / size.clamp_min(floor)).sum(dim=1) / num_pairs
    elif reading == "add":
        loss = (error / (size + 1e-6)).sum(dim=1) / num_pairs
    elif reading == "ratio_of_sums":
        loss = error.sum(dim=1) / size.sum(dim=1).clamp_min(floor)
    else:
        raise ValueError(f"reading must be clamp, add or ratio_of_sums, got {reading!r}")
    return loss, {
        "at_floor": (size <= floor).to(size.dtype).sum(dim=1) / num_pairs,
        "drift": size.sqrt().sum(dim=1) / num_pairs,
        "predicted_drift": predicted.detach().norm(dim=2).sum(dim=1) / num_pairs,
    }


def drift_weight(
    time: Tensor,
    signal: Tensor,
    sigma: Tensor,
    *,
    reading: Literal["released", "abar", "snr"] = "released",
    per_sample: bool = False,
) -> Tensor:
    """w, which takes the drift loss back where x̂0 is little more than noise.

    Both sources have a variance-preserving model; what they mean in a flow model is our choice, and neither is in the
    paper. The readings differ much: 0.75 against 0.095 at t = 500 of CogVideoX-2B; means over the levels that a flow
    model is trained at, uniform and shifted by 5, are 0.38 and 0.12. Pass the true timesteps: the released code goes
    through int(1000 · (t/1000)) in float32, which makes 511, 506, 502, 253 and 251 one less.

    Args:
        time: t/T of each clip [B], in [0, 1]: timestep over timesteps, or σ of a flow model.
        signal: a of x_t = a·x0 + b·ε [B]: √ᾱ_t, or 1 − σ.
        sigma: b, the same.
        reading: `released` is max(0, 1 − (t/T)²), in a flow 1 − σ². `abar` (port) is ᾱ_t = a², the power of the signal,
            in a flow (1 − σ)². `snr` (ours) is a²/(a² + b²), the same as `abar` but in a flow.
        per_sample: Each clip its own weight (ours); else all have the mean over the batch, as in both sources.

    Returns:
        [B], float32.

    Raises:
        ValueError: times that are not [B] in [0, 1], or an unknown reading.
    """
    if time.ndim != 1 or ((time < 0) | (time > 1)).any():
        raise ValueError(f"time must be [B] in [0, 1], got {list(time.shape)} {time.tolist()}")
    if reading == "released":
        weights = (1 - time.double().square()).clamp_min(0)
    elif reading == "abar":
        weights = signal.double().square()
    elif reading == "snr":
        power = signal.double().square()
        weights = power / (power + sigma.double().square())
    else:
        raise ValueError(f"reading must be released, abar or snr, got {reading!r}")
    return (weights if per_sample else weights.mean().expand_as(weights)).float()


# -- the micro motion field --------------------------------------------------------------------------------------


class MotionField(nn.Module):
    """f_φ: the change from a latent frame to a later one, predicted from that frame and the prompt.

    A 2D CNN that sees one frame at a time; names of the weights as in the released code. It starts by predicting no
    change whatever the prompt. It runs in its own parameters' dtype, autocast or not: float32 (or float64), since
    bfloat16 would round the guidance away (the released code trains it in the transformer's bfloat16). The defaults
    are the released size, 10,845,072 parameters. `null_prompt` gets no gradient where prompts are given.

    Args:
        channels: C of the latents.
        hidden: Width, a multiple of 8.
        num_blocks: Residual blocks.
        text_dim: D of the prompt vector.
        cond_dim: Width of the condition that every block receives.
        squeeze: Squeeze-and-excitation in the blocks.
        prompt: Condition on the prompt; without it text_dim and cond_dim mean nothing.
        previous: Also see how the frame changed from the one before it.
        scaling_factor: Of the VAE whose latents it knows; only recorded, to refuse another model later.
        latent_space: Which latents it knows, where these are not scaled by one factor; recorded likewise.
        lag: How many latent frames later it predicts; recorded, and the default of `guidance_update`.

    Raises:
        ValueError: a size that is not a positive integer, a width not divisible by 8, or a flag that is no bool.
    """

    def __init__(
        self,
        *,
        channels: int = 16,
        hidden: int = 256,
        num_blocks: int = 8,
        text_dim: int = 4096,
        cond_dim: int = 128,
        squeeze: bool = True,
        prompt: bool = True,
        previous: bool = False,
        scaling_factor: float | None = None,
        latent_space: str | None = None,
        lag: int = 1,
    ) -> None:
        super().__init__()
        sizes = dict(channels=channels, hidden=hidden, num_blocks=num_blocks, text_dim=text_dim, cond_dim=cond_dim)
        for name, size in (sizes | {"lag": lag}).items():
            if type(size) is not int or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        if hidden % NUM_GROUPS:
            raise ValueError(f"hidden must be a multiple of {NUM_GROUPS}, got {hidden}")
        flags = dict(squeeze=squeeze, prompt=prompt, previous=previous)
        for name, flag in flags.items():
            if type(flag) is not bool:
                raise ValueError(f"{name} must be True or False, got {flag!r}")
        self.config: dict[str, Any] = {**sizes, **flags, "scaling_factor": scaling_factor, "lag": lag}
        if latent_space is not None:
            self.config["latent_space"] = latent_space
        self.channels, self.text_dim, self.previous = channels, text_dim, previous
        self.scaling_factor, self.latent_space, self.lag = scaling_factor, latent_space, lag

        self.input_proj = nn.Conv2d(channels * (2 if previous else 1), hidden, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(hidden, cond_dim if prompt else None, squeeze) for _ in range(num_blocks))
        self.output_proj = nn.Conv2d(hidden, channels, 3, padding=1)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)  # type: ignore[arg-type]
        self.prompt_proj = nn.Linear(text_dim, cond_dim) if prompt else None
        self.null_prompt = nn.Parameter(torch.zeros(text_dim)) if prompt else None
        if self.prompt_proj is not None:
            nn.init.normal_(self.prompt_proj.weight, std=0.02)
            nn.init.zeros_(self.prompt_proj.bias)

    def forward(self, latents: Tensor, prompt: Tensor | None = None, previous_change: Tensor | None = None) -> Tensor:
        """Predict the change that follows every frame given.

        Args:
            latents: [B, F, C, H, W]; each frame is taken by itself.
            prompt: the pooled prompts [B, D], or one row a frame [B, F, D]. None stands for the learned
                `null_prompt`. A dropped prompt is a row of zeros, which is something else.
            previous_change: z_i − z_{i−1} of each frame [B, F, C, H, W] if `previous`, else ignored. None takes it
                from `latents`, with zeros for the first frame.

        Returns:
            Estimates of z_{i+lag} − z_i for i = 0..F−1 [B, F, C, H, W], in the parameters' dtype.

        Raises:
            ValueError: other shapes, a prompt for a field without prompts, or half-precision parameters.
        """
        _check_latents(latents, self.channels)
        dtype = self.input_proj.weight.dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the motion field must be float32 or float64, got {dtype}: call .float() on it")
        with torch.autocast(latents.device.type, enabled=False):
            inputs = latents.to(dtype)
            if self.previous:
                change = _previous_changes(inputs) if previous_change is None else previous_change.to(dtype)
                inputs = torch.cat([inputs, change], dim=2)
            condition = self._condition(prompt, latents)
            hidden = F.gelu(self.input_proj(inputs.flatten(0, 1)))
            for block in self.blocks:
                hidden = block(hidden, condition)
            return self.output_proj(hidden).unflatten(0, latents.shape[:2])

    def _condition(self, prompt: Tensor | None, latents: Tensor) -> Tensor | None:
        """What the blocks are told [B·F, cond_dim]."""
        if self.prompt_proj is None or self.null_prompt is None:
            if prompt is not None:
                raise ValueError("this motion field was built without prompts: pass prompt=None")
            return None
        num_clips, num_frames = latents.shape[:2]
        prompt = self.null_prompt.expand(num_clips, -1) if prompt is None else prompt
        per_clip, per_frame = (num_clips, self.text_dim), (num_clips, num_frames, self.text_dim)
        if prompt.shape not in (per_clip, per_frame):
            raise ValueError(f"prompt must be {list(per_clip)} or {list(per_frame)}, got {list(prompt.shape)}")
        condition = F.gelu(self.prompt_proj(prompt.to(self.prompt_proj.weight.dtype)))
        if condition.ndim == 2:
            condition = condition[:, None].expand(-1, num_frames, -1)
        return condition.flatten(0, 1)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, each whole or not at all, into a folder made if need be."""
        folder = Path(folder)
        write_tensors(folder / "model.safetensors", self.state_dict())
        write_bytes(folder / "config.json", f"{json.dumps(self.config, indent=2)}\n".encode())

    @classmethod
    def load(cls, path: str | Path) -> MotionField:
        """Read what `save` wrote, or a `predictor.safetensors` of the released code.

        Args:
            path: The folder, or the file; the file's architecture is read off its shapes, its lag is 1.

        Returns:
            The field in float32 on the CPU. No random numbers are drawn.

        Raises:
            ValueError: a missing or damaged file, or weights that are not exactly those of the architecture.
        """
        path = Path(path)
        file = path / "model.safetensors" if path.is_dir() else path
        try:
            state = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} holds no motion field: {error}") from error
        if file == path:
            return cls.from_state_dict(state)
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            with torch.random.fork_rng(devices=[]):
                field = cls(**config)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path / 'config.json'} describes no motion field: {error}") from error
        if config.keys() != field.config.keys():
            raise ValueError(f"{path / 'config.json'} must have the keys {list(field.config)}, got {list(config)}")
        return field._filled(state)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> MotionField:
        """The field whose weights these are, named as in the released code, with its prefix or without.

        Raises:
            ValueError: weights of something else, or too few or too many.
        """
        shapes = {name.removeprefix(RELEASED_PREFIX): tensor.shape for name, tensor in state.items()}
        try:
            hidden, inputs = shapes["input_proj.weight"][:2]
            channels = shapes["output_proj.weight"][0]
            cond_dim, text_dim = shapes.get("prompt_proj.weight", (128, 4096))
        except (KeyError, ValueError) as error:
            raise ValueError(f"not the weights of a motion field: {error} is missing or misshapen") from error
        with torch.random.fork_rng(devices=[]):
            field = cls(
                channels=channels,
                hidden=hidden,
                num_blocks=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
                text_dim=text_dim,
                cond_dim=cond_dim,
                squeeze="blocks.0.se.fc1.weight" in shapes,
                prompt="prompt_proj.weight" in shapes,
                previous=inputs == 2 * channels,
            )
        return field._filled(state)

    def _filled(self, state: Mapping[str, Tensor]) -> MotionField:
        weights = {name.removeprefix(RELEASED_PREFIX): tensor for name, tensor in state.items()}
        expected = {name: list(tensor.shape) for name, tensor in self.state_dict().items()}
        received = {name: list(tensor.shape) for name, tensor in weights.items()}
        names = expected.keys() | received.keys()
        wrong = sorted(name for name in names if expected.get(name) != received.get(name))
        if wrong:
            first = ", ".join(f"{n} {received.get(n, 'missing')} for {expected.get(n, 'nothing')}" for n in wrong[:3])
            raise ValueError(f"{len(wrong)} weights do not fit this motion field (received for expected): {first}")
        self.load_state_dict(weights)
        return self


class _Squeeze(nn.Module):
    """Squeeze-and-excitation: scale every channel by what the spatial means say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, max(width // 4, 4), 1)
        self.fc2 = nn.Conv2d(max(width // 4, 4), width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        means = hidden.mean(dim=(2, 3), keepdim=True)
        return hidden * torch.sigmoid(self.fc2(F.gelu(self.fc1(means))))


class _Block(nn.Module):
    """Residual block with a prompt-driven scale and shift; the last GELU comes after the sum."""

    def __init__(self, width: int, cond_dim: int | None, squeeze: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.gn1 = nn.GroupNorm(NUM_GROUPS, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.gn2 = nn.GroupNorm(NUM_GROUPS, width)
        self.se = _Squeeze(width) if squeeze else nn.Identity()
        self.film = None if cond_dim is None else nn.Linear(cond_dim, 2 * width)
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, inputs: Tensor, condition: Tensor | None) -> Tensor:
        """[N, width, H, W] and [N, cond_dim] → [N, width, H, W]."""
        hidden = self.gn1(self.conv1(inputs))
        if self.film is not None:
            gamma, beta = self.film(condition)[..., None, None].chunk(2, dim=1)
            hidden = (1 + gamma) * hidden + beta
        hidden = self.se(self.gn2(self.conv2(F.gelu(hidden))))
        return F.gelu(hidden + inputs)


def field_loss(
    field: nn.Module,
    latents: Tensor,
    prompt: Tensor | None,
    *,
    lag: int = 1,
    cosine_weight: float = 0.3,
    noise: Tensor | None = None,
    noise_mask: Tensor | None = None,
    sigmas: Tensor | None = None,
    noise_scale: float = 0.3,
    prompt_keep: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `MotionField` is trained on: squared error plus cosine_weight · (1 − cos) of the predicted change.

    The random draws are the caller's. The published ones: the mask with probability 0.5, σ at uniform timesteps,
    prompts kept with probability 0.9, a draw for every pair. Nothing reaches the generator or the text encoder.

    Differs from the released code in that a prediction of zero length, which is what a new field gives, has cosine 0
    and no gradient from it; there its gradient is that of a division by 1e-8. Defaults are those of the released
    launcher (lag 1, 0.3); the port has lag τ and a cosine weight of 0.5.

    Args:
        field: A `MotionField`, or something that wraps one.
        latents: Clean x0 [B, F, C, H, W].
        prompt: the pooled prompts [B, D]; None for a field without prompts, or for `null_prompt`.
        lag: The pairs are (i, i + lag).
        cosine_weight: α; cos is that of whole frames, C·H·W.
        noise: Standard normal [B, P, C, H, W] for the frames shown, or None for clean ones. The change to predict,
            and the one before, stay clean.
        noise_mask: Pairs to be noised [B, P].
        sigmas: √(1−ᾱ_t) of the level drawn for every pair [B, P].
        noise_scale: The input is z_i + noise_scale · σ · noise.
        prompt_keep: 1, or 0 where the prompt is dropped (made zero) [B, P].

    Returns:
        The loss of each clip [B], float32 (float64 if `latents` are); and [B] each `mse`, `cosine`, `length_ratio`
        (mean ‖predicted‖ / ‖true‖) and `explained` (1 for perfection, 0 for predicting no change).

    Raises:
        ValueError: other shapes, F ≤ lag, only some of noise, noise_mask and sigmas, or prompt_keep without prompt.
    """
    _check_latents(latents)
    _check_lag(lag, latents)
    latents = _wide(latents.detach())
    shown, change = latents[:, :-lag], _changes(latents, lag)
    pairs = shown.shape[:2]
    inputs = shown
    if noise is not None and noise_mask is not None and sigmas is not None:
        for name, draw, shape in (
            ("noise", noise, shown.shape),
            ("noise_mask", noise_mask, pairs),
            ("sigmas", sigmas, pairs),
        ):
            if draw.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(draw.shape)}")
        level = noise_scale * sigmas.to(latents) * noise_mask.to(latents)
        inputs = shown + level[..., None, None, None] * noise.to(latents)
    elif not (noise is None and noise_mask is None and sigmas is None):
        raise ValueError("noise, noise_mask and sigmas go together: pass all three or none")
    if prompt is not None:
        prompt = _wide(prompt.detach())
    if prompt_keep is not None:
        if prompt is None or prompt_keep.shape != pairs:
            got = "no prompt" if prompt is None else list(prompt_keep.shape)
            raise ValueError(f"prompt_keep must be {list(pairs)} and needs a prompt, got {got}")
        prompt = prompt[:, None] * prompt_keep.to(prompt)[..., None]

    predicted = _wide(field(inputs, prompt, _previous_changes(shown))).flatten(2)  # [B, P, C·H·W]
    change = change.flatten(2)
    error = (predicted - change).square()
    lengths, true_lengths = predicted.norm(dim=2), change.norm(dim=2).clamp_min(1e-8)
    cosine = (predicted * change).sum(dim=2) / (lengths.clamp_min(1e-8) * true_lengths)
    cosine = torch.where(lengths > 1e-8, cosine, torch.zeros_like(cosine))
    mse = error.mean(dim=(1, 2))
    loss = mse + cosine_weight * (1 - cosine).mean(dim=1)
    with torch.no_grad():
        explained = 1 - error.sum(dim=(1, 2)) / change.square().sum(dim=(1, 2)).clamp_min(1e-8)
    return loss, {
        "mse": mse.detach(),
        "cosine": cosine.detach().mean(dim=1),
        "length_ratio": (lengths.detach() / true_lengths).mean(dim=1),
        "explained": explained,
    }


# -- sampling: Motion Prior Guidance -----------------------------------------------------------------------------


def guidance_update(
    output: Tensor,
    field: MotionField,
    prompt: Tensor | None,
    *,
    predict_clean: Callable[[Tensor], Tensor],
    scale: float,
    reduction: Literal["mean", "sum", "normalized"] = "mean",
    lag: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Move the network's output so that the x̂0 it stands for follows the motion field.

    output ← output − scale · ∇L_g with L_g = mean (x̂0_i + f_φ(x̂0_i) − x̂0_{i+lag})². The gradient goes through
    `predict_clean` and f_φ, which stays as it is, but not through the generator. To be used after the CFG mix, on
    the raw output (v or ε), in the steps of `guided_steps`.

    With `mean` the step is about 1e-5 of the output at 13×60×90, and bfloat16 rounds nearly all of it away: all is
    computed in float32 here, but a bfloat16 output comes back in bfloat16. Pass and keep float32 to have it whole;
    `changed` tells.

    Differs from the released code in that its mean runs over the batch as well, so that there a clip's step shrinks
    with the number of clips: its λ is scale = λ/B here, the same for a single clip. `sum` does not differ.

    Args:
        output: [B, F, C, H, W].
        field: f_φ.
        prompt: the pooled positive prompts [B, D]; None for a field without prompts, or `null_prompt`.
        predict_clean: Output → x̂0, both [B, F, C, H, W] float32; linear, differentiable, clip by clip.
        scale: λ ≥ 0: 15 (released) or 25 (port) with `mean`. 0 returns the very tensor, having measured L_g.
        reduction: `mean` over the elements of the clip's pairs, `sum` over the same, or `normalized` (ours): a step
            along the gradient, as long as scale · ‖output‖ for each clip, and none where there is no gradient.
        lag: None for the one the field was trained with.

    Returns:
        The new output in the dtype of the old, without gradient; and [B] each, float32 (float64 if `output` is):
        `guidance_loss`, L_g as a mean whatever the reduction, before the step; `update_ratio`, ‖step‖ / ‖output‖
        before any rounding; and `changed`, the share of elements that differ once rounded to the output's dtype.

    Raises:
        ValueError: other shapes, F ≤ lag, a negative scale, an unknown reduction, or a `predict_clean` that
            cuts the graph.
    """
    _check_latents(output, field.channels)
    lag = field.lag if lag is None else lag
    _check_lag(lag, output)
    if not 0 <= scale < float("inf"):
        raise ValueError(f"scale must be 0 or a positive number, got {scale}")
    if reduction not in ("mean", "sum", "normalized"):
        raise ValueError(f"reduction must be mean, sum or normalized, got {reduction!r}")

    wide = _wide(output.detach()).requires_grad_(scale > 0)
    with torch.set_grad_enabled(scale > 0):
        clean = predict_clean(wide)
        if clean.shape != output.shape or (scale > 0 and not clean.requires_grad):
            received = list(clean.shape) if clean.shape != output.shape else "one without a gradient"
            raise ValueError(f"predict_clean must give a differentiable {list(output.shape)}, got {received}")
        clean = _wide(clean)
        residual = clean[:, :-lag] + field(clean[:, :-lag], prompt) - clean[:, lag:]
        loss = residual.square().mean(dim=EACH)
    logs = {"guidance_loss": loss.detach()}
    if scale == 0:
        return output, logs | {"update_ratio": torch.zeros_like(loss), "changed": torch.zeros_like(loss)}

    # Clips do not mix: each gets the gradient of its own loss.
    (gradient,) = torch.autograd.grad(loss, wide, grad_outputs=torch.ones_like(loss))
    wide = wide.detach()
    size = wide.flatten(1).norm(dim=1)
    if reduction == "mean":
        step = scale * gradient
    elif reduction == "sum":
        step = scale * residual[0].numel() * gradient
    else:
        length = gradient.flatten(1).norm(dim=1)
        factor = torch.where(length > 0, scale * size / length, torch.zeros_like(length))
        step = factor[:, None, None, None, None] * gradient
    updated = (wide - step).to(output.dtype)
    return updated, logs | {
        "update_ratio": step.flatten(1).norm(dim=1) / size.clamp_min(1e-12),
        "changed": (updated != output).to(size.dtype).mean(dim=EACH),
    }


def guided_steps(num_steps: int, ratio: float, *, reading: Literal["exact", "released"] = "exact") -> range:
    """The sampling steps, counted from 0, in which `guidance_update` acts: the last `ratio` of them.

    Args:
        num_steps: Sampling steps S.
        ratio: ρ in [0, 1]; published 0.8.
        reading: `exact` starts at ⌊(1 − ρ)·S⌋ with ρ as it is written in decimals. `released` does the same in
            binary fractions, where (1 − 0.8)·50 is 9.999…: 41 steps, not 40.

    Raises:
        ValueError: no steps, a ratio outside [0, 1], or an unknown reading.
    """
    if num_steps < 1 or not 0 <= ratio <= 1:
        raise ValueError(f"need num_steps of at least 1 and a ratio in [0, 1], got {num_steps} and {ratio}")
    if reading == "exact":
        return range(int((1 - Fraction(str(float(ratio)))) * num_steps), num_steps)
    if reading == "released":
        return range(int((1.0 - ratio) * num_steps), num_steps)
    raise ValueError(f"reading must be exact or released, got {reading!r}")


# -- seeing it ---------------------------------------------------------------------------------------------------


def drift_map(
    latents: Tensor, *, lag: int = 2, reading: Literal["proj", "norm"] = "proj"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Where a clip moves with its drift, at the pair of frames t*, t* + lag whose drift is longest.

    Args:
        latents: [B, F, C, H, W].
        lag: τ, in latent frames.
        reading: `proj`, the paper's heatmap: |Δ(h, w) · μ| / max(‖μ‖, 1e-8), for Δ the change and μ its spatial
            mean. `norm`: ‖Δ(h, w)‖, without regard to direction.

    Returns:
        The map [B, H, W]; t* as `frames` [B] int64 (the first of equals), μ as `drift` [B, C], and the lengths
        that were compared, `drift_norms` [B, P]. float32 (float64 if the latents are).

    Raises:
        ValueError: other shapes, F ≤ lag, or an unknown reading.
    """
    _check_latents(latents)
    _check_lag(lag, latents)
    if reading not in ("proj", "norm"):
        raise ValueError(f"reading must be proj or norm, got {reading!r}")
    changes = _changes(_wide(latents), lag)
    norms = changes.mean(dim=(3, 4)).norm(dim=2)
    frames = norms.argmax(dim=1)
    change = changes[torch.arange(len(frames), device=frames.device), frames]
    heat = _along_mean(change) if reading == "proj" else change.norm(dim=1)
    return heat, {"frames": frames, "drift": change.mean(dim=(2, 3)), "drift_norms": norms}


@torch.no_grad()
def field_map(
    field: MotionField,
    latents: Tensor,
    frames: Tensor,
    prompt: Tensor | None = None,
    *,
    reading: Literal["resid", "norm", "proj"] = "resid",
) -> Tensor:
    """Where the motion field expects one frame of each clip to change.

    Args:
        field: f_φ.
        latents: [B, F, C, H, W].
        frames: The frame to show, int64 [B]: t* of `drift_map`.
        prompt: the pooled prompts [B, D].
        reading: `resid`, the paper's heatmap: length over channels of f_φ(z_t*) − f_φ(mean of the clip's frames),
            which takes away what the field says of any frame. `norm`: length of f_φ(z_t*). `proj`: as in
            `drift_map`, with f_φ(z_t*) for the change.

    Returns:
        [B, H, W] in the field's dtype.

    Raises:
        ValueError: other shapes, a frame the clip does not have, or an unknown reading.
    """
    _check_latents(latents, field.channels)
    num_clips, num_frames = latents.shape[:2]
    if frames.shape != (num_clips,) or ((frames < 0) | (frames >= num_frames)).any():
        raise ValueError(f"frames must be [{num_clips}] integers in 0..{num_frames - 1}, got {frames.tolist()}")
    rows = torch.arange(num_clips, device=latents.device)
    before = _previous_changes(_wide(latents))[rows, frames][:, None]
    predicted = field(latents[rows, frames][:, None], prompt, before)[:, 0]
    if reading == "resid":
        return (predicted - field(_wide(latents).mean(dim=1, keepdim=True), prompt)[:, 0]).norm(dim=1)
    if reading == "norm":
        return predicted.norm(dim=1)
    if reading == "proj":
        return _along_mean(predicted)
    raise ValueError(f"reading must be resid, norm or proj, got {reading!r}")


def display_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Heatmaps [B, H, W] enlarged to `size` (rows, columns; bilinear), each stretched to [0, 1]; a flat one is 0."""
    maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, torch.ones_like(high))


# -- shared ------------------------------------------------------------------------------------------------------


def _along_mean(change: Tensor) -> Tensor:
    """|Δ(h, w) · μ| / max(‖μ‖, 1e-8) of [B, C, H, W]."""
    mean = change.mean(dim=(2, 3))
    return torch.einsum("bchw,bc->bhw", change, mean).abs() / mean.norm(dim=1).clamp_min(1e-8)[:, None, None]


def _changes(latents: Tensor, lag: int) -> Tensor:
    """z_{i+lag} − z_i: [B, F, C, H, W] → [B, max(F − lag, 0), C, H, W]."""
    return latents[:, lag:] - latents[:, :-lag]


def _previous_changes(latents: Tensor) -> Tensor:
    """z_i − z_{i−1} of every frame, 0 for the first: [B, F, C, H, W] → same."""
    return torch.cat([torch.zeros_like(latents[:, :1]), latents.diff(dim=1)], dim=1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_latents(latents: Tensor, channels: int | None = None) -> None:
    if latents.ndim != 5 or not latents.is_floating_point() or channels not in (None, latents.shape[2]):
        expected = f"[B, F, {'C' if channels is None else channels}, H, W]"
        raise ValueError(f"latents must be floating point {expected}, got {latents.dtype} {list(latents.shape)}")


def _check_lag(lag: int, latents: Tensor | None = None) -> None:
    if lag < 1 or (latents is not None and latents.shape[1] <= lag):
        clips = "" if latents is None else f" for clips of {latents.shape[1]} latent frames"
        raise ValueError(f"lag must be at least 1 and less than the number of latent frames, got {lag}{clips}")
