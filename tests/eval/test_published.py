"""Published sets read from their publishers' layouts, and what is said of other files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.published import read_captions, read_questions, read_vizwiz
from tokenizer.errors import UserError

Write = Callable[[str, object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to(name: str, table: object) -> Path:
        path = tmp_path / name
        path.write_text(table if isinstance(table, str) else json.dumps(table), encoding="utf-8")
        return path

    return to


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "val").mkdir(parents=True)
    for name in ("000000000009.jpg", "COCO_val2014_000000000025.jpg", "val/a.jpg", "v_0.jpg"):
        (folder / name).touch()
    return folder


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "info": {},
        "images": [
            {"id": 25, "file_name": "COCO_val2014_000000000025.jpg", "domain": "near-domain"},
            {"id": 9, "file_name": "000000000009.jpg"},
            {"id": 7, "file_name": "nobody says anything of it.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "A cat\nsleeps. "},
            {"id": 2, "image_id": 25, "caption": "A dog."},
            {"id": 3, "image_id": 9, "caption": "Cat"},
            {"id": 4, "image_id": 9, "caption": " "},
        ],
        **changes,
    }


def people(*answers: str) -> list[dict[str, Any]]:
    return [
        {"answer": one, "answer_confidence": "yes", "answer_id": place}
        for place, one in enumerate(answers, start=1)
    ]


def asked(**changes: Any) -> dict[str, Any]:
    rows = [
        {"question_id": 250, "image_id": 25, "question": "What is it?"},
        {"question_id": 90, "image_id": 9, "question": "How many?"},
        {"question_id": 251, "image_id": 25, "question": "Is it?"},
    ]
    return {"data_subtype": "val2014", "questions": rows, **changes}


def answered(**changes: Any) -> dict[str, Any]:
    rows = [
        {"question_id": 90, "answer_type": "number", "answers": people("2", "two")},
        {"question_id": 251, "answer_type": "yes/no", "answers": people("yes", "no")},
        {"question_id": 250, "answers": people("dog", "a dog")},
        {"question_id": 1, "answers": people("of a question that is not asked")},
    ]
    return {"annotations": rows, **changes}


def vizwiz(**changes: Any) -> dict[str, Any]:
    one = {"image": "v_0.jpg", "question": "What?", "answers": people("unanswerable", "can")}
    return {**one, "answerable": 0, **changes}


def test_captions_come_by_picture_in_the_order_of_the_pictures(write: Write, images: Path) -> None:
    dog, cat = read_captions(write("captions.json", coco()), images)
    assert (dog.id, dog.captions, dog.kind) == ("25", ("A dog.",), "near-domain")
    assert (cat.id, cat.captions, cat.kind) == ("9", ("A cat\nsleeps. ", "Cat"), "picture")
    assert dog.image == images / "COCO_val2014_000000000025.jpg"
    assert cat.image.is_file()


def test_pictures_may_lie_in_folders(write: Write, images: Path) -> None:
    table = coco(
        images=[{"id": "a", "file_name": "val/a.jpg"}],
        annotations=[{"image_id": "a", "caption": "An a"}],
    )
    (only,) = read_captions(write("captions.json", table), images)
    assert (only.id, only.image.is_file()) == ("a", True)


def test_questions_are_joined_to_their_answers(write: Write, images: Path) -> None:
    found = read_questions(write("q.json", asked()), write("a.json", answered()), images)
    assert [(one.id, one.question, one.answers, one.kind) for one in found] == [
        ("250", "What is it?", ("dog", "a dog"), "question"),
        ("90", "How many?", ("2", "two"), "number"),
        ("251", "Is it?", ("yes", "no"), "yes/no"),
    ]
    names = [one.image.name for one in found]
    assert names[0] == names[2] == "COCO_val2014_000000000025.jpg"
    assert names[1] == "000000000009.jpg"  # of 2017, where the name of 2014 is not there


def test_vizwiz_is_one_list(write: Write, images: Path) -> None:
    (one,) = read_vizwiz(write("val.json", [vizwiz()]), images)
    assert (one.id, one.answers, one.kind) == ("v_0.jpg", ("unanswerable", "can"), "unanswerable")
    (one,) = read_vizwiz(write("val.json", [vizwiz(answer_type="other")]), images)
    assert (one.question, one.kind, one.image.is_file()) == ("What?", "other", True)
    (one,) = read_vizwiz(write("val.json", [vizwiz(answerable=[])]), images)
    assert one.kind == "question"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ([], "a list; an object with a list 'annotations' is wanted"),
        ({"info": {}, "images": []}, "no list 'annotations' but 'info', 'images'"),
        (asked(), "no list 'annotations' but 'data_subtype', 'questions'"),
        (answered(), "its 'annotations' have no 'image_id'"),
        (coco(images=None), "no list 'images'"),
        (coco(annotations=[]), "its 'annotations' are empty"),
        (coco(images=[]), "its 'images' are empty"),
        (coco(images=[{"id": 3, "file_name": "x"}]), "3 captions have no image .* '9' for one"),
        (coco(images=coco()["images"] * 2), "id '25' stands there 2 times"),
        (coco(images=[*coco()["images"], 3]), "one of its 'images' has no number or name 'id'"),
        (coco(images=[{"id": 9, "file_name": 3}, {"id": 25, "file_name": "x"}]), "no text 'file_n"),
        (coco(annotations=[{"image_id": 9, "caption": None}]), "no text 'caption'"),
        (coco(annotations=[{"image_id": 9, "caption": "\n"}]), "no caption holds a word"),
        (
            coco(images=[{"id": 9, "file_name": "no.jpg"}, {"id": 25, "file_name": "v_0.jpg"}]),
            "1 of 2 images are missing, 'no.jpg' for one",
        ),
        (
            coco(images=[{"id": 9, "file_name": "../q.json"}, {"id": 25, "file_name": "v_0.jpg"}]),
            "leads out of the folder",
        ),
        (
            coco(images=[{"id": 9, "file_name": "\0" * 999}, {"id": 25, "file_name": "v_0.jpg"}]),
            "1 of 2 images are missing",
        ),
    ],
)
def test_other_files_are_no_captions(write: Write, images: Path, table: object, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read_captions(write("captions.json", table), images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("questions", "annotations", "said"),
    [
        (answered(), answered(), "no list 'questions' but 'annotations'"),
        (asked(), asked(), "no list 'annotations' but 'data_subtype', 'questions'"),
        (asked(), coco(), "its 'annotations' have no 'question_id'"),
        (asked(questions=[]), answered(), "its 'questions' are empty"),
        (
            asked(),
            answered(annotations=answered()["annotations"][:2]),
            "answers 2 of the 3 .*'250'",
        ),
        (asked(questions=asked()["questions"] * 2), answered(), "question_id '250' stands"),
        (
            asked(questions=[{"question_id": 1, "image_id": 5, "question": "What?"}]),
            answered(),
            "1 of 1 images are missing, 'COCO_val2014_000000000005.jpg'",
        ),
        (
            asked(questions=[{"question_id": 1, "image_id": 9, "question": 5}]),
            answered(),
            "one of its 'questions' has no text 'question'",
        ),
        (
            asked(questions=asked()["questions"][:1]),
            answered(annotations=[{"question_id": 250, "answers": []}]),
            "has no list 'answers'",
        ),
        (
            asked(questions=asked()["questions"][:1]),
            answered(annotations=[{"question_id": 250, "answers": ["dog"]}]),
            "one of its 'answers' has no text 'answer'",
        ),
    ],
)
def test_other_files_are_no_questions(
    write: Write, images: Path, questions: object, annotations: object, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read_questions(write("q.json", questions), write("a.json", annotations), images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (answered(), "it holds 'annotations'; a list of objects with 'image', 'question'"),
        ([], "its 'entries' are empty"),
        (3, "it holds 3; a list"),
        ([{"image": "v_0.jpg", "question": "of the test split"}], "'entries' have no 'answers'"),
        ([vizwiz(), vizwiz()], "image 'v_0.jpg' stands there 2 times"),
        ([vizwiz(image="v_1.jpg")], "1 of 1 images are missing"),
        ([vizwiz(), "what"], "one of its 'entries' has no text 'image'"),
    ],
)
def test_other_files_are_not_vizwiz(write: Write, images: Path, table: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_vizwiz(write("val.json", table), images)


def test_what_else_is_refused(write: Write, images: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_captions(write("captions.json", coco()), images / "val" / "a.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        read_captions(images, images)
