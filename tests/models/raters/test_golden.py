"""The port against the official code's numbers (tests/golden/videophy_rater; limits as suggested there)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from physcli.data.video import read_scaled, video_info
from physcli.models.raters.mplug_owl_video import load_rater
from physcli.models.raters.preprocessing import frame_indices, normalise, read_rater_preprocessing


@pytest.fixture
def rater(rater_folder):
    return load_rater(rater_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def inputs(golden):
    return load_file(golden / "inputs.safetensors")


@pytest.fixture(scope="module")
def outputs(golden):
    return load_file(golden / "outputs.safetensors")


def distance(a, b):
    assert a.shape == b.shape
    return float((a - b).abs().max())


def test_vision_and_abstractor(rater, inputs, outputs):
    videos = inputs["video_pixel_values"]
    hidden = [rater.vision_model.embeddings(videos)]
    for layer in rater.vision_model.encoder.layers:
        hidden.append(layer(hidden[-1]))
    assert distance(torch.stack(hidden), outputs["vision_hidden_states"]) < 1e-4
    tokens = rater.vision_model(videos)
    assert distance(tokens, outputs["vision_last_hidden_state"]) < 2e-6
    queries = torch.cat([rater.query_tokens, rater.temporal_query_tokens], dim=1).expand(2, -1, -1)
    made = []
    for layer in rater.abstractor.encoder.layers:
        queries = layer(queries, tokens.flatten(1, 2))
        made.append(queries)
    assert distance(torch.stack(made), outputs["abstractor_layer_outputs"]) < 1e-4
    assert distance(rater.encode_videos(videos), outputs["abstractor_output"]) < 1e-4


def test_logits_and_scores(rater, inputs, outputs, golden):
    facts = json.loads((golden / "scores.json").read_text())
    media = rater.encode_videos(inputs["video_pixel_values"])
    ids, lengths = inputs["input_ids"], outputs["last_index"] + 1
    assert torch.equal((ids != facts["pad_token_id"]).sum(1), lengths)
    hidden, _ = rater.run(ids, lengths, media)
    logits = rater.language_model.lm_head(hidden)
    for row, length in enumerate(lengths):
        assert distance(logits[row, :length], outputs["logits"][row, :length]) < 1e-4
        assert distance(logits[row, :length], outputs["logits_with_attention_mask"][row, :length]) < 1e-4
    last = logits[torch.arange(2), lengths - 1]
    assert distance(last, outputs["logits_last"]) < 1e-4
    score = torch.sigmoid(last[:, facts["token_id_yes"]] - last[:, facts["token_id_no"]])
    assert distance(score, outputs["scores"]) < 1e-5


class Ids:
    """Segments that are ids already: the golden's tokenizer is not among its files."""

    bos, eos = 1, 2

    def encode(self, text):
        return [int(number) for number in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


def test_greedy_answers_and_scores_through_the_interface(rater, inputs, outputs, golden):
    """Both rows at once, of different lengths, although the official code made them one by one."""
    facts = json.loads((golden / "scores.json").read_text())
    rater.tokenizer = Ids()
    prompts = []
    for row, last in zip(inputs["input_ids"].tolist(), outputs["last_index"].tolist(), strict=True):
        first, after = row.index(-2), row.index(-2) + row.count(-2)
        assert row[0] == 1
        prompts.append([" ".join(map(str, part)) for part in (row[1:first], row[after : last + 1])])
    segments = [[before, "<|video|>", after] for before, after in prompts]
    videos = inputs["video_pixel_values"]
    num_new = facts["greedy"]["max_length"] - 1
    for some in (slice(0, 2), slice(0, 1), slice(1, 2)):
        _, ids = rater.generate(videos[some], segments[some], max_new_tokens=num_new)
        assert [[1, *row] for row in ids] == facts["greedy"]["output_ids"][some]
        assert rater.answer(videos[some], segments[some], max_new_tokens=2) == [
            " ".join(map(str, row[:2])) for row in ids
        ]
        logits = rater.next_logits(videos[some], segments[some])
        assert distance(logits, outputs["logits_last"][some]) < 1e-4
    yes, no = str(facts["token_id_yes"]), str(facts["token_id_no"])
    rater.tokenizer.encode = lambda text: [int(x) for x in text.replace("Yes", yes).replace("No", no).split()]
    assert distance(rater.yes_probability(videos, segments), outputs["scores"]) < 1e-5


def test_frame_indices(golden):
    for case in json.loads((golden / "frame_indices.json").read_text()):
        assert frame_indices(case["num_video_frames"], case["num_segments"]) == case["indices"]
    for wrong in ((0, 32), (5, 0)):
        with pytest.raises(ValueError, match="at least one frame"):
            frame_indices(*wrong)


@pytest.mark.parametrize("clip", ["clip_up", "clip_down"])
def test_preprocessing(golden, tmp_path, clip):
    expected = load_file(golden / "preprocessing.safetensors")
    wanted = expected[f"{clip}.frame_indices"].tolist()
    indices = frame_indices(video_info(golden / f"{clip}.mp4").num_frames, len(wanted))
    assert indices == wanted
    frames = read_scaled(golden / f"{clip}.mp4", indices, 224, 224)
    slots = expected[f"{clip}.rgb_full_slots"]
    assert torch.equal(torch.from_numpy(frames)[slots], expected[f"{clip}.rgb_full"])
    pixels = normalise(frames, read_rater_preprocessing(tmp_path, 224))
    assert distance(pixels[None, :, :, 2::4, 2::4], expected[f"{clip}.pixel_values_sub4"].float()) < 1.5e-3
    assert distance(pixels.mean(dim=(2, 3)), expected[f"{clip}.pixel_values_mean"]) < 1e-4
    assert distance(pixels.std(dim=(2, 3), correction=0), expected[f"{clip}.pixel_values_std"]) < 1e-4
