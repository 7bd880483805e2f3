"""Prefill planning: the prompts to read in each forward pass, and the prefixes that they share.

The engine runs the plan. A prefix that prompts have in common (most often the streams of one
request, after the same retrieved documents or the same image) is read once. Prompts of very
different lengths do not share a pass: padding costs as much as reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

Prompt = tuple[int, ...]

ALIKE = 16  # minimum ids of a shared prefix to be worth a pass of its own
IDLE = 64  # ids of padding in a pass to be worth another pass


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Prompt to read; its first `shared` ids equal those of `source`, which is read earlier."""

    prompt: Prompt
    source: Prompt = ()
    shared: int = 0

    @property
    def rest(self) -> Prompt:
        """Ids still to be read; at least the last, whose hidden state is needed."""
        return self.prompt[self.shared :]


def plan(prompts: Sequence[Prompt], capacity: int) -> list[list[Reading]]:
    """Return the passes over distinct prompts.

    First come those that share no prefix with an earlier prompt, then the rest of the others. Each
    pass is padded to its longest prompt, and no row exceeds `capacity`.
    """
    roots, branches = list[Reading](), list[Reading]()
    for prompt in sorted(prompts, key=len, reverse=True):
        shared, source = max(
            ((_alike(prompt, root.prompt), root.prompt) for root in roots), default=(0, ())
        )
        if shared < ALIKE:
            roots.append(Reading(prompt=prompt))
        else:
            branches.append(Reading(prompt=prompt, source=source, shared=shared))
    branches.sort(key=lambda reading: len(reading.rest), reverse=True)
    return [*_passes(roots, capacity), *_passes(branches, capacity)]


def _alike(prompt: Prompt, other: Prompt) -> int:
    pairs = zip(prompt[:-1], other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _passes(readings: Sequence[Reading], capacity: int) -> list[list[Reading]]:
    """Split readings, sorted longest first, into passes wherever padding would be too much."""
    found: list[list[Reading]] = []
    idle = longest = 0
    for reading in readings:
        length = len(reading.rest)
        idle += longest - length
        if not found or idle >= IDLE or reading.shared + longest > capacity:
            found.append([])
            idle, longest = 0, length
        found[-1].append(reading)
    return found
