"""What the tests of training share: a trainee of a few numbers, and a reporter that remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from physcli.models.cogvideox import CogVideoX, build_cogvideox
from physcli.models.encoders.videomae import build_videomae
from physcli.models.fingerprints import hash_module
from physcli.models.tiny import architecture
from physcli.progress import Bar, Reporter
from physcli.recipe import Train
from physcli.tasks.run_dir import RunDir
from physcli.tasks.training.checkpoints import find_checkpoint
from physcli.tasks.training.clips import rng_of
from physcli.tasks.training.compute import OnDemand
from physcli.tasks.training.loop import build_accelerator, train
from physcli.tasks.training.trainee import Trainee


class Heard(Reporter):
    """Remembers what was said; `at`: step → what to do then, as the bar advances."""

    def __init__(self, at=None):
        self.said: list[str] = []
        self.at = at or {}

    def note(self, message):
        self.said.append(message)

    warn = note

    def bar(self, description, total, unit="it"):
        outer = self

        class Counting(Bar):
            count = 0

            def advance(self, amount=1):
                self.count += amount
                if amount and self.count in outer.at:
                    outer.at.pop(self.count)()

            def __enter__(self):
                return self

            def __exit__(self, *error):
                return None

        return Counting()


class Toy(Trainee):
    """Three numbers to their sum by two layers; sample n is a function of n and the seed."""

    def __init__(self, seed: int = 0, poison: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
        self.seed, self.poison = seed, poison
        self.seen: list[int] = []
        self.validated: list[tuple[Path, bool, float]] = []

    def batch(self, samples, step: int) -> dict[str, Any]:
        self.seen += list(samples)
        x = torch.from_numpy(np.stack([rng_of(self.seed, "x", n).standard_normal(3) for n in samples])).float()
        if self.poison in samples:
            x[0] = torch.nan
        return {"x": x, "y": x.sum(1)}

    def forward(self, batch):
        error = (self.net(batch["x"])[:, 0] - batch["y"]) ** 2
        return error, {"root": error.sqrt()}

    def validate(self, folder: Path, *, final: bool) -> list[dict[str, Any]]:
        value = float(self(self.batch(range(10_000, 10_008), 0))[0].mean())
        self.validated.append((folder, final, value))
        return [{"metric": "error", "value": value, "stderr": None, "n": 8, "split": "held-out", "group": "all"}]

    def export(self, folder: Path) -> Path:
        (folder / "model").mkdir()
        torch.save(self.state_dict(), folder / "model" / "weights.pt")
        return folder / "model"

    def parts(self) -> dict[str, int]:
        return {"net": sum(p.numel() for p in self.parameters())}


@pytest.fixture
def toy():
    return Toy


@pytest.fixture
def heard():
    return Heard


@pytest.fixture
def run_toy(tmp_path):
    """Train a toy: `run_toy("name", steps=4, …)` → (trainee, what `train` gave), in tmp_path / name."""

    def go(name="run", *, toy=None, resume=None, reporter=None, overwrite=False, **settings: Any):
        toy = toy or Toy()
        settings = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "validate_every": 0, "ema": 0.9} | settings
        train_settings = Train.model_validate(settings)
        reporter = reporter or Heard()
        with RunDir(tmp_path / name, "finetune", {}, overwrite=overwrite) as run:
            accelerator = build_accelerator(train_settings, device="cpu", folder=run.path)
            start = find_checkpoint(resume, run.path, reporter) if resume else None
            done = train(toy, train_settings, run=run, accelerator=accelerator, seed=0, resume=start, reporter=reporter)
        return toy, done

    return go


@pytest.fixture
def small_generator():
    """`small_generator(num_layers=3, …)`: a random CogVideoX of 9 frames of 16×16 pixels, which are 3×2×2 tokens."""

    def make(**transformer):
        model = architecture("cogvideox-tiny")
        model["transformer"] |= {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4}
        model["transformer"] |= {"out_channels": 4, "time_embed_dim": 16, "text_embed_dim": 16, "sample_frames": 9}
        model["transformer"] |= {"sample_height": 4, "sample_width": 4} | transformer
        model["vae"] |= {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "latent_channels": 4}
        model["vae"] |= {"sample_height": 16, "sample_width": 16}
        model["text_encoder"] |= {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        generator = CogVideoX(build_cogvideox(model), name="cogvideox-tiny", random_init=True)
        generator.place("cpu")
        return generator

    return make


@pytest.fixture
def small_encoder():
    """`small_encoder(seed=0)`: a random VideoMAE of 8 frames of 32×32 pixels, which are 2×2×2 tokens."""

    def make(seed=0):
        model = architecture("videomae-tiny") | {"seed": seed}
        model["encoder"] |= {"image_size": 32, "patch_size": 16, "num_frames": 8, "hidden_size": 32}
        model["encoder"] |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model["preprocessor"] |= {"size": {"height": 32, "width": 32}}
        return build_videomae(model)

    return make


@pytest.fixture
def on_demand():
    """`on_demand(encoder)`: a model in memory where one that is loaded when needed is expected."""
    return lambda encoder: OnDemand(hash_module(encoder), lambda: encoder)
