"""COCO, VQA and LLaVA, as tiny files of their true layouts -> pictures and documents."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokenizer.data.entries import documents_of, samples_of
from tokenizer.data.layouts import find_slices
from tokenizer.data.tars import Tally
from tokenizer.errors import UserError


def write(path: Path, table: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return str(path)


def paint(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(path)


class Read:
    """All that the slices of a data set hold."""

    def __init__(
        self, layout: str, names: Sequence[str], images: Path | None, size: int = 1000
    ) -> None:
        self.slices = find_slices(layout, names, images, size)
        self.tally = Tally()
        self.captions: dict[str, list[str]] = {}
        self.documents: list[dict[str, Any]] = []
        for one in self.slices:
            entries = one.entries()
            for sample in samples_of(one.images, entries, self.tally):
                assert sample.picture
                self.captions[sample.metadata["id"]] = sample.metadata["captions"]
            self.documents += documents_of(entries, self.captions.keys(), self.tally)


def coco() -> dict[str, Any]:
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "width": 6, "height": 4, "license": 3}
            for number in (9, 25, 30)
        ],
        "annotations": [
            {"image_id": 25, "id": 1, "caption": "A red fox. "},
            {"image_id": 9, "id": 2, "caption": "A cat."},
            {"image_id": 25, "id": 3, "caption": "A fox in the snow."},
            {"image_id": 25, "id": 4, "caption": "A red fox."},
        ],
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Pictures of COCO, named as in 2017 and as in 2014."""
    folder = tmp_path / "images"
    for number in (9, 25, 30):
        paint(folder / f"{number:012d}.jpg", number)
        paint(folder / f"COCO_train2014_{number:012d}.jpg", number)
    return folder


def test_coco_captions(tmp_path: Path, images: Path) -> None:
    read = Read("coco", [write(tmp_path / "captions.json", coco())], images)
    assert read.captions == {"9": ["A cat."], "25": ["A red fox.", "A fox in the snow."], "30": []}
    assert read.documents == []
    assert read.tally == Tally()


def test_bad_captions_are_skipped_and_named(tmp_path: Path, images: Path) -> None:
    table = coco()
    table["annotations"] += [
        {"image_id": 25, "caption": " "},
        {"image_id": 9},
        {"image_id": 7, "caption": "lost"},
        "caption",
    ]
    table["images"] += [
        {"id": 40, "file_name": "40.jpg"},
        {"id": 50, "file_name": "../captions.json"},
        {"id": 60},
    ]
    read = Read("coco", [write(tmp_path / "captions.json", table)], images)
    assert dict(read.tally.skipped) == {
        "captions.json annotation 5": "its caption is empty",
        "captions.json annotation 6": "its caption is NoneType, not a text",
        "captions.json annotation 7": "no image has its image_id 7",
        "captions.json annotation 8": "image_id and caption are wanted",
        "captions.json image 6": "id and file_name are wanted",
        "40": f"its image is missing: {images} holds no 40.jpg",
        "50": "'../captions.json' leads out of the folder of images",
    }
    assert list(read.captions) == ["9", "25", "30"]


def vqa() -> tuple[dict[str, Any], dict[str, Any]]:
    asked = [(9000, 9, "Is it a cat?"), (25000, 25, "What is it?"), (25001, 25, "How many?")]
    told = {25001: ("1", "number"), 9000: ("yes", "yes/no"), 25000: ("fox", "other")}
    questions = {
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "data_subtype": "train2014",
        "questions": [
            {"image_id": image, "question": text, "question_id": number}
            for number, image, text in asked
        ],
    }
    annotations = {
        "data_type": "mscoco",
        "data_subtype": "train2014",
        "annotations": [
            {
                "question_type": "what is",
                "multiple_choice_answer": answer,
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": 1},
                    {"answer": "maybe", "answer_confidence": "no", "answer_id": 2},
                ],
                "image_id": number // 1000,
                "answer_type": kind,
                "question_id": number,
            }
            for number, (answer, kind) in told.items()
        ],
    }
    return questions, annotations


@pytest.mark.parametrize("year", [2014, 2017])
def test_vqa_joins_questions_and_annotations(tmp_path: Path, year: int) -> None:
    questions, annotations = vqa()
    for number in (9, 25):
        name = f"{number:012d}.jpg"
        paint(tmp_path / "images" / (f"COCO_train2014_{name}" if year == 2014 else name))
    names = [
        write(tmp_path / "v2_mscoco_train2014_annotations.json", annotations),
        write(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", questions),
    ]
    for order in (names, names[::-1]):
        read = Read("vqa", order, tmp_path / "images")
        assert read.captions == {"9": [], "25": []}
        assert read.tally == Tally()
        assert read.documents == [
            {"task": "question", "picture": str(picture), "question": asked, "answer": answer,
             "type": kind, "answers": [answer, "maybe"]}
            for picture, asked, answer, kind in (
                (9, "Is it a cat?", "yes", "yes/no"),
                (25, "What is it?", "fox", "other"),
                (25, "How many?", "1", "number"),
            )
        ]  # fmt: skip


def test_questions_without_an_answer_are_skipped(tmp_path: Path, images: Path) -> None:
    questions, annotations = vqa()
    annotations["annotations"][0]["multiple_choice_answer"] = ""
    annotations["annotations"][2]["question_id"] = 1
    questions["questions"] += [{"image_id": 40, "question_id": 2, "question": "Who?"}, {}]
    annotations["annotations"] += [
        {"question_id": 2, "multiple_choice_answer": "me", "answers": None},
        None,
    ]
    names = [write(tmp_path / "q.json", questions), write(tmp_path / "a.json", annotations)]
    read = Read("vqa", names, images)
    assert dict(read.tally.skipped) == {
        "question 25001": "its multiple_choice_answer is empty",
        "question 25000": "no annotation answers it",
        "annotation of question 1": "no such question is there",
        "q.json question 5": "question_id, image_id and question are wanted",
        "a.json annotation 5": "question_id is wanted",
        "40": f"its image is missing: {images} holds no COCO_train2014_000000000040.jpg nor "
        "000000000040.jpg",
    }
    assert [document["question"] for document in read.documents] == ["Is it a cat?"]
    assert read.tally.outside == 1


def talk(*values: str, image: str | None = "coco/a.jpg") -> dict[str, Any]:
    turns = [
        {"from": ("human", "gpt")[number % 2], "value": value}
        for number, value in enumerate(values)
    ]
    return {"id": "1", **({"image": image} if image else {}), "conversations": turns}


TALKS = [
    talk("<image>\nWhat is it?", "A fox."),
    talk("Where?\n<|image|>", "In the snow.", "Why?", "To hunt.", image="b.png"),
    talk("Describe the image.\n<image>", "A red fox.", "Who made it?", "Nobody knows."),
]


@pytest.mark.parametrize("lines", [False, True])
def test_llava_conversations(tmp_path: Path, lines: bool) -> None:
    paint(tmp_path / "coco" / "a.jpg")
    paint(tmp_path / "b.png")
    path = tmp_path / "talks.json"
    path.write_text("\n".join(map(json.dumps, TALKS)) + "\n" if lines else json.dumps(TALKS))
    read = Read("llava", [str(path)], tmp_path)
    assert read.captions == {"coco/a.jpg": [], "b.png": []}
    assert read.tally == Tally()
    assert [(one["task"], one["picture"]) for one in read.documents] == [
        ("conversation", "coco/a.jpg"), ("conversation", "coco/a.jpg"), ("conversation", "b.png"),
    ]  # fmt: skip
    assert [one["turns"] for one in read.documents] == [
        [("What is it?", "A fox.")],
        [("Describe the image.", "A red fox."), ("Who made it?", "Nobody knows.")],
        [("Where?", "In the snow."), ("Why?", "To hunt.")],
    ]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (talk("What?", "A fox."), "it shows 0 images; one placeholder <image> is wanted"),
        (talk("<image> <image> What?", "A fox."), "it shows 2 images; one placeholder"),
        (talk("<image> What?", "<|image|> A fox."), "it shows 2 images"),
        (talk("<image> What?", " "), "its turn 2 is empty"),
        (talk("<image>", "A fox."), "its turn 1 is empty"),
        (talk("<image> What?"), "it has 1 turns; an answer to every question is wanted"),
        (talk("<image> What?", "A fox.", image=None), "its 'image' is not the path of one"),
        ({**TALKS[0], "image": ["a.jpg", "b.jpg"]}, "its 'image' is not the path of one"),
        ({**TALKS[0], "conversations": TALKS[0]["conversations"][::-1]}, "turn 1 has no 'from' 'h"),
        ({**TALKS[0], "conversations": [{"role": "user"}]}, "its turn 1 has no 'from' 'human'"),
        ({"image": "b.png"}, "not a conversation: image and conversations are wanted"),
        (7, "not a conversation"),
    ],
)
def test_bad_conversations_are_skipped(tmp_path: Path, bad: Any, why: str) -> None:
    paint(tmp_path / "coco" / "a.jpg")
    read = Read("llava", [write(tmp_path / "talks.json", [TALKS[0], bad])], tmp_path)
    ((what, told),) = read.tally.skipped
    assert what == "talks.json entry 2"
    assert why in told
    assert len(read.documents) == 1


def test_conversations_without_a_picture_are_counted(tmp_path: Path) -> None:
    paint(tmp_path / "coco" / "a.jpg")
    mute = [talk("Why?", "So.", image=None)] * 3
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, [TALKS[0], *mute])) + "\n{half")
    read = Read("llava", [str(path)], tmp_path)
    assert read.tally.ignored == {"conversations without an image": 3}
    ((what, why),) = read.tally.skipped
    assert what == "talks.jsonl entry 5"
    assert why.startswith("damaged (")


@pytest.mark.parametrize(
    ("layout", "tables", "complaint"),
    [
        ("coco", ["{half"], r"0\.json: not JSON \(.*\); name the annotation file, unpacked, or f"),
        ("coco", [[1]], r"0\.json: a list; an object with a list 'annotations' is wanted"),
        ("coco", [{"images": []}], r"0\.json: it has no list 'annotations' but 'images'; name a f"),
        ("coco", [{**coco(), "annotations": [{"image_id": 9, "bbox": []}]}],
         r"0\.json: its 'annotations' have no 'caption'; name a file of this layout"),
        ("coco", [{**coco(), "images": [{"id": 9}]}], r"its 'images' have no 'file_name'"),
        ("coco", [{**coco(), "images": []}], r"its 'images' are empty; name another file"),
        ("vqa", [vqa()[0]], r"0\.json: the annotations are missing; name both as SOURCES, v2_"),
        ("vqa", [vqa()[1]], r"0\.json: the questions are missing; name both as SOURCES"),
        ("vqa", [vqa()[0], coco()], r"1\.json: its 'annotations' have no 'question_id'"),
        ("vqa", [7, vqa()[0]], r"0\.json: a JSON int; an object with a list 'annotations'"),
        ("llava", [{"image": "a.jpg"}], r"0\.json: its first line is no object with 'conversati"),
        ("llava", [[{"image": "a.jpg"}]], r"0\.json: its 'conversations' have no 'conversations'"),
        ("llava", [[]], r"0\.json: its 'conversations' are empty"),
        ("llava", [7], r"0\.json: not a list of conversations"),
        ("llava", [[talk("Why?", "So.", image=None)]], r"0\.json: no image is told of; name oth"),
    ],
)  # fmt: skip
def test_files_of_another_layout_are_refused(
    tmp_path: Path, images: Path, layout: str, tables: list[Any], complaint: str
) -> None:
    names = [str(tmp_path / f"{number}.json") for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        Path(name).write_text(table if isinstance(table, str) else json.dumps(table))
    with pytest.raises(UserError, match=complaint) as caught:
        find_slices(layout, names, images)
    assert "\n" not in str(caught.value)


def test_odd_files_are_skipped_as_those_of_tars_are(tmp_path: Path, images: Path) -> None:
    odd = {
        "folder": "is",
        "lone \ud800": "is damaged",
        "null\0byte": "is no file name",
        "x" * 300: "cannot be read",
        "": "out",
    }
    (images / "folder").mkdir()
    table = coco()
    table["images"] = [{"id": name[:9], "file_name": name} for name in odd]
    table["annotations"] = [{"image_id": "folder", "caption": "x"}]
    read = Read("coco", [write(tmp_path / "captions.json", table)], images)
    assert len(read.tally.skipped) == len(odd)
    assert read.captions == {}
    assert dict(read.tally.skipped)["folder"] == "not a plain file"
