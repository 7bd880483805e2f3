"""Build a retrieval memory: encode, embed and store images with their captions.

Runs offline, before retrieval. The documents of a source are added in segments of bounded size, so
that memory use is bounded, and a build that was killed continues with the missing documents when
the same command is run again. Several processes share the work (`fill_together`): process r of N
takes every N-th source, starting from the r-th. The documents of a source become a part, which is a
memory of its own in a subfolder of the memory's folder; the parts, gathered in the order of the
sources, give the result of a single process.
"""

# Shapes: D = documents, B = batch, 3 = red, green, blue, H, W = pixels, L = codes, E = vector width

import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retrieval.embed import Embedder, document_vectors
from retrieval.index import Vectors, plan
from retrieval.memory import TOP, Contents, Memory
from retrieval.rules import Rules, threshold
from retrieval.segment import CodebookInfo, Row, odd_id
from tokenizer.data.sources import read_source
from tokenizer.data.tars import Sample, Tally, decode
from tokenizer.distributed import DistributedContext
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer, PictureEncoder
from tokenizer.pixels import fit, to_image, to_pixels

BATCH = 64  # maximum number of images encoded and embedded together
BATCH_PIXELS = 1 << 26  # a batch ends early once its images have this many pixels
SEGMENT = 50_000  # maximum number of documents added at once
PROBED = 2000  # documents whose nearest neighbour is looked up for the threshold
ASKED = 500  # documents whose captions and images are the queries that measure recall

Say = Callable[[str], None]
Fill = Callable[[Memory, Sequence[str], Memory | None], Memory]
Pictures = Iterator[tuple[dict[str, Any], Image.Image]]  # images with their metadata


def codebook_of(encoder: PictureEncoder) -> CodebookInfo:
    """Return the codebook metadata that the memory records. The tokenizer must have been saved, so
    that it has a hash."""
    assert encoder.hash
    return CodebookInfo(
        image_tokenizer=encoder.hash, size=encoder.size, grid=encoder.grid, codes=encoder.codes
    )


def create(
    folder: Path, embedder: Embedder, encoder: PictureEncoder, least: float = Rules().least
) -> Memory:
    """Create an empty memory for this embedder and this image tokenizer, with `least` as
    `Rules.least`; see `Memory.create`."""
    contents = Contents(
        encoder=embedder.id,
        dimension=embedder.dimension,
        codebook=codebook_of(encoder),
        near=Rules().near,
        least=least,
    )
    return Memory.create(folder, contents)


def add_sources(
    memory: Memory,
    sources: Sequence[str],
    embedder: Embedder,
    encoder: PictureEncoder,
    *,
    exclude: Set[str] = frozenset(),
    limit: int | None = None,
    beside: Memory | None = None,
    segment: int = SEGMENT,
    device: torch.device | str = "cpu",
    tally: Tally,
    say: Say,
) -> Memory:
    """Return the memory with the documents of the sources that neither it nor `beside` holds.

    `exclude`: ids that are left out. `limit`: number of samples read from the start of each source.
    Damaged samples are recorded in `tally` and skipped. `device`: the device of the encoder.
    """
    first = len(memory.segments)
    for source in sources:
        count = 0
        samples = islice(read_source(source, tally), limit)
        found = _pictures(_new(samples, memory, beside, first, exclude, tally), tally)
        documents = _documents(found, embedder, encoder, device)
        while some := list(islice(documents, segment)):
            vectors_DE = np.stack([vector_E for _, vector_E in some])
            memory = memory.add((row for row, _ in some), vectors_DE)
            count += len(some)
        say(f"{source}: {count:,} documents, {memory.count:,} in all")
    return memory


def merge(memory: Memory, budget: int | None = None) -> Memory:
    """Merge the memory into a single segment with the best index for a budget in bytes (None: no
    limit). Return it unchanged if it already has that form."""
    kind = plan(memory.count, memory.contents.dimension, budget)
    kinds = [segment.kind for segment in memory.segments]
    removed = any(one.removed for one in memory.contents.segments)
    return memory if kinds == [kind.name] and not removed else memory.compact(kind)


def calibrate(memory: Memory) -> Memory:
    """Return the memory with its own near-duplicate threshold; see `rules.threshold`. Raises
    UserError for fewer than two documents."""
    places = list(memory.places())
    if len(places) < 2:
        raise UserError(f"{memory.folder} has {len(places)} documents; a memory needs two")
    step = max(1, len(places) // PROBED)
    probed = places[::step]
    vectors_DE = np.stack([memory.segments[p.segment].vector(p.row) for p in probed])
    names = [memory.segments[p.segment].document(p.row)[0]["id"] for p in probed]
    scores = [
        next((one.score for one in found if one.id != name), -1.0)  # an index may miss all others
        for name, found in zip(names, memory.search(vectors_DE, 2), strict=True)
    ]
    return memory.with_near(threshold(scores))


def recall_by_kind(
    memory: Memory,
    embedder: Embedder,
    tokenizer: ImageTokenizer,
    device: torch.device | str = "cpu",
) -> dict[str, tuple[float, float]]:
    """Compute recall@1 and @10 of a merged memory's index against an exact search, for three kinds
    of queries. Return an empty dict if the memory's own search is exact.

    The queries are the first captions of ASKED documents at even intervals, their images as
    reconstructed from their codes (a resumed build has no other images), and both together.
    """
    (segment,) = memory.segments
    if segment.index.built is None:
        return {}
    places = list(memory.places())
    asked = places[:: max(1, len(places) // ASKED)][:ASKED]
    rows = [row for place in asked if (row := segment.document(place.row))[1]]
    pictures = _given_back(rows, tokenizer, device)
    told = [
        (row[0]["captions"][0], picture)
        for row, picture in zip(rows, pictures, strict=True)
        if row[0].get("captions")
    ]
    queries = {"image": embedder.pictures(pictures)}
    if told:
        captions, beside = zip(*told, strict=True)
        queries["text"] = embedder.texts(captions)
        queries["both"] = document_vectors(embedder, captions, beside)
    return {name: segment.index.recalls(asked_QE) for name, asked_QE in queries.items()}


def _given_back(
    rows: Sequence[Row], tokenizer: ImageTokenizer, device: torch.device | str
) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    for start in range(0, len(rows), BATCH):
        codes_BL = torch.tensor([codes for _, codes in rows[start : start + BATCH]], device=device)
        pictures += map(to_image, tokenizer.decode(codes_BL))
    return pictures


def _pictures(samples: Iterable[Sample], tally: Tally) -> Pictures:
    for metadata, image in decode(samples, tally):
        tally.mute += not metadata["captions"]
        yield metadata, image


def _new(
    samples: Iterable[Sample],
    memory: Memory,
    beside: Memory | None,
    first: int,
    exclude: Set[str],
    tally: Tally,
) -> Iterator[Sample]:
    """Yield the samples that the memory does not hold; a document in a segment from `first` on was
    added by this build."""
    for sample in samples:
        name = sample.metadata["id"]
        place = memory.find(name)
        if name in exclude:
            tally.excluded += 1
        elif reason := odd_id(name):
            tally.skip(sample.name, reason)
        elif place is not None and place.segment >= first:
            tally.skip(sample.name, f"an image of an earlier source has its id {name!r}")
        elif place is not None or (beside is not None and beside.find(name) is not None):
            tally.known += 1
        else:
            yield sample


def _documents(
    found: Pictures, embedder: Embedder, encoder: PictureEncoder, device: torch.device | str
) -> Iterator[tuple[Row, Vectors]]:
    """Yield each image as a row of a memory, with its vector [E]."""
    for group in groups(found):
        codes_BL = encoder.encode(pixels(group, encoder.size).to(device))
        texts = [next(iter(metadata["captions"]), None) for metadata, _ in group]
        vectors_BE = document_vectors(embedder, texts, [image for _, image in group])
        for (metadata, _), codes, vector_E in zip(group, codes_BL, vectors_BE, strict=True):
            yield (metadata, array("H", codes.tolist())), vector_E  # 2 bytes per code, not 36


def pixels(group: Sequence[tuple[dict[str, Any], Image.Image]], size: int) -> Tensor:
    """Return the images of a group as input of an image tokenizer, [B, 3, size, size]."""
    return torch.stack([to_pixels(fit(image, size)) for _, image in group])


def groups(found: Pictures) -> Iterator[list[tuple[dict[str, Any], Image.Image]]]:
    """Yield images in groups that are held in memory together."""
    group: list[tuple[dict[str, Any], Image.Image]] = []
    held = 0
    for metadata, image in found:
        group.append((metadata, image))
        held += image.width * image.height
        if len(group) == BATCH or held >= BATCH_PIXELS:
            yield group
            group, held = [], 0
    if group:
        yield group


def fill_together(
    memory: Memory, sources: Sequence[str], dist: DistributedContext, fill: Fill, tally: Tally
) -> Memory:
    """Return the memory with the documents of all sources. With several processes only the first
    returns it; the others return the memory as it was.

    `fill(memory, sources, beside)` returns the memory with the documents of some sources that
    neither it nor `beside` holds.
    """
    if dist.size == 1:
        return fill(memory, sources, None)
    for number in range(dist.rank, len(sources), dist.size):
        contents = replace(memory.contents, segments=())
        part = Memory.create(memory.folder / f"part-{number:06d}", contents)
        fill(part, [sources[number]], memory)
    dist.wait()
    return gather(memory, tally) if dist.rank == 0 else memory


def gather(memory: Memory, tally: Tally) -> Memory:
    """Return the memory with the documents of its parts, and delete the parts. Of two documents
    with the same id the first is kept; the other is recorded in `tally`."""
    for top in sorted(memory.folder.glob(f"part-*/{TOP}")):
        for segment in Memory.open(top.parent).segments:
            names = [picture["id"] for picture in segment.shards.every_picture()]
            new = [row for row, name in enumerate(names) if memory.find(name) is None]
            for row in sorted({*range(len(names))} - {*new}):
                tally.skip(names[row], f"an image of an earlier source has its id {names[row]!r}")
            if new:
                rows = (segment.document(row) for row in new)
                memory = memory.add(rows, segment.index.vectors_DE[new])
        top.unlink()  # marks the part as gathered, even if deleting the rest fails
    for part in memory.folder.glob("part-*"):
        shutil.rmtree(part, ignore_errors=True)
    return memory
