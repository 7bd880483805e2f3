"""What is asked of a model: every caption so many times, each with an id and a seed of its own."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon.pipeline import CM3Leon
from eval.protocol import LAST_SEED, retrieval_of, wanted_of
from eval.samples import Wanted
from retrieval.encoder import SmallEmbedder
from retrieval.memory import Memory
from tokenizer.errors import UserError


@given(
    st.lists(st.text(alphabet="a#0", min_size=1), unique=True, min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(0, 9),
    st.none() | st.integers(1, 30),
)
def test_every_caption_is_asked_for_so_many_times(
    names: list[str], each: int, seed: int, limit: int | None
) -> None:
    pictures = [{"id": name, "captions": [f"a {name}", "more"]} for name in names]
    wanted = wanted_of(pictures, limit, each, seed)
    assert len(wanted) == each * min(len(names), limit or len(names))
    assert len({one.id for one in wanted}) == len(wanted)
    assert [one.seed for one in wanted] == list(range(seed, seed + len(wanted)))
    for one in wanted:
        assert one.prompt == f"a {one.id.rpartition('#')[0]}"


def test_seeds_end_somewhere() -> None:
    pictures = [{"id": "a", "captions": ["a"]}]
    assert wanted_of(pictures, None, 2, LAST_SEED - 1)[-1].seed == LAST_SEED
    with pytest.raises(UserError, match="begin lower"):
        wanted_of(pictures, None, 2, LAST_SEED)


def test_documents_are_others_than_the_picture_and_fit(
    tiny: CM3Leon, small_encoder: Path, small_memory: Path, tmp_path: Path
) -> None:
    memory, embedder = Memory.open(small_memory), SmallEmbedder.load(small_encoder)
    wanted = [
        Wanted(id=f"{own}#0", prompt=f"{label}, Noto emoji style", seed=0)
        for own, label in (("p1", "red heart"), ("p4", "wolf"))
    ]
    bank = retrieval_of(memory, embedder, tiny.codec, 2)
    for one, found in zip(wanted, bank.find(wanted), strict=True):
        assert 1 <= len(found) <= 2
        for name, document in found:
            assert name != one.id.removesuffix("#0")
            assert document == memory.document(name)
    again = retrieval_of(memory, embedder, tiny.codec, 2)
    assert (bank.memory, bank.count) == (again.memory, 2)
    shutil.copytree(small_memory, tmp_path / "memory")
    smaller = Memory.open(tmp_path / "memory").remove(["p1"])
    assert retrieval_of(smaller, embedder, tiny.codec, 2).memory != bank.memory
