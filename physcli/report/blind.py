"""The page of a blind study: pairs of videos in one file, under ids that say nothing.

As every page here it loads nothing, and its policy lets it load and send nothing: votes leave it only as the file that
a rater saves. Progress is kept in the browser's localStorage, under the page's id and the rater's number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from physcli.report.html import Markup, data_url, element, page


@dataclass(frozen=True)
class Trial:
    """Two videos beside each other: ids, and the prompt's number in the page's list."""

    id: str
    left: str
    right: str
    prompt: int


@dataclass(frozen=True)
class BlindPage:
    """All that is in the page.

    Attributes:
        id: Of the page; every file of votes names it.
        question: What raters are asked.
        prompts: By number; empty if they are not shown.
        videos: Id → MP4 bytes (H.264, 4:2:0) and (height, width).
        schedules: For each rater, in order.
    """

    id: str
    question: str
    prompts: Sequence[str]
    videos: Mapping[str, tuple[bytes, tuple[int, int]]]
    schedules: Sequence[Sequence[Trial]]


def blind_page(content: BlindPage) -> str:
    """The whole file."""
    study = {
        "page": content.id,
        "prompts": list(content.prompts),
        "schedules": [[[t.id, t.left, t.right, t.prompt] for t in trials] for trials in content.schedules],
    }
    return page(
        content.question,
        "Two videos at a time. You are not told whose they are, and sides are drawn anew each time.",
        element("noscript", element("p", "This page needs JavaScript.", class_="callout warning")),
        element("p", id="unsaved", class_="callout warning", role="alert", hidden=True),
        _start(len(content.schedules)),
        _rate(),
        _done(),
        element(
            "div", [_video(name, *video) for name, video in sorted(content.videos.items())], id="store", hidden=True
        ),
        element("div", id="study", hidden=True, data_study=json.dumps(study, separators=(",", ":"))),
        footer="Everything is inside this one file. Nothing is sent: votes stay in this browser until you save them.",
        styles=("page.css", "blind.css"),
        script="blind.js",
    )


def _start(raters: int) -> Markup:
    return element(
        "section",
        element(
            "ol",
            element("li", "Both videos play together, again and again. You can answer when both have ended once."),
            element("li", "Choose the left or the right one, or no difference. Do not dwell on it; you can go back."),
            element("li", "At the end you save one file, and send it to whoever asked you."),
        ),
        element(
            "form",
            element("label", f"Your rater number (1 to {raters})", for_="rater"),
            element(
                "input", id="rater", type="number", min=1, max=raters, required=True, inputmode="numeric",
                autocomplete="off",
            ),
            element("button", "Begin", type="submit", id="begin", class_="choice"),
            id="who",
        ),
        element("p", id="refused", role="alert"),
        element("ul", id="kept"),
        id="start",
    )  # fmt: skip


def _rate() -> Markup:
    def side(name: str) -> Markup:
        return element("figure", element("div", class_="slot", id=f"{name}-slot"), element("figcaption", name.title()))

    def button(name: str, label: str, key: str, kind: str) -> Markup:
        text = element("span", label), element("kbd", key)
        return element("button", *text, type="button", id=name, class_=kind, disabled=kind == "choice")

    return element(
        "section",
        element("p", id="progress", aria_live="polite"),
        element("progress", id="bar", value=0, max=1, aria_label="answered"),
        element("p", element("bdi", id="prompt", class_="outside"), id="prompt-line", class_="prompt"),
        element("div", side("left"), side("right"), class_="stage"),
        element("p", id="hint", class_="where", aria_live="polite"),
        element(
            "div",
            button("choose-left", "Left", "←", "choice"),
            button("choose-tie", "No difference", "↓", "choice"),
            button("choose-right", "Right", "→", "choice"),
            class_="choices",
        ),
        element(
            "div",
            button("replay", "Replay", "space", "more"),
            button("undo", "Back", "⌫", "more"),
            button("skip", "Skip: it does not play", "S", "more"),
            button("save-early", "Save what I have", "", "more"),
            class_="tools",
        ),
        id="rate",
        hidden=True,
    )


def _done() -> Markup:
    return element(
        "section",
        element("h2", "That was all. Thank you!"),
        element("p", "Save the file and send it to whoever asked you. It holds your answers and times, nothing else."),
        element(
            "div",
            element("button", "Save the votes", type="button", id="save", class_="choice"),
            element("button", "Back to the last pair", type="button", id="reconsider", class_="more"),
            class_="tools",
        ),
        element("p", id="saved", class_="where", role="status"),
        id="done",
        hidden=True,
    )


def _video(name: str, mp4: bytes, size: tuple[int, int]) -> Markup:
    height, width = size
    return element(
        "video",
        id=f"v-{name}",
        src=data_url("video/mp4", mp4),
        width=width,
        height=height,
        muted=True,
        playsinline=True,
        preload="none",
        tabindex="-1",
        disablepictureinpicture=True,
    )
