"""Token-shard folders: what is written is read by number, and what is wrong is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizer import manifest
from tokenizer.data.shard_writer import growing_array, write_shards
from tokenizer.data.shards import PARTS, TASKS, Shards
from tokenizer.errors import UserError

PICTURES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"id": "fox", "captions": ["a fox", "ein Fuchs \U0001f98a"], "kind": "emoji"}, (0, 1, 2, 3)),
    ({"id": "bat/1", "captions": ["a bat"]}, (9, 9, 9, 9)),
    ({"id": "owl", "captions": []}, (4, 0, 4, 0)),
]
DOCUMENTS: list[dict[str, Any]] = [
    {"task": "pair", "picture": "fox"},
    {"task": "edit", "source": "fox", "target": "owl", "instructions": ["be an owl"], "type": "x"},
    {"task": "pair", "picture": "owl"},
    {
        "task": "question",
        "picture": "bat/1",
        "question": "what?",
        "answer": "a bat",
        "type": "what",
    },
]


def write(folder: Path, pictures: Any = PICTURES, documents: Any = DOCUMENTS) -> dict[str, int]:
    return write_shards(
        folder, pictures, documents, image_tokenizer_hash="ab12", size=8, grid=2, codes=10
    )


def test_what_is_written_is_read_by_number(tmp_path: Path) -> None:
    counts = write(tmp_path / "shards", iter(PICTURES), iter(DOCUMENTS))
    shards = Shards.open(tmp_path / "shards", "ab12")
    assert counts == {"pictures": 3, "pair": 2, "edit": 1, "question": 1} == shards.counts
    assert (shards.size, shards.grid, shards.codes, shards.text_tokenizer) == (8, 2, 10, None)
    assert [shards.picture(number) for number in range(shards.pictures)] == PICTURES
    assert [shards.document(number) for number in range(shards.documents)] == DOCUMENTS
    assert list(shards.every_document()) == DOCUMENTS
    assert [shards.number_of(picture["id"]) for picture, _ in PICTURES] == [0, 1, 2]
    assert shards.numbers("pair").tolist() == [0, 2]
    assert shards.numbers("question").tolist() == [3]
    shards.verify()


def test_a_folder_may_hold_pictures_alone(tmp_path: Path) -> None:
    write(tmp_path / "shards", documents=[])
    shards = Shards.open(tmp_path / "shards")
    assert (shards.pictures, shards.documents, shards.numbers("edit").size) == (3, 0, 0)


def test_another_image_tokenizer_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "shards")
    with pytest.raises(UserError, match=r"made with image tokenizer ab12, but this one is ffff"):
        Shards.open(tmp_path / "shards", "ffff")


def test_another_text_tokenizer_is_refused_where_there_was_one(tmp_path: Path) -> None:
    about: dict[str, Any] = {"image_tokenizer_hash": "ab12", "size": 8, "grid": 2, "codes": 10}
    write_shards(tmp_path / "bound", PICTURES, DOCUMENTS, text_tokenizer_hash="cd34", **about)
    with pytest.raises(UserError, match="made for text tokenizer cd34, but this one is ffff"):
        Shards.open(tmp_path / "bound", "ab12", "ffff")
    assert Shards.open(tmp_path / "bound", "ab12", "cd34").text_tokenizer == "cd34"
    write(tmp_path / "free")
    assert Shards.open(tmp_path / "free", "ab12", "ffff").text_tokenizer is None


@pytest.mark.parametrize("part", ["codes.npy", "pictures.jsonl", "documents.offsets.npy"])
def test_a_part_cut_short_is_named(tmp_path: Path, part: str) -> None:
    write(tmp_path / "shards")
    path = tmp_path / "shards" / part
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=part):
        Shards.open(tmp_path / "shards")


def test_verify_names_a_part_that_changed(tmp_path: Path) -> None:
    write(tmp_path / "shards")
    shards = Shards.open(tmp_path / "shards")
    path = tmp_path / "shards" / "codes.npy"
    path.write_bytes(path.read_bytes()[:-2] + b"\x01\x00")
    with pytest.raises(UserError, match=r"codes\.npy"):
        shards.verify()


def test_the_first_open_compares_hashes_and_later_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    write(folder)
    compared = list[str]()

    def file_hash(path: Path) -> str:
        compared.append(path.name)
        return real(path)

    real = manifest.file_hash
    monkeypatch.setattr(manifest, "file_hash", file_hash)
    Shards.open(folder)
    assert set(compared) > {*PARTS, manifest.MANIFEST}
    compared.clear()
    Shards.open(folder)
    Shards.open(folder, compared=True)
    assert compared == [manifest.MANIFEST]
    path = folder / "codes.npy"
    flipped = bytearray(path.read_bytes())
    flipped[-2] ^= 1
    path.write_bytes(flipped)
    for _ in range(2):  # what is damaged is not noted
        with pytest.raises(UserError, match=r"'codes\.npy' is not what was written"):
            Shards.open(folder)
    flipped[-2] ^= 1
    path.write_bytes(flipped)
    Shards.open(folder)


def test_a_note_is_written_only_where_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, note = tmp_path / "shards", tmp_path / "shards" / manifest.VERIFIED
    write(folder)
    other = tmp_path / "other"
    other.write_text("mine")
    note.symlink_to(other)
    Shards.open(folder)
    assert (other.read_text(), note.is_symlink()) == ("mine", True)
    note.unlink()
    monkeypatch.setattr("os.access", lambda *_: False)
    Shards.open(folder)
    assert not note.exists()
    note.write_text("[" * 100_000)
    Shards.open(folder)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    write(tmp_path / "shards")
    path = tmp_path / "shards" / "pictures.jsonl"
    path.write_bytes(b"[" + path.read_bytes()[1:])
    shards = Shards.open(tmp_path / "shards", compared=True)
    complaint = r"pictures\.jsonl is damaged .* copy the folder again"
    with pytest.raises(UserError, match=complaint):
        shards.picture(0)
    with pytest.raises(UserError, match=complaint):
        list(shards.every_picture())


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"task": "pair", "picture": "cat"}, "document 0 (pair): no image has the id 'cat'"),
        (
            {"task": "edit", "source": "fox", "target": "cat", "instructions": []},
            "document 0 (edit): no image has the id 'cat'",
        ),
        ({"task": "question", "picture": "fox"}, "document 0 (question) lacks its 'question'"),
        (
            {"task": "song"},
            f"document 0 has the task 'song'; known: {', '.join(TASKS)}",
        ),
    ],
)
def test_bad_documents_are_refused_at_writing(
    tmp_path: Path, document: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError) as caught:
        write(tmp_path / "shards", documents=[document])
    assert str(caught.value) == complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pictures", "complaint"),
    [
        ([], "there are no images to write"),
        ([*PICTURES, PICTURES[0]], "two images have the id 'fox'"),
        ([({"id": "fox"}, (1, 2, 3))], "image 'fox' has 3 codes, not 4"),
        ([({"id": "fox"}, (1, 2, 3, 10))], "image 'fox' has a code outside 0..9"),
        ([({}, (1, 2, 3, 4))], "an image needs a text as its id, got None"),
    ],
)
def test_bad_pictures_are_refused_at_writing(tmp_path: Path, pictures: Any, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        write(tmp_path / "shards", pictures)
    assert str(caught.value).startswith(complaint)
    assert list(tmp_path.iterdir()) == []


def test_unknown_numbers_and_ids_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "shards")
    shards = Shards.open(tmp_path / "shards")
    for ask in (lambda: shards.picture(3), lambda: shards.document(-1)):
        with pytest.raises(UserError, match="is outside the"):
            ask()
    with pytest.raises(UserError, match="no image with the id 'cat'"):
        shards.number_of("cat")


def test_an_index_of_something_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "shards")
    path = tmp_path / "shards" / "index.json"
    index = json.loads(path.read_text())
    index["format"] = 7  # the same number of bytes, so the manifest's sizes still hold
    path.write_text(json.dumps(index, indent=2) + "\n")
    with pytest.raises(UserError, match="has format 7; this version reads 1"):
        Shards.open(tmp_path / "shards")


def test_a_growing_array_is_the_array_at_once(tmp_path: Path) -> None:
    rows = np.arange(1200, dtype=np.uint16).reshape(200, 2, 3)
    with growing_array(tmp_path / "grown.npy", (2, 3), np.uint16) as append:
        for row in rows:
            append(row)
    np.save(tmp_path / "saved.npy", rows)
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
