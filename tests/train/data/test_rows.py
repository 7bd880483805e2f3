"""Training rows: a function of (seed, row) alone, in the shares asked for, never too long."""

# Shapes: B = rows, L = ids of the longest row

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon.pipeline import CM3Leon
from tokenizer.codec import Codec
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.distributed import DistributedContext
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.vocabulary import EOS, PAD
from train.config import RowsConfig
from train.data.batches import STEP, micro_batches, rows_of_steps
from train.data.rows import (
    WINDOW,
    Mixture,
    Rows,
    balanced,
)
from train.data.sampler import DECK
from train.objective import Ids, MaskConfig, unmask

GRID, CODES = 4, 32
PLAIN, NO_MASK = MaskConfig(), MaskConfig(spans_mean=0, field=0)
FORMS = {"pair": 0.4, "described": 0.1, "edit": 0.2, "question": 0.2}


def pictures() -> list[tuple[dict[str, Any], list[int]]]:
    """Six hands in six tones, four plain emoji, two photos; every picture's codes differ."""
    found: list[dict[str, Any]] = []
    for tone in ("", *"BCDEF"):
        codepoint = f"1F44B-1F3F{tone}" if tone else "1F44B"
        found.append({"id": f"hand{tone}", "codepoint": codepoint, "style": "noto"})
    found += [{"id": name, "codepoint": name, "style": "noto"} for name in ("fox", "cat", "cow")]
    found.append({"id": "blob", "codepoint": "fox", "style": "blob"})
    for metadata in found:
        metadata |= {"kind": "emoji", "captions": [f"{metadata['id']} 1", f"{metadata['id']} 2"]}
    found += [{"id": f"photo{n}", "kind": "photo", "captions": [f"shop {n}"]} for n in range(2)]
    found.append({"id": "mute", "kind": "photo", "captions": []})
    rng = np.random.default_rng(0)
    return [(metadata, rng.integers(0, CODES, GRID**2).tolist()) for metadata in found]


DOCUMENTS: list[dict[str, Any]] = [
    *({"task": "edit", "source": "hand", "target": f"hand{tone}", "type": "skin tone",
       "instructions": ["darker", "lighter"]} for tone in "BCDEF"),
    {"task": "edit", "source": "fox", "target": "blob", "type": "style", "instructions": ["blob"]},
    {"task": "question", "picture": "fox", "question": "what?", "answer": "fox", "type": "what"},
    {"task": "question", "picture": "cat", "question": "a cat?", "answer": "yes", "type": "yesno"},
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return open_shards(tmp_path_factory.mktemp("data"), pictures(), DOCUMENTS)


def open_shards(
    folder: Path, pictures: list[tuple[dict[str, Any], list[int]]], documents: list[dict[str, Any]]
) -> Shards:
    about = {"image_tokenizer_hash": "some", "size": 16, "grid": GRID, "codes": CODES}
    write_shards(folder / "shards", pictures, documents, **about)
    return Shards.open(folder / "shards")


@pytest.fixture(scope="module")
def make(shards: Shards, tiny: CM3Leon) -> Callable[..., Rows]:
    def make(*, mask: MaskConfig = PLAIN, seed: int = 0, context: int = 160, **config: Any) -> Rows:
        codec = Codec(tiny.codec.vocabulary, tiny.codec.text, GRID**2, context)
        given = config if "forms" in config else {"forms": FORMS, "packed": 0.1, **config}
        return Rows(shards, codec, RowsConfig(**given), mask, seed)

    return make


def test_a_row_is_a_function_of_seed_and_number(make: Callable[..., Rows]) -> None:
    first, second = make(), make()
    forwards = [first.at(row).tobytes() for row in range(100)]
    backwards = [second.at(row).tobytes() for row in reversed(range(100))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 75
    far = 10**9 + 7
    assert first.at(far).tobytes() == second.at(far).tobytes()
    assert [make(seed=1).at(row).tobytes() for row in range(100)] != forwards


# Python 3.12 warns of every fork beside threads; these have nothing to wait for.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_the_rows_of_every_step(make: Callable[..., Rows], workers: int) -> None:
    rows = make()
    steps = list(rows_of_steps(rows, 4, range(4), range(3, 6), workers))
    assert [len(step) for step in steps] == [4, 4, 4]
    found = [row.tobytes() for step in steps for row in step]
    assert found == [rows.at(number).tobytes() for number in range(12, 24)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_a_step_without_gap_or_overlap(
    make: Callable[..., Rows], size: int
) -> None:
    rows = make()
    found: list[bytes] = []
    for rank in range(size):
        share = DistributedContext(rank=rank, size=size).share(4)
        (mine,) = rows_of_steps(rows, 4, share, range(3, 4), 0)
        found += [row.tobytes() for row in mine]
    assert found == [rows.at(number).tobytes() for number in range(12, 16)]


def test_blocks_are_cut_from_one_stream_of_whole_documents(make: Callable[..., Rows]) -> None:
    rows = make(mask=NO_MASK, forms=FORMS, packed=1.0, context=45)
    for window in range(3):
        blocks = [rows.packed(window * WINDOW + place).ids for place in range(WINDOW)]
        assert {len(block) for block in blocks} == {46}
        stream = [number for block in blocks for number in block]
        whole: list[int] = []
        for number in count():
            if len(whole) >= len(stream):
                break
            own = number < rows.window_places
            place = window * rows.window_places + number if own else None
            whole += rows.streamed(place, window, number).ids
        assert whole[: len(stream)] == stream
    # a far block is the same without those before it
    assert make(forms=FORMS, packed=1.0, context=45).packed(WINDOW * 2 + 5) == rows.packed(
        WINDOW * 2 + 5
    )


def test_a_stream_shows_every_document_once_an_epoch(make: Callable[..., Rows]) -> None:
    rows = make(mask=NO_MASK, forms={"pair": 1.0}, kinds={"emoji": 1.0}, context=160)
    units = rows.sources["pair"].groups["emoji"].units
    for epoch in range(3):
        places = range(epoch * units, (epoch + 1) * units)
        seen = [rows.streamed(place, 0, place).ids[-1 - GRID**2 :] for place in places]
        assert len(set(seen)) == units == 5


def test_without_forms_rows_are_of_all_that_there_is(tmp_path: Path, tiny: CM3Leon) -> None:
    found = [*DOCUMENTS, *({"task": "pair", "picture": "fox"} for _ in range(8))]
    shards = open_shards(tmp_path, pictures(), found)
    rows = Rows(shards, tiny.codec, RowsConfig(forms={}), NO_MASK, 0)
    dealt = Counter(rows.deck.at(row)[0] for row in range(DECK))
    assert dealt == {"pair": 500, "edit": 375, "question": 125}
    (tmp_path / "bare").mkdir()
    bare = open_shards(tmp_path / "bare", pictures(), [])
    with pytest.raises(UserError, match="holds no documents, only images"):
        Rows(bare, tiny.codec, RowsConfig(forms={}), NO_MASK, 0)


def test_a_mixture_deals_its_sources_in_their_shares(make: Callable[..., Rows]) -> None:
    one, other = make(), make(seed=1)
    both = Mixture({"a": one, "b": other}, {"a": 3.0, "b": 1.0}, 0)
    dealt = Counter(both.deck.at(row)[0] for row in range(DECK))
    assert dealt == {"a": 750, "b": 250}
    for row in range(40):
        name, rank = both.deck.at(row)
        assert both.at(row).tobytes() == (one if name == "a" else other).at(rank).tobytes()


def test_a_source_is_balanced_within_limits() -> None:
    weights, documents = {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 900, "b": 90, "c": 10}
    shares = balanced(weights, documents, (0.3, 3.0))
    # a third each would be 3.7 times as often as b is large, and 33 times as c
    assert shares == pytest.approx({"a": 0.7, "b": 0.27, "c": 0.03})
    assert balanced({"a": 1, "b": 9}, {"a": 990, "b": 10}, (0.3, 3.0)) == pytest.approx(
        {"a": 0.97, "b": 0.03}
    )
    free = balanced({"a": 1, "b": 1}, {"a": 50, "b": 50}, (0.3, 3.0))
    assert free == pytest.approx({"a": 0.5, "b": 0.5})


def test_skin_tones_are_one_unit(make: Callable[..., Rows]) -> None:
    rows = make(forms={"pair": 1.0}, kinds={"emoji": 1.0})
    rng = np.random.default_rng(0)
    drawn = [rows.sources["pair"].at(place, rng) for place in range(1000)]
    names = Counter(rows.shards.metadata(number)["id"] for number in drawn)
    assert {name: names[name] for name in ("fox", "cat", "cow", "blob")} == dict.fromkeys(
        ("fox", "cat", "cow", "blob"), 200
    )
    assert sum(names[f"hand{tone}"] for tone in ("", *"BCDEF")) == 200
    assert min(names[f"hand{tone}"] for tone in ("", *"BCDEF")) > 15


def kinds_of(rows: Rows, count: int) -> Counter[str]:
    """How many of the first `count` pairs are of each kind."""
    rng = np.random.default_rng(0)
    source = rows.sources["pair"]
    return Counter(rows.shards.metadata(source.at(place, rng))["kind"] for place in range(count))


def test_kinds_come_in_their_shares_or_as_found(make: Callable[..., Rows]) -> None:
    assert kinds_of(make(kinds={"photo": 0.3}), 1000) == {"emoji": 700, "photo": 300}
    # five units of emoji (a hand's tones are one) and two photos that have captions
    assert kinds_of(make(), 1000) == {"emoji": 714, "photo": 286}
    # what adds up to 1 but for its last bit leaves nothing to the others, and is no mistake
    thirds = {"emoji": 0.1 + 0.2 + 0.7 + 2e-16, "photo": 0.0}
    assert kinds_of(make(kinds=thirds), 1000) == {"emoji": 1000}


@pytest.mark.parametrize("mask", [PLAIN, NO_MASK, MaskConfig(spans_mean=8, box=0.2)])
@pytest.mark.parametrize("context", [45, 160])
def test_rows_fit_and_packed_rows_fill_the_context(
    make: Callable[..., Rows], mask: MaskConfig, context: int
) -> None:
    rows = make(mask=mask, context=context)
    lengths: dict[str, set[int]] = {}
    for row in range(300):
        ids = rows.at(row)
        form, _ = rows.deck.at(row)
        lengths.setdefault(form, set()).add(len(ids))
        assert ids[0] == EOS or form == "packed"  # a block begins where the last one ended
        assert PAD not in ids
    assert lengths["packed"] == {context + 1}
    assert max(max(found) for found in lengths.values()) == context + 1
    if context == 160 and mask is NO_MASK:
        assert max(lengths["pair"]) < 40


def test_what_is_too_long_is_cut_at_the_context(
    tmp_path: Path, tiny: CM3Leon, make: Callable[..., Rows]
) -> None:
    long = [({"id": "long", "captions": ["fox " * 100]}, [0] * GRID**2)]
    codec = Codec(tiny.codec.vocabulary, tiny.codec.text, GRID**2, 60)
    config = RowsConfig(forms={"pair": 1.0}, packed=0.5)
    rows = Rows(open_shards(tmp_path, long, []), codec, config, MaskConfig(field=0.5), 0)
    assert {len(rows.at(row)) for row in range(50)} == {61}


def pictures_in(ids: Ids, codec: Codec) -> set[tuple[int, ...]]:
    """Every picture of a row that is not masked."""
    document = codec.decode(ids.tolist())
    return {tuple(part.codes) for part in document if isinstance(part, Picture)}  # type: ignore[misc]


def test_a_row_shows_pictures_of_the_shards_and_no_others(make: Callable[..., Rows]) -> None:
    known = {tuple(codes): metadata["id"] for metadata, codes in pictures()}
    rows = make(mask=MaskConfig(spans_mean=3))
    seen: set[str] = set()
    for row in range(400):
        form, _ = rows.deck.at(row)
        if form != "packed":
            whole = unmask(rows.at(row), rows.codec.vocabulary)
            seen |= {known[codes] for codes in pictures_in(whole, rows.codec)}
    assert seen == {metadata["id"] for metadata, _ in pictures()} - {"mute"}


def test_the_first_caption_comes_as_often_as_asked(make: Callable[..., Rows]) -> None:
    def texts(first: float) -> Counter[str]:
        rows = make(forms={"pair": 1.0}, kinds={"emoji": 1.0}, first_caption=first, mask=NO_MASK)
        documents = (rows.codec.decode(rows.at(row).tolist()) for row in range(400))
        return Counter(str(document[0])[-1] for document in documents)

    assert texts(1.0) == {"1": 400}
    assert 60 < texts(0.6)["2"] < 100  # half of what is left to all captions


def test_every_form_is_laid_out_as_its_prompt_says(make: Callable[..., Rows]) -> None:
    rows = make(mask=NO_MASK)
    found: dict[str, set[str]] = {}
    for row in range(300):
        form, _ = rows.deck.at(row)
        if form != "packed":
            parts = rows.codec.decode(rows.at(row).tolist())
            line = "|".join("P" if isinstance(part, Picture) else str(part) for part in parts)
            found.setdefault(form, set()).add(line)
    assert " fox 1|P" in found["pair"]
    # one document, so one text: the instruction and the caption stand in one segment
    assert "Describe the given picture. fox 1|P" in found["described"]
    assert "Edit first image following the instruction|P| darker|P" in found["edit"]
    assert "Question: what? Answer: fox.|P" in found["question"]
    assert "Question: a cat?\nyes|P" in found["question"]


@given(lengths=st.lists(st.integers(1, 80), max_size=30), tokens=st.integers(1, 300))
def test_micro_batches_keep_every_row_once_within_the_budget(
    lengths: list[int], tokens: int
) -> None:
    rng = np.random.default_rng(len(lengths))
    rows = [rng.integers(4, 1000, length) for length in lengths]
    kept: list[bytes] = []
    for ids_BL in micro_batches(rows, tokens):
        assert ids_BL.size <= tokens or len(ids_BL) == 1
        real = [row[row != PAD] for row in ids_BL]
        assert [len(row) for row in real] == [int((row != PAD).sum()) for row in ids_BL]
        least, most = (pick(map(len, real)) for pick in (min, max))
        assert most <= max(least * 5 // 4, 1)
        assert most <= ids_BL.shape[1] <= min(most + STEP - 1, max(lengths))
        for row, padded in zip(real, ids_BL, strict=True):
            assert (padded[: len(row)] == row).all()
            kept.append(row.tobytes())
    assert sorted(kept) == sorted(row.tobytes() for row in rows)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"kinds": {"phto": 0.5}}, "rows ask for 'pair' of 'phto' but the shards have 'emoji', "),
        ({"edits": {"hair": 0.5}}, "'edit' of 'hair' but the shards have 'skin tone', 'style'"),
        ({"questions": {"why": 1.0}}, "'question' of 'why' but the shards have 'what', 'yesno'"),
        ({"edits": {"style": 1.2}}, "of 'edit' add up to 1.2; .* of which skin tone share"),
        ({"kinds": {"emoji": 0.0, "photo": 0.0}}, "of 'pair' leave nothing to draw"),
    ],
)
def test_shares_of_what_is_not_there_are_refused(
    make: Callable[..., Rows], config: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        make(**config)


def test_forms_that_the_shards_lack_are_refused(tmp_path: Path, tiny: CM3Leon) -> None:
    mute = [({"id": "mute", "captions": []}, [0] * GRID**2)]
    shards = open_shards(tmp_path, mute, [])
    for form in ("pair", "described", "edit", "question"):
        with pytest.raises(UserError, match=f"rows ask for '{form}' but the shards hold none"):
            Rows(shards, tiny.codec, RowsConfig(forms={form: 1.0}), MaskConfig(), 0)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"forms": {"pear": 1.0}}, "unknown form 'pear'; known: pair, described"),
        ({"forms": {"pair": 0.0}}, "at least one kind of document"),
        ({"packed": 1.1}, "packed is 1.1; a probability lies in 0..1"),
        ({"kinds": {"photo": -0.1}}, "the share of 'photo' is -0.1; it must be 0 or more"),
        ({"first_caption": 1.5}, "first_caption is 1.5"),
    ],
)
def test_impossible_shares_are_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        replace(RowsConfig(), **config)
