"""From one typed command to many processes: what is started where, and whose word is shown."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cm3leon.pipeline import CM3Leon
from tokenizer.errors import UserError
from tokenizer.run_control import Failure, RunControl
from train.launch import Cluster, environments, needs_launch, reason, run_control
from train.metrics import read

Cli = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `cm3leon ...` as a process of its own in a fresh folder."""

    def cli(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cm3leon", *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return cli


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read(run)]


def test_zero_in_two_processes_learns_what_one_process_learns(
    cli: Cli, lesson: Path, tmp_path: Path
) -> None:
    quick = ("steps=4", "validate_every=9", "sample_prompts=[]")
    alone = cli("pretrain", lesson, *quick, "--out", "alone")
    assert alone.returncode == 0, alone.stderr
    two = cli("pretrain", lesson, *quick, "engine.zero=2", "--processes", "2", "--out", "two")
    assert two.returncode == 0, two.stderr
    assert two.stdout == "two/model\n"
    assert "on 2 x cpu in fp32" in two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    assert CM3Leon.from_pretrained(tmp_path / "two" / "model").text_to_image("a red fox")
    names = sorted(path.name for path in (tmp_path / "two" / "state-00000004").iterdir())
    assert names == [
        "manifest.json", "share-00000-of-00002.safetensors", "share-00001-of-00002.safetensors",
        "state.json",
    ]  # fmt: skip
    assert not list(tmp_path.glob(".*.launch"))


def test_one_line_tells_what_is_wrong_before_anything_starts(
    cli: Cli, lesson: Path, tmp_path: Path
) -> None:
    done = cli("pretrain", lesson, "--processes", "3", "--out", "run")
    assert done.returncode == 1
    assert done.stderr == ("error: batch 8 does not divide among 3 processes; change one of them\n")
    assert list(tmp_path.iterdir()) == []


def test_one_line_tells_what_is_wrong_in_many_processes(
    cli: Cli, lesson: Path, tmp_path: Path
) -> None:
    done = cli("pretrain", lesson, "shards=/nowhere", "--processes", "2", "--out", "run")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: process ")
    assert line.endswith(": there is no folder '/nowhere'")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_commands(cli: Cli, lesson: Path, tmp_path: Path) -> None:
    done = cli("pretrain", lesson, "steps=4", "--processes", "2", "--out", "r", "--dry-run")
    first, second = done.stdout.splitlines()
    assert first.startswith("WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 PYTHONSAFEPATH=1 ")
    assert "RANK=1 LOCAL_RANK=1" in second
    assert f"{sys.executable} -m cm3leon pretrain {lesson} steps=4 --out r --processes 2" in second
    assert not (tmp_path / "r").exists()


def test_the_processes_of_several_machines_are_numbered_through() -> None:
    two = Cluster(processes=4, nodes=2, node_rank=1, master_addr="one")
    tables = environments(two, Path("unused"))
    assert [table["RANK"] for table in tables] == ["4", "5", "6", "7"]
    assert [table["LOCAL_RANK"] for table in tables] == ["0", "1", "2", "3"]
    assert {table["MASTER_ADDR"] for table in tables} == {"one"}
    assert all(table["WORLD_SIZE"] == "8" for table in tables)


def test_a_port_that_is_taken_is_said(cli: Cli, lesson: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli("pretrain", lesson, "--processes", "2", "--nodes", "2", "--master-addr",
                   "127.0.0.1", "--master-port", str(port), "--out", "r")  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} cannot be had (Address already in use)")


def test_a_worker_and_a_lone_process_do_the_work_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not needs_launch(Cluster(processes=1))
    assert needs_launch(Cluster(processes=2))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert needs_launch(Cluster(processes=2))  # left over from something else
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not needs_launch(Cluster())
    with pytest.raises(UserError, match="this process is one of many already"):
        needs_launch(Cluster(processes=2))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"nodes": 2, "node_rank": 2, "master_addr": "a"}, "with 2 nodes it is 0..1"),
        ({"nodes": 2}, "give the first one's name as master-addr"),
    ],
)
def test_clusters_that_cannot_be_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Cluster(**given)


def test_the_likeliest_cause_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control = RunControl(tmp_path)
    control.report(1, "crash", "Traceback\nRuntimeError: gone")
    control.report(0, "error", "no such file")
    control.report(0, "error", "a second word")
    first, second = control.failures()
    assert (first.rank, first.text, second.kind) == (0, "no such file", "crash")
    assert str(reason(control.failures(), {1: 9}, 2)) == "process 0: no such file"
    killed = str(reason([second], {1: 9}, 2))
    assert killed == (
        "process 1 of 2 was killed by signal 9; memory may have run out; go on with --resume latest"
    )
    crash = Failure(rank=1, kind="crash", text="Traceback\nRuntimeError: gone", when=1.0)
    assert str(reason([crash], {}, 2)) == "process 1 of 2 failed: RuntimeError: gone"
    assert capsys.readouterr().err == "Traceback\nRuntimeError: gone\n"
    assert json.loads((tmp_path / "rank-00000.json").read_text())["text"] == "no such file"


def test_a_second_launch_leaves_the_first_ones_reports_alone(tmp_path: Path) -> None:
    folder = tmp_path / ".run.launch"
    with run_control(folder, tmp_path / "run", first=True) as control:
        control.report(0, "error", "a word")
        with (
            pytest.raises(UserError, match="another launch works on the run in"),
            run_control(folder, tmp_path / "run", first=True),
        ):
            pass
        assert [one.text for one in control.failures()] == ["a word"]
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    assert RunControl(tmp_path).report(0, "error", "a word")
    assert not RunControl(tmp_path / "gone").report(0, "error", "a word")


def listening(pids: set[int]) -> set[str]:
    """The local addresses, as hexadecimals, on which processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks into Linux's /proc")
def test_on_one_machine_nothing_listens_beyond_loopback(lesson: Path, tmp_path: Path) -> None:
    words = ["pretrain", str(lesson), "--processes", "2", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cm3leon", *words]
    seen: set[str] = set()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (tmp_path / "run" / "log.jsonl").exists():
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            with suppress(OSError):
                seen |= listening({process.pid, *map(int, children.read_text().split())})
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert seen <= loopback
