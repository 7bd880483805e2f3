"""The benchmark of retrieval at a size where it tells nothing but what it reports, and how."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from cm3leon.pipeline import CM3Leon
from eval.bench import retrieval as speed
from retrieval.encoder import SmallEmbedder
from retrieval.index import plan
from retrieval.memory import Memory, verify_memory
from tokenizer.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")
COUNT, DIMENSION = 3000, 16


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, speed.Built]:
    folder = tmp_path_factory.mktemp("bench") / "large"
    kind = plan(COUNT, DIMENSION, 100_000)
    return folder, speed.build(folder, COUNT, DIMENSION, kind)


def test_vectors_have_length_1_and_lie_in_clusters() -> None:
    drawn = list(speed.vectors(speed.CHUNK + 1000, 8, seed=1))
    assert [len(some_DE) for some_DE in drawn] == [speed.CHUNK, 1000]
    whole_DE = np.concatenate(drawn)
    np.testing.assert_allclose(np.linalg.norm(whole_DE, axis=1), 1, atol=1e-5)
    again = np.concatenate(list(speed.vectors(speed.CHUNK + 1000, 8, seed=1)))
    assert np.array_equal(whole_DE, again)
    few = next(speed.vectors(speed.CLUSTER * 4, 64, seed=1))
    scores = few[:50] @ few.T
    assert 0.1 < (scores > 0.5).mean() < 0.5  # about a quarter share a centre


def test_a_built_memory_is_a_real_one(built: tuple[Path, speed.Built]) -> None:
    folder, told = built
    assert verify_memory(folder).count == told.documents == COUNT
    assert list(folder.parent.iterdir()) == [folder]
    memory = Memory.open(folder)
    assert (memory.segments[0].kind, told.index) == ("IVF76,SQ8", "IVF76,SQ8")
    metadata, codes = memory.row("synthetic-00000007")
    assert metadata["captions"] == ["an image of thing 7, in style 7"]
    assert len(codes) == speed.CODES
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert told.disk_mb == pytest.approx(size / 1e6, rel=0.01)
    assert told.seconds > 0


def test_our_layer_and_faiss_alone_find_the_same(built: tuple[Path, speed.Built]) -> None:
    memory = Memory.open(built[0])
    (segment,) = memory.segments
    queries = speed.queries_of(memory, 20)
    memory.search(queries[0], 1)  # sets how many lists are looked into
    alone = speed.bare(segment.index)
    for query_1E in queries:
        scores, rows = alone(query_1E, 5)
        (found,) = memory.search(query_1E, 5)
        assert [one.id for one in found] == [f"synthetic-{row:08d}" for row in rows[0]]
        np.testing.assert_allclose([one.score for one in found], scores[0], atol=1e-5)


def test_what_is_reported_of_a_memory(built: tuple[Path, speed.Built]) -> None:
    used = speed.use(built[0], 10)
    assert used.queries == 10
    assert 0 < used.p50_ms <= used.p99_ms
    assert used.open_seconds > 0
    layer = speed.against_bare(built[0], 5, 7)
    assert (layer.documents, layer.found, layer.index) == (COUNT, 7, "IVF76,SQ8")
    assert layer.ratio == layer.ours_ms / layer.bare_ms > 0
    added = speed.add(built[0], 30)
    assert (added.documents, Memory.open(built[0]).count) == (30, COUNT + 30)
    assert added.seconds > 0


def test_a_memory_that_stays_resident_is_seen() -> None:
    """In a process of its own: this one may give back other memory meanwhile."""
    code = """
        import numpy as np
        from eval.bench.retrieval import Watched
        with Watched() as watched:
            held = np.ones(50_000_000, np.uint8)
        print(watched.peak_mb, len(held))"""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert 40 < float(ran.stdout.split()[0]) < 60


def test_retrieval_stands_beside_generation(
    tiny: CM3Leon, small_memory: Path, small_encoder: Path
) -> None:
    bank, embedder = Memory.open(small_memory), SmallEmbedder.load(small_encoder)
    share = speed.share_of_generation(tiny, bank, embedder, "a red fox", 2, 2)
    assert share.documents == 2
    assert share.share == share.retrieval_ms / share.generation_ms > 0


def test_a_workplace_leaves_nothing(tmp_path: Path) -> None:
    with speed.workplace(tmp_path) as place:
        (place / "file").touch()
        assert place.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(UserError, match="cannot make a folder to work in"),
        speed.workplace(tmp_path / "none"),
    ):
        pass
