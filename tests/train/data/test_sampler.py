"""Decks, shuffles and sources: every share is met, every item comes once before any comes twice."""

from collections import Counter
from itertools import pairwise
from math import factorial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.data.columns import Group
from train.data.sampler import DECK, Deck, Shuffle, Source


@settings(max_examples=30)
@given(
    shares=st.lists(st.floats(0, 1e3), min_size=1, max_size=6).filter(any),
    number=st.integers(0, 10**6),
)
def test_a_deck_meets_its_shares_every_thousand_places(shares: list[float], number: int) -> None:
    named = {str(name): share for name, share in enumerate(shares)}
    deck = Deck(named, (0, 1))
    dealt = [deck.at(number * DECK + slot) for slot in range(DECK)]
    counts = Counter(name for name, _ in dealt)
    for name, share in named.items():
        assert abs(counts[name] - share / sum(shares) * DECK) < 1
        ranks = [rank for each, rank in dealt if each == name]
        assert ranks == list(range(number * counts[name], (number + 1) * counts[name]))


def test_decks_are_shuffled_each_in_its_own_way() -> None:
    deck = Deck({"a": 1.0, "b": 1.0}, (0,))
    first, second = ([deck.at(n * DECK + slot)[0] for slot in range(DECK)] for n in (0, 1))
    assert first != second
    assert first != sorted(first)


@given(count=st.integers(1, 300), epoch=st.integers(0, 10**6), seed=st.integers(0, 10**6))
def test_a_shuffle_covers_every_item_once_an_epoch(count: int, epoch: int, seed: int) -> None:
    shuffle = Shuffle(count, (seed, 1))
    places = range(epoch * count, (epoch + 1) * count)
    assert sorted(shuffle.at(place) for place in places) == list(range(count))


@given(count=st.integers(1, 2**40), start=st.integers(0, 2**50), seed=st.integers(0, 10**6))
def test_a_shuffle_of_any_length_is_one_to_one(count: int, start: int, seed: int) -> None:
    start -= start % count  # a few places of one epoch
    places = range(start, start + min(count, 100))
    shuffle = Shuffle(count, (seed,))
    found = [shuffle.at(place) for place in places]
    assert len(set(found)) == len(places)
    assert 0 <= min(found) <= max(found) < count
    again = Shuffle(count, (seed,))
    assert [again.at(place) for place in reversed(places)] == found[::-1]


@given(count=st.integers(40, 2**40), epoch=st.integers(0, 1000), seed=st.integers(0, 1000))
def test_every_epoch_and_seed_has_its_own_order(count: int, epoch: int, seed: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        shuffle = Shuffle(count, (seed, 2))
        return [shuffle.at(epoch * count + place) for place in range(40)]

    orders = [order(seed, epoch), order(seed, epoch + 1), order(seed + 1, epoch)]
    assert len({tuple(one) for one in orders}) == 3
    assert sorted(orders[0]) != orders[0]


def deviation(counts: Counter[Any], kinds: int) -> float:
    """How far counts lie from even ones, in standard deviations of chi-squared."""
    even = counts.total() / kinds
    chi = sum((count - even) ** 2 / even for count in counts.values())
    chi += (kinds - len(counts)) * even
    return (chi - kinds + 1) / (2 * (kinds - 1)) ** 0.5


@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_orders_of_a_few_come_alike(count: int) -> None:
    shuffle, kinds = Shuffle(count, (0, 1)), factorial(count)
    orders = Counter(
        tuple(shuffle.at(epoch * count + place) for place in range(count))
        for epoch in range(40 * kinds)
    )
    assert abs(deviation(orders, kinds)) < 4


def test_items_stand_anywhere_and_beside_any_other() -> None:
    count, epochs = 37, 400
    shuffle = Shuffle(count, (3,))
    orders = [
        [shuffle.at(epoch * count + place) for place in range(count)] for epoch in range(epochs)
    ]
    stands = Counter(pair for order in orders for pair in enumerate(order))
    assert abs(deviation(stands, count**2)) < 4
    beside = Counter(pair for order in orders for pair in pairwise(order))
    assert abs(deviation(beside, count * (count - 1))) < 4
    many = Shuffle(2**40 - 7, (3,))
    tenths = Counter(many.at(place) * 10 // many.count for place in range(5000))
    assert abs(deviation(tenths, 10)) < 4


@pytest.mark.parametrize("place", [None, 0])
def test_every_unit_of_a_group_comes_once_before_any_comes_twice(place: int | None) -> None:
    several = Group(np.array([10, 11, 12, 13]), np.array([0, 1, 3, 4]))
    groups = {"a": several, "b": Group(np.array([20]), None)}
    source = Source("pair", groups, {"a": 0.75}, (0,))
    assert source.count == 5
    rng = np.random.default_rng(0)
    drawn = [source.at(None if place is None else number, rng) for number in range(DECK)]
    counts = Counter(drawn)
    assert counts.keys() == {10, 11, 12, 13, 20}
    if place is None:
        assert counts[20] == pytest.approx(250, abs=60)
        assert counts[10] == pytest.approx(250, abs=60)
        assert counts[11] + counts[12] == pytest.approx(250, abs=60)
        return
    assert counts[20] == 250
    of_a = [{11: "twin", 12: "twin"}.get(number, str(number)) for number in drawn if number < 20]
    for start in range(0, 750, 3):
        assert sorted(of_a[start : start + 3]) == ["10", "13", "twin"]
    assert counts[11] > 100 < counts[12]
