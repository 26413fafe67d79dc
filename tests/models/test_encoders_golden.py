"""Every encoder against the golden numbers: native and other grids, every block, both precisions."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    VideoMAEConfig,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2Model,
)

from physcli.models.encoders.base import Encoder
from physcli.models.encoders.dinov2 import DINOv2
from physcli.models.encoders.omnimae import OmniMAE
from physcli.models.encoders.positions import sincos_table, sinusoid_table
from physcli.models.encoders.preprocessing import Preprocessing
from physcli.models.encoders.videomae import VideoMAE
from physcli.models.encoders.videomaev2 import VideoMAEv2
from physcli.models.encoders.vjepa import VJEPA
from physcli.models.encoders.vjepa2 import VJEPA2

GOLDEN = Path(__file__).parents[1] / "golden" / "encoders"
OWN = {"videomaev2": VideoMAEv2, "vjepa": VJEPA, "omnimae": OmniMAE}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def clip(expected: dict[str, Tensor], which: str, dtype: torch.dtype) -> Tensor:
    """The golden encoder input `[B, T, 3, H, W]`."""
    return expected[f"clip_{which}_u8"].to(dtype).transpose(1, 2) / 64 - 2


def videomae(dtype: torch.dtype) -> VideoMAE:
    """A transformers VideoMAE holding the VideoMAEv2 golden weights, with the library's default eps."""
    config = json.loads((GOLDEN / "videomaev2" / "config.json").read_text())
    model = VideoMAEModel(
        VideoMAEConfig(
            image_size=config["img_size"],
            num_frames=config["all_frames"],
            hidden_size=config["embed_dim"],
            num_hidden_layers=config["depth"],
            num_attention_heads=config["num_heads"],
            intermediate_size=4 * config["embed_dim"],
        )
    )
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "blocks.": "encoder.layer.",
    }
    has_split_bias = "encoder.layer.0.attention.attention.q_bias" in model.state_dict()  # transformers 4
    state = {}
    for name, value in load_file(GOLDEN / "videomaev2" / "weights.safetensors").items():
        if name.startswith(("fc_norm", "head")):
            continue
        for old, new in names.items():
            name = name.replace(old, new)
        if name.endswith("attn.qkv.weight"):
            for part, weight in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[name.replace("attn.qkv", f"attention.attention.{part}")] = weight
        elif name.endswith(("q_bias", "v_bias")) and not has_split_bias:
            part = "query" if name.endswith("q_bias") else "value"
            state[name.replace("attn." + name[-6:], f"attention.attention.{part}.bias")] = value
        else:
            state[name.replace(".attn.", ".attention.attention.")] = value
    model.load_state_dict(state)
    return VideoMAE(model.to(dtype).eval(), name="videomae")


def vjepa2(dtype: torch.dtype) -> VJEPA2:
    """A transformers V-JEPA 2 holding the golden weights of the original."""
    config = json.loads((GOLDEN / "vjepa2" / "config.json").read_text())
    model = VJEPA2Model(
        VJEPA2Config(
            crop_size=config["img_size"],
            frames_per_clip=config["num_frames"],
            hidden_size=config["embed_dim"],
            num_hidden_layers=config["depth"],
            num_attention_heads=config["num_heads"],
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        )
    )
    state = {}
    for name, value in load_file(GOLDEN / "vjepa2" / "weights.safetensors").items():
        name = name.replace("patch_embed.", "embeddings.patch_embeddings.").replace("blocks.", "layer.")
        name = name.replace("attn.", "attention.")
        if name.startswith("norm."):
            name = name.replace("norm.", "layernorm.")
        if ".qkv." in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[name.replace("qkv", part)] = piece
        else:
            state[name] = value
    model.encoder.load_state_dict(state)
    return VJEPA2(model.to(dtype).eval(), name="vjepa2")


def load(family: str, dtype: torch.dtype) -> tuple[Encoder, dict[str, Tensor]]:
    """An encoder with golden weights, and its expected numbers."""
    if family == "videomae":
        return videomae(dtype), load_file(GOLDEN / "videomaev2" / "expected.safetensors")
    expected = load_file(GOLDEN / family / "expected.safetensors")
    if family == "vjepa2":
        return vjepa2(dtype), expected
    return OWN[family].from_pretrained(GOLDEN / family, dtype=dtype), expected


def close(features: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(features.flatten(1, 3).to(expected.dtype), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("family", ["videomaev2", "videomae", "vjepa", "vjepa2", "omnimae"])
class TestGolden:
    def test_native_float64_every_block(self, family: str) -> None:
        encoder, expected = load(family, torch.float64)
        features = encoder(clip(expected, "native", torch.float64))
        assert features[2].shape == (2, 4, 4, 4, encoder.hidden_size)
        close(features[2], expected["tokens_native.f64"], 1e-10)
        # Float64 stored as float32: half a float32 step at the largest value of about 23.
        close(features[0], expected["tokens_native.block1.f32_of_f64"], 2e-6)
        close(features[1], expected["tokens_native.block2.f32_of_f64"], 2e-6)

    def test_float32(self, family: str) -> None:
        encoder, expected = load(family, torch.float32)
        atol = 1e-3 if family == "vjepa2" else 1e-4
        for which in ("native", "nonnative"):
            features = encoder(clip(expected, which, torch.float32), [2])[2]
            close(features, expected[f"tokens_{which}.f32"], atol)

    def test_other_grid_float64(self, family: str) -> None:
        encoder, expected = load(family, torch.float64)
        if family in ("videomaev2", "videomae"):
            # The original interpolates in float32; its table is given, so that only the tokens are compared.
            encoder.positions = lambda *_: expected["pos_embed_nonnative"]  # type: ignore[union-attr,assignment]
        features = encoder(clip(expected, "nonnative", torch.float64), [2])[2]
        assert features.shape[2:4] == (3, 5)
        close(features, expected["tokens_nonnative.f64"], 1e-10)

    def test_final_norm(self, family: str) -> None:
        encoder, expected = load(family, torch.float64)
        key = "tokens_native_after_fc_norm.f64" if family == "videomaev2" else "tokens_native_after_norm.f64"
        if family == "videomae":
            assert encoder.final_norm is None
            return
        assert encoder.final_norm is not None
        features = encoder(clip(expected, "native", torch.float64), [2])[2]
        close(encoder.final_norm(features), expected[key], 1e-10)


def test_tables() -> None:
    expected = load_file(GOLDEN / "videomaev2" / "expected.safetensors")
    torch.testing.assert_close(sinusoid_table(64, 48), expected["pos_embed_native"], rtol=0, atol=1e-7)
    for family in ("videomaev2", "videomae"):
        encoder, _ = load(family, torch.float32)
        own = encoder.positions((12, 3, 5))  # type: ignore[operator]
        torch.testing.assert_close(own, expected["pos_embed_nonnative"], rtol=0, atol=3e-6)
    v2, _ = load("videomaev2", torch.float64)
    # The original interpolates in float32 whatever the network's precision.
    assert v2.positions((12, 3, 5), torch.float64).dtype == torch.float32  # type: ignore[operator]
    expected = load_file(GOLDEN / "omnimae" / "expected.safetensors")
    omnimae, _ = load("omnimae", torch.float32)
    torch.testing.assert_close(omnimae.position_table, sinusoid_table(64, 48), rtol=0, atol=1e-7)  # type: ignore[arg-type]
    torch.testing.assert_close(
        omnimae.positions((12, 3, 5)),  # type: ignore[operator]
        expected["pos_embed_nonnative"],
        rtol=0,
        atol=3e-6,
    )
    expected = load_file(GOLDEN / "vjepa" / "expected.safetensors")
    weights = load_file(GOLDEN / "vjepa" / "weights.safetensors")
    torch.testing.assert_close(sincos_table((4, 4, 4), 40), weights["pos_embed"], rtol=0, atol=1e-7)
    torch.testing.assert_close(
        sincos_table((4, 4, 4), 40, uniform_power=False),
        expected["pos_embed_uniform_power_false"],
        rtol=0,
        atol=1e-7,
    )
    vjepa, _ = load("vjepa", torch.float32)
    torch.testing.assert_close(
        vjepa.positions((12, 3, 5)),  # type: ignore[operator]
        expected["pos_embed_nonnative"],
        rtol=0,
        atol=3e-6,
    )


def test_preprocessing_as_videorepa() -> None:
    """Drop frame 0, ImageNet statistics, a third of the size, bicubic without antialiasing."""
    golden = load_file(GOLDEN / "videomaev2" / "preprocess.safetensors")
    # Smaller patches than any real encoder's, because the golden frames are 16×24 in the end.
    encoder = Encoder(
        name="x", preprocessing=Preprocessing(), num_blocks=1, hidden_size=8, patch_size=8, tubelet_size=2
    )
    raw = golden["raw_frames"].transpose(1, 2)  # bfloat16 in [-1, 1], [B, T, 3, H, W]
    for key, dtype, atol in (("f32", torch.float32, 2e-6), ("f64", torch.float64, 1e-12)):
        frames = (raw.to(dtype) + 1) / 2
        got = encoder.prepare(frames[:, 1:], size=(raw.shape[3] // 3, raw.shape[4] // 3))
        want = golden[f"encoder_input.{key}"].transpose(1, 2)
        torch.testing.assert_close(got, want, rtol=0, atol=atol)
        full = encoder.prepare(frames[:, 1:], size=None)
        torch.testing.assert_close(got, full[..., 1::3, 1::3], rtol=0, atol=atol)
    encoder.preprocessing = replace(encoder.preprocessing, antialias=True)
    smooth = encoder.prepare(frames[:, 1:], size=(16, 24))
    assert (smooth - want).abs().max() > 0.1


def test_vjepa2_equals_the_library_at_its_native_size_only() -> None:
    encoder, expected = load("vjepa2", torch.float64)
    plain = vjepa2(torch.float64).encoder
    for layer in plain.layer:
        layer.attention.grid_size = 4  # type: ignore[union-attr,assignment]
    for which, differs in (("native", False), ("nonnative", True)):
        x = clip(expected, which, torch.float64)
        library = plain(x).last_hidden_state
        ours = encoder.final_norm(encoder(x, [2])[2]).flatten(1, 3)  # type: ignore[misc]
        gap = float((ours - library).norm() / library.norm())
        assert gap > 0.5 if differs else gap < 1e-10


def test_shorter_and_longer_contexts() -> None:
    for family in ("videomaev2", "videomae", "vjepa", "vjepa2", "omnimae"):
        encoder, _ = load(family, torch.float32)
        for num_frames in (2, 6, 18):
            features = encoder(torch.zeros(1, num_frames, 3, 32, 48), [0])[0]
            assert features.shape == (1, num_frames // 2, 2, 3, encoder.hidden_size)


DINO = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "layerscale_value": 0.5,
}


def dinov2(registers: bool) -> tuple[DINOv2, Dinov2Model | Dinov2WithRegistersModel]:
    torch.manual_seed(0)
    model: Dinov2Model | Dinov2WithRegistersModel
    if registers:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=3))
    else:
        model = Dinov2Model(Dinov2Config(**DINO))
    return DINOv2(model.double().eval(), name="dino"), model


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("size", [(56, 56), (28, 70)])
def test_dinov2_equals_the_library(registers: bool, size: tuple[int, int]) -> None:
    encoder, model = dinov2(registers)
    x = torch.randn(2, 3, 3, *size, dtype=torch.float64)
    features = encoder(x)
    for frame in range(3):
        output = model(x[:, frame], output_hidden_states=True)
        prefix = 4 if registers else 1
        for block in range(3):
            want = output.hidden_states[block + 1][:, prefix:]
            torch.testing.assert_close(features[block][:, frame].flatten(1, 2), want, rtol=0, atol=1e-12)
        normed = encoder.final_norm(features[2][:, frame])  # type: ignore[misc]
        want = output.last_hidden_state[:, prefix:]
        torch.testing.assert_close(normed.flatten(1, 2), want, rtol=0, atol=1e-12)
    assert features[0].shape == (2, 3, size[0] // 14, size[1] // 14, 32)
    assert encoder.preprocessing == Preprocessing(height=56, width=56, num_frames=None)


def small_library_model(name: str) -> VideoMAEModel | VJEPA2Model | Dinov2Model:
    torch.manual_seed(0)
    common = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    if name == "videomae":
        config = VideoMAEConfig(
            **common, image_size=32, num_frames=4, intermediate_size=32, use_mean_pooling=False, layer_norm_eps=1e-6
        )
        return VideoMAEModel(config)
    if name == "vjepa2":
        predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
        return VJEPA2Model(VJEPA2Config(**common, crop_size=32, frames_per_clip=4, **predictor))
    return Dinov2Model(Dinov2Config(**common, image_size=28, patch_size=14))


@pytest.mark.parametrize(
    ("name", "family", "side"), [("videomae", VideoMAE, 32), ("vjepa2", VJEPA2, 32), ("dinov2", DINOv2, 28)]
)
def test_tokens_are_before_the_final_norm_whatever_hidden_states_are(name: str, family: type, side: int) -> None:
    """transformers' own `hidden_states[-1]` is after it in 4.57 and before it in 5, of VideoMAE and V-JEPA 2."""
    model = small_library_model(name).double().eval()
    encoder = family(copy.deepcopy(model), name=name)
    for module in (model, encoder):
        norm = module.final_norm if module is encoder else getattr(model, "layernorm", None) or model.encoder.layernorm
        torch.manual_seed(1)
        norm.weight.normal_()  # a fresh one changes little
        norm.bias.normal_()
    seen = []
    handle = model.encoder.layer[-1].register_forward_hook(lambda _, given, result: seen.append(result))
    x = torch.randn(1, 4, 3, side, side, dtype=torch.float64)
    if name == "dinov2":
        library = model(x[0]).last_hidden_state[:, 1:]
    elif name == "vjepa2":
        library = model(pixel_values_videos=x, skip_predictor=True).last_hidden_state
    else:
        library = model(x).last_hidden_state
    handle.remove()
    before = (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[:, encoder.num_prefix_tokens :]
    ours = encoder(x, [1])[1]
    torch.testing.assert_close(ours.reshape(before.shape), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(encoder.final_norm(ours).reshape(library.shape), library, rtol=0, atol=1e-12)
    assert (before - library).abs().max() > 0.5
