"""Training a rater on simulated clips, where the right answer is known exactly.

Every sample is a video and four prompts about it, in the official words of VideoPhy or VideoPhy-2, drawn by chance: its
own caption, a wrong one, physics, and a rule. A video is a clip, its impossible twin (one law broken), one frame of
it repeated (nothing moves where all should), or a generator's, judged by the laws of the simulated world.

| | SA, own caption | SA, wrong caption | PC |
|---|---|---|---|
| clip | 5 | 1 (of another scenario), 2 (one thing in it is wrong) | 5 |
| twin, told outcome comes | 4 | 1, 2 | 1 |
| twin, another outcome | 2 | 1, 2 | 1 |
| one frame repeated | 2 (all is there, nothing happens) | 1 | 2 |
| generated | its grade | 1, 2 | 5, 2 (one law broken), 1 |

Yes is a rating of 4 and 5. A rule is followed (1), broken (0) by the twins of its kind, or cannot be told (2): of
things no clip holds, and what only motion tells where nothing moves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physcli.benchmarks.laws import LawResult
from physcli.benchmarks.videophy import FOLLOWED, PASSING_RATING, QUESTIONS, RATINGS, UNDECIDED, VIOLATED
from physcli.data.clips import Clip, read_impossible
from physcli.data.subsets import spread
from physcli.data.video import resize
from physcli.errors import DataError, UsageError
from physcli.hashing import seeded
from physcli.models.raters.mplug_owl_video import MplugOwlVideo
from physcli.recipe import Rating
from physcli.simulation.prompts import NOUNS, VERBS, with_rate, words
from physcli.simulation.violations import KINDS
from physcli.tasks.training.clips import ClipReader, rng_of, sample_order
from physcli.tasks.training.rater_samples import STRIDE, SampledVideo
from physcli.tasks.training.trainee import Trainee, held_out_row

RULES: dict[str, str] = {
    "vanish": "Objects do not vanish.",
    "teleport": "Objects do not jump from one place to another.",
    "color": "Objects keep their color.",
    "shape": "Objects keep their shape.",
    "pass-through": "Objects do not pass through each other.",
    "float": "Objects fall down when nothing holds them.",
    "stop": "Moving objects do not stop by themselves.",
}
# The law that judges whether a generated video follows a rule.
_LAWS = {
    "vanish": "permanence",
    "color": "color",
    "shape": "shape",
    "pass-through": "solidity",
    "float": "gravity",
    "stop": "inertia",
}
OFF_TOPIC = ("Water flows down.", "The glass breaks into pieces.")
_NEED_MOTION = ("teleport", "pass-through", "float", "stop")
_LOOKS = ("color", "shape")  # broken by their own twins alone, whatever else happens
_COLORS = ("red", "yellow", "blue", "green", "purple", "cyan", "white")
# What may stand for one another in a caption; the first that holds the word is meant.
_FAMILIES = (("hits", "misses"), ("left", "right"), _COLORS, NOUNS)
_STRIDES = (3, 1)  # the whole event in 17 frames, as `sample` makes it, or in all 49
_SHARE_WITH_RATE = 0.7  # of captions; people leave the frame rate out
_END_WEIGHT = 0.1
_BREAK_FRAMES = 2  # shown frames, from the first that shows the break, that the helping head is asked about
_UNKNOWN = -100  # a generated video breaks laws, and nobody says when
_NOTHING_WEIGHT = 0.2  # of frames without a break, which are most


class Video(NamedTuple):
    """What is shown. `kind`: real, static, sampled, or a twin's kind. `stride`: of the frames that are shown; a sampled
    video has no others. `first`: the file's frame that shows the break. `law`: what is known of a sampled video."""

    clip: Clip
    frames: np.ndarray
    kind: str
    stride: int
    mirrored: bool
    first: int | None = None
    law: LawResult | None = None

    @property
    def shown(self) -> np.ndarray:
        return self.frames if self.kind == "sampled" else self.frames[:: self.stride]


class Asked(NamedTuple):
    """A prompt and its answer. `true`: the words that are true of the video, where a caption is asked about."""

    segments: tuple[str, ...]
    answer: str
    true: frozenset[str] | None = None


class RaterTrainee(Trainee):
    """The rater, and three linear heads that are not kept: two on its eyes, one on what it reads.

    Args:
        rater: With weights that can be trained.
        reader: Training clips, of a simulated set with impossible twins.
        twins: Their twins, read the same way.
        sampled: Generated videos, where there shall be any.
        held_out: For validation.
        held_out_sampled: The same of generated videos.
        objective: The recipe's.
        seed: Of what is shown and asked, and of the heads.

    Raises:
        UsageError: shares above one.
    """

    def __init__(
        self,
        rater: MplugOwlVideo,
        *,
        reader: ClipReader,
        twins: ClipReader,
        sampled: Sequence[SampledVideo] = (),
        held_out: Sequence[Clip],
        held_out_sampled: Sequence[SampledVideo] = (),
        objective: Rating,
        seed: int,
    ) -> None:
        super().__init__()
        shares = {"twins": objective.twins, "static": objective.static, "sampled": objective.sampled}
        if sum(shares.values()) > 1:
            told = ", ".join(f"objective.{name}={share}" for name, share in shares.items())
            raise UsageError(f"{told}.", expected="1 in all, at most")
        self.rater = rater.requires_grad_(True)
        self.reader, self.twins, self.sampled = reader, twins, sampled
        self.held_out, self.held_out_sampled = held_out, held_out_sampled
        self.objective, self.seed = objective, seed
        self._vocabulary = sorted({word for clip in reader.clips for word in words(clip.prompt)})
        width = rater.config.vision.hidden_size
        with seeded(seed):
            self.words_head = nn.Linear(width, len(self._vocabulary))
            self.breaks_head = nn.Linear(width, 1 + len(KINDS))
            self.reading_head = nn.Linear(rater.config.text["hidden_size"], 1)
        self._told_words = {rater.tokenizer.encode(word)[0]: word for family in _FAMILIES for word in family}

    # --- what is shown and asked ---

    def batch(self, samples: Sequence[int], step: int) -> dict[str, Any]:
        rows = []
        for sample in samples:
            rng = rng_of(self.seed, "rater", sample)
            video = self._draw(sample, rng)
            rows.append(self._row(video, self._ask(video, rng)))
        return _collate(rows)

    def _draw(self, sample: int, rng: np.random.Generator) -> Video:
        stride, mirrored = int(rng.choice(_STRIDES)), bool(rng.random() < 0.5)
        chance = rng.random()
        if chance < self.objective.twins:
            clip, frames = self.twins.read(sample)
            broken = clip.record["violation"]
            return Video(clip, frames, broken["kind"], stride, mirrored, broken["frame"])
        if chance > 1 - self.objective.sampled:
            return _of_sampled(self.sampled[sample_order(sample, len(self.sampled), self.seed)], mirrored)
        clip, frames = self.reader.read(sample)
        if chance < self.objective.twins + self.objective.static:
            return Video(clip, _frozen(frames, int(rng.integers(len(frames)))), "static", stride, mirrored)
        return Video(clip, frames, "real", stride, mirrored)

    def _ask(self, video: Video, rng: np.random.Generator) -> list[Asked]:
        """Own caption, wrong caption, physics, rule."""
        own = _told(video.clip.prompt, video, rated=rng.random() < _SHARE_WITH_RATE)
        wrong, rating = self._wrong_caption(video, rng)
        rule, judged = _rule(video, rng)
        told = self._label(video.clip)
        true = _true_words(video, told)
        return [
            _question(rng, "sa", own, own_rating(video, told), true),
            _question(rng, "sa", wrong, rating, true),
            _question(rng, "pc", "", physics_rating(video)),
            Asked(QUESTIONS["v2_rule"].segments(rule), str(judged)),
        ]

    def _label(self, clip: Clip) -> int | None:
        """The outcome that a clip's caption tells: a twin has its original's."""
        return 1 if "hits" in words(clip.prompt) else 0

    def _wrong_caption(self, video: Video, rng: np.random.Generator) -> tuple[str, int]:
        rated = rng.random() < _SHARE_WITH_RATE
        if video.kind != "static" and rng.random() < 0.6:
            return _told(spoil(video.clip.prompt, rng), video, rated=rated), 2
        others = self.reader.clips
        for number in rng.permutation(len(others)):
            if others[int(number)].scenario != video.clip.scenario:
                return _told(others[int(number)].prompt, video, rated=rated), 1
        return _told(spoil(video.clip.prompt, rng), video, rated=rated), 2  # a set of one scenario

    def _row(self, video: Video, asked: Sequence[Asked]) -> dict[str, Any]:
        """A video's pixels, its prompts with their answers, and what the helping heads shall say."""
        rater = self.rater
        shown = video.shown
        indices = rater.frame_indices(len(shown))
        pixels = resize(shown[indices], rater.config.vision.image_size, rater.config.vision.image_size)
        pixels = np.ascontiguousarray(pixels[:, :, ::-1]) if video.mirrored else pixels
        breaks = np.full(len(indices), _UNKNOWN if video.law is not None and not video.law.pc else 0, np.int64)
        if video.first is not None:
            after = [t for t, index in enumerate(indices) if index * video.stride >= video.first]
            breaks[after[:_BREAK_FRAMES]] = 1 + KINDS.index(video.kind)
        own = set(words(video.clip.prompt))
        prompts, truths = [], []
        for question in asked:
            answer = rater.tokenizer.encode(question.answer)
            assert len(answer) == 1, f"{question.answer!r} is no single token"
            ids = [*rater.tokenize(question.segments).ids, *answer]
            prompts.append(torch.tensor(ids))
            truths.append(torch.tensor([self._truth(number, question.true) for number in ids]))
        return {
            "pixels": rater.prepare(pixels),
            "prompts": prompts,
            "truths": truths,
            "breaks": torch.from_numpy(breaks),
            "words": torch.tensor([float(word in own) for word in self._vocabulary]),
        }

    def _truth(self, token: int, true: frozenset[str] | None) -> int:
        """Whether a caption's word is true of the video: 1 or 0."""
        word = self._told_words.get(token)
        return _UNKNOWN if word is None or true is None else int(word in true)

    # --- the loss ---

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        rater, objective = self.rater, self.objective
        num_videos, num_prompts = batch["lengths"].shape
        tokens = rater.vision_model(batch["pixels"])
        media = rater.summarise(tokens)
        ids, lengths = batch["ids"].flatten(0, 1), batch["lengths"].flatten()
        hidden = rater.run(ids, lengths, media.repeat_interleave(num_prompts, dim=0))[0]
        row = torch.arange(len(ids), device=ids.device)
        # The last token is the answer: the one before it must foretell it, and itself the end.
        places = torch.stack([lengths - 2, lengths - 1])
        logits = rater.language_model.lm_head(hidden[row, places]).float()
        answers = ids[row, lengths - 1]
        ends = torch.full_like(answers, rater.tokenizer.eos)
        answered = F.cross_entropy(logits[0], answers, reduction="none").view(num_videos, num_prompts)
        ended = F.cross_entropy(logits[1], ends, reduction="none").view(num_videos, num_prompts)
        right = (logits[0].argmax(dim=-1) == answers).float().view(num_videos, num_prompts)
        loss = answered.mean(dim=1) + _END_WEIGHT * ended.mean(dim=1)

        patches = tokens[:, :, 1:].float()
        named = self.words_head(patches.mean(dim=(1, 2)))
        naming = F.binary_cross_entropy_with_logits(named, batch["words"], reduction="none").mean(dim=1)
        seen = self.breaks_head(patches).amax(dim=2)  # where it is seen best
        weights = torch.tensor([_NOTHING_WEIGHT] + [1.0] * len(KINDS), device=seen.device)
        breaking = F.cross_entropy(
            seen.transpose(1, 2), batch["breaks"], weight=weights, ignore_index=_UNKNOWN, reduction="none"
        )
        breaking = breaking.mean(dim=1)
        reading = self._reading(hidden, batch["truths"])
        total = loss + objective.words_weight * naming + objective.breaks_weight * breaking
        total = total + objective.reading_weight * reading
        logs = {"answers": answered.mean(dim=1), "sa_right": right[:, :2].mean(dim=1), "pc_right": right[:, 2]}
        heads = {"naming": naming.detach(), "breaking": breaking.detach(), "reading": reading.detach()}
        return total, {**logs, "rule_right": right[:, 3], **heads}

    def _reading(self, hidden: Tensor, truths: Tensor) -> Tensor:
        """Of hidden states [B·Q, N, L] and `_truth` [B, Q, N]: cross-entropy [B] over the captions' true words and, by
        as much, their false ones, which are few."""
        truths = truths.flatten(1)  # [B, Q·N]
        said = self.reading_head(hidden).float().view(truths.shape)
        losses = F.binary_cross_entropy_with_logits(said, truths.clamp(min=0).float(), reduction="none")
        halves = []
        for truth in (0, 1):
            where = truths == truth
            halves.append((losses * where).sum(dim=1) / where.sum(dim=1).clamp(min=1))
        return torch.stack(halves).mean(dim=0)

    # --- measuring ---

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        """On held-out clips, their twins and first frames, and generated videos: how often SA and PC are on the right
        side of 4, read from the likeliest digit, and how often a real clip's expected PC is above its own twin's."""
        clips = spread(self.held_out, self.objective.validated)
        found: dict[tuple[str, str], list[float]] = {}
        expected = self._judge(self._held_out_videos(clips), found)
        self._judge([_of_sampled(one, False) for one in self.held_out_sampled], found)
        ranked = [
            float(expected[name]["real"] > value) + 0.5 * float(expected[name]["real"] == value)
            for name in expected
            for kind, value in expected[name].items()
            if kind in KINDS
        ]
        rows = []
        for (metric, group), values in found.items():
            row = held_out_row("rater", self.rater.name, metric, values, higher_is_better=True, kind="rate")
            rows.append(row | {"group": group})
        rows.append(
            held_out_row("rater", self.rater.name, "pc_real_above_twin", ranked, higher_is_better=True, kind="rate")
        )
        return rows

    def _held_out_videos(self, clips: Sequence[Clip]) -> list[Video]:
        """Each clip, one twin of it, kinds in turn, and its first frame repeated."""
        by_original: dict[str, dict[str, Clip]] = {}
        for root in sorted({set_folder(clip) for clip in clips}):
            for twin in read_impossible(root):
                by_original.setdefault(twin.record["twin_of"], {})[twin.record["violation"]["kind"]] = twin
        videos = []
        for number, clip in enumerate(clips):
            frames, stride = clip.read(), _STRIDES[number % 2]
            videos += [
                Video(clip, frames, "real", stride, False),
                Video(clip, _frozen(frames, 0), "static", stride, False),
            ]
            twins = by_original.get(clip.name, {})
            kinds = [kind for kind in (*KINDS[number % len(KINDS) :], *KINDS[: number % len(KINDS)]) if kind in twins]
            if kinds:
                videos.append(Video(clip, twins[kinds[0]].read(), kinds[0], stride, False))
        return videos

    def _judge(self, videos: Sequence[Video], found: dict[tuple[str, str], list[float]]) -> dict[str, dict[str, float]]:
        """Ask about every video; adds to `found`, and gives each clip's expected PC by the kind of video."""
        rater = self.rater
        expected: dict[str, dict[str, float]] = {}
        ratings = torch.tensor(RATINGS, dtype=torch.float32)
        for first in range(0, len(videos), 24):
            some = videos[first : first + 24]
            rows = [self._row(video, []) for video in some]
            media = rater.encode_videos(torch.stack([row["pixels"] for row in rows]))

            def ask(questions: list[tuple[str, ...]], media: Tensor = media) -> Tensor:
                return rater.digit_logits(media, questions).softmax(dim=-1)

            physics = ask([QUESTIONS["v2_pc"].segments()] * len(some))
            own = ask([QUESTIONS["v2_sa"].segments(_told(v.clip.prompt, v, rated=True)) for v in some])
            spoilt = ask(
                [
                    QUESTIONS["v2_sa"].segments(_told(spoil(v.clip.prompt, rng_of(0, v.clip.name)), v, rated=True))
                    for v in some
                ]
            )
            yes = rater.yes_probability(media, [QUESTIONS["v1_pc"].segments()] * len(some))
            for number, video in enumerate(some):
                passes = {
                    "pc": int(physics[number].argmax()) + 1 >= PASSING_RATING,
                    "pc_yes": float(yes[number]) >= 0.5,
                }
                should = physics_rating(video) >= PASSING_RATING
                groups = {video.kind, "twins"} if video.kind in KINDS else {video.kind}
                for name, value in passes.items():
                    for group in groups:
                        found.setdefault((f"{name}_right", group), []).append(float(value == should))
                if video.kind == "sampled":
                    right = (int(own[number].argmax()) + 1 >= PASSING_RATING) == (own_rating(video, None) >= 4)
                    found.setdefault(("sa_own_right", "sampled"), []).append(float(right))
                if video.kind == "real":
                    for name, answer, wanted in (("sa_own", own, True), ("sa_wrong", spoilt, False)):
                        right = (int(answer[number].argmax()) + 1 >= PASSING_RATING) == wanted
                        found.setdefault((f"{name}_right", "all"), []).append(float(right))
                expected.setdefault(video.clip.name, {})[video.kind] = float(physics[number] @ ratings)
        return expected

    # --- what is left ---

    def export(self, folder: Path) -> Path:
        """Write `model/`, a folder that `load_rater` reads; the heads are only needed for training."""
        self.rater.save(folder / "model")
        return folder / "model"

    def parts(self) -> dict[str, int]:
        parts = {
            "vision": self.rater.vision_model,
            "abstractor": self.rater.abstractor,
            "language model": self.rater.language_model,
        }
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        counts["abstractor"] += self.rater.query_tokens.numel() + self.rater.temporal_query_tokens.numel()
        return counts

    def problems(self) -> list[str]:
        return [*self.reader.bad.values(), *self.twins.bad.values()]


def set_folder(clip: Clip) -> Path:
    """The simulated set a clip is from.

    Raises:
        DataError: it is from none.
    """
    if clip.kind != "simulated":
        raise DataError(
            f"{clip.path} is no simulated clip, so nothing is known of what is right.",
            expected="a set from `physcli data simulate --impossible all`",
        )
    return clip.path.parents[2]  # ROOT/physion_mp4s/SPLIT/NAME.mp4


def twins_of(clips: Sequence[Clip]) -> list[Clip]:
    """The impossible twins of these clips, in the order of their sets.

    Raises:
        DataError: clips that are not simulated, or have no twins.
    """
    names = {clip.name for clip in clips}
    roots = sorted({set_folder(clip) for clip in clips})
    twins = [twin for root in roots for twin in read_impossible(root) if twin.record["twin_of"] in names]
    if not twins:
        raise DataError(
            f"None of the {len(clips)} clips has an impossible twin.",
            expected="a set from `physcli data simulate --impossible all`",
        )
    return twins


def physics_rating(video: Video) -> int:
    """PC: of a generated video by how many laws it breaks."""
    if video.law is not None:
        broken = sum(holds is False for holds in video.law.laws.values())
        return 5 if video.law.pc else 2 if broken == 1 else 1
    return {"real": 5, "static": 2}.get(video.kind, 1)


def own_rating(video: Video, told: int | None) -> int:
    """SA of a video under its own caption, which tells the outcome `told`."""
    if video.law is not None:
        return video.law.sa
    if video.kind == "real":
        return 5
    if video.kind == "static":
        return 2
    return 4 if video.clip.label == told else 2


def _of_sampled(made: SampledVideo, mirrored: bool) -> Video:
    return Video(made.clip, made.frames, "sampled", STRIDE, mirrored, law=made.law)


def spoil(caption: str, rng: np.random.Generator) -> str:
    """The caption with one thing wrong: the outcome, the way, a colour or a noun."""
    places = [(word, family) for word in words(caption) if (family := _family(word))]
    # The outcome is one word among many, and what matters most.
    chances = np.array([3.0 if "hits" in family else 1.0 for _, family in places])
    word, family = places[int(rng.choice(len(places), p=chances / chances.sum()))]
    present = set(words(caption))
    others = [other for other in family if other not in present] or [other for other in family if other != word]
    return re.sub(rf"\b{word}\b", str(rng.choice(others)), caption)


def _family(word: str) -> tuple[str, ...]:
    return next((family for family in _FAMILIES if word in family), ())


def _told(caption: str, video: Video, *, rated: bool) -> str:
    """A clip's caption for what is shown of it: its rate, and left and right as they are seen."""
    caption = with_rate(caption, video.stride)
    if video.mirrored:
        swap = {"left": "right", "right": "left"}
        caption = re.sub(r"\b(left|right)\b", lambda match: swap[match[1]], caption)
    return caption if rated else caption.rsplit(", ", 1)[0]


def _true_words(video: Video, told: int | None) -> frozenset[str] | None:
    """The words of its caption that are true of a video; None where nobody knows."""
    if video.law is not None and video.law.sa < max(RATINGS):
        return None
    true = set(words(_told(video.clip.prompt, video, rated=False)))
    if video.kind == "static":
        true -= set(VERBS.values())
    elif video.law is None and video.clip.label != told:
        true ^= set(VERBS.values())
    return frozenset(true)


def _question(
    rng: np.random.Generator, about: str, text: str, rating: int, true: frozenset[str] | None = None
) -> Asked:
    """VideoPhy's or VideoPhy-2's question, and what the rating is in its words."""
    version = "v1" if rng.random() < 0.5 else "v2"
    answer = str(rating) if version == "v2" else "Yes" if rating >= PASSING_RATING else "No"
    return Asked(QUESTIONS[f"{version}_{about}"].segments(text), answer, true)


def _rule(video: Video, rng: np.random.Generator) -> tuple[str, int]:
    if rng.random() < 0.15:
        return str(rng.choice(OFF_TOPIC)), UNDECIDED
    if video.kind in RULES:
        if rng.random() < 0.6:
            return RULES[video.kind], VIOLATED
        others = [kind for kind in _LOOKS if kind != video.kind]
        return RULES[str(rng.choice(others))], FOLLOWED
    kind = str(rng.choice(list(RULES if video.law is None else _LAWS)))
    if video.law is not None:
        return RULES[kind], {True: FOLLOWED, False: VIOLATED, None: UNDECIDED}[video.law.laws[_LAWS[kind]]]
    still = video.kind == "static" and kind in _NEED_MOTION
    return RULES[kind], UNDECIDED if still else FOLLOWED


def _frozen(frames: np.ndarray, number: int) -> np.ndarray:
    return np.broadcast_to(frames[number], frames.shape)


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    prompts = [prompt for row in rows for prompt in row["prompts"]]
    truths = [truth for row in rows for truth in row["truths"]]
    ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    truth = nn.utils.rnn.pad_sequence(truths, batch_first=True, padding_value=_UNKNOWN)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return {
        "ids": ids.unflatten(0, (len(rows), -1)),
        "lengths": lengths.unflatten(0, (len(rows), -1)),
        "truths": truth.unflatten(0, (len(rows), -1)),
        **{name: torch.stack([row[name] for row in rows]) for name in ("pixels", "breaks", "words")},
    }
