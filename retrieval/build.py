"""WebDataset tars -> a memory: every picture with its captions is encoded, embedded and kept.

Offline, before anything is retrieved. One segment a tar: a build that was killed goes on with the
documents that are not there yet when the same command is given again.
"""

# Shapes: D = documents, B = batch, 3 = red, green, blue, H, W = pixels, L = codes, E = vector

from collections.abc import Callable, Iterator, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retrieval.embed import Embedder, document_vectors
from retrieval.index import Vectors
from retrieval.memory import Memory
from retrieval.retrieve import threshold
from retrieval.segment import Codebook, Row
from tokenizer.errors import UserError
from tokenizer.image import PictureEncoder
from tokenizer.pixels import fit, open_image, to_pixels
from tokenizer.tars import Tally, read_samples

BATCH = 64  # pictures encoded and embedded together
PROBED = 2000  # documents whose nearest other one is looked up for the threshold

Say = Callable[[str], None]


def codebook_of(encoder: PictureEncoder) -> Codebook:
    """What the memory says of its codes. The tokenizer was saved, so that it has a hash."""
    assert encoder.hash
    return Codebook(
        image_tokenizer=encoder.hash, size=encoder.size, grid=encoder.grid, codes=encoder.codes
    )


def add_tars(
    memory: Memory,
    tars: Sequence[Path],
    embedder: Embedder,
    encoder: PictureEncoder,
    *,
    exclude: Set[str] = frozenset(),
    limit: int | None = None,
    tally: Tally,
    say: Say,
) -> Memory:
    """The memory with the documents of the tars that it does not hold yet, a segment a tar.

    `exclude`: ids that may not come. `limit`: the first so many of each tar. What is damaged is
    noted in `tally` and left out.
    """
    for tar in tars:
        found = _pictures(memory, tar, exclude, limit, tally)
        rows: list[Row] = []
        vectors: list[Vectors] = []
        for group in _groups(found):
            codes_BL = encoder.encode(torch.stack([_pixels(image, encoder) for _, image in group]))
            texts = [next(iter(metadata["captions"]), None) for metadata, _ in group]
            vectors.append(document_vectors(embedder, texts, [image for _, image in group]))
            told = (metadata for metadata, _ in group)
            rows += zip(told, codes_BL.tolist(), strict=True)
        if rows:
            memory = memory.add(rows, np.concatenate(vectors))
        say(f"{tar.name}: {len(rows):,} documents, {memory.count:,} in all")
    return memory


def calibrate(memory: Memory) -> Memory:
    """The memory with its own threshold of near copies; see `retrieve.threshold`."""
    places = list(memory.places())
    if len(places) < 2:
        raise UserError(f"{memory.folder} has {len(places)} documents; a memory needs two")
    step = max(1, len(places) // PROBED)
    probed = places[::step]
    vectors_DE = np.stack([memory.segments[p.segment].vector(p.row) for p in probed])
    names = [memory.segments[p.segment].document(p.row)[0]["id"] for p in probed]
    scores = [
        next(one.score for one in found if one.id != name)
        for name, found in zip(names, memory.search(vectors_DE, 2), strict=True)
    ]
    return memory.with_near(threshold(scores))


def _pictures(
    memory: Memory, tar: Path, exclude: Set[str], limit: int | None, tally: Tally
) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    for sample in islice(read_samples([tar], tally), limit):
        if sample.metadata["id"] in exclude:
            tally.excluded += 1
        elif memory.find(sample.metadata["id"]) is None:
            try:
                image = open_image(sample.picture)
            except UserError as error:
                tally.skip(sample.name, error)
                continue
            tally.pictures += 1
            yield sample.metadata, image


def _pixels(image: Image.Image, encoder: PictureEncoder) -> Tensor:
    return to_pixels(fit(image, encoder.size))


def _groups(
    things: Iterator[tuple[dict[str, Any], Image.Image]],
) -> Iterator[list[tuple[dict[str, Any], Image.Image]]]:
    while group := list(islice(things, BATCH)):
        yield group
