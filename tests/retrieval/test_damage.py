"""Memories that are damaged, hostile or cannot be written: one line each, and nothing is lost."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import format as contents
from retrieval.format import Contents
from retrieval.index import IndexPlan, Vectors
from retrieval.memory import Memory, verify_memory
from retrieval.segment import CodebookInfo, Row
from tokenizer.errors import UserError
from tokenizer.manifest import MANIFEST, file_hash

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")

BOOK = CodebookInfo(image_tokenizer="ab12", size=8, grid=1, codes=10)
EMPTY = Contents(encoder="e1", dimension=4, codebook=BOOK, near=0.9)
HNSW = IndexPlan(factory="HNSW8,Flat", bytes_per_vector=0)


def given(start: str, count: int) -> tuple[list[Row], Vectors]:
    rows: list[Row] = [({"id": f"{start}{n}", "captions": ["a fox"]}, (3,)) for n in range(count)]
    vectors_DE = np.random.default_rng(0).normal(size=(count, 4))
    vectors_DE /= np.linalg.norm(vectors_DE, axis=1, keepdims=True)
    return rows, vectors_DE.astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A memory of an indexed segment and an exact one, opened before."""
    memory = Memory.create(tmp_path / "memory", EMPTY).add(*given("many", 50), kind=HNSW)
    return memory.add(*given("few", 3)).folder


def segment(folder: Path) -> Path:
    return next(folder.glob("segment-000001-*"))


def refused(folder: Path) -> str:
    """The one line that both a first open and `verify` say."""
    (folder / "verified.json").unlink(missing_ok=True)
    lines: list[str] = []
    for look in (Memory.open, verify_memory):
        with pytest.raises(UserError) as error:
            look(folder)
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]
    return lines[0]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change memory.json as one could who wants it to look whole."""
    body = json.loads((folder / "memory.json").read_text())["memory"]
    change(body)
    table = {"sha256": contents._digest(body), "memory": body}
    (folder / "memory.json").write_text(json.dumps(table))


def seal(folder: Path) -> None:
    """Make the hashes of the first segment those of what lies there now."""
    place = segment(folder)
    table = json.loads((place / MANIFEST).read_text())
    for name, entry in table["files"].items():
        if (place / name).is_file():
            entry |= {"bytes": (place / name).stat().st_size, "sha256": file_hash(place / name)}
    (place / MANIFEST).write_text(json.dumps(table))
    rewrite(folder, lambda body: body["segments"][0].update(manifest=file_hash(place / MANIFEST)))


def test_a_part_that_is_gone_cut_or_changed_is_found(folder: Path) -> None:
    names = {
        path.relative_to(segment(folder)).as_posix()
        for path in segment(folder).rglob("*")
        if path.is_file()
    }
    assert {"index.faiss", "vectors.npy", "ids.npy", "names.npy", "parts.npy"} <= names
    for name in sorted(names):
        path = segment(folder) / name
        data = path.read_bytes()
        harms = [None, data[:-1], data[:-1] + bytes([data[-1] ^ 1])] if data else [None, b"?"]
        for harm in harms:
            path.unlink() if harm is None else path.write_bytes(harm)
            assert "segment-000001" in refused(folder)
            path.write_bytes(data)
    said: list[str] = []
    assert Memory.open(folder, say=said.append).count == 53
    assert [line.split("-")[1] for line in said] == ["000001", "000002"]
    Memory.open(folder, say=said.append)
    assert len(said) == 2


def test_a_change_after_the_first_open_is_seen_by_size_time_or_inode(folder: Path) -> None:
    path = segment(folder) / "vectors.npy"
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"'vectors.npy' is not what was written"):
        Memory.open(folder)
    path.rename(folder / "old")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # another inode
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"'vectors.npy' is not what was written"):
        Memory.open(folder)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"segment-000001": 3}', "\0"])
def test_a_note_of_what_was_compared_that_is_damaged_is_made_anew(folder: Path, text: str) -> None:
    (folder / "verified.json").write_text(text)
    said: list[str] = []
    for _ in range(2):
        assert Memory.open(folder, say=said.append).count == 53
    assert len(said) == 2


def test_a_memory_on_a_disk_that_cannot_be_written_opens(folder: Path) -> None:
    (folder / "verified.json").unlink()
    (folder / "verified.json").mkdir()  # not even root writes over it
    said: list[str] = []
    for _ in range(2):
        assert Memory.open(folder, say=said.append).count == 53
    assert len(said) == 4


def first(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda body: body["segments"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (first(name="../segment-000001-00000000"), "no name of a segment"),
        (first(name="segment-000001-00000000/shards"), "no name of a segment"),
        (first(name="/etc"), "no name of a segment"),
        (first(name="segment-000001-00000000"), "is missing or not what memory.json lists"),
        (first(rows=10**15), r"vectors.npy: holds float32 \(50, 4\), not float32 \(1000000000000"),
        (first(rows=0), r"vectors.npy: holds float32 \(50, 4\), not float32 \(0, 4\)"),
        (first(rows=-1), "the removed rows of .* do not rise within its -1"),
        (first(removed=[50]), "do not rise within its 50"),
        (first(removed=[-1]), "do not rise within its 50"),
        (first(removed=[3, 3]), "do not rise within its 50"),
        (first(removed="all"), "must be a list"),
        (lambda body: body.update(dimension=10**12), r"vectors.npy: holds float32 \(50, 4\), not"),
        (lambda body: body["segments"].append(body["segments"][0]), "a segment is listed twice"),
        (lambda body: body.update(format=1), "format is 1, this version reads 2; build the mem"),
        (lambda body: body.pop("encoder"), "missing setting 'encoder'"),
    ],
)
def test_a_list_of_contents_that_lies_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(UserError, match=complaint):
        raise UserError(refused(folder))


def test_a_manifest_may_not_name_what_lies_outside(folder: Path) -> None:
    path = segment(folder) / MANIFEST
    table = json.loads(path.read_text())
    table["files"]["../x"] = table["files"]["vectors.npy"]
    path.write_text(json.dumps(table))
    seal(folder)
    assert "names '../x', outside the folder" in refused(folder)


@pytest.mark.parametrize("name", ["vectors.npy", "shards", "."])
def test_a_part_may_not_be_a_link(folder: Path, tmp_path: Path, name: str) -> None:
    part = segment(folder) / name
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere")
    assert "is a link; copy the memory with what it points to" in refused(folder)


@pytest.mark.parametrize("name", ["memory.json", "verified.json", ".lock"])
def test_what_is_written_may_not_be_a_link(folder: Path, tmp_path: Path, name: str) -> None:
    memory, outside = Memory.open(folder), tmp_path / "outside"
    outside.write_bytes((folder / name).read_bytes() or b"mine")
    before = outside.read_bytes()
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    for act in (lambda: Memory.open(folder), lambda: memory.remove(["few1"])):
        with pytest.raises(UserError, match=f"{name}: is a link"):
            act()
    assert outside.read_bytes() == before


def as_objects(path: Path) -> None:
    np.save(path, np.array([{}] * 50, dtype=object), allow_pickle=True)


def as_text(path: Path) -> None:
    path.write_text("no numbers")


def as_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.zeros(50))


def as_more(path: Path) -> None:
    """A header of more rows than there are bytes."""
    array = np.load(path)
    about = {"descr": array.dtype.descr, "fortran_order": False}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {**about, "shape": (10**9, *array.shape[1:])})
        file.write(array.tobytes())


def as_fewer(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize("name", ["vectors.npy", "ids.npy", "names.npy", "parts.npy"])
@pytest.mark.parametrize("lie", [as_objects, as_text, as_archive, as_more, as_fewer])
def test_an_array_that_is_not_what_it_should_be_is_refused(
    folder: Path, lie: Callable[[Path], None], name: str
) -> None:
    lie(segment(folder) / name)
    seal(folder)
    assert "segment-000001" in refused(folder)


def test_vectors_of_no_numbers_are_refused(folder: Path) -> None:
    path = segment(folder) / "vectors.npy"
    vectors_DE = np.load(path)
    vectors_DE[7, 1] = np.nan
    np.save(path, vectors_DE)
    seal(folder)
    assert "vector 7 in " in refused(folder)


def test_vectors_of_no_numbers_or_another_width_neither_come_in_nor_search(folder: Path) -> None:
    memory = Memory.open(folder)
    rows, vectors_DE = given("new", 2)
    infinite = vectors_DE.copy()
    infinite[1, 2] = np.inf
    for wrong, complaint in (
        (infinite, "vector 1 for .* is not of finite numbers"),
        (vectors_DE[:, :3], "vectors of 3 numbers, those of .* have 4"),
    ):
        with pytest.raises(UserError, match=complaint):
            memory.add(rows, wrong)
        with pytest.raises(UserError, match=complaint):
            memory.search(wrong, 1)
    assert Memory.open(folder).contents == memory.contents


def test_a_memory_that_is_merged_while_it_is_opened_is_opened_as_it_is_then(folder: Path) -> None:
    (folder / "verified.json").unlink()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            Memory.open(folder).compact()

    memory = Memory.open(folder, say=say)
    assert (memory.count, len(memory.segments)) == (53, 1)


def test_what_a_killed_creation_left_does_not_stop_the_next(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".memory.json.123456").write_text("{")
    Memory.create(tmp_path, EMPTY)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "memory.json", "verified.json"}


FULL = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_damage import HNSW, given
from retrieval.memory import Memory
from tokenizer.errors import UserError
memory = Memory.open(Path(sys.argv[1]))
rows, vectors_DE = given("new", 3000)
largest = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
try:
    memory.add(rows, vectors_DE, kind=HNSW)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("largest", [100, 5_000, 30_000, 100_000, 200_000])
def test_a_disk_that_is_full_half_way_leaves_the_memory_as_it_was(
    folder: Path, largest: int
) -> None:
    before = {path.name for path in folder.iterdir()}
    command = [sys.executable, "-c", FULL, folder, Path(__file__).parent, str(largest)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("cannot write ")
    assert {path.name for path in folder.iterdir()} == before
    assert Memory.open(folder).add(*given("new", 3)).count == 56
