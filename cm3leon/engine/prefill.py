"""Which prompts are read in which pass, and what of them has been read already.

Below engine, which reads them. Prompts that begin alike (the streams of one request behind the same
retrieved documents or the same picture, most of all) are read to where they part once. Prompts of
very different lengths do not share a pass: padding costs as much as reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

Prompt = tuple[int, ...]

ALIKE = 16  # ids that two prompts have in common before that is worth a pass of its own
IDLE = 64  # ids of padding before they are


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One prompt, of which `source` has its first `shared` ids too and is read before."""

    prompt: Prompt
    source: Prompt = ()
    shared: int = 0

    @property
    def rest(self) -> Prompt:
        """What is still to be read; at least the last id, whose hidden state is wanted."""
        return self.prompt[self.shared :]


def plan(prompts: Sequence[Prompt], capacity: int) -> list[list[Reading]]:
    """The passes over distinct prompts: first those that begin like no other, then the rest of the
    others. In each, padded to the longest, no row reaches beyond `capacity`."""
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
    """Cut readings, the longest first, where padding would be too much."""
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
