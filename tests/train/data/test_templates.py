"""Documents of every task: from JSON lines to shards to rows of training and to `data inspect`."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon.__main__ import main
from cm3leon.pipeline import CM3Leon
from cm3leon.templates import STRUCTURES
from tokenizer.codec import Codec
from tokenizer.data.layouts import LAYOUTS
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import TASKS, Shards
from tokenizer.data.tars import Tally
from tokenizer.document import Picture
from train.config import RowsConfig
from train.data.documents import on_canvas, read_documents
from train.data.rows import Rows
from train.data.templates import FORMS
from train.objective import MaskConfig

IDS = {"fox", "edges"}
OBJECTS = [{"name": "tail", "box": [0, 1, 8, 16]}]
GOOD: list[dict[str, Any]] = [
    {"task": "edit", "source": "fox", "target": "edges", "instructions": ["trace it"]},
    {"task": "question", "picture": "fox", "question": "What?", "answer": "a fox", "type": "t"},
    {"task": "structure", "condition": "edges", "picture": "fox", "structure": "canny",
     "caption": "a fox"},
    {"task": "grounded", "picture": "fox", "caption": "a fox", "objects": OBJECTS},
    {"task": "ocr", "picture": "fox", "text": "FOX"},
    {"task": "paragraph", "picture": "fox", "caption": "long"},
    {"task": "narrative", "picture": "fox", "caption": "spoken"},
    {"task": "scienceqa", "picture": "fox", "question": "Which?", "options": ["cat", "fox"],
     "answer": 1, "context": "Woods.", "explanation": "It is red."},
    {"task": "conversation", "picture": "fox", "turns": [["What?", "a fox"], ["Why?", "so"]]},
]  # fmt: skip
# what a row of each task reads as, P for a picture
ROWS = {
    "edit": {"Edit first image following the instruction|P| trace it|P"},
    "question": {
        "Question: What? Answer: a fox.|P",
        "Question: What?\na fox|P",
        "Question: What? The answer is a fox.|P",
    },
    "structure": {"Make high quality image from canny edge features|P| a fox|P"},
    "grounded": {
        "Generate high quality image of a fox with segmentations tail at (0, 1) -> (8, 16)|P"
    },
    "ocr": {'draw "FOX"|P'},
    "paragraph": {
        "Describe the given picture in very detail. long|P",
        "Describe all the objects in the given image in very detail. long|P",
        "Generate a long caption for the given image. long|P",
    },
    "narrative": {
        "Describe the given picture in very detail. spoken|P",
        "Generate a long narration of what is happening in the given image. spoken|P",
        "Generate a long caption for the given image. spoken|P",
    },
    "scienceqa": {
        "Question: Which?\nContext: Woods.\nOptions: (A) cat (B) fox\nAnswer: fox.|P",
        "Question: Which?\nContext: Woods.\nOptions: (A) cat (B) fox\nAnswer: Let's think "
        "step-by-step: It is red. So the answer is fox.|P",
    },
    "conversation": {"Question: What?\nAnswer: a fox\nQuestion: Why?\nAnswer: so|P"},
}


def read(
    tmp_path: Path, lines: list[Any], ids: set[str] = IDS, size: int = 16
) -> tuple[list[Any], Tally]:
    path, tally = tmp_path / "documents.jsonl", Tally()
    path.write_text("\n".join(map(json.dumps, lines)))
    return list(read_documents(path, ids, tally, size)), tally


@pytest.fixture
def shards(tiny: CM3Leon, tmp_path: Path) -> Shards:
    image = tiny.image_tokenizer
    pictures = [
        ({"id": name, "captions": []}, [number] * image.picture_codes)
        for number, name in enumerate(sorted(IDS))
    ]
    documents, _ = read(tmp_path, GOOD)
    about = {"size": image.size, "grid": image.grid, "codes": image.codes}
    folder = tmp_path / "shards"
    write_shards(folder, pictures, documents, image_tokenizer_hash=image.hash, **about)
    return Shards.open(folder)


def test_every_task_but_a_pair_has_its_form() -> None:
    assert ["pair", *FORMS] == list(TASKS)
    assert {line["task"] for line in GOOD} == FORMS.keys() == ROWS.keys()
    RowsConfig(forms=dict.fromkeys(FORMS, 1.0))


def test_documents_of_every_task_become_rows(shards: Shards, tiny: CM3Leon) -> None:
    assert shards.counts == {"pictures": 2, **dict.fromkeys(FORMS, 1)}
    codec = Codec(tiny.codec.vocabulary, tiny.codec.text, tiny.codec.picture_codes, 600)
    for task in FORMS:
        no_mask = MaskConfig(spans_mean=0, field=0)
        rows = Rows(shards, codec, RowsConfig(forms={task: 1.0}), no_mask, 0)
        found: set[str] = set()
        for number in range(30):
            parts = codec.decode(rows.at(number).tolist())
            found.add("|".join("P" if isinstance(part, Picture) else str(part) for part in parts))
        assert found == ROWS[task]


def test_they_are_shown_one_a_line(shards: Shards, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(shards.folder), "-n", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 images, 1 edit, 1 question, 1 structure, 1 grounded, 1 ocr")
    assert lines[4] == (
        "2 structure: Make high quality image from canny edge features <break> [edges] <break> "
        "a fox <break> [fox]"
    )
    assert lines[6] == '4 ocr: draw "FOX" <break> [fox]'
    assert lines[10] == (
        r"8 conversation: Question: What?\nAnswer: a fox\nQuestion: Why?\nAnswer: so <break> [fox]"
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (["no"], "not an object with a task"),
        ({"task": "pair", "picture": "fox"}, "its task is 'pair'; known: edit, question, struc"),
        ({"task": ["ocr"], "picture": "fox"}, "its task is ['ocr']; known"),
        ({"task": "ocr", "picture": "fox"}, "its text is NoneType, not a text"),
        ({"task": "ocr", "picture": 7, "text": "x"}, "its picture is int, not a text"),
        ({"task": "ocr", "picture": "fox", "text": " "}, "its text is empty"),
        ({"task": "ocr", "picture": "fox", "text": "\ud800"}, "damaged"),
        ({**GOOD[0], "instructions": []}, "its instructions are []; a list that is not empty"),
        ({**GOOD[2], "structure": "edges"}, "its structure is 'edges'; known: canny, segm"),
        ({**GOOD[2], "structure": ["canny"]}, "its structure is ['canny']; known"),
        ({**GOOD[3], "objects": [{"name": "x"}]}, "its objects are not {name, box: "),
        ({**GOOD[3], "objects": [{"name": "x", "box": [0, 0, 17, 9]}]},
         "its box [0, 0, 17, 9] is not x1 < x2, y1 < y2 within 16 x 16"),
        ({**GOOD[3], "width": 32}, "its width and height are not both whole numbers"),
        ({**GOOD[3], "width": 900, "height": 16}, "none of its objects lies in the image's mid"),
        ({**GOOD[3], "width": 0, "height": 16}, "its width and height are 0 and 16"),
        ({**GOOD[7], "answer": 2}, "its answer is 2 of 2 options"),
        ({**GOOD[7], "options": "cat"}, "its options are 'cat'; a list"),
        ({**GOOD[8], "turns": [["What?"]]}, "its turns are not [question, answer]"),
        ({**GOOD[8], "turns": [["What?", ""]]}, "its answer is empty"),
    ],
)  # fmt: skip
def test_what_could_not_be_worded_is_skipped_with_its_reason(
    tmp_path: Path, line: Any, why: str
) -> None:
    found, tally = read(tmp_path, [line, GOOD[4]])
    assert [document["task"] for document in found] == ["ocr"]
    ((what, told),) = tally.skipped
    assert what == "documents.jsonl line 1"
    assert why in told


def test_the_page_of_them_says_what_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text("utf-8")
    lines = [json.loads(line) for line in page.splitlines() if line.startswith('    {"task"')]
    found, tally = read(tmp_path, lines, {"25", "25-canny", "7"}, 256)
    assert [one["task"] for one in found] == ["structure", "grounded", "scienceqa", "conversation"]
    assert not tally.skipped
    for name in (*TASKS, *STRUCTURES, *LAYOUTS):
        assert f"`{name}`" in page


def test_documents_of_pictures_that_are_not_there_are_counted(tmp_path: Path) -> None:
    found, tally = read(tmp_path, GOOD, {"fox"})
    assert len(found) == len(GOOD) - 2
    assert (tally.outside, tally.skipped) == (2, [])


def test_boxes_are_seen_on_the_middle_square(tmp_path: Path) -> None:
    assert on_canvas((10, 0, 30, 20), 40, 20, 16) == (0, 0, 16, 16)
    assert on_canvas((20, 5, 40, 10), 40, 20, 16) == (8, 4, 16, 8)
    assert on_canvas((0, 0, 10, 20), 40, 20, 16) is None
    aside = {"name": "ear", "box": [0, 0, 10, 20]}
    tail = {"name": "tail", "box": [20, 5, 40, 10]}
    line = {**GOOD[3], "objects": [aside, tail], "width": 40, "height": 20}
    ((document,), _) = read(tmp_path, [line])
    assert document["objects"] == [{"name": "tail", "box": [8, 4, 16, 8]}]


@given(
    box=st.tuples(*[st.integers(-50, 999)] * 4),
    width=st.integers(1, 900),
    height=st.integers(1, 900),
)
def test_a_box_on_the_canvas_is_a_box(
    box: tuple[int, int, int, int], width: int, height: int
) -> None:
    found = on_canvas(box, width, height, 256)
    if found is not None:
        assert 0 <= found[0] < found[2] <= 256
        assert 0 <= found[1] < found[3] <= 256
    if width == height == 256 and 0 <= box[0] < box[2] <= 256 and 0 <= box[1] < box[3] <= 256:
        assert found == box
