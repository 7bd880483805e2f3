"""Runs that are killed, stopped, moved to other machines and stages, and go on to the same numbers,
all through the command that a user types.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tokenizer.manifest import verify
from train import state
from train.metrics import read

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
QUIET = ("validate_every=1000", "sample_prompts=[]")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(lesson: Path, tmp_path: Path) -> Iterator[Start]:
    """Begin `cm3leon pretrain` on the lesson as a process of its own; whatever is left of it is
    killed in the end."""
    begun: list[subprocess.Popen[str]] = []

    def start(run: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "cm3leon", "pretrain", str(lesson), *QUIET, *words,
             "--out", str(tmp_path / run), "--resume", "latest"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        begun.append(process)
        return process

    yield start
    for process in begun:
        kill(process)


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a command and all that it started, as a power cut would."""
    for child in [*children(process.pid), process.pid]:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


def children(parent: int) -> list[int]:
    """Every process below one."""
    found: list[int] = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            direct = [int(word) for word in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in direct:
            found += [*children(child), child]
    return found


def until(ready: Callable[[], bool], process: "subprocess.Popen[str]", limit: float = 120) -> None:
    end = time.monotonic() + limit
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def steps_done(run: Path) -> int:
    path = run / "log.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def finish(process: "subprocess.Popen[str]") -> tuple[str, str]:
    out, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return out, told


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read(run)]


def test_five_kills_change_no_bit(start: Start, tmp_path: Path) -> None:
    finish(start("whole", "steps=120", "save_every=10"))
    draw = random.Random(0)
    for place in sorted(draw.sample(range(12, 118), 5)):
        process = start("killed", "steps=120", "save_every=10")
        until(lambda place=place: steps_done(tmp_path / "killed") >= place, process)
        kill(process)
    finish(start("killed", "steps=120", "save_every=10"))
    clocks = {"seconds", "tokens_per_second", "waited", "memory_gb"}
    one, other = (
        [{k: v for k, v in line.items() if k not in clocks} for line in read(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert one == other
    assert len(one) == 120
    for part in ("model/model.safetensors", "state-00000120/share-00000-of-00001.safetensors"):
        assert (tmp_path / "whole" / part).read_bytes() == (tmp_path / "killed" / part).read_bytes()


def test_other_numbers_of_processes_and_stages_go_on_alike(start: Start, tmp_path: Path) -> None:
    """1 -> 2 -> 1 processes, then ZeRO 1 -> 3, each part killed after its state. Over the 20 steps
    after each resume the losses are within 1e-5 of those of one process from the same state."""
    # at the lesson's own rate, training itself lets a difference of 1e-7 grow to 1e-3 in 20 steps
    settings = ("steps=120", "save_every=20", "keep=9", "precision=fp32", "schedule.peak=1e-3")

    def part(run: str, done: int, *words: str) -> None:
        process = start(run, *settings, *words)
        saved = tmp_path / run / f"state-{done:08d}"
        until(saved.exists, process)
        kill(process)
        shutil.rmtree(tmp_path / run / f"state-{done + 20:08d}", ignore_errors=True)

    part("moved", 20)
    parts = [
        ("--processes", "2"),
        (),
        ("--processes", "2", "engine.zero=1"),
        ("--processes", "2", "engine.zero=3"),
    ]
    for number, words in enumerate(parts, start=1):
        done = 20 * number
        shutil.copytree(tmp_path / "moved", tmp_path / f"alone-{done}")
        part("moved", done + 20, *words)
        part(f"alone-{done}", done + 20)
        found, wanted = (
            read(tmp_path / run)[done : done + 20] for run in ("moved", f"alone-{done}")
        )
        assert [line["rows"] for line in found] == [8 * (done + k) for k in range(1, 21)]
        worst = max(
            abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(found, wanted, strict=True)
        )
        print(f"steps {done + 1} to {done + 20} {' '.join(words) or 'alone'}: {worst:.1e}")
        assert worst < 1e-5


def test_twenty_kills_while_saving_leave_a_good_state(start: Start, tmp_path: Path) -> None:
    draw = random.Random(1)
    run = tmp_path / "run"
    caught = 0
    for _ in range(20):
        process = start("run", "steps=100000", "save_every=1", "model.width=256", "model.heads=2")
        before = steps_done(run)
        until(lambda before=before: steps_done(run) > before + 2, process)
        wait = draw.random() * 0.05

        def torn() -> bool:
            return any(run.glob(".state-*.new"))

        until(torn, process)
        time.sleep(wait * draw.random())
        kill(process)
        caught += torn()
        found = state.find(run, "latest", print)
        assert found is not None
        assert found.step >= before
        verify(found.folder)
    print(f"{caught} of 20 kills fell within a save")
    assert caught >= 5


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_every_stage_learns_alike(start: Start, tmp_path: Path, zero: int) -> None:
    finish(start("alone", "steps=20"))
    finish(start("split", "steps=20", f"engine.zero={zero}", "--processes", "2"))
    one, other = losses(tmp_path / "alone"), losses(tmp_path / "split")
    for step, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        print(f"step {step:2d}  one process {a:.7f}  ZeRO {zero}, two processes {b:.7f}")
    assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("engine", ["engine.recompute=true", "engine.offload=optimizer"])
def test_memory_is_saved_without_another_result(start: Start, tmp_path: Path, engine: str) -> None:
    finish(start("alone", "steps=6"))
    for zero in (2, 3):
        finish(start(f"z{zero}", "steps=6", f"engine.zero={zero}", engine, "--processes", "2"))
        assert losses(tmp_path / f"z{zero}") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_zero_in_bf16_is_near(start: Start, tmp_path: Path) -> None:
    finish(start("alone", "steps=10"))
    for zero in (1, 2, 3):
        words = (f"engine.zero={zero}", "precision=bf16", "--processes", "2")
        finish(start(f"z{zero}", "steps=10", *words))
        found = losses(tmp_path / f"z{zero}")
        assert found == pytest.approx(losses(tmp_path / "alone"), rel=2e-2)


def test_two_nodes_typed_by_hand(start: Start, tmp_path: Path) -> None:
    port = str(20000 + os.getpid() % 10000)
    words = ("steps=12", "engine.zero=2", "--processes", "1", "--nodes", "2", "--master-addr",
             "127.0.0.1", "--master-port", port)  # fmt: skip
    second = start("nodes", *words, "--node-rank", "1")
    first = start("nodes", *words, "--node-rank", "0")
    out, _ = finish(first)
    assert out.endswith("nodes/model\n")
    assert finish(second)[0] == ""
    finish(start("alone", "steps=12"))
    assert losses(tmp_path / "nodes") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


SSH = """#!/bin/sh
# a stand-in: the last word is the command, the one before it the host
for word; do host=$command; command=$word; done
case $host in *.gone) echo "ssh: Could not resolve hostname $host" >&2; exit 255;; esac
exec sh -c "$command"
"""


@pytest.fixture
def hosts(tmp_path: Path) -> dict[str, str]:
    """Variables under which `ssh` reaches this machine by any name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(SSH)
    (folder / "ssh").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_hostfile_starts_every_host(start: Start, tmp_path: Path, hosts: dict[str, str]) -> None:
    port = str(20000 + os.getpid() % 10000)
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    words = ("steps=12", "--hostfile", "hosts", "--master-port", port)
    out, told = finish(start("far", *words, **hosts))
    assert out.endswith("far/model\n")
    assert "on 2 x cpu" in told
    finish(start("alone", "steps=12"))
    assert losses(tmp_path / "far") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_a_host_that_cannot_be_reached_is_named(
    start: Start, tmp_path: Path, hosts: dict[str, str]
) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1\nnode7.gone\n")
    process = start("run", "--hostfile", "hosts", **hosts)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 1
    assert told == (
        "error: host node7.gone cannot be reached by ssh (ssh: Could not resolve hostname "
        "node7.gone); mend that, or take it out of the hostfile\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_host_that_fails_is_heard(start: Start, tmp_path: Path, hosts: dict[str, str]) -> None:
    port = str(20000 + os.getpid() % 10000)
    (tmp_path / "hosts").write_text("127.0.0.1\nlocalhost\n")
    words = ("--hostfile", "hosts", "--master-port", port, "shards=/nowhere")
    process = start("run", *words, **hosts)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 1
    assert re.fullmatch(r"error: process \d: there is no folder '/nowhere'\n", told)


def test_sigterm_saves_in_all_processes_and_ends_well(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("steps=100000", "save_every=50000", "--processes", "2")
    process = start("run", *words)
    until(lambda: steps_done(run) > 5, process)
    process.send_signal(signal.SIGTERM)
    out, told = finish(process)
    assert out == f"{run}\n"
    (saved,) = state.states(run)
    done = state.step_of(saved)
    assert f"stopped after step {done} of 100000; go on with --resume latest" in told
    assert steps_done(run) == done
    alone = start("run", *words[:2])
    until(lambda: steps_done(run) > done + 2, alone)
    alone.send_signal(signal.SIGTERM)
    assert f"resumed at step {done}" in finish(alone)[1]


def test_a_process_that_is_killed_is_named(start: Start, tmp_path: Path) -> None:
    process = start("run", "steps=100000", "save_every=5", "--processes", "2")
    until(lambda: steps_done(tmp_path / "run") > 5, process)
    os.kill(worker_of(process, 1), signal.SIGKILL)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 1
    assert told.splitlines()[-1] == (
        "error: process 1 of 2 was killed by signal 9; memory may have run out; go on with "
        "--resume latest"
    )
    assert "Traceback" not in told


def test_a_process_that_hangs_is_named(start: Start, tmp_path: Path) -> None:
    process = start("run", "steps=100000", "hung_after=4", "save_every=5", "--processes", "2")
    until(lambda: steps_done(tmp_path / "run") > 5, process)
    os.kill(worker_of(process, 1), signal.SIGSTOP)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 1
    last = told.splitlines()[-1]
    assert last.startswith(
        "error: process 0: process 1 of 2 hangs: no step for 4 s, it was last at"
    )
    assert "it shows no sign of life" in last
    assert "Traceback" not in told


def worker_of(process: "subprocess.Popen[str]", rank: int) -> int:
    """The process that is a rank of a command's run."""
    for child in children(process.pid):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if b"RANK=%d" % rank in variables:
            return child
    raise AssertionError(f"no process {rank}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_of_a_job_saves_too(start: Start, tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    process = start("run", "steps=100000", "save_every=50000", "workers=2", "--processes", "2")
    until(lambda: steps_done(run) > 5, process)
    os.killpg(process.pid, number)
    finish(process)
    (saved,) = state.states(run)
    assert [line["step"] for line in read(run)] == list(range(1, state.step_of(saved) + 1))


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_bad_steps_are_skipped_in_every_stage(start: Start, tmp_path: Path, zero: int) -> None:
    """At a rate of nothing the losses stay about the same, and half of them are above the mean."""
    words = ("steps=30", "schedule.peak=1e-9", "spike=1.0000001", "bad_step=skip")
    _, told = finish(start("alone", *words))
    finish(start("split", *words, f"engine.zero={zero}", "--processes", "2"))
    alone, split = (
        [line["step"] for line in read(tmp_path / run) if "skipped" in line]
        for run in ("alone", "split")
    )
    assert alone == split
    assert len(alone) == told.count("step skipped: ") > 5
    assert losses(tmp_path / "split") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
