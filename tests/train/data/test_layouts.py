"""From a published data set, by the command, to token shards and to rows of training."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cm3leon.__main__ import main
from cm3leon.pipeline import CM3Leon
from tokenizer.codec import Codec
from tokenizer.data.layouts import find_slices
from tokenizer.data.shards import Shards
from tokenizer.distributed import DistributedContext
from tokenizer.document import Picture
from tokenizer.errors import UserError
from train.config import RowsConfig
from train.data import encode as encoding
from train.data.encode import Work, encode
from train.data.rows import Rows
from train.objective import MaskConfig

NAMES = ["000000000009.jpg", "000000000025.jpg", "000000000030.jpg"]
Command = Callable[..., Shards]


class Rank(DistributedContext):
    """One of two processes, which waits for nobody."""

    def wait(self) -> None:
        pass


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name in NAMES:
        pixels_HW3 = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels_HW3).save(folder / name)
    return folder


@pytest.fixture
def command(tmp_path: Path, tiny_folder: Path) -> Command:
    """`data encode` with some words; the shards that it makes."""

    def run(*more: object) -> Shards:
        out = tmp_path / "shards"
        needed = ["--tokenizer", tiny_folder / "image_tokenizer", "--out", out]
        assert main(["data", "encode", *map(str, [*more, *needed])]) == 0
        assert not out.with_name("shards.parts").exists()
        shards = Shards.open(out)
        shards.verify()
        return shards

    return run


def write(path: Path, table: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def coco() -> dict[str, Any]:
    return {
        "images": [{"id": int(name[:12]), "file_name": name} for name in NAMES],
        "annotations": [
            {"image_id": 25, "caption": "A red fox."},
            {"image_id": 9, "caption": "A cat."},
            {"image_id": 25, "caption": "A fox."},
        ],
    }


def rows_of(shards: Shards, tiny: CM3Leon, **forms: float) -> set[str]:
    """What rows of these forms read as, each picture as its id."""
    codec = Codec(tiny.codec.vocabulary, tiny.codec.text, tiny.codec.picture_codes, 600)
    rows = Rows(shards, codec, RowsConfig(forms=forms), MaskConfig(spans_mean=0, field=0), 0)
    ids = {codes: picture["id"] for picture, codes in map(shards.picture, range(shards.pictures))}
    found: set[str] = set()
    for number in range(60):
        parts = codec.decode(rows.at(number).tolist())
        texts = [ids[part.codes] if isinstance(part, Picture) else str(part) for part in parts]  # type: ignore[index]
        found.add("|".join(texts))
    return found


def test_coco_becomes_pairs(tmp_path: Path, images: Path, command: Command, tiny: CM3Leon) -> None:
    path = write(tmp_path / "captions_train2017.json", coco())
    shards = command(path, "--as", "coco", "--images", images)
    assert shards.counts == {"pictures": 3, "pair": 2}
    assert rows_of(shards, tiny, pair=1.0) == {" A red fox.|25", " A fox.|25", " A cat.|9"}
    told = "Describe the given picture. "
    assert f"{told}A cat.|9" in rows_of(shards, tiny, described=1.0)


def test_vqa_becomes_questions(
    tmp_path: Path, images: Path, command: Command, tiny: CM3Leon
) -> None:
    asked = {"image_id": 25, "question": "What is it?", "question_id": 25000}
    told = {"question_id": 25000, "image_id": 25, "multiple_choice_answer": "fox",
            "answers": [{"answer": "fox", "answer_id": 1}], "answer_type": "other"}  # fmt: skip
    questions = {"data_subtype": "train2014", "questions": [asked]}
    one = write(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", questions)
    two = write(tmp_path / "v2_mscoco_train2014_annotations.json", {"annotations": [told]})
    shards = command(one, two, "--as", "vqa", "--images", images)
    assert shards.counts == {"pictures": 1, "question": 1}
    assert shards.document(0)["type"] == "other"
    assert rows_of(shards, tiny, question=1.0) == {
        "Question: What is it? Answer: fox.|25",
        "Question: What is it?\nfox|25",
        "Question: What is it? The answer is fox.|25",
    }


def test_instruct_pix2pix_becomes_edits_and_pairs(
    tmp_path: Path, images: Path, command: Command, tiny: CM3Leon
) -> None:
    folder = tmp_path / "clip-filtered" / "0000007"
    write(folder / "prompt.json", {"input": "a fox", "edit": "add a hat", "output": "a hat"})
    for name, target in zip(NAMES, ("11_0.jpg", "11_1.jpg", "22_0.jpg"), strict=True):
        (folder / target).write_bytes((images / name).read_bytes())
    shards = command(folder.parent, "--as", "instruct-pix2pix")
    assert shards.counts == {"pictures": 2, "pair": 2, "edit": 1}
    assert rows_of(shards, tiny, edit=0.5, pair=0.5) == {
        "Edit first image following the instruction|0000007/11_0| add a hat|0000007/11_1",
        " a fox|0000007/11_0",
        " a hat|0000007/11_1",
    }
    (skipped,) = (shards.folder / "skipped.jsonl").read_text().splitlines()
    assert json.loads(skipped) == {"what": "0000007/22", "why": "its 22_1.jpg is missing"}


def test_llava_becomes_conversations(
    tmp_path: Path,
    images: Path,
    command: Command,
    tiny: CM3Leon,
    capsys: pytest.CaptureFixture[str],
) -> None:
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A fox."},
        {"from": "human", "value": "Its colour?"},
        {"from": "gpt", "value": "Red."},
    ]
    talks = [
        {"id": "1", "image": "images/" + NAMES[0], "conversations": turns[:2]},
        {"id": "2", "image": "images/" + NAMES[1], "conversations": turns},
        {"id": "3", "image": "images/" + NAMES[0], "conversations": turns[2:]},
    ]
    path = write(tmp_path / "llava_instruct.json", talks)
    shards = command(path, "--as", "llava", "--images", tmp_path)
    assert shards.counts == {"pictures": 2, "conversation": 2}
    assert rows_of(shards, tiny, conversation=1.0) == {
        f"Question: What is it?\nAnswer: A fox.|images/{NAMES[0]}",
        "Question: What is it?\nAnswer: A fox.\nQuestion: Its colour?\nAnswer: Red."
        f"|images/{NAMES[1]}",
    }
    assert "skipped llava_instruct.json entry 3: it shows 0 images" in capsys.readouterr().err
    assert main(["data", "inspect", str(shards.folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[2] == (
        rf"0 conversation: Question: What is it?\nAnswer: A fox. <break> [images/{NAMES[0]}]"
    )


def test_documents_come_beside_a_layout(
    tmp_path: Path, images: Path, command: Command, tiny: CM3Leon
) -> None:
    lines = [
        {"task": "ocr", "picture": "30", "text": "FOX"},
        {"task": "ocr", "picture": "31", "text": "CAT"},
        {"task": "ocr", "picture": "30"},
    ]
    documents = tmp_path / "documents.jsonl"
    documents.write_text("\n".join(map(json.dumps, lines)))
    path = write(tmp_path / "captions.json", coco())
    more = ("--as", "coco", "--images", images, "--documents", documents)
    shards = command(path, *more)
    assert shards.counts == {"pictures": 3, "pair": 2, "ocr": 1}
    assert rows_of(shards, tiny, ocr=1.0) == {'draw "FOX"|30'}


def test_bad_words_are_one_line(
    tmp_path: Path, images: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "captions.json", {"images": []})
    needed = ["--tokenizer", str(tiny_folder / "image_tokenizer"), "--out", str(tmp_path / "out")]
    for more, complaint in (
        (["--images", str(images)], "--images goes with --as"),
        (["--as", "coco"], "give --images FOLDER"),
        (["--as", "coco", "--images", str(images)], "it has no list 'annotations' but 'images'"),
        (["--as", "coco", "--images", str(images), "--documents", "x"], "annotations"),
    ):
        assert main(["data", "encode", str(path), *more, *needed]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert complaint in line
    assert main(["data", "encode", str(path), "--as", "flickr", *needed]) == 2


class MeanTokenizer:
    """A stand-in: the code of each quarter is its mean brightness, 0..9; dies when it is told."""

    hash, size, grid, codes = "mean", 4, 2, 10

    def __init__(self, last: int = 10**9) -> None:
        self.left = last

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        mean_BHW = torch.nn.functional.avg_pool2d((pixels_B3HW + 1) / 2, 2).mean(1)
        return (mean_BHW * 9).round().long().flatten(1)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def conversations(tmp_path: Path, images: Path) -> list[Any]:
    """Three slices of one picture each."""
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A fox."}]
    talks = [{"image": name, "conversations": turns} for name in (*NAMES, NAMES[0], "none.jpg")]
    path = write(tmp_path / "talks.json", talks)
    return list(find_slices("llava", [str(path)], images, 1))


def test_slices_are_shared_and_resumed_as_tars_are(tmp_path: Path, images: Path) -> None:
    slices = conversations(tmp_path, images)
    assert len(slices) == 4

    def run(name: str, last: int = 10**9, **more: Any) -> dict[str, bytes]:
        work = Work(image_tokenizer=MeanTokenizer(last))
        encode(slices, None, None, work, tmp_path / name, say=lambda _: None, **more)
        return bytes_of(tmp_path / name) if not more or more["dist"].rank == 0 else {}

    alone = run("alone")
    assert Shards.open(tmp_path / "alone").counts == {"pictures": 3, "conversation": 4}
    assert run("shared", dist=Rank(rank=1, size=2)) == {}
    assert len(list((tmp_path / "shared.parts").iterdir())) == 2
    assert run("shared", last=2, dist=Rank(rank=0, size=2)) == alone
    with pytest.raises(KeyboardInterrupt):
        run("killed", last=2)
    assert run("killed", last=1) == alone  # only the third was left to do
    assert b"its image is missing" in alone["skipped.jsonl"]


def test_held_out_pictures_take_their_documents_along(tmp_path: Path, images: Path) -> None:
    work = Work(image_tokenizer=MeanTokenizer(), exclude={NAMES[0]})
    said: list[str] = []
    slices = conversations(tmp_path, images)
    counts = encode(slices, None, None, work, tmp_path / "out", say=said.append)
    assert counts == {"pictures": 2, "conversation": 2}
    assert NAMES[0] not in (tmp_path / "out" / "documents.jsonl").read_text()
    assert "3 documents left out: an image of theirs is not there" in said


def test_too_many_missing_pictures_stop_it(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "FEW", 4)
    path = write(tmp_path / "captions.json", coco() | {"images": [
        *coco()["images"], {"id": 7, "file_name": "7.jpg"},
    ]})  # fmt: skip
    slices = find_slices("coco", [str(path)], images)
    work = Work(image_tokenizer=MeanTokenizer())
    complaint = r"captions\.json, images from 1: 1 of 4 things read are damaged, 25%; at most 10%"
    with pytest.raises(UserError, match=complaint):
        encode(slices, None, None, work, tmp_path / "out", say=lambda _: None)
    assert not (tmp_path / "out").exists()


def test_the_help_of_it_needs_no_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["data", "encode", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("--as", "--images", "--documents", "coco", "vqa", "instruct-pix2pix", "llava"):
        assert word in shown
