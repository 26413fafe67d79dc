from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from physcli.data.clips import SIMULATED_VERSION, check, read_dataset, scenarios_of
from physcli.data.video import write_video
from physcli.errors import DataError, MissingExtra

GOLDEN = Path(__file__).parents[1] / "golden" / "physion"
NAMES = {"collision": "collide", "towers": "support"}


def tiny_video(path: Path, num_frames: int = 6, size: int = 16) -> np.ndarray:
    frames = np.zeros((num_frames, size, size, 3), np.uint8)
    frames += np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 20 + 40
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, 20)
    return frames


def row(split: str, stem: str, **values: object) -> dict[str, object]:
    contact = values.get("contact_frame")
    return {
        "file_name": f"physion_mp4s/{split}/{stem}.mp4",
        "split": split,
        "prompt": "a red ball",
        "scenario": "drop",
        "pair": "p0",
        "label": int(contact is not None),
        "contact_frame": None,
        "context": [0, 17],
        "num_frames": 6,
        **values,
    }


def simulated(root: Path, rows: list[dict[str, object]]) -> Path:
    for entry in rows:
        tiny_video(root / str(entry["file_name"]))
    (root / "dataset.json").write_text(
        json.dumps({"format": "physcli-simulated", "version": SIMULATED_VERSION, "seed": 7})
    )
    (root / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return root


def labelled(root: Path, labels: dict[str, object], split: str = "train") -> Path:
    folder = root / "physion_mp4s" / split
    for stem in labels:
        tiny_video(folder / f"{stem}.mp4")
    (folder / "all_video_labels.json").write_text(json.dumps(labels))
    return folder


def hdf5_clip(path: Path, *, frames: range = range(4), image: str | None = "_img", label: bool = True) -> None:
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number in frames:
            group = file.create_group(f"frames/{number:04d}")
            if image:
                picture = np.full((8, 8, 3), (0, 0, 10 * number), np.uint8)  # BGR: red grows
                group[f"images/{image}"] = cv2.imencode(".png", picture)[1].ravel()
            if label:
                group["labels/target_contacting_zone"] = number == 2


@pytest.mark.parametrize("case", json.loads((GOLDEN / "scenario_cases.json").read_text()), ids=lambda c: c["stimulus"])
def test_scenarios_match_the_official_keywords(case: dict[str, object]) -> None:
    expected = case["train"]
    assert isinstance(expected, list)
    assert sorted(scenarios_of(str(case["stimulus"]))) == sorted(NAMES.get(word, word) for word in expected)


@pytest.mark.parametrize("start", ["tiny_mp4", "tiny_mp4/physion_mp4s"])
def test_v15_folder(start: str) -> None:
    dataset = read_dataset(GOLDEN / start)
    assert (dataset.kind, len(dataset.clips), dataset.problems) == ("physion-v1.5", 22, ())
    assert [clip.split for clip in dataset.clips] == ["train"] * 13 + ["test"] * 9
    videos = json.loads((GOLDEN / "tiny_mp4_expected.json").read_text())["videos"]
    for clip in dataset.clips:
        expected = videos[f"{clip.split}/{clip.name}"]
        assert clip.count_frames() == expected["frames"]
        assert (clip.label, clip.center_frame) == (expected["label"], expected["contact_frame_label"])
        assert clip.contact_frame == (clip.center_frame if clip.label else None)
    clip = dataset.clips[0]
    assert clip.scenario == "contain"
    # The strip at the bottom counts frames in binary, least significant bit left.
    strip = clip.read([0, 5, 17, 5])[:, -4, 4::8].mean(axis=-1) > 127
    assert (strip @ (1 << np.arange(8))).tolist() == [0, 5, 17, 5]


def test_folder_names_do_not_reach_the_scenario(tmp_path: Path) -> None:
    labelled(tmp_path / "dropbox" / "rollout", {"x_collision_0": {"label": 1, "contact_frame_label": 3}})
    assert read_dataset(tmp_path / "dropbox" / "rollout").clips[0].scenario == "collide"


def test_v1_hdf5_matches_the_official_loader() -> None:
    pytest.importorskip("h5py")
    dataset = read_dataset(GOLDEN / "v1_hdf5")
    assert (dataset.kind, len(dataset.clips), dataset.problems) == ("physion-v1", 2, ())
    expected = json.loads((GOLDEN / "v1_hdf5" / "expected.json").read_text())
    for clip in dataset.clips:
        golden = expected[clip.name]
        assert clip.split == "test"
        assert (clip.num_frames, clip.label) == (golden["num_frames"], int(golden["label"]))
        assert clip.center_frame == golden["contact_frame_label"]
        frames = clip.read([0, golden["num_frames"] - 1])
        means = frames.astype(np.float64).mean(axis=(1, 2))
        np.testing.assert_allclose(means[0], golden["first_frame_mean_rgb"], atol=1e-9)
        np.testing.assert_allclose(means[1], golden["last_frame_mean_rgb"], atol=1e-9)
    assert [clip.scenario for clip in dataset.clips] == ["dominoes", "support"]
    infos, problems = check(dataset)
    assert problems == []
    assert {(info.height, info.width) for info in infos.values()} == {(64, 64)}


def test_hdf5_names_splits_and_v15_images(tmp_path: Path) -> None:
    hdf5_clip(tmp_path / "PhysionTrain" / "pilot_dominoes_1mid" / "0003.hdf5", image="_img_cam0")
    hdf5_clip(tmp_path / "PhysionTest" / "a_drop_1.hdf5")
    train, test = read_dataset(tmp_path).clips
    assert (train.name, train.split, train.scenario) == ("pilot_dominoes_1mid_0003", "train", "dominoes")
    assert (test.split, test.label, test.contact_frame) == ("test", 1, 2)
    assert train.read([3, 0])[:, 0, 0].tolist() == [[30, 0, 0], [0, 0, 0]]
    with pytest.raises(DataError, match="has 4 frames, but frame 9"):
        test.read([9])


def test_bad_hdf5_files_are_named(tmp_path: Path) -> None:
    hdf5_clip(tmp_path / "ok_drop.hdf5")
    hdf5_clip(tmp_path / "gap_drop.hdf5", frames=range(0, 6, 2))
    hdf5_clip(tmp_path / "nolabel_drop.hdf5", label=False)
    hdf5_clip(tmp_path / "nokeyword.hdf5")
    (tmp_path / "cut_drop.hdf5").write_bytes((tmp_path / "ok_drop.hdf5").read_bytes()[:500])
    hdf5_clip(tmp_path / "blind_drop.hdf5", image=None)
    dataset = read_dataset(tmp_path)
    messages = {problem.path.stem: problem.message for problem in dataset.problems}
    assert "lacks 2 of 5 frames (0001, 0003)" in messages["gap_drop"]
    assert "frame 0000 has no labels/target_contacting_zone" in messages["nolabel_drop"]
    assert "no scenario keyword" in messages["nokeyword"]
    assert "cannot be opened as HDF5" in messages["cut_drop"]
    _, problems = check(dataset)
    assert "frame 0000: no image" in next(problem.message for problem in problems if problem.path.stem == "blind_drop")


def test_missing_h5py_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"needs the package 'h5py'") as caught:
        read_dataset(GOLDEN / "v1_hdf5")
    assert "pip install 'physcli[hdf5]'" in str(caught.value)


def test_simulated_folder(tmp_path: Path) -> None:
    rows = [
        row("train", "a_drop_0_pos", contact_frame=4, text="ignored"),
        row("train", "a_drop_0_neg"),
        row("test", "b_drop_0_pos", contact_frame=5),
    ]
    simulated(tmp_path, rows)
    (tmp_path / "arrays" / "train").mkdir(parents=True)
    np.savez(tmp_path / "arrays" / "train" / "a_drop_0_pos.npz", positions=np.zeros((6, 2, 3)))
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.problems, dataset.settings["seed"]) == ("simulated", (), 7)
    negative, positive, test = dataset.clips
    assert (positive.label, positive.contact_frame, positive.center_frame, positive.pair) == (1, 4, 4, "p0")
    # The negative borrows its twin's frame, not that of the test clip which happens to share the pair's name.
    assert (negative.label, negative.contact_frame, negative.center_frame) == (0, None, 4)
    assert positive.arrays is not None
    assert (negative.arrays, test.split, positive.prompt) == (None, "test", "a red ball")
    assert positive.record["context"] == [0, 17]
    assert positive.read().shape == (6, 16, 16, 3)
    assert read_dataset(tmp_path / "physion_mp4s").kind == "simulated"
    assert check(dataset)[1] == []


def test_simulated_problems_are_listed(tmp_path: Path) -> None:
    simulated(tmp_path, [row("train", "a_drop_0"), row("train", "b_drop_0", num_frames=9), row("train", "c_drop_0")])
    (tmp_path / "physion_mp4s" / "train" / "c_drop_0.mp4").unlink()
    tiny_video(tmp_path / "physion_mp4s" / "train" / "d_drop_0.mp4")
    dataset = read_dataset(tmp_path)
    assert {problem.path.stem: problem.message for problem in dataset.problems} == {
        "c_drop_0": "in metadata.jsonl, but the video is not there",
        "d_drop_0": "no row in metadata.jsonl",
    }
    assert "has 6 frames where 9 are recorded" in check(dataset)[1][-1].message


def test_v15_problems_are_listed(tmp_path: Path) -> None:
    folder = labelled(
        tmp_path,
        {
            "ok_drop": {"label": True, "contact_frame_label": 3},
            "bad_drop": {"label": 2, "contact_frame_label": 3},
            "worse_drop": {"label": 1, "contact_frame_label": "x"},
            "gone_drop": {"label": 1, "contact_frame_label": 3},
            "none_0": {"label": 1, "contact_frame_label": 3},
            "link_drop": {"label": 0, "contact_frame_label": 3},
        },
    )
    (folder / "gone_drop.mp4").unlink()
    tiny_video(folder / "new_drop.mp4")
    dataset = read_dataset(tmp_path)
    assert [clip.name for clip in dataset.clips] == ["ok_drop"]
    messages = {problem.path.stem: problem.message for problem in dataset.problems}
    assert "the video is not there" in messages["gone_drop"]
    assert "no label in all_video_labels.json" in messages["new_drop"]
    assert "expected a label of 0 or 1" in messages["bad_drop"]
    assert "expected a frame number" in messages["worse_drop"]
    assert "no scenario keyword" in messages["none_0"]
    assert "the keywords of drop and link" in messages["link_drop"]


def test_check_finds_broken_videos(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c, 'quoted'; d.mp4"):
        tiny_video(tmp_path / name)
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:200])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.mp4", "prompt": "x"}\n{"file_name": "z.mp4"}\n')
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, [clip.prompt for clip in dataset.clips]) == ("video", ["", "x", ""])
    infos, problems = check(dataset)
    assert sorted(path.name for path in infos) == ["b.mp4", "c, 'quoted'; d.mp4"]
    assert [problem.path.name for problem in problems] == ["z.mp4", "a.mp4"]


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no clip \(0 files\)"):
        read_dataset(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        read_dataset(tmp_path / "file")
    folder = labelled(tmp_path / "v", {"a_drop": {"label": 1, "contact_frame_label": 3}})
    (folder / "all_video_labels.json").write_text('{"a_drop":\n {"label": 1,}}')
    with pytest.raises(DataError, match=r"not valid JSON \(line 2"):
        read_dataset(tmp_path / "v")
    (folder / "all_video_labels.json").unlink()
    with pytest.raises(DataError, match=r"has 1 videos but no all_video_labels\.json"):
        read_dataset(tmp_path / "v")
    labelled(tmp_path / "w", {"a": {"label": 1, "contact_frame_label": 3}})
    with pytest.raises(DataError, match=r"has no usable clip; 1 problems, the first: .*no scenario keyword"):
        read_dataset(tmp_path / "w")
    simulated(tmp_path / "s", [row("train", "a_drop_0")])
    with (tmp_path / "s" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": \n')
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 3: not valid JSON"):
        read_dataset(tmp_path / "s")
    (tmp_path / "s" / "dataset.json").write_text('{"format": "physcli-simulated", "version": 1}')
    with pytest.raises(DataError, match="says version 1"):
        read_dataset(tmp_path / "s")


def test_a_simulated_set_by_its_videos_folder(simulated, monkeypatch):
    """Also from inside it, where the folder's name is "."."""
    for folder in (simulated, simulated / "physion_mp4s"):
        monkeypatch.chdir(folder)
        assert read_dataset(".").kind == "simulated"
