"""`physcli data inspect`: every file of a dataset is opened and decoded, and what was found is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physcli.data.clips import NOT_RECORDED, Clip, check, installed_mujoco, read_dataset
from physcli.data.video import VideoInfo
from physcli.progress import Reporter

# What files say beyond their pixels: column → what it says of a video, "" where that is nothing out of the ordinary.
REMARKS: dict[str, Callable[[VideoInfo], str]] = {
    "frame rate": lambda info: f"varies: {info.num_frames} of {info.num_stored} frames" if info.variable_rate else "",
    "turned": lambda info: (
        (f"{info.rotation_deg}°" if info.rotation_deg else "") + (" mirrored" if info.mirrored else "")
    ),
    "pixel aspect": lambda info: f"{info.pixel_aspect:.4g}" if abs(info.pixel_aspect - 1) > 1e-6 else "",
    "range": lambda info: "" if info.dynamic_range == "SDR" else f"HDR ({info.dynamic_range})",
    "lines": lambda info: "interlaced" if info.interlaced else "",
    "opacity": lambda info: "alpha" if info.alpha else "",
}


@dataclass(frozen=True)
class Inspection:
    """What a folder holds.

    Attributes:
        remarks: (file, facts) of videos that are not read as their pixels are stored: see `REMARKS`.
        problems: (file, why) of all that cannot be used.
    """

    folder: Path
    kind: str
    has_splits: bool
    clips: tuple[Clip, ...]
    lengths: Counter[int]
    rates: Counter[float]
    sizes: Counter[str]
    codecs: Counter[str]
    remarks: tuple[tuple[str, VideoInfo], ...]
    problems: tuple[tuple[str, str], ...]
    mujoco: str | None = None  # the release that simulated it

    @property
    def groups(self) -> list[list[Any]]:
        """Rows (split, scenario, clips, positive, range of first contact) of labelled clips."""
        rows = []
        labelled = [clip for clip in self.clips if clip.label is not None]
        for split, scenario in sorted({(clip.split or "–", clip.scenario or "–") for clip in labelled}):
            here = [c for c in labelled if (c.split or "–", c.scenario or "–") == (split, scenario)]
            contacts = [c.contact_frame for c in here if c.label and c.contact_frame is not None]
            rows.append(
                [
                    split,
                    scenario,
                    len(here),
                    sum(c.label or 0 for c in here),
                    f"{min(contacts)}–{max(contacts)}" if contacts else "–",
                ]
            )
        return rows

    def facts(self) -> list[list[Any]]:
        """Rows (what, found) for a table."""
        rows: list[list[Any]] = [
            ["clips", len(self.clips)],
            ["usable", sum(self.lengths.values())],
            ["frames", _spread(self.lengths)],
            ["frames per second", _spread(self.rates)],
            ["height x width", _spread(self.sizes)],
            ["codec", _spread(self.codecs)],
            ["split", _spread(Counter(clip.split for clip in self.clips)) if self.has_splits else "–"],
            ["with a prompt", sum(bool(clip.prompt) for clip in self.clips)],
            ["with a label", sum(clip.label is not None for clip in self.clips)],
            ["pairs", len({clip.pair for clip in self.clips if clip.pair})],
            ["broken or unusable", len(self.problems)],
        ]
        if self.mujoco is not None:
            here = installed_mujoco()
            other = {here: "", NOT_RECORDED: f" (here {here})"}.get(self.mujoco, f" (here {here}: makes other clips)")
            rows.append(["simulated by MuJoCo", self.mujoco + other])
        return rows

    @property
    def remarkable(self) -> list[list[Any]]:
        """A row for each of `remarks`: the file, and a column for each of `REMARKS`."""
        return [[name, *(tell(info) or "–" for tell in REMARKS.values())] for name, info in self.remarks]

    def as_dict(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "kind": self.kind,
            **({} if self.mujoco is None else {"mujoco": self.mujoco, "mujoco_here": installed_mujoco()}),
            "num_clips": len(self.clips),
            "splits": dict(Counter(clip.split for clip in self.clips)) if self.has_splits else {},
            "num_usable": sum(self.lengths.values()),
            "num_frames": dict(self.lengths),
            "frame_rate_hz": dict(self.rates),
            "size": dict(self.sizes),
            "codec": dict(self.codecs),
            "num_prompts": sum(bool(clip.prompt) for clip in self.clips),
            "groups": [
                dict(zip(("split", "scenario", "clips", "positive", "contact_frames"), row, strict=True))
                for row in self.groups
            ],
            "remarks": [dict(zip(("file", *REMARKS), row, strict=True)) for row in self.remarkable],
            "problems": [{"file": name, "why": why} for name, why in self.problems],
        }


def _spread(counts: Counter[Any]) -> str:
    """The commonest values with their counts: `49 (14), 61 (5)`."""
    if not counts:
        return "–"
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value, _ in counts.most_common(6)]
    if len(counts) == 1:
        return shown[0]
    parts = [f"{text} ({count})" for text, (_, count) in zip(shown, counts.most_common(6), strict=True)]
    return ", ".join(parts) + (f", and {len(counts) - 6} more" if len(counts) > 6 else "")


def inspect_data(folder: Path, *, reporter: Reporter | None = None) -> Inspection:
    """Open and decode everything in a folder.

    Raises:
        DataError: the folder is missing or holds no clip.
    """
    dataset = read_dataset(folder)
    infos, problems = check(dataset, reporter)
    return Inspection(
        folder,
        dataset.kind,
        dataset.has_splits,
        dataset.clips,
        Counter(info.num_frames for info in infos.values()),
        Counter(round(info.frame_rate_hz, 3) for info in infos.values()),
        Counter(f"{info.height}x{info.width}" for info in infos.values()),
        Counter(info.codec for info in infos.values()),
        tuple(
            (_relative(path, folder), info)
            for path, info in infos.items()
            if any(tell(info) for tell in REMARKS.values())
        ),
        tuple((_relative(path, folder), _without_name(message, path)) for path, message in problems),
        dataset.mujoco,
    )


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _without_name(message: str, path: Path) -> str:
    """A table names the file in another column."""
    return message.removeprefix(str(path)).lstrip(", ")
