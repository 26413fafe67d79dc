"""Models with random weights that take milliseconds a step, as folders."""

from __future__ import annotations

import pytest

from physcli.models.cogvideox import CogVideoX, build_cogvideox
from physcli.models.device import quiet_libraries
from physcli.models.encoders.preprocessing import write_preprocessing
from physcli.models.encoders.videomae import build_videomae
from physcli.models.tiny import architecture
from physcli.tasks import finetune
from physcli.tasks.training import generator, scoring
from physcli.tasks.training.request import FinetuneRequest


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing them takes longer than all else in a run of such models."""
    monkeypatch.setattr(generator, "contact_sheet", lambda path, **options: path.touch())
    monkeypatch.setattr(finetune, "loss_curve", lambda *arguments, **options: None)
    monkeypatch.setattr(scoring, "contact_sheet", lambda path, **options: path.touch())
    monkeypatch.setattr(scoring, "score_curves", lambda *arguments, **options: None)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A whole pipeline folder with random weights: two blocks of 32, clips of 16×16 pixels, 5×2×2 tokens."""
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4}
    model["transformer"] |= {"out_channels": 4, "time_embed_dim": 16, "text_embed_dim": 16}
    model["transformer"] |= {"sample_height": 4, "sample_width": 4}
    model["vae"] |= {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "latent_channels": 4}
    model["vae"] |= {"sample_height": 16, "sample_width": 16}
    model["text_encoder"] |= {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    folder = tmp_path_factory.mktemp("models") / "base"
    with quiet_libraries():
        CogVideoX(build_cogvideox(model), name="base").save(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    """`encoder_folder("name", seed)`: a VideoMAE with random weights, 16 frames of 16×16 pixels, 4×2×2 tokens of 24."""

    def make(name, seed):
        model = architecture("videomae-tiny") | {"seed": seed}
        model["encoder"] |= {"image_size": 16, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        model["encoder"] |= {"intermediate_size": 32}
        model["preprocessor"]["size"] = {"height": 16, "width": 16}
        folder = tmp_path_factory.mktemp("encoders") / name
        encoder = build_videomae(model)
        with quiet_libraries():
            encoder.model.save_pretrained(folder)
        write_preprocessing(folder, encoder.preprocessing)
        return folder

    return make


@pytest.fixture
def run(arguments, tmp_path):
    """`run("out", "key=value", …)`: a run in tmp_path / out, of what the module's `arguments` says."""

    def go(out, *overrides, resume=None, reporter=None, **options):
        request = FinetuneRequest(**arguments(*overrides, **options), out=tmp_path / out)
        return finetune.finetune(request, resume=resume, reporter=reporter)

    return go


_RANK = """
from pathlib import PosixPath
from physcli.tasks import finetune
from physcli.tasks.training import scoring
finetune.loss_curve = scoring.score_curves = scoring.contact_sheet = lambda *arguments, **options: None
finetune.finetune(finetune.FinetuneRequest(**{arguments!r}))
"""


@pytest.fixture
def in_two_processes(start, two_processes):
    """`in_two_processes(arguments)`: a run of two ranks, both of which end well."""

    def go(arguments):
        ranks = two_processes(lambda environment: start(_RANK.format(arguments=arguments), env=environment))
        assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr

    return go
