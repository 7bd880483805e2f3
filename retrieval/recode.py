"""A memory's documents with the codes of another image tokenizer; their vectors stay as they are.

Offline, when a model comes with a codebook of its own: the pictures are read from their sources
once more, and no embedder is needed.
"""

# Shapes: D = documents, removed ones too; B = batch, L = codes

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch

from retrieval.build import Pictures, Say, codebook_of, groups, pixels
from retrieval.index import Plan
from retrieval.memory import Memory, Place
from tokenizer.errors import UserError
from tokenizer.image import PictureEncoder
from tokenizer.sources import read_source
from tokenizer.tars import Tally, decode

CODE = np.dtype(np.uint16)


def recode(
    memory: Memory,
    sources: Sequence[str],
    encoder: PictureEncoder,
    *,
    device: torch.device | str = "cpu",
    tally: Tally,
    say: Say,
) -> Memory:
    """The memory, in one segment, with the codes that `encoder` makes of its documents' pictures.

    Raises UserError, and changes nothing, where the codes are of `encoder` already, or where the
    picture of a document is not in the sources. The encoder is on `device`.
    """
    book = codebook_of(encoder)
    if memory.contents.codebook == book:
        raise UserError(f"{memory.folder} holds codes of this image tokenizer already")
    if not memory.count:
        raise UserError(f"{memory.folder} has no documents; build it again with this tokenizer")
    starts = [0, *accumulate(segment.rows for segment in memory.segments)]
    width = CODE.itemsize * encoder.grid**2
    done_D = np.zeros(starts[-1], bool)

    def waiting(document_id: str) -> int | None:
        """The number of a document that is there and has no new codes yet."""
        place = memory.find(document_id)
        number = place and starts[place.segment] + place.row
        return None if number is None or done_D[number] else number

    with _aside(memory) as file:
        for source in sources:
            for group in groups(_pictures(source, waiting, tally)):
                codes_BL = encoder.encode(pixels(group, encoder.size).to(device))
                for (metadata, _), codes_L in zip(group, codes_BL.cpu().numpy(), strict=True):
                    number = waiting(metadata["id"])
                    assert number is not None
                    file.seek(width * number)
                    file.write(codes_L.astype(CODE).tobytes())
                    done_D[number] = True
            say(f"{source}: {done_D.sum():,} of {memory.count:,} documents have their codes")
        missing = [
            place
            for place in memory.places()
            if _codes(memory, place) and not done_D[starts[place.segment] + place.row]
        ]
        if missing:
            metadata, _ = memory.segments[missing[0].segment].document(missing[0].row)
            raise UserError(
                f"{len(missing):,} of {memory.count:,} documents of {memory.folder} have no "
                f"picture in these sources, as {metadata['id']!r}; name all that they came from"
            )
        return memory.recoded(book, _read(memory, starts, file, width), _kind(memory))


def _pictures(source: str, waiting: Callable[[str], int | None], tally: Tally) -> Pictures:
    """The pictures of documents that wait for their codes; of two with one id, the first."""
    samples = read_source(source, tally)
    return decode((one for one in samples if waiting(one.metadata["id"]) is not None), tally)


def _codes(memory: Memory, place: Place) -> Sequence[int]:
    """The codes that a document has now; none where it is a text alone."""
    return memory.segments[place.segment].document(place.row)[1]


def _read(
    memory: Memory, starts: Sequence[int], file: IO[bytes], width: int
) -> Iterator[Sequence[int]]:
    """The new codes of every document, in the order of `Memory.places`."""
    for place in memory.places():
        file.seek(width * (starts[place.segment] + place.row))
        yield np.frombuffer(file.read(width), CODE).tolist() if _codes(memory, place) else ()


def _kind(memory: Memory) -> Plan | None:
    """The index that a memory of one segment has now."""
    if len(memory.segments) != 1:
        return None
    (one,) = memory.segments
    factory = None if one.index.built is None else one.kind
    return Plan(factory=factory, bytes_per_vector=one.bytes_per_vector)


@contextmanager
def _aside(memory: Memory) -> Generator[IO[bytes]]:
    """A file without a name where codes wait, so that little is held at once."""
    try:
        with TemporaryFile(dir=memory.folder) as file:
            yield file
    except OSError as error:
        raise UserError(
            f"cannot write {memory.folder}: {error.strerror or error}; nothing was changed"
        ) from error
