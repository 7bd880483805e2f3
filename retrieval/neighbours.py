"""Table of neighbours: documents that can be prepended to each image in training.

    neighbours.npy   int32 [P, 4]: for each image of token shards the numbers of other images of
                     the shards, two retrieved by its image and two by its text; -1 is none
    about.json       shards, encoder and threshold
    manifest.json    size and SHA-256 of each part

Computed offline, after the memory: images with their captions -> search -> rules -> table, which
`train/data/rows.py` reads. The rules are those of generation (CM3Leon, section 2.1).
"""

# Shapes: P = images of the shards, N = neighbours of an image, B = batch, E = vector width

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.embed import Embedder, document_vectors
from retrieval.memory import Memory
from retrieval.rules import Rules, drop_words, select, unlike
from tokenizer.data.shards import Shards
from tokenizer.data.tables import read_table, write_about
from tokenizer.manifest import new_folder

BATCH = 64
NONE = -1
TABLE = "neighbours.npy"

Told = tuple[dict[str, Any], Image.Image]  # metadata with id and captions; image


def find_neighbours(
    memory: Memory,
    embedder: Embedder,
    pictures: Iterable[Told],
    numbers: Mapping[str, int],
    rules: Rules,
) -> NDArray[np.int32]:
    """Return the neighbours [P, 2 * rules.count] of the images whose ids are in `numbers`, which
    maps an id to its row.

    Words are dropped from text queries (`drop_words`). A document that is a near duplicate of the
    query's own document, or that the shards do not hold, is never chosen.
    """
    table_PN = np.full((len(numbers), 2 * rules.count), NONE, np.int32)
    left = set(numbers)  # of two images with the same id the first is used, as in the shards
    rest = (one for one in pictures if one[0]["id"] in left and not left.discard(one[0]["id"]))
    while group := list(islice(rest, BATCH)):
        ids = [metadata["id"] for metadata, _ in group]
        texts = [next(iter(metadata["captions"]), None) for metadata, _ in group]
        images = [image for _, image in group]
        own_BE = document_vectors(embedder, texts, images)
        pairs = zip(texts, ids, strict=True)
        words = [drop_words(text or "", rules.dropout, name) for text, name in pairs]
        by_picture = memory.search(embedder.pictures(images), rules.pool)
        by_text = memory.search(embedder.texts(words), rules.pool)
        for place, name in enumerate(ids):
            chosen: list[str] = []
            queries = (by_picture, by_text) if texts[place] is not None else (by_picture,)
            for found in queries:
                there = [one for one in found[place] if one.id in numbers]
                apart = unlike(there, own_BE[place], rules.near)
                chosen += [one.id for one in select(apart, rules, {name, *chosen})]
            table_PN[numbers[name], : len(chosen)] = [numbers[one] for one in chosen]
    return table_PN


def write_neighbours(
    folder: Path, table_PN: NDArray[np.int32], shards: Shards, memory: Memory
) -> None:
    """Write a table atomically, replacing an older table."""
    about = {"encoder": memory.contents.encoder, "near": memory.contents.near}
    with new_folder(folder, replace=True) as aside:
        np.save(aside / TABLE, table_PN, allow_pickle=False)
        write_about(aside, shards, about)


def read_neighbours(folder: Path | str, shards: Shards) -> NDArray[np.int32]:
    """Return the table [P, N] of these shards, memory-mapped. Raises UserError if it is missing,
    damaged or of other shards."""
    shape = (shards.pictures, None)
    return read_table(
        folder, TABLE, shards, np.int32, shape, "cm3leon index build --neighbours SHARDS"
    )
