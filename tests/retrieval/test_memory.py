"""Memory folders: what was confirmed is found, whatever happens between."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3leon.pipeline import CM3Leon
from retrieval.index import IndexPlan, Vectors
from retrieval.memory import Contents, Memory
from retrieval.rules import Candidate, Rules, select
from retrieval.segment import CodebookInfo, Row
from tokenizer.codec import Codec
from tokenizer.document import Field, Picture
from tokenizer.errors import UserError
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")

BOOK = CodebookInfo(image_tokenizer="ab12", size=8, grid=2, codes=10)
EMPTY = Contents(encoder="e1", dimension=6, codebook=BOOK, near=0.9)


def vector(name: str) -> Vectors:
    drawn = np.random.default_rng(list(name.encode())).normal(size=6)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def row(name: str) -> Row:
    codes = [len(name), ord(name[-1]) % 10, 3, 4]
    return {"id": name, "captions": [f"a {name}"], "licence": "CC0"}, codes


def given(*names: str) -> tuple[list[Row], Vectors]:
    return [row(name) for name in names], np.stack([vector(name) for name in names])


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    """Two segments and a removed document."""
    made = Memory.create(tmp_path / "memory", EMPTY)
    made = made.add(*given("fox", "bat", "owl"))
    return made.add(*given("cat", "hen")).remove(["bat"])


def ids(memory: Memory) -> set[str]:
    return {memory.segments[p.segment].document(p.row)[0]["id"] for p in memory.places()}


def told(found: list[Candidate]) -> list[tuple[str, float]]:
    return [(one.id, round(one.score, 5)) for one in found]


def test_what_was_added_is_found_and_told(memory: Memory) -> None:
    assert (memory.count, ids(memory)) == (4, {"fox", "owl", "cat", "hen"})
    assert memory.row("hen") == (row("hen")[0], tuple(row("hen")[1]))
    assert memory.document("hen") == (Field(" a hen"), Picture(tuple(row("hen")[1])))
    assert memory.find("bat") is None
    with pytest.raises(UserError, match="has no document 'bat'"):
        memory.document("bat")
    (found,) = memory.search(np.stack([vector("cat")]), 9)
    assert len(found) == 4
    assert (found[0].id, found[0].score) == ("cat", pytest.approx(1))
    scores = {name: float(vector(name) @ vector("cat")) for name in ids(memory)}
    assert told(found) == sorted(
        ((name, round(score, 5)) for name, score in scores.items()), key=lambda one: -one[1]
    )


def test_documents_of_a_text_or_a_picture_alone_are_kept_as_they_are(memory: Memory) -> None:
    mute = ({"id": "mute", "captions": []}, (1, 2, 3, 4))
    told = ({"id": "told", "captions": ["", "a blind fox"]}, ())
    memory = memory.add([mute, told], np.stack([vector("mute"), vector("told")]))
    for again in (Memory.compact, lambda one: Memory.open(one.folder)):
        assert memory.document("mute") == (Picture((1, 2, 3, 4)),)
        assert memory.document("told") == (Field(" a blind fox"),)
        assert [memory.row(name) for name in ("mute", "told")] == [mute, told]
        parts = {"mute": (False, True), "told": (True, False), "fox": (True, True)}
        for name, (has_text, has_picture) in parts.items():
            (found,) = memory.search(np.stack([vector(name)]), 1)
            first = found[0]
            assert (first.id, first.has_text, first.has_picture) == (name, has_text, has_picture)
        memory = again(memory)
    (found,) = memory.search(np.stack([vector("told")]), 9)
    chosen = [one.id for one in select(found, Rules(count=9, near=1))]
    assert {*chosen[-2:]} == {"mute", "told"}  # though "told" is the nearest


def test_a_document_of_a_text_alone_stands_in_front_of_a_prompt(memory: Memory) -> None:
    told = ({"id": "told", "captions": ["an owl"]}, ())
    memory = memory.add([told], np.stack([vector("told")]))
    text = TextTokenizer.train(["a red fox, an owl"], 270)
    codec = Codec(Vocabulary(image_codes=10, text_pieces=text.pieces, sentinels=2), text, 4)
    retrieved = [memory.document("fox"), memory.document("told")]
    row = codec.encode((Field(" a red fox"), Picture((0, 1, 2, 3))), retrieved)
    assert codec.decode(row.ids) == (
        " a fox", Picture((3, 0, 3, 4)), " an owl", " a red fox", Picture((0, 1, 2, 3)),
    )  # fmt: skip
    assert codec.open((" a red fox",), retrieved) == row.ids[:-5]


def test_a_picture_is_painted_with_a_text_alone_in_front(tiny: CM3Leon) -> None:
    told = (Field(" a blue heart"),)
    plain, leaning = (
        tiny.text_to_image("a red fox", retrieved=retrieved, seed=3)[0].tobytes()
        for retrieved in ((), (told,))
    )
    assert plain != leaning


def test_vectors_in_half_the_room_are_found_as_others_are(memory: Memory, tmp_path: Path) -> None:
    rows, vectors_DE = given("fox", "owl", "cat", "hen")
    halves = Memory.create(tmp_path / "halves", EMPTY).add(rows, vectors_DE.astype(np.float16))
    (segment,) = halves.segments
    kept = np.load(tmp_path / "halves" / halves.contents.segments[0].name / "vectors.npy")
    assert (kept.dtype, segment.vector(0).dtype) == (np.float16, np.float32)
    wanted, found = (one.search(vectors_DE, 9) for one in (memory, halves))
    for whole, half in zip(wanted, found, strict=True):
        assert [one.id for one in whole] == [one.id for one in half]
        assert [one.score for one in half] == pytest.approx([one.score for one in whole], abs=1e-3)


def test_an_id_of_any_letters_is_kept_and_an_odd_one_refused(memory: Memory) -> None:
    names = ("жук", "a b\n", "🦊")
    memory = memory.add(*given(*names))
    for name in names:
        assert memory.search(np.stack([vector(name)]), 1)[0][0].id == name
        assert memory.row(name) == (row(name)[0], tuple(row(name)[1]))
    for name in ("x" * 1001, "a\0"):
        with pytest.raises(UserError, match="may have up to 1000, none of them 0"):
            memory.add(*given(name))


def test_a_document_of_nothing_is_refused(memory: Memory) -> None:
    with pytest.raises(UserError, match="document 'void' has neither a text nor an image"):
        memory.add([({"id": "void", "captions": [" "]}, ())], np.stack([vector("void")]))
    assert Memory.open(memory.folder).count == 4


def test_removed_documents_may_come_again_and_compacting_changes_nothing(memory: Memory) -> None:
    before = memory.search(np.stack([vector("x")]), 9)
    compact = memory.compact()
    assert [told(one) for one in compact.search(np.stack([vector("x")]), 9)] == [
        told(one) for one in before
    ]
    assert len(list(memory.folder.glob("segment-*"))) == 1
    assert ids(compact.add(*given("bat"))) == {"fox", "bat", "owl", "cat", "hen"}


def test_all_may_be_removed(memory: Memory) -> None:
    memory = memory.remove(["fox", "owl", "cat", "hen"]).compact()
    assert (memory.count, memory.segments) == (0, ())
    assert memory.search(np.stack([vector("x")]), 3) == [[]]
    assert ids(memory.add(*given("fox"))) == {"fox"}


def test_segments_with_an_index_are_searched_beside_exact_ones(memory: Memory) -> None:
    names = [f"many{number}" for number in range(300)]
    kind = IndexPlan(factory="HNSW8,Flat", bytes_per_vector=0)
    more = memory.add(*given(*names), kind=kind).remove(names[:50])
    assert [segment.kind for segment in more.segments] == ["exact", "exact", "HNSW8,Flat"]
    queries = np.stack([vector(f"q{number}") for number in range(20)])
    found = more.search(queries, 3)
    wanted = more.compact().search(queries, 3)
    same = [told(one) == told(other) for one, other in zip(wanted, found, strict=True)]
    assert sum(same) >= 19


def test_equal_scores_go_by_id_wherever_the_documents_lie(memory: Memory) -> None:
    names = [f"same{number:03}" for number in range(100)]
    same = np.stack([vector("same")] * 50)
    memory = memory.add([row(name) for name in names[:0:-2]], same)
    memory = memory.add([row(name) for name in names[-2::-2]], same)
    for again in (Memory.compact, lambda one: one.remove(names[:10])):
        for batch in (1, 50):  # FAISS multiplies another way from 20 queries on
            found = memory.search(np.stack([vector("same")] * batch), 7)
            assert [[one.id for one in row] for row in found] == [sorted(names)[:7]] * batch
            assert len({one.score for row in found for one in row}) == 1
        memory = again(memory)
    (found,) = memory.search(np.stack([vector("same")]), 7)
    assert [one.id for one in found] == names[10:17]


def test_what_is_left_of_an_index_is_found_when_all_near_it_is_removed(memory: Memory) -> None:
    names = [f"many{number}" for number in range(300)]
    kind = IndexPlan(factory="HNSW8,Flat", bytes_per_vector=0)
    memory = memory.compact().remove(["fox", "owl", "cat", "hen"])
    query_E = vector("query")
    nearest = sorted(names, key=lambda name: -float(vector(name) @ query_E))
    memory = memory.add(*given(*names), kind=kind).remove(nearest[:280])
    (found,) = memory.search(query_E[None], 5)
    assert [one.id for one in found] == nearest[280:285]
    (found,) = memory.search(query_E[None], 99)
    assert [one.id for one in found] == nearest[280:]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [(("new", "fox"), "has a document 'fox' already; none was added"), (("a", "a"), "the id 'a'")],
)
def test_ids_that_are_taken_are_refused(
    memory: Memory, names: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        memory.add(*given(*names))
    again = Memory.open(memory.folder)
    assert (again.contents, again.count) == (memory.contents, 4)


def test_unknown_ids_are_not_removed(memory: Memory) -> None:
    with pytest.raises(UserError, match="has no document 'yak'"):
        memory.remove(["fox", "yak"])
    assert Memory.open(memory.folder).count == 4


def test_a_memory_of_another_encoder_or_codebook_is_refused(memory: Memory) -> None:
    assert Memory.open(memory.folder, "e1", "ab12").count == 4
    with pytest.raises(UserError, match="was made by the encoder e1, this one is e2"):
        Memory.open(memory.folder, "e2")
    with pytest.raises(UserError, match="holds codes of image tokenizer ab12, but this one is ff"):
        Memory.open(memory.folder, "e1", "ff")


def test_folders_that_are_taken_or_missing_are_refused(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a memory already"):
        Memory.create(memory.folder, EMPTY)
    with pytest.raises(UserError, match="holds other things"):
        Memory.create(tmp_path, EMPTY)
    with pytest.raises(UserError, match="there is no memory at"):
        Memory.open(tmp_path)
    with pytest.raises(UserError, match="cannot make the folder"):
        Memory.create(tmp_path / "no" / "where", EMPTY)


def test_a_memory_changed_by_another_is_opened_again(memory: Memory) -> None:
    memory.remove(["fox"])
    with pytest.raises(UserError, match="was changed since it was opened"):
        memory.remove(["owl"])
    assert Memory.open(memory.folder).remove(["owl"]).compact().count == 2
    with pytest.raises(UserError, match="the memory was changed since it was opened"):
        memory.row("cat")


def test_a_damaged_list_of_contents_is_told(memory: Memory) -> None:
    path = memory.folder / "memory.json"
    whole = path.read_text()
    for text in (whole.replace('"near": 0.9', '"near": 0.8'), whole[:-9], "[]", "{}"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"memory\.json: is damaged"):
            Memory.open(memory.folder)


def test_what_a_killed_change_left_behind_is_dropped(memory: Memory) -> None:
    for name in (".segment-000003-dead.abc", "segment-000009-beef"):
        (memory.folder / name).mkdir()
    memory.remove(["fox"])
    assert sorted(path.name[:14] for path in memory.folder.iterdir() if path.is_dir()) == [
        "segment-000001", "segment-000002",
    ]  # fmt: skip


def test_a_memory_that_cannot_be_written_is_not_changed(memory: Memory) -> None:
    (memory.folder / ".lock").unlink()
    (memory.folder / ".lock").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*: Is a directory"):
        memory.remove(["fox"])
    assert Memory.open(memory.folder).count == 4


def test_two_cannot_change_a_memory_at_once(memory: Memory) -> None:
    rows, vectors_DE = given("new")

    def slow() -> Any:
        with pytest.raises(UserError, match="is being changed by another"):
            memory.remove(["fox"])
        yield from rows

    assert memory.add(slow(), vectors_DE).count == 5
