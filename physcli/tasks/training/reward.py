"""Reward fine-tuning: rounds of videos that the generator makes and a reward judges, and steps that learn from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physcli.benchmarks.laws import grade
from physcli.benchmarks.objects import LEADING_COLORS, find_objects
from physcli.benchmarks.videophy import RATINGS
from physcli.data.clips import Clip
from physcli.data.video import resize
from physcli.errors import UsageError
from physcli.hashing import seed_from
from physcli.methods.nft import nft_loss, optimality
from physcli.methods.raft import best_of
from physcli.methods.settings import Nft, Raft, Rounds
from physcli.models.generator import Conditioning, Generator, denoising_loss
from physcli.models.noise import NoiseLevel
from physcli.models.raters import TINY_RATER
from physcli.models.raters.mplug_owl_video import MplugOwlVideo, load_rater
from physcli.recipe import GeneratorRecipe
from physcli.rows import Kind, Row
from physcli.tasks.ask import rate
from physcli.tasks.features import to_tensor
from physcli.tasks.processes import Processes
from physcli.tasks.training.clips import noise_of, rng_of
from physcli.tasks.training.generator import OfGenerator, choose_trained, density_of
from physcli.tasks.training.scoring import Asked, Judge, VideoJudge, asked_of, by_laws, make_videos
from physcli.tasks.training.trainee import held_out_row
from physcli.tasks.training.windows import prompt_at

# Of a judged video, beside the rewards: what is logged, and how it is shown.
_PARTS: dict[str, Kind] = {
    "sa": "rate",
    "pc": "rate",
    "moves": "rate",
    "dynamic_degree": "rate",
    "sa_grade": "grade",
    "motion_px": "px",
    "rater_sa": "grade",
    "rater_pc": "grade",
}


def _joint(frames: np.ndarray, judged: Mapping[str, Any]) -> float:
    return float(judged["joint"])


def _rater(frames: np.ndarray, judged: Mapping[str, Any]) -> float:
    low, high = min(RATINGS), max(RATINGS)
    both = (judged["rater_sa"] + judged["rater_pc"]) / 2
    return float(judged["moves"]) * (both - low) / (high - low)


def _rise(frames: np.ndarray, judged: Mapping[str, Any]) -> float:
    """1 at the top of the last frame, 0 at its bottom or where nothing red is seen."""
    [last] = find_objects(frames[-1:])
    seen = [patch for patch in last if patch.color == LEADING_COLORS[0]]
    area = sum(patch.area for patch in seen)
    return 1 - sum(patch.area * patch.centroid[1] for patch in seen) / area / frames.shape[1] if seen else 0.0


# Of uint8 [T, H, W, 3] and what the laws and the rater say of it. All are between 0 and 1.
REWARDS: dict[str, Callable[[np.ndarray, Mapping[str, Any]], float]] = {
    "laws": lambda frames, judged: grade(judged),
    "joint": _joint,
    "rater": _rater,
    "rise": _rise,
}


def judge_video(item: Asked, frames: np.ndarray, rater: MplugOwlVideo) -> dict[str, Any]:
    """All rewards, `reward/laws` and so on, and the parts that are logged beside them; and why laws are broken.

    Args:
        item: What was asked for.
        frames: uint8 [T, H, W, 3].
        rater: Asked VideoPhy-2's two questions; its ratings, 1 to 5, are means over the digits' probabilities.
    """
    judged = by_laws(item, frames)
    judged["rater_sa"], judged["rater_pc"] = rate(rater, frames, item.caption)
    rewards = {f"reward/{name}": reward(frames, judged) for name, reward in REWARDS.items()}
    return rewards | {name: float(judged[name]) for name in _PARTS} | {"reasons": judged["reasons"]}


@dataclass
class Round:
    """What the steps of a round learn from; part of every checkpoint.

    Attributes:
        number: From 0; −1 before the first.
        items: N prompts with their frame rates.
        latents: [N, F, C, h, w], of the videos as they were sampled.
        real: [N / group, F, C, h, w], of the prompts' clips; nothing where the method does not ask for them.
        good: r [N], of `nft`.
        kept: Which of the N are learnt from.
        old: The old policy's weights, by name, of `nft`.
        means: Over the round's videos, of all rewards and parts.
    """

    number: int = -1
    items: list[tuple[str, float]] = field(default_factory=list)
    latents: Tensor | None = None
    real: Tensor | None = None
    good: Tensor | None = None
    kept: Tensor | None = None
    old: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


class RewardTrainee(OfGenerator):
    """The transformer of a generator, whole or by LoRA, on videos of its own.

    Args:
        generator: Already where it shall run, all of its parts read.
        recipe: With a method that learns in rounds.
        training: Clips whose prompts videos are made for.
        held_out: Clips whose first `scoring.videos` prompts are not trained on.
        seed: Of prompts, first noises, noise and times.
        judge: Scores it on the way, if the recipe asks for that.
        processes: Each makes its part of a round.

    Raises:
        UsageError: too few prompts.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        recipe: GeneratorRecipe,
        training: Sequence[Clip],
        held_out: Sequence[Clip],
        seed: int,
        judge: Judge | None = None,
        processes: Processes,
    ) -> None:
        super().__init__()
        assert isinstance(recipe.method, Rounds)
        self.settings, self.processes = recipe.method, processes
        self.generator, self.recipe, self.objective, self.judge = generator, recipe, recipe.objective, judge
        self.seed = seed
        self._judge_video = partial(judge_video, rater=load_rater(TINY_RATER, device="cpu"))
        choose_trained(generator, recipe, seed=seed)
        generator.need("vae", "text_encoder")
        self.transformer: Any = generator.network
        stride = max(self.objective.strides)
        self._clips = {prompt_at(clip, stride): clip for clip in reversed(training) if clip.kind == "simulated"}
        # A large suite has nearly all prompts of this world among its held-out clips, too: only those are kept out that
        # the judge asks for.
        scored = {item.prompt for item in self._asked(held_out)[: recipe.scoring.videos]}
        self._prompts = [item for item in self._asked(training) if item.prompt not in scored]
        if len(self._prompts) < self.settings.num_prompts:
            raise UsageError(
                f"{len(self._prompts)} prompts that are not kept for scoring, for rounds of "
                f"{self.settings.num_prompts} (method.num_prompts).",
                expected="simulated clips with at least as many different prompts",
                fix="use more clips, fewer prompts a round, or fewer scoring.videos",
            )
        self._trained = {n: p for n, p in self.transformer.named_parameters() if p.requires_grad}
        holds = isinstance(self.settings, Nft) and self.settings.kl_weight
        self._first = self._copies() if holds else {}
        self._embedded: dict[str, dict[str, Tensor]] = {}
        self.round = Round()
        self._density = density_of(recipe.objective)
        self._shape = generator.latent_shape(recipe.objective.frames, *generator.facts.size)

    def _asked(self, clips: Sequence[Clip]) -> list[Asked]:
        """Their prompts."""
        return asked_of(clips, self.recipe, seed=self.seed, default_rate_hz=self.generator.facts.frame_rate_hz)

    # -- rounds ----------------------------------------------------------------------------------------------------

    @property
    def states(self) -> Sequence[Any]:
        return [self.round]

    def before_step(self, step: int) -> dict[str, float]:
        """Begin a round where one is due, and what to log of it."""
        number = step // self.settings.steps_per_round
        if number != self.round.number:
            self._begin_round(number)
            return self.round.means
        return {}

    def _begin_round(self, number: int) -> None:
        settings, old = self.settings, self.round.old
        if isinstance(settings, Nft):
            kept = settings.old_decay if old else 0.0
            for name, weights in self._copies().items():
                old[name] = kept * old[name].to(weights) + (1 - kept) * weights if kept else weights
        rng = rng_of(self.seed, "round", number)
        chosen = rng.choice(len(self._prompts), settings.num_prompts, replace=False)
        items = [
            Asked(item.prompt, seed_from(self.seed, "round", number, item.prompt, sample), item.rate_hz)
            for item in (self._prompts[place] for place in chosen)
            for sample in range(settings.group)
        ]
        mine = self.processes.share(range(len(items)))
        self.transformer.eval()
        with torch.no_grad(), self._as(old):
            made = make_videos(
                self.generator,
                [items[n] for n in mine],
                num_frames=self.objective.frames,
                steps=settings.sample_steps,
                guidance_scale=settings.guidance_scale,
            )
        self.transformer.train()
        if settings.real_weight:
            self.round.real = self._real([self._prompts[place].prompt for place in chosen])
        done = [
            (n, latents, self._judge_video(items[n], video)) for n, (video, latents) in zip(mine, made, strict=True)
        ]
        done = sorted(self.processes.collect(done), key=lambda found: found[0])
        rewards = torch.tensor([judged[f"reward/{settings.reward}"] for _, _, judged in done])
        grouped = rewards.view(settings.num_prompts, settings.group)
        self.round.number, self.round.items = number, [(item.prompt, item.rate_hz) for item in items]
        self.round.latents, self.round.kept = torch.stack([latents for _, latents, _ in done]), torch.arange(len(done))
        if isinstance(settings, Nft):
            good = optimality(grouped, most=settings.most_advantage, std=settings.std)
            self.round.good = good.flatten()
        elif isinstance(settings, Raft):
            self.round.kept = best_of(grouped, keep=settings.keep, least=settings.least)
        names = [name for name in done[0][2] if name != "reasons"]
        self.round.means = {name: float(np.mean([judged[name] for _, _, judged in done])) for name in names}
        self.round.means |= {"reward": float(rewards.mean()), "reward_std": float(grouped.std(dim=1).mean())}
        self.round.means["kept"] = len(self.round.kept) / len(done)

    @torch.no_grad()
    def _real(self, prompts: Sequence[str]) -> Tensor:
        """The beginnings of the prompts' clips, [P, F, C, h, w] on the CPU."""
        stride = max(self.objective.strides)
        frames = [stride * number for number in range(self.objective.frames)]
        pixels = [resize(self._clips[prompt].read(frames), *self.generator.facts.size) for prompt in prompts]
        return self.generator.codec.encode(to_tensor(pixels)).cpu()

    def _copies(self) -> dict[str, Tensor]:
        return {name: weights.detach().clone() for name, weights in self._trained.items()}

    @contextlib.contextmanager
    def _as(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Inside, the network has these weights; nothing that is differentiated may begin before it ends."""
        now = {name: self._trained[name].data for name in weights}
        for name in weights:
            parameter = self._trained[name]
            weights[name] = parameter.data = weights[name].to(parameter)
        try:
            yield
        finally:
            for name, data in now.items():
                self._trained[name].data = data

    # -- steps -----------------------------------------------------------------------------------------------------

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        count = self.settings.num_prompts * self.settings.group
        times, noise, slots, dropped = [], [], [], []
        for sample in samples:
            rng = rng_of(self.seed, "sample", sample)
            times.append(self.generator.noise.draw(rng, self._density))
            dropped.append(rng.random() < self.objective.caption_dropout)
            noise.append(noise_of(self.seed, "noise", sample, shape=self._shape))
            order = rng_of(self.seed, "order", sample // count).permutation(count)  # all before one again
            slots.append(int(order[sample % count]))
        return {
            "time": torch.stack(times),
            "noise": torch.stack(noise),
            "slot": torch.tensor(slots),
            "dropped": torch.tensor(dropped),
        }

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        found, settings = self.round, self.settings
        assert found.latents is not None
        assert found.kept is not None
        slots = found.kept[batch["slot"].cpu() % len(found.kept)]
        latents = found.latents[slots].to(self.device)
        items = [found.items[slot] for slot in slots.tolist()]
        prompts = ["" if drop else item[0] for item, drop in zip(items, batch["dropped"].tolist(), strict=True)]
        told = Conditioning.stack([self._told(prompt) for prompt in prompts])
        if self.generator.takes_frame_rates:
            told = told.at_rates([rate for _, rate in items])
        noise, level = batch["noise"], self.generator.noise.of_time(batch["time"])
        if isinstance(settings, Nft):
            assert found.good is not None
            loss, logs = self._away_and_towards(
                settings, latents, found.good[slots].to(self.device), noise, level, told
            )
        else:
            loss, _ = denoising_loss(self.generator, latents, noise, level, told)
            logs = {settings.name: loss.detach()}
        if settings.real_weight:
            assert found.real is not None
            real = found.real[slots // settings.group].to(self.device)
            denoising, _ = denoising_loss(self.generator, real, noise, level, told)
            loss, logs = loss + settings.real_weight * denoising, logs | {"denoising": denoising.detach()}
        return loss, logs

    def _away_and_towards(
        self, settings: Nft, latents: Tensor, good: Tensor, noise: Tensor, level: NoiseLevel, told: Conditioning
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `nft`, and of what it holds on to."""
        process = self.generator.noise
        noisy = process.add_noise(latents, noise, level)

        def predict(weights: dict[str, Tensor] | None = None) -> Tensor:
            """Of the network as it is, or with other weights and no gradient."""
            other = contextlib.nullcontext() if weights is None else self._as(weights)
            with other, torch.set_grad_enabled(weights is None and torch.is_grad_enabled()):
                output = self.generator.denoise(noisy, level, told).output
            assert output is not None
            return output

        old = predict(self.round.old)
        first = predict(self._first) if self._first else None
        output = predict()
        loss = nft_loss(
            process.clean(output, noisy, level),
            process.clean(old, noisy, level),
            latents,
            good,
            beta=settings.beta,
            scale=settings.most_advantage,
        )
        logs = {"nft": loss.detach(), "good": good}
        if first is not None:
            drift = (output.float() - first.float()).square().mean(dim=(1, 2, 3, 4))
            loss, logs = loss + settings.kl_weight * drift, logs | {"kl": drift.detach()}
        return loss, logs

    def _told(self, prompt: str) -> dict[str, Tensor]:
        if prompt not in self._embedded:
            self._embedded[prompt] = self.generator.encode_prompts([prompt]).row(0)
        return self._embedded[prompt]

    def _release(self) -> None:
        """Every round needs all parts."""

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """Nothing: `train.score_every` measures the reward on held-out prompts, with the control of before training."""
        return []


class RewardsJudge(VideoJudge):
    """All rewards, and the parts beside them."""

    metrics = (*(f"reward/{name}" for name in REWARDS), *_PARTS)

    def __init__(self, items: Sequence[Asked], recipe: GeneratorRecipe, *, processes: Processes) -> None:
        super().__init__(items, recipe, processes=processes)
        self.headline = f"reward/{recipe.method.reward if isinstance(recipe.method, Rounds) else 'laws'}"
        self._rater = load_rater(TINY_RATER, device="cpu")

    def judge(self, item: Asked, frames: np.ndarray) -> dict[str, Any]:
        return judge_video(item, frames, self._rater)

    def rows(self, judged: Sequence[Mapping[str, Any]], subject: str) -> list[Row]:
        kinds: dict[str, Kind] = {f"reward/{name}": "rate" for name in REWARDS}
        kinds |= _PARTS
        return [
            held_out_row("reward", subject, name, [one[name] for one in judged], higher_is_better=True, kind=kind)
            for name, kind in kinds.items()
        ]
