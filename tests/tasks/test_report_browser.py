"""`report.html` in a real headless browser: it opens, its videos play, nothing is fetched, nothing goes wrong.

Skipped where no Chromium is installed (Debian: `apt-get install chromium`; `PHYSCLI_BROWSER` names another one).
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from physcli.tasks.compare import CompareSettings, compare

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).parents[1] / "browser.py")
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

PROGRAM = browser.find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed: report.html is not opened")

SIZES = """Promise.all([...document.querySelectorAll("video")].map((video) => new Promise((done) => {
  const told = () => done(video.error ? video.error.message : [video.videoWidth, video.videoHeight, video.duration]);
  if (video.error || video.readyState >= 1) told();
  else { video.onloadedmetadata = told; video.onerror = told; }
})))"""
FIRST_CASE = "[...document.querySelector('article.case').querySelectorAll('video')]"


@pytest.fixture(scope="module")
def report(tmp_path_factory, eval_run):
    folder = tmp_path_factory.mktemp("runs")
    hostile = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    prompts = [hostile, *(f"A red ball, no. {number}." for number in range(7))]
    for name, first in (("base", True), ("new", False)):
        scores = {"pc": [first] * 4 + [True] * 4, "dynamic_degree": [True] * 8}
        eval_run(folder / name, scores, videos=True, prompts=prompts, tint=0 if first else 40)
    compare(CompareSettings((str(folder / "base"), str(folder / "new"))), out=folder / "out")
    return folder / "out" / "report.html"


def wait_until(tab, condition):
    """Until it holds on the page; five seconds at most."""
    end = time.monotonic() + 5
    while not tab.run(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_opens_and_plays(report, width, dark, tmp_path):
    with browser.Browser(PROGRAM, width=width, dark=dark) as tab:
        tab.open(report)
        sizes = tab.run(SIZES)
        assert len(sizes) == 12  # four lost, two unchanged; of two runs
        assert all(size == [256, 256, pytest.approx(0.9)] for size in sizes)
        tab.run("document.querySelector('button.play').click()")
        wait_until(tab, f"{FIRST_CASE}.every((video) => video.currentTime > 0.1)")
        playing = tab.run(f"{FIRST_CASE}.map((video) => [video.currentTime, video.paused])")
        assert len(playing) == 2
        assert not any(paused for _, paused in playing)
        assert abs(playing[0][0] - playing[1][0]) < 0.1
        assert tab.run("document.title") == "new against base"
        assert tab.run("document.querySelectorAll('script, img').length") == 1
        assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")  # only tables scroll sideways
        paper = tab.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(","))) < 200) == dark
        tab.screenshot(tmp_path / "page.png")
        assert not tab.problems
        assert {url.split(":")[0] for url in tab.requests} <= {"file", "data"}
        assert [url for url in tab.requests if url.startswith("file")] == [report.resolve().as_uri()[:80]]


def test_it_is_used_by_keyboard(report):
    with browser.Browser(PROGRAM) as tab:
        tab.open(report)
        seen = []
        for _ in range(12):
            tab.press("Tab")
            seen.append(tab.run("document.activeElement.className || document.activeElement.tagName"))
            if seen[-1] == "play":
                break
        assert seen[-1] == "play"
        tab.press("Enter")
        wait_until(tab, "document.activeElement.textContent === 'Pause'")
        wait_until(tab, f"{FIRST_CASE}.every((video) => !video.paused)")
        tab.press(" ")
        wait_until(tab, "document.activeElement.textContent !== 'Pause'")
        assert tab.run(f"{FIRST_CASE}.every((video) => video.paused)")
