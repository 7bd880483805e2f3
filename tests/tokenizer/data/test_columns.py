"""Columns of token shards: what the writer keeps is what the lines tell, and damage is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.data import registry
from tokenizer.data.columns import COLUMNS, Columns
from tokenizer.data.registry import unit_of
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.errors import UserError

PICTURES: list[dict[str, Any]] = [
    {"id": "fox", "kind": "emoji", "captions": ["a fox"], "style": "noto", "codepoint": "1F98A"},
    {"id": "shop", "kind": "photo", "captions": ["a shop"]},
    {"id": "hand", "kind": "emoji", "captions": ["hand"], "style": "noto", "codepoint": "1F44B"},
    {"id": "mute", "kind": "emoji", "captions": []},
    {"id": "cat", "kind": "emoji", "captions": ["a", "b"], "style": "noto", "codepoint": "1F408"},
    {
        "id": "dark",
        "kind": "emoji",
        "captions": ["x"] * 300,
        "style": "noto",
        "codepoint": "1F44B-1F3FF",
    },
    {"id": "plain"},
]
DOCUMENTS: list[dict[str, Any]] = [
    {"task": "pair", "picture": "cat"},
    {"task": "edit", "source": "fox", "target": "dark", "instructions": ["x"], "type": "style"},
    {"task": "question", "picture": "shop", "question": "?", "answer": "!"},
    {"task": "edit", "source": "cat", "target": "fox", "instructions": ["x"]},
    {"task": "edit", "source": "cat", "target": "hand", "instructions": ["x"], "type": "style"},
]


def write(folder: Path, pictures: Any = PICTURES, documents: Any = DOCUMENTS) -> Shards:
    about = {"image_tokenizer_hash": "ab12", "size": 8, "grid": 2, "codes": 10}
    write_shards(folder, ((one, (0, 1, 2, 3)) for one in pictures), documents, **about)
    return Shards.open(folder)


def without(folder: Path, documents: Any = DOCUMENTS) -> Shards:
    about = {"image_tokenizer_hash": "ab12", "size": 8, "grid": 2, "codes": 10}
    found = ((one, (0, 1, 2, 3)) for one in PICTURES)
    write_shards(folder, found, documents, columns=False, **about)
    assert not (folder / COLUMNS).exists()
    return Shards.open(folder)


def told(columns: Columns) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(columns).items()
        if not name.startswith("_")
    }


def test_groups_are_kinds_whose_units_stand_together(tmp_path: Path) -> None:
    columns = Columns.open(write(tmp_path / "shards"))
    groups = columns.captioned()
    assert groups.keys() == {"emoji", "photo"}
    assert groups["emoji"].numbers_N.tolist() == [0, 2, 5, 4]
    bounds_U = groups["emoji"].bounds_U
    assert bounds_U is not None
    assert (groups["emoji"].units, bounds_U.tolist()) == (3, [0, 1, 3, 4])
    assert groups["photo"].numbers_N.tolist() == [1]
    assert groups["photo"].bounds_U is None
    assert columns.captions_P.tolist() == [1, 1, 1, 0, 2, 255, 0]
    assert sorted(columns.like(3).tolist()) == [0, 2, 3, 4, 5]
    assert columns.like(6).tolist() == [6]


def test_documents_are_grouped_by_their_type(tmp_path: Path) -> None:
    columns = Columns.open(write(tmp_path / "shards"))
    edits = columns.documents("edit")
    assert {name: group.numbers_N.tolist() for name, group in edits.items()} == {
        "style": [1, 4],
        "edit": [3],
    }
    assert columns.documents("question")["question"].units == 1
    assert columns.documents("ocr") == {}
    assert [columns.pictures(number) for number in range(5)] == [[4], [0, 5], [1], [4, 0], [4, 2]]


def test_a_folder_without_columns_has_the_same(tmp_path: Path) -> None:
    for name, documents in (("all", DOCUMENTS), ("images alone", ())):
        kept = told(Columns.open(write(tmp_path / name, documents=documents)))
        made = told(Columns.open(without(tmp_path / f"{name} without", documents)))
        assert {**made, "folder": kept["folder"]} == kept
        assert len(kept["pictures_D2"]) == len(documents)


picture = st.fixed_dictionaries(
    {"captions": st.lists(st.just("a"), max_size=2)},
    optional={
        "kind": st.sampled_from("abc"),
        "style": st.sampled_from("xy"),
        "codepoint": st.sampled_from(("1F44B", "1F44B-1F3FB", "1F44B-1F3FC", "1F408", 7)),
    },
)


@settings(max_examples=40)
@given(found=st.lists(picture, min_size=1, max_size=30))
def test_every_captioned_picture_stands_once_beside_those_of_its_unit(
    tmp_path_factory: pytest.TempPathFactory, found: list[dict[str, Any]]
) -> None:
    pictures = [{"id": str(number), **one} for number, one in enumerate(found)]
    columns = Columns.open(write(tmp_path_factory.mktemp("data") / "shards", pictures, ()))
    wanted: dict[str, dict[Any, list[int]]] = {}
    for number, one in enumerate(pictures):
        if one["captions"]:
            units = wanted.setdefault(one.get("kind", "picture"), {})
            units.setdefault(unit_of(one) or number, []).append(number)
    got: dict[str, list[list[int]]] = {}
    for name, group in columns.captioned().items():
        if group.bounds_U is None:
            got[name] = [[number] for number in group.numbers_N.tolist()]
        else:
            pieces = np.split(group.numbers_N, group.bounds_U[1:-1])
            got[name] = [piece.tolist() for piece in pieces]
    assert {k: sorted(v) for k, v in got.items()} == {
        k: sorted(v.values()) for k, v in wanted.items()
    }


def test_skin_tones_of_a_style_are_one_unit() -> None:
    assert unit_of({"id": "x", "codepoint": "1F9D1-1F3FB-200D-1F91D-1F3FF", "style": "s"}) == (
        "s", "1F9D1-200D-1F91D",
    )  # fmt: skip
    assert unit_of({"id": "x", "style": "s"}) is None


def test_names_beyond_counting_are_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MOST_NAMES", 12)
    pictures = [{"id": str(n), "kind": f"kind {n}", "captions": ["x"]} for n in range(5)]
    groups = Columns.open(write(tmp_path / "shards", pictures, ())).captioned()
    assert {name: len(group.numbers_N) for name, group in groups.items()} == {
        "kind 0": 1,
        "kind 1": 1,
        "picture": 3,
    }


def swap(path: Path, array: Any) -> None:
    np.save(path, array, allow_pickle=False)


@pytest.mark.parametrize(
    ("part", "damage", "complaint"),
    [
        ("pictures.kinds.npy", lambda p: swap(p, np.zeros(7, np.int16)), "holds int16 (7,), not"),
        ("pictures.units.npy", lambda p: swap(p, np.zeros((7, 1), int)), "holds int64 (7, 1), not"),
        ("documents.order.npy", lambda p: p.write_bytes(b"?" * 168), "is damaged (the magic"),
        (COLUMNS, lambda p: p.write_text("[]"), "columns.json' is damaged"),
        (COLUMNS, lambda p: p.write_text('{"kinds": [["a", 9, 9, 9]], "types": []}'), "of 9 imag"),
    ],
)
def test_columns_that_do_not_fit_are_named(
    tmp_path: Path, part: str, damage: Callable[[Path], None], complaint: str
) -> None:
    shards = write(tmp_path / "shards")
    damage(shards.folder / part)
    with pytest.raises(UserError) as caught:
        Columns.open(shards)
    assert part in str(caught.value)
    assert complaint in str(caught.value)


def test_numbers_out_of_place_are_named(tmp_path: Path) -> None:
    columns = Columns.open(write(tmp_path / "shards"))
    odd = replace(columns, pictures_D2=np.full((5, 2), 7), kinds_P=np.full(7, 9, np.uint16))
    with pytest.raises(UserError, match=r"documents\.pictures\.npy is odd"):
        odd.pictures(0)
    with pytest.raises(UserError, match=r"pictures\.kinds\.npy is odd"):
        odd.like(0)


def test_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    shards = write(tmp_path / "shards")
    (shards.folder / "pictures.order.npy").unlink()
    with pytest.raises(UserError, match=r"pictures\.order\.npy' is missing"):
        Shards.open(shards.folder)
