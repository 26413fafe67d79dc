"""What physcli does not use of the libraries below it, because it does something else than its name says."""

from __future__ import annotations

import ast
from pathlib import Path

import physcli

AVOIDED = {
    # diffusers
    "scale_noise": "a flow scheduler that has sampled adds no noise at all; `physcli.models.noise` noises",
    "preprocess_video": "takes bytes for the unit range, and resizes arrays by nearest pixel; codecs take [0, 1]",
    "export_to_video": "makes 48×48 of 40×40; `physcli.data.video.write_video` writes frames as they are",
    "EMAModel": "warms up where it was told not to; `physcli.tasks.training.optimization` averages",
    "enable_cache": "caches nothing on Wan and CogVideoX, or mixes conditional and unconditional: through `StepCache`",
    "AdaptiveProjectedGuidance": "its scale changes with the size of the video",
    "guidance_rescale": "0/0 after a step that rests, as CFG-Zero*'s first do",
    "randn_like": "other noise for a transposed latent than for its copy; noise is drawn by shape and seed",
    # transformers
    "output_hidden_states": "the last is after the final norm in one release, before it in the next; we run blocks",
    "AutoProcessor": "takes bytes for the unit range; `Preprocessing` is read from the processor's file",
    "AutoImageProcessor": "the same",
    "AutoVideoProcessor": "the same",
    "context_mask": "V-JEPA 2's context sees what is masked",
    # accelerate
    "even_batches": "repeats samples to fill up, which moves means; samples are numbered",
    "join_uneven_inputs": "the same",
    # torchcodec
    "VideoDecoder": "its's approximate mode gives another frame, by what was read before",
    # OpenCV
    "minAreaRect": "other angles and sides in OpenCV 5 than in 4",
    "warpAffine": "other bytes in OpenCV 5 than in 4",
}

# The one place that sees to it that the name says what is done.
EXCEPT = {"models/step_cache.py": {"enable_cache"}}


def names_in(path: Path) -> set[str]:
    """Names, attributes, keyword arguments and imports of a file, in code alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.alias(name=name):
                found.add(name.rpartition(".")[2])
    return found


def test_what_does_not_do_what_its_name_says_is_not_used():
    root = Path(physcli.__file__).parent
    used = {path.relative_to(root).as_posix(): names_in(path) & AVOIDED.keys() for path in root.rglob("*.py")}
    found = {path: {name: AVOIDED[name] for name in names - EXCEPT.get(path, set())} for path, names in used.items()}
    assert {path: names for path, names in found.items() if names} == {}
    assert all(used[path] >= names for path, names in EXCEPT.items())
