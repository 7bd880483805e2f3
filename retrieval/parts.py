"""Many processes build one memory: each fills parts of its own, then the first gathers them.

`python -m torch.distributed.run --nproc-per-node N --module cm3leon index build ...`: process r of
N takes every N-th source from the r-th on. A source's documents become a part, a memory by itself
in a folder inside the memory's; gathered in the order of the sources they are what one process
would have made. Parts that a killed build left behind are gathered when the next one begins.
"""

import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import distributed

from retrieval.memory import TOP, Memory, Say
from tokenizer.data.tars import Tally

PATIENCE = timedelta(days=30)  # for the slowest of the processes

Fill = Callable[[Memory, Sequence[str], Memory | None], Memory]


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The processes that build together, seen from one of them."""

    rank: int = 0
    size: int = 1
    wait: Callable[[], object] = lambda: None
    """Wait until all of them have come here."""

    def said(self, say: Say) -> Say:
        """`say`, with the name of this process where it is not alone."""
        return say if self.size == 1 else lambda line: say(f"process {self.rank}: {line}")


def is_worker() -> bool:
    """Whether this process is one that `torch.distributed.run` started."""
    return os.environ.keys() >= {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


@contextmanager
def crew() -> Generator[Crew]:
    """The processes that `torch.distributed.run` started; without it there is one."""
    size = int(os.environ["WORLD_SIZE"]) if is_worker() else 1
    if size == 1:
        yield Crew()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("gloo")
    try:
        patient: Any = distributed.new_group(timeout=PATIENCE)
        wait = partial(distributed.barrier, patient)
        yield Crew(rank=distributed.get_rank(), size=size, wait=wait)
    finally:
        distributed.destroy_process_group()


def fill_together(
    memory: Memory, sources: Sequence[str], we: Crew, fill: Fill, tally: Tally
) -> Memory:
    """The memory with the documents of all sources; where there are several processes, the first
    has it and the others the memory that was there.

    `fill(memory, sources, beside)` is the memory with what neither it nor `beside` holds of some
    sources.
    """
    if we.size == 1:
        return fill(memory, sources, None)
    for number in range(we.rank, len(sources), we.size):
        contents = replace(memory.contents, segments=())
        part = Memory.create(memory.folder / f"part-{number:06d}", contents)
        fill(part, [sources[number]], memory)
    we.wait()
    return gather(memory, tally) if we.rank == 0 else memory


def gather(memory: Memory, tally: Tally) -> Memory:
    """The memory with the documents of its parts, which are no more. Of two with one id the first
    comes; the other is noted in `tally`."""
    for top in sorted(memory.folder.glob(f"part-*/{TOP}")):
        for segment in Memory.open(top.parent).segments:
            names = [picture["id"] for picture in segment.shards.every_picture()]
            new = [row for row, name in enumerate(names) if memory.find(name) is None]
            for row in sorted({*range(len(names))} - {*new}):
                tally.skip(names[row], f"a picture of an earlier source has its id {names[row]!r}")
            if new:
                rows = (segment.document(row) for row in new)
                memory = memory.add(rows, segment.index.vectors_DE[new])
        top.unlink()  # gathered, whatever becomes of the rest
    for part in memory.folder.glob("part-*"):
        shutil.rmtree(part, ignore_errors=True)
    return memory
