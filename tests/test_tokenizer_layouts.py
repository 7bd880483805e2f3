"""Published data sets, as tiny files of their true layouts -> slices of pictures and documents."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from cm3leon.cli.training import Layout
from tokenizer.entries import documents_of, samples_of
from tokenizer.errors import UserError
from tokenizer.layouts import LAYOUTS, find_slices
from tokenizer.tars import Tally


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


def test_the_command_knows_the_layouts() -> None:
    assert get_args(Layout) == LAYOUTS


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
        "40": f"its picture is missing: {images} holds no 40.jpg",
        "50": "'../captions.json' leads out of the folder of pictures",
    }
    assert list(read.captions) == ["9", "25", "30"]


def test_many_files_are_one_data_set_cut_into_slices(tmp_path: Path, images: Path) -> None:
    more = coco()
    more["annotations"] = [{"image_id": 30, "caption": "A cow."}]
    names = [write(tmp_path / "a.json", coco()), write(tmp_path / "b.json", more)]
    read = Read("coco", names, images, size=2)
    assert read.captions["30"] == ["A cow."]
    assert [str(one) for one in read.slices] == [
        "a.json and 1 more, pictures from 1",
        "a.json and 1 more, pictures from 3",
    ]
    stamps = [json.dumps(one.stamp()) for one in read.slices]
    paint(images / f"{30:012d}.jpg", 200)
    (images / f"{30:012d}.jpg").write_bytes(b"another")
    assert [
        json.dumps(one.stamp()) == old for one, old in zip(read.slices, stamps, strict=True)
    ] == [
        True,
        False,
    ]
    more["annotations"][0]["caption"] = "A calf."
    write(tmp_path / "b.json", more)
    changed = find_slices("coco", names, images, 2)
    assert json.dumps(changed[0].stamp()) == stamps[0]
    assert json.dumps(changed[1].stamp()) != json.dumps(read.slices[1].stamp())


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
        "40": f"its picture is missing: {images} holds no COCO_train2014_000000000040.jpg nor "
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
    talk("Describe the picture.\n<image>", "A red fox.", "Who made it?", "Nobody knows."),
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
        [("Describe the picture.", "A red fox."), ("Who made it?", "Nobody knows.")],
        [("Where?", "In the snow."), ("Why?", "To hunt.")],
    ]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (talk("What?", "A fox."), "it shows 0 pictures; one placeholder <image> is wanted"),
        (talk("<image> <image> What?", "A fox."), "it shows 2 pictures; one placeholder"),
        (talk("<image> What?", "<|image|> A fox."), "it shows 2 pictures"),
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
    assert read.tally.ignored == {"conversations without a picture": 3}
    ((what, why),) = read.tally.skipped
    assert what == "talks.jsonl entry 5"
    assert why.startswith("damaged (")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Three prompts of InstructPix2Pix: two good pairs, one pair, one pair cut in half."""
    root = tmp_path / "clip-filtered"
    for number, seeds in ((7, (11, 22)), (8, (33,)), (9, (44,))):
        folder = root / f"{number:07d}"
        prompt = {"input": f"fox {number}", "edit": f"give it {number} hats", "output": "in hats"}
        write(folder / "prompt.json", prompt)
        (folder / "metadata.jsonl").write_text('{"seed": 11, "clip_sim_0": 0.3}\n')
        for seed in seeds:
            paint(folder / f"{seed}_0.jpg")
            paint(folder / f"{seed}_1.jpg")
    (root / "0000009" / "44_1.jpg").unlink()
    return root


def test_instruct_pix2pix_folders(pairs: Path) -> None:
    read = Read("instruct-pix2pix", [str(pairs)], None, size=2)
    assert [str(one) for one in read.slices] == [
        f"{pairs}, prompts from 1",
        f"{pairs}, prompts from 3",
    ]
    assert read.captions == {
        f"{name}_{side}": [("fox 7" if "7/" in name else "fox 8", "in hats")[side]]
        for name in ("0000007/11", "0000007/22", "0000008/33")
        for side in (0, 1)
    }
    assert read.documents == [
        {"task": "edit", "source": f"{name}_0", "target": f"{name}_1", "instructions": [line],
         "type": ""}
        for name, line in (
            ("0000007/11", "give it 7 hats"),
            ("0000007/22", "give it 7 hats"),
            ("0000008/33", "give it 8 hats"),
        )
    ]  # fmt: skip
    assert read.tally.skipped == [("0000009/44", "its 44_1.jpg is missing")]


def test_seeds_json_says_which_pairs_are_wanted(pairs: Path) -> None:
    write(pairs / "seeds.json", [["0000008", ["33"]], ["0000007", ["22", "22", "99"]]])
    read = Read("instruct-pix2pix", [str(pairs)], None)
    assert [one["source"] for one in read.documents] == ["0000008/33_0", "0000007/22_0"]
    assert read.tally.skipped == [("0000007/99", "its 99_0.jpg is missing")]
    for bad in ([["../x", ["1"]]], [["0000007", []]], [7]):
        write(pairs / "seeds.json", bad)
        with pytest.raises(UserError, match=r"seeds\.json: .* is not \[folder, \[seeds\]\]; make"):
            find_slices("instruct-pix2pix", [str(pairs)], None)


def test_bad_prompts_are_skipped_and_a_change_is_seen(pairs: Path) -> None:
    (stamp,) = (one.stamp() for one in find_slices("instruct-pix2pix", [str(pairs)], None))
    (pairs / "0000007" / "prompt.json").write_text("{half")
    write(pairs / "0000008" / "prompt.json", {"input": "a", "output": "b"})
    write(pairs / "0000009" / "prompt.json", {"edit": "  "})
    (pairs / "0000010").mkdir()
    write(pairs / "0000010" / "prompt.json", {"edit": "x"})
    read = Read("instruct-pix2pix", [str(pairs)], None)
    assert [why for _, why in read.tally.skipped][1:] == [
        "its prompt.json has no 'edit'",
        "its edit is empty",
        "it holds no SEED_0.jpg",
    ]
    assert "prompt.json: not JSON" in read.tally.skipped[0][1]
    assert read.slices[0].stamp() != stamp


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
        ("llava", [[talk("Why?", "So.", image=None)]], r"0\.json: no picture is told of; name oth"),
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


def test_what_is_not_there_is_named(tmp_path: Path, images: Path) -> None:
    for layout in ("coco", "vqa", "llava"):
        with pytest.raises(UserError, match=r"none\.json: cannot be read \(No such file"):
            find_slices(layout, [str(tmp_path / "none.json")], images)
        with pytest.raises(UserError, match="does not tell where its pictures lie; give --images"):
            find_slices(layout, ["x.json"], None)
        with pytest.raises(UserError, match="nowhere: no such folder of pictures"):
            find_slices(layout, ["x.json"], tmp_path / "nowhere")
    with pytest.raises(UserError, match="leave out --images"):
        find_slices("instruct-pix2pix", [str(tmp_path)], images)
    with pytest.raises(UserError, match="nowhere: no such folder; name the one that holds"):
        find_slices("instruct-pix2pix", [str(tmp_path / "nowhere")], None)
    with pytest.raises(UserError, match=re.escape(f"no prompt.json is found in {images}")):
        find_slices("instruct-pix2pix", [str(images)], None)


def test_odd_files_are_skipped_as_those_of_tars_are(tmp_path: Path, images: Path) -> None:
    odd = {"folder": "is", "null\0byte": "is no file name", "x" * 300: "cannot be read", "": "out"}
    (images / "folder").mkdir()
    table = coco()
    table["images"] = [{"id": name[:9], "file_name": name} for name in odd]
    table["annotations"] = [{"image_id": "folder", "caption": "x"}]
    read = Read("coco", [write(tmp_path / "captions.json", table)], images)
    assert len(read.tally.skipped) == len(odd)
    assert read.captions == {}
    assert dict(read.tally.skipped)["folder"] == "not a plain file"
