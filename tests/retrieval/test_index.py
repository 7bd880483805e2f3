"""Every kind of index finds what an exact search finds, within what its bytes allow."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import index
from retrieval.index import Index, IndexPlan, Vectors, plan, recall, search_exactly
from tokenizer.errors import UserError

# SWIG, which made FAISS's bindings, has types without a module.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")


def vectors(count: int, dimension: int = 32, seed: int = 0) -> Vectors:
    """In 40 loose crowds, as embeddings are, of length 1."""
    rng = np.random.default_rng(seed)
    crowds = np.random.default_rng(9).normal(size=(40, dimension))
    rows = crowds[rng.integers(40, size=count)] + 0.7 * rng.normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_an_exact_search_agrees_with_the_formula() -> None:
    vectors_DE, queries_QE = vectors(300), vectors(7, seed=1)
    scores_QK, rows_QK = Index(vectors_DE).search(queries_QE, 5)
    products_QD = queries_QE @ vectors_DE.T
    assert np.array_equal(rows_QK, np.argsort(-products_QD, axis=1)[:, :5])
    np.testing.assert_allclose(scores_QK, np.sort(products_QD, axis=1)[:, :-6:-1], rtol=1e-5)
    assert Index(vectors_DE[:3]).search(queries_QE, 5)[1].shape == (7, 3)


def test_the_plan_is_the_best_that_fits() -> None:
    assert plan(1000, 512) == IndexPlan(factory=None, bytes_per_vector=2048)
    assert plan(1_000_000, 512).factory == "HNSW32,Flat"
    names, sizes = [], []
    budget: int | None = None
    for _ in range(6):
        found = plan(1_000_000, 512, budget)
        names.append(found.name)
        sizes.append(found.bytes_per_vector)
        budget = int(1_000_000 * found.bytes_per_vector) - 1
    assert sizes == sorted(sizes, reverse=True)
    assert names == [
        "HNSW32,Flat", "IVF4096,Flat", "IVF4096,SQ8", "OPQ128,IVF4096,PQ128",
        "OPQ64,IVF4096,PQ64", "OPQ32,IVF4096,PQ32",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"need at least .* bytes of memory, the budget is"):
        plan(1_000_000, 512, budget)


@pytest.mark.parametrize(
    ("factory", "least", "told"),
    [
        ("HNSW32,Flat", 0.98, 4 * 32 + 4 * 66),
        ("IVF64,Flat", 0.95, 4 * 32 + 8),
        ("IVF64,SQ8", 0.95, 32 + 8),
        ("OPQ8,IVF64,PQ8", 0.8, 8 + 8),
    ],
)
def test_every_kind_finds_nearly_what_an_exact_search_does_in_the_bytes_told(
    tmp_path: Path, factory: str, least: float, told: float
) -> None:
    vectors_DE, queries_QE = vectors(10_000), vectors(100, seed=1)
    scores_QK, exact_QK = search_exactly(vectors_DE, queries_QE, 10)
    built = Index.build(vectors_DE, IndexPlan(factory=factory, bytes_per_vector=0))
    built.save(tmp_path / "index.faiss")
    size = (tmp_path / "index.faiss").stat().st_size / len(vectors_DE)
    assert told * 0.95 < size < told * 1.2 + 10  # centres and tables are a little more
    opened = Index.open(tmp_path / "index.faiss", vectors_DE)
    found, found_QK = opened.search(queries_QE, 10)
    assert np.array_equal(found_QK, built.search(queries_QE, 10)[1])
    assert recall(exact_QK, found_QK, 10) > least
    right_QK = exact_QK == found_QK  # whatever was found has its exact score
    np.testing.assert_allclose(found[right_QK], scores_QK[right_QK], rtol=1e-5)


def test_recall_is_the_share_of_what_there_is() -> None:
    exact_QK, found_QK = np.array([[0, 1, 2], [3, 4, 5]]), np.array([[0, 2, 9], [4, 5, -1]])
    assert recall(exact_QK, found_QK, 1) == 0.5
    assert recall(exact_QK, found_QK, 3) == recall(exact_QK, found_QK, 10) == 4 / 6
    whole = Index(vectors(7))
    assert whole.recalls(vectors(5, seed=1)) == (1, 1)  # 7 of 7, though 10 are asked for


@pytest.mark.gpu
@pytest.mark.parametrize("factory", ["IVF64,SQ8", "OPQ8,IVF64,PQ8"])
def test_lists_found_on_a_gpu_are_as_good(tmp_path: Path, factory: str) -> None:
    if not index.has_gpu(pytest.importorskip("faiss")):
        pytest.skip("this FAISS knows no GPU")
    vectors_DE, queries_QE = vectors(10_000), vectors(100, seed=1)
    built = Index.build(vectors_DE, IndexPlan(factory=factory, bytes_per_vector=0))
    built.save(tmp_path / "index.faiss")
    opened = Index.open(tmp_path / "index.faiss", vectors_DE)
    assert opened.recalls(queries_QE)[1] > 0.8


def test_an_index_of_other_vectors_or_none_is_refused(tmp_path: Path) -> None:
    kind = IndexPlan(factory="HNSW8,Flat", bytes_per_vector=0)
    Index.build(vectors(100), kind).save(tmp_path / "index.faiss")
    with pytest.raises(UserError, match="an index of 100 vectors of 32 numbers, but"):
        Index.open(tmp_path / "index.faiss", vectors(99))
    (tmp_path / "index.faiss").write_bytes(b"IxHN cut short")
    with pytest.raises(UserError, match="cannot read it; build the memory again"):
        Index.open(tmp_path / "index.faiss", vectors(100))


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fail(name: str, *given: Any, **more: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UserError, match=r"pip install 'cm3leon\[retrieval\]'"):
        index.faiss()
