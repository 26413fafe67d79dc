"""Prompt lists: every layout, what stands for what, and what is refused."""

from __future__ import annotations

import json

import pytest

from physcli.data.prompts import Prompt, read_prompts
from physcli.errors import DataError


@pytest.fixture
def written(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_text_is_a_prompt_a_line(written):
    path = written("prompts.txt", '\ufeffa ball, red\n\n  "a box"  \r\nKatze 猫\n')
    assert [prompt.text for prompt in read_prompts(path)] == ["a ball, red", '  "a box"  ', "Katze 猫"]
    assert all(prompt.caption == prompt.text and not prompt.columns for prompt in read_prompts(path))


def test_videophy_generates_from_the_detailed_caption_and_scores_the_short_one(written):
    path = written(
        "videophy.csv",
        'caption,detailed_caption,states_of_matter,complexity\n"Honey, poured.","In a kitchen,\nhoney ""flows"".",'
        "fluid_fluid,1\n",
    )
    assert read_prompts(path) == [
        Prompt(
            'In a kitchen,\nhoney "flows".', "Honey, poured.", {"states_of_matter": "fluid_fluid", "complexity": "1"}
        )
    ]


def test_videophy2_columns(written):
    path = written("videophy2.csv", "caption,upsampled_caption,is_hard\nA yo-yo.,In a close-up a yo-yo.,0\nA map.,,1\n")
    assert read_prompts(path) == [
        Prompt("In a close-up a yo-yo.", "A yo-yo.", {"is_hard": "0"}),
        Prompt("A map.", "A map.", {"is_hard": "1"}),  # no detailed one: the short one stands for it
    ]


def test_json_lines(written):
    rows = [{"prompt": "a ball", "seed": 3}, {"caption": "a box"}]
    path = written("p.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_prompts(path) == [Prompt("a ball", "a ball", {"seed": 3}), Prompt("a box", "a box", {})]


# Official layouts, with texts of our own.
OFFICIAL = {
    "VBench_full_info.json": (
        [
            {"prompt_en": "a kettle on a stove", "dimension": ["temporal_flickering"]},
            {
                "prompt_en": "a spoon and a bowl",
                "dimension": ["multiple_objects"],
                "auxiliary_info": {"multiple_objects": {"object": "spoon and bowl"}},
            },
        ],
        [
            Prompt("a kettle on a stove", columns={"dimension": ["temporal_flickering"]}),
            Prompt(
                "a spoon and a bowl",
                columns={
                    "dimension": ["multiple_objects"],
                    "auxiliary_info": {"multiple_objects": {"object": "spoon and bowl"}},
                },
            ),
        ],
    ),
    "VBench2_full_info.json": (
        [{"prompt_en": "A yard, pan right.", "dimension": ["Camera_Motion"], "auxiliary_info": "pan_right"}],
        [Prompt("A yard, pan right.", columns={"dimension": ["Camera_Motion"], "auxiliary_info": "pan_right"})],
    ),
    "VBench2_full_text_info.json": (
        {"A cork floats.": {"caption": "A cork floats.", "dimension": ["Mechanics"]}},
        [Prompt("A cork floats.", columns={"dimension": ["Mechanics"]})],
    ),
    "vbench2_i2v_full_info.json": (
        [{"prompt_en": "a pier", "dimension": ["i2v_subject"], "image_type": "scene", "image_name": "a pier.jpg"}],
        [Prompt("a pier", columns={"dimension": ["i2v_subject"], "image_type": "scene", "image_name": "a pier.jpg"})],
    ),
    "prompts.json": (
        [
            {
                "caption": "A marble drops into syrup.",
                "physical_laws": "The marble sinks slowly.",
                "sub_category": "Viscosity",
                "main_category": "Force",
            }
        ],
        [
            Prompt(
                "A marble drops into syrup.",
                columns={
                    "physical_laws": "The marble sinks slowly.",
                    "sub_category": "Viscosity",
                    "main_category": "Force",
                },
            )
        ],
    ),
    "worldmodelbench.json": (
        [
            {
                "domain": "robotics",
                "subdomain": "Lifting",
                "text_first_frame": "An arm above a cup.",
                "text_instruction": "The arm lifts the cup.",
                "first_frame": "images/1.jpg",
            }
        ],
        [
            Prompt(
                "An arm above a cup. The arm lifts the cup.",
                columns={"domain": "robotics", "subdomain": "Lifting", "first_frame": "images/1.jpg"},
            )
        ],
    ),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_json(written, name):
    given, expected = OFFICIAL[name]
    assert read_prompts(written(name, json.dumps(given, indent=4))) == expected


def test_physics_iqs_descriptions(written):
    path = written(
        "descriptions.csv",
        "scenario,description,category,generated_video_name\n"
        '0001_perspective-left_take-1_trimmed-cup.mp4,"A cup, tipped.",Solid Mechanics,0001_perspective-left_cup.mp4\n',
    )
    columns = {
        "scenario": "0001_perspective-left_take-1_trimmed-cup.mp4",
        "category": "Solid Mechanics",
        "generated_video_name": "0001_perspective-left_cup.mp4",
    }
    assert read_prompts(path) == [Prompt("A cup, tipped.", columns=columns)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.txt", "\n \n", "holds no prompt"),
        ("empty.csv", "caption\n", "holds no prompt"),
        ("p.csv", "video,label\na.mp4,1\n", "line 2: no prompt; it has video, label"),
        ("p.csv", "caption,action\nA ball.,x\n ,y\n", "line 3: the prompt is empty"),
        ("p.csv", "action,caption\nx\n", "line 2: caption is None"),
        ("p.jsonl", '{"prompt": 3}\n', "line 1: prompt is 3"),
        ("p.jsonl", '{"prompt": \n', "line 1: not valid JSON"),
        ("p.md", "a ball", "is no list of prompts"),
        ("p.json", "[", "line 1: not valid JSON"),
        ("p.json", "3", "p.json holds 3"),
        ("p.json", '["a ball"]', "entry 1: 'a ball' is no object"),
        ("p.json", '[{"caption": "a"}, {"name": "b"}]', "entry 2: no prompt; it has name"),
        ("p.json", '[{"prompt_en": 3, "dimension": []}]', "entry 1: prompt_en is 3"),
        ("p.csv", "scenario,description\nx,y\n", "line 2: no prompt; it has scenario, description"),
    ],
)
def test_bad_lists_are_explained(written, name, text, said):
    with pytest.raises(DataError, match=said):
        read_prompts(written(name, text))


def test_a_missing_list(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_only_a_newline_ends_a_row(written, name):
    prompt = "a ball\u2028rolls\x0bdown\x85slowly"
    body = {"list.txt": prompt, "list.csv": f"prompt\n{prompt}", "list.jsonl": json.dumps({"prompt": prompt})}[name]
    assert [found.text for found in read_prompts(written(name, body + "\n"))] == [prompt]
