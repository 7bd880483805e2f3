"""Bits with documents in front: found as generation finds them, or by lot, never the own one."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3leon import likelihood, prompts
from cm3leon.pipeline import CM3Leon
from eval.bits import measure as measure_plain
from eval.bits import written_picture
from eval.retrieval import (
    Condition,
    Scored,
    conditions,
    draw,
    figures,
    fitting,
    look_up,
    lots,
    measure,
)
from retrieval.encoder import SmallEmbedder
from retrieval.memory import Memory
from tokenizer.document import Field, Picture
from tokenizer.shards import Shards
from tokenizer.vocabulary import EOS

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")
WANTED = conditions([2, 0, 1])


@pytest.fixture(scope="module")
def shards(shards_folder: Path) -> Shards:
    return Shards.open(shards_folder)


@pytest.fixture(scope="module")
def memory(small_memory: Path) -> Memory:
    return Memory.open(small_memory)


@pytest.fixture(scope="module")
def embedder(small_encoder: Path) -> SmallEmbedder:
    return SmallEmbedder.load(small_encoder)


@pytest.fixture(scope="module")
def scored(tiny: CM3Leon, shards: Shards, memory: Memory, embedder: SmallEmbedder) -> list[Scored]:
    return measure(tiny.model, tiny.codec, shards, memory, embedder, WANTED)


def test_conditions_have_nothing_in_front_first() -> None:
    names = ["none", "1 retrieved", "1 random", "2 retrieved", "2 random"]
    assert [one.name for one in WANTED] == names


def test_nothing_in_front_is_what_eval_bits_measures(
    tiny: CM3Leon, shards: Shards, scored: list[Scored]
) -> None:
    plain = measure_plain(tiny.model, tiny.codec, shards)
    for one, other in zip(scored, plain, strict=True):
        assert (one.id, one.kind, one.caption) == (other.id, other.kind, other.caption)
        assert one.bits["none"] == pytest.approx(other.image_bits, rel=1e-5)


def test_two_documents_agree_with_a_row_laid_out_by_hand(
    tiny: CM3Leon, shards: Shards, memory: Memory, scored: list[Scored]
) -> None:
    one = scored[1]
    vocabulary, text = tiny.codec.vocabulary, tiny.codec.text
    ids = [EOS]
    for name in one.retrieved:
        metadata, codes = memory.row(name)
        pieces = text.encode(f" {metadata['captions'][0]}")
        ids += [*map(vocabulary.text_id, pieces), vocabulary.break_id]
        ids += [*map(vocabulary.image_id, codes), vocabulary.break_id]
    ids += [*map(vocabulary.text_id, text.encode(f" {one.caption}")), vocabulary.break_id]
    codes = [vocabulary.image_id(code) for code in shards.picture(shards.number_of(one.id))[1]]
    with torch.no_grad():
        logits_LV = tiny.model.logits(tiny.model(torch.tensor([[*ids, *codes[:-1]]])))[0]
    images = vocabulary.image_ids
    nats_LV = logits_LV[len(ids) - 1 :, images.start : images.stop].log_softmax(-1)
    wanted = [code - images.start for code in codes]
    expected = -sum(float(row[code]) for row, code in zip(nats_LV, wanted, strict=True))
    assert len(one.retrieved) == 2
    assert one.bits["2 retrieved"] == pytest.approx(expected / math.log(2), rel=1e-4)


def test_no_document_stands_in_front_of_itself(memory: Memory, scored: list[Scored]) -> None:
    by_lot = lots(memory)
    assert {kind: len(ids) for kind, ids in by_lot.items()} == {"icon": 2, "emoji": 3, "photo": 1}
    for one in scored:
        assert one.id not in {*one.retrieved, *one.random}
        assert set(one.random) <= set(by_lot[one.kind])
        assert len(one.random) == min(2, len(by_lot[one.kind]) - 1)
        assert one.documents == {
            "none": 0,
            "1 retrieved": 1,
            "1 random": min(1, len(one.random)),
            "2 retrieved": 2,
            "2 random": len(one.random),
        }


def test_words_alone_find_what_they_find_for_generation(
    memory: Memory, embedder: SmallEmbedder, scored: list[Scored]
) -> None:
    ids, captions = [one.id for one in scored], [one.caption for one in scored]
    found = look_up(memory, embedder, captions, ids, 2)
    assert [[c.id for c in row] for row in found] == [list(one.retrieved) for one in scored]
    for one in scored:  # one at a time
        (alone,) = look_up(memory, embedder, [one.caption], [one.id], 1)
        assert [candidate.id for candidate in alone] == list(one.retrieved[:1])


@given(st.lists(st.text(max_size=3), unique=True), st.text(max_size=3), st.integers(0, 5))
def test_a_lot_gives_different_others(lot: list[str], own: str, count: int) -> None:
    found = draw(lot, own, count)
    assert len(set(found)) == len(found) == min(count, len(set(lot) - {own}))
    assert set(found) <= set(lot) - {own}
    assert found == draw(lot, own, count)


def test_lots_differ_by_picture() -> None:
    lot = [str(number) for number in range(100)]
    assert len({tuple(draw(lot, own, 2)) for own in "abcdefgh"}) == 8


def test_what_does_not_fit_is_left_out(tiny: CM3Leon) -> None:
    caption, document = "a red fox", (Field(" a red fox"), Picture((1,) * 16))
    (prompt, _) = prompts.paint(caption)
    kept = fitting(tiny.codec, caption, [document] * 20)
    assert 1 < len(kept) < 20
    room = 160 - 16
    assert len(tiny.codec.open(prompt, kept)) <= room
    one = len(tiny.codec.open(prompt, [document])) - len(tiny.codec.open(prompt))
    assert len(tiny.codec.open(prompt, kept)) + one > room
    row = written_picture(tiny.codec, caption, Picture((2,) * 16), kept)
    assert likelihood.bits(tiny.model, [row])[0].shape == (16,)


def test_differences_are_of_the_same_picture() -> None:
    def one(kind: str, none: float, found: float, drawn: float, count: int = 1) -> Scored:
        return Scored(
            id="x",
            kind=kind,
            caption="x",
            bits={"none": none, "1 retrieved": found, "1 random": drawn},
            documents={"none": 0, "1 retrieved": count, "1 random": 1},
            retrieved=(),
            random=(),
        )

    wanted = [Condition(0), Condition(1), Condition(1, True)]
    rows = figures([one("a", 40, 20, 30), one("a", 80, 60, 70), one("b", 4, 8, 4, 0)], wanted, 10)
    assert list(rows) == ["a", "b", "all"]
    assert rows["a"].bits["none"].value == 6
    assert rows["a"].bits["none"].error == 2
    gain = rows["a"].differences["1 retrieved - none"]
    assert (gain.value, gain.error, gain.margin) == (-2, 0, 0)
    assert rows["b"].differences["1 retrieved - 1 random"].value == pytest.approx(0.4)
    assert rows["b"].differences["1 random - none"].value == 0
    assert rows["all"].fewer == {"1 retrieved": 1, "1 random": 0}
    assert rows["b"].bits["none"].margin is None
