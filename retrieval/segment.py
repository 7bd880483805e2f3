"""One immutable part of a memory: documents that came together, with what finds them.

    shards/          captions, licences and codes, as token shards
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
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.index import Index, Plan, Vectors
from retrieval.retrieve import Candidate
from tokenizer.errors import UserError
from tokenizer.manifest import new_folder
from tokenizer.shards import Shards, write_shards

SHARDS, VECTORS, IDS, INDEX, ABOUT = (
    "shards", "vectors.npy", "ids.npy", "index.faiss", "segment.json",
)  # fmt: skip
HASHED = np.dtype([("hash", "<u8"), ("row", "<u4")])

Row = tuple[dict[str, Any], Sequence[int]]  # metadata with its id and captions; codes


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
    kind: str
    bytes_per_vector: float

    @classmethod
    def open(cls, folder: Path, image_tokenizer: str, dimension: int) -> Self:
        """Open a segment whose hashes were compared before (FAISS trusts its files)."""
        shards = Shards.open(folder / SHARDS, image_tokenizer)
        vectors_DE = _mapped(folder / VECTORS, (shards.pictures, dimension), np.dtype(np.float32))
        ids_D = _mapped(folder / IDS, (shards.pictures,), HASHED)
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        path = folder / INDEX
        index = Index.open(path, vectors_DE) if path.is_file() else Index(vectors_DE)
        kind, size = str(about["index"]), float(about["bytes_per_vector"])
        return cls(shards=shards, index=index, ids_D=ids_D, kind=kind, bytes_per_vector=size)

    @property
    def rows(self) -> int:
        """How many documents there are."""
        return self.shards.pictures

    def document(self, row: int) -> Row:
        """Metadata and codes of one document. Raises UserError where the segment is gone."""
        try:
            return self.shards.picture(row)
        except FileNotFoundError as error:
            raise UserError(
                f"{self.shards.folder} is gone: the memory was changed since it was opened; open "
                "it again"
            ) from error

    def vector(self, row: int) -> Vectors:
        """The vector of one document."""
        return np.asarray(self.index.vectors_DE[row])

    def find(self, document_id: str) -> int | None:
        """The row of a document, None where it is not here; reads no more than it must."""
        wanted = _hash(document_id)
        place = int(np.searchsorted(self.ids_D["hash"], wanted))
        while place < len(self.ids_D) and int(self.ids_D["hash"][place]) == wanted:
            row = int(self.ids_D["row"][place])
            if self.document(row)[0]["id"] == document_id:
                return row
            place += 1
        return None

    def search(
        self, queries_QE: Vectors, most: int, removed: Collection[int]
    ) -> Iterator[list[Candidate]]:
        """For each query the best documents, `most` at most, none of a removed row."""
        scores_QK, rows_QK = self.index.search(queries_QE, most + len(removed))
        for scores, rows in zip(scores_QK.tolist(), rows_QK.tolist(), strict=True):
            pairs = [(s, r) for s, r in zip(scores, rows, strict=True) if r >= 0]
            kept = [(score, row) for score, row in pairs if row not in removed]
            yield [self._candidate(score, row) for score, row in kept[:most]]

    def _candidate(self, score: float, row: int) -> Candidate:
        metadata, _ = self.document(row)
        told = bool(metadata.get("captions"))
        vector_E = self.vector(row)
        return Candidate(id=metadata["id"], score=score, vector_E=vector_E, has_text=told)


def write_segment(
    folder: Path, rows: Iterable[Row], vectors_DE: Vectors, codebook: Codebook, kind: Plan
) -> None:
    """Write a segment, all or nothing; row i has vector i. UserError for an id that comes twice."""
    assert vectors_DE.dtype == np.float32
    ids: list[str] = []

    def noted() -> Iterator[Row]:
        for metadata, codes in rows:
            ids.append(metadata["id"])
            yield metadata, codes

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
        ids_D = np.array([(_hash(name), row) for row, name in enumerate(ids)], HASHED)
        np.save(aside / IDS, np.sort(ids_D, order="hash"), allow_pickle=False)
        index = Index.build(vectors_DE, kind)
        if index.built is not None:
            index.save(aside / INDEX)
        about = {"index": kind.name, "bytes_per_vector": round(kind.bytes_per_vector, 1)}
        (aside / ABOUT).write_text(json.dumps(about) + "\n", "utf-8")


def _hash(document_id: str) -> int:
    return int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "little")


def _mapped(path: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.shape != shape or found.dtype != kind:
        raise UserError(
            f"{path}: holds {found.dtype} {found.shape}, not {kind} {shape}; copy the memory again"
        )
    return found
