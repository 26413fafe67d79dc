"""The probe end to end on the tiny models: rows, controls, caching, continuation, bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from physcli.data.clips import read_dataset
from physcli.errors import DataError, UsageError
from physcli.models import display_names
from physcli.models.loading import load
from physcli.models.names import fingerprint, resolve
from physcli.tasks.features import FeatureExtractor, Tap, check_finite, choose_taps, pool_tokens, views_of
from physcli.tasks.probe_physion import ProbeSettings, probe_physion
from physcli.tasks.probe_result import CONTROLS
from physcli.tasks.simulate import SimulateSettings, simulate
from physcli.tasks.tables import probe

GOLDEN = Path(__file__).parents[1] / "golden" / "physion"
ROW_KEYS = {"benchmark", "task", "subject", "split", "group", "metric", "value", "stderr", "n", "higher_is_better"}


@pytest.fixture(scope="module")
def first(listener):
    """What `probed` said."""
    return listener()


@pytest.fixture(scope="module")
def probed(simulated, session_cache, first, tmp_path_factory):
    """Both tiny models on the small dataset."""
    settings = ProbeSettings(models=("videomae-tiny:random", "cogvideox-tiny"), data=str(simulated))
    out = tmp_path_factory.mktemp("runs") / "probe"
    return settings, probe_physion(settings, out=out, cache_dir=session_cache, reporter=first)


def test_rows(probed):
    _, result = probed
    assert result.subjects == ["videomae-tiny:random", "cogvideox-tiny", "state", "pixels"]
    assert all(row.keys() >= ROW_KEYS for row in result.rows)
    assert json.loads((result.path / "metrics.json").read_text()) == json.loads(json.dumps(result.rows))
    for subject in result.subjects:
        per_scenario = [result.accuracy(subject, group) for group in ("collide", "roll")]
        mean = result.accuracy(subject)
        assert mean["value"] == pytest.approx(np.mean([row["value"] for row in per_scenario]))
        assert sum(row["n"] for row in per_scenario) == mean["n"] == 12
        assert 0 <= mean["stderr"] < 0.3
        assert mean["random_init"] == (subject == "videomae-tiny:random")
    tap = result.accuracy("cogvideox-tiny")
    assert (tap["block"], tap["chosen"]) == (3, True)
    assert tap["sigma"] == pytest.approx(0.3, abs=0.01)
    assert result.accuracy("videomae-tiny:random")["block"] == 5


def test_state_knows_what_pixels_do_not(probed):
    _, result = probed
    assert result.accuracy("state")["value"] >= 0.8
    differences = {row["subject"]: row for row in result.rows if row["metric"] == "accuracy_difference"}
    assert len(differences) == 6
    found = differences["state − pixels"]
    expected = result.accuracy("state")["value"] - result.accuracy("pixels")["value"]
    assert found["value"] == pytest.approx(expected)
    assert found["low"] <= found["value"] <= found["high"]


def test_items_and_pictures(probed):
    _, result = probed
    rows = [json.loads(line) for line in (result.path / "items.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 12
    mean = np.mean([row["correct"] for row in rows if row["subject"] == "state"])
    assert mean == pytest.approx(result.accuracy("state")["value"])
    assert (result.path / "probe.png").read_bytes().startswith(b"\x89PNG")
    assert not (result.path / "depth.png").exists()


def test_random_weights_are_named_in_the_table(probed):
    _, result = probed
    assert probe(result).columns[1:3] == ["videomae-tiny:random\n(random init)", "cogvideox-tiny"]
    full, short = probe(result).rows, probe(result, errors=False).rows  # for many models on a narrow terminal
    assert [row[1].split()[0] for row in full] == [row[1] for row in short[:-1]]
    assert short[-1][1:] == [cell.split()[1] for cell in full[-1][1:]]


def test_the_same_run_again_is_read_and_another_refused(probed, session_cache, listener):
    settings, result = probed
    stamp = (result.path / "metrics.json").stat().st_mtime_ns
    heard = listener()
    again = probe_physion(settings, out=result.path, cache_dir=session_cache, reporter=heard)
    assert any("nothing is computed again" in message for message in heard.said)
    assert json.dumps(again.rows) == json.dumps(json.loads((result.path / "metrics.json").read_text()))
    assert (result.path / "metrics.json").stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, match="pool was"):
        probe_physion(dataclasses.replace(settings, pool="mean"), out=result.path, cache_dir=session_cache)


def test_a_second_run_computes_no_feature(probed, first, session_cache, tmp_path, listener):
    settings, result = probed
    heard = listener()
    again = probe_physion(settings, out=tmp_path / "again", cache_dir=session_cache, reporter=heard)
    computing = {name for name in first.bars if name.startswith("Features of ")}
    assert len(computing) == 2
    assert not computing & heard.bars.keys()
    strip = [{k: v for k, v in row.items() if k != "data"} for row in again.rows]
    assert strip == [{k: v for k, v in row.items() if k != "data"} for row in result.rows]


def extractor(model, name, cache, **options):
    resolved = resolve(name)
    return FeatureExtractor(
        model, fingerprint=fingerprint(resolved), vae_fingerprint=fingerprint(resolved), cache=cache, **options
    )


def computed(extractor, views, tap):
    extractor.compute(views, [tap])
    return extractor.load(views, tap)


@pytest.mark.parametrize(("name", "frames"), [("videomae-tiny", range(1, 17)), ("cogvideox-tiny", range(17))])
def test_batch_size_and_order_change_nothing(simulated, tmp_path, name, frames):
    clips = read_dataset(simulated).clips[:5]
    model = load(name)
    taps = choose_taps(model, None, [0.3])
    views = views_of(clips, [list(frames)] * 5, {})
    one = computed(extractor(model, name, tmp_path / "a", batch_size=1), views, taps[0])
    many = computed(extractor(model, name, tmp_path / "b", batch_size=4), views[::-1], taps[0])[::-1]
    np.testing.assert_allclose(one, many, atol=2e-5)
    if name == "cogvideox-tiny":
        other = computed(extractor(model, name, tmp_path / "c", seed=1), views, taps[0])
        assert np.abs(one - other).max() > 1e-3


def test_a_changed_weight_is_computed_anew(simulated, tmp_path):
    model = load("videomae-tiny")
    model.model.save_pretrained(tmp_path / "copy")
    clips = read_dataset(simulated).clips[:3]
    views = views_of(clips, [list(range(1, 17))] * 3, {})
    tap = Tap(5)
    first = extractor(load(str(tmp_path / "copy")), str(tmp_path / "copy"), tmp_path / "cache")
    before = computed(first, views, tap)
    with torch.no_grad():
        model.model.encoder.layer[5].output.dense.bias.add_(1)
    model.model.save_pretrained(tmp_path / "copy")
    second = extractor(load(str(tmp_path / "copy")), str(tmp_path / "copy"), tmp_path / "cache")
    after = computed(second, views, tap)
    assert (first.num_computed, second.num_computed) == (3, 3)
    np.testing.assert_allclose(after - before, 1, atol=1e-4)


def test_pooling_keeps_what_it_says():
    features = torch.arange(2 * 5 * 8 * 6 * 3.0).reshape(2, 5, 8, 6, 3)
    assert torch.equal(pool_tokens(features, "mean"), features.mean(dim=(2, 3)))
    grid = pool_tokens(features, "grid")
    assert grid.shape == (2, 5 * 16, 3)
    cell = features[0, 0, :2, :2].reshape(-1, 3).mean(0)
    torch.testing.assert_close(grid[0, 0], cell)
    assert torch.equal(pool_tokens(features, "all"), features.reshape(2, 240, 3))
    small = features[:, :, :2, :3]
    assert torch.equal(pool_tokens(small, "grid"), small.reshape(2, 30, 3))
    kept = pool_tokens(features, "mean", 2)
    assert torch.equal(kept[:, -1], features[:, -1].mean(dim=(1, 2)))
    assert kept.shape == (2, 2, 3)


def test_nan_features_are_named(simulated):
    views = views_of(read_dataset(simulated).clips[:2], [[0], [0]], {})
    features = np.zeros((2, 3))
    features[1, 2] = np.nan
    with pytest.raises(DataError, match=f"(?s)net.*1 of 2.*{views[1].clip.name}"):
        check_finite(features, views, "net")


def test_several_taps_are_chosen_between_on_training_folds(simulated, session_cache, tmp_path):
    settings = ProbeSettings(models=("videomae-tiny",), data=str(simulated), layers="all", pool="mean")
    result = probe_physion(settings, out=tmp_path / "run", cache_dir=session_cache)
    rows = [
        r for r in result.rows if r["metric"] == "accuracy" and r["group"] == "all" and r["subject"] == "videomae-tiny"
    ]
    assert [row["block"] for row in rows] == list(range(6))
    assert [row["chosen"] for row in rows].count(True) == 1
    best = max(rows, key=lambda row: row["cv_balanced_accuracy"])
    assert best["chosen"]
    assert (result.path / "depth.png").exists()


def test_ocd_and_limit(simulated, session_cache, tmp_path):
    settings = ProbeSettings(
        models=("videomae-tiny",), data=str(simulated), task="ocd", limit=10, readout="per-scenario"
    )
    with pytest.raises(DataError, match="received"):
        probe_physion(settings, out=tmp_path / "a", cache_dir=session_cache)
    settings = dataclasses.replace(settings, limit=20, readout="pooled")
    result = probe_physion(settings, out=tmp_path / "b", cache_dir=session_cache)
    assert result.accuracy("state")["num_train"] == 20
    assert result.accuracy("state")["n"] == 12


def spoil(folder, clip, damage):
    path = folder / clip.path.relative_to(clip.path.parents[2])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_few_bad_videos_are_skipped_many_are_not(simulated, session_cache, tmp_path, damage, listener):
    folder = tmp_path / "data"
    shutil.copytree(simulated, folder)
    clips = read_dataset(simulated).clips
    spoil(folder, clips[0], damage)
    settings = ProbeSettings(models=("videomae-tiny",), data=str(folder), pool="mean")
    heard = listener()
    result = probe_physion(settings, out=tmp_path / "one", cache_dir=session_cache, reporter=heard)
    assert any(clips[0].name in message and "1 of 40" in message for message in heard.said)
    assert len(result.dropped["cannot be read"]) == 1
    assert len(result.dropped["twin of a clip that cannot be read"]) == 1
    assert result.accuracy("pixels")["num_train"] == 26
    for clip in clips[2:8:2]:
        spoil(folder, clip, damage)
    with pytest.raises(DataError, match=r"4 of 40 \w+ clips cannot be used") as caught:
        probe_physion(settings, out=tmp_path / "many", cache_dir=session_cache)
    assert "--max-bad" in caught.value.fix
    assert not (tmp_path / "many").exists()


def test_physion_v15_unfiltered_gives_rows_filtered_says_too_few(session_cache, tmp_path):
    settings = ProbeSettings(models=("videomae-tiny",), data=str(GOLDEN / "tiny_mp4"), unfiltered=True)
    result = probe_physion(settings, out=tmp_path / "a", cache_dir=session_cache)
    assert result.subjects == ["videomae-tiny", "pixels"]
    assert len({row["group"] for row in result.rows if row["metric"] == "accuracy"}) == 8
    published = {row["subject"]: row["value"] for row in result.rows if row["metric"] == "published_accuracy"}
    assert published["human"] == 0.798
    assert "human 79.8" in probe(result).caption
    with pytest.raises(DataError, match="received 2 positive and 6 negative"):
        probe_physion(dataclasses.replace(settings, unfiltered=False), out=tmp_path / "b", cache_dir=session_cache)


def test_v1_alone_says_too_few(session_cache, tmp_path):
    settings = ProbeSettings(models=("videomae-tiny",), data=str(GOLDEN / "v1_hdf5"), unfiltered=True)
    with pytest.raises(DataError, match="Too few"):
        probe_physion(settings, out=tmp_path / "b", cache_dir=session_cache)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": ("videomae-tyni",)}, "Did you mean 'videomae-tiny'"),
        ({"models": ("state",)}, "--model state"),
        ({"task": "ocq"}, "Unknown task"),
        ({"pool": "gird"}, "Did you mean 'grid'"),
        ({"readout": "offical"}, "Did you mean 'official'"),
        ({"layers": (6,)}, "videomae-tiny: .*6"),
        ({"sigmas": (1.5,), "models": ("cogvideox-tiny",)}, "σ = 1.5"),
        ({"data": "simulated:x"}, "simulated:x"),
        ({"data": "simulated:3"}, "simulated:3"),
        ({"data": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_bad_settings(simulated, session_cache, tmp_path, change, said):
    settings = ProbeSettings(**({"models": ("videomae-tiny",), "data": str(simulated)} | change))
    with pytest.raises((UsageError, DataError), match=said):
        probe_physion(settings, out=tmp_path / "a", cache_dir=session_cache)


def test_models_with_one_last_name_keep_their_paths():
    assert display_names(["a/net", "b/net", "videomae-tiny", "x/pixels"], taken=CONTROLS) == {
        "a/net": "a/net",
        "b/net": "b/net",
        "videomae-tiny": "videomae-tiny",
        "x/pixels": "x/pixels",
    }


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(simulated, session_cache, start_physcli, two_processes, tmp_path):
    settings = ProbeSettings(models=("videomae-tiny",), data=str(simulated), pool="mean")
    alone = probe_physion(settings, out=tmp_path / "one", cache_dir=session_cache)
    words = ["probe", "physion", "--model", "videomae-tiny", "--data", simulated, "--pool", "mean", "--json"]
    words += ["--out", tmp_path / "two", "--cache-dir", tmp_path / "cache"]
    for _ in range(2):  # computed by two, then read by two
        main, other = two_processes(lambda environment: start_physcli(*words, env=environment))
        assert (main.returncode, other.returncode) == (0, 0), main.stderr
        assert json.loads(main.stdout)["rows"] == json.loads((alone.path / "metrics.json").read_text())
        assert other.stdout == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [("label", 7), ("label", None), ("split", 3), ("pair", ["q"]), ("contact_frame", "x"), ("context", [-3, 14])],
)
def test_a_wrong_row_of_metadata_is_named(simulated, tmp_path, field, value):
    folder = tmp_path / "data"
    shutil.copytree(simulated, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[4][field] = value
    rows.append(rows[0])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = read_dataset(folder)
    assert len(dataset.clips) == 39
    assert f"line 5 of metadata.jsonl, {field}" in dataset.problems[0].message
    assert "a second time" in dataset.problems[1].message


def test_ocd_needs_clips_that_show_the_contact(tmp_path, session_cache):
    data = tmp_path / "short"
    simulate(SimulateSettings(num_train=20, num_test=4, scenarios=("roll",), num_frames=17), out=data, workers=1)
    settings = ProbeSettings(models=("videomae-tiny",), data=str(data), task="ocd")
    with pytest.raises(DataError, match="before its contact"):
        probe_physion(settings, out=tmp_path / "run", cache_dir=session_cache)
