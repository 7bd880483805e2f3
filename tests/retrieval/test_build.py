"""Sources become a memory: the same one however it is cut, interrupted or shared out."""

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cm3leon.pipeline import CM3Leon
from retrieval import build, index
from retrieval.build import (
    add_sources,
    calibrate,
    create,
    fill_together,
    gather,
    merge,
    recall_by_kind,
)
from retrieval.encoder import SmallEmbedder
from retrieval.index import IndexPlan
from retrieval.memory import Memory, verify_memory
from tokenizer.data.tars import Tally
from tokenizer.distributed import DistributedContext
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")
ROOT = Path(__file__).parents[2]


class Rank(DistributedContext):
    """One of two processes, which waits for nobody."""

    def wait(self) -> None:
        pass


@pytest.fixture(scope="module")
def embedder(small_encoder: Path) -> SmallEmbedder:
    return SmallEmbedder.load(small_encoder)


@pytest.fixture(scope="module")
def tokenizer(tiny: CM3Leon) -> ImageTokenizer:
    return tiny.image_tokenizer


def picture(name: str) -> bytes:
    draw = np.random.default_rng(list(name.encode()))
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, names: Sequence[str]) -> str:
    with tarfile.open(path, "w") as archive:
        for name in names:
            about = {"id": name, "captions": [f"a {name}"] if name[0] != "_" else []}
            for ending, data in (("png", picture(name)), ("json", json.dumps(about).encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return str(path)


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Three tars of 11 documents; `fox` comes twice, `_mute` has no caption, one id is too long."""
    last = ["dog", "x" * 1001, "pig", "elk"]
    names = (["fox", "bat", "owl", "cat", "hen"], ["cow", "_mute", "fox"], last)
    return [write_tar(tmp_path / f"s-{n}.tar", some) for n, some in enumerate(names)]


def told(memory: Memory) -> list[tuple[Any, tuple[int, ...], list[float]]]:
    """All that a memory holds, in its order."""
    documents: list[tuple[Any, tuple[int, ...], list[float]]] = []
    for place in memory.places():
        metadata, codes = memory.segments[place.segment].document(place.row)
        vector_E = memory.segments[place.segment].vector(place.row)
        documents.append((metadata, tuple(codes), vector_E.tolist()))
    return documents


def assert_same(memory: Memory, other: Memory) -> None:
    """The same documents in the same order."""
    assert memory.count == other.count
    assert_begins(memory, other)


def assert_begins(memory: Memory, other: Memory) -> None:
    """The first documents of the other; vectors may differ by what a batch makes of sums."""
    for one, two in zip(told(memory), told(other)[: memory.count], strict=True):
        assert one[:2] == two[:2]
        np.testing.assert_allclose(one[2], two[2], atol=1e-6)


def quiet(_: str) -> None:
    pass


def built(
    folder: Path, sources: Sequence[str], embedder: SmallEmbedder, tokenizer: ImageTokenizer,
    **more: Any,
) -> tuple[Memory, Tally]:  # fmt: skip
    tally = Tally()
    memory = Memory.open(folder) if folder.exists() else create(folder, embedder, tokenizer)
    given = {"tally": tally, "say": quiet, **more}
    return add_sources(memory, sources, embedder, tokenizer, **given), tally


def test_a_source_comes_in_segments_of_a_bounded_number(
    tmp_path: Path, sources: list[str], embedder: SmallEmbedder, tokenizer: ImageTokenizer
) -> None:
    whole, tally = built(tmp_path / "whole", sources, embedder, tokenizer)
    cut, _ = built(tmp_path / "cut", sources, embedder, tokenizer, segment=2)
    assert [one.rows for one in whole.segments] == [5, 2, 3]
    assert [one.rows for one in cut.segments] == [2, 2, 1, 2, 2, 1]
    assert told(whole) == told(cut) == told(merge(cut))
    assert [metadata["id"] for metadata, _, _ in told(whole)] == [
        "fox", "bat", "owl", "cat", "hen", "cow", "_mute", "dog", "pig", "elk",
    ]  # fmt: skip
    assert (tally.pictures, tally.mute, tally.known) == (10, 1, 0)
    assert tally.skipped == [
        ("s-1/fox", "an image of an earlier source has its id 'fox'"),
        (f"s-2/{'x' * 1001}", "its id has 1001 bytes; it may have up to 1000, none of them 0"),
    ]


def test_large_pictures_are_held_in_smaller_groups(
    tmp_path: Path, sources: list[str], embedder: SmallEmbedder, tokenizer: ImageTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, _ = built(tmp_path / "whole", sources, embedder, tokenizer)
    monkeypatch.setattr(build, "BATCH_PIXELS", 2 * 20 * 20)
    sizes = [len(group) for group in build.groups(iter([({}, Image.new("RGB", (20, 20)))] * 5))]
    assert sizes == [2, 2, 1]
    small, _ = built(tmp_path / "small", sources, embedder, tokenizer)
    assert_same(small, whole)


def test_a_build_goes_on_in_the_middle_of_a_source(
    tmp_path: Path, sources: list[str], embedder: SmallEmbedder, tokenizer: ImageTokenizer
) -> None:
    class Killed(Exception):
        pass

    def kill(_: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        built(tmp_path / "memory", sources, embedder, tokenizer, segment=2, say=kill)
    memory, tally = built(tmp_path / "memory", sources, embedder, tokenizer)
    assert (tally.known, tally.pictures) == (6, 5)  # fox is known from both tars
    whole, _ = built(tmp_path / "whole", sources, embedder, tokenizer)
    assert_same(memory, whole)


def test_a_merged_memory_is_as_the_budget_asks(
    tmp_path: Path, sources: list[str], embedder: SmallEmbedder, tokenizer: ImageTokenizer
) -> None:
    memory, _ = built(tmp_path / "memory", sources, embedder, tokenizer)
    memory = merge(memory)
    assert [one.kind for one in memory.segments] == ["exact"]
    assert recall_by_kind(memory, embedder, tokenizer) == {}
    assert merge(memory) is memory
    memory = merge(memory, 10 * 8 * 4 - 1)  # a byte less than the vectors need
    assert [one.kind for one in memory.segments] == ["IVF1,SQ8"]
    assert recall_by_kind(memory, embedder, tokenizer) == {
        "text": (1, 1), "image": (1, 1), "both": (1, 1),
    }  # fmt: skip
    assert 0.9 <= calibrate(memory).contents.near <= 1
    with pytest.raises(UserError, match="need at least"):
        merge(memory, 3)


def test_an_index_that_looks_at_little_recalls_little(
    tmp_path: Path, embedder: SmallEmbedder, tokenizer: ImageTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tar = write_tar(tmp_path / "many.tar", [f"n{number}" for number in range(300)])
    memory, _ = built(tmp_path / "memory", [tar], embedder, tokenizer)
    memory = memory.compact(IndexPlan(factory="IVF32,SQ8", bytes_per_vector=0))
    assert all(at_10 == 1 for _, at_10 in recall_by_kind(memory, embedder, tokenizer).values())
    monkeypatch.setattr(index, "PROBED", 1)
    found = recall_by_kind(memory, embedder, tokenizer)
    assert set(found) == {"text", "image", "both"}
    assert all(0.05 < at_10 < 0.95 for _, at_10 in found.values())


def test_parts_make_what_one_process_makes(
    tmp_path: Path, sources: list[str], embedder: SmallEmbedder, tokenizer: ImageTokenizer
) -> None:
    whole, alone = built(tmp_path / "whole", sources, embedder, tokenizer)
    memory, tally = create(tmp_path / "memory", embedder, tokenizer), Tally()

    def fill(bank: Memory, some: Sequence[str], beside: Memory | None) -> Memory:
        return add_sources(
            bank, some, embedder, tokenizer, beside=beside, segment=2, tally=tally, say=quiet
        )

    # The second of two comes first, then the first gathers what both have made.
    fill_together(memory, sources, Rank(rank=1, size=2), fill, tally)
    assert [path.name for path in memory.folder.glob("part-*")] == ["part-000001"]
    memory = fill_together(memory, sources, Rank(rank=0, size=2), fill, tally)
    assert_same(memory, whole)
    assert {why for _, why in tally.skipped} == {why for _, why in alone.skipped}
    assert not list(memory.folder.glob("part-*"))
    # What a killed build left behind is gathered, and not made again.
    fill_together(memory.remove(["dog", "cow"]), sources, Rank(rank=1, size=2), fill, Tally())
    memory = gather(Memory.open(memory.folder), Tally())
    assert {metadata["id"] for metadata, _, _ in told(memory)} >= {"cow"}
    assert memory.find("dog") is None
    verify_memory(memory.folder)


def torchrun(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--module", "cm3leon", *argv]
    lone = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **lone}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.usefixtures("one_thread")
def test_two_processes_build_what_one_does_and_go_on_after_a_fall(
    tmp_path: Path, sources: list[str], embedder: SmallEmbedder, tokenizer: ImageTokenizer,
    small_encoder: Path, tiny_folder: Path,
) -> None:  # fmt: skip
    whole, _ = built(tmp_path / "whole", sources, embedder, tokenizer)
    out = tmp_path / "memory"
    words = ["--out", str(out), "--encoder", str(small_encoder), "--model", str(tiny_folder)]
    last = Path(sources[2])
    data = last.read_bytes()
    last.write_bytes(b"no tar")
    done = torchrun("index", "build", *sources, *words)
    assert done.returncode == 1
    assert "s-2.tar: not an uncompressed tar file" in done.stderr
    assert Memory.open(out).count == 0
    assert Memory.open(out / "part-000000").count == 5
    last.write_bytes(data)
    done = torchrun("index", "build", *sources, *words)
    assert (done.returncode, done.stdout) == (0, "10 documents\n"), done.stderr
    assert "process 1: " in done.stderr
    assert "index: exact, 32 bytes a vector" in done.stderr
    memory = Memory.open(out)
    assert len(memory.segments) == 1
    assert_same(memory, whole)


# Python 3.12 warns of every fork beside threads; one thread is all there is.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("one_thread")
def test_a_build_killed_20_times_loses_nothing_and_ends_as_one_that_was_not(
    tmp_path: Path, sources: list[str], embedder: SmallEmbedder, tokenizer: ImageTokenizer
) -> None:
    whole, _ = built(tmp_path / "whole", sources, embedder, tokenizer, segment=1)
    rng, folder = random.Random(0), tmp_path / "memory"
    create(folder, embedder, tokenizer)
    counts = [0]
    for _ in range(20):
        if counts[-1] == whole.count:  # once more from the start
            shutil.rmtree(folder)
            create(folder, embedder, tokenizer)
            counts.append(0)
        before = (top := folder / "memory.json").read_bytes()
        child = os.fork()
        if not child:
            try:
                merge(built(folder, sources, embedder, tokenizer, segment=1)[0])
            finally:
                os._exit(0)
        while rng.random() < 0.98 and top.read_bytes() == before:  # however busy the machine is
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        memory = Memory.open(folder)
        verify_memory(folder)
        assert memory.count >= counts[-1]
        assert_begins(memory, whole)
        counts.append(memory.count)
    assert any(0 < count < whole.count for count in counts)
    assert_same(merge(built(folder, sources, embedder, tokenizer)[0]), whole)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A disk that takes no larger file, as one that is full half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [30, 140, 300, 1000])
def test_on_a_full_disk_the_memory_that_was_there_stays(
    tmp_path: Path, sources: list[str], embedder: SmallEmbedder, tokenizer: ImageTokenizer,
    size: int,
) -> None:  # fmt: skip
    folder = tmp_path / "memory"
    memory, _ = built(folder, sources[:2], embedder, tokenizer)
    before, names = told(memory), sorted(path.name for path in folder.iterdir())
    for change in (
        lambda: built(folder, sources, embedder, tokenizer),
        lambda: memory.compact(IndexPlan(factory="HNSW8,Flat", bytes_per_vector=0)),
    ):
        with no_file_above(size), pytest.raises(UserError, match=r"cannot write .*") as error:
            change()
        assert "\n" not in str(error.value)
        assert told(Memory.open(folder)) == before
        assert sorted(path.name for path in folder.iterdir()) == names
