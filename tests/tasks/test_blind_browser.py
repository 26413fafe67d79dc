"""The blind page in a real headless browser, as a rater uses it: keys and clicks, a reload in the middle, the file.

Skipped where no Chromium is installed (Debian: `apt-get install chromium`; `PHYSCLI_BROWSER` names another one).
"""

from __future__ import annotations

import importlib.util
import json
import re
import time
from pathlib import Path

import pytest
from blind_raters import sample_run

from physcli.tasks.blind.key import KEY_FILE, read_key
from physcli.tasks.blind.page import BlindSettings, make_blind_page
from physcli.tasks.blind.votes import VotesSettings, score_votes

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).parents[1] / "browser.py")
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

PROGRAM = browser.find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed: the blind page is not opened")

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
ARROWS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown"}
QUESTION = "Which one <b>moves</b> & falls better?"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    prompts = [HOSTILE, *(f"A block moves, number {number}." for number in range(1, 5))]
    for name, tint in (("alpha", 0), ("beta", 60)):
        sample_run(folder / name, tint=tint, num=5, prompts=prompts)
    runs = (str(folder / "alpha"), str(folder / "beta"))
    settings = BlindSettings(runs, question=QUESTION, raters=2, exclude=("median-s=off",))  # a script is quick
    return make_blind_page(settings, out=folder / "page")


def text_of(tab, name):
    return tab.run(f"document.getElementById('{name}').textContent")


def is_hidden(tab, name):
    return tab.run(f"document.getElementById('{name}').hidden")


def click(tab, name):
    tab.run(f"document.getElementById('{name}').click()")


def until(tab, condition, seconds=20):
    end = time.monotonic() + seconds
    while not tab.run(condition):
        assert time.monotonic() < end, (condition, text_of(tab, "hint"), tab.problems)
        time.sleep(0.02)


def begin(tab, rater):
    tab.run(f"document.getElementById('rater').value = '{rater}'")
    click(tab, "begin")


def watch(tab):
    until(tab, "!document.getElementById('choose-left').disabled")


def sides(tab):
    """The ids of the videos on the left and on the right."""
    return tab.run("['left', 'right'].map((s) => document.querySelector(`#${s}-slot video`).id.slice(2))")


def honest(tab, key, choice):
    """The choice, but for a check, whose whole video is chosen; of the pair on the screen."""
    whole = [key.videos[name].get("broken") is False for name in sides(tab)]
    return ("left" if whole[0] else "right") if any(whole) else choice


def saved(tab, folder, button="save"):
    before = set(folder.iterdir())
    click(tab, button)
    end = time.monotonic() + 10
    while not (new := {path for path in folder.iterdir() if path.suffix == ".json"} - before):
        assert time.monotonic() < end, "nothing is saved"
        time.sleep(0.05)
    [path] = new
    return path


def test_a_rater_from_the_first_pair_to_the_scores(study, tmp_path):
    key = read_key(study.path / KEY_FILE)
    with browser.Browser(PROGRAM) as tab:
        tab.downloads_to(tmp_path)
        tab.open(study.html)
        assert tab.run("document.title") == QUESTION
        begin(tab, 3)
        assert "There is no rater 3" in text_of(tab, "refused") or not tab.run(
            "document.getElementById('rater').checkValidity()"
        )
        assert not is_hidden(tab, "start")

        # Nothing counts before both were seen; then keys, a click, a tie, a step back, a replay.
        answers, prompts = {}, set()
        told = tab.run(
            "document.getElementById('rater').value = '2'; document.getElementById('begin').click();"
            "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}));"
            "['progress', 'hint'].map((name) => document.getElementById(name).textContent)"
        )
        assert told == ["1 of 7", "Watch both to the end once."]
        watch(tab)
        answers[tuple(sides(tab))] = honest(tab, key, "left")
        prompts.add(text_of(tab, "prompt"))
        tab.press(ARROWS[answers[tuple(sides(tab))]])
        assert text_of(tab, "progress") == "2 of 7"
        watch(tab)
        answers[tuple(sides(tab))] = honest(tab, key, "right")
        prompts.add(text_of(tab, "prompt"))
        click(tab, f"choose-{answers[tuple(sides(tab))]}")
        watch(tab)
        third = tuple(sides(tab))
        prompts.add(text_of(tab, "prompt"))
        tab.press("ArrowDown")
        assert text_of(tab, "progress") == "4 of 7"
        tab.press("Backspace")
        assert (text_of(tab, "progress"), tuple(sides(tab))) == ("3 of 7", third)
        tab.press(" ")
        tab.run("document.getElementById('choose-right').focus()")
        tab.press(" ")  # replays, and presses no button
        assert text_of(tab, "progress") == "3 of 7"
        answers[third] = honest(tab, key, "left")
        tab.press(ARROWS[answers[third]])

        # A reload in the middle; another rater in the same browser is another matter.
        tab.open(study.html)
        assert "Rater 2: 3 of 7 answered in this browser." in text_of(tab, "kept")
        begin(tab, 1)
        assert text_of(tab, "progress") == "1 of 7"
        tab.open(study.html)
        begin(tab, 2)
        assert text_of(tab, "progress") == "4 of 7"
        part = json.loads(saved(tab, tmp_path, "save-early").read_text())
        assert [vote["choice"] for vote in part["votes"]] == list(answers.values())

        while not is_hidden(tab, "rate"):
            prompts.add(text_of(tab, "prompt"))
            watch(tab)
            answers[tuple(sides(tab))] = honest(tab, key, "tie")
            before = text_of(tab, "progress")
            tab.press(ARROWS[answers[tuple(sides(tab))]])
            moved = f"document.getElementById('progress').textContent !== '{before}'"
            until(tab, f"document.getElementById('rate').hidden || {moved}")
        file = saved(tab, tmp_path)
        assert re.fullmatch(r"votes-[0-9a-f]{8}-2-[0-9a-f]{8}-7\.json", file.name)
        assert HOSTILE in prompts  # as text: it did nothing
        assert tab.run("document.title") == QUESTION
        assert tab.run("document.querySelectorAll('script, img').length") == 1
        assert not tab.problems
        assert {url.split(":")[0] for url in tab.requests} <= {"file", "data", "blob"}
        assert {url for url in tab.requests if url.startswith("file")} == {study.html.resolve().as_uri()[:80]}

    record = json.loads(file.read_text())
    assert {(vote["left"], vote["right"]): vote["choice"] for vote in record["votes"]} == answers
    assert (record["votes"][2]["revised"], record["votes"][2]["replays"]) == (1, 2)
    assert all(vote["plays"] >= 1 and vote["ms"] >= 800 for vote in record["votes"])
    assert all(
        900 * vote["plays"] <= vote["ms"] + 100 for vote in record["votes"]
    )  # a round takes 0.9 s: none is counted twice
    kinds = [key.trials[vote["trial"]]["kind"] for vote in record["votes"]]
    assert sorted(kinds) == ["check", *["pair"] * 5, "repeat"]

    # The file scores, with the one saved in the middle left out.
    done = score_votes(
        VotesSettings((str(file), *(str(p) for p in tmp_path.glob("votes-*") if p != file)), str(study.path)),
        out=tmp_path / "scored",
    )
    assert any("is left out" in note for note in done.notes)
    row = done.preferences[0]
    assert row["n"] == 5
    beta = {name for name, video in key.videos.items() if video.get("run") == 1}
    first = [vote for vote, kind in zip(record["votes"], kinds, strict=True) if kind == "pair"]
    chosen = [vote[vote["choice"]] in beta if vote["choice"] != "tie" else 0.5 for vote in first]
    assert row["value"] == pytest.approx(sum(chosen) / 5)


def test_both_play_together_and_fit_the_screen(study, tmp_path):
    for width in (1280, 800, 390):
        with browser.Browser(PROGRAM, width=width, height=800) as tab:
            tab.open(study.html)
            begin(tab, 1)
            until(tab, "[...document.querySelectorAll('.slot video')].every((video) => video.currentTime > 0.1)")
            times = tab.run("[...document.querySelectorAll('.slot video')].map((video) => video.currentTime)")
            assert abs(times[0] - times[1]) < 0.1
            boxes = tab.run(
                "[...document.querySelectorAll('.slot video')].map((v) => v.getBoundingClientRect())"
                ".map((box) => [box.left, box.top, box.width])"
            )
            assert boxes[0][0] < boxes[1][0]
            assert boxes[0][1:] == pytest.approx(boxes[1][1:], abs=0.5)  # beside each other, equally large
            assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
            bottom = tab.run("document.getElementById('choose-left').getBoundingClientRect().bottom")
            assert bottom < 800  # without scrolling
            tab.screenshot(tmp_path / f"{width}.png")
            assert not tab.problems


def test_a_video_that_does_not_play_can_be_skipped(study, tmp_path):
    text = study.html.read_text()
    head, _, tail = text.partition('<div id="store"')
    broken = re.sub(r"(data:video/mp4;base64,)[A-Za-z0-9+/=]+", r"\1AAAA", tail)
    path = tmp_path / "broken.html"
    path.write_text(head + '<div id="store"' + broken)
    with browser.Browser(PROGRAM) as tab:
        tab.downloads_to(tmp_path)
        tab.open(path)
        begin(tab, 1)
        until(tab, "!document.getElementById('skip').hidden")
        tab.press("ArrowLeft")
        assert text_of(tab, "progress") == "1 of 7"
        tab.press("s")
        until(tab, "document.getElementById('progress').textContent === '2 of 7'")
        record = json.loads(saved(tab, tmp_path, "save-early").read_text())
        assert [vote["choice"] for vote in record["votes"]] == ["skip"]


def test_where_nothing_can_be_kept_it_is_said(study):
    with browser.Browser(PROGRAM) as tab:
        tab.call(
            "Page.addScriptToEvaluateOnNewDocument",
            source="Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };",
        )
        tab.open(study.html)
        begin(tab, 1)
        assert "This browser keeps no progress" in text_of(tab, "unsaved")
        assert not is_hidden(tab, "unsaved")
        assert text_of(tab, "progress") == "1 of 7"
