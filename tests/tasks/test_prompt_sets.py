"""Prompts of simulated clips, and lists in files."""

from __future__ import annotations

import pytest

from physcli.data.clips import read_dataset
from physcli.errors import DataError, UsageError
from physcli.progress import Reporter
from physcli.tasks.prompt_sets import distinct, listed_prompts


@pytest.fixture
def listed(session_cache):
    def ask(source, limit=None):
        return listed_prompts(str(source), limit=limit, cache_dir=session_cache, device="cpu", reporter=Reporter())

    return ask


def test_the_whole_events_of_a_folder_s_test_clips(listed, simulated):
    clips = [clip for clip in read_dataset(simulated).clips if clip.split == "test"]
    prompts = listed(simulated)
    told = {clip.prompt.replace("20 frames", "7 frames"): clip.scenario for clip in clips}
    assert {prompt.text: prompt.columns["scenario"] for prompt in prompts} == told
    assert len(prompts) == len(told)
    assert listed(simulated, 2) == prompts[:2]
    assert prompts[0].columns != prompts[1].columns


def test_scenarios_take_turns(simulated):
    clips = read_dataset(simulated).clips
    chosen = distinct(clips)
    assert len({clip.prompt for clip in chosen}) == len(chosen) == len({clip.prompt for clip in clips})
    scenarios = {clip.scenario for clip in clips}
    assert {clip.scenario for clip in chosen[: len(scenarios)]} == scenarios


def test_files_are_read_as_they_are(listed, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a ball\na box\n")
    assert [prompt.text for prompt in listed(file)] == ["a ball", "a box"]


def test_what_is_no_list(listed, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        listed(tmp_path / "empty")
    with pytest.raises(UsageError, match="even number"):
        listed("simulated:3")
    with pytest.raises(DataError, match="no list of prompts"):
        listed("simulation")
