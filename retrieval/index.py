"""Nearest-neighbour index of vectors of length 1 with FAISS; the only file that imports FAISS.

A memory has one index per segment. Few vectors are searched exactly; many are stored in an
approximate index that fits a memory budget, and its results are rescored with the exact vectors,
which stay on disk.
"""

# Shapes: D = vectors, Q = queries, E = vector width, K = results per query

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import UserError

EXACT_UP_TO = 50_000  # vectors; an exact search of so many takes some milliseconds
TRAINED_ON = 200_000  # vectors that quantisers are trained on, and vectors added at once
PER_LIST = 39  # minimum number of training vectors per list, as FAISS requires
ROTATIONS = 10  # iterations to learn the rotation of a product code; FAISS's default is 50
AGAIN = 8  # candidates that are rescored per requested result
PROBED = 32  # lists searched; a graph search has 4 times this breadth (efSearch)
LINKS = 32  # links of a vector in a graph
POINTER = 8  # bytes of a vector's id in a list

Vectors = NDArray[np.float32]
Halves = NDArray[np.float16]  # storage format of vectors only; all computation is in float32
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """Kind of index: FAISS's factory string, or None for an exact search of the vectors."""

    factory: str | None
    bytes_per_vector: float  # memory use during a search

    @property
    def name(self) -> str:
        return self.factory or "exact"


def plan(count: int, dimension: int, budget: int | None = None) -> IndexPlan:
    """Return the best kind of index for `count` vectors in `budget` bytes of memory (None: any).

    From exact search to the smallest index: a graph, then lists of full vectors, of 8-bit codes,
    and of product codes. Raises UserError if not even the smallest index fits.
    """
    for found in _plans(count, dimension):
        if budget is None or count * found.bytes_per_vector <= budget:
            return found
    least = math.ceil(count * list(_plans(count, dimension))[-1].bytes_per_vector)
    raise UserError(
        f"{count:,} vectors of {dimension} numbers need at least {least:,} bytes of memory, the "
        f"budget is {budget:,}; raise it, or index fewer"
    )


def _plans(count: int, dimension: int) -> Iterator[IndexPlan]:
    whole = 4.0 * dimension
    if count <= EXACT_UP_TO:
        yield IndexPlan(factory=None, bytes_per_vector=whole)
    else:
        links = 4.0 * (2 * LINKS + 2)
        yield IndexPlan(factory=f"HNSW{LINKS},Flat", bytes_per_vector=whole + links)
    lists = max(1, min(2 ** round(math.log2(4 * math.sqrt(count))), count // PER_LIST))
    centres = lists * whole / count
    if count > EXACT_UP_TO:
        yield IndexPlan(factory=f"IVF{lists},Flat", bytes_per_vector=whole + POINTER + centres)
    yield IndexPlan(factory=f"IVF{lists},SQ8", bytes_per_vector=dimension + POINTER + centres)
    rotation = 4.0 * dimension**2 / count
    for share in (4, 8, 16):
        parts = dimension // share
        if parts and dimension % parts == 0 and count >= 256 * PER_LIST:  # 256 centroids per part
            factory = f"OPQ{parts},IVF{lists},PQ{parts}"
            tables = 4.0 * 256 * dimension / count
            size = parts + POINTER + centres + rotation + tables
            yield IndexPlan(factory=factory, bytes_per_vector=size)


def faiss() -> Any:
    """Import and return FAISS. Raises UserError with installation instructions if it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "retrieval needs FAISS, which is not installed; pip install 'cm3leon[retrieval]', or "
            "'cm3leon[gpu]' where there is a GPU"
        ) from error
    return faiss


def has_gpu(library: Any) -> bool:
    """Return whether FAISS was built for GPUs and finds a GPU."""
    return hasattr(library, "StandardGpuResources") and library.get_num_gpus() > 0


def search_exactly(vectors_DE: Vectors, queries_QE: Vectors, most: int) -> tuple[Vectors, Rows]:
    """Return scores and rows of the `most` vectors with the largest inner products, best first."""
    most = min(most, len(vectors_DE))
    library = faiss()
    found: tuple[Vectors, Rows] = library.knn(
        queries_QE, vectors_DE, most, metric=library.METRIC_INNER_PRODUCT
    )
    return found


class Index:
    """Vectors with an index to search them. `vectors_DE` may be memory-mapped from a file."""

    def __init__(self, vectors_DE: Vectors, built: Any = None) -> None:
        assert vectors_DE.ndim == 2
        self.vectors_DE, self.built = vectors_DE, built
        # the part of the built index that has the search parameters
        self.graph: Any = built.hnsw if "HNSW" in type(built).__name__ else None
        self.lists: Any = None
        if built is not None and self.graph is None:
            self.lists = faiss().extract_index_ivf(built)

    @classmethod
    def build(cls, vectors_DE: Vectors, kind: IndexPlan, seed: int = 0) -> "Index":
        """Train and fill an index of a kind; an exact index consists of the vectors alone."""
        if kind.factory is None:
            return cls(vectors_DE)
        library = faiss()
        built = library.index_factory(
            vectors_DE.shape[1], kind.factory, library.METRIC_INNER_PRODUCT
        )
        if not built.is_trained:
            if kind.factory.startswith("OPQ"):
                library.downcast_VectorTransform(built.chain.at(0)).niter = ROTATIONS
            rng = np.random.default_rng(seed)
            lists = library.extract_index_ivf(built)
            count = min(len(vectors_DE), max(TRAINED_ON, PER_LIST * lists.nlist))
            chosen = np.sort(rng.choice(len(vectors_DE), count, replace=False))
            if has_gpu(library):  # clustering is the expensive part of training
                on_gpu = library.index_cpu_to_all_gpus(library.IndexFlatIP(lists.d))
                lists.clustering_index = on_gpu
            built.train(np.ascontiguousarray(vectors_DE[chosen]))
            lists.clustering_index = None
        for start in range(0, len(vectors_DE), TRAINED_ON):
            built.add(np.ascontiguousarray(vectors_DE[start : start + TRAINED_ON]))
        return cls(vectors_DE, built)

    def save(self, path: Path) -> None:
        """Write the built index; an exact index has no file except its vectors. Raises OSError."""
        assert self.built is not None
        try:
            faiss().write_index(self.built, str(path))
        except RuntimeError as error:  # FAISS's message has many lines
            raise OSError(f"FAISS cannot write {path.name}; is the disk full?") from error

    @classmethod
    def open(cls, path: Path, vectors_DE: Vectors) -> "Index":
        """Read an index of these vectors, memory-mapped if FAISS supports it. FAISS trusts its
        files, so the caller must have verified the file's hash. Raises UserError if it does not
        match the vectors."""
        library = faiss()
        try:
            built = library.read_index(str(path), library.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise UserError(f"{path}: FAISS cannot read it; build the memory again") from error
        if (built.ntotal, built.d) != vectors_DE.shape:
            raise UserError(
                f"{path}: an index of {built.ntotal} vectors of {built.d} numbers, but "
                f"{vectors_DE.shape} lie beside it; build the memory again"
            )
        return cls(vectors_DE, built)

    def search(self, queries_QE: Vectors, most: int) -> tuple[Vectors, Rows]:
        """Return scores and rows of up to `most` results per query, best first; row -1 is no
        result.

        The score of a vector is the same in any batch and any index.
        """
        if self.built is None:
            scores_QK, rows_QK = search_exactly(self.vectors_DE, queries_QE, most)
            if len(queries_QE) < faiss().cvar.distance_compute_blas_threshold:
                return scores_QK, rows_QK
            return score_again(self.vectors_DE, queries_QE, rows_QK, most)  # BLAS sums differ
        more = min(AGAIN * most, len(self.vectors_DE))
        if self.graph is not None:
            self.graph.efSearch = max(4 * PROBED, more)
        else:
            self.lists.nprobe = PROBED
        _, rows_QM = self.built.search(queries_QE, more)
        return score_again(self.vectors_DE, queries_QE, rows_QM, min(most, more))

    def recalls(self, queries_QE: Vectors) -> tuple[float, float]:
        """Compute recall@1 and @10 of these queries against an exact search of the same vectors."""
        _, exact_QK = search_exactly(self.vectors_DE, queries_QE, 10)
        _, found_QK = self.search(queries_QE, 10)
        return recall(exact_QK, found_QK, 1), recall(exact_QK, found_QK, 10)


def score_again(
    vectors_DE: Vectors, queries_QE: Vectors, rows_QM: Rows, most: int
) -> tuple[Vectors, Rows]:
    """Return the best `most` of the rows found for each query by their exact inner products."""
    scores_QM = np.full(rows_QM.shape, -np.inf, np.float32)
    library = faiss()  # it reads the rows in place; numpy would copy them first
    arrays = (scores_QM, queries_QE, vectors_DE, rows_QM)
    pointers = [library.swig_ptr(array) for array in arrays]
    library.fvec_inner_products_by_idx(*pointers, vectors_DE.shape[1], *rows_QM.shape)
    order_QK = np.argsort(-scores_QM, axis=1, kind="stable")[:, :most]
    of_query_Q1 = np.arange(len(rows_QM))[:, None]
    return scores_QM[of_query_Q1, order_QK], rows_QM[of_query_Q1, order_QK]


def recall(exact_QK: Rows, found_QK: Rows, most: int) -> float:
    """Return the share of the `most` true nearest vectors that are among the `most` found."""
    exact_QK, found_QK = exact_QK[:, :most], found_QK[:, :most]
    pairs = zip(exact_QK.tolist(), found_QK.tolist(), strict=True)
    return sum(len(set(true) & set(found)) for true, found in pairs) / exact_QK.size
