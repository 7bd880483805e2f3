"""From one typed command to many processes: what is started where, and whose word is shown."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm3leon.pipeline import CM3Leon
from tokenizer.errors import UserError
from tokenizer.run_control import Board, Failure
from train.hosts import Host, read_hosts
from train.launch import (
    Cluster,
    Deaths,
    agent_arguments,
    first_host,
    found,
    of_slurm,
    the_board,
    why,
)
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
    begin = f"PYTHONSAFEPATH=1 {sys.executable} -m torch.distributed.run --nproc-per-node 2 "
    assert done.stdout.startswith(begin)
    assert done.stdout.endswith("--minutes inf steps=4\n")
    (tmp_path / "hosts").write_text("one slots=4\ntwo slots=4 # beside the window\n\n")
    done = cli("tokenizer", "train-image", "emoji-64-image", "data=d", "batch=8",
               "--hostfile", "hosts", "--out", "r", "--dry-run")  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first.startswith("ssh one 'PYTHONSAFEPATH=1 ")
    where = "--nproc-per-node 4 --nnodes 2 --node-rank 1 --master-addr one --master-port 29500"
    assert where in second
    assert "tokenizer train-image emoji-64-image --out r" in second
    assert not (tmp_path / "r").exists()


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


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names no host"),
        ("a b c", "line 1: got 'a b c', wanted 'NAME' or 'NAME slots=8'"),
        ("a slots=0", "wanted 'NAME' or 'NAME slots=8'"),
        ("a slots=2\nb slots=4", "all hosts must have as many slots"),
        ("a\na", "named twice"),
    ],
)
def test_a_hostfile_of_another_layout_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_hosts(tmp_path / "hosts")
    with pytest.raises(UserError, match="cannot read the hostfile"):
        read_hosts(tmp_path / "gone")


def test_a_hostfile_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# two\nb slots=8\n\na slots=8 # here\n")
    assert read_hosts(tmp_path / "hosts") == [Host("b", 8), Host("a", 8)]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("alone", "alone"),
        ("node[003-007,9],other", "node003"),
        ("a1,a2", "a1"),
        ("gpu[12,14]-ib", "gpu12-ib"),
    ],
)
def test_the_first_of_slurms_machines(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_slurm_says_where_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NUM_TASKS": "3",
            "SLURM_NODEID": "2", "SLURM_STEP_NODELIST": "n[1-3]",
            "SLURM_JOB_NODELIST": "m[1-4]", "SLURM_JOB_ID": "1234567"}  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    cluster = of_slurm(Cluster(processes=8))
    assert (cluster.nodes, cluster.node_rank, cluster.size) == (3, 2, 24)
    assert (cluster.master_addr, cluster.master_port) == ("n1", 24567)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "24")
    with pytest.raises(UserError, match="run one task a node"):
        of_slurm(Cluster(processes=8))
    monkeypatch.setenv("SLURM_STEP_NODELIST", "rack[1-2]node[3-4]")
    with pytest.raises(UserError, match="SLURM's variables do not say where this is"):
        of_slurm(Cluster(processes=8))
    monkeypatch.setenv("SLURM_STEP_ID", "batch")  # the script of a job, not a step of it
    assert of_slurm(Cluster(processes=8)) == Cluster(processes=8)


def test_a_worker_and_a_lone_process_do_the_work_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert found(Cluster(processes=1)) is None
    assert found(Cluster(processes=2)) == Cluster(processes=2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert found(Cluster(processes=2)) == Cluster(processes=2)  # left over from something else
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert found(Cluster()) is None
    with pytest.raises(UserError, match="this process is one of many already"):
        found(Cluster(processes=2))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"nodes": 2, "node_rank": 2, "master_addr": "a"}, "with 2 nodes it is 0..1"),
        ({"nodes": 2}, "give the first one's name as master-addr"),
        ({"nodes": 2, "master_addr": "a", "hostfile": Path("h")}, "either a hostfile or nodes"),
    ],
)
def test_clusters_that_cannot_be_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Cluster(**given)


def test_one_machine_needs_no_address() -> None:
    words = agent_arguments(Cluster(processes=2), ["pretrain", "r"])
    assert words == ["--nproc-per-node", "2", "--module", "cm3leon", "pretrain", "r"]


def test_the_likeliest_cause_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(tmp_path)
    board.tell(1, "crash", "Traceback\nRuntimeError: gone")
    board.tell(0, "error", "no such file")
    board.tell(0, "error", "a second word")
    first, second = board.failures()
    assert (first.rank, first.told, second.kind) == (0, "no such file", "crash")
    assert str(why(board.failures(), {1: 9}, 2)) == "process 0: no such file"
    killed = str(why([second], {1: 9}, 2))
    assert killed == (
        "process 1 of 2 was killed by signal 9; memory may have run out; go on with --resume latest"
    )
    crash = Failure(rank=1, kind="crash", told="Traceback\nRuntimeError: gone", when=1.0)
    assert str(why([crash], {}, 2)) == "process 1 of 2 failed: RuntimeError: gone"
    assert capsys.readouterr().err == "Traceback\nRuntimeError: gone\n"
    assert json.loads((tmp_path / "rank-00000.json").read_text())["told"] == "no such file"


def test_of_two_processes_that_are_gone_it_is_known_which_was_first() -> None:
    two = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    deaths = Deaths()
    time.sleep(0.3)
    for process in reversed(two):
        process.kill()
        time.sleep(0.3)
    assert deaths.when(two[1].pid) < deaths.when(two[0].pid) < deaths.when(1)
    for process in two:
        process.wait()


def test_a_second_launch_leaves_the_first_ones_board_alone(tmp_path: Path) -> None:
    with the_board(tmp_path / "run", head=True) as board:
        board.tell(0, "error", "a word")
        with (
            pytest.raises(UserError, match="another launch works on the run in"),
            the_board(tmp_path / "run", head=True),
        ):
            pass
        assert [one.told for one in board.failures()] == ["a word"]
    assert list(tmp_path.iterdir()) == []


def test_a_note_that_cannot_be_left_is_said_elsewhere(tmp_path: Path) -> None:
    assert Board(tmp_path).tell(0, "error", "a word")
    assert not Board(tmp_path / "gone").tell(0, "error", "a word")
