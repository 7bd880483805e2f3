"""From one typed command to all processes of a run, on this machine or on many.

cli.pretrain -> here -> `torch.distributed.run` -> the same command in each process, as a worker.
On each machine the command is itself the agent that `python -m torch.distributed.run` would be;
with a hostfile it first starts itself on every host by ssh. DeepSpeed is the engine alone.
"""

import logging
import math
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from retrieval.parts import is_worker
from tokenizer.errors import UserError
from tokenizer.manifest import locked
from train.board import VARIABLE, Board, Failure
from train.state import LOCK, Say
from train.world import on_stop

AGENT = "torch.distributed.run"
PORT = 29500
FOLLOW = "CM3LEON_FOLLOW"  # set where `hosts` started this command by ssh
LOST_AFTER = 15.0  # seconds
AGAIN = "go on with --resume latest"  # what to do when a process was killed
NOT_OURS = "SIGQUIT"  # signals that torch's agent may handle; the others are for us


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

    def all_processes(self) -> int:
        """Processes on all machines, those of a hostfile too."""
        if self.hostfile is None:
            return self.size
        from train.hosts import places_of, read_hosts

        return places_of(self, read_hosts(self.hostfile))[0].size

    @property
    def size(self) -> int:
        """All processes."""
        return self.each * self.nodes


def found(cluster: Cluster) -> Cluster | None:
    """The cluster with what SLURM or a hostfile tells; None where this process is to do the work
    itself: a worker, or alone."""
    if is_worker():
        if cluster.processes or cluster.nodes > 1 or cluster.hostfile:
            raise UserError(
                "this process is one of many already (RANK and WORLD_SIZE say so): leave out "
                "--processes, --nodes and --hostfile, or unset those variables"
            )
        return None
    if cluster.hostfile is None and cluster.nodes == 1:
        cluster = of_slurm(cluster)
    if cluster.hostfile is not None or cluster.nodes > 1 or cluster.dry_run:
        return cluster
    return cluster if cluster.each > 1 else None


def of_slurm(cluster: Cluster) -> Cluster:
    """What SLURM's variables say of a job that `srun` runs once on each of several machines."""
    told = os.environ
    if not told.get("SLURM_STEP_ID", "").isdigit():  # not in a step: nobody started the others
        return cluster
    try:
        nodes, tasks = int(told["SLURM_STEP_NUM_NODES"]), int(told["SLURM_STEP_NUM_TASKS"])
        rank, job = int(told["SLURM_NODEID"]), int(told["SLURM_JOB_ID"])
        first = first_host(told["SLURM_STEP_NODELIST"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"SLURM's variables do not say where this is ({error}); give --nodes, --node-rank and "
            "--master-addr"
        ) from error
    if nodes == 1:
        return cluster
    if tasks != nodes:
        raise UserError("under SLURM run one task a node (--ntasks-per-node=1): it starts the rest")
    port = cluster.master_port or 20000 + job % 10000
    return replace(cluster, nodes=nodes, node_rank=rank, master_addr=first, master_port=port)


def first_host(nodes: str) -> str:
    """`node[003-007,9],other` -> `node003`."""
    name = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)(?:,|$)", nodes)
    if name is None:
        raise ValueError(f"the list of nodes is {nodes!r}")
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


def launch(worker: Sequence[str], out: Path, cluster: Cluster, say: Say, again: str = AGAIN) -> int:
    """Start all processes of `cm3leon WORKER...` and wait for them; the exit status.

    `out` is the run's folder; `again` says how to go on with it. SIGTERM to this process asks all
    of them to save and end. Raises UserError: the first process's reason, where one fails.
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
        return run_agent(arguments, cluster, board, again)


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
    try:
        board.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {board.folder}: {error.strerror}") from error
    if not head:
        with asking_to_stop(board):
            yield board
        return
    busy = f"another launch works on the run in {out}; wait for it, or name a new folder"
    with locked(board.folder / LOCK, busy):
        board.clear()
        try:
            with asking_to_stop(board):
                yield board
        finally:
            shutil.rmtree(board.folder, ignore_errors=True)


@contextmanager
def asking_to_stop(board: Board) -> Generator[None]:
    """A signal that asks this process to end becomes a note to all."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            board.ask_to_stop()

    with on_stop(on_signal):
        yield


def run_agent(arguments: Sequence[str], cluster: Cluster, board: Board, again: str) -> int:
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

    def lost() -> None:  # the agent waits for another machine's, which may be gone for good
        if notes := board.failures():
            print(f"error: {why(notes, {}, cluster.size, again)}", file=sys.stderr, flush=True)
            os._exit(1)

    deaths = Deaths(lost)
    try:
        agent.run(given)
    except ChildFailedError as error:
        first, failed = min(error.failures.items(), key=lambda one: deaths.when(one[1].pid))
        killed = {first: -failed.exitcode} if failed.exitcode < 0 else {}
        notes = board.failures()
        if cluster.node_rank and not notes and not killed:
            raise UserError(
                "the run has ended on another machine; the first one says why"
            ) from error
        raise why(notes, killed, cluster.size, again) from error
    except RuntimeError as error:  # the other machines did not come, or went
        raise UserError(f"the machines did not come together: {error}") from error
    return 0


class Deaths:
    """When this machine's processes were seen to be gone: the agent kills all when one has ended,
    and tells only that they are dead."""

    def __init__(self, lost: Callable[[], None] = lambda: None) -> None:
        self.seen: dict[int, float] = {}
        self.lost = lost  # called when all have been gone for a while and the agent has not noticed
        threading.Thread(target=self._watch, daemon=True).start()

    def when(self, pid: int) -> float:
        """The time of a process's end, by the clock of this one; never, where it was not seen."""
        return self.seen.get(pid, math.inf)

    def _watch(self) -> None:
        known: set[int] = set()
        while True:
            alive = {pid for pid in children() if not is_dead(pid)}
            for pid in known - alive:
                self.seen.setdefault(pid, time.monotonic())
            known |= alive
            if known and not alive and time.monotonic() - max(self.seen.values()) > LOST_AFTER:
                self.lost()
            time.sleep(0.05)


def children() -> set[int]:
    """The processes that this one started."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found |= {int(word) for word in path.read_text().split()}
    return found


def is_dead(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def why(
    notes: Sequence[Failure], killed: dict[int, int], size: int, again: str = AGAIN
) -> UserError:
    """One line for all that failed: what a user can mend, then a process that was killed, then the
    first crash, whose traceback is shown above it."""
    if notes and notes[0].kind == "error":
        name = f"process {notes[0].rank}: " if size > 1 else ""
        return UserError(f"{name}{notes[0].told}")
    if killed:
        rank, number = min(killed.items())
        reason = "; memory may have run out" if number == signal.SIGKILL else ""
        return UserError(f"process {rank} of {size} was killed by signal {number}{reason}; {again}")
    if notes:
        print(notes[0].told, file=sys.stderr)
        last = notes[0].told.strip().splitlines()[-1]
        return UserError(f"process {notes[0].rank} of {size} failed: {last}")
    return UserError(f"a process ended without a word; look above, then {again}")
