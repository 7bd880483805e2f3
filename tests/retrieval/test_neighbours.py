"""The table of neighbours: two ways to find them agree, and no other shards are served."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retrieval.embed import document_vectors, unit
from retrieval.index import Vectors
from retrieval.memory import Contents, Memory
from retrieval.neighbours import find_neighbours, read_neighbours, write_neighbours
from retrieval.rules import Rules, drop_words
from retrieval.segment import CodebookInfo
from tokenizer.data.shard_writer import write_shards
from tokenizer.data.shards import Shards
from tokenizer.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")

COUNT, WIDTH = 90, 8
BOOK = CodebookInfo(image_tokenizer="ab12", size=8, grid=2, codes=10)
WORDS = ("red", "blue", "fox", "owl", "cat", "big", "small", "old")


class CountingEmbedder:
    """Words by how often each comes, pictures by their colour: simple, but not the same space
    for all, so that the two kinds of query find different things."""

    id = "counting"
    dimension = WIDTH

    def texts(self, texts: Sequence[str]) -> Vectors:
        found = [[text.split().count(word) + 0.01 for word in WORDS] for text in texts]
        return unit(np.array(found, np.float32))

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        found: list[Vectors] = []
        for picture in pictures:
            pixel: Any = picture.getpixel((0, 0))
            found.append(np.random.default_rng(list(pixel)).normal(size=WIDTH).astype(np.float32))
        return unit(np.stack(found))


def told() -> list[tuple[dict[str, Any], Image.Image]]:
    """Captioned pictures, some near copies of others and every tenth without words."""
    rng = np.random.default_rng(0)
    found: list[tuple[dict[str, Any], Image.Image]] = []
    for number in range(COUNT):
        words = " ".join(rng.choice(WORDS, 4))
        colour = tuple(int(c) for c in rng.integers(0, 4, 3))
        captions = [] if number % 10 == 9 else [words, "another"]
        picture = Image.new("RGB", (8, 8), colour)
        found.append(({"id": f"d{number}", "captions": captions}, picture))
    return found


def vectors_of(pictures: list[tuple[dict[str, Any], Image.Image]]) -> Vectors:
    texts = [next(iter(metadata["captions"]), None) for metadata, _ in pictures]
    return document_vectors(CountingEmbedder(), texts, [image for _, image in pictures])


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    empty = Contents(encoder="counting", dimension=WIDTH, codebook=BOOK, near=0.95)
    made = Memory.create(tmp_path_factory.mktemp("memory") / "memory", empty)
    rows = [(metadata, [1, 2, 3, 4]) for metadata, _ in told()]
    return made.add(rows, vectors_of(told()))


def make_shards(folder: Path, left_out: int) -> Shards:
    """All documents but every `left_out`-th, in another order than the memory's."""
    pictures = [(m, [1, 2, 3, 4]) for n, (m, _) in enumerate(told()) if n % left_out]
    about = {"image_tokenizer_hash": "ab12", "size": 8, "grid": 2, "codes": 10}
    write_shards(folder, reversed(pictures), [], **about)
    return Shards.open(folder)


def test_neighbours_are_those_that_a_plain_search_finds(memory: Memory, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", 7)
    numbers = {metadata["id"]: n for n, metadata in enumerate(shards.every_picture())}
    rules = Rules(near=0.95, pool=COUNT)
    table_PN = find_neighbours(memory, CountingEmbedder(), told(), numbers, rules)
    assert table_PN.shape == (len(numbers), 4)
    pictures, vectors_DE = told(), vectors_of(told())
    ids = [metadata["id"] for metadata, _ in pictures]
    missing = 0
    for own, (metadata, image) in enumerate(pictures):
        if ids[own] not in numbers:
            continue
        wanted: list[int] = []
        queries = [CountingEmbedder().pictures([image])[0]]
        if metadata["captions"]:
            words = drop_words(metadata["captions"][0], 0.2, ids[own])
            queries.append(CountingEmbedder().texts([words])[0])
        for query_E in queries:
            ranked = sorted(
                range(COUNT),
                key=lambda d, q=query_E: (  # documents with words first
                    not pictures[d][0]["captions"],
                    -round(float(vectors_DE[d] @ q), 6),
                    ids[d],
                ),
            )
            taken: list[int] = []
            for d in ranked:
                others = [vectors_DE[own], query_E, *(vectors_DE[t] for t in taken)]
                apart = all(float(vectors_DE[d] @ other) <= 0.95 for other in others)
                if d != own and d not in wanted and ids[d] in numbers and apart and len(taken) < 2:
                    taken.append(d)
            wanted += taken
        found = [one for one in table_PN[numbers[ids[own]]].tolist() if one >= 0]
        assert found == [numbers[ids[d]] for d in wanted]
        missing += 4 - len(found)
    assert missing >= 2 * sum(1 for m, _ in pictures if not m["captions"] and m["id"] in numbers)


def test_a_table_serves_its_own_shards_alone(memory: Memory, tmp_path: Path) -> None:
    shards, others = make_shards(tmp_path / "one", 7), make_shards(tmp_path / "two", 5)
    table_PN = np.full((shards.pictures, 4), -1, np.int32)
    folder = tmp_path / "neighbours"
    write_neighbours(folder, table_PN, shards, memory)
    write_neighbours(folder, table_PN, shards, memory)  # an older one is replaced
    assert (read_neighbours(folder, shards) == table_PN).all()
    with pytest.raises(UserError, match="was made for other shards than"):
        read_neighbours(folder, others)
    with pytest.raises(UserError, match="there is no folder"):
        read_neighbours(tmp_path / "nothing", shards)
    write_neighbours(tmp_path / "short", table_PN[:3], shards, memory)
    with pytest.raises(UserError, match=r"holds int32 \(3, 4\), not int32"):
        read_neighbours(tmp_path / "short", shards)
