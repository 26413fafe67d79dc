"""What is computed once of every window: only what is missing, from one decoding, and kept whatever happens."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from physcli.data.cache import TensorCache
from physcli.data.clips import Clip, read_dataset
from physcli.data.flow import dis_flow, flow_between
from physcli.data.video import resize, write_video
from physcli.errors import DataError, FileChanged, UsageError
from physcli.methods.moalign import MotionProjector
from physcli.methods.tsa import motion_saliency
from physcli.models.cogvideox import CogVideoX
from physcli.models.fingerprints import hash_module
from physcli.recipe import TeacherView
from physcli.tasks.features import to_tensor, views_of
from physcli.tasks.processes import Processes
from physcli.tasks.training import compute as module
from physcli.tasks.training.compute import Kept, OnDemand, Signal, Tally, Values, compute_signals
from physcli.tasks.training.signals import Prompts, flow_of, latents_of, look, saliency_of, teacher_of

VIEWS = {
    "whole": TeacherView(),
    "whole, sized": TeacherView(size=(32, 64)),
    "whole, from the first frame": TeacherView(drop_first=False),
    "groups": TeacherView(layout="groups"),
    "stills": TeacherView(layout="stills"),
    "crops": TeacherView(layout="crops"),
    "crops, sized": TeacherView(layout="crops", size=(32, 96)),
}
FRAMES = {True: 17, False: 16}  # the encoder takes multiples of four


@pytest.fixture(scope="module")
def clips(simulated):
    return read_dataset(simulated).clips[:6]


@pytest.fixture
def windows(clips):
    """Views of the first `count` clips, of nine frames each."""
    return lambda count=6, frames=range(9): views_of(clips[:count], [list(frames)] * count, {})


@pytest.fixture
def signal(tmp_path):
    """`signal("a")`: the mean of a window's pixels; `asked` remembers whose, call by call."""

    def make(name, fail_at=None, error=RuntimeError):
        def compute(views, frames):
            made.asked.append([view.clip.name for view in views])
            if len(made.asked) == fail_at:
                raise error("on purpose")
            return torch.tensor([[images.mean()] for images in frames])

        made = Signal(name, TensorCache(tmp_path / "cache", "features", {"name": name}), compute)
        object.__setattr__(made, "asked", [])
        return made

    return make


@pytest.fixture
def compute(heard, tmp_path):
    """`compute(views, signal, …)`: why clips could not be read; `compute.tallies` and `compute.said` of the last."""

    def go(views, *signals, processes=None, beside=0.0):
        asked, reporter = [(signal, views) for signal in signals], heard()
        problems, go.tallies = compute_signals(
            asked, root=tmp_path, processes=processes or Processes(), reporter=reporter, beside=beside
        )
        go.said = reporter.said
        return list(problems.values())

    return go


@pytest.fixture
def decoded(monkeypatch):
    """Names of the clips that are read, in order."""
    names, read = [], Clip.read
    monkeypatch.setattr(Clip, "read", lambda clip, *arguments: names.append(clip.name) or read(clip, *arguments))
    return names


def names_of(views):
    return [view.clip.name for view in views]


# -- computing what is missing -----------------------------------------------------------------------------------


def test_only_what_is_missing_from_one_decoding(windows, signal, compute, decoded, clips):
    a, b, views = signal("a"), signal("b"), windows()
    assert compute(views[:3], a) == []
    assert a.asked == [names_of(views[:3])]
    decoded.clear()
    assert compute([*views, *views[:2]], a, b) == []
    assert a.asked[1:] == [names_of(views[3:])]
    assert b.asked == [names_of(views)]
    assert decoded == names_of(views)  # each once, for both
    decoded.clear()
    assert compute(views, signal("a"), b) == []
    assert decoded == []
    stored = signal("b").cache.get(view.key for view in views)
    for view in views:
        assert stored[view.key].tolist() == [pytest.approx(view.clip.read(list(range(9))).mean())]


def test_other_frames_are_another_window(windows, signal, compute):
    a = signal("a")
    compute([*windows(1), *windows(1, range(0, 27, 3))], a)
    assert len(a.cache) == 2


def test_a_clip_is_decoded_once_for_all_its_windows(clips, signal, compute, decoded):
    chosen = [range(9), range(0, 27, 3), range(20, 11, -1)]
    views = views_of([clips[0]] * 3, chosen, {})
    a = signal("a")
    assert compute(views, a) == []
    assert decoded == [clips[0].name]
    stored = a.cache.get(view.key for view in views)
    for view in views:
        assert stored[view.key].tolist() == [pytest.approx(view.read().mean())]


def test_windows_of_a_clip_s_whole_part_stay(clips, signal, compute, tmp_path):
    """One that says it has more frames than there are."""
    path = tmp_path / "short.mp4"
    write_video(path, clips[0].read(range(12)), 20.0)
    short = Clip(name="short", split="train", path=path, kind="video", num_frames=49)
    views = views_of([short, short], [range(9), range(9, 18)], {})
    a = signal("a")
    (problem,) = compute(views, a)
    assert problem.startswith(f"{path}: ")
    assert [view.key in a.cache for view in views] == [True, False]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_finished_work_is_kept(windows, signal, compute, monkeypatch, error):
    monkeypatch.setattr(module, "COMPUTED_AT_ONCE", 2)
    a, b, views = signal("a"), signal("b", fail_at=2, error=error), windows()
    with pytest.raises(error, match="on purpose"):
        compute(views, a, b)
    a, b = signal("a"), signal("b")  # as a new run finds them
    assert (len(a.cache), len(b.cache)) == (4, 2)
    compute(views, a, b)
    assert a.asked == [names_of(views[4:])]
    assert b.asked == [names_of(views[2:4]), names_of(views[4:])]


def test_a_kill_loses_one_shard_only(windows, signal, compute, monkeypatch):
    monkeypatch.setattr(module, "COMPUTED_AT_ONCE", 1)
    monkeypatch.setattr(module, "BATCHES_A_SHARD", 2)
    a = signal("a")
    compute(windows(5), a)
    assert len(list(a.cache.folder.glob("*.safetensors"))) == 3


def test_an_unreadable_clip_is_named_and_the_others_stay(windows, clips, signal, compute, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(clips[0].path.read_bytes()[:700])
    broken = Clip(name="broken", split="train", path=path, kind="video", num_frames=49)
    views = [*windows(2), *views_of([broken, broken], [range(9), range(9, 18)], {})]
    a = signal("a")
    (problem,) = compute([views[2], views[0], views[3], views[1]], a)
    assert problem.startswith(f"{path}: ")
    assert "cannot be opened as a video" in problem
    assert [view.key in a.cache for view in views] == [True, True, False, False]


@pytest.mark.parametrize("how", ["vanishes", "is replaced"])
def test_a_clip_that_changes_before_it_is_decoded_is_not_kept_under_its_old_key(
    windows, clips, signal, compute, tmp_path, how
):
    path = tmp_path / "a.mp4"
    path.write_bytes(clips[0].path.read_bytes())
    views = [*windows(2), *views_of([dataclasses.replace(clips[0], path=path)], [range(9, 18)], {})]
    a = signal("a")
    path.unlink()
    if how == "is replaced":
        path.write_bytes(clips[1].path.read_bytes())
    with pytest.raises(FileChanged, match="has vanished" if how == "vanishes" else "has changed"):
        compute(views, a)
    assert views[2].key not in a.cache


def test_what_the_disk_cannot_hold_is_not_begun(windows, signal, compute, monkeypatch):
    monkeypatch.setattr(module, "COMPUTED_AT_ONCE", 2)
    a, b = signal("a"), signal("b")
    compute(windows(1), a)
    room = 5 * 8 + 6 * 8 + 100  # a number in float64 for each window, and one is there
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=room - 1))
    with pytest.raises(DataError, match=r"^188 B are to be kept \(a 40 B, b 48 B, text 100") as error:
        compute(windows(), a, b, beside=100)
    assert "data.limit" in error.value.fix
    assert (len(a.cache), len(b.cache)) == (2, 2)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    compute(windows(), a, b, beside=36)
    assert compute.said == ["To be computed and kept: a 32 B, b 32 B, text 36 B; 188 B are free."]
    assert (len(a.cache), len(b.cache)) == (6, 6)


def test_room_is_for_what_all_processes_write(windows, signal, compute, monkeypatch):
    """A process computes half of the windows, and the disk must hold them all; none is left waiting for another."""
    first, second = Processes(), Processes()
    for rank, processes in enumerate((first, second)):
        processes.rank, processes.count = rank, 2
    views = windows()
    for free in (6 * 8 - 1, 6 * 8):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if free < 6 * 8:
            with pytest.raises(DataError, match="a 48 B"):
                compute(views, signal("a"), processes=first)
            signal("a").cache.folder.joinpath("settings.json").unlink()
            for shard in signal("a").cache.folder.glob("*.safetensors"):
                shard.unlink()
        else:
            compute(views, signal("a"), processes=second)


def test_what_came_of_it(windows, signal, compute, clips, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video")
    broken = Clip(name="broken", split="train", path=path, kind="video", num_frames=49)
    a, views = signal("a"), [*windows(), *views_of([broken], [range(9)], {})]
    compute(views[:2], a)
    compute([*views, views[3]], a, Signal("b", None, None))
    assert compute.tallies == [Tally("a", wanted=7, kept=2, computed=4, num_bytes=6 * 8, folder=a.cache.folder)]


def test_clips_of_several_sizes(windows, signal, compute, tmp_path):
    path = tmp_path / "wide.mp4"
    write_video(path, np.zeros((9, 32, 48, 3), np.uint8), 20)
    wide = Clip(name="wide", split="train", path=path, kind="video")
    first, last = windows(2)
    a = signal("a")
    assert compute([first, *views_of([wide], [range(9)], {}), last], a) == []
    assert sorted(a.asked) == sorted([[first.clip.name, last.clip.name], ["wide"]])


def test_a_damaged_shard_is_computed_again(windows, signal, compute, monkeypatch):
    monkeypatch.setattr(module, "COMPUTED_AT_ONCE", 2)
    monkeypatch.setattr(module, "BATCHES_A_SHARD", 1)
    a, views = signal("a"), windows()
    compute(views, a)
    before = {key: float(value) for key, value in a.cache.get(view.key for view in views).items()}
    shard = a.cache._where[views[2].key]
    shard.write_bytes(shard.read_bytes()[:-1])
    a = signal("a")
    assert a.cache.broken == [shard.name]
    compute(views, a)
    assert f"Damaged cache file of a, computed again: {shard.name}" in compute.said
    assert a.asked == [names_of(views[2:4])]
    assert a.cache.get(view.key for view in views) == before  # numbers, for the old tensors are views of the file


def test_two_processes_share_the_work(windows, signal, compute):
    views, parts = windows(5), [(signal("a"), Processes()) for _ in range(2)]  # opened before either has begun
    for rank, (a, processes) in enumerate(parts):
        processes.rank, processes.count = rank, 2
        compute(views, a, processes=processes)
    assert [a.asked for a, _ in parts] == [[names_of(views[::2])], [names_of(views[1::2])]]
    assert all(view.key in a.cache for view in views)  # the last one sees the others'


# -- the signals -------------------------------------------------------------------------------------------------


def stored(signal, views, compute):
    """Values of views, all computed, in order."""
    assert compute(views, signal) == []
    found = signal.cache.get(view.key for view in views)
    return torch.stack([found[view.key] for view in views])


def pixels_of(views):
    return to_tensor([view.clip.read(view.frames) for view in views])


def test_latents_are_the_posterior(windows, compute, small_generator, tmp_path):
    generator, views = small_generator(), windows(3)
    posterior = stored(latents_of(generator, cache=tmp_path), views, compute)
    assert (posterior.shape, posterior.dtype) == ((3, 2, 3, 4, 4, 4), torch.float16)
    frames = to_tensor([resize(view.clip.read(view.frames), 16, 16) for view in views])
    assert torch.equal(posterior, generator.codec.encode_posterior(frames).half())
    torch.testing.assert_close(posterior[:, 0].float(), generator.codec.encode(frames), rtol=1e-3, atol=1e-4)
    assert (posterior[:, 1] > 0).all()


def test_teacher_sees_all_but_the_first_frame(windows, compute, small_encoder, on_demand, tmp_path):
    encoder, views = small_encoder(), windows(3)
    tokens = stored(teacher_of(on_demand(encoder), TeacherView(), cache=tmp_path), views, compute)
    assert (tokens.shape, tokens.dtype) == ((3, 2, 2, 2, 32), torch.float16)
    assert not tokens.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(tokens, encoder.encode(pixels_of(views)[:, 1:]).half(), rtol=0, atol=0)


def test_a_head_maps_the_teachers_tokens(windows, compute, small_encoder, on_demand, tmp_path):
    encoder, views = small_encoder(), windows(2)
    head = MotionProjector(in_dim=32, dim=4, hidden_dim=8)
    motion = stored(teacher_of(on_demand(encoder), TeacherView(), cache=tmp_path, head=head), views, compute)
    with torch.no_grad():
        expected = head(encoder.encode(pixels_of(views)[:, 1:])).half()
    assert torch.equal(motion, expected)


def by_hand(encoder, frames, name):
    """What `look` shall give, from `encode` of each piece alone."""
    if name.startswith("whole"):
        frames = frames if "first" in name else frames[:, 1:]
        return encoder.encode(frames, size=(32, 64) if "sized" in name else "native")
    frames = frames[:, 1:]
    if name == "groups":
        return torch.cat([encoder.encode(frames[:, :8]), encoder.encode(frames[:, 8:])], dim=1)
    if name == "stills":
        steps = [encoder.encode(frames[:, middle : middle + 1].repeat(1, 8, 1, 1, 1)) for middle in (2, 6, 10, 14)]
        return torch.stack([tokens.mean(dim=1) for tokens in steps], dim=1)
    if "sized" in name:  # the encoder is fed as its processor would: bicubic, with a filter
        small = [torch.nn.functional.interpolate(f, (32, 96), mode="bicubic", antialias=True) for f in frames]
        frames = torch.stack(small).clamp(0, 1)
    tokens = torch.empty(len(frames), 4, frames.shape[3] // 16, frames.shape[4] // 16, 32)
    for row in range(frames.shape[3] // 32):
        for column in range(frames.shape[4] // 32):
            crop = frames[..., 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            tokens[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = encoder.encode(crop)
    return tokens


@pytest.mark.parametrize("name", VIEWS)
def test_look(windows, small_encoder, name):
    encoder, view = small_encoder(), VIEWS[name]
    frames = pixels_of(windows(2, range(FRAMES[view.drop_first])))
    with torch.no_grad():
        tokens = look(encoder, frames, view)
        torch.testing.assert_close(tokens, by_hand(encoder, frames, name), rtol=0, atol=1e-6)
        assert (tokens[0] - tokens[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("view", "shape", "message"),
    [
        (VIEWS["groups"], (13, 64, 64), "window has 12 frames for videomae-tiny, which sees groups of 8"),
        (VIEWS["crops"], (9, 64, 80), "Frames of 64x80 for videomae-tiny, which sees crops of 32x32"),
        (VIEWS["crops"], (9, 16, 64), "Frames of 16x64 for videomae-tiny"),
        (TeacherView(layout="crops", size=(48, 64)), (9, 64, 64), "Frames of 48x64 for videomae-tiny"),
    ],
)
def test_look_refuses_what_does_not_divide(small_encoder, view, shape, message):
    with pytest.raises(UsageError, match=message) as error:
        look(small_encoder(), torch.zeros(1, shape[0], 3, *shape[1:]), view)
    assert "method.view" in error.value.fix


@pytest.mark.parametrize("ties", ["paper", "positive"])
@pytest.mark.parametrize("name", VIEWS)
def test_saliency_is_on_the_teachers_grid(windows, compute, small_encoder, on_demand, tmp_path, name, ties):
    encoder, view = small_encoder(), VIEWS[name]
    views = windows(2, range(0, 3 * FRAMES[view.drop_first], 3))
    mask = stored(saliency_of(on_demand(encoder), view, share=0.3, ties=ties, cache=tmp_path), views, compute)
    with torch.no_grad():
        assert mask.shape == look(encoder, pixels_of(views), view).shape[:4]
    size = view.size or ((64, 64) if view.layout == "crops" else (32, 32))
    frames = to_tensor([resize(v.clip.read(v.frames), *size) for v in views])[:, int(view.drop_first) :]
    expected = motion_saliency(frames, tubelet=(4, 16, 16), share=0.3, ties=ties)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask.bool(), expected)


@pytest.mark.parametrize("kind", ["exact", "dis"])
@pytest.mark.parametrize("name", VIEWS)
def test_flow_is_in_pixels_of_what_the_encoder_sees(windows, compute, small_encoder, on_demand, tmp_path, name, kind):
    encoder, view = small_encoder(), VIEWS[name]
    first = int(view.drop_first)
    (window,) = windows(1, range(0, 3 * FRAMES[view.drop_first], 3))
    (flow,) = stored(flow_of(on_demand(encoder), view, kind=kind, cache=tmp_path), [window], compute)
    height, width = view.size or ((64, 64) if view.layout == "crops" else (32, 32))
    assert (flow.shape, flow.dtype) == ((15, 2, height, width), torch.float16)
    if kind == "dis":
        expected = dis_flow(resize(window.clip.read(window.frames), height, width))[first:]
        np.testing.assert_array_equal(flow, expected.transpose(0, 3, 1, 2).astype(np.float16))
        return
    whole = flow_between(np.load(window.clip.arrays)["flow"], window.frames)[first:]
    scale = np.array([width, height]) / 64
    # The mean over the picture knows nothing of how it is resized but the scale, right and down.
    np.testing.assert_allclose(flow.float().mean((2, 3)), (whole * scale).mean((1, 2)), atol=5e-3)
    assert np.abs(flow).max() > 1


def test_exact_flow_of_a_clip_without(windows, compute, small_encoder, on_demand, tmp_path):
    (view,) = windows(1)
    bare = dataclasses.replace(view, clip=dataclasses.replace(view.clip, arrays=None))
    with pytest.raises(DataError, match=r"\.mp4 has no exact flow") as error:
        compute([bare], flow_of(on_demand(small_encoder()), TeacherView(), kind="exact", cache=tmp_path))
    assert "objective.flow=dis" in error.value.fix


# -- what belongs to a cache -------------------------------------------------------------------------------------


def altered(model, *, name):
    """The model, one number of one weight changed."""
    with torch.no_grad():
        dict(model.named_parameters())[name].flatten()[0] += 1e-3
    return model


def with_vae(generator, change):
    change(generator.vae)
    return generator


def test_a_changed_setting_is_another_folder(small_encoder, small_generator, on_demand, tmp_path):
    weight = "model.embeddings.patch_embeddings.projection.weight"

    def heads():
        torch.manual_seed(0)
        return MotionProjector(in_dim=32, dim=4, hidden_dim=8)

    def teacher(encoder=None, view=VIEWS["whole"], head=None):
        return teacher_of(on_demand(encoder or small_encoder()), view, cache=tmp_path, head=head)

    def saliency(encoder=None, view=VIEWS["whole"], share=0.2, ties="paper"):
        return saliency_of(on_demand(encoder or small_encoder()), view, share=share, ties=ties, cache=tmp_path)

    def flow(encoder=None, view=VIEWS["whole"], kind="dis"):
        return flow_of(on_demand(encoder or small_encoder()), view, kind=kind, cache=tmp_path)

    def latents(generator=None):
        return latents_of(generator or small_generator(), cache=tmp_path)

    made = [
        *[
            lambda signal=signal, view=view: signal(view=view)
            for signal in (teacher, saliency, flow)
            for view in VIEWS.values()
        ],
        lambda: teacher(small_encoder(seed=1)),
        lambda: teacher(altered(small_encoder(), name=weight)),
        lambda: teacher(head=heads()),
        lambda: teacher(head=altered(heads(), name="convs.0.weight")),
        lambda: saliency(share=0.3),
        lambda: saliency(ties="positive"),
        lambda: saliency(small_encoder(seed=1)),
        lambda: flow(kind="exact"),
        lambda: flow(small_encoder(seed=1)),
        latents,
        lambda: latents(with_vae(small_generator(), lambda vae: altered(vae, name="encoder.conv_in.conv.weight"))),
        lambda: latents(with_vae(small_generator(), lambda vae: vae.register_to_config(scaling_factor=1.0))),
        lambda: latents(small_generator(sample_width=8)),
    ]
    folders = [signal().cache.folder for signal in made]
    assert len(set(folders)) == len(made)
    assert [signal().cache.folder for signal in made] == folders


def test_a_model_elsewhere_is_the_same_model(small_generator, tmp_path):
    generators = [small_generator()]
    for name in ("here", "there"):
        generators[-1].save(tmp_path / name)
        generators.append(CogVideoX.from_pretrained(tmp_path / name))
    for part in ("vae", "text_encoder", "transformer"):
        assert len({hash_module(getattr(generator.pipeline, part)) for generator in generators}) == 1


@pytest.mark.parametrize("room", [0, 2.5, 100])
def test_kept_in_memory_or_not(windows, signal, compute, monkeypatch, room):
    a, views = signal("a"), windows()
    compute(views, a)
    keys = [view.key for view in views]
    expected = a.cache.get(keys)
    kept = Kept(a.cache, [*keys, *keys[:2]], room=room * kept_bytes(expected) / 1e9)
    monkeypatch.setattr(a.cache, "get", lambda wanted, get=a.cache.get: read.extend(wanted) or get(wanted))
    for asked in (keys, keys[::-1], [keys[1], keys[1]], keys[:2], keys[2:]):
        read = []
        assert [float(value) for value in kept.get(asked)] == [float(expected[key]) for key in asked]
        assert (read == []) == (room >= len(keys) or (room > 2 and set(asked) <= set(keys[:2])))


def test_what_is_not_kept_is_computed_when_it_is_read(windows, signal, compute, decoded):
    a, views = signal("a"), windows()
    compute(views, a)
    kept, fresh = Values(a, views, room=1), Values(Signal("a", None, a.compute), views, room=1)
    decoded.clear()
    a.asked.clear()
    assert torch.equal(fresh.one(), kept.one())
    asked = [views[4], views[1], views[4]]
    assert [float(value) for value in fresh.get(asked)] == [float(value) for value in kept.get(asked)]
    assert decoded == names_of([views[0], *asked])  # one by one, and none twice from memory
    assert a.asked == [[name] for name in decoded]


def test_a_model_is_loaded_when_it_is_needed():
    loaded = []
    model = OnDemand("hash", lambda: loaded.append(1) or object())
    assert loaded == []
    assert model.get() is model.get()
    model.release()
    model.get()
    assert len(loaded) == 2


def kept_bytes(values):
    return next(iter(values.values())).nbytes


# -- prompts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(small_generator, tmp_path, heard):
    """`prompts()`: over a fresh generator and the same cache; `asked` remembers what was embedded."""

    def make(generator=None, rank=0, count=1, cache=tmp_path):
        generator = generator or small_generator()
        processes = Processes()
        processes.rank, processes.count = rank, count
        made = Prompts(generator, cache=cache, room=1, processes=processes, reporter=heard())
        made.asked, encode = [], generator.encode_prompts
        generator.encode_prompts = lambda some: made.asked.extend(some) or encode(some)
        return made

    return make


SAID = ["a red ball rolls towards a yellow box", "a yellow box", "", "a Red ball rolls towards a yellow box"]


def test_embeddings_are_the_generators(prompts, small_generator):
    made, generator = prompts(), small_generator()
    made.embed(SAID)
    assert len(made.asked) == 3  # two are the same tokens
    for prompt in SAID:
        embedding = made.embedding(prompt)["text"]
        torch.testing.assert_close(embedding, generator.encode_prompts([prompt]).text[0], rtol=0, atol=1e-6)
        ids = made.tokens(prompt)
        assert ids.shape == (32,)
        with torch.no_grad():
            torch.testing.assert_close(generator.pipeline.text_encoder(ids[None])[0][0], embedding, rtol=0, atol=1e-6)
    assert (made.embedding(SAID[0])["text"] - made.embedding(SAID[1])["text"]).abs().max() > 1e-2


def test_embeddings_are_computed_once(prompts):
    first = prompts()
    first.embed(SAID[:2])
    first.embed(SAID)
    assert len(first.asked) == 3
    again = prompts()
    again.embed(SAID)
    assert again.asked == []
    assert all(torch.equal(again.embedding(prompt)["text"], first.embedding(prompt)["text"]) for prompt in SAID)


def test_embeddings_that_are_not_kept(prompts, tmp_path):
    kept, fresh = prompts(), prompts(cache=None)
    size = kept.bytes_to_keep(SAID)
    kept.embed(SAID)
    (shard,) = (tmp_path / "text").rglob("*.safetensors")
    assert size == 3 * 32 * 16 * 4 < shard.stat().st_size < 1.2 * size
    assert (kept.bytes_to_keep(SAID), fresh.bytes_to_keep(SAID), fresh.embed(SAID)) == (0, 0, [])
    for prompt in SAID:
        torch.testing.assert_close(fresh.embedding(prompt)["text"], kept.embedding(prompt)["text"], rtol=0, atol=1e-6)


def test_another_text_encoder_has_other_embeddings(prompts, small_generator):
    prompts().embed(SAID)
    generator = small_generator()
    altered(generator.pipeline.text_encoder, name="shared.weight")
    other = prompts(generator)
    other.embed(SAID)
    assert len(other.asked) == 3


def test_two_processes_share_the_prompts(prompts, tmp_path):
    main, other = prompts(rank=0, count=2), prompts(rank=1, count=2)
    other.processes.wait = lambda: main_embeds()  # the main process works while this one waits for it
    main.processes.wait = lambda: None

    def main_embeds():
        main.embed(SAID)

    other.embed(SAID)
    assert len(main.asked) + len(other.asked) == 3
    assert min(len(main.asked), len(other.asked)) == 1
    assert all(torch.equal(main.embedding(prompt)["text"], other.embedding(prompt)["text"]) for prompt in SAID)
