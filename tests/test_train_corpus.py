"""From raw tars to pixels, text lines and token shards, with four coloured pictures."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tokenizer.errors import UserError
from tokenizer.shards import Shards
from tokenizer.tars import Tally
from train.corpus import encode_corpus, load_pixels, read_pictures, text_lines

SIZE = 4
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}
EDITS: list[Any] = [
    {"source": "red", "target": "green", "instructions": ["make it green", "green!"], "type": "c"},
    {"source": "red", "target": "white", "instructions": ["make it white"], "type": "c"},
    {"source": "red", "target": "mauve", "instructions": ["make it mauve"], "type": "c"},
    {"source": "red", "target": "green", "instructions": []},
    {"source": "red", "target": "green", "instructions": ["green!", " "]},
]
QUESTIONS: list[Any] = [
    {"id": "blue", "question": "Which colour?", "answer": "blue", "type": "what"},
    {"id": "white", "question": "Is it bright?", "answer": "yes", "type": "yesno"},
    ["not a question"],
    {"id": "blue", "question": "Which colour?", "answer": " "},
]


class MeanTokenizer:
    """A stand-in: the code of each quarter is its mean brightness, 0..9."""

    hash, size, grid, codes = "mean", SIZE, 2, 10

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        assert pixels_B3HW.shape[1:] == (3, SIZE, SIZE)
        mean_BHW = torch.nn.functional.avg_pool2d((pixels_B3HW + 1) / 2, 2).mean(1)
        return (mean_BHW * 9).round().long().flatten(1)


def picture(colour: tuple[int, ...], size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def tars(tmp_path: Path) -> list[Path]:
    """Two tars of two pictures each, with a damaged picture between."""
    paths = [tmp_path / "t-0.tar", tmp_path / "t-1.tar"]
    for path, names in zip(paths, (["red", "green"], ["blue", "white"]), strict=True):
        with tarfile.open(path, "w") as archive:
            members = {"bad.png": b"no picture", "bad.json": b"{}"} if path is paths[0] else {}
            for name in names:
                members[f"{name}.png"] = picture(COLOURS[name], (SIZE, SIZE * 2))
                metadata = {"id": name, "captions": [f"a {name} square", "a square"]}
                members[f"{name}.json"] = json.dumps(metadata).encode()
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return paths


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, EDITS)).encode()))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n{half")
    return path


def test_pictures_come_square_in_order_and_the_damaged_is_named(tars: list[Path]) -> None:
    tally = Tally()
    found = list(read_pictures(tars, SIZE, {"green"}, tally))
    assert [metadata["id"] for metadata, _ in found] == ["red", "blue", "white"]
    for metadata, pixels_HW3 in found:
        assert pixels_HW3.shape == (SIZE, SIZE, 3)
        assert (pixels_HW3 == COLOURS[metadata["id"]]).all()
    assert (tally.pictures, tally.excluded) == (3, 1)
    assert [what for what, _ in tally.skipped] == ["t-0/bad"]


def test_keep_is_the_other_half_of_exclude(tars: list[Path]) -> None:
    def ids(**choice: Any) -> list[str]:
        chosen = {"exclude": frozenset[str](), **choice}
        return [m["id"] for m, _ in read_pictures(tars, SIZE, tally=Tally(), **chosen)]

    assert ids(keep={"blue", "red"}) == ["red", "blue"]
    assert sorted(ids(exclude={"blue"}) + ids(keep={"blue"})) == sorted(ids())


def test_pixels_from_the_cache_are_the_pixels(tars: list[Path], tmp_path: Path) -> None:
    told: list[str] = []
    pictures, pixels_P3HW = load_pixels(tars, SIZE, {"red"}, say=told.append)
    cached = [load_pixels(tars, SIZE, {"red"}, tmp_path / "c", say=told.append) for _ in range(2)]
    assert pixels_P3HW.shape == (3, 3, SIZE, SIZE)
    for again, mapped_P3HW in cached:
        assert again == pictures
        assert np.array_equal(mapped_P3HW, pixels_P3HW)
    assert sum("pictures read" in line for line in told) == 2  # the third time it was there
    load_pixels(tars, SIZE, {"blue"}, tmp_path / "c", say=told.append)
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_a_corpus_becomes_shards(
    tars: list[Path], edits: Path, questions: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    out, tokenizer = tmp_path / "shards", MeanTokenizer()
    nobody: frozenset[str] = frozenset()
    encode_corpus(tars, edits, questions, nobody, tokenizer, out, batch=3, say=told.append)
    shards = Shards.open(out, "mean")
    assert shards.counts == {"pictures": 4, "pair": 4, "edit": 2, "question": 2}
    assert (shards.size, shards.grid, shards.codes) == (4, 2, 10)
    assert [shards.picture(n)[1] for n in range(4)] == [(3,) * 4, (3,) * 4, (3,) * 4, (9,) * 4]
    assert shards.document(4) == {"task": "edit", **EDITS[0]}
    assert shards.document(7)["picture"] == "white"
    assert told[:2] == [
        "4 pictures read, 0 left out by id, 6 damaged things skipped",
        "1 edits and questions left out: a picture of theirs is not there",
    ]
    assert [line.split(":")[0] for line in told[2:]] == [
        "skipped t-0/bad",
        "skipped edits.jsonl.gz line 4",
        "skipped edits.jsonl.gz line 5",
        "skipped questions.jsonl line 3",
        "skipped questions.jsonl line 4",
        "skipped questions.jsonl line 5",
    ]


def test_nothing_that_touches_a_held_out_picture_goes_in(
    tars: list[Path], edits: Path, questions: Path, tmp_path: Path
) -> None:
    out, held = tmp_path / "shards", {"white"}
    encode_corpus(tars, edits, questions, held, MeanTokenizer(), out, say=lambda _: None)
    assert "white" not in (out / "pictures.jsonl").read_text()
    assert "white" not in (out / "documents.jsonl").read_text()
    lines = list(text_lines(tars, edits, questions, held, say=lambda _: None))
    assert not [line for line in lines if "white" in line or "bright" in line]
    encode_corpus(
        tars, edits, questions, set(), MeanTokenizer(), out, keep=held, say=print, replace=True
    )
    shards = Shards.open(out)
    assert shards.counts == {"pictures": 1, "pair": 1, "edit": 0, "question": 1}
    assert [shards.document(n)["picture"] for n in range(2)] == ["white", "white"]


def test_each_text_line_comes_once(tars: list[Path], edits: Path, questions: Path) -> None:
    lines = list(text_lines(tars, edits, questions, {"green", "white"}, say=lambda _: None))
    assert lines == ["a red square", "a square", "a blue square", "Which colour?", "blue"]


def test_bad_files_are_refused_and_leave_nothing(
    tars: list[Path], edits: Path, tmp_path: Path
) -> None:
    edits.write_bytes(edits.read_bytes()[:-9])
    out = tmp_path / "shards"

    def encode(tars: list[Path], edits: Path) -> None:
        encode_corpus(tars, edits, None, set(), MeanTokenizer(), out, say=print)

    with pytest.raises(UserError, match=r"edits\.jsonl\.gz: missing, damaged or cut short"):
        encode(tars, edits)
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        encode(tars, tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"none\.tar: no such tar file"):
        encode([tmp_path / "none.tar"], edits)
    with pytest.raises(UserError, match="no picture could be read"):
        load_pixels(tars, SIZE, set(COLOURS), say=print)
    assert not out.exists()
