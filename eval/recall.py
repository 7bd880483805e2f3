"""Does an encoder bring a caption and its picture together, and does an index find what is nearest.

tars -> pictures and their first captions -> `Embedder` -> vectors -> how far down the right one
stands (`measure`); the same vectors as queries against a memory's, exactly and through an index
that fits a budget of memory (`of_index`).
"""

# Shapes: D = pictures, C = different captions, E = width of a vector, Q = queries of one batch

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.figures import Figure, by_kind, kind_of, limited, ratio
from eval.sets import GROUP, list_pictures, read_images
from retrieval.embed import Embedder, unit
from retrieval.index import Index, Plan, Vectors, recall, search_exactly
from retrieval.memory import Memory
from tokenizer.errors import UserError
from tokenizer.tars import Tally

AT = (1, 5, 10)  # a hit is the right one among so many first ones
QUERIES = 256  # compared with everything at once

Ranks = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Pictures with their captions, the first one first, and the vectors of both."""

    kinds: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    texts_DE: Vectors
    """Of the first caption of each picture."""
    pictures_DE: Vectors


@dataclass(frozen=True, kw_only=True)
class Row:
    """The shares of queries with a hit among the first 1, 5 and 10; errors are over queries."""

    to_picture: dict[int, Figure]
    to_caption: dict[int, Figure]


def embed(
    embedder: Embedder,
    tars: Sequence[Path],
    *,
    limit: int | None = None,
    tally: Tally,
    progress: Callable[[int, int], None] | None = None,
) -> Embedded:
    """The captioned pictures of some tars, at most `limit` of each kind; damaged ones are noted in
    `tally` and left out. Pictures are read and forgotten a group at a time."""
    listed = [picture for picture in list_pictures(tars) if picture["captions"]]
    chosen = limited([kind_of(picture) for picture in listed], limit)
    ids = frozenset(listed[place]["id"] for place in chosen)
    found = read_images(tars, ids, tally)
    kinds: list[str] = []
    captions: list[tuple[str, ...]] = []
    texts, pictures = list[Vectors](), list[Vectors]()
    while group := list(islice(found, GROUP)):
        kinds += [kind_of(metadata) for metadata, _ in group]
        captions += [tuple(metadata["captions"]) for metadata, _ in group]
        texts.append(embedder.texts([metadata["captions"][0] for metadata, _ in group]))
        pictures.append(embedder.pictures([image for _, image in group]))
        if progress is not None:
            progress(len(kinds), len(ids))
    if not kinds:
        raise UserError("there is no picture with a caption that can be read")
    return Embedded(
        kinds=tuple(kinds),
        captions=tuple(captions),
        texts_DE=np.concatenate(texts),
        pictures_DE=np.concatenate(pictures),
    )


def measure(found: Embedded) -> dict[str, Row]:
    """Recall by kind of picture, both ways. Every picture's first caption and every picture is a
    query; all kinds together are what it could find.

    From a caption, any picture that carries it is right. From a picture, the candidates are the
    different first captions, and any that the picture carries is right.
    """
    carriers: dict[str, set[int]] = defaultdict(set)
    for picture, captions in enumerate(found.captions):
        for caption in captions:
            carriers[caption].add(picture)
    firsts = [captions[0] for captions in found.captions]
    place_of = {caption: place for place, caption in enumerate(dict.fromkeys(firsts))}
    texts_CE = found.texts_DE[[firsts.index(caption) for caption in place_of]]
    pictures_right = [carriers[caption] for caption in firsts]
    captions_right = [
        {place_of[caption] for caption in captions if caption in place_of}
        for captions in found.captions
    ]
    to_picture = ranks(found.texts_DE, found.pictures_DE, pictures_right)
    to_caption = ranks(found.pictures_DE, texts_CE, captions_right)
    return {
        kind: Row(to_picture=_shares(to_picture[places]), to_caption=_shares(to_caption[places]))
        for kind, places in by_kind(found.kinds).items()
    }


def ranks(queries_QE: Vectors, candidates_DE: Vectors, right: Sequence[Set[int]]) -> Ranks:
    """For each query how many wrong candidates score at least what its best right one does."""
    found: list[int] = []
    for start in range(0, len(queries_QE), QUERIES):
        scores_QD = queries_QE[start : start + QUERIES] @ candidates_DE.T
        for place, scores_D in enumerate(scores_QD, start):
            mine = sorted(right[place])
            best = scores_D[mine].max()
            found.append(int((scores_D >= best).sum() - (scores_D[mine] >= best).sum()))
    return np.array(found)


def of_index(memory: Memory, kind: Plan, found: Embedded) -> dict[str, dict[int, float]]:
    """The share of the truly nearest 1 and 10 documents that an index of a kind finds among as
    many, for queries by text alone, by picture alone, and by both."""
    vectors_DE = np.stack([memory.segments[p.segment].vector(p.row) for p in memory.places()])
    built = Index.build(vectors_DE, kind)
    queries: Mapping[str, Vectors] = {
        "text": found.texts_DE,
        "picture": found.pictures_DE,
        "both": unit(found.texts_DE + found.pictures_DE),
    }
    most = min(max(AT), len(vectors_DE))
    shares: dict[str, dict[int, float]] = {}
    for name, queries_QE in queries.items():
        _, exact_QK = search_exactly(vectors_DE, queries_QE, most)
        _, found_QK = built.search(queries_QE, most)
        shares[name] = {at: recall(exact_QK, found_QK, at) for at in (1, most)}
    return shares


def _shares(ranks_Q: Ranks) -> dict[int, Figure]:
    return {at: ratio((ranks_Q < at).astype(float).tolist()) for at in AT}
