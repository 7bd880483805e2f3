"""Retrieve documents for queries: embed -> search -> rules.

Used by generation, captioning and evaluation; training uses the table of `neighbours.py`.
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
    """Retrieval query: a text, an image, or both; the document with the id `own` is excluded."""

    text: str | None = None
    image: "Image.Image | None" = None
    own: str | None = None


def retrieve(
    queries: Sequence[Query], memory: Memory, embedder: Embedder, count: int
) -> list[list[Candidate]]:
    """Return up to `count` documents per query, best first, that satisfy the rules of section 2.1.

    The memory's relevance threshold applies only to queries without an image. Raises UserError for
    a query with neither text nor image.
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
