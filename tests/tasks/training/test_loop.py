"""The loop with a trainee of a few numbers: resuming, accumulation, NaN, signals, full disks, names of devices."""

from __future__ import annotations

import contextlib
import json
import math
import random
import resource
import signal
import threading
import time

import pytest
import torch

from physcli.errors import DataError, MissingExtra, UsageError
from physcli.progress import Reporter
from physcli.recipe import Train
from physcli.tasks.training import loop
from physcli.tasks.training.checkpoints import find_checkpoint, read_manifest
from physcli.tasks.training.loop import TrainingError, _ahead, _whole, build_accelerator


def losses_of(done):
    return [row["loss"] for row in done.steps]


def log_of(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def same_weights(one, other, tolerance=0.0):
    theirs = other.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance)


def test_rows_and_files(run_toy, tmp_path):
    toy, done = run_toy(steps=5, optimizer={"lr": 0.02}, schedule={"name": "linear"}, accumulate=2)
    rows = log_of(tmp_path / "run")
    assert rows == json.loads(json.dumps(done.steps))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["samples"] for row in rows] == [8, 16, 24, 32, 40]
    assert [row["lr"] for row in rows[:3]] == pytest.approx([0.02, 0.016, 0.012])
    assert all(row.keys() >= {"loss", "root", "grad_norm", "seconds"} for row in rows)
    assert sorted(n for n in toy.seen if n < 10_000)[:40] == list(range(40))  # each once, and a few read ahead
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    assert done.resumed is None
    assert not toy.training
    assert [(final, folder.name) for folder, final, _ in toy.validated] == [(True, "step-000005")]
    assert not (tmp_path / "run" / "samples" / "step-000005").exists()  # nothing was drawn
    assert json.loads((tmp_path / "run" / "validation.json").read_text())["rows"] == done.rows


def test_first_step_is_adamw(run_toy, toy):
    """One step without clipping, against torch's own."""
    mine, _ = run_toy(toy=toy(), steps=1, ema=0.0, clip_norm=0, optimizer={"lr": 0.1, "weight_decay": 0.5})
    other = toy()
    matrices = [p for p in other.parameters() if p.ndim > 1]
    vectors = [p for p in other.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    other(other.batch(range(4), 0))[0].mean().backward()
    optimizer.step()
    same_weights(mine, other)


@pytest.mark.parametrize("clip_norm", [0, 0.01, 1e6])
def test_clipping(run_toy, toy, clip_norm):
    # AdamW does not feel the size of a gradient, but for its eps.
    settings = {"lr": 0.1, "eps": 1.0, "weight_decay": 0.0}
    mine, done = run_toy(toy=toy(), steps=1, clip_norm=clip_norm, optimizer=settings, ema=0.0)
    other = toy()
    optimizer = torch.optim.AdamW(other.parameters(), **settings)
    other(other.batch(range(4), 0))[0].mean().backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in other.parameters()))
    assert norm > 0.1
    assert done.steps[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)  # as it was before clipping
    if clip_norm == 0.01:
        for p in other.parameters():
            p.grad *= clip_norm / norm
    optimizer.step()
    same_weights(mine, other, 1e-6)


def test_final_weights_are_the_average(run_toy, toy):
    raw, _ = run_toy("raw", steps=3, ema=0.0)
    averaged, _ = run_toy("averaged", steps=3, ema=0.9)
    with pytest.raises(AssertionError):
        same_weights(raw, averaged)
    # The raw weights of every step, by runs of 1, 2 and 3 steps at a constant rate.
    start = toy().state_dict()
    steps = [run_toy(f"to-{n}", steps=n, ema=0.0, schedule={"name": "constant"})[0].state_dict() for n in (1, 2, 3)]
    averaged, _ = run_toy("constant", steps=3, ema=0.9, schedule={"name": "constant"})
    for name, value in averaged.state_dict().items():
        expected = start[name]
        for n, step in enumerate(steps, start=1):
            decay = min(0.9, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * step[name]
        torch.testing.assert_close(value, expected)


def test_validation_sees_the_average_and_leaves_no_trace(run_toy):
    often, _ = run_toy("often", validate_every=1)
    never, _ = run_toy("never", validate_every=0)
    same_weights(often, never)
    assert [final for _, final, _ in often.validated] == [False] * 5 + [True]
    assert often.validated[-1][2] == never.validated[-1][2]
    with torch.no_grad():
        value = float(often(often.batch(range(10_000, 10_008), 0))[0].mean())
    assert value == pytest.approx(never.validated[-1][2])


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_accumulation_is_a_larger_batch(run_toy, accumulate):
    whole, one = run_toy("whole", batch_size=12, accumulate=1)
    parts, many = run_toy("parts", batch_size=12 // accumulate, accumulate=accumulate)
    assert losses_of(many) == pytest.approx(losses_of(one), abs=1e-6)
    assert [row["samples"] for row in many.steps] == [row["samples"] for row in one.steps]
    same_weights(whole, parts, 1e-6)


class Stop(Exception):
    pass


def fail(*arguments, **options):
    raise Stop


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ends_at", [1, 2, 3, 5])
def test_a_broken_run_goes_on_as_if_unbroken(run_toy, tmp_path, heard, ends_at, accumulate):
    settings = {"accumulate": accumulate, "optimizer": {"lr": 0.03}}
    whole, unbroken = run_toy("whole", **settings)
    with pytest.raises(Stop):
        run_toy("broken", reporter=heard({ends_at: fail}), **settings)
    with (tmp_path / "broken" / "steps.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')  # half a line
    checkpoint = (ends_at - 1) // 2 * 2
    if checkpoint:
        reporter = heard()
        resumed, done = run_toy("broken", resume="latest", reporter=reporter, **settings)
        assert done.resumed == checkpoint
        assert f"Resumed at step {checkpoint}" in reporter.said[0]
    else:  # nothing to resume: begun again
        resumed, done = run_toy("broken", **settings)
    assert losses_of(done) == losses_of(unbroken)
    assert [row["step"] for row in log_of(tmp_path / "broken")] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in log_of(tmp_path / "broken")] == losses_of(unbroken)
    same_weights(whole, resumed)
    assert done.rows == unbroken.rows


def test_dropout_is_resumed(run_toy, toy, heard):
    class Dropping(toy):
        def forward(self, batch):
            kept = torch.nn.functional.dropout(batch["x"], 0.5, self.training)
            return super().forward(batch | {"x": kept})

    _, plain = run_toy("plain")
    whole, unbroken = run_toy("whole", toy=Dropping())
    assert losses_of(plain) != losses_of(unbroken)
    with pytest.raises(Stop):
        run_toy("broken", toy=Dropping(), reporter=heard({5: fail}))
    torch.rand(7)
    resumed, done = run_toy("broken", toy=Dropping(), resume="latest")
    assert losses_of(done) == losses_of(unbroken)
    same_weights(whole, resumed)


def test_an_end_that_was_cut_off_is_made_up_for(run_toy, toy):
    """Killed after the last checkpoint: in the last validation, or while the model is written."""
    whole, unbroken = run_toy("whole")
    stopped = toy()
    stopped.validate = lambda folder, final: fail()
    with pytest.raises(Stop):
        run_toy("broken", toy=stopped)
    resumed, done = run_toy("broken", resume="latest")
    assert done.resumed == 6
    assert done.rows == unbroken.rows
    assert done.rows
    assert losses_of(done) == losses_of(unbroken)
    same_weights(whole, resumed)


def test_a_validation_that_was_cut_off_is_made_up_for(run_toy, toy, heard):
    """Killed between a checkpoint and the validation of the same step, which no later one replaces."""
    whole, _ = run_toy("whole", validate_every=2)
    stopped = toy()
    validate = stopped.validate
    stopped.validate = lambda folder, final: (fail if "4" in folder.name else validate)(folder, final=final)
    with pytest.raises(Stop):
        run_toy("broken", toy=stopped, validate_every=2)
    resumed, done = run_toy("broken", resume="latest", validate_every=2)
    assert done.resumed == 4
    assert [folder.name for folder, _, _ in resumed.validated] == ["step-000004", "step-000006"]
    assert [value for *_, value in resumed.validated] == [value for *_, value in whole.validated[-2:]]
    with pytest.raises(Stop):  # here it had come to its end
        run_toy("later", reporter=heard({5: fail}), validate_every=2)
    resumed, _ = run_toy("later", resume="latest", validate_every=2)
    assert [folder.name for folder, _, _ in resumed.validated] == ["step-000006"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_checkpoints_of_equal_runs_are_equal_files(run_toy, tmp_path, heard, accumulate):
    run_toy("whole", accumulate=accumulate)
    random.random()
    with pytest.raises(Stop):
        run_toy("broken", reporter=heard({5: fail}), accumulate=accumulate)
    random.random()
    run_toy("broken", resume="latest", accumulate=accumulate)
    for name in ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "manifest.json"):
        one, other = ((tmp_path / run / "checkpoint-6" / name).read_bytes() for run in ("whole", "broken"))
        assert one == other, name


def test_resuming_elsewhere_takes_the_log_along(run_toy, tmp_path):
    _, unbroken = run_toy("one")
    _, done = run_toy("two", resume=str(tmp_path / "one" / "checkpoint-4"))
    assert losses_of(done) == losses_of(unbroken)
    assert [row["step"] for row in log_of(tmp_path / "two")] == [1, 2, 3, 4, 5, 6]
    assert len(log_of(tmp_path / "one")) == 6


def test_falling_back_and_coming_again(run_toy, tmp_path, heard):
    whole, unbroken = run_toy("whole")
    with pytest.raises(Stop):
        run_toy("broken", reporter=heard({5: fail}))
    folder = tmp_path / "broken" / "checkpoint-4"
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    reporter = heard()
    resumed, done = run_toy("broken", resume="latest", reporter=reporter, keep_checkpoints=5)
    assert done.resumed == 2
    assert "checkpoint-4 is not whole (model.safetensors was cut short or altered)" in reporter.said[0]
    assert losses_of(done) == losses_of(unbroken)
    same_weights(whole, resumed)
    assert find_checkpoint(str(folder), tmp_path, heard()) == folder  # written anew, whole


def test_falling_back_with_one_kept_checkpoint(run_toy, tmp_path, heard):
    with pytest.raises(Stop):
        run_toy("run", reporter=heard({5: fail}), keep_checkpoints=5)
    (tmp_path / "run" / "checkpoint-4" / "manifest.json").unlink()
    with pytest.raises(Stop):
        run_toy("run", resume="latest", reporter=heard({4: fail}), keep_checkpoints=1, checkpoint_every=3)
    assert find_checkpoint("latest", tmp_path / "run", heard()).name == "checkpoint-3"


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("poison", [13, 9])  # both in the second step of 8 samples
def test_nan_loss(run_toy, toy, tmp_path, heard, poison, accumulate):
    settings = {"batch_size": 8 // accumulate, "accumulate": accumulate, "checkpoint_every": 100}
    with pytest.raises(TrainingError, match="The loss became nan at step 2") as error:
        run_toy(toy=toy(poison=poison), **settings)
    assert "checkpoint-1 holds the weights before it" in error.value.fix
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "The loss became nan at step 2" in record["error"]
    assert [row["step"] for row in log_of(tmp_path / "run")] == [1]
    # It is the state after step 1, and one that training goes on from: also where the NaN was in the middle of a step.
    healthy, unbroken = run_toy("healthy", **settings)
    resumed, done = run_toy(resume="latest", **settings)
    assert done.resumed == 1
    assert losses_of(done) == losses_of(unbroken)
    same_weights(healthy, resumed)


def test_nan_gradient_alone(run_toy, toy, tmp_path):
    class Steep(toy):
        def forward(self, batch):
            errors, logs = super().forward(batch)
            # √(loss − loss) is 0 with an infinite slope, times 0: a finite loss with a NaN gradient.
            return errors + (0 * torch.sqrt(errors - errors.detach()) if self.turn() else 0), logs

        turns = 0

        def turn(self):
            self.turns += self.training
            return self.turns == 3

    with pytest.raises(TrainingError, match="The gradient norm became nan at step 3"):
        run_toy(toy=Steep(), checkpoint_every=100)
    weights = loop.read_manifest(tmp_path / "run" / "checkpoint-2")
    assert weights["step"] == 2
    resumed, _ = run_toy(resume="latest", checkpoint_every=100)
    assert all(torch.isfinite(p).all() for p in resumed.parameters())


def test_infinite_rate_of_learning(run_toy, tmp_path, heard):
    """A huge rate: the loss overflows, the last finite weights are kept."""
    with pytest.raises(TrainingError, match=r"became (inf|nan) at step \d"):
        run_toy(optimizer={"lr": 1e30}, schedule={"name": "constant"}, checkpoint_every=100, steps=20)
    checkpoint = find_checkpoint("latest", tmp_path / "run", heard())
    from safetensors.torch import load_file

    assert all(torch.isfinite(value).all() for value in load_file(checkpoint / "model.safetensors").values())


def test_poisoned_weights_are_not_kept(run_toy, toy, tmp_path):
    sick = toy()
    with torch.no_grad():
        sick.net[0].weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="at step 1") as error:
        run_toy(toy=sick)
    assert "nothing was saved" in error.value.fix
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_a_checkpoint(run_toy, tmp_path, heard, number):
    whole, unbroken = run_toy("whole", checkpoint_every=100)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    reporter = heard({3: lambda: signal.raise_signal(number)})
    with pytest.raises(KeyboardInterrupt):
        run_toy("run", reporter=reporter, checkpoint_every=100)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert read_manifest(tmp_path / "run" / "checkpoint-3")["samples"] == 12
    assert "checkpoint-3 is written; --resume latest" in reporter.said[-1]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    resumed, done = run_toy("run", resume="latest", checkpoint_every=100)
    assert losses_of(done) == losses_of(unbroken)
    same_weights(whole, resumed)


def test_a_second_signal_does_not_wait(run_toy, tmp_path, heard):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_toy(reporter=heard({3: twice}), checkpoint_every=100)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_an_ignored_signal_stays_ignored(run_toy, heard):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        _, done = run_toy(reporter=heard({3: lambda: signal.raise_signal(signal.SIGINT)}))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(done.steps) == 6


def test_trains_in_a_thread(run_toy):
    """Where no handler of signals can be set."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run_toy()[1]))
    thread.start()
    thread.join()
    assert len(found[0].steps) == 6


def test_a_log_that_cannot_be_written(run_toy, tmp_path, heard):
    def fill():
        (tmp_path / "run" / "steps.jsonl").unlink()
        (tmp_path / "run" / "steps.jsonl").symlink_to("/dev/full")  # the system's own full disk

    with pytest.raises(DataError, match=r"steps\.jsonl could not be written to .*No space left on device") as error:
        run_toy(reporter=heard({3: fill}))
    assert "checkpoint-2 is whole" in error.value.fix
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "No space left" in record["error"]


def test_a_checkpoint_that_cannot_be_written(run_toy, tmp_path, heard):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    reporter = heard({3: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))})
    try:
        with pytest.raises(DataError, match="checkpoint-4 could not be written") as error:
            run_toy("run", reporter=reporter)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "checkpoint-2 is whole" in error.value.fix
    assert not list((tmp_path / "run").glob(".*"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    whole, unbroken = run_toy("whole")
    resumed, done = run_toy("run", resume="latest")  # space was freed
    assert losses_of(done) == losses_of(unbroken)
    same_weights(whole, resumed)


def test_problems_outlive_a_restart(run_toy, toy, heard):
    class Picky(toy):
        def problems(self):
            return [f"clip {n}: broken" for n in sorted(set(self.seen)) if n in (1, 18)]

    with pytest.raises(Stop):
        run_toy(toy=Picky(), reporter=heard({3: fail}))
    _, done = run_toy(toy=Picky(), resume="latest")
    assert done.problems == ["clip 1: broken", "clip 18: broken"]


def test_bfloat16_and_back_in_one_process(run_toy):
    first, plain = run_toy("plain")
    _, half = run_toy("half", mixed_precision="bf16")
    assert losses_of(half) != losses_of(plain)
    assert losses_of(half) == pytest.approx(losses_of(plain), rel=0.05)
    again, once_more = run_toy("again")
    assert losses_of(once_more) == losses_of(plain)
    same_weights(first, again)


@pytest.mark.parametrize(("has_bfloat16", "chosen"), [(True, "bf16"), (False, "no")])
def test_auto_is_bfloat16_where_the_device_computes_in_it(monkeypatch, tmp_path, has_bfloat16, chosen):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    accelerator = build_accelerator(Train(steps=1, mixed_precision="auto"), device="cpu", folder=tmp_path)
    assert accelerator.mixed_precision == chosen


@pytest.mark.parametrize(
    ("settings", "device", "said"),
    [
        ({"mixed_precision": "fp16"}, "cpu", "train.mixed_precision=fp16 on the CPU"),
        ({}, "abacus", "Unknown device: 'abacus'"),
        ({}, "cuda:99", "cuda:99 was asked for"),
    ],
)
def test_devices_that_are_not_there(tmp_path, settings, device, said):
    with pytest.raises(UsageError) as error:
        build_accelerator(Train(steps=1, **settings), device=device, folder=tmp_path)
    assert said in error.value.received


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("comet_ml", "comet-ml")])
def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch, name, package):
    monkeypatch.setattr(loop, "get_available_trackers", lambda: ["wandb"])
    with pytest.raises(MissingExtra, match=f"needs the package '{package}'") as error:
        build_accelerator(Train(steps=1, trackers=("wandb", name)), device="cpu", folder=tmp_path)
    assert error.value.fix == "pip install 'physcli[trackers]'"


def test_batches_come_in_order_whatever_the_timing():
    started = []

    def prepare(number):
        started.append(number)
        time.sleep(0.01 if number % 2 else 0.0)
        return {"number": number}

    with contextlib.closing(_ahead(prepare, 5)) as batches:
        assert [next(batches)["number"] for _ in range(9)] == list(range(5, 14))
    assert sorted(started) == list(range(5, 5 + len(started)))  # each once
    assert len(started) <= 9 + loop._BATCHES_AHEAD
    assert threading.active_count() < 10


def test_an_error_of_a_thread_is_the_runs():
    def prepare(number):
        if number == 2:
            raise DataError("clip 2 is broken")
        return {}

    batches = _ahead(prepare, 0)
    next(batches), next(batches)
    with pytest.raises(DataError, match="clip 2 is broken"):
        next(batches)


def test_half_a_line_ends_the_log():
    assert list(_whole(['{"step": 1}', '{"step": 2}', '{"st'])) == ['{"step": 1}', '{"step": 2}']
    assert list(_whole(['{"step": 1}', "", '{"step": 3}'])) == ['{"step": 1}']


def test_silent_without_a_reporter(toy, tmp_path):
    from physcli.tasks.run_dir import RunDir

    settings = Train(steps=1, batch_size=1)
    with RunDir(tmp_path / "run", "finetune", {}, reporter=Reporter()) as run:
        accelerator = build_accelerator(settings, device="cpu", folder=run.path)
        done = loop.train(toy(), settings, run=run, accelerator=accelerator, seed=0)
    assert len(done.steps) == 1
