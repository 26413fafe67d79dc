"""`physcli models ls|show`: which models there are, and what one is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from physcli.models import BUILT_IN, KNOWN_HUB, MOTION_PARTS
from physcli.models.raters import TINY_RATER
from physcli.progress import counted


def refuse_unknown_models(names: Iterable[str]) -> None:
    """Refuse names that lead nowhere, before a task is imported: its modules take seconds.

    Raises:
        UsageError, ModelError: as `physcli.models.names.resolve`.
    """
    from physcli.models.names import refuse_unknown

    for name in names:
        refuse_unknown(name)


def list_models() -> list[dict[str, Any]]:
    """Rows of all that is built in, and of known hub checkpoints. Loads nothing."""
    from physcli.models.tiny import asset_folder

    rows = []
    for table, where in ((BUILT_IN | MOTION_PARTS, "built in"), (KNOWN_HUB, "hub")):
        for name, known in table.items():
            weights = "hub"
            if where == "built in":
                weights = "random init" if asset_folder(name) is None else "trained"
            rows.append(
                {
                    "name": name,
                    "kind": known.kind,
                    "family": known.family,
                    "weights": weights,
                    "of": known.of or None,
                    "description": known.description,
                }
            )
    return rows


def show_model(name: str) -> dict[str, Any]:
    """Facts of one model, motion field or motion projector; loads it, because only a whole one is known to be one."""
    from physcli.models.names import fingerprint, resolve

    if name.partition(":")[0] == TINY_RATER:
        return _show_rater(name)
    if name in MOTION_PARTS:
        return _show_motion_part(name)
    resolved = resolve(name)
    from physcli.models.features import default_tap
    from physcli.models.loading import load  # imports torch: a name that leads nowhere does without

    model = load(resolved, device="cpu")
    facts: dict[str, Any] = {
        "name": name,
        "kind": resolved.kind,
        "family": resolved.family,
        "source": resolved.source,
        "path": resolved.path,
        "weights": "random init" if resolved.random_init else "trained",
        "blocks": model.num_blocks,
        "hidden size": model.hidden_size,
    }
    if model.kind == "generator":
        known = model.facts
        facts |= {
            "default tap": f"block {default_tap(model.num_blocks)} of 0..{model.num_blocks - 1}",
            "parameters": {part: sum(p.numel() for p in model.part(part).parameters()) for part in model.weight_parts},
            "native size": "x".join(map(str, known.size)),
            "native frames": f"{known.num_frames} at {known.frame_rate_hz:g} per second",
            "latents": f"{known.latent_channels} channels, 1/{model.codec.spatial} in space, "
            f"1/{model.codec.temporal} in time",
            "prediction": model.noise.prediction,
            "guidance scale": f"{model.guidance_scale:g}",
            "text tokens": known.max_text_tokens,
            "scheduler": model.scheduler_name,
        }
    else:
        facts |= {
            "default tap": f"block {model.num_blocks - 1} of 0..{model.num_blocks - 1}",
            "parameters": sum(p.numel() for p in model.parameters()),
            "preprocessing": asdict(model.preprocessing),
        }
    facts["content hash"] = fingerprint(resolved)
    return facts


def _show_rater(name: str) -> dict[str, Any]:
    """Facts of the built-in rater."""
    from physcli.models.raters.mplug_owl_video import load_rater, rater_fingerprint
    from physcli.models.tiny import asset_folder

    rater = load_rater(name, device="cpu")
    known, size = BUILT_IN[TINY_RATER], rater.config.vision.image_size
    return {
        "name": name,
        "kind": known.kind,
        "family": known.family,
        "source": "built-in",
        "path": None if rater.random_init else asset_folder(TINY_RATER),
        "weights": "random init" if rater.random_init else "trained",
        "parameters": sum(p.numel() for p in rater.parameters()),
        "frames shown": f"{rater.num_frames} of {size}x{size}, evenly spaced",
        "content hash": rater_fingerprint(name),
    }


def _show_motion_part(name: str) -> dict[str, Any]:
    """Facts of a built-in motion field or motion projector."""
    from physcli.methods.lamo import MotionField
    from physcli.methods.moalign import MotionProjector
    from physcli.models.fingerprints import hash_files
    from physcli.models.tiny import asset_folder

    known, path = MOTION_PARTS[name], asset_folder(name)
    assert path is not None
    facts: dict[str, Any] = {
        "name": name,
        "kind": known.kind,
        "family": known.family,
        "source": "built-in",
        "path": path,
        "weights": "trained",
    }
    if known.kind == "motion field":
        field = MotionField.load(path)
        space = f"scaled by {field.scaling_factor:g}" if field.latent_space is None else field.latent_space
        facts |= {
            "parameters": sum(p.numel() for p in field.parameters()),
            "latents": f"of {known.of}: {field.channels} channels, {space}",
            "lag": counted(field.lag, "latent frame"),
            "prompt width": None if field.prompt_proj is None else field.text_dim,
            "blocks": field.config["num_blocks"],
            "hidden size": field.config["hidden"],
        }
    else:
        projector = MotionProjector.load(path)
        facts |= {
            "parameters": sum(p.numel() for p in projector.parameters()),
            "encoder": projector.info["encoder"],
            "tokens": f"{projector.config['in_dim']} to {projector.config['dim']} dimensions",
            "layers": projector.config["num_layers"],
            "kernel": projector.config["kernel"],
            "view": projector.info["view"],
            "flow": projector.info["flow"],
        }
    facts["content hash"] = hash_files(path).hex()
    return facts
