"""Timing of alternating actions, for comparisons on a machine whose speed drifts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Action = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of the runs of one action."""

    median: float
    least: float
    most: float
    processor: float
    """Median of the processor's seconds, of all threads together; other processes hardly change
    it."""

    @classmethod
    def of(cls, seconds: Sequence[tuple[float, float]]) -> "Timing":
        """Summarise runs, each timed by the clock and by the processor's time."""
        clock, processor = zip(*seconds, strict=True)
        return cls(
            median=median(clock), least=min(clock), most=max(clock), processor=median(processor)
        )


def interleaved(actions: Sequence[Action], times: int, device: torch.device) -> list[Timing]:
    """Time some actions `times` times each, in turn, forwards and backwards; a first round warms
    up."""
    seconds = [list[tuple[float, float]]() for _ in actions]
    order = list(enumerate(actions))
    for number in range(times + 1):
        for place, action in order:
            found = timed(action, device)
            if number:
                seconds[place].append(found)
        order.reverse()
    return [Timing.of(one) for one in seconds]


def timed(action: Action, device: torch.device) -> tuple[float, float]:
    """Run an action once; return the seconds of the clock and of the processor."""
    synchronize(device)
    begun = time.perf_counter(), time.process_time()
    action()
    synchronize(device)
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
