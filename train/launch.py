"""From one typed command to all processes of a run, on this machine or on many.

cli.pretrain -> here -> `torch.distributed.run` -> the same command in each process, as a worker.
On each machine the command is itself the agent that `python -m torch.distributed.run` would be;
with a hostfile it first starts itself on every host by ssh. DeepSpeed is the engine alone.
"""

import logging
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from tokenizer.errors import UserError
from train.board import VARIABLE, Board, Failure
from train.state import Say

AGENT = "torch.distributed.run"
PORT = 29500
FOLLOW = "CM3LEON_FOLLOW"  # set where `hosts` started this command by ssh
NOT_OURS = "SIGHUP,SIGQUIT"  # signals that torch's agent may handle; SIGTERM is for us


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the processes of a run are to be."""

    processes: int | None = None  # on each machine; None is one for each GPU, or one
    nodes: int = 1
    node_rank: int = 0
    master_addr: str | None = None  # the first machine
    master_port: int | None = None
    hostfile: Path | None = None
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
        if self.hostfile is not None and self.nodes > 1:
            raise UserError("give either a hostfile or nodes: the file says how many there are")

    @property
    def each(self) -> int:
        """Processes on each machine."""
        if self.processes is not None:
            return self.processes
        import torch

        return max(1, torch.cuda.device_count())

    @property
    def size(self) -> int:
        """All processes."""
        return self.each * self.nodes


def is_worker() -> bool:
    """Whether this process is one that `torch.distributed.run` started."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def found(cluster: Cluster) -> Cluster | None:
    """The cluster with what SLURM or a hostfile tells; None where this process is to do the work
    itself: a worker, or alone."""
    if is_worker():
        return None
    if cluster.hostfile is None and cluster.nodes == 1:
        cluster = of_slurm(cluster)
    if cluster.hostfile is not None or cluster.nodes > 1 or cluster.dry_run:
        return cluster
    return cluster if cluster.each > 1 else None


def of_slurm(cluster: Cluster) -> Cluster:
    """What SLURM's variables say of a job that `srun` runs once on each of several machines."""
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    if "SLURM_PROCID" not in os.environ or nodes == 1:
        return cluster
    if int(os.environ.get("SLURM_NTASKS", str(nodes))) != nodes:
        raise UserError("under SLURM run one task a node (--ntasks-per-node=1): it starts the rest")
    return replace(
        cluster,
        nodes=nodes,
        node_rank=int(os.environ["SLURM_NODEID"]),
        master_addr=first_host(os.environ["SLURM_JOB_NODELIST"]),
        master_port=cluster.master_port or 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000,
    )


def first_host(nodes: str) -> str:
    """`node[003-007,9],other` -> `node003`."""
    name = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    if name is None:
        raise UserError(
            f"SLURM_JOB_NODELIST is {nodes!r}; give --nodes, --node-rank, --master-addr"
        )
    return "".join(part or "" for part in name.groups())


def agent_arguments(cluster: Cluster, worker: Sequence[str]) -> list[str]:
    """What `python -m torch.distributed.run` takes on this machine for a worker's command line."""
    where = ["--nproc-per-node", str(cluster.each)]
    if cluster.nodes > 1:
        where += ["--nnodes", str(cluster.nodes), "--node-rank", str(cluster.node_rank)]
    if cluster.nodes > 1 or cluster.master_port is not None:
        where += ["--master-addr", cluster.master_addr or "127.0.0.1"]
        where += ["--master-port", str(cluster.master_port or PORT)]
    return [*where, "--module", "cm3leon", *worker]


def launch(worker: Sequence[str], out: Path, cluster: Cluster, say: Say) -> int:
    """Start all processes of `cm3leon WORKER...` and wait for them; the exit status.

    `out` is the run's folder. SIGTERM to this process asks all of them to save and end. Raises
    UserError: the first process's reason, where one fails.
    """
    if cluster.hostfile is not None:
        from train.hosts import launch_on_hosts

        return launch_on_hosts(worker, out, cluster, say)
    arguments = agent_arguments(cluster, worker)
    if cluster.dry_run:
        print(f"PYTHONSAFEPATH=1 {shlex.join([sys.executable, '-m', AGENT, *arguments])}")
        return 0
    check_port(cluster)
    followed = FOLLOW in os.environ
    with the_board(out, head=cluster.node_rank == 0 and not followed) as board:
        if followed:
            threading.Thread(target=end_with_input, daemon=True).start()
        return run_agent(arguments, cluster, board)


def end_with_input() -> None:
    """End as if interrupted when whoever started this by ssh is gone: then the input ends."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def check_port(cluster: Cluster) -> None:
    """The first machine must be able to listen where the others will call."""
    if cluster.node_rank or (cluster.nodes == 1 and cluster.master_port is None):
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
def the_board(out: Path, head: bool) -> Generator[Board]:
    """The folder of notes of a launch; the first machine's is new, and gone when it ends."""
    board = Board(out.absolute().with_name(f".{out.name}.launch"))
    if head:
        shutil.rmtree(board.folder, ignore_errors=True)
    try:
        board.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {board.folder}: {error.strerror}") from error
    try:
        with asking_to_stop(board):
            yield board
    finally:
        if head:
            shutil.rmtree(board.folder, ignore_errors=True)


@contextmanager
def asking_to_stop(board: Board) -> Generator[None]:
    """SIGTERM to this process becomes a note to all."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            board.ask_to_stop()

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_agent(arguments: Sequence[str], cluster: Cluster, board: Board) -> int:
    """Be the agent of this machine until its processes end."""
    from torch.distributed import run as agent
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)  # the agent's words; we say what matters ourselves
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // cluster.each)))
    os.environ |= {
        "PYTHONSAFEPATH": "1",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": NOT_OURS,
        VARIABLE: str(board.folder),
    }
    given = agent.parse_args(list(arguments))
    given.signals_to_handle = NOT_OURS  # newer releases set the variable from this
    try:
        agent.run(given)
    except ChildFailedError as error:
        killed = {rank: -one.exitcode for rank, one in error.failures.items() if one.exitcode < 0}
        killed = {rank: number for rank, number in killed.items() if number != signal.SIGTERM}
        raise why(board.failures(), killed, cluster.size) from error
    except RuntimeError as error:  # the other machines did not come, or went
        raise UserError(f"the machines did not come together: {error}") from error
    return 0


def why(notes: Sequence[Failure], killed: dict[int, int], size: int) -> UserError:
    """One line for all that failed: what a user can mend, then a process that was killed, then the
    first crash, whose traceback is shown above it."""
    if notes and notes[0].kind == "error":
        name = f"process {notes[0].rank}: " if size > 1 else ""
        return UserError(f"{name}{notes[0].told}")
    if killed:
        rank, number = min(killed.items())
        reason = "; memory may have run out" if number == signal.SIGKILL else ""
        return UserError(
            f"process {rank} of {size} was killed by signal {number}{reason}; go on with --resume "
            "latest"
        )
    if notes:
        print(notes[0].told, file=sys.stderr)
        last = notes[0].told.strip().splitlines()[-1]
        return UserError(f"process {notes[0].rank} of {size} failed: {last}")
    return UserError("a process ended without a word; look above, then go on with --resume latest")
