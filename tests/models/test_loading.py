from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import CogVideoXPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import VideoMAEConfig, VideoMAEModel

from physcli.errors import ModelError, UsageError
from physcli.methods import METHODS
from physcli.models import BUILT_IN, GENERATORS, KNOWN_HUB, MOTION_PARTS, PIPELINES
from physcli.models.cogvideox import build_cogvideox
from physcli.models.device import pick_device, pick_dtype
from physcli.models.encoders import ENCODERS
from physcli.models.hub import explain, explain_hub_errors
from physcli.models.loading import load, load_encoder, load_generator
from physcli.models.names import fingerprint, resolve
from physcli.models.raters import TINY_RATER
from physcli.models.raters.mplug_owl_video import MODEL_TYPE
from physcli.models.tiny import architecture

MODELS = [name for name, known in BUILT_IN.items() if known.kind != "rater"]
GOLDEN = Path(__file__).parents[1] / "golden" / "encoders"
FRAMES = torch.rand(1, 9, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    model = architecture("cogvideox-tiny")
    model["transformer"] |= {"num_layers": 2, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("models") / "pipeline"
    build_cogvideox(model).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(pipeline_folder, tmp_path):
    shutil.copytree(pipeline_folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "encoder"
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    VideoMAEModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter_folder(pipeline_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "lora"
    transformer = CogVideoXPipeline.from_pretrained(pipeline_folder).transformer
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    CogVideoXPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(transformer))
    return folder


def denoise(generator):
    latents = torch.randn(1, 3, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return generator.denoise(
            latents, generator.noise.of_time(torch.tensor([500])), generator.encode_prompts([""])
        ).output


def write_run(folder: Path, **record) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"status": "finished", "settings": {}} | record))
    return folder


# -- tables ------------------------------------------------------------------------------------------------------


def test_tables_agree():
    families = {"generator": GENERATORS, "encoder": ENCODERS, "rater": [MODEL_TYPE]}
    families |= {"motion field": METHODS, "motion projector": METHODS}
    for name, known in (BUILT_IN | MOTION_PARTS | KNOWN_HUB).items():
        assert known.family in families[known.kind], name
        assert known.description
    assert set(PIPELINES.values()) <= set(GENERATORS)
    for location in (GENERATORS | ENCODERS).values():
        module, _, name = location.partition(":")
        assert hasattr(importlib.import_module(module), name)


def test_a_rater_is_no_model_to_probe():
    for name in (TINY_RATER, f"{TINY_RATER}:random"):
        with pytest.raises(UsageError) as raised:
            resolve(name)
        assert str(raised.value.received) == f"{name} is a rater: it watches videos and answers questions."
        assert f"--rater {name}" in str(raised.value.fix)


@pytest.mark.parametrize(
    ("name", "said", "fix"),
    [
        (
            "motion-field-tiny",
            "is a motion field: it predicts how cogvideox-tiny's latents change.",
            "--motion-field motion-field-tiny",
        ),
        (
            "motion-projector-tiny",
            "is a motion projector: it maps videomae-tiny's tokens to a motion subspace.",
            "method.motion_projector=motion-projector-tiny",
        ),
    ],
)
def test_a_motion_field_or_projector_is_no_model(name, said, fix):
    for take in (resolve, load, load_generator, load_encoder):
        with pytest.raises(UsageError) as raised:
            take(name)
        assert raised.value.received == f"{name} {said}"
        assert raised.value.expected == "a generator or an encoder"
        assert fix in raised.value.fix
    with pytest.raises(UsageError, match=f"Unknown model: '{name}:random'. Did you mean '{name}'"):
        resolve(f"{name}:random")


@pytest.mark.parametrize("name", MODELS)
def test_built_ins_load_frozen_and_say_whether_they_are_random(name):
    resolved = resolve(name)
    model = load(name, device="cpu")
    assert (model.name, model.kind, model.random_init) == (name, BUILT_IN[name].kind, resolved.random_init)
    assert ("(random init)" in resolved.label) == resolved.random_init
    network = model.transformer if resolved.kind == "generator" else model
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


# -- folders, runs, adapters -------------------------------------------------------------------------------------


def test_folder(pipeline_folder):
    resolved = resolve(str(pipeline_folder))
    assert (resolved.kind, resolved.family, resolved.source) == ("generator", "cogvideox", "folder")
    assert resolved.label == str(pipeline_folder)
    generator = load(resolved, device="cpu", dtype="bf16", vae_tiling=True, vae_slicing=True)
    assert generator.dtype == generator.vae.dtype == torch.bfloat16
    assert generator.vae.use_tiling
    assert generator.vae.use_slicing
    latents = generator.codec.encode(FRAMES)
    assert latents.dtype == torch.float32
    level = generator.noise.of_time(torch.tensor([10]))
    out = generator.denoise(latents, level, generator.encode_prompts([""]), taps=[1])
    assert out.features[1].dtype == torch.bfloat16
    assert generator.codec.decode(latents).shape == FRAMES.shape


def test_encoder_folder(encoder_folder):
    resolved = resolve(str(encoder_folder))
    assert (resolved.kind, resolved.family) == ("encoder", "videomae")
    encoder = load(resolved, device="cpu")
    assert encoder.random_init is False
    assert encoder.encode(torch.rand(1, 4, 3, 32, 32)).shape == (1, 2, 4, 4, 16)
    for options in ({"cpu_offload": True}, {"vae_tiling": True}):
        with pytest.raises(UsageError, match="is an encoder"):
            load(resolved, device="cpu", **options)


def test_run_with_a_whole_model(copy, encoder_folder, tmp_path):
    run = write_run(tmp_path / "run")
    copy.rename(run / "model")
    resolved = resolve(str(run))
    assert (resolved.source, resolved.path, resolved.name) == ("run", run / "model", str(run))
    other = write_run(tmp_path / "other")
    shutil.copytree(encoder_folder, other / "model")
    assert resolve(str(other)).kind == "encoder"


def test_adapters(pipeline_folder, adapter_folder, tmp_path):
    run = write_run(tmp_path / "run", settings={"model": str(pipeline_folder)})
    shutil.copytree(adapter_folder, run / "adapter")
    by_run = resolve(str(run))
    assert (by_run.source, by_run.base, by_run.adapter) == ("run", str(pipeline_folder), run / "adapter")
    plain = denoise(load(str(pipeline_folder), device="cpu"))
    adapted = denoise(load(by_run, device="cpu"))
    assert (adapted - plain).abs().max() > 1e-4
    file = adapter_folder / "pytorch_lora_weights.safetensors"
    for adapter in (adapter_folder, run, file):
        generator = load(str(pipeline_folder), adapter=adapter, device="cpu")
        assert torch.equal(denoise(generator), adapted)
        assert not any(parameter.requires_grad for parameter in generator.transformer.parameters())
    base = resolve(str(pipeline_folder))
    assert fingerprint(by_run) != fingerprint(base)
    assert fingerprint(by_run, "vae") == fingerprint(base, "vae")
    with pytest.raises(UsageError, match="already has the adapter"):
        resolve(str(run), adapter=adapter_folder)
    with pytest.raises(UsageError, match="adapters are for generators"):
        resolve("videomae-tiny", adapter=adapter_folder)
    with pytest.raises(ModelError, match="holds no adapter"):
        resolve("cogvideox-tiny", adapter=tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        resolve("cogvideox-tiny", adapter=tmp_path / "none")
    with pytest.raises(ModelError, match=r"(?s)does not load onto cogvideox-tiny.*trained on the same architecture"):
        load("cogvideox-tiny", adapter=adapter_folder, device="cpu")


def test_runs_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"(?s)holds no model \(its status: interrupted\).*physcli finetune"):
        resolve(str(write_run(tmp_path / "a", status="interrupted")))
    run = write_run(tmp_path / "b")
    (run / "adapter").mkdir()
    with pytest.raises(ModelError, match="does not say which model its adapter belongs to"):
        resolve(str(run))


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cogvideo-tiny", UsageError, r"Unknown model: 'cogvideo-tiny'\. Did you mean 'cogvideox-tiny'"),
        ("videomae", UsageError, "Did you mean 'videomae-tiny'"),
        ("./none", ModelError, "There is no none"),
        ("/none/at/all", ModelError, "There is no /none/at/all"),
        ("weights.pth", ModelError, r"There is no weights\.pth"),
        ("here/none", ModelError, r"There is no here/none"),  # `here` is a folder of the working directory
    ],
)
def test_unknown_names(name, error, message, monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        resolve(name)


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(ModelError, match="is an empty folder"):
        resolve(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match=r"(?s)is not a model physcli knows; it holds notes\.txt.*model_index\.json"):
        resolve(str(tmp_path))
    with pytest.raises(ModelError, match="is not a model physcli knows"):
        resolve(str(tmp_path / "notes.txt"))
    (tmp_path / "model_index.json").write_text('{"_class_name": "AnimateDiffPipeline"}')
    with pytest.raises(ModelError, match=r"(?s)holds a AnimateDiffPipeline.*CogVideoXPipeline"):
        resolve(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        resolve(str(tmp_path))


def test_incomplete_pipelines(copy):
    shutil.rmtree(copy / "tokenizer")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="missing: the weights in vae/, tokenizer/"):
        resolve(str(copy))
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"] = [None, None]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"scheduler \(not in model_index\.json\)"):
        resolve(str(copy))


def test_missing_shards(copy):
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    shard = "diffusion_pytorch_model-00001-of-00002.safetensors"
    weight_map = {"a": shard, "b": shard.replace("00001-", "00002-")}
    weights.rename(weights.with_name(shard))
    weights.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    with pytest.raises(ModelError, match=r"missing: transformer/diffusion_pytorch_model-00002-of-00002"):
        resolve(str(copy))


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_damaged_weights(copy, encoder_folder, tmp_path, keep):
    encoder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    for file in (copy / "transformer" / "diffusion_pytorch_model.safetensors", encoder / "model.safetensors"):
        file.write_bytes(file.read_bytes()[:keep])
    for folder in (copy, encoder):
        with pytest.raises(ModelError, match="is damaged: it has"):
            resolve(str(folder))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_that_do_not_fit(copy, part):
    file = next((copy / part).glob("*.safetensors"))
    weights = {name: value.clone() for name, value in load_file(file).items()}  # not a map of the file about to change
    dropped = next(name for name in sorted(weights, reverse=True) if name.endswith(".weight"))
    kept = {name: value for name, value in weights.items() if name != dropped}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"(?s){part}: 1 missing weights, such as {dropped}"):
        load(str(copy), device="cpu")
    save_file(weights | {"stranger": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"(?s){part}: 1 unexpected weights, such as stranger"):
        load(str(copy), device="cpu")


# -- device and dtype --------------------------------------------------------------------------------------------


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"(?s)Unknown device: 'gpu'.*auto, cpu, cuda"):
        pick_device("gpu")
    with pytest.raises(UsageError, match=r"(?s)cuda:99 was asked for, but PyTorch .* sees \d+ CUDA devices"):
        pick_device("cuda:99")
    with pytest.raises(UsageError, match="the device is the CPU"):
        load("cogvideox-tiny", device="cpu", cpu_offload=True)


def test_dtypes():
    cpu = torch.device("cpu")
    assert pick_dtype("auto", cpu, 10**11) == torch.float32
    assert pick_dtype("auto", torch.device("cuda"), 10**6) == torch.float32
    assert pick_dtype("auto", torch.device("mps"), 10**9) == torch.bfloat16
    assert pick_dtype("fp16", cpu) == torch.float16
    assert pick_dtype(torch.bfloat16, cpu) == torch.bfloat16
    with pytest.raises(UsageError, match=r"Unknown dtype: 'float8'"):
        pick_dtype("float8", cpu)


# -- fingerprints ------------------------------------------------------------------------------------------------


def test_fingerprints(copy, pipeline_folder, encoder_folder):
    before = fingerprint(resolve(str(copy)))
    assert len(before) == 64
    assert before == fingerprint(resolve(str(pipeline_folder)))  # content, not place
    (copy / "README.md").write_text("a model card changes nothing")
    assert fingerprint(resolve(str(copy))) == before
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)  # the same size
    assert fingerprint(resolve(str(copy))) != before
    for part, same in (("vae", False), ("transformer", True)):
        hashes = {fingerprint(resolve(str(folder)), part) for folder in (copy, pipeline_folder)}
        assert (len(hashes) == 1) == same
    assert fingerprint(resolve("cogvideox-tiny"), "vae") != fingerprint(resolve("cogvideox-tiny"))
    others = {fingerprint(resolve(name)) for name in [*MODELS, str(encoder_folder)]}
    assert len(others) == len(MODELS) + 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cogvideox-tiny", "26814bbea407a53e4e65fbeb96c11f828d7a553cc27c0260fcc5b69f60410e17"),
        ("cogvideox-tiny:random", "626e2cfba0cbe18b5362935c91985f428ae83931c2497acc9fa39128fb9ed73d"),
        ("videomae-tiny", "ee9408e028f7044473c5dde98d4c076ec695a4c9a7c06aef7d1c9ed5423d7919"),
    ],
)
def test_built_ins_are_known_as_ever(name, expected):
    """What caches, runs and adapters of older versions know them by. Only other weights may change it."""
    assert fingerprint(resolve(name)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cogvideox-tiny", "d8f6db6b4e5839cbc1bf8c13c2c6ee0db7b4609826f1d2d756681aa72b5b917e"),
        ("cogvideox-tiny:random", "4b8063b305be7b85497f6fe779f6eeedbf518911c5d8d8b87bfed130b3d9b454"),
    ],
)
def test_vaes_of_built_ins_are_known_as_ever(name, expected):
    assert fingerprint(resolve(name), "vae") == expected


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".torch"])
def test_changed_weights_change_the_fingerprint_whatever_the_file_is_called(suffix, tmp_path):
    state = load_file(GOLDEN / "omnimae" / "weights.safetensors")
    hashes = set()
    for scale in (1.0, 2.0):
        folder = tmp_path / str(scale)
        folder.mkdir()
        shutil.copy(GOLDEN / "omnimae" / "config.json", folder)
        file = folder / f"vitb_pretrain{suffix}"
        changed = state | {"norm.weight": state["norm.weight"] * scale}
        save_file(changed, file) if suffix == ".safetensors" else torch.save(changed, file)
        for source in (folder, file):
            assert resolve(str(source)).family == "omnimae"
            hashes.add(fingerprint(resolve(str(source))))
    assert len(hashes) == 2  # the folder and the file hold the same


# -- the hub -----------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does, by the name of the repository."""

    ANSWERS = {  # noqa: RUF012
        "gated": (403, "GatedRepo"),
        "gated-anonymous": (401, "GatedRepo"),
        "missing": (404, "RepoNotFound"),
        "private": (401, "RepoNotFound"),
        "revision": (404, "RevisionNotFound"),
        "no-file": (404, "EntryNotFound"),
        "forbidden": (403, ""),
    }

    def do_HEAD(self):
        repository = self.path.split("/")[2]  # /org/<name>/resolve/main/model_index.json
        status, code = self.ANSWERS.get(repository, (404, ""))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


def test_what_the_hub_refuses_is_explained(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = f"""
import json
from huggingface_hub import hf_hub_download
from physcli.errors import ModelError
from physcli.models.hub import explain_hub_errors
messages = {{}}
for name in {list(Hub.ANSWERS)}:
    try:
        with explain_hub_errors("org/" + name):
            hf_hub_download("org/" + name, "model_index.json", revision="main")
    except ModelError as error:
        messages[name] = str(error)
print(json.dumps(messages))
"""
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    messages = json.loads(done.stdout)
    expected = {
        "gated": ["gated", "accept the licence at https://huggingface.co/org/gated", "hf auth login", "HF_TOKEN"],
        "gated-anonymous": ["gated", "hf auth login"],
        "missing": ["There is no model 'org/missing'", "physcli models ls"],
        "private": ["or it is private", "hf auth login"],
        "revision": ["no such revision", "commits"],
        "no-file": ["lacks a file"],
        "forbidden": ["refused access", "HF_TOKEN"],
    }
    for name, parts in expected.items():
        for part in parts:
            assert part in messages[name], (name, messages[name])


def test_offline_and_full_disk_are_explained():
    from huggingface_hub.errors import OfflineModeIsEnabled

    wrapped = OSError("Cannot load model")
    wrapped.__cause__ = OfflineModeIsEnabled("no")
    for error, parts in [
        (wrapped, ["HF_HUB_OFFLINE forbids", "unset HF_HUB_OFFLINE", "hf download org/name"]),
        (ConnectionError("refused"), ["could not be reached", "copy the folder here"]),
        (OSError(28, "No space left on device"), ["The disk is full", "HF_HOME"]),
        (OSError("no file named x\nsecond line"), ["org/name could not be loaded: no file named x\n"]),
    ]:
        for part in parts:
            assert part in str(explain("org/name", error))
    with pytest.raises(ModelError) as caught, explain_hub_errors("org/name"):
        raise wrapped
    assert caught.value.__cause__ is wrapped
    with pytest.raises(ModelError, match="downloading is switched off"):
        load("physcli-tests/none", local_files_only=True, device="cpu")


def test_a_model_larger_than_memory_is_refused_on_a_cpu(pipeline_folder, monkeypatch):
    """The size is measured; the machine's free memory is made small."""
    parts = ("transformer", "vae", "text_encoder")
    files = [file for part in parts for file in (pipeline_folder / part).glob("*.safetensors")]
    needed = sum(4 * value.numel() for file in files for value in load_file(file).values())

    def leave(share):
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=int(share * needed)))

    leave(1)
    load(str(pipeline_folder), device="cpu")
    leave(0.6)
    with pytest.raises(ModelError, match=r"takes \S+ GB in float32; \S+ GB are free") as error:
        load(str(pipeline_folder), device="cpu")
    assert "--dtype bfloat16" in error.value.fix
    load(str(pipeline_folder), device="cpu", dtype="bfloat16")
    leave(0.4)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ModelError, match="are free") as error:
            load(str(pipeline_folder), device="cpu", dtype=dtype)
        assert error.value.fix == "use a larger machine"
    load(str(pipeline_folder), device="cpu", dtype="bfloat16", parts=["vae"])
