"""The motion field and the motion projector in training: what a batch is, that they learn, and what they leave."""

from __future__ import annotations

import json

import pytest
import torch

from physcli.data.clips import read_dataset
from physcli.errors import UsageError
from physcli.methods.lamo import MotionField, field_loss
from physcli.methods.moalign import MotionProjector, flow_loss, token_flows
from physcli.models.fingerprints import hash_module
from physcli.models.generator import Conditioning
from physcli.recipe import MotionFieldRecipe, MotionProjectorRecipe
from physcli.tasks.processes import Processes
from physcli.tasks.training import build as build_module
from physcli.tasks.training.build import prepare
from physcli.tasks.training.material import Source
from physcli.tasks.training.motion import FieldTrainee, MotionProjectorTrainee
from physcli.tasks.training.signals import flow_of, teacher_of
from physcli.tasks.training.windows import prompt_of

KINDS = ("field", "projector")
SIZES = {
    "field": {"hidden": 16, "num_blocks": 1, "cond_dim": 8},
    "projector": {"dim": 8, "hidden_dim": 16, "num_layers": 1, "decoder_dim": 16, "upscale": 2, "flow": "exact"},
}


@pytest.fixture
def build(simulated, session_cache, small_generator, small_encoder, on_demand, heard, monkeypatch):
    """`build("field", seed=0, key=value, …)`: on six clips, four held out; keys are the objective's."""
    clips = read_dataset(simulated).clips
    split = {which: [clip for clip in clips if clip.split == which] for which in ("train", "test")}

    def make(kind, *, seed=0, frames=9, **objective):
        recipe_class, trainee = {
            "field": (MotionFieldRecipe, FieldTrainee),
            "projector": (MotionProjectorRecipe, MotionProjectorTrainee),
        }[kind]
        recipe = recipe_class.model_validate(
            {
                "trains": f"motion-{kind}",
                "model": "small",
                "train": {"steps": 1},
                "objective": {"frames": frames, **SIZES[kind], **objective},
            }
        )
        source = Source(
            split["train"][:6], split["test"][:4], recipe.data, seed, None, session_cache, Processes(), heard()
        )
        monkeypatch.setattr(build_module, "_generator", lambda *_, **__: small_generator())
        monkeypatch.setattr(build_module, "_frozen_encoder", lambda *_: on_demand(small_encoder()))
        made = prepare(recipe, source, torch.device("cpu"))
        if kind == "field":
            return trainee(made.generator, recipe=recipe, material=made.material, prompts=made.prompts, seed=seed)
        return trainee(made.encoder, recipe=recipe, material=made.material, seed=seed)

    return make


def same(one, other):
    assert one.keys() == other.keys()
    return {name: torch.equal(one[name], other[name]) for name in one}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_samples_and_the_seed(build, kind):
    torch.manual_seed(1)
    trainee = build(kind)
    torch.manual_seed(2)
    again, other = build(kind), build(kind, seed=1)
    whole = trainee.batch([4, 7, 30], 0)
    assert {len(value) for value in whole.values()} == {3}
    for place, sample in enumerate((4, 7, 30)):
        alone = again.batch([sample], 9)
        assert all(same(alone, {name: value[place : place + 1] for name, value in whole.items()}).values())
    assert not any(same(other.batch([4, 7, 30], 0), whole).values())
    weights, theirs = trainee.state_dict(), again.state_dict()
    assert all(same(weights, theirs).values())
    assert not all(same(weights, other.state_dict()).values())


def test_what_the_field_is_shown(build, small_generator):
    """Posterior draws, a level and a coin for every pair of frames, whole prompts or none."""
    trainee = build("field", noise_share=0.25, caption_dropout=0.4)
    batch = trainee.batch(range(400), 0)
    assert {name: list(value.shape[1:]) for name, value in batch.items()} == {
        "latents": [3, 4, 4, 4],
        "prompt": [16],
        "noise": [2, 4, 4, 4],
        "noise_mask": [2],
        "sigmas": [2],
        "prompt_keep": [2],
    }
    assert batch["noise_mask"].float().mean() == pytest.approx(0.25, abs=0.06)
    assert batch["prompt_keep"].float().mean() == pytest.approx(0.6, abs=0.06)
    assert batch["noise"].std() == pytest.approx(1, abs=0.02)
    levels = (1 - small_generator().noise.alphas_cumprod).sqrt().float()
    assert torch.isin(batch["sigmas"], levels).all()
    assert batch["sigmas"].mean() == pytest.approx(float(levels.mean()), abs=0.03)
    seen = {view.key: view for view in trainee._windows.views}
    prompts = {prompt_of(view) for view in seen.values()}
    pooled = Conditioning.stack([trainee._prompts.embedding(prompt) for prompt in prompts]).pooled()
    assert {tuple(row) for row in batch["prompt"].tolist()} == {tuple(row) for row in pooled.tolist()}
    # mean + std·ε of one of the windows
    posteriors = torch.stack(trainee._latents.get(list(seen.values()))).float()
    distance = (batch["latents"][:, None] - posteriors[:, 0]).div(posteriors[:, 1]).square().mean((2, 3, 4, 5))
    assert distance.amin(dim=1).mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(build, kind):
    # Hardly anything moves in these clips: all pixels alike, "no motion" could hardly be beaten.
    trainee = build(kind, **({"moving_weight": 30} if kind == "projector" else {}))
    batch = trainee.batch(range(6), 0)
    optimizer = torch.optim.Adam([p for p in trainee.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _ in range(80):
        loss, logs = trainee(batch)
        assert loss.shape == (6,)
        assert all(value.shape == (6,) and not value.requires_grad for value in logs.values())
        optimizer.zero_grad()
        loss.mean().backward()
        assert all(p.grad is not None for p in trainee.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.mean().item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_fields_loss(build):
    trainee = build("field", lag=2, cosine_weight=0.7, noise_scale=0.6)
    torch.nn.init.normal_(trainee.field.output_proj.weight, std=0.1)
    batch = trainee.batch(range(4), 0)
    draws = {name: batch[name] for name in ("noise", "noise_mask", "sigmas", "prompt_keep")}
    expected, _ = field_loss(
        trainee.field, batch["latents"], batch["prompt"], lag=2, cosine_weight=0.7, noise_scale=0.6, **draws
    )
    assert torch.equal(trainee(batch)[0], expected)
    assert list(batch["noise"].shape) == [4, 1, 4, 4, 4]
    assert set(batch) >= {"latents", "prompt"}  # left as it was


@pytest.mark.parametrize("flows_per_token", [1, 4])
def test_the_projectors_loss(build, small_encoder, on_demand, session_cache, flows_per_token):
    """By hand: tokens and flow as the signals give them, moving places counting for more."""
    trainee = build("projector", flows_per_token=flows_per_token, scale_px=0.5, moving_weight=3.0)
    batch = trainee.batch([0, 5], 0)
    assert batch["tokens"].shape == (2, 2, 2, 2, 32)
    assert batch["flow"].shape == (2, 7, 2, 32, 32)
    views = [trainee._windows.views[0]]
    view = trainee.objective.view
    stored = trainee._load(views)
    for name, signal in (
        ("tokens", teacher_of(on_demand(small_encoder()), view, cache=session_cache)),
        ("flow", flow_of(on_demand(small_encoder()), view, kind="exact", cache=session_cache)),
    ):
        direct = signal.compute(views, [views[0].clip.read(views[0].frames)]).float()
        torch.testing.assert_close(stored[name], direct, rtol=1e-2, atol=2e-3)
    predicted = trainee.decoder(trainee.projector(batch["tokens"]))
    assert predicted.shape == (2, 2 * flows_per_token, 2, 4, 4)
    flow, valid = token_flows(batch["flow"], num_frames=8, tubelet=4, flows_per_token=flows_per_token)
    weights = valid * (1 + 2 * (flow.norm(dim=2) >= 0.05))
    loss, logs = trainee(batch)
    torch.testing.assert_close(loss, flow_loss(predicted, flow, scale_px=0.5, valid=weights))
    still = flow_loss(torch.zeros_like(predicted), flow, scale_px=0.5, valid=weights)
    torch.testing.assert_close(logs["no_motion"], still)
    assert (logs["no_motion"] > 0).all()


def test_validation_of_the_field(build, tmp_path):
    trainee = build("field")
    with torch.no_grad():
        (row,) = trainee.validate(tmp_path, final=True)
    assert (row["task"], row["subject"], row["metric"]) == ("motion-field", "small", "explained")
    # Four clips at two strides; a new field predicts no motion.
    assert (row["value"], row["stderr"], row["n"]) == (0, 0, 8)
    assert row["higher_is_better"]
    trainee.field.output_proj.bias.data += 0.05
    views = trainee._held_windows.first()
    latents = torch.stack([value[0] for value in trainee._latents.get(views)]).float()
    prompts = Conditioning.stack([trainee._prompts.embedding(prompt_of(view)) for view in views]).pooled()
    with torch.no_grad():
        (row,) = trainee.validate(tmp_path, final=False)
        explained = field_loss(trainee.field, latents, prompts)[1]["explained"]
    assert row["value"] == pytest.approx(float(explained.mean()), rel=1e-5)
    assert row["stderr"] > 0
    assert list(tmp_path.iterdir()) == []


def test_validation_of_the_projector(build, tmp_path):
    """In pixels whatever the scale; what beats predicting no motion is above 0."""
    rows = {}
    for scale in (0.5, 2.0):
        trainee = build("projector", scale_px=scale, moving_weight=1.0)
        torch.nn.init.zeros_(trainee.decoder.convs[-1].weight)
        torch.nn.init.zeros_(trainee.decoder.convs[-1].bias)
        with torch.no_grad():
            rows[scale] = trainee.validate(tmp_path, final=True)
    for error, explained in rows.values():
        assert (error["metric"], error["n"], error["higher_is_better"]) == ("flow_l1_px", 8, False)
        assert error["value"] == pytest.approx(error["no_motion"], rel=1e-6)
        assert (explained["metric"], explained["n"], explained["higher_is_better"]) == ("explained", 8, True)
        assert explained["value"] == pytest.approx(0, abs=1e-6)
    assert rows[0.5][0]["value"] == pytest.approx(rows[2.0][0]["value"], rel=1e-5)
    assert rows[0.5][0]["value"] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_export_and_load(build, tmp_path, kind):
    trainee = build(kind)
    for parameter in trainee.parameters():
        parameter.data += 0.01  # other than new ones
    folder = trainee.export(tmp_path)
    assert folder == tmp_path / f"motion_{kind}"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    again = (MotionField if kind == "field" else MotionProjector).load(folder)
    made = getattr(trainee, kind)
    assert all(same(again.state_dict(), made.state_dict()).values())
    assert again.config == made.config
    batch = trainee.batch([1, 2], 0)
    with torch.no_grad():
        inputs = (batch["latents"], batch["prompt"]) if kind == "field" else (batch["tokens"],)
        assert torch.equal(again(*inputs), made(*inputs))
    assert sum(trainee.parts().values()) == sum(p.numel() for p in trainee.parameters())


def test_what_the_field_records(build, small_generator, tmp_path):
    described = json.loads((build("field", lag=2).export(tmp_path) / "config.json").read_text())
    assert described["scaling_factor"] == small_generator().vae.config.scaling_factor
    assert (described["lag"], described["channels"], described["text_dim"]) == (2, 4, 16)


def test_what_the_projector_records(build, small_encoder, tmp_path):
    info = MotionProjector.load(build("projector", view={"size": (32, 48)}).export(tmp_path)).info
    assert info == {
        "encoder": "small",
        "encoder_weights": hash_module(small_encoder()),
        "view": {"layout": "whole", "size": [32, 48], "drop_first": True},
        "flow": "exact",
    }
    assert info["encoder_weights"] != hash_module(small_encoder(seed=1))


@pytest.mark.parametrize(
    ("kind", "objective", "message"),
    [
        ("field", {"lag": 3}, r"The motion field.s lag is 3, and a clip has 3 latent frames"),
        ("projector", {"upscale": 17}, r"objective: flow of \[32, 32\] is coarser than the predicted \[34, 34\]"),
        ("projector", {"flows_per_token": 5}, r"objective: flows_per_token must be 1 to 4"),
        ("projector", {"kernel": 2}, r"objective: kernel must be odd, got 2"),
    ],
)
def test_sizes_that_do_not_fit(build, kind, objective, message):
    with pytest.raises(UsageError, match=message):
        build(kind, **objective)
