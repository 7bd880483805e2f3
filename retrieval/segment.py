"""Immutable segment of a memory: documents that were added together, with their search index.

    shards/          captions, licences and codes, as token shards; zeros for no image
    names.npy        ids as UTF-8, all of one width, so that a search reads no JSON
    parts.npy        modalities of each document: 1 text, 2 image, 3 both
    vectors.npy      one vector of length 1 per document, float32; float16 takes half the disk
                     space and is read as float32
    ids.npy          hashes of the ids in ascending order, with the row of each
    index.faiss      only if an exact search would take too long
    segment.json     kind of index
    manifest.json    size and SHA-256 of each part

`retrieval/memory.py` combines several segments under one memory.json.
"""

# Shapes: D = documents, Q = queries, K = results per query, E = vector width

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.index import Halves, Index, IndexPlan, Rows, Vectors
from retrieval.rules import Candidate, by_relevance
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.errors import UserError
from tokenizer.manifest import new_folder

SHARDS, NAMES, PARTS, VECTORS, IDS, INDEX, ABOUT = (
    "shards", "names.npy", "parts.npy", "vectors.npy", "ids.npy", "index.faiss", "segment.json",
)  # fmt: skip
TEXT, PICTURE = 1, 2  # bits of parts.npy
LONGEST = 1000  # maximum bytes of an id
# 16 bytes, so that every hash is aligned: otherwise numpy copies all of them for a lookup
HASHED = np.dtype([("hash", "<u8"), ("row", "<u8")])
CHUNK = 65_536  # vectors checked at once
TIE = 1e-6  # a vector's score depends on its position in a search by at most this

Places = slice | NDArray[np.bool_]
Row = tuple[dict[str, Any], Sequence[int]]  # metadata with id and captions; codes, possibly empty


@dataclass(frozen=True, kw_only=True)
class CodebookInfo:
    """Metadata of the codes: image tokenizer hash, image size, grid and codebook entries."""

    image_tokenizer: str
    size: int
    grid: int
    codes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Open segment of a memory."""

    shards: Shards
    index: Index
    ids_D: NDArray[np.void]
    names_D: NDArray[np.bytes_]
    parts_D: NDArray[np.uint8]
    kind: str
    bytes_per_vector: float

    @classmethod
    def open(cls, folder: Path, image_tokenizer: str, rows: int, dimension: int) -> Self:
        """Open a segment whose hashes were verified before (FAISS trusts its files).

        Raises UserError if it does not have this number of rows, or is not a segment at all.
        """
        try:
            shards = Shards.open(folder / SHARDS, image_tokenizer, compared=True)
            vectors_DE = _vectors(folder / VECTORS, (rows, dimension))
            ids_D = _mapped(folder / IDS, (rows,), HASHED)
            names_D = _mapped(folder / NAMES, (rows,), np.dtype(np.bytes_))
            parts_D = _mapped(folder / PARTS, (rows,), np.dtype(np.uint8))
            about = json.loads((folder / ABOUT).read_text("utf-8"))
            kind, size = str(about["index"]), float(about["bytes_per_vector"])
        except UserError:
            raise
        except Exception as error:  # numpy raises almost any exception for a bad header
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: is damaged ({reason}); build the memory again") from error
        if shards.pictures != rows:
            raise UserError(f"{folder}: has {shards.pictures} documents, not {rows}; copy it again")
        path = folder / INDEX
        index = Index.open(path, vectors_DE) if path.is_file() else Index(vectors_DE)
        return cls(
            shards=shards,
            index=index,
            ids_D=ids_D,
            names_D=names_D,
            parts_D=parts_D,
            kind=kind,
            bytes_per_vector=size,
        )

    @property
    def rows(self) -> int:
        """Number of documents."""
        return self.shards.pictures

    def document(self, row: int) -> Row:
        """Return metadata and codes of a document; codes are empty if it has no image. Raises
        UserError if the segment was deleted."""
        try:
            metadata, codes = self.shards.picture(row)
        except FileNotFoundError as error:
            raise UserError(
                f"{self.shards.folder} is gone: the memory was changed since it was opened; open "
                "it again"
            ) from error
        return metadata, codes if self.parts_D[row] & PICTURE else ()

    def vector(self, row: int) -> Vectors:
        """Return the vector of a document."""
        return np.asarray(self.index.vectors_DE[row])

    def find(self, document_id: str) -> int | None:
        """Return the row of a document, or None if it is not here; reads as little as possible."""
        name = document_id.encode()
        wanted = _hash(name)
        place = int(np.searchsorted(self.ids_D["hash"], wanted))
        while place < len(self.ids_D) and self.ids_D["hash"][place] == wanted:
            row = int(self.ids_D["row"][place])
            if self.names_D[row] == name:
                return row
            place += 1
        return None

    def search(
        self, queries_QE: Vectors, most: int, removed: Collection[int]
    ) -> Iterator[list[Candidate]]:
        """Yield up to `most` documents for each query, best first, without removed rows.

        An exact search returns the lowest ids among equal scores, independent of their rows.
        """
        assert most > 0
        # one additional result of an exact search shows whether equal scores were cut off
        asked = most + min(most, len(removed)) + (self.index.built is None)
        scores_QK, rows_QK = self.index.search(queries_QE, asked)
        for query_E, scores_K, rows_K in zip(queries_QE, scores_QK, rows_QK, strict=True):
            there = _there(rows_K, removed)
            while len(rows_K) < self.rows and self._may_miss(scores_K, rows_K, there, most):
                (scores_K,), (rows_K,) = self.index.search(query_E[None], 2 * len(rows_K))
                there = _there(rows_K, removed)
            yield self._candidates(scores_K[there], rows_K[there], most)

    def _may_miss(self, scores_K: Vectors, rows_K: Rows, there: Places, most: int) -> bool:
        """Return whether a larger search could find other documents among the best `most`."""
        scores = scores_K[there]
        if len(scores) < most:
            return bool(rows_K[-1] >= 0)  # otherwise the index has no more results
        return self.index.built is None and bool(scores_K[-1] >= scores[most - 1] - TIE)

    def _candidates(self, scores_K: Vectors, rows_K: Rows, most: int) -> list[Candidate]:
        """Return the best `most` of documents in descending order of score."""
        if len(rows_K) > most:
            count = np.count_nonzero(scores_K >= scores_K[most - 1])
            scores_K, rows_K = scores_K[:count], rows_K[:count]
        parts_K = self.parts_D[rows_K]
        found = list(
            map(
                Candidate,
                map(bytes.decode, self.names_D[rows_K].tolist()),
                scores_K.tolist(),
                map(self.index.vectors_DE.__getitem__, rows_K.tolist()),  # views, not read yet
                (parts_K & TEXT > 0).tolist(),
                (parts_K & PICTURE > 0).tolist(),
            )
        )
        tied = bool((scores_K[1:] == scores_K[:-1]).any())
        return by_relevance(found)[:most] if tied else found


def _there(rows_K: Rows, removed: Collection[int]) -> Places:
    """Select the rows found that are documents and not removed."""
    if rows_K[-1] >= 0 and not removed:
        return slice(None)
    return (rows_K >= 0) & ~np.isin(rows_K, np.fromiter(removed, np.int64))


def odd_id(document_id: str) -> str | None:
    """Return the reason why a segment cannot hold this id, or None if it can."""
    name = document_id.encode()
    if len(name) <= LONGEST and b"\0" not in name:
        return None
    return f"its id has {len(name)} bytes; it may have up to {LONGEST}, none of them 0"


def caption_of(metadata: dict[str, Any]) -> str | None:
    """Return the first caption that is not blank, or None."""
    return next((text for text in metadata.get("captions") or [] if text.strip()), None)


def write_segment(
    folder: Path,
    rows: Iterable[Row],
    vectors_DE: Vectors | Halves,
    codebook: CodebookInfo,
    kind: IndexPlan,
) -> None:
    """Write a segment atomically; row i has vector i.

    Raises UserError for a duplicate id or an empty document, OSError for a full disk.
    """
    assert vectors_DE.dtype in (np.float32, np.float16)
    names: list[bytes] = []
    parts: list[int] = []
    blank = (0,) * codebook.grid**2

    def noted() -> Iterator[Row]:
        for metadata, codes in rows:
            has_text, has_picture = caption_of(metadata) is not None, len(codes) > 0
            if not (has_text or has_picture):
                raise UserError(f"document {metadata['id']!r} has neither a text nor an image")
            if reason := odd_id(metadata["id"]):
                raise UserError(f"document {metadata['id'][:80]!r}: {reason}")
            names.append(metadata["id"].encode())
            parts.append(TEXT * has_text + PICTURE * has_picture)
            yield metadata, codes if has_picture else blank

    with new_folder(folder) as aside:
        write_shards(
            aside / SHARDS,
            noted(),
            (),
            image_tokenizer_hash=codebook.image_tokenizer,
            size=codebook.size,
            grid=codebook.grid,
            codes=codebook.codes,
            columns=False,
        )
        assert len(vectors_DE) == len(names), "as many vectors as documents"
        np.save(aside / VECTORS, vectors_DE, allow_pickle=False)
        np.save(aside / NAMES, np.array(names), allow_pickle=False)
        np.save(aside / PARTS, np.array(parts, np.uint8), allow_pickle=False)
        ids_D = np.array([(_hash(name), row) for row, name in enumerate(names)], HASHED)
        np.save(aside / IDS, np.sort(ids_D, order="hash"), allow_pickle=False)
        index = Index.build(vectors_DE.astype(np.float32, copy=False), kind)
        if index.built is not None:
            index.save(aside / INDEX)
        about = {"index": kind.name, "bytes_per_vector": round(kind.bytes_per_vector, 1)}
        (aside / ABOUT).write_text(json.dumps(about) + "\n", "utf-8")


def _hash(name: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(name).digest()[:8], "little"))


def _vectors(path: Path, shape: tuple[int, int]) -> Vectors:
    """Return the vectors as float32: memory-mapped if stored so, else read completely."""
    if np.lib.format.open_memmap(path, mode="r").dtype == np.float16:
        return _mapped(path, shape, np.dtype(np.float16)).astype(np.float32)
    return _mapped(path, shape, np.dtype(np.float32))


def _mapped(path: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    found = np.lib.format.open_memmap(path, mode="r")  # rejects pickles
    fits = found.dtype == kind or (kind.itemsize == 0 and found.dtype.kind == kind.kind)
    if found.shape != shape or not fits:
        raise UserError(
            f"{path}: holds {found.dtype} {found.shape}, not {kind} {shape}; copy the memory again"
        )
    return found.view(np.ndarray)  # indexing a memmap is slow


def check_finite(vectors_DE: Vectors | Halves, where: str) -> None:
    """Raise UserError if a vector is not finite, as from an encoder with damaged weights."""
    for start in range(0, len(vectors_DE), CHUNK):
        good = np.isfinite(vectors_DE[start : start + CHUNK]).all(axis=1)
        if not good.all():
            row = start + int(np.argmin(good))
            raise UserError(f"vector {row} {where} is not of finite numbers; is the encoder whole?")
