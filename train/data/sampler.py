"""Stateless sampling: the document at each place of a stream, by given shares and shuffled epochs.

`train/data/rows.py` makes rows of these documents.
"""

import hashlib
import struct
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from tokenizer.data.columns import Group
from tokenizer.errors import UserError

DECK = 1000  # places within which every share is met exactly
ODD, WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1  # multiplier and mask of the 64-bit mixing


class Deck:
    """Stream of names in given shares: place -> (name, number of earlier places of that name).

    Shares are rounded to thousandths; a name with a share below half a thousandth may never occur.
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
        """Return the name at each slot of deck `number`, and its number of earlier slots there."""
        rng = np.random.default_rng((*self.seed, number))
        names = rng.permutation(np.repeat(np.arange(len(self.names)), self.counts))
        before = np.zeros(DECK, dtype=int)
        for name in range(len(self.names)):
            before[names == name] = np.arange(self.counts[name])
        return names, before

    def at(self, place: int) -> tuple[str, int]:
        """Return the name at a place, and its rank among the places of that name."""
        names, before = self.shuffled(place // DECK)
        slot = place % DECK
        name = int(names[slot])
        return self.names[name], place // DECK * int(self.counts[name]) + int(before[slot])


class Shuffle:
    """Random permutation of the items for each epoch: place -> number of an item.

    The permutation is computed, not stored: a Feistel network permutes the numbers below the next
    power of two, and a number outside the items is permuted again (cycle walking).
    """

    def __init__(self, count: int, seed: tuple[int, ...]) -> None:
        self.count, self.seed = count, seed
        bits = (count - 1).bit_length()
        self.low, self.high = (bits + 1) // 2, bits // 2  # bits of either half
        self.rounds = 6 if bits > 10 else 16  # short halves take longer to mix
        self.keys = lru_cache(4)(self._keys)

    def _keys(self, epoch: int) -> tuple[int, ...]:
        """Return a key for each round."""
        told = repr((self.seed, epoch)).encode()
        return struct.unpack(f"<{self.rounds}Q", hashlib.shake_128(told).digest(8 * self.rounds))

    def at(self, place: int) -> int:
        """Return the item at a place; every item occurs once per `count` places."""
        epoch, item = divmod(place, self.count)
        if self.count == 1:
            return 0
        keys, low = self.keys(epoch), self.low
        to_low, to_high = 64 - low, 64 - self.high
        while True:
            left, right = item >> low, item & ((1 << low) - 1)
            for one, other in zip(keys[::2], keys[1::2], strict=True):
                mixed = ((left ^ one) * ODD) & WORD
                mixed = ((mixed ^ mixed >> 32) * ODD) & WORD
                right ^= mixed >> to_low
                mixed = ((right ^ other) * ODD) & WORD
                mixed = ((mixed ^ mixed >> 32) * ODD) & WORD
                left ^= mixed >> to_high
            item = left << low | right
            if item < self.count:
                return item


class Source:
    """Documents of one task by place: first the group (by shares), then a unit of the group, then a
    document of the unit.

    Every unit of a group occurs once before any occurs twice; the document is drawn at random from
    its unit. Raises UserError if there are no groups, or if the shares do not fit them.
    """

    def __init__(
        self,
        form: str,
        groups: Mapping[str, Group],
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
        others = {k: v.units for k, v in sorted(groups.items()) if k not in shares}
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
        self.count = sum(len(group.numbers_N) for group in groups.values())
        self.groups = dict(groups)
        self.shuffles = {
            name: Shuffle(group.units, (*seed, 1, number))
            for number, (name, group) in enumerate(sorted(groups.items()))
        }

    def at(self, place: int | None, rng: np.random.Generator) -> int:
        """Return the document at a place of the stream, or a random one by the same shares if
        `place` is None."""
        name, rank = self.deck.at(int(rng.integers(DECK)) if place is None else place)
        group = self.groups[name]
        unit = int(rng.integers(group.units)) if place is None else self.shuffles[name].at(rank)
        if group.bounds_U is not None:
            unit = int(rng.integers(*group.bounds_U[unit : unit + 2].tolist()))
        return int(group.numbers_N[unit])
