"""Which document stands at which place of a stream: names in given shares, then items in an order
of their own every epoch. Below `data`, which makes rows of them; nothing here has a state.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tokenizer.errors import UserError

DECK = 1000  # places in which every share is met exactly


class Deck:
    """Names in given shares: place -> (name, how many of that name came before).

    Shares are rounded to thousandths; a name with less than half of one may never come.
    """

    def __init__(self, shares: Mapping[str, float], seed: tuple[int, ...]) -> None:
        self.names = [name for name, share in shares.items() if share > 0]
        self.seed = seed
        exact = np.array([shares[name] for name in self.names])
        exact = exact / exact.sum() * DECK
        counts = np.floor(exact).astype(int)
        largest = np.argsort(counts - exact, kind="stable")  # the largest remainders first
        counts[largest[: DECK - counts.sum()]] += 1
        self.counts = counts
        self.shuffled = lru_cache(4)(self._shuffled)

    def _shuffled(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Deck `number`: the name at each slot, and how many of that name came before in it."""
        rng = np.random.default_rng((*self.seed, number))
        names = rng.permutation(np.repeat(np.arange(len(self.names)), self.counts))
        before = np.zeros(DECK, dtype=int)
        for name in range(len(self.names)):
            before[names == name] = np.arange(self.counts[name])
        return names, before

    def at(self, place: int) -> tuple[str, int]:
        """The name at a place, and its rank among the places of that name."""
        names, before = self.shuffled(place // DECK)
        slot = place % DECK
        name = int(names[slot])
        return self.names[name], place // DECK * int(self.counts[name]) + int(before[slot])


class Shuffle:
    """Items in an order of their own every epoch: place -> number of an item."""

    def __init__(self, count: int, seed: tuple[int, ...]) -> None:
        self.count, self.seed = count, seed
        self.order = lru_cache(2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((*self.seed, epoch)).permutation(self.count)

    def at(self, place: int) -> int:
        """The item at a place; every item comes once in `count` places."""
        return int(self.order(place // self.count)[place % self.count])


class Group(NamedTuple):
    """Units that are drawn evenly; a unit is a list of documents of which one is drawn."""

    units: list[list[Any]]
    shuffle: Shuffle


class Source:
    """Documents of one task by place: first the group (in shares), then the unit, then the one."""

    def __init__(
        self,
        form: str,
        groups: Mapping[str, list[list[Any]]],
        shares: Mapping[str, float],
        seed: tuple[int, ...],
    ) -> None:
        if not groups:
            raise UserError(f"rows ask for '{form}' but the shards hold none")
        for name in shares:
            if name not in groups:
                known = ", ".join(f"'{group}'" for group in sorted(groups))
                raise UserError(f"rows ask for '{form}' of '{name}' but the shards have {known}")
        named = sum(shares.values())
        others = {k: len(v) for k, v in sorted(groups.items()) if k not in shares}
        if others and named > 1 + 1e-9:
            raise UserError(
                f"the shares {dict(shares)} of '{form}' add up to {named:g}; leave at most 1, of "
                f"which {', '.join(others)} share the rest"
            )
        rest = max(0.0, 1 - named) / max(1, sum(others.values()))
        whole = {k: shares.get(k, rest * others.get(k, 0)) for k in sorted(groups)}
        if not any(whole.values()):
            raise UserError(f"the shares {dict(shares)} of '{form}' leave nothing to draw")
        self.deck = Deck(whole, (*seed, 0))
        self.count = sum(len(unit) for units in groups.values() for unit in units)
        self.groups = {
            name: Group(units, Shuffle(len(units), (*seed, 1, number)))
            for number, (name, units) in enumerate(sorted(groups.items()))
        }

    def at(self, place: int | None, rng: np.random.Generator) -> Any:
        """The document at a place of the stream; with no place, any, in the same shares."""
        if place is None:
            name, _ = self.deck.at(int(rng.integers(DECK)))
            group = self.groups[name]
            unit = group.units[int(rng.integers(len(group.units)))]
        else:
            name, rank = self.deck.at(place)
            group = self.groups[name]
            unit = group.units[group.shuffle.at(rank)]
        return unit[int(rng.integers(len(unit)))]


def grouped(items: Iterable[tuple[str, Hashable, Any]]) -> dict[str, list[list[Any]]]:
    """(group, unit, item) -> group -> its units, in order of first sight."""
    groups: dict[str, dict[Hashable, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for group, unit, item in items:
        groups[group][unit].append(item)
    return {name: list(units.values()) for name, units in groups.items()}
