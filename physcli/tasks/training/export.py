"""What goes out with trained weights: their dtype on disk, and a card that says how they were made and what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from physcli import __version__
from physcli.files import new_file_mode, replacing, sort_metadata, write_text
from physcli.hashing import content_hash
from physcli.progress import counted
from physcli.recipe import dump_recipe
from physcli.tasks.sources import simulated_by

_USE = {
    "generator": """```python
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained(FOLDER)
video = pipe(
    PROMPT, num_frames={frames}, height={height}, width={width}, guidance_scale={guidance:g}, max_sequence_length={text}
).frames[0]
```

This model reads {text} text tokens, and plain diffusers pads to {padded} unless told otherwise: give
`max_sequence_length={text}`. physcli knows it by itself.""",
    "encoder": """```python
from transformers import VideoMAEModel

model = VideoMAEModel.from_pretrained(FOLDER)
```

Its tokens are those after the last block; there is no final norm.""",
    "rater": """```python
from physcli.models.raters.mplug_owl_video import load_rater

rater = load_rater(FOLDER)
```

The folder has the layout of the public mPLUG-Owl-Video checkpoints, and the same key names.""",
    "vae": """```python
from diffusers import {vae}

vae = {vae}.from_pretrained(FOLDER)
```""",
    "videojam": """`physcli sample --model FOLDER --guidance inner`. Plain diffusers loads this folder and does not
sample from it: the network denoises motion latents beside the clip's, which the VAE does not know.""",
    "adapter": """```python
pipe.load_lora_weights(FOLDER)  # alpha is in the file's metadata
```

or `physcli sample --model BASE --adapter FOLDER`.""",
    "motion-field": """```python
from physcli.methods.lamo import MotionField

field = MotionField.load(FOLDER)
```""",
    "motion-projector": """`method.motion_projector=FOLDER` in a recipe of MoAlign, or

```python
from physcli.methods.moalign import MotionProjector

projector = MotionProjector.load(FOLDER)
```""",
}
_PREDICTIONS = {
    "v": "v-prediction: mean squared error of v",
    "epsilon": "Noise prediction: mean squared error of ε",
    "velocity": "Flow matching: mean squared error of the velocity ε − x0",
}
_OBJECTIVES = {
    "generator": "{prediction} at {noise}, captions dropped for classifier-free guidance.",
    "nft": "DiffusionNFT (settings: the recipe below): error of x̂0 at {noise}, towards the model's own videos that the "
    "reward prefers and away from the others.{read}",
    "raft": "RAFT (settings: the recipe below): {prediction} at {noise}, on the model's own videos, of each prompt "
    "those that the reward prefers.{read}",
    "encoder": "Future prediction, without labels: the encoder sees the first frames of a window; from the tokens of "
    "its last time step one linear layer predicts how the colours of each token's place will have changed at later "
    "frames, places that move counting most.",
    "rater": "Cross-entropy of the first answer token to VideoPhy's and VideoPhy-2's questions about simulated clips, "
    "their impossible twins and frozen frames; right answers are known exactly (physcli/tasks/training/rater.py).",
    "vae": "Squared error of the reconstruction, error of neighbouring pixels' differences, and a small KL term.",
    "motion-field": "LaMo's: squared error of the predicted change from a latent frame to a later one, plus a share of "
    "one minus its cosine; half of the frames are shown with noise.",
    "motion-projector": "MoAlign's stage 1: L1 of the optical flow that a light decoder reads from the subspace.",
}


def cast_weights(folder: Path, dtype: str, *, frozen: Sequence[str] = ()) -> None:
    """Rewrite the float32 weights below `folder` in another dtype; configs stay, so loading gives float32 again.

    Args:
        folder: Of a model.
        dtype: float32, bfloat16 or float16.
        frozen: Folders in it that are left as they are.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        if path.relative_to(folder).parts[0] in frozen:
            continue
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = {
            name: value.to(getattr(torch, dtype)) if value.dtype == torch.float32 else value
            for name, value in load_file(path).items()
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
            sort_metadata(temporary)
            temporary.chmod(new_file_mode())


def _used_as(kind: str, folder: Path, recipe: Mapping[str, Any]) -> str:
    if folder.name == "adapter":
        return "adapter"
    return "videojam" if (recipe.get("method") or {}).get("name") == "videojam" else kind


def write_card(
    folder: Path,
    recipe: BaseModel,
    *,
    parts: dict[str, int],
    num_clips: int,
    seed: int,
    steps: int,
    seconds: float,
    hardware: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    facts: dict[str, Any],
) -> None:
    """Write `README.md`.

    Args:
        folder: Of the trained model.
        recipe: As it was run.
        parts: Parameters by part.
        num_clips: Trained on.
        seed: Of the run.
        steps: After which its weights are these.
        seconds: They took.
        hardware: Of the run record.
        rows: Metric rows of the last validation.
        facts: `Trainee.facts`; they fill the placeholders of the usage example.
    """
    content = recipe.model_dump()
    kind = content["trains"]
    hashes = {path.relative_to(folder).as_posix(): content_hash(path) for path in sorted(folder.rglob("*.safetensors"))}
    where = ", ".join(hardware["accelerators"]) or counted(hardware["threads"], "CPU thread")
    start = "random weights" if content["init"] == "random" else f"the weights of {content['model']}"
    if facts.get("random_init") and content["init"] != "random":
        start = f"the random weights of {content['model']}"
    prediction = facts.get("prediction", "v")
    learns_by = content.get("method", {}).get("name")
    own = learns_by in _OBJECTIVES  # it learns from videos of its own
    read = " Of the clips below only the prompts were read."
    if own and (weight := content["method"]["real_weight"]):
        read = f" Beside it {weight:g} times the denoising loss on the clips below whose prompts those are."
    objective = _OBJECTIVES[learns_by if own else kind].format(
        prediction=_PREDICTIONS[prediction], noise=_noise_in_words(content["objective"], prediction), read=read
    )
    planned = content["train"]["steps"]
    done = f"{steps:,} steps" if steps == planned else f"{steps:,} of {planned:,} steps"
    release = "".join(f" (MuJoCo {version})" for version in simulated_by(content["data"]["source"]).values())
    lines = [
        f"# {content['model']}" + (": the VAE" if kind == "vae" else ""),
        "",
        content["description"].strip() or "Trained with physcli.",
        "",
        "| part | parameters |",
        "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in parts.items()),
        "",
        "## Objective",
        "",
        objective + _method_in_words(content, prediction),
        "",
        "## Data and training",
        "",
        f"{num_clips:,} clips of `{content['data']['source']}`{release}, scenes of the stream "
        f"`{content['data']['purpose']}`, which no probe shares. Started from {start}; seed {seed}; "
        f"{done} in {seconds / 60:.0f} minutes on {where}; physcli {__version__}.",
        "",
        "## Measured on held-out scenes",
        "",
        "| metric | of | value | standard error | n |",
        "|---|---|---|---|---|",
        *(
            f"| {row['metric']} | {row['group']} | {row['value']:.4g} | "
            f"{'' if row['stderr'] is None else format(row['stderr'], '.2g')} | {row['n']} |"
            for row in rows
        ),
        "",
        "## Use",
        "",
        _USE[_used_as(kind, folder, content)].format(**facts),
        "",
        "## Recipe",
        "",
        "```yaml",
        dump_recipe(recipe).strip(),
        "```",
        "",
        "## Hashes (SHA-256)",
        "",
        *(f"- `{name}` `{value}`" for name, value in hashes.items()),
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))


def _noise_in_words(objective: dict[str, Any], prediction: str) -> str:
    """How noise levels were drawn."""
    kind = objective.get("noise", "timesteps")
    if kind == "logit-normal":
        drawn = (
            f"noise levels σ = sigmoid(n), n normal with mean {objective['noise_mean']:g} and standard deviation "
            f"{objective['noise_std']:g}"
        )
    else:
        is_timestep = kind == "timesteps" and prediction != "velocity"  # of a flow, all timesteps are all σ
        drawn = f"uniformly drawn {'timesteps' if is_timestep else 'noise levels'}"
    shift = objective.get("noise_shift", 1.0)
    return drawn if shift == 1 else f"{drawn}, shifted by {shift:g}"


# LaMo's sources know v-prediction alone.
_DRIFT_WEIGHTS = {"released": "1 − σ²", "abar": "(1 − σ)²", "snr": "(1 − σ)²/((1 − σ)² + σ²)"}


def _method_in_words(content: dict[str, Any], prediction: str) -> str:
    method = content.get("method", {"name": "sft"})
    if method["name"] == "sft" or method["name"] in _OBJECTIVES:
        return ""
    teacher = f" with the teacher {method['teacher']}" if "teacher" in method else ""
    words = f" Beside it {method['weight']:g} times the loss of {method['name']}{teacher} (settings: the recipe below)."
    if method["name"] == "lamo" and prediction == "velocity":
        words += (
            f" Its loss is weighted by {_DRIFT_WEIGHTS[method['noise_weight']]}, which is how physcli reads "
            f"noise_weight: {method['noise_weight']} in a flow model; it is not from the paper."
        )
    return words
