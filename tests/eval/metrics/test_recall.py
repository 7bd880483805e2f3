"""Recall of an encoder against counting by hand and a sort written out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cm3leon.pipeline import CM3Leon
from eval.context import EvalContext, EvalOptions
from eval.corpus import Corpus
from eval.metrics.recall import embed, ranks, ranks_of, recall
from retrieval.embed import document_vectors, unit
from retrieval.encoder import SmallEmbedder
from retrieval.index import Vectors
from retrieval.memory import Memory

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


class Flat:
    """An embedder to which all is one."""

    id, dimension = "flat", 2

    def texts(self, texts: Sequence[str]) -> Vectors:
        return np.full((len(texts), 2), 0.5, np.float32)

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        return np.full((len(pictures), 2), 0.5, np.float32)


def test_any_image_that_carries_the_caption_is_a_hit() -> None:
    axes = np.eye(4, dtype=np.float32)
    captions = [["fox"], ["owl", "fox"], ["bat"]]
    to_image, to_caption = ranks_of(captions, axes[[0, 1, 2]], axes[[3, 0, 2]])
    # fox -> image 1 (which says fox too); owl -> image 1 is wrong's equal; bat -> image 2
    assert to_image.tolist() == [0, 2, 0]
    # image 0 is like nothing: all score 0, and wrong ones that score as much stand before it;
    # image 1 finds fox, image 2 finds bat
    assert to_caption.tolist() == [2, 0, 0]


def test_an_encoder_to_which_all_is_one_has_no_luck(corpus_folder: Path, tiny: CM3Leon) -> None:
    found = recall(
        EvalContext(EvalOptions(), Corpus.open(corpus_folder, "test"), tiny, Flat())
    ).values
    for name in ("caption to image", "image to caption"):
        assert [found[f"{name} @{at}, all"].value for at in (1, 5, 10)] == [0, 0, 1]
    assert found["caption to image @1, emoji"].count == 3


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


def test_images_are_embedded_as_a_memory_embeds_them(
    small_encoder: Path, small_memory: Path, corpus_folder: Path, tiny: CM3Leon
) -> None:
    embedder, memory = SmallEmbedder.load(small_encoder), Memory.open(small_memory)
    context = EvalContext(EvalOptions(), Corpus.open(corpus_folder, "test"), tiny, embedder)
    kinds, captions, texts_DE, images_DE = embed(context, embedder, [f"p{n}" for n in range(6)])
    assert kinds == ["icon", "emoji", "emoji", "icon", "emoji", "photo"]
    assert captions[0] == ("fox, Noto icon style",)
    both_DE = unit(texts_DE + images_DE)
    np.testing.assert_allclose(memory.segments[0].index.vectors_DE, both_DE, atol=1e-5)
    alone = document_vectors(embedder, [captions[2][0]], [None])
    np.testing.assert_allclose(texts_DE[2:3], alone, atol=1e-5)
