"""What every generator must do, whatever its family; one that is added to `GENERATORS` is tested here as it is.

Its class makes a small model with random weights by `build()`; clips are the smallest that its codec takes. LTX stands
for generators of one's own (`tests/models/ltx.py`).
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from physcli.data.video import write_video
from physcli.errors import UsageError
from physcli.guidance.cfg_zero import CfgZero
from physcli.guidance.inner import InnerGuidance
from physcli.guidance.lamo import MotionPrior
from physcli.hashing import seeded
from physcli.methods.lamo import MotionField
from physcli.models import GENERATORS, OWN_FILE
from physcli.models.device import quiet_libraries
from physcli.models.diffusers_generator import read_own_facts
from physcli.models.generator import Conditioning, denoising_loss
from physcli.models.loading import load
from physcli.models.names import import_class, read_facts, resolve
from physcli.models.parts import is_empty
from physcli.progress import Bar, Reporter
from physcli.tasks import finetune as task
from physcli.tasks.training import generator as training
from physcli.tasks.training.request import FinetuneRequest

FAMILIES = {**GENERATORS, "a class of one's own": "ltx:LTX"}
PROMPTS = ["A red ball rolls towards a yellow box.", "A blue box falls."]
SEEDS = [3, 4]


def close(made, expected, atol):
    torch.testing.assert_close(made, expected, atol=atol, rtol=0)


@pytest.fixture(scope="module", params=FAMILIES)
def location(request):
    """`module:Class`, which Python finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield FAMILIES[request.param]


@pytest.fixture(scope="module")
def family(location):
    return import_class(location)


@pytest.fixture(scope="module")
def generator(family):
    """With weights in no file; no test changes it."""
    made = family.build()
    made.place("cpu")
    return made


@pytest.fixture(scope="module")
def folder(generator, tmp_path_factory):
    made = tmp_path_factory.mktemp("models") / "saved"
    with quiet_libraries():
        generator.save(made)
    return made


@pytest.fixture(scope="module")
def name(location, family, folder):
    """What the command line would call the folder."""
    return str(folder) if family.family in GENERATORS else f"{location}@{folder}"


@pytest.fixture
def reopened(family, folder):
    """Read from the folder, for tests that change it."""
    made = family.from_pretrained(folder, parts=("transformer",))
    made.place("cpu")
    return made


@pytest.fixture(scope="module")
def shape(generator):
    """Of a clip of three latent frames or more, two tokens or more along each side."""
    side = 2 * generator.codec.side
    return {"num_frames": decodable(generator.codec, 2 * generator.codec.temporal + 1), "height": side, "width": side}


@pytest.fixture(scope="module")
def clips(shape):
    """[2, T, 3, H, W]."""
    size = (2, shape["num_frames"], 3, shape["height"], shape["width"])
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def batch(generator, shape):
    """What `denoise` takes, of two clips at different levels."""
    random = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, *generator.latent_shape(**shape), generator=random)
    level = generator.noise.of_time(torch.stack([generator.noise.spread(200), generator.noise.spread(800)]))
    return {"noisy": noisy, "level": level, "conditioning": generator.encode_prompts(PROMPTS)}


@pytest.fixture(scope="module")
def output(generator, batch):
    with torch.no_grad():
        return generator.denoise(**batch).output


@pytest.fixture(scope="module")
def unguided(generator, shape):
    """Two videos by the family's own sampler."""
    return generator.sample(PROMPTS, SEEDS, **shape, steps=3).frames


def decodable(codec, at_least):
    """The next length that can be decoded."""
    step = codec.step(decoding=True)
    return -(-(at_least - 1) // step) * step + 1


def alone(batch, number):
    """One clip of a batch."""
    return {
        "noisy": batch["noisy"][number : number + 1],
        "level": type(batch["level"])(*(part[number : number + 1] for part in batch["level"])),
        "conditioning": Conditioning.stack([batch["conditioning"].row(number)]),
    }


# -- facts, and the folder -----------------------------------------------------------------------------------------


def test_facts_are_read_without_weights(generator, family, folder, name):
    assert family.facts_of(folder, "name") == generator.facts
    assert read_facts(resolve(name)) == generator.facts


def test_facts_are_those_of_the_network(generator, batch):
    facts = generator.facts
    told = batch["conditioning"]
    assert told.text.shape == (2, facts.max_text_tokens, facts.text_width)
    assert batch["noisy"].shape[2] == facts.latent_channels
    with torch.no_grad():
        denoised = generator.denoise(**batch, taps=range(facts.num_blocks))
    assert list(denoised.features) == list(range(facts.num_blocks))
    grid = [size // part for size, part in zip(np.array(batch["noisy"].shape)[[1, 3, 4]], facts.patch, strict=True)]
    for features in denoised.features.values():
        assert list(features.shape) == [2, *grid, facts.hidden_size]
    assert generator.token_grid(facts.num_frames, *facts.size)  # its own size is a legal one
    assert (generator.num_blocks, generator.hidden_size) == (facts.num_blocks, facts.hidden_size)


def test_saved_and_loaded_it_is_the_same_to_the_bit(name, batch, output, generator, clips):
    again = load(name, device="cpu", dtype="float32")
    with torch.no_grad():
        told = again.encode_prompts(PROMPTS)
        assert all(torch.equal(part, batch["conditioning"][key]) for key, part in told.items())
        assert torch.equal(again.denoise(**batch).output, output)
    assert torch.equal(again.codec.encode(clips), generator.codec.encode(clips))
    assert again.codec.space == generator.codec.space
    assert again.guidance_scale == generator.guidance_scale


def test_bfloat16_stays_finite(name, shape):
    made = load(name, device="cpu", dtype="bfloat16")
    assert made.dtype == torch.bfloat16
    frames = made.sample(PROMPTS[:1], SEEDS[:1], **shape, steps=2).frames
    assert frames.std() > 0
    half = torch.rand(1, shape["num_frames"], 3, shape["height"], shape["width"])
    latents = made.codec.encode(half)
    assert latents.dtype == torch.float32
    assert latents.isfinite().all()


def test_parts_are_read_when_they_are_needed(family, folder, generator, batch, output, clips):
    lazy = family.from_pretrained(folder, parts=())
    lazy.place("cpu")
    assert set(lazy.weight_parts) == set(family.part_classes)
    assert all(is_empty(lazy.part(part)) for part in lazy.weight_parts)
    told = lazy.encode_prompts(PROMPTS)
    assert all(torch.equal(part, batch["conditioning"][key]) for key, part in told.items())
    encoded = lazy.codec.encode(clips[:1])
    assert is_empty(lazy.network)
    lazy.release("text_encoder", "vae")
    assert all(is_empty(lazy.part(part)) for part in lazy.weight_parts)
    lazy.need("transformer")
    with torch.no_grad():
        assert torch.equal(lazy.denoise(**batch).output, output)
    assert torch.equal(lazy.codec.encode(clips[:1]), encoded)
    assert lazy.fingerprint("vae") != lazy.fingerprint("transformer")
    # Whole again when it is written, also what was not read.
    assert lazy.fingerprint("text_encoder") == family.from_pretrained(folder, parts=()).fingerprint("text_encoder")


# -- noise -----------------------------------------------------------------------------------------------------------


def test_noise_goes_and_comes_back(generator, batch):
    process, clean = generator.noise, batch["noisy"]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    level = batch["level"]
    noisy, target = process.add_noise(clean, noise, level), process.target(clean, noise, level)
    close(process.clean(target, noisy, level), clean, 1e-4)
    nearly_clean = process.at(0.0).expand(2)
    close(process.add_noise(clean, noise, nearly_clean), clean, 0.2)
    assert (level.sigma[0] < level.sigma[1]).all()
    assert (level.snr[0] > level.snr[1]).all()
    for sigma in (0.1, 0.5, 0.9):
        found = process.at(sigma)
        assert found.sigma.item() == pytest.approx(sigma, abs=0.01)
        again = process.of_time(found.time)
        assert again.sigma.item() == pytest.approx(found.sigma.item(), abs=1e-6)
        assert process.at_snr(found.snr.item()).sigma.item() == pytest.approx(found.sigma.item(), abs=1e-6)


# -- the network -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_taps_are_what_hooks_give(generator, batch, output):
    [blocks] = (part for part in generator.network.children() if isinstance(part, torch.nn.ModuleList))
    assert len(blocks) == generator.num_blocks
    seen: dict[int, torch.Tensor] = {}
    handles = []
    for index, block in enumerate(blocks):

        def keep(module, arguments, result, index=index):
            seen[index] = result[0] if isinstance(result, tuple) else result

        handles.append(block.register_forward_hook(keep))
    last = generator.num_blocks - 1
    full = generator.denoise(**batch, taps=[last, 0])
    assert torch.equal(full.output, output)
    assert list(full.features) == [0, last]
    hooked = dict(seen)
    for tap in (0, last):
        assert torch.equal(full.tokens[tap], hooked[tap])
        assert torch.equal(full.features[tap].flatten(1, 3), hooked[tap])
    seen.clear()
    early = generator.denoise(**batch, taps=[1, 0], features_only=True)
    for handle in handles:
        handle.remove()
    assert sorted(seen) == [0, 1]  # the later blocks did not run
    assert early.output is None
    assert torch.equal(early.features[0], full.features[0])
    assert torch.equal(early.tokens[1], hooked[1])
    assert len(blocks) == generator.num_blocks
    assert torch.equal(generator.denoise(**batch).output, output)


def test_a_block_that_is_not_there(generator, batch):
    with pytest.raises(UsageError, match=f"No such block: {generator.num_blocks}"):
        generator.denoise(**batch, taps=[generator.num_blocks])
    with pytest.raises(ValueError, match="noisy must be"):
        generator.denoise(batch["noisy"].transpose(1, 2), batch["level"], batch["conditioning"])


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch(generator, batch, output):
    for number in range(2):
        close(generator.denoise(**alone(batch, number)).output[0], output[number], 1e-4)
    one_prompt = Conditioning.stack([batch["conditioning"].row(0)])
    shared = generator.denoise(batch["noisy"], batch["level"], one_prompt).output
    close(shared[0], output[0], 1e-4)


@torch.no_grad()
def test_level_and_prompt_count(generator, batch, output):
    swapped = Conditioning.stack([batch["conditioning"].row(number) for number in (1, 0)])
    other = generator.denoise(batch["noisy"], batch["level"], swapped).output
    assert (other - output).abs().max() > 1e-6
    same = generator.noise.of_time(batch["level"].time[:1]).expand(2)
    other = generator.denoise(batch["noisy"], same, batch["conditioning"]).output
    assert (other - output)[1].abs().max() > 1e-6


@torch.no_grad()
def test_frame_rates_are_told_to_networks_that_ask(generator, batch, output):
    own = generator.facts.frame_rate_hz
    told = batch["conditioning"]
    same = generator.denoise(batch["noisy"], batch["level"], told.at_rates([own])).output
    other = generator.denoise(batch["noisy"], batch["level"], told.at_rates([own, 2 * own])).output
    close(same, output, 1e-5)
    close(other[0], output[0], 1e-5)
    assert ((other - output)[1].abs().max() > 1e-5) == generator.takes_frame_rates


# -- frames and latents ----------------------------------------------------------------------------------------------


def test_lengths(generator):
    codec = generator.codec

    def legal(count, **options):
        try:
            codec.check(count, **options)
        except UsageError:
            return False
        return True

    for available in range(1, 4 * codec.temporal + 2):
        usable = codec.usable_frames(available)
        assert legal(usable)
        assert not any(legal(count) for count in range(usable + 1, available + 1))
    assert legal(decodable(codec, 2), decoding=True)
    assert not legal(0)


def test_sizes(generator):
    codec = generator.codec
    codec.check_size(codec.side, 3 * codec.side)
    for height, width in ((codec.side + 1, codec.side), (codec.side, 0)):
        with pytest.raises(UsageError, match=f"(?s)multiples of {codec.side}"):
            codec.check_size(height, width)


def test_frames_to_latents_and_back(generator, clips, shape):
    codec = generator.codec
    latents = codec.encode(clips)
    assert latents.dtype == torch.float32
    assert tuple(latents.shape[1:]) == generator.latent_shape(**shape)
    padding = latents.shape[1] - codec.latent_frames(shape["num_frames"])
    assert padding == -codec.latent_frames(shape["num_frames"]) % generator.facts.patch[0]
    assert all(torch.equal(latents[:, i], latents[:, padding]) for i in range(padding))
    close(codec.encode(clips[1:])[0], latents[1], 1e-4)
    posterior = codec.encode_posterior(clips)
    assert posterior.shape == (2, 2, *latents.shape[1:])
    assert torch.equal(posterior[:, 0], latents)
    assert (posterior[:, 1] >= 0).all()
    drawn = codec.encode(clips, generator=[torch.Generator().manual_seed(seed) for seed in SEEDS])
    assert not torch.equal(drawn, latents)
    close(codec.encode(clips[1:], generator=torch.Generator().manual_seed(SEEDS[1]))[0], drawn[1], 1e-4)
    decoded = codec.decode(latents, num_frames=shape["num_frames"])
    assert decoded.shape == clips.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    close(codec.decode(latents[1:], num_frames=shape["num_frames"])[0], decoded[1], 1e-4)
    own = latents.transpose(1, 2)
    close(codec.scale(codec.unscale(own)), own, 1e-5)
    with pytest.raises(ValueError, match="must lie in"):
        codec.encode(clips * 255)


# How many latent frames ahead of a latent its VAE looks, where it does: CogVideoX encodes eight frames at once (nine of
# them first) and normalises over their time.
LOOKS_AHEAD = {"cogvideox": (2, 1, 0, 1, 0)}


def test_how_far_ahead_the_vae_looks(generator):
    """In what is read of a clip's first latents, later frames show where this says, and nowhere else."""
    codec = generator.codec
    ahead = LOOKS_AHEAD.get(generator.family, (0,) * 5)
    num_latents = len(ahead)
    size = (1, codec.num_frames(num_latents), 3, codec.side, codec.side)
    clip, other = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)).unbind()
    latents = codec.encode(clip)[:, -num_latents:]
    for first in range(1, num_latents):  # the first latent frame whose pixels are others
        start = codec.num_frames(first)
        changed = torch.cat([clip[:, :start], other[:, start:]], dim=1)
        differs = (codec.encode(changed)[:, -num_latents:] != latents).flatten(2).any(2)[0]
        assert differs.tolist() == [number + ahead[number] >= first for number in range(num_latents)]


def test_statistics_are_kept_with_the_vae(reopened, clips, tmp_path):
    """Latents have these moments afterwards, and the folder remembers."""
    codec = reopened.codec
    own = codec.unscale(codec.encode(clips).transpose(1, 2))
    flat = own.transpose(0, 1).flatten(1)
    before = codec.space
    codec.register_statistics(flat.mean(1).tolist(), flat.std(1).tolist())
    assert codec.space != before
    latents = codec.encode(clips)
    assert latents.std().item() == pytest.approx(1, rel=0.05)
    with quiet_libraries():
        reopened.save(tmp_path / "scaled", frozen=("transformer", "text_encoder", "tokenizer", "scheduler"))
    again = type(reopened).from_pretrained(tmp_path / "scaled", parts=())
    assert again.codec.space == codec.space
    close(again.codec.encode(clips), latents, 1e-3)


# -- text ------------------------------------------------------------------------------------------------------------


def test_prompts(generator):
    limit = generator.facts.max_text_tokens
    prompts = [PROMPTS[0], "", "ball " * (limit + 8), PROMPTS[1]]
    together = generator.encode_prompts(prompts)
    assert set(together) == set(generator.conditioning_parts)
    for number, prompt in enumerate(prompts):
        single = generator.encode_prompts([prompt])
        for part, values in single.items():
            close(values[0].float(), together[part][number].float(), 1e-5)
    pooled = together.pooled()
    assert pooled.shape == (4, generator.facts.text_width)
    assert (pooled[0] - pooled[1]).abs().max() > 0
    assert pooled.isfinite().all()
    assert generator.tokenize(prompts).shape == (4, limit)
    lengths = generator.prompt_lengths(prompts)
    assert lengths == [10, 1, limit + 9, 6]  # each with its end token
    assert generator.unknown_words("a red zyzzyva rolls") == ["zyzzyva"]
    assert generator.unknown_words("a red ball rolls") == []
    close(generator.encode_prompts([prompts[2]]).text, generator.encode_prompts(["ball " * (limit - 1)]).text, 1e-5)
    close(generator.embed(generator.tokenize(prompts)).text, together.text, 1e-6)


# -- sampling --------------------------------------------------------------------------------------------------------


def by_hand(pipeline, generator, shape, **options):
    """The stock pipeline called with prompts; beside them what `sample` would tell it."""
    told = generator.encode_prompts(PROMPTS)
    extra = {key: value for key, value in generator._prompt_arguments(told, told).items() if "prompt" not in key}
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        negative_prompt=[""] * 2,
        **shape,
        **{"max_sequence_length": generator.facts.max_text_tokens} | extra,
        guidance_scale=options.pop("guidance_scale", generator.guidance_scale),
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
        **options,
    ).frames


def test_without_guidance_it_is_the_stock_pipeline_to_the_bit(folder, generator, shape, unguided):
    with quiet_libraries():
        stock = DiffusionPipeline.from_pretrained(folder)
    assert type(stock).__name__ == generator.pipeline_class
    expected = by_hand(stock, generator, shape, num_inference_steps=3)
    assert unguided.shape == (2, shape["num_frames"], shape["height"], shape["width"], 3)
    assert np.array_equal(unguided, (expected * 255).round().astype(np.uint8))
    expected = by_hand(stock, generator, shape, num_inference_steps=2, guidance_scale=1.0)
    made = generator.sample(PROMPTS, SEEDS, **shape, steps=2, guidance_scale=1.0)
    assert np.array_equal(made.frames, (expected * 255).round().astype(np.uint8))


def test_a_video_does_not_depend_on_its_batch(generator, shape, unguided):
    single = generator.sample(PROMPTS[1:], SEEDS[1:], **shape, steps=3).frames
    assert np.abs(single[0].astype(int) - unguided[1]).max() <= 2


@pytest.fixture
def widened(reopened):
    """With three channels of motion, whose weights are no zeros any more; of families that can have some."""
    try:
        reopened.add_motion(3)
    except UsageError as error:
        assert type(reopened).__name__ not in {target.partition(":")[2] for target in GENERATORS.values()}
        pytest.skip(str(error))
    return reopened


def with_motion(noisy):
    motion = torch.randn(2, len(noisy[0]), 3, *noisy.shape[3:], generator=torch.Generator().manual_seed(2))
    return torch.cat([noisy, motion], dim=2)


def learn_something(generator):
    with torch.no_grad(), seeded(5):
        for end in generator.ends():
            end.weight.add_(0.1 * torch.randn_like(end.weight))


def test_new_channels_of_motion_change_nothing(widened, batch, output):
    seen = with_motion(batch["noisy"])
    with torch.no_grad():
        made = widened.denoise(seen, batch["level"], batch["conditioning"]).output
        alone = widened.denoise(**batch).output
    assert made.shape == seen.shape
    channels = output.shape[2]
    close(made[:, :, :channels], output, 1e-5)
    assert not made[:, :, channels:].any()
    close(alone, output, 1e-5)
    widened.add_motion(3)  # as it is
    with pytest.raises(UsageError, match=r"4 channels of motion for .*, which has 3"):
        widened.add_motion(4)


def test_motion_is_saved_loaded_and_refused_by_a_plain_pipeline(widened, family, batch, tmp_path, generator, shape):
    learn_something(widened)
    seen = with_motion(batch["noisy"])
    with torch.no_grad():
        expected = widened.denoise(seen, batch["level"], batch["conditioning"]).output
        hidden = widened.denoise(
            torch.cat([batch["noisy"], torch.zeros_like(seen)[:, :, -3:]], dim=2), *list(batch.values())[1:]
        )
        assert torch.equal(widened.denoise(**batch).output, hidden.output[:, :, :-3])  # not told of it: zeros
    assert not torch.equal(expected[:, :, :-3], hidden.output[:, :, :-3])
    widened.save(tmp_path / "saved")
    again = family.from_pretrained(tmp_path / "saved")
    assert again.facts == widened.facts == family.facts_of(tmp_path / "saved", "it")
    assert again.facts.motion_channels == 3
    assert again.facts.latent_channels == generator.facts.latent_channels
    with torch.no_grad():
        assert torch.equal(again.denoise(seen, batch["level"], batch["conditioning"]).output, expected)
    with quiet_libraries():
        stock = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    with pytest.raises((RuntimeError, ValueError)):
        by_hand(stock, generator, shape, num_inference_steps=2)


def test_motion_is_sampled_beside_the_video(widened, shape):
    learn_something(widened)
    seen = []

    class Recorder(CfgZero):
        def mix(self, step):
            seen.append(("mix", step))
            return super().mix(step)

        def after(self, step):
            seen.append(("after", step))
            return super().after(step)

    made = widened.sample(PROMPTS, SEEDS, **shape, steps=2, guidance=Recorder(0), guidance_scale=2.0)
    assert made.frames.shape == (2, shape["num_frames"], shape["height"], shape["width"], 3)
    assert made.latents.shape[1:] == widened.latent_shape(**shape)
    decoded = (widened.codec.decode(made.latents, num_frames=shape["num_frames"]) * 255).round()
    assert np.array_equal(decoded.permute(0, 1, 3, 4, 2).numpy(), made.frames)
    channels = widened.facts.latent_channels
    assert [(kind, step.noisy.shape[2], step.output.shape[2]) for kind, step in seen] == 2 * [
        ("mix", channels + 3, channels + 3),
        ("after", channels, channels),
    ]
    assert seen[0][1].noisy[:, :, channels:].std() > 0.5  # its noise
    followed = widened.sample(
        PROMPTS, SEEDS, **shape, steps=2, guidance=MotionPrior(motion_field(widened), scale=1e4, lag=1, ratio=1.0)
    )
    assert not np.array_equal(followed.frames, widened.sample(PROMPTS, SEEDS, **shape, steps=2).frames)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_inner_guidance_is_its_formula(widened, shape, scale):
    """(1 + w1 + w2)·u([x, d], y) − w1·u([x, d], ∅) − w2·u([x, ∅], y), at every step; w1 is the scale less one."""
    learn_something(widened)
    steps = []

    class Recorder(InnerGuidance):
        def after(self, step):
            steps[-1].append(step)
            return super().after(step)

        def mix(self, step):
            steps.append([step, super().mix(step)])
            return steps[-1][1]

    made = widened.sample(PROMPTS, SEEDS, **shape, steps=2, guidance=Recorder(widened, 1.5), guidance_scale=scale)
    told, nothing = widened.encode_prompts(PROMPTS), widened.encode_prompts([""] * 2)
    channels = widened.facts.latent_channels
    for (step, mixed, fed), timestep in zip(steps, widened.pipeline.scheduler.timesteps, strict=True):
        level = widened.noise.of_time(timestep.expand(2))
        hidden = torch.cat([step.noisy[:, :, :channels], torch.zeros_like(step.noisy[:, :, channels:])], dim=2)
        with torch.no_grad():
            whole = widened.denoise(step.noisy, level, told).output
            empty = widened.denoise(step.noisy, level, nothing).output
            still = widened.denoise(hidden, level, told).output
        text = scale - 1
        close(mixed, (1 + text + 1.5) * whole - text * empty - 1.5 * still, 1e-2)
        close(fed.output, mixed[:, :, :channels].to(fed.output), 1e-5)
        assert not torch.allclose(whole, still, atol=1e-2)
    assert (made.measured["motion_effect"] > 0).all()


def motion_field(generator):
    with seeded(0):
        field = MotionField(channels=generator.facts.latent_channels, text_dim=generator.facts.text_width)
    return field.eval().requires_grad_(False)


def test_latents_of_a_video_are_what_it_was_decoded_from(generator, shape, unguided):
    made = generator.sample(PROMPTS, SEEDS, **shape, steps=3)
    assert made.latents.shape[1:] == generator.latent_shape(**shape)
    decoded = (generator.codec.decode(made.latents) * 255).round().permute(0, 1, 3, 4, 2).cpu().numpy()
    assert np.abs(decoded - unguided.astype(float)).mean() < 2  # LTX decodes with noise, another in its pipeline


def test_guidance_of_scale_zero_only_measures(generator, shape, unguided):
    guidance = MotionPrior(motion_field(generator), scale=0.0, lag=1, ratio=1.0)
    made = generator.sample(PROMPTS, SEEDS, **shape, steps=3, guidance=guidance)
    assert np.array_equal(made.frames, unguided)
    assert made.guided == (0, 1, 2)
    assert made.measured["guidance_loss"].shape == (2, 3)
    assert np.isfinite(made.measured["guidance_loss"]).all()
    guidance.scale = 1e4
    assert not np.array_equal(generator.sample(PROMPTS, SEEDS, **shape, steps=3, guidance=guidance).frames, unguided)


def test_guidance_that_mixes(generator, shape, unguided):
    scale = max(generator.guidance_scale, 1.5)
    made = generator.sample(PROMPTS, SEEDS, **shape, steps=3, guidance=CfgZero(0), guidance_scale=scale)
    assert np.isfinite(made.measured["zero_scale"]).all()
    assert made.measured["zero_scale"].shape == (2, 3)
    assert not np.array_equal(made.frames, unguided)
    assert "step" not in vars(generator.pipeline.scheduler)  # the class's own again


def test_guidance_is_shown_the_networks_outputs(generator, shape):
    """What a guidance gets is what `denoise` gives at that x_t, with and without the prompts, mixed as it was fed."""
    steps = []

    class Recorder:
        mixes = True

        def prepare(self, conditioning, **facts):
            pass

        def mix(self, step):
            steps.append(step)
            return step.output

        def after(self, step):
            return step.output, {}

    generator.sample(PROMPTS, SEEDS, **shape, steps=2, guidance=Recorder(), guidance_scale=2.0)
    told, nothing = generator.encode_prompts(PROMPTS), generator.encode_prompts([""] * 2)
    for step, timestep in zip(steps, generator.pipeline.scheduler.timesteps, strict=True):
        with torch.no_grad():
            level = generator.noise.of_time(timestep.expand(2))  # a scheduler may round what the network is given
            close(generator.denoise(step.noisy, level, told).output, step.conditional, 2e-3)
            close(generator.denoise(step.noisy, level, nothing).output, step.unconditional, 2e-3)
        close(step.unconditional + 2 * (step.conditional - step.unconditional), step.output.float(), 1e-3)
        close(step.clean(step.output), generator.noise.clean(step.output, step.noisy, step.level), 1e-6)


def test_every_scheduler_samples(generator, batch, shape):
    """And leaves the noise of training alone: a flow scheduler that has sampled adds none at all by itself, and a fresh
    multistep one noises backwards."""
    before = generator.pipeline.scheduler
    clean, noise = batch["noisy"], torch.ones_like(batch["noisy"])
    noisy = generator.noise.add_noise(clean, noise, batch["level"])
    try:
        for name, place in generator.facts.schedulers.items():
            generator.use_scheduler(name)
            assert generator.scheduler_name == place.partition(":")[2]
            assert torch.equal(generator.noise.add_noise(clean, noise, batch["level"]), noisy)
            assert generator.sample(PROMPTS[:1], SEEDS[:1], **shape, steps=2).frames.std() > 0
            assert torch.equal(generator.noise.add_noise(clean, noise, batch["level"]), noisy)
            if generator.noise.prediction == "velocity":  # such schedulers step by a counter: to what their times say
                used = generator.pipeline.scheduler
                told = generator.noise.of_time(used.timesteps.float())
                close(told.sigma, used.sigmas[: len(used.timesteps)].double(), 1e-3)
            kept = generator.pipeline.scheduler
            generator.use_scheduler(None)
            assert generator.pipeline.scheduler is kept
        with pytest.raises(UsageError, match=r"(?i)unknown scheduler") as caught:
            generator.use_scheduler("heun")
        assert all(name in str(caught.value) for name in generator.facts.schedulers)
    finally:
        generator.pipeline.scheduler = before


# -- training --------------------------------------------------------------------------------------------------------


def test_steps_lower_the_loss(reopened, batch):
    reopened.network.requires_grad_(True)
    optimizer = torch.optim.AdamW(reopened.network.parameters(), lr=2e-3)
    noise = torch.randn(batch["noisy"].shape, generator=torch.Generator().manual_seed(5))
    losses = []
    for _ in range(6):
        loss, denoised = denoising_loss(
            reopened, batch["noisy"], noise, batch["level"], batch["conditioning"], taps=[0]
        )
        assert denoised.tokens[0].requires_grad
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.mean().item())
    assert losses[-1] < 0.97 * losses[0]


def test_lora_goes_through_plain_diffusers(family, folder, reopened, batch, output, tmp_path):
    reopened.add_lora(rank=2, alpha=6, seed=1)
    with torch.no_grad():
        assert torch.equal(reopened.denoise(**batch).output, output)  # an update is zero at first
    trained = {name for name, weight in reopened.network.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    with seeded(2), torch.no_grad():
        for name in trained:
            reopened.network.get_parameter(name).normal_(std=0.2)
        expected = reopened.denoise(**batch).output
        assert (expected - output).abs().max() > 1e-3
    reopened.save_lora(tmp_path)
    with quiet_libraries():
        stock = DiffusionPipeline.from_pretrained(folder)
        stock.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    made = family(stock, name="stock", own=read_own_facts(folder))
    with torch.no_grad():
        close(made.denoise(**batch).output, expected, 1e-5)
        again = family.from_pretrained(folder, parts=("transformer",))
        again.load_adapter(tmp_path)
        again.place("cpu")
        close(again.denoise(**batch).output, expected, 1e-5)
        again.merge_adapter()
        assert not again.has_adapter
        close(again.denoise(**batch).output, expected, 1e-3)


class Stopping(Reporter):
    """Ends the run as Ctrl-C would, at once, after step `stop_at`."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    @contextmanager
    def bar(self, description, total, unit="it"):
        outer = self

        class Counting(Bar):
            count = 0

            def advance(self, amount=1):
                self.count += amount
                if description == "Training" and self.count == outer.stop_at:
                    raise KeyboardInterrupt

        yield Counting()


@pytest.fixture
def trainable(folder, location, shape, tmp_path):
    """`folder` as a model of small clips, by its name on the command line; and two clips."""
    model, clips = tmp_path / "model", tmp_path / "clips"
    shutil.copytree(folder, model)
    own = read_own_facts(model) | {"size": [shape["height"], shape["width"]]}
    (model / OWN_FILE).write_text(json.dumps(own))
    clips.mkdir()
    for number, prompt in enumerate(PROMPTS):
        frames = np.random.default_rng(number).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
        write_video(clips / f"{number}.mp4", frames, 10)
        (clips / f"{number}.txt").write_text(prompt)
    return str(model) if location in GENERATORS.values() else f"{location}@{model}", clips


@pytest.mark.parametrize("method", ["sft", "repa", "irepa", "crepa", "layersync", "videojam"])
def test_training_resumes_exactly(trainable, generator, location, session_cache, tmp_path, monkeypatch, method):
    name, clips = trainable
    if method == "videojam" and location not in GENERATORS.values():
        pytest.skip("the layers at its ends are not named")
    for module, drawing in ((training, "contact_sheet"), (task, "loss_curve")):
        monkeypatch.setattr(module, drawing, lambda *arguments, **options: None)  # longer than all else
    frames = generator.codec.usable_frames(17)
    changes = (
        *("train.batch_size=1", "objective.strides=[1]", "train.mixed_precision=no", "train.checkpoint_every=2"),
        *("train.schedule.warmup_steps=0", "objective.samples=0", f"objective.frames={frames}"),
        *(("method.pairs=[[0, 1]]",) if method == "layersync" else ()),
        *(("method.flow=dis",) if method == "videojam" else ()),  # these clips were not simulated
    )

    def train(folder, *, reporter=None, resume=None):
        request = FinetuneRequest(
            method,
            overrides=changes,
            model=name,
            data=str(clips),
            steps=4,
            out=tmp_path / folder,
            device="cpu",
            cache_dir=session_cache,
        )
        return task.finetune(request, resume=resume, reporter=reporter)

    def losses(folder):
        return [json.loads(line)["loss"] for line in (tmp_path / folder / "steps.jsonl").read_text().splitlines()]

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("broken", reporter=Stopping(3))
    resumed = train("broken", resume="latest")
    assert len(losses("whole")) == 4
    assert losses("broken") == losses("whole")
    assert method == "sft" or all(method in row for row in whole.steps)
    left, right = (load_own(made.model, name) for made in (whole, resumed))
    for (key, one), two in zip(left.items(), right.values(), strict=True):
        assert torch.equal(one, two), key
    before = load(name, device="cpu", dtype="float32").network.state_dict()
    assert any(value.shape != left[key].shape or not torch.equal(value, left[key]) for key, value in before.items())


def load_own(path, name):
    """Weights of the network in a folder, read as `name` was."""
    location, at, _ = name.rpartition("@")
    return load(f"{location}{at}{path}", device="cpu", dtype="float32").network.state_dict()
