"""Memories through many changes: they hold what one built anew would, and survive kill -9."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from retrieval.format import LOCK, TOP, VERIFIED, Contents
from retrieval.index import Vectors
from retrieval.memory import Memory, verify_memory
from retrieval.rules import Candidate
from retrieval.segment import CodebookInfo, Row

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")

BOOK = CodebookInfo(image_tokenizer="ab12", size=8, grid=1, codes=10)
EMPTY = Contents(encoder="e1", dimension=3, codebook=BOOK, near=0.9)
NAMES = [f"n{number}" for number in range(10)]


def vector(name: str) -> Vectors:
    """One of seven, so that scores are equal often."""
    drawn = np.random.default_rng(sum(name.encode()) % 7).normal(size=3)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def row(name: str) -> Row:
    """With a text, a picture, or both."""
    kind = len(name) + ord(name[-1]) % 3
    captions, codes = [f"a {name}"] if kind % 3 else [], (3,) if kind % 3 != 1 else ()
    return {"id": name, "captions": captions}, codes


def given(*names: str) -> tuple[list[Row], Vectors]:
    return [row(name) for name in names], np.stack([vector(name) for name in names])


def drawn(there: set[str], rng: random.Random) -> tuple[str, set[str]]:
    """What to do next, and to which documents."""
    missing = sorted({*NAMES} - there)
    match rng.choice(("add", "add", "remove", "compact")):
        case "add" if missing:
            return "add", {*rng.sample(missing, min(len(missing), rng.randint(1, 4)))}
        case "remove" if there:
            return "remove", {*rng.sample(sorted(there), rng.randint(1, len(there)))}
        case _:
            return "compact", set()


def changed(memory: Memory, what: str, names: set[str]) -> Memory:
    match what:
        case "add":
            return memory.add(*given(*sorted(names)))
        case "remove":
            return memory.remove(names)
        case _:
            return memory.compact()


def after(there: set[str], what: str, names: set[str]) -> set[str]:
    return there | names if what == "add" else there - names


def held(memory: Memory) -> set[str]:
    return {memory.segments[p.segment].document(p.row)[0]["id"] for p in memory.places()}


Told = list[tuple[str, float, bool, bool]]


def told(found: Collection[Candidate]) -> Told:
    return [(one.id, one.score, one.has_text, one.has_picture) for one in found]


def rounded(found: Told) -> Told:
    """With scores as far as two libraries add up alike."""
    return [(name, round(score, 5), text, picture) for name, score, text, picture in found]


def by_formula(there: set[str], query_E: Vectors, most: int) -> Told:
    scores = sorted((-float(query_E @ vector(name)), name) for name in there)
    rows = {name: row(name) for name in there}
    return rounded(
        [
            (name, -score, bool(rows[name][0]["captions"]), bool(rows[name][1]))
            for score, name in scores[:most]
        ]
    )


@pytest.mark.parametrize("sequences", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_sequences_of_changes_agree_with_a_memory_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sequences: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power is lost here
    rng = random.Random(0)
    for number in range(sequences):
        folder = tmp_path / f"m{number}"
        memory, there = Memory.create(folder, EMPTY), set[str]()
        for _ in range(rng.randint(1, 6)):
            what, names = drawn(there, rng)
            memory, there = changed(memory, what, names), after(there, what, names)
        queries = np.stack([vector(f"q{number}"), vector("n1")])
        most = rng.randint(1, 11)
        found = [told(one) for one in memory.search(queries, most)]
        assert [rounded(one) for one in found] == [
            by_formula(there, query_E, most) for query_E in queries
        ]
        assert held(memory) == {name for name in NAMES if memory.find(name)} == there
        assert all(memory.row(name) == row(name) for name in there)
        if there:
            anew = Memory.create(tmp_path / f"a{number}", EMPTY).add(*given(*sorted(there)))
            assert found == [told(one) for one in anew.search(queries, most)]


KILLED = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_changes import EMPTY, after, changed, drawn, held
from retrieval.format import TOP
from retrieval.memory import Memory
folder, rng = Path(sys.argv[1]), random.Random(int(sys.argv[3]))
print("ready", flush=True)
memory = Memory.open(folder) if (folder / TOP).exists() else Memory.create(folder, EMPTY)
there = held(memory)
while True:
    what, names = drawn(there, rng)
    print(what, *sorted(names), flush=True)
    memory, there = changed(memory, what, names), after(there, what, names)
    print("done", flush=True)
"""


def killed(folder: Path, seed: int, changes: int, seconds: float) -> list[str]:
    """What a process told that changes a memory, killed so long after so many changes."""
    command = [sys.executable, "-c", KILLED, folder, Path(__file__).parent, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        lines = [process.stdout.readline() for _ in range(2 * changes)]
        time.sleep(seconds)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        return [*lines, *process.stdout.read().splitlines()]


def test_killed_at_any_moment_nothing_that_was_confirmed_is_lost(tmp_path: Path) -> None:
    rng = random.Random(0)
    folder, there, cut_short = tmp_path / "memory", set[str](), 0
    for number in range(20):
        what, maybe = "", there
        for line in killed(folder, number, rng.randrange(4), rng.uniform(0, 0.1)):
            what, *names = line.split()
            if what == "done":
                there = maybe
            else:
                maybe = after(there, what, {*names})
        if not (folder / TOP).exists():
            assert not what
            continue
        cut_short += what not in ("", "done")
        verify_memory(folder)
        memory = Memory.open(folder)
        assert held(memory) in (there, maybe)
        there = held(memory)
        assert all(memory.row(name) == row(name) for name in there)
        query_E = vector(f"q{number}")
        assert rounded(told(memory.search(query_E[None], 9)[0])) == by_formula(there, query_E, 9)
        what, names = drawn(there, rng)
        memory, there = changed(memory, what, names), after(there, what, names)
        assert held(memory) == there
        segments = {entry.name for entry in memory.contents.segments}
        assert {path.name for path in folder.iterdir()} == {TOP, LOCK, VERIFIED, *segments}
    assert cut_short > 5
