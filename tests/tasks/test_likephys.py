"""`physcli eval likephys` end to end on a model with random weights: rows, controls, cache, processes, compare."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from physcli.benchmarks.localisation import on_latent_grid
from physcli.data.twins import read_scenes
from physcli.data.video import read_video, write_video
from physcli.errors import DataError, PhyscliError, UsageError
from physcli.models.loading import load
from physcli.progress import Reporter
from physcli.rows import interval_of
from physcli.simulation.violations import KINDS
from physcli.tasks.compare import CompareSettings, compare
from physcli.tasks.likephys import run
from physcli.tasks.likephys.losses import DenoisingErrors, clips_at_once, levels_of, untrain
from physcli.tasks.likephys.result import LikePhysResult
from physcli.tasks.likephys.rows import aggregate, loss_of, score_scene
from physcli.tasks.likephys.run import LikePhysSettings, likephys
from physcli.tasks.likephys.scenes import show, violation_masks
from physcli.tasks.processes import Processes
from physcli.tasks.report import write_run_report
from physcli.tasks.simulate import SimulateSettings
from physcli.tasks.tables import likephys as likephys_errors
from physcli.tasks.tables import likephys_controls

MANY = 1.0 + np.arange(10)
TWINS = SimulateSettings(2, 4, ("collide", "drop"), 32, 32, impossible=KINDS, seed=3)


@pytest.fixture(scope="module")
def twins(made_once):
    """Four test clips of two pairs with their impossible twins."""
    return made_once("likephys", TWINS)


@pytest.fixture(scope="module")
def settings(base, twins):
    return LikePhysSettings(models=(str(base),), data=str(twins), num_levels=4)


@pytest.fixture(scope="module")
def first(listener):
    return listener()


@pytest.fixture(scope="module")
def measured(settings, session_cache, first, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "likephys"
    return likephys(settings, out=out, cache_dir=session_cache, reporter=first)


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing them takes longer than all else in a run of such a model."""
    monkeypatch.setattr(run, "draw_localisation", lambda *arguments: None)
    monkeypatch.setattr(run, "draw_ppe", lambda result: None)


@pytest.fixture(scope="module")
def model(base):
    return load(str(base))


def errors_of(model, cache, subject="model", **options):
    chosen = {"fingerprint": "f", "vae_fingerprint": "v", "num_levels": 4, "guidance_scale": 1.0, "seed": 0}
    chosen |= {"negative_prompt": "", "batch_size": 10} | options
    return DenoisingErrors(model, subject, subject, cache=cache, processes=Processes(), reporter=Reporter(), **chosen)


# -- the run ---------------------------------------------------------------------------------------------------------


def test_rows(measured, twins):
    assert measured.subjects == ["base", "base/zero", "base/untrained"]
    assert measured.models == ["base"]
    assert set(measured.groups) <= set(KINDS)
    assert len(measured.groups) > 3
    scenes = read_scenes(twins).scenes
    num_twins = sum(len(scene.invalid) for scene in scenes)
    assert len(measured.items) == 3 * num_twins
    for subject in measured.subjects:
        items = [item for item in measured.items if item["subject"] == subject]
        pooled = measured.row(subject, "ppe")
        assert pooled["n"] == num_twins
        assert pooled["num_clusters"] == 2
        assert pooled["value"] == pytest.approx(np.mean([item["ppe"] for item in items]))
        groups = [measured.row(subject, "ppe", group) for group in measured.groups]
        assert sum(row["n"] for row in groups) == num_twins
        mean = measured.row(subject, "ppe_mean_of_violations")
        assert mean["value"] == pytest.approx(np.mean([row["value"] for row in groups]))
        for metric in ("still_preferred", "blur_preferred"):
            assert measured.row(subject, metric)["n"] == len(scenes)
        assert {row["interval"] for row in (pooled, *groups)} == {"wilson"}
        assert mean["interval"] == "bootstrap"
        assert pooled["min_num_frames"] == pooled["max_num_frames"] == 17
        for row in (pooled, mean, *groups):
            low, high = interval_of(row)
            assert 0 <= low <= row["value"] <= high <= 1
        located = measured.row(subject, "localisation_ap")
        known = [item for item in items if item["localisation_ap"] is not None]
        assert 0 < len(known) == located["n"]
        assert located["value"] == pytest.approx(np.mean([item["localisation_ap"] for item in known]))
        assert located["prevalence"] == pytest.approx(np.mean([item["prevalence"] for item in known]))
        gain = measured.row(subject, "localisation_gain")
        assert gain["value"] == pytest.approx(located["value"] - located["prevalence"])
    assert all(item["ppe"] == float(item["loss_valid"] >= item["loss_invalid"]) for item in measured.items)
    assert {row["control"] for row in measured.rows if row["subject"] == "base/zero"} == {True}
    assert measured.row("base/untrained", "ppe")["random_init"]


def test_files(measured):
    written = LikePhysResult.read(measured.path)
    assert written.rows == json.loads(json.dumps(measured.rows))
    for name in ("ppe.png", "localisation-base.png"):
        assert (measured.path / name).read_bytes().startswith(b"\x89PNG")
    page = (measured.path / "report.html").read_text()
    for said in ("PPE: impossible clips preferred", "base/zero", "localisation", "its forward passes", "teleport"):
        assert said in page
    assert {"report", "picture", "rows", "items", "where, 1"} == set(measured.files())


def test_time_beside_its_forward_passes(measured, first):
    timing = json.loads((measured.path / "run.json").read_text())["timing"]
    clips = first.bars["Losses of base"]
    for subject in ("base", "base/untrained"):
        assert timing[subject]["clips"] == clips
        assert timing[subject]["pass_s"] > timing[subject]["forwards_s"] > 0
        assert timing[subject]["ratio"] == pytest.approx(
            timing[subject]["pass_s"] / timing[subject]["forwards_s"], abs=0.02
        )
    assert timing["base/zero"]["forwards_s"] == 0


def test_again_is_read(settings, measured, session_cache, listener):
    reporter = listener()
    again = likephys(settings, out=measured.path, cache_dir=session_cache, reporter=reporter)
    assert again.rows == json.loads(json.dumps(measured.rows))
    assert any("nothing is computed again" in said for said in reporter.said)
    with pytest.raises(UsageError, match="num_levels was 4, now 5"):
        likephys(dataclasses.replace(settings, num_levels=5), out=measured.path, cache_dir=session_cache)


def test_broken_off_goes_on(settings, measured, listener, tmp_path, no_pictures):
    reporter = listener(stop_at=20, during="Losses of base")
    with pytest.raises(KeyboardInterrupt):
        likephys(settings, out=tmp_path / "run", cache_dir=tmp_path / "cache", reporter=reporter)
    reporter = listener()
    again = likephys(settings, out=tmp_path / "run", cache_dir=tmp_path / "cache", reporter=reporter)
    assert reporter.bars["Losses of base"] == reporter.bars["Losses of base/untrained"] - 20
    assert again.rows == measured.rows
    assert again.items == measured.items


def test_batch_size_is_no_matter(settings, measured, tmp_path, no_pictures):
    small = dataclasses.replace(settings, limit=1, untrained=False)
    found = [
        likephys(small, out=tmp_path / f"{size}", cache_dir=tmp_path / f"cache-{size}", batch_size=size).items
        for size in (1, 3)
    ]
    for one, other in zip(*found, strict=True):
        assert one["loss_valid"] == pytest.approx(other["loss_valid"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(settings, measured, start_physcli, two_processes, tmp_path):
    words = ["eval", "likephys", "--model", settings.models[0], "--data", settings.data, "--num-levels", "4", "--json"]
    words += ["--out", tmp_path / "two", "--cache-dir", tmp_path / "cache", "--device", "cpu"]
    ranks = two_processes(lambda environment: start_physcli(*words, env=environment))
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr
    assert ranks[1].stdout == ""
    assert json.loads(ranks[0].stdout)["rows"] == json.loads(json.dumps(measured.rows))
    timing = json.loads((tmp_path / "two" / "run.json").read_text())["timing"]
    assert timing["base"]["clips"] == json.loads((measured.path / "run.json").read_text())["timing"]["base"]["clips"]


# -- what is measured ------------------------------------------------------------------------------------------------


def test_all_clips_of_a_scene_have_the_same_noise(model, twins):
    scenes = show(model, read_scenes(twins).scenes, {})
    assert len({shown.noise for shown in scenes[0].all}) == 1
    assert len({scene.valid[0].noise for scene in scenes}) == len(scenes)
    assert len({shown.key for shown in scenes[0].all}) == len(scenes[0].all)


def test_the_whole_clip_is_shown_at_its_rate(model, twins):
    scene = show(model, read_scenes(twins).scenes, {})[0]
    for shown in (*scene.valid, *scene.invalid["teleport"], *scene.blurred):
        assert list(shown.view.frames) == list(range(0, 49, 3))
        assert shown.prompt.endswith("filmed at 7 frames per second")
        assert shown.rate_hz == pytest.approx(20 / 3)
    assert set(scene.still[0].view.frames) == {0}
    assert scene.still[0].prompt == scene.valid[0].prompt


def test_controls_are_what_they_say(model, twins):
    scene = show(model, read_scenes(twins).scenes, {})[0]
    clear, still, blurred = (some[0].view.read() for some in (scene.valid, scene.still, scene.blurred))
    assert (still == clear[0]).all()
    assert blurred.shape == clear.shape
    contrast = [np.abs(np.diff(frames.astype(float), axis=2)).mean() for frames in (clear, blurred)]
    assert contrast[1] < 0.8 * contrast[0]
    np.testing.assert_allclose(blurred.mean(), clear.mean(), rtol=0.02)


def test_zero_is_the_mean_square_of_the_target(model, twins, tmp_path):
    scene = show(model, read_scenes(twins).scenes[:1], {})[0]
    errors = errors_of(model, tmp_path, "zero")
    errors.compute([scene])
    maps = errors.load(scene)
    level = levels_of(model.noise, 4)
    shown = scene.valid[0]
    frames = torch.from_numpy(shown.view.read()).permute(0, 3, 1, 2)[None].float() / 255
    clean = model.codec.encode(torch.nn.functional.interpolate(frames[0], (16, 16), mode="area")[None])
    assert maps[shown.key].shape == (4, *clean.shape[1:2], *clean.shape[3:])
    noise = errors._noise(shown.noise, clean.shape[1:])
    target = model.noise.target(clean.expand_as(noise), noise, level)
    assert loss_of(maps[shown.key], np.ones(4)) == pytest.approx(float(target.square().mean()), rel=0.02)
    assert errors.clock.forwards == 0


def test_large_clips_are_encoded_by_themselves():
    assert clips_at_once(17, (64, 64)) == 16
    assert clips_at_once(49, (480, 720)) == clips_at_once(81, (480, 832)) == 1


def test_untrained_keeps_the_rest(base):
    model = load(str(base))
    model.need("vae", "text_encoder")
    parts = {name: model.fingerprint(name) for name in ("vae", "text_encoder")}
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    untrain(model, seed=5)
    after = model.network.state_dict()
    assert all(
        not torch.equal(before[name], after[name]) for name in before if name.endswith("weight") and "norm" not in name
    )
    assert {name: model.fingerprint(name) for name in parts} == parts
    again = load(str(base))
    untrain(again, seed=5)
    assert all(torch.equal(after[name], value) for name, value in again.network.state_dict().items())


def test_guidance_mixes_two_outputs(model, twins, tmp_path):
    scene = show(model, read_scenes(twins).scenes[:1], {})[0]
    of = {}
    for scale, negative in ((1.0, ""), (0.0, ""), (0.0, scene.valid[0].prompt), (3.0, scene.valid[0].prompt)):
        errors = errors_of(model, tmp_path, guidance_scale=scale, negative_prompt=negative)
        errors.compute([scene])
        of[scale, negative] = loss_of(errors.load(scene)[scene.valid[0].key], np.ones(4))
    alone = of[1.0, ""]
    assert of[0.0, scene.valid[0].prompt] == pytest.approx(alone, rel=1e-6)  # away from itself is itself
    assert of[3.0, scene.valid[0].prompt] == pytest.approx(alone, rel=1e-6)
    assert of[0.0, ""] != alone


def test_the_violation_is_the_agent_of_either_twin_once_it_breaks_the_law(model, twins):
    scene = show(model, read_scenes(twins).scenes[:1], {})[0]
    valid, invalid = scene.valid[0], scene.invalid["teleport"][0]
    frame = invalid.view.clip.record["violation"]["frame"]
    region, foreground = violation_masks(valid, invalid, (17, 32, 32))
    stored = [np.load(shown.view.clip.arrays)["segmentation"][list(shown.view.frames)] for shown in (valid, invalid)]
    before = np.array(valid.view.frames) < frame
    assert not region[before].any()
    assert region[~before].any()
    np.testing.assert_array_equal(region[~before], ((stored[0] == 1) | (stored[1] == 1))[~before])
    assert (foreground | ~region).all()
    pictures = [shown.view.read().astype(int) for shown in (valid, invalid)]
    assert np.abs(pictures[0] - pictures[1])[before].max() <= 12  # the same clip, but for the codec
    coarse, _ = violation_masks(valid, invalid, (5, 2, 2))
    np.testing.assert_array_equal(coarse, on_latent_grid(region, (5, 2, 2)))


def test_a_clip_whose_arrays_are_not_there_has_no_exact_mask(model, twins, tmp_path):
    scene = show(model, read_scenes(twins).scenes[:1], {})[0]
    valid, invalid = scene.valid[0], scene.invalid["teleport"][0]
    gone = dataclasses.replace(invalid.view.clip, arrays=tmp_path / "gone.npz")
    invalid = dataclasses.replace(invalid, view=dataclasses.replace(invalid.view, clip=gone))
    assert violation_masks(valid, invalid, (5, 2, 2)) is None


def made_maps(scene, errors):
    """Maps [10, 5, 2, 2] of the scene's clips: `errors` by name of the kind, the same everywhere."""
    kinds = {"valid": scene.valid, "still": scene.still, "blurred": scene.blurred, **scene.invalid}
    return {
        shown.key: torch.full((10, 5, 2, 2), float(errors.get(kind, 2.0)))
        for kind, some in kinds.items()
        for shown in some
    }


def test_scores_of_a_scene(model, twins):
    scene = show(model, read_scenes(twins).scenes[:1], {})[0]
    maps = made_maps(scene, {"valid": 1.0, "color": 0.5, "teleport": 1.0, "still": 1.0, "blurred": 1.5})
    rows, preferred = score_scene(scene, maps, MANY)
    by = {row["violation"]: row for row in rows}
    assert by["color"]["ppe"] == 1
    assert by["teleport"]["ppe"] == 1  # a tie
    assert all(row["ppe"] == 0 for name, row in by.items() if name not in ("color", "teleport"))
    assert by["color"]["loss_valid"] == pytest.approx(MANY.mean())
    assert by["color"]["loss_margin"] == pytest.approx(-0.5)
    assert preferred == {"still_preferred": 1.0, "blur_preferred": 0.0}
    for row in rows:  # a map without differences finds nothing, whatever the order in memory
        if row["localisation_ap"] is not None:
            assert row["gain"] == pytest.approx(row["localisation_ap"] - row["prevalence"])
            assert 0 <= row["gain"] < 0.35


def test_a_map_that_is_the_violation_finds_it(model, twins):
    scene = show(model, read_scenes(twins).scenes[:1], {})[0]
    maps = made_maps(scene, {"valid": 1.0})
    invalid = scene.invalid["teleport"][0]
    region, _ = violation_masks(scene.valid[0], invalid, (5, 2, 2))
    maps[invalid.key] = 1 + torch.from_numpy(region).float().expand(10, -1, -1, -1)
    rows, _ = score_scene(scene, maps, MANY)
    assert {row["violation"]: row for row in rows}["teleport"]["localisation_ap"] == 1


def items(**ppe):
    """Items of one scenario: violation=[share of each scene]; two scenes a cluster."""
    return [
        {
            "scenario": "pendulum",
            "scene": str(n),
            "violation": violation,
            "cluster": f"c{n // 2}",
            "ppe": value,
            "loss_margin": 0.1,
            "localisation_ap": None,
            "prevalence": None,
            "gain": None,
        }
        for violation, values in ppe.items()
        for n, value in enumerate(values)
    ]


COLUMNS = {"benchmark": "likephys", "task": "likephys", "subject": "m", "seed": 0}


def test_violations_that_the_released_table_leaves_out():
    found = items(speedup=[1, 0, 0, 0], reverse_gravity=[1, 1, 1, 1])
    controls = [{"cluster": "c0", "still_preferred": 1.0, "blur_preferred": 1.0}]
    rows = aggregate(found, controls, by_scenario=True, **COLUMNS)
    by = {(row["metric"], row["group"]): row for row in rows}
    assert by["ppe", "all"]["value"] == 5 / 8
    assert by["ppe_mean_of_violations", "all"]["value"] == 1 / 4
    assert not by["ppe", "pendulum/reverse_gravity"]["in_means"]
    assert by["ppe", "pendulum/speedup"]["in_means"]
    assert ("localisation_ap", "all") not in by
    assert ("ppe_mean_of_scenarios", "all") not in by


def test_intervals_are_by_cluster():
    """Twenty scenes in ten clusters that always agree are ten, not twenty."""
    values = [float(n // 2 % 2) for n in range(20)]
    controls = [{"cluster": "c0", "still_preferred": 1.0, "blur_preferred": 1.0}]
    twice = aggregate(items(speedup=values), controls, by_scenario=False, **COLUMNS)[0]
    apart = [item | {"cluster": item["scene"]} for item in items(speedup=values)]
    once = aggregate(apart, controls, by_scenario=False, **COLUMNS)[0]
    assert twice["stderr"] > 1.3 * once["stderr"]
    assert twice["high"] - twice["low"] > 1.25 * (once["high"] - once["low"])
    never = aggregate(items(speedup=[0.0] * 20), controls, by_scenario=False, **COLUMNS)[0]
    assert never["high"] == pytest.approx(0.278, abs=1e-3)  # Wilson's, of none of ten
    assert interval_of(never) == (never["low"], never["high"])


# -- tables, pages, compare ------------------------------------------------------------------------------------------


def test_tables(measured):
    drawn = likephys_errors(measured, wide=True)
    assert drawn.columns == ["", "base", "base\n/zero", "base\n/untrained"]
    names = [line[0] for line in drawn.rows]
    assert names[-3:] == ["pooled", "mean of violations", "mean of scenarios"]
    assert " to " in drawn.rows[0][1]
    assert " to " not in likephys_errors(measured, wide=False).rows[0][1]
    assert "ties are errors" in drawn.caption
    controls = likephys_controls(measured, wide=True)
    assert [line[0] for line in controls.rows] == measured.subjects
    assert all(len(line) == len(controls.columns) for line in controls.rows)


def test_compare_takes_its_runs(settings, measured, session_cache, tmp_path, no_pictures):
    other = dataclasses.replace(settings, seed=1)
    second = likephys(other, out=tmp_path / "second", cache_dir=session_cache)
    done = compare(CompareSettings((str(measured.path), str(second.path))), out=tmp_path / "compare")
    row = next(row for row in done.rows if row["of"] == "ppe" and row["group"] == "all")
    assert row["n"] == len(measured.items) / 3
    assert row["num_clusters"] == 2
    expected = second.row("base", "ppe")["value"] - measured.row("base", "ppe")["value"]
    assert row["value"] == pytest.approx(expected)
    assert {row["group"] for row in done.rows} == {"all", *measured.groups}
    assert done.unit == "scenes"
    assert "scenes drawn again" in done.caption(done.sides[1])
    assert not any("byte for byte" in note for note in done.notes)


def test_compare_with_a_control(measured, tmp_path):
    path = str(measured.path)
    done = compare(CompareSettings((f"{path}::base/zero", path)), out=tmp_path / "compare")
    assert [side.label for side in done.sides] == ["base/zero", "base"]
    row = next(row for row in done.rows if row["of"] == "loss_margin" and row["group"] == "all")
    expected = measured.row("base", "loss_margin")["value"] - measured.row("base/zero", "loss_margin")["value"]
    assert row["value"] == pytest.approx(expected)
    with pytest.raises(UsageError, match=r"Unknown subject of .*'base/none'"):
        compare(CompareSettings((f"{path}::base/none", path)), out=tmp_path / "other")


def test_compare_refuses_other_clips(settings, measured, session_cache, twins, tmp_path, no_pictures):
    shutil.copytree(twins, tmp_path / "set")
    video = next((tmp_path / "set" / "impossible" / "test").glob("*.mp4"))
    write_video(video, read_video(video)[:, ::-1].copy(), 20)
    changed = dataclasses.replace(settings, data=str(tmp_path / "set"), untrained=False)
    other = likephys(changed, out=tmp_path / "other", cache_dir=session_cache)
    with pytest.raises(PhyscliError, match="not the same content: the hashes of their data differ"):
        compare(CompareSettings((str(measured.path), str(other.path))), out=tmp_path / "compare")


def test_a_page_of_scores_is_no_matter_of_its_kind(measured, tmp_path):
    path = write_run_report(str(measured.path), tmp_path / "plain.html")
    assert "localisation_gain" in path.read_text()


# -- LikePhys' layout, bad input -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def likephys_set(tmp_path_factory, twins):
    """Two scenarios of a scene each, in LikePhys' layout, of simulated clips; one video is there twice, one short."""
    root = tmp_path_factory.mktemp("set")
    for scenario, scene in zip(("ball_drop", "river"), read_scenes(twins).scenes[::2], strict=True):
        place = root / scenario / "00"
        place.mkdir(parents=True)
        shutil.copy(scene.valid[0].path, place / "valid_00.mp4")
        for kind in ("color", "teleport"):
            shutil.copy(scene.invalid[kind][0].path, place / f"{kind}_00.mp4")
    short = root / "river" / "00" / "teleport_00.mp4"
    write_video(short, read_video(short)[:14], 20)
    shutil.copy(root / "river" / "00" / "valid_00.mp4", root / "river" / "00" / "same_00.mp4")
    return root


def test_likephys_layout(base, likephys_set, session_cache, tmp_path):
    settings = LikePhysSettings((str(base),), data=str(likephys_set), num_levels=4, untrained=False, reading="eps")
    done = likephys(settings, out=tmp_path / "run", cache_dir=session_cache)
    groups = ["ball_drop/color", "ball_drop/teleport", "river/color", "river/same", "river/teleport"]
    assert done.groups == groups
    for subject in ("base", "base/zero"):
        assert done.row(subject, "ppe", "river/same")["value"] == 1  # two equal clips: a tie, to the bit
        values = {group: done.row(subject, "ppe", group)["value"] for group in groups}
        scenarios = [np.mean([v for g, v in values.items() if g.startswith(s)]) for s in ("ball_drop", "river")]
        assert done.row(subject, "ppe_mean_of_scenarios")["value"] == pytest.approx(np.mean(scenarios))
        assert done.row(subject, "ppe_mean_of_violations")["value"] == pytest.approx(np.mean(list(values.values())))
        assert done.row(subject, "localisation_ap") is None
    assert done.rows[0]["reading"] == "eps"
    assert (done.rows[0]["min_num_frames"], done.rows[0]["max_num_frames"]) == (13, 17)
    assert "2 scenes of set0, 13 to 17 frames, 4 levels" in likephys_errors(done, wide=False).caption
    assert {item["prompt"] for item in done.items} == {"ball drop", "river"}
    assert not list((tmp_path / "run").glob("localisation*.png"))
    assert all(len(line) == 6 for line in likephys_controls(done, wide=False).rows)


def test_a_broken_video_is_named(base, likephys_set, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(likephys_set, root)
    video = root / "river" / "00" / "color_00.mp4"
    video.write_bytes(video.read_bytes()[:2000])
    settings = LikePhysSettings((str(base),), data=str(root), num_levels=2)
    with pytest.raises(DataError, match=r"river/00/color_00\.mp4"):
        likephys(settings, out=tmp_path / "run", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": ()}, "No --model"),
        ({"models": ("videomae-tiny",)}, "videomae-tiny is an encoder"),
        ({"reading": "velocity"}, "Unknown reading: 'velocity'"),
        ({"num_levels": 0}, "--num-levels 0"),
        ({"negative_prompt": "blurry"}, "--negative-prompt without guidance"),
        ({"data": "nowhere"}, "nowhere is not there"),
        ({"data": "simulated:3"}, "simulated:3"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_bad_settings(settings, tmp_path, change, said):
    with pytest.raises(PhyscliError, match=said):
        likephys(dataclasses.replace(settings, **change), out=tmp_path / "run", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "run").exists()


def test_predictions_that_are_not_finite(base, settings, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    model = load(str(folder))
    with torch.no_grad():
        model.network.proj_out.weight.fill_(float("nan"))
    model.save(tmp_path / "broken")
    with pytest.raises(DataError, match=r"broken gives NaN or infinite predictions of .*mp4"):
        likephys(
            dataclasses.replace(settings, models=(str(tmp_path / "broken"),), limit=1),
            out=tmp_path / "run",
            cache_dir=tmp_path / "cache",
        )


def test_command_line(base, twins, run_physcli, session_cache, tmp_path):
    words = ["eval", "likephys", "--model", base, "--data", twins, "--num-levels", "4", "--cache-dir", session_cache]
    done = run_physcli(*words, "--out", tmp_path / "run", "--limit", "2", columns=80)
    assert done.returncode == 0, done.stderr
    assert "PPE: impossible clips preferred, %" in done.stdout
    assert "pooled" in done.stdout
    table, _, files = done.stdout.partition("  report ")
    assert max(map(len, table.splitlines())) <= 80
    assert "localisation-base.png" in files
    refused = run_physcli(*words, "--reading", "x1", "--out", tmp_path / "other")
    assert refused.returncode == 2
    assert "one of eps, v, x0" in refused.stderr
