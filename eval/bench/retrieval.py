"""Benchmark of retrieval: our layer against bare FAISS, large memories, share of generation time.

Data path: random unit vectors in clusters, with synthetic captions and codes -> a real memory
folder -> times and resident memory, each measured in a fresh process, like a user's command.
"""

# Shapes: D = documents, C = clusters, Q = queries, E = vector width, N = codes

import multiprocessing
import resource
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, Self, TypeVar

import numpy as np

from cm3leon.pipeline import CM3Leon
from retrieval import index
from retrieval.embed import Embedder, unit
from retrieval.index import AGAIN, Index, IndexPlan, Vectors, search_exactly
from retrieval.memory import Contents, Memory
from retrieval.retrieve import Query, retrieve
from retrieval.rules import Rules
from retrieval.segment import CodebookInfo, Row
from tokenizer.document import Document
from tokenizer.errors import UserError

CLUSTER = 200  # average number of vectors per cluster
SPREAD = 0.6  # distance of a vector from its centre, which has length 1
CHUNK = 20_000  # vectors generated at once
CODES = 64  # per synthetic image
BOOK = CodebookInfo(image_tokenizer="synthetic", size=64, grid=8, codes=1024)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Built:
    """Measurements of building a memory in one call."""

    documents: int
    dimension: int
    index: str
    bytes_per_vector: float
    seconds: float
    """Without the generation of the vectors."""
    peak_mb: float
    """Resident memory of the build beyond Python and its libraries, without mapped files."""
    disk_mb: float


@dataclass(frozen=True, kw_only=True)
class Used:
    """Measurements of opening a previously verified memory, and searching it by single queries."""

    open_seconds: float
    queries: int
    p50_ms: float
    p99_ms: float
    anonymous_mb: float
    """Resident memory taken by opening and searching, without mapped files."""
    mapped_mb: float
    """Pages of mapped files that searching read; the system may evict them at any time."""


@dataclass(frozen=True, kw_only=True)
class Added:
    """Measurements of adding documents to an open memory."""

    documents: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SearchComparison:
    """Latency of the same single queries through `Memory.search` and through FAISS alone."""

    index: str
    documents: int
    found: int
    """Documents requested."""
    bare_ms: float
    ours_ms: float

    @property
    def ratio(self) -> float:
        """Our time divided by that of bare FAISS."""
        return self.ours_ms / self.bare_ms


@dataclass(frozen=True, kw_only=True)
class Share:
    """Retrieval time for one prompt and generation time of its image; medians."""

    documents: int
    retrieval_ms: float
    """To embed the prompt, search, select, and read the documents."""
    generation_ms: float
    """Of one image, with the documents before the prompt."""

    @property
    def share(self) -> float:
        """Retrieval time divided by generation time."""
        return self.retrieval_ms / self.generation_ms


def share_of_generation(
    model: CM3Leon, memory: Memory, embedder: Embedder, prompt: str, count: int, times: int
) -> Share:
    """Retrieve documents for a prompt and generate an image with them, `times` times in turn."""

    def find() -> list[Document]:
        (found,) = retrieve([Query(text=prompt)], memory, embedder, count)
        return [memory.document(one.id) for one in found]

    examples = find()  # the first call warms the caches
    retrieval, generation = list[float](), list[float]()
    for seed in range(times):
        retrieval.append(_seconds(find))
        painting = partial(model.text_to_image, prompt, seed=seed, retrieved=examples)
        generation.append(_seconds(painting))
    return Share(
        documents=len(examples),
        retrieval_ms=1000 * float(np.median(retrieval)),
        generation_ms=1000 * float(np.median(generation)),
    )


def vectors(count: int, dimension: int, seed: int) -> Iterator[Vectors]:
    """Yield unit vectors in clusters, `CHUNK` at a time; clusters are the same for every seed."""
    centres = max(1, count // CLUSTER)
    draw = np.random.default_rng(seed)
    of_centres = np.random.default_rng(0)
    centres_CE = unit(of_centres.normal(size=(centres, dimension)).astype(np.float32))
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        noise_DE = draw.normal(0, SPREAD / dimension**0.5, (size, dimension))
        yield unit(centres_CE[draw.integers(0, centres, size)] + noise_DE.astype(np.float32))


def rows(count: int, first: int = 0) -> Iterator[Row]:
    """Yield documents with captions and codes that resemble real ones."""
    draw = np.random.default_rng(first)
    for number in range(first, first + count):
        metadata = {
            "id": f"synthetic-{number:08d}",
            "captions": [f"an image of thing {number}, in style {number % 8}"],
            "kind": "synthetic",
            "licence": "CC0-1.0",
            "credit": "nobody",
        }
        yield metadata, draw.integers(0, BOOK.codes, CODES).tolist()


def build(folder: Path, count: int, dimension: int, kind: IndexPlan) -> Built:
    """Build a synthetic memory in one segment; its vectors are temporarily in a file beside it."""
    drawn = folder.with_name(f"{folder.name}-vectors.npy")
    shape = (count, dimension)
    drawn_DE = np.lib.format.open_memmap(drawn, mode="w+", dtype=np.float32, shape=shape)
    place = 0
    for some_DE in vectors(count, dimension, seed=1):
        drawn_DE[place : place + len(some_DE)] = some_DE
        place += len(some_DE)
    del drawn_DE
    empty = Contents(encoder="synthetic", dimension=dimension, codebook=BOOK, near=Rules().near)
    memory = Memory.create(folder, empty)
    index.faiss()
    with Watched() as watched:
        begun = time.perf_counter()
        memory.add(rows(count), np.load(drawn, mmap_mode="r", allow_pickle=False), kind)
        seconds = time.perf_counter() - begun
    drawn.unlink()
    return Built(
        documents=count,
        dimension=dimension,
        index=kind.name,
        bytes_per_vector=kind.bytes_per_vector,
        seconds=seconds,
        peak_mb=watched.peak_mb,
        disk_mb=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6,
    )


def use(folder: Path, queries: int) -> Used:
    """Open a memory and search it by single queries, for as many documents as retrieval does."""
    index.faiss()  # loaded once per process, so not part of opening
    before = resident()
    begun = time.perf_counter()
    memory = Memory.open(folder)
    opened = time.perf_counter() - begun
    queries_QE = queries_of(memory, queries)
    times = [_seconds(memory.search, query_1E, Rules().pool) for query_1E in queries_QE]
    after = resident()
    p50, p99 = (float(1000 * np.percentile(times, share)) for share in (50, 99))
    return Used(
        open_seconds=opened,
        queries=queries,
        p50_ms=p50,
        p99_ms=p99,
        anonymous_mb=after[0] - before[0],
        mapped_mb=after[1] - before[1],
    )


def add(folder: Path, count: int) -> Added:
    """Add documents to an open memory."""
    memory = Memory.open(folder)
    dimension, first = memory.contents.dimension, memory.count
    (some_DE,) = vectors(count, dimension, seed=2)
    fresh = list(rows(count, first))
    begun = time.perf_counter()
    memory.add(fresh, some_DE)
    return Added(documents=count, seconds=time.perf_counter() - begun)


def against_bare(folder: Path, queries: int, found: int) -> SearchComparison:
    """Measure the same queries through our layer and through FAISS alone, in turn; return medians.

    Both search the same index in memory for the best `found`. FAISS returns numbers and scores; our
    layer also reads the records of the documents.
    """
    memory = Memory.open(folder)
    (segment,) = memory.segments
    alone = bare(segment.index)
    theirs, ours = list[float](), list[float]()
    both = [(ours, memory.search), (theirs, alone)]
    for number, query_1E in enumerate(queries_of(memory, 2 * queries)):
        for times, search in both:
            seconds = _seconds(search, query_1E, found)
            if number >= queries:  # the first half warms the caches
                times.append(seconds)
        both.reverse()  # the second of the two finds the index's lists cached
    return SearchComparison(
        index=segment.kind,
        documents=memory.count,
        found=found,
        bare_ms=1000 * float(np.median(theirs)),
        ours_ms=1000 * float(np.median(ours)),
    )


def bare(found: Index) -> Callable[[Vectors, int], object]:
    """Return FAISS's own search of the same vectors.

    With an index it is FAISS's `IndexRefine`, which rescores the index's results with the exact
    vectors, here in memory.
    """
    if found.built is None:
        return partial(search_exactly, found.vectors_DE)
    library = index.faiss()
    exact = library.IndexFlatIP(found.vectors_DE.shape[1])
    for start in range(0, len(found.vectors_DE), CHUNK):
        exact.add(np.ascontiguousarray(found.vectors_DE[start : start + CHUNK]))
    refined = library.IndexRefine(found.built, exact)
    refined.k_factor = AGAIN
    return refined.search


def queries_of(memory: Memory, count: int) -> list[Vectors]:
    """Return queries near the documents but equal to none of them, [1, E] each."""
    dimension = memory.contents.dimension
    drawn_QE = next(vectors(memory.count, dimension, seed=3))[:count]
    return list(drawn_QE[:, None])


@contextmanager
def workplace(inside: Path | None) -> Generator[Path]:
    """Create a temporary folder inside a given one. Raises UserError if it cannot be created."""
    try:
        made = TemporaryDirectory(prefix="bench-", dir=inside)
    except OSError as error:
        raise UserError(f"cannot make a folder to work in: {error}; name one with --out") from error
    with made as folder:
        yield Path(folder)


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a fresh process and return its result."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(function, *args, **kwargs).result()


def resident() -> tuple[float, float]:
    """Return this process's resident megabytes: its own, and those of mapped files."""
    try:
        _, whole, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    except OSError as error:
        raise UserError("resident memory is read from /proc; use Linux") from error
    page = resource.getpagesize() / 1e6
    return (whole - shared) * page, shared * page


class Watched:
    """Context manager that samples the process's own memory and keeps the peak."""

    def __enter__(self) -> Self:
        self.before, _ = resident()
        self.peak_mb = 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()  # measured at the end even if the thread got no time
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            self._look()

    def _look(self) -> None:
        self.peak_mb = max(self.peak_mb, resident()[0] - self.before)


def _seconds(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    begun = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - begun
