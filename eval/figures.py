"""A figure for the ledger: a mean or a ratio over documents, with its standard error.

Every measurement ends here, before the roof prints its table.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ALL = "all"


@dataclass(frozen=True)
class Figure:
    """A value with one standard error over its `count` documents (None for a single one)."""

    value: float
    error: float | None
    count: int

    @property
    def margin(self) -> float | None:
        """Half of the 95% interval around the value, for a count that is not small."""
        return None if self.error is None else 1.96 * self.error


def ratio(amounts: Sequence[float], sizes: Sequence[float] | None = None) -> Figure:
    """The sum of `amounts` over the sum of `sizes`, one pair a document; without sizes, the mean.

    The error is that of a ratio: what is left of each amount after its size is accounted for
    (Cochran, Sampling Techniques, section 6.3).
    """
    amounts_D = np.asarray(amounts, dtype=np.float64)
    sizes_D = np.ones_like(amounts_D) if sizes is None else np.asarray(sizes, dtype=np.float64)
    count = len(amounts_D)
    value = float(amounts_D.sum() / sizes_D.sum())
    if count < 2:
        return Figure(value, None, count)
    spread = float((amounts_D - value * sizes_D).std(ddof=1))
    return Figure(value, spread / count**0.5 / float(sizes_D.mean()), count)


def kind_of(picture: Mapping[str, Any]) -> str:
    """The kind that a picture's metadata gives, if any."""
    return str(picture.get("kind", "picture"))


def by_kind(kinds: Sequence[str]) -> dict[str, list[int]]:
    """The places of each kind, by name; of several kinds, then of all together."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, kind in enumerate(kinds):
        found[kind].append(place)
    table = dict(sorted(found.items()))
    return table if len(table) == 1 else {**table, ALL: list(range(len(kinds)))}


def evenly(things: Sequence[int], limit: int | None) -> list[int]:
    """At most `limit` of the things, evenly spaced and in their order; None takes all."""
    if limit is None or limit >= len(things):
        return list(things)
    return [things[number * len(things) // limit] for number in range(limit)]


def limited(kinds: Sequence[str], limit: int | None) -> list[int]:
    """The places of at most `limit` things of each kind, evenly spaced, rising."""
    places = [kept for kind in set(kinds) for kept in evenly(_places(kinds, kind), limit)]
    return sorted(places)


def _places(kinds: Sequence[str], wanted: str) -> list[int]:
    return [place for place, kind in enumerate(kinds) if kind == wanted]
