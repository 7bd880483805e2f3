"""`cm3leon eval samples` through real processes: killed at any moment, it loses and repeats
nothing, and any number of processes paints the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cm3leon.__main__ import main
from cm3leon.pipeline import CM3Leon
from eval.networks.folders import list_folder, read_folder
from eval.samples import read
from tokenizer.document import Picture
from tokenizer.pixels import open_image, read_info

ROOT = Path(__file__).parents[3]
Capture = pytest.CaptureFixture[str]


def asked(data: Path, model: Path, out: Path, *more: object) -> list[str]:
    words = ["eval", "samples", "--data", str(data), "--model", str(model), "--out", str(out)]
    return [*words, "--device", "cpu", "--block", "4", *map(str, more)]


def begin(words: list[str]) -> subprocess.Popen[str]:
    """The real command, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cm3leon", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def family(pid: int) -> set[int]:
    """A process and all that it and its children started; torch's agent gives each a group of its
    own."""
    found = {pid}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found |= family(int(child))
    return found


def painted(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("block-*.jsonl"))


def wait_for(out: Path, least: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while painted(out) < least:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.001)


def kill(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def survive(words: list[str], out: Path, count: int, kills: int) -> tuple[dict[str, Any], str]:
    """Begin a run and kill all of its processes at moments drawn by lot, so many times, then let it
    finish: what it says, and when it was killed."""
    draw, moments = random.Random(count), list[str]()
    for _ in range(kills):
        least = painted(out) + draw.randint(1, count // 6)
        process = begin(words)
        wait_for(out, least, process)
        time.sleep(draw.uniform(0, 0.02))  # anywhere in a block, or in its writing
        kill(family(process.pid))
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        moments.append(f"{painted(out)}")
        assert painted(out) < count
    process = begin(words)
    told, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    return json.loads(told), f"killed with {', '.join(moments)} of {count} there"


def same(one: Path, other: Path) -> None:
    """Both folders hold the same files, byte for byte, and nothing else."""
    names = [
        sorted(str(path.relative_to(root)) for path in root.rglob("*")) for root in (one, other)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if (one / name).is_file():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.usefixtures("one_thread")
def test_killed_with_two_processes_it_ends_as_one_process_does(
    tiny: CM3Leon, tiny_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    shared = ("--limit", 5, "--each", 12, "--png", "--json")
    words = asked(corpus_folder, tiny_folder, tmp_path / "killed", *shared, "--processes", 2)
    told, _ = survive(words, tmp_path / "killed", 60, kills=1)
    whole = asked(corpus_folder, tiny_folder, tmp_path / "whole", *shared, "--processes", 1)
    assert main(whole) == 0
    assert json.loads(capsys.readouterr().out)["records"] == told["records"]
    assert (told["pictures"], told["captions"]) == (60, 5)
    same(tmp_path / "killed", tmp_path / "whole")
    records = read(tmp_path / "whole")
    assert len({record.id for record in records}) == 60
    assert [record.seed for record in records] == list(range(60))
    assert records[13].id == "p1#1"
    for record, path in zip(records, list_folder(Path(told["folder"])), strict=True):
        assert open_image(path).tobytes() == tiny.to_image(Picture(record.codes)).tobytes()
        assert read_info(path)["id"] == record.id
    pixels = read_folder(tmp_path / "whole" / "pictures", lambda x_B3HW: x_B3HW.flatten(1))
    assert pixels.shape == (60, 16 * 16 * 3)
    assert not list(tmp_path.glob(".*"))


def test_all_processes_end_where_that_is_asked_for_and_where_their_parent_is_gone(
    tiny_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = asked(corpus_folder, tiny_folder, out, "--each", 4000, "--processes", 2)
    process = begin(words)
    wait_for(out, 1, process)
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped, process 1 of 2; give the same command again" in complaint
    assert complaint.splitlines()[-1].startswith(f"error: {out} lacks ")
    process, there = begin(words), painted(out)
    wait_for(out, there + 1, process)
    pids = family(process.pid)
    assert len(pids) == 3
    process.kill()
    process.communicate(timeout=60)  # its children hold its stderr: it ends when they do
    assert there < painted(out) < 24_000


def test_another_run_in_the_folder_is_refused(
    tiny_folder: Path, other_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    words = asked(corpus_folder, tiny_folder, out, "--processes", 1)
    assert main(words) == 0
    files = {path: path.read_bytes() for path in out.iterdir()}
    other = asked(corpus_folder, other_folder, out, "--processes", 1)
    for again, reason in (
        (other, "is of another run: model is "),
        ([*words, "--seed", "1"], "seeds is [0, 5] there and [1, 6] here"),
        ([*words, "--split", "train", "--limit", "3"], "count is 6 there and 3 here"),
        ([*words, "--temperature", "0"], "sampling.temperature is 1.0 there and 0.0 here"),
        ([*words, "--threads", "2"], "threads is 1 there and 2 here"),
        ([*words, "--block", "5"], "block is 4 there and 5 here"),
    ):
        capsys.readouterr()
        assert main(again) == 1
        complaint = capsys.readouterr().err.splitlines()[-1]
        assert complaint.startswith(f"error: {out} is of another run: ")
        assert reason in complaint
    assert {path: path.read_bytes() for path in out.iterdir()} == files
    assert main(words) == 0


@pytest.mark.usefixtures("one_thread")
def test_documents_stand_in_front(
    tiny_folder: Path,
    small_encoder: Path,
    small_memory: Path,
    corpus_folder: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    bank = ("--memory", small_memory, "--encoder", small_encoder, "--processes", 1)
    words = asked(corpus_folder, tiny_folder, tmp_path / "out", *bank)
    assert main([*words, "--retrieve", "1"]) == 0
    for record in read(tmp_path / "out"):
        assert len(record.retrieved) == 1
        assert record.retrieved[0] != record.id.removesuffix("#0")
    assert main([*words, "--retrieve", "0"]) == 1
    assert "retrieve is 1 there and 0 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "status", "reason"),
    [
        ("--split nowhere", 1, "no tar is found as"),
        ("--ids nowhere", 1, "there is no file 'nowhere'; name a list of ids"),
        ("--ids {ids}", 1, "1 ids of"),
        ("--out {ids}", 1, "is a file; name a folder for the records"),
        ("--model nobody", 1, "there is no model folder 'nobody'"),
        ("--memory nowhere", 1, "there is no memory at 'nowhere'"),
        ("--retrieve 2", 2, "--retrieve go with --memory"),
        ("--top-p 2", 1, "top_p is 2.0; it must be above 0 and at most 1"),
        ("--seed 4294967295", 1, "the last of 6 images would have"),
        ("--processes 0", 2, "--processes"),
        ("--out {folder}", 1, "has no samples.json, but 'ids.txt'"),
    ],
)
def test_a_mistake_is_one_line(
    more: str,
    status: int,
    reason: str,
    tiny_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ids = tmp_path / "ids.txt"
    ids.write_text("nobody\n")
    words = more.format(ids=ids, folder=tmp_path).split()
    one = [] if "--processes" in words else ["--processes", "1"]
    assert main([*asked(corpus_folder, tiny_folder, tmp_path / "out", *one), *words]) == status
    (complaint,) = capsys.readouterr().err.splitlines()
    assert reason in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["ids.txt"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_killed_five_times_400_pictures_are_400(
    tiny_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    shared = ("--limit", 5, "--each", 80, "--json")
    words = asked(corpus_folder, tiny_folder, tmp_path / "killed", *shared, "--processes", 2)
    told, moments = survive(words, tmp_path / "killed", 400, kills=5)
    process = begin(asked(corpus_folder, tiny_folder, tmp_path / "two", *shared, "--processes", 2))
    two, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    assert main(asked(corpus_folder, tiny_folder, tmp_path / "one", *shared, "--processes", 1)) == 0
    one = json.loads(capsys.readouterr().out)
    ids = {record.id for record in read(tmp_path / "killed")}
    assert len(ids) == told["pictures"] == 400
    assert told["records"] == json.loads(two)["records"] == one["records"]
    for whole in ("one", "two"):
        same(tmp_path / "killed", tmp_path / whole)
    with capsys.disabled():
        print(f"{moments}: {len(ids)} distinct records, {one['records']} as uninterrupted")
