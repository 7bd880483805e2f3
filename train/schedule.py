"""Learning rate schedules, for every kind of training job."""

import math
from dataclasses import dataclass
from typing import Literal

from tokenizer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warmup to `peak`, then decay to `end_fraction * peak` at the last step.

    `linear` is OPT's polynomial decay of power 1 (the paper does not state one; OPT's ends at 0.1);
    `cosine` is half a cosine period; `wsd` (warmup-stable-decay) stays at the peak and decays
    linearly over the last `tail` share of the steps (of those after the warmup).
    """

    peak: float
    warmup: int = 0  # steps
    decay: Literal["linear", "cosine", "wsd"] = "linear"
    end_fraction: float = 0.1
    tail: float = 0.2

    def __post_init__(self) -> None:
        if not (self.peak > 0 and self.warmup >= 0):
            raise UserError(f"peak must be above 0 and warmup at least 0, got {self}")
        if not (0 <= self.end_fraction <= 1 and 0 < self.tail <= 1):
            raise UserError(f"end_fraction must be in 0..1 and tail in 0..1, got {self}")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        place = (step - self.warmup) / max(1, steps - 1 - self.warmup)  # decay progress, 0..1
        if self.decay == "wsd":
            place = max(0.0, 1 - (1 - place) / self.tail)
        fall = (1 - math.cos(math.pi * place)) / 2 if self.decay == "cosine" else place
        return self.peak * (1 - fall * (1 - self.end_fraction))
