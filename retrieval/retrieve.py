"""Retrieve documents for queries: embed -> search -> rules.

The one path for generation, captioning and evaluation; training's table is `neighbours.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval.embed import Embedder, document_vectors
from retrieval.memory import Memory
from retrieval.rules import Candidate, Rules, select

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Query:
    """A text, an image, or both. The document with the id `own` is never retrieved."""

    text: str | None = None
    image: "Image.Image | None" = None
    own: str | None = None


def retrieve(
    queries: Sequence[Query], memory: Memory, embedder: Embedder, count: int
) -> list[list[Candidate]]:
    """Return up to `count` documents a query, best first, that keep the rules of section 2.1.

    The memory's threshold of relevance holds for queries of text alone. Raises UserError for a
    query with neither text nor image.
    """
    vectors_QE = document_vectors(
        embedder, [query.text for query in queries], [query.image for query in queries]
    )
    contents = memory.contents
    found: list[list[Candidate]] = []
    for query, row in zip(queries, memory.search(vectors_QE, Rules().pool), strict=True):
        least = contents.least if query.image is None else Rules().least
        rules = Rules(count=count, near=contents.near, least=least)
        found.append(select(row, rules, set() if query.own is None else {query.own}))
    return found
