"""Documents in front of a prompt: found as generation finds them, or random, never the own one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon import likelihood, prompts
from cm3leon.pipeline import CM3Leon
from eval.metrics.perplexity import written_picture
from eval.metrics.retrieval import draw, lots
from eval.retrieved import fitting
from retrieval.encoder import SmallEmbedder
from retrieval.memory import Memory
from retrieval.retrieve import Query, retrieve
from tokenizer.document import Field, Picture

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


def test_no_document_is_found_for_itself(small_memory: Path, small_encoder: Path) -> None:
    memory, embedder = Memory.open(small_memory), SmallEmbedder.load(small_encoder)
    by_lot = lots(memory)
    assert {kind: len(ids) for kind, ids in by_lot.items()} == {"icon": 2, "emoji": 3, "photo": 1}
    ids = [name for row in by_lot.values() for name in row]
    captions = [memory.row(name)[0]["captions"][0] for name in ids]
    queries = [Query(text=text, own=own) for text, own in zip(captions, ids, strict=True)]
    found = retrieve(queries, memory, embedder, 2)
    assert all(own not in {one.id for one in row} for own, row in zip(ids, found, strict=True))
    for query, row in zip(queries, found, strict=True):  # one at a time
        (alone,) = retrieve([query], memory, embedder, 1)
        assert [one.id for one in alone] == [one.id for one in row[:1]]


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
