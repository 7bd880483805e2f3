"""Distributed context: rank, world size, barrier, reductions over processes, and stop requests.

`train/launch.py` or `torch.distributed.run` starts the processes; without either there is a single
process, and every call is free. Values that all processes need are reduced over a group on the host
(gloo), so that a device's queue is not disturbed. A process that hangs is named by the others: each
process records its progress in the run's store, and a watchdog thread that sees no progress reads
the records.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import distributed
from torch.distributed import (  # pyright: ignore[reportPrivateImportUsage]
    FileStore,  # pyright: ignore[reportPrivateImportUsage]
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.distributed.rendezvous import rendezvous

from tokenizer.run_control import RunControl

PATIENCE = timedelta(days=30)  # timeout of the groups themselves: the watchdog is to report first
HANG_STATUS = 75  # exit status of a process that found another process hanging
STORE = "CM3LEON_STORE"  # rendezvous file of the processes of one machine; else env:// is used

Say = Callable[[str], None]


def is_worker() -> bool:
    """Return whether this process is one of several that were started together."""
    return os.environ.keys() >= {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


def quiet(line: str) -> None:
    """Print nothing; used by all processes except the first."""


@dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """Context of one process among `size`; alone, every call is free and changes nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None
    control: RunControl | None = None
    asked_to_stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def first(self) -> bool:
        """True if this process reports, generates samples and saves for all."""
        return self.rank == 0

    def named(self, say: Say) -> Say:
        """Return `say` with the rank of this process as prefix, if there are several processes."""
        return say if self.size == 1 else lambda line: say(f"process {self.rank}: {line}")

    def device(self, kind: torch.device) -> torch.device:
        """Return the device of this process, given the kind of device."""
        if kind.type != "cuda" or self.size == 1:
            return kind
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            distributed.barrier()

    def table(self, row: Sequence[float]) -> torch.Tensor:
        """Gather a row of numbers from each process: float64 [size, len(row)], the same in all."""
        row_R = torch.tensor([row], dtype=torch.float64)
        if self.size == 1:
            return row_R
        rows = [torch.empty_like(row_R[0]) for _ in range(self.size)]
        distributed.all_gather(rows, row_R[0])
        return torch.stack(rows)

    def mean_(self, tensors: Iterable[torch.Tensor | None]) -> None:
        """Replace each tensor, in place, by its mean over all processes."""
        for tensor in tensors if self.size > 1 else ():
            if tensor is not None:
                distributed.all_reduce(tensor)
                tensor /= self.size

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate the tensors of all processes along the first axis, in the order of ranks."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def share(self, count: int) -> range:
        """Return this process's range of `count` items, which must divide evenly."""
        each = count // self.size
        assert each * self.size == count, f"{count} things for {self.size} processes"
        return range(self.rank * each, (self.rank + 1) * each)

    def must_stop(self) -> bool:
        """Return whether this process was asked to save and exit, by a signal or stop request."""
        if self.first and self.control is not None and self.control.stop_requested():
            self.asked_to_stop.set()
        return self.asked_to_stop.is_set()

    @contextmanager
    def at_work(self, step: int, phase: str) -> Generator[None]:
        """Record progress repeatedly while the block runs: for work of any length."""
        done = threading.Event()

        def tell() -> None:
            for count_of in count():
                self.note(step, f"{phase} ({count_of})")
                if done.wait(5):
                    return

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def note(self, step: int, phase: str) -> None:
        """Record the progress of this process for the others."""
        if self.store is not None:
            self.store.set(f"at-{self.rank}", f"step {step}, {phase}")


@contextmanager
def distributed_context(hung_after: float = math.inf) -> Generator[DistributedContext]:
    """Join the processes that were started together, or run as the only process.

    SIGTERM then requests an orderly exit. If no process makes progress for `hung_after` seconds,
    this process names the one that hangs and exits.
    """
    size = int(os.environ["WORLD_SIZE"]) if is_worker() else 1
    asked = threading.Event()
    with _asked_by_signal(asked):
        if size == 1:
            yield DistributedContext(asked_to_stop=asked)
            return
        rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = _store(size)
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=PATIENCE
        )
        dist = DistributedContext(
            rank=rank,
            size=size,
            local_rank=local_rank,
            store=PrefixStore("cm3leon", store),
            control=RunControl.of_environment(),
            asked_to_stop=asked,
        )
        dist.note(0, "starting")
        if hung_after < math.inf:
            heard = [time.monotonic()]
            watches = ((_watch, (dist, store.clone(), hung_after, heard)),
                       (_guard, (dist, hung_after, heard)))  # fmt: skip
            for watch, given in watches:
                threading.Thread(target=watch, args=given, daemon=True).start()
        try:
            yield dist
        finally:
            dist.ended.set()
            distributed.destroy_process_group()


def _store(size: int) -> Any:
    """Open the store shared by all processes: a file on one machine, else on the first machine."""
    if path := os.environ.get(STORE):
        return FileStore(path, size)
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    return store


@contextmanager
def _asked_by_signal(asked: threading.Event) -> Generator[None]:
    """Set the event on a signal; do nothing outside the main thread, which gets no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        asked.set()

    with on_stop(on_signal):
        yield


@contextmanager
def on_stop(act: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Call `act` when this process is asked to exit: by SIGTERM, or by SIGHUP unless that is
    ignored (nohup)."""
    wanted = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = [(number, signal.signal(number, act)) for number in wanted]
    try:
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)


@dataclass(kw_only=True)
class Sighting:
    """Last record of a process, and when this process first saw it (its own clock, seconds)."""

    note: str
    seen: float


def look(store: Any, name: str, size: int, known: list[Sighting]) -> list[Sighting]:
    """Read the last record of every process under a name; an unchanged record keeps its time."""
    now = time.monotonic()
    notes = [text.decode() for text in store.multi_get([f"{name}-{rank}" for rank in range(size)])]
    if not known:
        return [Sighting(note=text, seen=now) for text in notes]
    return [
        old if old.note == text else Sighting(note=text, seen=now)
        for old, text in zip(known, notes, strict=True)
    ]


def _guard(dist: DistributedContext, hung_after: float, heard: Sequence[float]) -> None:
    """Exit if the store has not answered for too long: it is on the first machine, and a request to
    it may block forever."""
    while not dist.ended.wait(hung_after / 8):
        if time.monotonic() - heard[-1] > 2 * hung_after:
            line = "the first machine does not answer; look at it, then go on with --resume latest"
            end(dist, line)


def _watch(dist: DistributedContext, store: Any, hung_after: float, heard: list[float]) -> None:
    """Exit, naming the process that is behind, if no process has made progress for too long.

    Two processes per machine read the records, so that the store does not get requests from
    hundreds; the others only report that they are alive.
    """
    notes = PrefixStore("cm3leon", store)
    watching = dist.local_rank < 2
    steps: list[Sighting] = []
    lives: list[Sighting] = []
    for life in count():
        try:
            notes.set(f"alive-{dist.rank}", str(life))
            if watching:
                steps = look(notes, "at", dist.size, steps)
                lives = look(notes, "alive", dist.size, lives)
        except RuntimeError:
            return  # the store is gone: the run has ended, or `_guard` reports the first machine
        heard[:] = [time.monotonic()]
        if steps and time.monotonic() - max(one.seen for one in steps) >= hung_after:
            end(dist, hang_line(steps, lives, hung_after))
        time.sleep(min(60.0, hung_after / 8))


def end(dist: DistributedContext, line: str) -> NoReturn:
    """End this process from a thread other than the main thread, wherever that is blocked."""
    if dist.control is None or not dist.control.report(dist.rank, "error", line):
        print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(HANG_STATUS)


def hang_line(steps: Sequence[Sighting], lives: Sequence[Sighting], hung_after: float) -> str:
    """Return a message that names the hanging process: a process without signs of life, else that
    with the oldest record."""
    latest = max(one.seen for one in lives)
    still = [rank for rank, one in enumerate(lives) if one.seen < latest - hung_after / 2]
    behind = still[0] if still else min(range(len(steps)), key=lambda rank: steps[rank].seen)
    alone = "it shows no sign of life" if still else "the others wait for it"
    return (
        f"process {behind} of {len(steps)} hangs: no step for {hung_after:g} s, it was last at "
        f"'{steps[behind].note}', {alone}; look at its machine, then go on with --resume latest"
    )
