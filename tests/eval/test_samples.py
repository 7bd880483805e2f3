"""Samples outlive any kill: the same records in the end, each once, for any number of processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cm3leon import prompts
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from eval.samples import TOP, Retrieval, Wanted, read, run
from tokenizer.document import Document
from tokenizer.errors import UserError

ROOT = Path(__file__).parents[2]
WORDS = ("a red fox", "a blue heart", "a cat", "a cat's head", "red")
SAMPLING = Sampling(top_p=0.9)

# One process of a run, as `torch.distributed.run` would start it. With a `pace` it takes so many
# seconds more for each token, so that there is something left to kill on a fast machine.
DRIVER = """
import sys, time
from pathlib import Path
import torch
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from eval.samples import Wanted, run
torch.set_num_threads(1)
model, folder, count, rank, world, block, pace = sys.argv[1:]
words = {words!r}
wanted = [
    Wanted(id=f"p{{n}}", prompt=words[n % len(words)], seed=n) for n in range(int(count))
]
leon = CM3Leon.from_pretrained(model)
print("begun", flush=True)
print(run(
    Path(folder), wanted, leon, Sampling(top_p=0.9), rank=int(rank), world=int(world),
    block=int(block), progress=lambda done, most: time.sleep(float(pace)),
))
"""


def wanted_of(count: int) -> list[Wanted]:
    return [Wanted(id=f"p{n}", prompt=WORDS[n % len(WORDS)], seed=n) for n in range(count)]


def begin(
    model: Path, folder: Path, count: int, block: int, world: int, pace: float
) -> list["subprocess.Popen[str]"]:
    """Start all processes of a run, and wait until each has its model."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER.format(words=WORDS), str(model), str(folder),
             *map(str, (count, rank, world, block, pace))],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
    return processes


def told(process: "subprocess.Popen[str]") -> str:
    """What it printed after it had begun. Not by `communicate`, which would lose what reading the
    first line has read with it."""
    with process as ended:
        assert ended.stdout is not None
        return ended.stdout.read()


def painted(folder: Path) -> int:
    """The pictures that are there."""
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("block-*.jsonl"))


def survive(
    model: Path, folder: Path, count: int, worlds: Sequence[int], kills: int, block: int
) -> None:
    """Run, kill all processes at a moment drawn by lot, and run again, so many times; then let the
    last run finish."""
    draw, pace = random.Random(count), 0.01
    for kill, there in enumerate(sorted(draw.sample(range(count * 3 // 4), kills))):
        processes = begin(model, folder, count, block, worlds[kill % len(worlds)], pace)
        limit = time.monotonic() + 120
        while painted(folder) < there:
            assert time.monotonic() < limit
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 16 * pace))  # anywhere in a block, or in its writing
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            told(process)
        assert -signal.SIGKILL in [process.returncode for process in processes]
    left = count - painted(folder)
    assert left > 0
    processes = begin(model, folder, count, block, worlds[-1], 0)
    new = [told(process) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    assert sum(map(int, new)) == left  # what was there was not painted again


@pytest.mark.usefixtures("one_thread")
def test_killed_twice_by_one_and_by_two_processes_nothing_is_lost_or_twice(
    tiny: CM3Leon, tiny_folder: Path, tmp_path: Path
) -> None:
    survive(tiny_folder, tmp_path / "killed", 60, (1, 2), kills=2, block=4)
    records = read(tmp_path / "killed")
    assert len({record.id for record in records}) == len(records) == 60
    run(tmp_path / "whole", wanted_of(60), tiny, SAMPLING, block=4)
    assert records == read(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("world", [1, 2])
def test_killed_five_times_400_pictures_are_400(
    tiny: CM3Leon, tiny_folder: Path, tmp_path: Path, world: int
) -> None:
    survive(tiny_folder, tmp_path / "killed", 400, (world,), kills=5, block=16)
    records = read(tmp_path / "killed")
    assert len({record.id for record in records}) == len(records) == 400
    run(tmp_path / "whole", wanted_of(400), tiny, SAMPLING)
    assert records == read(tmp_path / "whole")
    one, other = ({path.name for path in folder.iterdir()} for folder in tmp_path.iterdir())
    assert one == other  # no leftovers


def test_what_a_killed_process_was_writing_is_cleared_by_its_heir(
    tiny: CM3Leon, tmp_path: Path
) -> None:
    half = [tmp_path / f".block-00000{number}.jsonl.0123456789ab" for number in range(2)]
    for path in half:
        path.write_bytes(b'{"id": "p')
    run(tmp_path, wanted_of(4), tiny, block=2, rank=1, world=2)
    assert [path.exists() for path in half] == [True, False]
    run(tmp_path, wanted_of(4), tiny, block=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "block-000000.jsonl",
        "block-000001.jsonl",
        TOP,
    ]


@pytest.mark.usefixtures("one_thread")
def test_records_are_what_is_painted_alone_for_any_number_of_processes(
    tiny: CM3Leon, tmp_path: Path
) -> None:
    wanted = wanted_of(10)
    counts = [run(tmp_path / "3", wanted, tiny, rank=r, world=3, block=4) for r in (2, 0, 1)]
    assert counts == [2, 4, 4]
    told: list[tuple[int, int]] = []

    def tell(done: int, most: int) -> None:
        told.append((done, most))

    run(tmp_path / "1", wanted, tiny, block=4, progress=tell)
    assert read(tmp_path / "1") == read(tmp_path / "3")
    assert told[0] == (0, 160)
    assert told[-1] == (160, 160)
    assert told == sorted(told)
    for one, record in zip(wanted, read(tmp_path / "1"), strict=True):
        assert (record.id, record.prompt, record.seed) == (one.id, one.prompt, one.seed)
        [alone] = tiny.text_to_image(one.prompt, seed=one.seed)
        image = tiny.to_image(prompts.Picture(record.codes))
        assert image.tobytes() == alone.tobytes()


@pytest.mark.usefixtures("one_thread")
def test_documents_are_asked_for_once_and_told(tiny: CM3Leon, tmp_path: Path) -> None:
    example = prompts.pair("a blue heart", tiny.to_picture(tiny.text_to_image("a red fox")[0]))
    asked: list[str] = []

    def find(some: Sequence[Wanted]) -> list[list[tuple[str, Document]]]:
        asked.extend(one.id for one in some)
        return [[("heart", example)] if one.seed % 2 else [] for one in some]

    bank = Retrieval(memory="abc", count=1, find=find)
    for _ in range(2):
        run(tmp_path / "samples", wanted_of(5), tiny, retrieval=bank, block=2)
    assert asked == ["p0", "p1", "p2", "p3", "p4"]
    records = read(tmp_path / "samples")
    assert [record.retrieved for record in records] == [(), ("heart",), (), ("heart",), ()]
    [alone] = tiny.text_to_image(WORDS[3], seed=3, retrieved=[example])
    assert tiny.to_image(prompts.Picture(records[3].codes)).tobytes() == alone.tobytes()
    with pytest.raises(UserError, match="memory is 'abc' there and None here; retrieve is 1 there"):
        run(tmp_path / "samples", wanted_of(5), tiny, block=2)


@pytest.mark.usefixtures("one_thread")
def test_another_run_is_refused_in_the_same_folder(tiny: CM3Leon, tmp_path: Path) -> None:
    folder, wanted = tmp_path / "samples", wanted_of(3)
    run(folder, wanted, tiny, SAMPLING)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for words, other, sampling in (
        ("sampling.top_p is 0.9 there and 0.5 here", wanted, replace(SAMPLING, top_p=0.5)),
        ("count is 3 there and 4 here", wanted_of(4), SAMPLING),
        ("seeds is .* wanted is ", [replace(one, seed=one.seed + 1) for one in wanted], SAMPLING),
        ("of another run: wanted is ", [replace(wanted[0], prompt="a"), *wanted[1:]], SAMPLING),
        ("no images are wanted", [], SAMPLING),
        ("two of the wanted images have the id 'p0'", [wanted[0], wanted[0]], SAMPLING),
        (
            "do not fit into the model",
            [*wanted, Wanted(id="x", prompt="a fox " * 99, seed=0)],
            SAMPLING,
        ),
    ):
        with pytest.raises(UserError, match=words) as refused:
            run(folder, other, tiny, sampling)
        assert "\n" not in str(refused.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no samples.json, but 'mine.png'"):
        run(tmp_path / "photos", wanted, tiny)
    with pytest.raises(UserError, match="cannot write"):
        run(tmp_path / "photos" / "mine.png", wanted, tiny)


@pytest.mark.usefixtures("one_thread")
def test_what_is_missing_or_damaged_is_said(tiny: CM3Leon, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    with pytest.raises(UserError, match="there are no samples in"):
        read(folder)
    run(folder, wanted_of(5), tiny, block=2, rank=1, world=2)
    with pytest.raises(UserError, match=r"lacks 2 of its 3 files, block-000000.jsonl for one"):
        read(folder)
    run(folder, wanted_of(5), tiny, block=2)
    good = read(folder)
    first, second = (folder / f"block-00000{number}.jsonl" for number in range(2))
    kept = first.read_bytes()
    for bad, words in (
        (kept[:-9], "is damaged .* delete it"),
        (kept.splitlines(keepends=True)[0], "4 records with 4 ids are not the 5"),
        (second.read_bytes(), "5 records with 3 ids are not the 5"),
        (kept.replace(b'"seed": 0', b'"seed": 7'), "are not the 5"),
    ):
        first.write_bytes(bad)
        with pytest.raises(UserError, match=words):
            read(folder)
    first.unlink()
    assert run(folder, wanted_of(5), tiny, block=2) == 2
    assert read(folder) == good
    table = json.loads((folder / TOP).read_text())
    for other, words in (
        ({**table, "format": 9}, "is of format 9"),
        ({**table, "count": "5"}, "is damaged"),
        ([], "is damaged"),
    ):
        (folder / TOP).write_text(json.dumps(other))
        with pytest.raises(UserError, match=words):
            read(folder)
