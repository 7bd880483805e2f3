"""`cm3leon eval samples` through real processes: killed at any moment, it loses and repeats
nothing, and any number of processes paints the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3leon.__main__ import main
from cm3leon.pipeline import CM3Leon
from eval.folders import list_folder, read_folder
from eval.samples import read
from tokenizer.document import Picture
from tokenizer.pixels import open_image, read_info

ROOT = Path(__file__).parent.parent
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


def kill_all(process: subprocess.Popen[str]) -> None:
    for pid in family(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=60)


def survive(words: list[str], out: Path, count: int, kills: int) -> tuple[dict[str, Any], str]:
    """Begin a run and kill all of its processes at moments drawn by lot, so many times, then let it
    finish: what it says, and when it was killed."""
    draw, moments = random.Random(count), list[str]()
    for least in sorted(draw.sample(range(count * 3 // 4), kills)):
        process, limit = begin(words), time.monotonic() + 120
        while painted(out) < least:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < limit
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        kill_all(process)
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
    assert main(asked(corpus_folder, tiny_folder, tmp_path / "one", *shared)) == 0
    one = json.loads(capsys.readouterr().out)
    ids = {record.id for record in read(tmp_path / "killed")}
    assert len(ids) == told["pictures"] == 400
    assert told["records"] == json.loads(two)["records"] == one["records"]
    for whole in ("one", "two"):
        same(tmp_path / "killed", tmp_path / whole)
    with capsys.disabled():
        print(f"{moments}: {len(ids)} distinct records, {one['records']} as uninterrupted")
