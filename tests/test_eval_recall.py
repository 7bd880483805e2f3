"""Recall of an encoder and of an index, against counting by hand and a sort written out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from eval.recall import Embedded, embed, measure, of_index, ranks
from retrieval.embed import document_vectors, unit
from retrieval.encoder import SmallEmbedder
from retrieval.index import Plan, Vectors, plan
from retrieval.memory import Contents, Memory
from retrieval.segment import Codebook
from tokenizer.tars import Tally, find_tars

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


class Flat:
    """An embedder to which all is one."""

    id, dimension = "flat", 2

    def texts(self, texts: Sequence[str]) -> Vectors:
        return np.full((len(texts), 2), 0.5, np.float32)

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        return np.full((len(pictures), 2), 0.5, np.float32)


def embedded(
    captions: Sequence[Sequence[str]], texts: Sequence[int], pictures: Sequence[int], kinds: str
) -> Embedded:
    """Vectors by the axis on which they lie."""
    return Embedded(
        kinds=tuple(kinds),
        captions=tuple(map(tuple, captions)),
        texts_DE=np.eye(4, dtype=np.float32)[list(texts)],
        pictures_DE=np.eye(4, dtype=np.float32)[list(pictures)],
    )


def test_any_picture_that_carries_the_caption_is_a_hit() -> None:
    found = embedded([["fox"], ["owl", "fox"], ["bat"]], [0, 1, 2], [3, 0, 2], "aab")
    rows = measure(found)
    # fox -> picture 1 (which says fox too); owl -> picture 1 is wrong's equal; bat -> picture 2
    assert rows["a"].to_picture[1].value == 0.5
    assert rows["b"].to_picture[1].value == 1
    assert rows["all"].to_picture[1].value == pytest.approx(2 / 3)
    assert rows["all"].to_picture[5].value == 1
    assert rows["a"].to_picture[1].count == 2
    # picture 0 is like nothing: all score 0, and wrong ones that score as much stand before it;
    # picture 1 finds fox, picture 2 finds bat
    assert rows["a"].to_caption[1].value == 0.5
    assert rows["all"].to_caption[1].value == pytest.approx(2 / 3)


def test_an_encoder_to_which_all_is_one_has_no_luck(corpus_folder: Path) -> None:
    found = embed(Flat(), find_tars(corpus_folder, "test-"), tally=Tally())
    rows = measure(found)
    assert list(rows) == ["emoji", "icon", "photo", "all"]
    assert [rows["all"].to_picture[at].value for at in (1, 5, 10)] == [0, 0, 1]
    assert [rows["all"].to_caption[at].value for at in (1, 5, 10)] == [0, 0, 1]


@given(
    arrays(np.float32, (5, 3), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0])),
    arrays(np.float32, (7, 3), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0])),
    st.lists(st.sets(st.integers(0, 6), min_size=1), min_size=5, max_size=5),
)
def test_ranks_agree_with_a_sort_that_puts_wrong_ones_first(
    queries_QE: Vectors, candidates_DE: Vectors, right: list[set[int]]
) -> None:
    expected: list[int] = []
    for query_E, mine in zip(queries_QE, right, strict=True):
        scored = [(-float(query_E @ one), n in mine) for n, one in enumerate(candidates_DE)]
        expected.append([is_right for _, is_right in sorted(scored)].index(True))
    assert ranks(queries_QE, candidates_DE, right).tolist() == expected


def test_pictures_are_embedded_as_a_memory_embeds_them(
    small_encoder: Path, small_memory: Path, corpus_folder: Path
) -> None:
    embedder, memory = SmallEmbedder.load(small_encoder), Memory.open(small_memory)
    told: list[tuple[int, int]] = []
    tally = Tally()
    found = embed(
        embedder,
        find_tars(corpus_folder, "test-"),
        tally=tally,
        progress=lambda *counts: told.append(counts),
    )
    assert (told, tally.pictures) == ([(6, 6)], 6)
    assert found.kinds == ("icon", "emoji", "emoji", "icon", "emoji", "photo")
    assert found.captions[0] == ("fox, Noto icon style",)
    both_DE = unit(found.texts_DE + found.pictures_DE)
    np.testing.assert_allclose(memory.segments[0].index.vectors_DE, both_DE, atol=1e-5)
    alone = document_vectors(embedder, [found.captions[2][0]], [None])
    np.testing.assert_allclose(found.texts_DE[2:3], alone, atol=1e-5)
    some = embed(embedder, find_tars(corpus_folder, "test-"), limit=1, tally=Tally())
    assert some.kinds == ("icon", "emoji", "photo")


def test_an_exact_index_finds_all_and_a_coarse_one_less(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    vectors_DE = unit(draw.normal(size=(4000, 8)).astype(np.float32))
    book = Codebook(image_tokenizer="ab12", size=8, grid=1, codes=10)
    empty = Contents(encoder="e", dimension=8, codebook=book, near=0.9)
    rows = (({"id": str(number), "captions": ["x"]}, [1]) for number in range(4000))
    memory = Memory.create(tmp_path / "memory", empty).add(rows, vectors_DE)
    found = Embedded(
        kinds=("a",) * 50,
        captions=(("x",),) * 50,
        texts_DE=unit(draw.normal(size=(50, 8)).astype(np.float32)),
        pictures_DE=unit(draw.normal(size=(50, 8)).astype(np.float32)),
    )
    exact = of_index(memory, plan(4000, 8), found)
    assert exact == {name: {1: 1.0, 10: 1.0} for name in ("text", "picture", "both")}
    few_lists = of_index(memory, Plan(factory="IVF102,SQ8", bytes_per_vector=16), found)
    many_lists = of_index(memory, Plan(factory="IVF1000,SQ8", bytes_per_vector=16), found)
    for name, shares in few_lists.items():
        assert 0.9 < shares[10] <= 1
        assert many_lists[name][10] < shares[10]
