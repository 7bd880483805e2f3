"""Retrieved documents in training rows: neighbours of the document, laid out as in generation."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cm3leon import prompts
from cm3leon.pipeline import CM3Leon
from retrieval.neighbours import write_neighbours
from tokenizer.codec import Codec
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.document import Document, Field, Picture
from tokenizer.errors import UserError
from train.config import RowsConfig
from train.data.rows import Rows
from train.data.views import draw_views, write_views
from train.objective import MaskConfig, unmask
from train.pretrain import main

GRID, CODES, PICTURES = 4, 32, 6
NO_MASK = MaskConfig(spans_mean=0, field=0)
FORMS = {"pair": 0.5, "edit": 0.25, "question": 0.25}
# picture 0 has one neighbour, 1 has none, 5 has no caption of its own
TABLE = np.array(
    [[2, -1, -1, -1], [-1] * 4, [0, 3, 4, 5], [0, 1, 2, 4], [0, 1, 2, 3], [0, 1, 2, 3]], np.int32
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    codes = np.random.default_rng(0).integers(0, CODES, (PICTURES, GRID**2)).tolist()
    told: list[dict[str, Any]] = [
        {"id": str(number), "captions": [f"a fox {number}", "a fox"] if number < 5 else []}
        for number in range(PICTURES)
    ]
    documents = [
        {"task": "edit", "source": "2", "target": "3", "instructions": ["more"]},
        {"task": "question", "picture": "4", "question": "what?", "answer": "fox"},
    ]
    folder = tmp_path_factory.mktemp("data") / "shards"
    about = {"image_tokenizer_hash": "some", "size": 16, "grid": GRID, "codes": CODES}
    write_shards(folder, zip(told, codes, strict=True), documents, **about)
    return Shards.open(folder)


def make(
    shards: Shards,
    tiny: CM3Leon,
    table_PN: NDArray[np.int32] | None = TABLE,
    mask: MaskConfig = NO_MASK,
    **config: Any,
) -> Rows:
    codec = Codec(tiny.codec.vocabulary, tiny.codec.text, GRID**2, 300)
    settings = RowsConfig(**{"forms": FORMS, "first_caption": 1.0, **config})
    return Rows(shards, codec, settings, mask, 0, table_PN)


def numbers_of(rows: Rows, row: int) -> list[int]:
    """The pictures of a row, in order."""
    known = {tuple(codes): number for number, codes in enumerate(rows.shards.codes_PN.tolist())}
    parts = rows.codec.decode(unmask(rows.at(row), rows.codec.vocabulary).tolist())
    return [known[tuple(part.codes)] for part in parts if isinstance(part, Picture)]  # type: ignore[misc]


def test_none_to_two_neighbours_stand_in_front(shards: Shards, tiny: CM3Leon) -> None:
    rows = make(shards, tiny, mask=MaskConfig(spans_mean=2, field=0.3))
    counts: dict[int, Counter[int]] = {}
    for row in range(900):
        form, _ = rows.deck.at(row)
        found = numbers_of(rows, row)
        own = found[-2:] if form == "edit" else found[-1:]
        retrieved = found[: -len(own)]
        assert set(retrieved) <= set(TABLE[own[0]].tolist())
        assert len({*retrieved, *own}) == len(found), "a document twice, or the one asked for"
        if form == "pair":
            counts.setdefault(own[0], Counter())[len(retrieved)] += 1
    assert counts[1].keys() == {0}
    assert counts[0].keys() == {0, 1}
    for number in (2, 3, 4):
        assert min(counts[number][k] for k in range(3)) > 0.25 * counts[number].total()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_of_them_is_drawn_from_all_of_the_kind(
    shards: Shards, tiny: CM3Leon, share: float
) -> None:
    rows = make(shards, tiny, unrelated=share, forms={"pair": 1.0})
    known, others = 0, 0
    for row in range(900):
        *front, own = numbers_of(rows, row)
        assert len({*front, own}) == len(front) + 1, "a document twice, or the one asked for"
        if own == 0:  # its one neighbour is 2
            known += front == [2]
            others += front != [2] and front != []
    assert others > 20
    # of six of the kind the one drawn is the neighbour itself, or the picture itself, which is not
    # taken
    assert known / (known + others) == pytest.approx(1 - share * 4 / 6, abs=0.15)
    with pytest.raises(UserError, match="unrelated is 2"):
        RowsConfig(unrelated=2)


def test_a_row_begins_as_its_prompt_in_generation(shards: Shards, tiny: CM3Leon) -> None:
    rows = make(shards, tiny, forms={"pair": 1.0})
    longest = 0
    for row in range(60):
        *front, number = numbers_of(rows, row)
        memory: list[Document] = [
            (*(Field(f" {c}") for c in shards.metadata(one)["captions"][:1]), rows.picture(one))
            for one in front
        ]
        prompt, _ = prompts.paint(f"a fox {number}")
        opened = rows.codec.open(prompt, memory)
        assert rows.at(row)[: len(opened)].tolist() == list(opened)
        assert len(rows.at(row)) == len(opened) + GRID**2 + 1
        longest = max(longest, len(front))
    assert longest == 2


def test_packed_rows_hold_retrieved_documents_too(shards: Shards, tiny: CM3Leon) -> None:
    def pictures(table_PN: NDArray[np.int32] | None) -> set[int]:
        rows = make(shards, tiny, table_PN, forms={"question": 1.0}, packed=1.0)
        ids = str(list(rows.packed(0).ids))
        image = rows.codec.vocabulary.image_id
        wanted = [str([image(code) for code in row])[1:-1] for row in shards.codes_PN.tolist()]
        return {number for number, row in enumerate(wanted) if row in ids}

    assert pictures(None) == {4}
    assert pictures(TABLE) > {4}


def test_without_a_table_or_at_none_nothing_is_retrieved(shards: Shards, tiny: CM3Leon) -> None:
    for rows in (make(shards, tiny, None), make(shards, tiny, retrieved=0)):
        for row in range(100):
            form, _ = rows.deck.at(row)
            assert len(numbers_of(rows, row)) == (2 if form == "edit" else 1)
    with pytest.raises(UserError, match="retrieved is -1"):
        RowsConfig(retrieved=-1)


def test_a_row_with_neighbours_is_a_function_of_its_number(shards: Shards, tiny: CM3Leon) -> None:
    first, second = make(shards, tiny), make(shards, tiny)
    forwards = [first.at(row).tobytes() for row in range(50)]
    assert forwards == [second.at(row).tobytes() for row in reversed(range(50))][::-1]


def test_a_row_too_long_with_its_neighbours_is_cut(shards: Shards, tiny: CM3Leon) -> None:
    codec = Codec(tiny.codec.vocabulary, tiny.codec.text, GRID**2, 50)
    rows = Rows(shards, codec, RowsConfig(forms=FORMS), MaskConfig(), 0, TABLE)
    assert max(len(rows.at(row)) for row in range(200)) == 51


def test_a_run_reads_the_tables_of_its_shards(lesson: Path, tmp_path: Path, tiny: CM3Leon) -> None:
    def run(name: str, *changes: str) -> list[float]:
        """The losses of a run's four steps."""
        settings = ["steps=4", "sample_prompts=[]", "validation=null", *changes]
        main(str(lesson), settings, tmp_path / name, "none", None, print, "cpu")
        lines = (tmp_path / name / "log.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines]

    shards = Shards.open(lesson.parent / "shards")
    memory = SimpleNamespace(contents=SimpleNamespace(encoder="e", near=0.9))
    for name, rows in (("table", shards), ("other", None)):
        table_PN = np.array([[1, 2], [0, 2], [0, 3], [1, 2]], np.int32)
        write_neighbours(tmp_path / name, table_PN, rows or make_other(tmp_path), memory)  # type: ignore[arg-type]
    table = f"neighbours={tmp_path / 'table'}"
    beside = run("beside", table)
    assert run("alone") == run("none", table, "rows.retrieved=0") != beside
    views = f"views={tmp_path / 'views'}"
    grey = [
        (picture["id"], Image.new("RGB", (16, 16), "grey")) for picture in shards.every_picture()
    ]
    write_views(tmp_path / "views", grey, shards, tiny.image_tokenizer, draw_views(1, 0))
    with pytest.raises(UserError, match="views need neighbours"):
        run("alone anew", views)
    as_they_are = run("as they are", table, views, "rows.seen_anew=0")
    assert run("anew", table, views, "rows.seen_anew=1") != as_they_are
    with pytest.raises(UserError, match="made for other shards"):
        run("third", f"neighbours={tmp_path / 'other'}")
    assert not (tmp_path / "third").exists()


def make_other(folder: Path) -> Shards:
    about = {"image_tokenizer_hash": "some", "size": 16, "grid": GRID, "codes": CODES}
    write_shards(folder / "shards", [({"id": "x"}, [0] * GRID**2)], [], **about)
    return Shards.open(folder / "shards")


def codes_of(rows: Rows, row: int) -> list[NDArray[np.int64]]:
    """The codes of a row's pictures, in order."""
    parts = rows.codec.decode(unmask(rows.at(row), rows.codec.vocabulary).tolist())
    return [np.array(part.codes) for part in parts if isinstance(part, Picture)]


def test_in_swapped_rows_all_pictures_have_other_codes_alike(shards: Shards, tiny: CM3Leon) -> None:
    plain, swapped = make(shards, tiny), make(shards, tiny, swapped=1.0)
    several = 0
    for row in range(100):
        before, after = codes_of(plain, row), codes_of(swapped, row)
        form = plain.deck.at(row)[0]
        own = 2 if form == "edit" else 1
        known = [any(np.array_equal(one, codes_N) for codes_N in shards.codes_PN) for one in after]
        if len(after) == 1 or form == "question":  # nothing to copy, or to be known
            assert all(known)
            continue
        assert not any(known)
        if len(before) != len(after) or own != 2:
            continue  # a swap is drawn before the neighbours are
        several += 1
        stands_for: dict[int, int] = {}
        for one, other in zip(before[-own:], after[-own:], strict=True):
            for code, swap in zip(one.tolist(), other.tolist(), strict=True):
                assert stands_for.setdefault(code, swap) == swap
        assert len(set(stands_for.values())) == len(stands_for)
        assert stands_for != {code: code for code in stands_for}
    assert several > 5
    half = make(shards, tiny, swapped=0.5)
    assert half.at(7).tobytes() == make(shards, tiny, swapped=0.5).at(7).tobytes()
