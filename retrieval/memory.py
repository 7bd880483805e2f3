"""Memory bank: documents that can be prepended to a prompt, with an index to search them.

    memory.json               confirmed state: encoder, codebook, segments, removed rows
    segment-000001-9f3c1d20/  see retrieval/segment.py; immutable, only deleted as a whole
    verified.json             segments whose hashes this machine has already verified

Data path: build -> memory folder -> `Memory.open` -> search -> the rules of `rules.py` ->
Documents. A change writes a segment aside, then replaces memory.json in one rename: a process that
is killed in between leaves the last confirmed state.
"""

# Shapes: D = documents of a segment, Q = queries, E = vector width

import json
import secrets
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, Self

import numpy as np

from retrieval import index
from retrieval.format import (
    LOCK,
    TOP,
    VERIFIED,
    Contents,
    SegmentEntry,
    confirm,
    locked,
    read_contents,
)
from retrieval.index import Halves, IndexPlan, Vectors
from retrieval.rules import Candidate, by_relevance
from retrieval.segment import Row, Segment, caption_of, check_finite, write_segment
from tokenizer.document import Document, Field, Picture
from tokenizer.errors import UserError
from tokenizer.manifest import MANIFEST, file_hash, verify, write_file

Say = Callable[[str], None]


class RowAddress(NamedTuple):
    """Position of a document: number of its segment, and row in that segment."""

    segment: int
    row: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """Open memory. It is not changed in place: add, remove and compact return a new `Memory`."""

    folder: Path
    contents: Contents
    segments: tuple[Segment, ...]

    @classmethod
    def create(cls, folder: Path | str, contents: Contents) -> Self:
        """Create an empty memory. Raises UserError if the folder exists and is not empty."""
        folder = Path(folder)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
        names = {path.name for path in folder.iterdir()}
        strange = [name for name in names - {LOCK} if not name.startswith(f".{TOP}.")]
        if strange and TOP not in names:
            raise UserError(f"{folder} holds other things; name a new folder")
        with locked(folder):
            if (folder / TOP).exists():
                raise UserError(f"{folder} is a memory already; add to it, or name a new folder")
            confirm(folder, contents)
        return cls.open(folder)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        encoder: str | None = None,
        image_tokenizer: str | None = None,
        say: Say | None = None,
    ) -> Self:
        """Open a memory and check its segments; those not yet verified on this machine are compared
        with their hashes now, which is reported with `say`.

        Raises UserError if there is no memory, or if it is damaged or of another encoder or
        codebook.
        """
        folder = Path(folder)
        contents = read_contents(folder)
        if encoder not in (None, contents.encoder):
            raise UserError(
                f"{folder} was made by the encoder {contents.encoder}, this one is {encoder}; name "
                "that one, or build the memory again"
            )
        made_with = contents.codebook.image_tokenizer
        if image_tokenizer not in (None, made_with):
            raise UserError(
                f"{folder} holds codes of image tokenizer {made_with[:12]}, but this one is "
                f"{str(image_tokenizer)[:12]}; build the memory again with it"
            )
        try:
            opened = tuple(_open_segments(folder, contents, say))
        except UserError:
            if read_contents(folder) == contents:
                raise
            return cls.open(folder, encoder, image_tokenizer, say)  # it was changed meanwhile
        return cls(folder=folder, contents=contents, segments=opened)

    @property
    def count(self) -> int:
        """Number of documents that are not removed."""
        return self.contents.count

    def places(self) -> Iterator[RowAddress]:
        """Yield the position of every document that is not removed."""
        for number, (segment, removed) in enumerate(zip(self.segments, self._removed, strict=True)):
            yield from (
                RowAddress(number, row) for row in range(segment.rows) if row not in removed
            )

    def find(self, document_id: str) -> RowAddress | None:
        """Return the position of a document, or None if no document has this id."""
        for number, (segment, removed) in enumerate(zip(self.segments, self._removed, strict=True)):
            row = segment.find(document_id)
            if row is not None and row not in removed:
                return RowAddress(number, row)
        return None

    def row(self, document_id: str) -> Row:
        """Return a document's metadata (id, captions, licence, credit) and its codes, empty if it
        has no image. Raises UserError if there is no such document."""
        place = self._place(document_id)
        return self.segments[place.segment].document(place.row)

    def document(self, document_id: str) -> Document:
        """Return the Document to prepend to a prompt: its first caption and its image, in the form
        of a training pair, or the only one of the two that it has."""
        metadata, codes = self.row(document_id)
        caption = caption_of(metadata)
        text = () if caption is None else (Field(f" {caption}"),)
        return (*text, Picture(tuple(codes))) if codes else text

    def search(self, queries_QE: Vectors, most: int) -> list[list[Candidate]]:
        """Return up to `most` documents with the best scores for each query, best first."""
        self._check(queries_QE)
        if len(self.segments) == 1:
            return list(self.segments[0].search(queries_QE, most, self._removed[0]))
        found: list[list[Candidate]] = [[] for _ in queries_QE]
        for segment, removed in zip(self.segments, self._removed, strict=True):
            for query, candidates in enumerate(segment.search(queries_QE, most, removed)):
                found[query] += candidates
        return [by_relevance(candidates)[:most] for candidates in found]

    def add(
        self, rows: Iterable[Row], vectors_DE: Vectors | Halves, kind: IndexPlan | None = None
    ) -> Self:
        """Return the memory with these documents in an additional segment; row i has vector i.
        Vectors in float16 are stored as float16 (`segment.py`).

        Raises UserError, and adds nothing, if an id is already taken or occurs twice.
        """
        with self._changing():
            entry = self._write(self._unknown(rows), vectors_DE, kind)
            segments = (*self.contents.segments, entry)
            confirm(self.folder, replace(self.contents, segments=segments))
        return type(self).open(self.folder)

    def remove(self, ids: Collection[str]) -> Self:
        """Return the memory without these documents; their rows are deleted by the next `compact`.

        Raises UserError, and removes nothing, if an id is unknown.
        """
        gone = [self._place(document_id) for document_id in ids]
        segments = tuple(
            replace(one, removed=tuple(sorted({*one.removed, *(p.row for p in gone if p[0] == n)})))
            for n, one in enumerate(self.contents.segments)
        )
        with self._changing():
            confirm(self.folder, replace(self.contents, segments=segments))
        return type(self).open(self.folder)

    def compact(self, kind: IndexPlan | None = None) -> Self:
        """Return the memory with all remaining documents in a single segment; delete all else."""
        with self._changing():
            order = list(self.places())
            entries: tuple[SegmentEntry, ...] = ()
            if order:
                rows = (self.segments[p.segment].document(p.row) for p in order)
                with self._vectors(order) as vectors_DE:
                    entries = (self._write(rows, vectors_DE, kind),)
            confirm(self.folder, replace(self.contents, segments=entries))
        return type(self).open(self.folder)

    def with_near(self, near: float) -> Self:
        """Return the memory with another near-duplicate threshold."""
        with self._changing():
            confirm(self.folder, replace(self.contents, near=near))
        return type(self).open(self.folder)

    @contextmanager
    def _changing(self) -> Generator[None]:
        """Hold the memory's lock. Raises UserError if the memory changed since it was opened."""
        with locked(self.folder):
            if read_contents(self.folder) != self.contents:
                raise UserError(f"{self.folder} was changed since it was opened; open it again")
            yield

    @contextmanager
    def _vectors(self, order: Sequence[RowAddress]) -> Generator[Vectors]:
        """Yield the vectors of these documents, in a temporary file without a name, so that few are
        in memory at once."""
        shape = (len(order), self.contents.dimension)
        try:
            with TemporaryFile(dir=self.folder) as file:
                for place in order:
                    file.write(self.segments[place.segment].vector(place.row).tobytes())
                file.flush()
                yield np.memmap(file, np.float32, "r", shape=shape)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {self.folder}: {reason}; nothing was changed") from error

    @cached_property
    def _removed(self) -> list[frozenset[int]]:
        return [frozenset(one.removed) for one in self.contents.segments]

    def _place(self, document_id: str) -> RowAddress:
        place = self.find(document_id)
        if place is None:
            raise UserError(f"{self.folder} has no document {document_id!r}")
        return place

    def _unknown(self, rows: Iterable[Row]) -> Iterator[Row]:
        for metadata, codes in rows:
            if self.find(metadata["id"]) is not None:
                name = metadata["id"]
                raise UserError(f"{self.folder} has a document {name!r} already; none was added")
            yield metadata, codes

    def _write(
        self, rows: Iterable[Row], vectors_DE: Vectors | Halves, kind: IndexPlan | None
    ) -> SegmentEntry:
        self._check(vectors_DE)
        kind = kind or index.plan(len(vectors_DE), self.contents.dimension)
        name = f"segment-{len(self.segments) + 1:06d}-{secrets.token_hex(4)}"
        folder = self.folder / name
        try:
            write_segment(folder, rows, vectors_DE, self.contents.codebook, kind)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {folder}: {reason}; the memory is as it was") from error
        return SegmentEntry(name=name, rows=len(vectors_DE), manifest=file_hash(folder / MANIFEST))

    def _check(self, vectors_DE: Vectors | Halves) -> None:
        if vectors_DE.shape[1] != self.contents.dimension:
            raise UserError(
                f"vectors of {vectors_DE.shape[1]} numbers, those of {self.folder} have "
                f"{self.contents.dimension}: they are of another encoder"
            )
        check_finite(vectors_DE, f"for {self.folder}")


def verify_memory(folder: Path) -> Contents:
    """Read every part again, compare it with its hash, and return the contents. Raises UserError
    naming a damaged part."""
    contents = read_contents(folder)
    for one in contents.segments:
        _open_segment(folder, contents, one, compare=True)
    return contents


def _open_segments(folder: Path, contents: Contents, say: Say | None) -> Iterator[Segment]:
    """Open all segments. Segments whose file sizes, times or inodes differ from those verified
    before are compared with their hashes."""
    path = folder / VERIFIED
    try:
        known: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        known = None
    stamps: dict[str, Any] = {}
    for one in contents.segments:
        stamp = stamps[one.name] = _stamp(folder / one.name)
        is_new = not isinstance(known, dict) or known.get(one.name) != stamp
        if is_new and say is not None:
            say(f"comparing {one.name} with its hashes, once on this machine")
        yield _open_segment(folder, contents, one, compare=is_new)
    if stamps != known:
        with suppress(UserError):  # on a read-only disk segments are compared every time
            write_file(path, json.dumps(stamps).encode())


def _open_segment(
    folder: Path, contents: Contents, entry: SegmentEntry, *, compare: bool
) -> Segment:
    place = folder / entry.name
    if compare:
        if not (place / MANIFEST).is_file() or file_hash(place / MANIFEST) != entry.manifest:
            raise UserError(f"{place}: is missing or not what {TOP} lists; copy the memory again")
        for path in (place, *place.rglob("*")):
            if path.is_symlink():
                raise UserError(f"{path}: is a link; copy the memory with what it points to")
        verify(place)
    made_with = contents.codebook.image_tokenizer
    segment = Segment.open(place, made_with, entry.rows, contents.dimension)
    if compare:
        check_finite(segment.index.vectors_DE, f"in {place}")
    return segment


def _stamp(segment: Path) -> list[list[Any]]:
    parts = sorted(path for path in segment.rglob("*") if path.is_file())
    about = [(path.relative_to(segment).as_posix(), path.stat()) for path in parts]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in about]
