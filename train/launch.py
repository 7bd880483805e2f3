"""Launcher: start the worker processes of one command, on one machine or several.

Called by the command line; each worker runs the same command. The processes are supervised by
`torch.distributed.elastic.multiprocessing`, the base of torchrun, but without its rendezvous: the
workers of one machine use a file store, those of several the address of the first machine.
`torch.distributed.run` can start the same workers, if a cluster provides it or for restarts.
"""

import logging
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tokenizer.distributed import STORE, Say, is_worker, on_stop
from tokenizer.errors import UserError
from tokenizer.manifest import locked
from tokenizer.run_control import VARIABLE, Failure, RunControl

LOCK = ".lock"
PORT = 29500
RESUME = "go on with --resume latest"  # advice of the message for a killed process
NOT_OURS = "SIGQUIT"  # the only signal left to torch in this process; others are handled here
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # for runs on one machine


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Process layout of a run; the command is started on each of its machines."""

    processes: int | None = None  # per machine; None: one per GPU, at least one
    nodes: int = 1
    node_rank: int = 0
    master_addr: str | None = None  # the first machine
    master_port: int | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise UserError(f"processes is {self.processes}; it must be at least 1")
        if not 0 <= self.node_rank < self.nodes:
            raise UserError(
                f"node-rank is {self.node_rank}; with {self.nodes} nodes it is 0..{self.nodes - 1}"
            )
        if self.nodes > 1 and self.master_addr is None:
            raise UserError(f"with {self.nodes} nodes, give the first one's name as master-addr")

    @property
    def each(self) -> int:
        """Number of processes per machine."""
        if self.processes is not None:
            return self.processes
        import torch

        return max(1, torch.cuda.device_count())

    @property
    def size(self) -> int:
        """Number of processes on all machines."""
        return self.each * self.nodes


def needs_launch(cluster: Cluster) -> bool:
    """Return whether to start processes; False if this process does the work: a worker, or a run
    of one process.

    Raises UserError in a worker of another launcher if the command asks for processes or nodes.
    """
    if not is_worker():
        return cluster.nodes > 1 or cluster.dry_run or cluster.each > 1
    if VARIABLE not in os.environ and (cluster.processes or cluster.nodes > 1):
        raise UserError(
            "this process is one of many already (RANK and WORLD_SIZE say so): leave out "
            "--processes and --nodes, or unset those variables"
        )
    return False


def environments(cluster: Cluster, store: Path) -> list[dict[str, str]]:
    """Return the environment variables of each process on this machine, named as by torchrun."""
    first = cluster.node_rank * cluster.each
    shared = {"WORLD_SIZE": str(cluster.size), "LOCAL_WORLD_SIZE": str(cluster.each)}
    shared |= {"PYTHONSAFEPATH": "1"}
    if cluster.nodes > 1:
        shared |= {"MASTER_ADDR": cluster.master_addr or ""}
        shared |= {"MASTER_PORT": str(cluster.master_port or PORT)}
    else:
        shared |= {**LOOPBACK, STORE: str(store)}
    return [
        {**shared, "RANK": str(first + rank), "LOCAL_RANK": str(rank)}
        for rank in range(cluster.each)
    ]


def launch(
    worker: Sequence[str], out: Path, cluster: Cluster, say: Say, again: str = RESUME
) -> int:
    """Start all processes of `cm3leon WORKER...` on this machine and wait; return the exit status.

    out: the run's folder; the folder `.NAME.launch` next to it has stop requests and failure
    reports. again: advice on how to resume the run, for error messages. SIGTERM to this process
    asks all workers to save and exit. Raises UserError with the first failure of a process.
    """
    folder = out.absolute().with_name(f".{out.name}.launch")
    words = ["-m", "cm3leon", *worker]
    if cluster.dry_run:
        for variables in environments(cluster, folder / "store"):
            told = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
            print(f"{told} {shlex.join([sys.executable, *words])}")
        return 0
    check_port(cluster)
    with run_control(folder, out, first=cluster.node_rank == 0) as control:
        return run_processes(words, cluster, control, again)


def check_port(cluster: Cluster) -> None:
    """Raise UserError if the first machine cannot listen on the master port."""
    if cluster.node_rank or cluster.nodes == 1:
        return
    port = cluster.master_port or PORT
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be had ({error.strerror}); another run may have it: give "
                "another --master-port on all machines"
            ) from error


@contextmanager
def run_control(folder: Path, out: Path, first: bool) -> Generator[RunControl]:
    """Create the folder of a launch and yield its control, which turns signals into stop requests.

    The first machine clears the folder at the start and removes it at the end. Raises UserError if
    the folder cannot be created, or another launch uses it.
    """
    control = RunControl(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error

    def on_signal(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            control.request_stop()

    if not first:
        with on_stop(on_signal):
            yield control
        return
    busy = f"another launch works on the run in {out}; wait for it, or name a new folder"
    with locked(folder / LOCK, busy):
        control.clear()
        try:
            with on_stop(on_signal):
                yield control
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def run_processes(words: Sequence[str], cluster: Cluster, control: RunControl, again: str) -> int:
    """Run this machine's processes until all have exited; return 0.

    Raises UserError if a process fails.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    logging.disable(logging.CRITICAL)  # of torch; the failure reports have what matters
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = NOT_OURS
    cores = len(os.sched_getaffinity(0))
    shared = {VARIABLE: str(control.folder)}
    if "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(max(1, cores // cluster.each))
    variables = [shared | one for one in environments(cluster, control.folder / "store")]
    context = start_processes(
        name="cm3leon",
        entrypoint=sys.executable,
        args=dict(enumerate([tuple(words)] * cluster.each)),
        envs=dict(enumerate(variables)),
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        result = context.wait(period=0.05)
    except BaseException:  # interrupted: leave no process running
        context.close(signal.SIGTERM)
        raise
    assert result is not None
    if not result.is_failed():
        return 0
    first = cluster.node_rank * cluster.each
    rank, one = min(result.failures.items(), key=lambda item: (item[1].timestamp, item[0]))
    by_signal = one.exitcode < 0 and -one.exitcode != signal.SIGTERM
    killed = {first + rank: -one.exitcode} if by_signal else {}
    raise reason(control.failures(), killed, cluster.size, again)


def reason(
    failures: Sequence[Failure], killed: dict[int, int], size: int, again: str = RESUME
) -> UserError:
    """Return a one-line error for the failed processes. In order of priority: a UserError of a
    process, a process killed by a signal, the first crash, whose traceback is printed before."""
    if failures and failures[0].kind == "error":
        name = f"process {failures[0].rank}: " if size > 1 else ""
        return UserError(f"{name}{failures[0].text}")
    if killed:
        rank, number = min(killed.items())
        cause = "; memory may have run out" if number == signal.SIGKILL else ""
        return UserError(f"process {rank} of {size} was killed by signal {number}{cause}; {again}")
    if failures:
        print(failures[0].text, file=sys.stderr)
        last = failures[0].text.strip().splitlines()[-1]
        return UserError(f"process {failures[0].rank} of {size} failed: {last}")
    return UserError(f"a process ended without a word; look above, then {again}")
