"""A page in one file: nothing is loaded from anywhere, and nothing from outside can become markup.

`element` is the only place where text turns into HTML. What it is given is escaped unless `element` made it itself;
beside it only `page` makes `Markup`, of its own style, script and policy. The page's content security policy allows
that style and script by their hashes, and data it carries within; should anything slip through, a browser would
refuse to run or fetch it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_VOID = frozenset({"meta", "br", "img", "input", "line", "rect", "circle", "path"})
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
# Control characters and lone surrogates have no place in HTML (nor in UTF-8).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Finished HTML, made by `element`."""

    __slots__ = ()


Content = str | int | float | None


def escape(text: Content) -> Markup:
    """Text as HTML that shows it, in an element or an attribute."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", "" if text is None else str(text)), quote=True))


def element(name: str, /, *children: Content | Iterable[Content], **attributes: Content | bool) -> Markup:
    """An HTML or SVG element.

    Args:
        name: Of the element.
        children: Texts and elements, or iterables of them; None is left out.
        attributes: `class_` for class, `aria_label` for aria-label; None and False are left out, True has no value.

    Raises:
        ValueError: a name that is none.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"no element is called {name!r}")
    opening = [name]
    for key, value in attributes.items():
        attribute = key.removesuffix("_").replace("_", "-")
        if not _NAME.fullmatch(attribute) or attribute.lower().startswith("on"):
            raise ValueError(f"no attribute is called {attribute!r}")
        if value is None or value is False:
            continue
        opening.append(attribute if value is True else f'{attribute}="{escape(value)}"')
    if name in _VOID:
        return Markup(f"<{' '.join(opening)}>" if name in {"meta", "br", "img", "input"} else f"<{' '.join(opening)}/>")
    inner = "".join(
        escape(part)
        for child in children
        for part in ([child] if isinstance(child, str | int | float) or child is None else child)
    )
    return Markup(f"<{' '.join(opening)}>{inner}</{name}>")


def outside(text: str) -> Markup:
    """A caption or name from outside: shown whole, line breaks kept, its writing direction kept to itself."""
    return element("bdi", text, class_="outside")


def section(title: str, *children: Content | Iterable[Content], lead: str = "") -> Markup:
    return element("section", element("h2", title), element("p", lead, class_="lead") if lead else None, *children)


def callout(title: str, lines: Sequence[str], *, kind: str = "note") -> Markup:
    """A box: `note`, or `warning`."""
    return element(
        "div",
        element("strong", title),
        element("ul", [element("li", line) for line in lines]),
        class_=f"callout {kind}",
        role="note",
    )


@dataclass(frozen=True)
class Cell:
    """A table cell. `tone` is better, worse, or nothing; it is always said in words or arrows as well."""

    content: Content
    tone: str = ""
    detail: str = ""  # shown when pointed at, and smaller below


def table(
    columns: Sequence[Content],
    rows: Sequence[Sequence[Content | Cell]],
    *,
    label: str,
    caption: str = "",
    right: Iterable[int] = (),
) -> Markup:
    """A table that scrolls sideways where the screen is too narrow; its first column names the row."""
    aligned = frozenset(right)

    def cell(index: int, value: Content | Cell) -> Markup:
        item = value if isinstance(value, Cell) else Cell(value)
        classes = " ".join(part for part in ("number" if index in aligned else "", item.tone) if part) or None
        detail = element("small", item.detail) if item.detail else None
        if index == 0:
            return element("th", item.content, detail, scope="row", class_=classes)
        return element("td", item.content, detail, class_=classes)

    head = [
        element("th", name, scope="col", class_="number" if index in aligned else None)
        for index, name in enumerate(columns)
    ]
    drawn = element(
        "table",
        element("thead", element("tr", head)),
        element("tbody", [element("tr", [cell(i, value) for i, value in enumerate(row)]) for row in rows]),
    )
    return element(
        "figure",
        element("div", drawn, class_="scroll", tabindex="0", role="region", aria_label=label),
        element("figcaption", caption) if caption else None,
    )


def details(summary: str, *children: Content | Iterable[Content]) -> Markup:
    """Folded until it is opened."""
    return element("details", element("summary", summary), *children)


# --- pictures ---


def interval(value: float, low: float | None, high: float | None, *, reach: float, tone: str = "") -> Markup:
    """A difference on a line from −reach to +reach, 0 in the middle, with its interval: a plot for a table cell.

    Args:
        value: The difference.
        low: Of its interval, or None.
        high: Of its interval, or None.
        reach: Of the axis, in the value's unit; what goes beyond is cut at the edge.
        tone: better, worse, or nothing.
    """
    width, height = 180, 22
    middle = height / 2

    def x(at: float) -> float:
        return round(width / 2 * (1 + max(-1.0, min(1.0, at / reach if reach else 0.0))), 1)

    said = f"{value:+.3g}" if low is None or high is None else f"{value:+.3g}, from {low:+.3g} to {high:+.3g}"
    whisker = None
    if low is not None and high is not None:
        whisker = element("line", x1=x(low), x2=x(high), y1=middle, y2=middle, class_="whisker")
    return element(
        "svg",
        element("line", x1=width / 2, x2=width / 2, y1=1, y2=height - 1, class_="zero"),
        whisker,
        element("circle", cx=x(value), cy=middle, r=4, class_="dot"),
        viewBox=f"-6 0 {width + 12} {height}",
        class_=f"interval {tone}".strip(),
        role="img",
        aria_label=said,
    )


def shares(parts: Sequence[tuple[str, int]], *, tones: Sequence[str]) -> Markup:
    """A bar cut into parts, each as long as its count: won, tied, lost."""
    total = sum(count for _, count in parts) or 1
    width, at, drawn = 180.0, 0.0, []
    for (name, count), tone in zip(parts, tones, strict=True):
        length = width * count / total
        if count:
            rect = {"x": round(at, 2), "y": 4, "width": round(length, 2), "height": 14}
            drawn.append(element("rect", **rect, class_=f"share {tone}".strip(), data_name=name))
        at += length
    return element(
        "svg",
        drawn,
        viewBox=f"-6 0 {width + 12:g} 22",
        class_="interval",
        role="img",
        aria_label=", ".join(f"{name} {count}" for name, count in parts),
    )


def picture(png: bytes, *, alt: str) -> Markup:
    """A PNG, carried within the page."""
    return element("img", src=data_url("image/png", png), alt=alt, class_="picture")


# --- videos ---


@dataclass(frozen=True)
class Player:
    """One video of a case: MP4 bytes (H.264, 4:2:0: what every browser plays), or why there is none."""

    name: str
    scores: Sequence[Cell]
    mp4: bytes | None = None
    size: tuple[int, int] = (0, 0)  # height, width in pixels
    note: str = ""


@dataclass(frozen=True)
class Case:
    """The same prompt and seed, side by side."""

    title: str
    prompt: str
    where: str
    players: Sequence[Player]
    caption: str = ""  # where it is another text than the prompt


def case(item: Case) -> Markup:
    """A case with its players, which one button starts together."""
    playable = sum(player.mp4 is not None for player in item.players)
    button = element("button", "Play together", type="button", class_="play", aria_pressed="false")
    return element(
        "article",
        element(
            "header",
            element("h3", item.title),
            element("p", outside(item.prompt or "(empty prompt)"), class_="prompt"),
            element("p", "asked the rater: ", outside(item.caption), class_="where") if item.caption else None,
            element("p", item.where, class_="where"),
            button if playable > 1 else None,
        ),
        element("div", [_player(player) for player in item.players], class_="players"),
        class_="case",
    )


def _player(player: Player) -> Markup:
    if player.mp4 is None:
        shown = element("p", player.note, class_="absent")
    else:
        height, width = player.size
        shown = element(
            "video",
            src=data_url("video/mp4", player.mp4),
            width=width or None,
            height=height or None,
            controls=True,
            loop=True,
            muted=True,
            playsinline=True,
            preload="metadata",
            aria_label=player.name,
        )
    chips = [
        element("li", element("span", cell.detail), " ", element("b", cell.content), class_=cell.tone or None)
        for cell in player.scores
    ]
    return element(
        "figure",
        element("figcaption", player.name),
        shown,
        element("p", player.note, class_="where") if player.note and player.mp4 is not None else None,
        element("ul", chips, class_="chips") if chips else None,
    )


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


# --- the page ---


def page(
    title: str,
    subtitle: str,
    *sections: Content | Iterable[Content],
    footer: str = "",
    styles: Sequence[str] = ("page.css",),
    script: str = "page.js",
) -> str:
    """The whole file.

    Args:
        title: Of the page.
        subtitle: One line below it.
        sections: What is on it.
        footer: Last line.
        styles: Files beside this one, one after the other.
        script: The same.
    """
    style, script = "\n".join(_beside(name) for name in styles), _beside(script)
    policy: Mapping[str, str] = {
        "default-src": "'none'",
        "img-src": "data:",
        "media-src": "data:",
        "style-src": _allow(style),
        "script-src": _allow(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(
            '<meta http-equiv="Content-Security-Policy" content="'
            + "; ".join(f"{key} {value}" for key, value in policy.items())
            + '">'
        ),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", subtitle), class_="top"),
        element("main", *sections),
        element("footer", footer),
        Markup(f"<script>{script}</script>"),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _beside(name: str) -> str:
    """The page's own style or script, a file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _allow(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}'"
