"""`sample` end to end on the tiny models: files and rows, seeds, names, warnings, bad input."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from peft import LoraConfig, get_peft_model_state_dict

from physcli.data.prompts import Prompt
from physcli.data.video import read_video, video_info
from physcli.errors import ModelError, UsageError
from physcli.hashing import content_hash, seed_from
from physcli.models.cogvideox import CogVideoX, build_cogvideox
from physcli.models.loading import load
from physcli.models.names import resolve
from physcli.models.step_cache import CacheSettings
from physcli.models.tiny import architecture
from physcli.progress import Bar, Reporter
from physcli.tasks import sample as task
from physcli.tasks import sheets
from physcli.tasks.sample import SampleSettings, frame_rate_of, sample, slug
from physcli.tasks.sheets import shorten

SIMULATED = "a red ball rolls towards a yellow box and hits it, filmed at 7 frames per second"
STRANGE = 'A "zebra" costs $5/$6 — 猫 😀\n' + "ball " * 60
MODEL = "cogvideox-tiny:random"
SETTINGS = SampleSettings(prompts=(SIMULATED, STRANGE), model=MODEL, num_samples=2, num_frames=9, steps=2, seed=5)
ROW_KEYS = {"benchmark", "task", "subject", "split", "group", "metric", "value", "stderr", "n", "higher_is_better"}
VIDEO_KEYS = {
    *("video", "caption", "prompt", "seed", "index", "model", "random_init", "simulated_world"),
    *(
        "adapter",
        "adapter_scale",
        "guidance_scale",
        "scheduler",
        "steps",
        "num_frames",
        "height",
        "width",
        "fps",
        "guidance",
        "guided_by",
        "cache",
        "columns",
    ),
}


class Heard(Reporter):
    """Remembers what was said; ends the run as Ctrl-C would after denoising step `stop_at`."""

    def __init__(self, stop_at=None):
        self.notes, self.warnings, self.stop_at = [], [], stop_at

    def note(self, message):
        self.notes.append(message)

    def warn(self, message):
        self.warnings.append(message)

    @contextmanager
    def bar(self, description, total, unit="it"):
        outer, steps = self, itertools.count(1)

        class Stopping(Bar):
            def advance(self, amount=1):
                if next(steps) == outer.stop_at:
                    raise KeyboardInterrupt

        yield Stopping()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two videos of each of two prompts, three a batch, and what was said."""
    heard = Heard()
    return sample(SETTINGS, out=tmp_path_factory.mktemp("runs") / "sample", batch_size=3, reporter=heard), heard


@pytest.fixture(scope="module")
def tiny():
    return load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    """A pipeline folder, as a checkpoint that is no built-in."""
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("models") / "pipeline"
    build_cogvideox(model).save_pretrained(folder)
    return folder


def test_files_and_rows(made):
    result, _ = made
    listed = [json.loads(line) for line in (result.path / "videos.jsonl").read_text().splitlines()]
    assert listed == result.videos
    assert [(row["prompt"], row["index"]) for row in listed] == [(p, i) for p in SETTINGS.prompts for i in (0, 1)]
    assert all(row.keys() == VIDEO_KEYS for row in listed)
    assert [row["fps"] for row in listed] == pytest.approx([20 / 3, 20 / 3, 20, 20])
    assert {row["video"] for row in listed} == {f"videos/{f.name}" for f in (result.path / "videos").iterdir()}
    for row in listed:
        info = video_info(result.path / row["video"])
        assert (info.num_frames, info.height, info.width) == (9, 64, 64)
        assert info.frame_rate_hz == pytest.approx(row["fps"])
        assert (row["seed"], row["caption"]) == (seed_from(5, row["prompt"], row["index"]), row["prompt"])
    assert (result.path / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((result.path / "metrics.json").read_text())
    assert [row["metric"] for row in rows] == ["seconds_per_video", "mean_flow_px"]
    assert all(row.keys() >= ROW_KEYS and (row["n"], row["random_init"]) == (4, True) for row in rows)
    assert [item["video"] for item in result.items] == [row["video"] for row in listed]
    assert all(item["sha256"] == content_hash(result.path / item["video"]) for item in result.items)
    assert json.loads((result.path / "run.json").read_text())["status"] == "finished"


def test_random_weights_are_named(made, tmp_path, monkeypatch):
    result, heard = made
    assert result.label == "cogvideox-tiny (random init)"
    assert all(row["random_init"] for row in [*result.videos, *result.rows])
    assert any("random weights" in message for message in heard.warnings)
    drawn = []
    monkeypatch.setattr(sheets, "contact_sheet", lambda path, rows, columns, abreast: drawn.extend([columns, *rows]))
    native = dataclasses.replace(SETTINGS, steps=1, num_frames=None, num_samples=2)
    sample(native, out=tmp_path / "run", batch_size=4)
    columns, *rows = drawn
    assert columns == [f"frame {n}" for n in (0, 4, 8, 12, 16)]
    assert all(caption.startswith("random init: ") and frames.shape == (5, 64, 64, 3) for caption, frames in rows)
    # Between bare dollars matplotlib would set mathematics.
    assert r"\$5/\$6" in rows[2][0]
    assert rows[3][0].endswith("… (1)")


def test_the_row_is_enough_for_plain_diffusers(made, tiny):
    result, _ = made
    row = result.videos[1]
    [expected] = tiny.pipeline(
        row["prompt"],
        num_frames=row["num_frames"],
        height=row["height"],
        width=row["width"],
        num_inference_steps=row["steps"],
        guidance_scale=row["guidance_scale"],
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(row["seed"]),
        output_type="np",
    ).frames
    [frames] = tiny.sample([row["prompt"]], [row["seed"]], num_frames=9, height=64, width=64, steps=2).frames
    assert np.abs(frames / 255 - expected).max() <= 0.5 / 255 + 1e-6
    assert np.abs(read_video(result.path / row["video"]).astype(float) - 255 * expected).mean() < 2  # H.264's part


def test_batch_size_and_company_change_nothing(made, tiny, tmp_path):
    """Before encoding: at most one level of 255 apart, in at most one value of a thousand (sums in another order)."""
    prompts, seeds = [SIMULATED, "a", ""], [1, 2, 3]
    size = {"num_frames": 9, "height": 64, "width": 64, "steps": 3}
    together = tiny.sample(prompts, seeds, **size).frames.astype(int)
    alone = np.concatenate([tiny.sample([p], [s], **size).frames for p, s in zip(prompts, seeds, strict=True)])
    assert together.shape == (3, 9, 64, 64, 3)
    assert np.abs(together - alone).max() <= 1
    assert (together != alone).mean() < 1e-3
    result, _ = made
    again = sample(dataclasses.replace(SETTINGS, prompts=(STRANGE,)), out=tmp_path / "run", batch_size=1)
    assert again.videos == result.videos[2:]
    for row in again.videos:
        one, other = (read_video(path / row["video"]).astype(int) for path in (again.path, result.path))
        assert np.abs(one - other).mean() < 1  # one level before H.264 may be several after


def test_every_video_is_another(made):
    result, _ = made
    frames = [read_video(result.path / row["video"]).astype(int) for row in result.videos]
    assert len({row["seed"] for row in result.videos}) == 4
    for i in range(4):
        assert all(np.abs(frames[i] - frames[j]).mean() > 1 for j in range(i))


def test_a_finished_run_is_read_another_refused(made, monkeypatch):
    result, _ = made
    monkeypatch.setattr(task, "load_generator", lambda *_, **__: pytest.fail("a model is loaded"))
    heard = Heard()
    again = sample(SETTINGS, out=result.path, batch_size=1, reporter=heard)
    assert (again.videos, again.rows) == (result.videos, json.loads((result.path / "metrics.json").read_text()))
    assert "nothing is made again" in heard.notes[0]
    with pytest.raises(UsageError, match="steps was 2, now 3"):
        sample(dataclasses.replace(SETTINGS, steps=3), out=result.path)


def test_a_run_from_before_the_mean_flow_had_a_name_of_its_own(made, tmp_path):
    result, _ = made
    old = tmp_path / "old"
    shutil.copytree(result.path, old)
    for name in ("items.jsonl", "metrics.json"):
        (old / name).write_text((old / name).read_text().replace("mean_flow_px", "motion_px"))
    again = sample(SETTINGS, out=old)
    assert again.value("mean_flow_px") == result.value("mean_flow_px")
    assert again.items == result.items
    next((old / "videos").iterdir()).unlink()  # what is made anew stands beside the old rows
    assert sample(SETTINGS, out=old).value("mean_flow_px") == pytest.approx(result.value("mean_flow_px"))


def test_a_finished_run_that_lost_a_video_is_made_again(tmp_path):
    settings = SampleSettings(prompts=("a ball",), model=MODEL, steps=1, num_frames=1)
    result = sample(settings, out=tmp_path / "run")
    video = result.path / result.videos[0]["video"]
    before = video.read_bytes()
    video.unlink()
    heard = Heard()
    sample(settings, out=tmp_path / "run", reporter=heard)
    assert f"lacks 1 whole videos, made again: videos/{video.name}" in heard.warnings[0]
    assert video.read_bytes() == before


def test_a_run_that_was_broken_off_makes_only_the_rest(made, tmp_path, monkeypatch):
    result, _ = made
    with pytest.raises(KeyboardInterrupt):
        sample(SETTINGS, out=tmp_path / "run", reporter=Heard(stop_at=5))  # in the third video's first step
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert len(list((tmp_path / "run" / "videos").iterdir())) == 2
    part = tmp_path / "run" / "items-0.part.jsonl"
    part.write_text(part.read_text() + '\n{"video": "videos/half')  # a kill in the middle of a line
    batches = []

    stock = CogVideoX.sample

    def counting(generator, prompts, *arguments, **options):
        batches.append(len(prompts))
        return stock(generator, prompts, *arguments, **options)

    monkeypatch.setattr(CogVideoX, "sample", counting)
    heard = Heard()
    done = sample(SETTINGS, out=tmp_path / "run", batch_size=3, reporter=heard)
    assert "2 of 4 videos are there already." in heard.notes
    assert batches == [2]
    assert done.videos == result.videos
    assert {path.name for path in done.path.iterdir()} == {path.name for path in result.path.iterdir()}
    for row in done.videos:
        one, other = (read_video(path / row["video"]).astype(int) for path in (done.path, result.path))
        assert np.abs(one - other).mean() < 1


def test_a_video_that_was_cut_short_is_made_again(tmp_path):
    settings = SampleSettings(prompts=("a ball", "a box"), model=MODEL, steps=1, num_frames=9, size=(32, 32))
    result = sample(settings, out=tmp_path / "run")
    cut, whole = (result.path / row["video"] for row in result.videos)
    before, time_of_whole = cut.read_bytes(), whole.stat().st_mtime_ns
    cut.write_bytes(before[: len(before) // 2])
    heard = Heard()
    again = sample(settings, out=tmp_path / "run", reporter=heard)
    assert f"lacks 1 whole videos, made again: videos/{cut.name}" in heard.warnings[0]
    assert (cut.read_bytes(), whole.stat().st_mtime_ns) == (before, time_of_whole)
    assert again.videos == result.videos


def test_captions_and_columns_stay_with_their_videos(tmp_path):
    prompt = Prompt("a red ball rolls and rolls", "A ball rolls.", {"states_of_matter": "solid_solid"})
    settings = SampleSettings(prompts=(prompt, "a box"), model=MODEL, steps=1, num_frames=1)
    first, second = sample(settings, out=tmp_path / "run").videos
    assert (first["caption"], first["prompt"]) == ("A ball rolls.", "a red ball rolls and rolls")
    assert first["columns"] == {"states_of_matter": "solid_solid"}
    assert (second["caption"], second["columns"]) == ("a box", {})
    again = sample(settings, out=tmp_path / "run", reporter=(heard := Heard()))
    assert "nothing is made again" in heard.notes[0]
    assert again.videos == [first, second]


GUIDED = SampleSettings(prompts=("a red ball", "a box"), steps=3, num_frames=9, size=(32, 32), guidance="lamo")


def test_guided_videos_say_how(tmp_path):
    heard = Heard()
    options = {"motion_scale": 0.1, "motion_reduction": "normalized", "motion_ratio": 0.7}
    settings = dataclasses.replace(GUIDED, guidance_options=options)
    done = sample(settings, out=tmp_path / "run", batch_size=2, reporter=heard)
    assert "The motion field is motion-field-tiny, lag 1." in heard.notes
    motion = done.videos[0]["guided_by"]
    assert {key: motion[key] for key in ("scale", "reduction", "lag", "ratio", "window")} == {
        "scale": 0.1,
        "reduction": "normalized",
        "lag": None,
        "ratio": 0.7,
        "window": "exact",
    }
    assert [row["guidance"] for row in done.videos] == ["lamo", "lamo"]
    for item in done.items:
        assert item["guided_steps"] == [0, 1, 2]
        assert item["update_ratio"] == pytest.approx([0.1] * 3, rel=1e-4)
        assert len(item["guidance_loss"]) == 3
    values = {row["metric"]: row["value"] for row in done.rows}
    assert values["update_ratio"] == pytest.approx(0.1, rel=1e-4)
    assert values["motion_residual"] == pytest.approx(np.mean([item["guidance_loss"][-1] for item in done.items]))
    assert "motion field" in json.loads((done.path / "run.json").read_text())["inputs"]


def test_latents_that_no_motion_field_knows_are_refused_at_once(base, tmp_path):
    settings = dataclasses.replace(GUIDED, model=str(base))
    with pytest.raises(
        UsageError, match=r"motion-field-tiny is of cogvideox-tiny's latents \(latent channels 8 for 4, "
    ):
        sample(settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scale_0_makes_the_files_of_no_guidance(tmp_path):
    plain = sample(dataclasses.replace(GUIDED, guidance="none"), out=tmp_path / "plain")
    measured = sample(dataclasses.replace(GUIDED, guidance_options={"motion_scale": 0}), out=tmp_path / "measured")
    assert [item["sha256"] for item in measured.items] == [item["sha256"] for item in plain.items]


def test_what_the_text_encoder_does_not_see_is_said(made):
    _, heard = made
    assert not any(SIMULATED[:40] in message for message in heard.warnings)
    [cut] = [message for message in heard.warnings if "tokens" in message]
    # 12 words and marks before the balls, 60 balls, the end token.
    assert 'reads 32 tokens of a prompt and cuts the last 41 of: A "zebra" costs' in cut
    [unknown] = [message for message in heard.warnings if "does not know" in message]
    assert ': " zebra costs $ 5 /$ 6 — 猫 😀 (in: A "zebra"' in unknown
    assert all("\n" not in message for message in heard.warnings)


def test_a_prompt_given_twice_is_sampled_once(tmp_path):
    heard = Heard()
    settings = SampleSettings(prompts=("a ball", "a ball"), model=MODEL, steps=1, num_frames=1)
    assert len(sample(settings, out=tmp_path / "run", reporter=heard).videos) == 1
    assert any("more than once" in message for message in heard.warnings)


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [
        (SIMULATED, "a-red-ball-rolls-towards-a-yello"),
        ("../../etc/passwd \"x\" 'y' `z`", "etc-passwd-x-y-z"),
        ("Größe: ÉCLAIR 7½", "groe-eclair-712"),
        ("猫が転がる 😀", "prompt"),
        ("", "prompt"),
        (" \n\t\0", "prompt"),
        ("x" * 300, "x" * 32),
    ],
)
def test_names_are_safe(prompt, beginning):
    assert re.fullmatch(rf"{beginning}-[0-9a-f]{{8}}", slug(prompt))
    assert slug(prompt) != slug(prompt + "!")


@pytest.mark.parametrize(
    ("prompt", "rate"),
    [
        ("a red ball, filmed at 20 frames per second", 20),
        ("A RED BALL, FILMED AT 7 FRAMES PER SECOND", 20 / 3),
        ("a red ball, filmed at 24 frames per second", 8),
        ("", 8),
    ],
)
def test_frame_rate(prompt, rate):
    assert frame_rate_of(prompt, 8) == pytest.approx(rate)


def test_native_frame_rates(tiny):
    assert tiny.facts.frame_rate_hz == 8  # the simulated world's 20 are of what was trained on it
    assert resolve(MODEL).for_simulated_world
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"patch_size_t": 2, "num_layers": 1}
    assert CogVideoX(build_cogvideox(model), name="1.5").facts.frame_rate_hz == 16


def test_shorten():
    assert shorten(" a\n b ") == "a b"
    assert shorten("") == "(empty prompt)"
    assert shorten("x" * 99, 10) == "x" * 9 + "…"


def test_size_frames_and_a_folder_with_an_adapter(pipeline_folder, tmp_path):
    transformer = CogVideoXPipeline.from_pretrained(pipeline_folder).transformer
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False))
    CogVideoXPipeline.save_lora_weights(tmp_path / "lora", get_peft_model_state_dict(transformer))
    plain = SampleSettings(
        prompts=("a ball",), model=str(pipeline_folder), steps=2, size=(32, 48), num_frames=9, guidance_scale=1
    )
    adapted = dataclasses.replace(plain, adapter=str(tmp_path / "lora"))
    rows, frames = [], []
    for settings in (plain, adapted):
        result = sample(settings, out=tmp_path / f"run{len(rows)}")
        rows += result.videos
        frames.append(read_video(result.path / result.videos[0]["video"]).astype(int))
    assert frames[0].shape == (9, 32, 48, 3)
    assert np.abs(frames[0] - frames[1]).mean() > 0.1
    assert [row["adapter"] for row in rows] == [None, str(tmp_path / "lora")]
    assert [(row["fps"], row["random_init"], row["seed"]) for row in rows] == [(8, False, rows[0]["seed"])] * 2
    assert [row["adapter_scale"] for row in rows] == [None, 1.0]
    with pytest.raises(UsageError, match="adapter was null"):
        sample(adapted, out=tmp_path / "run0")
    with pytest.raises(UsageError, match=r"adapter_scale was 1\.0"):
        sample(dataclasses.replace(adapted, adapter_scale=4.0), out=tmp_path / "run1")


def test_guidance_is_the_models_own_unless_another_is_asked_for(made, pipeline_folder, tmp_path):
    result, _ = made
    assert [row["guidance_scale"] for row in [*result.videos, *result.rows]] == [6] * 6
    assert json.loads((result.path / "run.json").read_text())["settings"]["guidance_scale"] == 6

    shutil.copytree(pipeline_folder, tmp_path / "model")
    (tmp_path / "model" / "physcli.json").write_text('{"guidance_scale": 1.5}')
    settings = SampleSettings(prompts=("a ball",), model=str(tmp_path / "model"), steps=2, size=(32, 32), num_frames=9)
    own = sample(settings, out=tmp_path / "own")
    assert [row["guidance_scale"] for row in [*own.videos, *own.rows]] == [1.5] * 3
    assert json.loads((own.path / "videos.jsonl").read_text())["guidance_scale"] == 1.5
    assert json.loads((own.path / "metrics.json").read_text())[0]["guidance_scale"] == 1.5
    heard = Heard()
    asked = dataclasses.replace(settings, guidance_scale=1.5)
    assert sample(asked, out=own.path, reporter=heard).videos == own.videos
    assert "nothing is made again" in heard.notes[0]
    with pytest.raises(UsageError, match=r"guidance_scale was 1\.5, now 3"):
        sample(dataclasses.replace(settings, guidance_scale=3), out=own.path)

    generator = load(str(tmp_path / "model"), device="cpu")
    seeds, size = [own.videos[0]["seed"]], {"num_frames": 9, "height": 32, "width": 32, "steps": 2}
    made_again, named, other = (
        generator.sample(["a ball"], seeds, guidance_scale=scale, **size).frames for scale in (None, 1.5, 6)
    )
    np.testing.assert_array_equal(made_again, named)
    assert (made_again != other).mean() > 0.01

    (tmp_path / "model" / "physcli.json").write_text("{")
    with pytest.raises(ModelError, match=r"physcli\.json"):
        sample(settings, out=tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_a_large_video_keeps_the_sheet_small(tiny):
    frames = np.zeros((5, 480, 720, 3), np.uint8)
    assert sheets._thumbnails(frames).shape == (5, 160, 240, 3)


def test_the_sheet_shows_every_prompt_before_a_second_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "_SHEET_VIDEOS", 2)
    drawn = []
    monkeypatch.setattr(sheets, "contact_sheet", lambda path, rows, columns, abreast: drawn.append(rows))
    settings = SampleSettings(prompts=("a ball", "a box"), model=MODEL, num_samples=2, steps=1, num_frames=1)
    sample(settings, out=tmp_path / "run", batch_size=4)
    assert [caption for caption, _ in drawn[0]] == ["random init: a ball (0)", "random init: a box (0)"]


@pytest.mark.parametrize(("cache", "steps"), [("magcache", 6), ("fbcache", 3)])
def test_a_cache_is_told_of_and_changes_no_other_video(tmp_path, monkeypatch, cache, steps):
    """Whatever the batch, and also where the run was broken off after the first video."""
    settings = dataclasses.replace(SETTINGS, num_samples=1, steps=steps, cache=CacheSettings(cache, 1e6))
    heard = Heard()
    whole = sample(settings, out=tmp_path / "whole", batch_size=2, reporter=heard)
    videos = [content_hash(whole.path / row["video"]) for row in whole.videos]
    told = "one more video, of the first prompt" if cache == "magcache" else "one by one"
    assert any(told in note for note in heard.notes)
    assert [row["cache"] for row in whole.videos] == [{"name": cache, "value": 1e6}] * 2
    share = whole.value("computed_share")
    assert share == pytest.approx(np.mean([item["computed_share"] for item in whole.items]))
    assert 0 < share < 1
    assert {row["cache"] for row in whole.rows} == {f"{cache} 1e+06"}

    with pytest.raises(UsageError, match="cache"):
        sample(dataclasses.replace(settings, cache=None), out=tmp_path / "whole")
    if cache == "fbcache":  # however many a batch
        alone = sample(dataclasses.replace(settings, prompts=settings.prompts[1:]), out=tmp_path / "alone")
        assert content_hash(alone.path / alone.videos[0]["video"]) == videos[1]
        return
    # Broken off in the second video, what the cache knows of the network is not measured again.
    with pytest.raises(KeyboardInterrupt):
        sample(settings, out=tmp_path / "broken", reporter=Heard(stop_at=steps + 2))
    monkeypatch.setattr(task, "ratios", lambda *_: pytest.fail("measured again"))
    rest = sample(settings, out=tmp_path / "broken")
    assert (rest.path / "mag_ratios.json").read_bytes() == (whole.path / "mag_ratios.json").read_bytes()


def test_a_cache_on_compiled_blocks_is_refused(tmp_path):
    settings = dataclasses.replace(SETTINGS, cache=CacheSettings("fbcache", 0.1))
    with pytest.raises(UsageError, match="--compile with --cache fbcache"):
        sample(settings, out=tmp_path / "run", compiled=True)


def test_nan_is_an_error(tmp_path, monkeypatch):
    broken = load(MODEL, device="cpu")
    broken.transformer.proj_out.bias.fill_(float("nan"))
    monkeypatch.setattr(task, "load_generator", lambda *_, **__: broken)
    with pytest.raises(ModelError, match="not numbers") as caught:
        sample(SampleSettings(prompts=("a ball",), model=MODEL, steps=1), out=tmp_path / "run")
    assert "--dtype float32" in caught.value.fix
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": ()}, "No prompt"),
        ({"prompts": ("caf\udce9",)}, "not valid text"),
        ({"model": "videomae-tiny"}, "--model videomae-tiny is an encoder"),
        ({"model": "cogvideox-tyni"}, "Did you mean 'cogvideox-tiny'"),
        ({"size": (60, 64)}, "60x64.*\n.*multiples of 8"),
        ({"size": (0, 0)}, "0x0"),
        ({"num_frames": 13}, "13 frames.*\n.*for instance 9 or 17"),
        ({"num_frames": 0}, "0 frames"),
        ({"steps": 0}, "--steps 0"),
        ({"steps": 1001}, "(?s)--steps 1001.*1 to 1000"),
        ({"scheduler": "euler"}, "Unknown scheduler: 'euler'"),
        ({"guidance": "llamo"}, "Did you mean 'lamo'"),
        ({"guidance_options": {"motion_scale": 1.0}}, "--motion-scale without --guidance lamo"),
        ({"guidance": "lamo", "guidance_options": {"motion_scale": -1.0}}, "--motion-scale -1"),
        ({"guidance": "lamo", "guidance_options": {"motion_ratio": 0.0}}, "--motion-ratio 0"),
        ({"guidance": "lamo", "guidance_options": {"motion_lag": 0}}, "--motion-lag 0"),
        ({"guidance": "lamo"}, "VAE scaling factor 2.0394 for 2.95"),
        (
            {"guidance": "lamo", "guidance_options": {"motion_lag": 5}, "model": "cogvideox-tiny"},
            "--motion-lag 5 with videos of 5 latent frames",
        ),
        ({"guidance": "lamo", "guidance_options": {"motion_reduction": "total"}}, "Unknown reduction: 'total'"),
        ({"guidance": "inner", "cache": CacheSettings("fbcache", 0.1)}, "--cache fbcache with --guidance inner"),
        ({"guidance_scale": float("nan")}, "--guidance-scale nan"),
        ({"guidance_scale": -1.0}, "--guidance-scale -1"),
        ({"num_samples": 0}, "--num-samples 0"),
        ({"dtype": "float23"}, "Did you mean 'float32'"),
    ],
)
def test_bad_settings(tmp_path, change, said):
    settings = SampleSettings(**({"prompts": ("a ball",), "model": MODEL} | change))
    with pytest.raises(UsageError, match=said):
        sample(settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
