"""One immutable part of a memory: documents that came together, with what finds them.

    shards/          captions, licences and codes, as token shards; zeros for no picture
    pictured.npy     whether each document has a picture
    vectors.npy      a vector of length 1 for each document, float32
    ids.npy          hashes of the ids in rising order, and where each lies
    index.faiss      where an exact search would take too long
    segment.json     what kind of index
    manifest.json    size and SHA-256 of each part

`retrieval/memory.py` holds several of them under one memory.json.
"""

# Shapes: D = documents, Q = queries, K = found for each query, E = width of a vector

import hashlib
import json
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.index import Index, Plan, Vectors
from retrieval.retrieve import Candidate, by_relevance
from tokenizer.errors import UserError
from tokenizer.manifest import new_folder
from tokenizer.shards import Shards, write_shards

SHARDS, PICTURED, VECTORS, IDS, INDEX, ABOUT = (
    "shards", "pictured.npy", "vectors.npy", "ids.npy", "index.faiss", "segment.json",
)  # fmt: skip
# 16 bytes, so that every hash is aligned: else numpy copies all of them to look for one
HASHED = np.dtype([("hash", "<u8"), ("row", "<u8")])
CHUNK = 65_536  # vectors looked at together
TIE = 1e-6  # scores of one vector differ so much at most, by the place it is searched in

Row = tuple[dict[str, Any], Sequence[int]]  # metadata with its id and captions; codes, maybe none


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """What codes mean: the image tokenizer, and what is known of its pictures."""

    image_tokenizer: str
    size: int
    grid: int
    codes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """An open segment."""

    shards: Shards
    index: Index
    ids_D: NDArray[np.void]
    pictured_D: NDArray[np.bool_]
    kind: str
    bytes_per_vector: float

    @classmethod
    def open(cls, folder: Path, image_tokenizer: str, rows: int, dimension: int) -> Self:
        """Open a segment whose hashes were compared before (FAISS trusts its files).

        Raises UserError where it is not of so many rows, or not a segment at all.
        """
        try:
            shards = Shards.open(folder / SHARDS, image_tokenizer)
            vectors_DE = _mapped(folder / VECTORS, (rows, dimension), np.dtype(np.float32))
            ids_D = _mapped(folder / IDS, (rows,), HASHED)
            pictured_D = _mapped(folder / PICTURED, (rows,), np.dtype(np.bool_))
            about = json.loads((folder / ABOUT).read_text("utf-8"))
            kind, size = str(about["index"]), float(about["bytes_per_vector"])
        except UserError:
            raise
        except Exception as error:  # numpy raises nearly anything for an odd header
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
            pictured_D=pictured_D,
            kind=kind,
            bytes_per_vector=size,
        )

    @property
    def rows(self) -> int:
        """How many documents there are."""
        return self.shards.pictures

    def document(self, row: int) -> Row:
        """Metadata and codes of one document, no codes where it has no picture. Raises UserError
        where the segment is gone."""
        with self._there():
            metadata, codes = self.shards.picture(row)
        return metadata, codes if self.pictured_D[row] else ()

    def vector(self, row: int) -> Vectors:
        """The vector of one document."""
        return np.asarray(self.index.vectors_DE[row])

    def find(self, document_id: str) -> int | None:
        """The row of a document, None where it is not here; reads no more than it must."""
        wanted = _hash(document_id)
        place = int(np.searchsorted(self.ids_D["hash"], wanted))
        while place < len(self.ids_D) and self.ids_D["hash"][place] == wanted:
            row = int(self.ids_D["row"][place])
            if self.document(row)[0]["id"] == document_id:
                return row
            place += 1
        return None

    def search(
        self, queries_QE: Vectors, most: int, removed: Collection[int]
    ) -> Iterator[list[Candidate]]:
        """For each query the best documents, `most` at most and best first, none of a removed row.

        An exact search takes the first ids of equal scores, wherever they lie.
        """
        assert most > 0
        first = most + min(most, len(removed)) + 1
        scores_QK, rows_QK = self.index.search(queries_QE, first)
        for query_E, scores_K, rows_K in zip(queries_QE, scores_QK, rows_QK, strict=True):
            asked = first
            kept, more = self._kept(scores_K, rows_K, most, removed)
            while more and len(rows_K) == asked:
                asked *= 2
                scores_QK, rows_QK = self.index.search(query_E[None], asked)
                scores_K, rows_K = scores_QK[0], rows_QK[0]
                kept, more = self._kept(scores_K, rows_K, most, removed)
            yield by_relevance(self._candidates(query_E, kept))[:most]

    def _kept(
        self, scores_K: Vectors, rows_K: NDArray[np.int64], most: int, removed: Collection[int]
    ) -> tuple[list[int], bool]:
        """The rows that may be among the best, and whether a search for more would find others."""
        there = rows_K >= 0
        pairs = [
            (score, row)
            for score, row in zip(scores_K[there].tolist(), rows_K[there].tolist(), strict=True)
            if row not in removed
        ]
        if len(pairs) < most:
            return [row for _, row in pairs], bool(there.all())
        least = pairs[most - 1][0] - TIE
        tied = self.index.built is None and scores_K[-1] >= least
        return [row for score, row in pairs if score >= least], bool(tied)

    def _candidates(self, query_E: Vectors, rows: Sequence[int]) -> list[Candidate]:
        rows_K = np.array(rows, np.int64)
        with self._there():
            told = self.shards.metadata(rows_K)
        vectors_KE = self.index.vectors_DE.view(np.ndarray)[rows_K]  # a memmap is slow to take from
        found = zip(told, vectors_KE, self.pictured_D[rows_K].tolist(), strict=True)
        return [
            Candidate(
                id=metadata["id"],
                score=float(np.dot(query_E, vector_E)),  # the same in any batch and any segment
                vector_E=vector_E,
                has_text=caption_of(metadata) is not None,
                has_picture=pictured,
            )
            for metadata, vector_E, pictured in found
        ]

    @contextmanager
    def _there(self) -> Generator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(
                f"{self.shards.folder} is gone: the memory was changed since it was opened; open "
                "it again"
            ) from error


def caption_of(metadata: dict[str, Any]) -> str | None:
    """The first caption, None where there is none."""
    return next((text for text in metadata.get("captions") or [] if text.strip()), None)


def write_segment(
    folder: Path, rows: Iterable[Row], vectors_DE: Vectors, codebook: Codebook, kind: Plan
) -> None:
    """Write a segment, all or nothing; row i has vector i.

    Raises UserError for an id that comes twice or a document of nothing, OSError for a full disk.
    """
    assert vectors_DE.dtype == np.float32
    ids: list[str] = []
    pictured: list[bool] = []
    blank = (0,) * codebook.grid**2

    def noted() -> Iterator[Row]:
        for metadata, codes in rows:
            if len(codes) == 0 and caption_of(metadata) is None:
                raise UserError(f"document {metadata['id']!r} has neither a text nor a picture")
            ids.append(metadata["id"])
            pictured.append(len(codes) > 0)
            yield metadata, codes if len(codes) > 0 else blank

    with new_folder(folder) as aside:
        write_shards(
            aside / SHARDS,
            noted(),
            (),
            image_tokenizer_hash=codebook.image_tokenizer,
            size=codebook.size,
            grid=codebook.grid,
            codes=codebook.codes,
        )
        assert len(vectors_DE) == len(ids), "as many vectors as documents"
        np.save(aside / VECTORS, vectors_DE, allow_pickle=False)
        np.save(aside / PICTURED, np.array(pictured, np.bool_), allow_pickle=False)
        ids_D = np.array([(_hash(name), row) for row, name in enumerate(ids)], HASHED)
        np.save(aside / IDS, np.sort(ids_D, order="hash"), allow_pickle=False)
        index = Index.build(vectors_DE, kind)
        if index.built is not None:
            index.save(aside / INDEX)
        about = {"index": kind.name, "bytes_per_vector": round(kind.bytes_per_vector, 1)}
        (aside / ABOUT).write_text(json.dumps(about) + "\n", "utf-8")


def _hash(document_id: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "little"))


def _mapped(path: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    found = np.lib.format.open_memmap(path, mode="r")  # refuses pickles
    if found.shape != shape or found.dtype != kind:
        raise UserError(
            f"{path}: holds {found.dtype} {found.shape}, not {kind} {shape}; copy the memory again"
        )
    return found


def check_finite(vectors_DE: Vectors, where: str) -> None:
    """Raise UserError where a vector is none, as of an encoder whose weights are damaged."""
    for start in range(0, len(vectors_DE), CHUNK):
        good = np.isfinite(vectors_DE[start : start + CHUNK]).all(axis=1)
        if not good.all():
            row = start + int(np.argmin(good))
            raise UserError(f"vector {row} {where} is not of finite numbers; is the encoder whole?")
