"""Which clip a sample is, whatever the timing, and what happens to clips that do not decode."""

from __future__ import annotations

import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from physcli.data.clips import Clip, read_dataset
from physcli.errors import DataError, FileChanged, UsageError
from physcli.recipe import Data, list_recipes, read_recipe
from physcli.tasks.features import to_tensor
from physcli.tasks.finetune import finetune
from physcli.tasks.precompute import precompute
from physcli.tasks.processes import Processes
from physcli.tasks.training.build import reads_captions
from physcli.tasks.training.clips import ClipReader, noise_of, read_clips, rng_of, sample_order
from physcli.tasks.training.plan import make_plan
from physcli.tasks.training.request import FinetuneRequest


@pytest.fixture(scope="module")
def clips(simulated):
    return [clip for clip in read_dataset(simulated).clips if clip.split == "train"][:8]


@pytest.fixture
def broken(clips, tmp_path):
    """The clips, some of them cut short: `broken(2, 5)`."""

    def break_some(*numbers):
        found = list(clips)
        for number in numbers:
            path = tmp_path / f"broken-{number}.mp4"
            path.write_bytes(clips[number].path.read_bytes()[:700])
            found[number] = Clip(name=path.stem, split="train", path=path, kind="video")
        return found

    return break_some


def test_every_epoch_is_another_permutation():
    epochs = [[sample_order(10 * epoch + i, 10, 3) for i in range(10)] for epoch in range(6)]  # more than the cache
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert [sample_order(i, 10, 3) for i in range(10)] == epochs[0]
    assert [sample_order(i, 10, 4) for i in range(10)] != epochs[0]


def test_frames_are_the_clips(clips):
    reader = ClipReader(clips, size=(32, 32), seed=0)
    clip, frames = reader.read(5)
    assert clip is clips[sample_order(5, 8, 0)]
    assert frames.shape == (49, 32, 32, 3)
    assert frames.dtype == np.uint8
    whole = clip.read()
    assert np.abs(frames.mean((1, 2)) - whole.mean((1, 2))).max() < 4
    assert reader.read(5)[1] is frames  # kept
    nothing = ClipReader(clips, size=(64, 64), seed=0, memory_gb=0)
    assert nothing.read(5)[1] is not nothing.read(5)[1]
    np.testing.assert_array_equal(nothing.read(5)[1], whole)


def test_memory_is_bounded(clips):
    one = 49 * 32 * 32 * 3
    reader = ClipReader(clips, size=(32, 32), seed=0, memory_gb=2.5 * one / 1e9)
    for number in range(8):
        reader.frames(number)
    assert len(reader._kept) == 2


def test_a_broken_clip_gives_way_to_the_next(broken, heard):
    reporter = heard()
    reader = ClipReader(broken(2), size=(16, 16), seed=0, max_bad=0.2, reporter=reporter)
    order = [sample_order(n, 8, 0) for n in range(24)]
    got = [reader.clips.index(reader.read(n)[0]) for n in range(16)]
    assert 2 in order[:16]
    assert got == [number if number != 2 else order[n + 1] for n, number in enumerate(order[:16])]
    assert len(reporter.said) == 1  # named once, though met twice
    assert "broken-2.mp4" in reporter.said[0]
    assert list(reader.bad) == [2]
    # A run that begins later, which has not met the clip yet, sees the same.
    late = ClipReader(reader.clips, size=(16, 16), seed=0, max_bad=0.2)
    assert [late.clips.index(late.read(n)[0]) for n in range(8, 16)] == got[8:]


def test_two_broken_ones_in_a_row(broken):
    order = [sample_order(n, 8, 0) for n in range(8)]
    reader = ClipReader(broken(order[3], order[4]), size=(16, 16), seed=0, max_bad=0.5)
    assert [reader.clips.index(reader.read(n)[0]) for n in (2, 3, 4, 5)] == [order[n] for n in (2, 5, 5, 5)]


def test_too_many_broken_ones_end_it(broken):
    reader = ClipReader(broken(0, 1, 2), size=(16, 16), seed=0, max_bad=0.25)
    with pytest.raises(DataError, match=r"3 of 8 clips cannot be used, such as .*broken-\d\.mp4") as error:
        [reader.read(n) for n in range(8)]
    assert "at most 25% (data.max_bad)" in error.value.expected
    all_broken = ClipReader(broken(*range(8)), size=(16, 16), seed=0, max_bad=1.0)
    with pytest.raises(DataError, match="No clip can be read"):
        all_broken.read(0)


@pytest.mark.parametrize("seed", range(3))
def test_threads_change_nothing(broken, heard, seed):
    """Many threads in any order, with delays, over sets that do not fit into memory."""
    found = broken(1, 6)
    alone = ClipReader(found, size=(16, 16), seed=0, max_bad=0.25)
    expected = [alone.read(n)[1].copy() for n in range(40)]
    reporter, shuffled = heard(), list(range(40))
    random.Random(seed).shuffle(shuffled)
    reader = ClipReader(
        found, size=(16, 16), seed=0, max_bad=0.25, memory_gb=3 * expected[0].nbytes / 1e9, reporter=reporter
    )

    def read(n):
        time.sleep(random.random() / 500)
        return n, reader.read(n)[1]

    with ThreadPoolExecutor(6) as pool:
        for n, frames in pool.map(read, shuffled):
            np.testing.assert_array_equal(frames, expected[n])
    assert len(reporter.said) == len(reader.bad) == 2
    assert len(reader._kept) <= 3


def test_randomness_is_of_its_arguments_alone():
    torch.manual_seed(1)
    noise = noise_of(3, "noise", 7, shape=(2, 3))
    torch.manual_seed(2)
    np.random.default_rng(0)
    torch.testing.assert_close(noise_of(3, "noise", 7, shape=(2, 3)), noise, rtol=0, atol=0)
    for other in ((4, "noise", 7), (3, "window", 7), (3, "noise", 8)):
        assert not torch.equal(noise_of(*other, shape=(2, 3)), noise)
    assert rng_of(1, "a", 23).random() == rng_of(1, "a", 23).random()
    assert rng_of(1, "a", 23).random() != rng_of(1, "a2", 3).random()
    many = torch.cat([noise_of(0, n, shape=(64,)) for n in range(64)])
    assert many.mean().abs() < 0.05
    assert (many.std() - 1).abs() < 0.05


def test_to_tensor():
    frames = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    tensor = to_tensor([frames, frames[::-1]])
    assert tensor.shape == (2, 2, 3, 4, 5)
    assert tensor.dtype == torch.float32
    assert tensor[0, 1, 2, 3, 4] == frames[1, 3, 4, 2] / np.float32(255)


def read(source, heard, tmp_path, **data):
    data = Data(source=str(source), **data)
    return read_clips(data, cache=tmp_path / "cache", processes=Processes(), reporter=heard)


def test_splits_of_a_dataset_are_kept(simulated, heard, tmp_path):
    training, held_out = read(simulated, heard(), tmp_path)
    assert (len(training), len(held_out)) == (28, 12)
    assert {clip.split for clip in training} == {"train"}
    assert {clip.split for clip in held_out} == {"test"}
    limited, same = read(simulated, heard(), tmp_path, limit=7)
    assert [clip.name for clip in limited] == [clip.name for clip in training[::4]]
    assert same == held_out


def test_a_plain_folder_holds_out_its_end(simulated, heard, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, path in enumerate(sorted((simulated / "physion_mp4s" / "train").glob("*.mp4"))[:25]):
        shutil.copy(path, folder / f"{number:02}.mp4")
    training, held_out = read(folder, heard(), tmp_path)
    assert [clip.name for clip in held_out] == ["24"]
    assert len(training) == 24
    for path in sorted(folder.glob("*.mp4"))[1:]:
        path.unlink()
    with pytest.raises(DataError, match="holds 1 usable clips"):
        read(folder, heard(), tmp_path)


def test_no_such_data(heard, tmp_path):
    with pytest.raises(UsageError, match="'simulated:many'"):
        read("simulated:many", heard(), tmp_path)
    with pytest.raises(DataError, match="is not there"):
        read(tmp_path / "none", heard(), tmp_path)


def plain(folder, names, captions=()):
    """Empty videos of these names; the first ones have these captions beside them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, text in zip(names, captions, strict=False):
        (folder / name).with_suffix(".txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("names", "limit", "said"),
    [
        ([f"{n}.mp4" for n in range(40)], None, "38 clips to train on, 2 held out (the last, as no split is named)."),
        (
            [f"train/{n}.mp4" for n in range(40)],
            None,
            "38 clips to train on, 2 held out (the last, as all are train clips).",
        ),
        (
            [f"{'validation' if n > 29 else 'train'}/{n}.mp4" for n in range(40)],
            20,
            "20 clips to train on (of 30; data.limit), 10 held out (by their splits).",
        ),
    ],
)
def test_what_is_trained_on_and_held_out_is_said(listener, tmp_path, names, limit, said):
    reporter = listener()
    read(plain(tmp_path / "set", names), reporter, tmp_path, limit=limit)
    assert reporter.notes == [said]


def test_clips_that_are_all_held_out_are_not_trained_on(listener, tmp_path):
    folder = plain(tmp_path / "set", [f"Validation/{n}.mp4" for n in range(3)])
    with pytest.raises(DataError, match="no clip to train on: all 3 are held out"):
        read(folder, listener(), tmp_path)
    assert len(read(folder / "Validation", listener(), tmp_path)[0]) == 2  # that very folder is meant


def test_clips_without_a_caption_are_counted_where_training_reads_them(listener, tmp_path):
    names = [f"train/{n:02}.mp4" for n in range(40)] + ["test/a.mp4", "test/b.mp4"]
    folder = plain(tmp_path / "set", names, ["a caption"] * 38)

    def go(captions=True, **data):
        reporter = listener()
        source = Data(source=str(folder), **data)
        read_clips(source, cache=tmp_path, processes=Processes(), reporter=reporter, captions=captions)
        return reporter.warnings

    held_out = "2 of 2 held-out clips have no caption: test/a.mp4, test/b.mp4."
    assert go() == ["2 of 40 training clips have no caption: train/38.mp4, train/39.mp4.", held_out]
    for number in range(3):
        (folder / f"train/{number:02}.txt").write_text("nan" if number else " ")
    with pytest.raises(DataError, match="5 of 40 training clips have no caption: train/00") as error:
        go()
    assert error.value.expected == "at most 5% (data.max_uncaptioned)"
    assert "data.max_uncaptioned=1" in error.value.fix
    assert go(max_uncaptioned=1.0)[0].startswith("5 of 40 training clips")
    assert go(captions=False) == []


def test_every_training_on_text_needs_captions(listener, tmp_path):
    """And those without text do not: before a model is read, and the same by a dry run and by `data precompute`."""
    folder = plain(tmp_path / "set", [f"{n}.mp4" for n in range(20)])
    given = {"data": str(folder), "out": tmp_path / "run", "device": "cpu", "cache_dir": tmp_path / "cache"}
    for name in ("sft", "videorepa", "lamo-field"):
        request = FinetuneRequest(name, **given)
        for command in (finetune, precompute):
            with pytest.raises(DataError, match="19 of 19 training clips have no caption"):
                command(request)
        with pytest.raises(DataError, match="19 of 19 training clips have no caption"):
            make_plan(
                request.recipe(),
                seed=0,
                device="cpu",
                cache=tmp_path / "cache",
                processes=Processes("cpu"),
                reporter=listener(),
            )
    assert not (tmp_path / "run").exists()
    reads = {name: reads_captions(read_recipe(name)) for name in list_recipes()}
    without = ("pretrain/vae-tiny", "pretrain/wan-vae-tiny", "pretrain/videomae-tiny", "moalign-motion")
    assert {name for name in reads if not reads[name]} == {name for name in reads if name.startswith(without)}
    assert not reads_captions(read_recipe("sft", ["objective.caption_dropout=1.0"]))


def test_no_clip_takes_the_place_of_one_that_vanishes(simulated, tmp_path):
    """A clip that cannot be decoded is left out; one that is gone has been counted and hashed as it was."""
    shutil.copytree(simulated / "physion_mp4s" / "test", tmp_path / "clips")
    clips = read_dataset(tmp_path / "clips").clips
    reader = ClipReader(clips, size=(16, 16), seed=0, max_bad=1.0)
    reader.read(0)
    clip = clips[reader.number(1)]
    clip.path.unlink()
    with pytest.raises(FileChanged, match="has vanished since the run began"):
        reader.read(1)
    assert reader.bad == {}
