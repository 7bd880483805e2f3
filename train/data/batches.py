"""Batches of training rows: the rows of each step, made ahead by processes, and micro-batches."""

# Shapes: B = rows, L = ids of the longest row

import signal
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import DataLoader, Dataset

from tokenizer.vocabulary import PAD
from train.data.rows import Mixture, Rows
from train.objective import Ids

STEP = 16  # padded input lengths are rounded up to multiples of this


class Steps(Dataset[list[Ids]]):
    """Data set of steps: the rows of a step at the places `share`, this process's share."""

    def __init__(self, rows: Rows | Mixture, batch: int, share: range) -> None:
        self.rows, self.batch, self.share = rows, batch, share

    def __getitem__(self, step: int) -> list[Ids]:
        return [self.rows.at(step * self.batch + place) for place in self.share]


def _let_be(_: int) -> None:
    """Ignore SIGTERM and SIGHUP in a loader process: the training loop ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def rows_of_steps(
    rows: Rows | Mixture, batch: int, share: range, steps: range, workers: int
) -> Iterator[list[Ids]]:
    """Return the rows of each step, in order; `workers` processes make them ahead of time.

    A GPU consumes as many rows per second as several CPU cores make, so without workers it would
    wait. Processes, not threads, because threads would hold the training loop's interpreter lock.
    """
    table = Steps(rows, batch, share)
    if not workers:
        return map(table.__getitem__, steps)
    loader = DataLoader(
        table,
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_let_be,
        multiprocessing_context="fork",  # they share the memory of `rows`
    )
    return iter(loader)


def micro_batches(rows: Sequence[Ids], tokens: int) -> Iterator[Ids]:
    """Yield micro-batches of rows of similar length, right-padded: ids_BL of at most `tokens` ids,
    or of one row.

    Every row is in exactly one of them. A row may be a quarter longer than the shortest of its
    micro-batch, which limits padding. Widths are rounded up to STEP, so that there are few distinct
    ones: for each new length a CPU prepares its matrix products again.
    """
    order, start = sorted(rows, key=len), 0
    while start < len(order):
        end, most = start + 1, len(order[start]) * 5 // 4
        width = longest = len(order[-1])
        for more, row in enumerate(order[start:], 1):
            wide = min((len(row) - 2) // STEP * STEP + STEP + 1, longest)  # last id: no input
            if more > 1 and (len(row) > most or more * wide > tokens):
                break
            end, width = start + more, wide
        ids_BL = np.full((end - start, width), PAD, dtype=np.int64)
        for number, row in enumerate(order[start:end]):
            ids_BL[number, : len(row)] = row
        yield ids_BL
        start = end
