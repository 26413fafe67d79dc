"""The weights of a large checkpoint, one tensor at a time: one file or many, safetensors or torch's .bin.

Not `accelerate.load_checkpoint_in_model(strict=True)`: it passes over weights that the checkpoint lacks without a word
(accelerate 1.15; an empty model keeps them on the meta device), and of those that are left over or of another shape it
names the first it meets. Here names and shapes are compared before a tensor is read, and all that differs is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import safetensors
from torch import Tensor

from physcli.errors import ModelError
from physcli.models.encoders.checkpoint import drop, read_json, read_shapes, read_state_dict, report_mismatch

# The safer format first; each is one file, or an index of many.
FILES = ("model.safetensors", "pytorch_model.bin")


class Shards:
    """What a folder holds, its names and shapes known and nothing of it kept.

    Args:
        folder: Of the checkpoint.
        unused: Patterns of weights that may be there and are not read.

    Raises:
        ModelError: no weights, a file of the index that is not there, or a damaged one.
    """

    def __init__(self, folder: Path, *, unused: Iterable[str] = ()) -> None:
        self.folder = folder
        self._files, self._listed = _find(folder)
        self.num_bytes = sum(file.stat().st_size for file in self._files)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._of: dict[Path, list[str]] = {}
        for file in self._files:
            shapes = drop(read_shapes(file), unused)
            if twice := shapes.keys() & self._shapes.keys():
                raise ModelError(
                    f"{file} holds {min(twice)}, which another file of {folder} holds as well.",
                    expected="every weight once",
                    fix="copy or download the folder again, into an empty one",
                )
            self._shapes |= shapes
            self._of[file] = list(shapes)

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ModelError unless names and shapes are exactly those."""
        held = self._shapes
        report_mismatch(
            str(self.folder),
            missing=[name for name in wanted if name not in held],
            unexpected=[name for name in held if name not in wanted],
            misshapen=[name for name in wanted if name in held and held[name] != wanted[name]],
        )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, on the CPU and in the file's dtype; one file is open at a time."""
        for file, names in self._of.items():
            if file.suffix == ".safetensors":
                with safetensors.safe_open(file, framework="pt") as content:
                    for name in names:
                        yield name, content.get_tensor(name)
            else:
                state = read_state_dict(file)
                for name in names:
                    yield name, state.pop(name)


def _find(folder: Path) -> tuple[list[Path], Path]:
    """The weight files, and what names them."""
    for name in FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ModelError(f"{index} has no weight_map.", expected="the index of a sharded checkpoint")
            files = [folder / str(file) for file in sorted(set(weight_map.values()))]
            if missing := [file.name for file in files if not file.is_file()]:
                raise ModelError(
                    f"{folder} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing[:5])}.",
                    expected=f"every file that {index.name} names",
                    fix="copy or download the folder again",
                )
            return files, index
        if (folder / name).is_file():
            return [folder / name], folder / name
    raise ModelError(
        f"{folder} holds no weights.",
        expected=" or ".join(f"{name} (or {name}.index.json and its files)" for name in FILES),
        fix="copy or download the whole checkpoint",
    )
