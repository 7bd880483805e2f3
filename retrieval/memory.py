"""The memory bank: documents that can be put in front of a prompt, and what finds them.

    memory.json               what is confirmed: encoder, codebook, segments, removed rows
    segment-000001-9f3c1d20/  see retrieval/segment.py; never changed, only dropped whole
    verified.json             segments whose hashes this machine has compared once

On the path: build -> memory folder -> `Memory.open` -> search -> retrieve's rules -> Documents.
A change writes a segment aside, then a new memory.json in one rename: whoever is killed in
between leaves the state that was confirmed last.
"""

# Shapes: D = documents of a segment, Q = queries, E = width of a vector

import fcntl
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from retrieval import index
from retrieval.index import Plan, Vectors
from retrieval.retrieve import Candidate, by_relevance
from retrieval.segment import Codebook, Row, Segment, caption_of, write_segment
from tokenizer import settings
from tokenizer.document import Document, Field, Picture
from tokenizer.errors import UserError
from tokenizer.manifest import MANIFEST, file_hash, verify, write_file

FORMAT = 1
TOP, VERIFIED, LOCK = "memory.json", "verified.json", ".lock"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A segment as memory.json lists it; `manifest` is the hash of the segment's own manifest."""

    name: str
    rows: int
    manifest: str
    removed: tuple[int, ...] = ()  # rows that count no more


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What memory.json confirms."""

    format: int = FORMAT
    encoder: str  # the Embedder's id: vectors of another mean nothing here
    dimension: int
    codebook: Codebook
    near: float  # above this score two documents are near copies; see retrieve.Rules
    segments: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(f"format is {self.format}; this version reads {FORMAT}")

    @property
    def count(self) -> int:
        """Documents that can be found."""
        return sum(one.rows - len(one.removed) for one in self.segments)


class Place(NamedTuple):
    """Where a document lies: number of the segment, and of the row in it."""

    segment: int
    row: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """An open memory. It is not changed in place: add, remove and compact return the new one."""

    folder: Path
    contents: Contents
    segments: tuple[Segment, ...]

    @classmethod
    def create(cls, folder: Path | str, contents: Contents) -> Self:
        """A new, empty memory. Raises UserError where something lies there already."""
        folder = Path(folder)
        if (folder / TOP).exists():
            raise UserError(f"{folder} is a memory already; add to it, or name a new folder")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
        if any(folder.iterdir()):
            raise UserError(f"{folder} holds other things; name a new folder")
        _confirm(folder, contents)
        return cls.open(folder)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        encoder: str | None = None,
        image_tokenizer: str | None = None,
        say: Say | None = None,
    ) -> Self:
        """Open a memory and check that its parts are whole; what this machine has not compared
        with its hash before is compared now, aloud.

        Raises UserError for no such memory, a damaged one, or one of another encoder or codebook.
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
                f"{str(image_tokenizer)[:12]}; build the memory again with this one"
            )
        _compare_once(folder, contents, say)
        opened = (_open_segment(folder, contents, one) for one in contents.segments)
        return cls(folder=folder, contents=contents, segments=tuple(opened))

    @property
    def count(self) -> int:
        """Documents that can be found."""
        return self.contents.count

    def places(self) -> Iterator[Place]:
        """Where every document lies that can be found."""
        for number, (segment, removed) in enumerate(zip(self.segments, self._removed, strict=True)):
            yield from (Place(number, row) for row in range(segment.rows) if row not in removed)

    def find(self, document_id: str) -> Place | None:
        """Where a document lies, None where there is none of this id."""
        for number, (segment, removed) in enumerate(zip(self.segments, self._removed, strict=True)):
            row = segment.find(document_id)
            if row is not None and row not in removed:
                return Place(number, row)
        return None

    def row(self, document_id: str) -> Row:
        """A document's metadata (id, captions, licence, credit) and codes, none where it has no
        picture. Raises UserError where there is no such document."""
        place = self._place(document_id)
        return self.segments[place.segment].document(place.row)

    def document(self, document_id: str) -> Document:
        """The Document to put in front of a prompt: its first caption and its picture, as a pair
        of training is worded; of a document with one of them alone, that one."""
        metadata, codes = self.row(document_id)
        caption = caption_of(metadata)
        text = () if caption is None else (Field(f" {caption}"),)
        return (*text, Picture(tuple(codes))) if codes else text

    def search(self, queries_QE: Vectors, most: int) -> list[list[Candidate]]:
        """For each query up to `most` documents with the best scores, best first."""
        found: list[list[Candidate]] = [[] for _ in queries_QE]
        for segment, removed in zip(self.segments, self._removed, strict=True):
            for query, candidates in enumerate(segment.search(queries_QE, most, removed)):
                found[query] += candidates
        return [by_relevance(candidates)[:most] for candidates in found]

    def add(self, rows: Iterable[Row], vectors_DE: Vectors, kind: Plan | None = None) -> Self:
        """The memory with these documents too, in a segment of their own; row i has vector i.

        Raises UserError, and adds none, where an id is taken or comes twice.
        """
        with _changing(self):
            entry = self._write(self._unknown(rows), vectors_DE, kind)
            segments = (*self.contents.segments, entry)
            _confirm(self.folder, replace(self.contents, segments=segments))
        return type(self).open(self.folder)

    def remove(self, ids: Collection[str]) -> Self:
        """The memory without these documents; their rows go with the next `compact`.

        Raises UserError, and removes none, where an id is unknown.
        """
        gone = [self._place(document_id) for document_id in ids]
        segments = tuple(
            replace(one, removed=tuple(sorted({*one.removed, *(p.row for p in gone if p[0] == n)})))
            for n, one in enumerate(self.contents.segments)
        )
        with _changing(self):
            _confirm(self.folder, replace(self.contents, segments=segments))
        return type(self).open(self.folder)

    def compact(self, kind: Plan | None = None) -> Self:
        """The memory with all that can be found in one segment, and nothing else kept."""
        with _changing(self):
            order = list(self.places())
            entries: tuple[Entry, ...] = ()
            if order:
                rows = (self.segments[p.segment].document(p.row) for p in order)
                vectors_DE = np.stack([self.segments[p.segment].vector(p.row) for p in order])
                entries = (self._write(rows, vectors_DE, kind),)
            _confirm(self.folder, replace(self.contents, segments=entries))
        return type(self).open(self.folder)

    def with_near(self, near: float) -> Self:
        """The memory with another threshold of near copies."""
        with _changing(self):
            _confirm(self.folder, replace(self.contents, near=near))
        return type(self).open(self.folder)

    @cached_property
    def _removed(self) -> list[frozenset[int]]:
        return [frozenset(one.removed) for one in self.contents.segments]

    def _place(self, document_id: str) -> Place:
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

    def _write(self, rows: Iterable[Row], vectors_DE: Vectors, kind: Plan | None) -> Entry:
        assert vectors_DE.shape[1] == self.contents.dimension
        kind = kind or index.plan(len(vectors_DE), self.contents.dimension)
        name = f"segment-{len(self.segments) + 1:06d}-{secrets.token_hex(4)}"
        folder = self.folder / name
        write_segment(folder, rows, vectors_DE, self.contents.codebook, kind)
        return Entry(name=name, rows=len(vectors_DE), manifest=file_hash(folder / MANIFEST))


def read_contents(folder: Path) -> Contents:
    """What memory.json confirms. Raises UserError where it is missing or damaged."""
    path = folder / TOP
    if not path.is_file():
        raise UserError(f"there is no memory at {str(folder)!r}: it has no {TOP}")
    try:
        table: Any = json.loads(path.read_text("utf-8"))
        body = table["memory"]
        whole = table["sha256"] == _digest(body)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error}); copy the memory again") from error
    if not whole:
        raise UserError(f"{path}: is damaged, it is not what was written; copy the memory again")
    try:
        return settings.build(Contents, body)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def verify_memory(folder: Path) -> Contents:
    """Read every part again and compare it with its hash; UserError names a bad one."""
    contents = read_contents(folder)
    for one in contents.segments:
        _verify_segment(folder, one)
    return contents


def _open_segment(folder: Path, contents: Contents, entry: Entry) -> Segment:
    made_with = contents.codebook.image_tokenizer
    return Segment.open(folder / entry.name, made_with, entry.rows, contents.dimension)


def _verify_segment(folder: Path, entry: Entry) -> None:
    place = folder / entry.name
    if not (place / MANIFEST).is_file() or file_hash(place / MANIFEST) != entry.manifest:
        raise UserError(f"{place}: is missing or not what {TOP} confirms; copy the memory again")
    verify(place)


def _compare_once(folder: Path, contents: Contents, say: Say | None) -> None:
    """Verify the segments that are not, in sizes, times and inodes, those verified before."""
    path = folder / VERIFIED
    try:
        known: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        known = None
    stamps: dict[str, Any] = {}
    for one in contents.segments:
        stamp = _stamp(folder / one.name)
        if not isinstance(known, dict) or known.get(one.name) != stamp:
            if say is not None:
                say(f"comparing {one.name} with its hashes, once on this machine")
            _verify_segment(folder, one)
        stamps[one.name] = stamp
    if stamps != known:
        try:
            write_file(path, json.dumps(stamps).encode())
        except UserError:
            return  # on a disk that cannot be written it is compared every time


def _stamp(segment: Path) -> list[list[Any]]:
    parts = sorted(path for path in segment.rglob("*") if path.is_file())
    about = [(path.relative_to(segment).as_posix(), path.stat()) for path in parts]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in about]


def _confirm(folder: Path, contents: Contents) -> None:
    """Confirm a new state; then drop what it does not hold."""
    body = settings.table_of(contents)
    text = json.dumps({"sha256": _digest(body), "memory": body}, indent=1) + "\n"
    write_file(folder / TOP, text.encode())
    kept = {one.name for one in contents.segments}
    for path in [*folder.glob("segment-*"), *folder.glob(".segment-*")]:
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@contextmanager
def _changing(memory: Memory) -> Generator[None]:
    """Be the only one that changes this memory, which is still what was opened."""
    try:
        lock = (memory.folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot change {memory.folder}: {error.strerror}") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{memory.folder} is being changed by another; try again") from error
        if read_contents(memory.folder) != memory.contents:
            raise UserError(f"{memory.folder} was changed since it was opened; open it again")
        yield
